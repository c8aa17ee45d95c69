"""The step of tensors whose state or weights are narrower than the arithmetic: slice by slice, so that nothing wide is ever whole.

It does what ``functional.py`` does, in float32 (float64 for float64 parameters), and then rounds: first moments to what they are kept in,
and bfloat16 weights at random if asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini.optim.backends.protocol import Backend, Task
from lightning_adam_mini.optim.codecs import Codec, Plain
from lightning_adam_mini.optim.functional import Blocks, update_bound
from lightning_adam_mini.optim.rounding import Place, round_at_random, seed_of
from lightning_adam_mini.optim.state import FIRST, elements_in

_SLICE = 2**17  # elements: enough for the calls not to count, few enough to stay in cache


class Slices(Backend):
    """One tensor after the other, slice by slice."""

    def why_not(self, p: Tensor, codec: Codec, layout: Blocks, place: Place | None) -> str | None:
        """Why slices are not needed; None if they are."""
        return "nothing of it is narrower than the arithmetic" if place is None and isinstance(codec, Plain) else None

    def step(self, work: Sequence[tuple[Mapping[str, Any], Sequence[Task]]]) -> None:
        """Step parameters, one after the other."""
        for group, tasks in work:
            for task in tasks:
                _step(task, group)


def _step(task: Task, group: Mapping[str, Any]) -> None:
    p, grad, state, layout, codec, place = task.p, task.grad, task.state, task.layout, task.codec, task.place
    beta1, beta2 = group["betas"]
    lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
    decay = group["weight_decay"] if group["decoupled_weight_decay"] else 0
    if group["maximize"]:
        grad = -grad
    if group["weight_decay"] != decay:
        grad = grad.add(p, alpha=group["weight_decay"])
    kept, exp_avg_sq = elements_in(state, FIRST), state["exp_avg_sq"]
    state["step"].add_(1)
    if p.numel() == 0:
        return
    step = int(state["step"].item())  # on the CPU: waits for nothing
    moments = [state[name] for name in ("exp_avg_sq", "exp_avg_sq_col") if name in state]
    if layout.is_per_parameter:
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    else:
        for moment, mean in zip(moments, layout.mean_squares(grad), strict=True):
            moment.mul_(beta2).add_(mean, alpha=1 - beta2)
    factors = layout.roots(moments) if layout.is_factored else (layout.spread(exp_avg_sq.sqrt()),)
    correction1, bound = 1 - beta1**step, update_bound(beta1, beta2)
    rows_of, *columns_of = (t if t.ndim else t.view(1) for t in (factors[0] / (1 - beta2**step) ** 0.5, *factors[1:]))
    seed = 0 if place is None else seed_of(step, place.number)

    p, grad = (t if t.ndim else t.view(1) for t in (p, grad))
    kept = {suffix: t if t.ndim else t.view(1) for suffix, t in kept.items()}
    wide, out, scratch = exp_avg_sq.dtype, None, None
    for piece, rows, at in codec.slices(_SLICE):
        weights, n = p[rows], p[rows].numel()
        if not isinstance(piece, Plain):
            if out is None or scratch is None or out.numel() < n:
                # The same memory for all slices: new memory would cost more than the arithmetic.
                out, scratch = torch.empty(2, n, dtype=wide, device=p.device)
            here = (out[:n], scratch[:n])
        else:
            here = (None, None)
        of_piece = {suffix: kept[suffix][part] for suffix, part in at.items()}
        now = piece.decode(of_piece, wide, *here)
        now.lerp_(grad[rows].to(wide), 1 - beta1)
        weights = weights.to(wide)
        if decay != 0:
            weights.mul_(1 - lr * decay)
        denom = _of(rows_of, rows)
        for crossing in columns_of:
            denom = denom * _of(crossing, rows)
        update = now / (denom + group["eps"])
        if columns_of:
            update.clamp_(-bound * correction1, bound * correction1)
        weights.sub_(update.mul_(lr / correction1))
        if place is not None:
            weights = round_at_random(weights, place.indices(rows, p.device), seed)
        if p.dtype != wide:
            p[rows] = weights
        piece.encode_(now, of_piece, here[1])


def _of(factor: Tensor, rows: slice) -> Tensor:
    """What broadcasts to some rows, of what broadcasts to all."""
    return factor if factor.shape[0] == 1 else factor[rows]
