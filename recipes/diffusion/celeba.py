"""CelebA as images to generate, found and split by torchvision."""

from collections.abc import Mapping
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CelebA
from typing_extensions import override

from recipes.diffusion.image_files import FileImages
from recipes.diffusion.images import Split, UnlabelledImages


class CelebAImages(UnlabelledImages):
    """CelebA's aligned faces in its own splits, as torchvision lays them out; a folder of the JPEG files alone is `ImageFiles`' business.

    Args:
        root: Folder that holds ``celeba``, with ``img_align_celeba/`` and the ``.txt`` lists in it.
        download: Whether to download what is not there (needs ``gdown``).
        image_size: Side of the images: the shorter side is scaled to it and the centre cut out.
        flip: Whether to mirror training images at random.
        batch_size: Images a training step.
        eval_batch_size: Images a batch in validation and test.
        num_workers: Processes that read images.
    """

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        image_size: int = 64,
        flip: bool = True,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        num_workers: int = 4,
    ) -> None:
        super().__init__(image_size, 3, batch_size, eval_batch_size, num_workers)
        self.root = Path(root)
        self.download = download
        self.flip = flip

    @override
    def prepare_data(self) -> None:
        """Download the data where the user asked for it."""
        if self.download:
            CelebA(str(self.root), split="all", target_type=[], download=True)

    @override
    def read(self) -> Mapping[Split, Dataset[Tensor]]:
        """Return the faces of each split."""
        names: dict[Split, str] = {"train": "train", "val": "valid", "test": "test"}
        return {split: FileImages(self._files(name), self.image_size, 3, self.flip and split == "train") for split, name in names.items()}

    def _files(self, split: str) -> list[Path]:
        folder = self.root / CelebA.base_folder
        try:
            found = CelebA(str(self.root), split=split, target_type=[])
        except RuntimeError as error:
            raise MisconfigurationException(
                f"No complete CelebA found: looked for {folder / 'img_align_celeba'} and, unchanged, "
                f"{', '.join(name for _, _, name in CelebA.file_list if name.endswith('.txt'))} in {folder}. "
                "Set --data.download true to download it (needs gdown), point --data.root to the folder that holds celeba, or, with a "
                "folder of the image files alone, give --data ImageFiles --data.root <that folder>."
            ) from error
        return [folder / "img_align_celeba" / name for name in found.filename]
