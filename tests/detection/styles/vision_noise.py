"""Denoisers: DiffWave, an MLP of x and t, a score network by hand, text by diffusion; forecasters: N-BEATS, TimesNet, TSMixer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


def sinusoidal(t: Tensor, dim: int) -> Tensor:
    freqs = torch.exp(-math.log(10000) * torch.arange(dim // 2) / (dim // 2))
    args = t.float()[:, None] * freqs
    return torch.cat((args.sin(), args.cos()), -1)


# DiffWave: WaveNet's layers with the step of the diffusion added to each.
class DiffWaveBlock(nn.Module):
    def __init__(self, c: int, dilation: int) -> None:
        super().__init__()
        self.dilated_conv = nn.Conv1d(c, 2 * c, 3, padding=dilation, dilation=dilation)
        self.diffusion_projection = nn.Linear(44, c)
        self.output_projection = nn.Conv1d(c, 2 * c, 1)

    def forward(self, x: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        gate, filter = self.dilated_conv(x + self.diffusion_projection(step).unsqueeze(-1)).chunk(2, 1)
        residual, skip = self.output_projection(torch.sigmoid(gate) * torch.tanh(filter)).chunk(2, 1)
        return (x + residual) / math.sqrt(2), skip


class DiffWave(nn.Module):
    def __init__(self, c: int = 20) -> None:
        super().__init__()
        self.input_projection = nn.Conv1d(1, c, 1)
        self.projection1, self.projection2 = nn.Linear(16, 44), nn.Linear(44, 44)
        self.residual_layers = nn.ModuleList([DiffWaveBlock(c, 2**i) for i in range(3)])
        self.skip_projection, self.output_projection = nn.Conv1d(c, c, 1), nn.Conv1d(c, 1, 1)

    def forward(self, audio: Tensor, diffusion_step: Tensor) -> Tensor:
        x = F.relu(self.input_projection(audio.unsqueeze(1)))
        step = F.silu(self.projection2(F.silu(self.projection1(sinusoidal(diffusion_step, 16)))))
        total = torch.zeros(())
        for layer in self.residual_layers:
            x, skip = layer(x, step)
            total = total + skip
        return self.output_projection(F.relu(self.skip_projection(total)))


# Diffusion of points in the plane: an MLP whose every layer has a table of its own for the step.
class ConditionalLinear(nn.Module):
    def __init__(self, n_in: int, n_out: int, steps: int) -> None:
        super().__init__()
        self.lin, self.embed = nn.Linear(n_in, n_out), nn.Embedding(steps, n_out)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.embed(t) * self.lin(x)


class ConditionalModel(nn.Module):
    def __init__(self, steps: int = 50) -> None:
        super().__init__()
        self.lin1, self.lin2, self.lin3 = (ConditionalLinear(a, 64, steps) for a in (2, 64, 64))
        self.lin4 = nn.Linear(64, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for layer in (self.lin1, self.lin2, self.lin3):
            x = F.softplus(layer(x, t))
        return self.lin4(x)


# Score matching: Fourier features of the noise level, dense layers that add them, features of the way down joined.
class Dense(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.dense = nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)[..., None, None]


class ScoreNet(nn.Module):
    W: Tensor

    def __init__(self, c: tuple[int, ...] = (8, 16, 24), embed_dim: int = 20) -> None:
        super().__init__()
        self.register_buffer("W", torch.randn(embed_dim // 2) * 30)
        self.embed = nn.Linear(embed_dim, embed_dim)
        self.conv1, self.dense1, self.gnorm1 = nn.Conv2d(1, c[0], 3, 1, 1), Dense(embed_dim, c[0]), nn.GroupNorm(4, c[0])
        self.conv2, self.dense2, self.gnorm2 = nn.Conv2d(c[0], c[1], 3, 2, 1), Dense(embed_dim, c[1]), nn.GroupNorm(4, c[1])
        self.conv3, self.dense3, self.gnorm3 = nn.Conv2d(c[1], c[2], 3, 2, 1), Dense(embed_dim, c[2]), nn.GroupNorm(4, c[2])
        self.tconv3, self.dense4 = nn.ConvTranspose2d(c[2], c[1], 4, 2, 1), Dense(embed_dim, c[1])
        self.tconv2, self.dense5 = nn.ConvTranspose2d(2 * c[1], c[0], 4, 2, 1), Dense(embed_dim, c[0])
        self.tconv1 = nn.ConvTranspose2d(2 * c[0], 1, 3, 1, 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        proj = t[:, None] * self.W * 2 * math.pi
        embed = F.silu(self.embed(torch.cat((proj.sin(), proj.cos()), -1)))
        h1 = F.silu(self.gnorm1(self.conv1(x) + self.dense1(embed)))
        h2 = F.silu(self.gnorm2(self.conv2(h1) + self.dense2(embed)))
        h3 = F.silu(self.gnorm3(self.conv3(h2) + self.dense3(embed)))
        h = F.silu(self.tconv3(h3) + self.dense4(embed))
        h = F.silu(self.tconv2(torch.cat((h, h2), 1)) + self.dense5(embed))
        return self.tconv1(torch.cat((h, h1), 1)) / t[:, None, None, None]


# Text by diffusion: embedded tokens are noised, and a transformer that knows the step denoises them.
class BiBlock(nn.Module):
    def __init__(self, d: int, heads: int, cond: int) -> None:
        super().__init__()
        self.n_heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(d, elementwise_affine=False), nn.LayerNorm(d, elementwise_affine=False)
        self.attn_qkv, self.attn_out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.mlp = nn.Sequential(nn.Linear(d, 3 * d), nn.GELU(), nn.Linear(3 * d, d))
        self.adaLN_modulation = nn.Linear(cond, 6 * d)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        b1, s1, g1, b2, s2, g2 = self.adaLN_modulation(c)[:, None].chunk(6, -1)
        qkv = self.attn_qkv(self.norm1(x) * (1 + s1) + b1).unflatten(-1, (3, self.n_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = x + g1 * self.attn_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + g2 * self.mlp(self.norm2(x) * (1 + s2) + b2)


class TextDiffusion(nn.Module):
    def __init__(self, vocab: int = 66, d: int = 32, cond: int = 20) -> None:
        super().__init__()
        self.vocab_embed = nn.Parameter(torch.randn(vocab, d) * 0.1)
        self.sigma_map = nn.Sequential(nn.Linear(16, cond), nn.SiLU(), nn.Linear(cond, cond))
        self.blocks = nn.ModuleList([BiBlock(d, 4, cond) for _ in range(2)])
        self.norm_final, self.linear, self.adaLN_final = nn.LayerNorm(d), nn.Linear(d, vocab), nn.Linear(cond, 2 * d)

    def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:
        x, c = self.vocab_embed[indices], F.silu(self.sigma_map(sinusoidal(sigma, 16)))
        for block in self.blocks:
            x = block(x, c)
        shift, scale = self.adaLN_final(c)[:, None].chunk(2, -1)
        return self.linear(self.norm_final(x) * (1 + scale) + shift)


# N-BEATS: each block explains a part of the past, takes it away, and adds a part of the future.
class NBeatsBlock(nn.Module):
    def __init__(self, back: int, ahead: int, units: int = 36, theta: int = 10) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(back, units), nn.Linear(units, units), nn.Linear(units, units)
        self.theta_b_fc, self.theta_f_fc = nn.Linear(units, theta, bias=False), nn.Linear(units, theta, bias=False)
        self.backcast_fc, self.forecast_fc = nn.Linear(theta, back), nn.Linear(theta, ahead)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.fc3(F.relu(self.fc2(F.relu(self.fc1(x))))))
        return self.backcast_fc(self.theta_b_fc(x)), self.forecast_fc(self.theta_f_fc(x))


class NBeats(nn.Module):
    def __init__(self, back: int = 24, ahead: int = 6) -> None:
        super().__init__()
        self.stacks = nn.ModuleList([nn.ModuleList([NBeatsBlock(back, ahead) for _ in range(2)]) for _ in range(2)])

    def forward(self, backcast: Tensor) -> Tensor:
        forecast = torch.zeros(())
        for stack in self.stacks:
            for block in stack:  # pyright: ignore
                b, f = block(backcast)
                backcast, forecast = backcast - b, forecast + f
        return forecast


# TimesNet: a series folded by its periods into pictures, and kernels of many sizes over them.
class Inception(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.kernels = nn.ModuleList([nn.Conv2d(a, b, 2 * i + 1, padding=i) for i in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([kernel(x) for kernel in self.kernels], -1).mean(-1)


class TimesBlock(nn.Module):
    def __init__(self, d: int, d_ff: int, k: int = 2) -> None:
        super().__init__()
        self.k, self.conv = k, nn.Sequential(Inception(d, d_ff), nn.GELU(), Inception(d_ff, d))

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        amplitude = torch.fft.rfft(x, dim=1).abs().mean((0, 2))
        amplitude = torch.cat((amplitude.new_zeros(1), amplitude[1:]))
        weights, top = amplitude.topk(self.k)
        out = []
        for f in top.tolist():
            period = max(1, n // max(f, 1))
            folded = F.pad(x, (0, 0, 0, -n % period)).unflatten(1, (-1, period)).permute(0, 3, 1, 2)
            out.append(self.conv(folded).permute(0, 2, 3, 1).flatten(1, 2)[:, :n])
        return x + (torch.stack(out, -1) * weights.softmax(0)).sum(-1)


class TimesNet(nn.Module):
    def __init__(self, c: int = 5, back: int = 12, ahead: int = 4, d: int = 20) -> None:
        super().__init__()
        self.value_embedding = nn.Conv1d(c, d, 3, padding=1, padding_mode="circular", bias=False)
        self.hour_embed, self.predict_linear = nn.Embedding(24, d), nn.Linear(back, back + ahead)
        self.model = nn.ModuleList([TimesBlock(d, 28) for _ in range(2)])
        self.layer_norm, self.projection = nn.LayerNorm(d), nn.Linear(d, c)

    def forward(self, x: Tensor, hours: Tensor) -> Tensor:
        h = self.value_embedding(x.mT).mT + self.hour_embed(hours)
        h = self.predict_linear(h.mT).mT
        for block in self.model:
            h = self.layer_norm(block(h))
        return self.projection(h)


# TSMixer: an MLP over time, another over channels, in turn.
class TSMixerBlock(nn.Module):
    def __init__(self, n: int, c: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm1d(n), nn.BatchNorm1d(n)
        self.temporal = nn.Linear(n, n)
        self.feature = nn.Sequential(nn.Linear(c, 26), nn.ReLU(), nn.Linear(26, c))

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.relu(self.temporal(self.norm1(x).mT)).mT
        return x + self.feature(self.norm2(x))


class TSMixer(nn.Module):
    def __init__(self, n: int = 20, ahead: int = 6, c: int = 7) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([TSMixerBlock(n, c) for _ in range(3)])
        self.out = nn.Linear(n, ahead)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.out(x.mT).mT


_LINEAR = {"linear", "mlp_up", "mlp_down"}
_OUT = {"classifier", "lm_head"}
_CONV = {"conv"}
_POINT = {"conv", "linear", "mlp_up", "mlp_down"}
_TIME = {"time_embedding", "linear", "modulation"}
_STEP = {"time_embedding", "modulation", "linear"}

STYLES: list[Style] = [
    Style(
        "diffwave",
        DiffWave,
        lambda: ((torch.randn(1, 20), torch.tensor([7])), {}),
        {"cnn", "hybrid"},
        {
            "input_projection.weight": _POINT | {"first_conv"},
            "projection?.weight": _TIME | {"mlp_up", "mlp_down"},
            "*.dilated_conv.weight": _CONV,
            "*.diffusion_projection.weight": _STEP,
            "residual_layers.*.output_projection.weight": _POINT,
            "skip_projection.weight": _POINT,
            "output_projection.weight": _OUT | {"conv"},
        },
    ),
    Style(
        "an mlp of x and t",
        ConditionalModel,
        lambda: ((torch.randn(4, 2), torch.randint(50, (4,))), {}),
        {"mlp"},
        {
            "lin?.lin.weight": _LINEAR,
            "lin?.embed.weight": {"time_embedding", "modulation", "token_embedding", "type_embedding", "position_embedding"},
            "lin4.weight": _OUT,
        },
    ),
    Style(
        "score network by hand",
        ScoreNet,
        lambda: ((torch.randn(2, 1, 8, 8), torch.rand(2)), {}),
        {"diffusion_unet"},
        {
            "embed.weight": {"time_embedding", "linear"},
            "conv1.weight": {"conv", "first_conv"},
            "conv[23].weight": _CONV,
            "dense?.dense.weight": _STEP,
            "tconv[23].weight": _CONV,
            "tconv1.weight": _CONV | _OUT,
        },
    ),
    Style(
        "text by diffusion",
        TextDiffusion,
        lambda: ((torch.randint(66, (2, 5)), torch.rand(2)), {}),
        {"diffusion_transformer"},
        {
            "vocab_embed": {"token_embedding"},
            "sigma_map.?.weight": {"time_embedding"},
            "*.attn_qkv.weight": {"qkv"},
            "*.attn_out.weight": {"attn_out"},
            "*.mlp.0.weight": {"mlp_up"},
            "*.mlp.2.weight": {"mlp_down"},
            "*.adaLN_modulation.weight": {"modulation"},
            "linear.weight": {"lm_head", "classifier"},
            "adaLN_final.weight": {"modulation", "linear"},
        },
        {"*.attn_qkv.weight": "q:4x8|k:4x8|v:4x8"},
    ),
    Style(
        "n-beats",
        NBeats,
        lambda: ((torch.randn(2, 24),), {}),
        {"mlp"},
        {
            "stacks.*.fc?.weight": _LINEAR,
            "stacks.*.theta_?_fc.weight": _LINEAR,
            "stacks.*.backcast_fc.weight": _LINEAR | _OUT,
            "stacks.*.forecast_fc.weight": _LINEAR | _OUT,
        },
    ),
    Style(
        "timesnet",
        TimesNet,
        lambda: ((torch.randn(1, 12, 5), torch.randint(24, (1, 12))), {}),
        {"cnn", "hybrid"},
        {
            "value_embedding.weight": {"conv", "first_conv", "patch_embedding"},
            "hour_embed.weight": {"time_embedding", "token_embedding", "position_embedding", "type_embedding"},
            "predict_linear.weight": {"linear", "token_mix"},
            "model.*.kernels.*.weight": _POINT,
            "projection.weight": _OUT,
        },
    ),
    Style(
        "tsmixer",
        TSMixer,
        lambda: ((torch.randn(3, 20, 7),), {}),
        {"mlp_mixer", "mlp"},
        {
            "*.temporal.weight": {"token_mix", "linear"},
            "*.feature.0.weight": {"mlp_up"},
            "*.feature.2.weight": {"mlp_down"},
            "out.weight": _OUT,
        },
    ),
]
