"""What every recipe's model has in common: the one number that it is judged by."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from typing_extensions import override


@dataclass(frozen=True)
class Headline:
    """The number that a recipe is judged by, logged by its model as ``val/<metric>`` and ``test/<metric>``.

    Args:
        metric: Name of the metric without its ``val/`` or ``test/``.
        title: How a person calls it.
        mode: Whether more of it is better (``"max"``) or less (``"min"``).
    """

    metric: str
    title: str
    mode: Literal["max", "min"]


class Recipe(pl.LightningModule):
    """Base of the recipes' models: a LightningModule that names its headline and takes its peak learning rate as ``lr``."""

    headline: ClassVar[Headline]
    learns_from: ClassVar[str]  # what its data modules' `gives` says
    _seed = 0

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
