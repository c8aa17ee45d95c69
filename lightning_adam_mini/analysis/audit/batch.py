"""The loss of a module on a batch, and smaller batches of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    if step is None:
        args, kwargs = ((), batch) if isinstance(batch, Mapping) else (batch if isinstance(batch, (tuple, list)) else (batch,), {})
        try:
            signature(module.forward).bind(*args, **kwargs)
        except TypeError as error:
            raise ValueError(
                f"{type(module).__name__} cannot be called with the batch: {error}. It has no training_step, so {_GIVE}"
            ) from None
        found = _called(module, module, args, kwargs, batch)
        loss = found.get("loss") if isinstance(found, Mapping) else getattr(found, "loss", None)
        if not isinstance(loss, Tensor):
            what = f"it has no training_step, and what it returns ({type(found).__name__}) has no 'loss'"
            raise ValueError(f"{type(module).__name__} gives no loss of a batch: {what}. So {_GIVE}")
        return loss
    name = f"The training_step of {type(module).__name__}"
    if not getattr(module, "automatic_optimization", True):
        raise ValueError(f"{name} steps its optimizers itself (automatic_optimization=False), and an audit must not: {_GIVE}")
    with nothing_logged(module):
        found = _called(module, step, (batch, 0) if len(signature(step).parameters) > 1 else (batch,), {}, batch)
    loss = found.get("loss") if isinstance(found, Mapping) else found
    if not isinstance(loss, Tensor):
        what = "without a 'loss'" if isinstance(found, Mapping) else "which is no loss"
        raise ValueError(f"{name} returned {type(found).__name__}, {what}. Take a batch that it trains on, or {_GIVE}")
    return loss


_GIVE = "give a function of the module instead: lambda module: loss_of(module(inputs), targets)."


def _called(module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any, batch: Any) -> Any:
    """What the user's code gives of the batch; its errors say what it was called with."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        name = type(module).__name__
        if "not attached to a" in str(error):
            raise ValueError(
                f"The training_step of {name} asks its Trainer, and it has none. Audit it in a fit: put PartitionAudit(stop=True) into the"
                " Trainer's callbacks, or set module.trainer."
            ) from error
        what = name if function is module else f"The training_step of {name}"
        said = " ".join(str(error).split())[:300].rstrip(".")
        raise ValueError(
            f"{what} raised {type(error).__name__} of a batch of type {type(batch).__name__}: {said}. Give one batch as its data loader"
            f" yields it, or {_GIVE}"
        ) from error


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
