"""GaLore over block second moments (Zhao et al., "GaLore: Memory-Efficient LLM Training", arXiv 2403.03507)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_adam_mini.combine.part import Part, Place, check_globs, check_number, check_whole, matched
from lightning_adam_mini.detection.roles import OUTPUTS, Role
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.codecs import Field

if TYPE_CHECKING:
    from lightning_adam_mini.detection import ModelReport

_OUTSIDE = OUTPUTS | {
    *(Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING, Role.TYPE_EMBEDDING, Role.TIME_EMBEDDING, Role.SPECIAL_TOKEN),
    *(Role.NORM, Role.BIAS, Role.SCALE, Role.LORA_A, Role.LORA_B),
}
_COUNT = "projected_steps"


@dataclass(frozen=True)
class GaLore(Part):
    r"""Steps matrices in a space of lower rank: both moments are of the projected gradient, whose second has blocks as AdamMini's.

        R = G Q^T  (more rows than columns, or as many)    or    R = P^T G
        S = AdamMini's update of R
        W = (1 - lr weight_decay) W - lr scale S Q         or    ... P S

    Every ``every`` steps P or Q become the first ``rank`` singular vectors of the gradient; moments stay. Of a matrix of m x n with m >= n
    are kept m rank numbers of the first moment, rank n of Q, and second moments of the rows and columns of m x rank. Rows of a projection
    from the left are no rows of the matrix, so that heads become rows there. A step takes memory for R and S of all matrices.

    Args:
        rank: Rank; matrices whose shorter side is no longer are stepped as ever.
        every: After how many steps projections are made anew.
        scale: Share of the learning rate for projected matrices: alpha of the paper.
        only: Globs over names of the matrices. [default: all but embeddings and output layers, for which the model has to be known]

    Example:
        >>> GaLore(rank=128).stands_in(BlockLayout.each_line((512, 2048))).shape
        (128, 2048)
    """

    name: ClassVar[str] = "galore"
    rank: int
    every: int = 200
    scale: float = 0.25
    only: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_whole(self, "rank", 1)
        check_whole(self, "every", 1)
        check_number(self, "scale", 0, float("inf"))
        check_globs(self, self.only)
        object.__setattr__(self, "only", None if self.only is None else tuple(self.only))

    @override
    def choose(self, shapes: Mapping[str, tuple[int, ...]], report: ModelReport | None) -> Collection[str]:
        if self.only is not None:
            names = matched(self, self.only, shapes)
            for name in names:
                if len(shapes[name]) != 2:
                    raise ValueError(f"GaLore projects matrices, but parameter {name!r} has shape {shapes[name]}. Leave it out of only=.")
                if self.rank > max(shapes[name]):
                    raise ValueError(f"GaLore(rank={self.rank}) is above both sides of {name!r}, of shape {shapes[name]}. Lower it.")
        elif report is None:
            raise ValueError("GaLore has to know which matrices are embeddings. Pass the model to combine_, or GaLore(only=['*.mlp.*']).")
        else:
            roles = {p.name: p.role for p in report.parameters}
            names = [name for name, shape in shapes.items() if len(shape) == 2 and roles.get(name, Role.OTHER) not in _OUTSIDE]
        chosen = [name for name in names if self.rank < min(shapes[name])]
        if not chosen and self.only != ():
            largest = max((shapes[name] for name in names), key=min, default=None)
            if largest is None:
                raise ValueError(
                    "GaLore has nothing to project: it is for matrices, and there are none but embeddings and output layers (convolutions"
                    " are not projected). Leave it out."
                )
            raise ValueError(f"GaLore(rank={self.rank}) has nothing to project: it is no lower than that of {largest}. Lower it.")
        return chosen

    @override
    def stands_in(self, layout: BlockLayout) -> BlockLayout:
        rows, columns = layout.shape
        if rows >= columns:
            return layout.with_shape((rows, self.rank))
        shape = (self.rank, columns)
        if layout.is_factored:
            return BlockLayout.factored(shape)
        return BlockLayout.each_line(shape) if layout.lines is not None and layout.axis == 0 else layout.with_shape(shape)

    @override
    def adds(self, layout: BlockLayout, dtype: torch.dtype) -> dict[str, Field]:
        rows, columns = layout.shape
        return {"projection": Field((self.rank, columns) if rows >= columns else (rows, self.rank), dtype)}

    @override
    def options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {"weight_decay": 0.0}  # of the whole matrix, which is not what is stepped

    @override
    def begin(self, p: Tensor, state: dict[str, Any]) -> None:
        assert p.grad is not None
        state["projection"] = self._projection(p.grad)

    @override
    def begin_group(self, group: dict[str, Any]) -> None:
        group[_COUNT] = group.get(_COUNT, -1) + 1

    @override
    def stand_in(self, p: Tensor, layout: BlockLayout, state: Mapping[str, Any]) -> Tensor:
        return p.new_zeros(()).expand(layout.shape)  # no memory between steps

    @override
    def step(self, places: Sequence[Place], take: Callable[[], None]) -> None:
        for p, group, layout, stand_in, state in places:
            grad = p.grad
            assert grad is not None
            if group[_COUNT] and group[_COUNT] % self.every == 0:
                state["projection"] = self._projection(grad)
            if group["weight_decay"] and not group["decoupled_weight_decay"]:
                grad = grad.add(p, alpha=-group["weight_decay"] if group["maximize"] else group["weight_decay"])
            projection = state["projection"]
            stand_in.data = p.new_zeros(layout.shape)
            stand_in.grad = grad @ projection.T if p.shape[0] >= p.shape[1] else projection.T @ grad
        try:
            take()
            for p, group, _, stand_in, state in places:
                if group["weight_decay"] and group["decoupled_weight_decay"]:
                    p.mul_(1 - float(group["lr"]) * group["weight_decay"])
                pair = (stand_in.detach(), state["projection"])
                p.addmm_(*(pair if p.shape[0] >= p.shape[1] else pair[::-1]), alpha=self.scale)
        finally:
            for p, _, layout, stand_in, _ in places:
                stand_in.grad, stand_in.data = None, self.stand_in(p, layout, {})

    def _projection(self, grad: Tensor) -> Tensor:
        """The first singular vectors of a gradient, of its shorter side."""
        # Of nan there are no vectors; whichever they are, what is projected is nan.
        finite = torch.nan_to_num(grad.float() if grad.dtype.itemsize < 4 else grad)
        left, _, right = torch.linalg.svd(finite, full_matrices=False)
        found = right[: self.rank] if grad.shape[0] >= grad.shape[1] else left[:, : self.rank]
        return found.to(grad.dtype).clone(memory_format=torch.contiguous_format)
