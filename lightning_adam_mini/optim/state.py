"""What an optimizer keeps per parameter, as a list of slots. All that makes, checks, saves, loads, converts or counts state loops over it.

A slot has a value per element (the first moment), per block (the second moment), or is one number (the steps taken). What is per element
is kept by a codec (``codecs.py``), which may take more than one tensor; what is per block has a slot for each margin of the layout, of the
margin's ``block_shape``. Of a sharded parameter, the state holds what this rank has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini._sums import second_moment_dtype
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.matrix_layout import MatrixLayout
from lightning_adam_mini.optim.codecs import SUFFIXES, Codec, Field, MomentumDtype, Plain, codec_for, codec_of
from lightning_adam_mini.optim.regroup import regroup
from lightning_adam_mini.optim.shards.dtensor import local

if TYPE_CHECKING:
    from lightning_adam_mini.optim.shards.sharded import Shards


class Kind(Enum):
    """What a slot has a value for."""

    ELEMENT = "element"
    BLOCK = "block"
    NUMBER = "number"


@dataclass(frozen=True)
class Slot:
    """One thing that is kept per parameter.

    Attributes:
        name: Its key in a parameter's state.
        what: What users call it.
        kind: What it has a value for.
        dtype: Its dtype, from the parameter's; what is kept per element has the codec's.
        margin: Which margin of a layout it has a value per block of; layouts with fewer margins do not have it.
    """

    name: str
    what: str
    kind: Kind
    dtype: Callable[[torch.dtype], torch.dtype]
    margin: int = 0

    def is_of(self, margins: int) -> bool:
        """Whether a layout with so many margins has it."""
        return self.kind is not Kind.BLOCK or self.margin < margins


STEP = Slot("step", "step count", Kind.NUMBER, lambda _: torch.float32)
FIRST = Slot("exp_avg", "first moment", Kind.ELEMENT, lambda dtype: dtype)
SECOND = Slot("exp_avg_sq", "second moment", Kind.BLOCK, second_moment_dtype)
CROSSING = Slot("exp_avg_sq_col", "second moment of the other margin", Kind.BLOCK, second_moment_dtype, margin=1)
SLOTS = (STEP, FIRST, SECOND, CROSSING)


def slots_of(kind: Kind, layout: BlockLayout | None = None) -> Iterator[Slot]:
    """The slots of one kind: all that there are, or those of a layout."""
    return (slot for slot in SLOTS if slot.kind is kind and (layout is None or slot.is_of(len(layout.margins))))


def slots_for(layout: BlockLayout) -> Iterator[Slot]:
    """All slots of a layout."""
    return (slot for slot in SLOTS if slot.is_of(len(layout.margins)))


class Moments(NamedTuple):
    """What is kept of a parameter, without the step.

    Attributes:
        layout: The blocks that it was kept with.
        kept: Tensors by name; None where nothing is kept.
    """

    layout: BlockLayout
    kept: dict[str, Tensor] | None


def moments_in(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """All of a parameter's state that is per element or block, by name."""
    names = [slot.name + suffix for slot in slots_of(Kind.ELEMENT) for suffix in SUFFIXES]
    names += [slot.name for slot in slots_of(Kind.BLOCK)]
    return {name: state[name] for name in names if name in state}


def elements_in(state: Mapping[str, Any], slot: Slot) -> dict[str, Tensor]:
    """The tensors of a slot that is kept per element, by what its codec adds to its name."""
    return {suffix: state[slot.name + suffix] for suffix in SUFFIXES if slot.name + suffix in state}


