"""What a data module of images to generate has in common: pixels in [-1, 1], no labels."""

from collections.abc import Mapping
from typing import Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from typing_extensions import override

Split = Literal["train", "val", "test"]


class UnlabelledImages(pl.LightningDataModule):
    """Batches of images alone, a tensor each, with pixels in [-1, 1]; a subclass says in `read` where they come from.

    Args:
        image_size: Side of the images.
        channels: 1 for grey, 3 for colour.
        batch_size: Images a training step.
        eval_batch_size: Images a batch in validation and test.
        num_workers: Processes that read images.
    """

    def __init__(self, image_size: int, channels: int, batch_size: int, eval_batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.channels = channels
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self._sets: Mapping[Split, Dataset[Tensor]] = {}

    def read(self) -> Mapping[Split, Dataset[Tensor]]:
        """Return the images of each split."""
        raise NotImplementedError

    @override
    def setup(self, stage: str) -> None:
        """Find the images and split them."""
        if not self._sets:
            self._sets = self.read()

    @override
    def train_dataloader(self) -> DataLoader[Tensor]:
        """Return shuffled batches."""
        return self._loader("train", self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return the validation set in order."""
        return self._loader("val", self.eval_batch_size, shuffle=False)

    @override
    def test_dataloader(self) -> DataLoader[Tensor]:
        """Return the test set in order."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def _loader(self, split: Split, batch_size: int, shuffle: bool) -> DataLoader[Tensor]:
        return DataLoader(
            self._sets[split],
            batch_size=batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )
