"""What running a model showed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class ParameterEvidence:
    """The lines of a parameter that feed softmax attention.

    Attributes:
        name: Canonical name.
        aliases: Other names of the same tensor.
        shape: Its shape.
        axis: The dimension of its output lines.
        lines: Their order (see :mod:`lightning_adam_mini.lines`); ``n`` for lines that feed neither query, key nor value.
        reason: How it was seen.
        is_bias: Whether it is what is added to the lines of a weight.
    """

    name: str
    shape: tuple[int, ...]
    axis: int
    lines: str
    reason: str
    aliases: tuple[str, ...] = ()
    is_bias: bool = False


@dataclass(frozen=True)
class NotSeen:
    """Something that running did not show.

    Attributes:
        where: Path of the module.
        reason: What was not seen, and why.
    """

    where: str
    reason: str


@dataclass(frozen=True)
class Evidence:
    """What running a model showed.

    Attributes:
        parameters: The parameters that feed attention.
        attentions: Paths of the modules in which softmax attention was computed, in order.
        not_seen: What could not be traced. Nothing is claimed of it.
    """

    parameters: tuple[ParameterEvidence, ...] = ()
    attentions: tuple[str, ...] = ()
    not_seen: tuple[NotSeen, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, ParameterEvidence]:
        """The parameters by name and by each alias."""
        return {name: p for p in self.parameters for name in (p.name, *p.aliases)}

    def __str__(self) -> str:
        rows = [f"{p.name}: {p.lines}" + (f" along axis {p.axis}" if p.axis else "") for p in self.parameters]
        rows += [f"not seen in {n.where or 'the model'}: {n.reason}" for n in self.not_seen]
        return "\n".join([f"{len(self.attentions)} softmax attentions", *rows])
