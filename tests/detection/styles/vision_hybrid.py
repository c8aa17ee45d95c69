"""Convolutions and attention in one network: MobileViT, BoTNet, Restormer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# MobileViT: a local convolution, then attention over the places at the same offset of all patches.
class ConvLayer(nn.Module):
    def __init__(self, i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1, use_act: bool = True) -> None:
        super().__init__()
        block = nn.Sequential()
        block.add_module("conv", nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=False))
        block.add_module("norm", nn.BatchNorm2d(o))
        if use_act:
            block.add_module("act", nn.SiLU())
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class InvertedResidual(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        block = nn.Sequential()
        block.add_module("exp_1x1", ConvLayer(i, 2 * i, 1))
        block.add_module("conv_3x3", ConvLayer(2 * i, 2 * i, 3, stride, groups=2 * i))
        block.add_module("red_1x1", ConvLayer(2 * i, o, 1, use_act=False))
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class MultiHeadAttention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(embed_dim, 3 * embed_dim)
        self.out_proj = nn.Linear(embed_dim, embed_dim)
        self.head_dim = embed_dim // num_heads
        self.scaling = self.head_dim**-0.5
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        b_sz, n_patches, _ = x.shape
        qkv = self.qkv_proj(x).reshape(b_sz, n_patches, 3, self.num_heads, -1)
        qkv = qkv.transpose(1, 3).contiguous()
        query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        attn = F.softmax(torch.matmul(query * self.scaling, key.transpose(-1, -2)), dim=-1)
        return self.out_proj(torch.matmul(attn, value).transpose(1, 2).reshape(b_sz, n_patches, -1))


class TransformerEncoder(nn.Module):
    def __init__(self, embed_dim: int, ffn_latent_dim: int, num_heads: int) -> None:
        super().__init__()
        self.pre_norm_mha = nn.Sequential(nn.LayerNorm(embed_dim), MultiHeadAttention(embed_dim, num_heads), nn.Dropout(0.0))
        self.pre_norm_ffn = nn.Sequential(
            nn.LayerNorm(embed_dim), nn.Linear(embed_dim, ffn_latent_dim), nn.SiLU(), nn.Dropout(0.0), nn.Linear(ffn_latent_dim, embed_dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pre_norm_mha(x)
        return x + self.pre_norm_ffn(x)


class MobileViTBlock(nn.Module):
    def __init__(self, in_channels: int, transformer_dim: int, ffn_dim: int, n_blocks: int) -> None:
        super().__init__()
        self.local_rep = nn.Sequential(ConvLayer(in_channels, in_channels), nn.Conv2d(in_channels, transformer_dim, 1, bias=False))
        blocks = [TransformerEncoder(transformer_dim, ffn_dim, 4) for _ in range(n_blocks)]
        self.global_rep = nn.Sequential(*blocks, nn.LayerNorm(transformer_dim))
        self.conv_proj = ConvLayer(transformer_dim, in_channels, 1)
        self.fusion = ConvLayer(2 * in_channels, in_channels)

    def forward(self, x: Tensor) -> Tensor:
        res = x
        fm = self.local_rep(x)
        b, d, h, w = fm.shape
        patches = fm.reshape(b * d * h // 2, 2, w // 2, 2).transpose(1, 2).reshape(b, d, -1, 4).transpose(1, 3).reshape(b * 4, -1, d)
        patches = self.global_rep(patches)
        fm = patches.view(b, 4, -1, d).transpose(1, 3).reshape(b * d * h // 2, w // 2, 2, 2).transpose(1, 2).reshape(b, d, h, w)
        return self.fusion(torch.cat((res, self.conv_proj(fm)), dim=1))


class MobileViT(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.conv_1 = ConvLayer(3, 8, 3, stride=2)
        self.layer_1 = InvertedResidual(8, 16, stride=2)
        self.layer_2 = nn.Sequential(InvertedResidual(16, 24, stride=1), MobileViTBlock(24, 32, 64, n_blocks=2))
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.layer_2(self.layer_1(self.conv_1(x))))


# BoTNet: a bottleneck whose 3x3 convolution is attention with two tables of positions, rows and columns.
class MHSA(nn.Module):
    def __init__(self, n_dims: int, width: int, height: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Conv2d(n_dims, n_dims, kernel_size=1)
        self.key = nn.Conv2d(n_dims, n_dims, kernel_size=1)
        self.value = nn.Conv2d(n_dims, n_dims, kernel_size=1)
        self.rel_h = nn.Parameter(torch.randn(1, heads, n_dims // heads, 1, height))
        self.rel_w = nn.Parameter(torch.randn(1, heads, n_dims // heads, width, 1))
        self.softmax = nn.Softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        n_batch, C, width, height = x.size()
        q = self.query(x).view(n_batch, self.heads, C // self.heads, -1)
        k = self.key(x).view(n_batch, self.heads, C // self.heads, -1)
        v = self.value(x).view(n_batch, self.heads, C // self.heads, -1)
        content_content = torch.matmul(q.permute(0, 1, 3, 2), k)
        content_position = torch.matmul((self.rel_h + self.rel_w).view(1, self.heads, C // self.heads, -1).permute(0, 1, 3, 2), q)
        attention = self.softmax(content_content + content_position)
        return torch.matmul(v, attention.permute(0, 1, 3, 2)).view(n_batch, C, width, height)


class Bottleneck(nn.Module):
    def __init__(self, in_planes: int, planes: int, stride: int, mhsa: bool, resolution: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_planes, planes, 1, bias=False), nn.BatchNorm2d(planes)
        if mhsa:
            self.conv2 = nn.Sequential(MHSA(planes, resolution, resolution, 4), nn.AvgPool2d(2) if stride == 2 else nn.Identity())
        else:
            self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3, self.bn3 = nn.Conv2d(planes, planes * 2, 1, bias=False), nn.BatchNorm2d(planes * 2)
        self.shortcut = nn.Sequential(nn.Conv2d(in_planes, planes * 2, 1, stride, bias=False), nn.BatchNorm2d(planes * 2))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.shortcut(x))


class BoTNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Bottleneck(16, 16, 1, False, 16), Bottleneck(32, 16, 2, False, 16))
        self.layer2 = nn.Sequential(Bottleneck(32, 32, 2, True, 8), Bottleneck(64, 32, 1, True, 4))
        self.fc = nn.Sequential(nn.Dropout(0.3), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer2(self.layer1(out)).mean((2, 3)))


# Restormer: attention between the channels of a head, query, key and value by a 1x1 and a depthwise convolution.
class WithBiasLayerNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MDTA(nn.Module):
    def __init__(self, dim: int, num_heads: int, bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = nn.Conv2d(dim, dim * 3, kernel_size=1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(dim * 3, dim * 3, 3, 1, 1, groups=dim * 3, bias=bias)
        self.project_out = nn.Conv2d(dim, dim, kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        q, k, v = (t.reshape(b, self.num_heads, c // self.num_heads, h * w) for t in (q, k, v))
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attn = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1)
        return self.project_out((attn @ v).reshape(b, c, h, w))


class GDFN(nn.Module):
    def __init__(self, dim: int, ffn_expansion_factor: float = 2.66) -> None:
        super().__init__()
        hidden = int(dim * ffn_expansion_factor)
        self.project_in = nn.Conv2d(dim, hidden * 2, kernel_size=1, bias=False)
        self.dwconv = nn.Conv2d(hidden * 2, hidden * 2, 3, 1, 1, groups=hidden * 2, bias=False)
        self.project_out = nn.Conv2d(hidden, dim, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(x1) * x2)


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = WithBiasLayerNorm(dim), WithBiasLayerNorm(dim)
        self.attn, self.ffn = MDTA(dim, num_heads), GDFN(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Restormer(nn.Module):
    def __init__(self, dim: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 3, 1, 1, bias=False)
        self.encoder_level1 = nn.Sequential(*(TransformerBlock(dim, 1) for _ in range(2)))
        self.down1_2 = nn.Sequential(nn.Conv2d(dim, dim // 2, 3, 1, 1, bias=False), nn.PixelUnshuffle(2))
        self.latent = nn.Sequential(*(TransformerBlock(dim * 2, 2) for _ in range(2)))
        self.up2_1 = nn.Sequential(nn.Conv2d(dim * 2, dim * 4, 3, 1, 1, bias=False), nn.PixelShuffle(2))
        self.reduce_chan_level1 = nn.Conv2d(dim * 2, dim, 1, bias=False)
        self.decoder_level1 = nn.Sequential(*(TransformerBlock(dim, 1) for _ in range(2)))
        self.output = nn.Conv2d(dim, 3, 3, 1, 1, bias=False)

    def forward(self, inp_img: Tensor) -> Tensor:
        enc1 = self.encoder_level1(self.patch_embed(inp_img))
        latent = self.latent(self.down1_2(enc1))
        dec1 = self.reduce_chan_level1(torch.cat([self.up2_1(latent), enc1], 1))
        return self.output(self.decoder_level1(dec1)) + inp_img


def image() -> tuple[tuple[Tensor], dict[str, Tensor]]:
    return (torch.randn(2, 3, 32, 32),), {}


STYLES: list[Style] = [
    Style(
        "mobilevit",
        MobileViT,
        image,
        {"hybrid"},
        {
            "*.qkv_proj.weight": {"qkv"},
            "*.out_proj.weight": {"attn_out"},
            "*.pre_norm_ffn.1.weight": {"mlp_up"},
            "*.pre_norm_ffn.4.weight": {"mlp_down"},
            "layer_1.block.conv_3x3.block.conv.weight": {"conv_dw"},
            "layer_1.block.red_1x1.block.conv.weight": {"conv", "mlp_down"},
            "classifier.2.weight": {"classifier"},
        },
        {"*.qkv_proj.weight": "q:4x8|k:4x8|v:4x8"},
    ),
    Style(
        "botnet",
        BoTNet,
        image,
        {"hybrid", "cnn"},
        {
            "layer2.*.query.weight": {"query"},
            "layer2.*.key.weight": {"key"},
            "layer2.*.value.weight": {"value"},
            "layer2.*.rel_?": {"position_embedding"},
            "layer1.*.conv?.weight": {"conv"},
            "fc.1.weight": {"classifier"},
        },
        {"layer2.*.query.weight": "q:4x8", "layer2.*.key.weight": "k:4x8"},
    ),
    Style(
        "restormer",
        Restormer,
        lambda: ((torch.randn(1, 3, 16, 16),), {}),
        {"transformer", "hybrid"},
        {
            "*.attn.qkv.weight": {"qkv"},
            "*.attn.qkv_dwconv.weight": {"conv_dw", "qkv", "attn_other"},
            "*.attn.project_out.weight": {"attn_out"},
            "*.ffn.project_in.weight": {"mlp_gate_up", "conv"},
            "*.ffn.project_out.weight": {"mlp_down", "conv"},
            "output.weight": {"conv", "classifier", "lm_head"},
        },
        {
            "*coder_level1.*.attn.qkv.weight": "q:1x16|k:1x16|v:1x16",
            "latent.*.attn.qkv.weight": "q:2x16|k:2x16|v:2x16",
        },
    ),
]
