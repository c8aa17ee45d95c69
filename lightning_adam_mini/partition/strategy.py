"""What a partition strategy is: a function from the roles of parameters to block layouts, with a name and options.

A strategy answers one question a parameter: how fine are its blocks? There are six answers, a :data:`Granularity`:

- ``"parameter"``: each element is a block, as in Adam.
- ``"tensor"``: the tensor is one block.
- ``"line"``: each output neuron, row or token is a block, counted along the axis in the parameter's report.
- ``"head"``: the line order in the report says which lines are a block. Without one, each line is.
- ``"factored"``: each line is a block, and so is each line across: rows and columns, whose means cross.
- ``"muon"``: no blocks; its matrices are orthogonalised (see :class:`~lightning_adam_mini.MatrixLayout`).
"""

from __future__ import annotations

import difflib
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from lightning_adam_mini._warnings import warn
from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import CONVOLUTIONS, FEED_FORWARD
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import LineOrder, parse_lines
from lightning_adam_mini.matrix_layout import MatrixLayout
from lightning_adam_mini.partition.doubts import likely_heads, likely_network, unknown_heads

Granularity = Literal["parameter", "tensor", "line", "head", "factored", "muon"]
"""How fine the blocks of a tensor are."""


@dataclass(frozen=True, kw_only=True)
class PartitionStrategy(ABC):
    """A rule that gives each parameter its blocks. Subclass it with one method, :meth:`granularity`.

    Options are keyword-only dataclass fields. Where a field's type is a ``Literal``, values outside of it are refused.

    Example:
        >>> from lightning_adam_mini.detection.report import ModelReport, ParameterReport
        >>> from lightning_adam_mini.detection.roles import Architecture, Role
        >>> class MatricesByNeuron(PartitionStrategy):
        ...     def granularity(self, parameter, report):
        ...         return "line" if len(parameter.shape) > 1 else "tensor"
        >>> weight = ParameterReport("fc.weight", (8, 3), Role.LINEAR, Role.LINEAR, "an nn.Linear")
        >>> report = ModelReport(Architecture.MLP, "only linear layers", (weight,))
        >>> MatricesByNeuron()(report)
        {'fc.weight': BlockLayout(shape=(8, 3), dims=(1,), axis=None, lines=None, crossed=None)}
    """

    needs_heads: ClassVar[bool] = True
    """Whether blocks depend on heads of attention, or on what kind of network it is. Else detection has nothing to run."""
    by_network: ClassVar[bool] = True
    """Whether, if so, blocks depend on the kind of network too, so that a doubt about it is told."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            allowed = tuple(_literals(hints[f.name]))
            if allowed and getattr(self, f.name) not in allowed:
                raise ValueError(
                    f"{f.name}={getattr(self, f.name)!r} is not an option of {type(self).__name__}, because {f.name} is one of"
                    f" {', '.join(map(repr, allowed))}."
                )

    @abstractmethod
    def granularity(self, parameter: ParameterReport, report: ModelReport) -> Granularity | BlockLayout:
        """How fine the blocks of ``parameter`` are, or its layout outright.

        Args:
            parameter: What is known of the parameter.
            report: What is known of the model that it is part of. Of a model composed of several networks, the one that holds the parameter
                is ``report.architecture_of(parameter)``.
        """

    def group_lines(self, order: LineOrder) -> LineOrder:
        """Which lines of a ``"head"`` parameter share a block: each head of each role, unless a subclass says otherwise."""
        return order

    def layout(self, parameter: ParameterReport, granularity: Granularity) -> BlockLayout:
        """The layout of ``granularity`` for one parameter.

        A 3-D weight of an MLP whose output axis is not the first is a stack of experts; each line of each expert is then a line, because
        experts see different tokens.

        Raises:
            ValueError: If the report's axis or line order does not fit the parameter's shape.
        """
        shape, axis = parameter.shape, parameter.axis
        if granularity == "parameter":
            return BlockLayout.per_parameter(shape)
        if granularity == "tensor" or not shape:
            return BlockLayout.whole(shape)
        if granularity == "factored":
            return _factored(parameter)
        if granularity == "muon":
            return matrix_layout(parameter)
        try:
            if granularity == "head" and parameter.lines is not None:
                return BlockLayout.grouped(shape, str(self.group_lines(parse_lines(parameter.lines))), axis)
            lines = BlockLayout.each_line(shape, axis)
        except ValueError as error:
            raise ValueError(
                f"The blocks of parameter {parameter.name!r} do not fit its shape {shape}: {error} Correct its line order or axis with an"
                f" override, such as overrides={{{parameter.name!r}: 'tensor'}}."
            ) from error
        if len(shape) == 3 and 0 in lines.dims and parameter.role in FEED_FORWARD:
            return BlockLayout(shape, dims=tuple(d for d in lines.dims if d != 0))
        return lines

    def __call__(self, report: ModelReport, names: Collection[str] | None = None, strict: bool = False) -> dict[str, BlockLayout]:
        """The layout of each parameter in ``report``, or of those in ``names`` only.

        Raises:
            ValueError: If ``strict`` and the blocks of a parameter should be heads but its heads are unknown.

        Warns:
            AdamMiniWarning: The same, if not ``strict``; and if heads, or the kind of the network, are only likely.
        """
        layouts: dict[str, BlockLayout] = {}
        unknown: list[ParameterReport] = []
        likely: list[ParameterReport] = []
        for parameter in report.parameters:
            if names is not None and parameter.name not in names:
                continue
            granularity = self.granularity(parameter, report)
            if granularity == "head" and parameter.lines is None:
                unknown.append(parameter)
            elif granularity == "head" and parameter.guess:
                likely.append(parameter)
            chosen = granularity if isinstance(granularity, BlockLayout) else self.layout(parameter, granularity)
            layouts[parameter.name] = chosen
        if unknown and strict:
            raise ValueError(unknown_heads(unknown, report))
        messages = [unknown_heads(unknown, report)] if unknown else []
        messages += [likely_heads(likely, report)] if likely else []
        messages += [likely_network(report)] if self.needs_heads and self.by_network and report.is_uncertain else []
        for message in messages:
            warn(message)
        return layouts


def _factored(parameter: ParameterReport) -> BlockLayout:
    """Lines and lines across; where there are more than two dimensions, which these are depends on the role."""
    shape, axis = parameter.shape, parameter.axis
    long = [d for d, size in enumerate(shape) if size > 1]
    if len(long) < 2:
        return BlockLayout.per_parameter(shape)
    if len(long) == 2:
        first = axis if axis in long else long[0]
        return BlockLayout.factored(shape, first, next(d for d in long if d != first))
    if parameter.role in CONVOLUTIONS and axis in (0, 1) and axis in long:
        if 1 - axis in long:
            return BlockLayout.factored(shape, axis, 1 - axis)
        return BlockLayout(shape, dims=tuple(d for d in long if d != axis), crossed=(axis,))  # depthwise: channels and positions
    first, second = (axis, next(d for d in reversed(long) if d != axis)) if axis in long[-2:] else long[-2:]
    return BlockLayout(shape, dims=(second,), crossed=(first,))  # the other dimensions tell products apart, as those of experts


def matrix_layout(parameter: ParameterReport, cut: Literal["role", "head", "none"] = "role", **rule: Any) -> MatrixLayout:
    """The matrices of a parameter, whatever its role: rows along the axis in its report, cut by its line order.

    All dimensions of a convolution but its outputs are columns. Of another tensor of more than two dimensions the last two are a matrix,
    and the others tell matrices apart, as those of experts.

    Args:
        parameter: What is known of the parameter.
        cut: Where a line order is known, the lines of each role are a matrix, or of each head, or all lines are one.
        **rule: Other arguments of :class:`~lightning_adam_mini.MatrixLayout`.

    Raises:
        ValueError: If it is no matrix, or a matrix would have one row only.

    Example:
        >>> from lightning_adam_mini.detection.roles import Role
        >>> fused = ParameterReport("qkv.weight", (12, 5), Role.QKV, Role.QKV, "", lines="q:2x2|k:2x2|v:2x2")
        >>> matrix_layout(fused).matrices, matrix_layout(fused, "head").matrices[0]
        (((1, 4, 5), (1, 4, 5), (1, 4, 5)), (1, 2, 5))
    """
    shape, axis = parameter.shape, parameter.axis
    long = [d for d, size in enumerate(shape) if size != 1]
    if len(long) < 2 or 0 in shape:
        raise ValueError(
            f"Parameter {parameter.name!r} of shape {shape} is no matrix, so that there is nothing to orthogonalise. Give it blocks with an"
            " override, such as 'factored', or leave it out."
        )
    is_conv = parameter.role in CONVOLUTIONS
    rows = axis if is_conv or axis in long[-2:] else long[-2]
    lines = None
    # Groups of a convolution read different channels: each is a map of its own.
    if parameter.lines is not None and rows == axis and (cut != "none" or is_conv):
        order = parse_lines(parameter.lines)
        lines = str(order if cut == "head" or is_conv else order.merge(*order.roles))
    layout = MatrixLayout(shape, rows=rows, stacked=() if is_conv else tuple(long[:-2]), cut=lines, **rule)
    if any(height < 2 for _, height, _ in layout.matrices):
        raise ValueError(
            f"Parameter {parameter.name!r} of shape {shape} has matrices of a single row where {parameter.lines} is cut, so that there is"
            " nothing to orthogonalise. Give it blocks with an override, such as 'factored', or other lines."
        )
    return layout


def _literals(hint: Any) -> Iterable[Any]:
    """The values that a type hint made of ``Literal`` and ``None`` allows; none if it is made of anything else."""
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    elif get_origin(hint) in (Union, types.UnionType):
        parts = get_args(hint)
        allowed = [value for part in parts if part is not type(None) for value in _literals(part)]
        yield from [*allowed, None] if allowed and type(None) in parts else allowed


STRATEGIES: dict[str, type[PartitionStrategy]] = {}
"""The strategies by name. Add to it with :func:`register_strategy`."""

_S = TypeVar("_S", bound=type[PartitionStrategy])


def register_strategy(*names: str) -> Callable[[_S], _S]:
    """Make a strategy selectable by name: ``partition_model(model, name)``.

    Args:
        names: The name and its aliases.

    Raises:
        ValueError: If a name is taken by another strategy.

    Example:
        >>> @register_strategy("whole_or_nothing")
        ... class WholeOrNothing(PartitionStrategy):
        ...     def granularity(self, parameter, report):
        ...         return "tensor"
        >>> make_strategy("whole_or_nothing")
        WholeOrNothing()
        >>> del STRATEGIES["whole_or_nothing"]
    """

    def register(cls: _S) -> _S:
        for name in names:
            if STRATEGIES.get(name, cls) is not cls:
                raise ValueError(f"The partition name {name!r} is taken; choose one that is not among {', '.join(sorted(STRATEGIES))}.")
            STRATEGIES[name] = cls
        return cls

    return register


def make_strategy(partition: str | PartitionStrategy = "auto", **options: Any) -> PartitionStrategy:
    """Find a strategy by name and give it its options.

    Args:
        partition: A name in :data:`STRATEGIES`, or a strategy, which is returned as it is.
        **options: The strategy's options.

    Raises:
        ValueError: If the name or an option is unknown.

    Example:
        >>> make_strategy("adam_mini", value="whole")
        AdamMiniPartition(value='whole', query_key='head', position='tensor', embedding=None, bias=None, weight='tensor')
    """
    if isinstance(partition, PartitionStrategy):
        if options:
            raise ValueError(
                f"Options {', '.join(options)} were given beside the strategy {partition!r}; give them to the strategy itself,"
                " because it is already made."
            )
        return partition
    if not isinstance(partition, str):
        raise ValueError(f"The partition {partition!r} is neither a name, such as 'auto', nor a PartitionStrategy (an instance of one).")
    cls = STRATEGIES.get(partition)
    if cls is None:
        near, known = did_you_mean(partition, STRATEGIES), ", ".join(sorted(STRATEGIES))
        raise ValueError(f"The partition {partition!r} is unknown{near}; choose one of {known}.")
    allowed = [f.name for f in fields(cls)]
    for option in options:
        if option == "options" and isinstance(options[option], Mapping):  # as the callback takes them
            given = ", ".join(f"{name}={value!r}" for name, value in options[option].items())
            raise ValueError(
                f"The partition {partition!r} has no option 'options'. Write them by name: partition_model(model, {partition!r}, {given})."
            )
        if option not in allowed:
            near, known = did_you_mean(option, allowed), ", ".join(allowed) or "none"
            raise ValueError(f"The partition {partition!r} has no option {option!r}{near}; its options are {known}.")
    try:
        return cls(**options)
    except TypeError as error:
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ValueError(f"The partition {partition!r} cannot have {given}: {error}. Give options of the right type.") from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``" (did you mean 'x'?)"`` if a known word is near, else nothing."""
    near = difflib.get_close_matches(str(word), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
