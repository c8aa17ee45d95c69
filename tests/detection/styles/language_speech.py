"""Relative places in fused projections (Transformer-XL and newer speech encoders), wav2vec 2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Transformer-XL: places first, batch in the middle, softmax over the second axis, memory of the last segment.
class RelPartialLearnableMultiHeadAttn(nn.Module):
    def __init__(self, n_head: int, d_model: int, d_head: int) -> None:
        super().__init__()
        self.n_head, self.d_head = n_head, d_head
        self.qkv_net = nn.Linear(d_model, 3 * n_head * d_head, bias=False)
        self.o_net = nn.Linear(n_head * d_head, d_model, bias=False)
        self.layer_norm = nn.LayerNorm(d_model)
        self.r_net = nn.Linear(d_model, n_head * d_head, bias=False)

    def forward(self, w: Tensor, r: Tensor, r_w_bias: Tensor, r_r_bias: Tensor, mems: Tensor) -> Tensor:
        qlen, rlen, bsz = w.size(0), r.size(0), w.size(1)
        w_heads = self.qkv_net(torch.cat([mems, w], 0))
        w_head_q, w_head_k, w_head_v = torch.chunk(w_heads, 3, dim=-1)
        klen = w_head_k.size(0)
        w_head_q = w_head_q[-qlen:].view(qlen, bsz, self.n_head, self.d_head)
        w_head_k, w_head_v = (x.view(klen, bsz, self.n_head, self.d_head) for x in (w_head_k, w_head_v))
        r_head_k = self.r_net(r).view(rlen, self.n_head, self.d_head)
        AC = torch.einsum("ibnd,jbnd->ijbn", w_head_q + r_w_bias, w_head_k)
        BD = torch.einsum("ibnd,jnd->ijbn", w_head_q + r_r_bias, r_head_k)
        BD = torch.cat([BD.new_zeros(qlen, 1, bsz, self.n_head), BD], 1).view(klen + 1, qlen, bsz, self.n_head)[1:].view_as(BD)
        attn_prob = F.softmax((AC + BD) * self.d_head**-0.5, dim=1)
        attn_vec = torch.einsum("ijbn,jbnd->ibnd", attn_prob, w_head_v).contiguous().view(qlen, bsz, -1)
        return self.layer_norm(w + self.o_net(attn_vec))


class PositionwiseFF(nn.Module):
    def __init__(self, d_model: int, d_inner: int) -> None:
        super().__init__()
        self.CoreNet = nn.Sequential(nn.Linear(d_model, d_inner), nn.ReLU(inplace=True), nn.Linear(d_inner, d_model))
        self.layer_norm = nn.LayerNorm(d_model)

    def forward(self, inp: Tensor) -> Tensor:
        return self.layer_norm(inp + self.CoreNet(inp))


class DecoderLayer(nn.Module):
    def __init__(self, n_head: int, d_model: int, d_head: int, d_inner: int) -> None:
        super().__init__()
        self.dec_attn = RelPartialLearnableMultiHeadAttn(n_head, d_model, d_head)
        self.pos_ff = PositionwiseFF(d_model, d_inner)

    def forward(self, dec_inp: Tensor, *rest: Tensor) -> Tensor:
        return self.pos_ff(self.dec_attn(dec_inp, *rest))


class MemTransformerLM(nn.Module):
    def __init__(self, n_token: int = 71, n_layer: int = 2, n_head: int = 4, d_model: int = 32, d_head: int = 10) -> None:
        super().__init__()
        self.word_emb = nn.Embedding(n_token, d_model)
        self.layers = nn.ModuleList([DecoderLayer(n_head, d_model, d_head, 72) for _ in range(n_layer)])
        self.r_w_bias = nn.Parameter(torch.randn(n_head, d_head) * 0.1)
        self.r_r_bias = nn.Parameter(torch.randn(n_head, d_head) * 0.1)
        self.out_layer = nn.Linear(d_model, n_token)

    def forward(self, data: Tensor, mems: Tensor) -> Tensor:
        h = self.word_emb(data)
        pos_seq = torch.arange(len(data) + len(mems) - 1, -1, -1.0)
        sinusoid = torch.outer(pos_seq, 10000 ** -(torch.arange(0.0, h.size(-1), 2) / h.size(-1)))
        r = torch.cat([sinusoid.sin(), sinusoid.cos()], -1)
        for layer in self.layers:
            h = layer(h, r, self.r_w_bias, self.r_r_bias, mems)
        return self.out_layer(h)


# A fused in_proj with relative places, as newer speech toolkits have it: width of a query and of a place's query apart.
class RelPosSelfAttention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, query_head_dim: int, pos_head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.query_head_dim, self.pos_head_dim = num_heads, query_head_dim, pos_head_dim
        self.in_proj = nn.Linear(embed_dim, (2 * query_head_dim + pos_head_dim) * num_heads)
        self.linear_pos = nn.Linear(12, num_heads * pos_head_dim, bias=False)

    def forward(self, x: Tensor, pos_emb: Tensor) -> Tensor:
        x = self.in_proj(x)
        seq_len, batch_size, _ = x.shape
        query_dim = self.query_head_dim * self.num_heads
        q, k, p = x[..., :query_dim], x[..., query_dim : 2 * query_dim], x[..., 2 * query_dim :]
        q = q.reshape(seq_len, batch_size, self.num_heads, self.query_head_dim).permute(2, 1, 0, 3)
        k = k.reshape(seq_len, batch_size, self.num_heads, self.query_head_dim).permute(2, 1, 3, 0)
        p = p.reshape(seq_len, batch_size, self.num_heads, self.pos_head_dim).permute(2, 1, 0, 3)
        where = self.linear_pos(pos_emb).reshape(-1, self.num_heads, self.pos_head_dim).permute(1, 2, 0)
        pos_scores = torch.matmul(p, where.unsqueeze(1))
        index = torch.arange(seq_len)[None] - torch.arange(seq_len)[:, None] + seq_len - 1
        pos_scores = pos_scores.gather(-1, index.expand(self.num_heads, batch_size, -1, -1))
        return (torch.matmul(q, k) + pos_scores).softmax(dim=-1)


class WeightedValues(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, value_head_dim: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(embed_dim, num_heads * value_head_dim)
        self.out_proj = nn.Linear(num_heads * value_head_dim, embed_dim)

    def forward(self, x: Tensor, attn_weights: Tensor) -> Tensor:
        seq_len, batch_size, _ = x.shape
        v = self.in_proj(x).reshape(seq_len, batch_size, len(attn_weights), -1).permute(2, 1, 0, 3)
        return self.out_proj(torch.matmul(attn_weights, v).permute(2, 1, 0, 3).reshape(seq_len, batch_size, -1))


class FeedforwardModule(nn.Module):
    def __init__(self, embed_dim: int, feedforward_dim: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(embed_dim, feedforward_dim), nn.Linear(feedforward_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_proj(F.silu(self.in_proj(x)))


class SharedWeightsLayer(nn.Module):
    """The attention weights are found once and used by two modules of values."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.self_attn_weights = RelPosSelfAttention(embed_dim, 4, 8, 4)
        self.self_attn1, self.self_attn2 = WeightedValues(embed_dim, 4, 6), WeightedValues(embed_dim, 4, 6)
        self.feed_forward1, self.feed_forward2 = FeedforwardModule(embed_dim, 60), FeedforwardModule(embed_dim, 80)
        self.norm = nn.LayerNorm(embed_dim)

    def forward(self, src: Tensor, pos_emb: Tensor) -> Tensor:
        attn_weights = self.self_attn_weights(src, pos_emb)
        src = src + self.feed_forward1(src)
        src = src + self.self_attn1(src, attn_weights)
        src = src + self.self_attn2(src, attn_weights)
        return self.norm(src + self.feed_forward2(src))


