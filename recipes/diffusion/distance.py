"""How far generated digits are from real ones: the Fréchet distance between the features that our digit classifier gives them.

The distance is the FID's, the features are not: numbers compare with each other under one classifier only, and with no published FID.
"""

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from typing_extensions import override

from recipes.diffusion.digits import digit_images
from recipes.vision import ImageClassifier


class DigitFeatures(nn.Module):
    """What a digit classifier's last layer reads, of images with pixels in [-1, 1].

    Args:
        classifier: The classifier, trained on `DigitsData`.
    """

    def __init__(self, classifier: ImageClassifier) -> None:
        super().__init__()
        train = digit_images()["train"]
        # the classifier was trained on pixels standardised by the training digits'
        self.mean, self.std = float(train.mean()), float(train.std())
        self.net = classifier.net
        with torch.no_grad():
            try:
                self.num_features = self(train[:2]).shape[1]
            except (RuntimeError, AssertionError) as error:
                raise MisconfigurationException(f"The classifier cannot read grey 8x8 digits, because {error}") from error

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return the features of a batch of images."""
        images = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        net: nn.Module = self.net
        features = net.forward_features(images)  # pyright: ignore[reportCallIssue]
        return net.forward_head(features, pre_logits=True)  # pyright: ignore[reportCallIssue]


@torch.no_grad()
def feature_distance(features: DigitFeatures, real: Tensor, others: Tensor, batch_size: int = 256) -> float:
    """Return the Fréchet distance between the features of two sets of images; the smaller, the more alike.

    Args:
        features: Gives an image's features.
        real: Images with pixels in [-1, 1].
        others: Images with pixels in [-1, 1].
        batch_size: Images that the classifier reads at once.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # it takes any features, not only Inception's

    metric = FrechetInceptionDistance(feature=features.eval(), normalize=True)
    for images, is_real in ((real, True), (others, False)):
        for batch in images.split(batch_size):
            metric.update(batch, real=is_real)
    return float(metric.compute())
