"""UNets of DDIM (levels with lists of blocks) and NCSN++ (all modules in one list, read by a running index)."""

# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportIndexIssue=false, reportOperatorIssue=false
# (modules are filled with attributes from outside, as in public code)

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


def get_timestep_embedding(timesteps: Tensor, embedding_dim: int) -> Tensor:
    half = embedding_dim // 2
    emb = timesteps.float()[:, None] * torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))[None, :]
    return torch.cat([torch.sin(emb), torch.cos(emb)], dim=1)


def nonlinearity(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class ResnetBlock(nn.Module):
    def __init__(self, *, in_channels: int, out_channels: int, temb_channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, in_channels), nn.Conv2d(in_channels, out_channels, 3, 1, 1)
        self.temb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2, self.conv2 = nn.GroupNorm(4, out_channels), nn.Conv2d(out_channels, out_channels, 3, 1, 1)
        self.in_channels, self.out_channels = in_channels, out_channels
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.conv1(nonlinearity(self.norm1(x)))
        h = h + self.temb_proj(nonlinearity(temb))[:, :, None, None]
        h = self.conv2(nonlinearity(self.norm2(h)))
        return (x if self.in_channels == self.out_channels else self.nin_shortcut(x)) + h


class AttnBlock(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, in_channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(in_channels, in_channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h_ = self.norm(x)
        q, k, v = self.q(h_), self.k(h_), self.v(h_)
        b, c, h, w = q.shape
        w_ = torch.bmm(q.reshape(b, c, h * w).permute(0, 2, 1), k.reshape(b, c, h * w)) * (int(c) ** (-0.5))
        w_ = F.softmax(w_, dim=2)
        h_ = torch.bmm(v.reshape(b, c, h * w), w_.permute(0, 2, 1)).reshape(b, c, h, w)
        return x + self.proj_out(h_)


class Model(nn.Module):
    def __init__(self, ch: int = 16, ch_mult: tuple[int, ...] = (1, 2), num_res_blocks: int = 1) -> None:
        super().__init__()
        self.ch, self.temb_ch, self.num_resolutions, self.num_res_blocks = ch, ch * 4, len(ch_mult), num_res_blocks
        self.temb = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(ch, self.temb_ch), nn.Linear(self.temb_ch, self.temb_ch)])
        self.conv_in = nn.Conv2d(3, ch, 3, 1, 1)
        in_ch_mult = (1, *ch_mult)
        self.down = nn.ModuleList()
        block_in = ch
        for i_level in range(self.num_resolutions):
            block, attn = nn.ModuleList(), nn.ModuleList()
            block_in, block_out = ch * in_ch_mult[i_level], ch * ch_mult[i_level]
            for _ in range(num_res_blocks):
                block.append(ResnetBlock(in_channels=block_in, out_channels=block_out, temb_channels=self.temb_ch))
                block_in = block_out
                if i_level == 1:
                    attn.append(AttnBlock(block_in))
            down = nn.Module()
            down.block, down.attn = block, attn
            if i_level != self.num_resolutions - 1:
                down.downsample = nn.Conv2d(block_in, block_in, 3, 2, 1)
            self.down.append(down)
        self.mid = nn.Module()
        self.mid.block_1 = ResnetBlock(in_channels=block_in, out_channels=block_in, temb_channels=self.temb_ch)
        self.mid.attn_1 = AttnBlock(block_in)
        self.mid.block_2 = ResnetBlock(in_channels=block_in, out_channels=block_in, temb_channels=self.temb_ch)
        self.up = nn.ModuleList()
        for i_level in reversed(range(self.num_resolutions)):
            block, attn = nn.ModuleList(), nn.ModuleList()
            block_out = skip_in = ch * ch_mult[i_level]
            for i_block in range(num_res_blocks + 1):
                if i_block == num_res_blocks:
                    skip_in = ch * in_ch_mult[i_level]
                block.append(ResnetBlock(in_channels=block_in + skip_in, out_channels=block_out, temb_channels=self.temb_ch))
                block_in = block_out
                if i_level == 1:
                    attn.append(AttnBlock(block_in))
            up = nn.Module()
            up.block, up.attn = block, attn
            if i_level != 0:
                up.upsample = nn.Conv2d(block_in, block_in, 3, 1, 1)
            self.up.insert(0, up)
        self.norm_out, self.conv_out = nn.GroupNorm(4, block_in), nn.Conv2d(block_in, 3, 3, 1, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        temb = self.temb.dense[1](nonlinearity(self.temb.dense[0](get_timestep_embedding(t, self.ch))))
        hs = [self.conv_in(x)]
        for i_level in range(self.num_resolutions):
            for i_block in range(self.num_res_blocks):
                h = self.down[i_level].block[i_block](hs[-1], temb)
                if len(self.down[i_level].attn) > 0:
                    h = self.down[i_level].attn[i_block](h)
                hs.append(h)
            if i_level != self.num_resolutions - 1:
                hs.append(self.down[i_level].downsample(hs[-1]))
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(hs[-1], temb)), temb)
        for i_level in reversed(range(self.num_resolutions)):
            for i_block in range(self.num_res_blocks + 1):
                h = self.up[i_level].block[i_block](torch.cat([h, hs.pop()], dim=1), temb)
                if len(self.up[i_level].attn) > 0:
                    h = self.up[i_level].attn[i_block](h)
            if i_level != 0:
                h = self.up[i_level].upsample(F.interpolate(h, scale_factor=2.0))
        return self.conv_out(nonlinearity(self.norm_out(h)))


