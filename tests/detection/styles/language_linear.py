"""Attention that costs less: Linformer, Performer, linear attention by elu."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


class LinformerSelfAttention(nn.Module):
    """Keys and values are projected from all places to a few: E and F work along the sequence."""

    def __init__(self, dim: int, seq_len: int, k: int, heads: int, share_kv: bool) -> None:
        super().__init__()
        self.heads, self.dim_head, self.share_kv = heads, dim // heads, share_kv
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False) if not share_kv else None
        self.E = nn.Parameter(torch.rand(seq_len, k) - 0.5)
        self.F = nn.Parameter(torch.rand(seq_len, k) - 0.5) if not share_kv else None
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        queries, keys = self.to_q(x), self.to_k(x)
        values = keys if self.to_v is None else self.to_v(x)
        keys = torch.einsum("bnd,nk->bkd", keys, self.E[:n])
        values = torch.einsum("bnd,nk->bkd", values, (self.E if self.F is None else self.F)[:n])
        queries, keys, values = (t.reshape(b, -1, self.heads, self.dim_head).transpose(1, 2) for t in (queries, keys, values))
        attn = (torch.einsum("bhnd,bhkd->bhnk", queries, keys) * self.dim_head**-0.5).softmax(dim=-1)
        return self.to_out(torch.einsum("bhnk,bhkd->bhnd", attn, values).transpose(1, 2).reshape(b, n, d))


class FavorAttention(nn.Module):
    """Performer: random features in place of a softmax over scores."""

    projection_matrix: Tensor

    def __init__(self, dim: int, heads: int, nb_features: int = 10) -> None:
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.register_buffer("projection_matrix", torch.randn(nb_features, dim // heads))

    def features(self, data: Tensor) -> Tensor:
        data = data * data.shape[-1] ** -0.25
        dash = torch.einsum("bhid,jd->bhij", data, self.projection_matrix)
        half = data.square().sum(-1, keepdim=True) / 2
        return torch.exp(dash - half - dash.amax(-1, keepdim=True).detach()) + 1e-4

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (f(x).view(b, n, self.heads, -1).transpose(1, 2) for f in (self.to_q, self.to_k, self.to_v))
        q, k = self.features(q), self.features(k)
        out = q @ (k.mT @ v) / (q @ k.sum(-2, keepdim=True).mT)
        return self.to_out(out.transpose(1, 2).reshape(b, n, d))


class EluAttention(nn.Module):
    """Transformers are RNNs: elu + 1 in place of softmax, causal by a sum that runs along."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query_projection = nn.Linear(dim, dim)
        self.key_projection = nn.Linear(dim, dim)
        self.value_projection = nn.Linear(dim, dim)
        self.out_projection = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        N, L, _ = x.shape
        Q = F.elu(self.query_projection(x).view(N, L, self.n_heads, -1)) + 1
        K = F.elu(self.key_projection(x).view(N, L, self.n_heads, -1)) + 1
        V = self.value_projection(x).view(N, L, self.n_heads, -1)
        Z = 1 / torch.einsum("nlhd,nlhd->nlh", Q, K.cumsum(1))
        KV = torch.einsum("nlhd,nlhm->nlhdm", K, V).cumsum(1)
        return self.out_projection(torch.einsum("nlhd,nlhdm,nlh->nlhm", Q, KV, Z).reshape(N, L, -1))


class PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn, self.norm = fn, nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


class FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w1, self.act, self.w2 = nn.Linear(dim, dim * 4), nn.GELU(), nn.Linear(dim * 4, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(self.act(self.w1(x)))


class EfficientLM(nn.Module):
    def __init__(self, *attention: nn.Module, dim: int = 40, num_tokens: int = 57, max_seq_len: int = 6) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.pos_emb = nn.Embedding(max_seq_len, dim)
        self.layers = nn.ModuleList([nn.ModuleList([PreNorm(dim, a), PreNorm(dim, FeedForward(dim))]) for a in attention])
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_tokens))

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_emb(x) + self.pos_emb(torch.arange(x.shape[1]))
        for attend, feed in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = x + attend(x)
            x = x + feed(x)
        return self.to_logits(x)


_ROLES = {
    "token_emb.weight": {"token_embedding"},
    "pos_emb.weight": {"position_embedding"},
    "*.fn.w1.weight": {"mlp_up"},
    "*.fn.w2.weight": {"mlp_down"},
    "to_logits.1.weight": {"lm_head"},
}
_PROJECTIONS = {"*.to_q.weight": {"query"}, "*.to_k.weight": {"key"}, "*.to_v.weight": {"value"}, "*.to_out.weight": {"attn_out"}}
_ALONG = {"attn_other", "token_mix", "other", "linear"}


def _tokens() -> tuple[tuple[Tensor], dict[str, Tensor]]:
    return (torch.randint(57, (2, 6)),), {}


STYLES: list[Style] = [
    Style(
        "linformer",
        lambda: EfficientLM(*(LinformerSelfAttention(40, 6, 3, 5, share_kv=False) for _ in range(2))),
        _tokens,
        {"transformer"},
        {**_ROLES, **_PROJECTIONS, "*.fn.E": _ALONG, "*.fn.F": _ALONG},
        {"*.to_q.weight": "q:5x8", "*.to_k.weight": "k:5x8"},
    ),
    Style(
        "linformer, keys are the values too",
        lambda: EfficientLM(*(LinformerSelfAttention(40, 6, 3, 5, share_kv=True) for _ in range(2))),
        _tokens,
        {"transformer"},
        {
            **_ROLES,
            "*.to_q.weight": {"query"},
            "*.to_k.weight": {"key", "qkv"},
            "*.to_out.weight": {"attn_out"},
            "*.fn.E": _ALONG,
        },
        {"*.to_q.weight": "q:5x8", "*.to_k.weight": "k:5x8"},
    ),
    Style(
        "performer",
        lambda: EfficientLM(*(FavorAttention(40, 5) for _ in range(2))),
        _tokens,
        {"transformer"},
        {**_ROLES, **_PROJECTIONS},
    ),
    Style(
        "linear attention by elu",
        lambda: EfficientLM(*(EluAttention(40, 5) for _ in range(2))),
        _tokens,
        {"transformer"},
        {
            **_ROLES,
            "*.query_projection.weight": {"query"},
            "*.key_projection.weight": {"key"},
            "*.value_projection.weight": {"value"},
            "*.out_projection.weight": {"attn_out"},
        },
    ),
]
