"""Whether the kernels can be trusted on a GPU: they step a few small tensors there, once a process, beside the readable arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini._sums import second_moment_dtype
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.backends.protocol import Task
from lightning_adam_mini.optim.backends.triton import step as triton
from lightning_adam_mini.optim.codecs import Codec, EightBit, Plain
from lightning_adam_mini.optim.functional import adam_mini
from lightning_adam_mini.optim.shards.part import CutBlocks, Part, apart_in, window_of
from lightning_adam_mini.optim.state import FIRST, elements_in

_LAYOUTS = (
    BlockLayout.each_line((48, 130)),
    BlockLayout.each_line((21, 70), axis=1),
    BlockLayout.grouped((24, 40), "q:2x5|k:2x5|v:4x1"),
    BlockLayout.whole((33, 65)),
    BlockLayout.per_parameter((300,)),
    BlockLayout.factored((48, 296)),
    BlockLayout.factored((300, 20), axis=1, other=0),
    BlockLayout.factored((10, 30, 3, 3)),
    BlockLayout((3, 20, 40), dims=(2,), crossed=(1,)),
    BlockLayout((24, 40), dims=(1,), axis=0, lines="q:2x5|k:2x5|v:4x1", crossed=(0,)),
)
_CUT = (BlockLayout.each_line((96, 65), axis=1), BlockLayout.factored((96, 296)), BlockLayout.factored((20, 30, 3, 3)))
"""Of which another rank holds the second half of the rows."""
_BETAS = (0.9, 0.95)
_OPTIONS: dict[str, Any] = {"lr": 1e-2, "eps": 1e-8, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": False}


@cache
def disagreement(device: torch.device, dtype: torch.dtype, momentum_dtype: torch.dtype, cut: bool = False) -> str | None:
    """Why the kernels are not to be used, or None if they do there what they should.

    Args:
        device: Where.
        dtype: Dtype of parameters.
        momentum_dtype: Dtype of their first moments; int8 stands for codes.
        cut: Whether other ranks hold parts of their blocks.
    """
    try:
        with torch.no_grad():
            _compare(device, dtype, momentum_dtype, cut)
    except Exception as error:  # whatever a compiler, a driver or a comparison may raise
        reason = f"the Triton kernels failed their check on {device}: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
        return reason
    return None


def _compare(device: torch.device, dtype: torch.dtype, momentum_dtype: torch.dtype, cut: bool) -> None:
    generator = torch.Generator().manual_seed(0)  # of its own: torch's are the user's
    layouts = [_half(layout, device, dtype) for layout in _CUT] if cut else _LAYOUTS
    in_codes = momentum_dtype == torch.int8
    wide = second_moment_dtype(dtype) if in_codes else momentum_dtype
    shapes = [layout.shape if isinstance(layout, BlockLayout) else layout.part.pieces[0].sizes for layout in layouts]
    plain = [Plain(shape, wide) for shape in shapes]
    codecs = [EightBit(shape) for shape in shapes] if in_codes else plain
    ours, theirs = ([_tensor(*of, device, dtype) for of in zip(layouts, some, strict=True)] for some in (codecs, plain))
    plans = [triton.plan_of(p, layout, codec) for (p, _), layout, codec in zip(ours, layouts, codecs, strict=True)]
    group, tables = {**_OPTIONS, "betas": _BETAS}, {}
    for _ in range(2):
        grads = [torch.randn(p.shape, generator=generator).to(device, dtype) for p, _ in ours]
        if in_codes:  # what they stand for: what was rounded before a step is no difference
            for codec, (_, state), (_, other) in zip(codecs, ours, theirs, strict=True):
                other["exp_avg"].copy_(codec.decode(elements_in(state, FIRST), wide))
        tasks = [
            Task(p, grad, state, layout, codec, None, plan)
            for (p, state), grad, layout, codec, plan in zip(ours, grads, layouts, codecs, plans, strict=True)
        ]
        triton.step([(group, tasks)], tables)
        adam_mini(
            [p for p, _ in theirs],
            grads,
            [state["exp_avg"] for _, state in theirs],
            [state["exp_avg_sq"] for _, state in theirs],
            [state["step"] for _, state in theirs],
            layouts,
            [state.get("exp_avg_sq_col") for _, state in theirs],
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            foreach=False,
            **_OPTIONS,
        )
    # Two roundings of half precision; of float32, what sums in another order differ by. A code may round to the next one.
    coarsest = max(torch.finfo(dtype).eps, torch.finfo(wide).eps)
    tolerance = 4 * coarsest if coarsest > 1e-4 else 1e-4
    for codec, (p, state), (q, other) in zip(codecs, ours, theirs, strict=True):
        if in_codes:
            values = other["exp_avg"]
            other.update({name: torch.zeros_like(kept) for name, kept in state.items() if name not in other or kept.dtype == torch.int8})
            codec.encode_(values, elements_in(other, FIRST))
        for name, here, there in (("weights", p, q), *((name, state[name], other[name]) for name in state)):
            atol = 1 if here.dtype == torch.int8 else tolerance
            torch.testing.assert_close(here, there, rtol=tolerance, atol=atol, msg=lambda text, name=name: f"{name}: {text}")


def _half(layout: BlockLayout, device: torch.device, dtype: torch.dtype) -> CutBlocks:
    """The blocks as a rank sees them that holds the first half of the rows, with some mean squares."""
    origin, sizes = [0] * len(layout.shape), (layout.shape[0] // 2, *layout.shape[1:])
    margins = []
    for margin, apart in zip(layout.margins, apart_in(layout), strict=True):
        window, corner = window_of(margin, apart, origin, sizes)
        margins.append(Part(margin, apart, window, corner, (window.shard(origin, sizes),), None, (), (), device))
    means = [torch.linspace(0.5, 2, part.window.num_blocks).view(part.window.block_shape) for part in margins]
    part = replace(margins[0], crossing=margins[1]) if len(margins) > 1 else margins[0]
    return CutBlocks(part, tuple(mean.to(device, second_moment_dtype(dtype)) for mean in means))


def _tensor(layout: BlockLayout | CutBlocks, codec: Codec, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    margins = layout.margins if isinstance(layout, BlockLayout) else [part.window for part in layout.part.margins]
    p = torch.linspace(-1, 1, math.prod(codec.shape)).view(codec.shape).to(device, dtype)
    state = {"step": torch.zeros((), device=device)}
    for suffix, field in codec.fields.items():
        state["exp_avg" + suffix] = torch.zeros(field.shape, device=device, dtype=field.dtype)
    for name, margin in zip(("exp_avg_sq", "exp_avg_sq_col"), margins, strict=False):
        state[name] = torch.zeros(margin.block_shape, device=device, dtype=second_moment_dtype(dtype))
    return p, state
