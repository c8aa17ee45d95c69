"""Orthogonalised momentum: Muon's and NorMuon's update of matrices, the readable truth.

Sources: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024) for the iteration; Liu et al., "Muon is Scalable
for LLM Training" (arXiv 2502.16982) for the size, which is AdamW's, so that AdamW's learning rate and weight decay are right for both; Li
et al., "NorMuon" (arXiv 2510.05491), Algorithm 1, for the second moment of rows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the iteration ``x <- a x + b (x x^T) x + c (x x^T)^2 x``, which brings singular values in (0, 1] near 1 (to .7 to 1.2) fast."""
SIZE = 0.2
"""Root mean square of an update, in learning rates: about AdamW's."""
EPS = 1e-7
_EPS_OF_ROWS = 1e-10


def orthogonalize(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Replace the singular values of matrices by about 1, by Newton-Schulz iterations in the dtype of the matrices.

    Args:
        matrices: Of shape (number, rows, columns), of a floating dtype.
        iterations: How many.

    Returns:
        A tensor of the same shape and dtype. Zeros stay zeros.

    Example:
        >>> x = orthogonalize(torch.diag(torch.tensor([1.0, 0.5, 0.1]))[None])
        >>> bool((torch.linalg.svdvals(x) > 0.6).all() and (torch.linalg.svdvals(x) < 1.3).all())
        True
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(EPS)
    for _ in range(iterations):
        gram = x @ x.mT
        gram = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, gram, x, beta=a)
    return x.mT if tall else x


def resized(orthogonal: Tensor) -> Tensor:
    """Muon's updates: orthogonalised matrices of the size of AdamW's updates, in learning rates.

    Args:
        orthogonal: What :func:`orthogonalize` gave.
    """
    return orthogonal * (SIZE * math.sqrt(max(orthogonal.shape[1:])))


def normalized_by_row(orthogonal: Tensor, second_moment: Tensor, beta2: float) -> Tensor:
    """NorMuon's updates: each row over the root of its second moment, and then each matrix to the size of AdamW's updates.

    Args:
        orthogonal: What :func:`orthogonalize` gave, of shape (number, rows, columns).
        second_moment: Of the rows, of shape (number, rows, 1); updated in place. What matrices are resized makes up for its bias.
        beta2: Its decay.
    """
    wide = orthogonal.to(second_moment.dtype)
    mean_square = wide.square().mean(dim=2, keepdim=True)
    second_moment.lerp_(mean_square, 1 - beta2)
    return wide * row_factors(mean_square, second_moment, wide.shape[2])


def row_factors(mean_square: Tensor, second_moment: Tensor, columns: int) -> Tensor:
    """By what :func:`normalized_by_row` multiplies rows: it follows from the mean square of each, wherever the row is.

    Args:
        mean_square: Of the orthogonalised rows, of shape (number, rows, 1).
        second_moment: Of the rows, updated already.
        columns: Elements of a row.
    """
    factors = second_moment.sqrt().add_(_EPS_OF_ROWS).reciprocal_()
    norm = (mean_square * factors.square()).sum(dim=1, keepdim=True).mul_(columns).sqrt_().clamp_min_(_EPS_OF_ROWS)
    return factors * (SIZE * math.sqrt(factors.shape[1] * columns) / norm)
