"""Models that take noise away: rewrites of U-Nets and of transformers over latents, a series filled in, a sine beside the picture."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# A rewrite of latent diffusion with attention by hand and a gated feed-forward layer inside the block.
class SelfAttention(nn.Module):
    def __init__(self, n_heads: int, d_embed: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(d_embed, 3 * d_embed, bias=False)
        self.out_proj = nn.Linear(d_embed, d_embed)
        self.n_heads, self.d_head = n_heads, d_embed // n_heads

    def forward(self, x: Tensor) -> Tensor:
        input_shape = x.shape
        batch_size, sequence_length, _ = input_shape
        interim_shape = (batch_size, sequence_length, self.n_heads, self.d_head)
        q, k, v = self.in_proj(x).chunk(3, dim=-1)
        q = q.view(interim_shape).transpose(1, 2)
        k = k.view(interim_shape).transpose(1, 2)
        v = v.view(interim_shape).transpose(1, 2)
        weight = q @ k.transpose(-1, -2)
        weight = weight / math.sqrt(self.d_head)
        output = F.softmax(weight, dim=-1) @ v
        return self.out_proj(output.transpose(1, 2).reshape(input_shape))


class CrossAttention(nn.Module):
    def __init__(self, n_heads: int, d_embed: int, d_cross: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(d_embed, d_embed, bias=False)
        self.k_proj, self.v_proj = nn.Linear(d_cross, d_embed, bias=False), nn.Linear(d_cross, d_embed, bias=False)
        self.out_proj = nn.Linear(d_embed, d_embed)
        self.n_heads, self.d_head = n_heads, d_embed // n_heads

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shape = (x.shape[0], -1, self.n_heads, self.d_head)
        q = self.q_proj(x).view(shape).transpose(1, 2)
        k = self.k_proj(y).view(shape).transpose(1, 2)
        v = self.v_proj(y).view(shape).transpose(1, 2)
        weight = F.softmax(q @ k.transpose(-1, -2) / math.sqrt(self.d_head), dim=-1)
        return self.out_proj((weight @ v).transpose(1, 2).contiguous().view(x.shape))


class UNETResidual(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, n_time: int) -> None:
        super().__init__()
        self.groupnorm_feature, self.conv_feature = nn.GroupNorm(4, in_channels), nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.linear_time = nn.Linear(n_time, out_channels)
        self.groupnorm_merged, self.conv_merged = nn.GroupNorm(4, out_channels), nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.residual_layer = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, feature: Tensor, time: Tensor) -> Tensor:
        h = self.conv_feature(F.silu(self.groupnorm_feature(feature)))
        h = h + self.linear_time(F.silu(time))[:, :, None, None]
        return self.conv_merged(F.silu(self.groupnorm_merged(h))) + self.residual_layer(feature)


class UNETAttention(nn.Module):
    def __init__(self, n_head: int, channels: int, d_context: int) -> None:
        super().__init__()
        self.groupnorm, self.conv_input = nn.GroupNorm(4, channels), nn.Conv2d(channels, channels, 1)
        self.layernorm_1, self.attention_1 = nn.LayerNorm(channels), SelfAttention(n_head, channels)
        self.layernorm_2, self.attention_2 = nn.LayerNorm(channels), CrossAttention(n_head, channels, d_context)
        self.layernorm_3 = nn.LayerNorm(channels)
        self.linear_geglu_1, self.linear_geglu_2 = nn.Linear(channels, 4 * channels * 2), nn.Linear(4 * channels, channels)
        self.conv_output = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        long = x
        n, c, h, w = x.shape
        x = self.conv_input(self.groupnorm(x)).view(n, c, h * w).transpose(-1, -2)
        x = x + self.attention_1(self.layernorm_1(x))
        x = x + self.attention_2(self.layernorm_2(x), context)
        y, gate = self.linear_geglu_1(self.layernorm_3(x)).chunk(2, dim=-1)
        x = x + self.linear_geglu_2(y * F.gelu(gate))
        return self.conv_output(x.transpose(-1, -2).view(n, c, h, w)) + long


class SwitchSequential(nn.Sequential):
    def forward(self, x: Tensor, context: Tensor, time: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        for layer in self:
            if isinstance(layer, UNETAttention):
                x = layer(x, context)
            elif isinstance(layer, UNETResidual):
                x = layer(x, time)
            else:
                x = layer(x)
        return x


class TimeEmbedding(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(n, 3 * n), nn.Linear(3 * n, 3 * n)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class HandDiffusion(nn.Module):
    def __init__(self, d_context: int = 18) -> None:
        super().__init__()
        self.time_embedding = TimeEmbedding(16)
        self.encoders = nn.ModuleList(
            [
                SwitchSequential(nn.Conv2d(4, 24, 3, padding=1)),
                SwitchSequential(UNETResidual(24, 24, 48), UNETAttention(3, 24, d_context)),
                SwitchSequential(nn.Conv2d(24, 24, 3, stride=2, padding=1)),
                SwitchSequential(UNETResidual(24, 40, 48), UNETAttention(5, 40, d_context)),
            ]
        )
        self.bottleneck = SwitchSequential(UNETResidual(40, 40, 48), UNETAttention(5, 40, d_context), UNETResidual(40, 40, 48))
        self.decoders = nn.ModuleList(
            [
                SwitchSequential(UNETResidual(80, 40, 48), UNETAttention(5, 40, d_context)),
                SwitchSequential(UNETResidual(64, 40, 48), nn.Upsample(scale_factor=2), nn.Conv2d(40, 40, 3, padding=1)),
                SwitchSequential(UNETResidual(64, 24, 48), UNETAttention(3, 24, d_context)),
                SwitchSequential(UNETResidual(48, 24, 48)),
            ]
        )
        self.final_norm, self.final_conv = nn.GroupNorm(4, 24), nn.Conv2d(24, 4, 3, padding=1)

    def forward(self, latent: Tensor, context: Tensor, time: Tensor) -> Tensor:
        freqs = torch.pow(10000, -torch.arange(0, 8) / 8)
        t = time[:, None] * freqs[None]
        t = self.time_embedding(torch.cat([torch.cos(t), torch.sin(t)], dim=-1))
        x, skips = latent, []
        for layers in self.encoders:
            x = layers(x, context, t)
            skips.append(x)
        x = self.bottleneck(x, context, t)
        for layers in self.decoders:
            x = layers(torch.cat((x, skips.pop()), dim=1), context, t)
        return self.final_conv(F.silu(self.final_norm(x)))


# Noise given as a sine beside the picture, no weight for it; attention nowhere.
class PlainResidual(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        self.bn = nn.BatchNorm2d(cin, affine=False)
        self.conv_a, self.conv_b = nn.Conv2d(cin, cout, 3, padding=1), nn.Conv2d(cout, cout, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x) + self.conv_b(F.silu(self.conv_a(self.bn(x))))


class SineBesideUNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (12, 20, 28), depth: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.down, self.up, c = nn.ModuleList(), nn.ModuleList(), 12 + 16
        skips = []
        for w in widths[:-1]:
            for _ in range(depth):
                self.down.append(PlainResidual(c, w))
                skips.append(w)
                c = w
        self.middle = nn.Sequential(PlainResidual(c, widths[-1]), PlainResidual(widths[-1], widths[-1]))
        c = widths[-1]
        for w in reversed(widths[:-1]):
            for _ in range(depth):
                self.up.append(PlainResidual(c + skips.pop(), w))
                c = w
        self.depth, self.head = depth, nn.Conv2d(c, 3, 1)
        nn.init.zeros_(self.head.weight)

    def forward(self, noisy: Tensor, noise_variances: Tensor) -> Tensor:
        angular = 2 * math.pi * torch.exp(torch.linspace(0, math.log(1000.0), 8))
        e = noise_variances[:, None] * angular
        e = torch.cat([e.sin(), e.cos()], 1)[:, :, None, None].expand(-1, -1, *noisy.shape[2:])
        x, kept = torch.cat([self.stem(noisy), e], 1), []
        for i, block in enumerate(self.down):
            x = block(x)
            kept.append(x)
            if i % self.depth == self.depth - 1:
                x = F.avg_pool2d(x, 2)
        x = self.middle(x)
        for i, block in enumerate(self.up):
            if i % self.depth == 0:
                x = F.interpolate(x, scale_factor=2, mode="bilinear")
            x = block(torch.cat([x, kept.pop()], 1))
        return self.head(x)


# U-Net with a mapping network and norms told by it through a dictionary.
class AdaGN(nn.Module):
    def __init__(self, feats_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.groups, self.mapper = groups, nn.Linear(feats_in, c_out * 2)

    def forward(self, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        weight, bias = self.mapper(cond["cond"]).chunk(2, dim=-1)
        return torch.addcmul(bias[..., None, None], F.group_norm(x, self.groups), weight[..., None, None] + 1)


class SelfAttention2d(nn.Module):
    def __init__(self, c_in: int, n_head: int, feats_in: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.norm_in = AdaGN(feats_in, c_in, 3)
        self.qkv_proj, self.out_proj = nn.Conv2d(c_in, c_in * 3, 1), nn.Conv2d(c_in, c_in, 1)

    def forward(self, input: Tensor, cond: dict[str, Tensor]) -> Tensor:
        n, c, h, w = input.shape
        qkv = self.qkv_proj(self.norm_in(input, cond))
        qkv = qkv.view([n, self.n_head * 3, c // self.n_head, h * w]).transpose(2, 3)
        q, k, v = qkv.chunk(3, dim=1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).contiguous().view([n, c, h, w])
        return input + self.out_proj(y)


class ResConvBlock(nn.Module):
    def __init__(self, feats_in: int, c_in: int, c_mid: int, c_out: int) -> None:
        super().__init__()
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1, bias=False)
        self.n1, self.c1 = AdaGN(feats_in, c_in, 3), nn.Conv2d(c_in, c_mid, 3, padding=1)
        self.n2, self.c2 = AdaGN(feats_in, c_mid, 3), nn.Conv2d(c_mid, c_out, 3, padding=1)

    def forward(self, x: Tensor, cond: dict[str, Tensor]) -> Tensor:
        h = self.c1(F.gelu(self.n1(x, cond)))
        return self.c2(F.gelu(self.n2(h, cond))) + self.skip(x)


class FourierFeatures(nn.Module):
    weight: Tensor

    def __init__(self, out: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(out // 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        f = 2 * math.pi * x[:, None] @ self.weight.T
        return torch.cat([f.cos(), f.sin()], dim=-1)


class MappedUNet(nn.Module):
    def __init__(self, c: tuple[int, int] = (15, 30), mapping: int = 26) -> None:
        super().__init__()
        self.timestep_embed = FourierFeatures(mapping)
        self.mapping = nn.Sequential(nn.Linear(mapping, mapping), nn.GELU(), nn.Linear(mapping, mapping), nn.GELU())
        self.proj_in = nn.Conv2d(3, c[0], 1)
        self.d_blocks = nn.ModuleList([ResConvBlock(mapping, c[0], c[0], c[0]), ResConvBlock(mapping, c[0], c[1], c[1])])
        self.mid = nn.ModuleList([SelfAttention2d(c[1], 5, mapping), ResConvBlock(mapping, c[1], c[1], c[1])])
        self.u_blocks = nn.ModuleList([ResConvBlock(mapping, 2 * c[1], c[1], c[0]), ResConvBlock(mapping, 2 * c[0], c[0], c[0])])
        self.proj_out = nn.Conv2d(c[0], 3, 1)

    def forward(self, input: Tensor, sigma: Tensor) -> Tensor:
        cond = {"cond": self.mapping(self.timestep_embed(sigma.log() / 4))}
        x, skips = self.proj_in(input), []
        for block in self.d_blocks:
            x = block(x, cond)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        for block in self.mid:
            x = block(x, cond)
        for block in self.u_blocks:
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], dim=1), cond)
        return self.proj_out(x)


# A transformer over all pixels that merges and splits tokens, with cosine attention.
def rms(x: Tensor, scale: Tensor) -> Tensor:
    return x * (scale * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class AdaRMSNorm(nn.Module):
    def __init__(self, features: int, cond_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(cond_features, features, bias=False)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return rms(x, self.linear(cond)[:, None] + 1)


class HourglassBlock(nn.Module):
    def __init__(self, d: int, d_head: int, d_ff: int, cond: int) -> None:
        super().__init__()
        self.d_head, self.n_heads = d_head, d // d_head
        self.norm, self.ff_norm = AdaRMSNorm(d, cond), AdaRMSNorm(d, cond)
        self.qkv_proj, self.scale = nn.Linear(d, d * 3, bias=False), nn.Parameter(torch.full([self.n_heads], 10.0))
        self.out_proj = nn.Linear(d, d, bias=False)
        self.up_proj, self.down_proj = nn.Linear(d, d_ff * 2, bias=False), nn.Linear(d_ff, d, bias=False)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        n, s, _ = x.shape
        q, k, v = self.qkv_proj(self.norm(x, cond)).reshape(n, s, 3, self.n_heads, self.d_head).permute(2, 0, 3, 1, 4)
        root = self.scale.sqrt()[:, None, None]
        q, k = F.normalize(q, dim=-1) * root, F.normalize(k, dim=-1) * root
        y = F.scaled_dot_product_attention(q, k, v, scale=1.0).permute(0, 2, 1, 3).reshape(n, s, -1)
        x = x + self.out_proj(y)
        a, gate = self.up_proj(self.ff_norm(x, cond)).chunk(2, dim=-1)
        return x + self.down_proj(a * F.gelu(gate))


class HourglassDiT(nn.Module):
    def __init__(self, d: tuple[int, int] = (24, 42), cond: int = 20) -> None:
        super().__init__()
        self.time_emb, self.time_in_proj = FourierFeatures(cond), nn.Linear(cond, cond, bias=False)
        self.class_emb = nn.Embedding(9, cond)
        self.mapping = nn.Sequential(nn.Linear(cond, 36, bias=False), nn.GELU(), nn.Linear(36, cond, bias=False))
        self.patch_in = nn.Linear(3 * 4, d[0], bias=False)
        self.down, self.mid = HourglassBlock(d[0], 8, 52, cond), HourglassBlock(d[1], 7, 90, cond)
        self.merge, self.split = nn.Linear(d[0] * 4, d[1], bias=False), nn.Linear(d[1], d[0] * 4, bias=False)
        self.lerp, self.up = nn.Parameter(torch.tensor(0.5)), HourglassBlock(d[0], 8, 52, cond)
        self.out_scale, self.patch_out = nn.Parameter(torch.ones(d[0])), nn.Linear(d[0], 3 * 4, bias=False)

    def forward(self, x: Tensor, sigma: Tensor, class_cond: Tensor) -> Tensor:
        n, c, h, w = x.shape
        cond = self.mapping(self.time_in_proj(self.time_emb(sigma.log() / 4)) + self.class_emb(class_cond))
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(n, h * w // 4, c * 4)
        x = skip = self.down(self.patch_in(x), cond)
        side = h // 4
        x = x.view(n, side, 2, side, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, side * side, -1)
        x = self.split(self.mid(self.merge(x), cond))
        x = x.view(n, side, side, 2, 2, -1).permute(0, 1, 3, 2, 4, 5).reshape(n, h * w // 4, -1)
        x = self.patch_out(rms(self.up(torch.lerp(skip, x, self.lerp), cond), self.out_scale))
        return x.view(n, h // 2, w // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


# Two streams whose queries, keys and values are joined, each from a linear of its own.
class JointBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm1_context = nn.Linear(dim, 6 * dim), nn.Linear(dim, 6 * dim)
        self.to_q, self.to_k, self.to_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.add_q_proj, self.add_k_proj, self.add_v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.to_out, self.to_add_out = nn.ModuleList([nn.Linear(dim, dim), nn.Dropout(0.0)]), nn.Linear(dim, dim)
        self.ff = nn.Sequential(nn.Linear(dim, 3 * dim), nn.GELU(approximate="tanh"), nn.Linear(3 * dim, dim))
        self.ff_context = nn.Sequential(nn.Linear(dim, 3 * dim), nn.GELU(approximate="tanh"), nn.Linear(3 * dim, dim))

    def forward(self, x: Tensor, c: Tensor, temb: Tensor) -> tuple[Tensor, Tensor]:
        b, n, d = x.shape
        m, mc = self.norm1(F.silu(temb))[:, None].chunk(6, -1), self.norm1_context(F.silu(temb))[:, None].chunk(6, -1)
        xn, cn = F.layer_norm(x, (d,)) * (1 + m[0]) + m[1], F.layer_norm(c, (d,)) * (1 + mc[0]) + mc[1]
        q = torch.cat([self.to_q(xn), self.add_q_proj(cn)], dim=1).view(b, -1, self.heads, d // self.heads).transpose(1, 2)
        k = torch.cat([self.to_k(xn), self.add_k_proj(cn)], dim=1).view(b, -1, self.heads, d // self.heads).transpose(1, 2)
        v = torch.cat([self.to_v(xn), self.add_v_proj(cn)], dim=1).view(b, -1, self.heads, d // self.heads).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, -1, d)
        x, c = x + m[2] * self.to_out[0](y[:, :n]), c + mc[2] * self.to_add_out(y[:, n:])
        x = x + m[5] * self.ff(F.layer_norm(x, (d,)) * (1 + m[3]) + m[4])
        return x, c + mc[5] * self.ff_context(F.layer_norm(c, (d,)) * (1 + mc[3]) + mc[4])


class TwoStreams(nn.Module):
    def __init__(self, dim: int = 36) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(5, dim, 2, stride=2)
        self.timestep_embedder = nn.Sequential(nn.Linear(14, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.text_embedder = nn.Sequential(nn.Linear(17, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.context_embedder = nn.Linear(22, dim)
        self.transformer_blocks = nn.ModuleList([JointBlock(dim, 4) for _ in range(2)])
        self.norm_out, self.proj_out = nn.Linear(dim, 2 * dim), nn.Linear(dim, 5 * 4)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor, timestep: Tensor) -> Tensor:
        f = timestep[:, None] * torch.exp(-math.log(10000) * torch.arange(7) / 7)
        temb = self.timestep_embedder(torch.cat([f.cos(), f.sin()], -1)) + self.text_embedder(pooled_projections)
        x, c = self.pos_embed(hidden_states).flatten(2).transpose(1, 2), self.context_embedder(encoder_hidden_states)
        for block in self.transformer_blocks:
            x, c = block(x, c, temb)
        scale, shift = self.norm_out(F.silu(temb))[:, None].chunk(2, -1)
        return self.proj_out(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)


# Missing values of many series, filled in by diffusion: attention over time, then over series.
class FillBlock(nn.Module):
    def __init__(self, channels: int, diffusion_embedding_dim: int, nheads: int) -> None:
        super().__init__()
        self.diffusion_projection = nn.Linear(diffusion_embedding_dim, channels)
        self.mid_projection, self.output_projection = nn.Conv1d(channels, 2 * channels, 1), nn.Conv1d(channels, 2 * channels, 1)
        self.time_layer = nn.TransformerEncoderLayer(channels, nheads, 34, activation="gelu")
        self.feature_layer = nn.TransformerEncoderLayer(channels, nheads, 34, activation="gelu")

    def forward(self, x: Tensor, diffusion_emb: Tensor) -> tuple[Tensor, Tensor]:
        B, C, K, L = x.shape
        y = (x.reshape(B, C, K * L) + self.diffusion_projection(diffusion_emb).unsqueeze(-1)).reshape(B, C, K, L)
        y = self.time_layer(y.permute(3, 0, 2, 1).reshape(L, B * K, C)).reshape(L, B, K, C).permute(1, 3, 2, 0)
        y = self.feature_layer(y.permute(2, 0, 3, 1).reshape(K, B * L, C)).reshape(K, B, L, C).permute(1, 3, 0, 2)
        gate, filt = torch.chunk(self.mid_projection(y.reshape(B, C, K * L)), 2, dim=1)
        y = self.output_projection(torch.sigmoid(gate) * torch.tanh(filt))
        residual, skip = torch.chunk(y.reshape(B, 2 * C, K, L), 2, dim=1)
        return (x + residual) / math.sqrt(2.0), skip


class FillIn(nn.Module):
    embedding: Tensor

    def __init__(self, channels: int = 20, emb: int = 14) -> None:
        super().__init__()
        table = torch.arange(50).unsqueeze(1) * 10.0 ** (torch.arange(emb // 2) / (emb // 2 - 1) * 4.0).unsqueeze(0)
        self.register_buffer("embedding", torch.cat([table.sin(), table.cos()], dim=1), persistent=False)
        self.projection1, self.projection2 = nn.Linear(emb, 26), nn.Linear(26, 26)
        self.input_projection, self.output_projection1 = nn.Conv1d(2, channels, 1), nn.Conv1d(channels, channels, 1)
        self.output_projection2 = nn.Conv1d(channels, 1, 1)
        nn.init.zeros_(self.output_projection2.weight)
        self.residual_layers = nn.ModuleList([FillBlock(channels, 26, 4) for _ in range(2)])

    def forward(self, x: Tensor, diffusion_step: Tensor) -> Tensor:
        B, inputdim, K, L = x.shape
        h = F.relu(self.input_projection(x.reshape(B, inputdim, K * L))).reshape(B, -1, K, L)
        e = F.silu(self.projection2(F.silu(self.projection1(self.embedding[diffusion_step]))))
        skip = []
        for layer in self.residual_layers:
            h, s = layer(h, e)
            skip.append(s)
        h = torch.sum(torch.stack(skip), dim=0) / math.sqrt(len(skip))
        return self.output_projection2(F.relu(self.output_projection1(h.reshape(B, -1, K * L)))).reshape(B, K, L)


# Sharper pictures by refinement: the level of noise is a number, heads come first in one convolution.
class FeatureWiseAffine(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, use_affine_level: bool) -> None:
        super().__init__()
        self.use_affine_level = use_affine_level
        self.noise_func = nn.Sequential(nn.Linear(in_channels, out_channels * (1 + use_affine_level)))

    def forward(self, x: Tensor, noise_embed: Tensor) -> Tensor:
        batch = x.shape[0]
        if self.use_affine_level:
            gamma, beta = self.noise_func(noise_embed).view(batch, -1, 1, 1).chunk(2, dim=1)
            return (1 + gamma) * x + beta
        return x + self.noise_func(noise_embed).view(batch, -1, 1, 1)


class PixelAttention(nn.Module):
    def __init__(self, in_channel: int, n_head: int) -> None:
        super().__init__()
        self.n_head, self.norm = n_head, nn.GroupNorm(3, in_channel)
        self.qkv, self.out = nn.Conv2d(in_channel, in_channel * 3, 1, bias=False), nn.Conv2d(in_channel, in_channel, 1)

    def forward(self, input: Tensor) -> Tensor:
        batch, channel, height, width = input.shape
        head_dim = channel // self.n_head
        qkv = self.qkv(self.norm(input)).view(batch, self.n_head, head_dim * 3, height, width)
        query, key, value = qkv.chunk(3, dim=2)
        attn = torch.einsum("bnchw, bncyx -> bnhwyx", query, key).contiguous() / math.sqrt(channel)
        attn = attn.view(batch, self.n_head, height, width, -1)
        attn = torch.softmax(attn, -1).view(batch, self.n_head, height, width, height, width)
        out = torch.einsum("bnhwyx, bncyx -> bnchw", attn, value).contiguous()
        return self.out(out.view(batch, channel, height, width)) + input


class RefineBlock(nn.Module):
    def __init__(self, dim: int, dim_out: int, noise: int, with_attn: bool = False) -> None:
        super().__init__()
        self.noise_func = FeatureWiseAffine(noise, dim_out, dim == dim_out)
        self.block1 = nn.Sequential(nn.GroupNorm(3, dim), nn.SiLU(), nn.Identity(), nn.Conv2d(dim, dim_out, 3, padding=1))
        self.block2 = nn.Sequential(nn.GroupNorm(3, dim_out), nn.SiLU(), nn.Dropout(0), nn.Conv2d(dim_out, dim_out, 3, padding=1))
        self.res_conv = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()
        self.attn = PixelAttention(dim_out, 3) if with_attn else nn.Identity()

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        return self.attn(self.block2(self.noise_func(self.block1(x), e)) + self.res_conv(x))


class Refiner(nn.Module):
    def __init__(self, inner: int = 12) -> None:
        super().__init__()
        self.noise_level_mlp = nn.Sequential(nn.Linear(inner, inner * 4), nn.SiLU(), nn.Linear(inner * 4, inner))
        self.downs = nn.ModuleList(
            [
                nn.Conv2d(6, inner, 3, padding=1),
                RefineBlock(inner, inner, inner),
                nn.Conv2d(inner, inner, 3, 2, 1),
                RefineBlock(inner, 21, inner, True),
            ]
        )
        self.mid = nn.ModuleList([RefineBlock(21, 21, inner, True), RefineBlock(21, 21, inner)])
        self.ups = nn.ModuleList(
            [
                RefineBlock(42, 21, inner, True),
                RefineBlock(33, 21, inner),
                nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(21, 21, 3, padding=1)),
                RefineBlock(33, inner, inner),
                RefineBlock(24, inner, inner),
            ]
        )
        self.final_conv = nn.Sequential(nn.GroupNorm(3, inner), nn.SiLU(), nn.Conv2d(inner, 3, 3, padding=1))

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        step = torch.arange(6) / 6
        e = noise_level[:, None] * torch.exp(-math.log(1e4) * step)
        e, feats = self.noise_level_mlp(torch.cat([e.sin(), e.cos()], -1)), []
        for layer in self.downs:
            x = layer(x, e) if isinstance(layer, RefineBlock) else layer(x)
            feats.append(x)
        for layer in self.mid:
            x = layer(x, e)
        for layer in self.ups:
            x = layer(torch.cat((x, feats.pop()), dim=1), e) if isinstance(layer, RefineBlock) else layer(x)
        return self.final_conv(x)


_TIME = {"time_embedding"}
_TOLD = {"time_embedding", "modulation"}
_OUT = {"conv", "classifier", "lm_head"}


def _noisy(channels: int, *more: Any, side: int = 8) -> Any:
    return lambda: ((torch.randn(1, channels, side, side), *more), {})


STYLES: list[Style] = [
    Style(
        "latent diffusion by hand, feed-forward in the block",
        HandDiffusion,
        lambda: ((torch.randn(1, 4, 8, 8), torch.randn(1, 5, 18), torch.tensor([7.0])), {}),
        {"diffusion_unet"},
        {
            "time_embedding.linear_?.weight": _TIME,
            "encoders.0.0.weight": {"first_conv"},
            "*.conv_feature.weight": {"conv"},
            "*.conv_merged.weight": {"conv"},
            "*.linear_time.weight": _TOLD,
            "*.attention_1.in_proj.weight": {"qkv"},
            "*.attention_2.q_proj.weight": {"query"},
            "*.attention_2.k_proj.weight": {"key"},
            "*.attention_2.v_proj.weight": {"value"},
            "*.attention_?.out_proj.weight": {"attn_out"},
            "*.linear_geglu_1.weight": {"mlp_gate_up"},
            "*.linear_geglu_2.weight": {"mlp_down"},
            "*.conv_input.weight": {"conv"},
            "*.conv_output.weight": {"conv"},
            "final_conv.weight": _OUT,
        },
        {
            "encoders.1.1.attention_1.in_proj.weight": "q:3x8|k:3x8|v:3x8",
            "encoders.1.1.attention_2.q_proj.weight": "q:3x8",
            "encoders.1.1.attention_2.k_proj.weight": "k:3x8",
            "bottleneck.1.attention_1.in_proj.weight": "q:5x8|k:5x8|v:5x8",
            "bottleneck.1.attention_2.q_proj.weight": "q:5x8",
            "bottleneck.1.attention_2.k_proj.weight": "k:5x8",
        },
    ),
    Style(
        "sine beside the picture",
        SineBesideUNet,
        _noisy(3, torch.rand(1)),
        {"diffusion_unet", "cnn"},  # no weight of it is for the noise
        {"stem.weight": {"first_conv", "conv"}, "*.conv_?.weight": {"conv"}, "*.proj.weight": {"conv"}, "head.weight": _OUT},
    ),
    Style(
        "unet with a mapping network",
        MappedUNet,
        _noisy(3, torch.rand(1) + 0.1),
        {"diffusion_unet"},
        {
            "mapping.?.weight": {"time_embedding"},
            "proj_in.weight": {"first_conv", "conv"},
            "*.mapper.weight": _TOLD,
            "*.c?.weight": {"conv"},
            "mid.0.qkv_proj.weight": {"qkv"},
            "mid.0.out_proj.weight": {"attn_out"},
            "proj_out.weight": _OUT,
        },
        {"mid.0.qkv_proj.weight": "q:5x6|k:5x6|v:5x6"},
    ),
    Style(
        "hourglass over pixels",
        HourglassDiT,
        _noisy(3, torch.rand(1) + 0.1, torch.tensor([4])),
        {"diffusion_transformer"},
        {
            "time_in_proj.weight": {"time_embedding"},
            "class_emb.weight": {"token_embedding", "type_embedding", "time_embedding", "modulation"},
            "mapping.?.weight": {"time_embedding", "modulation", "mlp_up", "mlp_down"},
            "patch_in.weight": {"patch_embedding", "linear"},
            "*norm.linear.weight": _TOLD,
            "*.qkv_proj.weight": {"qkv"},
            "*.out_proj.weight": {"attn_out"},
            "*.up_proj.weight": {"mlp_gate_up"},
            "*.down_proj.weight": {"mlp_down"},
            "patch_out.weight": {"linear", "classifier", "lm_head"},
        },
        {
            "down.qkv_proj.weight": "q:3x8|k:3x8|v:3x8",
            "mid.qkv_proj.weight": "q:6x7|k:6x7|v:6x7",
            "up.qkv_proj.weight": "q:3x8|k:3x8|v:3x8",
        },
    ),
    Style(
        "two streams, six linears",
        TwoStreams,
        lambda: ((torch.randn(1, 5, 8, 8), torch.randn(1, 3, 22), torch.randn(1, 17), torch.tensor([3.0])), {}),
        {"diffusion_transformer"},
        {
            "pos_embed.weight": {"patch_embedding"},
            "timestep_embedder.?.weight": _TIME,
            "text_embedder.?.weight": {"linear", "mlp_up", "mlp_down", "time_embedding", "modulation"},
            "context_embedder.weight": {"linear"},
            "*.norm1*.weight": {"modulation"},
            "norm_out.weight": {"modulation"},
            "*.to_q.weight": {"query"},
            "*.to_k.weight": {"key"},
            "*.to_v.weight": {"value"},
            "*.add_q_proj.weight": {"query"},
            "*.add_k_proj.weight": {"key"},
            "*.add_v_proj.weight": {"value"},
            "*.to_out.0.weight": {"attn_out"},
            "*.to_add_out.weight": {"attn_out"},
            "*.ff*.0.weight": {"mlp_up"},
            "*.ff*.2.weight": {"mlp_down"},
            "proj_out.weight": {"linear", "classifier", "lm_head"},
        },
        {"*.to_q.weight": "q:4x9", "*.to_k.weight": "k:4x9", "*.add_q_proj.weight": "q:4x9", "*.add_k_proj.weight": "k:4x9"},
    ),
    Style(
        "series filled in by diffusion",
        FillIn,
        lambda: ((torch.randn(1, 2, 3, 6), torch.tensor([5])), {}),
        {"diffusion_transformer", "hybrid", "transformer"},
        {
            "projection?.weight": _TIME,
            "*.diffusion_projection.weight": _TOLD,
            "input_projection.weight": {"first_conv", "conv", "linear"},
            "*.mid_projection.weight": {"conv", "linear", "mlp_gate_up"},
            "*_layer.self_attn.in_proj_weight": {"qkv"},
            "*_layer.self_attn.out_proj.weight": {"attn_out"},
            "*_layer.linear1.weight": {"mlp_up"},
            "*_layer.linear2.weight": {"mlp_down"},
            "output_projection2.weight": _OUT,
        },
        {"*_layer.self_attn.in_proj_weight": "q:4x5|k:4x5|v:4x5"},
    ),
    Style(
        "super-resolution by refinement",
        Refiner,
        _noisy(6, torch.rand(1)),
        {"diffusion_unet"},
        {
            "noise_level_mlp.?.weight": _TIME,
            "downs.0.weight": {"first_conv"},
            "*.block?.3.weight": {"conv"},
            "*.noise_func.noise_func.0.weight": _TOLD,
            "*.attn.qkv.weight": {"qkv"},
            "*.attn.out.weight": {"attn_out"},
            "final_conv.2.weight": _OUT,
        },
        {"*.attn.qkv.weight": "3*(q:1x7|k:1x7|v:1x7)"},
    ),
]
