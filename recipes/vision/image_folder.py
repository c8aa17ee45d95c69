"""Image files in a tree with a folder a class, as ImageNet is usually laid out."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Subset
from torchvision import transforms
from torchvision.datasets import ImageFolder
from typing_extensions import override

from recipes.vision.image_data import ImageData, Transform, crop_and_flip, to_scaled_tensor
from recipes.vision.splits import stratified_folds

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageFolderData(ImageData):
    """Any tree of image files, ``<root>/train/<class>/*`` and ``<root>/val/<class>/*``, with the transforms of pytorch/examples' ImageNet.

    Training crops at random and flips; validation and test resize and crop the centre. Where there is no ``<root>/test``, as in ImageNet,
    the test set is the validation set.

    Args:
        root: Folder that holds ``train`` and ``val``.
        batch_size: Images a training step.
        eval_batch_size: Images a batch in validation and test.
        image_size: Side of the square that the model sees.
        resize: Shorter side to which validation images are scaled before the centre is cut out.
        padding: Where given, training crops are of the resized image padded by so many pixels, as is usual for images of CIFAR's size,
            instead of a random part of it of random size.
        val_folds: Where given, of every so many training images of a class, in order, one validates, instead of ``<root>/val``.
        images_per_class: Training images of each class that are used (the first ones, before validation images are taken out); all if none.
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
        padding: int | None = None,
        val_folds: int | None = None,
        images_per_class: int | None = None,
        num_workers: int = 4,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers)
        if val_folds is not None and val_folds < 2:
            raise MisconfigurationException(
                f"Invalid val_folds value: {val_folds}, because one of so many images validates and the others train; give at least 2."
            )
        if images_per_class is not None and images_per_class < (val_folds or 1):
            raise MisconfigurationException(
                f"Invalid images_per_class value: {images_per_class}, because each class needs images to train and to validate; "
                f"give at least {val_folds or 1}."
            )
        self.root = Path(root)
        self.val_folds = val_folds
        self.images_per_class = images_per_class
        part: list[Transform] = [transforms.RandomResizedCrop(image_size), transforms.RandomHorizontalFlip()]
        moves = part if padding is None else [transforms.Resize(resize), *crop_and_flip(image_size, padding)]
        scale = to_scaled_tensor(mean, std)
        self.train_transform = transforms.Compose([*moves, *scale])
        self.eval_transform = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(image_size), *scale])
        self._classes: list[str] = []

    @property
    def num_classes(self) -> int:
        """Number of classes found under ``<root>/train``."""
        return len(self._classes)

    @override
    def setup(self, stage: str) -> None:
        """List the image files."""
        if self._sets:
            return
        train = self._folder("train", self.train_transform)
        folders = {split: self._folder(split, self.eval_transform) for split in self._other_splits()}
        for split, images in folders.items():
            if images.classes != train.classes:
                odd = sorted(set(images.classes) ^ set(train.classes))
                raise MisconfigurationException(
                    f"The classes of {self.root / split} and {self.root / 'train'} differ in {', '.join(odd[:5])}"
                    f"{' ...' if len(odd) > 5 else ''}; every class needs a folder in both."
                )
        labels = torch.as_tensor(train.targets)
        position = stratified_folds(labels, folds=len(labels))
        used = position < (self.images_per_class or len(labels))
        held_out = position % self.val_folds == 0 if self.val_folds else torch.zeros_like(used)
        train_set = Subset(train, (used & ~held_out).nonzero().flatten().tolist())
        if self.val_folds:
            unaugmented = self._folder("train", self.eval_transform)
            val_set = Subset(unaugmented, (used & held_out).nonzero().flatten().tolist())
        else:
            val_set = folders["val"]
        if "test" not in folders:
            rank_zero_info(f"{self.root} has no test folder: the test set is the validation set.")
        self._classes = train.classes
        self._sets = {"train": train_set, "val": val_set, "test": folders.get("test", val_set)}

    def _other_splits(self) -> list[str]:
        return (["val"] if self.val_folds is None else []) + (["test"] if (self.root / "test").is_dir() else [])

    def _folder(self, split: str, transform: Transform) -> ImageFolder:
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
