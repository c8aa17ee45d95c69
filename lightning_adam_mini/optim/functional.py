"""The arithmetic of one step: the readable truth, tensor by tensor, and the same batched with foreach operators."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol, cast

import torch
from torch import Tensor
from torch.utils._foreach_utils import _get_foreach_kernels_supported_devices


class Blocks(Protocol):
    """What the arithmetic asks of a tensor's blocks; :class:`~lightning_adam_mini.BlockLayout` has it."""

    @property
    def is_per_parameter(self) -> bool:
        """Whether each element is a block of its own."""
        ...

    def mean_square(self, grad: Tensor) -> Tensor:
        """Mean of ``grad²`` over each block."""
        ...

    def spread(self, blocks: Tensor) -> Tensor:
        """Give each element its block's value, by broadcasting."""
        ...


def adam_mini(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    layouts: Sequence[Blocks],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool = True,
    maximize: bool = False,
    foreach: bool | None = None,
    capturable: bool = False,
) -> None:
    """One step of Adam with a second moment a block, in place (Adam-mini, arXiv 2406.16793, Algorithm 1).

    The paper prints ``sqrt(v + eps)``; as in its released code and in torch's AdamW, eps is outside the root here.

    Args:
        params: Parameters, updated.
        grads: Their gradients, left as they are.
        exp_avgs: First moments, each of its parameter's shape, updated.
        exp_avg_sqs: Second moments, each of its layout's ``block_shape`` and float32 at least, updated.
        state_steps: Steps taken so far: one-element float32 tensors, updated; on the CPU, or on the parameters' devices.
        layouts: Blocks of each parameter.
        lr: Learning rate: a number or a one-element tensor.
        beta1: Decay of the first moments.
        beta2: Decay of the second moments.
        eps: Added to the square roots.
        weight_decay: Weight decay.
        decoupled_weight_decay: Whether weight decay shrinks the parameter (AdamW) or is added to the gradient (Adam).
        maximize: Whether to go uphill.
        foreach: Whether to batch over tensors; None does where it is faster: when torch batches on the devices of all parameters.
        capturable: Whether to read no number off a step, so that a CUDA graph can hold this. None is read of a step on a GPU, or in what
            torch.compile traces, in any case.
    """
    if not params:
        return
    if foreach is None:
        devices = _get_foreach_kernels_supported_devices()
        foreach = all(type(p) in (Tensor, torch.nn.Parameter) and p.device.type in devices for p in params)
    step = _multi_tensor_adam_mini if foreach else _single_tensor_adam_mini
    step(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        state_steps,
        layouts,
        lr=lr.reshape(()) if isinstance(lr, Tensor) else lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled_weight_decay,
        maximize=maximize,
        capturable=capturable,
    )


def _is_number(step: Tensor, capturable: bool) -> bool:
    """Whether the step may be read as a number, which waits for nothing on the CPU."""
    return not torch.compiler.is_compiling() and not capturable and step.device.type == "cpu"


def _single_tensor_adam_mini(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    layouts: Sequence[Blocks],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    maximize: bool,
    capturable: bool,
) -> None:
    for param, grad, exp_avg, exp_avg_sq, state_step, layout in zip(
        params, grads, exp_avgs, exp_avg_sqs, state_steps, layouts, strict=True
    ):
        if maximize:
            grad = -grad
        if weight_decay != 0:
            if decoupled_weight_decay:
                param.mul_(1 - lr * weight_decay)
            else:
                grad = grad.add(param, alpha=weight_decay)
        state_step += 1
        step = state_step.item() if _is_number(state_step, capturable) else state_step.reshape(())
        bias_correction1 = 1 - beta1**step
        bias_correction2_sqrt = (1 - beta2**step) ** 0.5

        if exp_avg.dtype == grad.dtype:
            exp_avg.lerp_(grad, 1 - beta1)
            momentum = exp_avg
        else:
            momentum = exp_avg.to(exp_avg_sq.dtype).lerp_(grad.to(exp_avg_sq.dtype), 1 - beta1)
            exp_avg.copy_(momentum)
        # Operator for operator as in torch's AdamW, so that a layout of single elements is AdamW to the bit.
        if layout.is_per_parameter:
            exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        else:
            exp_avg_sq.mul_(beta2).add_(layout.mean_square(grad), alpha=1 - beta2)
        denom = (exp_avg_sq.sqrt() / bias_correction2_sqrt).add_(eps)
        if isinstance(step, Tensor) or (isinstance(lr, Tensor) and lr.device.type != "cpu"):
            # addcdiv takes numbers only, and reading the number off a GPU would wait for it.
            param.addcdiv_(momentum, layout.spread(denom.mul_(bias_correction1 / -lr)))
        else:
            param.addcdiv_(momentum, layout.spread(denom), value=-(lr / cast(float, bias_correction1)))  # pyright: ignore[reportArgumentType]


