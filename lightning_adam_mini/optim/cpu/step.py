"""The step of all parameters on the CPU, by the compiled kernel."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.cpu.build import FIELDS, load_kernel
from lightning_adam_mini.optim.quantized import SCALE, MomentumDtype
from lightning_adam_mini.optim.segments import EACH, ROWS, SEGMENTS, find_segments, memory_order, put_in_order, same_memory

_CPU = torch.device("cpu")
_CODES: dict[MomentumDtype, int] = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3, "8bit": 4}
# (parameter, momentum) dtypes that the kernel has.
_PAIRS = {(0, 0), (0, 2), (0, 4), (1, 1), (1, 4), (2, 0), (2, 2), (2, 4), (3, 0), (3, 2), (3, 3), (3, 4)}
Row = tuple[int, ...]


def why_not(p: Tensor, momentum_dtype: MomentumDtype) -> str | None:
    """Why the kernel cannot step a parameter, or None if it can."""
    if p.device.type != "cpu" or type(p) not in (Tensor, torch.nn.Parameter):
        return f"it is a {type(p).__name__} on {p.device}"
    if (_CODES.get(p.dtype), _CODES.get(momentum_dtype)) not in _PAIRS:
        return f"its dtype is {p.dtype} and its momentum's {momentum_dtype}"
    if memory_order(tuple(p.shape), p.stride()) is None:
        return "its elements overlap or have gaps between them"
    if momentum_dtype == "8bit" and not p.is_contiguous():
        return "its momentum's 8-bit codes are in the order of its indices, which is not that of its memory"
    kernel = load_kernel()
    if isinstance(kernel, str):
        return kernel
    if p.dtype == torch.float16 and not kernel.has_half():
        return "the compiler has no half precision"
    return None


def fixed_fields(p: Tensor, momentum_dtype: MomentumDtype, layout: BlockLayout) -> Row:
    """The fields of a parameter's task that do not change from step to step."""
    segments = find_segments(layout, p.stride(), _CPU)
    assert segments is not None
    tables = (0 if t is None else t.data_ptr() for t in (segments.segment, segments.column, segments.size))  # kept by find_segments
    # Runs of 8-bit codes need not end where rows do, so that rows are summed first, as other segments are.
    kind = SEGMENTS if momentum_dtype == "8bit" and segments.kind == ROWS else segments.kind
    return (*tables, kind, p.numel(), segments.length, layout.num_blocks, _CODES[p.dtype], _CODES[momentum_dtype])


def options_of(group: Mapping[str, Any]) -> tuple[float, ...]:
    """The options of a group as the kernel takes them."""
    beta1, beta2 = group["betas"]
    values = (group["lr"], beta1, beta2, group["eps"], group["weight_decay"], group["decoupled_weight_decay"], group["maximize"])
    return tuple(map(float, values))


def step(
    work: Sequence[tuple[Mapping[str, Any], Sequence[tuple[Tensor, Tensor, dict[str, Tensor], Row]]]],
    tables: MutableMapping[Any, Any] | None = None,
) -> None:
    """Step all parameters at once, in place.

    Args:
        work: For each group its options, and for each of its parameters: the parameter, its gradient, its state, and what
            :func:`fixed_fields` gave. Gradients may have any strides.
        tables: Unused: what the step on a GPU keeps from step to step.
    """
    if not any(members for _, members in work):
        return
    kernel = load_kernel()
    assert not isinstance(kernel, str)
    tasks, groups, held = array("q"), array("d"), []
    for g, (options, members) in enumerate(work):
        groups.extend(options_of(options))
        for p, grad, state, fixed in members:
            strides = p.stride()
            if grad.dtype != p.dtype or (grad.stride() != strides and not same_memory(grad, p)):
                grad = torch.empty_like(p).copy_(grad)
                held.append(grad)
            scales, exp_avg, exp_avg_sq = state.get(SCALE), state["exp_avg"], state["exp_avg_sq"]
            if scales is None and (exp_avg.stride() != strides or (fixed[3] == EACH and exp_avg_sq.stride() != strides)):
                put_in_order(p, state)
                exp_avg, exp_avg_sq = state["exp_avg"], state["exp_avg_sq"]
            tasks.extend(
                (
                    p.data_ptr(),
                    grad.data_ptr(),
                    exp_avg.data_ptr(),
                    exp_avg_sq.data_ptr(),
                    state["step"].data_ptr(),
                    0 if scales is None else scales.data_ptr(),
                    *fixed,
                    g,
                )
            )
    with torch.profiler.record_function("lightning_adam_mini::step"):  # the profiler does not see what is past torch's dispatcher
        kernel.adam_mini_step(tasks.buffer_info()[0], len(tasks) // FIELDS, groups.buffer_info()[0], torch.get_num_threads())
