"""Image classification with any model of timm."""

from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from recipes.recipe import Headline, Recipe
from recipes.strategies import shard_over_data
from recipes.vision.backbone import create_backbone


class ImageClassifier(Recipe):
    """Classify images with any timm model, trained by AdamW with warm-up and cosine.

    Args:
        name: Name of a timm model, such as ``resnet18`` or ``vit_tiny_patch16_224``.
        num_classes: Number of classes of the data.
        in_channels: Channels of an image: 1 for grey, 3 for colour.
        small_images: Whether to open a ResNet with a 3x3 convolution of stride 1 and no pooling, for images below about 64 pixels.
        pretrained: Whether to start from timm's pretrained weights (downloads them).
        model_args: Further keyword arguments of ``timm.create_model``, such as ``{img_size: 32, patch_size: 4}``.
        top5: Whether to report top-5 accuracy beside top-1.
        label_smoothing: Share of the target spread over all classes.
        optimizer_args: Arguments of `recipes.optim.configure`: lr, betas, weight_decay, ...
    """

    headline: ClassVar[Headline] = Headline(metric="acc", title="accuracy", mode="max")
    learns_from: ClassVar[str] = "images with labels"

    def __init__(
        self,
        name: str = "resnet18",
        num_classes: int = 10,
        in_channels: int = 3,
        small_images: bool = False,
        pretrained: bool = False,
        model_args: dict[str, Any] | None = None,
        top5: bool = False,
        label_smoothing: float = 0.0,
        **optimizer_args: Any,
    ) -> None:
        super().__init__(**optimizer_args)
        self.save_hyperparameters()
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        net = create_backbone(name, num_classes, in_channels, small_images, pretrained, model_args or {})
        # On CPUs convolutions of very small images are over ten times faster so; elsewhere it costs nothing.
        self.net: nn.Module = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        metrics = {"acc": MulticlassAccuracy(num_classes, average="micro")}
        if top5:
            metrics["acc5"] = MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes))
        accuracy = MetricCollection(dict(metrics))
        self.train_accuracy = accuracy.clone(prefix="train/")
        self.val_accuracy = accuracy.clone(prefix="val/")
        self.test_accuracy = accuracy.clone(prefix="test/")

    @override
    def setup(self, stage: str) -> None:
        """Check that the data have as many classes as the model."""
        super().setup(stage)
        found = getattr(getattr(self.trainer, "datamodule", None), "num_classes", self.num_classes)
        if found != self.num_classes:
            raise MisconfigurationException(
                f"The model has {self.num_classes} classes but the data have {found}; set --model.num_classes {found}."
            )

    @override
    def configure_model(self) -> None:
        """Shard the network under ModelParallelStrategy."""
        shard_over_data(self.net, self.device_mesh)

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        return self.net(images.contiguous(memory_format=torch.channels_last))

    @override
    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        with self.differentiable():
            return self._loss(batch, "train", self.train_accuracy)

    @override
    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure a batch of the validation set."""
        self._loss(batch, "val", self.val_accuracy)

    @override
    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Measure a batch of the test set."""
        self._loss(batch, "test", self.test_accuracy)

    @override
    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the class of each image."""
        return self(batch[0]).argmax(dim=1)

    def _loss(self, batch: tuple[Tensor, Tensor], split: str, accuracy: MetricCollection) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing if split == "train" else 0.0)
        with torch.no_grad():
            accuracy(logits, labels)
        self.log(f"{split}/loss", loss, prog_bar=True, batch_size=len(labels))
        self.log_dict(accuracy, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(labels))  # pyright: ignore[reportArgumentType]
        return loss
