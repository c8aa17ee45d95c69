"""Pictures, volumes of organs, people, clouds, flow, depth and words in scenes; pictures made; pictures with text."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# EfficientNet, as the first port to PyTorch had it: underscores before all names, padding like TensorFlow's.
class Conv2dSame(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        (ih, iw), (kh, kw), (sh, sw) = input.shape[-2:], self.weight.shape[-2:], self.stride
        pad_h, pad_w = max((math.ceil(ih / sh) - 1) * sh + kh - ih, 0), max((math.ceil(iw / sw) - 1) * sw + kw - iw, 0)
        x = F.pad(input, [pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class SwishFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, i: Tensor) -> Tensor:
        ctx.save_for_backward(i)
        return i * torch.sigmoid(i)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Tensor:
        (i,) = ctx.saved_tensors
        s = torch.sigmoid(i)
        return grad_output * (s * (1 + i * (1 - s)))


class MemoryEfficientSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return SwishFunction.apply(x)


class MBConvBlock(nn.Module):
    def __init__(self, inp: int, final_oup: int, kernel_size: int, stride: int, expand_ratio: int, se_ratio: float = 0.25) -> None:
        super().__init__()
        self.id_skip, self.expand_ratio = stride == 1 and inp == final_oup, expand_ratio
        oup = inp * expand_ratio
        if expand_ratio != 1:
            self._expand_conv = Conv2dSame(inp, oup, kernel_size=1, bias=False)
            self._bn0 = nn.BatchNorm2d(oup, momentum=0.01, eps=1e-3)
        self._depthwise_conv = Conv2dSame(oup, oup, groups=oup, kernel_size=kernel_size, stride=stride, bias=False)
        self._bn1 = nn.BatchNorm2d(oup, momentum=0.01, eps=1e-3)
        num_squeezed_channels = max(1, int(inp * se_ratio))
        self._se_reduce = Conv2dSame(oup, num_squeezed_channels, kernel_size=1)
        self._se_expand = Conv2dSame(num_squeezed_channels, oup, kernel_size=1)
        self._project_conv = Conv2dSame(oup, final_oup, kernel_size=1, bias=False)
        self._bn2 = nn.BatchNorm2d(final_oup, momentum=0.01, eps=1e-3)
        self._swish = MemoryEfficientSwish()

    def forward(self, inputs: Tensor, drop_connect_rate: float | None = None) -> Tensor:
        x = inputs
        if self.expand_ratio != 1:
            x = self._swish(self._bn0(self._expand_conv(inputs)))
        x = self._swish(self._bn1(self._depthwise_conv(x)))
        x_squeezed = self._se_expand(self._swish(self._se_reduce(F.adaptive_avg_pool2d(x, 1))))
        x = self._bn2(self._project_conv(torch.sigmoid(x_squeezed) * x))
        if self.id_skip:
            if drop_connect_rate and self.training:
                keep_prob = 1 - drop_connect_rate
                x = x / keep_prob * torch.floor(keep_prob + torch.rand([x.shape[0], 1, 1, 1]))
            x = x + inputs
        return x


class EfficientNet(nn.Module):
    def __init__(self, num_classes: int = 11) -> None:
        super().__init__()
        self._conv_stem = Conv2dSame(3, 12, kernel_size=3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(12, momentum=0.01, eps=1e-3)
        self._blocks = nn.ModuleList([])
        for inp, oup, k, s, e, repeats in [(12, 8, 3, 1, 1, 1), (8, 14, 3, 2, 6, 2), (14, 20, 5, 2, 6, 2)]:
            for i in range(repeats):
                self._blocks.append(MBConvBlock(inp if i == 0 else oup, oup, k, s if i == 0 else 1, e))
        self._conv_head = Conv2dSame(20, 72, kernel_size=1, bias=False)
        self._bn1 = nn.BatchNorm2d(72, momentum=0.01, eps=1e-3)
        self._avg_pooling, self._dropout, self._fc = nn.AdaptiveAvgPool2d(1), nn.Dropout(0.2), nn.Linear(72, num_classes)
        self._swish = MemoryEfficientSwish()

    def extract_features(self, inputs: Tensor) -> Tensor:
        x = self._swish(self._bn0(self._conv_stem(inputs)))
        for idx, block in enumerate(self._blocks):
            x = block(x, drop_connect_rate=0.2 * float(idx) / len(self._blocks))
        return self._swish(self._bn1(self._conv_head(x)))

    def forward(self, inputs: Tensor) -> Tensor:
        x = self._avg_pooling(self.extract_features(inputs)).flatten(start_dim=1)
        return self._fc(self._dropout(x))


# Transformer in transformer: pixels of each patch attend to each other, then tell the patch; queries and keys in one layer.
class TntMlp(nn.Module):
    def __init__(self, in_features: int, hidden_features: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(in_features, hidden_features), nn.GELU(), nn.Linear(hidden_features, in_features)
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class TntAttention(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, num_heads: int, qkv_bias: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, hidden_dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qk = nn.Linear(dim, hidden_dim * 2, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qk = self.qk(x).reshape(B, N, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = qk[0], qk[1]
        v = self.v(x).reshape(B, N, self.num_heads, -1).permute(0, 2, 1, 3)
        attn = (q @ k.transpose(-2, -1)) * self.scale
        x = (attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, -1)
        return self.proj(x)


class TntBlock(nn.Module):
    def __init__(self, dim: int, in_dim: int, num_pixel: int, num_heads: int, in_num_head: int) -> None:
        super().__init__()
        self.norm_in, self.attn_in = nn.LayerNorm(in_dim), TntAttention(in_dim, in_dim, in_num_head)
        self.norm_mlp_in, self.mlp_in = nn.LayerNorm(in_dim), TntMlp(in_dim, in_dim * 4)
        self.norm1_proj, self.proj = nn.LayerNorm(in_dim), nn.Linear(in_dim * num_pixel, dim)
        self.norm_out, self.attn_out = nn.LayerNorm(dim), TntAttention(dim, dim // 2, num_heads)
        self.norm_mlp, self.mlp = nn.LayerNorm(dim), TntMlp(dim, dim * 3)

    def forward(self, pixel_embed: Tensor, patch_embed: Tensor) -> tuple[Tensor, Tensor]:
        pixel_embed = pixel_embed + self.attn_in(self.norm_in(pixel_embed))
        pixel_embed = pixel_embed + self.mlp_in(self.norm_mlp_in(pixel_embed))
        B, N, _ = patch_embed.size()
        inner = self.proj(self.norm1_proj(pixel_embed).reshape(B, N - 1, -1))
        patch_embed = torch.cat([patch_embed[:, :1], patch_embed[:, 1:] + inner], dim=1)
        patch_embed = patch_embed + self.attn_out(self.norm_out(patch_embed))
        return pixel_embed, patch_embed + self.mlp(self.norm_mlp(patch_embed))


class PixelEmbed(nn.Module):
    def __init__(self, in_chans: int, in_dim: int, patch_size: int, stride: int) -> None:
        super().__init__()
        self.in_dim, self.new_patch_size = in_dim, math.ceil(patch_size / stride)
        self.proj = nn.Conv2d(in_chans, in_dim, kernel_size=7, padding=3, stride=stride)
        self.unfold = nn.Unfold(kernel_size=self.new_patch_size, stride=self.new_patch_size)

    def forward(self, x: Tensor, pixel_pos: Tensor) -> Tensor:
        B, n = len(x), self.new_patch_size
        x = self.unfold(self.proj(x)).transpose(1, 2)
        x = x.reshape(B * x.size(1), self.in_dim, n, n) + pixel_pos
        return x.reshape(len(x), self.in_dim, -1).transpose(1, 2)


class TNT(nn.Module):
    def __init__(self, img_size: int = 24, patch_size: int = 8, dim: int = 48, in_dim: int = 12, num_classes: int = 10) -> None:
        super().__init__()
        self.pixel_embed = PixelEmbed(3, in_dim, patch_size, stride=4)
        num_patches, n = (img_size // patch_size) ** 2, self.pixel_embed.new_patch_size
        self.norm1_proj, self.proj = nn.LayerNorm(n * n * in_dim), nn.Linear(n * n * in_dim, dim)
        self.norm2_proj = nn.LayerNorm(dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.patch_pos = nn.Parameter(torch.randn(1, num_patches + 1, dim) * 0.02)
        self.pixel_pos = nn.Parameter(torch.randn(1, in_dim, n, n) * 0.02)
        self.blocks = nn.ModuleList([TntBlock(dim, in_dim, n * n, num_heads=4, in_num_head=2) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        B = x.shape[0]
        pixel_embed = self.pixel_embed(x, self.pixel_pos)
        num_patches = len(pixel_embed) // B
        patch_embed = self.norm2_proj(self.proj(self.norm1_proj(pixel_embed.reshape(B, num_patches, -1))))
        patch_embed = torch.cat((self.cls_token.expand(B, -1, -1), patch_embed), dim=1) + self.patch_pos
        for blk in self.blocks:
            pixel_embed, patch_embed = blk(pixel_embed, patch_embed)
        return self.head(self.norm(patch_embed)[:, 0])


# XCiT: attention between channels, small depthwise convolutions between places, attention of the class token at the end.
class PositionalEncodingFourier(nn.Module):
    def __init__(self, hidden_dim: int, dim: int) -> None:
        super().__init__()
        self.token_projection = nn.Conv2d(hidden_dim * 2, dim, kernel_size=1)
        self.hidden_dim = hidden_dim

    def forward(self, B: int, H: int, W: int) -> Tensor:
        y = torch.arange(1, H + 1).float().view(1, H, 1).expand(B, H, W) / (H + 1e-6) * 2 * math.pi
        x = torch.arange(1, W + 1).float().view(1, 1, W).expand(B, H, W) / (W + 1e-6) * 2 * math.pi
        dim_t = 10000 ** (2 * (torch.arange(self.hidden_dim) // 2) / self.hidden_dim)
        pos_x, pos_y = x[..., None] / dim_t, y[..., None] / dim_t
        pos_x = torch.stack((pos_x[..., 0::2].sin(), pos_x[..., 1::2].cos()), dim=4).flatten(3)
        pos_y = torch.stack((pos_y[..., 0::2].sin(), pos_y[..., 1::2].cos()), dim=4).flatten(3)
        return self.token_projection(torch.cat((pos_y, pos_x), dim=3).permute(0, 3, 1, 2))


def xcit_conv3x3(in_planes: int, out_planes: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_planes, out_planes, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(out_planes))


class ConvPatchEmbed(nn.Module):
    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            xcit_conv3x3(3, embed_dim // 4),
            nn.GELU(),
            xcit_conv3x3(embed_dim // 4, embed_dim // 2),
            nn.GELU(),
            xcit_conv3x3(embed_dim // 2, embed_dim),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])


class LPI(nn.Module):
    def __init__(self, in_features: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_features, in_features, kernel_size, padding=kernel_size // 2, groups=in_features)
        self.act, self.bn = nn.GELU(), nn.BatchNorm2d(in_features)
        self.conv2 = nn.Conv2d(in_features, in_features, kernel_size, padding=kernel_size // 2, groups=in_features)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        B, N, C = x.shape
        x = x.permute(0, 2, 1).reshape(B, C, H, W)
        x = self.conv2(self.bn(self.act(self.conv1(x))))
        return x.reshape(B, C, N).permute(0, 2, 1)


class XCA(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv, self.proj = nn.Linear(dim, dim * 3, bias=True), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = (t.transpose(-2, -1) for t in qkv)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attn = ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1)
        return self.proj((attn @ v).permute(0, 3, 1, 2).reshape(B, N, C))


class XcitClassAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3, bias=True), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn_cls = ((q[:, :, 0:1] * k).sum(dim=-1) * self.scale).softmax(dim=-1)
        cls_tkn = (attn_cls.unsqueeze(2) @ v).transpose(1, 2).reshape(B, 1, C)
        return torch.cat([self.proj(cls_tkn), x[:, 1:]], dim=1)


class ClassAttentionBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, eta: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), XcitClassAttention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), TntMlp(dim, dim * 3)
        self.gamma1, self.gamma2 = nn.Parameter(eta * torch.ones(dim)), nn.Parameter(eta * torch.ones(dim))

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x))
        x = self.norm2(x)
        cls_token = self.gamma2 * self.mlp(x[:, 0:1])
        return x + torch.cat([cls_token, x[:, 1:]], dim=1)


class XCABlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, eta: float) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), XCA(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), TntMlp(dim, dim * 3)
        self.norm3, self.local_mp = nn.LayerNorm(dim), LPI(dim)
        self.gamma1, self.gamma2 = nn.Parameter(eta * torch.ones(dim)), nn.Parameter(eta * torch.ones(dim))
        self.gamma3 = nn.Parameter(eta * torch.ones(dim))

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = x + self.gamma1 * self.attn(self.norm1(x))
        x = x + self.gamma3 * self.local_mp(self.norm3(x), H, W)
        return x + self.gamma2 * self.mlp(self.norm2(x))


class XCiT(nn.Module):
    def __init__(self, embed_dim: int = 40, num_heads: int = 4, num_classes: int = 9) -> None:
        super().__init__()
        self.patch_embed = ConvPatchEmbed(embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.blocks = nn.ModuleList([XCABlock(embed_dim, num_heads, 1.0) for _ in range(2)])
        self.cls_attn_blocks = nn.ModuleList([ClassAttentionBlock(embed_dim, num_heads, 1.0) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(embed_dim), nn.Linear(embed_dim, num_classes)
        self.pos_embeder = PositionalEncodingFourier(16, embed_dim)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        B = x.shape[0]
        x, (Hp, Wp) = self.patch_embed(x)
        x = x + self.pos_embeder(B, Hp, Wp).reshape(B, -1, x.shape[1]).permute(0, 2, 1)
        for blk in self.blocks:
            x = blk(x, Hp, Wp)
        x = torch.cat((self.cls_token.expand(B, -1, -1), x), dim=1)
        for blk in self.cls_attn_blocks:
            x = blk(x, Hp, Wp)
        return self.head(self.norm(x)[:, 0])


# NAFNet: pictures cleaned without activations, halves of the channels multiplied instead.
class LayerNorm2d(nn.Module):
    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)))
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels)))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mu = x.mean(1, keepdim=True)
        y = (x - mu) / ((x - mu).pow(2).mean(1, keepdim=True) + self.eps).sqrt()
        return self.weight.view(1, -1, 1, 1) * y + self.bias.view(1, -1, 1, 1)


class SimpleGate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return x1 * x2


class NAFBlock(nn.Module):
    def __init__(self, c: int, DW_Expand: int = 2, FFN_Expand: int = 2) -> None:
        super().__init__()
        dw_channel, ffn_channel = c * DW_Expand, FFN_Expand * c
        self.conv1 = nn.Conv2d(c, dw_channel, kernel_size=1, padding=0, stride=1, groups=1, bias=True)
        self.conv2 = nn.Conv2d(dw_channel, dw_channel, kernel_size=3, padding=1, stride=1, groups=dw_channel, bias=True)
        self.conv3 = nn.Conv2d(dw_channel // 2, c, kernel_size=1, padding=0, stride=1, groups=1, bias=True)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(dw_channel // 2, dw_channel // 2, kernel_size=1, bias=True))
        self.sg = SimpleGate()
        self.conv4 = nn.Conv2d(c, ffn_channel, kernel_size=1, padding=0, stride=1, groups=1, bias=True)
        self.conv5 = nn.Conv2d(ffn_channel // 2, c, kernel_size=1, padding=0, stride=1, groups=1, bias=True)
        self.norm1, self.norm2 = LayerNorm2d(c), LayerNorm2d(c)
        self.beta = nn.Parameter(torch.zeros((1, c, 1, 1)), requires_grad=True)
        self.gamma = nn.Parameter(torch.zeros((1, c, 1, 1)), requires_grad=True)

    def forward(self, inp: Tensor) -> Tensor:
        x = self.sg(self.conv2(self.conv1(self.norm1(inp))))
        x = self.conv3(x * self.sca(x))
        y = inp + x * self.beta
        x = self.conv5(self.sg(self.conv4(self.norm2(y))))
        return y + x * self.gamma


class NAFNet(nn.Module):
    def __init__(self, img_channel: int = 3, width: int = 12, middle_blk_num: int = 2) -> None:
        super().__init__()
        self.intro = nn.Conv2d(img_channel, width, kernel_size=3, padding=1)
        self.ending = nn.Conv2d(width, img_channel, kernel_size=3, padding=1)
        self.encoders, self.decoders, self.middle_blks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.ups, self.downs = nn.ModuleList(), nn.ModuleList()
        chan = width
        for num in [1, 1]:
            self.encoders.append(nn.Sequential(*[NAFBlock(chan) for _ in range(num)]))
            self.downs.append(nn.Conv2d(chan, 2 * chan, 2, 2))
            chan = chan * 2
        self.middle_blks = nn.Sequential(*[NAFBlock(chan) for _ in range(middle_blk_num)])
        for num in [1, 1]:
            self.ups.append(nn.Sequential(nn.Conv2d(chan, chan * 2, 1, bias=False), nn.PixelShuffle(2)))
            chan = chan // 2
            self.decoders.append(nn.Sequential(*[NAFBlock(chan) for _ in range(num)]))
        self.padder_size = 2 ** len(self.encoders)

    def forward(self, inp: Tensor) -> Tensor:
        _, _, H, W = inp.shape
        inp = F.pad(inp, (0, -W % self.padder_size, 0, -H % self.padder_size))
        x, encs = self.intro(inp), []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            encs.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for decoder, up, enc_skip in zip(self.decoders, self.ups, encs[::-1], strict=True):
            x = decoder(up(x) + enc_skip)
        return (self.ending(x) + inp)[:, :, :H, :W]


# ESRGAN's generator: dense blocks in residual blocks in a trunk.
class ResidualDenseBlock_5C(nn.Module):
    def __init__(self, nf: int, gc: int, bias: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(nf, gc, 3, 1, 1, bias=bias)
        self.conv2 = nn.Conv2d(nf + gc, gc, 3, 1, 1, bias=bias)
        self.conv3 = nn.Conv2d(nf + 2 * gc, gc, 3, 1, 1, bias=bias)
        self.conv4 = nn.Conv2d(nf + 3 * gc, gc, 3, 1, 1, bias=bias)
        self.conv5 = nn.Conv2d(nf + 4 * gc, nf, 3, 1, 1, bias=bias)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.lrelu(self.conv1(x))
        x2 = self.lrelu(self.conv2(torch.cat((x, x1), 1)))
        x3 = self.lrelu(self.conv3(torch.cat((x, x1, x2), 1)))
        x4 = self.lrelu(self.conv4(torch.cat((x, x1, x2, x3), 1)))
        return self.conv5(torch.cat((x, x1, x2, x3, x4), 1)) * 0.2 + x


class RRDB(nn.Module):
    def __init__(self, nf: int, gc: int) -> None:
        super().__init__()
        self.RDB1, self.RDB2 = ResidualDenseBlock_5C(nf, gc), ResidualDenseBlock_5C(nf, gc)
        self.RDB3 = ResidualDenseBlock_5C(nf, gc)

    def forward(self, x: Tensor) -> Tensor:
        return self.RDB3(self.RDB2(self.RDB1(x))) * 0.2 + x


def make_layer(block: Any, n_layers: int) -> nn.Sequential:
    return nn.Sequential(*[block() for _ in range(n_layers)])


class RRDBNet(nn.Module):
    def __init__(self, in_nc: int = 3, out_nc: int = 3, nf: int = 16, nb: int = 2, gc: int = 8) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(in_nc, nf, 3, 1, 1, bias=True)
        self.RRDB_trunk = make_layer(partial(RRDB, nf=nf, gc=gc), nb)
        self.trunk_conv = nn.Conv2d(nf, nf, 3, 1, 1, bias=True)
        self.upconv1, self.upconv2 = nn.Conv2d(nf, nf, 3, 1, 1, bias=True), nn.Conv2d(nf, nf, 3, 1, 1, bias=True)
        self.HRconv, self.conv_last = nn.Conv2d(nf, nf, 3, 1, 1, bias=True), nn.Conv2d(nf, out_nc, 3, 1, 1, bias=True)
        self.lrelu = nn.LeakyReLU(negative_slope=0.2, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        fea = self.conv_first(x)
        fea = fea + self.trunk_conv(self.RRDB_trunk(fea))
        fea = self.lrelu(self.upconv1(F.interpolate(fea, scale_factor=2, mode="nearest")))
        fea = self.lrelu(self.upconv2(F.interpolate(fea, scale_factor=2, mode="nearest")))
        return self.conv_last(self.lrelu(self.HRconv(fea)))


# SSD over VGG: the layers in lists, from a table of numbers and letters.
def ssd_vgg(cfg: list[int | str], i: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    in_channels = i
    for v in cfg:
        if isinstance(v, str):
            layers += [nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=v == "C")]
        else:
            layers += [nn.Conv2d(in_channels, v, kernel_size=3, padding=1), nn.ReLU(inplace=True)]
            in_channels = v
    conv6 = nn.Conv2d(in_channels, 40, kernel_size=3, padding=2, dilation=2)
    conv7 = nn.Conv2d(40, 40, kernel_size=1)
    return [*layers, nn.MaxPool2d(kernel_size=3, stride=1, padding=1), conv6, nn.ReLU(inplace=True), conv7, nn.ReLU(inplace=True)]


def ssd_add_extras(cfg: list[int | str], i: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    in_channels, flag = i, False
    for k, v in enumerate(cfg):
        if in_channels != "S":
            if v == "S":
                layers += [nn.Conv2d(in_channels, int(cfg[k + 1]), kernel_size=(1, 3)[flag], stride=2, padding=1 if flag else 0)]
            else:
                layers += [nn.Conv2d(in_channels, int(v), kernel_size=(1, 3)[flag])]
            flag = not flag
        in_channels = v  # type: ignore[assignment]
    return layers


class L2Norm(nn.Module):
    def __init__(self, n_channels: int, scale: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.full((n_channels,), float(scale))), 1e-10

    def forward(self, x: Tensor) -> Tensor:
        norm = x.pow(2).sum(dim=1, keepdim=True).sqrt() + self.eps
        return self.weight.unsqueeze(0).unsqueeze(2).unsqueeze(3) * torch.div(x, norm)


class SSD(nn.Module):
    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.vgg = nn.ModuleList(ssd_vgg([8, 8, "M", 16, 16, "C", 28, 28], 3))
        self.L2Norm = L2Norm(28, 20)
        self.extras = nn.ModuleList(ssd_add_extras([14, "S", 32, 12, "S", 24], 40))
        sources, mbox = [28, 40, 32, 24], [4, 6, 6, 4]
        self.loc = nn.ModuleList([nn.Conv2d(c, k * 4, kernel_size=3, padding=1) for c, k in zip(sources, mbox, strict=True)])
        self.conf = nn.ModuleList([nn.Conv2d(c, k * num_classes, kernel_size=3, padding=1) for c, k in zip(sources, mbox, strict=True)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        sources, loc, conf = [], [], []
        for k in range(14):
            x = self.vgg[k](x)
        sources.append(self.L2Norm(x))
        for k in range(14, len(self.vgg)):
            x = self.vgg[k](x)
        sources.append(x)
        for k, v in enumerate(self.extras):
            x = F.relu(v(x), inplace=True)
            if k % 2 == 1:
                sources.append(x)
        for x, b, c in zip(sources, self.loc, self.conf, strict=True):
            loc.append(b(x).permute(0, 2, 3, 1).contiguous())
            conf.append(c(x).permute(0, 2, 3, 1).contiguous())
        locs = torch.cat([o.view(o.size(0), -1) for o in loc], 1)
        confs = torch.cat([o.view(o.size(0), -1) for o in conf], 1)
        return locs.view(locs.size(0), -1, 4), confs.view(confs.size(0), -1, self.num_classes)


# Mask2Former: learned queries look only where their mask was before; masks are products with a map of features.
class PositionEmbeddingSine(nn.Module):
    def __init__(self, num_pos_feats: int, temperature: int = 10000) -> None:
        super().__init__()
        self.num_pos_feats, self.temperature = num_pos_feats, temperature

    def forward(self, x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[0], x.shape[2], x.shape[3])
        y_embed, x_embed = ones.cumsum(1), ones.cumsum(2)
        dim_t = self.temperature ** (2 * torch.div(torch.arange(self.num_pos_feats), 2, rounding_mode="floor") / self.num_pos_feats)
        pos_x, pos_y = x_embed[:, :, :, None] / dim_t, y_embed[:, :, :, None] / dim_t
        pos_x = torch.stack((pos_x[..., 0::2].sin(), pos_x[..., 1::2].cos()), dim=4).flatten(3)
        pos_y = torch.stack((pos_y[..., 0::2].sin(), pos_y[..., 1::2].cos()), dim=4).flatten(3)
        return torch.cat((pos_y, pos_x), dim=3).permute(0, 3, 1, 2)


class M2FSelfAttentionLayer(nn.Module):
    def __init__(self, d_model: int, nhead: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nhead)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, tgt: Tensor, query_pos: Tensor) -> Tensor:
        q = k = tgt + query_pos
        return self.norm(tgt + self.self_attn(q, k, value=tgt)[0])


class M2FCrossAttentionLayer(nn.Module):
    def __init__(self, d_model: int, nhead: int) -> None:
        super().__init__()
        self.multihead_attn = nn.MultiheadAttention(d_model, nhead)
        self.norm = nn.LayerNorm(d_model)

    def forward(self, tgt: Tensor, memory: Tensor, memory_mask: Tensor, pos: Tensor, query_pos: Tensor) -> Tensor:
        tgt2 = self.multihead_attn(query=tgt + query_pos, key=memory + pos, value=memory, attn_mask=memory_mask)[0]
        return self.norm(tgt + tgt2)


class M2FFFNLayer(nn.Module):
    def __init__(self, d_model: int, dim_feedforward: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(d_model, dim_feedforward), nn.Linear(dim_feedforward, d_model)
        self.norm, self.activation = nn.LayerNorm(d_model), F.relu

    def forward(self, tgt: Tensor) -> Tensor:
        return self.norm(tgt + self.linear2(self.activation(self.linear1(tgt))))


class M2FMLP(nn.Module):
    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        h = [hidden_dim] * (num_layers - 1)
        self.num_layers = num_layers
        self.layers = nn.ModuleList(nn.Linear(n, k) for n, k in zip([input_dim, *h], [*h, output_dim], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x)) if i < self.num_layers - 1 else layer(x)
        return x


class M2FConv(nn.Conv2d):
    def __init__(self, *args: Any, norm: nn.Module | None = None, activation: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.norm, self.activation = norm, activation

    def forward(self, input: Tensor) -> Tensor:
        x = super().forward(input)
        x = self.norm(x) if self.norm is not None else x
        return self.activation(x) if self.activation is not None else x


class M2FBackbone(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (14, 20, 26)) -> None:
        super().__init__()
        self.stem = M2FConv(3, widths[0], 7, stride=4, padding=3, bias=False, norm=nn.BatchNorm2d(widths[0]), activation=F.relu)
        self.res3 = M2FConv(widths[0], widths[1], 3, stride=2, padding=1, bias=False, norm=nn.BatchNorm2d(widths[1]), activation=F.relu)
        self.res4 = M2FConv(widths[1], widths[2], 3, stride=2, padding=1, bias=False, norm=nn.BatchNorm2d(widths[2]), activation=F.relu)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        res2 = self.stem(x)
        res3 = self.res3(res2)
        return {"res2": res2, "res3": res3, "res4": self.res4(res3)}


class M2FPixelDecoder(nn.Module):
    def __init__(self, widths: tuple[int, ...], conv_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.layer_3 = M2FConv(widths[2], conv_dim, 3, padding=1, bias=False, norm=nn.GroupNorm(4, conv_dim), activation=F.relu)
        for i in (1, 2):
            self.add_module(f"adapter_{i}", M2FConv(widths[i - 1], conv_dim, 1, bias=False, norm=nn.GroupNorm(4, conv_dim)))
            layer = M2FConv(conv_dim, conv_dim, 3, padding=1, bias=False, norm=nn.GroupNorm(4, conv_dim), activation=F.relu)
            self.add_module(f"layer_{i}", layer)
        self.mask_features = M2FConv(conv_dim, mask_dim, kernel_size=3, padding=1)

    def forward_features(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        y = self.layer_3(features["res4"])
        multi_scale = [y]
        for i, f in ((2, "res3"), (1, "res2")):
            cur_fpn = getattr(self, f"adapter_{i}")(features[f])
            y = getattr(self, f"layer_{i}")(cur_fpn + F.interpolate(y, size=cur_fpn.shape[-2:], mode="nearest"))
            multi_scale.append(y)
        return self.mask_features(y), multi_scale[:2]


class MultiScaleMaskedTransformerDecoder(nn.Module):
    def __init__(self, in_channels: int, hidden_dim: int, num_queries: int, num_classes: int, nheads: int, mask_dim: int) -> None:
        super().__init__()
        self.num_heads, self.num_layers, self.num_feature_levels = nheads, 2, 2
        self.pe_layer = PositionEmbeddingSine(hidden_dim // 2)
        self.transformer_self_attention_layers, self.transformer_cross_attention_layers = nn.ModuleList(), nn.ModuleList()
        self.transformer_ffn_layers = nn.ModuleList()
        for _ in range(self.num_layers):
            self.transformer_self_attention_layers.append(M2FSelfAttentionLayer(hidden_dim, nheads))
            self.transformer_cross_attention_layers.append(M2FCrossAttentionLayer(hidden_dim, nheads))
            self.transformer_ffn_layers.append(M2FFFNLayer(hidden_dim, 60))
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat, self.query_embed = nn.Embedding(num_queries, hidden_dim), nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(self.num_feature_levels, hidden_dim)
        self.input_proj = nn.ModuleList([M2FConv(in_channels, hidden_dim, kernel_size=1) for _ in range(self.num_feature_levels)])
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = M2FMLP(hidden_dim, hidden_dim, mask_dim, 3)

    def forward(self, x: list[Tensor], mask_features: Tensor) -> dict[str, Any]:
        src, pos, size_list = [], [], []
        for i in range(self.num_feature_levels):
            size_list.append(x[i].shape[-2:])
            pos.append(self.pe_layer(x[i]).flatten(2).permute(2, 0, 1))
            src.append((self.input_proj[i](x[i]).flatten(2) + self.level_embed.weight[i][None, :, None]).permute(2, 0, 1))
        bs = src[0].shape[1]
        query_embed = self.query_embed.weight.unsqueeze(1).repeat(1, bs, 1)
        output = self.query_feat.weight.unsqueeze(1).repeat(1, bs, 1)
        outputs_class, outputs_mask, attn_mask = self.forward_prediction_heads(output, mask_features, size_list[0])
        predictions = [(outputs_class, outputs_mask)]
        for i in range(self.num_layers):
            level_index = i % self.num_feature_levels
            attn_mask[torch.where(attn_mask.sum(-1) == attn_mask.shape[-1])] = False
            output = self.transformer_cross_attention_layers[i](output, src[level_index], attn_mask, pos[level_index], query_embed)
            output = self.transformer_self_attention_layers[i](output, query_embed)
            output = self.transformer_ffn_layers[i](output)
            next_size = size_list[(i + 1) % self.num_feature_levels]
            outputs_class, outputs_mask, attn_mask = self.forward_prediction_heads(output, mask_features, next_size)
            predictions.append((outputs_class, outputs_mask))
        aux = [{"pred_logits": a, "pred_masks": b} for a, b in predictions[:-1]]
        return {"pred_logits": predictions[-1][0], "pred_masks": predictions[-1][1], "aux_outputs": aux}

    def forward_prediction_heads(self, output: Tensor, mask_features: Tensor, size: Any) -> tuple[Tensor, Tensor, Tensor]:
        decoder_output = self.decoder_norm(output).transpose(0, 1)
        outputs_class, mask_embed = self.class_embed(decoder_output), self.mask_embed(decoder_output)
        outputs_mask = torch.einsum("bqc,bchw->bqhw", mask_embed, mask_features)
        attn_mask = F.interpolate(outputs_mask, size=size, mode="bilinear", align_corners=False)
        attn_mask = attn_mask.sigmoid().flatten(2).unsqueeze(1).repeat(1, self.num_heads, 1, 1).flatten(0, 1) < 0.5
        return outputs_class, outputs_mask, attn_mask.detach()


class MaskFormer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = M2FBackbone()
        self.sem_seg_head = nn.ModuleDict(
            {
                "pixel_decoder": M2FPixelDecoder((14, 20, 26), 24, 18),
                "predictor": MultiScaleMaskedTransformerDecoder(24, 28, num_queries=7, num_classes=6, nheads=4, mask_dim=18),
            }
        )
        self.register_buffer("pixel_mean", torch.tensor([0.48, 0.45, 0.41]).view(-1, 1, 1), False)

    def forward(self, batched_inputs: list[dict[str, Tensor]]) -> dict[str, Any]:
        images = torch.stack([x["image"] - self.pixel_mean for x in batched_inputs])
        mask_features, multi_scale_features = self.sem_seg_head["pixel_decoder"].forward_features(self.backbone(images))
        return self.sem_seg_head["predictor"](multi_scale_features, mask_features)


# Medical axial attention: along the height, then the width, with learned relative places and gates on what they say.
class AxialAttention_dynamic(nn.Module):
    flatten_index: Tensor

    def __init__(self, in_planes: int, out_planes: int, groups: int, kernel_size: int, stride: int = 1, width: bool = False) -> None:
        super().__init__()
        self.out_planes, self.groups, self.group_planes = out_planes, groups, out_planes // groups
        self.kernel_size, self.stride, self.width = kernel_size, stride, width
        self.qkv_transform = nn.Conv1d(in_planes, out_planes * 2, kernel_size=1, stride=1, padding=0, bias=False)
        self.bn_qkv = nn.BatchNorm1d(out_planes * 2)
        self.bn_similarity, self.bn_output = nn.BatchNorm2d(groups * 3), nn.BatchNorm1d(out_planes * 2)
        self.f_qr, self.f_kr = nn.Parameter(torch.tensor(0.1), requires_grad=False), nn.Parameter(torch.tensor(0.1), requires_grad=False)
        self.f_sve, self.f_sv = nn.Parameter(torch.tensor(0.1), requires_grad=False), nn.Parameter(torch.tensor(1.0), requires_grad=False)
        self.relative = nn.Parameter(torch.randn(self.group_planes * 2, kernel_size * 2 - 1), requires_grad=True)
        query_index, key_index = torch.arange(kernel_size).unsqueeze(0), torch.arange(kernel_size).unsqueeze(1)
        self.register_buffer("flatten_index", (key_index - query_index + kernel_size - 1).view(-1))
        if stride > 1:
            self.pooling = nn.AvgPool2d(stride, stride=stride)
        nn.init.normal_(self.qkv_transform.weight.data, 0, math.sqrt(1.0 / in_planes))
        nn.init.normal_(self.relative, 0.0, math.sqrt(1.0 / self.group_planes))

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 1, 3) if self.width else x.permute(0, 3, 1, 2)  # N, W, C, H
        N, W, C, H = x.shape
        x = x.contiguous().view(N * W, C, H)
        qkv = self.bn_qkv(self.qkv_transform(x))
        gp = self.group_planes
        q, k, v = torch.split(qkv.reshape(N * W, self.groups, gp * 2, H), [gp // 2, gp // 2, gp], dim=2)
        all_embeddings = torch.index_select(self.relative, 1, self.flatten_index).view(gp * 2, self.kernel_size, self.kernel_size)
        q_embedding, k_embedding, v_embedding = torch.split(all_embeddings, [gp // 2, gp // 2, gp], dim=0)
        qr = torch.mul(torch.einsum("bgci,cij->bgij", q, q_embedding), self.f_qr)
        kr = torch.mul(torch.einsum("bgci,cij->bgij", k, k_embedding).transpose(2, 3), self.f_kr)
        qk = torch.einsum("bgci, bgcj->bgij", q, k)
        stacked_similarity = torch.cat([qk, qr, kr], dim=1)
        stacked_similarity = self.bn_similarity(stacked_similarity).view(N * W, 3, self.groups, H, H).sum(dim=1)
        similarity = F.softmax(stacked_similarity, dim=3)
        sv = torch.mul(torch.einsum("bgij,bgcj->bgci", similarity, v), self.f_sv)
        sve = torch.mul(torch.einsum("bgij,cij->bgci", similarity, v_embedding), self.f_sve)
        stacked_output = torch.cat([sv, sve], dim=-1).view(N * W, self.out_planes * 2, H)
        output = self.bn_output(stacked_output).view(N, W, self.out_planes, 2, H).sum(dim=-2)
        output = output.permute(0, 2, 1, 3) if self.width else output.permute(0, 2, 3, 1)
        return self.pooling(output) if self.stride > 1 else output


class AxialBlock_dynamic(nn.Module):
    expansion = 2

    def __init__(self, inplanes: int, planes: int, stride: int, kernel_size: int, groups: int = 4) -> None:
        super().__init__()
        self.conv_down = nn.Conv2d(inplanes, planes, kernel_size=1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(planes), nn.ReLU(inplace=True)
        self.hight_block = AxialAttention_dynamic(planes, planes, groups=groups, kernel_size=kernel_size)
        self.width_block = AxialAttention_dynamic(planes, planes, groups, kernel_size=kernel_size, stride=stride, width=True)
        self.conv_up = nn.Conv2d(planes, planes * self.expansion, kernel_size=1, bias=False)
        self.bn2, self.downsample = nn.BatchNorm2d(planes * self.expansion), None
        if stride != 1 or inplanes != planes * self.expansion:
            down = nn.Conv2d(inplanes, planes * self.expansion, kernel_size=1, stride=stride, bias=False)
            self.downsample = nn.Sequential(down, nn.BatchNorm2d(planes * self.expansion))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv_down(x)))
        out = self.relu(self.width_block(self.hight_block(out)))
        return self.relu(self.bn2(self.conv_up(out)) + identity)


class ResAxialAttentionUNet(nn.Module):
    def __init__(self, imgchan: int = 1, num_classes: int = 2, img_size: int = 20, inplanes: int = 18) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(imgchan, inplanes, kernel_size=7, stride=2, padding=3, bias=False)
        self.conv2 = nn.Conv2d(inplanes, 26, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1, self.bn2, self.relu = nn.BatchNorm2d(inplanes), nn.BatchNorm2d(26), nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(AxialBlock_dynamic(26, 16, 1, img_size // 2), AxialBlock_dynamic(32, 16, 1, img_size // 2))
        self.layer2 = nn.Sequential(AxialBlock_dynamic(32, 24, 2, img_size // 2), AxialBlock_dynamic(48, 24, 1, img_size // 4))
        self.decoder4 = nn.Conv2d(48, 32, kernel_size=3, stride=1, padding=1)
        self.decoder5 = nn.Conv2d(32, 20, kernel_size=3, stride=1, padding=1)
        self.adjust = nn.Conv2d(20, num_classes, kernel_size=1, stride=1, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x1 = self.layer1(x)
        x2 = self.layer2(x1)
        x = F.relu(F.interpolate(self.decoder4(x2), scale_factor=(2, 2), mode="bilinear"))
        x = torch.add(x, x1)
        x = F.relu(F.interpolate(self.decoder5(x), scale_factor=(2, 2), mode="bilinear"))
        return self.adjust(F.relu(x))


# OSNet for re-identification: streams of light convolutions of several depths, weighted by one gate that all share.
class OsConvLayer(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)
        self.bn, self.relu = nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True) if relu else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.relu is None else self.relu(x)


class LightConv3x3(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 1, stride=1, padding=0, bias=False)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=1, padding=1, bias=False, groups=out_channels)
        self.bn, self.relu = nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv2(self.conv1(x))))


class ChannelGate(nn.Module):
    def __init__(self, in_channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(in_channels, in_channels // reduction, kernel_size=1, bias=True, padding=0)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(in_channels // reduction, in_channels, kernel_size=1, bias=True, padding=0)
        self.gate_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate_activation(self.fc2(self.relu(self.fc1(self.global_avgpool(x)))))


class OSBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, bottleneck_reduction: int = 2) -> None:
        super().__init__()
        mid_channels = out_channels // bottleneck_reduction
        self.conv1 = OsConvLayer(in_channels, mid_channels, 1)
        self.conv2a = LightConv3x3(mid_channels, mid_channels)
        self.conv2b = nn.Sequential(*[LightConv3x3(mid_channels, mid_channels) for _ in range(2)])
        self.conv2c = nn.Sequential(*[LightConv3x3(mid_channels, mid_channels) for _ in range(3)])
        self.gate = ChannelGate(mid_channels)
        self.conv3 = OsConvLayer(mid_channels, out_channels, 1, relu=False)
        self.downsample = None
        if in_channels != out_channels:
            self.downsample = OsConvLayer(in_channels, out_channels, 1, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.conv1(x)
        x2 = self.gate(self.conv2a(x1)) + self.gate(self.conv2b(x1)) + self.gate(self.conv2c(x1))
        return F.relu(self.conv3(x2) + (x if self.downsample is None else self.downsample(x)))


class OSNet(nn.Module):
    def __init__(self, num_classes: int = 21, channels: tuple[int, ...] = (16, 32, 48), feature_dim: int = 56) -> None:
        super().__init__()
        self.conv1, self.maxpool = OsConvLayer(3, channels[0], 7, stride=2, padding=3), nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = self._make_layer(channels[0], channels[1], True)
        self.conv3 = self._make_layer(channels[1], channels[2], False)
        self.conv5 = OsConvLayer(channels[2], channels[2], 1)
        self.global_avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(nn.Linear(channels[2], feature_dim), nn.BatchNorm1d(feature_dim), nn.ReLU(inplace=True))
        self.classifier = nn.Linear(feature_dim, num_classes)

    def _make_layer(self, in_channels: int, out_channels: int, reduce_spatial_size: bool) -> nn.Sequential:
        layers: list[nn.Module] = [OSBlock(in_channels, out_channels), OSBlock(out_channels, out_channels)]
        if reduce_spatial_size:
            layers.append(nn.Sequential(OsConvLayer(out_channels, out_channels, 1), nn.AvgPool2d(2, stride=2)))
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.conv5(self.conv3(self.conv2(self.maxpool(self.conv1(x)))))
        v = self.fc(self.global_avgpool(x).flatten(1))
        return (self.classifier(v), v) if self.training else v


# RAFT: flow from all pairs of places, made better by a convolutional GRU, row-wise and column-wise.
class RaftResidualBlock(nn.Module):
    def __init__(self, in_planes: int, planes: int, norm_fn: str, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, kernel_size=3, padding=1, stride=stride)
        self.conv2 = nn.Conv2d(planes, planes, kernel_size=3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        norm = nn.BatchNorm2d if norm_fn == "batch" else nn.InstanceNorm2d
        self.norm1, self.norm2, self.downsample = norm(planes), norm(planes), None
        if stride != 1:
            self.norm3 = norm(planes)
            self.downsample = nn.Sequential(nn.Conv2d(in_planes, planes, kernel_size=1, stride=stride), self.norm3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        if self.downsample is not None:
            x = self.downsample(x)
        return self.relu(x + y)


class RaftEncoder(nn.Module):
    def __init__(self, output_dim: int, norm_fn: str) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(16) if norm_fn == "batch" else nn.InstanceNorm2d(16)
        self.conv1, self.relu1 = nn.Conv2d(3, 16, kernel_size=7, stride=2, padding=3), nn.ReLU(inplace=True)
        self.layer1, self.layer2 = RaftResidualBlock(16, 22, norm_fn, 2), RaftResidualBlock(22, 30, norm_fn, 2)
        self.conv2 = nn.Conv2d(30, output_dim, kernel_size=1)

    def forward(self, x: Any) -> Any:
        is_list = isinstance(x, (tuple, list))
        if is_list:
            batch_dim = x[0].shape[0]
            x = torch.cat(x, dim=0)
        x = self.conv2(self.layer2(self.layer1(self.relu1(self.norm1(self.conv1(x))))))
        return torch.split(x, [batch_dim, batch_dim], dim=0) if is_list else x


class SepConvGRU(nn.Module):
    def __init__(self, hidden_dim: int, input_dim: int) -> None:
        super().__init__()
        self.convz1 = nn.Conv2d(hidden_dim + input_dim, hidden_dim, (1, 5), padding=(0, 2))
        self.convr1 = nn.Conv2d(hidden_dim + input_dim, hidden_dim, (1, 5), padding=(0, 2))
        self.convq1 = nn.Conv2d(hidden_dim + input_dim, hidden_dim, (1, 5), padding=(0, 2))
        self.convz2 = nn.Conv2d(hidden_dim + input_dim, hidden_dim, (5, 1), padding=(2, 0))
        self.convr2 = nn.Conv2d(hidden_dim + input_dim, hidden_dim, (5, 1), padding=(2, 0))
        self.convq2 = nn.Conv2d(hidden_dim + input_dim, hidden_dim, (5, 1), padding=(2, 0))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        for convz, convr, convq in ((self.convz1, self.convr1, self.convq1), (self.convz2, self.convr2, self.convq2)):
            hx = torch.cat([h, x], dim=1)
            z, r = torch.sigmoid(convz(hx)), torch.sigmoid(convr(hx))
            q = torch.tanh(convq(torch.cat([r * h, x], dim=1)))
            h = (1 - z) * h + z * q
        return h


class BasicMotionEncoder(nn.Module):
    def __init__(self, cor_planes: int, out: int) -> None:
        super().__init__()
        self.convc1, self.convc2 = nn.Conv2d(cor_planes, 28, 1, padding=0), nn.Conv2d(28, 20, 3, padding=1)
        self.convf1, self.convf2 = nn.Conv2d(2, 14, 7, padding=3), nn.Conv2d(14, 10, 3, padding=1)
        self.conv = nn.Conv2d(20 + 10, out - 2, 3, padding=1)

    def forward(self, flow: Tensor, corr: Tensor) -> Tensor:
        cor, flo = F.relu(self.convc2(F.relu(self.convc1(corr)))), F.relu(self.convf2(F.relu(self.convf1(flow))))
        return torch.cat([F.relu(self.conv(torch.cat([cor, flo], dim=1))), flow], dim=1)


class FlowHead(nn.Module):
    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(input_dim, hidden_dim, 3, padding=1), nn.Conv2d(hidden_dim, 2, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.relu(self.conv1(x)))


class BasicUpdateBlock(nn.Module):
    def __init__(self, cor_planes: int, hidden_dim: int, context_dim: int) -> None:
        super().__init__()
        self.encoder = BasicMotionEncoder(cor_planes, 26)
        self.gru = SepConvGRU(hidden_dim=hidden_dim, input_dim=26 + context_dim)
        self.flow_head = FlowHead(hidden_dim, hidden_dim=32)
        self.mask = nn.Sequential(nn.Conv2d(hidden_dim, 36, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(36, 64 * 9, 1, padding=0))

    def forward(self, net: Tensor, inp: Tensor, corr: Tensor, flow: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        net = self.gru(net, torch.cat([inp, self.encoder(flow, corr)], dim=1))
        return net, 0.25 * self.mask(net), self.flow_head(net)


class CorrBlock:
    def __init__(self, fmap1: Tensor, fmap2: Tensor, num_levels: int, radius: int) -> None:
        self.num_levels, self.radius = num_levels, radius
        batch, dim, h, w = fmap1.shape
        corr = torch.matmul(fmap1.view(batch, dim, h * w).transpose(1, 2), fmap2.view(batch, dim, h * w))
        corr = corr.view(batch * h * w, 1, h, w) / math.sqrt(dim)
        self.corr_pyramid = [corr]
        for _ in range(num_levels - 1):
            corr = F.avg_pool2d(corr, 2, stride=2)
            self.corr_pyramid.append(corr)

    def __call__(self, coords: Tensor) -> Tensor:
        r = self.radius
        coords = coords.permute(0, 2, 3, 1)
        batch, h1, w1, _ = coords.shape
        d = torch.linspace(-r, r, 2 * r + 1)
        delta = torch.stack(torch.meshgrid(d, d, indexing="ij"), dim=-1).view(1, 2 * r + 1, 2 * r + 1, 2)
        out = []
        for i, corr in enumerate(self.corr_pyramid):
            grid = coords.reshape(batch * h1 * w1, 1, 1, 2) / 2**i + delta
            grid = 2 * grid / torch.tensor([corr.shape[-1] - 1, corr.shape[-2] - 1]) - 1
            out.append(F.grid_sample(corr, grid, align_corners=True).view(batch, h1, w1, -1))
        return torch.cat(out, dim=-1).permute(0, 3, 1, 2).contiguous()


def coords_grid(batch: int, ht: int, wd: int) -> Tensor:
    coords = torch.meshgrid(torch.arange(ht), torch.arange(wd), indexing="ij")
    return torch.stack(coords[::-1], dim=0).float()[None].repeat(batch, 1, 1, 1)


class RAFT(nn.Module):
    def __init__(self, hidden_dim: int = 24, context_dim: int = 18, corr_levels: int = 2, corr_radius: int = 2) -> None:
        super().__init__()
        self.hdim, self.cdim, self.corr_levels, self.corr_radius = hidden_dim, context_dim, corr_levels, corr_radius
        self.fnet = RaftEncoder(output_dim=40, norm_fn="instance")
        self.cnet = RaftEncoder(output_dim=hidden_dim + context_dim, norm_fn="batch")
        self.update_block = BasicUpdateBlock(corr_levels * (2 * corr_radius + 1) ** 2, hidden_dim, context_dim)

    def upsample_flow(self, flow: Tensor, mask: Tensor) -> Tensor:
        N, _, H, W = flow.shape
        mask = torch.softmax(mask.view(N, 1, 9, 8, 8, H, W), dim=2)
        up_flow = F.unfold(8 * flow, [3, 3], padding=1).view(N, 2, 9, 1, 1, H, W)
        return torch.sum(mask * up_flow, dim=2).permute(0, 1, 4, 2, 5, 3).reshape(N, 2, 8 * H, 8 * W)

    def forward(self, image1: Tensor, image2: Tensor, iters: int = 3, flow_init: Tensor | None = None) -> list[Tensor]:
        image1, image2 = 2 * (image1 / 255.0) - 1.0, 2 * (image2 / 255.0) - 1.0
        fmap1, fmap2 = self.fnet([image1, image2])
        corr_fn = CorrBlock(fmap1, fmap2, self.corr_levels, radius=self.corr_radius)
        net, inp = torch.split(self.cnet(image1), [self.hdim, self.cdim], dim=1)
        net, inp = torch.tanh(net), torch.relu(inp)
        N, _, H, W = image1.shape
        coords0, coords1 = coords_grid(N, H // 8, W // 8), coords_grid(N, H // 8, W // 8)
        if flow_init is not None:
            coords1 = coords1 + flow_init
        flow_predictions = []
        for _ in range(iters):
            coords1 = coords1.detach()
            net, up_mask, delta_flow = self.update_block(net, inp, corr_fn(coords1), coords1 - coords0)
            coords1 = coords1 + delta_flow
            flow_predictions.append(self.upsample_flow(coords1 - coords0, up_mask))
        return flow_predictions


# Dynamic graph CNN: neighbours in the space of features, found anew before each layer.
def knn(x: Tensor, k: int) -> Tensor:
    inner = -2 * torch.matmul(x.transpose(2, 1), x)
    xx = torch.sum(x**2, dim=1, keepdim=True)
    return (-xx - inner - xx.transpose(2, 1)).topk(k=k, dim=-1)[1]


def get_graph_feature(x: Tensor, k: int) -> Tensor:
    batch_size, num_dims, num_points = x.size()
    idx = (knn(x, k=k) + torch.arange(0, batch_size).view(-1, 1, 1) * num_points).view(-1)
    x = x.transpose(2, 1).contiguous()
    feature = x.view(batch_size * num_points, -1)[idx, :].view(batch_size, num_points, k, num_dims)
    x = x.view(batch_size, num_points, 1, num_dims).repeat(1, 1, k, 1)
    return torch.cat((feature - x, x), dim=3).permute(0, 3, 1, 2).contiguous()


class DGCNN(nn.Module):
    def __init__(self, k: int = 5, emb_dims: int = 68, output_channels: int = 8) -> None:
        super().__init__()
        self.k = k
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm2d(14), nn.BatchNorm2d(20), nn.BatchNorm2d(28)
        self.bn4 = nn.BatchNorm1d(emb_dims)
        self.conv1 = nn.Sequential(nn.Conv2d(6, 14, kernel_size=1, bias=False), self.bn1, nn.LeakyReLU(negative_slope=0.2))
        self.conv2 = nn.Sequential(nn.Conv2d(14 * 2, 20, kernel_size=1, bias=False), self.bn2, nn.LeakyReLU(negative_slope=0.2))
        self.conv3 = nn.Sequential(nn.Conv2d(20 * 2, 28, kernel_size=1, bias=False), self.bn3, nn.LeakyReLU(negative_slope=0.2))
        self.conv4 = nn.Sequential(nn.Conv1d(62, emb_dims, kernel_size=1, bias=False), self.bn4, nn.LeakyReLU(negative_slope=0.2))
        self.linear1, self.bn6, self.dp1 = nn.Linear(emb_dims * 2, 50, bias=False), nn.BatchNorm1d(50), nn.Dropout(p=0.5)
        self.linear2, self.bn7, self.dp2 = nn.Linear(50, 36), nn.BatchNorm1d(36), nn.Dropout(p=0.5)
        self.linear3 = nn.Linear(36, output_channels)

    def forward(self, x: Tensor) -> Tensor:
        batch_size = x.size(0)
        x1 = self.conv1(get_graph_feature(x, k=self.k)).max(dim=-1, keepdim=False)[0]
        x2 = self.conv2(get_graph_feature(x1, k=self.k)).max(dim=-1, keepdim=False)[0]
        x3 = self.conv3(get_graph_feature(x2, k=self.k)).max(dim=-1, keepdim=False)[0]
        x = self.conv4(torch.cat((x1, x2, x3), dim=1))
        x = torch.cat((F.adaptive_max_pool1d(x, 1).view(batch_size, -1), F.adaptive_avg_pool1d(x, 1).view(batch_size, -1)), 1)
        x = self.dp1(F.leaky_relu(self.bn6(self.linear1(x)), negative_slope=0.2))
        x = self.dp2(F.leaky_relu(self.bn7(self.linear2(x)), negative_slope=0.2))
        return self.linear3(x)


# Depth from films without labels: keys that are tuples, a decoder of disparities and one of the camera's moves.
class ResnetBasicBlock(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
        self.relu, self.downsample = nn.ReLU(inplace=True), None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNetMultiImageInput(nn.Module):
    def __init__(self, num_input_images: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(num_input_images * 3, 14, 7, 2, 3, bias=False), nn.BatchNorm2d(14)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(ResnetBasicBlock(14, 14, 1))
        self.layer2 = nn.Sequential(ResnetBasicBlock(14, 22, 2), ResnetBasicBlock(22, 22, 1))


class ResnetEncoder(nn.Module):
    def __init__(self, num_input_images: int = 1) -> None:
        super().__init__()
        self.num_ch_enc = [14, 14, 22]
        self.encoder = ResNetMultiImageInput(num_input_images)

    def forward(self, input_image: Tensor) -> list[Tensor]:
        self.features = []
        x = (input_image - 0.45) / 0.225
        self.features.append(self.encoder.relu(self.encoder.bn1(self.encoder.conv1(x))))
        self.features.append(self.encoder.layer1(self.features[-1]))
        self.features.append(self.encoder.layer2(self.features[-1]))
        return self.features


class Conv3x3(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pad, self.conv = nn.ReflectionPad2d(1), nn.Conv2d(int(in_channels), int(out_channels), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.pad(x))


class ConvBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv, self.nonlin = Conv3x3(in_channels, out_channels), nn.ELU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlin(self.conv(x))


class DepthDecoder(nn.Module):
    def __init__(self, num_ch_enc: list[int], scales: range = range(2)) -> None:
        super().__init__()
        self.scales, self.num_ch_dec = scales, [10, 12, 18]
        self.convs: OrderedDict[tuple[Any, ...], nn.Module] = OrderedDict()
        for i in range(2, -1, -1):
            num_ch_in = num_ch_enc[-1] if i == 2 else self.num_ch_dec[i + 1]
            self.convs[("upconv", i, 0)] = ConvBlock(num_ch_in, self.num_ch_dec[i])
            num_ch_in = self.num_ch_dec[i] + (num_ch_enc[i - 1] if i > 0 else 0)
            self.convs[("upconv", i, 1)] = ConvBlock(num_ch_in, self.num_ch_dec[i])
        for s in self.scales:
            self.convs[("dispconv", s)] = Conv3x3(self.num_ch_dec[s], 1)
        self.decoder = nn.ModuleList(list(self.convs.values()))
        self.sigmoid = nn.Sigmoid()

    def forward(self, input_features: list[Tensor]) -> dict[tuple[Any, ...], Tensor]:
        self.outputs = {}
        x = input_features[-1]
        for i in range(2, -1, -1):
            x = self.convs[("upconv", i, 0)](x)
            if i > 0:
                x = [F.interpolate(x, size=input_features[i - 1].shape[-2:], mode="nearest"), input_features[i - 1]]
            else:
                x = [F.interpolate(x, scale_factor=2, mode="nearest")]
            x = self.convs[("upconv", i, 1)](torch.cat(x, 1))
            if i in self.scales:
                self.outputs[("disp", i)] = self.sigmoid(self.convs[("dispconv", i)](x))
        return self.outputs


class PoseDecoder(nn.Module):
    def __init__(self, num_ch_enc: list[int], num_frames_to_predict_for: int = 2) -> None:
        super().__init__()
        self.num_frames_to_predict_for = num_frames_to_predict_for
        self.convs: OrderedDict[Any, nn.Module] = OrderedDict()
        self.convs["squeeze"] = nn.Conv2d(num_ch_enc[-1], 20, 1)
        self.convs[("pose", 0)], self.convs[("pose", 1)] = nn.Conv2d(20, 24, 3, 1, 1), nn.Conv2d(24, 24, 3, 1, 1)
        self.convs[("pose", 2)] = nn.Conv2d(24, 6 * num_frames_to_predict_for, 1)
        self.relu, self.net = nn.ReLU(), nn.ModuleList(list(self.convs.values()))

    def forward(self, input_features: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
        out = torch.cat([self.relu(self.convs["squeeze"](f[-1])) for f in input_features], 1)
        for i in range(3):
            out = self.convs[("pose", i)](out)
            if i != 2:
                out = self.relu(out)
        out = 0.01 * out.mean(3).mean(2).view(-1, self.num_frames_to_predict_for, 1, 6)
        return out[..., :3], out[..., 3:]


class Monodepth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.models = nn.ModuleDict()
        self.models["encoder"] = ResnetEncoder()
        self.models["depth"] = DepthDecoder([14, 14, 22])
        self.models["pose_encoder"] = ResnetEncoder(num_input_images=2)
        self.models["pose"] = PoseDecoder([14, 14, 22])

    def forward(self, inputs: dict[tuple[Any, ...], Tensor]) -> dict[tuple[Any, ...], Tensor]:
        outputs = dict(self.models["depth"](self.models["encoder"](inputs["color_aug", 0, 0])))
        for f_i in (-1, 1):
            pair = [inputs["color_aug", min(f_i, 0), 0], inputs["color_aug", max(f_i, 0), 0]]
            axisangle, translation = self.models["pose"]([self.models["pose_encoder"](torch.cat(pair, 1))])
            outputs["axisangle", 0, f_i], outputs["translation", 0, f_i] = axisangle, translation
        return outputs


# CRNN: words in scenes by columns, two recurrences over them, letters or nothing at each.
class BidirectionalLSTM(nn.Module):
    def __init__(self, nIn: int, nHidden: int, nOut: int) -> None:
        super().__init__()
        self.rnn, self.embedding = nn.LSTM(nIn, nHidden, bidirectional=True), nn.Linear(nHidden * 2, nOut)

    def forward(self, input: Tensor) -> Tensor:
        recurrent, _ = self.rnn(input)
        T, b, h = recurrent.size()
        return self.embedding(recurrent.view(T * b, h)).view(T, b, -1)


class CRNN(nn.Module):
    def __init__(self, imgH: int = 16, nc: int = 1, nclass: int = 37, nh: int = 26) -> None:
        super().__init__()
        assert imgH % 16 == 0, "imgH has to be a multiple of 16"
        ks, ps, nm = [3, 3, 3, 3, 2], [1, 1, 1, 1, 0], [12, 18, 28, 28, 40]
        cnn = nn.Sequential()

        def convRelu(i: int, batchNormalization: bool = False) -> None:
            nIn, nOut = nc if i == 0 else nm[i - 1], nm[i]
            cnn.add_module(f"conv{i}", nn.Conv2d(nIn, nOut, ks[i], 1, ps[i]))
            if batchNormalization:
                cnn.add_module(f"batchnorm{i}", nn.BatchNorm2d(nOut))
            cnn.add_module(f"relu{i}", nn.ReLU(True))

        convRelu(0)
        cnn.add_module("pooling0", nn.MaxPool2d(2, 2))
        convRelu(1)
        cnn.add_module("pooling1", nn.MaxPool2d((2, 2), (2, 1), (0, 1)))
        convRelu(2, True)
        convRelu(3)
        cnn.add_module("pooling2", nn.MaxPool2d((2, 2), (2, 1), (0, 1)))
        convRelu(4, True)
        self.cnn = cnn
        self.rnn = nn.Sequential(BidirectionalLSTM(nm[-1], nh, nh), BidirectionalLSTM(nh, nh, nclass))

    def forward(self, input: Tensor) -> Tensor:
        conv = self.cnn(input)
        h = conv.size(2)
        assert h == 1, "the height of conv must be 1"
        return self.rnn(conv.squeeze(2).permute(2, 0, 1))


# StarGAN v2: one generator for all domains, styles from noise or from a picture, set by instance norms.
class StarResBlk(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, normalize: bool = False, downsample: bool = False) -> None:
        super().__init__()
        self.actv, self.normalize, self.downsample, self.learned_sc = nn.LeakyReLU(0.2), normalize, downsample, dim_in != dim_out
        self.conv1, self.conv2 = nn.Conv2d(dim_in, dim_in, 3, 1, 1), nn.Conv2d(dim_in, dim_out, 3, 1, 1)
        if self.normalize:
            self.norm1, self.norm2 = nn.InstanceNorm2d(dim_in, affine=True), nn.InstanceNorm2d(dim_in, affine=True)
        if self.learned_sc:
            self.conv1x1 = nn.Conv2d(dim_in, dim_out, 1, 1, 0, bias=False)

    def _shortcut(self, x: Tensor) -> Tensor:
        x = self.conv1x1(x) if self.learned_sc else x
        return F.avg_pool2d(x, 2) if self.downsample else x

    def _residual(self, x: Tensor) -> Tensor:
        x = self.conv1(self.actv(self.norm1(x) if self.normalize else x))
        x = F.avg_pool2d(x, 2) if self.downsample else x
        return self.conv2(self.actv(self.norm2(x) if self.normalize else x))

    def forward(self, x: Tensor) -> Tensor:
        return (self._shortcut(x) + self._residual(x)) / math.sqrt(2)


class AdaIN(nn.Module):
    def __init__(self, style_dim: int, num_features: int) -> None:
        super().__init__()
        self.norm, self.fc = nn.InstanceNorm2d(num_features, affine=False), nn.Linear(style_dim, num_features * 2)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        h = self.fc(s)
        gamma, beta = torch.chunk(h.view(h.size(0), h.size(1), 1, 1), chunks=2, dim=1)
        return (1 + gamma) * self.norm(x) + beta


class AdainResBlk(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, style_dim: int, upsample: bool = False) -> None:
        super().__init__()
        self.actv, self.upsample, self.learned_sc = nn.LeakyReLU(0.2), upsample, dim_in != dim_out
        self.conv1, self.conv2 = nn.Conv2d(dim_in, dim_out, 3, 1, 1), nn.Conv2d(dim_out, dim_out, 3, 1, 1)
        self.norm1, self.norm2 = AdaIN(style_dim, dim_in), AdaIN(style_dim, dim_out)
        if self.learned_sc:
            self.conv1x1 = nn.Conv2d(dim_in, dim_out, 1, 1, 0, bias=False)

    def _up(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.upsample else x

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        out = self.conv1(self._up(self.actv(self.norm1(x, s))))
        out = self.conv2(self.actv(self.norm2(out, s)))
        sc = self._up(x)
        return (out + (self.conv1x1(sc) if self.learned_sc else sc)) / math.sqrt(2)


class StarGenerator(nn.Module):
    def __init__(self, dim_in: int, style_dim: int) -> None:
        super().__init__()
        self.from_rgb = nn.Conv2d(3, dim_in, 3, 1, 1)
        self.encode, self.decode = nn.ModuleList(), nn.ModuleList()
        self.to_rgb = nn.Sequential(nn.InstanceNorm2d(dim_in, affine=True), nn.LeakyReLU(0.2), nn.Conv2d(dim_in, 3, 1, 1, 0))
        for _ in range(2):
            dim_out = dim_in + dim_in // 2
            self.encode.append(StarResBlk(dim_in, dim_out, normalize=True, downsample=True))
            self.decode.insert(0, AdainResBlk(dim_out, dim_in, style_dim, upsample=True))
            dim_in = dim_out
        self.encode.append(StarResBlk(dim_out, dim_out, normalize=True))
        self.decode.insert(0, AdainResBlk(dim_out, dim_out, style_dim))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        x = self.from_rgb(x)
        for block in self.encode:
            x = block(x)
        for block in self.decode:
            x = block(x, s)
        return self.to_rgb(x)


class MappingNetwork(nn.Module):
    def __init__(self, latent_dim: int, style_dim: int, num_domains: int, width: int = 36) -> None:
        super().__init__()
        self.shared = nn.Sequential(nn.Linear(latent_dim, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.unshared = nn.ModuleList()
        for _ in range(num_domains):
            self.unshared += [nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, style_dim))]

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        h = self.shared(z)
        out = torch.stack([layer(h) for layer in self.unshared], dim=1)
        return out[torch.arange(y.size(0)), y]


class StyleEncoder(nn.Module):
    def __init__(self, dim_in: int, style_dim: int, num_domains: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, dim_in, 3, 1, 1)]
        blocks += [StarResBlk(dim_in, dim_in + 8, downsample=True), StarResBlk(dim_in + 8, dim_in + 8, downsample=True)]
        blocks += [nn.LeakyReLU(0.2), nn.Conv2d(dim_in + 8, dim_in + 8, 4, 1, 0), nn.LeakyReLU(0.2)]
        self.shared = nn.Sequential(*blocks)
        self.unshared = nn.ModuleList([nn.Linear(dim_in + 8, style_dim) for _ in range(num_domains)])

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.shared(x).flatten(1)
        return torch.stack([layer(h) for layer in self.unshared], dim=1)[torch.arange(y.size(0)), y]


class StarDiscriminator(nn.Module):
    def __init__(self, dim_in: int, num_domains: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv2d(3, dim_in, 3, 1, 1)]
        blocks += [StarResBlk(dim_in, dim_in + 6, downsample=True), StarResBlk(dim_in + 6, dim_in + 6, downsample=True)]
        blocks += [nn.LeakyReLU(0.2), nn.Conv2d(dim_in + 6, dim_in + 6, 4, 1, 0), nn.LeakyReLU(0.2)]
        self.main = nn.Sequential(*blocks, nn.Conv2d(dim_in + 6, num_domains, 1, 1, 0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.main(x).flatten(1)[torch.arange(y.size(0)), y]


class StarGANv2(nn.Module):
    def __init__(self, style_dim: int = 22, latent_dim: int = 9, num_domains: int = 3) -> None:
        super().__init__()
        self.nets = nn.ModuleDict(
            {
                "generator": StarGenerator(16, style_dim),
                "mapping_network": MappingNetwork(latent_dim, style_dim, num_domains),
                "style_encoder": StyleEncoder(12, style_dim, num_domains),
                "discriminator": StarDiscriminator(14, num_domains),
            }
        )

    def forward(self, x_real: Tensor, y_trg: Tensor, z_trg: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s_trg = self.nets["mapping_network"](z_trg, y_trg)
        x_fake = self.nets["generator"](x_real, s_trg)
        loss_sty = torch.mean(torch.abs(self.nets["style_encoder"](x_fake, y_trg) - s_trg))
        return x_fake, self.nets["discriminator"](x_fake, y_trg), loss_sty


# A very deep VAE: latents from coarse to fine, each block with a posterior, a prior and what both say to the next.
def get_conv(in_dim: int, out_dim: int, kernel_size: int, padding: int, scaled: bool = False) -> nn.Conv2d:
    c = nn.Conv2d(in_dim, out_dim, kernel_size, 1, padding)
    if scaled:
        c.weight.data *= math.sqrt(1 / 4)
    return c


get_3x3 = partial(get_conv, kernel_size=3, padding=1)
get_1x1 = partial(get_conv, kernel_size=1, padding=0)


class VdBlock(nn.Module):
    def __init__(
        self, in_width: int, middle_width: int, out_width: int, down_rate: int | None = None, residual: bool = False, use_3x3: bool = True
    ) -> None:
        super().__init__()
        self.down_rate, self.residual = down_rate, residual
        self.c1 = get_1x1(in_width, middle_width)
        self.c2 = get_3x3(middle_width, middle_width) if use_3x3 else get_1x1(middle_width, middle_width)
        self.c3 = get_3x3(middle_width, middle_width) if use_3x3 else get_1x1(middle_width, middle_width)
        self.c4 = get_1x1(middle_width, out_width, scaled=residual)

    def forward(self, x: Tensor) -> Tensor:
        xhat = self.c1(F.gelu(x))
        xhat = self.c3(F.gelu(self.c2(F.gelu(xhat))))
        out = self.c4(F.gelu(xhat))
        out = x + out if self.residual else out
        return F.avg_pool2d(out, kernel_size=self.down_rate, stride=self.down_rate) if self.down_rate is not None else out


class VdEncoder(nn.Module):
    def __init__(self, width: int, bottleneck: int) -> None:
        super().__init__()
        self.in_conv = get_3x3(3, width)
        downs = [(8, None), (8, 2), (4, None), (4, 4), (1, None)]
        self.enc_blocks = nn.ModuleList([VdBlock(width, bottleneck, width, d, True, use_3x3=res > 2) for res, d in downs])

    def forward(self, x: Tensor) -> dict[int, Tensor]:
        x = self.in_conv(x.permute(0, 3, 1, 2).contiguous())
        activations = {x.shape[2]: x}
        for block in self.enc_blocks:
            x = block(x)
            activations[x.shape[2]] = x
        return activations


class DecBlock(nn.Module):
    def __init__(self, width: int, cond_width: int, zdim: int, res: int, mixin: int | None) -> None:
        super().__init__()
        self.base, self.mixin, self.zdim = res, mixin, zdim
        self.enc = VdBlock(width * 2, cond_width, zdim * 2, residual=False, use_3x3=res > 2)
        self.prior = VdBlock(width, cond_width, zdim * 2 + width, residual=False, use_3x3=res > 2)
        self.z_proj = get_1x1(zdim, width, scaled=True)
        self.resnet = VdBlock(width, cond_width, width, residual=True, use_3x3=res > 2)

    def forward(self, xs: dict[int, Tensor], activations: dict[int, Tensor]) -> tuple[dict[int, Tensor], Tensor]:
        x, acts = xs[self.base], activations[self.base]
        x = x.repeat(acts.shape[0], 1, 1, 1) if acts.shape[0] != x.shape[0] else x
        if self.mixin is not None:
            x = x + F.interpolate(xs[self.mixin][:, : x.shape[1]], scale_factor=self.base // self.mixin)
        qm, qv = self.enc(torch.cat([x, acts], dim=1)).chunk(2, dim=1)
        feats = self.prior(x)
        pm, pv, xpp = feats[:, : self.zdim], feats[:, self.zdim : self.zdim * 2], feats[:, self.zdim * 2 :]
        z = qm + qv.exp() * torch.randn_like(qm)
        kl = -0.5 + pv - qv + 0.5 * (qv.exp() ** 2 + (qm - pm) ** 2) / (pv.exp() ** 2)
        xs[self.base] = self.resnet(x + xpp + self.z_proj(z))
        return xs, kl


class VdDecoder(nn.Module):
    def __init__(self, width: int, bottleneck: int, zdim: int) -> None:
        super().__init__()
        blocks = [(1, None), (4, 1), (4, None), (8, 4), (8, None)]
        self.dec_blocks = nn.ModuleList([DecBlock(width, bottleneck, zdim, res, mixin) for res, mixin in blocks])
        self.bias_xs = nn.ParameterList([nn.Parameter(torch.zeros(1, width, res, res)) for res in (1, 4)])
        self.gain, self.bias = nn.Parameter(torch.ones(1, width, 1, 1)), nn.Parameter(torch.zeros(1, width, 1, 1))
        self.width = width

    def forward(self, activations: dict[int, Tensor]) -> tuple[Tensor, list[Tensor]]:
        xs = {a.shape[2]: a for a in self.bias_xs}
        kls = []
        for block in self.dec_blocks:
            if block.base not in xs:
                xs[block.base] = torch.zeros(1, self.width, block.base, block.base)
            xs, kl = block(xs, activations)
            kls.append(kl)
        return xs[max(xs)] * self.gain + self.bias, kls


class VDVAE(nn.Module):
    def __init__(self, width: int = 24, bottleneck: int = 10, zdim: int = 6) -> None:
        super().__init__()
        self.encoder, self.decoder = VdEncoder(width, bottleneck), VdDecoder(width, bottleneck, zdim)
        self.out_net = nn.ModuleDict({"out_conv": get_1x1(width, 6)})

    def forward(self, x: Tensor, x_target: Tensor) -> dict[str, Tensor]:
        px_z, kls = self.decoder(self.encoder(x))
        mean, log_scale = self.out_net["out_conv"](px_z).permute(0, 2, 3, 1).chunk(2, dim=-1)
        log_scale = torch.clamp(log_scale, min=-7)
        centered = (x_target - mean) * torch.exp(-log_scale)
        distortion = (log_scale + centered + 2 * F.softplus(-centered)).mean(dim=(1, 2, 3))
        rate = torch.stack([kl.sum(dim=(1, 2, 3)) for kl in kls]).sum(0) / math.prod(x.shape[1:])
        return {"elbo": (rate + distortion).mean(), "distortion": distortion.mean(), "rate": rate.mean()}


# The next scale is predicted: maps of codes from small to large, each sees all smaller ones; the class sets scales and shifts.
class VarFFN(nn.Module):
    def __init__(self, in_features: int, hidden_features: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(in_features, hidden_features), nn.GELU("tanh"), nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class VarSelfAttention(nn.Module):
    zero_k_bias: Tensor

    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, num_heads, 1, 1), 4.0).log(), requires_grad=True)
        self.max_scale_mul = math.log(100)
        self.mat_qkv = nn.Linear(embed_dim, embed_dim * 3, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(embed_dim)), nn.Parameter(torch.zeros(embed_dim))
        self.register_buffer("zero_k_bias", torch.zeros(embed_dim))
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor, attn_bias: Tensor | None) -> Tensor:
        B, L, C = x.shape
        qkv = F.linear(input=x, weight=self.mat_qkv.weight, bias=torch.cat((self.q_bias, self.zero_k_bias, self.v_bias)))
        q, k, v = qkv.view(B, L, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(dim=0)
        scale_mul = self.scale_mul_1H11.clamp_max(self.max_scale_mul).exp()
        q, k = F.normalize(q, dim=-1).mul(scale_mul), F.normalize(k, dim=-1)
        oup = F.scaled_dot_product_attention(query=q, key=k, value=v, scale=1.0, attn_mask=attn_bias).transpose(1, 2).reshape(B, L, C)
        return self.proj(oup)


class AdaLNSelfAttn(nn.Module):
    def __init__(self, embed_dim: int, cond_dim: int, num_heads: int) -> None:
        super().__init__()
        self.C = embed_dim
        self.attn, self.ffn = VarSelfAttention(embed_dim, num_heads), VarFFN(embed_dim, round(embed_dim * 3.5))
        self.ln_wo_grad = nn.LayerNorm(embed_dim, elementwise_affine=False)
        self.ada_lin = nn.Sequential(nn.SiLU(inplace=False), nn.Linear(cond_dim, 6 * embed_dim))

    def forward(self, x: Tensor, cond_BD: Tensor, attn_bias: Tensor | None) -> Tensor:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = self.ada_lin(cond_BD).view(-1, 1, 6, self.C).unbind(2)
        x = x + self.attn(self.ln_wo_grad(x).mul(scale1.add(1)).add_(shift1), attn_bias=attn_bias).mul_(gamma1)
        return x + self.ffn(self.ln_wo_grad(x).mul(scale2.add(1)).add_(shift2)).mul(gamma2)


class AdaLNBeforeHead(nn.Module):
    def __init__(self, C: int, D: int) -> None:
        super().__init__()
        self.C, self.ln_wo_grad = C, nn.LayerNorm(C, elementwise_affine=False)
        self.ada_lin = nn.Sequential(nn.SiLU(inplace=False), nn.Linear(D, 2 * C))

    def forward(self, x_BLC: Tensor, cond_BD: Tensor) -> Tensor:
        scale, shift = self.ada_lin(cond_BD).view(-1, 1, 2, self.C).unbind(2)
        return self.ln_wo_grad(x_BLC).mul(scale.add(1)).add_(shift)


class VAR(nn.Module):
    lvl_1L: Tensor
    attn_bias_for_masking: Tensor

    def __init__(self, num_classes: int = 12, Cvae: int = 10, V: int = 90, embed_dim: int = 36, num_heads: int = 3) -> None:
        super().__init__()
        self.patch_nums, self.num_classes, self.cond_drop_rate = (1, 2, 3, 4), num_classes, 0.1
        self.C, self.D, self.V, self.L, self.first_l = embed_dim, embed_dim, V, sum(pn**2 for pn in self.patch_nums), 1
        self.word_embed = nn.Linear(Cvae, self.C)
        self.class_emb = nn.Embedding(num_classes + 1, self.C)
        self.pos_start = nn.Parameter(torch.randn(1, self.first_l, self.C) * 0.1)
        self.pos_1LC = nn.Parameter(torch.cat([torch.randn(1, pn * pn, self.C) * 0.1 for pn in self.patch_nums], dim=1))
        self.lvl_embed = nn.Embedding(len(self.patch_nums), self.C)
        self.blocks = nn.ModuleList([AdaLNSelfAttn(self.C, self.D, num_heads) for _ in range(2)])
        d = torch.cat([torch.full((pn * pn,), i) for i, pn in enumerate(self.patch_nums)]).view(1, self.L, 1)
        dT = d.transpose(1, 2)
        self.register_buffer("lvl_1L", dT[:, 0].contiguous())
        mask = torch.where(d >= dT, 0.0, -torch.inf).reshape(1, 1, self.L, self.L)
        self.register_buffer("attn_bias_for_masking", mask.contiguous())
        self.head_nm, self.head = AdaLNBeforeHead(self.C, self.D), nn.Linear(self.C, self.V)

    def forward(self, label_B: Tensor, x_BLCv_wo_first_l: Tensor) -> Tensor:
        B = x_BLCv_wo_first_l.shape[0]
        label_B = torch.where(torch.rand(B) < self.cond_drop_rate, self.num_classes, label_B) if self.training else label_B
        sos = cond_BD = self.class_emb(label_B)
        sos = sos.unsqueeze(1).expand(B, self.first_l, -1) + self.pos_start.expand(B, self.first_l, -1)
        x_BLC = torch.cat((sos, self.word_embed(x_BLCv_wo_first_l.float())), dim=1)
        x_BLC = x_BLC + self.lvl_embed(self.lvl_1L.expand(B, -1)) + self.pos_1LC
        for b in self.blocks:
            x_BLC = b(x=x_BLC, cond_BD=cond_BD, attn_bias=self.attn_bias_for_masking)
        return self.head(self.head_nm(x_BLC.float(), cond_BD).float()).float()


# A flow of transformers: each block shifts and scales patches by those before it, every other one backwards.
class TarAttention(nn.Module):
    def __init__(self, in_channels: int, head_channels: int) -> None:
        super().__init__()
        assert in_channels % head_channels == 0
        self.norm, self.qkv = nn.LayerNorm(in_channels), nn.Linear(in_channels, in_channels * 3)
        self.proj = nn.Linear(in_channels, in_channels)
        self.num_heads, self.sqrt_scale = in_channels // head_channels, head_channels ** (-0.25)

    def forward(self, x: Tensor, mask: Tensor | None = None, temp: float = 1.0) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.qkv(self.norm(x.float()).type(x.dtype)).reshape(B, T, 3 * self.num_heads, -1).chunk(3, dim=2)
        attn = torch.einsum("bmhd,bnhd->bmnh", q * self.sqrt_scale, k * self.sqrt_scale) / temp
        if mask is not None:
            attn = attn.masked_fill(mask.unsqueeze(-1) == 0, float("-inf"))
        attn = attn.float().softmax(dim=-2).type(attn.dtype)
        return self.proj(torch.einsum("bmnh,bnhd->bmhd", attn, v).reshape(B, T, C))


class TarMLP(nn.Module):
    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.main = nn.Sequential(nn.Linear(channels, channels * expansion), nn.GELU(), nn.Linear(channels * expansion, channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.main(self.norm(x.float()).type(x.dtype))


class TarAttentionBlock(nn.Module):
    def __init__(self, channels: int, head_channels: int, expansion: int = 3) -> None:
        super().__init__()
        self.attention, self.mlp = TarAttention(channels, head_channels), TarMLP(channels, expansion)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        x = x + self.attention(x, attn_mask)
        return x + self.mlp(x)


class PermutationFlip(nn.Module):
    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.flip = flip

    def forward(self, x: Tensor, dim: int = 1) -> Tensor:
        return x.flip(dims=[dim]) if self.flip else x


class MetaBlock(nn.Module):
    attn_mask: Tensor

    def __init__(self, in_channels: int, channels: int, num_patches: int, flip: bool, num_layers: int, num_classes: int) -> None:
        super().__init__()
        self.proj_in = nn.Linear(in_channels, channels)
        self.pos_embed = nn.Parameter(torch.randn(num_patches, channels) * 1e-2)
        self.class_embed = nn.Parameter(torch.randn(num_classes, 1, channels) * 1e-2)
        self.attn_blocks = nn.ModuleList([TarAttentionBlock(channels, 7) for _ in range(num_layers)])
        self.proj_out = nn.Linear(channels, in_channels * 2)
        self.proj_out.weight.data.fill_(0.0)
        self.permutation = PermutationFlip(flip)
        self.register_buffer("attn_mask", torch.tril(torch.ones(num_patches, num_patches)))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = self.permutation(x)
        pos_embed = self.permutation(self.pos_embed, dim=0)
        x_in = x
        x = self.proj_in(x) + pos_embed + self.class_embed[y]
        for block in self.attn_blocks:
            x = block(x, self.attn_mask)
        x = self.proj_out(x)
        x = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        xa, xb = x.chunk(2, dim=-1)
        scale = (-xa.float()).exp().type(xa.dtype)
        return self.permutation((x_in - xb) * scale), -xa.mean(dim=[1, 2])


class TarFlow(nn.Module):
    def __init__(self, img_size: int = 12, patch_size: int = 3, channels: int = 42, num_blocks: int = 3, num_classes: int = 6) -> None:
        super().__init__()
        self.patch_size, num_patches = patch_size, (img_size // patch_size) ** 2
        self.blocks = nn.ModuleList(
            [MetaBlock(3 * patch_size**2, channels, num_patches, i % 2 == 1, 2, num_classes) for i in range(num_blocks)]
        )
        self.register_buffer("var", torch.ones(num_patches, 3 * patch_size**2))

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = F.unfold(x, self.patch_size, stride=self.patch_size).transpose(1, 2)
        logdets = torch.zeros(())
        for block in self.blocks:
            x, logdet = block(x, y)
            logdets = logdets + logdet
        return x, logdets


# One step from noise to pictures: a transformer of two times, with rotations over both axes and gated feed-forward layers.
class MfTimestepEmbedder(nn.Module):
    def __init__(self, hidden_size: int, frequency_embedding_size: int = 32) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequency_embedding_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        self.frequency_embedding_size = frequency_embedding_size

    def forward(self, t: Tensor) -> Tensor:
        half = self.frequency_embedding_size // 2
        args = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)[None] * 1000
        return self.mlp(torch.cat([torch.cos(args), torch.sin(args)], dim=-1))


class MfLabelEmbedder(nn.Module):
    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)
        self.num_classes, self.dropout_prob = num_classes, dropout_prob

    def forward(self, labels: Tensor, train: bool) -> Tensor:
        if train:
            labels = torch.where(torch.rand(labels.shape[0]) < self.dropout_prob, self.num_classes, labels)
        return self.embedding_table(labels)


class MfRMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x.reshape(*x.shape[:-1], -1, 2).unbind(dim=-1)
    return torch.stack((-x2, x1), dim=-1).flatten(-2)


class VisionRotaryEmbeddingFast(nn.Module):
    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, dim: int, pt_seq_len: int, theta: float = 10000.0) -> None:
        super().__init__()
        freqs = 1.0 / (theta ** (torch.arange(0, dim, 2)[: dim // 2].float() / dim))
        freqs = torch.einsum("i,f->if", torch.arange(pt_seq_len).float(), freqs).repeat_interleave(2, dim=-1)
        grid = (freqs[:, None, :].expand(-1, pt_seq_len, -1), freqs[None, :, :].expand(pt_seq_len, -1, -1))
        freqs = torch.cat(grid, dim=-1).reshape(pt_seq_len**2, -1)
        self.register_buffer("freqs_cos", freqs.cos())
        self.register_buffer("freqs_sin", freqs.sin())

    def forward(self, t: Tensor) -> Tensor:
        return t * self.freqs_cos + rotate_half(t) * self.freqs_sin


class MfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, dim * 3, bias=True)
        self.q_norm, self.k_norm = MfRMSNorm(self.head_dim), MfRMSNorm(self.head_dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rope: VisionRotaryEmbeddingFast) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = rope(self.q_norm(q)), rope(self.k_norm(k))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))


class SwiGLUFFN(nn.Module):
    def __init__(self, in_features: int, hidden_features: int) -> None:
        super().__init__()
        self.w12, self.w3 = nn.Linear(in_features, 2 * hidden_features), nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(x1) * x2)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class MfBlock(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1, self.attn = MfRMSNorm(hidden_size), MfAttention(hidden_size, num_heads)
        self.norm2, self.mlp = MfRMSNorm(hidden_size), SwiGLUFFN(hidden_size, int(2 / 3 * hidden_size * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size, bias=True))

    def forward(self, x: Tensor, c: Tensor, feat_rope: VisionRotaryEmbeddingFast) -> Tensor:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_msa.unsqueeze(1) * self.attn(modulate(self.norm1(x), shift_msa, scale_msa), rope=feat_rope)
        return x + gate_mlp.unsqueeze(1) * self.mlp(modulate(self.norm2(x), shift_mlp, scale_mlp))


class MfFinalLayer(nn.Module):
    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = MfRMSNorm(hidden_size)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels, bias=True)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size, bias=True))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class MeanFlowDiT(nn.Module):
    def __init__(self, input_size: int = 10, patch_size: int = 2, in_channels: int = 4, hidden_size: int = 48, num_heads: int = 4) -> None:
        super().__init__()
        self.in_channels, self.patch_size, self.grid = in_channels, patch_size, input_size // patch_size
        self.x_embedder = nn.Conv2d(in_channels, hidden_size, kernel_size=patch_size, stride=patch_size)
        self.t_embedder, self.r_embedder = MfTimestepEmbedder(hidden_size), MfTimestepEmbedder(hidden_size)
        self.y_embedder = MfLabelEmbedder(10, hidden_size, 0.1)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid**2, hidden_size), requires_grad=False)
        self.feat_rope = VisionRotaryEmbeddingFast(hidden_size // num_heads // 2, self.grid)
        self.blocks = nn.ModuleList([MfBlock(hidden_size, num_heads) for _ in range(2)])
        self.final_layer = MfFinalLayer(hidden_size, patch_size, in_channels)
        pos = torch.arange(self.grid**2)[:, None] / 10000 ** (torch.arange(hidden_size // 2) * 2 / hidden_size)
        self.pos_embed.data.copy_(torch.cat([pos.sin(), pos.cos()], dim=1).unsqueeze(0))

    def unpatchify(self, x: Tensor) -> Tensor:
        p, h = self.patch_size, self.grid
        x = torch.einsum("nhwpqc->nchpwq", x.reshape(x.shape[0], h, h, p, p, self.in_channels))
        return x.reshape(x.shape[0], self.in_channels, h * p, h * p)

    def forward(self, x: Tensor, t: Tensor, r: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        c = self.t_embedder(t) + self.r_embedder(t - r) + self.y_embedder(y, self.training)
        for block in self.blocks:
            x = block(x, c, self.feat_rope)
        return self.unpatchify(self.final_layer(x, c))


# BLIP-2's first stage: learned queries in a BERT that ask a frozen picture encoder in every other layer, with feed-forwards of their own.
class EvaAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv_bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias))
        qkv = F.linear(input=x, weight=self.qkv.weight, bias=qkv_bias).reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        return self.proj(((q @ k.transpose(-2, -1)).softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, -1))


class EvaBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), EvaAttention(dim, num_heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), TntMlp(dim, int(dim * 2.5))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class EvaVisionTransformer(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, embed_dim, kernel_size=6, stride=6)})
        self.cls_token = nn.Parameter(torch.randn(1, 1, embed_dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 17, embed_dim) * 0.02)
        self.blocks = nn.ModuleList([EvaBlock(embed_dim, num_heads) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        for blk in self.blocks:
            x = blk(x)
        return x


class QfSelfAttention(nn.Module):
    def __init__(self, hidden_size: int, heads: int, encoder_width: int | None = None) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, hidden_size // heads
        self.query = nn.Linear(hidden_size, hidden_size)
        self.key = nn.Linear(encoder_width or hidden_size, hidden_size)
        self.value = nn.Linear(encoder_width or hidden_size, hidden_size)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, encoder_hidden_states: Tensor | None = None) -> Tensor:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        key_layer, value_layer = self.transpose_for_scores(self.key(source)), self.transpose_for_scores(self.value(source))
        query_layer = self.transpose_for_scores(self.query(hidden_states))
        scores = torch.matmul(query_layer, key_layer.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        if attention_mask is not None:
            scores = scores + attention_mask
        return torch.matmul(nn.Softmax(dim=-1)(scores), value_layer).permute(0, 2, 1, 3).flatten(2)


class QfOutput(nn.Module):
    def __init__(self, in_size: int, hidden_size: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(in_size, hidden_size), nn.LayerNorm(hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden_states)) + input_tensor)


class QfAttention(nn.Module):
    def __init__(self, hidden_size: int, heads: int, encoder_width: int | None = None) -> None:
        super().__init__()
        self.self, self.output = QfSelfAttention(hidden_size, heads, encoder_width), QfOutput(hidden_size, hidden_size)

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None, encoder_hidden_states: Tensor | None = None) -> Tensor:
        return self.output(self.self(hidden_states, attention_mask, encoder_hidden_states), hidden_states)


class QfIntermediate(nn.Module):
    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.dense, self.intermediate_act_fn = nn.Linear(hidden_size, intermediate_size), F.gelu

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.intermediate_act_fn(self.dense(hidden_states))


class QfLayer(nn.Module):
    def __init__(self, hidden_size: int, heads: int, intermediate: int, encoder_width: int, layer_num: int) -> None:
        super().__init__()
        self.attention, self.has_cross_attention = QfAttention(hidden_size, heads), layer_num % 2 == 0
        if self.has_cross_attention:
            self.crossattention = QfAttention(hidden_size, heads, encoder_width)
        self.intermediate, self.output = QfIntermediate(hidden_size, intermediate), QfOutput(intermediate, hidden_size)
        self.intermediate_query, self.output_query = QfIntermediate(hidden_size, intermediate), QfOutput(intermediate, hidden_size)

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None, encoder_hidden_states: Tensor | None, query_length: int
    ) -> Tensor:
        attention_output = self.attention(hidden_states, attention_mask)
        query, text = attention_output[:, :query_length], attention_output[:, query_length:]
        outputs = []
        if query_length > 0:
            if self.has_cross_attention:
                query = self.crossattention(query, None, encoder_hidden_states)
            outputs.append(self.output_query(self.intermediate_query(query), query))
        if text.shape[1] > 0:
            outputs.append(self.output(self.intermediate(text), text))
        return torch.cat(outputs, dim=1)


class QfEmbeddings(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(16, hidden_size)
        self.LayerNorm, self.dropout = nn.LayerNorm(hidden_size, eps=1e-12), nn.Dropout(0.1)

    def forward(self, input_ids: Tensor | None, query_embeds: Tensor | None) -> Tensor:
        parts = [] if query_embeds is None else [query_embeds]
        if input_ids is not None:
            parts.append(self.word_embeddings(input_ids) + self.position_embeddings(torch.arange(input_ids.shape[1]).unsqueeze(0)))
        return self.dropout(self.LayerNorm(torch.cat(parts, dim=1)))


class QfBertModel(nn.Module):
    def __init__(self, vocab_size: int, hidden_size: int, heads: int, intermediate: int, encoder_width: int) -> None:
        super().__init__()
        self.embeddings = QfEmbeddings(vocab_size, hidden_size)
        layers = [QfLayer(hidden_size, heads, intermediate, encoder_width, i) for i in range(2)]
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    def forward(
        self,
        input_ids: Tensor | None = None,
        query_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
    ) -> Tensor:
        x = self.embeddings(input_ids, query_embeds)
        for layer in self.encoder["layer"]:
            x = layer(x, attention_mask, encoder_hidden_states, 0 if query_embeds is None else query_embeds.shape[1])
        return x


class QfPredictionHeadTransform(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(hidden_size, hidden_size), nn.LayerNorm(hidden_size, eps=1e-12)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.LayerNorm(F.gelu(self.dense(hidden_states)))


class QfLMHead(nn.Module):
    def __init__(self, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.predictions = nn.ModuleDict(
            {"transform": QfPredictionHeadTransform(hidden_size), "decoder": nn.Linear(hidden_size, vocab_size)}
        )

    def forward(self, sequence_output: Tensor) -> Tensor:
        return self.predictions["decoder"](self.predictions["transform"](sequence_output))


class Blip2Qformer(nn.Module):
    def __init__(self, vocab: int = 77, hidden: int = 36, vit_width: int = 28, num_query_token: int = 5, embed_dim: int = 22) -> None:
        super().__init__()
        self.visual_encoder, self.ln_vision = EvaVisionTransformer(vit_width, 4), nn.LayerNorm(vit_width)
        for param in self.visual_encoder.parameters():
            param.requires_grad = False
        self.Qformer = nn.ModuleDict({"bert": QfBertModel(vocab, hidden, 3, 80, vit_width), "cls": QfLMHead(hidden, vocab)})
        self.query_tokens = nn.Parameter(torch.zeros(1, num_query_token, hidden).normal_(mean=0.0, std=0.02))
        self.vision_proj, self.text_proj = nn.Linear(hidden, embed_dim), nn.Linear(hidden, embed_dim)
        self.itm_head = nn.Linear(hidden, 2)
        self.temp = nn.Parameter(0.07 * torch.ones([]))

    def forward(self, samples: dict[str, Tensor]) -> dict[str, Tensor]:
        bert, ids = self.Qformer["bert"], samples["text_input"]
        image_embeds = self.ln_vision(self.visual_encoder(samples["image"]))
        query_tokens = self.query_tokens.expand(image_embeds.shape[0], -1, -1)
        query_output = bert(query_embeds=query_tokens, encoder_hidden_states=image_embeds)
        image_feats = F.normalize(self.vision_proj(query_output), dim=-1)
        text_feat = F.normalize(self.text_proj(bert(input_ids=ids)[:, 0, :]), dim=-1)
        sim = torch.einsum("bqd,nd->bnq", image_feats, text_feat).max(-1)[0] / self.temp
        loss_itc = F.cross_entropy(sim, torch.arange(len(ids)), label_smoothing=0.1)
        vl = bert(ids, query_tokens, encoder_hidden_states=image_embeds)[:, : query_tokens.size(1)]
        loss_itm = F.cross_entropy(self.itm_head(vl).mean(dim=1), torch.ones(len(ids), dtype=torch.long))
        n, m = query_tokens.size(1), ids.shape[1]
        mask = torch.zeros(n + m, n + m)
        mask[:n, n:] = -10000.0
        mask[n:, n:] = torch.full((m, m), -10000.0).triu(1)
        lm = self.Qformer["cls"](bert(ids, query_tokens, mask, image_embeds)[:, n:-1])
        loss_lm = F.cross_entropy(lm.transpose(1, 2), ids[:, 1:], ignore_index=-100)
        return {"loss": loss_itc + loss_itm + loss_lm, "loss_itc": loss_itc, "loss_itm": loss_itm, "loss_lm": loss_lm}


# CoCa: a picture is pooled by queries; text goes through parallel blocks with one head of keys, alone, then with the picture.
class CocaLayerNorm(nn.Module):
    beta: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))
        self.register_buffer("beta", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class Residual(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.fn(x, *args, **kwargs) + x


class CocaSwiGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * x


class ParallelTransformerBlock(nn.Module):
    inv_freq: Tensor

    def __init__(self, dim: int, dim_head: int = 10, heads: int = 3, ff_mult: int = 2) -> None:
        super().__init__()
        self.norm = CocaLayerNorm(dim)
        attn_inner_dim, ff_inner_dim = dim_head * heads, dim * ff_mult
        self.fused_dims = (attn_inner_dim, dim_head, dim_head, ff_inner_dim * 2)
        self.heads, self.scale = heads, dim_head**-0.5
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, dim_head, 2).float() / dim_head)), persistent=False)
        self.fused_attn_ff_proj = nn.Linear(dim, sum(self.fused_dims), bias=False)
        self.attn_out = nn.Linear(attn_inner_dim, dim, bias=False)
        self.ff_out = nn.Sequential(CocaSwiGLU(), nn.Linear(ff_inner_dim, dim, bias=False))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        b, n, h = x.shape[0], x.shape[1], self.heads
        q, k, v, ff = self.fused_attn_ff_proj(self.norm(x)).split(self.fused_dims, dim=-1)
        q = q.reshape(b, n, h, -1).transpose(1, 2) * self.scale
        freqs = torch.einsum("i,j->ij", torch.arange(n).float(), self.inv_freq)
        pos = torch.cat((freqs, freqs), dim=-1)
        q, k = (t * pos.cos() + torch.cat((-t.chunk(2, -1)[1], t.chunk(2, -1)[0]), dim=-1) * pos.sin() for t in (q, k))
        sim = torch.einsum("b h i d, b j d -> b h i j", q, k)
        sim = sim.masked_fill(torch.ones((n, n), dtype=torch.bool).triu(1), -torch.finfo(sim.dtype).max)
        if attn_mask is not None:
            sim = sim.masked_fill(~attn_mask[:, None], -torch.finfo(sim.dtype).max)
        sim = sim - sim.amax(dim=-1, keepdim=True).detach()
        out = torch.einsum("b h i j, b j d -> b h i d", sim.softmax(dim=-1), v).transpose(1, 2).reshape(b, n, -1)
        return self.attn_out(out) + self.ff_out(ff)


class CocaCrossAttention(nn.Module):
    def __init__(self, dim: int, context_dim: int, dim_head: int = 10, heads: int = 3, parallel_ff: bool = False) -> None:
        super().__init__()
        self.heads, self.scale, inner_dim = heads, dim_head**-0.5, heads * dim_head
        self.norm, self.context_norm = CocaLayerNorm(dim), nn.Identity()
        self.to_q, self.to_kv = nn.Linear(dim, inner_dim, bias=False), nn.Linear(context_dim, dim_head * 2, bias=False)
        self.to_out = nn.Linear(inner_dim, dim, bias=False)
        ff = [nn.Linear(dim, dim * 4, bias=False), CocaSwiGLU(), nn.Linear(dim * 2, dim, bias=False)]
        self.ff = nn.Sequential(*ff) if parallel_ff else None

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x, context = self.norm(x), self.context_norm(context)
        b, n, _ = x.shape
        q = self.to_q(x).reshape(b, n, self.heads, -1).transpose(1, 2) * self.scale
        k, v = self.to_kv(context).chunk(2, dim=-1)
        sim = torch.einsum("b h i d, b j d -> b h i j", q, k)
        attn = (sim - sim.amax(dim=-1, keepdim=True)).softmax(dim=-1)
        out = self.to_out(torch.einsum("b h i j, b j d -> b h i d", attn, v).transpose(1, 2).reshape(b, n, -1))
        return out if self.ff is None else out + self.ff(x)


class SimpleViTAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.scale, self.norm = heads, dim_head**-0.5, nn.LayerNorm(dim)
        self.attend = nn.Softmax(dim=-1)
        self.to_qkv = nn.Linear(dim, heads * dim_head * 3, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (t.reshape(b, n, self.heads, -1).transpose(1, 2) for t in self.to_qkv(self.norm(x)).chunk(3, dim=-1))
        out = torch.matmul(self.attend(torch.matmul(q, k.transpose(-1, -2)) * self.scale), v)
        return self.to_out(out.transpose(1, 2).reshape(b, n, -1))


class SimpleViT(nn.Module):
    def __init__(self, patch_size: int, dim: int, heads: int, dim_head: int, mlp_dim: int) -> None:
        super().__init__()
        patch_dim = 3 * patch_size * patch_size
        self.to_patch_embedding = nn.Sequential(nn.LayerNorm(patch_dim), nn.Linear(patch_dim, dim), nn.LayerNorm(dim))
        self.patch_size, self.layers = patch_size, nn.ModuleList([])
        for _ in range(2):
            ff = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, mlp_dim), nn.GELU(), nn.Linear(mlp_dim, dim))
            self.layers.append(nn.ModuleList([SimpleViTAttention(dim, heads, dim_head), ff]))
        self.norm = nn.LayerNorm(dim)

    def forward(self, img: Tensor) -> Tensor:
        x = self.to_patch_embedding(F.unfold(img, self.patch_size, stride=self.patch_size).transpose(1, 2))
        n, d = x.shape[1], x.shape[2] // 2
        pos = torch.arange(n)[:, None] / 10000 ** (torch.arange(d) / (d - 1))
        x = x + torch.cat((pos.sin(), pos.cos()), dim=1)
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        return self.norm(x)


class EmbedToLatents(nn.Module):
    def __init__(self, dim: int, dim_latents: int) -> None:
        super().__init__()
        self.to_latents = nn.Linear(dim, dim_latents, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.to_latents(x), dim=-1)


class CoCa(nn.Module):
    def __init__(self, dim: int = 34, num_tokens: int = 95, image_dim: int = 26, num_img_queries: int = 6, dim_latents: int = 20) -> None:
        super().__init__()
        self.pad_id = 0
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.text_cls_token = nn.Parameter(torch.randn(dim))
        self.img_encoder = SimpleViT(4, image_dim, heads=4, dim_head=7, mlp_dim=60)
        self.img_queries = nn.Parameter(torch.randn(num_img_queries + 1, dim))
        self.img_attn_pool, self.img_attn_pool_norm = CocaCrossAttention(dim, image_dim), CocaLayerNorm(dim)
        self.text_cls_norm = CocaLayerNorm(dim)
        self.img_to_latents, self.text_to_latents = EmbedToLatents(dim, dim_latents), EmbedToLatents(dim, dim_latents)
        self.temperature = nn.Parameter(torch.tensor(1.0))
        self.unimodal_layers, self.multimodal_layers = nn.ModuleList([]), nn.ModuleList([])
        for _ in range(2):
            self.unimodal_layers.append(Residual(ParallelTransformerBlock(dim)))
        for _ in range(2):
            pair = [Residual(ParallelTransformerBlock(dim)), Residual(CocaCrossAttention(dim, dim, parallel_ff=True))]
            self.multimodal_layers.append(nn.ModuleList(pair))
        self.to_logits = nn.Sequential(CocaLayerNorm(dim), nn.Linear(dim, num_tokens, bias=False))
        self.to_logits[-1].weight = self.token_emb.weight
        nn.init.normal_(self.token_emb.weight, std=0.02)

    def embed_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        batch, seq = text.shape
        text_tokens = torch.cat((self.token_emb(text), self.text_cls_token.expand(batch, 1, -1)), dim=1)
        cls_mask = F.pad((text != self.pad_id).unsqueeze(1), (0, 1, seq, 0), value=True)
        for attn_ff in self.unimodal_layers:
            text_tokens = attn_ff(text_tokens, attn_mask=cls_mask)
        return self.text_cls_norm(text_tokens[:, -1]), text_tokens[:, :-1]

    def embed_image(self, images: Tensor) -> tuple[Tensor, Tensor]:
        image_tokens = self.img_encoder(images)
        img_queries = self.img_attn_pool(self.img_queries.expand(image_tokens.shape[0], -1, -1), image_tokens)
        img_queries = self.img_attn_pool_norm(img_queries)
        return img_queries[:, 0], img_queries[:, 1:]

    def forward(self, text: Tensor, images: Tensor, return_loss: bool = False) -> Tensor:
        text, labels = text[:, :-1], text[:, 1:]
        text_embeds, text_tokens = self.embed_text(text)
        image_embeds, image_tokens = self.embed_image(images)
        for attn_ff, cross_attn in self.multimodal_layers:
            text_tokens = cross_attn(attn_ff(text_tokens), image_tokens)
        logits = self.to_logits(text_tokens)
        if not return_loss:
            return logits
        caption_loss = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=self.pad_id)
        sim = self.text_to_latents(text_embeds) @ self.img_to_latents(image_embeds).t() * self.temperature.exp()
        contrastive_labels = torch.arange(len(text))
        return caption_loss + (F.cross_entropy(sim, contrastive_labels) + F.cross_entropy(sim.t(), contrastive_labels)) * 0.5


_TABLE = {"token_embedding"}
_HIDDEN = {"linear", "mlp_up", "mlp_down"}
_LAST = {"lm_head", "classifier"}
_CONV = {"conv"}
_FIRST = {"conv", "first_conv"}
_PATCH = {"conv", "first_conv", "patch_embedding"}
_POINT = {"conv", "linear", "mlp_up", "mlp_down"}  # kernels of one place
_ONE = {"conv", "linear"}
_PICTURE = {"conv", "classifier"}  # the last convolution
_PLACES = {"position_embedding"}


def _films() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ({("color_aug", f_i, 0): torch.rand(2, 3, 24, 40) for f_i in (0, -1, 1)},), {}


def _pictures_and_words() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return ({"image": torch.randn(3, 3, 24, 24), "text_input": torch.randint(1, 77, (3, 9))},), {}


def _scales() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (torch.randint(12, (2,)), torch.randn(2, 29, 10)), {}


def _two_times() -> tuple[tuple[Any, ...], dict[str, Any]]:
    t, r = torch.rand(2, 3).sort(dim=0, descending=True)[0]
    return (torch.randn(3, 4, 10, 10), t, r, torch.randint(10, (3,))), {}


STYLES: list[Style] = [
    Style(
        "underscores before all names",
        EfficientNet,
        lambda: ((torch.randn(2, 3, 30, 30),), {}),
        {"cnn"},
        {
            "_conv_stem.weight": _FIRST,
            "_blocks.*._expand_conv.weight": {"conv", "linear", "mlp_up"},
            "_blocks.*._depthwise_conv.weight": {"conv_dw"},
            "_blocks.*._se_*.weight": _POINT,
            "_blocks.*._project_conv.weight": {"conv", "linear", "mlp_down"},
            "_conv_head.weight": {"conv", "linear", "mlp_up"},
            "_fc.weight": _LAST,
        },
    ),
    Style(
        "pixels in patches attend too",
        TNT,
        lambda: ((torch.randn(2, 3, 24, 24),), {}),
        {"transformer"},
        {
            "pixel_embed.proj.weight": _PATCH,
            "proj.weight": {"linear", "patch_embedding"},
            "cls_token": {"special_token"},
            "p*_pos": _PLACES,
            "blocks.?.attn_*.qk.weight": {"qkv"},
            "blocks.?.attn_*.v.weight": {"value"},
            "blocks.?.attn_*.proj.weight": {"attn_out"},
            "blocks.?.proj.weight": {"linear"},
            "blocks.*.fc1.weight": {"mlp_up"},
            "blocks.*.fc2.weight": {"mlp_down"},
            "head.weight": _LAST,
        },
        {"blocks.?.attn_in.qk.weight": "q:2x6|k:2x6", "blocks.?.attn_out.qk.weight": "q:4x6|k:4x6"},
    ),
    Style(
        "attention between channels of tokens",
        XCiT,
        lambda: ((torch.randn(2, 3, 32, 48),), {}),
        {"transformer", "hybrid"},
        {
            "patch_embed.proj.0.0.weight": _PATCH,
            "patch_embed.proj.[24].0.weight": {"conv", "patch_embedding"},
            "pos_embeder.token_projection.weight": {"position_embedding", "conv", "linear"},
            "cls_token": {"special_token"},
            "*blocks.*.attn.qkv.weight": {"qkv"},
            "*blocks.*.attn.proj.weight": {"attn_out"},
            "blocks.*.local_mp.conv?.weight": {"conv_dw"},
            "blocks.*.attn.temperature": {"scale", "attn_other"},
            "*blocks.*.mlp.fc1.weight": {"mlp_up"},
            "*blocks.*.mlp.fc2.weight": {"mlp_down"},
            "head.weight": _LAST,
        },
        {"*blocks.*.attn.qkv.weight": "q:4x10|k:4x10|v:4x10"},
    ),
    Style(
        "cleaned without activations",
        NAFNet,
        lambda: ((torch.randn(2, 3, 18, 22),), {}),
        {"cnn"},
        {
            "intro.weight": _FIRST,
            "ending.weight": _PICTURE,
            "*.conv1.weight": {"conv", "linear", "mlp_up", "mlp_gate_up"},  # halves are multiplied after the depthwise convolution
            "*.conv2.weight": {"conv_dw"},
            "*.conv[35].weight": {"conv", "linear", "mlp_down"},
            "*.conv4.weight": {"conv", "linear", "mlp_up", "mlp_gate_up"},
            "*.sca.1.weight": _ONE,
            "*.beta": {"scale"},
            "*.gamma": {"scale"},
            "downs.*.weight": _CONV,
            "ups.*.weight": _ONE,
        },
    ),
    Style(
        "dense blocks in residual blocks in a trunk",
        RRDBNet,
        lambda: ((torch.rand(2, 3, 9, 11),), {}),
        {"cnn"},
        {
            "conv_first.weight": _FIRST,
            "RRDB_trunk.*.conv?.weight": _CONV,
            "trunk_conv.weight": _CONV,
            "upconv?.weight": _CONV,
            "HRconv.weight": _CONV,
            "conv_last.weight": _PICTURE,
        },
    ),
    Style(
        "boxes at several scales of vgg",
        SSD,
        lambda: ((torch.randn(2, 3, 64, 64),), {}),
        {"cnn"},
        {
            "vgg.0.weight": _FIRST,
            "vgg.[257].weight": _CONV,
            "vgg.10.weight": _CONV,
            "vgg.12.weight": _CONV,
            "vgg.15.weight": _CONV,
            "vgg.17.weight": _POINT,
            "extras.[02].weight": _ONE,
            "extras.[13].weight": _CONV,
            "loc.*.weight": _PICTURE,
            "conf.*.weight": _PICTURE,
        },
    ),
    Style(
        "queries look where their mask was",
        MaskFormer,
        lambda: (([{"image": torch.rand(3, 48, 64)} for _ in range(2)],), {}),
        {"transformer", "hybrid"},
        {
            "backbone.stem.weight": _FIRST,
            "backbone.res?.weight": _CONV,
            "sem_seg_head.pixel_decoder.layer_?.weight": _CONV,
            "sem_seg_head.pixel_decoder.adapter_?.weight": _ONE,
            "sem_seg_head.pixel_decoder.mask_features.weight": _CONV,
            "sem_seg_head.predictor.*.in_proj_weight": {"qkv"},
            "sem_seg_head.predictor.*.out_proj.weight": {"attn_out"},
            "sem_seg_head.predictor.*.linear1.weight": {"mlp_up"},
            "sem_seg_head.predictor.*.linear2.weight": {"mlp_down"},
            "sem_seg_head.predictor.query_feat.weight": {"special_token"},
            "sem_seg_head.predictor.query_embed.weight": {"special_token", "position_embedding"},
            "sem_seg_head.predictor.level_embed.weight": {"type_embedding", "position_embedding"},
            "sem_seg_head.predictor.input_proj.?.weight": _ONE,
            "sem_seg_head.predictor.class_embed.weight": _LAST,
            "sem_seg_head.predictor.mask_embed.layers.[01].weight": _HIDDEN,
            "sem_seg_head.predictor.mask_embed.layers.2.weight": _HIDDEN | _LAST,  # its product with the features is the masks
        },
        {"sem_seg_head.predictor.*.in_proj_weight": "q:4x7|k:4x7|v:4x7"},
    ),
    Style(
        "along the height, then the width, gated",
        ResAxialAttentionUNet,
        lambda: ((torch.randn(2, 1, 20, 20),), {}),
        {"hybrid", "transformer"},
        {
            "conv1.weight": _FIRST,
            "conv2.weight": _CONV,
            "layer?.*.conv_down.weight": _POINT,
            "layer?.*.conv_up.weight": _POINT | {"attn_out"},
            "layer?.*.downsample.0.weight": _ONE,
            "layer?.*.qkv_transform.weight": {"qkv"},
            "layer?.*.relative": _PLACES,
            "decoder?.weight": _CONV,
            "adjust.weight": _PICTURE,
        },
        {"layer1.*.qkv_transform.weight": "4*(q:1x2|k:1x2|v:1x4)", "layer2.*.qkv_transform.weight": "4*(q:1x3|k:1x3|v:1x6)"},
    ),
    Style(
        "streams of several depths, one gate",
        OSNet,
        lambda: ((torch.randn(4, 3, 48, 24),), {}),
        {"cnn"},
        {
            "conv1.conv.weight": _FIRST,
            "conv[23].?.conv[13].conv.weight": _POINT,
            "conv[23].?.conv2?.*conv1.weight": _POINT,
            "conv[23].?.conv2?.*conv2.weight": {"conv_dw"},
            "conv[23].?.gate.fc?.weight": _POINT,
            "conv[23].?.downsample.conv.weight": _ONE,
            "conv2.2.0.conv.weight": _ONE,
            "conv5.conv.weight": _ONE,
            "fc.0.weight": _HIDDEN,
            "classifier.weight": _LAST,
        },
    ),
    Style(
        "flow from all pairs, made better in steps",
        RAFT,
        lambda: ((torch.rand(2, 3, 48, 64) * 255, torch.rand(2, 3, 48, 64) * 255), {"iters": 2}),
        {"cnn", "hybrid"},
        {
            "?net.conv1.weight": _FIRST,
            "?net.layer?.conv?.weight": _CONV,
            "?net.layer?.downsample.0.weight": _ONE,
            "?net.conv2.weight": _ONE,
            "update_block.encoder.convc1.weight": _ONE,
            "update_block.encoder.conv[cf]2.weight": _CONV,
            "update_block.encoder.convf1.weight": _FIRST,
            "update_block.encoder.conv.weight": _CONV,
            "update_block.gru.conv??.weight": {"conv", "rnn_ih", "rnn_hh"},
            "update_block.flow_head.conv1.weight": _CONV,
            "update_block.flow_head.conv2.weight": _PICTURE,
            "update_block.mask.0.weight": _CONV,
            "update_block.mask.2.weight": _PICTURE | {"linear"},
        },
    ),
    Style(
        "neighbours among features, found anew",
        DGCNN,
        lambda: ((torch.randn(3, 3, 24),), {}),
        {"gnn", "cnn"},
        {
            "conv1.0.weight": _FIRST | {"gnn_weight", "linear"},
            "conv[23].0.weight": _POINT | {"gnn_weight"},
            "conv4.0.weight": _POINT | {"gnn_weight"},
            "linear[12].weight": _HIDDEN,
            "linear3.weight": _LAST,
        },
    ),
    Style(
        "depth and the camera's moves",
        Monodepth,
        _films,
        {"cnn"},
        {
            "models.*encoder.encoder.conv1.weight": _FIRST,
            "models.*encoder.encoder.layer?.?.conv?.weight": _CONV,
            "models.*encoder.encoder.layer?.?.downsample.0.weight": _ONE,
            "models.depth.decoder.[0-5].conv.conv.weight": _CONV,
            "models.depth.decoder.[67].conv.weight": _PICTURE,
            "models.pose.net.0.weight": _ONE,
            "models.pose.net.[12].weight": _CONV,
            "models.pose.net.3.weight": _PICTURE | {"linear"},
        },
    ),
    Style(
        "words by columns, letters or nothing",
        CRNN,
        lambda: ((torch.randn(2, 1, 16, 48),), {}),
        {"hybrid", "rnn"},
        {
            "cnn.conv0.weight": _FIRST,
            "cnn.conv[1-4].weight": _CONV,
            "rnn.*.rnn.weight_ih_*": {"rnn_ih"},
            "rnn.*.rnn.weight_hh_*": {"rnn_hh"},
            "rnn.0.embedding.weight": _HIDDEN,
            "rnn.1.embedding.weight": _LAST,
        },
    ),
    Style(
        "styles of domains from noise or pictures",
        StarGANv2,
        lambda: ((torch.randn(3, 3, 16, 16), torch.randint(3, (3,)), torch.randn(3, 9)), {}),
        {"cnn"},
        {
            "nets.generator.from_rgb.weight": _FIRST,
            "nets.generator.*code.*.conv[12].weight": _CONV,
            "nets.*.conv1x1.weight": _ONE,
            "nets.generator.decode.*.fc.weight": {"modulation"},
            "nets.generator.to_rgb.2.weight": _PICTURE,
            "nets.mapping_network.shared.*.weight": _HIDDEN,
            "nets.mapping_network.unshared.*.weight": _HIDDEN,
            "nets.style_encoder.shared.0.weight": _FIRST,
            "nets.style_encoder.shared.[12].conv[12].weight": _CONV,
            "nets.style_encoder.shared.4.weight": _CONV,
            "nets.style_encoder.unshared.*.weight": {"linear"} | _LAST,
            "nets.discriminator.main.0.weight": _FIRST,
            "nets.discriminator.main.[12].conv[12].weight": _CONV,
            "nets.discriminator.main.4.weight": _CONV,
            "nets.discriminator.main.6.weight": _PICTURE | {"linear"},
        },
    ),
    Style(
        "latents from coarse to fine",
        VDVAE,
        lambda: ((torch.rand(2, 8, 8, 3), torch.rand(2, 8, 8, 3)), {}),
        {"cnn"},
        {
            "encoder.in_conv.weight": _FIRST,
            "*_blocks.*.c[14].weight": _POINT,
            "encoder.enc_blocks.[0-3].c[23].weight": _CONV,
            "encoder.enc_blocks.4.c[23].weight": _POINT,
            "decoder.dec_blocks.0.*.c[23].weight": _POINT,
            "decoder.dec_blocks.[1-4].*.c[23].weight": _CONV,
            "decoder.dec_blocks.*.z_proj.weight": _ONE,
            "decoder.bias_xs.?": {"position_embedding", "special_token", "bias", "other"},
            "decoder.gain": {"scale", "norm"},
            "decoder.bias": {"bias", "norm"},
            "out_net.out_conv.weight": _PICTURE | {"linear"},
        },
    ),
    Style(
        "the next scale is predicted",
        VAR,
        _scales,
        {"transformer"},
        {
            "word_embed.weight": {"linear", "patch_embedding", "token_embedding"},
            "class_emb.weight": {"token_embedding", "type_embedding"},
            "pos_start": _PLACES,
            "pos_1LC": _PLACES,
            "lvl_embed.weight": {"type_embedding", "position_embedding"},
            "blocks.*.attn.mat_qkv.weight": {"qkv"},
            "blocks.*.attn.scale_mul_1H11": {"scale", "attn_other"},
            "blocks.*.attn.proj.weight": {"attn_out"},
            "blocks.*.ffn.fc1.weight": {"mlp_up"},
            "blocks.*.ffn.fc2.weight": {"mlp_down"},
            "blocks.*.ada_lin.1.weight": {"modulation"},
            "head_nm.ada_lin.1.weight": {"modulation"},
            "head.weight": _LAST,
        },
        {"blocks.*.attn.mat_qkv.weight": "q:3x12|k:3x12|v:3x12"},
    ),
    Style(
        "patches shifted by those before, and backwards",
        TarFlow,
        lambda: ((torch.randn(2, 3, 12, 12), torch.randint(6, (2,))), {}),
        {"transformer"},
        {
            "blocks.*.proj_in.weight": {"linear", "patch_embedding"},
            "blocks.*.pos_embed": _PLACES,
            "blocks.*.class_embed": {"token_embedding", "type_embedding", "special_token"},
            "blocks.*.attention.qkv.weight": {"qkv"},
            "blocks.*.attention.proj.weight": {"attn_out"},
            "blocks.*.mlp.main.0.weight": {"mlp_up"},
            "blocks.*.mlp.main.2.weight": {"mlp_down"},
            "blocks.*.proj_out.weight": _LAST | {"linear", "modulation"},  # how the patches are scaled and shifted
        },
        {"blocks.*.attention.qkv.weight": "q:6x7|k:6x7|v:6x7"},
    ),
    Style(
        "a mean of speeds between two times",
        MeanFlowDiT,
        _two_times,
        {"diffusion_transformer"},
        {
            "x_embedder.weight": _PATCH,
            "?_embedder.mlp.?.weight": {"time_embedding"},
            "y_embedder.embedding_table.weight": {"token_embedding", "type_embedding"},
            "pos_embed": _PLACES,
            "blocks.*.attn.qkv.weight": {"qkv"},
            "blocks.*.attn.proj.weight": {"attn_out"},
            "blocks.*.mlp.w12.weight": {"mlp_gate_up"},
            "blocks.*.mlp.w3.weight": {"mlp_down"},
            "blocks.*.adaLN_modulation.1.weight": {"modulation"},
            "final_layer.adaLN_modulation.1.weight": {"modulation"},
            "final_layer.linear.weight": _LAST,
        },
        {"blocks.*.attn.qkv.weight": "q:4x12|k:4x12|v:4x12"},
    ),
    Style(
        "queries in a reader ask a frozen encoder",
        Blip2Qformer,
        _pictures_and_words,
        {"transformer"},
        {
            "visual_encoder.patch_embed.proj.weight": _PATCH,
            "visual_encoder.cls_token": {"special_token"},
            "visual_encoder.pos_embed": _PLACES,
            "visual_encoder.blocks.*.attn.qkv.weight": {"qkv"},
            "visual_encoder.blocks.*.attn.proj.weight": {"attn_out"},
            "visual_encoder.blocks.*.mlp.fc1.weight": {"mlp_up"},
            "visual_encoder.blocks.*.mlp.fc2.weight": {"mlp_down"},
            "query_tokens": {"special_token"},
            "Qformer.bert.embeddings.word_embeddings.weight": _TABLE,
            "Qformer.bert.embeddings.position_embeddings.weight": _PLACES,
            "Qformer.bert.encoder.*.self.query.weight": {"query"},
            "Qformer.bert.encoder.*.self.key.weight": {"key"},
            "Qformer.bert.encoder.*.self.value.weight": {"value"},
            "Qformer.bert.encoder.*attention.output.dense.weight": {"attn_out"},
            "Qformer.bert.encoder.layer.?.intermediate*.dense.weight": {"mlp_up"},
            "Qformer.bert.encoder.layer.?.output*.dense.weight": {"mlp_down"},
            "Qformer.cls.predictions.transform.dense.weight": _HIDDEN,
            "Qformer.cls.predictions.decoder.weight": _LAST,
            "*_proj.weight": {"linear"} | _LAST,
            "itm_head.weight": _LAST,
        },
        {
            "visual_encoder.blocks.*.attn.qkv.weight": "q:4x7|k:4x7|v:4x7",
            "Qformer.bert.encoder.*.self.query.weight": "q:3x12",
            "Qformer.bert.encoder.*.self.key.weight": "k:3x12",
        },
    ),
    Style(
        "captions and contrast, one head of keys",
        CoCa,
        lambda: ((torch.randint(1, 95, (3, 9)), torch.randn(3, 3, 16, 16)), {"return_loss": True}),
        {"transformer"},
        {
            "token_emb.weight": {"token_embedding", "lm_head"},
            "img_queries": {"special_token"},
            "img_encoder.to_patch_embedding.1.weight": {"patch_embedding", "linear"},
            "img_encoder.layers.*.to_qkv.weight": {"qkv"},
            "img_encoder.layers.*.1.1.weight": {"mlp_up"},
            "img_encoder.layers.*.1.3.weight": {"mlp_down"},
            "*modal_layers.*.fused_attn_ff_proj.weight": {"qkv"},
            "*modal_layers.*.attn_out.weight": {"attn_out"},
            "*modal_layers.*.ff_out.1.weight": {"mlp_down"},
            "*.to_q.weight": {"query"},
            "*.to_kv.weight": {"qkv"},
            "*.to_out.weight": {"attn_out"},
            "multimodal_layers.*.ff.0.weight": {"mlp_gate_up"},
            "multimodal_layers.*.ff.2.weight": {"mlp_down"},
            "*_to_latents.to_latents.weight": {"linear"} | _LAST,
        },
        {
            "img_encoder.layers.*.to_qkv.weight": "q:4x7|k:4x7|v:4x7",
            "*modal_layers.*.fused_attn_ff_proj.weight": "q:3x10|k:1x10|v:1x10|mlp_up:68|mlp_gate:68",
            "*.to_q.weight": "q:3x10",
            "*.to_kv.weight": "k:1x10|v:1x10",
        },
    ),
]
