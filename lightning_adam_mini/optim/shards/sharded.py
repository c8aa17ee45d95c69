"""What an optimizer needs to know of its sharded parameters: what to step here, and states that do not depend on the number of ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout, second_moment_dtype
from lightning_adam_mini.optim.conversion import how_to_regroup, regroup
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
from lightning_adam_mini.optim.shards.part import CutBlocks, Part
from lightning_adam_mini.optim.shards.reduce import CutSums, add_up, agree, gather_blocks
from lightning_adam_mini.optim.stepper import Member


class Shards:
    """The sharded ones among the parameters of an optimizer.

    Args:
        flat: Which range of a parameter this rank holds, of parameters that FSDP1 has flattened.
    """

    def __init__(self, flat: Mapping[Tensor, FlatShard] | None = None) -> None:
        self.flat = dict(flat or {})
        self.parts: dict[Tensor, Part] = {}
        self.flattened_whole: dict[Tensor, BlockLayout] = {}
        self._sums: CutSums | None = None

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

    def update(self, parameters: Iterable[tuple[str, Tensor, BlockLayout]], rounds: bool) -> None:
        """Find out what this rank holds of which parameter. Does not communicate.

        Args:
            parameters: Name, parameter and blocks of all parameters, in the order of their groups.
            rounds: Whether first moments are kept in 8 bits or weights rounded at random.

        Raises:
            ValueError: If a parameter is sharded in a way that its blocks or the rounding cannot follow. Nothing has changed then.
        """
        parts: dict[Tensor, Part] = {}
        flattened_whole: dict[Tensor, BlockLayout] = {}
        for name, p, layout in parameters:
            if p in self.flat:
                parts[p] = flat_part(self.flat[p], layout)
            elif is_dtensor(p):
                parts[p] = dtensor_part(p, layout, name)
            elif is_flattened(p):
                flattened_whole[p] = layout
            if p in parts and rounds:
                raise ValueError(
                    f"Parameter {name!r} is sharded, and AdamMini takes neither momentum_dtype='8bit' nor stochastic_rounding=True there,"
                    " because what they round would depend on the number of ranks. Use momentum_dtype=torch.bfloat16, or leave them out."
                )
        self.parts, self.flattened_whole, self._sums = parts, flattened_whole, None

    def kept_shape(self, p: Tensor) -> tuple[int, ...] | None:
        """Shape of what this rank keeps of a sharded parameter's second moment; None if the parameter is whole here."""
        part = self.parts.get(p) if self.parts else None
        return None if part is None else part.window.block_shape

    @property
    def groups(self) -> list[Any]:
        """The process groups over which parameters are sharded."""
        return list(dict.fromkeys(group for part in self.parts.values() for group in part.groups))

    # ---- the step -----------------------------------------------------------------------------------------------------

    def localize(self, work: Sequence[tuple[dict[str, Any], list[Member]]]) -> list[tuple[dict[str, Any], list[Member]]]:
        """What is to be stepped here. Every rank has to call it in every step, because it adds up over ranks.

        Args:
            work: For each group its options and its members, each a whole parameter with its gradient.

        Returns:
            The same with members of which this rank holds a part only.
        """
        squared: dict[Part, Tensor] = {}
        held: list[tuple[dict[str, Any], list[Member]]] = []
        for group, members in work:
            here = []
            for member in members:
                part = self.parts.get(member.param)
                if part is None:
                    here.append(member)
                elif part.order is None or part.pieces:  # else FSDP1 leaves nothing of it here
                    p, grad = local(member.p), local_gradient(member.p, member.grad) if is_dtensor(member.p) else member.grad
                    if not part.is_uncut and not part.layout.is_per_parameter:
                        squared[part] = self._effective(group, p, grad)
                    here.append(member._replace(p=part.shaped(p), grad=part.shaped(grad), layout=part.window))
            held.append((group, here))
        means = self._cut_sums().means(squared)
        blocks = {p: CutBlocks(part, means[part]) for p, part in self.parts.items() if part in squared}
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

    def _cut_sums(self) -> CutSums:
        if self._sums is None:
            cut = {p: part for p, part in self.parts.items() if not part.is_uncut and not part.layout.is_per_parameter}
            self._sums = CutSums(list(cut.values()), [local(p) for p in cut])
        return self._sums

    def local_state(self, p: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views of a sharded parameter's state in the shape of what :meth:`localize` gave."""
        part = self.parts[p]
        return {**state, "exp_avg": part.shaped(local(state["exp_avg"]))}

    def zero_second_moment(self, p: Tensor) -> Tensor:
        """The second moments of the blocks that this rank holds some of, all zero."""
        part = self.parts[p]
        return torch.zeros(part.window.block_shape, dtype=second_moment_dtype(p.dtype), device=local(p).device)

    # ---- what it has learned ------------------------------------------------------------------------------------------

    def gather(self, second_moments: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Second moments of all blocks, in the ``block_shape`` of the whole layout. Every rank has to call it.

        Args:
            second_moments: What this rank keeps, by parameter; zeros are taken where it keeps nothing.
        """
        ours = list(self.parts)
        values = [second_moments[p] if p in second_moments else self.zero_second_moment(p) for p in ours]
        gathered = gather_blocks(list(self.parts.values()), values, everywhere=True)
        return {p: self._in_shape(p, blocks) for p, blocks in zip(ours, gathered, strict=True)}

    def _in_shape(self, p: Tensor, blocks: Tensor) -> Tensor:
        if p not in self.flat or not self.parts[p].layout.is_per_parameter:
            return blocks
        shape, order = self.flat[p].shape, self.flat[p].order
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return blocks.view([shape[d] for d in order]).permute(inverse)

    def share_steps(self, steps: Mapping[Tensor, Tensor]) -> dict[Tensor, Tensor]:
        """Steps taken of the parameters that FSDP1 has flattened, of which other ranks know. Every rank has to call it.

        Args:
            steps: Steps that this rank knows of, by parameter.
        """
        ours = list(self.flat)
        count = torch.tensor([float(steps[p]) if p in steps else 0.0 for p in ours])
        device = self.flat[ours[0]].device
        count = count.to(device)
        for group in self.groups:
            torch.distributed.all_reduce(count, op=torch.distributed.ReduceOp.MAX, group=group)
        return {p: step for p, step in zip(ours, count.cpu(), strict=True) if step > 0}

    def device_of(self, p: Tensor) -> torch.device:
        """Where this rank keeps a parameter."""
        return local(p).device

    def to_portable(self, state: MutableMapping[Tensor, dict[str, Any]]) -> None:
        """Turn the state of sharded parameters into a form for all strategies and any number of ranks. Every rank has to call it.

        That of a DTensor is a DTensor. That of a parameter that FSDP1 has flattened is what FSDP's ``optim_state_dict`` takes: one value an
        element, of one dtype.

        Args:
            state: The state of each parameter that has one; its entries are replaced.
        """
        ours = [p for p in self.parts if p not in self.flat]
        parts = [self.parts[p] for p in ours]
        kept = [state[p]["exp_avg_sq"] if p in state else self.zero_second_moment(p) for p in ours]
        right = gather_blocks(parts, kept, everywhere=False)
        for p, part, blocks in zip(ours, parts, right, strict=True):
            if p in state:
                state[p] = {**state[p], "exp_avg_sq": blocks_to_dtensor(p, part, blocks)}
        for p in [*self.flat, *self.flattened_whole]:
            if p in state:
                second_moment = state[p]["exp_avg_sq"]
                if p in self.flattened_whole:
                    dense = self.flattened_whole[p].spread(second_moment).expand(p.shape).clone()
                else:
                    dense = second_moment.clone() if self.parts[p].layout.is_per_parameter else self.parts[p].flat(second_moment)
                state[p] = {**state[p], "exp_avg": state[p]["exp_avg"].to(dense.dtype), "exp_avg_sq": dense}

    # ---- loading ------------------------------------------------------------------------------------------------------

    def agree(self, problem: str | None) -> str | None:
        """A problem that some rank has, on all of them; so that none waits for one that has raised."""
        return agree(problem, self.groups)

    def adopt_momentum(self, p: Tensor, values: Tensor) -> Tensor:
        """A loaded first moment, laid out like the parameter."""
        if not is_dtensor(p):
            return values
        values = momentum_like(p, values)
        here, like = local(values), local(p)
        if here.stride() == like.stride():
            return values
        return with_local(p, torch.empty_like(like, dtype=here.dtype).copy_(here))

    def adopt_second_moment(self, p: Tensor, values: Tensor | None, saved: BlockLayout, present: BlockLayout) -> Tensor:
        """A loaded second moment, as this rank keeps it. Every rank has to call it with the same blocks.

        Args:
            p: The parameter.
            values: What was loaded: blocks of ``saved``, or one value an element, whole or sharded; None if this rank holds nothing.
            saved: The blocks that it was written with.
            present: The parameter's blocks, finer or coarser.
        """
        part = self.parts[p]
        dense = values is None or p in self.flat or (values.shape == p.shape and values.shape != saved.block_shape)
        if not dense and saved.is_per_parameter and not present.is_per_parameter:
            dense = True
        if not dense:
            assert values is not None
            blocks = whole(values) if saved != present or not is_dtensor(values) else None
            if blocks is None:
                like = blocks_to_dtensor(p, part, self.zero_second_moment(p))
                same = values.redistribute(like.device_mesh, like.placements)  # type: ignore[attr-defined]
                return local(same).clone()
            return regroup(blocks, saved, present)[part.block_slices()].contiguous()
        if part.layout.is_per_parameter:
            return torch.empty(0) if values is None else local(momentum_like(p, values) if is_dtensor(p) else values).clone()
        if is_dtensor(p) and values is not None:
            values = local(momentum_like(p, values))
        sums = part.counts * 0 if values is None else part.sum(values).cpu()
        if how_to_regroup(saved, present) == "averaged":
            return add_up(sums, part) / part.sizes(sums.device)
        return sums / part.counts.clamp_min(1)  # all elements of a block are the same
