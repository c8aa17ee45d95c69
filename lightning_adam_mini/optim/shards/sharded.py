"""What an optimizer needs to know of its sharded parameters: what to step here, and states that do not depend on the number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini._sums import second_moment_dtype
from lightning_adam_mini.layout import BlockLayout, cross
from lightning_adam_mini.matrix_layout import MatrixLayout
from lightning_adam_mini.optim.codecs import Codec, MomentumDtype, codec_for, row_of
from lightning_adam_mini.optim.regroup import how_to_regroup, regroup
from lightning_adam_mini.optim.rounding import Place
from lightning_adam_mini.optim.shards.dtensor import (
    blocks_to_dtensor,
    dtensor_part,
    is_dtensor,
    local,
    local_gradient,
    momentum_like,
    whole,
    with_local,
)
from lightning_adam_mini.optim.shards.flat import FlatShard, flat_part, is_flat_parameter, is_flattened
from lightning_adam_mini.optim.shards.matrices import add_up_rows
from lightning_adam_mini.optim.shards.part import CutBlocks, Part, in_shape
from lightning_adam_mini.optim.shards.reduce import CutSums, add_up, agree, gather_blocks
from lightning_adam_mini.optim.state import SECOND, Kind, moments_in, slots_of
from lightning_adam_mini.optim.work import Member, Work


class Shards:
    """The sharded ones among the parameters of an optimizer.

    Args:
        flat: Which range of a parameter this rank holds, of parameters that FSDP1 has flattened.
    """

    def __init__(self, flat: Mapping[Tensor, FlatShard] | None = None) -> None:
        self.flat: dict[Tensor, FlatShard] = dict(flat or {})
        self.parts: dict[Tensor, Part] = {}
        self.flattened_whole: dict[Tensor, BlockLayout] = {}
        self._layouts: dict[Tensor, BlockLayout] = {}
        self._cut: dict[Part, Tensor] = {}  # the margins whose blocks other ranks hold parts of, and whose they are
        self._sums: CutSums | None = None
        self._kinds: list[tuple[torch.dtype, torch.device]] = []

    def shape_of(self, p: Tensor, name: str, layout: BlockLayout | None) -> tuple[int, ...]:
        """Shape of the whole parameter.

        Args:
            p: The parameter.
            name: Its name, for errors.
            layout: Its blocks, if there are any.

        Raises:
            ValueError: If this rank holds a part of it that nothing is known of.
        """
        if p in self.flat:
            return self.flat[p].shape
        if is_flat_parameter(p):
            raise ValueError(
                f"Parameter {name!r} of shape {tuple(p.shape)} is a flat one, in which FSDP has put many, because it was made with"
                " use_orig_params=False: their blocks cannot be told apart. Use FullyShardedDataParallel(use_orig_params=True)."
            )
        shape = tuple(p.shape)
        if is_flattened(p) and layout is not None and layout.shape != shape:
            raise ValueError(
                f"Parameter {name!r} of shape {shape} is a part of one that FSDP has flattened, and nothing says which. Pass"
                " flat_shards=find_flat_shards(model) to AdamMini, or use AdamMiniCallback."
            )
        return shape

    def update(self, parameters: Iterable[tuple[str, Tensor, BlockLayout]]) -> None:
        """Find out what this rank holds of which parameter. Does not communicate.

        Args:
            parameters: Name, parameter and blocks of all parameters, in the order of their groups.

        Raises:
            ValueError: If a parameter is sharded in a way that its blocks cannot follow. Nothing has changed then.
        """
        parts: dict[Tensor, Part] = {}
        flattened_whole: dict[Tensor, BlockLayout] = {}
        parameters = list(parameters)
        for name, p, layout in parameters:
            if layout.is_orthogonal and (p in self.flat or is_flattened(p)):
                raise ValueError(
                    f"Parameter {name!r} of shape {tuple(layout.shape)} is flattened by FSDP1 or ZeRO, and updates of what is flat are not"
                    f" orthogonalised. Use FSDP2 (fully_shard, ModelParallelStrategy) or DDP; or override it (overrides={{{name!r}:"
                    " 'factored'}), or choose the partition 'auto'."
                )
            if p in self.flat:
                parts[p] = flat_part(self.flat[p], layout)
            elif is_dtensor(p):
                parts[p] = dtensor_part(p, layout, name)
            elif is_flattened(p):
                flattened_whole[p] = layout
        self.parts, self.flattened_whole, self._sums = parts, flattened_whole, None
        self._layouts = {p: layout for _, p, layout in parameters if p in parts}
        self._cut = {
            margin: p
            for p, part in parts.items()
            for margin in part.margins
            if not (part.matrices or margin.is_uncut or margin.layout.is_per_parameter)
        }

    def kept_shapes(self, p: Tensor) -> list[tuple[int, ...]] | None:
        """Shape of what this rank keeps of each margin of a sharded parameter's second moment; None if the parameter is whole here."""
        part = self.parts.get(p) if self.parts else None
        return None if part is None else [margin.window.block_shape for margin in part.margins]

    def codec(self, p: Tensor, wanted: MomentumDtype | None) -> Codec:
        """How what this rank holds of a sharded parameter's first moment is kept: codes have runs that end where the shard does.

        Args:
            p: The parameter.
            wanted: What the optimizer was asked for.
        """
        shard = self._range(p)
        if shard is None:
            part = self.parts[p]
            return codec_for(part.layout.shape, p.dtype, wanted, part.pieces[0].sizes)
        row = row_of(shard.shape)
        return codec_for(shard.shape, p.dtype, wanted, (shard.end - shard.begin,), row, -shard.begin % row if row else 0)

    def _range(self, p: Tensor) -> FlatShard | None:
        """What this rank holds of a parameter, if that is a flat range; None if it is a rectangle."""
        part, shard = self.parts[p], self.flat.get(p)
        return None if len(part.pieces) == 1 and not (shard is not None and part.layout.is_per_parameter) else shard

    @property
    def groups(self) -> list[Any]:
        """The process groups over which parameters are sharded."""
        return list(dict.fromkeys(group for part in self.parts.values() for group in part.groups))

    # ---- the step -----------------------------------------------------------------------------------------------------

    def localize(self, work: Work) -> Work:
        """What is to be stepped here. Every rank has to call it in every step, because it adds up over ranks.

        Args:
            work: For each group its options and its members, each a whole parameter with its gradient.

        Returns:
            The same with members of which this rank holds a part only.
        """
        squared: dict[Part, Tensor] = {}
        cut: dict[Tensor, Part] = {}
        held: list[tuple[dict[str, Any], list[Member]]] = []
        for group, members in work:
            here = []
            for member in members:
                part = self.parts.get(member.param)
                if part is None:
                    here.append(member)
                elif part.order is None or part.pieces:  # else FSDP1 leaves nothing of it here
                    p, grad = local(member.p), local_gradient(member.p, member.grad) if is_dtensor(member.p) else member.grad
                    place = self._place(member.param, member.number)
                    if part.matrices is not None:
                        here.append(member._replace(p=p, grad=grad, layout=self._matrices_here(part), place=place, part=part))
                        continue
                    if part.blocks is None and not part.layout.is_per_parameter:
                        cut[member.param], effective = part, self._effective(group, p, grad)
                        squared.update((margin, effective) for margin in part.margins if margin in self._cut)
                    here.append(member._replace(p=part.shaped(p), grad=part.shaped(grad), layout=part.blocks or part.window, place=place))
            held.append((group, here))
        means = self._cut_sums().means(squared)
        blocks = {p: CutBlocks(part, tuple(means.get(margin) for margin in part.margins)) for p, part in cut.items()}
        return [
            (group, [m._replace(layout=blocks[m.param]) if m.param in blocks else m for m in members] if blocks else members)
            for group, members in held
        ]

    @staticmethod
    def _effective(group: Mapping[str, Any], p: Tensor, grad: Tensor) -> Tensor:
        """What is squared: the gradient, with weight decay added to it where that is how it decays."""
        if group["weight_decay"] == 0 or group["decoupled_weight_decay"]:
            return grad
        return torch.add(-grad if group["maximize"] else grad, p, alpha=group["weight_decay"])

    def _place(self, p: Tensor, number: int) -> Place:
        """Where in the parameter it is what this rank holds of it."""
        part, shard = self.parts[p], self._range(p)
        if shard is None:
            offsets = (corner + offset for corner, offset in zip(part.corner, part.pieces[0].offsets, strict=True))
            return Place(number, part.layout.shape, tuple(offsets), part.pieces[0].sizes)
        return Place(number, shard.shape, (), (shard.end - shard.begin,), shard.begin, shard.order)

    @staticmethod
    def _matrices_here(part: Part) -> MatrixLayout:
        """The matrices that lie on this rank; those of the whole parameter if they are cut."""
        assert part.matrices is not None
        return part.matrices.with_shape(part.window.shape) if part.along is None else part.matrices

    def _cut_sums(self) -> CutSums:
        kinds = [(p.dtype, p.device) for p in self._cut.values()]  # a module may have been cast or moved, on every rank
        if self._sums is None or self._kinds != kinds:
            self._sums, self._kinds = CutSums(list(self._cut), [local(p) for p in self._cut.values()]), kinds
        return self._sums

    @staticmethod
    def _zero_blocks(p: Tensor, margin: Part) -> Tensor:
        """Means over the blocks of a margin that this rank holds some of, all zero."""
        return torch.zeros(margin.window.block_shape, dtype=second_moment_dtype(p.dtype), device=local(p).device)

    # ---- what it has learned ------------------------------------------------------------------------------------------

    def gather(self, second_moments: Mapping[Tensor, Sequence[Tensor]]) -> dict[Tensor, list[Tensor]]:
        """Second moments of all blocks: for each margin, in the ``block_shape`` of the whole layout. Every rank has to call it.

        Args:
            second_moments: What this rank keeps, by parameter; zeros are taken where it keeps nothing.
        """
        ours = [(p, i, margin) for p, part in self.parts.items() for i, margin in enumerate(part.margins)]
        values = [second_moments[p][i] if p in second_moments else self._zero_blocks(p, margin) for p, i, margin in ours]
        gathered: dict[Tensor, list[Tensor]] = {}
        for (p, _, _), blocks in zip(ours, gather_blocks([margin for _, _, margin in ours], values, everywhere=True), strict=True):
            gathered.setdefault(p, []).append(self._in_shape(p, blocks))
        return gathered

    def sizes_of_matrices(self, sums: Mapping[Tensor, Tensor]) -> dict[Tensor, tuple[Tensor, Tensor]]:
        """Root mean squares of the updates and weights of matrices that are cut. Every rank has to call it.

        Args:
            sums: By parameter, of those that are cut the sum of the squared updates over this rank's part of each row.
        """
        ours = {p: part for p, part in self.parts.items() if p in sums and part.along is not None}
        of_weights = [part.sum_square(local(p)) for p, part in ours.items()]
        total = iter(add_up_rows([*ours.values()] * 2, [*(sums[p] for p in ours), *of_weights]))
        updates = [next(total) for _ in ours]
        return {p: (part.rms(one), part.rms(next(total))) for (p, part), one in zip(ours.items(), updates, strict=True)}

    def _in_shape(self, p: Tensor, blocks: Tensor) -> Tensor:
        if p not in self.flat or not self.parts[p].layout.is_per_parameter:
            return blocks
        return in_shape(blocks, self.flat[p].shape, self.flat[p].order)

    def to_portable(self, state: MutableMapping[Tensor, dict[str, Any]]) -> None:
        """Turn the state of sharded parameters into a form for all strategies and any number of ranks. Every rank has to call it.

        That of a DTensor is a DTensor. That of a parameter that FSDP1 has flattened is what FSDP's ``optim_state_dict`` takes: one value an
        element, of one dtype, under the same names for all parameters.

        Args:
            state: The state of each parameter that has one, without codes; its entries are replaced.
        """
        ours = [p for p in self.parts if p not in self.flat]
        for slot in slots_of(Kind.BLOCK):
            margins = {p: self.parts[p].margins[slot.margin] for p in ours if slot.margin < len(self.parts[p].margins)}
            kept = [state[p][slot.name] if p in state else self._zero_blocks(p, margin) for p, margin in margins.items()]
            right = gather_blocks(list(margins.values()), kept, everywhere=False)
            for (p, margin), blocks in zip(margins.items(), right, strict=True):
                if p in state:
                    state[p] = {**state[p], slot.name: blocks_to_dtensor(p, margin, blocks)}
        for p in [*self.flat, *self.flattened_whole]:
            if p in state:
                others = {name: kept for name, kept in state[p].items() if name not in moments_in(state[p])}
                state[p] = {**others, **self._dense(p, state[p])}

    def _dense(self, p: Tensor, state: Mapping[str, Any]) -> dict[str, Tensor]:
        """The moments of a parameter that FSDP1 has flattened, per element and of one dtype."""
        layout = self.flattened_whole[p] if p in self.flattened_whole else self._layouts[p]
        first, *others = (state[slot.name] for slot in slots_of(Kind.BLOCK, layout))
        if p in self.flattened_whole:
            dense = layout.combine([first, *others]).expand(p.shape).clone()
        elif not others:
            dense = first.clone() if layout.is_per_parameter else self.parts[p].flat(first)
        else:
            factors = cross(layout.margins, [one.double() for one in (first, *others)])
            rows, columns = (margin.flat(factor) for margin, factor in zip(self.parts[p].margins, factors, strict=True))
            dense = (rows * columns).to(first.dtype)
        return {SECOND.name: dense, **{slot.name: state[slot.name].to(dense.dtype) for slot in slots_of(Kind.ELEMENT)}}

    # ---- loading ------------------------------------------------------------------------------------------------------

    def agree(self, problem: str | None) -> str | None:
        """A problem that some rank has, on all of them; so that none waits for one that has raised."""
        return agree(problem, self.groups)

    def like(self, p: Tensor, values: Tensor) -> Tensor:
        """A moment in the shape that the step sees, laid out like its parameter."""
        here = torch.empty_like(local(p), dtype=values.dtype)
        (self.parts[p].shaped(here) if p in self.parts else here).copy_(values)
        return with_local(p, here) if is_dtensor(p) else here

    def adopt_elements(self, p: Tensor, values: Tensor) -> Tensor:
        """A loaded first moment, laid out like the parameter."""
        if not is_dtensor(p):
            return values
        values = momentum_like(p, values)
        here, like = local(values), local(p)
        if here.stride() == like.stride():
            return values
        return with_local(p, torch.empty_like(like, dtype=here.dtype).copy_(here))

    def adopt_blocks(self, p: Tensor, values: Sequence[Tensor] | None, saved: BlockLayout, present: BlockLayout) -> list[Tensor] | None:
        """A loaded second moment, as this rank keeps it. Every rank has to call it with the same blocks.

        Args:
            p: The parameter.
            values: What was loaded, for each margin of ``saved``: its blocks, or one value per element, whole or sharded; None if this rank
                holds nothing.
            saved: The blocks that it was written with.
            present: The parameter's blocks, finer or coarser.

        Returns:
            For each margin of ``present`` what this rank keeps.
        """
        margins = self.parts[p].margins
        if values is None and (saved.is_factored or saved.is_orthogonal):  # whose means every rank has whole, or holds
            return None
        if present.is_orthogonal and not (margins and saved.is_orthogonal and saved.margins == present.margins):  # there is none of updates
            return [self._zero_blocks(p, part) for part in margins]
        dense = values is None or self._is_dense(p, values[0], saved) or (saved.is_per_parameter and saved != present)
        if dense:
            sources = range(len(margins)) if saved == present else [0] * len(margins)
            return [
                self._adopt_dense(p, part, None if values is None else values[i], saved.margins[i], margin)
                for i, part, margin in zip(sources, margins, present.margins, strict=True)
            ]
        assert values is not None
        if saved == present:
            return [self._adopt_own(p, part, one) for part, one in zip(margins, values, strict=True)]
        blocks = regroup([whole(one) for one in values], saved, present)
        return [one[part.block_slices()].contiguous() for one, part in zip(blocks, margins, strict=True)]

    def _is_dense(self, p: Tensor, values: Tensor, saved: BlockLayout) -> bool:
        """Whether a loaded second moment has one value per element: of FSDP1's parameters in one dimension."""
        if p in self.flat:
            return values.ndim == 1 or saved.is_per_parameter
        return values.shape == p.shape and values.shape != saved.block_shape

    def _adopt_own(self, p: Tensor, part: Part, values: Tensor) -> Tensor:
        """The same of one margin that was written with the blocks that it has."""
        if not is_dtensor(values):
            return values[part.block_slices()].contiguous()
        like = blocks_to_dtensor(p, part, self._zero_blocks(p, part))
        same = values.redistribute(like.device_mesh, like.placements)  # type: ignore[attr-defined]
        return local(same).clone()

    @staticmethod
    def _adopt_dense(p: Tensor, part: Part, values: Tensor | None, saved: BlockLayout, present: BlockLayout) -> Tensor:
        """The same of one margin, from one value per element."""
        if part.layout.is_per_parameter:
            return torch.empty(0) if values is None else local(momentum_like(p, values) if is_dtensor(p) else values).clone()
        if is_dtensor(p) and values is not None:
            values = local(momentum_like(p, values))
        sums = part.counts * 0 if values is None else part.sum(values).cpu()
        if how_to_regroup(saved, present) == "averaged":
            return add_up(sums, part) / part.sizes(sums.device)
        return sums / part.counts.clamp_min(1)  # all elements of a block are the same
