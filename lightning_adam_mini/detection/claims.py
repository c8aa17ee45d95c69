"""What one layer of detection says of a parameter, and the one place where what they say is merged."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from torch import nn

from lightning_adam_mini.detection.roles import Role
from lightning_adam_mini.detection.tree import Slot


class Source(IntEnum):
    """Where a claim comes from, weakest first. A stronger source overrules a weaker one."""

    LAYER = 0
    """The type of the layer that holds the tensor: a Linear, a convolution, a norm."""
    STRUCTURE = 1
    """Names, attributes and shapes that fit together."""
    KNOWN = 2
    """A registered module."""
    EVIDENCE = 3
    """What the model computes."""
    USER = 4
    """An override."""


@dataclass(frozen=True)
class Claim:
    """One statement on one parameter. The fields are those of :class:`~lightning_adam_mini.detection.report.ParameterReport`."""

    source: Source
    role: Role
    reason: str
    owner: Role | None = None
    axis: int = 0
    lines: str | None = None
    guess: bool = False


@dataclass
class Claims:
    """All claims on all parameters of a model."""

    attention: dict[nn.Module, None] = field(default_factory=dict)
    """The modules that are attention, in order."""
    _best: dict[int, Claim] = field(default_factory=dict)

    def add(self, slot: Slot, claim: Claim) -> None:
        """Record a claim. The stronger source wins; of equals the later, which knows the smaller part of the model."""
        held = self._best.get(id(slot))
        if held is None or claim.source >= held.source:
            self._best[id(slot)] = claim

    def best(self, slot: Slot) -> Claim | None:
        """The claim that holds."""
        return self._best.get(id(slot))

    def is_open(self, slot: Slot) -> bool:
        """Whether no more is known than the type of the layer."""
        held = self._best.get(id(slot))
        return held is None or held.source is Source.LAYER

    def role(self, slot: Slot) -> Role | None:
        """The role that holds."""
        held = self._best.get(id(slot))
        return None if held is None else held.role
