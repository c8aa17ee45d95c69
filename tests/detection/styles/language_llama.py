"""Larger language models: LLaMA's reference, gpt-fast, DeepSeek-V3, PaLM, T5, a switch transformer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


@dataclass
class ModelArgs:
    dim: int = 48
    n_layers: int = 2
    n_heads: int = 6
    n_kv_heads: int = 2
    vocab_size: int = 67
    q_lora_rank: int = 20
    kv_lora_rank: int = 16
    qk_nope_head_dim: int = 8
    qk_rope_head_dim: int = 4
    v_head_dim: int = 8


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def precompute_freqs_cis(dim: int, end: int) -> Tensor:
    freqs = torch.outer(torch.arange(end), 10000.0 ** -(torch.arange(0, dim, 2) / dim))
    return torch.polar(torch.ones_like(freqs), freqs)


def apply_rotary_emb(x: Tensor, freqs_cis: Tensor) -> Tensor:
    x_ = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(x_ * freqs_cis[:, None]).flatten(3).type_as(x)


class Attention(nn.Module):
    """LLaMA's: four matrices, fewer heads of keys."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.n_local_heads, self.n_local_kv_heads = args.n_heads, args.n_kv_heads
        self.head_dim = args.dim // args.n_heads
        self.wq = nn.Linear(args.dim, args.n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(args.dim, args.n_kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(args.dim, args.n_kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(args.n_heads * self.head_dim, args.dim, bias=False)

    def forward(self, x: Tensor, freqs_cis: Tensor, mask: Tensor) -> Tensor:
        bsz, seqlen, _ = x.shape
        xq = apply_rotary_emb(self.wq(x).view(bsz, seqlen, self.n_local_heads, self.head_dim), freqs_cis)
        xk = apply_rotary_emb(self.wk(x).view(bsz, seqlen, self.n_local_kv_heads, self.head_dim), freqs_cis)
        xv = self.wv(x).view(bsz, seqlen, self.n_local_kv_heads, self.head_dim)
        xk, xv = (t.repeat_interleave(self.n_local_heads // self.n_local_kv_heads, dim=2).transpose(1, 2) for t in (xk, xv))
        scores = torch.matmul(xq.transpose(1, 2), xk.transpose(2, 3)) / math.sqrt(self.head_dim)
        output = torch.matmul(F.softmax((scores + mask).float(), dim=-1).type_as(xq), xv)
        return self.wo(output.transpose(1, 2).contiguous().view(bsz, seqlen, -1))


class FusedAttention(nn.Module):
    """gpt-fast's: one matrix, split at sizes that are not equal."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.n_head, self.head_dim, self.n_local_heads, self.dim = args.n_heads, args.dim // args.n_heads, args.n_kv_heads, args.dim
        self.wqkv = nn.Linear(args.dim, (args.n_heads + 2 * args.n_kv_heads) * self.head_dim, bias=False)
        self.wo = nn.Linear(args.dim, args.dim, bias=False)

    def forward(self, x: Tensor, freqs_cis: Tensor, mask: Tensor) -> Tensor:
        bsz, seqlen, _ = x.shape
        kv_size = self.n_local_heads * self.head_dim
        q, k, v = self.wqkv(x).split([self.dim, kv_size, kv_size], dim=-1)
        q = apply_rotary_emb(q.view(bsz, seqlen, self.n_head, self.head_dim), freqs_cis)
        k = apply_rotary_emb(k.view(bsz, seqlen, self.n_local_heads, self.head_dim), freqs_cis)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v.view(bsz, seqlen, self.n_local_heads, self.head_dim)))
        k, v = (t.repeat_interleave(self.n_head // self.n_local_heads, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.wo(y.transpose(1, 2).contiguous().view(bsz, seqlen, self.dim))


class MLA(nn.Module):
    """DeepSeek-V3's: queries and keys from latents, one rotated key for all heads."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.n_heads, self.kv_lora_rank, self.v_head_dim = args.n_heads, args.kv_lora_rank, args.v_head_dim
        self.nope, self.rope = args.qk_nope_head_dim, args.qk_rope_head_dim
        self.wq_a = nn.Linear(args.dim, args.q_lora_rank, bias=False)
        self.q_norm = RMSNorm(args.q_lora_rank)
        self.wq_b = nn.Linear(args.q_lora_rank, args.n_heads * (self.nope + self.rope), bias=False)
        self.wkv_a = nn.Linear(args.dim, args.kv_lora_rank + self.rope, bias=False)
        self.kv_norm = RMSNorm(args.kv_lora_rank)
        self.wkv_b = nn.Linear(args.kv_lora_rank, args.n_heads * (self.nope + self.v_head_dim), bias=False)
        self.wo = nn.Linear(args.n_heads * self.v_head_dim, args.dim, bias=False)

    def forward(self, x: Tensor, freqs_cis: Tensor, mask: Tensor) -> Tensor:
        bsz, seqlen, _ = x.shape
        freqs_cis = freqs_cis[:, : self.rope // 2]
        q = self.wq_b(self.q_norm(self.wq_a(x))).view(bsz, seqlen, self.n_heads, self.nope + self.rope)
        q_nope, q_pe = torch.split(q, [self.nope, self.rope], dim=-1)
        kv, k_pe = torch.split(self.wkv_a(x), [self.kv_lora_rank, self.rope], dim=-1)
        k_pe = apply_rotary_emb(k_pe.unsqueeze(2), freqs_cis)
        q = torch.cat([q_nope, apply_rotary_emb(q_pe, freqs_cis)], dim=-1)
        kv = self.wkv_b(self.kv_norm(kv)).view(bsz, seqlen, self.n_heads, self.nope + self.v_head_dim)
        k_nope, v = torch.split(kv, [self.nope, self.v_head_dim], dim=-1)
        k = torch.cat([k_nope, k_pe.expand(-1, -1, self.n_heads, -1)], dim=-1)
        scores = torch.einsum("bshd,bthd->bsht", q, k) * (self.nope + self.rope) ** -0.5 + mask.unsqueeze(1)
        x = torch.einsum("bsht,bthd->bshd", scores.softmax(dim=-1, dtype=torch.float32).type_as(x), v)
        return self.wo(x.flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerBlock(nn.Module):
    def __init__(self, args: ModelArgs, attention: type[nn.Module]) -> None:
        super().__init__()
        self.attention = attention(args)
        self.feed_forward = FeedForward(args.dim, 128)
        self.attention_norm, self.ffn_norm = RMSNorm(args.dim), RMSNorm(args.dim)

    def forward(self, x: Tensor, freqs_cis: Tensor, mask: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x), freqs_cis, mask)
        return h + self.feed_forward(self.ffn_norm(h))


class Transformer(nn.Module):
    def __init__(self, attention: type[nn.Module]) -> None:
        super().__init__()
        args = ModelArgs()
        self.params = args
        self.tok_embeddings = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList([TransformerBlock(args, attention) for _ in range(args.n_layers)])
        self.norm = RMSNorm(args.dim)
        self.output = nn.Linear(args.dim, args.vocab_size, bias=False)
        self.freqs_cis = precompute_freqs_cis(args.dim // args.n_heads, 32)

    def forward(self, tokens: Tensor, start_pos: int = 0) -> Tensor:
        seqlen = tokens.shape[1]
        h = self.tok_embeddings(tokens)
        mask = torch.full((seqlen, seqlen), float("-inf")).triu(1)
        for layer in self.layers:
            h = layer(h, self.freqs_cis[start_pos : start_pos + seqlen], mask)
        return self.output(self.norm(h))


# PaLM: attention and feed-forward side by side, all that they read from in one matrix, one head of keys.
class ParallelTransformerBlock(nn.Module):
    def __init__(self, dim: int, dim_head: int, heads: int, ff_mult: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        attn_inner_dim, ff_inner_dim = dim_head * heads, dim * ff_mult
        self.fused_dims = (attn_inner_dim, dim_head, dim_head, ff_inner_dim * 2)
        self.heads, self.scale = heads, dim_head**-0.5
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.fused_dims), bias=False)
        self.attn_out = nn.Linear(attn_inner_dim, dim, bias=False)
        self.ff_out = nn.Sequential(nn.SiLU(), nn.Linear(ff_inner_dim, dim, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        q, k, v, ff = self.fused_attn_ff_proj(self.norm(x)).split(self.fused_dims, dim=-1)
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2) * self.scale
        sim = torch.einsum("b h i d, b j d -> b h i j", q, k)
        sim = sim.masked_fill(torch.ones((n, n), dtype=torch.bool).triu(1), -torch.finfo(sim.dtype).max)
        out = torch.einsum("b h i j, b j d -> b h i d", sim.softmax(dim=-1), v)
        ff, gate = ff.chunk(2, dim=-1)
        return self.attn_out(out.transpose(1, 2).flatten(2)) + self.ff_out[1](self.ff_out[0](gate) * ff)


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


def palm(dim: int = 32, num_tokens: int = 73, depth: int = 2) -> nn.Sequential:
    """As its author makes it: a Sequential with the embedding first and the tied output last."""
    blocks = [Residual(ParallelTransformerBlock(dim, 8, 4)) for _ in range(depth)]
    net = nn.Sequential(nn.Embedding(num_tokens, dim), *blocks, nn.LayerNorm(dim), nn.Linear(dim, num_tokens, bias=False))
    net[-1].weight = net[0].weight
    return net


def _tokens() -> tuple[tuple[Tensor], dict[str, Tensor]]:
    return (torch.randint(67, (1, 6)),), {}


_LLAMA = {
    "tok_embeddings.weight": {"token_embedding"},
    "output.weight": {"lm_head"},
    "layers.*.attention.wo.weight": {"attn_out"},
    "layers.*.feed_forward.w1.weight": {"mlp_gate"},
    "layers.*.feed_forward.w2.weight": {"mlp_down"},
    "layers.*.feed_forward.w3.weight": {"mlp_up"},
}


def _llama(name: str, attention: type[nn.Module], roles: dict[str, set[str]], lines: dict[str, str]) -> Style:
    return Style(name, lambda: Transformer(attention), _tokens, {"transformer"}, {**_LLAMA, **roles}, lines)


STYLES: list[Style] = [
    _llama(
        "llama reference",
        Attention,
        {"layers.*.wq.weight": {"query"}, "layers.*.wk.weight": {"key"}, "layers.*.wv.weight": {"value"}},
        {"layers.*.wq.weight": "q:6x8", "layers.*.wk.weight": "k:2x8"},
    ),
    _llama("gpt-fast", FusedAttention, {"layers.*.wqkv.weight": {"qkv"}}, {"layers.*.wqkv.weight": "q:6x8|k:2x8|v:2x8"}),
    _llama(
        "deepseek-v3 MLA",
        MLA,
        {
            # Both make latents; the second also makes the rotated part of all keys.
            "layers.*.wq_a.weight": {"attn_other", "linear", "query"},
            "layers.*.wkv_a.weight": {"attn_other", "linear", "key", "qkv"},
            "layers.*.wq_b.weight": {"query"},
            "layers.*.wkv_b.weight": {"qkv"},
        },
        {"layers.*.wq_b.weight": "q:6x12", "layers.*.wkv_b.weight": "6*(k:1x8|v:1x8)"},
    ),
    Style(
        "palm: attention and feed-forward in one matrix",
        palm,
        _tokens,
        {"transformer"},
        {
            "0.weight": {"token_embedding", "lm_head"},
            "*.fused_attn_ff_proj.weight": {"qkv"},
            "*.attn_out.weight": {"attn_out"},
            "*.ff_out.1.weight": {"mlp_down"},
        },
        {"*.fused_attn_ff_proj.weight": "q:4x8|k:1x8|v:1x8|mlp_gate_up:256"},
    ),
]
