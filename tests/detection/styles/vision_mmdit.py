"""A diffusion transformer with two streams: MMDiT (Stable Diffusion 3)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    freqs = torch.exp(-math.log(10000) * torch.arange(dim // 2) / (dim // 2))
    args = t[:, None].float() * freqs
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


# MMDiT: no module is an attention by itself; a function takes query, key and value of both streams.
class SelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, pre_only: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, dim * 3)
        if not pre_only:
            self.proj = nn.Linear(dim, dim)

    def pre_attention(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).reshape(x.shape[0], x.shape[1], 3, -1, self.head_dim).movedim(2, 0)
        return q.flatten(2), k.flatten(2), v.flatten(2)

    def post_attention(self, x: Tensor) -> Tensor:
        return self.proj(x)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class DismantledBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, pre_only: bool) -> None:
        super().__init__()
        self.pre_only = pre_only
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False)
        self.attn = SelfAttention(dim, num_heads, pre_only)
        if not pre_only:
            self.norm2 = nn.LayerNorm(dim, elementwise_affine=False)
            self.mlp = Mlp(dim, 4 * dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, (2 if pre_only else 6) * dim))

    def pre_attention(self, x: Tensor, c: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, ...]]:
        shift, scale, *rest = self.adaLN_modulation(c).chunk(2 if self.pre_only else 6, dim=1)
        return self.attn.pre_attention(modulate(self.norm1(x), shift, scale)), (x, *rest)

    def post_attention(self, attn: Tensor, x: Tensor, gate_msa: Tensor, shift_mlp: Tensor, scale_mlp: Tensor, gate_mlp: Tensor) -> Tensor:
        x = x + gate_msa[:, None] * self.attn.post_attention(attn)
        return x + gate_mlp[:, None] * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    b, _, dim = q.shape
    q, k, v = (t.view(b, -1, heads, dim // heads).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, -1, dim)


class JointBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, pre_only: bool) -> None:
        super().__init__()
        self.context_block = DismantledBlock(dim, num_heads, pre_only)
        self.x_block = DismantledBlock(dim, num_heads, pre_only=False)

    def forward(self, context: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        context_qkv, context_rest = self.context_block.pre_attention(context, c)
        x_qkv, x_rest = self.x_block.pre_attention(x, c)
        q, k, v = (torch.cat(pair, dim=1) for pair in zip(context_qkv, x_qkv, strict=True))
        attn = attention(q, k, v, self.x_block.attn.num_heads)
        n = context_qkv[0].shape[1]
        if not self.context_block.pre_only:
            context = self.context_block.post_attention(attn[:, :n], *context_rest)
        return context, self.x_block.post_attention(attn[:, n:], *x_rest)


class Embedder(nn.Module):
    def __init__(self, input_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(input_dim, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class FinalLayer(nn.Module):
    def __init__(self, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class PatchEmbed(nn.Module):
    def __init__(self, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class MMDiT(nn.Module):
    def __init__(self, in_channels: int = 4, hidden_size: int = 32, num_heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.x_embedder = PatchEmbed(in_channels, hidden_size)
        self.t_embedder, self.y_embedder = Embedder(24, hidden_size), Embedder(20, hidden_size)
        self.context_embedder = nn.Linear(28, hidden_size)
        self.register_buffer("pos_embed", torch.randn(1, 16, hidden_size))
        self.joint_blocks = nn.ModuleList([JointBlock(hidden_size, num_heads, pre_only=i == depth - 1) for i in range(depth)])
        self.final_layer = FinalLayer(hidden_size, 4 * in_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, context: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        x = self.x_embedder(x) + self.pos_embed
        c = self.t_embedder(timestep_embedding(t, 24)) + self.y_embedder(y)
        context = self.context_embedder(context)
        for block in self.joint_blocks:
            context, x = block(context, x, c=c)
        return F.pixel_shuffle(self.final_layer(x, c).transpose(1, 2).unflatten(2, (h // 2, w // 2)), 2)


STYLES: list[Style] = [
    Style(
        "mmdit",
        MMDiT,
        lambda: ((torch.randn(1, 4, 8, 8), torch.rand(1), torch.randn(1, 20), torch.randn(1, 3, 28)), {}),
        {"diffusion_transformer"},
        {
            "x_embedder.proj.weight": {"patch_embedding"},
            "t_embedder.mlp.?.weight": {"time_embedding"},
            "y_embedder.mlp.?.weight": {"time_embedding", "linear", "modulation", "mlp_up", "mlp_down"},
            "context_embedder.weight": {"linear"},
            "joint_blocks.*.attn.qkv.weight": {"qkv"},
            "joint_blocks.*.attn.proj.weight": {"attn_out"},
            "joint_blocks.*.mlp.fc1.weight": {"mlp_up"},
            "joint_blocks.*.mlp.fc2.weight": {"mlp_down"},
            "*.adaLN_modulation.1.weight": {"modulation"},
            "final_layer.linear.weight": {"classifier", "lm_head", "linear"},
        },
        {"joint_blocks.*.attn.qkv.weight": "q:4x8|k:4x8|v:4x8"},
    ),
]
