"""Attention written by hand in ways that names and structure say nothing of; with each its true line orders."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Einsum(nn.Module):
    """One weight a head and projection, in einsums; keys before queries."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(4, 32, 8))
        self.w2 = nn.Parameter(torch.randn(4, 32, 8))
        self.w3 = nn.Parameter(torch.randn(4, 32, 8))
        self.w4 = nn.Parameter(torch.randn(4, 8, 32))

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = (torch.einsum("btd,hde->bhte", x, w) for w in (self.w1, self.w2, self.w3))
        p = torch.einsum("bhte,bhse->bhst", a, b).softmax(-1)  # b asks
        return torch.einsum("bhst,bhte,hed->bsd", p, c, self.w4)


class ManualSoftmax(nn.Module):
    """exp and sum by hand, names that say other things, values first, heads the fastest index."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp_up = nn.Linear(32, 96)
        self.key = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        v, q, k = (t.unflatten(-1, (8, 4)).permute(0, 3, 1, 2) for t in self.mlp_up(x).chunk(3, -1))
        s = q @ k.mT
        e = torch.exp(s - s.amax(-1, keepdim=True))
        out = (e / e.sum(-1, keepdim=True)) @ v
        return self.key(out.permute(0, 2, 3, 1).flatten(2))


class Flex(nn.Module):
    """flex_attention, grouped queries."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 64, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        k, q, v = self.fc(x).split([16, 32, 16], -1)
        q, k, v = (t.unflatten(-1, (-1, 8)).transpose(1, 2) for t in (q, k, v))
        out = flex_attention(q, k, v, score_mod=lambda s, b, h, i, j: s - (i - j).abs(), enable_gqa=True)
        assert isinstance(out, Tensor)
        return out.transpose(1, 2).flatten(2)


class TalkingHeads(nn.Module):
    """Heads are mixed before and after the softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 96)
        self.before = nn.Linear(4, 4)
        self.after = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        k, v, q = self.a(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        s = self.before((q @ k.mT).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return (self.after(s.softmax(-1)) @ v).transpose(1, 2).flatten(2)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(q @ k.mT, -1) @ v

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, ...]:
        return grads * 3


class CustomFunction(nn.Module):
    """Attention inside a custom autograd function."""

    def __init__(self) -> None:
        super().__init__()
        self.x1 = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.x1(x).unflatten(-1, (4, 3, 8)).permute(3, 0, 2, 1, 4)
        out = _Attend.apply(q, k, v)
        assert isinstance(out, Tensor)
        return out.transpose(1, 2).flatten(2)


class XCA(nn.Module):
    """Cross-covariance attention: channels are compared with channels, over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(32, 96)
        self.t = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 4, 1)
        p = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.t).softmax(-1)
        return (p @ v).permute(0, 3, 1, 2).flatten(2)


class ConvMultiQuery(nn.Module):
    """Multi-query attention by 1x1 convolutions: four queries, one key and value, heads among the rows of one product."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(32, 32, 1)
        self.c2 = nn.Conv2d(32, 8, 1, bias=False)
        self.c3 = nn.Conv2d(32, 8, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        image = x.mT.unflatten(-1, (3, -1))
        q = self.c1(image).flatten(2).unflatten(1, (4, 8))
        k, v = self.c2(image).flatten(2), self.c3(image).flatten(2)
        p = torch.einsum("bhen,bem->bhnm", q, k).softmax(-1)
        return torch.einsum("bhnm,bem->bhne", p, v).transpose(1, 2).flatten(2)


class ByTheToken(nn.Module):
    """A loop over heads with weights that are transposed, (in, out), and rotary positions."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.randn(32, 96))
        self.p0 = nn.Parameter(torch.randn(96))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.addmm(self.p0, x.flatten(0, 1), self.p).view(*x.shape[:2], 96)
        angle = torch.outer(torch.arange(x.shape[1], dtype=x.dtype, device=x.device), torch.rand(4, device=x.device))
        turn = torch.polar(torch.ones_like(angle), angle)
        out = []
        for head in h.split(24, -1):
            q, k, v = head.split(8, -1)
            q, k = (torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (4, 2))) * turn).flatten(-2) for t in (q, k))
            out.append(F.scaled_dot_product_attention(q, k, v))
        return torch.cat(out, -1)


