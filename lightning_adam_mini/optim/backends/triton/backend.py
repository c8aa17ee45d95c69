"""The step of all parameters on a GPU, by Triton kernels that first have to agree with the readable arithmetic there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.backends.protocol import Backend, Task
from lightning_adam_mini.optim.backends.triton import step as kernels
from lightning_adam_mini.optim.backends.triton.check import disagreement
from lightning_adam_mini.optim.backends.triton.plan import Plan
from lightning_adam_mini.optim.backends.triton.prepared import Prepared
from lightning_adam_mini.optim.codecs import Codec, EightBit, Plain, leading_dims
from lightning_adam_mini.optim.functional import Blocks
from lightning_adam_mini.optim.rounding import Place
from lightning_adam_mini.optim.segments import memory_order, order_in_rows
from lightning_adam_mini.optim.shards.part import CutBlocks


class Triton(Backend):
    """A few launches for all parameters.

    Args:
        device: Kind of device; on the CPU, Triton's interpreter runs the kernels (``TRITON_INTERPRET=1``).
    """

    def __init__(self, device: str = "cuda") -> None:
        self.device: str | None = device
        self.tables: dict[Any, Any] = {}
        self._captured: list[Tensor] = []

    def counts_there(self, group: Mapping[str, Any]) -> bool:
        """Nothing may wait for the device."""
        return True

    def why_not(self, p: Tensor, codec: Codec, layout: Blocks, place: Place | None) -> str | None:
        """Why the kernels cannot step a parameter, or None if they can."""
        if type(p) not in (Tensor, torch.nn.Parameter):
            return f"it is a {type(p).__name__}"
        if p.numel() == 0:
            return "it is empty"
        if not isinstance(layout, BlockLayout) and not (isinstance(layout, CutBlocks) and layout.over(tuple(p.shape))):
            return "other ranks hold parts of its blocks"
        if place is not None:
            return "its weights are rounded at random"
        momentum_dtype = codec.fields[""].dtype
        if {p.dtype, momentum_dtype} - kernels.DTYPES.keys():
            return f"its dtype is {p.dtype} and its momentum's {codec.name}"
        if isinstance(codec, Plain) and (codec.dtype == torch.float64) != (p.dtype == torch.float64):
            return f"its dtype is {p.dtype} and its momentum's {codec.name}"
        # On an H100 (Triton 3.6) a float64 variant of step_pieces made an illegal access that no reading and no interpreter shows.
        if p.is_cuda and p.dtype == torch.float64:
            return "it is float64, in which a kernel failed on a GPU"
        if memory_order(tuple(p.shape), p.stride()) is None:
            return "its elements overlap or have gaps between them"
        if isinstance(codec, EightBit):
            if codec.row is not None:
                return "it is a range of a larger tensor, and its momentum is in 8 bits"
            if p.numel() >= 2**31:
                return "it has more than 2**31 elements, and its momentum is in 8 bits"
            try:
                order_in_rows(tuple(p.shape), p.stride(), leading_dims(p.shape))
            except ValueError as error:
                return f"{error}, and its momentum is in 8 bits"
        module = kernels.load_kernels()
        if isinstance(module, str):
            return f"its compiled loop cannot be used: {module}"
        if not p.is_cuda:
            return None
        if torch.version.hip is None and torch.cuda.get_device_capability(p.device) < (7, 0):
            return f"{torch.cuda.get_device_name(p.device)} is older than what Triton compiles for"
        # While a graph is captured nothing may be compared: its warm-up has done so.
        if torch.cuda.is_current_stream_capturing():
            return None
        return disagreement(p.device, p.dtype, momentum_dtype, isinstance(layout, CutBlocks))

    def plan(self, p: Tensor, codec: Codec, layout: Blocks, place: Place | None) -> Plan:
        """What a parameter's programs do."""
        return kernels.plan_of(p, layout, codec)

    def step(self, work: Sequence[tuple[Mapping[str, Any], Sequence[Task]]]) -> None:
        """Step all parameters. Nothing waits for the device."""
        kernels.step(work, self.tables)

    def prepare(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]], plans: Sequence[Plan]) -> Prepared:
        """Keep the launches of the step, and let torch compare the tensors."""
        return Prepared(groups, state, plans, self.tables)

    def forget(self) -> None:
        """Drop the tables on the device, but for those that CUDA graphs read."""
        self._captured += [table for batch in self.tables.values() for table in batch.captured]
        self.tables.clear()
