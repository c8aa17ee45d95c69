"""What an audit asks about: pieces of parameters whose lines are of one role, and the layouts that each could have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lightning_adam_mini.detection.report import ParameterReport
from lightning_adam_mini.detection.roles import LETTERS
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import parse_lines


@dataclass(frozen=True)
class Segment:
    """A parameter, or the lines of one role in a fused one, whose curvature is another than that of its neighbours.

    Args:
        parameter: What detection says of the parameter.
        layout: The parameter's layout.
        axis: Dimension of its lines.
        role: What its lines are, if the parameter has lines of several roles.
        lines: Which lines these are; None for all.
    """

    parameter: ParameterReport
    layout: BlockLayout
    axis: int
    role: str | None = None
    lines: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        """The parameter, with the role in brackets where it has several."""
        return self.parameter.name if self.role is None else f"{self.parameter.name}[{self.role}]"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of this piece."""
        shape = self.layout.shape
        return shape if self.lines is None else (*shape[: self.axis], len(self.lines), *shape[self.axis + 1 :])

    @property
    def letter(self) -> str:
        """What its lines are called in a line order."""
        return self.role or LETTERS.get(self.parameter.role, "h")

    def take(self, tensor: Tensor) -> Tensor:
        """This piece of a tensor of the parameter's shape, or of several, stacked."""
        if self.lines is None:
            return tensor
        dim = self.axis + tensor.ndim - len(self.layout.shape)
        return tensor.index_select(dim, torch.tensor(self.lines, device=tensor.device))

    @cached_property
    def elements(self) -> Tensor:
        """Flat index in the parameter of each of its elements, in order."""
        shape = self.layout.shape
        return self.take(torch.arange(math.prod(shape)).view(shape)).reshape(-1)

    @cached_property
    def own(self) -> BlockLayout:
        """The blocks that the parameter's layout makes of this piece."""
        layout = self.layout
        if layout.lines is None:
            return layout.with_shape(self.shape)
        groups = parse_lines(layout.lines).expand()
        mine = range(len(groups)) if self.lines is None else self.lines
        text = group_text([groups[i] for i in mine], self.letter)
        return BlockLayout(self.shape, layout.dims, layout.axis, text, layout.crossed)

    @cached_property
    def candidates(self) -> dict[str, BlockLayout]:
        """The layouts it could have, coarse to fine, by what they are called; those that say the same only once."""
        shape, axis = self.shape, self.axis
        found = {"tensor": BlockLayout.whole(shape)}
        if len(shape) > 1 or self.layout.lines is not None:
            size = shape[axis]
            for heads in (n for n in range(2, size // 2 + 1) if size % n == 0):
                text = f"{self.letter}:{heads}x{size // heads}"
                found[f"{heads} heads"] = BlockLayout.grouped(shape, text, axis)
                if self.letter in LETTERS.values() and size // heads > 1:
                    found[f"{heads} heads, interleaved"] = BlockLayout.grouped(shape, f"{text}t", axis)
        if len(shape) > 1:
            found["rows"] = BlockLayout.each_line(shape, axis)
            found["columns"] = BlockLayout.each_line(shape, self.across)
        if len(shape) > 3:
            found["kernels"] = BlockLayout(shape, dims=tuple(range(2, len(shape))))
        found["elements"] = BlockLayout.per_parameter(shape)
        once: dict[BlockLayout, str] = {}
        for label, layout in found.items():
            once.setdefault(layout, label)
        return {label: layout for layout, label in once.items()}

    @property
    def across(self) -> int:
        """Dimension of the columns: the inputs."""
        return 0 if self.axis else 1

    @cached_property
    def crossed(self) -> BlockLayout | None:
        """Rows and columns, or None for a vector, of which that is no other layout."""
        if len(self.shape) < 2:
            return None
        layout = BlockLayout.factored(self.shape, self.axis, self.across)
        return layout if layout.is_factored else None

    def label(self, layout: BlockLayout) -> str:
        """What a layout is called."""
        if layout.is_factored:
            return "rows x columns"
        return next((label for label, other in self.candidates.items() if other == layout), str(layout))


def split_segments(parameter: ParameterReport, layout: BlockLayout) -> list[Segment]:
    """A parameter as pieces of one role each."""
    order = parameter.lines if layout.lines is None else layout.lines
    axis = parameter.axis if layout.axis is None else layout.axis
    axis = axis if axis < max(len(layout.shape), 1) else 0
    if parameter.lines is not None and axis == parameter.axis and parse_lines(parameter.lines).size == layout.shape[axis]:
        order = parameter.lines  # roles as detection knows them, however the layout calls its groups
    groups = () if order is None or axis >= len(layout.shape) else parse_lines(order).expand()
    roles = dict.fromkeys(role for role, _ in groups)
    if len(roles) < 2 or len(groups) != layout.shape[axis]:
        return [Segment(parameter, layout, axis)]
    lines = {role: tuple(i for i, (other, _) in enumerate(groups) if other == role) for role in roles}
    return [Segment(parameter, layout, axis, role, lines[role]) for role in roles]


def group_text(groups: Sequence[object], letter: str) -> str:
    """A line order whose blocks are the lines of one group each, in as few words as can be.

    Example:
        >>> group_text(["a", "a", "b", "b"], "q"), group_text(["a", "b", "a", "b"], "q"), group_text(["a", "b", "b"], "q")
        ('q:2x2', 'q:2x2t', 'g_a:1|g_b:2')
    """
    numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
    which = [numbers[group] for group in groups]
    heads, size = len(numbers), len(which) // max(len(numbers), 1)
    if which == [i // size for i in range(heads * size)]:
        return f"{letter}:{heads}x{size}"
    if which == [i % heads for i in range(heads * size)]:
        return f"{letter}:{heads}x{size}t"
    text, start = [], 0
    for i in range(1, len(which) + 1):
        if i == len(which) or which[i] != which[start]:
            text.append(f"g_{_word(which[start])}:{i - start}")
            start = i
    return "|".join(text)


def _word(number: int) -> str:
    letters = chr(ord("a") + number % 26)
    return letters if number < 26 else _word(number // 26 - 1) + letters
