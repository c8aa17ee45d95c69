"""scikit-learn's handwritten digits as images to generate."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import override

from recipes.diffusion.images import Split, UnlabelledImages
from recipes.vision.digits import digit_splits

LARGEST = 16.0  # the pixels of scikit-learn's digits are counts from 0 to 16


class DigitImages(UnlabelledImages):
    """scikit-learn's handwritten digits (1797 grey 8x8 images, embedded), in the splits of the classifier's `DigitsData`.

    Args:
        batch_size: Images a training step.
        eval_batch_size: Images a batch in validation and test.
    """

    def __init__(self, batch_size: int = 64, eval_batch_size: int = 256) -> None:
        super().__init__(image_size=8, channels=1, batch_size=batch_size, eval_batch_size=eval_batch_size, num_workers=0)

    @override
    def read(self) -> Mapping[Split, Dataset[Tensor]]:
        """Return the digits of each split."""
        return {name: cast(Dataset[Tensor], images) for name, images in digit_images().items()}


def digit_images() -> dict[Split, Tensor]:
    """Return the digits of each split, n x 1 x 8 x 8, with pixels in [-1, 1].

    Example:
        >>> {name: tuple(images.shape) for name, images in digit_images().items()}
        {'train': (1071, 1, 8, 8), 'val': (362, 1, 8, 8), 'test': (364, 1, 8, 8)}
    """
    from sklearn.datasets import load_digits  # seconds to import, so that --help does without

    pixels, targets = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) * (2.0 / LARGEST) - 1.0
    return {name: images[indices] for name, indices in digit_splits(torch.as_tensor(targets)).items()}
