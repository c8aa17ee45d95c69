"""Which parameter is stepped by what: the first backend that can."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini._warnings import warn
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim import backends
from lightning_adam_mini.optim.backends import Backend, Task
from lightning_adam_mini.optim.backends.cpp.backend import NO_LOOP
from lightning_adam_mini.optim.backends.orthogonal import Orthogonal
from lightning_adam_mini.optim.backends.protocol import ANY
from lightning_adam_mini.optim.checks import StepChecks, check_gradient
from lightning_adam_mini.optim.codecs import Codec, Plain
from lightning_adam_mini.optim.functional import Blocks
from lightning_adam_mini.optim.rounding import Place
from lightning_adam_mini.optim.state import SLOTS, STEP, StateFormat
from lightning_adam_mini.optim.work import Member, Work

_SLOTS = {slot.name for slot in SLOTS}


class Stepper:
    """Steps parameters, each by the first backend that can step it.

    Args:
        format: How the optimizer keeps state.
        stochastic_rounding: Whether bfloat16 weights are rounded at random.
        name_of: Name of a parameter, for errors.
    """

    def __init__(self, format: StateFormat, stochastic_rounding: bool, name_of: Callable[[Tensor], str]) -> None:
        self._format = format
        self._stochastic_rounding = stochastic_rounding
        self._name_of = name_of
        self._checks = StepChecks(format, name_of)
        self._backends: list[Backend] = [make() for make in backends.BACKENDS]
        self._rows: dict[int, _Row] = {}
        self._took: list[int] = []  # the backends that took the last step
        self._told: set[tuple[str, int]] = set()
        self._prepared: Any = None
        self._wait = self._waited = 0  # steps until one is prepared, more of them each time in vain

    def forget(self) -> None:
        """Keep nothing of any parameter, so that those that are gone are free."""
        self._prepared = None
        self._rows.clear()
        self._checks.forget()
        for backend in self._backends:
            backend.forget()

    @property
    def orthogonal(self) -> Orthogonal:
        """What steps matrices whose updates are orthogonalised."""
        return next(backend for backend in self._backends if isinstance(backend, Orthogonal))

    def check(self, work: Work) -> None:
        """Check all that is about to be stepped.

        Args:
            work: Whole parameters.

        Raises:
            RuntimeError: If something does not fit; names the parameter and the remedy. Nothing has changed then.
        """
        if torch.compiler.is_compiling():
            for _, members in work:
                for member in members:
                    check_gradient(member.param, member.grad, self._name_of)
            return
        for _, members in work:
            for p in self._checks.check(members):
                self._prepared = None
                self._rows.pop(id(p), None)

    def step_again(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]]) -> bool:
        """Take the step of the tensors of the step before, if all of them are as they were; else do nothing.

        Args:
            groups: The optimizer's groups, with the parameters that they had.
            state: The state of each parameter.

        Returns:
            Whether it was taken.
        """
        if self._prepared is None:
            return False
        if self._prepared.step(groups, state):
            self._wait = self._waited = 0
            return True
        self._prepared = None
        self._wait = self._waited = min(2 * self._waited + 1, 64)
        return False

    def prepare(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]], work: Work) -> None:
        """Make ready to take the step that was just taken again, if one backend took all of it.

        Args:
            groups: The optimizer's groups.
            state: The state of each parameter.
            work: What was stepped.
        """
        if self._wait:
            self._wait -= 1
        elif len(self._took) == 1:
            plans = [self._rows[id(member.param)].fields for _, members in work for member in members]
            self._prepared = self._backends[self._took[0]].prepare(groups, state, plans)

    def step(self, work: Work, state: MutableMapping[Tensor, dict[str, Any]], shares: bool) -> None:
        """Step parameters, in place.

        Args:
            work: The options of each group, and what is to be stepped of it.
            state: The state of each parameter; those that have none get one.
            shares: Whether any layout shares a second moment: if none does, the step is torch's, to the bit.

        Raises:
            RuntimeError: If a group says ``fused=True`` and a member cannot be stepped so. Nothing has changed then.
        """
        compiling = torch.compiler.is_compiling()
        chosen: dict[int, list[tuple[Mapping[str, Any], list[tuple[Member, _Row]]]]] = {}
        slower: dict[str, list[Tensor]] = {}
        for group, members in work:
            of_group: dict[int, list[tuple[Member, _Row]]] = {}
            for member in members:
                row = self._row(member, compiling)
                # Nothing that is coded or rounded equals torch's AdamW to the bit, whatever it shares.
                by_default = group["foreach"] is None and (shares or row.place is not None or not isinstance(row.codec, Plain))
                never = compiling or group["fused"] is False or not (group["fused"] or by_default)
                if row.fast is None and row.problem and not never:
                    if group["fused"]:
                        raise RuntimeError(_not_fused(member, row.problem, self._name_of(member.param)))
                    slower.setdefault(row.problem, []).append(member.param)
                of_group.setdefault(row.slow if never or row.fast is None else row.fast, []).append((member, row))
            for i, some_members in of_group.items():
                chosen.setdefault(i, []).append((group, some_members))
        for reason, params in slower.items():
            self._tell(reason, params)
        self._took = [*chosen]
        for i, groups in chosen.items():
            backend = self._backends[i]
            backend.step(
                [
                    (group, [self._task(member, row, state, backend.counts_there(group)) for member, row in members])
                    for group, members in groups
                ]
            )

    def _task(self, member: Member, row: _Row, states: MutableMapping[Tensor, dict[str, Any]], count_there: bool) -> Task:
        state = member.state
        if not state:
            state = states[member.param]  # what was there when the member was made, or what an earlier turn has made
            if not state:
                state.update(self._format.make(member.param, member.whole, count_there))
        elif count_there and state[STEP.name].device != member.p.device:
            state[STEP.name] = state[STEP.name].to(member.p.device)
        seen = self._format.local(member.param, state)
        return Task(member.p, member.grad, seen, member.layout, row.codec, row.place, row.fields, member.param, member.part)

    def _row(self, member: Member, compiling: bool) -> _Row:
        """What steps a parameter, and what that needs to know of it."""
        if compiling:  # what torch.compile traces keeps nothing
            return self._make_row(member)
        param, p = member.param, member.p
        row = self._rows.get(id(param))
        if row is None or row.param is not param or row.whole is not member.whole or row.strides != p.stride():
            row = self._rows[id(param)] = self._make_row(member)
        return row

    def _make_row(self, member: Member) -> _Row:
        p, layout = member.p, member.layout
        codec, place = self._format.codec(member.param, member.whole), None
        if self._stochastic_rounding and p.dtype == torch.bfloat16:
            place = Place.whole(member.number, p.shape) if member.place is None else member.place
        asked = (p, codec, layout, place)
        slow, _ = self._first(None, *asked)
        assert slow is not None  # the readable one, or slices, can step anything
        fast = fields = problem = None
        if not torch.compiler.is_compiling():
            fast, problem = self._first(p.device.type, *asked)
        if fast is not None:
            fields = self._backends[fast].plan(*asked)
        elif p.numel() == 0 or p.is_meta:  # of which there is nothing to step
            problem = None
        return _Row(member.param, member.whole, p.stride(), codec, place, fast, fields, problem, slow)

    def _first(self, device: str | None, p: Tensor, codec: Codec, layout: Blocks, place: Place | None) -> tuple[int | None, str | None]:
        """The first backend for a kind of device that can step a parameter, or why there is none."""
        problem = f"there is no compiled loop for {p.device.type}"
        orthogonal = isinstance(layout, BlockLayout) and layout.is_orthogonal
        for i, backend in enumerate(self._backends):
            if backend.device in (device, ANY) and backend.orthogonal == orthogonal:
                problem = backend.why_not(p, codec, layout, place) if backend.slots >= _SLOTS else "its state has more slots"
                if problem is None:
                    return i, None
        return None, problem

    def _tell(self, reason: str, params: Sequence[Tensor]) -> None:
        params = [p for p in params if (reason, id(p)) not in self._told]
        self._told.update((reason, id(p)) for p in params)
        if not params or reason in _TOLD_OF_THE_MACHINE:
            return
        if reason.startswith(NO_LOOP):
            _TOLD_OF_THE_MACHINE.add(reason)
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank():
            return  # the first rank tells
        more = f" and {len(params) - 1} more" if len(params) > 1 else ""
        times = ", about five times as long" if params[0].is_cpu else ""
        warn(f"AdamMini steps parameter {self._name_of(params[0])!r}{more} slowly{times}, because {reason}")


_TOLD_OF_THE_MACHINE: set[str] = set()
"""What holds of all optimizers of this process, and was told."""


class _Row(NamedTuple):
    """What steps a parameter, and what that was decided by.

    Attributes:
        param: The parameter.
        whole: Its blocks.
        strides: Of what is stepped.
        codec: How its first moment is kept.
        place: Where in the parameter that is, if its weights are rounded at random.
        fast: The first backend that steps all parameters of the device at once, and can step this one.
        fields: What that needs to know of it: what its :meth:`Backend.plan` gave.
        problem: Why there is none.
        slow: The first of the other backends that can.
    """

    param: Tensor
    whole: BlockLayout
    strides: tuple[int, ...]
    codec: Codec
    place: Place | None
    fast: int | None
    fields: Any
    problem: str | None
    slow: int


def _not_fused(member: Member, problem: str, name: str) -> str:
    return (
        f"AdamMini(fused=True) cannot step parameter {name!r} of shape {tuple(member.p.shape)} in one compiled loop"
        f" because {problem}. Leave fused=None to use the loop only where it can be used."
    )
