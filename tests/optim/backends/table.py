"""All that steps parameters, each described once, and what it steps: tests that are crossed with both are declared once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch

from lightning_adam_mini import AdamMini, BlockLayout
from lightning_adam_mini.optim import backends
from lightning_adam_mini.optim.backends.cpp.backend import Cpp
from lightning_adam_mini.optim.backends.cpp.build import load_kernel
from lightning_adam_mini.optim.backends.readable import Readable
from lightning_adam_mini.optim.backends.slices import Slices
from lightning_adam_mini.optim.backends.triton.backend import Triton
from tests.optim.backends.exact import Margins, block_numbers, crossed, labels

GPU = torch.cuda.is_available()
CPU = torch.device("cpu")
DEVICE = torch.device("cuda", 0) if GPU else CPU
"""Where Triton's kernels run: without a GPU, in its interpreter."""

# ---- what steps


class AnySlices(Slices):
    """Slices also of what is no wider than the arithmetic."""

    def why_not(self, p, codec, layout, place):
        return None


@dataclass(frozen=True, eq=False)
class Way:
    """A way to step parameters.

    Attributes:
        name: What the tests call it.
        backend: The backend that does it.
        options: Options of an optimizer that lead to it.
        others: Backends that there are, if not those of the package.
        device: Where.
        to_the_bit: Whether a second moment per element is torch's AdamW to the bit.
        roundings: How often a step rounds weights of half precision; if twice, it rounds gradients with decay too.
        large: Shape of a matrix that it cuts into pieces.
        quick: Whether it takes no more than microseconds for a small tensor.
        cannot: Names of the ``HARD`` cases that it refuses; None if it is never told to be the only one.
    """

    name: str
    backend: type
    options: Mapping[str, Any]
    others: tuple[Any, ...] = ()
    device: torch.device = CPU
    to_the_bit: bool = False
    roundings: int = 1
    large: tuple[int, int] = (40, 60)
    quick: bool = True
    cannot: frozenset[str] | None = None

    @property
    def kinds(self):
        """All kinds of tensors; if it is slow, one of each that it has a program for."""
        return KINDS if self.quick else {name: KINDS[name] for name in FEW}

    def optimizer(self, params, layouts, **options):
        """An AdamMini that steps this way."""
        with mock.patch.object(backends, "BACKENDS", list(self.others) or backends.BACKENDS):
            return AdamMini(params, layouts=layouts, **{**self.options, **options})

    def check(self, optimizer):
        """Check that nothing else took the last step."""
        took = [type(optimizer._stepper._backends[i]) for i in optimizer._stepper._took]
        assert took == [self.backend], f"{self.name} should have stepped all, and not {took}"


_NEVER = {"gaps in memory", "a subclass of tensors", "float64 weights with bfloat16 momentum"}
_SCATTERED = {"codes of scattered rows", "rounding scattered rows at random"}
CPP = Way(
    "cpp",
    Cpp,
    {"fused": True},
    large=(400, 500),
    cannot=frozenset({*_NEVER, *_SCATTERED, "float32 weights with float16 momentum"}),
)
TRITON = Way(
    "triton",
    Triton,
    {"fused": True},
    (partial(Triton, DEVICE.type), Slices, Readable),
    DEVICE,
    roundings=1 if GPU else 2,  # Triton's interpreter cuts bfloat16 off instead
    large=(24, 50),
    quick=GPU,
    cannot=frozenset({*_NEVER, *_SCATTERED, "rounding at random"}),
)
FOREACH = Way("foreach", Readable, {"fused": False, "foreach": True}, to_the_bit=True, roundings=2)
LOOP = Way("loop", Readable, {"fused": False, "foreach": False}, to_the_bit=True, roundings=2)
SLICES = Way("slices", AnySlices, {"fused": False}, (AnySlices,), roundings=2)
ON_GPU = [Way(f"{way.name} on a GPU", way.backend, way.options, way.others, DEVICE, roundings=2) for way in (FOREACH, LOOP, SLICES) if GPU]

_WITHOUT = {
    CPP: pytest.mark.skipif(isinstance(load_kernel(), str), reason=f"no compiled loop here: {load_kernel()}"),
    TRITON: pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed, so its kernels are not tested here"),
}
WAYS = [CPP, TRITON, FOREACH, LOOP, SLICES, *ON_GPU]


def ways(*some):
    """Parametrize a test by its ``way``: by all, or by some."""
    return pytest.mark.parametrize("way", [pytest.param(way, id=way.name, marks=_WITHOUT.get(way, ())) for way in some or WAYS])


