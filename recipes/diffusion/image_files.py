"""Image files of a folder, or of the folders within it, as images to generate."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms
from torchvision.datasets.folder import is_image_file
from typing_extensions import override

from recipes.diffusion.images import Split, UnlabelledImages
from recipes.vision.image_folder import read_image

HELD_OUT = 20  # of every so many files one tests and one validates


class FileImages(Dataset[Tensor]):
    """Image files, scaled so that the shorter side fits, cut out at the centre, with pixels in [-1, 1].

    Args:
        files: The files.
        image_size: Side of the images.
        channels: 1 for grey, 3 for colour.
        flip: Whether to mirror half of the images, at random.
    """

    def __init__(self, files: Sequence[Path], image_size: int, channels: int, flip: bool) -> None:
        self.files = files
        steps: list[Callable[[Any], Any]] = [transforms.Resize(image_size), transforms.CenterCrop(image_size)]
        if channels == 1:
            steps.append(transforms.Grayscale())
        if flip:
            steps.append(transforms.RandomHorizontalFlip())
        self.transform = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize([0.5] * channels, [0.5] * channels)])

    def __len__(self) -> int:
        return len(self.files)

    @override
    def __getitem__(self, index: int) -> Tensor:
        return self.transform(read_image(str(self.files[index])))


class ImageFiles(UnlabelledImages):
    """All image files of a folder and of the folders within it: of every 20, in the order of their paths, one tests and one validates.

    Args:
        root: The folder.
        image_size: Side of the images: the shorter side is scaled to it and the centre cut out.
        channels: 1 for grey, 3 for colour.
        flip: Whether to mirror training images at random.
        batch_size: Images a training step.
        eval_batch_size: Images a batch in validation and test.
        num_workers: Processes that read images.
    """

    def __init__(
        self,
        root: str = "data/images",
        image_size: int = 64,
        channels: Literal[1, 3] = 3,
        flip: bool = True,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        num_workers: int = 4,
    ) -> None:
        super().__init__(image_size, channels, batch_size, eval_batch_size, num_workers)
        self.root = Path(root)
        self.flip = flip

    @override
    def read(self) -> Mapping[Split, Dataset[Tensor]]:
        """Return the images of each split."""
        if not self.root.is_dir():
            raise MisconfigurationException(
                f"No images found: looked for the folder {self.root}. Point --data.root to a folder of image files, "
                "directly in it or in folders of any depth."
            )
        files = sorted(file for file in self.root.rglob("*") if is_image_file(file.name) and file.is_file())
        if len(files) < 3:
            raise MisconfigurationException(
                f"{self.root} holds {len(files)} image file{'s' if len(files) != 1 else ''} (.jpg, .png, ...), but training, validation "
                "and test need one each at the least; point --data.root to a folder that holds more."
            )
        split: dict[Split, list[Path]] = {"train": [], "val": [], "test": []}
        for index, file in enumerate(files):
            held_out: dict[int, Split] = {0: "test", 1: "val"}
            split[held_out.get(index % HELD_OUT, "train")].append(file)
        return {name: FileImages(found, self.image_size, self.channels, self.flip and name == "train") for name, found in split.items()}
