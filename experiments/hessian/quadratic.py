"""Descent on a quadratic: one rate, a rate for each block, and Adam with its second moment held."""

from __future__ import annotations

import torch
from torch import Tensor


def best_rate(hessian: Tensor) -> float:
    """Return the rate 2 / (L + mu) that converges fastest on a quadratic with positive eigenvalues from mu to L.

    Args:
        hessian: Symmetric matrix (n, n) of float64.
    """
    values = torch.linalg.eigvalsh(hessian)
    return float(2 / (values[-1] + values[0]))


def adam_scale(hessian: Tensor, start: Tensor) -> Tensor:
    """Return what Adam with beta1 = 0 and beta2 = 1 multiplies a gradient by, at the one rate that converges fastest.

    Its second moment stays the square of the first gradient, so that it is descent along gradients divided by the first one's size.

    Args:
        hessian: Symmetric matrix (n, n) of float64.
        start: Where it starts, (n,).

    Returns:
        Positive factors (n,).
    """
    scale = 1 / (hessian @ start).abs()
    root = scale.sqrt()
    return scale * best_rate(root[:, None] * hessian * root)


def condition(hessian: Tensor) -> float:
    """Return the largest eigenvalue over the smallest.

    Args:
        hessian: Symmetric positive matrix (n, n).
    """
    values = torch.linalg.eigvalsh(hessian)
    return float(values[-1] / values[0])


def descend(hessian: Tensor, start: Tensor, factors: Tensor, steps: int) -> list[float]:
    """Return w'Hw / 2 before each step and after the last, over what it is at first.

    Args:
        hessian: Symmetric matrix (n, n).
        start: Where it starts, (n,).
        factors: What gradients are multiplied by: (n,), or one number.
        steps: Number of steps.
    """
    w, losses = start.clone(), []
    for _ in range(steps + 1):
        gradient = hessian @ w
        losses.append(float(w @ gradient) / 2)
        w = w - factors * gradient
    return [loss / losses[0] for loss in losses]
