"""A diffusion transformer with double and single blocks: Flux."""

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


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class FinalLayer(nn.Module):
    def __init__(self, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


# Flux: double blocks, then single blocks where one weight makes query, key, value and the MLP's hidden layer.
class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + 1e-6) * self.scale


class QKNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query_norm, self.key_norm = RMSNorm(dim), RMSNorm(dim)

    def forward(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return self.query_norm(q), self.key_norm(k)


def split_heads(qkv: Tensor, num_heads: int) -> tuple[Tensor, ...]:
    """Do what einops writes as "B L (K H D) -> K B H L D"."""
    return qkv.reshape(*qkv.shape[:2], 3, num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)


def rope_attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor) -> Tensor:
    cos, sin = pe.cos(), pe.sin()
    q, k = (
        torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
        for a, b in ((q[..., ::2], q[..., 1::2]), (k[..., ::2], k[..., 1::2]))
    )
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class FluxSelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.qkv, self.norm, self.proj = nn.Linear(dim, dim * 3), QKNorm(dim // num_heads), nn.Linear(dim, dim)


class Modulation(nn.Module):
    def __init__(self, dim: int, double: bool) -> None:
        super().__init__()
        self.multiplier = 6 if double else 3
        self.lin = nn.Linear(dim, self.multiplier * dim)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vec))[:, None, :].chunk(self.multiplier, dim=-1)


class DoubleStreamBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_hidden_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        for s in ("img", "txt"):
            self.add_module(f"{s}_mod", Modulation(dim, double=True))
            self.add_module(f"{s}_norm1", nn.LayerNorm(dim, elementwise_affine=False))
            self.add_module(f"{s}_attn", FluxSelfAttention(dim, num_heads))
            self.add_module(f"{s}_norm2", nn.LayerNorm(dim, elementwise_affine=False))
            self.add_module(f"{s}_mlp", nn.Sequential(nn.Linear(dim, mlp_hidden_dim), nn.GELU(), nn.Linear(mlp_hidden_dim, dim)))

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor) -> tuple[Tensor, Tensor]:
        streams, mods, qkvs = {"txt": txt, "img": img}, {}, []
        for s, x in streams.items():
            mods[s] = getattr(self, f"{s}_mod")(vec)
            attn = getattr(self, f"{s}_attn")
            q, k, v = split_heads(attn.qkv((1 + mods[s][1]) * getattr(self, f"{s}_norm1")(x) + mods[s][0]), self.num_heads)
            qkvs.append((*attn.norm(q, k), v))
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(*qkvs, strict=True))
        out = dict(zip(streams, rope_attention(q, k, v, pe).split([txt.shape[1], img.shape[1]], 1), strict=True))
        for s, x in streams.items():
            _, _, gate1, shift2, scale2, gate2 = mods[s]
            x = x + gate1 * getattr(self, f"{s}_attn").proj(out[s])
            streams[s] = x + gate2 * getattr(self, f"{s}_mlp")((1 + scale2) * getattr(self, f"{s}_norm2")(x) + shift2)
        return streams["img"], streams["txt"]


class SingleStreamBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, mlp_hidden_dim: int) -> None:
        super().__init__()
        self.num_heads, self.hidden_dim, self.mlp_hidden_dim = num_heads, dim, mlp_hidden_dim
        self.linear1 = nn.Linear(dim, dim * 3 + mlp_hidden_dim)
        self.linear2 = nn.Linear(dim + mlp_hidden_dim, dim)
        self.norm, self.pre_norm = QKNorm(dim // num_heads), nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = Modulation(dim, double=False)

    def forward(self, x: Tensor, vec: Tensor, pe: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(vec)
        qkv, mlp = torch.split(self.linear1((1 + scale) * self.pre_norm(x) + shift), [3 * self.hidden_dim, self.mlp_hidden_dim], dim=-1)
        q, k, v = split_heads(qkv, self.num_heads)
        q, k = self.norm(q, k)
        attn = rope_attention(q, k, v, pe)
        return x + gate * self.linear2(torch.cat((attn, F.gelu(mlp)), 2))


class MLPEmbedder(nn.Module):
    def __init__(self, in_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(in_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class Flux(nn.Module):
    def __init__(self, in_channels: int = 16, hidden_size: int = 48, num_heads: int = 6) -> None:
        super().__init__()
        self.pe_dim = hidden_size // num_heads // 2
        self.img_in, self.txt_in = nn.Linear(in_channels, hidden_size), nn.Linear(28, hidden_size)
        self.time_in, self.vector_in = MLPEmbedder(24, hidden_size), MLPEmbedder(20, hidden_size)
        self.double_blocks = nn.ModuleList([DoubleStreamBlock(hidden_size, num_heads, 2 * hidden_size) for _ in range(2)])
        self.single_blocks = nn.ModuleList([SingleStreamBlock(hidden_size, num_heads, 2 * hidden_size) for _ in range(2)])
        self.final_layer = FinalLayer(hidden_size, in_channels)

    def forward(self, img: Tensor, img_ids: Tensor, txt: Tensor, txt_ids: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        img, txt = self.img_in(img), self.txt_in(txt)
        vec = self.time_in(timestep_embedding(timesteps, 24)) + self.vector_in(y)
        ids = torch.cat((txt_ids, img_ids), dim=1)
        pe = (ids[..., None].float() * 100.0 ** (-torch.arange(self.pe_dim) / self.pe_dim)).unsqueeze(1)
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, pe)
        x = torch.cat((txt, img), 1)
        for block in self.single_blocks:
            x = block(x, vec, pe)
        return self.final_layer(x[:, txt.shape[1] :], vec)


STYLES: list[Style] = [
    Style(
        "flux",
        Flux,
        lambda: (
            (),
            {
                "img": torch.randn(1, 9, 16),
                "img_ids": torch.arange(9)[None],
                "txt": torch.randn(1, 4, 28),
                "txt_ids": torch.zeros(1, 4),
                "timesteps": torch.rand(1),
                "y": torch.randn(1, 20),
            },
        ),
        {"diffusion_transformer"},
        {
            "img_in.weight": {"linear", "patch_embedding"},
            "txt_in.weight": {"linear"},
            "time_in.*_layer.weight": {"time_embedding"},
            "vector_in.*_layer.weight": {"time_embedding", "linear", "modulation", "mlp_up", "mlp_down"},
            "double_blocks.*_attn.qkv.weight": {"qkv"},
            "double_blocks.*_attn.proj.weight": {"attn_out"},
            "double_blocks.*_mlp.0.weight": {"mlp_up"},
            "double_blocks.*_mlp.2.weight": {"mlp_down"},
            "double_blocks.*_mod.lin.weight": {"modulation"},
            "single_blocks.*.linear1.weight": {"qkv"},
            # Attention's output and the MLP's, in one matrix.
            "single_blocks.*.linear2.weight": {"attn_out", "mlp_down"},
            "single_blocks.*.modulation.lin.weight": {"modulation"},
            "final_layer.linear.weight": {"classifier", "lm_head", "linear"},
        },
        {
            "double_blocks.*_attn.qkv.weight": "q:6x8|k:6x8|v:6x8",
            "single_blocks.*.linear1.weight": "q:6x8|k:6x8|v:6x8|mlp_up:96",
        },
    ),
]
