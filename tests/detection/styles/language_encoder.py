"""Encoders and encoder-decoders as the well-known teaching code writes them."""

from __future__ import annotations

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# The Annotated Transformer: four linears in one list, and an output layer that the model's forward never calls.
def clones(module: nn.Module, N: int) -> nn.ModuleList:
    return nn.ModuleList([copy.deepcopy(module) for _ in range(N)])


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = torch.matmul(query, key.transpose(-2, -1)) / math.sqrt(query.size(-1))
    if mask is not None:
        scores = scores.masked_fill(mask == 0, -1e9)
    return torch.matmul(scores.softmax(dim=-1), value)


class MultiHeadedAttention(nn.Module):
    def __init__(self, h: int, d_model: int) -> None:
        super().__init__()
        self.d_k = d_model // h
        self.h = h
        self.linears = clones(nn.Linear(d_model, d_model), 4)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        nbatches = query.size(0)
        query, key, value = (
            lin(x).view(nbatches, -1, self.h, self.d_k).transpose(1, 2) for lin, x in zip(self.linears, (query, key, value), strict=False)
        )
        x = attention(query, key, value, None if mask is None else mask.unsqueeze(1))
        return self.linears[-1](x.transpose(1, 2).contiguous().view(nbatches, -1, self.h * self.d_k))


class PositionwiseFeedForward(nn.Module):
    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w_1 = nn.Linear(d_model, d_ff)
        self.w_2 = nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(self.w_1(x).relu())


class CodedLayer(nn.Module):
    def __init__(self, size: int, h: int, cross: bool) -> None:
        super().__init__()
        self.self_attn = MultiHeadedAttention(h, size)
        self.src_attn = MultiHeadedAttention(h, size) if cross else None
        self.feed_forward = PositionwiseFeedForward(size, 4 * size)
        self.norms = clones(nn.LayerNorm(size), 3 if cross else 2)

    def forward(self, x: Tensor, mask: Tensor, memory: Tensor | None = None, src_mask: Tensor | None = None) -> Tensor:
        y = self.norms[0](x)
        x = x + self.self_attn(y, y, y, mask)
        if self.src_attn is not None and memory is not None:
            x = x + self.src_attn(self.norms[1](x), memory, memory, src_mask)
        return x + self.feed_forward(self.norms[-1](x))


class Embeddings(nn.Module):
    def __init__(self, d_model: int, vocab: int) -> None:
        super().__init__()
        self.lut = nn.Embedding(vocab, d_model)
        self.d_model = d_model

    def forward(self, x: Tensor) -> Tensor:
        return self.lut(x) * math.sqrt(self.d_model)


class Generator(nn.Module):
    def __init__(self, d_model: int, vocab: int) -> None:
        super().__init__()
        self.proj = nn.Linear(d_model, vocab)

    def forward(self, x: Tensor) -> Tensor:
        return F.log_softmax(self.proj(x), dim=-1)


class EncoderDecoder(nn.Module):
    def __init__(self, src_vocab: int = 61, tgt_vocab: int = 53, N: int = 2, d_model: int = 32, h: int = 4) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([CodedLayer(d_model, h, cross=False) for _ in range(N)])
        self.decoder = nn.ModuleList([CodedLayer(d_model, h, cross=True) for _ in range(N)])
        self.src_embed = nn.Sequential(Embeddings(d_model, src_vocab))
        self.tgt_embed = nn.Sequential(Embeddings(d_model, tgt_vocab))
        self.generator = Generator(d_model, tgt_vocab)

    def forward(self, src: Tensor, tgt: Tensor, src_mask: Tensor, tgt_mask: Tensor) -> Tensor:
        memory, x = self.src_embed(src), self.tgt_embed(tgt)
        for layer in self.encoder:
            memory = layer(memory, src_mask)
        for layer in self.decoder:
            x = layer(x, tgt_mask, memory, src_mask)
        return x


def _pair() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    return (torch.randint(53, (1, 5)), torch.randint(53, (1, 4)), torch.ones(1, 1, 5), torch.ones(1, 4, 4).tril()), {}


# "Attention is all you need" with a width of heads that is not that of the model, and a batch axis next to the head axis.
class ScaledDotProductAttention(nn.Module):
    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        attn = torch.matmul(q / self.temperature, k.transpose(2, 3))
        if mask is not None:
            attn = attn.masked_fill(mask == 0, -1e9)
        attn = F.softmax(attn, dim=-1)
        return torch.matmul(attn, v), attn


