"""Attention in other shapes: windows, hashes, landmarks, slopes, shared keys, 3-D kernels, layers in one tensor, low-rank updates."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Longformer's windows: blocks of queries that see their own block and the one before.
class WindowedAttention(nn.Module):
    def __init__(self, dim: int, heads: int, window: int = 4) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.query, self.key, self.value = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.query_global, self.key_global, self.value_global = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dense = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        x = F.pad(x, (0, 0, 0, -n % self.window))
        q, k, v = (self._split(w(x)).unflatten(2, (-1, self.window)) for w in (self.query, self.key, self.value))
        k, v = (torch.cat((F.pad(t, (0, 0, 0, 0, 1, 0))[:, :, :-1], t), dim=3) for t in (k, v))
        y = (torch.softmax(q @ k.mT / math.sqrt(d // self.heads), -1) @ v).flatten(2, 3)
        first = torch.softmax(self._split(self.query_global(x[:, :1])) @ self._split(self.key_global(x)).mT, -1)
        y = torch.cat((first @ self._split(self.value_global(x)), y[:, :, 1:]), 2)
        return self.dense(y.transpose(1, 2).reshape(b, -1, d)[:, :n])


# Reformer: queries are the keys too; tokens attend within the bucket that random rotations put them into.
class LSHAttention(nn.Module):
    def __init__(self, dim: int, heads: int, buckets: int = 2) -> None:
        super().__init__()
        self.heads, self.buckets = heads, buckets
        self.toqk, self.tov, self.to_out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        qk, v = (w(x).view(b, n, self.heads, -1).transpose(1, 2) for w in (self.toqk, self.tov))
        rotated = qk @ torch.randn(qk.shape[-1], self.buckets // 2)
        buckets = torch.cat((rotated, -rotated), -1).argmax(-1)
        dots = qk @ F.normalize(qk, dim=-1).mT / math.sqrt(qk.shape[-1])
        dots = dots.masked_fill(buckets[..., None] != buckets[..., None, :], -1e5)
        return self.to_out((dots.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d))


# Nystromformer: landmarks stand between queries and keys, and a pseudo-inverse joins three softmaxes.
class NystromAttention(nn.Module):
    def __init__(self, dim: int, heads: int, landmarks: int = 3) -> None:
        super().__init__()
        self.heads, self.landmarks = heads, landmarks
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.res_conv = nn.Conv2d(heads, heads, (3, 1), padding=(1, 0), groups=heads, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.to_qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q = q * q.shape[-1] ** -0.5
        q_l, k_l = (F.adaptive_avg_pool2d(t, (self.landmarks, t.shape[-1])) for t in (q, k))
        left, middle, right = F.softmax(q @ k_l.mT, -1), F.softmax(q_l @ k_l.mT, -1), F.softmax(q_l @ k.mT, -1)
        z = middle.mT / (middle.abs().sum(-1).max() * middle.abs().sum(-2).max())
        for _ in range(4):
            z = z @ (2 * torch.eye(self.landmarks) - middle @ z)
        out = left @ z @ (right @ v) + self.res_conv(v)
        return self.to_out(out.transpose(1, 2).reshape(b, n, d))


# ALiBi: slopes in place of positions, one key and value for all heads, written with einsum.
class AlibiMQA(nn.Module):
    slopes: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, dim // heads
        self.Wqkv = nn.Linear(dim, dim + 2 * self.head_dim)
        self.out_proj = nn.Linear(dim, dim)
        self.register_buffer("slopes", 2.0 ** -torch.arange(1, heads + 1))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        q, k, v = self.Wqkv(x).split([self.heads * self.head_dim, self.head_dim, self.head_dim], dim=-1)
        q = q.unflatten(-1, (self.heads, self.head_dim))
        bias = self.slopes[:, None, None] * (torch.arange(n) - torch.arange(n)[:, None])
        scores = torch.einsum("bihd,bjd->bhij", q, k) / math.sqrt(self.head_dim) + bias
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -math.inf)
        return self.out_proj(torch.einsum("bhij,bjd->bihd", scores.softmax(-1), v).flatten(2))


# Kernels of three dimensions, as flax has them: (in, heads, head) and (heads, head, out).
class DenseGeneralAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Parameter(torch.randn(dim, heads, dim // heads) * dim**-0.5) for _ in range(3))
        self.out = nn.Parameter(torch.randn(heads, dim // heads, dim) * dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btd,dhk->bthk", x, w) for w in (self.query, self.key, self.value))
        weights = torch.softmax(torch.einsum("bthk,bshk->bhts", q, k) * q.shape[-1] ** -0.5, dim=-1)
        return torch.einsum("bthk,hkd->btd", torch.einsum("bhts,bshk->bthk", weights, v), self.out)


# Low-rank updates of frozen projections, and bottlenecks behind each sublayer.
class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear, r: int = 3, alpha: float = 6.0) -> None:
        super().__init__()
        self.base, self.scaling = base.requires_grad_(False), alpha / r
        self.lora_A = nn.Parameter(torch.randn(r, base.in_features) * 0.1)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, r))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + (x @ self.lora_A.mT @ self.lora_B.mT) * self.scaling


class AdaptedAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.v_proj = LoRALinear(nn.Linear(dim, dim)), LoRALinear(nn.Linear(dim, dim))
        self.k_proj, self.o_proj = nn.Linear(dim, dim).requires_grad_(False), nn.Linear(dim, dim).requires_grad_(False)
        self.adapter = nn.Sequential(nn.Linear(dim, 5), nn.ReLU(), nn.Linear(5, dim))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (w(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (self.q_proj, self.k_proj, self.v_proj))
        y = self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y + self.adapter(y)


class LongLM(nn.Module):
    def __init__(self, *attention: nn.Module, dim: int = 32, vocab: int = 71, places: int | None = 12) -> None:
        super().__init__()
        self.tok = nn.Embedding(vocab, dim)
        self.pos = nn.Embedding(places, dim) if places else None
        self.attn = nn.ModuleList(attention)
        self.ff = nn.ModuleList([nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 88), nn.ReLU(), nn.Linear(88, dim)) for _ in attention])
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in attention])
        self.head = nn.Linear(dim, vocab)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tok(ids)
        if self.pos is not None:
            x = x + self.pos(torch.arange(ids.shape[1]))
        for attn, ff, norm in zip(self.attn, self.ff, self.norms, strict=True):
            x = x + attn(norm(x))
            x = x + ff(x)
        return self.head(x)


# All layers' weights in one tensor each, as a scan over layers has them.
class ScannedTransformer(nn.Module):
    def __init__(self, layers: int = 3, dim: int = 32, heads: int = 4, vocab: int = 59) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(vocab, dim)
        self.wq, self.wk, self.wv, self.wo = (nn.Parameter(torch.randn(layers, dim, dim) * dim**-0.5) for _ in range(4))
        self.w_in, self.w_out = nn.Parameter(torch.randn(layers, dim, 72) * 0.1), nn.Parameter(torch.randn(layers, 72, dim) * 0.1)
        self.scale = nn.Parameter(torch.ones(layers, 2, dim))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        for wq, wk, wv, wo, w_in, w_out, scale in zip(self.wq, self.wk, self.wv, self.wo, self.w_in, self.w_out, self.scale, strict=True):
            h = F.normalize(x, dim=-1) * scale[0]
            q, k, v = ((h @ w).unflatten(-1, (self.heads, -1)).transpose(1, 2) for w in (wq, wk, wv))
            x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2) @ wo
            x = x + F.gelu(F.normalize(x, dim=-1) * scale[1] @ w_in) @ w_out
        return x @ self.embedding.weight.T


_LM = {
    "tok.weight": {"token_embedding"},
    "ff.*.1.weight": {"mlp_up"},
    "ff.*.3.weight": {"mlp_down"},
    "head.weight": {"lm_head"},
}


def _lm(name: str, attention: type[nn.Module], roles: dict[str, set[str]], lines: dict[str, str], places: int | None = 12) -> Style:
    return Style(
        name,
        lambda: LongLM(*(attention(32, 4) for _ in range(2)), places=places),
        lambda: ((torch.randint(71, (1, 7)),), {}),
        {"transformer"},
        {**_LM, **({"pos.weight": {"position_embedding"}} if places else {}), **roles},
        lines,
    )


STYLES: list[Style] = [
    _lm(
        "longformer",
        WindowedAttention,
        {"*.query*.weight": {"query"}, "*.key*.weight": {"key"}, "*.value*.weight": {"value"}, "*.dense.weight": {"attn_out"}},
        {"*.query*.weight": "q:4x8", "*.key*.weight": "k:4x8"},
    ),
    _lm(
        "reformer",
        LSHAttention,
        {"*.toqk.weight": {"qkv", "query", "key"}, "*.tov.weight": {"value"}, "*.to_out.weight": {"attn_out"}},
        {},  # a line makes a query and a key at once
    ),
    _lm(
        "nystromformer",
        NystromAttention,
        {"*.to_qkv.weight": {"qkv"}, "*.res_conv.weight": {"conv_dw"}, "*.to_out.weight": {"attn_out"}},
        {"*.to_qkv.weight": "q:4x8|k:4x8|v:4x8"},
    ),
    _lm(
        "alibi, one key for all heads",
        AlibiMQA,
        {"*.Wqkv.weight": {"qkv"}, "*.out_proj.weight": {"attn_out"}},
        {"*.Wqkv.weight": "q:4x8|k:1x8|v:1x8"},
        places=None,
    ),
    _lm(
        "3-D kernels (in, heads, head)",
        DenseGeneralAttention,
        {"attn.*.query": {"query"}, "attn.*.key": {"key"}, "attn.*.value": {"value"}, "attn.*.out": {"attn_out"}},
        {"attn.*.query": "q:4x1@1", "attn.*.key": "k:4x1@1"},
    ),
    _lm(
        "low-rank updates and adapters",
        AdaptedAttention,
        {
            "*.q_proj.base.weight": {"query"},
            "*.k_proj.weight": {"key"},
            "*.v_proj.base.weight": {"value"},
            "*.o_proj.weight": {"attn_out"},
            "*.lora_A": {"lora_a"},
            "*.lora_B": {"lora_b", "query", "value"},
            "*.adapter.0.weight": {"linear", "mlp_up", "mlp_down"},
            "*.adapter.2.weight": {"linear", "mlp_up", "mlp_down"},
        },
        {"*.q_proj.base.weight": "q:4x8", "*.k_proj.weight": "k:4x8"},
    ),
    Style(
        "all layers in one tensor",
        ScannedTransformer,
        lambda: ((torch.randint(59, (1, 6)),), {}),
        {"transformer"},
        {
            "embedding.weight": {"token_embedding", "lm_head"},
            "wq": {"query"},
            "wk": {"key"},
            "wv": {"value"},
            "wo": {"attn_out"},
            "w_in": {"mlp_up"},
            "w_out": {"mlp_down"},
        },
        {"wq": "q:4x8@2", "wk": "k:4x8@2"},
    ),
]
