"""What every recipe's model has in common: its optimizer, and the one number that it is judged by."""

import inspect
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from recipes.optim import configure, wants_graph


@dataclass(frozen=True)
class Headline:
    """The number that a recipe is judged by, logged by its model as ``val/<metric>`` and ``test/<metric>``.

    Args:
        metric: Name of the metric without its ``val/`` or ``test/``.
        title: How a person calls it.
        mode: Whether more of it is better (``"max"``) or less (``"min"``).
        beside: Names of metrics without which it says too little, logged likewise.
    """

    metric: str
    title: str
    mode: Literal["max", "min"]
    beside: Sequence[str] = ()


class Recipe(pl.LightningModule):
    """Base of the recipes' models: a LightningModule that names its headline and takes the settings of its optimizer.

    Args:
        optimizer_args: Keyword arguments of `recipes.optim.configure`: lr, betas, weight_decay, ... A subclass hands on its own
            ``**optimizer_args``; jsonargparse follows them, so that help and YAML list each beside the model's other arguments.
    """

    headline: ClassVar[Headline]
    learns_from: ClassVar[str]  # what its data modules' `gives` says
    _seed = 0

    def __init__(self, **optimizer_args: Any) -> None:
        super().__init__()
        inspect.signature(configure).bind((), 0, **optimizer_args)  # a misspelt one is an error now, not when the run starts
        self.optimizer_args = optimizer_args

    def parameter_groups(self) -> Iterable[nn.Parameter] | Iterable[dict[str, Any]]:
        """Return what the optimizer trains; a subclass may say which of it no weight decays."""
        return self.parameters()

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule; `AdamMiniCallback` turns it into Adam-mini."""
        return configure(self.parameter_groups(), int(self.trainer.estimated_stepping_batches), self, **self.optimizer_args)

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Compute the gradients; with their own graph where the optimizer's step differentiates them."""
        super().backward(loss, *args, **kwargs, create_graph=self._differentiates_twice())

    def differentiable(self) -> AbstractContextManager[Any]:
        """Return what to compute a training loss under: no fused attention where the optimizer differentiates the gradients."""
        return sdpa_kernel(SDPBackend.MATH) if self._differentiates_twice() else nullcontext()

    def _differentiates_twice(self) -> bool:
        return any(wants_graph(optimizer) for optimizer in self.trainer.optimizers)

    @override
    def setup(self, stage: str) -> None:
        """Refuse the data of another recipe; a data module of the user's own, which does not say what it gives, is taken at its word."""
        data = getattr(self.trainer, "datamodule", None)
        gives = getattr(data, "gives", self.learns_from)
        if gives != self.learns_from:
            raise MisconfigurationException(
                f"{type(self).__name__} learns from {self.learns_from}, but {type(data).__name__} gives {gives}; set --data to one "
                "that fits, or take the configuration of another recipe."
            )

    @override
    def on_fit_start(self) -> None:
        """Remember the seed of the run."""
        self._seed = torch.initial_seed()

    @override
    def on_train_epoch_start(self) -> None:
        """Seed each epoch by its number, so that a resumed run draws the order, noise and dropout that an uninterrupted one draws."""
        stream = 1 + self.current_epoch * self.trainer.world_size + self.global_rank
        torch.manual_seed((self._seed + 1_000_003 * stream) % 2**32)  # torch's generator on CPUs ignores the higher bits
        loop = self.trainer.fit_loop
        if loop.is_resuming and loop._data_fetcher is not None:
            iter(loop._data_fetcher)  # a resumed run would shuffle its first epoch as the seed says that the first of all is shuffled
