"""CIFAR-10 and CIFAR-100, as torchvision reads them."""

from pathlib import Path
from typing import Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import Subset
from torchvision import transforms
from torchvision.datasets import CIFAR10, CIFAR100
from typing_extensions import override

from recipes.vision.image_data import ImageData, Transform, crop_and_flip, to_scaled_tensor
from recipes.vision.splits import stratified_folds

DATASETS: dict[str, type[CIFAR10]] = {"cifar10": CIFAR10, "cifar100": CIFAR100}
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class CIFARData(ImageData):
    """CIFAR-10 or CIFAR-100: of every ten training images of a class, in order, one validates; torchvision's test set tests.

    Training pads by 4 pixels, crops at random and flips.

    Args:
        root: Folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``.
        name: Which of the two.
        download: Whether to download what is not there.
        batch_size: Images a training step.
        eval_batch_size: Images a batch in validation and test.
        image_size: Side of the images; the original 32 pixels are enlarged to it.
        num_workers: Processes that prepare images.
    """

    def __init__(
        self,
        root: str = "data",
        name: Literal["cifar10", "cifar100"] = "cifar10",
        download: bool = False,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        image_size: int = 32,
        num_workers: int = 2,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers)
        self.root = Path(root)
        self.dataset = DATASETS[name]
        self.num_classes = 100 if name == "cifar100" else 10
        self.download = download
        size: list[Transform] = [] if image_size == 32 else [transforms.Resize(image_size)]
        scale = to_scaled_tensor(MEAN, STD)
        self.train_transform = transforms.Compose([*crop_and_flip(32, padding=4), *size, *scale])
        self.eval_transform = transforms.Compose([*size, *scale])

    @override
    def prepare_data(self) -> None:
        """Download the data where the user asked for it."""
        if self.download:
            for train in (True, False):
                self.dataset(str(self.root), train=train, download=True)

    @override
    def setup(self, stage: str) -> None:
        """Read the images and split them."""
        if self._sets:
            return
        train = self._read(train=True, transform=self.train_transform)
        fold = stratified_folds(torch.as_tensor(train.targets), folds=10)
        self._sets = {
            "train": Subset(train, (fold > 0).nonzero().flatten().tolist()),
            "val": Subset(self._read(train=True, transform=self.eval_transform), (fold == 0).nonzero().flatten().tolist()),
            "test": self._read(train=False, transform=self.eval_transform),
        }

    def _read(self, train: bool, transform: Transform) -> CIFAR10:
        try:
            return self.dataset(str(self.root), train=train, transform=transform)
        except RuntimeError as error:
            raise MisconfigurationException(
                f"No complete {self.dataset.__name__} found: looked for the folder {self.root / self.dataset.base_folder}. "
                "Set --data.download true to download it, or point --data.root to the folder that holds it."
            ) from error