# NCSN++: 1x1 layers are (in, out) weights, layers are numbered by class.
class NIN(nn.Module):
    def __init__(self, in_dim: int, num_units: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(in_dim, num_units) * in_dim**-0.5)
        self.b = nn.Parameter(torch.zeros(num_units))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("bhwc,cd->bhwd", x.permute(0, 2, 3, 1), self.W) + self.b
        return y.permute(0, 3, 1, 2)


class AttnBlockpp(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.GroupNorm_0 = nn.GroupNorm(4, channels)
        self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (NIN(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        h = self.GroupNorm_0(x)
        q, k, v = self.NIN_0(h), self.NIN_1(h), self.NIN_2(h)
        w = torch.einsum("bchw,bcij->bhwij", q, k) * (int(C) ** (-0.5))
        w = F.softmax(w.reshape(B, H, W, H * W), dim=-1).reshape(B, H, W, H, W)
        h = torch.einsum("bhwij,bcij->bchw", w, v)
        return (x + self.NIN_3(h)) / math.sqrt(2.0)


class ResnetBlockDDPMpp(nn.Module):
    def __init__(self, in_ch: int, out_ch: int, temb_dim: int) -> None:
        super().__init__()
        self.act = nn.SiLU()
        self.GroupNorm_0, self.Conv_0 = nn.GroupNorm(4, in_ch), nn.Conv2d(in_ch, out_ch, 3, padding=1)
        self.Dense_0 = nn.Linear(temb_dim, out_ch)
        self.GroupNorm_1, self.Conv_1 = nn.GroupNorm(4, out_ch), nn.Conv2d(out_ch, out_ch, 3, padding=1)
        if in_ch != out_ch:
            self.NIN_0 = NIN(in_ch, out_ch)
        self.in_ch, self.out_ch = in_ch, out_ch

    def forward(self, x: Tensor, temb: Tensor) -> Tensor:
        h = self.Conv_0(self.act(self.GroupNorm_0(x))) + self.Dense_0(self.act(temb))[:, :, None, None]
        h = self.Conv_1(self.act(self.GroupNorm_1(h)))
        return ((x if self.in_ch == self.out_ch else self.NIN_0(x)) + h) / math.sqrt(2.0)


class GaussianFourierProjection(nn.Module):
    def __init__(self, embedding_size: int, scale: float = 16.0) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(embedding_size) * scale, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x_proj = x[:, None] * self.W[None, :] * 2 * math.pi
        return torch.cat([torch.sin(x_proj), torch.cos(x_proj)], dim=-1)


class NCSNpp(nn.Module):
    def __init__(self, nf: int = 16) -> None:
        super().__init__()
        self.act = nn.SiLU()
        temb = nf * 4
        modules: list[nn.Module] = [
            GaussianFourierProjection(nf),
            nn.Linear(2 * nf, temb),
            nn.Linear(temb, temb),
            nn.Conv2d(3, nf, 3, 1, 1),
        ]
        modules += [ResnetBlockDDPMpp(nf, nf, temb), nn.Conv2d(nf, nf, 3, 2, 1)]
        modules += [ResnetBlockDDPMpp(nf, 2 * nf, temb), AttnBlockpp(2 * nf)]
        modules += [ResnetBlockDDPMpp(2 * nf, 2 * nf, temb), AttnBlockpp(2 * nf), ResnetBlockDDPMpp(2 * nf, 2 * nf, temb)]
        modules += [ResnetBlockDDPMpp(4 * nf, 2 * nf, temb), ResnetBlockDDPMpp(3 * nf, 2 * nf, temb), AttnBlockpp(2 * nf)]
        modules += [
            ResnetBlockDDPMpp(3 * nf, nf, temb),
            ResnetBlockDDPMpp(2 * nf, nf, temb),
            nn.GroupNorm(4, nf),
            nn.Conv2d(nf, 3, 3, 1, 1),
        ]
        self.all_modules = nn.ModuleList(modules)

    def forward(self, x: Tensor, time_cond: Tensor) -> Tensor:
        modules = self.all_modules
        m_idx = 0
        temb = modules[m_idx](torch.log(time_cond))
        temb = modules[m_idx + 1](temb)
        temb = modules[m_idx + 2](self.act(temb))
        hs = [modules[m_idx + 3](x)]
        m_idx += 4
        hs.append(modules[m_idx](hs[-1], temb))
        hs.append(modules[m_idx + 1](hs[-1]))
        h = modules[m_idx + 3](modules[m_idx + 2](hs[-1], temb))
        hs.append(h)
        m_idx += 4
        h = modules[m_idx + 2](modules[m_idx + 1](modules[m_idx](h, temb)), temb)
        m_idx += 3
        for _ in range(2):
            h = modules[m_idx](torch.cat([h, hs.pop()], dim=1), temb)
            m_idx += 1
        h = F.interpolate(modules[m_idx](h), scale_factor=2)
        m_idx += 1
        for _ in range(2):
            h = modules[m_idx](torch.cat([h, hs.pop()], dim=1), temb)
            m_idx += 1
        return modules[m_idx + 1](self.act(modules[m_idx](h)))


STYLES: list[Style] = [
    Style(
        "ddim",
        Model,
        lambda: ((), {"x": torch.randn(1, 3, 8, 8), "t": torch.tensor([7])}),
        {"diffusion_unet"},
        {
            "temb.dense.?.weight": {"time_embedding"},
            "*.temb_proj.weight": {"time_embedding", "modulation", "linear"},
            "*.conv1.weight": {"conv"},
            "*.q.weight": {"query"},
            "*.k.weight": {"key"},
            "*.v.weight": {"value"},
            "*.proj_out.weight": {"attn_out"},
            "conv_out.weight": {"conv", "classifier", "lm_head"},
        },
        {"*.q.weight": "q:1x32", "*.k.weight": "k:1x32"},
    ),
    Style(
        "ncsn++",
        NCSNpp,
        lambda: ((torch.randn(1, 3, 8, 8), torch.rand(1) + 0.1), {}),
        {"diffusion_unet"},
        {
            "all_modules.[12].weight": {"time_embedding"},
            "all_modules.*.Dense_0.weight": {"time_embedding", "modulation", "linear"},
            "all_modules.*.Conv_?.weight": {"conv"},
            "all_modules.[79].NIN_0.W": {"query"},
            "all_modules.[79].NIN_1.W": {"key"},
            "all_modules.[79].NIN_2.W": {"value"},
            "all_modules.[79].NIN_3.W": {"attn_out"},
            "all_modules.13.NIN_0.W": {"query"},
            "all_modules.13.NIN_1.W": {"key"},
        },
        {
            "all_modules.[79].NIN_0.W": "q:1x32@1",
            "all_modules.[79].NIN_1.W": "k:1x32@1",
            "all_modules.13.NIN_0.W": "q:1x32@1",
            "all_modules.13.NIN_1.W": "k:1x32@1",
        },
    ),
]
