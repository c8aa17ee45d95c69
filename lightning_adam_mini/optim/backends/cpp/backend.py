"""The step of all parameters on the CPU, by the compiled kernel."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.backends.cpp.build import load_kernel
from lightning_adam_mini.optim.backends.cpp.prepared import Prepared
from lightning_adam_mini.optim.backends.cpp.run import STATE, Row, options_of, run_kernel
from lightning_adam_mini.optim.backends.protocol import Backend, Task
from lightning_adam_mini.optim.codecs import Codec, EightBit, leading_dims, row_of
from lightning_adam_mini.optim.functional import Blocks
from lightning_adam_mini.optim.rounding import Place
from lightning_adam_mini.optim.segments import EACH, find_segments, in_memory_of, memory_order, order_in_rows, put_in_order

_CPU = torch.device("cpu")
_CODES = {"float32": 0, "float64": 1, "bfloat16": 2, "float16": 3, "8bit": 4}
# (parameter, momentum) dtypes that the kernel has.
_PAIRS = {(0, 0), (0, 2), (0, 4), (1, 1), (1, 4), (2, 0), (2, 2), (2, 4), (3, 0), (3, 2), (3, 3), (3, 4)}
_NEAREST = -1
NO_LOOP = "its compiled loop cannot be used"
"""How a reason begins that is the machine's and no parameter's."""


class Cpp(Backend):
    """One call of compiled code for all parameters."""

    device: str | None = "cpu"

    def why_not(self, p: Tensor, codec: Codec, layout: Blocks, place: Place | None) -> str | None:
        """Why the kernel cannot step a parameter, or None if it can."""
        if type(p) not in (Tensor, torch.nn.Parameter):
            return f"it is a {type(p).__name__}"
        if not isinstance(layout, BlockLayout):
            return "other ranks hold parts of its blocks"
        if (_code(p.dtype), _CODES.get(codec.name)) not in _PAIRS:
            return f"its dtype is {p.dtype} and its momentum's {codec.name}"
        if memory_order(tuple(p.shape), p.stride()) is None:
            return "its elements overlap or have gaps between them"
        if isinstance(codec, EightBit) and codec.row is not None:
            return "it is a range of a larger tensor, and its momentum is in 8 bits"
        if place is not None and place.first is None:
            return "its weights are rounded at random, and they do not follow each other in the whole tensor"
        if place is not None or isinstance(codec, EightBit):
            try:
                order_in_rows(tuple(p.shape), p.stride(), leading_dims(p.shape))
            except ValueError as error:
                return f"{error}, and its momentum is in 8 bits or its weights are rounded at random"
        kernel = load_kernel()
        if isinstance(kernel, str):
            return f"{NO_LOOP}: {kernel}"
        if p.dtype == torch.float16 and not kernel.has_half():
            return "the compiler has no half precision"
        return None

    def plan(self, p: Tensor, codec: Codec, layout: Blocks, place: Place | None) -> Row:
        """The fields of a parameter's task that do not change from step to step."""
        assert isinstance(layout, BlockLayout)
        dtypes = (_code(p.dtype) or 0, _CODES[codec.name])
        segments = find_segments(layout, p.stride(), _CPU)
        if segments is None:  # of an empty tensor the step is counted
            return (*[0] * 7, EACH, 0, 1, 0, *dtypes, 0, 0, 0, 1, 0, _NEAREST)
        in_rows = place is not None or isinstance(codec, EightBit)
        order = order_in_rows(tuple(p.shape), p.stride(), leading_dims(p.shape)) if in_rows else None
        tables = (segments.segment, segments.column, segments.size, order, segments.line, segments.across, segments.common)
        blocks = [margin.num_blocks for margin in layout.margins]
        of_columns = blocks[0] if segments.turned else blocks[-1]
        return (
            *(0 if table is None else table.data_ptr() for table in tables),  # kept by caches
            segments.kind,
            p.numel(),
            segments.length,
            blocks[0],
            *dtypes,
            of_columns if segments.column is None else len(segments.column),
            blocks[-1],
            segments.turned,
            row_of(p.shape),
            *((0, _NEAREST) if place is None else (place.first or 0, place.number)),
        )

    def step(self, work: Sequence[tuple[Mapping[str, Any], Sequence[Task]]]) -> None:
        """Step all parameters at once. Gradients may have any strides."""
        tasks, groups, held = array("q"), array("d"), []
        for g, (options, members) in enumerate(work):
            groups.extend(options_of(options))
            for task in members:
                p, state = task.p, task.state
                grad = in_memory_of(p, task.grad)
                held.append(grad)
                put_in_order(p, state)
                tensors = (p, grad, *(state.get(name) for name in STATE))
                tasks.extend((*(0 if t is None else t.data_ptr() for t in tensors), *task.plan, g))
        run_kernel(tasks, groups, [task.p for _, members in work for task in members])

    def prepare(
        self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]], plans: Sequence[Row]
    ) -> Prepared | None:
        """Keep the tables of the step, and let torch compare the tensors."""
        return Prepared(groups, state, plans)


def _code(dtype: torch.dtype) -> int | None:
    return _CODES.get(str(dtype).removeprefix("torch."))
