"""Language models without softmax attention: RetNet, Hyena, S4, mLSTM, minGRU."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# RetNet: queries and keys meet under a decay of each head, with no softmax.
class MultiScaleRetention(nn.Module):
    gamma: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.key_dim = heads, dim // heads
        self.q_proj, self.k_proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.v_proj, self.g_proj = nn.Linear(dim, 2 * dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.out_proj = nn.Linear(2 * dim, dim, bias=False)
        self.group_norm = nn.LayerNorm(2 * dim // heads, elementwise_affine=False)
        self.register_buffer("gamma", 1 - 2.0 ** (-5 - torch.arange(heads)))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k = (proj(x).view(b, n, self.heads, self.key_dim).transpose(1, 2) for proj in (self.q_proj, self.k_proj))
        v = self.v_proj(x).view(b, n, self.heads, -1).transpose(1, 2)
        steps = torch.arange(n)[:, None] - torch.arange(n)
        decay = torch.where(steps >= 0, self.gamma[:, None, None] ** steps.clamp(min=0), 0.0)
        y = self.group_norm((q @ k.mT * self.key_dim**-0.5 * decay) @ v).transpose(1, 2).reshape(b, n, -1)
        return self.out_proj(F.silu(self.g_proj(x)) * y)


# Hyena: long convolutions whose filters a small network of sines makes, between gates.
class HyenaFilter(nn.Module):
    def __init__(self, width: int, order: int, hidden: int = 12) -> None:
        super().__init__()
        self.inp, self.mid, self.out = nn.Linear(3, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, width * order, bias=False)

    def forward(self, length: int) -> Tensor:
        t = torch.linspace(0, 1, length)[:, None]
        z = torch.cat((t, torch.cos(6 * t), torch.sin(6 * t)), 1)
        return self.out(torch.sin(self.mid(torch.sin(self.inp(z))))) * torch.exp(-3 * t)


class HyenaOperator(nn.Module):
    def __init__(self, width: int, order: int = 2) -> None:
        super().__init__()
        self.width, self.order = width, order
        self.in_proj = nn.Linear(width, (order + 1) * width)
        self.short_filter = nn.Conv1d((order + 1) * width, (order + 1) * width, 3, padding=2, groups=(order + 1) * width)
        self.filter_fn = HyenaFilter(width, order - 1)
        self.out_proj = nn.Linear(width, width)

    def forward(self, u: Tensor) -> Tensor:
        n = u.shape[1]
        *gates, v = self.short_filter(self.in_proj(u).mT)[..., :n].split(self.width, 1)
        for filters, gate in zip(self.filter_fn(n).mT.chunk(self.order - 1), gates[1:], strict=True):
            v = torch.fft.irfft(torch.fft.rfft(v * gate, 2 * n) * torch.fft.rfft(filters, 2 * n), 2 * n)[..., :n]
        return self.out_proj((v * gates[0]).mT)


# S4 with a diagonal state matrix: complex numbers kept as pairs of real ones.
class S4D(nn.Module):
    def __init__(self, d_model: int, d_state: int = 6) -> None:
        super().__init__()
        self.log_dt = nn.Parameter(torch.rand(d_model) * 2 - 4)
        self.C = nn.Parameter(torch.randn(d_model, d_state, 2))
        self.log_A_real = nn.Parameter(torch.log(0.5 * torch.ones(d_model, d_state)))
        self.A_imag = nn.Parameter(math.pi * torch.arange(d_state).repeat(d_model, 1).float())
        self.D = nn.Parameter(torch.randn(d_model))
        self.output_linear = nn.Sequential(nn.Conv1d(d_model, 2 * d_model, kernel_size=1), nn.GLU(dim=-2))

    def forward(self, u: Tensor) -> Tensor:
        n, dt = u.shape[1], torch.exp(self.log_dt)
        u = u.mT
        A = -torch.exp(self.log_A_real) + 1j * self.A_imag
        dtA = A * dt[:, None]
        C = torch.view_as_complex(self.C.contiguous()) * (torch.exp(dtA) - 1) / A
        k = 2 * torch.einsum("hn,hnl->hl", C, torch.exp(dtA[..., None] * torch.arange(n))).real
        y = torch.fft.irfft(torch.fft.rfft(u, 2 * n) * torch.fft.rfft(k, 2 * n), 2 * n)[..., :n]
        return self.output_linear(F.gelu(y + u * self.D[:, None])).mT


# xLSTM's matrix memory, all steps at once: gates of each head instead of a softmax.
class mLSTMCell(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.W_q, self.W_k, self.W_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.W_i, self.W_f, self.W_o = nn.Linear(dim, heads), nn.Linear(dim, heads), nn.Linear(dim, dim)
        self.proj_down = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (w(x).view(b, n, self.heads, d // self.heads).transpose(1, 2) for w in (self.W_q, self.W_k, self.W_v))
        log_f = F.logsigmoid(self.W_f(x)).mT.cumsum(-1)
        D = log_f[..., None] - log_f[..., None, :] + self.W_i(x).mT[..., None, :]
        D = torch.exp((D - D.amax(-1, keepdim=True)).masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -math.inf))
        C = q @ k.mT * (d // self.heads) ** -0.5 * D
        h = (C / C.sum(-1, keepdim=True).abs().clamp(min=1)) @ v
        return self.proj_down(torch.sigmoid(self.W_o(x)) * h.transpose(1, 2).reshape(b, n, d))


# minGRU: a recurrence whose gates do not see the state, as a scan of cumulative sums.
class MinGRU(nn.Module):
    def __init__(self, dim: int, expansion: float = 1.5) -> None:
        super().__init__()
        self.to_hidden_and_gate = nn.Linear(dim, 2 * int(dim * expansion), bias=False)
        self.to_out = nn.Linear(int(dim * expansion), dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden, gate = self.to_hidden_and_gate(x).chunk(2, dim=-1)
        keep = F.logsigmoid(-gate).cumsum(1)
        return self.to_out(torch.exp(keep + torch.logcumsumexp(F.logsigmoid(gate) + F.softplus(hidden).log() - keep, 1)))


class ResidualLM(nn.Module):
    def __init__(self, *mixers: nn.Module, dim: int = 32, vocab: int = 61) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.mixers = nn.ModuleList(mixers)
        self.ffns = nn.ModuleList([nn.Sequential(nn.Linear(dim, 80), nn.GELU(), nn.Linear(80, dim)) for _ in mixers])
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(2 * len(mixers) + 1)])
        self.unembed = nn.Linear(dim, vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for i, (mixer, ffn) in enumerate(zip(self.mixers, self.ffns, strict=True)):
            x = x + mixer(self.norms[2 * i](x))
            x = x + ffn(self.norms[2 * i + 1](x))
        return self.unembed(self.norms[-1](x))


_LM = {
    "embed.weight": {"token_embedding"},
    "ffns.*.0.weight": {"mlp_up"},
    "ffns.*.2.weight": {"mlp_down"},
    "unembed.weight": {"lm_head"},
}
_UP, _DOWN = {"linear", "mlp_up", "mlp_gate_up", "attn_other", "qkv"}, {"linear", "mlp_down", "attn_out"}


def _lm(name: str, mixer: type[nn.Module], roles: dict[str, set[str]], *sizes: int) -> Style:
    return Style(
        name,
        lambda: ResidualLM(*(mixer(32, *sizes) for _ in range(2))),
        lambda: ((torch.randint(61, (1, 7)),), {}),
        {"transformer", "rnn", "hybrid", "unknown"},
        {**_LM, **roles},
    )


STYLES: list[Style] = [
    _lm(
        "retnet",
        MultiScaleRetention,
        {
            "*.q_proj.weight": {"query"},
            "*.k_proj.weight": {"key"},
            "*.v_proj.weight": {"value"},
            "*.g_proj.weight": {"attn_other", "linear", "mlp_gate"},
            "*.out_proj.weight": {"attn_out"},
        },
        4,
    ),
    _lm(
        "hyena",
        HyenaOperator,
        {
            "*.in_proj.weight": _UP - {"qkv"},
            "*.short_filter.weight": {"conv_dw"},
            "*.filter_fn.*.weight": {"linear", "mlp_up", "mlp_down"},
            "*.out_proj.weight": _DOWN,
        },
    ),
    _lm(
        "s4",
        S4D,
        {"*.C": {"other", "linear"}, "*.A_imag": {"other", "linear"}, "*.output_linear.0.weight": {"conv", "linear", "mlp_gate_up"}},
    ),
    _lm(
        "xlstm's matrix memory",
        mLSTMCell,
        {
            "*.W_q.weight": {"query"},
            "*.W_k.weight": {"key"},
            "*.W_v.weight": {"value"},
            "*.W_[ifo].weight": {"attn_other", "linear", "mlp_gate"},
            "*.proj_down.weight": _DOWN,
        },
        4,
    ),
    _lm("minGRU", MinGRU, {"*.to_hidden_and_gate.weight": _UP - {"qkv"} | {"rnn_ih"}, "*.to_out.weight": _DOWN}),
]
