"""Which parameter is stepped by what: one compiled loop, slice by slice, or the readable arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.cpu import step as cpu
from lightning_adam_mini.optim.cpu.prepared import Prepared
from lightning_adam_mini.optim.functional import Blocks, adam_mini
from lightning_adam_mini.optim.quantized import MomentumDtype, momentum_dtype_for
from lightning_adam_mini.optim.sliced import step_in_slices
from lightning_adam_mini.optim.triton import step as triton
from lightning_adam_mini.optim.triton.check import disagreement

# What steps all parameters at once, by the kind of their device.
_FUSED: dict[str, Any] = {"cpu": cpu, "cuda": triton}


class Member(NamedTuple):
    """A parameter that takes part in a step.

    Attributes:
        param: The parameter, as the optimizer holds it.
        p: What is stepped: the parameter itself or, where it is sharded, what this rank holds of it.
        grad: The gradient of that.
        layout: The blocks of that.
        whole: The blocks of the parameter.
        state: The state of the parameter; empty before its first step.
    """

    param: Tensor
    p: Tensor
    grad: Tensor
    layout: Blocks
    whole: BlockLayout
    state: dict[str, Any]


Work: TypeAlias = "Sequence[tuple[dict[str, Any], list[Member]]]"
"""For each group its options, and its members that have gradients."""


def turns(work: Work) -> Iterator[Work]:
    """The work cut up so that a parameter which stands in a group more than once is stepped as often, one time after the other."""
    while any(members for _, members in work):
        now, later = [], []
        for group, members in work:
            first = {id(member.param): member for member in reversed(members)}
            now.append((group, [member for member in members if first[id(member.param)] is member]))
            later.append((group, [member for member in members if first[id(member.param)] is not member]))
        yield now
        work = later


class Stepper:
    """Steps parameters, each by the fastest of what can step it.

    Args:
        momentum_dtype: What the optimizer was asked to keep first moments in.
        stochastic_rounding: Whether bfloat16 weights are rounded at random.
        name_of: Name of a parameter, for errors.
    """

    def __init__(self, momentum_dtype: MomentumDtype | None, stochastic_rounding: bool, name_of: Callable[[Tensor], str]) -> None:
        self.momentum_dtype: MomentumDtype | None = momentum_dtype
        self.stochastic_rounding = stochastic_rounding
        self.name_of = name_of
        self.tables: dict[Any, Any] = {}
        self._rows: dict[int, _Row] = {}
        self._prepared: Prepared | None = None
        self._wait = self._waited = 0  # steps until one is prepared, more of them each time in vain

    def forget(self, p: Tensor | None = None) -> None:
        """Keep nothing of a parameter that has changed; or of any, so that those that are gone are free."""
        self._prepared = None
        if p is not None:
            self._rows.pop(id(p), None)
            return
        self.tables.clear()
        self._rows.clear()

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
        """Make ready to take the step that was just taken again, if the compiled loop on the CPU took all of it.

        Args:
            groups: The optimizer's groups.
            state: The state of each parameter.
            work: What was stepped.
        """
        rows = [self._rows.get(id(member.param)) for _, members in work for member in members]
        if self._wait:
            self._wait -= 1
        elif rows and all(row is not None and row.loop is cpu and row.fields is not None for row in rows):
            self._prepared = Prepared(groups, state, [row.fields for row in rows if row is not None])

    def step(
        self,
        work: Sequence[tuple[Mapping[str, Any], Sequence[Member]]],
        state_of: Callable[[Member, bool], MutableMapping[str, Tensor]],
        shares: bool,
        places: Callable[[], Mapping[Tensor, int]],
    ) -> None:
        """Step all parameters, in place.

        Args:
            work: The options of each group, and its members that have gradients.
            state_of: The state of a member, with its step on the member's device if that is asked for; made if there is none.
            shares: Whether any layout shares a second moment: if none does, the step is torch's, to the bit.
            places: Number of each parameter among all, for random bits.

        Raises:
            RuntimeError: If a group says ``fused=True`` and a member cannot be stepped so. Nothing has changed then.
        """
        plain, sliced = [], []
        fused: dict[Any, list] = {}
        compiling = torch.compiler.is_compiling()
        for group, members in work:
            by_default = shares and group["foreach"] is None
            never = compiling or group["fused"] is False or not (group["fused"] or by_default)
            fast: dict[Any, list] = {}
            slow = []
            for member in members:
                row = None if never else self._row(member, group["fused"])
                if row is not None:
                    fast.setdefault(row.loop, []).append((member, row))
                elif self._needs_slices(member.p):
                    sliced.append((member, group))
                else:
                    slow.append(member)
            for loop, rows in fast.items():
                fused.setdefault(loop, []).append((group, rows))
            plain.append((group, slow))
        for loop, groups in fused.items():
            there = loop is not cpu
            loop.step(
                [(group, [(member.p, member.grad, state_of(member, there), row.fields) for member, row in rows]) for group, rows in groups],
                self.tables,
            )
        for group, members in plain:
            step_readably(group, members, [state_of(member, group["capturable"]) for member in members])
        numbers = places() if sliced and self.stochastic_rounding else {}
        for member, group in sliced:
            assert isinstance(member.layout, BlockLayout)  # parts of blocks are refused in 8 bits and with random rounding
            place = numbers[member.param] if self._rounds_at_random(member.p) else None
            step_in_slices(member.p, member.grad, state_of(member, False), member.layout, group, place)

    def _rounds_at_random(self, p: Tensor) -> bool:
        return self.stochastic_rounding and p.dtype == torch.bfloat16

    def _needs_slices(self, p: Tensor) -> bool:
        return p.numel() > 0 and (momentum_dtype_for(p, self.momentum_dtype) == "8bit" or self._rounds_at_random(p))

    def _row(self, member: Member, fused: bool | None) -> _Row | None:
        """What the compiled loop needs to know of a parameter; None if it does not step it."""
        param, p = member.param, member.p
        row = self._rows.get(id(param))
        if row is None or row.param is not param or row.whole is not member.whole or row.strides != p.stride():
            row = self._rows[id(param)] = self._make_row(member)
        if row.problem and fused:
            raise RuntimeError(
                f"AdamMini(fused=True) cannot step parameter {self.name_of(param)!r} of shape {tuple(p.shape)} in one compiled loop"
                f" because {row.problem}. Leave fused=None to use the loop only where it can be used."
            )
        return None if row.fields is None else row

    def _make_row(self, member: Member) -> _Row:
        p, layout = member.p, member.layout
        loop = _FUSED.get(p.device.type, cpu)
        momentum_dtype = momentum_dtype_for(p, self.momentum_dtype)
        fields = problem = None
        if p.numel() == 0:
            pass  # there is nothing to step
        elif not isinstance(layout, BlockLayout):
            problem = "other ranks hold parts of its blocks"
        elif self._rounds_at_random(p):
            problem = "its weights are rounded at random"
        else:
            problem = loop.why_not(p, momentum_dtype)
            # While a graph is captured nothing may be compared: its warm-up has done so.
            if problem is None and p.is_cuda and isinstance(momentum_dtype, torch.dtype) and not torch.cuda.is_current_stream_capturing():
                problem = disagreement(p.device, p.dtype, momentum_dtype)
            fields = None if problem else loop.fixed_fields(p, momentum_dtype, layout)
        return _Row(member.param, member.whole, p.stride(), loop, fields, problem)


class _Row(NamedTuple):
    """What the compiled loop needs to know of a parameter, and what it was made from."""

    param: Tensor
    whole: BlockLayout
    strides: tuple[int, ...]
    loop: Any
    fields: Any
    problem: str | None


def step_readably(group: Mapping[str, Any], members: Sequence[Member], states: Sequence[Mapping[str, Tensor]]) -> None:
    """Step members of one group by the arithmetic of ``functional.py``."""
    beta1, beta2 = group["betas"]
    adam_mini(
        [member.p for member in members],
        [member.grad for member in members],
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [state["step"] for state in states],
        [member.layout for member in members],
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        decoupled_weight_decay=group["decoupled_weight_decay"],
        maximize=group["maximize"],
        foreach=group["foreach"],
        capturable=group["capturable"],
    )
