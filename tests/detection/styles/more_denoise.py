"""Denoisers: sound in one dimension, video, words by cross attention, gates by tanh, noise levels, heads of a masked model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


def sinusoid(t: Tensor, dim: int) -> Tensor:
    w = torch.exp(-math.log(1000.0) * torch.arange(dim // 2) / (dim // 2))
    return torch.cat([(t[:, None].float() * w).sin(), (t[:, None].float() * w).cos()], dim=-1)


# A UNet over sound, told the noise by learnt Fourier features, attention by convolutions of width one at the bottom.
class LearnedFourier(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(dim // 2))

    def forward(self, t: Tensor) -> Tensor:
        f = t[:, None] * self.weights[None] * 2 * math.pi
        return torch.cat((t[:, None], f.sin(), f.cos()), dim=-1)


class SoundBlock(nn.Module):
    def __init__(self, a: int, b: int, features: int) -> None:
        super().__init__()
        self.n1, self.c1 = nn.GroupNorm(2, a), nn.Conv1d(a, b, 3, padding=1)
        self.n2, self.c2 = nn.GroupNorm(2, b), nn.Conv1d(b, b, 3, padding=1)
        self.to_scale_shift = nn.Sequential(nn.SiLU(), nn.Linear(features, 2 * b))
        self.to_skip = nn.Conv1d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: Tensor, m: Tensor) -> Tensor:
        scale, shift = self.to_scale_shift(m)[..., None].chunk(2, dim=1)
        h = self.n2(self.c1(F.silu(self.n1(x)))) * (scale + 1) + shift
        return self.c2(F.silu(h)) + self.to_skip(x)


class SoundAttention(nn.Module):
    def __init__(self, c: int, head_features: int, num_heads: int) -> None:
        super().__init__()
        self.h = num_heads
        mid = head_features * num_heads
        self.norm = nn.LayerNorm(c)
        self.to_q, self.to_kv, self.to_out = nn.Linear(c, mid, bias=False), nn.Linear(c, mid * 2, bias=False), nn.Linear(mid, c)

    def forward(self, x: Tensor) -> Tensor:
        b, _, n = x.shape
        y = self.norm(x.transpose(1, 2))
        q, (k, v) = self.to_q(y), self.to_kv(y).chunk(2, dim=-1)
        q, k, v = (t.view(b, n, self.h, -1).permute(0, 2, 1, 3) for t in (q, k, v))
        attn = (torch.einsum("...nd,...md->...nm", q, k) * q.shape[-1] ** -0.5).softmax(dim=-1, dtype=torch.float32)
        out = torch.einsum("...nm,...md->...nd", attn, v).permute(0, 2, 1, 3).reshape(b, n, -1)
        return x + self.to_out(out).transpose(1, 2)


class SoundUNet(nn.Module):
    def __init__(self, channels: tuple[int, ...] = (12, 20, 28), features: int = 36) -> None:
        super().__init__()
        self.to_features = nn.Sequential(LearnedFourier(16), nn.Linear(17, features), nn.GELU(), nn.Linear(features, features))
        self.to_in = nn.Conv1d(2, channels[0], 7, padding=3)
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for a, b in pairwise(channels):
            self.downs.append(nn.ModuleDict({"down": nn.Conv1d(a, b, 4, 2, 1), "block": SoundBlock(b, b, features)}))
            self.ups.insert(0, nn.ModuleDict({"block": SoundBlock(2 * b, b, features), "up": nn.ConvTranspose1d(b, a, 4, 2, 1)}))
        self.bottleneck = nn.ModuleList([SoundBlock(28, 28, features), SoundAttention(28, 9, 3), SoundBlock(28, 28, features)])
        self.to_out = nn.Conv1d(channels[0], 2, 7, padding=3)

    def forward(self, x: Tensor, sigmas: Tensor) -> Tensor:
        m, x, skips = self.to_features(sigmas), self.to_in(x), []
        for d in self.downs:
            x = d["block"](d["down"](x), m)  # pyright: ignore[reportIndexIssue]
            skips.append(x)
        x = self.bottleneck[2](self.bottleneck[1](self.bottleneck[0](x, m)), m)
        for u in self.ups:
            x = u["up"](u["block"](torch.cat([x, skips.pop()], dim=1), m))  # pyright: ignore[reportIndexIssue]
        return self.to_out(x)


# Video: convolutions over the picture, attention over time at each place.
class TimeAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.to_qkv, self.to_out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.relative_attention_bias = nn.Embedding(8, heads)

    def forward(self, x: Tensor) -> Tensor:
        b, c, f, h, w = x.shape
        t = x.permute(0, 3, 4, 2, 1).reshape(b * h * w, f, c)
        q, k, v = (s.reshape(-1, f, self.heads, c // self.heads).transpose(1, 2) for s in self.to_qkv(self.norm(t)).chunk(3, dim=-1))
        steps = (torch.arange(f)[:, None] - torch.arange(f)[None]).clamp(-4, 3) + 4
        sim = torch.einsum("b h i d, b h j d -> b h i j", q * (c // self.heads) ** -0.5, k)
        attn = (sim + self.relative_attention_bias(steps).permute(2, 0, 1)).softmax(dim=-1)
        t = t + self.to_out(torch.einsum("b h i j, b h j d -> b h i d", attn, v).transpose(1, 2).reshape(-1, f, c))
        return t.view(b, h, w, f, c).permute(0, 4, 3, 1, 2)


class VideoBlock(nn.Module):
    def __init__(self, a: int, b: int, time_dim: int) -> None:
        super().__init__()
        self.proj1, self.norm1 = nn.Conv3d(a, b, (1, 3, 3), padding=(0, 1, 1)), nn.GroupNorm(3, b)
        self.proj2, self.norm2 = nn.Conv3d(b, b, (1, 3, 3), padding=(0, 1, 1)), nn.GroupNorm(3, b)
        self.emb = nn.Linear(time_dim, b)
        self.res_conv = nn.Conv3d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = F.silu(self.norm1(self.proj1(x))) + self.emb(F.silu(t))[:, :, None, None, None]
        return F.silu(self.norm2(self.proj2(h))) + self.res_conv(x)


class VideoUnet(nn.Module):
    def __init__(self, channels: int = 3, dim: int = 12) -> None:
        super().__init__()
        self.dim = dim
        self.time_embed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, 4 * dim))
        self.init_conv = nn.Conv3d(channels, dim, (1, 7, 7), padding=(0, 3, 3))
        self.init_temporal_attn = TimeAttention(dim, 2)
        self.enc1, self.down, self.enc2 = (
            VideoBlock(dim, dim, 48),
            nn.Conv3d(dim, 24, (1, 4, 4), (1, 2, 2), (0, 1, 1)),
            VideoBlock(24, 24, 48),
        )
        self.mid, self.mid_attn = VideoBlock(24, 24, 48), TimeAttention(24, 4)
        self.dec2, self.up = VideoBlock(48, 24, 48), nn.ConvTranspose3d(24, dim, (1, 4, 4), (1, 2, 2), (0, 1, 1))
        self.dec1, self.final = VideoBlock(2 * dim, dim, 48), nn.Conv3d(dim, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = self.time_embed(sinusoid(time, self.dim))
        x = self.init_temporal_attn(self.init_conv(x))
        a = self.enc1(x, t)
        b = self.enc2(self.down(a), t)
        m = self.mid_attn(self.mid(b, t))
        m = self.up(self.dec2(torch.cat((m, b), 1), t))
        return self.final(self.dec1(torch.cat((m, a), 1), t))


# PixArt: one modulation for all blocks and a table in each; words by cross attention.
class WordAttention(nn.Module):
    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.d_model, self.num_heads, self.head_dim = d_model, num_heads, d_model // num_heads
        self.q_linear, self.kv_linear, self.proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model * 2), nn.Linear(d_model, d_model)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        B, _, C = x.shape
        q = self.q_linear(x).view(B, -1, self.num_heads, self.head_dim)
        k, v = self.kv_linear(cond).view(B, -1, 2, self.num_heads, self.head_dim).unbind(2)
        x = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(x.transpose(1, 2).reshape(B, -1, C))


class PictureAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, C).unbind(2)
        q, k, v = (t.reshape(B, N, self.num_heads, C // self.num_heads).transpose(1, 2) for t in (q, k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))


class PixArtBlock(nn.Module):
    def __init__(self, hidden: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(hidden, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn, self.cross_attn = PictureAttention(hidden, num_heads), WordAttention(hidden, num_heads)
        self.mlp = nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(approximate="tanh"), nn.Linear(4 * hidden, hidden))
        self.scale_shift_table = nn.Parameter(torch.randn(6, hidden) / hidden**0.5)

    def forward(self, x: Tensor, y: Tensor, t: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (self.scale_shift_table[None] + t.reshape(len(x), 6, -1)).chunk(6, dim=1)
        x = x + gate_a * self.attn(self.norm1(x) * (1 + scale_a) + shift_a)
        x = x + self.cross_attn(x, y)
        return x + gate_m * self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)


class PixArt(nn.Module):
    def __init__(self, in_channels: int = 4, hidden: int = 40, num_heads: int = 5, caption: int = 22) -> None:
        super().__init__()
        self.x_embedder = nn.Conv2d(in_channels, hidden, 2, 2)
        self.t_embedder = nn.Sequential(nn.Linear(32, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 6 * hidden))
        self.y_embedder = nn.Sequential(nn.Linear(caption, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, hidden))
        self.register_buffer("pos_embed", torch.randn(1, 16, hidden))
        self.blocks = nn.ModuleList([PixArtBlock(hidden, num_heads) for _ in range(2)])
        self.norm_final, self.linear = nn.LayerNorm(hidden, elementwise_affine=False), nn.Linear(hidden, 2 * 2 * 2 * in_channels)
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden) / hidden**0.5)

    def forward(self, x: Tensor, timestep: Tensor, y: Tensor) -> Tensor:
        x = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        t = self.t_embedder(sinusoid(timestep, 32))
        t0, y = self.t_block(t), self.y_embedder(y)
        for block in self.blocks:
            x = block(x, y, t0)
        shift, scale = (self.scale_shift_table[None] + t[:, None]).chunk(2, dim=1)
        return F.pixel_shuffle(self.linear(self.norm_final(x) * (1 + scale) + shift).transpose(1, 2).unflatten(2, (4, 4)), 2)


# Next-DiT: llama's block with norms on both sides and gates by tanh, words through keys of their own.
@dataclass
class NextArgs:
    dim: int = 32
    n_heads: int = 4
    n_kv_heads: int = 2
    cap: int = 19
    inner: int = 58


class NextAttention(nn.Module):
    def __init__(self, a: NextArgs) -> None:
        super().__init__()
        self.hd, self.n_rep = a.dim // a.n_heads, a.n_heads // a.n_kv_heads
        self.wq, self.wo = nn.Linear(a.dim, a.n_heads * self.hd, bias=False), nn.Linear(a.dim, a.dim, bias=False)
        self.wk, self.wv, self.wk_y, self.wv_y = (nn.Linear(i, a.n_kv_heads * self.hd, bias=False) for i in (a.dim, a.dim, a.cap, a.cap))
        self.gate = nn.Parameter(torch.zeros(a.n_heads))
        self.q_norm, self.k_norm = nn.LayerNorm(a.dim), nn.LayerNorm(a.n_kv_heads * self.hd)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        b = len(x)
        xq, xk, xv = self.q_norm(self.wq(x)), self.k_norm(self.wk(x)), self.wv(x)
        xq, xk, xv, yk, yv = (t.view(b, -1, t.shape[-1] // self.hd, self.hd) for t in (xq, xk, xv, self.wk_y(y), self.wv_y(y)))
        xk, xv, yk, yv = (t.unsqueeze(3).repeat(1, 1, 1, self.n_rep, 1).flatten(2, 3) for t in (xk, xv, yk, yv))
        xq, xk, xv, yk, yv = (t.permute(0, 2, 1, 3) for t in (xq, xk, xv, yk, yv))
        out = F.scaled_dot_product_attention(xq, xk, xv).permute(0, 2, 1, 3)
        words = F.scaled_dot_product_attention(xq, yk, yv).permute(0, 2, 1, 3)
        return self.wo((out + words * self.gate.tanh().view(1, 1, -1, 1)).flatten(-2))


class NextBlock(nn.Module):
    def __init__(self, a: NextArgs) -> None:
        super().__init__()
        self.attention = NextAttention(a)
        self.w1, self.w2, self.w3 = (
            nn.Linear(a.dim, a.inner, bias=False),
            nn.Linear(a.inner, a.dim, bias=False),
            nn.Linear(a.dim, a.inner, bias=False),
        )
        self.attention_norm1, self.attention_norm2, self.ffn_norm1, self.ffn_norm2 = (nn.RMSNorm(a.dim) for _ in range(4))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(24, 4 * a.dim))

    def forward(self, x: Tensor, y: Tensor, c: Tensor) -> Tensor:
        s1, g1, s2, g2 = self.adaLN_modulation(c).unsqueeze(1).chunk(4, dim=-1)
        x = x + g1.tanh() * self.attention_norm2(self.attention(self.attention_norm1(x) * (1 + s1), y))
        h = self.ffn_norm1(x) * (1 + s2)
        return x + g2.tanh() * self.ffn_norm2(self.w2(F.silu(self.w1(h)) * self.w3(h)))


class NextDiT(nn.Module):
    def __init__(self, args: NextArgs | None = None) -> None:
        super().__init__()
        args = args or NextArgs()
        self.x_embedder = nn.Linear(2 * 2 * 4, args.dim)
        self.t_embedder = nn.Sequential(nn.Linear(20, 24), nn.SiLU(), nn.Linear(24, 24))
        self.cap_embedder = nn.Sequential(nn.LayerNorm(args.cap), nn.Linear(args.cap, 24))
        self.layers = nn.ModuleList([NextBlock(args) for _ in range(2)])
        self.norm_out, self.proj_out = nn.LayerNorm(args.dim, elementwise_affine=False), nn.Linear(args.dim, 2 * 2 * 4)
        self.ada_out = nn.Sequential(nn.SiLU(), nn.Linear(24, args.dim))

    def forward(self, x: Tensor, t: Tensor, cap_feats: Tensor, cap_mask: Tensor) -> Tensor:
        h = self.x_embedder(F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2))
        mask = cap_mask.float().unsqueeze(-1)
        pooled = (cap_feats * mask).sum(1) / mask.sum(1)
        c = self.t_embedder(sinusoid(t, 20)) + self.cap_embedder(pooled)
        for layer in self.layers:
            h = layer(h, cap_feats, c)
        h = self.proj_out(self.norm_out(h) * (1 + self.ada_out(c).unsqueeze(1)))
        return F.pixel_shuffle(h.transpose(1, 2).unflatten(2, (4, 4)), 2)


# NCSN: a norm whose scale is looked up by the level of noise.
class ConditionalInstanceNorm(nn.Module):
    def __init__(self, features: int, levels: int) -> None:
        super().__init__()
        self.features = features
        self.instance_norm, self.embed = nn.InstanceNorm2d(features), nn.Embedding(levels, features * 2, _freeze=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        gamma, beta = self.embed(y).chunk(2, dim=-1)
        return gamma.view(-1, self.features, 1, 1) * self.instance_norm(x) + beta.view(-1, self.features, 1, 1)


class ConditionalResidual(nn.Module):
    def __init__(self, a: int, b: int, levels: int, down: bool) -> None:
        super().__init__()
        self.normalize1, self.conv1 = ConditionalInstanceNorm(a, levels), nn.Conv2d(a, b, 3, padding=1)
        self.normalize2, self.conv2 = ConditionalInstanceNorm(b, levels), nn.Conv2d(b, b, 3, padding=1)
        self.shortcut, self.down = nn.Conv2d(a, b, 1), down

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.conv2(F.elu(self.normalize2(self.conv1(F.elu(self.normalize1(x, y))), y))) + self.shortcut(x)
        return F.avg_pool2d(h, 2) if self.down else h


class RefineNet(nn.Module):
    def __init__(self, ngf: int = 14, levels: int = 10) -> None:
        super().__init__()
        self.begin_conv, self.normalizer = nn.Conv2d(3, ngf, 3, padding=1), ConditionalInstanceNorm(ngf, levels)
        self.res1, self.res2 = ConditionalResidual(ngf, ngf, levels, False), ConditionalResidual(ngf, 2 * ngf, levels, True)
        self.refine2, self.refine1 = ConditionalResidual(2 * ngf, ngf, levels, False), ConditionalResidual(2 * ngf, ngf, levels, False)
        self.end_conv = nn.Conv2d(ngf, 3, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a = self.res1(self.begin_conv(2 * x - 1.0), y)
        b = F.interpolate(self.refine2(self.res2(a, y), y), scale_factor=2)
        return self.end_conv(F.elu(self.normalizer(self.refine1(torch.cat((a, b), 1), y), y)))


# A lesson's DDPM: attention with a linear whose heads each have query, key and value; downs and ups in one list.
class LessonAttention(nn.Module):
    def __init__(self, n_channels: int, n_heads: int, d_k: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(2, n_channels)
        self.projection = nn.Linear(n_channels, n_heads * d_k * 3)
        self.output = nn.Linear(n_heads * d_k, n_channels)
        self.scale, self.n_heads, self.d_k = d_k**-0.5, n_heads, d_k

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        batch_size, n_channels, height, width = x.shape
        x = x.view(batch_size, n_channels, -1).permute(0, 2, 1)
        q, k, v = torch.chunk(self.projection(x).view(batch_size, -1, self.n_heads, 3 * self.d_k), 3, dim=-1)
        attn = (torch.einsum("bihd,bjhd->bijh", q, k) * self.scale).softmax(dim=2)
        res = torch.einsum("bijh,bjhd->bihd", attn, v).reshape(batch_size, -1, self.n_heads * self.d_k)
        return (self.output(res) + x).permute(0, 2, 1).view(batch_size, n_channels, height, width)


class LessonBlock(nn.Module):
    def __init__(self, a: int, b: int, time_channels: int, attn: bool) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(2, a), nn.Conv2d(a, b, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(2, b), nn.Conv2d(b, b, 3, padding=1)
        self.shortcut = nn.Conv2d(a, b, 1) if a != b else nn.Identity()
        self.time_emb = nn.Linear(time_channels, b)
        self.attn = LessonAttention(b, 2, 11) if attn else nn.Identity()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time_emb(F.silu(t))[:, :, None, None]
        return self.attn(self.conv2(F.silu(self.norm2(h))) + self.shortcut(x))


class LessonResample(nn.Module):
    def __init__(self, n: int, up: bool) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(n, n, 4, 2, 1) if up else nn.Conv2d(n, n, 3, 2, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv(x)


class LessonUNet(nn.Module):
    def __init__(self, n: int = 14) -> None:
        super().__init__()
        self.n, t = n, 4 * n
        self.image_proj = nn.Conv2d(1, n, 3, padding=1)
        self.lin1, self.lin2 = nn.Linear(n, t), nn.Linear(t, t)
        self.down = nn.ModuleList([LessonBlock(n, n, t, False), LessonResample(n, False), LessonBlock(n, 2 * n, t, True)])
        self.middle = LessonBlock(2 * n, 2 * n, t, True)
        self.up = nn.ModuleList(
            [LessonBlock(4 * n, 2 * n, t, True), LessonBlock(3 * n, n, t, True), LessonResample(n, True), LessonBlock(2 * n, n, t, False)]
        )
        self.up.append(LessonBlock(2 * n, n, t, False))
        self.norm, self.final = nn.GroupNorm(2, n), nn.Conv2d(n, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = self.lin2(F.silu(self.lin1(sinusoid(t, self.n))))
        x = self.image_proj(x)
        h = [x]
        for m in self.down:
            x = m(x, t)
            h.append(x)
        x = self.middle(x, t)
        for m in self.up:
            x = m(x, t) if isinstance(m, LessonResample) else m(torch.cat((x, h.pop()), dim=1), t)
        return self.final(F.silu(self.norm(x)))


# A short DDPM: doubled convolutions, torch's attention, a label beside the time.
class Twice(nn.Module):
    def __init__(self, a: int, b: int, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.double_conv = nn.Sequential(
            nn.Conv2d(a, b, 3, padding=1, bias=False),
            nn.GroupNorm(1, b),
            nn.GELU(),
            nn.Conv2d(b, b, 3, padding=1, bias=False),
            nn.GroupNorm(1, b),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.double_conv(x)) if self.residual else self.double_conv(x)


class ShortDown(nn.Module):
    def __init__(self, a: int, b: int, emb_dim: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), Twice(a, a, residual=True), Twice(a, b))
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, b))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = self.maxpool_conv(x)
        return x + self.emb_layer(t)[:, :, None, None].repeat(1, 1, x.shape[-2], x.shape[-1])


class ShortUp(nn.Module):
    def __init__(self, a: int, b: int, emb_dim: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(Twice(a, a, residual=True), Twice(a, b))
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, b))

    def forward(self, x: Tensor, skip: Tensor, t: Tensor) -> Tensor:
        x = self.conv(torch.cat([skip, F.interpolate(x, scale_factor=2.0, mode="bilinear")], dim=1))
        return x + self.emb_layer(t)[:, :, None, None].repeat(1, 1, x.shape[-2], x.shape[-1])


class ShortSelf(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.mha, self.ln = nn.MultiheadAttention(channels, 4, batch_first=True), nn.LayerNorm([channels])
        self.ff_self = nn.Sequential(nn.LayerNorm([channels]), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.view(-1, self.channels, shape[2] * shape[3]).swapaxes(1, 2)
        x_ln = self.ln(x)
        x = self.mha(x_ln, x_ln, x_ln)[0] + x
        return (self.ff_self(x) + x).swapaxes(2, 1).view(shape)


class ShortUNet(nn.Module):
    def __init__(self, c: int = 3, time_dim: int = 30, num_classes: int = 10) -> None:
        super().__init__()
        self.time_dim = time_dim
        self.inc, self.down1, self.sa1 = Twice(c, 12), ShortDown(12, 24, time_dim), ShortSelf(24)
        self.down2, self.sa2, self.bot = ShortDown(24, 24, time_dim), ShortSelf(24), Twice(24, 24)
        self.up1, self.sa3, self.up2 = ShortUp(48, 12, time_dim), ShortSelf(12), ShortUp(24, 8, time_dim)
        self.outc, self.label_emb = nn.Conv2d(8, c, 1), nn.Embedding(num_classes, time_dim)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        t = sinusoid(t, self.time_dim)
        if y is not None:
            t = t + self.label_emb(y)
        x1 = self.inc(x)
        x2 = self.sa1(self.down1(x1, t))
        x3 = self.bot(self.sa2(self.down2(x2, t)))
        return self.outc(self.up2(self.sa3(self.up1(x3, x2, t)), x1, t))


# MAR: a masked transformer over patches whose output tells a small denoiser what each patch is.
class MarAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))


class MarBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), MarAttention(dim, num_heads), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class AdaResBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, channels))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(channels, 3 * channels))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class SmallDenoiser(nn.Module):
    def __init__(self, in_channels: int, width: int, z_channels: int) -> None:
        super().__init__()
        self.time_embed = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.cond_embed, self.input_proj = nn.Linear(z_channels, width), nn.Linear(in_channels, width)
        self.res_blocks = nn.ModuleList([AdaResBlock(width) for _ in range(2)])
        self.final = nn.Linear(width, in_channels)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        x, y = self.input_proj(x), self.time_embed(sinusoid(t, 16)) + self.cond_embed(c)
        for block in self.res_blocks:
            x = block(x, y)
        return self.final(x)


class MAR(nn.Module):
    def __init__(self, token_dim: int = 10, dim: int = 36, classes: int = 8) -> None:
        super().__init__()
        self.class_emb, self.z_proj, self.z_proj_ln = nn.Embedding(classes, dim), nn.Linear(token_dim, dim), nn.LayerNorm(dim)
        self.mask_token, self.pos_embed_learned = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.randn(1, 17, dim))
        self.blocks, self.norm = nn.ModuleList([MarBlock(dim, 6) for _ in range(2)]), nn.LayerNorm(dim)
        self.diffloss = SmallDenoiser(token_dim, 26, dim)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.z_proj(tokens)
        mask = torch.rand(x.shape[:2]) < 0.7
        x = torch.where(mask[..., None], self.mask_token, x)
        x = self.z_proj_ln(torch.cat([self.class_emb(labels)[:, None], x], dim=1) + self.pos_embed_learned)
        for block in self.blocks:
            x = block(x)
        z = self.norm(x)[:, 1:].flatten(0, 1)
        target, t, noise = tokens.flatten(0, 1), torch.rand(len(z)), torch.randn(len(z), tokens.shape[-1])
        noisy = (1 - t[:, None]) * target + t[:, None] * noise
        return ((self.diffloss(noisy, 1000 * t, z) - (noise - target)) ** 2).mean()


_TIME, _TOLD = {"time_embedding"}, {"time_embedding", "modulation", "linear"}
_OUT, _CONV = {"conv", "classifier", "lm_head"}, {"conv"}
_UNET = {"diffusion_unet"}
STYLES: list[Style] = [
    Style(
        "unet over sound",
        SoundUNet,
        lambda: ((torch.randn(1, 2, 32), torch.rand(1)), {}),
        _UNET,
        {
            "to_features.[13].weight": _TIME,
            "to_in.weight": {"first_conv"},
            "*.to_scale_shift.1.weight": _TOLD,
            "*.c[12].weight": _CONV,
            "bottleneck.1.to_q.weight": {"query"},
            "bottleneck.1.to_kv.weight": {"qkv"},
            "bottleneck.1.to_out.weight": {"attn_out"},
            "to_out.weight": _OUT,
        },
        {"bottleneck.1.to_q.weight": "q:3x9", "bottleneck.1.to_kv.weight": "k:3x9|v:3x9"},
    ),
    Style(
        "unet over video",
        VideoUnet,
        lambda: ((torch.randn(1, 3, 4, 8, 8), torch.tensor([5])), {}),
        _UNET,
        {
            "time_embed.?.weight": _TIME,
            "init_conv.weight": {"first_conv"},
            "*.proj[12].weight": _CONV,
            "*.emb.weight": _TOLD,
            "*.to_qkv.weight": {"qkv"},
            "*attn.to_out.weight": {"attn_out"},
            "*.relative_attention_bias.weight": {"position_embedding"},
            "final.weight": _OUT,
        },
        {"init_temporal_attn.to_qkv.weight": "q:2x6|k:2x6|v:2x6", "mid_attn.to_qkv.weight": "q:4x6|k:4x6|v:4x6"},
    ),
    Style(
        "pixart",
        PixArt,
        lambda: ((torch.randn(1, 4, 8, 8), torch.tensor([9]), torch.randn(1, 3, 22)), {}),
        {"diffusion_transformer"},
        {
            "x_embedder.weight": {"patch_embedding"},
            "t_embedder.?.weight": _TIME,
            "t_block.1.weight": {"modulation", "time_embedding"},
            "y_embedder.0.weight": {"linear", "mlp_up"},
            "y_embedder.2.weight": {"linear", "mlp_down"},
            "*scale_shift_table": {"modulation", "scale", "other"},
            "blocks.*.attn.qkv.weight": {"qkv"},
            "blocks.*.attn.proj.weight": {"attn_out"},
            "blocks.*.cross_attn.q_linear.weight": {"query"},
            "blocks.*.cross_attn.kv_linear.weight": {"qkv"},
            "blocks.*.cross_attn.proj.weight": {"attn_out"},
            "blocks.*.mlp.0.weight": {"mlp_up"},
            "blocks.*.mlp.2.weight": {"mlp_down"},
            "linear.weight": {"classifier", "lm_head", "linear"},
        },
        {
            "blocks.*.attn.qkv.weight": "q:5x8|k:5x8|v:5x8",
            "blocks.*.cross_attn.q_linear.weight": "q:5x8",
            "blocks.*.cross_attn.kv_linear.weight": "k:5x8|v:5x8",
        },
    ),
    Style(
        "next-dit",
        NextDiT,
        lambda: ((torch.randn(1, 4, 8, 8), torch.rand(1), torch.randn(1, 5, 19), torch.ones(1, 5)), {}),
        {"diffusion_transformer"},
        {
            "x_embedder.weight": {"patch_embedding", "linear"},
            "t_embedder.?.weight": _TIME,
            "cap_embedder.1.weight": {"linear", "time_embedding", "modulation"},
            "*.wq.weight": {"query"},
            "*.wk.weight": {"key"},
            "*.wk_y.weight": {"key"},
            "*.wv.weight": {"value"},
            "*.wv_y.weight": {"value"},
            "*.wo.weight": {"attn_out"},
            "layers.*.w1.weight": {"mlp_gate"},
            "layers.*.w3.weight": {"mlp_up"},
            "layers.*.w2.weight": {"mlp_down"},
            "*.adaLN_modulation.1.weight": {"modulation"},
            "ada_out.1.weight": {"modulation"},
            "proj_out.weight": {"classifier", "lm_head", "linear"},
        },
        {"*.wq.weight": "q:4x8", "*.wk.weight": "k:2x8", "*.wk_y.weight": "k:2x8"},
    ),
    Style(
        "ncsn with looked-up norms",
        RefineNet,
        lambda: ((torch.rand(1, 3, 8, 8), torch.tensor([4])), {}),
        {"diffusion_unet", "cnn"},
        {
            "begin_conv.weight": {"first_conv"},
            "re*.conv?.weight": _CONV,
            "*.embed.weight": {"modulation", "time_embedding", "token_embedding", "norm", "type_embedding"},
            "end_conv.weight": _OUT,
        },
    ),
    Style(
        "a lesson's ddpm, head by head",
        LessonUNet,
        lambda: ((torch.randn(1, 1, 8, 8), torch.tensor([3])), {}),
        _UNET,
        {
            "image_proj.weight": {"first_conv"},
            "lin[12].weight": _TIME,
            "*.time_emb.weight": _TOLD,
            "*.conv[12].weight": _CONV,
            "*.attn.projection.weight": {"qkv"},
            "*.attn.output.weight": {"attn_out"},
            "final.weight": _OUT,
        },
        {"*.attn.projection.weight": "2*(q:1x11|k:1x11|v:1x11)"},
    ),
    Style(
        "a short ddpm with torch's attention",
        ShortUNet,
        lambda: ((torch.randn(1, 3, 16, 16), torch.tensor([3]), torch.tensor([2])), {}),
        _UNET,
        {
            "inc.double_conv.0.weight": {"first_conv"},
            "*.emb_layer.1.weight": _TOLD,
            "sa?.mha.in_proj_weight": {"qkv"},
            "sa?.mha.out_proj.weight": {"attn_out"},
            "sa?.ff_self.1.weight": {"mlp_up", "linear"},
            "sa?.ff_self.3.weight": {"mlp_down", "linear"},
            "bot.double_conv.?.weight": {"conv", "norm"},
            "label_emb.weight": {"token_embedding", "time_embedding", "type_embedding", "modulation"},
            "outc.weight": _OUT,
        },
        {"sa[12].mha.in_proj_weight": "q:4x6|k:4x6|v:4x6", "sa3.mha.in_proj_weight": "q:4x3|k:4x3|v:4x3"},
    ),
    Style(
        "masked model with a small denoiser",
        MAR,
        lambda: ((torch.randn(1, 16, 10), torch.tensor([2])), {}),
        {"transformer", "diffusion_transformer", "hybrid"},
        {
            "class_emb.weight": {"token_embedding", "type_embedding"},
            "z_proj.weight": {"linear", "patch_embedding"},
            "pos_embed_learned": {"position_embedding"},
            "mask_token": {"special_token"},
            "blocks.*.attn.qkv.weight": {"qkv"},
            "blocks.*.attn.proj.weight": {"attn_out"},
            "blocks.*.mlp.0.weight": {"mlp_up"},
            "blocks.*.mlp.2.weight": {"mlp_down"},
            "diffloss.time_embed.?.weight": _TIME,
            "diffloss.cond_embed.weight": {"linear", "time_embedding", "modulation"},
            "diffloss.input_proj.weight": {"linear", "patch_embedding"},
            "diffloss.res_blocks.*.mlp.0.weight": {"mlp_up", "linear"},
            "diffloss.res_blocks.*.mlp.2.weight": {"mlp_down", "linear"},
            "*.adaLN_modulation.1.weight": {"modulation"},
            "diffloss.final.weight": {"classifier", "lm_head", "linear"},
        },
        {"blocks.*.attn.qkv.weight": "q:6x6|k:6x6|v:6x6"},
    ),
]