class SpeechEncoder(nn.Module):
    def __init__(self, feature_dim: int = 24, embed_dim: int = 40, vocab_size: int = 45) -> None:
        super().__init__()
        self.encoder_embed = nn.Linear(feature_dim, embed_dim)
        self.layers = nn.ModuleList([SharedWeightsLayer(embed_dim) for _ in range(2)])
        self.ctc_output = nn.Sequential(nn.Dropout(0.0), nn.Linear(embed_dim, vocab_size), nn.LogSoftmax(dim=-1))

    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:
        src = self.encoder_embed(x).permute(1, 0, 2)
        far = torch.arange(1 - len(src), len(src)).unsqueeze(-1)
        pos_emb = torch.cos(far * torch.arange(1, 13) / 13)
        for layer in self.layers:
            src = layer(src, pos_emb)
        return self.ctc_output(src).permute(1, 0, 2), x_lens


# wav2vec 2: convolutions over the wave, one grouped convolution for places, batch and heads in one axis.
class SelfAttention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(embed_dim, embed_dim) for _ in range(4))

    def _shape(self, tensor: Tensor, bsz: int) -> Tensor:
        return tensor.contiguous().view(-1, bsz * self.num_heads, self.head_dim).transpose(0, 1)

    def forward(self, query: Tensor) -> Tensor:
        tgt_len, bsz, _ = query.size()
        q = self._shape(self.q_proj(query) * self.head_dim**-0.5, bsz)
        k, v = self._shape(self.k_proj(query), bsz), self._shape(self.v_proj(query), bsz)
        attn = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1), v)
        return self.out_proj(attn.transpose(0, 1).contiguous().view(tgt_len, bsz, self.embed_dim))


