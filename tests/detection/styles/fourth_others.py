"""Taggers, readers, speech, series, shops, tables, molecules, agents, equations, genomes and pianos, as papers and libraries write them."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.detection.styles.style import Style


# Names in sentences: a convolution over letters, both directions of an LSTM, and scores of what tag follows what.
class BiLSTM_CRF(nn.Module):
    def __init__(self, vocab_size: int = 120, n_chars: int = 40, tagset_size: int = 9, embedding_dim: int = 30, hidden: int = 44) -> None:
        super().__init__()
        self.tagset_size, self.start, self.stop = tagset_size, tagset_size - 2, tagset_size - 1
        self.char_embeds = nn.Embedding(n_chars, 12)
        self.char_cnn3 = nn.Conv2d(1, 14, kernel_size=(3, 12), padding=(2, 0))
        self.cap_embeds = nn.Embedding(4, 5)
        self.word_embeds = nn.Embedding(vocab_size, embedding_dim)
        self.dropout = nn.Dropout(0.5)
        self.lstm = nn.LSTM(embedding_dim + 14 + 5, hidden // 2, bidirectional=True, batch_first=True)
        self.hidden2tag = nn.Linear(hidden, tagset_size)
        self.transitions = nn.Parameter(torch.zeros(tagset_size, tagset_size))
        self.transitions.data[self.start, :] = -10000
        self.transitions.data[:, self.stop] = -10000

    def _get_lstm_features(self, sentence: Tensor, chars: Tensor, caps: Tensor) -> Tensor:
        b, n, c = chars.shape
        x = F.relu(self.char_cnn3(self.char_embeds(chars.view(b * n, c)).unsqueeze(1))).squeeze(3)
        x = F.max_pool1d(x, x.size(2)).view(b, n, -1)
        embeds = torch.cat((self.word_embeds(sentence), x, self.cap_embeds(caps)), 2)
        return self.hidden2tag(self.lstm(self.dropout(embeds))[0])

    def _forward_alg(self, feats: Tensor) -> Tensor:
        alpha = feats.new_full((feats.size(0), self.tagset_size), -10000.0)
        alpha[:, self.start] = 0.0
        for t in range(feats.size(1)):
            alpha = torch.logsumexp(alpha.unsqueeze(1) + self.transitions + feats[:, t].unsqueeze(2), 2)
        return torch.logsumexp(alpha + self.transitions[self.stop], 1)

    def _score_sentence(self, feats: Tensor, tags: Tensor) -> Tensor:
        pad = tags.new_full((tags.size(0), 1), self.start)
        path = torch.cat([pad, tags], 1)
        score = feats.gather(2, tags.unsqueeze(2)).squeeze(2).sum(1) + self.transitions[path[:, 1:], path[:, :-1]].sum(1)
        return score + self.transitions[self.stop, path[:, -1]]

    def forward(self, sentence: Tensor, chars: Tensor, caps: Tensor, tags: Tensor | None = None) -> Tensor:
        feats = self._get_lstm_features(sentence, chars, caps)
        return feats if tags is None else (self._forward_alg(feats) - self._score_sentence(feats, tags)).mean()


# Passages found by late interaction: each word of the question looks for its best word, over a distilled encoder.
class MultiHeadSelfAttention(nn.Module):
    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.dim, self.n_heads = dim, n_heads
        self.q_lin, self.k_lin, self.v_lin = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.out_lin = nn.Linear(dim, dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
        bs, q_length, _ = query.size()
        dim_per_head = self.dim // self.n_heads

        def shape(x: Tensor) -> Tensor:
            return x.view(bs, -1, self.n_heads, dim_per_head).transpose(1, 2)

        q, k, v = shape(self.q_lin(query)), shape(self.k_lin(key)), shape(self.v_lin(value))
        scores = torch.matmul(q / math.sqrt(dim_per_head), k.transpose(2, 3))
        scores = scores.masked_fill((mask == 0).view(bs, 1, 1, -1).expand_as(scores), torch.finfo(scores.dtype).min)
        context = torch.matmul(nn.functional.softmax(scores, dim=-1), v)
        return self.out_lin(context.transpose(1, 2).contiguous().view(bs, q_length, self.dim))


class DistilFFN(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.lin1, self.lin2, self.activation = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim), nn.GELU()

    def forward(self, input: Tensor) -> Tensor:
        return self.lin2(self.activation(self.lin1(input)))


class DistilBlock(nn.Module):
    def __init__(self, dim: int, n_heads: int, hidden_dim: int) -> None:
        super().__init__()
        self.attention, self.sa_layer_norm = MultiHeadSelfAttention(dim, n_heads), nn.LayerNorm(dim, eps=1e-12)
        self.ffn, self.output_layer_norm = DistilFFN(dim, hidden_dim), nn.LayerNorm(dim, eps=1e-12)

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        x = self.sa_layer_norm(self.attention(x, x, x, attn_mask) + x)
        return self.output_layer_norm(self.ffn(x) + x)


class DistilEmbeddings(nn.Module):
    def __init__(self, vocab_size: int, max_position: int, dim: int) -> None:
        super().__init__()
        self.word_embeddings, self.position_embeddings = nn.Embedding(vocab_size, dim, padding_idx=0), nn.Embedding(max_position, dim)
        self.LayerNorm, self.dropout = nn.LayerNorm(dim, eps=1e-12), nn.Dropout(0.1)

    def forward(self, input_ids: Tensor) -> Tensor:
        position_ids = torch.arange(input_ids.size(1), device=input_ids.device).unsqueeze(0).expand_as(input_ids)
        return self.dropout(self.LayerNorm(self.word_embeddings(input_ids) + self.position_embeddings(position_ids)))


class DistilTransformer(nn.Module):
    def __init__(self, dim: int, n_heads: int, hidden_dim: int, n_layers: int) -> None:
        super().__init__()
        self.layer = nn.ModuleList([DistilBlock(dim, n_heads, hidden_dim) for _ in range(n_layers)])

    def forward(self, x: Tensor, attn_mask: Tensor) -> Tensor:
        for layer_module in self.layer:
            x = layer_module(x, attn_mask)
        return x


class DistilModel(nn.Module):
    def __init__(self, vocab_size: int, dim: int, n_heads: int, hidden_dim: int) -> None:
        super().__init__()
        self.embeddings, self.transformer = DistilEmbeddings(vocab_size, 24, dim), DistilTransformer(dim, n_heads, hidden_dim, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.transformer(self.embeddings(input_ids), attention_mask)


class ColBERT(nn.Module):
    def __init__(self, vocab_size: int = 140, hidden: int = 36, dim: int = 16) -> None:
        super().__init__()
        self.bert = DistilModel(vocab_size, hidden, 4, 100)
        self.linear = nn.Linear(hidden, dim, bias=False)

    def query(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return F.normalize(self.linear(self.bert(input_ids, attention_mask)), p=2, dim=2)

    def doc(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        D = self.linear(self.bert(input_ids, attention_mask))
        return F.normalize(D * attention_mask.unsqueeze(2).float(), p=2, dim=2)

    def score(self, Q: Tensor, D: Tensor) -> Tensor:
        return (Q @ D.permute(0, 2, 1)).max(2).values.sum(1)

    def forward(self, Q: tuple[Tensor, Tensor], D: tuple[Tensor, Tensor]) -> Tensor:
        return self.score(self.query(*Q), self.doc(*D))


# Text to text, time first, heads in the batch dimension, one table for both sides and for the output.
class FairseqAttention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.k_proj, self.v_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)
        self.q_proj, self.out_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)

    def forward(self, query: Tensor, key: Tensor, key_padding_mask: Tensor | None = None, attn_mask: Tensor | None = None) -> Tensor:
        tgt_len, bsz, embed_dim = query.size()
        src_len = key.size(0)
        q = (self.q_proj(query) * self.scaling).contiguous().view(tgt_len, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        k = self.k_proj(key).contiguous().view(-1, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        v = self.v_proj(key).contiguous().view(-1, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        attn_weights = torch.bmm(q, k.transpose(1, 2))
        if attn_mask is not None:
            attn_weights = attn_weights + attn_mask.unsqueeze(0)
        if key_padding_mask is not None:
            attn_weights = attn_weights.view(bsz, self.num_heads, tgt_len, src_len)
            attn_weights = attn_weights.masked_fill(key_padding_mask.unsqueeze(1).unsqueeze(2), float("-inf"))
            attn_weights = attn_weights.view(bsz * self.num_heads, tgt_len, src_len)
        attn = torch.bmm(F.softmax(attn_weights, dim=-1), v)
        return self.out_proj(attn.transpose(0, 1).contiguous().view(tgt_len, bsz, embed_dim))


class FairseqEncoderLayer(nn.Module):
    def __init__(self, embed_dim: int, ffn_dim: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn, self.self_attn_layer_norm = FairseqAttention(embed_dim, num_heads), nn.LayerNorm(embed_dim)
        self.fc1, self.fc2 = nn.Linear(embed_dim, ffn_dim), nn.Linear(ffn_dim, embed_dim)
        self.final_layer_norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, encoder_padding_mask: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(query=x, key=x, key_padding_mask=encoder_padding_mask))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class FairseqDecoderLayer(nn.Module):
    def __init__(self, embed_dim: int, ffn_dim: int, num_heads: int) -> None:
        super().__init__()
        self.self_attn, self.self_attn_layer_norm = FairseqAttention(embed_dim, num_heads), nn.LayerNorm(embed_dim)
        self.encoder_attn, self.encoder_attn_layer_norm = FairseqAttention(embed_dim, num_heads), nn.LayerNorm(embed_dim)
        self.fc1, self.fc2 = nn.Linear(embed_dim, ffn_dim), nn.Linear(ffn_dim, embed_dim)
        self.final_layer_norm = nn.LayerNorm(embed_dim)

    def forward(self, x: Tensor, encoder_out: Tensor, encoder_padding_mask: Tensor, self_attn_mask: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(query=x, key=x, attn_mask=self_attn_mask))
        x = self.encoder_attn_layer_norm(x + self.encoder_attn(query=x, key=encoder_out, key_padding_mask=encoder_padding_mask))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class LearnedPositionalEmbedding(nn.Embedding):
    def __init__(self, num_embeddings: int, embedding_dim: int, padding_idx: int) -> None:
        super().__init__(num_embeddings + padding_idx + 1, embedding_dim, padding_idx)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(torch.arange(input.size(1), device=input.device) + int(self.padding_idx or 0) + 1)


class FairseqStack(nn.Module):
    def __init__(self, layers: list[nn.Module], embed_tokens: nn.Embedding) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.embed_positions = LearnedPositionalEmbedding(20, embed_tokens.embedding_dim, 1)
        self.layernorm_embedding = nn.LayerNorm(embed_tokens.embedding_dim)
        self.layers = nn.ModuleList(layers)

    def embed(self, tokens: Tensor) -> Tensor:
        return self.layernorm_embedding(self.embed_tokens(tokens) + self.embed_positions(tokens)).transpose(0, 1)


class BARTModel(nn.Module):
    def __init__(self, vocab: int = 130, dim: int = 30, num_heads: int = 3) -> None:
        super().__init__()
        shared = nn.Embedding(vocab, dim, padding_idx=1)
        nn.init.normal_(shared.weight, std=dim**-0.5)
        self.encoder = FairseqStack([FairseqEncoderLayer(dim, 72, num_heads) for _ in range(2)], shared)
        self.decoder = FairseqStack([FairseqDecoderLayer(dim, 64, num_heads) for _ in range(2)], shared)

    def forward(self, src_tokens: Tensor, src_lengths: Tensor, prev_output_tokens: Tensor) -> tuple[Tensor, None]:
        padding = torch.arange(src_tokens.size(1)).unsqueeze(0) >= src_lengths.unsqueeze(1)
        enc = self.encoder.embed(src_tokens)
        for layer in self.encoder.layers:
            enc = layer(enc, padding)
        x = self.decoder.embed(prev_output_tokens)
        future = torch.triu(x.new_full((x.size(0), x.size(0)), float("-inf")), 1)
        for layer in self.decoder.layers:
            x = layer(x, enc, padding, future)
        return F.linear(x.transpose(0, 1), self.decoder.embed_tokens.weight), None


# A decoder of an open laboratory: one projection cut in three, fewer keys than queries, the gate in the second half.
class RMSLayerNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class SwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * x


class OLMoSequentialBlock(nn.Module):
    def __init__(self, d_model: int, n_heads: int, n_kv_heads: int, mlp_hidden_size: int) -> None:
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, d_model // n_heads
        self.fused_dims = (d_model, n_kv_heads * self.head_dim, n_kv_heads * self.head_dim)
        self.attn_norm, self.ff_norm = RMSLayerNorm(d_model), RMSLayerNorm(d_model)
        self.q_norm, self.k_norm = RMSLayerNorm(d_model), RMSLayerNorm(n_kv_heads * self.head_dim)
        self.att_proj = nn.Linear(d_model, sum(self.fused_dims), bias=False)
        self.attn_out = nn.Linear(d_model, d_model, bias=False)
        self.ff_proj = nn.Linear(d_model, mlp_hidden_size, bias=False)
        self.act, self.ff_out = SwiGLU(), nn.Linear(mlp_hidden_size // 2, d_model, bias=False)

    def rotary(self, t: Tensor) -> Tensor:
        inv_freq = 1.0 / (10000 ** (torch.arange(0, self.head_dim, 2).float() / self.head_dim))
        freqs = torch.einsum("i,j->ij", torch.arange(t.size(-2)).float(), inv_freq)
        pos = torch.cat((freqs, freqs), dim=-1)
        a, b = t.chunk(2, dim=-1)
        return t * pos.cos() + torch.cat((-b, a), dim=-1) * pos.sin()

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, T, C = q.size()
        q, k = self.q_norm(q), self.k_norm(k)
        q = q.view(B, T, self.n_heads, C // self.n_heads).transpose(1, 2)
        k = k.view(B, T, self.n_kv_heads, C // self.n_heads).transpose(1, 2)
        v = v.view(B, T, self.n_kv_heads, C // self.n_heads).transpose(1, 2)
        q, k = self.rotary(q), self.rotary(k)
        k = k.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        v = v.repeat_interleave(self.n_heads // self.n_kv_heads, dim=1)
        att = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attn_out(att.transpose(1, 2).contiguous().view(B, T, C))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.att_proj(self.attn_norm(x)).split(self.fused_dims, dim=-1)
        x = x + self.attention(q, k, v)
        return x + self.ff_out(self.act(self.ff_proj(self.ff_norm(x))))


class OLMo(nn.Module):
    def __init__(self, vocab_size: int = 151, d_model: int = 48, n_layers: int = 2) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size + 9, d_model),
                "emb_drop": nn.Dropout(0.0),
                "ln_f": RMSLayerNorm(d_model),
                "blocks": nn.ModuleList([OLMoSequentialBlock(d_model, 6, 2, 136) for _ in range(n_layers)]),
                "ff_out": nn.Linear(d_model, vocab_size + 9, bias=False),
            }
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.transformer["emb_drop"](self.transformer["wte"](input_ids))
        for block in self.transformer["blocks"]:  # type: ignore[union-attr]
            x = block(x)
        return self.transformer["ff_out"](self.transformer["ln_f"](x))


# Who speaks: bands of channels one after another, squeezed, then averaged by attention over time, with a margin.
class Res2Conv1dReluBn(nn.Module):
    def __init__(self, channels: int, kernel_size: int, dilation: int, scale: int = 4) -> None:
        super().__init__()
        self.scale, self.width, self.nums = scale, channels // scale, scale - 1
        pad = dilation * (kernel_size - 1) // 2
        self.convs = nn.ModuleList(
            [nn.Conv1d(self.width, self.width, kernel_size, padding=pad, dilation=dilation, bias=False) for _ in range(self.nums)]
        )
        self.bns = nn.ModuleList([nn.BatchNorm1d(self.width) for _ in range(self.nums)])

    def forward(self, x: Tensor) -> Tensor:
        out, spx = [], torch.split(x, self.width, 1)
        sp = spx[0]
        for i, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            sp = bn(F.relu(conv(sp if i == 0 else sp + spx[i])))
            out.append(sp)
        return torch.cat([*out, spx[self.nums]], dim=1)


class Conv1dReluBn(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv1d(in_channels, out_channels, kernel_size, padding=padding, bias=False), nn.BatchNorm1d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(F.relu(self.conv(x)))


class SE_Connect(nn.Module):
    def __init__(self, channels: int, se_bottleneck_dim: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(channels, se_bottleneck_dim), nn.Linear(se_bottleneck_dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.sigmoid(self.linear2(F.relu(self.linear1(x.mean(dim=2)))))
        return x * out.unsqueeze(2)


class SE_Res2Block(nn.Module):
    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.Conv1dReluBn1, self.Conv1dReluBn2 = Conv1dReluBn(channels, channels), Conv1dReluBn(channels, channels)
        self.Res2Conv1dReluBn, self.SE_Connect = Res2Conv1dReluBn(channels, 3, dilation), SE_Connect(channels, 18)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.SE_Connect(self.Conv1dReluBn2(self.Res2Conv1dReluBn(self.Conv1dReluBn1(x))))


class AttentiveStatsPool(nn.Module):
    def __init__(self, in_dim: int, attention_channels: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Conv1d(in_dim * 3, attention_channels, 1), nn.Conv1d(attention_channels, in_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        context_mean = torch.mean(x, dim=-1, keepdim=True).expand_as(x)
        context_std = torch.sqrt(torch.var(x, dim=-1, keepdim=True) + 1e-10).expand_as(x)
        alpha = torch.tanh(self.linear1(torch.cat((x, context_mean, context_std), dim=1)))
        alpha = torch.softmax(self.linear2(alpha), dim=2)
        mean = torch.sum(alpha * x, dim=2)
        residuals = torch.sum(alpha * (x**2), dim=2) - mean**2
        return torch.cat([mean, torch.sqrt(residuals.clamp(min=1e-9))], dim=1)


class AAMSoftmax(nn.Module):
    def __init__(self, n_class: int, dim: int, m: float = 0.2, s: float = 30.0) -> None:
        super().__init__()
        self.m, self.s = m, s
        self.weight = nn.Parameter(torch.empty(n_class, dim))
        nn.init.xavier_normal_(self.weight, gain=1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(x), F.normalize(self.weight))
        phi = cosine * math.cos(self.m) - torch.sqrt((1.0 - cosine**2).clamp(1e-6, 1)) * math.sin(self.m)
        one_hot = torch.zeros_like(cosine).scatter_(1, label.view(-1, 1), 1)
        return F.cross_entropy((one_hot * phi + (1.0 - one_hot) * cosine) * self.s, label)


class ECAPA_TDNN(nn.Module):
    def __init__(self, feat_dim: int = 26, channels: int = 40, emb_dim: int = 22, n_speakers: int = 35) -> None:
        super().__init__()
        self.layer1 = Conv1dReluBn(feat_dim, channels, kernel_size=5, padding=2)
        self.layer2, self.layer3, self.layer4 = (SE_Res2Block(channels, dilation) for dilation in (2, 3, 4))
        self.conv = nn.Conv1d(channels * 3, 56, kernel_size=1)
        self.pooling, self.bn = AttentiveStatsPool(56, 20), nn.BatchNorm1d(112)
        self.linear, self.speaker_loss = nn.Linear(112, emb_dim), AAMSoftmax(n_speakers, emb_dim)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = x - x.mean(dim=1, keepdim=True)
        out1 = self.layer1(x.transpose(1, 2))
        out2 = self.layer2(out1)
        out3 = self.layer3(out1 + out2)
        out4 = self.layer4(out1 + out2 + out3)
        out = F.relu(self.conv(torch.cat([out2, out3, out4], dim=1)))
        return self.speaker_loss(self.linear(self.bn(self.pooling(out))), label)


# Speech to text as it comes: sound, what was said so far, and a joiner of both; cells of linears with norms.
class CustomLSTM(nn.Module):
    def __init__(self, input_dim: int, hidden_dim: int, layer_norm: bool = True) -> None:
        super().__init__()
        self.x2g = nn.Linear(input_dim, 4 * hidden_dim, bias=not layer_norm)
        self.p2g = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.c_norm: nn.Module = nn.LayerNorm(hidden_dim) if layer_norm else nn.Identity()
        self.g_norm: nn.Module = nn.LayerNorm(4 * hidden_dim) if layer_norm else nn.Identity()
        self.hidden_dim = hidden_dim

    def forward(self, input: Tensor, state: list[Tensor] | None) -> tuple[Tensor, list[Tensor]]:
        if state is None:
            h = c = torch.zeros(input.size(1), self.hidden_dim, device=input.device, dtype=input.dtype)
        else:
            h, c = state
        gated_input, outputs = self.x2g(input), []
        for gates in gated_input.unbind(0):
            gates = self.g_norm(gates + self.p2g(h))
            input_gate, forget_gate, cell_gate, output_gate = gates.chunk(4, 1)
            c = self.c_norm(forget_gate.sigmoid() * c + input_gate.sigmoid() * cell_gate.tanh())
            h = output_gate.sigmoid() * c.tanh()
            outputs.append(h)
        return torch.stack(outputs, dim=0), [h, c]


class Transcriber(nn.Module):
    def __init__(self, input_dim: int, hidden: int, output_dim: int, stride: int = 3) -> None:
        super().__init__()
        self.stride, self.input_linear = stride, nn.Linear(input_dim, 14, bias=False)
        self.lstm = nn.LSTM(14 * stride, hidden, num_layers=2, batch_first=True)
        self.output_linear, self.layer_norm = nn.Linear(hidden, output_dim), nn.LayerNorm(output_dim)

    def forward(self, input: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        B, T, _ = input.shape
        x = self.input_linear(input)[:, : T - T % self.stride].reshape(B, T // self.stride, -1)
        return self.layer_norm(self.output_linear(self.lstm(x)[0])), lengths.div(self.stride, rounding_mode="trunc")


class Predictor(nn.Module):
    def __init__(self, num_symbols: int, output_dim: int, embed_dim: int, lstm_dim: int) -> None:
        super().__init__()
        self.embedding, self.input_layer_norm = nn.Embedding(num_symbols, embed_dim), nn.LayerNorm(embed_dim)
        self.lstm_layers = nn.ModuleList([CustomLSTM(embed_dim if i == 0 else lstm_dim, lstm_dim) for i in range(2)])
        self.linear, self.output_layer_norm = nn.Linear(lstm_dim, output_dim), nn.LayerNorm(output_dim)

    def forward(self, input: Tensor, lengths: Tensor, state: list[list[Tensor]] | None) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
        out, state_out = self.input_layer_norm(self.embedding(input.permute(1, 0))), []
        for i, lstm in enumerate(self.lstm_layers):
            out, s = lstm(out, None if state is None else state[i])
            state_out.append(s)
        return self.output_layer_norm(self.linear(out)).permute(1, 0, 2), lengths, state_out


class Joiner(nn.Module):
    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_dim, output_dim, bias=True)

    def forward(self, source_encodings: Tensor, target_encodings: Tensor) -> Tensor:
        return self.linear(F.relu(source_encodings.unsqueeze(2).contiguous() + target_encodings.unsqueeze(1).contiguous()))


class RNNT(nn.Module):
    def __init__(self, n_mels: int = 20, num_symbols: int = 31) -> None:
        super().__init__()
        self.transcriber, self.predictor = Transcriber(n_mels, 36, 28), Predictor(num_symbols, 28, 18, 24)
        self.joiner = Joiner(28, num_symbols)

    def forward(
        self,
        sources: Tensor,
        source_lengths: Tensor,
        targets: Tensor,
        target_lengths: Tensor,
        predictor_state: list[list[Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, list[list[Tensor]]]:
        source_encodings, source_lengths = self.transcriber(sources, source_lengths)
        target_encodings, target_lengths, predictor_state = self.predictor(targets, target_lengths, predictor_state)
        return self.joiner(source_encodings, target_encodings), source_lengths, target_lengths, predictor_state


# Sound in few bits: convolutions with weights of unit norm, sines as activations, codes of what remains.
def WNConv1d(*args: int, **kwargs: int) -> nn.Module:
    return weight_norm(nn.Conv1d(*args, **kwargs))


def WNConvTranspose1d(*args: int, **kwargs: int) -> nn.Module:
    return weight_norm(nn.ConvTranspose1d(*args, **kwargs))


class Snake1d(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.alpha + 1e-9).reciprocal() * torch.sin(self.alpha * x).pow(2)


class ResidualUnit(nn.Module):
    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            Snake1d(dim), WNConv1d(dim, dim, kernel_size=7, dilation=dilation, padding=3 * dilation), Snake1d(dim), WNConv1d(dim, dim, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class CodecEncoder(nn.Module):
    def __init__(self, d_model: int, strides: tuple[int, ...], d_latent: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [WNConv1d(1, d_model, kernel_size=7, padding=3)]
        for stride in strides:
            d_model *= 2
            half = d_model // 2
            conv = WNConv1d(half, d_model, kernel_size=2 * stride, stride=stride, padding=math.ceil(stride / 2))
            layers.append(nn.Sequential(ResidualUnit(half, 1), ResidualUnit(half, 3), Snake1d(half), conv))
        self.block = nn.Sequential(*layers, Snake1d(d_model), WNConv1d(d_model, d_latent, kernel_size=3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class CodecDecoder(nn.Module):
    def __init__(self, input_channel: int, channels: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = [WNConv1d(input_channel, channels, kernel_size=7, padding=3)]
        for i, stride in enumerate(rates):
            inp, out = channels // 2**i, channels // 2 ** (i + 1)
            up = WNConvTranspose1d(inp, out, kernel_size=2 * stride, stride=stride, padding=math.ceil(stride / 2))
            layers.append(nn.Sequential(Snake1d(inp), up, ResidualUnit(out, 1), ResidualUnit(out, 3)))
        self.model = nn.Sequential(*layers, Snake1d(out), WNConv1d(out, 1, kernel_size=7, padding=3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class VectorQuantize(nn.Module):
    def __init__(self, input_dim: int, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = WNConv1d(input_dim, codebook_dim, 1), WNConv1d(codebook_dim, input_dim, 1)
        self.codebook = nn.Embedding(codebook_size, codebook_dim)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z_e = self.in_proj(z)
        encodings = F.normalize(z_e.transpose(1, 2).flatten(0, 1))
        dist = torch.cdist(encodings, F.normalize(self.codebook.weight))
        indices = dist.argmin(1).view(z.size(0), -1)
        z_q = self.codebook(indices).transpose(1, 2)
        loss = F.mse_loss(z_e, z_q.detach()) * 0.25 + F.mse_loss(z_q, z_e.detach())
        return self.out_proj(z_e + (z_q - z_e).detach()), indices, loss


class DAC(nn.Module):
    def __init__(self, encoder_dim: int = 6, rates: tuple[int, ...] = (2, 4), n_codebooks: int = 3, latent: int = 20) -> None:
        super().__init__()
        self.encoder, self.decoder = CodecEncoder(encoder_dim, rates, latent), CodecDecoder(latent, 28, rates[::-1])
        self.quantizers = nn.ModuleList([VectorQuantize(latent, 32, 5) for _ in range(n_codebooks)])

    def forward(self, audio_data: Tensor, sample_rate: int = 16000) -> dict[str, Tensor]:
        residual = self.encoder(audio_data)
        z_q, codes, total = torch.zeros_like(residual), [], residual.new_zeros(())
        for quantizer in self.quantizers:
            z_q_i, indices, loss = quantizer(residual)
            z_q, residual, total = z_q + z_q_i, residual - z_q_i, total + loss
            codes.append(indices)
        return {"audio": self.decoder(z_q), "codes": torch.stack(codes, 1), "vq/loss": total}


# Demand as a distribution, one step at a time, with the state handed in and out.
class DeepARNet(nn.Module):
    def __init__(self, num_class: int = 37, embedding_dim: int = 10, cov_dim: int = 4, hidden: int = 26, layers: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_class, embedding_dim)
        self.lstm = nn.LSTM(1 + cov_dim + embedding_dim, hidden, num_layers=layers, bias=True, batch_first=False)
        for name, param in self.lstm.named_parameters():
            if "bias" in name:
                param.data[hidden : 2 * hidden].fill_(1.0)
        self.relu = nn.ReLU()
        self.distribution_mu, self.distribution_presigma = nn.Linear(hidden * layers, 1), nn.Linear(hidden * layers, 1)
        self.distribution_sigma = nn.Softplus()

    def forward(self, x: Tensor, idx: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        onehot_embed = self.embedding(idx)
        _, (hidden, cell) = self.lstm(torch.cat((x, onehot_embed), dim=2), (hidden, cell))
        hidden_permute = hidden.permute(1, 2, 0).contiguous().view(hidden.shape[1], -1)
        mu, sigma = self.distribution_mu(hidden_permute), self.distribution_sigma(self.distribution_presigma(hidden_permute))
        return torch.squeeze(mu), torch.squeeze(sigma), hidden, cell


# A foundation model of series: patches and what is missing in them, a decoder, quantiles of the next long patch.
class ResidualBlock(nn.Module):
    def __init__(self, input_dims: int, hidden_dims: int, output_dims: int) -> None:
        super().__init__()
        self.hidden_layer = nn.Sequential(nn.Linear(input_dims, hidden_dims), nn.SiLU())
        self.output_layer, self.residual_layer = nn.Linear(hidden_dims, output_dims), nn.Linear(input_dims, output_dims)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.hidden_layer(x)) + self.residual_layer(x)


class TransformerMLP(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj, self.down_proj = nn.Linear(hidden_size, intermediate_size), nn.Linear(intermediate_size, hidden_size)
        self.layer_norm = nn.LayerNorm(normalized_shape=hidden_size, eps=1e-6)

    def forward(self, x: Tensor, paddings: Tensor) -> Tensor:
        outputs = self.down_proj(F.relu(self.gate_proj(self.layer_norm(x))))
        return outputs * (1.0 - paddings[:, :, None]) + x


class TimesFMAttention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.q_size = self.kv_size = num_heads * head_dim
        self.scaling = nn.Parameter(torch.zeros(head_dim))
        self.qkv_proj = nn.Linear(hidden_size, self.q_size + 2 * self.kv_size)
        self.o_proj = nn.Linear(self.q_size, hidden_size)

    def forward(self, hidden_states: Tensor, mask: Tensor) -> Tensor:
        batch_size, input_len, _ = hidden_states.shape
        xq, xk, xv = self.qkv_proj(hidden_states).split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        xq = xq.view(batch_size, -1, self.num_heads, self.head_dim)
        xk = xk.view(batch_size, -1, self.num_heads, self.head_dim)
        xv = xv.view(batch_size, -1, self.num_heads, self.head_dim)
        xq = xq * (1.442695041 / math.sqrt(self.head_dim) * F.softplus(self.scaling))[None, None, None, :]
        scores = torch.matmul(xq.transpose(1, 2), xk.transpose(1, 2).transpose(2, 3)) + mask
        output = torch.matmul(F.softmax(scores.float(), dim=-1).type_as(xq), xv.transpose(1, 2))
        return self.o_proj(output.transpose(1, 2).contiguous().view(batch_size, input_len, -1))


class TimesFMDecoderLayer(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = TimesFMAttention(hidden_size, num_heads, head_dim), TransformerMLP(hidden_size, intermediate_size)
        self.input_layernorm = RMSLayerNorm(hidden_size)

    def forward(self, hidden_states: Tensor, mask: Tensor, paddings: Tensor) -> Tensor:
        return self.mlp(hidden_states + self.self_attn(self.input_layernorm(hidden_states), mask), paddings=paddings)


class PatchedTimeSeriesDecoder(nn.Module):
    def __init__(self, patch_len: int = 6, horizon_len: int = 10, hidden: int = 34, quantiles: int = 3, layers: int = 2) -> None:
        super().__init__()
        self.patch_len, self.horizon_len, self.num_outputs = patch_len, horizon_len, quantiles + 1
        self.input_ff_layer = ResidualBlock(2 * patch_len, 44, hidden)
        self.freq_emb = nn.Embedding(3, hidden)
        self.horizon_ff_layer = ResidualBlock(hidden, 44, horizon_len * self.num_outputs)
        self.layers = nn.ModuleList([TimesFMDecoderLayer(hidden, 58, 5, 8) for _ in range(layers)])

    def forward(self, input_ts: Tensor, input_padding: Tensor, freq: Tensor) -> Tensor:
        x, pad = input_ts.unfold(1, self.patch_len, self.patch_len), input_padding.unfold(1, self.patch_len, self.patch_len)
        mu, sigma = x[:, :1].mean(-1, keepdim=True), x[:, :1].std(-1, keepdim=True) + 1e-3
        x = (x - mu) / sigma * (1.0 - pad)
        paddings = pad.min(dim=-1).values
        out = self.input_ff_layer(torch.cat([x, pad], dim=-1)) + self.freq_emb(freq)
        n = out.size(1)
        timescales = torch.exp(torch.arange(out.size(-1) // 2) * -(math.log(10000.0) / (out.size(-1) // 2 - 1)))
        scaled = torch.arange(n).unsqueeze(1) * timescales
        out = out + torch.cat([scaled.sin(), scaled.cos()], dim=-1)
        mask = torch.triu(out.new_full((n, n), -1e9), 1) + (paddings * -1e9)[:, None, None, :]
        for layer in self.layers:
            out = layer(out, mask, paddings)
        out = self.horizon_ff_layer(out).view(out.size(0), n, self.horizon_len, self.num_outputs)
        return out * sigma[..., None] + mu[..., None]


# What is bought next, by units that multiply: one parameter for gates, values, queries and keys, and no softmax.
class SequentialTransductionUnit(nn.Module):
    def __init__(self, embedding_dim: int, linear_hidden_dim: int, attention_dim: int, num_heads: int, max_len: int) -> None:
        super().__init__()
        self._linear_dim, self._attention_dim, self._num_heads, self._max_len = linear_hidden_dim, attention_dim, num_heads, max_len
        self._uvqk = nn.Parameter(torch.empty(embedding_dim, (linear_hidden_dim * 2 + attention_dim * 2) * num_heads).normal_(0, 0.02))
        self._o = nn.Linear(linear_hidden_dim * num_heads, embedding_dim)
        nn.init.xavier_uniform_(self._o.weight)
        self._ts_w = nn.Parameter(torch.empty(17).normal_(0, 0.02))
        self._pos_w = nn.Parameter(torch.empty(2 * max_len - 1).normal_(0, 0.02))
        self._embedding_dim = embedding_dim

    def forward(self, x: Tensor, timestamps: Tensor, invalid_attn_mask: Tensor) -> Tensor:
        B, n, _ = x.shape
        h, dl, dq = self._num_heads, self._linear_dim, self._attention_dim
        normed = F.layer_norm(x, (self._embedding_dim,))
        u, v, q, k = torch.split(F.silu(torch.matmul(normed, self._uvqk)), [dl * h, dl * h, dq * h, dq * h], dim=-1)
        buckets = (torch.log((timestamps.unsqueeze(2) - timestamps.unsqueeze(1)).abs().clamp(min=1)) / 0.301).long().clamp(0, 16)
        offsets = torch.arange(n).unsqueeze(0) - torch.arange(n).unsqueeze(1) + self._max_len - 1
        qk_attn = torch.einsum("bnhd,bmhd->bhnm", q.view(B, n, h, dq), k.view(B, n, h, dq))
        qk_attn = qk_attn + (self._ts_w[buckets] + self._pos_w[offsets]).unsqueeze(1)
        qk_attn = F.silu(qk_attn) / n * invalid_attn_mask[None, None]
        attn_output = torch.einsum("bhnm,bmhd->bnhd", qk_attn, v.reshape(B, n, h, dl)).reshape(B, n, h * dl)
        return self._o(u * F.layer_norm(attn_output, (h * dl,))) + x


class HSTU(nn.Module):
    def __init__(self, num_items: int = 160, embedding_dim: int = 32, max_len: int = 14) -> None:
        super().__init__()
        self._item_emb, self._pos_emb = nn.Embedding(num_items + 1, embedding_dim, padding_idx=0), nn.Embedding(max_len, embedding_dim)
        self._attention_layers = nn.ModuleList([SequentialTransductionUnit(embedding_dim, 10, 6, 3, max_len) for _ in range(2)])
        self.register_buffer("_attn_mask", torch.tril(torch.ones(max_len, max_len)))

    def forward(self, past_lengths: Tensor, past_ids: Tensor, past_payloads: dict[str, Tensor]) -> Tensor:
        n = past_ids.size(1)
        valid = (past_ids != 0).unsqueeze(-1).float()
        x = (self._item_emb(past_ids) * self._item_emb.embedding_dim**0.5 + self._pos_emb(torch.arange(n))) * valid
        for layer in self._attention_layers:
            x = layer(x, past_payloads["timestamps"], self.get_buffer("_attn_mask")[:n, :n]) * valid
        last = F.normalize(x[torch.arange(len(x)), past_lengths - 1], dim=-1)
        return last @ F.normalize(self._item_emb.weight, dim=-1).t() / 0.05


# A table read at once: known rows see one another, unknown rows see the known ones; rows first.
class PFNLayer(nn.Module):
    def __init__(self, d_model: int, nhead: int, dim_feedforward: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout=0.0)
        self.linear1, self.linear2 = nn.Linear(d_model, dim_feedforward), nn.Linear(dim_feedforward, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, src: Tensor, single_eval_position: int) -> Tensor:
        left = src[:single_eval_position]
        src_left = self.self_attn(left, left, left)[0]
        src_right = self.self_attn(src[single_eval_position:], left, left)[0]
        src = self.norm1(src + torch.cat([src_left, src_right], dim=0))
        return self.norm2(src + self.linear2(F.gelu(self.linear1(src))))


class TabPFN(nn.Module):
    def __init__(self, num_features: int = 13, ninp: int = 28, nhead: int = 4, nhid: int = 50, nlayers: int = 3, n_out: int = 6) -> None:
        super().__init__()
        self.encoder, self.y_encoder = nn.Linear(num_features, ninp), nn.Linear(1, ninp)
        self.transformer_encoder = nn.ModuleList([PFNLayer(ninp, nhead, nhid) for _ in range(nlayers)])
        for layer in self.transformer_encoder:
            nn.init.normal_(layer.linear2.weight, std=0.01)
        self.decoder = nn.Sequential(nn.Linear(ninp, nhid), nn.GELU(), nn.Linear(nhid, n_out))

    def forward(self, src: tuple[Tensor, Tensor], single_eval_pos: int) -> Tensor:
        x_src, y_src = src
        x_src = self.encoder((x_src - x_src[:single_eval_pos].mean(0)) / (x_src[:single_eval_pos].std(0) + 1e-6))
        train_x = x_src[:single_eval_pos] + self.y_encoder(y_src[:single_eval_pos].unsqueeze(-1))
        output = torch.cat([train_x, x_src[single_eval_pos:]], 0)
        for layer in self.transformer_encoder:
            output = layer(output, single_eval_pos)
        return self.decoder(output)[single_eval_pos:]


# Properties of molecules: messages live on bonds that have a direction and do not turn back.
class MPNEncoder(nn.Module):
    def __init__(self, atom_fdim: int, bond_fdim: int, hidden_size: int, depth: int) -> None:
        super().__init__()
        self.depth, self.hidden_size, self.act_func = depth, hidden_size, nn.ReLU()
        self.cached_zero_vector = nn.Parameter(torch.zeros(hidden_size), requires_grad=False)
        self.W_i = nn.Linear(bond_fdim, hidden_size, bias=False)
        self.W_h = nn.Linear(hidden_size, hidden_size, bias=False)
        self.W_o = nn.Linear(atom_fdim + hidden_size, hidden_size)

    def forward(self, f_atoms: Tensor, f_bonds: Tensor, a2b: Tensor, b2a: Tensor, b2revb: Tensor, a_scope: list[tuple[int, int]]) -> Tensor:
        inp = self.W_i(f_bonds)
        message = self.act_func(inp)
        for _ in range(self.depth - 1):
            a_message = message[a2b].sum(dim=1)
            message = self.act_func(inp + self.W_h(a_message[b2a] - message[b2revb]))
        a_message = message[a2b].sum(dim=1)
        atom_hiddens = self.act_func(self.W_o(torch.cat([f_atoms, a_message], dim=1)))
        mol_vecs = []
        for a_start, a_size in a_scope:
            mol_vecs.append(atom_hiddens.narrow(0, a_start, a_size).sum(dim=0) / a_size if a_size else self.cached_zero_vector)
        return torch.stack(mol_vecs, dim=0)


class MoleculeModel(nn.Module):
    def __init__(self, atom_fdim: int = 21, bond_fdim: int = 27, hidden_size: int = 38, features_dim: int = 7, num_tasks: int = 5) -> None:
        super().__init__()
        self.encoder = MPNEncoder(atom_fdim, bond_fdim, hidden_size, depth=3)
        first, ffn_hidden = hidden_size + features_dim, 30
        self.readout = nn.Sequential(
            nn.Dropout(0.0), nn.Linear(first, ffn_hidden), nn.ReLU(), nn.Dropout(0.0), nn.Linear(ffn_hidden, num_tasks)
        )

    def forward(self, batch: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, list[tuple[int, int]]], features_batch: Tensor) -> Tensor:
        return self.readout(torch.cat([self.encoder(*batch), features_batch], dim=1))


# A recipe for graphs: gated edges and attention over all nodes side by side, eigenvectors for places.
class GatedGCNLayer(nn.Module):
    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.A, self.B, self.C = nn.Linear(in_dim, out_dim), nn.Linear(in_dim, out_dim), nn.Linear(in_dim, out_dim)
        self.D, self.E = nn.Linear(in_dim, out_dim), nn.Linear(in_dim, out_dim)
        self.bn_node_x, self.bn_edge_e = nn.BatchNorm1d(out_dim), nn.BatchNorm1d(out_dim)

    def forward(self, x: Tensor, e: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        src, dst = edge_index
        Ax, Bx, Ce, Dx, Ex = self.A(x), self.B(x), self.C(e), self.D(x), self.E(x)
        e_ij = Dx[dst] + Ex[src] + Ce
        sigma_ij = torch.sigmoid(e_ij)
        numerator = torch.zeros_like(Ax).index_add_(0, dst, sigma_ij * Bx[src])
        denominator = torch.zeros_like(Ax).index_add_(0, dst, sigma_ij)
        h = F.relu(self.bn_node_x(Ax + numerator / (denominator + 1e-6)))
        return x + h, e + F.relu(self.bn_edge_e(e_ij))


class GPSLayer(nn.Module):
    def __init__(self, dim_h: int, num_heads: int) -> None:
        super().__init__()
        self.local_model, self.self_attn = GatedGCNLayer(dim_h, dim_h), nn.MultiheadAttention(dim_h, num_heads, batch_first=True)
        self.norm1_local, self.norm1_attn, self.norm2 = nn.BatchNorm1d(dim_h), nn.BatchNorm1d(dim_h), nn.BatchNorm1d(dim_h)
        self.ff_linear1, self.ff_linear2 = nn.Linear(dim_h, dim_h * 2), nn.Linear(dim_h * 2, dim_h)

    def forward(self, x: Tensor, e: Tensor, edge_index: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        h_local, e = self.local_model(x, e, edge_index)
        counts = torch.bincount(batch)
        starts = counts.cumsum(0) - counts
        mask = torch.arange(int(counts.max())).unsqueeze(0) < counts.unsqueeze(1)
        dense = x.new_zeros(*mask.shape, x.size(1))
        dense[batch, torch.arange(len(x)) - starts[batch]] = x
        h_attn = self.self_attn(dense, dense, dense, key_padding_mask=~mask, need_weights=False)[0][mask]
        h = self.norm1_local(h_local) + self.norm1_attn(x + h_attn)
        return self.norm2(h + self.ff_linear2(F.relu(self.ff_linear1(h)))), e


class GPSModel(nn.Module):
    def __init__(self, dim_h: int = 30, dim_pe: int = 8, num_heads: int = 5, n_layers: int = 2) -> None:
        super().__init__()
        self.node_encoder, self.edge_encoder = nn.Embedding(28, dim_h - dim_pe), nn.Embedding(4, dim_h)
        self.pe_linear_A = nn.Linear(2, 2 * dim_pe)
        self.pe_post_mlp = nn.Sequential(nn.ReLU(), nn.Linear(2 * dim_pe, dim_pe), nn.ReLU())
        self.layers = nn.ModuleList([GPSLayer(dim_h, num_heads) for _ in range(n_layers)])
        self.post_mp = nn.ModuleList([nn.Linear(dim_h, 15), nn.Linear(15, 1)])

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor, EigVecs: Tensor, EigVals: Tensor, batch: Tensor) -> Tensor:
        pos_enc = self.pe_post_mlp(self.pe_linear_A(torch.stack([EigVecs, EigVals], dim=2))).sum(1)
        h, e = torch.cat([self.node_encoder(x), pos_enc], 1), self.edge_encoder(edge_attr)
        for layer in self.layers:
            h, e = layer(h, e, edge_index, batch)
        graph_emb = h.new_zeros(int(batch.max()) + 1, h.size(1)).index_add_(0, batch, h)
        return self.post_mp[1](F.relu(self.post_mp[0](graph_emb)))


# Sequences for a given backbone: messages from the nearest residues, decoded in a random order.
def cat_neighbors_nodes(h_nodes: Tensor, h_neighbors: Tensor, E_idx: Tensor) -> Tensor:
    flat = E_idx.flatten(1).unsqueeze(-1).expand(-1, -1, h_nodes.size(2))
    return torch.cat([h_neighbors, torch.gather(h_nodes, 1, flat).view(*E_idx.shape, -1)], -1)


class PositionWiseFeedForward(nn.Module):
    def __init__(self, num_hidden: int, num_ff: int) -> None:
        super().__init__()
        self.W_in, self.W_out = nn.Linear(num_hidden, num_ff, bias=True), nn.Linear(num_ff, num_hidden, bias=True)

    def forward(self, h_V: Tensor) -> Tensor:
        return self.W_out(F.gelu(self.W_in(h_V)))


class EncLayer(nn.Module):
    def __init__(self, num_hidden: int, num_in: int, scale: int = 30) -> None:
        super().__init__()
        self.scale = scale
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(num_hidden), nn.LayerNorm(num_hidden), nn.LayerNorm(num_hidden)
        self.W1, self.W2 = nn.Linear(num_hidden + num_in, num_hidden), nn.Linear(num_hidden, num_hidden)
        self.W3, self.W11 = nn.Linear(num_hidden, num_hidden), nn.Linear(num_hidden + num_in, num_hidden)
        self.W12, self.W13 = nn.Linear(num_hidden, num_hidden), nn.Linear(num_hidden, num_hidden)
        self.dense = PositionWiseFeedForward(num_hidden, num_hidden * 4)

    def forward(self, h_V: Tensor, h_E: Tensor, E_idx: Tensor, mask_V: Tensor, mask_attend: Tensor) -> tuple[Tensor, Tensor]:
        h_EV = cat_neighbors_nodes(h_V, h_E, E_idx)
        h_EV = torch.cat([h_V.unsqueeze(-2).expand(-1, -1, h_EV.size(-2), -1), h_EV], -1)
        h_message = self.W3(F.gelu(self.W2(F.gelu(self.W1(h_EV))))) * mask_attend.unsqueeze(-1)
        h_V = self.norm1(h_V + torch.sum(h_message, -2) / self.scale)
        h_V = self.norm2(h_V + self.dense(h_V)) * mask_V.unsqueeze(-1)
        h_EV = cat_neighbors_nodes(h_V, h_E, E_idx)
        h_EV = torch.cat([h_V.unsqueeze(-2).expand(-1, -1, h_EV.size(-2), -1), h_EV], -1)
        return h_V, self.norm3(h_E + self.W13(F.gelu(self.W12(F.gelu(self.W11(h_EV))))))


class DecLayer(nn.Module):
    def __init__(self, num_hidden: int, num_in: int, scale: int = 30) -> None:
        super().__init__()
        self.scale, self.norm1, self.norm2 = scale, nn.LayerNorm(num_hidden), nn.LayerNorm(num_hidden)
        self.W1, self.W2 = nn.Linear(num_hidden + num_in, num_hidden), nn.Linear(num_hidden, num_hidden)
        self.W3, self.dense = nn.Linear(num_hidden, num_hidden), PositionWiseFeedForward(num_hidden, num_hidden * 4)

    def forward(self, h_V: Tensor, h_E: Tensor, mask_V: Tensor) -> Tensor:
        h_EV = torch.cat([h_V.unsqueeze(-2).expand(-1, -1, h_E.size(-2), -1), h_E], -1)
        h_message = self.W3(F.gelu(self.W2(F.gelu(self.W1(h_EV)))))
        h_V = self.norm1(h_V + torch.sum(h_message, -2) / self.scale)
        return self.norm2(h_V + self.dense(h_V)) * mask_V.unsqueeze(-1)


class ProteinFeatures(nn.Module):
    def __init__(self, edge_features: int, num_positional_embeddings: int = 9, num_rbf: int = 11, top_k: int = 5) -> None:
        super().__init__()
        self.max_relative, self.num_rbf, self.top_k = 6, num_rbf, top_k
        self.embeddings = nn.Linear(2 * self.max_relative + 2, num_positional_embeddings)
        self.edge_embedding = nn.Linear(num_positional_embeddings + num_rbf, edge_features, bias=False)
        self.norm_edges = nn.LayerNorm(edge_features)

    def forward(self, X: Tensor, mask: Tensor, residue_idx: Tensor, chain_labels: Tensor) -> tuple[Tensor, Tensor]:
        D = torch.cdist(X, X) + (1.0 - mask.unsqueeze(1)) * 100.0
        D_neighbors, E_idx = torch.topk(D, self.top_k, dim=-1, largest=False)
        D_mu = torch.linspace(2.0, 22.0, self.num_rbf)
        RBF = torch.exp(-(((D_neighbors.unsqueeze(-1) - D_mu) / (20.0 / self.num_rbf)) ** 2))
        offset = torch.gather(residue_idx[:, :, None] - residue_idx[:, None, :], 2, E_idx)
        E_chains = torch.gather((chain_labels[:, :, None] == chain_labels[:, None, :]).long(), 2, E_idx)
        d = torch.clip(offset + self.max_relative, 0, 2 * self.max_relative) * E_chains + (1 - E_chains) * (2 * self.max_relative + 1)
        E_positional = self.embeddings(F.one_hot(d, 2 * self.max_relative + 2).float())
        return self.norm_edges(self.edge_embedding(torch.cat((E_positional, RBF), -1))), E_idx


class ProteinMPNN(nn.Module):
    def __init__(self, num_letters: int = 21, hidden_dim: int = 26, vocab: int = 21) -> None:
        super().__init__()
        self.features = ProteinFeatures(hidden_dim - 4)
        self.W_e, self.W_s = nn.Linear(hidden_dim - 4, hidden_dim, bias=True), nn.Embedding(vocab, hidden_dim)
        self.encoder_layers = nn.ModuleList([EncLayer(hidden_dim, hidden_dim * 2) for _ in range(2)])
        self.decoder_layers = nn.ModuleList([DecLayer(hidden_dim, hidden_dim * 3) for _ in range(2)])
        self.W_out = nn.Linear(hidden_dim, num_letters, bias=True)

    def forward(self, X: Tensor, S: Tensor, mask: Tensor, residue_idx: Tensor, chain_encoding_all: Tensor) -> Tensor:
        E, E_idx = self.features(X, mask, residue_idx, chain_encoding_all)
        h_V, h_E = torch.zeros(*E.shape[:2], self.W_e.out_features), self.W_e(E)
        mask_attend = torch.gather(mask.unsqueeze(1).expand(-1, mask.size(1), -1), 2, E_idx) * mask.unsqueeze(-1)
        for layer in self.encoder_layers:
            h_V, h_E = layer(h_V, h_E, E_idx, mask, mask_attend)
        h_ES = cat_neighbors_nodes(self.W_s(S), h_E, E_idx)
        h_EXV_encoder = cat_neighbors_nodes(h_V, cat_neighbors_nodes(torch.zeros_like(h_V), h_E, E_idx), E_idx)
        rank = torch.argsort(torch.argsort(torch.rand_like(mask), dim=-1), dim=-1)
        order_mask = (rank[:, None, :] < rank[:, :, None]).float()
        mask_bw = (torch.gather(order_mask, 2, E_idx) * mask_attend).unsqueeze(-1)
        for layer in self.decoder_layers:
            h_ESV = cat_neighbors_nodes(h_V, h_ES, E_idx)
            h_V = layer(h_V, mask_bw * h_ESV + (1.0 - mask_bw) * h_EXV_encoder, mask)
        return F.log_softmax(self.W_out(h_V), dim=-1)


# Plans in a latent world of simplices, for many tasks; an ensemble of values in one tensor.
class NormedLinear(nn.Linear):
    def __init__(self, in_dim: int, out_dim: int, act: nn.Module | None = None) -> None:
        super().__init__(in_dim, out_dim)
        self.ln, self.act = nn.LayerNorm(out_dim), act or nn.Mish()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.ln(super().forward(x)))


class SimNorm(nn.Module):
    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return F.softmax(x.view(*x.shape[:-1], -1, self.dim), dim=-1).view(x.shape)


def mlp(in_dim: int, mlp_dims: list[int], out_dim: int, act: nn.Module | None = None) -> nn.Sequential:
    dims = [in_dim, *mlp_dims, out_dim]
    hidden: list[nn.Module] = [NormedLinear(dims[i], dims[i + 1]) for i in range(len(dims) - 2)]
    return nn.Sequential(*hidden, NormedLinear(dims[-2], dims[-1], act=act) if act else nn.Linear(dims[-2], dims[-1]))


class EnsembleLinear(nn.Module):
    def __init__(self, n: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.stack([nn.init.trunc_normal_(torch.empty(in_dim, out_dim), std=0.02) for _ in range(n)]))
        self.bias = nn.Parameter(torch.zeros(n, 1, out_dim))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x.expand(self.weight.size(0), -1, -1) if x.dim() == 2 else x, self.weight)


class WorldModel(nn.Module):
    def __init__(self, obs_dim: int = 17, action_dim: int = 5, n_tasks: int = 6, latent_dim: int = 32, num_q: int = 3) -> None:
        super().__init__()
        task_dim, mlp_dim, num_bins = 9, 40, 21
        self._task_emb = nn.Embedding(n_tasks, task_dim, max_norm=1)
        self._encoder = nn.ModuleDict({"state": mlp(obs_dim + task_dim, [28], latent_dim, act=SimNorm())})
        za = latent_dim + action_dim + task_dim
        self._dynamics = mlp(za, [mlp_dim, mlp_dim], latent_dim, act=SimNorm())
        self._reward = mlp(za, [mlp_dim, mlp_dim], num_bins)
        self._pi = mlp(latent_dim + task_dim, [mlp_dim, mlp_dim], 2 * action_dim)
        self._Qs = nn.Sequential(EnsembleLinear(num_q, za, mlp_dim), nn.Mish(), EnsembleLinear(num_q, mlp_dim, num_bins))

    def forward(self, obs: Tensor, action: Tensor, task: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        emb = self._task_emb(task)
        z = self._encoder["state"](torch.cat([obs, emb], dim=-1))
        za = torch.cat([z, action, emb], dim=-1)
        mu, log_std = self._pi(torch.cat([z, emb], dim=-1)).chunk(2, dim=-1)
        pi = torch.tanh(mu + torch.randn_like(mu) * (-10 + 6 * (torch.tanh(log_std) + 1)).exp())
        return self._dynamics(za), self._reward(za), self._Qs(za), pi


# Fluids on points without a grid: points are gathered in slices, slices attend, and are scattered again.
class Physics_Attention_Irregular_Mesh(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, slice_num: int) -> None:
        super().__init__()
        inner_dim = dim_head * heads
        self.dim_head, self.heads, self.scale = dim_head, heads, dim_head**-0.5
        self.softmax, self.dropout = nn.Softmax(dim=-1), nn.Dropout(0.0)
        self.temperature = nn.Parameter(torch.ones([1, heads, 1, 1]) * 0.5)
        self.in_project_x, self.in_project_fx = nn.Linear(dim, inner_dim), nn.Linear(dim, inner_dim)
        self.in_project_slice = nn.Linear(dim_head, slice_num)
        nn.init.orthogonal_(self.in_project_slice.weight)
        self.to_q = nn.Linear(dim_head, dim_head, bias=False)
        self.to_k = nn.Linear(dim_head, dim_head, bias=False)
        self.to_v = nn.Linear(dim_head, dim_head, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        fx_mid = self.in_project_fx(x).reshape(B, N, self.heads, self.dim_head).permute(0, 2, 1, 3).contiguous()
        x_mid = self.in_project_x(x).reshape(B, N, self.heads, self.dim_head).permute(0, 2, 1, 3).contiguous()
        slice_weights = self.softmax(self.in_project_slice(x_mid) / self.temperature)
        slice_norm = slice_weights.sum(2)
        slice_token = torch.einsum("bhnc,bhng->bhgc", fx_mid, slice_weights)
        slice_token = slice_token / ((slice_norm + 1e-5)[:, :, :, None].repeat(1, 1, 1, self.dim_head))
        q_slice_token, k_slice_token, v_slice_token = self.to_q(slice_token), self.to_k(slice_token), self.to_v(slice_token)
        dots = torch.matmul(q_slice_token, k_slice_token.transpose(-1, -2)) * self.scale
        out_slice_token = torch.matmul(self.dropout(self.softmax(dots)), v_slice_token)
        out_x = torch.einsum("bhgc,bhng->bhnc", out_slice_token, slice_weights)
        return self.to_out(out_x.permute(0, 2, 1, 3).reshape(B, N, -1))


class TransolverMLP(nn.Module):
    def __init__(self, n_input: int, n_hidden: int, n_output: int) -> None:
        super().__init__()
        self.linear_pre = nn.Sequential(nn.Linear(n_input, n_hidden), nn.GELU())
        self.linear_post = nn.Linear(n_hidden, n_output)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_post(self.linear_pre(x))


class Transolver_block(nn.Module):
    def __init__(self, num_heads: int, hidden_dim: int, mlp_ratio: int, last_layer: bool, out_dim: int, slice_num: int) -> None:
        super().__init__()
        self.last_layer, self.ln_1, self.ln_2 = last_layer, nn.LayerNorm(hidden_dim), nn.LayerNorm(hidden_dim)
        self.Attn = Physics_Attention_Irregular_Mesh(hidden_dim, num_heads, hidden_dim // num_heads, slice_num)
        self.mlp = TransolverMLP(hidden_dim, hidden_dim * mlp_ratio, hidden_dim)
        if last_layer:
            self.ln_3, self.mlp2 = nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, out_dim)

    def forward(self, fx: Tensor) -> Tensor:
        fx = self.Attn(self.ln_1(fx)) + fx
        fx = self.mlp(self.ln_2(fx)) + fx
        return self.mlp2(self.ln_3(fx)) if self.last_layer else fx


class Transolver(nn.Module):
    def __init__(self, space_dim: int = 2, fun_dim: int = 3, n_hidden: int = 36, n_head: int = 4, out_dim: int = 2) -> None:
        super().__init__()
        self.preprocess = TransolverMLP(fun_dim + space_dim, n_hidden * 2, n_hidden)
        self.time_fc = nn.Sequential(nn.Linear(n_hidden, n_hidden), nn.SiLU(), nn.Linear(n_hidden, n_hidden))
        self.blocks = nn.ModuleList([Transolver_block(n_head, n_hidden, 2, i == 2, out_dim, 7) for i in range(3)])
        self.placeholder, self.n_hidden = nn.Parameter((1 / n_hidden) * torch.rand(n_hidden)), n_hidden

    def forward(self, x: Tensor, fx: Tensor, T: Tensor) -> Tensor:
        fx = self.preprocess(torch.cat((x, fx), -1)) + self.placeholder[None, None, :]
        freqs = torch.exp(-math.log(10000) * torch.arange(self.n_hidden // 2) / (self.n_hidden // 2))
        args = T * freqs[None]
        fx = fx + self.time_fc(torch.cat([torch.cos(args), torch.sin(args)], dim=-1)).unsqueeze(1)
        for block in self.blocks:
            fx = block(fx)
        return fx


# A solution of an equation that two encoders of the place steer, layer by layer; unknown constants of the equation beside it.
class ModifiedPINN(nn.Module):
    def __init__(self, layers: tuple[int, ...] = (48, 40, 40, 40, 1), lb: tuple[float, float] = (0.0, -1.0)) -> None:
        super().__init__()
        self.register_buffer("lb", torch.tensor(lb))
        self.register_buffer("ub", torch.tensor([1.0, 1.0]))
        self.lambda_1, self.lambda_2 = nn.Parameter(torch.tensor([0.0])), nn.Parameter(torch.tensor([-6.0]))
        self.fourier = nn.Parameter(torch.randn(2, layers[0] // 2) * 2.0)
        self.encoder_u, self.encoder_v = nn.Linear(layers[0], layers[1]), nn.Linear(layers[0], layers[1])
        self.linears = nn.ModuleList([nn.Linear(layers[i], layers[i + 1]) for i in range(len(layers) - 1)])
        for m in self.linears:
            nn.init.xavier_normal_(m.weight)
            nn.init.zeros_(m.bias)

    def net_u(self, t: Tensor, x: Tensor) -> Tensor:
        X = torch.cat([t, x], dim=1)
        X = 2.0 * (X - self.get_buffer("lb")) / (self.get_buffer("ub") - self.get_buffer("lb")) - 1.0
        H = torch.cat([torch.cos(X @ self.fourier), torch.sin(X @ self.fourier)], dim=1)
        U, V = torch.tanh(self.encoder_u(H)), torch.tanh(self.encoder_v(H))
        for linear in self.linears[:-1]:
            Z = torch.tanh(linear(H))
            H = Z * U + (1 - Z) * V
        return self.linears[-1](H)

    def net_f(self, t: Tensor, x: Tensor) -> Tensor:
        t, x = t.requires_grad_(True), x.requires_grad_(True)
        u = self.net_u(t, x)
        u_t, u_x = torch.autograd.grad(u.sum(), [t, x], create_graph=True)
        u_xx = torch.autograd.grad(u_x.sum(), x, create_graph=True)[0]
        return u_t + self.lambda_1 * u * u_x - torch.exp(self.lambda_2) * u_xx

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self.net_u(t, x)


# Tracks along a genome: a tower of convolutions with pooling by softmax, then attention with relative keys.
class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


class AttentionPool(nn.Module):
    def __init__(self, dim: int, pool_size: int = 2) -> None:
        super().__init__()
        self.pool_size, self.to_attn_logits = pool_size, nn.Conv2d(dim, dim, 1, bias=False)
        nn.init.dirac_(self.to_attn_logits.weight)
        with torch.no_grad():
            self.to_attn_logits.weight.mul_(2)

    def forward(self, x: Tensor) -> Tensor:
        b, d, n = x.shape
        x = x.view(b, d, n // self.pool_size, self.pool_size)
        return (x * self.to_attn_logits(x).softmax(dim=-1)).sum(dim=-1)


def ConvBlock(dim: int, dim_out: int, kernel_size: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm1d(dim), nn.GELU(), nn.Conv1d(dim, dim_out, kernel_size, padding=kernel_size // 2))


class GenomeAttention(nn.Module):
    def __init__(self, dim: int, num_rel_pos_features: int, heads: int, dim_key: int, dim_value: int) -> None:
        super().__init__()
        self.scale, self.heads, self.num_rel_pos_features = dim_key**-0.5, heads, num_rel_pos_features
        self.to_q = nn.Linear(dim, dim_key * heads, bias=False)
        self.to_k = nn.Linear(dim, dim_key * heads, bias=False)
        self.to_v = nn.Linear(dim, dim_value * heads, bias=False)
        self.to_out = nn.Linear(dim_value * heads, dim)
        self.to_rel_k = nn.Linear(num_rel_pos_features, dim_key * heads, bias=False)
        self.rel_content_bias = nn.Parameter(torch.randn(1, heads, 1, dim_key))
        self.rel_pos_bias = nn.Parameter(torch.randn(1, heads, 1, dim_key))

    def positions(self, n: int) -> Tensor:
        distances = torch.arange(-n + 1, n).float()
        half_life = 2 ** torch.linspace(1.0, math.log2(n), self.num_rel_pos_features // 2)
        embeddings = torch.exp(-math.log(2.0) / half_life * distances.abs()[:, None])
        return torch.cat((embeddings, torch.sign(distances)[:, None] * embeddings), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        b, n, h = x.shape[0], x.shape[1], self.heads
        q, k, v = (t.view(b, n, h, -1).transpose(1, 2) for t in (self.to_q(x), self.to_k(x), self.to_v(x)))
        q = q * self.scale
        content_logits = torch.einsum("bhid,bhjd->bhij", q + self.rel_content_bias, k)
        rel_k = self.to_rel_k(self.positions(n)).view(2 * n - 1, h, -1).transpose(0, 1)
        rel_logits = torch.einsum("bhid,hjd->bhij", q + self.rel_pos_bias, rel_k)
        rel_logits = F.pad(rel_logits, (1, 0)).view(b, h, 2 * n, n)[:, :, 1:].reshape(b, h, n, 2 * n - 1)[..., :n]
        attn = (content_logits + rel_logits).softmax(dim=-1)
        out = torch.einsum("bhij,bhjd->bhid", attn, v)
        return self.to_out(out.transpose(1, 2).reshape(b, n, -1))


class Enformer(nn.Module):
    def __init__(self, dim: int = 34, depth: int = 2, target_length: int = 6) -> None:
        super().__init__()
        half, self.target_length = dim // 2, target_length
        self.stem = nn.Sequential(nn.Conv1d(4, half, 15, padding=7), Residual(ConvBlock(half, half)), AttentionPool(half))
        tower, filters = [], [half, 22, dim]
        for dim_in, dim_out in pairwise(filters):
            tower.append(nn.Sequential(ConvBlock(dim_in, dim_out, 5), Residual(ConvBlock(dim_out, dim_out, 1)), AttentionPool(dim_out)))
        self.conv_tower = nn.Sequential(*tower)
        self.transformer = nn.Sequential(
            *[
                nn.Sequential(
                    Residual(nn.Sequential(nn.LayerNorm(dim), GenomeAttention(dim, 10, 4, 6, 9))),
                    Residual(nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim * 2), nn.ReLU(), nn.Linear(dim * 2, dim))),
                )
                for _ in range(depth)
            ]
        )
        self.final_pointwise = nn.Sequential(ConvBlock(dim, dim * 2, 1), nn.Dropout(0.05), nn.GELU())
        tracks = {"human": 13, "mouse": 8}
        self._heads = nn.ModuleDict({name: nn.Sequential(nn.Linear(dim * 2, n), nn.Softplus()) for name, n in tracks.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.conv_tower(self.stem(x.transpose(1, 2))).transpose(1, 2)
        x = self.transformer(x)
        trim = (x.shape[1] - self.target_length) // 2
        x = self.final_pointwise(x[:, trim : x.shape[1] - trim].transpose(1, 2)).transpose(1, 2)
        return {name: head(x) for name, head in self._heads.items()}


# Counts of genes in single cells through a latent, the batch of the experiment given to every layer.
class FCLayers(nn.Module):
    def __init__(self, n_in: int, n_out: int, n_batch: int, n_layers: int, n_hidden: int) -> None:
        super().__init__()
        self.n_batch, dims = n_batch, [n_in, *[n_hidden] * (n_layers - 1), n_out]
        self.fc_layers = nn.Sequential()
        for i, (d_in, d_out) in enumerate(pairwise(dims)):
            layer = nn.Sequential(
                nn.Linear(d_in + n_batch, d_out), nn.BatchNorm1d(d_out, momentum=0.01, eps=0.001), nn.ReLU(), nn.Dropout(0.1)
            )
            self.fc_layers.add_module(f"Layer {i}", layer)

    def forward(self, x: Tensor, batch_index: Tensor) -> Tensor:
        one_hot = F.one_hot(batch_index.squeeze(-1), self.n_batch).to(x.dtype)
        for layers in self.fc_layers:
            x = layers(torch.cat((x, one_hot), dim=-1))
        return x


class EncoderSCVI(nn.Module):
    def __init__(self, n_input: int, n_output: int, n_batch: int, n_layers: int, n_hidden: int) -> None:
        super().__init__()
        self.encoder = FCLayers(n_input, n_hidden, n_batch, n_layers, n_hidden)
        self.mean_encoder, self.var_encoder = nn.Linear(n_hidden, n_output), nn.Linear(n_hidden, n_output)

    def forward(self, x: Tensor, batch_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.encoder(x, batch_index)
        q_m, q_v = self.mean_encoder(q), torch.exp(self.var_encoder(q)) + 1e-4
        return q_m, q_v, q_m + q_v.sqrt() * torch.randn_like(q_m)


class DecoderSCVI(nn.Module):
    def __init__(self, n_input: int, n_output: int, n_batch: int, n_layers: int, n_hidden: int) -> None:
        super().__init__()
        self.px_decoder = FCLayers(n_input, n_hidden, n_batch, n_layers, n_hidden)
        self.px_scale_decoder = nn.Sequential(nn.Linear(n_hidden, n_output), nn.Softmax(dim=-1))
        self.px_dropout_decoder = nn.Linear(n_hidden, n_output)

    def forward(self, z: Tensor, library: Tensor, batch_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        px = self.px_decoder(z, batch_index)
        px_scale = self.px_scale_decoder(px)
        return px_scale, torch.exp(library) * px_scale, self.px_dropout_decoder(px)


class SCVI_VAE(nn.Module):
    def __init__(self, n_input: int = 90, n_batch: int = 3, n_hidden: int = 32, n_latent: int = 7, n_layers: int = 2) -> None:
        super().__init__()
        self.px_r = nn.Parameter(torch.randn(n_input))
        self.z_encoder = EncoderSCVI(n_input, n_latent, n_batch, n_layers, n_hidden)
        self.l_encoder = EncoderSCVI(n_input, 1, n_batch, 1, n_hidden)
        self.decoder = DecoderSCVI(n_latent, n_input, n_batch, n_layers, n_hidden)

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        x, batch_index = tensors["X"], tensors["batch"]
        x_ = torch.log(1 + x)
        qz_m, qz_v, z = self.z_encoder(x_, batch_index)
        ql_m, ql_v, library = self.l_encoder(x_, batch_index)
        px_scale, px_rate, px_dropout = self.decoder(z, library, batch_index)
        theta = torch.exp(self.px_r)
        log_prob = x * (torch.log(px_rate + 1e-8) - torch.log(theta + px_rate)) + theta * torch.log(theta / (theta + px_rate))
        kl = 0.5 * (qz_m**2 + qz_v - 1 - qz_v.log()).sum(1) + 0.5 * (ql_m**2 + ql_v - 1 - ql_v.log()).sum(1)
        return {"reconst": -(log_prob - F.softplus(px_dropout)).sum(1), "kl": kl, "px_scale": px_scale}


# What a piano played: beginnings, ends and loudness of notes, and which sound, from a spectrogram.
class ConvStack(nn.Module):
    def __init__(self, input_features: int, output_features: int) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            nn.Conv2d(1, output_features // 16, (3, 3), padding=1),
            nn.BatchNorm2d(output_features // 16),
            nn.ReLU(),
            nn.Conv2d(output_features // 16, output_features // 16, (3, 3), padding=1),
            nn.BatchNorm2d(output_features // 16),
            nn.ReLU(),
            nn.MaxPool2d((1, 2)),
            nn.Dropout(0.25),
            nn.Conv2d(output_features // 16, output_features // 8, (3, 3), padding=1),
            nn.BatchNorm2d(output_features // 8),
            nn.ReLU(),
            nn.MaxPool2d((1, 2)),
            nn.Dropout(0.25),
        )
        self.fc = nn.Sequential(nn.Linear((output_features // 8) * (input_features // 4), output_features), nn.Dropout(0.5))

    def forward(self, mel: Tensor) -> Tensor:
        x = self.cnn(mel.view(mel.size(0), 1, mel.size(1), mel.size(2)))
        return self.fc(x.transpose(1, 2).flatten(-2))


class BiLSTM(nn.Module):
    def __init__(self, input_features: int, recurrent_features: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(input_features, recurrent_features, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


class OnsetsAndFrames(nn.Module):
    def __init__(self, input_features: int = 36, output_features: int = 22, model_complexity: int = 5) -> None:
        super().__init__()
        model_size = model_complexity * 16

        def sequence_model(input_size: int, output_size: int) -> nn.Module:
            return BiLSTM(input_size, output_size // 2)

        self.onset_stack = nn.Sequential(
            ConvStack(input_features, model_size), sequence_model(model_size, 48), nn.Linear(48, output_features), nn.Sigmoid()
        )
        self.offset_stack = nn.Sequential(
            ConvStack(input_features, model_size), sequence_model(model_size, 48), nn.Linear(48, output_features), nn.Sigmoid()
        )
        self.frame_stack = nn.Sequential(ConvStack(input_features, model_size), nn.Linear(model_size, output_features), nn.Sigmoid())
        self.combined_stack = nn.Sequential(sequence_model(output_features * 3, 40), nn.Linear(40, output_features), nn.Sigmoid())
        self.velocity_stack = nn.Sequential(ConvStack(input_features, model_size), nn.Linear(model_size, output_features))

    def forward(self, mel: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        onset_pred, offset_pred, activation_pred = self.onset_stack(mel), self.offset_stack(mel), self.frame_stack(mel)
        combined_pred = torch.cat([onset_pred.detach(), offset_pred.detach(), activation_pred], dim=-1)
        return onset_pred, offset_pred, activation_pred, self.combined_stack(combined_pred), self.velocity_stack(mel)


_TABLE = {"token_embedding"}
_HIDDEN = {"linear", "mlp_up", "mlp_down"}
_NODES = _HIDDEN | {"gnn_weight"}
_LAST = {"lm_head", "classifier"}
_CONV = {"conv"}
_FIRST = {"conv", "first_conv"}
_POINT = {"conv", "linear", "mlp_up", "mlp_down"}
_LENGTHS = {"scale", "norm", "other"}


def _words() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    args = (torch.randint(120, (2, 7)), torch.randint(40, (2, 7, 5)), torch.randint(4, (2, 7)))
    return args, {"tags": torch.randint(7, (2, 7))}


def _passages() -> tuple[tuple[tuple[Tensor, Tensor], ...], dict[str, Tensor]]:
    mask = (torch.arange(13).unsqueeze(0) < torch.tensor([[13], [10], [8]])).long()
    return ((torch.randint(1, 140, (3, 6)), torch.ones(3, 6).long()), (torch.randint(1, 140, (3, 13)) * mask, mask)), {}


def _purchases() -> tuple[tuple[object, ...], dict[str, Tensor]]:
    lengths = torch.tensor([11, 8, 5])
    ids = torch.randint(1, 161, (3, 11)) * (torch.arange(11).unsqueeze(0) < lengths.unsqueeze(1))
    return (lengths, ids, {"timestamps": torch.randint(1, 900, (3, 11)).cumsum(1)}), {}


def _bonds() -> tuple[tuple[object, ...], dict[str, Tensor]]:
    # bond 0 and atom 0 are padding; then both ways of 1-2, 2-3, 4-5, 5-6
    b2a = torch.tensor([0, 1, 2, 2, 3, 4, 5, 5, 6])
    a2b = torch.tensor([[0, 0], [2, 0], [1, 4], [3, 0], [6, 0], [5, 8], [7, 0]])
    b2revb = torch.tensor([0, 2, 1, 4, 3, 6, 5, 8, 7])
    f_atoms, f_bonds = torch.rand(7, 21), torch.rand(9, 27)
    return ((f_atoms, f_bonds, a2b, b2a, b2revb, [(1, 3), (4, 3)]), torch.rand(2, 7)), {}


def _graphs() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    src, dst = torch.tensor([0, 1, 1, 2, 2, 3, 4, 5, 5, 6, 6, 7, 7, 8]), torch.tensor([1, 0, 2, 1, 3, 2, 5, 4, 6, 5, 7, 6, 8, 7])
    batch = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1])
    return (torch.randint(28, (9,)), torch.stack([src, dst]), torch.randint(4, (14,)), torch.randn(9, 3), torch.rand(9, 3), batch), {}


def _backbone() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    X, index = torch.randn(2, 12, 3).cumsum(1) * 2, torch.arange(12).expand(2, -1)
    return (X, torch.randint(21, (2, 12)), torch.ones(2, 12), index, (index > 7).long()), {}


def _genome() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    return (F.one_hot(torch.randint(4, (2, 80)), 4).float(),), {}


STYLES: list[Style] = [
    Style(
        "names in sentences",
        BiLSTM_CRF,
        _words,
        {"rnn"},
        {
            "char_embeds.weight": _TABLE,
            "cap_embeds.weight": _TABLE | {"type_embedding"},
            "word_embeds.weight": _TABLE,
            "char_cnn3.weight": _FIRST,
            "lstm.weight_ih_*": {"rnn_ih"},
            "lstm.weight_hh_*": {"rnn_hh"},
            "hidden2tag.weight": _LAST,
            "transitions": {"other", "linear"},
        },
    ),
    Style(
        "each word finds its best word",
        ColBERT,
        _passages,
        {"transformer"},
        {
            "bert.embeddings.word_embeddings.weight": _TABLE,
            "bert.embeddings.position_embeddings.weight": {"position_embedding"},
            "bert.transformer.layer.*.attention.q_lin.weight": {"query"},
            "bert.transformer.layer.*.attention.k_lin.weight": {"key"},
            "bert.transformer.layer.*.attention.v_lin.weight": {"value"},
            "bert.transformer.layer.*.attention.out_lin.weight": {"attn_out"},
            "bert.transformer.layer.*.ffn.lin1.weight": {"mlp_up"},
            "bert.transformer.layer.*.ffn.lin2.weight": {"mlp_down"},
            "linear.weight": _LAST | {"linear"},  # what is compared
        },
        {"*.q_lin.weight": "q:4x9", "*.k_lin.weight": "k:4x9"},
    ),
    Style(
        "text to text, time first",
        BARTModel,
        lambda: ((torch.randint(2, 130, (2, 9)), torch.tensor([9, 6]), torch.randint(2, 130, (2, 7))), {}),
        {"transformer"},
        {
            "*.embed_tokens.weight": _TABLE | {"lm_head"},
            "*.embed_positions.weight": {"position_embedding"},
            "*.q_proj.weight": {"query"},
            "*.k_proj.weight": {"key"},
            "*.v_proj.weight": {"value"},
            "*.out_proj.weight": {"attn_out"},
            "*.fc1.weight": {"mlp_up"},
            "*.fc2.weight": {"mlp_down"},
        },
        {"*.q_proj.weight": "q:3x10", "*.k_proj.weight": "k:3x10"},
    ),
    Style(
        "one projection in three unequal parts",
        OLMo,
        lambda: ((torch.randint(151, (2, 11)),), {}),
        {"transformer"},
        {
            "transformer.wte.weight": _TABLE,
            "transformer.blocks.*.att_proj.weight": {"qkv"},
            "transformer.blocks.*.attn_out.weight": {"attn_out"},
            "transformer.blocks.*.ff_proj.weight": {"mlp_gate_up"},
            "transformer.blocks.*.ff_out.weight": {"mlp_down"},
            "transformer.ff_out.weight": {"lm_head"},
        },
        {"transformer.blocks.*.att_proj.weight": "q:6x8|k:2x8|v:2x8"},
    ),
    Style(
        "who speaks",
        ECAPA_TDNN,
        lambda: ((torch.randn(3, 31, 26), torch.randint(35, (3,))), {}),
        {"cnn"},
        {
            "layer1.conv.weight": _FIRST,
            "layer?.Conv1dReluBn?.conv.weight": _POINT,
            "layer?.Res2Conv1dReluBn.convs.*.weight": _CONV,
            "layer?.SE_Connect.linear?.weight": _HIDDEN | {"mlp_gate"},
            "conv.weight": _POINT,
            "pooling.linear?.weight": _POINT | {"attn_other"},
            "linear.weight": _HIDDEN,
            "speaker_loss.weight": {"classifier"},
        },
    ),
    Style(
        "sound and what was said, joined",
        RNNT,
        lambda: ((torch.randn(2, 17, 20), torch.tensor([17, 13]), torch.randint(31, (2, 6)), torch.tensor([6, 4])), {}),
        {"rnn"},
        {
            "transcriber.input_linear.weight": _HIDDEN | {"patch_embedding"},
            "transcriber.lstm.weight_ih_*": {"rnn_ih"},
            "transcriber.lstm.weight_hh_*": {"rnn_hh"},
            "transcriber.output_linear.weight": _HIDDEN,
            "predictor.embedding.weight": _TABLE,
            "predictor.lstm_layers.*.x2g.weight": {"rnn_ih"},
            "predictor.lstm_layers.*.p2g.weight": {"rnn_hh"},
            "predictor.linear.weight": _HIDDEN,
            "joiner.linear.weight": _LAST,
        },
    ),
    Style(
        "sound in few bits",
        DAC,
        lambda: ((torch.randn(2, 1, 96),), {}),
        {"cnn"},
        {
            "encoder.block.0.parametrizations.weight.original1": _FIRST,
            "encoder.block.[12].*.parametrizations.weight.original1": _CONV,
            "encoder.block.4.parametrizations.weight.original1": _CONV,
            "quantizers.*.in_proj.parametrizations.weight.original1": _POINT,
            "quantizers.*.out_proj.parametrizations.weight.original1": _POINT,
            "quantizers.*.codebook.weight": _TABLE | {"other"},
            "decoder.model.[012].*weight.original1": _CONV,
            "decoder.model.4.parametrizations.weight.original1": _CONV | _LAST,
            "*.original0": _LENGTHS,
            "*.alpha": {"scale", "other"},
        },
    ),
    Style(
        "demand as a distribution",
        DeepARNet,
        lambda: ((torch.randn(1, 4, 5), torch.randint(37, (1, 4)), torch.rand(3, 4, 26) - 0.5, torch.randn(3, 4, 26)), {}),
        {"rnn"},
        {
            "embedding.weight": _TABLE,
            "lstm.weight_ih_*": {"rnn_ih"},
            "lstm.weight_hh_*": {"rnn_hh"},
            "distribution_mu.weight": _LAST,
            "distribution_presigma.weight": _LAST,
        },
    ),
    Style(
        "patches of series and a long next one",
        PatchedTimeSeriesDecoder,
        lambda: ((torch.randn(2, 42), torch.zeros(2, 42), torch.randint(3, (2, 1))), {}),
        {"transformer"},
        {
            "input_ff_layer.hidden_layer.0.weight": _HIDDEN | {"patch_embedding"},
            "input_ff_layer.output_layer.weight": _HIDDEN | {"patch_embedding"},
            "input_ff_layer.residual_layer.weight": {"linear", "patch_embedding"},
            "freq_emb.weight": _TABLE | {"type_embedding"},
            "layers.*.self_attn.qkv_proj.weight": {"qkv"},
            "layers.*.self_attn.o_proj.weight": {"attn_out"},
            "layers.*.mlp.gate_proj.weight": {"mlp_up"},  # a name only: nothing is gated
            "layers.*.mlp.down_proj.weight": {"mlp_down"},
            "horizon_ff_layer.hidden_layer.0.weight": _HIDDEN,
            "horizon_ff_layer.output_layer.weight": _LAST,
            "horizon_ff_layer.residual_layer.weight": _LAST | {"linear"},
        },
        {"layers.*.self_attn.qkv_proj.weight": "q:5x8|k:5x8|v:5x8"},
    ),
    Style(
        "bought next, without a softmax",
        HSTU,
        _purchases,
        {"transformer"},
        {
            "_item_emb.weight": _TABLE | _LAST,
            "_pos_emb.weight": {"position_embedding"},
            "_attention_layers.*._uvqk": {"qkv"},
            "_attention_layers.*._o.weight": {"attn_out"},
        },
    ),
    Style(
        "a table read at once",
        TabPFN,
        lambda: (((torch.randn(15, 2, 13), torch.randint(6, (15, 2)).float()), 10), {}),
        {"transformer"},
        {
            "encoder.weight": _HIDDEN | {"patch_embedding", "token_embedding"},
            "y_encoder.weight": _HIDDEN | {"patch_embedding", "token_embedding"},
            "transformer_encoder.*.self_attn.in_proj_weight": {"qkv"},
            "transformer_encoder.*.self_attn.out_proj.weight": {"attn_out"},
            "transformer_encoder.*.linear1.weight": {"mlp_up"},
            "transformer_encoder.*.linear2.weight": {"mlp_down"},
            "decoder.0.weight": _HIDDEN,
            "decoder.2.weight": _LAST,
        },
        {"transformer_encoder.*.self_attn.in_proj_weight": "q:4x7|k:4x7|v:4x7"},
    ),
    Style(
        "messages on bonds that do not turn back",
        MoleculeModel,
        _bonds,
        {"gnn"},
        {
            "encoder.W_i.weight": _NODES,
            "encoder.W_h.weight": _NODES | {"rnn_hh"},  # the same at every step
            "encoder.W_o.weight": _NODES,
            "readout.1.weight": _HIDDEN,
            "readout.4.weight": _LAST,
        },
    ),
    Style(
        "gated edges beside attention",
        GPSModel,
        _graphs,
        {"gnn", "transformer", "hybrid"},
        {
            "node_encoder.weight": _TABLE,
            "edge_encoder.weight": _TABLE | {"type_embedding"},
            "pe_linear_A.weight": {"linear", "position_embedding", "mlp_up"},
            "pe_post_mlp.1.weight": {"linear", "position_embedding", "mlp_down"},
            "layers.*.local_model.[ABCDE].weight": {"linear", "gnn_weight"},
            "layers.*.self_attn.in_proj_weight": {"qkv"},
            "layers.*.self_attn.out_proj.weight": {"attn_out"},
            "layers.*.ff_linear1.weight": {"mlp_up"},
            "layers.*.ff_linear2.weight": {"mlp_down"},
            "post_mp.0.weight": _HIDDEN,
            "post_mp.1.weight": _LAST,
        },
        {"layers.*.self_attn.in_proj_weight": "q:5x6|k:5x6|v:5x6"},
    ),
    Style(
        "sequences for a backbone",
        ProteinMPNN,
        _backbone,
        {"gnn"},
        {
            "features.embeddings.weight": {"position_embedding", "linear"},
            "features.edge_embedding.weight": _NODES,
            "W_e.weight": _NODES,
            "W_s.weight": _TABLE,
            "*coder_layers.*.W?.weight": _NODES,
            "encoder_layers.*.W1?.weight": _NODES,
            "*coder_layers.*.dense.W_in.weight": {"mlp_up"},
            "*coder_layers.*.dense.W_out.weight": {"mlp_down"},
            "W_out.weight": _LAST,
        },
    ),
    Style(
        "plans among simplices",
        WorldModel,
        lambda: ((torch.randn(4, 17), torch.rand(4, 5), torch.randint(6, (4,))), {}),
        {"mlp"},
        {
            "_task_emb.weight": _TABLE | {"type_embedding"},
            "_encoder.state.?.weight": _HIDDEN,
            "_dynamics.[01].weight": _HIDDEN,
            "_dynamics.2.weight": _HIDDEN | _LAST,
            "_reward.[01].weight": _HIDDEN,
            "_reward.2.weight": _LAST,
            "_pi.[01].weight": _HIDDEN,
            "_pi.2.weight": _LAST,
            "_Qs.0.weight": _HIDDEN,
            "_Qs.2.weight": _LAST | {"linear", "mlp_down"},
            "_Qs.?.bias": {"bias"},
        },
    ),
    Style(
        "points in slices",
        Transolver,
        lambda: ((torch.rand(2, 33, 2), torch.randn(2, 33, 3), torch.rand(2, 1)), {}),
        {"transformer"},
        {
            "preprocess.linear_pre.0.weight": _HIDDEN | {"patch_embedding"},
            "preprocess.linear_post.weight": _HIDDEN,
            "time_fc.?.weight": {"time_embedding"},
            "blocks.*.Attn.in_project_x.weight": {"linear", "attn_other"},
            "blocks.*.Attn.in_project_fx.weight": {"linear", "attn_other", "value"},
            "blocks.*.Attn.in_project_slice.weight": {"linear", "attn_other", "router"},
            "blocks.*.Attn.to_q.weight": {"query"},
            "blocks.*.Attn.to_k.weight": {"key"},
            "blocks.*.Attn.to_v.weight": {"value"},
            "blocks.*.Attn.to_out.0.weight": {"attn_out"},
            "blocks.*.Attn.temperature": {"scale", "other"},
            "blocks.*.mlp.linear_pre.0.weight": {"mlp_up"},
            "blocks.*.mlp.linear_post.weight": {"mlp_down"},
            "blocks.2.mlp2.weight": _LAST,
        },
        {"blocks.*.Attn.to_q.weight": "q:1x9", "blocks.*.Attn.to_k.weight": "k:1x9"},  # every head has the same
    ),
    Style(
        "an equation whose constants are sought",
        ModifiedPINN,
        lambda: ((torch.rand(20, 1), torch.rand(20, 1)), {}),
        {"mlp"},
        {
            "fourier": {"linear", "position_embedding", "other"},
            "encoder_?.weight": _HIDDEN | {"mlp_gate"},
            "linears.[012].weight": _HIDDEN | {"mlp_gate"},
            "linears.3.weight": _LAST,
        },
    ),
    Style(
        "tracks along a genome",
        Enformer,
        _genome,
        {"transformer", "hybrid"},
        {
            "stem.0.weight": _FIRST,
            "stem.1.fn.2.weight": _POINT,
            "*.to_attn_logits.weight": _POINT | {"attn_other"},
            "conv_tower.*.0.2.weight": _CONV,
            "conv_tower.*.1.fn.2.weight": _POINT,
            "transformer.*.to_q.weight": {"query"},
            "transformer.*.to_k.weight": {"key"},
            "transformer.*.to_v.weight": {"value"},
            "transformer.*.to_rel_k.weight": {"key", "position_embedding", "attn_other"},
            "transformer.*.rel_*_bias": {"bias", "position_embedding", "attn_other", "other"},
            "transformer.*.to_out.weight": {"attn_out"},
            "transformer.*.1.fn.1.weight": {"mlp_up"},
            "transformer.*.1.fn.3.weight": {"mlp_down"},
            "final_pointwise.0.2.weight": _POINT,
            "_heads.*.0.weight": _LAST,
        },
        {"transformer.*.to_q.weight": "q:4x6", "transformer.*.to_k.weight": "k:4x6", "transformer.*.to_rel_k.weight": "k:4x6"},
    ),
    Style(
        "counts of genes in single cells",
        SCVI_VAE,
        lambda: (({"X": torch.randint(9, (5, 90)).float(), "batch": torch.randint(3, (5, 1))},), {}),
        {"mlp"},
        {
            "?_encoder.encoder.fc_layers.Layer ?.0.weight": _HIDDEN,
            "?_encoder.mean_encoder.weight": _HIDDEN | _LAST,  # the loss takes them too
            "?_encoder.var_encoder.weight": _HIDDEN | _LAST,
            "decoder.px_decoder.fc_layers.Layer ?.0.weight": _HIDDEN,
            "decoder.px_scale_decoder.0.weight": _LAST,
            "decoder.px_dropout_decoder.weight": _LAST,
        },
    ),
    Style(
        "what a piano played",
        OnsetsAndFrames,
        lambda: ((torch.randn(2, 13, 36),), {}),
        {"cnn", "rnn", "hybrid"},
        {
            "*.0.cnn.0.weight": _FIRST,
            "*.0.cnn.[38].weight": _CONV,
            "*.0.fc.0.weight": _HIDDEN,
            "*_stack.?.rnn.weight_ih_*": {"rnn_ih"},
            "*_stack.?.rnn.weight_hh_*": {"rnn_hh"},
            "o*_stack.2.weight": _LAST,
            "frame_stack.1.weight": _LAST | {"linear"},
            "combined_stack.1.weight": _LAST,
            "velocity_stack.1.weight": _LAST,
        },
    ),
]
