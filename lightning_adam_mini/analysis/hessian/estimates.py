"""Estimates of the Hessian where it is too large to be written down: traces of blocks, and eigenvalues."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_adam_mini.analysis.hessian.curvature import Loss, differentiate_twice
from lightning_adam_mini.layout import BlockLayout


class Estimate(NamedTuple):
    """A value and its standard error, tensors of one shape."""

    value: Tensor
    error: Tensor


class Spectrum(NamedTuple):
    """Ritz values of a symmetric matrix, in ascending order, as Lanczos finds them.

    Attributes:
        values: float64 tensor of shape (steps,).
        weights: Share of the spectrum that each speaks for: the density seen by the random first vector. They sum to 1.
        errors: For each value, how far from an eigenvalue it can be at most (norm of its residual).
    """

    values: Tensor
    weights: Tensor
    errors: Tensor


def hutchinson_traces(
    module: nn.Module,
    loss: Loss,
    layouts: Mapping[str, BlockLayout],
    *,
    probes: int = 32,
    dtype: torch.dtype | None = None,
    chunk: int = 8,
    seed: int = 0,
) -> dict[str, Estimate]:
    r"""Mean curvature (trace over size) of each diagonal block of the Hessian, by Hutchinson's estimate.

    For random signs z, :math:`E[z \odot Hz]` is the diagonal of H; its mean over a block is estimated without bias, with the standard error
    that the probes show.

    Args:
        module: The module.
        loss: Function of the module that gives the loss.
        layouts: The blocks, by parameter; of one mean each, not factored.
        probes: Number of random vectors, at least 2. Cost: one product with the Hessian each; the error falls with its root.
        dtype: What to compute in; see :func:`exact_hessian`.
        chunk: Probes at a time.
        seed: Of the probes and of the loss's random numbers.

    Returns:
        For each parameter the mean second derivative of its blocks and the standard error, float64 tensors of ``block_shape``.

    Raises:
        ValueError: If there are fewer than 2 probes, a layout is factored or of another shape, or as :func:`exact_hessian`.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> found = hutchinson_traces(
        ...     layer, lambda m: m.weight.square().sum(), {"weight": BlockLayout((1, 2), dims=(1,))}, probes=4
        ... )
        >>> found["weight"].value.tolist(), found["weight"].error.tolist()
        ([[2.0]], [[0.0]])
    """
    if probes < 2:
        raise ValueError(f"{probes} probes have no standard error. Give 2 or more.")
    names = list(layouts)
    with differentiate_twice(module, loss, names, dtype=dtype, seed=seed) as curvature:
        for name, layout in layouts.items():
            if name in curvature.left_out:
                raise ValueError(f"Parameter {name!r} has no Hessian, because it is {curvature.left_out[name]}. Leave its layout out.")
            shape = tuple(curvature.parameters[name].shape)
            if layout.is_factored or layout.shape != shape:
                raise ValueError(
                    f"The layout {layout!r} of {name!r} has to be of one mean, for shape {shape}. Give rows and columns apart."
                )
        sizes = [curvature.parameters[name].numel() for name in names]
        generator = torch.Generator().manual_seed(seed)
        means: dict[str, list[Tensor]] = {name: [] for name in names}
        first = curvature.parameters[names[0]]
        for start in range(0, probes, chunk):
            signs = torch.randint(0, 2, (min(chunk, probes - start), sum(sizes)), generator=generator)
            signs = signs.mul_(2).sub_(1).to(first)
            for found in (signs * curvature.products(signs, names)).double():
                for name, part in zip(names, found.split(sizes), strict=True):
                    means[name].append(layouts[name].average(part.view(layouts[name].shape)))
    stacked = {name: torch.stack(found) for name, found in means.items()}
    return {name: Estimate(found.mean(0), found.std(0) / math.sqrt(probes)) for name, found in stacked.items()}


@torch.no_grad()
def lanczos(products: Callable[[Tensor], Tensor], size: int, steps: int, *, device: torch.device | str = "cpu", seed: int = 0) -> Spectrum:
    """Ritz values of a symmetric matrix that is known by its products, with full reorthogonalisation.

    Args:
        products: From a float64 vector of shape (size,) to the matrix times it, of any floating dtype.
        size: Rows of the matrix.
        steps: Products to take, at most. Memory: ``steps`` vectors of float64. The outermost eigenvalues come first; with ``size`` steps
            all distinct ones are found.
        device: Where the vectors are.
        seed: Of the random first vector.

    Raises:
        ValueError: If size or steps are not positive.

    Example:
        >>> found = lanczos(lambda x: torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64) * x, size=3, steps=3)
        >>> [round(value, 6) for value in found.values.tolist()]
        [1.0, 2.0, 5.0]
    """
    if size < 1 or steps < 1:
        raise ValueError(f"Lanczos needs a size and steps of at least 1, not {size=} and {steps=}.")
    v = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device)
    basis = [v / v.norm()]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for _ in range(min(steps, size)):
        w = products(basis[-1]).double()
        diagonal.append(basis[-1] @ w)
        held = torch.stack(basis)
        for _ in range(2):  # twice is enough
            w = w - held.T @ (held @ w)
        beside.append(w.norm())
        if beside[-1] <= 1e-10 * max(float(torch.stack(diagonal).abs().max()), 1e-300):  # the vectors reached span all that is reachable
            break
        basis.append(w / beside[-1])
    within = torch.stack(beside[:-1]) if len(diagonal) > 1 else v.new_zeros(0)
    values, vectors = torch.linalg.eigh(torch.diag(torch.stack(diagonal)) + torch.diag(within, 1) + torch.diag(within, -1))
    return Spectrum(values, vectors[0].square(), beside[-1] * vectors[-1].abs())


def extreme_eigenvalues(
    module: nn.Module,
    loss: Loss,
    names: Sequence[str] | None = None,
    *,
    steps: int = 32,
    dtype: torch.dtype | None = None,
    seed: int = 0,
) -> Spectrum:
    """Eigenvalues of the Hessian of some parameters, the outermost ones best, by Lanczos.

    Args:
        module: The module.
        loss: Function of the module that gives the loss.
        names: The parameters. [default: all that can be differentiated by]
        steps: Products with the Hessian to take. Memory: as many float64 vectors of all elements.
        dtype: What to compute in; see :func:`exact_hessian`. In float32 products are good to about 1e-6 of the largest eigenvalue, and so
            are the errors told.
        seed: Of the first vector and of the loss's random numbers.

    Returns:
        Ritz values in ascending order: the first and the last are the smallest and the largest; each is within its error of an eigenvalue.

    Raises:
        ValueError: As :func:`exact_hessian`.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> found = extreme_eigenvalues(layer, lambda m: m(torch.tensor([[1.0, 3.0]])).square().sum())
        >>> round(found.values[-1].item(), 3)
        20.0
    """
    with differentiate_twice(module, loss, names, dtype=dtype, seed=seed) as curvature:
        chosen = list(curvature.parameters) if names is None else list(names)
        first = curvature.parameters[chosen[0]]

        def product(x: Tensor) -> Tensor:
            return curvature.products(x.to(first.dtype)[None], chosen)[0]

        return lanczos(product, curvature.size(chosen), steps, device=first.device, seed=seed)
