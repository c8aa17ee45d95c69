"""Bytes of parameters, gradients and optimizer state, counted from shapes: a model on the meta device does as well.

What each optimizer keeps for a parameter of ``n`` elements, once every trainable parameter has had its first gradient:

- SGD with momentum: a momentum, in the parameter's dtype.
- torch's AdamW: two moments in the parameter's dtype, and a step counter (float32, 4 bytes).
- ``AdamMini``: a momentum, one second moment per block (float32, or float64 for float64 parameters), and a step counter (4 bytes). The
  momentum has the parameter's dtype unless told otherwise; in 8 bits it is 1 byte per element and a float32 scale for each 256 elements of
  a row, but a tensor of fewer than 4,096 elements keeps its dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lightning_adam_mini.combine import Part, read_part
from lightning_adam_mini.combine.blocks import find_blocks
from lightning_adam_mini.combine.part import check_layout
from lightning_adam_mini.detection import ModelReport, inspect_model, parameter_names
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.codecs import MomentumDtype
from lightning_adam_mini.optim.state import Kind, fields_by_slot, slots_of
from lightning_adam_mini.partition import PartitionStrategy, make_strategy, partition_model

PARTITIONS = ("auto", "adam_mini", "adam_mini_v1", "adalayer", "adalayer_ln_tl", "adam")
"""The partitions that are counted unless others are asked for."""

BADAM = "badam"
"""What is no part of a step, but trains block by block: the state is that of the largest block."""

_STEP = 4


@dataclass(frozen=True)
class StateMemory:
    """What an optimizer's state takes after its first step, in bytes.

    Attributes:
        optimizer: ``SGD``, ``AdamW`` (both torch's) or ``AdamMini``.
        partition: Name of AdamMini's partition; empty for the others.
        momentum: Bytes of the momentum, scales included.
        second_moments: Number of second moments.
        second_moment: Their bytes.
        step: Bytes of the step counters.
        combined: What AdamMini is combined with; empty if with nothing.
        added: Bytes that this keeps beside AdamMini's slots.
    """

    optimizer: str
    partition: str
    momentum: int
    second_moments: int
    second_moment: int
    step: int
    combined: str = ""
    added: int = 0

    @property
    def total(self) -> int:
        """All of it: what :func:`~lightning_adam_mini.optim.state_bytes` counts on the real optimizer."""
        return self.momentum + self.second_moment + self.step + self.added


@dataclass(frozen=True)
class ModelMemory:
    """What a model takes while it trains, in bytes; activations, buffers and temporary tensors not counted.

    Attributes:
        report: What the model is.
        dtypes: Number of elements by dtype of the parameters, tied ones counted once.
        trainable: Number of elements that train.
        trainable_tensors: Number of tensors that train.
        parameters: Bytes of all parameters.
        gradients: Bytes of the gradients of those that train.
        states: Bytes of the state, by optimizer and partition.
    """

    report: ModelReport
    dtypes: Mapping[str, int]
    trainable: int
    trainable_tensors: int
    parameters: int
    gradients: int
    states: tuple[StateMemory, ...]

    @property
    def elements(self) -> int:
        """Number of elements, tied ones counted once."""
        return sum(self.dtypes.values())

    def state(self, optimizer: str, partition: str = "", combined: str = "") -> StateMemory:
        """The state of one optimizer.

        Raises:
            KeyError: If it was not counted.
        """
        for state in self.states:
            if (state.optimizer, state.partition, state.combined) == (optimizer, partition, combined):
                return state
        raise KeyError(f"The state of {optimizer} {partition}{f' + {combined}' if combined else ''} was not counted.")


def count_memory(
    model: nn.Module,
    partitions: Sequence[str | PartitionStrategy] = PARTITIONS,
    *,
    dtype: torch.dtype | None = None,
    momentum_dtype: MomentumDtype | None = None,
    strict: bool = False,
    combine: Sequence[str] = (),
) -> ModelMemory:
    """Count what a model takes under SGD with momentum, AdamW, and AdamMini with each partition.

    Args:
        model: Any module; on the meta device nothing is allocated.
        partitions: Partitions of AdamMini, or their names.
        dtype: What the floating-point parameters are taken to be in. [default: each as it is]
        momentum_dtype: What AdamMini's momentum is kept in. [default: the parameter's dtype]
        strict: Whether attention whose heads cannot be found is an error; else each of its lines is a block, with a warning.
        combine: What AdamMini with each partition is combined with besides, such as ``galore:rank=1024``; ``badam`` for the largest block.

    Raises:
        ValueError: If a partition or a combination is unknown, a parameter is lazy or complex, or, if ``strict``, heads are unknown.

    Example:
        >>> memory = count_memory(nn.Linear(8, 4), ["tensor"])
        >>> memory.parameters, memory.gradients, memory.state("AdamW").total, memory.state("AdamMini", "tensor").total
        (144, 144, 296, 160)
    """
    report = inspect_model(model, heads=any(make_strategy(partition).needs_heads for partition in partitions))
    parameters = {name: p for p, name in parameter_names(model).items()}  # a tied one once
    dtypes = {name: dtype if dtype is not None and p.is_floating_point() else p.dtype for name, p in parameters.items()}
    for name, p in parameters.items():
        if p.is_complex() and p.requires_grad:
            raise ValueError(
                f"Parameter {name!r} is complex ({p.dtype}), which AdamMini does not step. Keep it as a real tensor (torch.view_as_real)."
            )
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    same_dtype = sum(p.numel() * dtypes[name].itemsize for name, p in trained.items())
    elements = sum(p.numel() for p in trained.values())
    steps = _STEP * len(trained)
    states = [StateMemory("SGD", "", same_dtype, 0, 0, 0), StateMemory("AdamW", "", same_dtype, elements, same_dtype, steps)]
    for partition in partitions:
        decided = partition_model(report, partition, strict=strict)
        for combined in ("", *combine):
            part = None if combined in ("", BADAM) else read_part(combined)
            chosen = {} if part is None else part.choose({name: tuple(p.shape) for name, p in trained.items()}, report)
            if part is not None:
                for name in trained:
                    check_layout(part, name, decided[name])
            kept = {name: _state(decided[name], dtypes[name], momentum_dtype, part if name in chosen else None) for name in trained}
            groups = find_blocks(list(trained)).values() if combined == BADAM else [list(trained)]
            sums = [_sum([kept[name] for name in names]) for names in groups]
            most = max(sums, key=lambda state: state.total, default=StateMemory("", "", 0, 0, 0, 0))
            states.append(replace(most, optimizer="AdamMini", partition=str(partition), combined=combined))
    return ModelMemory(
        report=report,
        dtypes=_elements_by_dtype(parameters, dtypes),
        trainable=elements,
        trainable_tensors=len(trained),
        parameters=sum(p.numel() * dtypes[name].itemsize for name, p in parameters.items()),
        gradients=same_dtype,
        states=tuple(states),
    )


def _state(layout: BlockLayout, dtype: torch.dtype, momentum_dtype: MomentumDtype | None, part: Part | None) -> StateMemory:
    """What is kept of one parameter, by what it is for."""
    of = layout if part is None else part.stands_in(layout)
    slots = fields_by_slot(of, dtype, momentum_dtype)
    sizes = {kind: sum(field.bytes for slot in slots_of(kind) for field in slots[slot.name]) for kind in Kind}
    momentum = sizes[Kind.ELEMENT] if part is None or part.momentum else 0
    added = 0 if part is None else sum(field.bytes for field in part.adds(layout, dtype).values())
    return StateMemory("", "", momentum, of.num_blocks, sizes[Kind.BLOCK], sizes[Kind.NUMBER], "", added)


def _sum(states: Sequence[StateMemory]) -> StateMemory:
    def of(name: str) -> int:
        return sum(getattr(state, name) for state in states)

    return StateMemory("", "", of("momentum"), of("second_moments"), of("second_moment"), of("step"), added=of("added"))


def _elements_by_dtype(parameters: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name, p in parameters.items():
        key = str(dtypes[name]).removeprefix("torch.")
        counts[key] = counts.get(key, 0) + p.numel()
    return counts
