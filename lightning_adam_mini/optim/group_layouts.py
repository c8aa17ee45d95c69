"""The blocks of what an optimizer's groups hold: found by name once, and then kept by identity."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from operator import is_
from typing import Any

from torch import Tensor

from lightning_adam_mini._warnings import warn
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.layout_spec import LayoutSpec, read_layout
from lightning_adam_mini.lines import shorten
from lightning_adam_mini.optim.naming import match_names
from lightning_adam_mini.optim.state import SECOND, Kind, block_shapes, slots_of
from lightning_adam_mini.table import count

# Groups hold layouts as plain tuples, which copies, pickles and checkpoints of them survive; checking one again at each step would cost.
_from_plain = lru_cache(maxsize=65536)(BlockLayout.from_plain)

ShapeOf = Callable[[Tensor, str, "BlockLayout | None"], "tuple[int, ...]"]
"""Shape of a whole parameter, from the parameter, its name and its layout."""


class GroupLayouts:
    """Names of parameters, and the blocks of those in the groups, in step with the groups.

    Users filter, extend, reorder and replace ``group["params"]`` between steps, and functions of torch that were kept from before an
    optimizer became an AdamMini add groups past it. :meth:`is_current` tells, cheaply.

    Args:
        known: Blocks by name.
        named: Names of parameters.
        shape_of: Shape of a whole parameter.
    """

    def __init__(self, known: Mapping[str, LayoutSpec], named: Iterable[tuple[str, Tensor]], shape_of: ShapeOf) -> None:
        check_layouts(known)
        self.known: dict[str, BlockLayout] = dict(known)  # type: ignore[arg-type]  # specs are read below, once names are known
        self.layouts: list[list[BlockLayout]] = []
        """For each group, the blocks of its parameters."""
        self.remedy = "Add them to layouts= to share second moments."
        """What to do about a parameter without a layout."""
        self._params: list[list[Tensor]] = []
        self._names: dict[Tensor, str] = {}  # not weak: torch does not swap tensors that anything refers to weakly
        self._gone: set[Tensor] = set()  # what has left the groups and may come back, because its state is there or no step was taken
        self._plains: list[list[tuple]] = []
        self._matched: dict[str, str] = {}
        self.learn_names(named)
        self.known = self.read(known, shape_of)

    def read(self, layouts: Mapping[str, LayoutSpec], shape_of: ShapeOf) -> dict[str, BlockLayout]:
        """Layouts by name, of which some may be as users write them.

        Args:
            layouts: The layouts.
            shape_of: Shape of a whole parameter.

        Raises:
            ValueError: If one cannot be read, or has to be and no parameter of its name is known.
        """
        check_layouts(layouts)
        owners = {name: p for p, name in self._names.items()}
        found = {}
        for name, spec in layouts.items():
            if not isinstance(spec, BlockLayout) and name not in owners:
                if any(sign in name for sign in "*?["):
                    remedy = f"Layouts go by name; globs by partition_model(model, overrides={{{name!r}: ...}})."
                elif near := difflib.get_close_matches(name, list(owners), n=3):
                    remedy = f"Did you mean {' or '.join(near)}?"
                else:
                    remedy = "Pass model.named_parameters(), or give a BlockLayout."
                raise ValueError(
                    f"The layout of {name!r} is written as {shorten(spec)}, which takes a parameter's shape, but no parameter of that name"
                    f" is given. {remedy}"
                )
            try:
                found[name] = spec if isinstance(spec, BlockLayout) else read_layout(spec, shape_of(owners[name], name, None))
            except (TypeError, ValueError) as error:
                shape = tuple(owners[name].shape)
                raise ValueError(f"The layout of parameter {name!r} of shape {shape} cannot be read: {error}") from None
        return found

    def __getstate__(self) -> dict[str, Any]:
        # Only of what the groups hold: a pickle of the optimizer would carry all other parameters that have names.
        names = {p: self._names[p] for params in self._params for p in params if p in self._names}
        return {**vars(self), "_names": names, "_gone": set()}

    # ---- names --------------------------------------------------------------------------------------------------------

    def learn_names(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Take names of parameters: without what wrappers added, where there is a layout of that name."""
        named = list(named)
        self._matched |= match_names([name for name, _ in named if name not in self._matched], self.known, self._matched)
        for name, p in named:
            key = self._matched.get(name) or (None if name in self.known else name)  # which is then the key of another name
            if key is not None and (p not in self._names or (key in self.known and self._names[p] not in self.known)):
                self._names[p] = key

    def rename(self, old: Tensor, new: Tensor, name: str, layout: BlockLayout) -> None:
        """Give a parameter the name of the one that it replaces, and other blocks."""
        self._names.pop(old, None)
        self._names[new] = name
        self.known[name] = layout

    def name(self, p: Tensor) -> str | None:
        """The name of a parameter, if it was given one."""
        return self._names.get(p)

    def names(self, groups: Sequence[Mapping[str, Any]]) -> dict[Tensor, str]:
        """Name of each parameter: the one that it was given, or its place (``param_groups.0.params.3``)."""
        return {
            p: self._names.get(p) or f"param_groups.{i}.params.{j}" for i, group in enumerate(groups) for j, p in enumerate(group["params"])
        }

    def name_of(self, p: Tensor) -> str:
        """The name of a parameter, or its place in the groups as they were settled."""
        places = ((i, j) for i, params in enumerate(self._params) for j, q in enumerate(params) if q is p)
        i, j = next(places, (-1, -1))
        return self._names.get(p) or f"param_groups.{i}.params.{j}"

    def check_some_match(self, layouts: Mapping[str, BlockLayout]) -> None:
        """Refuse layouts of which none is for a parameter that has a name.

        Raises:
            ValueError: If none is.
        """
        names = list(self._names.values())
        if layouts and not layouts.keys() & set(names):
            given = ", ".join(names[:3])
            raise ValueError(
                f"None of the {len(layouts)} layouts (such as {next(iter(layouts))!r}) is for a parameter of this optimizer"
                + (f" (such as {given})" if given else ", because its parameters have no names")
                + ". Pass model.named_parameters() of the model that the layouts were made for, as params or as named_parameters=."
            )

    # ---- blocks -------------------------------------------------------------------------------------------------------

    @property
    def by_parameter(self) -> dict[Tensor, BlockLayout]:
        """The blocks of what the groups held when they were settled."""
        return {p: layout for pair in zip(self._params, self.layouts, strict=True) for p, layout in zip(*pair, strict=True)}

    def is_current(self, groups: Sequence[Mapping[str, Any]]) -> bool:
        """Whether the groups hold the very parameters that they held when their blocks were settled, in the same order."""
        return len(groups) == len(self._params) and all(
            group.get("layouts") is plains and len(group["params"]) == len(params) and all(map(is_, group["params"], params))
            for group, params, plains in zip(groups, self._params, self._plains, strict=True)
        )

    def settle(self, groups: Sequence[dict[str, Any]], layouts: list[list[BlockLayout]], state: Mapping[Tensor, Mapping[str, Any]]) -> None:
        """Take these as the blocks of what the groups hold, and write them into the groups.

        Args:
            groups: The groups.
            layouts: For each group, the blocks of its parameters.
            state: The state of each parameter.
        """
        present = {p for group in groups for p in group["params"]}
        self._gone = (self._gone | {p for params in self._params for p in params}) - present
        for p in [p for p in self._gone if state and not state.get(p)]:  # it was replaced, and must be freed
            self._names.pop(p, None)
            self._gone.discard(p)
        self._params = [list(group["params"]) for group in groups]
        self._plains = [[layout.to_plain() for layout in some_layouts] for some_layouts in layouts]
        for group, plains in zip(groups, self._plains, strict=True):
            group["layouts"] = plains
        self.layouts = layouts

    def find(
        self,
        groups: Sequence[Mapping[str, Any]],
        state: Mapping[Tensor, Mapping[str, Any]],
        shape_of: ShapeOf,
        explicit: Iterable[Any] | None = None,
    ) -> list[list[BlockLayout]]:
        """The blocks of what the groups hold now: those that a parameter has, or that are known by its name or its state.

        Args:
            groups: The groups.
            state: The state of each parameter.
            shape_of: Shape of a whole parameter.
            explicit: The layouts of the last group.

        Raises:
            ValueError: If a parameter has no blocks that fit, or cannot have any. Nothing has changed then.
        """
        found = self.by_parameter
        self._take_over_names(groups)
        names = self.names(groups)
        for group in groups:
            given = explicit if group is groups[-1] else None
            new = [p for p in group["params"] if p not in found]
            if given is None:
                # Some come with their state, as a parameter whose rows a user has pruned.
                found.update((p, self._by_state(p, names[p], state[p], shape_of)) for p in new if state.get(p))
                new = list(dict.fromkeys(p for p in new if p not in found))
            layouts = self.find_for(new, [names[p] for p in new], given, shape_of)
            found.update(zip(new, layouts, strict=True))
        return [[found[p] for p in group["params"]] for group in groups]

    def find_for(
        self, params: Sequence[Tensor], names: Sequence[str], explicit: Iterable[Any] | None, shape_of: ShapeOf
    ) -> list[BlockLayout]:
        """The blocks of some parameters.

        Args:
            params: The parameters.
            names: Name of each.
            explicit: A layout for each, plain or not; None to look them up. What is not known keeps a second moment per element, with a
                warning if others share theirs.
            shape_of: Shape of a whole parameter.

        Raises:
            ValueError: If there is not one for each, one does not fit its parameter, or a parameter is complex.
        """
        for p, name in zip(params, names, strict=True):
            if p.is_complex():
                raise ValueError(
                    f"AdamMini cannot step parameter {name!r} of shape {tuple(p.shape)} because it is complex. Keep it as a real tensor"
                    " (torch.view_as_real), or give it to another optimizer."
                )
        if explicit is not None:
            layouts = [layout if isinstance(layout, BlockLayout) else _from_plain(layout) for layout in explicit]
            if len(layouts) != len(params):
                raise ValueError(
                    f"A group of {count(len(params), 'parameter')} has {count(len(layouts), 'layout')}: give one for each parameter."
                )
        else:
            layouts = [
                self.known.get(name) or BlockLayout.per_parameter(shape_of(p, name, None)) for p, name in zip(params, names, strict=True)
            ]
            missing = [name for name in names if name not in self.known]
            if missing and any(not layout.is_per_parameter for layout in self.known.values()):
                warn(f"No layout for {some(missing)}: each of their elements keeps its own second moment, as in Adam. {self.remedy}")
        for layout, p, name in zip(layouts, params, names, strict=True):
            shape = shape_of(p, name, layout)
            if layout.shape != shape:
                raise ValueError(
                    f"The layout of parameter {name!r} is for a tensor of shape {layout.shape}, but the parameter has shape"
                    f" {shape}. Make the layouts from the model that is trained."
                )
        return layouts

    def _take_over_names(self, groups: Sequence[Mapping[str, Any]]) -> None:
        """Give a parameter without a name that of the one which stood in its place and is gone, as after pruning by hand."""
        present = {p for group in groups for p in group["params"]}
        for group, before in zip(groups, self._params, strict=False):
            if len(group["params"]) == len(before):
                for p, old in zip(group["params"], before, strict=True):
                    if p not in self._names and old not in present and old in self._names:
                        self._names[p] = self._names[old]

    def _by_state(self, p: Tensor, name: str, state: Mapping[str, Any], shape_of: ShapeOf) -> BlockLayout:
        shape, layout = shape_of(p, name, None), self.known.get(name)
        kept = {slot.name: state[slot.name] for slot in slots_of(Kind.BLOCK) if isinstance(state.get(slot.name), Tensor)}
        held = tuple(kept[SECOND.name].shape) if SECOND.name in kept else None
        if layout is not None and layout.shape == shape and [tuple(t.shape) for t in kept.values()] == block_shapes(layout):
            return layout
        if held == tuple(p.shape):
            return BlockLayout.per_parameter(shape)
        raise ValueError(
            f"Parameter {name!r} of shape {tuple(p.shape)} was put into a group with a second moment of shape {held}, which is neither"
            " one value per element nor that of blocks that are known. Replace a parameter by optimizer.replace_parameter(old, new,"
            f" rows=...), which takes its state along; or let it keep a second moment per element (overrides={{{name!r}: 'parameter'}})."
        )


def check_layouts(layouts: Any) -> None:
    """Refuse layouts that are not by name.

    Raises:
        ValueError: If they are no mapping from names.
    """
    if not isinstance(layouts, Mapping) or not all(isinstance(name, str) for name in layouts):
        raise ValueError(
            f"layouts={shorten(layouts)} are no layouts by parameter name. Pass partition_model(model), or a partition's name to that:"
            " partition_model(model, 'adam_mini')."
        )


def with_list(group: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a group whose parameters can be read more than once."""
    params = group["params"]
    return {**group, "params": params if isinstance(params, (Tensor, set)) else list(params)}


def named_in(params: Any) -> Iterator[tuple[str, Tensor]]:
    """The names among what an optimizer is given: pairs, or groups of pairs."""
    for item in params if isinstance(params, list) else ():
        if isinstance(item, dict):
            yield from named_in(item["params"])
        elif isinstance(item, tuple):
            yield item


def some(names: Sequence[str]) -> str:
    """A number of parameters, and the first few names.

    Example:
        >>> some(["a", "b", "c", "d"])
        "4 parameters ('a', 'b', 'c' and 1 more)"
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{count(len(names), 'parameter')} ({', '.join(map(repr, names[:3]))}{more})"
