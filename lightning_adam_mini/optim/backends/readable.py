"""The step by the arithmetic of ``functional.py``: tensor by tensor, or batched by torch's foreach operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_adam_mini.optim.backends.protocol import Backend, Task
from lightning_adam_mini.optim.codecs import Codec, Plain
from lightning_adam_mini.optim.functional import Blocks, adam_mini
from lightning_adam_mini.optim.rounding import Place


class Readable(Backend):
    """Operators of torch, one group after the other."""

    def counts_there(self, group: Mapping[str, Any]) -> bool:
        """Only where a CUDA graph is to hold the step."""
        return group["capturable"]

    def why_not(self, p: Tensor, codec: Codec, layout: Blocks, place: Place | None) -> str | None:
        """Why it cannot step a parameter, or None if it can."""
        return None if place is None and isinstance(codec, Plain) else "its momentum is in codes, or its weights are rounded at random"

    def step(self, work: Sequence[tuple[Mapping[str, Any], Sequence[Task]]]) -> None:
        """Step the parameters of each group."""
        for group, tasks in work:
            beta1, beta2 = group["betas"]
            adam_mini(
                [task.p for task in tasks],
                [task.grad for task in tasks],
                [task.state["exp_avg"] for task in tasks],
                [task.state["exp_avg_sq"] for task in tasks],
                [task.state["step"] for task in tasks],
                [task.layout for task in tasks],
                [task.state.get("exp_avg_sq_col") for task in tasks],
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
