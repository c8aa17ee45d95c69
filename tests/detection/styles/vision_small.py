"""UNets of tutorials and of robots: downs and ups with attention in between, and one over a sequence of actions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


class SinusoidalPosEmb(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        half = self.dim // 2
        emb = x[:, None].float() * torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))[None, :]
        return torch.cat((emb.sin(), emb.cos()), dim=-1)


class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5


class Block(nn.Module):
    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.proj, self.norm, self.act = nn.Conv2d(dim, dim_out, 3, padding=1), RMSNorm(dim_out), nn.SiLU()

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            x = x * (scale_shift[0] + 1) + scale_shift[1]
        return self.act(x)


class ResnetBlock(nn.Module):
    def __init__(self, dim: int, dim_out: int, time_emb_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_emb_dim, dim_out * 2))
        self.block1, self.block2 = Block(dim, dim_out), Block(dim_out, dim_out)
        self.res_conv = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x: Tensor, time_emb: Tensor) -> Tensor:
        scale, shift = self.mlp(time_emb)[:, :, None, None].chunk(2, dim=1)
        return self.block2(self.block1(x, scale_shift=(scale, shift))) + self.res_conv(x)


class LinearAttention(nn.Module):
    """Softmax over each of query and key, no scores between them."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.scale, self.heads = dim_head**-0.5, heads
        self.norm = RMSNorm(dim)
        self.to_qkv = nn.Conv2d(dim, heads * dim_head * 3, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * dim_head, dim, 1), RMSNorm(dim))

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (t.reshape(b, self.heads, -1, h * w) for t in self.to_qkv(self.norm(x)).chunk(3, dim=1))
        q, k = q.softmax(dim=-2) * self.scale, k.softmax(dim=-1)
        context = torch.einsum("bhdn,bhen->bhde", k, v)
        return self.to_out(torch.einsum("bhde,bhdn->bhen", context, q).reshape(b, -1, h, w))


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.scale, self.heads = dim_head**-0.5, heads
        self.norm = RMSNorm(dim)
        self.to_qkv = nn.Conv2d(dim, heads * dim_head * 3, 1, bias=False)
        self.to_out = nn.Conv2d(heads * dim_head, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = (t.reshape(b, self.heads, -1, h * w) for t in self.to_qkv(self.norm(x)).chunk(3, dim=1))
        sim = torch.einsum("bhdi,bhdj->bhij", q * self.scale, k)
        out = torch.einsum("bhij,bhdj->bhid", sim.softmax(dim=-1), v)
        return self.to_out(out.transpose(2, 3).reshape(b, -1, h, w))


class Unet(nn.Module):
    def __init__(self, dim: int = 16, heads: int = 2, dim_head: int = 12) -> None:
        super().__init__()
        time_dim = dim * 4
        self.init_conv = nn.Conv2d(3, dim, 7, padding=3)
        self.time_mlp = nn.Sequential(SinusoidalPosEmb(dim), nn.Linear(dim, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim))
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i, o, last in ((dim, dim, False), (dim, 2 * dim, True)):
            attn = (Attention if last else LinearAttention)(i, heads, dim_head)
            down = nn.Conv2d(i, o, 3, padding=1) if last else nn.Conv2d(i, o, 4, 2, 1)
            self.downs.append(nn.ModuleList([ResnetBlock(i, i, time_dim), ResnetBlock(i, i, time_dim), attn, down]))
        self.mid_block1 = ResnetBlock(2 * dim, 2 * dim, time_dim)
        self.mid_attn = Attention(2 * dim, heads, dim_head)
        self.mid_block2 = ResnetBlock(2 * dim, 2 * dim, time_dim)
        for i, o, last in ((dim, 2 * dim, False), (dim, dim, True)):
            attn = (LinearAttention if last else Attention)(o, heads, dim_head)
            up = nn.Sequential(nn.Identity() if last else nn.Upsample(scale_factor=2), nn.Conv2d(o, i, 3, padding=1))
            self.ups.append(nn.ModuleList([ResnetBlock(o + i, o, time_dim), ResnetBlock(o + i, o, time_dim), attn, up]))
        self.final_res_block, self.final_conv = ResnetBlock(2 * dim, dim, time_dim), nn.Conv2d(dim, 3, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.init_conv(x)
        r, t, h = x.clone(), self.time_mlp(time), []
        for block1, block2, attn, downsample in self.downs:  # pyright: ignore[reportGeneralTypeIssues]
            x = block1(x, t)
            h.append(x)
            x = block2(x, t)
            x = attn(x) + x
            h.append(x)
            x = downsample(x)
        x = self.mid_block1(x, t)
        x = self.mid_attn(x) + x
        x = self.mid_block2(x, t)
        for block1, block2, attn, upsample in self.ups:  # pyright: ignore[reportGeneralTypeIssues]
            x = block1(torch.cat((x, h.pop()), dim=1), t)
            x = block2(torch.cat((x, h.pop()), dim=1), t)
            x = attn(x) + x
            x = upsample(x)
        return self.final_conv(self.final_res_block(torch.cat((x, r), dim=1), t))


# Diffusion policy, trained by flow matching: one-dimensional convolutions over time, told the observation and the step.
class Conv1dBlock(nn.Module):
    def __init__(self, inp_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        conv = nn.Conv1d(inp_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.block = nn.Sequential(conv, nn.GroupNorm(4, out_channels), nn.Mish())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class ConditionalResidualBlock1D(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, cond_dim: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [Conv1dBlock(in_channels, out_channels, kernel_size), Conv1dBlock(out_channels, out_channels, kernel_size)]
        )
        self.out_channels = out_channels
        self.cond_encoder = nn.Sequential(nn.Mish(), nn.Linear(cond_dim, out_channels * 2), nn.Unflatten(-1, (-1, 1)))
        self.residual_conv = nn.Conv1d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        out = self.blocks[0](x)
        scale, bias = self.cond_encoder(cond).reshape(len(x), 2, self.out_channels, 1).unbind(1)
        return self.blocks[1](scale * out + bias) + self.residual_conv(x)


class ConditionalUnet1D(nn.Module):
    def __init__(
        self, input_dim: int = 7, global_cond_dim: int = 20, step_embed_dim: int = 16, down_dims: tuple[int, ...] = (16, 32)
    ) -> None:
        super().__init__()
        s = step_embed_dim
        self.diffusion_step_encoder = nn.Sequential(SinusoidalPosEmb(s), nn.Linear(s, s * 4), nn.Mish(), nn.Linear(s * 4, s))
        cond, (a, b) = s + global_cond_dim, down_dims
        block = ConditionalResidualBlock1D
        self.mid_modules = nn.ModuleList([block(b, b, cond), block(b, b, cond)])
        self.down_modules = nn.ModuleList(
            [
                nn.ModuleList([block(input_dim, a, cond), block(a, a, cond), nn.Conv1d(a, a, 3, 2, 1)]),
                nn.ModuleList([block(a, b, cond), block(b, b, cond), nn.Identity()]),
            ]
        )
        self.up_modules = nn.ModuleList([nn.ModuleList([block(b * 2, a, cond), block(a, a, cond), nn.ConvTranspose1d(a, a, 4, 2, 1)])])
        self.final_conv = nn.Sequential(Conv1dBlock(a, a, 3), nn.Conv1d(a, input_dim, 1))

    def forward(self, sample: Tensor, timestep: Tensor, global_cond: Tensor) -> Tensor:
        x = sample.transpose(1, 2)
        global_feature = torch.cat([self.diffusion_step_encoder(timestep), global_cond], axis=-1)  # pyright: ignore[reportCallIssue]
        h = []
        for resnet, resnet2, downsample in self.down_modules:  # pyright: ignore[reportGeneralTypeIssues]
            x = resnet2(resnet(x, global_feature), global_feature)
            h.append(x)
            x = downsample(x)
        for mid_module in self.mid_modules:
            x = mid_module(x, global_feature)
        for resnet, resnet2, upsample in self.up_modules:  # pyright: ignore[reportGeneralTypeIssues]
            x = resnet(torch.cat((x, h.pop()), dim=1), global_feature)
            x = upsample(resnet2(x, global_feature))
        return self.final_conv(x).transpose(1, 2)


STYLES: list[Style] = [
    Style(
        "downs and ups",
        Unet,
        lambda: ((torch.randn(1, 3, 8, 8),), {"time": torch.tensor([7])}),
        {"diffusion_unet"},
        {
            "time_mlp.?.weight": {"time_embedding"},
            "*.mlp.1.weight": {"time_embedding", "modulation", "linear"},
            "*.block?.proj.weight": {"conv"},
            "downs.0.2.to_qkv.weight": {"qkv", "attn_other"},
            "downs.1.2.to_qkv.weight": {"qkv"},
            "downs.1.2.to_out.weight": {"attn_out"},
            "mid_attn.to_qkv.weight": {"qkv"},
            "mid_attn.to_out.weight": {"attn_out"},
            "ups.0.2.to_qkv.weight": {"qkv"},
            "final_conv.weight": {"conv", "classifier", "lm_head"},
        },
        {
            "downs.1.2.to_qkv.weight": "q:2x12|k:2x12|v:2x12",
            "mid_attn.to_qkv.weight": "q:2x12|k:2x12|v:2x12",
            "ups.0.2.to_qkv.weight": "q:2x12|k:2x12|v:2x12",
        },
    ),
    Style(
        "diffusion policy",
        ConditionalUnet1D,
        lambda: ((torch.randn(1, 8, 7),), {"timestep": torch.rand(1), "global_cond": torch.randn(1, 20)}),
        {"diffusion_unet"},
        {
            "diffusion_step_encoder.?.weight": {"time_embedding"},
            "*.cond_encoder.1.weight": {"time_embedding", "modulation", "linear"},
            "*.block.0.weight": {"conv", "first_conv"},
            "final_conv.1.weight": {"conv", "classifier", "lm_head"},
        },
    ),
]