def skip_without(way):
    """Skip a test where a way cannot be gone."""
    if way in _WITHOUT and _WITHOUT[way].args[0]:
        pytest.skip(_WITHOUT[way].kwargs["reason"])


# ---- what is stepped


class Kind(NamedTuple):
    """A tensor.

    Attributes:
        layout: Its blocks.
        numbers: The number of each element's block, worked out by hand; of each margin, if means cross.
        order: Dimensions from the outermost in memory to the innermost; None if in order.
    """

    layout: BlockLayout
    numbers: np.ndarray | Margins
    order: tuple[int, ...] | None = None

    @property
    def shape(self):
        return self.layout.shape


def kind(layout, kept, lines=None, order=None):
    return Kind(layout, block_numbers(layout.shape, kept, layout.axis, None if lines is None else labels(lines)), order)


_CONVOLUTION, _IMAGE = (5, 4, 2, 3), (0, 2, 3, 1)
_HEADS, _HEADS_BY_HAND = "q:2x3|k:1x3|v:2x1", "a3 b3 c3 d1 e1"
_MIXED, _MIXED_BY_HAND = "2*(q:1x2|k:1x2|v:2x1)", "a2 b2 c1 d1 e2 f2 g1 h1"
_GATES, _GATES_BY_HAND = "2*(i:1|f:1|g:1|o:1)", 2 * "i1 f1 g1 o1 "

KINDS = {
    "scalar": kind(BlockLayout.whole(()), ()),
    "vector": kind(BlockLayout.whole((5,)), ()),
    "bias of heads": kind(BlockLayout.grouped((11,), _HEADS), (0,), _HEADS_BY_HAND),
    "elements": kind(BlockLayout.per_parameter((10, 15)), (0, 1)),
    "whole": kind(BlockLayout.whole((10, 15)), ()),
    "rows": kind(BlockLayout.each_line((7, 9)), (0,)),
    "short rows": kind(BlockLayout.each_line((20, 3)), (0,)),
    "long rows": kind(BlockLayout.each_line((3, 100)), (0,)),
    "very long rows": kind(BlockLayout.each_line((2, 150)), (0,)),
    "rows in multiples of 8": kind(BlockLayout.each_line((4, 16)), (0,)),
    "columns": kind(BlockLayout.each_line((21, 10), axis=1), (1,)),
    "a few columns": kind(BlockLayout.each_line((19, 3), axis=1), (1,)),
    "heads": kind(BlockLayout.grouped((11, 6), _HEADS), (0,), _HEADS_BY_HAND),
    "heads that interleave": kind(BlockLayout.grouped((12, 5), _MIXED), (0,), _MIXED_BY_HAND),
    "gates that interleave": kind(BlockLayout.grouped((8, 16), _GATES), (0,), _GATES_BY_HAND),
    "heads of columns": kind(BlockLayout.grouped((6, 11), _HEADS, axis=1), (1,), _HEADS_BY_HAND),
    "gates of columns": kind(BlockLayout.grouped((5, 8), _GATES, axis=1), (1,), _GATES_BY_HAND),
    "roles of rows of images": kind(BlockLayout((5, 4, 3, 2), (0, 1, 3), 2, "q:1|k:1|q:1"), (2,), "q1 k1 q1"),
    "output channels": kind(BlockLayout(_CONVOLUTION, dims=(1, 2, 3)), (0,)),
    "input channels": kind(BlockLayout(_CONVOLUTION, dims=(0, 2, 3)), (1,)),
    "alternate dimensions": kind(BlockLayout(_CONVOLUTION, dims=(0, 2)), (1, 3)),
    "experts": kind(BlockLayout((2, 6, 5), dims=(1,)), (0, 2)),
    "output channels, channels last": kind(BlockLayout(_CONVOLUTION, dims=(1, 2, 3)), (0,), order=_IMAGE),
    "input channels, channels last": kind(BlockLayout(_CONVOLUTION, dims=(0, 2, 3)), (1,), order=_IMAGE),
    "alternate dimensions, channels last": kind(BlockLayout(_CONVOLUTION, dims=(0, 2)), (1, 3), order=_IMAGE),
    "elements, channels last": kind(BlockLayout(_CONVOLUTION), (0, 1, 2, 3), order=_IMAGE),
    "rows of a transposed matrix": kind(BlockLayout.each_line((12, 7)), (0,), order=(1, 0)),
    "heads of a transposed matrix": kind(BlockLayout.grouped((11, 6), _HEADS), (0,), _HEADS_BY_HAND, order=(1, 0)),
    "elements of a transposed matrix": kind(BlockLayout.per_parameter((9, 11)), (0, 1), order=(1, 0)),
    "experts, permuted": kind(BlockLayout((2, 6, 5), dims=(1,)), (0, 2), order=(1, 2, 0)),
}
FEW = (
    "scalar",
    "elements",
    "whole",
    "rows",
    "long rows",
    "very long rows",
    "columns",
    "heads",
    "gates that interleave",
    "heads of columns",
)


