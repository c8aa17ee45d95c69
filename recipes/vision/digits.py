"""scikit-learn's handwritten digits: 1797 real 8x8 images that come with the library, so nothing is downloaded."""

from typing import Any, ClassVar, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample, interpolate
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from recipes.vision.splits import stratified_folds

Split = Literal["train", "val", "test"]


def digit_splits(labels: Tensor) -> dict[Split, Tensor]:
    """Return the indices of each split: of every five images of a class, in order, one tests, one validates and three train.

    Args:
        labels: The class of every image.

    Example:
        >>> splits = digit_splits(torch.tensor([0, 1, 0, 0, 1, 0, 0, 0]))
        >>> {name: indices.tolist() for name, indices in splits.items()}
        {'train': [3, 5, 6], 'val': [2, 4], 'test': [0, 1, 7]}
    """
    fold = stratified_folds(labels, folds=5)
    masks: dict[Split, Tensor] = {"train": fold >= 2, "val": fold == 1, "test": fold == 0}
    return {name: mask.nonzero().flatten() for name, mask in masks.items()}


def jitter(images: Tensor, degrees: float = 10.0, scale: float = 0.1, shift: float = 0.0625) -> Tensor:
    """Turn, enlarge and shift each image of a batch a little, at random, with black beyond the border.

    Args:
        images: The batch.
        degrees: Largest turn either way.
        scale: Largest change of size either way, as a share.
        shift: Largest shift either way, as a share of the side.
    """

    def uniform(largest: float, *shape: int) -> Tensor:
        return (2.0 * torch.rand(len(images), *shape, device=images.device) - 1.0) * largest

    angle, size = torch.deg2rad(uniform(degrees)), 1.0 + uniform(scale)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    theta = torch.cat([rotation * size.view(-1, 1, 1), 2.0 * uniform(shift, 2, 1)], dim=2)
    black = images.amin()  # the border of a digit is black, which standardisation moved away from zero
    return grid_sample(images - black, affine_grid(theta, list(images.shape), align_corners=False), align_corners=False) + black


class DigitsData(pl.LightningDataModule):
    """scikit-learn's handwritten digits (1797 grey images, 10 classes), split 60/20/20 by a fixed, stratified rule.

    Args:
        batch_size: Images a training step.
        eval_batch_size: Images a batch in validation and test.
        image_size: Side of the images; the original 8 pixels are enlarged to it.
        channels: 1 for grey; 3 repeats the grey channel, for models that want colour.
        augment: Whether training images are turned (10 degrees), scaled (10 %) and shifted (half of an 8x8 pixel) at random.
    """

    gives: ClassVar[str] = "images with labels"
    num_classes = 10

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 256,
        image_size: int = 8,
        channels: Literal[1, 3] = 1,
        augment: bool = True,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.image_size = image_size
        self.channels: int = channels
        self.augment = augment
        self._sets: dict[Split, TensorDataset] = {}

    @override
    def setup(self, stage: str) -> None:
        """Read the images, split them, and scale them by the mean and deviation of the training pixels."""
        if self._sets:
            return
        from sklearn.datasets import load_digits  # seconds to import, so that --help does without

        pixels, targets = load_digits(return_X_y=True)
        labels = torch.as_tensor(targets, dtype=torch.int64)
        images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8)
        splits = digit_splits(labels)
        train = images[splits["train"]]
        images = (images - train.mean()) / train.std()
        if self.image_size != images.shape[-1]:
            images = interpolate(images, size=(self.image_size, self.image_size), mode="bilinear", antialias=True)
        images = images.repeat(1, self.channels, 1, 1)
        self._sets = {name: TensorDataset(images[indices], labels[indices]) for name, indices in splits.items()}

    @override
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Augment the training batches, on the device."""
        if self.augment and self.trainer is not None and self.trainer.training:
            images, labels = batch
            return jitter(images), labels
        return batch

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return shuffled batches of full size, for batch norm is noise on a remainder of one or two images."""
        full_batch = len(self._sets["train"]) >= self.batch_size
        return DataLoader(self._sets["train"], batch_size=self.batch_size, shuffle=True, drop_last=full_batch)

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the validation set in order."""
        return DataLoader(self._sets["val"], batch_size=self.eval_batch_size)

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the test set in order."""
        return DataLoader(self._sets["test"], batch_size=self.eval_batch_size)

    @override
    def predict_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the test set in order."""
        return self.test_dataloader()
