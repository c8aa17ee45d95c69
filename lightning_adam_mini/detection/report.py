"""What detection found: a record a parameter, and the whole as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from lightning_adam_mini.detection.roles import Architecture, Role
from lightning_adam_mini.detection.table import draw_table
from lightning_adam_mini.layout import BlockLayout


@dataclass(frozen=True)
class ParameterReport:
    """What detection knows of one parameter.

    Attributes:
        name: Name in ``module.named_parameters()``, without what wrappers add (``_orig_mod.`` of torch.compile, ``module.`` of DDP, ...).
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
class PartReport:
    """A network within a model that is composed of networks of different kinds.

    Attributes:
        path: Name of its module in the model, without the prefixes of wrappers.
        architecture: What kind of network it is.
        reason: Why it is believed to be so.
    """

    path: str
    architecture: Architecture
    reason: str


@dataclass(frozen=True)
class ModelReport:
    """What detection knows of a model. ``print(report)`` shows it as a table."""

    architecture: Architecture
    reason: str
    """Why the architecture is believed to be so."""
    parameters: tuple[ParameterReport, ...]
    parts: tuple[PartReport, ...] = ()
    """The networks that the model is composed of, outer before inner; empty if all of it is one network."""

    @cached_property
    def by_name(self) -> dict[str, ParameterReport]:
        """The parameters by name and by each alias."""
        return {name: p for p in self.parameters for name in (p.name, *p.aliases)}

    @property
    def guesses(self) -> tuple[ParameterReport, ...]:
        """The parameters to look at: their role or line order is only likely, or not known at all."""
        return tuple(p for p in self.parameters if p.guess)

    def part_of(self, parameter: ParameterReport) -> PartReport | None:
        """The innermost part that holds ``parameter``; None if it belongs to the whole, as everything does in a single network."""
        return next((part for part in reversed(self.parts) if parameter.name.startswith(f"{part.path}.")), None)

    def architecture_of(self, parameter: ParameterReport) -> Architecture:
        """The architecture of the network that ``parameter`` belongs to: its part's, or that of the whole model.

        Example:
            >>> weight = ParameterReport("encoder.lin.weight", (4, 4), Role.GRAPH_CONV, Role.GRAPH_CONV, "weight of GCNConv")
            >>> encoder = PartReport("encoder", Architecture.GNN, "passes messages")
            >>> print(ModelReport(Architecture.TRANSFORMER, "has attention", (weight,), (encoder,)).architecture_of(weight))
            gnn
        """
        part = self.part_of(parameter)
        return self.architecture if part is None else part.architecture

    def table(self, layouts: Mapping[str, BlockLayout] | None = None) -> str:
        """The report as plain text of at most 120 columns.

        Args:
            layouts: Layouts by parameter name. With them the table shows blocks and the bytes of second moments before and after.
        """
        return draw_table(self, layouts)

    def __str__(self) -> str:
        return self.table()
