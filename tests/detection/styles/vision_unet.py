"""UNets of guided diffusion and of latent diffusion: lists of blocks, each told which of its layers take the time or a text."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    freqs = torch.exp(-math.log(10000) * torch.arange(dim // 2) / (dim // 2))
    args = timesteps[:, None].float() * freqs[None]
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


def zero_module(module: nn.Module) -> nn.Module:
    for p in module.parameters():
        p.detach().zero_()
    return module


class ResBlock(nn.Module):
    def __init__(self, channels: int, emb_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(nn.GroupNorm(4, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, 2 * out_channels))
        out = zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.out_layers = nn.Sequential(nn.GroupNorm(4, out_channels), nn.SiLU(), nn.Dropout(0.0), out)
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        scale, shift = self.emb_layers(emb)[..., None, None].chunk(2, dim=1)
        h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        return self.skip_connection(x) + h


# Guided diffusion: two orders of the rows of qkv, an older one that cuts heads first and a newer one.
class QKVAttentionLegacy(nn.Module):
    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        bs, width, length = qkv.shape
        ch = width // (3 * self.n_heads)
        q, k, v = qkv.reshape(bs * self.n_heads, ch * 3, length).split(ch, dim=1)
        scale = 1 / math.sqrt(math.sqrt(ch))
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q * scale, k * scale).float(), dim=-1)
        return torch.einsum("bts,bcs->bct", weight, v).reshape(bs, -1, length)


class QKVAttention(nn.Module):
    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv: Tensor) -> Tensor:
        bs, width, length = qkv.shape
        ch = width // (3 * self.n_heads)
        q, k, v = qkv.chunk(3, dim=1)
        scale = 1 / math.sqrt(math.sqrt(ch))
        q, k = (q * scale).view(bs * self.n_heads, ch, length), (k * scale).view(bs * self.n_heads, ch, length)
        weight = torch.softmax(torch.einsum("bct,bcs->bts", q, k).float(), dim=-1)
        return torch.einsum("bts,bcs->bct", weight, v.reshape(bs * self.n_heads, ch, length)).reshape(bs, -1, length)


class AttentionBlock(nn.Module):
    def __init__(self, channels: int, num_heads: int, use_new_attention_order: bool) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.qkv = nn.Conv1d(channels, channels * 3, 1)
        self.attention = QKVAttention(num_heads) if use_new_attention_order else QKVAttentionLegacy(num_heads)
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        h = self.proj_out(self.attention(self.qkv(self.norm(x))))
        return (x + h).reshape(b, c, *spatial)


# Latent diffusion: transformer blocks that also look at a context, such as a text.
class CrossAttention(nn.Module):
    def __init__(self, query_dim: int, context_dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        inner_dim = dim_head * heads
        self.scale, self.heads = dim_head**-0.5, heads
        self.to_q = nn.Linear(query_dim, inner_dim, bias=False)
        self.to_k = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_v = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner_dim, query_dim), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        h, b = self.heads, len(x)
        context = x if context is None else context
        q, k, v = self.to_q(x), self.to_k(context), self.to_v(context)
        # "b n (h d) -> (b h) n d"
        q, k, v = (t.reshape(b, t.shape[1], h, -1).permute(0, 2, 1, 3).reshape(b * h, t.shape[1], -1) for t in (q, k, v))
        attn = (torch.einsum("b i d, b j d -> b i j", q, k) * self.scale).softmax(dim=-1)
        out = torch.einsum("b i j, b j d -> b i d", attn, v)
        return self.to_out(out.reshape(b, h, out.shape[1], -1).permute(0, 2, 1, 3).reshape(b, out.shape[1], -1))


class GEGLU(nn.Module):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * F.gelu(gate)


class FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Dropout(0.0), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    def __init__(self, dim: int, n_heads: int, d_head: int, context_dim: int) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, dim, n_heads, d_head)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, n_heads, d_head)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x), context=context) + x
        return self.ff(self.norm3(x)) + x


class SpatialTransformer(nn.Module):
    def __init__(self, in_channels: int, n_heads: int, d_head: int, context_dim: int) -> None:
        super().__init__()
        inner_dim = n_heads * d_head
        self.norm = nn.GroupNorm(4, in_channels)
        self.proj_in = nn.Conv2d(in_channels, inner_dim, kernel_size=1)
        self.transformer_blocks = nn.ModuleList([BasicTransformerBlock(inner_dim, n_heads, d_head, context_dim)])
        self.proj_out = zero_module(nn.Conv2d(inner_dim, in_channels, kernel_size=1))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h = self.proj_in(self.norm(x))
        tokens = h.flatten(2).transpose(1, 2)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        return self.proj_out(tokens.transpose(1, 2).reshape(h.shape)) + x


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class TimestepEmbedSequential(nn.Sequential):
    def forward(self, x: Tensor, emb: Tensor, context: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, context)
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    def __init__(self, attention: str, model_channels: int = 16, num_heads: int = 4, num_classes: int | None = None) -> None:
        super().__init__()
        c, emb = model_channels, 4 * model_channels
        self.model_channels, self.num_classes = c, num_classes

        def attend(channels: int) -> nn.Module:
            if attention == "spatial":
                return SpatialTransformer(channels, num_heads, channels // num_heads, context_dim=20)
            return AttentionBlock(channels, num_heads, use_new_attention_order=attention == "new")

        block = TimestepEmbedSequential
        self.time_embed = nn.Sequential(nn.Linear(c, emb), nn.SiLU(), nn.Linear(emb, emb))
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, emb)
        self.input_blocks = nn.ModuleList(
            [
                block(nn.Conv2d(4, c, 3, padding=1)),
                block(ResBlock(c, emb, c)),
                block(Downsample(c)),
                block(ResBlock(c, emb, 2 * c), attend(2 * c)),
            ]
        )
        self.middle_block = block(ResBlock(2 * c, emb, 2 * c), attend(2 * c), ResBlock(2 * c, emb, 2 * c))
        self.output_blocks = nn.ModuleList(
            [
                block(ResBlock(4 * c, emb, 2 * c), attend(2 * c)),
                block(ResBlock(3 * c, emb, 2 * c), attend(2 * c), Upsample(2 * c)),
                block(ResBlock(3 * c, emb, c)),
                block(ResBlock(2 * c, emb, c)),
            ]
        )
        self.out = nn.Sequential(nn.GroupNorm(4, c), nn.SiLU(), zero_module(nn.Conv2d(c, 4, 3, padding=1)))

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        hs = []
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels))
        if self.num_classes is not None:
            emb = emb + self.label_emb(y)
        h = x
        for module in self.input_blocks:
            h = module(h, emb, context)
            hs.append(h)
        h = self.middle_block(h, emb, context)
        for module in self.output_blocks:
            h = module(torch.cat([h, hs.pop()], dim=1), emb, context)
        return self.out(h)


_ROLES = {
    "time_embed.?.weight": {"time_embedding"},
    "*.emb_layers.1.weight": {"time_embedding", "modulation", "linear"},
    "*.in_layers.2.weight": {"conv"},
    "*.out_layers.3.weight": {"conv"},
    "out.2.weight": {"conv", "classifier", "lm_head"},
}
_GUIDED_ROLES = {
    **_ROLES,
    "label_emb.weight": {"token_embedding", "time_embedding", "type_embedding"},
    "*.qkv.weight": {"qkv"},
    "middle_block.1.proj_out.weight": {"attn_out"},
    "output_blocks.*.1.proj_out.weight": {"attn_out"},
}


def guided() -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    return (torch.randn(1, 4, 8, 8), torch.tensor([7])), {"y": torch.tensor([3])}


STYLES: list[Style] = [
    Style(
        "guided diffusion, heads first",
        partial(UNetModel, "legacy", num_classes=10),
        guided,
        {"diffusion_unet"},
        _GUIDED_ROLES,
        {"*.qkv.weight": "4*(q:1x8|k:1x8|v:1x8)"},
    ),
    Style(
        "guided diffusion, new order",
        partial(UNetModel, "new", num_classes=10),
        guided,
        {"diffusion_unet"},
        _GUIDED_ROLES,
        {"*.qkv.weight": "q:4x8|k:4x8|v:4x8"},
    ),
    Style(
        "latent diffusion",
        partial(UNetModel, "spatial"),
        lambda: ((torch.randn(1, 4, 8, 8), torch.tensor([7])), {"context": torch.randn(1, 5, 20)}),
        {"diffusion_unet"},
        {
            **_ROLES,
            "*.to_q.weight": {"query"},
            "*.to_k.weight": {"key"},
            "*.to_v.weight": {"value"},
            "*.to_out.0.weight": {"attn_out"},
            "*.ff.net.0.proj.weight": {"mlp_gate_up"},
            "*.ff.net.2.weight": {"mlp_down"},
            "middle_block.1.proj_*.weight": {"conv", "linear"},
        },
        {"*.to_q.weight": "q:4x8", "*.to_k.weight": "k:4x8"},
    ),
]