class TransformerSentenceEncoderLayer(nn.Module):
    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.self_attn, self.self_attn_layer_norm = SelfAttention(embedding_dim, 4), nn.LayerNorm(embedding_dim)
        self.fc1, self.fc2 = nn.Linear(embedding_dim, 96), nn.Linear(96, embedding_dim)
        self.final_layer_norm = nn.LayerNorm(embedding_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x))
        return self.final_layer_norm(x + self.fc2(F.gelu(self.fc1(x))))


class Wav2VecCTC(nn.Module):
    def __init__(self, dim: int = 32, channels: int = 16, letters: int = 32) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Conv1d(c, channels, k, s, bias=False), nn.GELU()) for c, k, s in ((1, 10, 5), (channels, 3, 2))]
        self.feature_extractor = nn.Sequential(*layers)
        self.post_extract_proj = nn.Linear(channels, dim)
        self.pos_conv = nn.Conv1d(dim, dim, 5, padding=2, groups=4)
        self.mask_emb = nn.Parameter(torch.rand(dim))
        self.layers = nn.ModuleList([TransformerSentenceEncoderLayer(dim) for _ in range(2)])
        self.proj = nn.Linear(dim, letters)

    def forward(self, source: Tensor, mask: Tensor) -> Tensor:
        x = self.post_extract_proj(self.feature_extractor(source.unsqueeze(1)).transpose(1, 2))
        x = torch.where(mask.unsqueeze(-1), self.mask_emb, x)
        x = (x + F.gelu(self.pos_conv(x.transpose(1, 2)).transpose(1, 2))).transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        return self.proj(x)


_CORE = {"*.CoreNet.0.weight": {"mlp_up"}, "*.CoreNet.2.weight": {"mlp_down"}}
STYLES: list[Style] = [
    Style(
        "transformer-xl",
        MemTransformerLM,
        lambda: ((torch.randint(71, (4, 2)), torch.randn(3, 2, 32)), {}),
        {"transformer"},
        {
            "word_emb.weight": {"token_embedding"},
            "*.qkv_net.weight": {"qkv"},
            "*.o_net.weight": {"attn_out"},
            "*.r_net.weight": {"key", "attn_other", "linear"},
            **_CORE,
            "out_layer.weight": {"lm_head"},
        },
        {"*.qkv_net.weight": "q:4x10|k:4x10|v:4x10"},
    ),
    Style(
        "fused in_proj with relative places",
        SpeechEncoder,
        lambda: ((torch.randn(1, 5, 24), torch.tensor([5])), {}),
        {"transformer"},
        {
            "encoder_embed.weight": {"linear", "patch_embedding"},
            "*.self_attn_weights.in_proj.weight": {"qkv"},
            "*.self_attn_weights.linear_pos.weight": {"key", "attn_other", "linear"},
            "*.self_attn?.in_proj.weight": {"value"},
            "*.self_attn?.out_proj.weight": {"attn_out"},
            "*.feed_forward?.in_proj.weight": {"mlp_up"},
            "*.feed_forward?.out_proj.weight": {"mlp_down"},
            "ctc_output.1.weight": {"lm_head", "classifier"},
        },
        # The last part is a second query of each head, which meets places and not keys.
        {"*.self_attn_weights.in_proj.weight": "q:4x8|k:4x8|q:4x4"},
    ),
    Style(
        "wav2vec 2",
        Wav2VecCTC,
        lambda: ((torch.randn(1, 70), torch.rand(1, 6) > 0.5), {}),
        {"transformer", "hybrid"},
        {
            "feature_extractor.0.0.weight": {"first_conv", "conv"},
            "feature_extractor.1.0.weight": {"conv"},
            "post_extract_proj.weight": {"linear", "patch_embedding"},
            "*.q_proj.weight": {"query"},
            "*.k_proj.weight": {"key"},
            "*.v_proj.weight": {"value"},
            "*.self_attn.out_proj.weight": {"attn_out"},
            "*.fc1.weight": {"mlp_up"},
            "*.fc2.weight": {"mlp_down"},
            "proj.weight": {"lm_head", "classifier"},
        },
        {"*.q_proj.weight": "q:4x8", "*.k_proj.weight": "k:4x8"},
    ),
]
