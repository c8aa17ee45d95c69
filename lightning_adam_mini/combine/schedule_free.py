"""Schedule-free averaging over block second moments (Defazio et al., "The Road Less Scheduled", arXiv 2405.15682, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_adam_mini.combine.part import Part, Place, check_number
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.codecs import Field
from lightning_adam_mini.optim.state import FIRST

if TYPE_CHECKING:
    from lightning_adam_mini.combine.combined import Combined

_TRAIN, _COUNT, _SUM, _LARGEST, _SHARE = "train_mode", "averaged_steps", "weight_sum", "lr_max", "share"


@dataclass(frozen=True)
class ScheduleFree(Part):
    r"""Averages weights in place of a decaying learning rate and of a momentum: three sequences of weights, one of which is stepped.

        y = (1 - beta1) z + beta1 x       where the gradient g is taken: what the parameters hold while they train
        z = z - lr (g / (sqrt(v) + eps) + weight_decay y)       v per block, as AdamMini keeps it
        x = (1 - c) x + c z               what the parameters hold while they are evaluated: ``optimizer.eval()``

    ``c`` is the share of this step in the sum of all steps' weights ``t^r max(lr)^power``. Of a parameter z is kept, and no first moment
    (``betas[0]`` interpolates): as many numbers as AdamMini keeps. The learning rate should be constant after its warm-up, and may be
    larger than AdamW's. Needs float32 weights: in bfloat16 late averages are lost to rounding.

    Args:
        r: How much later steps weigh: ``t^r``.
        power: How much steps with a larger learning rate weigh; 2 as in the authors' code.

    Example:
        >>> ScheduleFree()
        ScheduleFree(r=0.0, power=2.0)
    """

    name: ClassVar[str] = "schedule_free"
    momentum: ClassVar[bool] = False
    r: float = 0.0
    power: float = 2.0

    def __post_init__(self) -> None:
        check_number(self, "r", -1.0, float("inf"))
        check_number(self, "power", -1.0, float("inf"))

    @override
    def adds(self, layout: BlockLayout, dtype: torch.dtype) -> dict[str, Field]:
        return {"z": Field(layout.shape, dtype)}

    @override
    def options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        # What is added to gradients is added where they are taken, at y.
        plain = {} if group["decoupled_weight_decay"] else {"weight_decay": 0.0}
        return {"betas": (0.0, group["betas"][1]), "maximize": False, **plain}

    @override
    def begin(self, p: Tensor, state: dict[str, Any]) -> None:
        state["z"] = p.detach().clone(memory_format=torch.preserve_format)

    @override
    def begin_group(self, group: dict[str, Any]) -> None:
        if not 0 < group["betas"][0] < 1:
            raise ValueError(
                f"ScheduleFree interpolates by betas[0], which is {group['betas'][0]}. Give a number between 0 and 1, such as .9."
            )
        if not group.setdefault(_TRAIN, True):
            raise RuntimeError(
                "The parameters hold ScheduleFree's averages, at which no gradient is to be taken. Call optimizer.train() before the"
                " forward pass, and optimizer.eval() before an evaluation; AdamMiniCallback does."
            )
        count, lr = group.get(_COUNT, 0) + 1, float(group["lr"])
        largest = max(lr, group.get(_LARGEST, 0.0))
        weight = count**self.r * largest**self.power
        total = group.get(_SUM, 0.0) + weight
        group.update({_COUNT: count, _LARGEST: largest, _SUM: total, _SHARE: weight / total if total else 0.0})

    @override
    def stand_in(self, p: Tensor, layout: BlockLayout, state: Mapping[str, Any]) -> Tensor:
        return state["z"]

    @override
    def step(self, places: Sequence[Place], take: Callable[[], None]) -> None:
        for place in places:
            p, group = place.p, place.group
            grad = p.grad
            assert grad is not None
            if group["maximize"]:
                grad = grad.neg()
            if group["weight_decay"] and not group["decoupled_weight_decay"]:
                grad = grad.add(p, alpha=group["weight_decay"])
            place.stand_in.grad = grad
            place.state[FIRST.name] = grad  # with betas[0] = 0 the first moment is the gradient, so that none need be kept
        held = [(place.p, place.group, place.state["z"]) for place in places]
        _move(held, to_average=True)
        for x, group, z in held:
            if group["weight_decay"] and group["decoupled_weight_decay"]:
                # AdamMini shrinks z by its own length. This makes that the length of y, and is nothing where the three are one.
                decay = float(group["lr"]) * group["weight_decay"]
                z.add_(z - x, alpha=float(group["betas"][0]) * decay / (1 - decay))
        try:
            take()
        finally:
            for place in places:
                del place.state[FIRST.name]
                place.stand_in.grad = None
        _lerp(held, lambda group: group[_SHARE])
        _move(held, to_average=False)

    @override
    @torch.no_grad()
    def train(self, combined: Combined) -> None:
        self._switch(combined, True)

    @override
    @torch.no_grad()
    def eval(self, combined: Combined) -> None:
        self._switch(combined, False)

    def _switch(self, combined: Combined, train: bool) -> None:
        for group in combined.param_groups:
            if group.get(_TRAIN, True) != train:
                states = [(p, combined.state.get(p) or {}) for p in group["params"]]
                _move([(p, group, state["z"]) for p, state in states if state], to_average=not train)
            group[_TRAIN] = train


def _move(held: Sequence[tuple[Tensor, dict[str, Any], Tensor]], to_average: bool) -> None:
    """Have parameters hold x where they hold y, or y where they hold x."""
    _lerp(held, lambda group: 1 - 1 / float(group["betas"][0]) if to_average else 1 - float(group["betas"][0]))


def _lerp(held: Sequence[tuple[Tensor, dict[str, Any], Tensor]], share: Callable[[dict[str, Any]], float]) -> None:
    """Move parameters by a share of the way to z, all of a group at once."""
    for _, some in groupby(held, key=lambda one: id(one[1])):
        params, groups, zs = zip(*some, strict=True)
        torch._foreach_lerp_(params, zs, share(groups[0]))
