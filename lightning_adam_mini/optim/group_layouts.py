"""The layouts of a group's parameters, and what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from lightning_adam_mini._warnings import AdamMiniWarning
from lightning_adam_mini.layout import BlockLayout

# Groups hold layouts as plain tuples, which copies, pickles and checkpoints of them survive; checking one again at each step would cost.
from_plain = lru_cache(maxsize=65536)(BlockLayout.from_plain)


def find_layouts(
    names: Mapping[Tensor, str],
    explicit: Iterable | None,
    known: Mapping[str, BlockLayout],
    shape_of: Callable[[Tensor, str, BlockLayout | None], tuple[int, ...]],
) -> list[BlockLayout]:
    """The layouts of some parameters.

    Args:
        names: Name of each parameter.
        explicit: A layout for each, plain or not; None to look them up.
        known: Layouts by name. What is not among them keeps a second moment an element, with a warning.
        shape_of: Shape of a whole parameter, from the parameter, its name and its layout.

    Raises:
        ValueError: If there is not one for each, or one does not fit its parameter.
    """
    if explicit is not None:
        layouts = [layout if isinstance(layout, BlockLayout) else from_plain(layout) for layout in explicit]
        if len(layouts) != len(names):
            raise ValueError(f"A group of {len(names)} parameters has {len(layouts)} layouts: give one for each parameter.")
    else:
        layouts = [known.get(name) or BlockLayout.per_parameter(shape_of(p, name, None)) for p, name in names.items()]
        missing = [name for name in names.values() if name not in known]
        if missing and known:
            warnings.warn(
                f"No layout for {some(missing)}: each of their elements keeps its own second moment, as in Adam."
                " Add them to layouts= to share second moments.",
                AdamMiniWarning,
                stacklevel=4,
            )
    for layout, (p, name) in zip(layouts, names.items(), strict=True):
        shape = shape_of(p, name, layout)
        if layout.shape != shape:
            raise ValueError(
                f"The layout of parameter {name!r} is for a tensor of shape {layout.shape}, but the parameter has shape"
                f" {shape}. Make the layouts from the model that is trained."
            )
    return layouts


def check_some_is_ours(layouts: Mapping[str, BlockLayout], names: Collection[str]) -> None:
    """Refuse layouts of which none is for a parameter of the optimizer.

    Args:
        layouts: The layouts, by name.
        names: Names of the parameters.

    Raises:
        ValueError: If none is.
    """
    if layouts and not layouts.keys() & set(names):
        given = ", ".join(list(names)[:3])
        raise ValueError(
            f"None of the {len(layouts)} layouts (such as {next(iter(layouts))!r}) is for a parameter of this optimizer"
            + (f" (such as {given})" if given else ", because its parameters have no names")
            + ". Pass model.named_parameters() of the model that the layouts were made for, as params or as named_parameters=."
        )


def check_gradient(p: Tensor, names: Callable[[], Mapping[Tensor, str]]) -> None:
    """Refuse a gradient that has no squares to average.

    Args:
        p: A parameter that has a gradient.
        names: Gives the name of each parameter.

    Raises:
        RuntimeError: If it is sparse or complex.
    """
    grad = p.grad
    assert grad is not None
    kind = "sparse" if grad.layout != torch.strided else "complex" if grad.is_complex() else None
    if kind:
        remedy = "make its layer with sparse=False" if kind == "sparse" else "keep it as a real tensor (torch.view_as_real)"
        raise RuntimeError(
            f"AdamMini cannot step parameter {names()[p]!r} of shape {tuple(p.shape)} because its gradient is {kind}:"
            f" {remedy}, or give it to another optimizer."
        )


def some(names: Sequence[str]) -> str:
    """A number of parameters, and the first few names.

    Example:
        >>> some(["a", "b", "c", "d"])
        "4 parameters ('a', 'b', 'c' and 1 more)"
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} parameter{'s' if len(names) > 1 else ''} ({', '.join(map(repr, names[:3]))}{more})"
