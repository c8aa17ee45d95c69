"""The exact Hessian of some parameters, or of some of their elements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_adam_mini.analysis.hessian.curvature import Loss, differentiate_twice, warn_notes

LARGEST = 2**31
"""Bytes of the largest matrix that is made unasked."""


def exact_hessian(
    module: nn.Module,
    loss: Loss,
    names: Sequence[str] | None = None,
    *,
    entries: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    chunk: int = 16,
    seed: int = 0,
) -> Tensor:
    """The principal block of the Hessian that belongs to some parameters, by double backward.

    Args:
        module: The module, in the mode (train, eval) that it is to be looked at. It is left as it is.
        loss: Function of the module that gives the loss, one number.
        names: The parameters, as in ``module.named_parameters()``. [default: all that can be differentiated by]
        entries: For a parameter the elements that are wanted, as flat indices. [default: all of them]
        dtype: What to compute in. ``torch.float64`` copies the module and casts it and its inputs. [default: as the module is]
        chunk: Rows that are computed at a time. Memory of the gradient's graph grows with it.
        seed: Of the random numbers that the loss draws; a mask of dropout is drawn once and holds for the whole matrix.

    Returns:
        Tensor of shape (n, n), n elements in the order of ``names`` (each parameter flattened, or its ``entries`` in their order), on the
        parameters' device. Symmetric up to rounding. Cost: n backward passes through the gradient's graph, and n² numbers.

    Raises:
        ValueError: If a parameter is unknown, frozen or quantised, the module is sharded, the loss is no finite number with a gradient, an
            operation has no second derivative, or the matrix would take more than 2 GiB.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> exact_hessian(layer, lambda m: m(torch.tensor([[1.0, 3.0]])).square().sum()).tolist()
        [[2.0, 6.0], [6.0, 18.0]]
    """
    entries = entries or {}
    with differentiate_twice(module, loss, names, dtype=dtype, seed=seed) as curvature:
        if names is None:
            names = list(curvature.parameters)
        for name in names:
            if name in curvature.left_out:
                raise ValueError(f"Parameter {name!r} has no Hessian, because it is {curvature.left_out[name]}. Leave it out of names.")
        first = curvature.parameters[names[0]]
        index = _index([(name, curvature.parameters[name].numel()) for name in names], entries).to(first.device)
        needed = len(index) ** 2 * first.element_size()
        if needed > LARGEST:
            raise ValueError(
                f"The Hessian of {len(index):,} elements takes {needed / 2**30:.1f} GiB. Ask for fewer parameters or entries, or estimate:"
                " hutchinson_traces, extreme_eigenvalues."
            )
        warn_notes(curvature.notes)
        rows = []
        for some in index.split(chunk):
            basis = first.new_zeros(len(some), curvature.size(names))
            basis[torch.arange(len(some)), some] = 1
            rows.append(curvature.products(basis, names)[:, index])
        return torch.cat(rows)


def _index(sizes: Sequence[tuple[str, int]], entries: Mapping[str, Tensor]) -> Tensor:
    """The elements that are wanted, counted through all parameters."""
    unknown = [name for name in entries if name not in dict(sizes)]
    if unknown:
        raise ValueError(f"entries has {unknown[0]!r}, which is none of the parameters asked for: {', '.join(dict(sizes))}.")
    found, start = [], 0
    for name, size in sizes:
        chosen = torch.as_tensor(entries.get(name, torch.arange(size)), dtype=torch.int64).cpu()
        if chosen.ndim != 1 or chosen.numel() == 0 or chosen.min() < 0 or chosen.max() >= size:
            raise ValueError(f"The entries of {name!r} have to be some flat indices from 0 to {size - 1}, of shape (k,).")
        found.append(start + chosen)
        start += size
    return torch.cat(found)