class Latent(nn.Module):
    """Multi-head latent attention: keys and values from a latent, with one rotary key for all heads beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(32, 4 * 12, bias=False)
        self.a = nn.Linear(32, 10 + 4, bias=False)
        self.norm = nn.LayerNorm(10)
        self.b = nn.Linear(10, 4 * (8 + 6), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 12)).transpose(1, 2)
        latent, shared = self.a(x).split([10, 4], -1)
        k, v = self.b(self.norm(latent)).unflatten(-1, (4, 14)).transpose(1, 2).split([8, 6], -1)
        k = torch.cat([k, shared[:, None].expand(-1, 4, -1, -1)], -1)
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)


class Written(nn.Module):
    """Keys and queries written into parts of one empty tensor; a norm over all heads; weights cast to half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(32, 32, bias=False)
        self.two = nn.Linear(32, 32, bias=False)
        self.norm = nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        both = x.new_empty(*x.shape[:2], 2, 32)
        both[:, :, 1] = self.norm(self.one(x))
        half = x.bfloat16() @ self.two.weight.bfloat16().t()
        both[:, :, 0] = half.to(x.dtype)
        q, k = both.unflatten(-1, (2, 16)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, k).transpose(1, 2).flatten(2)


HAND_WRITTEN: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, str]]]] = {
    "einsum": (Einsum, {"w1": (0, "k:4x1"), "w2": (0, "q:4x1"), "w3": (0, "v:4x1")}),
    "manual_softmax": (ManualSoftmax, dict.fromkeys(("mlp_up.weight", "mlp_up.bias"), (0, "v:4x8t|q:4x8t|k:4x8t"))),
    "flex": (Flex, {"fc.weight": (0, "k:2x8|q:4x8|v:2x8")}),
    "talking_heads": (TalkingHeads, dict.fromkeys(("a.weight", "a.bias"), (0, "k:4x8|v:4x8|q:4x8"))),
    "custom_function": (CustomFunction, dict.fromkeys(("x1.weight", "x1.bias"), (0, "4*(q:1x8|k:1x8|v:1x8)"))),
    "xca": (XCA, dict.fromkeys(("mix.weight", "mix.bias"), (0, "q:4x8|k:4x8|v:4x8"))),
    "conv_multi_query": (
        ConvMultiQuery,
        {"c1.weight": (0, "q:4x8"), "c1.bias": (0, "q:4x8"), "c2.weight": (0, "k:1x8"), "c3.weight": (0, "v:1x8")},
    ),
    "by_the_token": (ByTheToken, {"p": (1, "4*(q:1x8|k:1x8|v:1x8)"), "p0": (0, "4*(q:1x8|k:1x8|v:1x8)")}),
    "latent": (Latent, {"q.weight": (0, "q:4x12"), "a.weight": (0, "n:10|k:1x4"), "b.weight": (0, "4*(k:1x8|v:1x6)")}),
    "written": (Written, {"one.weight": (0, "k:2x16"), "two.weight": (0, "q:2x16")}),
}
"""Name: how to build it, and for each parameter that feeds attention its axis and line order. All map (batch, tokens, 32)."""


class Unprojected(nn.Module):
    """Queries and keys are the residual stream itself; only values have a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(32, 32)
        self.to_v = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + torch.tanh(x)
        return (x @ x.mT).softmax(-1) @ self.to_v(x)


class Linformer(nn.Module):
    """Keys and values are mixed over tokens by one more weight, which has no heads."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 32) for _ in range(3))
        self.e = nn.Parameter(torch.randn(12, 5))

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (4, 8)).transpose(1, 2)
        k, v = (torch.einsum("bnd,nk->bkd", t, self.e).unflatten(-1, (4, 8)).transpose(1, 2) for t in (self.k(x), self.v(x)))
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)


class InNumpy(nn.Module):
    """Attention in numpy, where nothing can be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.detach().numpy() for t in self.qkv(x).chunk(3, -1))
        p = torch.from_numpy(q @ k.swapaxes(-1, -2)).numpy()
        return x + torch.from_numpy(p / p.sum(-1, keepdims=True) @ v)


class Pooled(nn.Module):
    """A softmax over tokens that a layer scores: no queries, no keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(32, 1)
        self.value = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.query(x).softmax(1).mT @ self.value(x)
