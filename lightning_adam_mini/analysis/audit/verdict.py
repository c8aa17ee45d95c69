"""What the Hessian, and the second moments, say of a layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from torch import Tensor

from lightning_adam_mini.analysis.audit.segments import Segment
from lightning_adam_mini.analysis.hessian.structure import Held, Share, is_nested
from lightning_adam_mini.layout import BlockLayout

LITTLE, MOST = 1 / 3, 2 / 3
"""Concentration below which a cut is not in the Hessian, and from which a finer one is."""
SAME = 0.05
"""Concentrations that differ by less are the same; the smaller blocks are then the ones to take."""
LOSS = 0.1
"""How much of the variance of root mean square gradients a coarser layout may give up."""
FEWEST = 8
"""Columns of the Hessian that a verdict needs."""
FLAT = 1e-7
"""Root mean square of second derivatives, of the largest such in the model, that is rounding."""


class Verdict(str, Enum):
    """What an audit says of a layout."""

    MATCHES = "matches"
    TOO_COARSE = "too coarse"
    FINER = "finer than needed"
    ELSEWHERE = "cut elsewhere"
    FLAT = "no curvature"
    UNKNOWN = "too few columns"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Compared:
    """One layout beside the one that is audited.

    Attributes:
        label: What it is called.
        layout: The layout.
        share: Of a finer layout its share of what lies within the audited blocks; of a coarser one the audited layout's share of what lies
            within its blocks; of another its share of all. With the null of each.
        moments: Part of the variance of root mean square gradients that it explains; see :func:`explained`.
    """

    label: str
    layout: BlockLayout
    share: Share
    moments: float


@dataclass(frozen=True)
class Finding:
    """What was found about one piece of a parameter.

    Attributes:
        segment: The piece.
        columns: Number of columns of the Hessian it rests on.
        own: The layout that it has, with its share of all.
        finer: The finer layout that holds most beyond chance.
        coarser: The coarser one that the audited layout's cuts are least needed in.
        crossed: Rows and columns, if it is a matrix.
        verdict: The verdict.
        near: Whether it is within two standard errors of another verdict.
        suggestion: The layout that is suggested instead.
        reason: Why, in a few words.
    """

    segment: Segment
    columns: int
    own: Compared
    finer: Compared | None
    coarser: Compared | None
    crossed: Compared | None
    verdict: Verdict
    near: bool = False
    suggestion: Compared | None = None
    reason: str = ""


def explained(moments: Sequence[Tensor], layout: BlockLayout) -> float:
    """Part of the variance of root mean square gradients that the layout's means explain.

    Args:
        moments: Means of squared gradients, one value an element: of two halves of the batch, each of which is explained by the other's
            means, so that no layout explains noise; or of one gradient, which explains itself.
        layout: The blocks; factored, too.

    Returns:
        1 if all is explained, 0 for no more than one mean explains; nan where nothing varies, and where one gradient would have to
        explain itself element by element.

    Example:
        >>> import torch
        >>> explained([torch.tensor([[1.0, 1.0], [9.0, 9.0]])], BlockLayout((2, 2), dims=(1,)))
        1.0
    """
    if len(moments) == 1:
        return math.nan if layout.is_per_parameter else _explained(moments[0], moments[0], layout)
    first, second = moments
    return (_explained(first, second, layout) + _explained(second, first, layout)) / 2


def _explained(by: Tensor, of: Tensor, layout: BlockLayout) -> float:
    v, roots = by.detach().cpu().double(), of.detach().cpu().double().sqrt()
    spread = (roots - roots.mean()).square().sum()
    if not spread > 1e-12 * roots.square().sum():
        return math.nan
    estimate = layout.combine([margin.average(v) for margin in layout.margins]).sqrt()
    return max(0.0, float(1 - (roots - estimate).square().sum() / spread))


def decide(segment: Segment, held: Held, moments: Sequence[Tensor], largest: float) -> Finding:
    """Compare the layout of a piece with what it could be.

    Args:
        segment: The piece.
        held: What columns of its Hessian hold within the blocks of each candidate.
        moments: Its second moments, of the piece's shape; see :func:`explained`.
        largest: The largest root mean square of second derivatives in the model.
    """
    own, whole = segment.own, BlockLayout.whole(segment.shape)
    plain = {label: layout for label, layout in segment.candidates.items() if layout != own}

    def beside(layout: BlockLayout, share: Share) -> Compared:
        return Compared(segment.label(layout), layout, share, explained(moments, layout))

    finer = [(layout, held.share(layout, own)) for layout in plain.values() if _is_finer(layout, own)]
    coarser = [(layout, _needed(held, own, layout)) for layout in plain.values() if _is_coarser(layout, own)]
    others = [(layout, held.share(layout)) for layout in plain.values() if not _is_finer(layout, own) and not _is_coarser(layout, own)]
    best_finer = _best(finer)
    least = min(coarser, key=lambda pair: _number(pair[1].concentration, math.inf), default=None)
    mine = beside(own, held.share(own))
    crossed = None if segment.crossed in (None, own) else beside(segment.crossed, held.share(segment.crossed))
    columns = len(held.weights)
    found = Finding(
        segment=segment,
        columns=columns,
        own=mine,
        finer=None if best_finer is None else beside(*best_finer),
        coarser=None if least is None else beside(*least),
        crossed=crossed,
        verdict=Verdict.MATCHES,
    )
    mass = float((held.weights @ held.held[whole]) / held.weights.sum()) / max(math.prod(segment.shape), 1)
    if columns and not mass > (FLAT * largest) ** 2:
        return replace(found, verdict=Verdict.FLAT, reason="the loss is linear here, or flat")
    if columns < FEWEST and held.sampled:
        return replace(found, verdict=Verdict.UNKNOWN, reason=f"{columns} columns of its Hessian, {FEWEST} are needed")
    best_other = _best(others)
    if best_other is not None and not own.is_factored:
        theirs, ours = best_other[1].concentration, _number(mine.share.concentration, 0.0)
        if theirs >= MOST and theirs - ours > LITTLE:
            text = f"{segment.label(best_other[0])} hold {_percent(best_other[1])}, these {_percent(mine.share)}"
            return replace(found, verdict=Verdict.ELSEWHERE, near=_near(best_other[1], MOST), suggestion=beside(*best_other), reason=text)
    if best_finer is not None and best_finer[1].concentration >= MOST:
        text = f"{_percent(best_finer[1])} of what its blocks hold is within {segment.label(best_finer[0])}"
        return replace(found, verdict=Verdict.TOO_COARSE, near=_near(best_finer[1], MOST), suggestion=beside(*best_finer), reason=text)
    unneeded = [(layout, needed) for layout, needed in coarser if needed.concentration < LITTLE]
    if unneeded:
        needed = dict(unneeded)
        ranked = [(layout, held.share(layout)) for layout, _ in unneeded if layout != whole]
        target = _best([pair for pair in ranked if pair[1].concentration >= LITTLE])
        instead = whole if target is None else target[0]
        if instead in needed:
            suggestion = beside(instead, needed[instead])
            lost = mine.moments - suggestion.moments
            if instead == whole and mine.moments <= LOSS:  # they cannot say what one block would lose
                text = "the Hessian shows no cuts, and second moments of these examples show none either: too little to tell"
                return replace(found, verdict=Verdict.MATCHES, near=True, reason=text)
            if not lost > LOSS:
                text = f"its cuts hold no more than cuts at random would, of {segment.label(instead)}"
                return replace(found, verdict=Verdict.FINER, near=_near(needed[instead], LITTLE), suggestion=suggestion, reason=text)
            return replace(
                found,
                verdict=Verdict.MATCHES,
                reason=f"by second moments: {segment.label(instead)} would do for the Hessian, but explains {lost:.2f} less of them",
            )
    return found


def _is_finer(layout: BlockLayout, own: BlockLayout) -> bool:
    if own.is_factored:
        return layout.is_per_parameter
    return layout.num_blocks > own.num_blocks and is_nested(layout, own)


def _is_coarser(layout: BlockLayout, own: BlockLayout) -> bool:
    if own.is_factored:
        return any(is_nested(margin, layout) for margin in own.margins)
    return layout.num_blocks < own.num_blocks and is_nested(own, layout)


def _needed(held: Held, own: BlockLayout, coarse: BlockLayout) -> Share:
    """What the cuts of a layout hold of what a coarser one holds; of rows x columns the margin that is needed more."""
    if not own.is_factored:
        return held.share(own, coarse)
    whole = BlockLayout.whole(own.shape)
    shares = [held.share(margin, coarse if is_nested(margin, coarse) else whole) for margin in own.margins if margin != coarse]
    return max(shares, key=lambda share: _number(share.concentration, -math.inf))


def _best(found: list[tuple[BlockLayout, Share]]) -> tuple[BlockLayout, Share] | None:
    """The one that holds most beyond chance; of several that hold the same, that of the smallest blocks."""
    known = [(layout, share) for layout, share in found if math.isfinite(share.concentration)]
    if not known:
        return None
    most = max(share.concentration for _, share in known)
    return max((pair for pair in known if pair[1].concentration >= most - SAME), key=lambda pair: pair[0].num_blocks)


def _number(value: float, otherwise: float) -> float:
    return value if math.isfinite(value) else otherwise


def _near(share: Share, threshold: float) -> bool:
    return abs(share.concentration - threshold) < 2 * share.error / max(1 - share.null, 1e-12)


def _percent(share: Share) -> str:
    return f"{100 * share.share:.0f} % ({100 * share.null:.0f} % by chance)"
