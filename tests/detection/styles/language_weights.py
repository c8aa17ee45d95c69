"""Attention with weights of its own shapes and head orders that are not the usual ones."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


def _normal(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) * 0.2)


class BareAttention(nn.Module):
    """Bare matrices of (in, out), used as x @ W."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.d_head = num_heads, d_model // num_heads
        self.W_q, self.W_k, self.W_v, self.W_o = (_normal(d_model, d_model) for _ in range(4))

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.num_heads, self.d_head).permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        Q, K, V = self.split(x @ self.W_q), self.split(x @ self.W_k), self.split(x @ self.W_v)
        A = torch.softmax(Q @ K.transpose(-1, -2) / math.sqrt(self.d_head), dim=-1)
        return (A @ V).permute(0, 2, 1, 3).reshape(x.shape) @ self.W_o


class EinsumAttention(nn.Module):
    """A matrix for each head, as in the tools that look inside of transformers."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        d_head = d_model // num_heads
        self.W_Q, self.W_K, self.W_V = (_normal(num_heads, d_model, d_head) for _ in range(3))
        self.W_O = _normal(num_heads, d_head, d_model)
        self.b_Q, self.b_K, self.b_V = (nn.Parameter(torch.zeros(num_heads, d_head)) for _ in range(3))
        self.b_O = nn.Parameter(torch.zeros(d_model))

    def forward(self, normalized_resid_pre: Tensor) -> Tensor:
        q, k, v = (
            torch.einsum("bpm,nmh->bpnh", normalized_resid_pre, w) + b
            for w, b in ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
        )
        scores = torch.einsum("bqnh,bknh->bnqk", q, k) / self.W_Q.shape[-1] ** 0.5
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -1e5)
        z = torch.einsum("bknh,bnqk->bqnh", v, scores.softmax(-1))
        return torch.einsum("bqnh,nhm->bqm", z, self.W_O) + self.b_O


class HeadLastAttention(nn.Module):
    """The head is the fastest index of each projection."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.n_head = num_heads
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(d_model, d_model, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (f(x).view(B, T, C // self.n_head, self.n_head) for f in (self.to_q, self.to_k, self.to_v))
        weight = torch.einsum("btdh,bsdh->bhts", q, k).mul((C // self.n_head) ** -0.5).softmax(-1)
        return self.to_out(torch.einsum("bhts,bsdh->btdh", weight, v).reshape(B, T, C))


class FlaggedAttention(nn.Module):
    """One matrix in one of two orders, as a flag of the checkpoint's version says."""

    def __init__(self, d_model: int, num_heads: int, per_head: bool) -> None:
        super().__init__()
        self.num_heads, self.per_head = num_heads, per_head
        self.in_proj = nn.Linear(d_model, 3 * d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        mixed = self.in_proj(x)
        if self.per_head:
            q, k, v = mixed.view(B, T, self.num_heads, -1).transpose(1, 2).chunk(3, dim=-1)
        else:
            q, k, v = mixed.view(B, T, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, C))


class RoleLastAttention(nn.Module):
    """Query, key and value are the fastest index of one matrix."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.h = num_heads
        self.proj_in = nn.Linear(d_model, d_model * 3, bias=False)
        self.proj_out = nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.proj_in(x).view(n, t, self.h, c // self.h, 3).transpose(1, 2).unbind(-1)
        w = torch.softmax(q @ k.mT * (c // self.h) ** -0.5, -1)
        return self.proj_out((w @ v).transpose(1, 2).reshape(n, t, c))


class DiffAttention(nn.Module):
    """Differential attention: two maps of weights for each head, one taken from the other."""

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads // 2
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(embed_dim, embed_dim, bias=False) for _ in range(4))
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (_normal(self.head_dim) for _ in range(4))
        self.subln = nn.LayerNorm(2 * self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        bsz, tgt_len, _ = x.size()
        q = self.q_proj(x).view(bsz, tgt_len, 2 * self.num_heads, self.head_dim).transpose(1, 2) * self.head_dim**-0.5
        k = self.k_proj(x).view(bsz, tgt_len, 2 * self.num_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(bsz, tgt_len, self.num_heads, 2 * self.head_dim).transpose(1, 2)
        attn_weights = F.softmax(torch.matmul(q, k.transpose(-1, -2)), dim=-1).view(bsz, self.num_heads, 2, tgt_len, tgt_len)
        lambda_full = torch.exp((self.lambda_q1 * self.lambda_k1).sum()) - torch.exp((self.lambda_q2 * self.lambda_k2).sum()) + 0.8
        attn = self.subln((attn_weights[:, :, 0] - lambda_full * attn_weights[:, :, 1]) @ v) * 0.2
        return self.out_proj(attn.transpose(1, 2).reshape(bsz, tgt_len, -1))


class WeightMLP(nn.Module):
    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.W_in, self.b_in = _normal(d_model, d_mlp), nn.Parameter(torch.zeros(d_mlp))
        self.W_out, self.b_out = _normal(d_mlp, d_model), nn.Parameter(torch.zeros(d_model))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x @ self.W_in + self.b_in) @ self.W_out + self.b_out


class Embed(nn.Module):
    def __init__(self, d_vocab: int, d_model: int) -> None:
        super().__init__()
        self.W_E = _normal(d_vocab, d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.W_E[tokens]


class PosEmbed(nn.Module):
    def __init__(self, n_ctx: int, d_model: int) -> None:
        super().__init__()
        self.W_pos = _normal(n_ctx, d_model)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.W_pos[: tokens.shape[1]].expand(tokens.shape[0], -1, -1)


class Unembed(nn.Module):
    def __init__(self, d_model: int, d_vocab: int) -> None:
        super().__init__()
        self.W_U, self.b_U = _normal(d_model, d_vocab), nn.Parameter(torch.zeros(d_vocab))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W_U + self.b_U


class DecoderBlock(nn.Module):
    def __init__(self, d_model: int, attn: nn.Module) -> None:
        super().__init__()
        self.ln1, self.attn = nn.LayerNorm(d_model), attn
        self.ln2, self.mlp = nn.LayerNorm(d_model), WeightMLP(d_model, 3 * d_model)

    def forward(self, resid_pre: Tensor) -> Tensor:
        resid_mid = resid_pre + self.attn(self.ln1(resid_pre))
        return resid_mid + self.mlp(self.ln2(resid_mid))


class DemoTransformer(nn.Module):
    def __init__(self, attention: type[nn.Module], d_model: int = 36, num_heads: int = 6, **options: bool) -> None:
        super().__init__()
        self.embed, self.pos_embed = Embed(71, d_model), PosEmbed(12, d_model)
        self.blocks = nn.ModuleList([DecoderBlock(d_model, attention(d_model, num_heads, **options)) for _ in range(2)])
        self.ln_final, self.unembed = nn.LayerNorm(d_model), Unembed(d_model, 71)

    def forward(self, tokens: Tensor) -> Tensor:
        residual = self.embed(tokens) + self.pos_embed(tokens)
        for block in self.blocks:
            residual = block(residual)
        return self.unembed(self.ln_final(residual))


_COMMON = {
    "embed.W_E": {"token_embedding"},
    "pos_embed.W_pos": {"position_embedding"},
    "blocks.*.mlp.W_in": {"mlp_up"},
    "blocks.*.mlp.W_out": {"mlp_down"},
    "unembed.W_U": {"lm_head"},
}


def _style(name: str, attention: type[nn.Module], names: str, lines: tuple[str, ...], **options: bool) -> Style:
    """The style with the names of its query, key, value and output (or of its fused one and its output)."""
    weights = [f"blocks.*.attn.{weight}" for weight in names.split()]
    roles = ("query", "key", "value", "attn_out") if len(weights) == 4 else ("qkv", "attn_out")
    return Style(
        name,
        lambda: DemoTransformer(attention, **options),
        lambda: ((torch.randint(71, (1, 5)),), {}),
        {"transformer"},
        {**_COMMON, **{weight: {role} for weight, role in zip(weights, roles, strict=True)}},
        dict(zip(weights, lines, strict=False)),
    )


_STACKED = "q:6x6|k:6x6|v:6x6"
_LINEARS = "q_proj.weight k_proj.weight v_proj.weight out_proj.weight"
STYLES: list[Style] = [
    _style("x @ W of (in, out)", BareAttention, "W_q W_k W_v W_o", ("q:6x6@1", "k:6x6@1")),
    _style("a matrix for each head", EinsumAttention, "W_Q W_K W_V W_O", ("q:6x1", "k:6x1")),
    _style("head index fastest", HeadLastAttention, "to_q.weight to_k.weight to_v.weight to_out.weight", ("q:6x6t", "k:6x6t")),
    _style("flag: stacked", FlaggedAttention, "in_proj.weight out_proj.weight", (_STACKED,), per_head=False),
    _style("flag: per head", FlaggedAttention, "in_proj.weight out_proj.weight", ("6*(q:1x6|k:1x6|v:1x6)",), per_head=True),
    _style("role index fastest", RoleLastAttention, "proj_in.weight proj_out.weight", ("6*[q,k,v]x6",)),
    _style("differential attention", DiffAttention, _LINEARS, ("q:12x3", "k:12x3")),
]