def with_elements(state: Mapping[str, Any], slot: Slot, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """A parameter's state with other tensors, by name, in the place of those of a slot that is kept per element."""
    gone = {slot.name + suffix for suffix in SUFFIXES}
    return {**{name: kept for name, kept in state.items() if name not in gone}, **tensors}


def fields_of(codec: Codec, block_shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> dict[str, Field]:
    """The tensors that are kept of a parameter, by name.

    Args:
        codec: How its first moment is kept.
        block_shapes: Shape of what is kept per block of each margin.
        dtype: Dtype of the parameter.

    Example:
        >>> from lightning_adam_mini.optim.codecs import Plain
        >>> {name: field.shape for name, field in fields_of(Plain((4, 6), torch.float32), [(4, 1)], torch.float32).items()}
        {'step': (), 'exp_avg': (4, 6), 'exp_avg_sq': (4, 1)}
    """
    fields: dict[str, Field] = {}
    for slot in SLOTS:
        if slot.kind is Kind.ELEMENT:
            fields.update((slot.name + suffix, field) for suffix, field in codec.fields.items())
        elif slot.is_of(len(block_shapes)):
            fields[slot.name] = Field(block_shapes[slot.margin] if slot.kind is Kind.BLOCK else (), slot.dtype(dtype))
    return fields


def block_shapes(layout: BlockLayout) -> list[tuple[int, ...]]:
    """Shape of what is kept per block of each margin."""
    return [margin.block_shape for margin in layout.margins]


def fields_by_slot(layout: BlockLayout, dtype: torch.dtype, momentum_dtype: MomentumDtype | None) -> dict[str, list[Field]]:
    """The tensors that are kept of a whole parameter, by the name of their slot: what its state will take.

    Args:
        layout: Its blocks.
        dtype: Its dtype.
        momentum_dtype: What first moments are kept in; None for the parameters' dtype.
    """
    fields = fields_of(codec_for(layout.shape, dtype, momentum_dtype), block_shapes(layout), dtype)
    suffixes = {slot.name: SUFFIXES if slot.kind is Kind.ELEMENT else ("",) for slot in SLOTS}
    return {name: [fields[name + suffix] for suffix in some if name + suffix in fields] for name, some in suffixes.items()}


def put_in_blocks(state: MutableMapping[str, Any], blocks: Mapping[str, Tensor]) -> None:
    """Replace what is per block of a parameter's state."""
    for slot in slots_of(Kind.BLOCK):
        state.pop(slot.name, None)
    state.update(blocks)


def in_blocks(p: Tensor, state: Mapping[str, Tensor], old: BlockLayout, new: BlockLayout) -> dict[str, Tensor]:
    """What is per block of a parameter's state, in other blocks: tensors of their own, so that the memory of finer ones is free at once.

    Args:
        p: A whole parameter.
        state: Its state.
        old: The blocks that it has.
        new: The blocks that it gets; finer or coarser.
    """
    kept = regroup([state[slot.name] for slot in slots_of(Kind.BLOCK, old)], old, new)
    return {
        slot.name: blocks.to(local(p).device, slot.dtype(p.dtype)).clone(memory_format=torch.contiguous_format)
        for slot, blocks in zip(slots_of(Kind.BLOCK, new), kept, strict=True)
    }


def with_restarted_moment(state: Mapping[str, Any], layout: BlockLayout, group: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a parameter whose updates were orthogonalised, with a second moment for Adam to go on from.

    There was none of gradients. This one is the same everywhere: that of gradients without a common direction whose mean the first is.

    Args:
        state: The state of a whole parameter.
        layout: Its matrices.
        group: Its group's options.
    """
    assert isinstance(layout, MatrixLayout)
    kept, steps, momentum = elements_in(state, FIRST), max(float(state[STEP.name]), 1.0), layout.momentum
    of_mean = (1 - momentum) / (1 + momentum) * (1 - momentum ** (2 * steps))
    young = 1 - float(group["betas"][1]) ** steps  # by which Adam divides
    return {**state, SECOND.name: (values_of(kept, codec_of(kept)).double().square().mean() * (young / of_mean)).expand(layout.shape)}


class StateFormat:
    """How an optimizer keeps the state of its parameters here.

    Args:
        momentum_dtype: What first moments are kept in; None for the parameters' dtype.
        shards: What this rank holds of which parameter.
    """

    def __init__(self, momentum_dtype: MomentumDtype | None, shards: Shards) -> None:
        self.momentum_dtype: MomentumDtype | None = momentum_dtype
        self._shards = shards

    def is_sharded(self, p: Tensor) -> bool:
        """Whether this rank holds a part of a parameter."""
        return bool(self._shards.parts) and p in self._shards.parts

    def codec(self, p: Tensor, layout: BlockLayout) -> Codec:
        """How the first moment of a parameter is kept here.

        Args:
            p: The parameter.
            layout: Its blocks.
        """
        if self.is_sharded(p):
            return self._shards.codec(p, self.momentum_dtype)
        return codec_for(layout.shape, p.dtype, self.momentum_dtype)

    def fields(self, p: Tensor, layout: BlockLayout) -> dict[str, Field]:
        """The tensors that are kept of a parameter here, by name."""
        codec, kept_shapes = self.codec(p, layout), self._shards.kept_shapes(p)
        fields = fields_of(codec, block_shapes(layout) if kept_shapes is None else kept_shapes, p.dtype)
        if kept_shapes is not None:  # a flat range may be seen as a rectangle, but it is kept as it is
            here = tuple(local(p).shape)
            for slot in slots_of(Kind.ELEMENT):
                field = fields[slot.name]
                fields[slot.name] = Field(here if field.shape == codec.shape else field.shape, field.dtype)
        return fields

    def make(self, p: Tensor, layout: BlockLayout, count_there: bool) -> dict[str, Tensor]:
        """The state of a parameter that has not been stepped: zeros.

        Args:
            p: The parameter.
            layout: Its blocks.
            count_there: Whether its steps are counted on its device; else on the CPU.
        """
        here, state = local(p), {}
        for name, (shape, dtype) in self.fields(p, layout).items():
            if name == STEP.name:
                state[name] = torch.zeros((), dtype=dtype, device=here.device if count_there else "cpu")
            elif shape == here.shape:  # with the parameter's strides and, if it floats, sharded as it is
                like = p if name == FIRST.name and dtype.is_floating_point else here
                state[name] = torch.zeros_like(like, dtype=dtype, memory_format=torch.preserve_format)
            else:
                state[name] = torch.zeros(shape, dtype=dtype, device=here.device)
        return state

    def local(self, p: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state as the step sees it: of a sharded parameter, views of the shape that :meth:`Shards.localize` gives it."""
        part = self._shards.parts.get(p) if self._shards.parts else None
        if part is None:
            return state
        here = local(p).shape
        shaped = {slot.name: local(state[slot.name]) for slot in slots_of(Kind.ELEMENT)}
        return {**state, **{name: part.shaped(t) if t.shape == here else t for name, t in shaped.items()}}

    def recode(self, p: Tensor, layout: BlockLayout, state: MutableMapping[str, Any], before: Codec) -> None:
        """Keep what is per element as this optimizer does.

        Args:
            p: The parameter.
            layout: Its blocks.
            state: Its state, whose tensors are replaced.
            before: How it was kept.
        """
        if before != self.codec(p, layout):
            seen = self.local(p, dict(state))
            for slot in slots_of(Kind.ELEMENT):
                now = with_elements(state, slot, self.keep(p, layout, slot, values_of(elements_in(seen, slot), before)))
                state.clear()
                state.update(now)

    def to_portable(self, state: MutableMapping[Tensor, dict[str, Any]], layouts: Mapping[Tensor, BlockLayout]) -> None:
        """Turn the state of sharded parameters into a form for all strategies and any number of ranks. Every rank has to call it.

        Codes, whose runs end where this rank's shards do, become floating point; loading makes the same codes of it again.

        Args:
            state: The state of each parameter that has one; its entries are replaced.
            layouts: The blocks of each.
        """
        for p in [*self._shards.parts, *self._shards.flattened_whole]:
            if p not in state:
                continue
            seen, codec = self.local(p, state[p]), self.codec(p, layouts[p])
            if not isinstance(codec, Plain):
                for slot in slots_of(Kind.ELEMENT):
                    values = self._shards.like(p, values_of(elements_in(seen, slot), codec))
                    state[p] = with_elements(state[p], slot, {slot.name: values})
        self._shards.to_portable(state)

    def keep(self, p: Tensor, layout: BlockLayout, slot: Slot, values: Tensor) -> dict[str, Tensor]:
        """The tensors that keep a moment.

        Args:
            p: The parameter.
            layout: Its blocks.
            slot: Which moment; one per element.
            values: The moment, as the step sees it (:meth:`local`).
        """
        names = {slot.name + suffix for suffix in SUFFIXES}
        made = {name: tensor for name, tensor in self.make(p, layout, False).items() if name in names}
        self.codec(p, layout).encode_(values.to(local(p).device), elements_in(self.local(p, made), slot))
        return made

    def adopt(
        self,
        state: Mapping[Tensor, MutableMapping[str, Any]],
        present: Sequence[tuple[str, Tensor, BlockLayout]],
        loaded: Sequence[Moments],
        count_there: Sequence[bool],
    ) -> None:
        """Put loaded moments into the state, in copies.

        Every rank has to call it for all parameters, because the blocks of one may lie on several.

        Args:
            state: The state of each parameter.
            present: Name, parameter and blocks of each parameter.
            loaded: The moments of each; what is per element in any codec.
            count_there: Of each, whether its steps are counted on its device.
        """
        for (_, p, layout), moments, there in zip(present, loaded, count_there, strict=True):
            kept, part, blocks = moments.kept, self._shards.parts.get(p), None
            saved = None if kept is None else [kept[slot.name] for slot in slots_of(Kind.BLOCK, moments.layout)]
            if part is not None:  # every rank, even one that holds nothing
                blocks = self._shards.adopt_blocks(p, saved, moments.layout, layout)
            elif saved is not None:
                blocks = regroup(saved, moments.layout, layout)
            if kept is None or blocks is None:
                continue
            entry, device = state[p], local(p).device
            own = {
                slot.name: values.to(device, slot.dtype(p.dtype)).clone(memory_format=torch.contiguous_format)
                for slot, values in zip(slots_of(Kind.BLOCK, layout), blocks, strict=True)
            }
            put_in_blocks(entry, own)
            for slot in slots_of(Kind.ELEMENT):
                elements = elements_in(kept, slot)
                values = values_of(elements, codec_of(elements))
                if part is not None:
                    values = part.shaped(local(self._shards.adopt_elements(p, values)))
                entry.update(self.keep(p, layout, slot, values))
            for slot in slots_of(Kind.NUMBER):
                number = torch.as_tensor(entry[slot.name])
                entry[slot.name] = number.to(device if there else "cpu", slot.dtype(p.dtype), copy=True)


def values_of(kept: Mapping[str, Tensor], codec: Codec) -> Tensor:
    """A moment in floating point: as it is, or what its codes stand for."""
    return kept[""] if isinstance(codec, Plain) else codec.decode(kept, torch.float32)
