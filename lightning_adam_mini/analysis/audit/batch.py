"""The loss of a module on a batch, and smaller batches of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only


def batch_loss(module: nn.Module, batch: Any) -> Tensor:
    """The loss that a module gives of a batch: by ``training_step``, or, as Hugging Face's models do, with its outputs.

    What a LightningModule logs meanwhile is dropped.

    Args:
        module: A module with a ``training_step``, or one that returns something with a ``loss``, called with the batch: a mapping as
            keywords, a tuple or list one by one, anything else as the only argument.
        batch: The batch.

    Raises:
        ValueError: If the module gives no loss, or needs a Trainer; says what to write.
    """
    step = getattr(module, "training_step", None)
    if step is not None:
        args = (batch, 0) if len(signature(step).parameters) > 1 else (batch,)
        try:
            with nothing_logged(module):
                found = step(*args)
        except RuntimeError as error:
            if "not attached to a" not in str(error):
                raise
            raise ValueError(
                f"The training_step of {type(module).__name__} asks its Trainer, and it has none. Audit it in a fit: put"
                " PartitionAudit(stop=True) into the Trainer's callbacks, or set module.trainer."
            ) from error
    else:
        args, kwargs = ((), batch) if isinstance(batch, Mapping) else (batch if isinstance(batch, (tuple, list)) else (batch,), {})
        try:
            signature(module.forward).bind(*args, **kwargs)
        except TypeError as error:
            raise ValueError(
                f"{type(module).__name__} cannot be called with the batch: {error}. It has no training_step, so give a function of"
                " the module instead: lambda module: loss_of(module(inputs), targets)."
            ) from None
        found = module(*args, **kwargs)
    loss = found.get("loss") if isinstance(found, Mapping) else getattr(found, "loss", None) if step is None else found
    if not isinstance(loss, Tensor):
        raise ValueError(
            f"{type(module).__name__} gives no loss of a batch: it has no training_step, and what it returns has no 'loss'. Give a function"
            " of the module instead: lambda module: loss_of(module(inputs), targets)."
        )
    return loss


@contextmanager
def nothing_logged(module: nn.Module) -> Iterator[None]:
    """Drop what a LightningModule logs through ``self.log``."""
    if not hasattr(module, "log"):
        yield
        return
    before = vars(module).get("log")
    vars(module)["log"] = lambda *args, **kwargs: None  # log_dict goes through it
    try:
        yield
    finally:
        vars(module).pop("log", None)
        if before is not None:
            vars(module)["log"] = before


def batch_size(batch: Any) -> int | None:
    """The length that all tensors of a batch begin with; None if there is no such, as for a graph."""
    leaves = tree_flatten(batch)[0]
    lengths = {len(leaf) if isinstance(leaf, Tensor) and leaf.ndim else None for leaf in leaves}
    return lengths.pop() if len(lengths) == 1 else None


def take_examples(batch: Any, start: int, stop: int) -> Any:
    """The examples from ``start`` to ``stop`` of a batch that has a :func:`batch_size`.

    Example:
        >>> import torch
        >>> take_examples({"x": torch.arange(6)}, 2, 4)
        {'x': tensor([2, 3])}
    """
    return tree_map_only(Tensor, lambda tensor: tensor[start:stop], batch)
