"""Image classification with any model of timm."""

from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from recipes.optim import adamw
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
        lr: Peak learning rate.
        betas: AdamW's decay of the first and the second moment.
        eps: AdamW's epsilon.
        weight_decay: Decoupled weight decay.
        warmup: Share of the run over which the learning rate rises; a cosine to zero follows.
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
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.05,
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.optimizer_args: dict[str, Any] = {
            "lr": lr,
            "betas": (betas[0], betas[1]),
            "eps": eps,
            "weight_decay": weight_decay,
            "warmup": warmup,
        }
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

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW and its schedule; `AdamMiniCallback` turns it into Adam-mini."""
        total_steps = int(self.trainer.estimated_stepping_batches)
        return adamw(self.parameters(), total_steps, **self.optimizer_args)

    def _loss(self, batch: tuple[Tensor, Tensor], split: str, accuracy: MetricCollection) -> Tensor:
        images, labels = batch
        logits = self(images)
        loss = cross_entropy(logits, labels, label_smoothing=self.label_smoothing if split == "train" else 0.0)
        with torch.no_grad():
            accuracy(logits, labels)
        self.log(f"{split}/loss", loss, prog_bar=True, batch_size=len(labels))
        self.log_dict(accuracy, prog_bar=True, on_step=False, on_epoch=True, batch_size=len(labels))  # pyright: ignore[reportArgumentType]
        return loss
