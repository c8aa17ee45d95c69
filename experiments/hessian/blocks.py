"""Exact Hessians of a network's matrices, or of their first rows."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from experiments.hessian.models import Loss
from lightning_adam_mini import AdamMiniWarning, BlockLayout
from lightning_adam_mini.analysis.hessian import Mass, differentiate_twice


def hessians(model: nn.Module, loss: Loss, rows: Mapping[str, int | None]) -> Iterator[tuple[str, Tensor, tuple[int, ...]]]:
    """Yield the exact Hessian of each matrix, or of its first rows, with the shape of these.

    Args:
        model: The network.
        loss: Its loss.
        rows: How many rows to take of each parameter; None for all.
    """
    with warnings.catch_warnings(), differentiate_twice(model, loss, list(rows)) as curvature:
        warnings.simplefilter("ignore", AdamMiniWarning)
        for name, count in rows.items():
            shape = tuple(curvature.parameters[name].shape)
            shape = (min(count or shape[0], shape[0]), *shape[1:])
            size = torch.Size(shape).numel()
            columns = curvature.columns(name, torch.arange(size), chunk=256)
            yield name, columns.flatten(1)[:, :size].double(), shape


def structure(hessian: Tensor, shape: tuple[int, ...], heads: int | None) -> dict[str, dict[str, float]]:
    """Return what of a Hessian is within heads, rows, columns and on the diagonal: share, null and concentration of each.

    Args:
        hessian: Symmetric matrix (n, n).
        shape: Shape of the weight.
        heads: Number of heads; None if it has none.
    """
    mass = Mass.of_hessian(hessian, shape)
    layouts = {"heads": BlockLayout.grouped(shape, f"q:{heads}x{shape[0] // heads}")} if heads else {}
    layouts |= {"rows": BlockLayout.each_line(shape, 0), "columns": BlockLayout.each_line(shape, 1)}
    layouts |= {"diagonal": BlockLayout.per_parameter(shape)}
    shares = {label: mass.share(layout) for label, layout in layouts.items()}
    found = {label: {"share": s.share, "null": s.null, "concentration": s.concentration} for label, s in shares.items()}
    diagonal = hessian.diagonal().view(shape[0], -1)
    shuffled = diagonal.flatten()[torch.randperm(diagonal.numel(), generator=torch.Generator().manual_seed(0))].view_as(diagonal)
    found["diagonal, rank one"] = {"share": rank_one(diagonal), "null": rank_one(shuffled)}
    return found


def rank_one(matrix: Tensor) -> float:
    """Return the part of a matrix's squares that the best matrix of rank one holds.

    Args:
        matrix: Any matrix.
    """
    values = torch.linalg.svdvals(matrix.double()).square()
    return float(values[0] / values.sum())
