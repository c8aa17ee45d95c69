"""What is to be stepped: for each group its options, and its parameters that have gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.functional import Blocks
from lightning_adam_mini.optim.rounding import Place
from lightning_adam_mini.optim.shards.part import Part


class Member(NamedTuple):
    """A parameter that takes part in a step.

    Attributes:
        param: The parameter, as the optimizer holds it.
        p: What is stepped: the parameter itself or, where it is sharded, what this rank holds of it.
        grad: The gradient of that.
        layout: The blocks of that.
        whole: The blocks of the parameter.
        state: The state of the parameter; empty before its first step.
        number: Its number among all parameters of the optimizer.
        place: Where in the parameter that is which this rank holds; None if it is all of it.
        part: What this rank holds of matrices; None if it is all of them.
    """

    param: Tensor
    p: Tensor
    grad: Tensor
    layout: Blocks
    whole: BlockLayout
    state: dict[str, Any]
    number: int
    place: Place | None = None
    part: Part | None = None


Work: TypeAlias = "Sequence[tuple[dict[str, Any], list[Member]]]"
"""For each group its options, and its members that have gradients."""


def turns(work: Work) -> Iterator[Work]:
    """The work cut up so that a parameter which stands in a group more than once is stepped as often, one time after the other."""
    while any(members for _, members in work):
        now, later = [], []
        for group, members in work:
            first = {id(member.param): member for member in reversed(members)}
            now.append((group, [member for member in members if first[id(member.param)] is member]))
            later.append((group, [member for member in members if first[id(member.param)] is not member]))
        yield now
        work = later
