"""What detection found: a record a parameter, and the whole as a table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lightning_adam_mini.detection.roles import Architecture, Role


@dataclass(frozen=True)
class ParameterReport:
    """What detection knows of one parameter.

    Attributes:
        name: Name in ``module.named_parameters()``, without the prefixes of wrappers (``_orig_mod.``, ``module.`` of DDP, ...).
        shape: Shape of the whole parameter.
        role: What it is for. :attr:`Role.BIAS` for every bias, those of norms too.
        owner: Role of the weight it belongs to: for a bias that of its layer's weight, else ``role`` itself.
        reason: Why detection believes so, in a few words for people.
        guess: Whether the role or the line order is only likely, so that the user should look.
        axis: Dimension of the output lines (heads, neurons): 0 for a Linear, 1 for a transposed weight (GPT-2's Conv1D).
        lines: Line order along ``axis`` (see :mod:`lightning_adam_mini.lines`), such as ``q:12x64|k:12x64|v:12x64``; None where lines have
            no heads or the heads are unknown.
        trainable: Whether it requires gradients.
        aliases: Other names of the same tensor (tied weights).
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    owner: Role
    reason: str
    guess: bool = False
    axis: int = 0
    lines: str | None = None
    trainable: bool = True
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelReport:
    """What detection knows of a model. ``print(report)`` shows it as a table."""

    architecture: Architecture
    reason: str
    """Why the architecture is believed to be so."""
    parameters: tuple[ParameterReport, ...]

    @cached_property
    def by_name(self) -> dict[str, ParameterReport]:
        """The parameters by name and by each alias."""
        return {name: p for p in self.parameters for name in (p.name, *p.aliases)}
