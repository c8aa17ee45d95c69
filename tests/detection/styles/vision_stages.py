"""Vision transformers in stages: Swin, PVT, CvT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


class Mlp(nn.Module):
    def __init__(self, in_features: int, hidden_features: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(in_features, hidden_features), nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


# Swin: windows, shifted in every other block, with a table of relative biases.
class WindowAttention(nn.Module):
    relative_position_index: Tensor

    def __init__(self, dim: int, window_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window_size - 1) ** 2, num_heads) * 0.02)
        at = torch.stack(torch.meshgrid(torch.arange(window_size), torch.arange(window_size), indexing="ij")).flatten(1)
        relative = at[:, :, None] - at[:, None, :] + window_size - 1
        self.register_buffer("relative_position_index", relative[0] * (2 * window_size - 1) + relative[1])
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        B_, N, C = x.shape
        qkv = self.qkv(x).reshape(B_, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q * self.scale) @ k.transpose(-2, -1)
        attn = attn + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        if mask is not None:
            attn = (attn.view(-1, len(mask), self.num_heads, N, N) + mask[:, None]).view(-1, self.num_heads, N, N)
        return self.proj((self.softmax(attn) @ v).transpose(1, 2).reshape(B_, N, C))


def window_partition(x: Tensor, s: int) -> Tensor:
    B, H, W, C = x.shape
    return x.view(B, H // s, s, W // s, s, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, C)


class SwinBlock(nn.Module):
    def __init__(self, dim: int, resolution: int, num_heads: int, window_size: int, shift_size: int) -> None:
        super().__init__()
        self.window_size, self.shift_size = window_size, shift_size
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, window_size, num_heads)
        self.mlp = Mlp(dim, 2 * dim)
        mask = None
        if shift_size:
            ids = torch.zeros(1, resolution, resolution, 1)
            ids[:, -shift_size:] += 1
            ids[:, :, -shift_size:] += 2
            ids = window_partition(ids, window_size).squeeze(-1)
            mask = (ids[:, None] != ids[:, :, None]).float() * -100.0
        self.register_buffer("attn_mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        s = self.window_size
        windows = window_partition(torch.roll(self.norm1(x), (-self.shift_size, -self.shift_size), (1, 2)), s)
        y = self.attn(windows, self.attn_mask).view(B, H // s, W // s, s, s, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)
        x = x + torch.roll(y, (self.shift_size, self.shift_size), (1, 2))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction, self.norm = nn.Linear(4 * dim, 2 * dim, bias=False), nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
        return self.reduction(self.norm(x))


class SwinTransformer(nn.Module):
    def __init__(self, embed_dim: int = 24) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, embed_dim, 4, 4)
        self.layers = nn.ModuleList()
        for i, heads in enumerate((2, 4)):
            blocks = [SwinBlock(embed_dim * 2**i, 8 // 2**i, heads, 4 // 2**i, shift // 2**i) for shift in (0, 2)]
            self.layers.append(nn.Sequential(*blocks, PatchMerging(embed_dim) if i == 0 else nn.Identity()))
        self.norm = nn.LayerNorm(2 * embed_dim)
        self.head = nn.Linear(2 * embed_dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).permute(0, 2, 3, 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean((1, 2)))


# PVT: keys and values of a map made smaller by a strided convolution; stages as numbered attributes.
class SRAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.dim, self.num_heads, self.sr_ratio, self.scale = dim, num_heads, sr_ratio, (dim // num_heads) ** -0.5
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim * 2), nn.Linear(dim, dim)
        if sr_ratio > 1:
            self.sr, self.norm = nn.Conv2d(dim, dim, sr_ratio, sr_ratio), nn.LayerNorm(dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        if self.sr_ratio > 1:
            x_ = x.permute(0, 2, 1).reshape(B, C, H, W)
            x = self.norm(self.sr(x_).reshape(B, C, -1).permute(0, 2, 1))
        kv = self.kv(x).reshape(B, -1, 2, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        attn = ((q @ kv[0].transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attn @ kv[1]).transpose(1, 2).reshape(B, N, C))


class PVTBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = SRAttention(dim, num_heads, sr_ratio), Mlp(dim, 3 * dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = x + self.attn(self.norm1(x), H, W)
        return x + self.mlp(self.norm2(x))


class PyramidVisionTransformer(nn.Module):
    def __init__(
        self, embed_dims: tuple[int, ...] = (16, 32), heads: tuple[int, ...] = (1, 2), sr_ratios: tuple[int, ...] = (2, 1)
    ) -> None:
        super().__init__()
        for i, dim in enumerate(embed_dims):
            setattr(self, f"patch_embed{i + 1}", nn.Conv2d(embed_dims[i - 1] if i else 3, dim, 2 if i else 4, 2 if i else 4))
            setattr(self, f"pos_embed{i + 1}", nn.Parameter(torch.randn(1, (64, 16)[i], dim) * 0.02))
            setattr(self, f"block{i + 1}", nn.ModuleList([PVTBlock(dim, heads[i], sr_ratios[i]) for _ in range(2)]))
        self.norm, self.head = nn.LayerNorm(embed_dims[-1]), nn.Linear(embed_dims[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        for i in (1, 2):
            x = getattr(self, f"patch_embed{i}")(x)
            B, C, H, W = x.shape
            x = x.flatten(2).transpose(1, 2) + getattr(self, f"pos_embed{i}")
            for blk in getattr(self, f"block{i}"):
                x = blk(x, H, W)
            x = x.transpose(1, 2).reshape(B, C, H, W)
        return self.head(self.norm(x.flatten(2).mean(-1)))


# CvT: a depthwise convolution and a norm before each of the three projections.
class CvTAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, with_cls_token: bool) -> None:
        super().__init__()
        self.num_heads, self.scale, self.with_cls_token = num_heads, dim**-0.5, with_cls_token
        self.conv_proj_q = self._build_projection(dim, 1)
        self.conv_proj_k = self._build_projection(dim, 2)
        self.conv_proj_v = self._build_projection(dim, 2)
        self.proj_q, self.proj_k, self.proj_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def _build_projection(self, dim: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(dim, dim, 3, stride, 1, groups=dim, bias=False), nn.BatchNorm2d(dim), nn.Flatten(2))

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        cls_token, x = torch.split(x, [int(self.with_cls_token), h * w], 1)
        x = x.transpose(1, 2).unflatten(2, (h, w))
        q, k, v = (torch.cat((cls_token, f(x).transpose(1, 2)), 1) for f in (self.conv_proj_q, self.conv_proj_k, self.conv_proj_v))
        q, k, v = (
            f(t).unflatten(2, (self.num_heads, -1)).transpose(1, 2) for f, t in ((self.proj_q, q), (self.proj_k, k), (self.proj_v, v))
        )
        attn_score = torch.einsum("bhlk,bhtk->bhlt", [q, k]) * self.scale
        x = torch.einsum("bhlt,bhtv->bhlv", [F.softmax(attn_score, dim=-1), v])
        return self.proj(x.transpose(1, 2).flatten(2))


class CvTBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, with_cls_token: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = CvTAttention(dim, num_heads, with_cls_token), Mlp(dim, 2 * dim)

    def forward(self, x: Tensor, h: int, w: int) -> Tensor:
        x = x + self.attn(self.norm1(x), h, w)
        return x + self.mlp(self.norm2(x))


class CvTStage(nn.Module):
    def __init__(self, in_chans: int, dim: int, num_heads: int, patch: int, with_cls_token: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, patch, patch // 2 + 1, patch // 2)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02) if with_cls_token else None
        self.blocks = nn.ModuleList([CvTBlock(dim, num_heads, with_cls_token) for _ in range(2)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.proj(x)
        h, w = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1)
        for blk in self.blocks:
            x = blk(x, h, w)
        n = int(self.cls_token is not None)
        return x[:, n:].transpose(1, 2).unflatten(2, (h, w)), x[:, :n]


class ConvolutionalVisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stage0, self.stage1 = CvTStage(3, 16, 1, 7, False), CvTStage(16, 48, 3, 3, True)
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.stage0(x)
        _, cls_tokens = self.stage1(x)
        return self.head(self.norm(cls_tokens).squeeze(1))


def image() -> tuple[tuple[Tensor], dict[str, Tensor]]:
    return (torch.randn(2, 3, 32, 32),), {}


STYLES: list[Style] = [
    Style(
        "swin",
        SwinTransformer,
        image,
        {"transformer"},
        {
            "patch_embed.weight": {"patch_embedding"},
            "*.relative_position_bias_table": {"position_embedding"},
            "*.attn.qkv.weight": {"qkv"},
            "*.attn.proj.weight": {"attn_out"},
            "*.mlp.fc1.weight": {"mlp_up"},
            "*.mlp.fc2.weight": {"mlp_down"},
            "head.weight": {"classifier"},
        },
        {"layers.0.*.qkv.weight": "q:2x12|k:2x12|v:2x12", "layers.1.*.qkv.weight": "q:4x12|k:4x12|v:4x12"},
    ),
    Style(
        "pvt",
        PyramidVisionTransformer,
        image,
        {"transformer"},
        {
            "patch_embed1.weight": {"patch_embedding"},
            "pos_embed?": {"position_embedding"},
            "block?.*.attn.q.weight": {"query"},
            "block?.*.attn.kv.weight": {"qkv"},
            "block?.*.attn.proj.weight": {"attn_out"},
            "block?.*.attn.sr.weight": {"conv", "attn_other", "patch_embedding"},
            "block?.*.mlp.fc1.weight": {"mlp_up"},
            "block?.*.mlp.fc2.weight": {"mlp_down"},
            "head.weight": {"classifier"},
        },
        {
            "block1.*.attn.q.weight": "q:1x16",
            "block1.*.attn.kv.weight": "k:1x16|v:1x16",
            "block2.*.attn.q.weight": "q:2x16",
            "block2.*.attn.kv.weight": "k:2x16|v:2x16",
        },
    ),
    Style(
        "cvt",
        ConvolutionalVisionTransformer,
        image,
        {"transformer", "hybrid"},
        {
            "*.attn.conv_proj_?.0.weight": {"conv_dw"},
            "*.attn.proj_q.weight": {"query"},
            "*.attn.proj_k.weight": {"key"},
            "*.attn.proj_v.weight": {"value"},
            "*.attn.proj.weight": {"attn_out"},
            "*.mlp.fc1.weight": {"mlp_up"},
            "*.mlp.fc2.weight": {"mlp_down"},
            "head.weight": {"classifier"},
        },
        {
            "stage0.*.proj_q.weight": "q:1x16",
            "stage0.*.proj_k.weight": "k:1x16",
            "stage1.*.proj_q.weight": "q:3x16",
            "stage1.*.proj_k.weight": "k:3x16",
        },
    ),
]
