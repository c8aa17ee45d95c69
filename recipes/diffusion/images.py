"""What the data modules of images to generate have in common: pixels in [-1, 1], no labels."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from recipes.vision.image_data import ImageData

Split = Literal["train", "val", "test"]


class UnlabelledImages(ImageData):
    """Batches of images alone, a tensor each, with pixels in [-1, 1]; a subclass says in `read` where they come from.

    Args:
        image_size: Side of the images.
        channels: 1 for grey, 3 for colour.
        batch_size: Images a training step.
        eval_batch_size: Images a batch in validation and test.
        num_workers: Processes that read images.
    """

    gives: ClassVar[str] = "images without labels"

    def __init__(self, image_size: int, channels: int, batch_size: int, eval_batch_size: int, num_workers: int) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers)
        self.image_size = image_size
        self.channels = channels

    def read(self) -> Mapping[Split, Dataset[Tensor]]:
        """Return the images of each split."""
        raise NotImplementedError

    @override
    def setup(self, stage: str) -> None:
        """Find the images and split them."""
        if not self._sets:
            self._sets = {**self.read()}
