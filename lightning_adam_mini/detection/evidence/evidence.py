"""What running a model showed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from lightning_adam_mini.table import count


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
        parameter: Name of the parameter that it is about; empty if it is about none.
    """

    where: str
    reason: str
    parameter: str = ""


@dataclass(frozen=True)
class Whole:
    """What a forward showed of what its layers give to each other, and of how parameters are used.

    Attributes:
        read: The weights of the maps whose results always go into another one.
        unread: The weights of the maps whose results never do: what the model gives.
        fed: The weight of each map that is fed by one to three others and nothing else, and theirs.
        uses: How parameters are used: as a ``map``, as a ``table`` that indices among the inputs look up, by ``place`` (indices that do not
            depend on the inputs), ``added`` to features, ``joined`` to them, or ``scaled`` by; and of maps, whether what they make of one
            input ``scales`` or ``shifts`` features of another.
        axes: The dimension of each map's weight along which its output lines lie, where it is one.
        told: The weights of the maps that read nothing but inputs of one number per sample, such as a time step.
        messages: Paths of modules that add up features along a graph, and what shows it.
        joined: Paths of modules that put together features of a map of places and what comes from smaller ones, as UNets do.
        products: Paths of modules that multiply what maps give by products of such, as attention does with or without a softmax.
    """

    read: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    fed: tuple[tuple[str, tuple[str, ...]], ...] = ()
    uses: tuple[tuple[str, tuple[str, ...]], ...] = ()
    axes: tuple[tuple[str, int], ...] = ()
    told: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    joined: tuple[str, ...] = ()
    products: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """What running a model showed.

    Attributes:
        parameters: The parameters that feed attention.
        attentions: Paths of the modules in which softmax attention was computed, in order.
        not_seen: What could not be traced. Nothing is claimed of it.
        readers: The weights of the maps that read what an attention gives: its output projections.
        whole: What does not concern attention.
    """

    parameters: tuple[ParameterEvidence, ...] = ()
    attentions: tuple[str, ...] = ()
    not_seen: tuple[NotSeen, ...] = ()
    readers: tuple[str, ...] = ()
    whole: Whole = Whole()

    @cached_property
    def by_name(self) -> dict[str, ParameterEvidence]:
        """The parameters by name and by each alias."""
        return {name: p for p in self.parameters for name in (p.name, *p.aliases)}

    def to_plain(self) -> dict[str, Any]:
        """As dicts, lists and strings, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Evidence:
        """The inverse of :meth:`to_plain`."""
        parameters = (ParameterEvidence(**{**p, "shape": tuple(p["shape"]), "aliases": tuple(p["aliases"])}) for p in plain["parameters"])
        lost = tuple(NotSeen(**n) for n in plain["not_seen"])
        names = {key: tuple(plain.get(key, ())) for key in ("attentions", "readers")}
        whole = Whole(**{key: _tuples(value) for key, value in plain.get("whole", {}).items()})
        return cls(tuple(parameters), not_seen=lost, whole=whole, **names)

    def __str__(self) -> str:
        rows = [f"{p.name}: {p.lines}" + (f" along axis {p.axis}" if p.axis else "") for p in self.parameters]
        rows += [f"not seen in {n.where or 'the model'}: {n.reason}" for n in self.not_seen]
        return "\n".join([count(len(self.attentions), "softmax attention"), *rows])


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
