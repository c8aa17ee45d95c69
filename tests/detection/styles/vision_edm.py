"""UNets of EDM (its own Linear and Conv2d, attention as an autograd function) and EDM2 (weights of fixed length)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# EDM: one class for convolutions, resampling and both at once; without a kernel it has no weight.
class Linear(nn.Module):
    def __init__(self, in_features: int, out_features: int, init_weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * (init_weight / in_features**0.5))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.to(x.dtype).t() + self.bias


class Conv2d(nn.Module):
    resample_filter: Tensor | None

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, up: bool = False, down: bool = False, init_weight: float = 1.0
    ) -> None:
        super().__init__()
        self.in_channels, self.up, self.down = in_channels, up, down
        shape = (out_channels, in_channels, kernel, kernel)
        self.weight = nn.Parameter(torch.randn(shape) * init_weight / (in_channels * kernel**2) ** 0.5) if kernel else None
        self.bias = nn.Parameter(torch.zeros(out_channels)) if kernel else None
        self.register_buffer("resample_filter", torch.full((1, 1, 2, 2), 0.25) if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.resample_filter is not None:
            f = self.resample_filter.tile([self.in_channels, 1, 1, 1])
            if self.up:
                x = F.conv_transpose2d(x, f * 4, groups=self.in_channels, stride=2)
            if self.down:
                x = F.conv2d(x, f, groups=self.in_channels, stride=2)
        if self.weight is not None:
            x = F.conv2d(x, self.weight.to(x.dtype), padding=self.weight.shape[-1] // 2)
        return x if self.bias is None else x + self.bias.reshape(1, -1, 1, 1)


class GroupNorm(nn.Module):
    def __init__(self, num_channels: int, num_groups: int = 4) -> None:
        super().__init__()
        self.num_groups = num_groups
        self.weight, self.bias = nn.Parameter(torch.ones(num_channels)), nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias)


class AttentionOp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        w = torch.einsum("ncq,nck->nqk", q.float(), (k / math.sqrt(k.shape[1])).float()).softmax(dim=2).to(q.dtype)
        ctx.save_for_backward(q, k, w)
        return w

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, w = ctx.saved_tensors
        db = w * (dw - (w * dw).sum(dim=2, keepdim=True)) / math.sqrt(k.shape[1])
        return torch.einsum("nck,nqk->ncq", k, db), torch.einsum("ncq,nqk->nck", q, db)


class UNetBlock(nn.Module):
    def __init__(self, i: int, o: int, emb_channels: int, up: bool = False, down: bool = False, attention: bool = False) -> None:
        super().__init__()
        self.in_channels, self.num_heads = i, o // 8 if attention else 0
        self.norm0, self.conv0 = GroupNorm(i), Conv2d(i, o, kernel=3, up=up, down=down)
        self.affine = Linear(emb_channels, o * 2)
        self.norm1, self.conv1 = GroupNorm(o), Conv2d(o, o, kernel=3, init_weight=1e-2)
        self.skip = Conv2d(i, o, kernel=1 if o != i else 0, up=up, down=down) if o != i or up or down else None
        if self.num_heads:
            self.norm2 = GroupNorm(o)
            self.qkv, self.proj = Conv2d(o, o * 3, kernel=1), Conv2d(o, o, kernel=1, init_weight=1e-2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        orig = x
        x = self.conv0(F.silu(self.norm0(x)))
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, dim=1)
        x = self.conv1(F.silu(torch.addcmul(shift, self.norm1(x), scale + 1)))
        x = x + (orig if self.skip is None else self.skip(orig))
        if self.num_heads:
            n, c, h, w = x.shape
            q, k, v = self.qkv(self.norm2(x)).reshape(n * self.num_heads, c // self.num_heads, 3, -1).unbind(2)
            a = torch.einsum("nqk,nck->ncq", AttentionOp.apply(q, k), v)
            x = self.proj(a.reshape(n, c, h, w)) + x
        return x


class PositionalEmbedding(nn.Module):
    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        x = x.ger((1 / 10000) ** (torch.arange(self.num_channels // 2) / (self.num_channels // 2)))
        return torch.cat([x.cos(), x.sin()], dim=1)


class DhariwalUNet(nn.Module):
    def __init__(self, img_resolution: int = 8, img_channels: int = 3, label_dim: int = 10, mc: int = 16) -> None:
        super().__init__()
        emb, r = 4 * mc, img_resolution
        self.map_noise = PositionalEmbedding(mc)
        self.map_layer0, self.map_layer1 = Linear(mc, emb), Linear(emb, emb)
        self.map_label = Linear(label_dim, emb, init_weight=label_dim**0.5)
        self.enc = nn.ModuleDict()
        self.enc[f"{r}x{r}_conv"] = Conv2d(img_channels, mc, kernel=3)
        self.enc[f"{r}x{r}_block0"] = UNetBlock(mc, mc, emb)
        self.enc[f"{r // 2}x{r // 2}_down"] = UNetBlock(mc, mc, emb, down=True)
        self.enc[f"{r // 2}x{r // 2}_block0"] = UNetBlock(mc, 2 * mc, emb, attention=True)
        self.dec = nn.ModuleDict()
        self.dec[f"{r // 2}x{r // 2}_in0"] = UNetBlock(2 * mc, 2 * mc, emb, attention=True)
        self.dec[f"{r // 2}x{r // 2}_block0"] = UNetBlock(4 * mc, 2 * mc, emb, attention=True)
        self.dec[f"{r // 2}x{r // 2}_block1"] = UNetBlock(3 * mc, 2 * mc, emb, attention=True)
        self.dec[f"{r}x{r}_up"] = UNetBlock(2 * mc, 2 * mc, emb, up=True)
        self.dec[f"{r}x{r}_block0"] = UNetBlock(3 * mc, mc, emb)
        self.dec[f"{r}x{r}_block1"] = UNetBlock(2 * mc, mc, emb)
        self.out_norm, self.out_conv = GroupNorm(mc), Conv2d(mc, img_channels, kernel=3, init_weight=1e-2)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor) -> Tensor:
        emb = self.map_layer1(F.silu(self.map_layer0(self.map_noise(noise_labels))))
        emb = F.silu(emb + self.map_label(class_labels))
        skips: list[Tensor] = []
        for block in self.enc.values():
            x = block(x, emb) if isinstance(block, UNetBlock) else block(x)
            skips.append(x)
        for block in self.dec.values():
            if x.shape[1] != block.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb)
        return self.out_conv(F.silu(self.out_norm(x)))


class EDMPrecond(nn.Module):
    def __init__(self, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.sigma_data, self.model = sigma_data, DhariwalUNet()

    def forward(self, x: Tensor, sigma: Tensor, class_labels: Tensor) -> Tensor:
        sigma = sigma.reshape(-1, 1, 1, 1)
        total = (sigma**2 + self.sigma_data**2).sqrt()
        F_x = self.model(x / total, (sigma.log() / 4).flatten(), class_labels=class_labels)
        return self.sigma_data**2 / total**2 * x + sigma * self.sigma_data / total * F_x


# EDM2: each filter has length one when used and is set to it while training; one class for linear layers and convolutions.
def normalize(x: Tensor, dim: Sequence[int] | None = None, eps: float = 1e-4) -> Tensor:
    dim = list(range(1, x.ndim)) if dim is None else list(dim)
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
    return x / torch.add(eps, norm, alpha=math.sqrt(norm.numel() / x.numel()))


def mp_silu(x: Tensor) -> Tensor:
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float = 0.5) -> Tensor:
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


class MPConv(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel: tuple[int, ...]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *kernel))

    def forward(self, x: Tensor, gain: float | Tensor = 1) -> Tensor:
        w = self.weight
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalize(w))
        w = normalize(w) * (gain / math.sqrt(w[0].numel()))
        return x @ w.t() if w.ndim == 2 else F.conv2d(x, w, padding=(w.shape[-1] // 2,))


class MPFourier(nn.Module):
    freqs: Tensor
    phases: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(num_channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        return (x.ger(self.freqs) + self.phases).cos() * math.sqrt(2)


class Block(nn.Module):
    def __init__(self, i: int, o: int, emb_channels: int, flavor: str, resample_mode: str = "keep", attention: bool = False) -> None:
        super().__init__()
        self.flavor, self.resample_mode, self.num_heads = flavor, resample_mode, o // 8 if attention else 0
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(o if flavor == "enc" else i, o, kernel=(3, 3))
        self.emb_linear = MPConv(emb_channels, o, kernel=())
        self.conv_res1 = MPConv(o, o, kernel=(3, 3))
        self.conv_skip = MPConv(i, o, kernel=(1, 1)) if i != o else None
        self.attn_qkv = MPConv(o, o * 3, kernel=(1, 1)) if attention else None
        self.attn_proj = MPConv(o, o, kernel=(1, 1)) if attention else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.resample_mode != "keep":
            x = F.avg_pool2d(x, 2) if self.resample_mode == "down" else F.interpolate(x, scale_factor=2)
        if self.flavor == "enc":
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), dim=[1])
        y = self.conv_res0(mp_silu(x))
        y = mp_silu(y * (self.emb_linear(emb, gain=self.emb_gain) + 1)[:, :, None, None])
        y = self.conv_res1(y)
        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, t=0.3)
        if self.attn_qkv is not None and self.attn_proj is not None:
            y = self.attn_qkv(x)
            y = y.reshape(y.shape[0], self.num_heads, -1, 3, y.shape[2] * y.shape[3])
            q, k, v = normalize(y, dim=[2]).unbind(3)
            w = torch.einsum("nhcq,nhck->nhqk", q, k / math.sqrt(q.shape[2])).softmax(dim=3)
            y = torch.einsum("nhqk,nhck->nhcq", w, v)
            x = mp_sum(x, self.attn_proj(y.reshape(*x.shape)), t=0.3)
        return x.clip_(-256, 256)


class UNet(nn.Module):
    def __init__(self, img_resolution: int = 8, img_channels: int = 3, label_dim: int = 10, mc: int = 16) -> None:
        super().__init__()
        emb, r = 4 * mc, img_resolution
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier, self.emb_noise, self.emb_label = MPFourier(mc), MPConv(mc, emb, ()), MPConv(label_dim, emb, ())
        self.enc = nn.ModuleDict()
        self.enc[f"{r}x{r}_conv"] = MPConv(img_channels + 1, mc, kernel=(3, 3))
        self.enc[f"{r}x{r}_block0"] = Block(mc, mc, emb, "enc")
        self.enc[f"{r // 2}x{r // 2}_down"] = Block(mc, mc, emb, "enc", "down")
        self.enc[f"{r // 2}x{r // 2}_block0"] = Block(mc, 2 * mc, emb, "enc", attention=True)
        self.dec = nn.ModuleDict()
        self.dec[f"{r // 2}x{r // 2}_in0"] = Block(2 * mc, 2 * mc, emb, "dec", attention=True)
        self.dec[f"{r // 2}x{r // 2}_block0"] = Block(4 * mc, 2 * mc, emb, "dec", attention=True)
        self.dec[f"{r // 2}x{r // 2}_block1"] = Block(3 * mc, 2 * mc, emb, "dec", attention=True)
        self.dec[f"{r}x{r}_up"] = Block(2 * mc, 2 * mc, emb, "dec", "up")
        self.dec[f"{r}x{r}_block0"] = Block(3 * mc, mc, emb, "dec")
        self.dec[f"{r}x{r}_block1"] = Block(2 * mc, mc, emb, "dec")
        self.out_conv = MPConv(mc, img_channels, kernel=(3, 3))

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor) -> Tensor:
        emb = mp_silu(mp_sum(self.emb_noise(self.emb_fourier(noise_labels)), self.emb_label(class_labels * 10**0.5)))
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for name, block in self.enc.items():
            x = block(x) if "conv" in name else block(x, emb)
            skips.append(x)
        for name, block in self.dec.items():
            if "block" in name:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb)
        return self.out_conv(x, gain=self.out_gain)


STYLES: list[Style] = [
    Style(
        "edm",
        EDMPrecond,
        lambda: ((torch.randn(1, 3, 8, 8), torch.rand(1) + 0.1), {"class_labels": torch.eye(10)[:1]}),
        {"diffusion_unet"},
        {
            "model.map_layer?.weight": {"time_embedding"},
            "model.map_label.weight": {"time_embedding", "linear", "token_embedding", "type_embedding"},
            "*.affine.weight": {"time_embedding", "modulation", "linear"},
            "*.conv?.weight": {"conv"},
            "*.qkv.weight": {"qkv"},
            "*.proj.weight": {"attn_out"},
            "model.out_conv.weight": {"conv", "classifier", "lm_head"},
        },
        {"*.qkv.weight": "4*[q,k,v]x8"},
    ),
    Style(
        "edm2",
        UNet,
        lambda: ((torch.randn(1, 3, 8, 8), torch.rand(1), torch.eye(10)[:1]), {}),
        {"diffusion_unet"},
        {
            "emb_noise.weight": {"time_embedding"},
            "emb_label.weight": {"time_embedding", "linear", "token_embedding", "type_embedding"},
            "*.emb_linear.weight": {"time_embedding", "modulation", "linear"},
            "*.conv_res?.weight": {"conv"},
            "*.attn_qkv.weight": {"qkv"},
            "*.attn_proj.weight": {"attn_out"},
            "out_conv.weight": {"conv", "classifier", "lm_head"},
        },
        {"*.attn_qkv.weight": "4*[q,k,v]x8"},
    ),
]