def _multi_tensor_adam_mini(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    layouts: Sequence[Blocks],
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled_weight_decay: bool,
    maximize: bool,
    capturable: bool,
) -> None:
    def kind(i: int) -> str:  # a string, because torch 2.6 compiles no other key
        tensors = (params[i].device, params[i].dtype, exp_avgs[i].dtype)
        return " ".join(map(str, (*tensors, layouts[i].is_per_parameter, _is_number(state_steps[i], capturable))))

    # foreach operators are one launch for tensors of one device and dtype only.
    for _, indices in groupby(sorted(range(len(params)), key=kind), key=kind):
        at = list(indices)
        per_parameter, numbers = layouts[at[0]].is_per_parameter, _is_number(state_steps[at[0]], capturable)
        p, g, m, v, s = ([tensors[i] for i in at] for tensors in (params, grads, exp_avgs, exp_avg_sqs, state_steps))
        here = [layouts[i] for i in at]
        if maximize:
            g = list(torch._foreach_neg(g))
        if weight_decay != 0:
            if decoupled_weight_decay:
                torch._foreach_mul_(p, 1 - lr * weight_decay)
            else:
                g = list(torch._foreach_add(g, p, alpha=weight_decay))
        torch._foreach_add_(s, 1)

        stored = m
        if m[0].dtype != g[0].dtype:
            m = [t.to(v[0].dtype) for t in m]
            torch._foreach_lerp_(m, [t.to(v[0].dtype) for t in g], 1 - beta1)
            torch._foreach_copy_(stored, m)
        else:
            torch._foreach_lerp_(m, g, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        if per_parameter:
            torch._foreach_addcmul_(v, g, g, 1 - beta2)
        else:
            torch._foreach_add_(v, [layout.mean_square(grad) for layout, grad in zip(here, g, strict=True)], alpha=1 - beta2)
        denoms = torch._foreach_sqrt(v)
        if numbers:
            steps = [step.item() for step in s]
            torch._foreach_div_(denoms, [(1 - beta2**step) ** 0.5 for step in steps])
            torch._foreach_add_(denoms, eps)
            if isinstance(lr, Tensor):
                torch._foreach_mul_(denoms, [1 - beta1**step for step in steps])
                torch._foreach_div_(denoms, -lr)
                sizes = [1.0] * len(at)
            else:
                sizes = [cast(float, -(lr / (1 - beta1**step))) for step in steps]
        else:  # operator for operator as in torch's AdamW with capturable=True
            corrections1 = torch._foreach_pow(beta1, [step.reshape(()) for step in s])
            corrections2 = torch._foreach_pow(beta2, [step.reshape(()) for step in s])
            torch._foreach_sub_(corrections1, 1)
            torch._foreach_sub_(corrections2, 1)
            torch._foreach_neg_(corrections2)
            torch._foreach_sqrt_(corrections2)
            torch._foreach_div_(corrections1, lr)
            torch._foreach_reciprocal_(corrections1)
            torch._foreach_div_(denoms, corrections2)
            torch._foreach_add_(denoms, eps)
            torch._foreach_div_(denoms, corrections1)
            sizes = [1.0] * len(at)
        torch._foreach_addcdiv_(p, m, [layout.spread(denom) for layout, denom in zip(here, denoms, strict=True)], sizes)
