"""What detection found: a record a parameter, the kind of network, and both as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from typing import TypeVar

from lightning_adam_mini.detection.architecture import Signs, decide
from lightning_adam_mini.detection.roles import Architecture, Role, Source
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.table import align, count, cut, size_text

_WIDTH = 120
_GUESSES = 12
_BYTES = 4  # second moments are float32

Network = TypeVar("Network", "ModelReport", "PartReport")


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
        source: Where the belief comes from: the layer's type, structure, a known module, running, or the user.
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
    source: Source = Source.STRUCTURE


@dataclass(frozen=True)
class PartReport:
    """A network within a model that is composed of networks of different kinds.

    Attributes:
        path: Name of its module in the model, without the prefixes of wrappers.
        architecture: What kind of network it is.
        reason: Why it is believed to be so.
        guess: Whether that is only likely.
        signs: What was seen of it beside the roles of its parameters; None if it was not looked at.
    """

    path: str
    architecture: Architecture
    reason: str
    guess: bool = False
    signs: Signs | None = None

    def holds(self, parameter: ParameterReport) -> bool:
        """Whether ``parameter`` is one of this network."""
        return parameter.name.startswith(f"{self.path}.")


@dataclass(frozen=True)
class ModelReport:
    """What detection knows of a model. ``print(report)`` shows it as a table."""

    architecture: Architecture
    reason: str
    """Why the architecture is believed to be so."""
    parameters: tuple[ParameterReport, ...]
    parts: tuple[PartReport, ...] = ()
    """The networks that the model is composed of, outer before inner; empty if all of it is one network."""
    guess: bool = False
    """Whether the architecture is only likely."""
    signs: Signs | None = None
    """What was seen of the network beside the roles of its parameters; None if it was not looked at."""

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
        return next((part for part in reversed(self.parts) if part.holds(parameter)), None)

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

    @property
    def is_uncertain(self) -> bool:
        """Whether the kind of the network, or of one that it is composed of, is only likely."""
        return self.guess or any(part.guess for part in self.parts)

    def guess_of(self, parameter: ParameterReport) -> bool:
        """Whether the architecture of the network that ``parameter`` belongs to is only likely."""
        part = self.part_of(parameter)
        return self.guess if part is None else part.guess

    def corrected(self, parameters: Iterable[ParameterReport]) -> ModelReport:
        """The report with ``parameters`` in place of those of the same names, and the kind of each network decided again.

        Example:
            >>> from torch import nn
            >>> from lightning_adam_mini.detection import inspect_model
            >>> report = inspect_model(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
            >>> query = replace(report.parameters[0], role=Role.QUERY, owner=Role.QUERY)
            >>> print(report.architecture, report.corrected([query]).architecture)
            mlp transformer
        """
        new = {p.name: p for p in parameters}
        merged = tuple(new.get(p.name, p) for p in self.parameters)
        parts = tuple(_decided(part, filter(part.holds, merged)) for part in self.parts)
        return replace(_decided(self, merged), parameters=merged, parts=parts)

    def table(self, layouts: Mapping[str, BlockLayout] | None = None) -> str:
        """The report as plain text of at most 120 columns.

        Args:
            layouts: Layouts by parameter name. With them the table shows blocks, or which rule orthogonalises matrices, and the bytes of
                second moments before and after.
        """
        return "\n".join(line.rstrip() for line in _lines(self, layouts))

    def __str__(self) -> str:
        return self.table()


def _decided(network: Network, parameters: Iterable[ParameterReport]) -> Network:
    if network.signs is None:
        return network
    decision = decide(network.signs, ((p.role, _elements(p)) for p in parameters))
    return replace(network, architecture=decision.architecture, reason=decision.reason, guess=decision.guess)


def _lines(report: ModelReport, layouts: Mapping[str, BlockLayout] | None) -> Iterator[str]:
    """The architecture, its parts if it has some, one row per role, the total, and the guesses."""
    groups: dict[str, list[ParameterReport]] = {}
    for p in report.parameters:
        groups.setdefault(f"{p.role}{' ?' if p.guess else ''}", []).append(p)
    heading = ["role", "tensors", "parameters", *(["blocks", "2nd moments", "", "after"] if layouts is not None else [])]
    rows = [heading, *(_row(label, ps, layouts) for label, ps in groups.items()), _row("total", report.parameters, layouts)]
    left = align(rows, "<" + ">" * (len(heading) - 1))
    room = _WIDTH - len(left[0]) - 2
    yield cut(f"{report.architecture}{' ?' if report.guess else ''}: {report.reason}", _WIDTH)
    yield from _parts(report)
    yield ""
    for row, example in zip(left, ["example", *(_example(ps[0], room) for ps in groups.values()), ""], strict=True):
        yield f"{row}  {example}"
    frozen = [p for p in report.parameters if not p.trainable]
    if frozen:
        elements = count(sum(map(_elements, frozen)), "parameter")
        yield f"{len(frozen)} of {count(len(report.parameters), 'tensor')} frozen ({elements}): no blocks until they train."
    if report.guesses:
        yield from (
            "",
            f"? {len(report.guesses)} not certain:",
            *(cut(f"  {p.name}: {p.reason}", _WIDTH) for p in report.guesses[:_GUESSES]),
        )
        if len(report.guesses) > _GUESSES:
            yield f"  ... and {len(report.guesses) - _GUESSES} more"
        matrices = [p for p in report.guesses if sum(size > 1 for size in p.shape) > 1]
        if layouts and all(layouts[p.name].is_factored for p in matrices if p.name in layouts):
            yield "No block here depends on heads: a wrong role changes what a parameter is called and, of an embedding, its blocks."
        else:
            yield from (
                "What follows: where a guess is wrong, a parameter gets finer or coarser blocks than meant; training goes on.",
                f"To settle it, write what they are, overrides={{{report.guesses[0].name!r}: {{'role': ...}}}} ('lines' if heads), or",
                "let running show it: AdamMiniCallback(probe=True), inspect_model(model, example_input).",
            )


def _parts(report: ModelReport) -> Iterator[str]:
    """A line for each part, and one for what is in none."""
    counts = Counter(report.part_of(p) for p in report.parameters) if report.parts else {}
    parts = [part for part in (*report.parts, None) if part in counts]
    rows = [
        [
            "  (the rest)" if part is None else f"  {part.path}",
            report.architecture.value if part is None else part.architecture.value + (" ?" if part.guess else ""),
            count(counts[part], "tensor"),
            "as the whole" if part is None else part.reason,
        ]
        for part in parts
    ]
    for line in align(rows, "<<><"):
        yield cut(line, _WIDTH)


def _row(label: str, parameters: Sequence[ParameterReport], layouts: Mapping[str, BlockLayout] | None) -> list[str]:
    row = [label, f"{len(parameters):,}", f"{sum(map(_elements, parameters)):,}"]
    if layouts is not None:
        trained = [p for p in parameters if p.trainable]
        blocks = sum(layouts[p.name].num_blocks if p.name in layouts else _elements(p) for p in trained)
        row += [_how(trained, layouts, blocks), size_text(_BYTES * sum(map(_elements, trained))), "->", size_text(_BYTES * blocks)]
    return row


def _how(parameters: Sequence[ParameterReport], layouts: Mapping[str, BlockLayout], blocks: int) -> str:
    """The number of blocks; where matrices are orthogonalised, by which rule, and of how many tensors if not of all."""
    found = [layouts[p.name] for p in parameters if p.name in layouts and layouts[p.name].is_orthogonal]
    if not found:
        return f"{blocks:,}"
    rules = "/".join(sorted({"normuon" if layout.num_blocks else "muon" for layout in found}))
    return rules if len(found) == len(parameters) else f"{len(found):,} {rules}"


def _elements(p: ParameterReport) -> int:
    return prod(p.shape)


def _example(p: ParameterReport, room: int) -> str:
    """A parameter; where the room is short, the end of its name, because what it is and its heads come last."""
    rest = f" {'x'.join(map(str, p.shape)) or 'scalar'}" + (f" ({p.lines})" if p.lines else "")
    left = room - len(rest)
    name = p.name if len(p.name) <= left else "..." + p.name[3 - left :] if left > 3 else p.name
    return cut(name + rest, room)
