"""What the data modules of real images share: their transforms for small images and their loaders."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from typing_extensions import override

Transform = Callable[[Any], Any]


def crop_and_flip(size: int, padding: int) -> list[Transform]:
    """Return the training transforms that are usual for CIFAR: a random crop of the padded image, and a flip.

    Args:
        size: Side of the crop.
        padding: Black pixels added on each side.
    """
    return [transforms.RandomCrop(size, padding=padding), transforms.RandomHorizontalFlip()]


def to_scaled_tensor(mean: Sequence[float], std: Sequence[float]) -> list[Transform]:
    """Return the transforms that end every pipeline: to a tensor, minus the mean, over the deviation.

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
    """
    return [transforms.ToTensor(), transforms.Normalize(mean, std)]


class ImageData(pl.LightningDataModule):
    """Base of the data modules whose workers prepare images: subclasses fill ``_sets`` with ``train``, ``val`` and ``test`` in `setup`.

    Args:
        batch_size: Images a training step.
        eval_batch_size: Images a batch in validation and test.
        num_workers: Processes that prepare images.
    """

    gives: ClassVar[str] = "images with labels"

    def __init__(self, batch_size: int, eval_batch_size: int, num_workers: int) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        self._sets: dict[str, Dataset[Any]] = {}

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return shuffled batches of augmented images."""
        return self._loader("train", self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return the validation set in order."""
        return self._loader("val", self.eval_batch_size, shuffle=False)

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return the test set in order."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    @override
    def predict_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return the test set in order."""
        return self.test_dataloader()

    def _loader(self, split: str, batch_size: int, shuffle: bool) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(
            self._sets[split],
            batch_size=batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )
