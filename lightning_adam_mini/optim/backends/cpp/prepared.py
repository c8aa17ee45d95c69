"""The step of the tensors of the step before, handed to the compiled kernel as whole columns of addresses."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_adam_mini.optim.backends.cpp.build import FIELDS
from lightning_adam_mini.optim.backends.cpp.run import STATE, Row, options_of, run_kernel
from lightning_adam_mini.optim.backends.prepared import FIRST_SLOT, PARAM, Watch


class Prepared:
    """A step that is ready to be taken again.

    Args:
        groups: The optimizer's groups, each of whose parameters with a gradient the kernel has just stepped.
        state: The state of each parameter.
        fields: For each of these parameters, in order, what ``Cpp.plan`` gave.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]], fields: Sequence[Row]) -> None:
        self._watch = Watch(groups, state, STATE)
        self._tasks = array("q", bytes(8 * FIELDS * len(fields)))
        for column, values in enumerate(zip(*fields, strict=True), start=FIRST_SLOT + len(STATE)):
            self._tasks[column::FIELDS] = array("q", values)
        self._tasks[FIELDS - 1 :: FIELDS] = array("q", self._watch.group_of)
        for column in range(len(self._watch.addresses)):
            self._follow(column)

    def _follow(self, column: int) -> None:
        """Take the addresses of a column to the tasks."""
        addresses = self._watch.addresses[column]
        members = None if column < FIRST_SLOT else self._watch.members[column - FIRST_SLOT]
        if members is None:
            self._tasks[column::FIELDS] = addresses
            return
        for i, address in zip(members, addresses, strict=True):
            self._tasks[i * FIELDS + column] = address

    def step(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]]) -> bool:
        """Take the step if all is as it was; else do nothing.

        Args:
            groups: The optimizer's groups, with the parameters that they had.
            state: The state of each parameter.

        Returns:
            Whether it was taken.
        """
        options = array("d")
        for group in groups:
            options.extend(options_of(group))
        seen = self._watch.look(groups, state)
        if seen is None:
            return False
        for column, moved in enumerate(seen.moved):
            if moved:
                self._follow(column)
        run_kernel(self._tasks, options, seen.columns[PARAM])
        return True