class MultiHeadAttention(nn.Module):
    def __init__(self, n_head: int, d_model: int, d_k: int, d_v: int) -> None:
        super().__init__()
        self.n_head, self.d_k, self.d_v = n_head, d_k, d_v
        self.w_qs = nn.Linear(d_model, n_head * d_k, bias=False)
        self.w_ks = nn.Linear(d_model, n_head * d_k, bias=False)
        self.w_vs = nn.Linear(d_model, n_head * d_v, bias=False)
        self.fc = nn.Linear(n_head * d_v, d_model, bias=False)
        self.attention = ScaledDotProductAttention(d_k**0.5)
        self.layer_norm = nn.LayerNorm(d_model)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        n, len_q, len_k, residual = q.size(0), q.size(1), k.size(1), q
        q = self.w_qs(q).view(n, len_q, self.n_head, self.d_k).transpose(1, 2)
        k = self.w_ks(k).view(n, len_k, self.n_head, self.d_k).transpose(1, 2)
        v = self.w_vs(v).view(n, len_k, self.n_head, self.d_v).transpose(1, 2)
        q, attn = self.attention(q, k, v, mask=mask)
        return self.layer_norm(self.fc(q.transpose(1, 2).reshape(n, len_q, -1)) + residual), attn


class PositionwiseNet(nn.Module):
    def __init__(self, d_in: int, d_hid: int) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(d_in, d_hid), nn.Linear(d_hid, d_in)
        self.layer_norm = nn.LayerNorm(d_in, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(self.w_2(F.relu(self.w_1(x))) + x)


class EncoderLayer(nn.Module):
    def __init__(self, d_model: int, d_inner: int, n_head: int, d_k: int, d_v: int) -> None:
        super().__init__()
        self.slf_attn = MultiHeadAttention(n_head, d_model, d_k, d_v)
        self.pos_ffn = PositionwiseNet(d_model, d_inner)

    def forward(self, enc_input: Tensor, slf_attn_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        enc_output, attn = self.slf_attn(enc_input, enc_input, enc_input, mask=slf_attn_mask)
        return self.pos_ffn(enc_output), attn


class TiedTransformer(nn.Module):
    def __init__(self, n_vocab: int = 64, d_model: int = 32, d_inner: int = 64, n_layers: int = 2) -> None:
        super().__init__()
        self.word_emb = nn.Embedding(n_vocab, d_model, padding_idx=0)
        self.layer_stack = nn.ModuleList([EncoderLayer(d_model, d_inner, 4, 12, 8) for _ in range(n_layers)])
        self.word_prj = nn.Linear(d_model, n_vocab, bias=False)
        self.word_prj.weight = self.word_emb.weight

    def forward(self, seq: Tensor) -> Tensor:
        x = self.word_emb(seq)
        for layer in self.layer_stack:
            x, _ = layer(x)
        return self.word_prj(x)


# BERT as codertimo writes it: three linears in one list, the output beside them, three embeddings summed.
class BERTAttention(nn.Module):
    def __init__(self, h: int, d_model: int) -> None:
        super().__init__()
        self.d_k, self.h = d_model // h, h
        self.linear_layers = nn.ModuleList([nn.Linear(d_model, d_model) for _ in range(3)])
        self.output_linear = nn.Linear(d_model, d_model)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        batch_size = query.size(0)
        query, key, value = (
            layer(x).view(batch_size, -1, self.h, self.d_k).transpose(1, 2)
            for layer, x in zip(self.linear_layers, (query, key, value), strict=True)
        )
        x = attention(query, key, value, mask)
        return self.output_linear(x.transpose(1, 2).contiguous().view(batch_size, -1, self.h * self.d_k))


class SublayerConnection(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, sublayer: nn.Module, *rest: Tensor) -> Tensor:
        y = self.norm(x)
        return x + (sublayer(y, y, y, *rest) if rest else sublayer(y))


class BERTBlock(nn.Module):
    def __init__(self, hidden: int, attn_heads: int) -> None:
        super().__init__()
        self.attention = BERTAttention(attn_heads, hidden)
        self.feed_forward = PositionwiseFeedForward(hidden, hidden * 4)
        self.input_sublayer, self.output_sublayer = SublayerConnection(hidden), SublayerConnection(hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.output_sublayer(self.input_sublayer(x, self.attention, mask), self.feed_forward)


class BERTEmbedding(nn.Module):
    def __init__(self, vocab_size: int, embed_size: int, max_len: int = 16) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, embed_size, padding_idx=0)
        self.position = nn.Embedding(max_len, embed_size)
        self.segment = nn.Embedding(3, embed_size, padding_idx=0)

    def forward(self, sequence: Tensor, segment_label: Tensor) -> Tensor:
        where = torch.arange(sequence.size(1), device=sequence.device)
        return self.token(sequence) + self.position(where) + self.segment(segment_label)


class BERTLM(nn.Module):
    def __init__(self, vocab_size: int = 57, hidden: int = 32, n_layers: int = 2, attn_heads: int = 4, shared: bool = False) -> None:
        super().__init__()
        # ALBERT's embeddings are narrower than the model.
        self.embedding = BERTEmbedding(vocab_size, hidden // 2 if shared else hidden)
        self.embedding_hidden_mapping_in = nn.Linear(hidden // 2, hidden) if shared else nn.Identity()
        self.transformer_blocks = nn.ModuleList([BERTBlock(hidden, attn_heads) for _ in range(1 if shared else n_layers)])
        self.repeats = n_layers if shared else 1
        self.next_sentence = nn.Linear(hidden, 2)
        self.mask_lm = nn.Linear(hidden, vocab_size)

    def forward(self, x: Tensor, segment_label: Tensor) -> tuple[Tensor, Tensor]:
        mask = (x > 0).unsqueeze(1).repeat(1, x.size(1), 1).unsqueeze(1)
        h = self.embedding_hidden_mapping_in(self.embedding(x, segment_label))
        for block in self.transformer_blocks:
            for _ in range(self.repeats):
                h = block(h, mask)
        return self.next_sentence(h[:, 0]).log_softmax(-1), self.mask_lm(h).log_softmax(-1)


_FFN = {"*.w_1.weight": {"mlp_up"}, "*.w_2.weight": {"mlp_down"}}
_BERT_ROLES = {
    "embedding.token.weight": {"token_embedding"},
    "embedding.position.weight": {"position_embedding"},
    "embedding.segment.weight": {"type_embedding"},
    "*.linear_layers.0.weight": {"query"},
    "*.linear_layers.1.weight": {"key"},
    "*.linear_layers.2.weight": {"value"},
    "*.output_linear.weight": {"attn_out"},
    "next_sentence.weight": {"classifier"},
    "mask_lm.weight": {"lm_head"},
    **_FFN,
}
_BERT_LINES = {"*.linear_layers.0.weight": "q:4x8", "*.linear_layers.1.weight": "k:4x8"}


def _segments() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    return (torch.randint(1, 57, (1, 5)), torch.randint(3, (1, 5))), {}


STYLES: list[Style] = [
    Style(
        "annotated transformer",
        EncoderDecoder,
        _pair,
        {"transformer"},
        {
            "*_embed.0.lut.weight": {"token_embedding"},
            "*_attn.linears.0.weight": {"query"},
            "*_attn.linears.1.weight": {"key"},
            "*_attn.linears.2.weight": {"value"},
            "*_attn.linears.3.weight": {"attn_out"},
            "generator.proj.weight": {"lm_head", "classifier"},
            **_FFN,
        },
        {"*_attn.linears.0.weight": "q:4x8", "*_attn.linears.1.weight": "k:4x8"},
    ),
    Style(
        "w_qs w_ks w_vs, tied",
        TiedTransformer,
        lambda: ((torch.randint(1, 64, (1, 5)),), {}),
        {"transformer"},
        {
            "word_emb.weight": {"token_embedding", "lm_head"},
            "*.w_qs.weight": {"query"},
            "*.w_ks.weight": {"key"},
            "*.w_vs.weight": {"value"},
            "*.fc.weight": {"attn_out"},
            **_FFN,
        },
        {"*.w_qs.weight": "q:4x12", "*.w_ks.weight": "k:4x12"},
    ),
    Style("bert with a list of three linears", BERTLM, _segments, {"transformer"}, _BERT_ROLES, _BERT_LINES),
    Style(
        "albert: one block over and over",
        lambda: BERTLM(shared=True),
        _segments,
        {"transformer"},
        {**_BERT_ROLES, "embedding_hidden_mapping_in.weight": {"linear"}},
        _BERT_LINES,
    ),
]
