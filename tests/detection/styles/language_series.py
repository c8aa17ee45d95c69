"""Time series by attention: Temporal Fusion, Informer, Autoformer, PatchTST, iTransformer."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Temporal Fusion: a linear for the query and the key of each head, one value for all heads, gates all over.
class InterpretableMultiHeadAttention(nn.Module):
    def __init__(self, n_head: int, d_model: int) -> None:
        super().__init__()
        self.n_head, self.d_k = n_head, d_model // n_head
        self.v_layer = nn.Linear(d_model, self.d_k)
        self.q_layers = nn.ModuleList([nn.Linear(d_model, self.d_k) for _ in range(n_head)])
        self.k_layers = nn.ModuleList([nn.Linear(d_model, self.d_k) for _ in range(n_head)])
        self.w_h = nn.Linear(self.d_k, d_model, bias=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        vs, heads = self.v_layer(v), []
        for q_layer, k_layer in zip(self.q_layers, self.k_layers, strict=True):
            attn = torch.bmm(q_layer(q), k_layer(k).permute(0, 2, 1)) / self.d_k**0.5
            heads.append(torch.bmm(torch.softmax(attn.masked_fill(mask, -1e9), dim=2), vs))
        return self.w_h(torch.stack(heads, dim=2).mean(dim=2))


class GatedLinearUnit(nn.Module):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc = nn.Linear(input_size, hidden_size * 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.glu(self.fc(x), dim=-1)


class GatedResidualNetwork(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc1, self.elu, self.fc2 = nn.Linear(size, size), nn.ELU(), nn.Linear(size, size)
        self.gate, self.norm = GatedLinearUnit(size, size), nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.gate(self.fc2(self.elu(self.fc1(x)))))


class TemporalFusion(nn.Module):
    def __init__(self, n_inputs: int = 5, hidden_size: int = 32, n_head: int = 4, quantiles: int = 3) -> None:
        super().__init__()
        self.prescaler = nn.Linear(n_inputs, hidden_size)
        self.lstm_encoder = nn.LSTM(hidden_size, hidden_size, batch_first=True)
        self.static_enrichment = GatedResidualNetwork(hidden_size)
        self.multihead_attn = InterpretableMultiHeadAttention(n_head, hidden_size)
        self.post_attn_gate, self.post_attn_norm = GatedLinearUnit(hidden_size, hidden_size), nn.LayerNorm(hidden_size)
        self.pos_wise_ff = GatedResidualNetwork(hidden_size)
        self.output_layer = nn.Linear(hidden_size, quantiles)

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.lstm_encoder(self.prescaler(x))
        h = self.static_enrichment(h)
        mask = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).triu(1)
        h = self.post_attn_norm(h + self.post_attn_gate(self.multihead_attn(h, h, h, mask)))
        return self.output_layer(self.pos_wise_ff(h))


# Informer, Autoformer, iTransformer: the layer has the projections and another module inside it attends.
class FullAttention(nn.Module):
    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        scores = torch.einsum("blhe,bshe->bhls", queries, keys)
        return torch.einsum("bhls,bshd->blhd", torch.softmax(queries.shape[-1] ** -0.5 * scores, dim=-1), values).contiguous()


class ProbAttention(nn.Module):
    """The few queries that stand out attend; the rest give the mean of the values."""

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        B, L, H, D = queries.shape
        queries, keys, values = queries.transpose(2, 1), keys.transpose(2, 1), values.transpose(2, 1)
        u = min(L, self.factor * math.ceil(math.log(L)))
        sample = torch.randint(L, (L, u))
        Q_K_sample = torch.einsum("bhle,bhlse->bhls", queries, keys[:, :, sample])
        top = (Q_K_sample.max(-1)[0] - Q_K_sample.mean(-1)).topk(u, sorted=False)[1]
        where = torch.arange(B)[:, None, None], torch.arange(H)[None, :, None], top
        attn = torch.softmax(torch.matmul(queries[where], keys.transpose(-2, -1)) / math.sqrt(D), dim=-1)
        context = values.mean(dim=-2, keepdim=True).expand(B, H, L, D).clone()
        context[where] = torch.matmul(attn, values)
        return context.transpose(2, 1).contiguous()


class AutoCorrelation(nn.Module):
    """Delays that fit best, by Fourier transforms, the same for all heads."""

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        L = queries.shape[1]
        q_fft, k_fft = (torch.fft.rfft(x.permute(0, 2, 3, 1).contiguous(), dim=-1) for x in (queries, keys))
        corr = torch.fft.irfft(q_fft * torch.conj(k_fft), n=L, dim=-1)
        weights, delays = corr.mean(dim=(0, 1, 2)).topk(int(math.log(L)) + 1)
        weights = torch.softmax(weights, dim=-1)
        return torch.stack([values.roll(-int(d), 1) * w for d, w in zip(delays, weights, strict=True)]).sum(0)


class AttentionLayer(nn.Module):
    def __init__(self, attention: nn.Module, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.inner_attention = attention
        self.query_projection = nn.Linear(d_model, d_model)
        self.key_projection = nn.Linear(d_model, d_model)
        self.value_projection = nn.Linear(d_model, d_model)
        self.out_projection = nn.Linear(d_model, d_model)
        self.n_heads = n_heads

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        B, L, _ = queries.shape
        queries = self.query_projection(queries).view(B, L, self.n_heads, -1)
        keys = self.key_projection(keys).view(B, keys.shape[1], self.n_heads, -1)
        values = self.value_projection(values).view(B, values.shape[1], self.n_heads, -1)
        return self.out_projection(self.inner_attention(queries, keys, values).view(B, L, -1))


class EncoderLayer(nn.Module):
    def __init__(self, attention: AttentionLayer, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.attention = attention
        self.conv1 = nn.Conv1d(in_channels=d_model, out_channels=d_ff, kernel_size=1)
        self.conv2 = nn.Conv1d(in_channels=d_ff, out_channels=d_model, kernel_size=1)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        x = y = self.norm1(x + self.attention(x, x, x))
        return self.norm2(x + self.conv2(F.gelu(self.conv1(y.transpose(-1, 1)))).transpose(-1, 1))


class TokenEmbedding(nn.Module):
    def __init__(self, c_in: int, d_model: int) -> None:
        super().__init__()
        self.tokenConv = nn.Conv1d(c_in, d_model, kernel_size=3, padding=1, padding_mode="circular", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokenConv(x.permute(0, 2, 1)).transpose(1, 2)


class InvertedEmbedding(nn.Module):
    def __init__(self, c_in: int, d_model: int) -> None:
        super().__init__()
        self.value_embedding = nn.Linear(c_in, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.value_embedding(x.permute(0, 2, 1))


class Forecaster(nn.Module):
    def __init__(self, attention: Callable[[], nn.Module], embedding: nn.Module, outputs: int, d_model: int = 32) -> None:
        super().__init__()
        self.enc_embedding = embedding
        self.attn_layers = nn.ModuleList([EncoderLayer(AttentionLayer(attention(), d_model, 4), d_model, 64) for _ in range(2)])
        self.norm = nn.LayerNorm(d_model)
        self.projection = nn.Linear(d_model, outputs)

    def forward(self, x_enc: Tensor) -> Tensor:
        x = self.enc_embedding(x_enc)
        for layer in self.attn_layers:
            x = layer(x)
        return self.projection(self.norm(x))


# PatchTST: names like those of bare weights, each channel on its own, a head over all patches.
class PatchAttention(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_k: int) -> None:
        super().__init__()
        self.n_heads, self.d_k = n_heads, d_k
        self.W_Q, self.W_K, self.W_V = (nn.Linear(d_model, d_k * n_heads) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(n_heads * d_k, d_model), nn.Dropout(0.0))

    def forward(self, Q: Tensor, prev: Tensor | None) -> tuple[Tensor, Tensor]:
        bs = Q.size(0)
        q_s = self.W_Q(Q).view(bs, -1, self.n_heads, self.d_k).transpose(1, 2)
        k_s = self.W_K(Q).view(bs, -1, self.n_heads, self.d_k).permute(0, 2, 3, 1)
        v_s = self.W_V(Q).view(bs, -1, self.n_heads, self.d_k).transpose(1, 2)
        scores = torch.matmul(q_s, k_s) * self.d_k**-0.5
        scores = scores if prev is None else scores + prev  # the scores of the layer before, as RealFormer has it
        output = torch.matmul(F.softmax(scores, dim=-1), v_s).transpose(1, 2).contiguous().view(bs, -1, self.n_heads * self.d_k)
        return self.to_out(output), scores.detach()


class TSTEncoderLayer(nn.Module):
    def __init__(self, d_model: int, n_heads: int, d_ff: int) -> None:
        super().__init__()
        self.self_attn = PatchAttention(d_model, n_heads, d_model // n_heads)
        self.norm_attn, self.norm_ffn = nn.BatchNorm1d(d_model), nn.BatchNorm1d(d_model)
        self.ff = nn.Sequential(nn.Linear(d_model, d_ff), nn.GELU(), nn.Dropout(0.0), nn.Linear(d_ff, d_model))

    def forward(self, src: Tensor, prev: Tensor | None) -> tuple[Tensor, Tensor]:
        src2, scores = self.self_attn(src, prev)
        src = self.norm_attn((src + src2).transpose(1, 2)).transpose(1, 2)
        return self.norm_ffn((src + self.ff(src)).transpose(1, 2)).transpose(1, 2), scores


class PatchTST(nn.Module):
    def __init__(self, patch_len: int = 8, stride: int = 4, patches: int = 5, d_model: int = 32, horizon: int = 6) -> None:
        super().__init__()
        self.patch_len, self.stride = patch_len, stride
        self.W_P = nn.Linear(patch_len, d_model)
        self.W_pos = nn.Parameter(torch.rand(patches, d_model) * 0.04 - 0.02)
        self.layers = nn.ModuleList([TSTEncoderLayer(d_model, 4, 48) for _ in range(2)])
        self.head = nn.Sequential(nn.Flatten(start_dim=-2), nn.Linear(d_model * patches, horizon))

    def forward(self, z: Tensor) -> Tensor:
        u = self.W_P(z.unfold(-1, self.patch_len, self.stride)).flatten(0, 1) + self.W_pos
        scores = None
        for layer in self.layers:
            u, scores = layer(u, scores)
        return self.head(u).unflatten(0, z.shape[:2])


_HEADS = {"*.query_projection.weight": "q:4x8", "*.key_projection.weight": "k:4x8"}
_SQUARE = {"linear", "mlp_up", "mlp_down"}


def _forecaster(name: str, attention: Callable[[], nn.Module], inverted: bool = False, lines: dict[str, str] | None = None) -> Style:
    embedding = {"enc_embedding.value_embedding.weight": {"linear", "patch_embedding", "token_embedding"}}
    convolution = {"enc_embedding.tokenConv.weight": {"first_conv", "conv", "patch_embedding"}}
    return Style(
        name,
        lambda: Forecaster(attention, InvertedEmbedding(9, 32) if inverted else TokenEmbedding(5, 32), 6 if inverted else 5),
        lambda: ((torch.randn(1, 9, 5),), {}),
        {"transformer"},
        {
            **(embedding if inverted else convolution),
            "*.query_projection.weight": {"query"},
            "*.key_projection.weight": {"key"},
            "*.value_projection.weight": {"value"},
            "*.out_projection.weight": {"attn_out"},
            "attn_layers.*.conv1.weight": {"mlp_up"},
            "attn_layers.*.conv2.weight": {"mlp_down"},
            "projection.weight": {"classifier", "lm_head"},
        },
        lines or {},
    )


STYLES: list[Style] = [
    Style(
        "temporal fusion",
        TemporalFusion,
        lambda: ((torch.randn(1, 6, 5),), {}),
        {"transformer", "hybrid", "rnn"},
        {
            "prescaler.weight": {"linear", "patch_embedding"},
            "lstm_encoder.weight_ih_l0": {"rnn_ih"},
            "lstm_encoder.weight_hh_l0": {"rnn_hh"},
            "multihead_attn.q_layers.*.weight": {"query"},
            "multihead_attn.k_layers.*.weight": {"key"},
            "multihead_attn.v_layer.weight": {"value"},
            "multihead_attn.w_h.weight": {"attn_out"},
            "pos_wise_ff.fc?.weight": _SQUARE,
            "static_enrichment.fc?.weight": _SQUARE,
            "output_layer.weight": {"classifier", "lm_head"},
        },
        {"multihead_attn.q_layers.*.weight": "q:1x8", "multihead_attn.k_layers.*.weight": "k:1x8"},
    ),
    _forecaster("informer", ProbAttention, lines=_HEADS),
    _forecaster("autoformer", AutoCorrelation),  # no head has scores of its own
    _forecaster("itransformer", FullAttention, inverted=True, lines=_HEADS),
    Style(
        "patchtst",
        PatchTST,
        lambda: ((torch.randn(2, 3, 24),), {}),
        {"transformer"},
        {
            "W_P.weight": {"patch_embedding", "linear"},
            "W_pos": {"position_embedding"},
            "*.self_attn.W_Q.weight": {"query"},
            "*.self_attn.W_K.weight": {"key"},
            "*.self_attn.W_V.weight": {"value"},
            "*.self_attn.to_out.0.weight": {"attn_out"},
            "*.ff.0.weight": {"mlp_up"},
            "*.ff.3.weight": {"mlp_down"},
            "head.1.weight": {"classifier", "lm_head"},
        },
        {"*.self_attn.W_Q.weight": "q:4x8", "*.self_attn.W_K.weight": "k:4x8"},
    ),
]
