"""Image files in a tree with a folder a class, as ImageNet is usually laid out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from typing_extensions import override

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageFolderData(pl.LightningDataModule):
    """Any tree of image files, ``<root>/train/<class>/*`` and ``<root>/val/<class>/*``, with the transforms of pytorch/examples' ImageNet.

    Training crops at random and flips; validation and test resize and crop the centre. Where there is no ``<root>/test``, as in ImageNet,
    the test set is the validation set.

    Args:
        root: Folder that holds ``train`` and ``val``.
        batch_size: Images a training step.
        eval_batch_size: Images a batch in validation and test.
        image_size: Side of the square that the model sees.
        resize: Shorter side to which validation images are scaled before the centre is cut out.
        num_workers: Processes that read images.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
    """

    def __init__(
        self,
        root: str = "data/imagenet",
        batch_size: int = 256,
        eval_batch_size: int = 256,
        image_size: int = 224,
        resize: int = 256,
        num_workers: int = 4,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.root = Path(root)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.num_workers = num_workers
        scale: list[Callable[[Any], Any]] = [transforms.ToTensor(), transforms.Normalize(mean, std)]
        self.train_transform = transforms.Compose([transforms.RandomResizedCrop(image_size), transforms.RandomHorizontalFlip(), *scale])
        self.eval_transform = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(image_size), *scale])
        self._sets: dict[str, ImageFolder] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes found under ``<root>/train``."""
        return len(self._sets["train"].classes)

    @override
    def setup(self, stage: str) -> None:
        """List the image files."""
        if self._sets:
            return
        train = self._folder("train", self.train_transform)
        sets = {"train": train, "val": self._folder("val", self.eval_transform)}
        if (self.root / "test").is_dir():
            sets["test"] = self._folder("test", self.eval_transform)
        else:
            rank_zero_info(f"{self.root} has no test folder: the test set is the validation set.")
            sets["test"] = sets["val"]
        for split, images in sets.items():
            if images.classes != train.classes:
                odd = sorted(set(images.classes) ^ set(train.classes))
                raise MisconfigurationException(
                    f"The classes of {self.root / split} and {self.root / 'train'} differ in {', '.join(odd[:5])}"
                    f"{' ...' if len(odd) > 5 else ''}; every class needs a folder in both."
                )
        self._sets = sets

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return shuffled batches of random crops."""
        return self._loader("train", self.batch_size, shuffle=True)

    @override
    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return the validation set in order."""
        return self._loader("val", self.eval_batch_size, shuffle=False)

    @override
    def test_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Return the test set in order."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def _loader(self, split: str, batch_size: int, shuffle: bool) -> DataLoader[tuple[Tensor, int]]:
        return DataLoader(
            self._sets[split],
            batch_size=batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.num_workers > 0,
        )

    def _folder(self, split: str, transform: Callable[[Any], Any]) -> ImageFolder:
        folder = self.root / split
        if not folder.is_dir():
            raise MisconfigurationException(
                f"No images found: looked for the folder {folder}. Lay the images out as {self.root}/train/<class>/*.JPEG and "
                f"{self.root}/val/<class>/*.JPEG with one folder a class (for ImageNet, extract each class's archive into its folder), "
                "or point --data.root to a folder that is."
            )
        try:
            return ImageFolder(str(folder), transform=transform, loader=read_image)
        except FileNotFoundError as error:
            raise MisconfigurationException(
                f"{folder} is not a tree of images, because {error}. It needs one folder a class, with images in each."
            ) from error


def read_image(path: str) -> Any:
    """Read an image file as RGB.

    Args:
        path: The file.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise MisconfigurationException(f"{path} cannot be read as an image, because {error}; replace or remove it.") from error