def crossed_kind(layout, first, second, both=(), lines=None, order=None):
    """A factored tensor.

    Args:
        layout: Its blocks.
        first: Dimensions that the first mean keeps.
        second: Dimensions that the second mean keeps.
        both: Dimensions that tell products apart.
        lines: Labels of the first mean's lines along the layout's axis.
        order: As of a :class:`Kind`.
    """
    shape = layout.shape
    names = None if lines is None else labels(lines)
    return Kind(
        layout, crossed(block_numbers(shape, first, layout.axis, names), block_numbers(shape, second), block_numbers(shape, both)), order
    )


FACTORED = {
    "rows and columns": crossed_kind(BlockLayout.factored((7, 9)), (0,), (1,)),
    "rows and columns in multiples of 8": crossed_kind(BlockLayout.factored((16, 24)), (0,), (1,)),
    "short rows and columns": crossed_kind(BlockLayout.factored((40, 3)), (0,), (1,)),
    "long rows and columns": crossed_kind(BlockLayout.factored((3, 150)), (0,), (1,)),
    "columns and rows": crossed_kind(BlockLayout.factored((10, 6), 1, 0), (1,), (0,)),
    "rows and columns, transposed": crossed_kind(BlockLayout.factored((12, 7)), (0,), (1,), order=(1, 0)),
    "output and input channels": crossed_kind(BlockLayout.factored(_CONVOLUTION), (0,), (1,)),
    "output and input channels, channels last": crossed_kind(BlockLayout.factored(_CONVOLUTION), (0,), (1,), order=_IMAGE),
    "output and input channels of a transposed convolution": crossed_kind(BlockLayout.factored(_CONVOLUTION, 1, 0), (1,), (0,)),
    "output channels, and inputs of each position": crossed_kind(BlockLayout(_CONVOLUTION, dims=(1, 2, 3), crossed=(0,)), (0,), (1, 2, 3)),
    "channels and positions": crossed_kind(BlockLayout((9, 1, 3, 2), dims=(1, 2, 3), crossed=(0, 1)), (0,), (2, 3)),
    "rows and columns of experts": crossed_kind(BlockLayout((2, 6, 5), dims=(2,), crossed=(1,)), (0, 1), (0, 2), (0,)),
    "rows and columns of experts, permuted": crossed_kind(
        BlockLayout((2, 6, 5), dims=(2,), crossed=(1,)), (0, 1), (0, 2), (0,), order=(1, 2, 0)
    ),
    "heads and columns": crossed_kind(BlockLayout((11, 6), (1,), 0, _HEADS, crossed=(0,)), (0,), (1,), lines=_HEADS_BY_HAND),
    "gates that interleave, and columns": crossed_kind(
        BlockLayout((8, 16), (1,), 0, _GATES, crossed=(0,)), (0,), (1,), lines=_GATES_BY_HAND
    ),
}
"""Tensors whose rows and columns both have means."""
FEW_FACTORED = (
    "rows and columns", "rows and columns in multiples of 8", "long rows and columns", "output and input channels, channels last",
    "rows and columns of experts", "heads and columns",
)  # fmt: skip


def layouts_of(kinds):
    return {name: kind.layout for name, kind in kinds.items()}


