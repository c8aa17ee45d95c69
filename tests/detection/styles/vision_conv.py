"""Convolutional networks that something in their names makes look like others: CBAM, ConvNeXt, a UNet without time, a GAN."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# CBAM and squeeze-and-excitation: "attention" that has no query and no key.
class ChannelAttention(nn.Module):
    def __init__(self, in_planes: int, ratio: int = 4) -> None:
        super().__init__()
        self.fc = nn.Sequential(
            nn.Conv2d(in_planes, in_planes // ratio, 1, bias=False), nn.ReLU(), nn.Conv2d(in_planes // ratio, in_planes, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc(F.adaptive_avg_pool2d(x, 1)) + self.fc(F.adaptive_max_pool2d(x, 1)))


class SpatialAttention(nn.Module):
    def __init__(self, kernel_size: int = 7) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 1, kernel_size, padding=kernel_size // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv1(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)))


class SELayer(nn.Module):
    def __init__(self, channel: int, reduction: int = 4) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channel, channel // reduction), nn.ReLU(), nn.Linear(channel // reduction, channel), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class BasicBlock(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
        self.ca, self.sa, self.se = ChannelAttention(planes), SpatialAttention(), SELayer(planes)
        self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out = self.ca(out) * out
        return F.relu(self.se(self.sa(out) * out) + self.downsample(x))


class AttentionResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 32, 2))
        self.fc = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layer1(F.relu(self.bn1(self.conv1(x)))).mean((2, 3)))


# ConvNeXt: pointwise convolutions written as Linear.
class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim)
        self.pwconv1, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(1e-2 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))).permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self, dims: tuple[int, ...] = (16, 32)) -> None:
        super().__init__()
        self.downsample_layers = nn.ModuleList([nn.Conv2d(3, dims[0], 4, 4), nn.Conv2d(dims[0], dims[1], 2, 2)])
        self.stages = nn.ModuleList([nn.Sequential(ConvNeXtBlock(dim), ConvNeXtBlock(dim)) for dim in dims])
        self.norm, self.head = nn.LayerNorm(dims[-1]), nn.Linear(dims[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        for down, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = stage(down(x))
        return self.head(self.norm(x.mean([-2, -1])))


# A UNet that segments: down, up and joined features, but no time.
class DoubleConv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in (in_channels, out_channels):
            layers += [nn.Conv2d(i, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels), nn.ReLU()]
        self.double_conv = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.double_conv(x)


class Down(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, out_channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, in_channels // 2, kernel_size=2, stride=2)
        self.conv = DoubleConv(in_channels, out_channels)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.conv(torch.cat([x2, self.up(x1)], dim=1))


class UNet(nn.Module):
    def __init__(self, n_channels: int = 3, n_classes: int = 2) -> None:
        super().__init__()
        self.inc = DoubleConv(n_channels, 8)
        self.down1, self.down2 = Down(8, 16), Down(16, 32)
        self.up1, self.up2 = Up(32, 16), Up(16, 8)
        self.outc = nn.Conv2d(8, n_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x = self.up1(self.down2(x2), x2)
        return self.outc(self.up2(x, x1))


# StyleGAN2: weights scaled when used, one 5-D weight per modulated convolution, a mapping network.
class EqualConv2d(nn.Module):
    def __init__(self, in_channel: int, out_channel: int, kernel_size: int, stride: int = 1, padding: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channel, in_channel, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channel))
        self.scale = 1 / math.sqrt(in_channel * kernel_size**2)
        self.stride, self.padding = stride, padding

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * self.scale, bias=self.bias, stride=self.stride, padding=self.padding)


class EqualLinear(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, lr_mul: float = 1.0, bias_init: float = 0.0, activation: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim).div_(lr_mul))
        self.bias = nn.Parameter(torch.full((out_dim,), bias_init))
        self.activation, self.scale, self.lr_mul = activation, lr_mul / math.sqrt(in_dim), lr_mul

    def forward(self, input: Tensor) -> Tensor:
        out = F.linear(input, self.weight * self.scale, self.bias * self.lr_mul)
        return F.leaky_relu(out, 0.2) if self.activation else out


class ModulatedConv2d(nn.Module):
    def __init__(self, in_channel: int, out_channel: int, kernel_size: int, style_dim: int, demodulate: bool = True) -> None:
        super().__init__()
        self.out_channel, self.padding, self.demodulate = out_channel, kernel_size // 2, demodulate
        self.scale = 1 / math.sqrt(in_channel * kernel_size**2)
        self.weight = nn.Parameter(torch.randn(1, out_channel, in_channel, kernel_size, kernel_size))
        self.modulation = EqualLinear(style_dim, in_channel, bias_init=1.0)

    def forward(self, input: Tensor, style: Tensor) -> Tensor:
        batch, in_channel, height, width = input.shape
        weight = self.scale * self.weight * self.modulation(style).view(batch, 1, in_channel, 1, 1)
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4], keepdim=True) + 1e-8)
        out = F.conv2d(input.reshape(1, -1, height, width), weight.flatten(0, 1), padding=self.padding, groups=batch)
        return out.view(batch, self.out_channel, height, width)


class StyledConv(nn.Module):
    def __init__(self, in_channel: int, out_channel: int, style_dim: int) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(in_channel, out_channel, 3, style_dim)
        self.noise = nn.Parameter(torch.zeros(1))
        self.bias = nn.Parameter(torch.zeros(1, out_channel, 1, 1))

    def forward(self, input: Tensor, style: Tensor) -> Tensor:
        out = self.conv(input, style)
        return F.leaky_relu(out + self.noise * torch.randn_like(out[:, :1]) + self.bias, 0.2)


class Generator(nn.Module):
    def __init__(self, style_dim: int = 16, n_mlp: int = 3) -> None:
        super().__init__()
        self.style = nn.Sequential(*(EqualLinear(style_dim, style_dim, lr_mul=0.01, activation=True) for _ in range(n_mlp)))
        self.input = nn.Parameter(torch.randn(1, 16, 4, 4))
        self.conv1 = StyledConv(16, 16, style_dim)
        self.convs = nn.ModuleList([StyledConv(16, 8, style_dim), StyledConv(8, 8, style_dim)])
        self.to_rgb = ModulatedConv2d(8, 3, 1, style_dim, demodulate=False)

    def forward(self, styles: Tensor) -> Tensor:
        latent = self.style(styles * torch.rsqrt(styles.pow(2).mean(1, keepdim=True) + 1e-8))
        out = self.conv1(self.input.repeat(len(latent), 1, 1, 1), latent)
        for conv in self.convs:
            out = conv(F.interpolate(out, scale_factor=2), latent)
        return self.to_rgb(out, latent)


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(EqualConv2d(3, 8, 1), nn.LeakyReLU(0.2), EqualConv2d(8, 16, 3, 2, 1), nn.LeakyReLU(0.2))
        self.final_conv = EqualConv2d(16, 16, 3, 2, 1)
        self.final_linear = nn.Sequential(EqualLinear(16 * 4 * 4, 16, activation=True), EqualLinear(16, 1))

    def forward(self, input: Tensor) -> Tensor:
        return self.final_linear(self.final_conv(self.convs(input)).flatten(1))


class StyleGAN2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator, self.discriminator = Generator(), Discriminator()

    def forward(self, z: Tensor) -> Tensor:
        return self.discriminator(self.generator(z))


def image() -> tuple[tuple[Tensor], dict[str, Tensor]]:
    return (torch.randn(2, 3, 32, 32),), {}


STYLES: list[Style] = [
    Style(
        "cbam and se",
        AttentionResNet,
        image,
        {"cnn"},
        {
            "layer1.*.conv?.weight": {"conv"},
            "layer1.*.ca.fc.*.weight": {"conv", "linear", "attn_other", "mlp_up", "mlp_down"},
            "layer1.*.se.fc.*.weight": {"linear", "attn_other", "mlp_up", "mlp_down"},
            "fc.weight": {"classifier"},
        },
    ),
    Style(
        "convnext",
        ConvNeXt,
        image,
        {"cnn"},
        {
            "stages.*.dwconv.weight": {"conv_dw"},
            "stages.*.pwconv1.weight": {"mlp_up", "conv"},
            "stages.*.pwconv2.weight": {"mlp_down", "conv"},
            "head.weight": {"classifier"},
        },
    ),
    Style(
        "segmentation unet",
        UNet,
        image,
        {"cnn"},
        {
            "inc.double_conv.0.weight": {"first_conv", "conv"},
            "down?.*.weight": {"conv", "norm"},
            "up?.up.weight": {"conv"},
            "up?.conv.*.weight": {"conv", "norm"},
            "outc.weight": {"classifier", "conv"},
        },
    ),
    Style(
        "stylegan2",
        StyleGAN2,
        lambda: ((torch.randn(2, 16),), {}),
        {"cnn"},
        {
            "generator.style.*.weight": {"linear", "mlp_up", "modulation"},
            "generator.*.modulation.weight": {"modulation", "linear"},
            "generator.*conv.weight": {"conv", "first_conv"},
            "discriminator.convs.2.weight": {"conv"},
            "discriminator.final_conv.weight": {"conv"},
            "discriminator.final_linear.0.weight": {"linear", "mlp_up"},
            "discriminator.final_linear.1.weight": {"classifier", "linear"},
        },
    ),
]
