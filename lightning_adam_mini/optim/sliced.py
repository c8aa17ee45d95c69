"""The step of tensors whose state or weights are narrower than the arithmetic: slice by slice, so that nothing wide is ever whole.

It does what ``functional.py`` does, in float32 (float64 for float64 parameters), and then rounds: first moments to 8 bits, and bfloat16
weights at random if asked for.

A bfloat16 weight has 8 significant bits, so an update below 1/512 of it is lost in rounding to the nearest, step after step. Rounded up or
down at random, with the chances that make the mean right, it arrives on average. Kahan summation would keep what is lost instead, but that
is 2 bytes a parameter: as much as the momentum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.quantized import RUN, SCALE, dequantize, quantize

_SLICE = 2**17  # elements: enough for the calls not to count, few enough to stay in cache


def step_in_slices(
    p: Tensor, grad: Tensor, state: Mapping[str, Tensor], layout: BlockLayout, group: Mapping[str, Any], place: int | None = None
) -> None:
    """Step one parameter, in place.

    Args:
        p: The parameter, not empty.
        grad: Its gradient, left as it is.
        state: Its state.
        layout: Its blocks.
        group: The options of its group.
        place: Its number among the optimizer's parameters, where a bfloat16 parameter is to be rounded at random: the random bits follow
            from it, the step's number and the element's place, and from nothing else.
    """
    beta1, beta2 = group["betas"]
    lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
    decay = group["weight_decay"] if group["decoupled_weight_decay"] else 0
    if group["maximize"]:
        grad = -grad
    if group["weight_decay"] != decay:
        grad = grad.add(p, alpha=group["weight_decay"])
    exp_avg, scales, exp_avg_sq = state["exp_avg"], state.get(SCALE), state["exp_avg_sq"]
    state["step"].add_(1)
    step = int(state["step"].item())  # on the CPU: waits for nothing
    if layout.is_per_parameter:
        exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    else:
        exp_avg_sq.mul_(beta2).add_(layout.mean_square(grad), alpha=1 - beta2)
    denom = (exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
    # addcdiv takes numbers only, and reading the number off a GPU would wait for it.
    by_tensor = isinstance(lr, Tensor)
    denom = layout.spread(denom.mul_((1 - beta1**step) / -lr) if by_tensor else denom)
    size = 1.0 if by_tensor else -lr / (1 - beta1**step)
    generator = None
    if place is not None:
        generator = torch.Generator(device=p.device).manual_seed(_mix(step, place))

    p, grad, exp_avg, denom = (t if t.ndim else t.view(1) for t in (p, grad, exp_avg, denom))
    wide = exp_avg_sq.dtype
    slices = list(_slices(p))
    # The same memory for all slices: new memory would cost more than the arithmetic.
    out, scratch = torch.empty(2, p[slices[0][0]].numel(), dtype=wide, device=p.device) if scales is not None else (None, None)
    for rows, runs in slices:
        if scales is None or out is None or scratch is None:
            now = exp_avg[rows].to(wide, copy=True)
        else:
            n = exp_avg[rows].numel()
            now = dequantize(exp_avg[rows], scales[runs], wide, out[:n], scratch[:n])
        now.lerp_(grad[rows].to(wide), 1 - beta1)
        weights = p[rows].to(wide)
        if decay != 0:
            weights.mul_(1 - lr * decay)
        weights.addcdiv_(now, denom if denom.shape[0] == 1 else denom[rows], value=size)
        if generator is not None:
            weights = _round_at_random(weights, generator)
        if p.dtype != wide:
            p[rows] = weights
        if scales is None or scratch is None:
            exp_avg[rows] = now
        else:
            quantize(now, exp_avg[rows], scales[runs], scratch[: now.numel()])


def _slices(p: Tensor) -> Iterator[tuple[slice, slice]]:
    """Ranges of the first dimension that hold whole runs of 256, with the ranges of their scales."""
    line = p.numel() // p.shape[0]
    unit = RUN // math.gcd(RUN, line)
    by = max(_SLICE // line // unit, 1) * unit
    for begin in range(0, p.shape[0], by):
        end = min(begin + by, p.shape[0])
        yield slice(begin, end), slice(begin * line // RUN, -(-end * line // RUN))


def _round_at_random(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to numbers that bfloat16 has, away from zero with the chance that makes the mean right."""
    # Four 16-bit numbers a draw, which takes a third of the time of one a draw.
    words = torch.empty(-(-values.numel() // 4), dtype=torch.int64, device=values.device).random_(-(2**63), None, generator=generator)
    bits = words.view(torch.int16)[: values.numel()].view(values.shape).to(torch.int32).bitwise_and_(0xFFFF)
    # The upper half of a float32 is a bfloat16: what a random number below 1 of its units carries over is the rounding.
    rounded = bits.add_(values.view(torch.int32)).bitwise_and_(-0x10000).view(torch.float32)
    return torch.where(values.isnan(), values, rounded)  # whose bits may be all ones, and overflow


def _mix(step: int, place: int) -> int:
    """A seed that differs for all steps and places in all its bits (the finaliser of SplitMix64)."""
    mask = 2**64 - 1
    x = (step * 0x9E3779B97F4A7C15 + place * 0xD1B54A32D192ED03) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)