def large_kinds(rows, columns):
    """The kinds of tensors again, in other sizes.

    Args:
        rows: Rows of a matrix; divisible by 4.
        columns: Its columns; even.
    """
    quarter, eighth = rows // 4, rows // 8
    rest = rows - 2 * quarter - 2 * eighth
    heads = f"q:2x{quarter}|k:2x{eighth}|v:{rest}x1"
    by_hand = [*"q" * quarter, *"Q" * quarter, *"k" * eighth, *"K" * eighth, *range(rest)]
    image = (8, columns, 3, rows // 4)

    def lines(layout, axis, names):
        return Kind(layout, block_numbers(layout.shape, (axis,), axis, names))

    return {
        "whole": kind(BlockLayout.whole((rows, columns)), ()),
        "rows": kind(BlockLayout.each_line((rows, columns)), (0,)),
        "long rows": kind(BlockLayout.each_line((2, rows * columns // 2)), (0,)),
        "columns": kind(BlockLayout.each_line((rows, columns), axis=1), (1,)),
        "heads": lines(BlockLayout.grouped((rows, columns), heads), 0, by_hand),
        "roles that interleave": lines(BlockLayout.grouped((rows, columns), f"{quarter}*(q:2|k:2)"), 0, "qqkk" * quarter),
        "heads of columns": lines(BlockLayout.grouped((columns, rows), heads, axis=1), 1, by_hand),
        "elements": kind(BlockLayout.per_parameter((rows, columns)), (0, 1)),
        "convolution": kind(BlockLayout(image, dims=(0, 2)), (1, 3)),
        "convolution, channels last": kind(BlockLayout(image, dims=(0, 2)), (1, 3), order=_IMAGE),
    }


def large_factored(rows, columns):
    """The factored kinds again, in other sizes."""
    image = (8, columns, 3, rows // 4)
    return {
        "rows and columns": crossed_kind(BlockLayout.factored((rows, columns)), (0,), (1,)),
        "a few rows and many columns": crossed_kind(BlockLayout.factored((3, rows * columns // 3)), (0,), (1,)),
        "many rows and a few columns": crossed_kind(BlockLayout.factored((rows * columns // 3, 3)), (0,), (1,)),
        "convolution": crossed_kind(BlockLayout.factored(image), (0,), (1,)),
        "convolution, channels last": crossed_kind(BlockLayout.factored(image), (0,), (1,), order=_IMAGE),
        "experts": crossed_kind(BlockLayout((4, rows, columns // 2), dims=(2,), crossed=(1,)), (0, 1), (0, 2), (0,)),
    }


def in_order(values, order):
    """The same values, with memory in some order of dimensions."""
    if order is None:
        return values.contiguous()
    return values.permute(order).contiguous().permute([order.index(d) for d in range(len(order))])


def make_params(kinds=KINDS, seed=0, dtype=torch.float32, device=CPU):
    """Parameters of these kinds, by name."""
    generator = torch.Generator().manual_seed(seed)
    values = {name: torch.randn(kind.shape, generator=generator).to(device, dtype) for name, kind in kinds.items()}
    return {name: torch.nn.Parameter(in_order(values[name], kind.order)) for name, kind in kinds.items()}


def make_grads(step, kinds=KINDS, dtype=torch.float32, powers=1.0):
    """Gradients of one step, of sizes that differ by powers of ten; on the CPU."""
    generator = torch.Generator().manual_seed(1000 + step)
    return {
        name: (torch.randn(kind.shape, generator=generator) * 10 ** (powers * float(torch.randn((), generator=generator)))).to(dtype)
        for name, kind in kinds.items()
    }


def give(params, grads):
    """Give each parameter a copy of its gradient, in the order of its memory."""
    for name, p in params.items():
        p.grad = None if grads.get(name) is None else torch.empty_like(p).copy_(grads[name])


def double(t):
    return t.detach().cpu().to(torch.float64, copy=True).numpy()


# ---- what not every backend can step


class Subclass(torch.Tensor):
    pass


class Hard(NamedTuple):
    """A parameter that some backends cannot step.

    Attributes:
        weights: Makes it.
        reason: What is said about it.
        options: Options of the optimizer.
    """

    weights: Callable[[torch.device], torch.Tensor]
    reason: str
    options: Mapping[str, Any] = MappingProxyType({})


_CODES, _AT_RANDOM = {"momentum_dtype": "8bit"}, {"stochastic_rounding": True}
HARD = {
    "gaps in memory": Hard(lambda device: torch.ones(4, 6, device=device)[:, ::2], "its elements overlap or have gaps"),
    "a subclass of tensors": Hard(lambda device: torch.ones(2, 3, device=device).as_subclass(Subclass), "it is a Subclass"),
    "float64 weights with bfloat16 momentum": Hard(
        lambda device: torch.ones(2, 3, device=device, dtype=torch.float64),
        "its dtype is torch.float64 and its momentum's bfloat16",
        {"momentum_dtype": torch.bfloat16},
    ),
    "float32 weights with float16 momentum": Hard(
        lambda device: torch.ones(2, 3, device=device),
        "its dtype is torch.float32 and its momentum's float16",
        {"momentum_dtype": torch.float16},
    ),
    "codes": Hard(lambda device: torch.ones(80, 64, device=device), "its momentum's 8bit", _CODES),
    "codes of scattered rows": Hard(lambda device: torch.ones(64, 80, device=device).t(), "its momentum.* 8 ?bit", _CODES),
    "rounding at random": Hard(
        lambda device: torch.ones(2, 3, device=device, dtype=torch.bfloat16), "its weights are rounded at random", _AT_RANDOM
    ),
    "rounding scattered rows at random": Hard(
        lambda device: torch.ones(64, 80, device=device, dtype=torch.bfloat16).t(), "its weights are rounded at random", _AT_RANDOM
    ),
}
