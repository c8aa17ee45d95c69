"""The arithmetic of one step: the readable truth, tensor by tensor, and the same batched with foreach operators."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils._foreach_utils import _get_foreach_kernels_supported_devices


class Blocks(Protocol):
    """What the arithmetic asks of a tensor's blocks; :class:`~lightning_adam_mini.BlockLayout` has it."""

    @property
    def is_per_parameter(self) -> bool:
        """Whether each element is a block of its own."""
        ...

    @property
    def is_factored(self) -> bool:
        """Whether two means are kept, which cross."""
        ...

    def mean_squares(self, grad: Tensor) -> Sequence[Tensor]:
        """Mean of ``grad²`` over each block of each margin."""
        ...

    def spread(self, blocks: Tensor) -> Tensor:
        """Give each element its block's value, by broadcasting; if one mean is kept."""
        ...

    def roots(self, blocks: Sequence[Tensor]) -> Sequence[Tensor]:
        """Factors whose product is the square root of each element's second moment, by broadcasting."""
        ...


def update_bound(beta1: float, beta2: float) -> float:
    """The largest update of Adam, in learning rates (Kingma & Ba, arXiv 1412.6980, section 2.1).

    Adam's own second moments keep to it. Factored ones may be too small without limit, where gradients are not as rows times columns, so
    their updates are cut off there.
    """
    return max(1.0, (1 - beta1) / (1 - beta2) ** 0.5)


def adam_mini(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    layouts: Sequence[Blocks],
    exp_avg_sq_cols: Sequence[Tensor | None] | None = None,
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
    """One step of Adam with a second moment per block, in place (Adam-mini, arXiv 2406.16793, Algorithm 1).

    The paper prints ``sqrt(v + eps)``; as in its released code and in torch's AdamW, eps is outside the root here.

    Args:
        params: Parameters, updated.
        grads: Their gradients, left as they are.
        exp_avgs: First moments, each of its parameter's shape, updated.
        exp_avg_sqs: Second moments, each of its layout's ``block_shape`` and float32 at least, updated.
        state_steps: Steps taken so far: one-element float32 tensors, updated; on the CPU, or on the parameters' devices.
        layouts: Blocks of each parameter.
        exp_avg_sq_cols: Second moments of the second margin of factored layouts, of its ``block_shape``, updated; None for the others.
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
        [None] * len(params) if exp_avg_sq_cols is None else exp_avg_sq_cols,
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
    exp_avg_sq_cols: Sequence[Tensor | None],
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
    for param, grad, exp_avg, exp_avg_sq, state_step, layout, exp_avg_sq_col in zip(
        params, grads, exp_avgs, exp_avg_sqs, state_steps, layouts, exp_avg_sq_cols, strict=True
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
        moments = (exp_avg_sq,) if exp_avg_sq_col is None else (exp_avg_sq, exp_avg_sq_col)
        # Operator for operator as in torch's AdamW, so that a layout of single elements is AdamW to the bit.
        if layout.is_per_parameter:
            exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        else:
            for moment, mean in zip(moments, layout.mean_squares(grad), strict=True):
                moment.mul_(beta2).add_(mean, alpha=1 - beta2)
        if exp_avg_sq_col is not None:
            rows, columns = layout.roots(moments)
            denom = ((rows / bias_correction2_sqrt) * columns).add_(eps).mul_(bias_correction1)
            bound = update_bound(beta1, beta2)
            param.sub_((momentum / denom).clamp_(-bound, bound).mul_(lr))
            continue
        denom = layout.spread((exp_avg_sq.sqrt() / bias_correction2_sqrt).add_(eps))
        if isinstance(step, Tensor) or (isinstance(lr, Tensor) and lr.device.type != "cpu"):
            # addcdiv takes numbers only, and reading the number off a GPU would wait for it.
            param.addcdiv_(momentum, denom.mul_(bias_correction1 / -lr))
        else:
            param.addcdiv_(momentum, denom, value=-(lr / cast(float, bias_correction1)))  # pyright: ignore[reportArgumentType]


def _multi_tensor_adam_mini(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    state_steps: Sequence[Tensor],
    layouts: Sequence[Blocks],
    exp_avg_sq_cols: Sequence[Tensor | None],
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
        blocks = (layouts[i].is_per_parameter, layouts[i].is_factored)
        return " ".join(map(str, (*tensors, *blocks, _is_number(state_steps[i], capturable))))

    # foreach operators are one launch for tensors of one device and dtype only.
    for _, indices in groupby(sorted(range(len(params)), key=kind), key=kind):
        at = list(indices)
        per_parameter, numbers = layouts[at[0]].is_per_parameter, _is_number(state_steps[at[0]], capturable)
        p, g, m, v, s = ([tensors[i] for i in at] for tensors in (params, grads, exp_avgs, exp_avg_sqs, state_steps))
        here = [layouts[i] for i in at]
        all_cols = [exp_avg_sq_cols[i] for i in at]
        cols = [col for col in all_cols if col is not None]
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
        torch._foreach_mul_([*v, *cols], beta2)
        if per_parameter:
            torch._foreach_addcmul_(v, g, g, 1 - beta2)
        else:
            means = [layout.mean_squares(grad) for layout, grad in zip(here, g, strict=True)]
            torch._foreach_add_([*v, *cols], [mean for margin in zip(*means, strict=True) for mean in margin], alpha=1 - beta2)
        if cols:
            roots = [layout.roots(moments) for layout, *moments in zip(here, v, cols, strict=True)]
            _add_bounded(p, m, roots, s, numbers, lr=lr, beta1=beta1, beta2=beta2, eps=eps)
            continue
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


def _add_bounded(
    params: list[Tensor],
    momenta: list[Tensor],
    roots: Sequence[Sequence[Tensor]],
    state_steps: Sequence[Tensor],
    numbers: bool,
    *,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """The update of parameters with factored second moments."""
    if numbers:
        steps = [step.item() for step in state_steps]
        corrections1: Any = [1 - beta1**step for step in steps]
        corrections2: Any = [(1 - beta2**step) ** 0.5 for step in steps]
    else:
        corrections1, corrections2 = ([1 - beta ** step.reshape(()) for step in state_steps] for beta in (beta1, beta2))
        torch._foreach_sqrt_(corrections2)
    denoms = list(torch._foreach_div([root for root, _ in roots], corrections2))
    denoms = [denom * root for denom, (_, root) in zip(denoms, roots, strict=True)]
    torch._foreach_add_(denoms, eps)
    torch._foreach_mul_(denoms, corrections1)
    updates = list(torch._foreach_div(momenta, denoms))
    bound = update_bound(beta1, beta2)
    torch._foreach_clamp_min_(updates, -bound)
    torch._foreach_clamp_max_(updates, bound)
    torch._foreach_mul_(updates, lr)
    torch._foreach_sub_(params, updates)
