"""Second moments in other blocks: averaged into coarser ones, spread over finer ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout


def regroup(second_moment: Sequence[Tensor], saved: BlockLayout, present: BlockLayout) -> tuple[Tensor, ...]:
    """A second moment in other blocks: the mean over blocks that grow, a copy in blocks that split.

    Args:
        second_moment: For each margin of ``saved`` a tensor of its ``block_shape``, or of the parameter's shape.
        saved: The blocks that it has.
        present: The blocks that it gets; finer or coarser.

    Returns:
        For each margin of ``present`` a tensor of its ``block_shape``.

    Example:
        >>> rows, matrix = BlockLayout((2, 3), dims=(1,)), BlockLayout.whole((2, 3))
        >>> regroup([torch.tensor([[1.0], [3.0]])], rows, matrix)[0].tolist()
        [[2.0]]
    """
    if present.is_orthogonal:  # whose second moment, if any, is of updates
        if saved.margins == present.margins and saved.is_orthogonal == present.is_orthogonal:
            return tuple(second_moment)
        return tuple(torch.zeros(margin.block_shape) for margin in present.margins)
    second_moment = [
        blocks if blocks.shape == margin.block_shape else margin.average(blocks)
        for blocks, margin in zip(second_moment, saved.margins, strict=True)
    ]
    if saved == present:
        return tuple(second_moment)
    return tuple(_margin_of(second_moment, saved, margin) for margin in present.margins)


def _margin_of(second_moment: Sequence[Tensor], saved: BlockLayout, margin: BlockLayout) -> Tensor:
    """The mean over each block of a margin; from one margin of what was saved if it tells, because its numbers are not rounded again."""
    for values, there in zip(second_moment, saved.margins, strict=True):
        if there == margin:
            return values
        if _is_margin_finer(there, margin):
            return margin.average(there.spread(values).expand(there.shape))
    wide = [values.double() for values in second_moment]
    return margin.average(saved.combine(wide).expand(saved.shape)).to(second_moment[0].dtype)


def check_nested(name: str, old: BlockLayout, new: BlockLayout) -> None:
    """Refuse to change blocks of a second moment for others that are neither finer nor coarser.

    Raises:
        ValueError: If they are neither. Names the parameter.
    """
    if how_to_regroup(old, new) == "mixed":
        raise ValueError(
            f"The second moment of parameter {name!r} has blocks ({old}) that are neither finer nor coarser than the new ones ({new})."
            " Keep those that it was trained with, choose others that nest with them, or make a new optimizer."
        )


def how_to_regroup(saved: BlockLayout, present: BlockLayout) -> str | None:
    """How second moments get from one layout to the other.

    Returns:
        None if they are the same, "averaged", "spread", "mixed" (not at all), "left out" (of Adam's, by updates that are orthogonalised),
        or "restarted" (from the first moment, by Adam's steps after such updates).
    """
    if saved.is_orthogonal or present.is_orthogonal:
        if saved.is_orthogonal == present.is_orthogonal:
            return None if saved.margins == present.margins else "left out"
        return "left out" if present.is_orthogonal else "restarted"
    if saved == present or saved.num_blocks == 0:
        return None
    if _is_finer(saved, present):
        return None if _is_finer(present, saved) else "averaged"
    return "spread" if _is_finer(present, saved) else "mixed"


def _is_finer(fine: BlockLayout, coarse: BlockLayout) -> bool:
    """Whether the means of ``fine`` tell those of ``coarse``: whether each margin of it is coarser than some margin of ``fine``."""
    return all(any(_is_margin_finer(one, other) for one in fine.margins) for other in coarse.margins)


def _is_margin_finer(fine: BlockLayout, coarse: BlockLayout) -> bool:
    """Whether each block of ``fine`` lies within one block of ``coarse``."""
    if fine.is_per_parameter or coarse.num_blocks == 1:
        return True
    ids = torch.arange(coarse.num_blocks, dtype=torch.float64).view(coarse.block_shape)
    ids = coarse.spread(ids).expand(coarse.shape)
    mean = fine.average(ids)
    return bool((fine.spread(mean).expand(fine.shape) == ids).all())
