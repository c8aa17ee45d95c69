"""The options of a group of AdamMini, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from torch import Tensor, nn

_NUMBERS: Any = (Real, Tensor)  # NumPy's too


def check_options(options: Mapping[str, Any]) -> None:
    """Refuse options that are out of range.

    Args:
        options: All options of a group.

    Raises:
        ValueError: If one is; in torch's words.
    """
    lr, betas = options["lr"], options["betas"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"Tensor lr must be 1-element, but has shape {tuple(lr.shape)}")
    if not isinstance(lr, _NUMBERS) or not lr >= 0.0:
        raise ValueError(f"Invalid learning rate: {lr}")
    if not isinstance(options["eps"], _NUMBERS) or not options["eps"] >= 0.0:
        raise ValueError(f"Invalid epsilon value: {options['eps']}")
    if not isinstance(options["weight_decay"], _NUMBERS) or not options["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {options['weight_decay']}")
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas!r}, because they are two numbers, such as (0.9, 0.999)")
    if options["fused"] and options["foreach"]:
        raise ValueError("`fused` and `foreach` cannot be `True` together.")
    for i, beta in enumerate(betas):
        if isinstance(beta, Tensor) and beta.numel() != 1:
            raise ValueError(f"Tensor betas[{i}] must be 1-element, but has shape {tuple(beta.shape)}")
        if not isinstance(beta, _NUMBERS) or not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {i}: {beta}")


def check_parameters(params: Any) -> None:
    """Refuse what are no parameters.

    Raises:
        TypeError: If ``params`` is a module, a string or nothing to go through.
    """
    if isinstance(params, nn.Module):
        raise TypeError(f"AdamMini was given a {type(params).__name__} for params. Pass model.named_parameters().")
    if isinstance(params, str) or not isinstance(params, (Iterable, Tensor)):
        raise TypeError(f"AdamMini was given {params!r} for params. Pass model.named_parameters(), or groups of them.")
