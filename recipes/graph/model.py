"""Node classification on one graph, trained full batch."""

import math
from typing import Any, ClassVar, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from torchmetrics.classification import MulticlassAccuracy
from typing_extensions import override

from recipes.recipe import Headline, Recipe

LOG_EPSILON = 1.0 - math.log(2.0)


class NodeClassifier(Recipe):
    """Classify the nodes of a graph with GCN or GAT, trained by AdamW on the whole graph at every step.

    Args:
        network: ``gcn`` or ``gat``.
        in_channels: Features of a node.
        num_classes: Number of classes of the data.
        num_layers: Number of graph convolutions.
        hidden_channels: Channels of a hidden layer; of each head in a GAT.
        heads: Heads of a GAT's hidden layers.
        dropout: Dropout after each hidden layer.
        input_dropout: Dropout of the features.
        batch_norm: Whether to normalise each hidden layer.
        target_attention: Whether a node's own features weigh in a GAT's attention (DGL's ``--no-attn-dst`` is false).
        edge_dropout: Share of the edges that each layer of a GAT leaves out in training (DGL's ``--edge-drop``).
        use_labels: Whether the labels of the training nodes that do not form the loss are features (DGL's ``--use-labels``).
        loss_share: Share of the training nodes, drawn anew each step, that forms the loss (DGL's ogbn-arxiv examples: 0.5).
        loss: ``cross_entropy``, or the logarithm of it that DGL's ogbn-arxiv examples minimise.
        optimizer_args: Arguments of `recipes.optim.configure`: lr, betas, weight_decay, ...
    """

    headline: ClassVar[Headline] = Headline(metric="acc", title="accuracy", mode="max")
    learns_from: ClassVar[str] = "a graph"

    def __init__(
        self,
        network: Literal["gcn", "gat"] = "gcn",
        in_channels: int = 64,
        num_classes: int = 10,
        num_layers: int = 3,
        hidden_channels: int = 64,
        heads: int = 3,
        dropout: float = 0.5,
        input_dropout: float = 0.1,
        batch_norm: bool = True,
        target_attention: bool = True,
        edge_dropout: float = 0.0,
        use_labels: bool = False,
        loss_share: float = 1.0,
        loss: Literal["cross_entropy", "log_cross_entropy"] = "cross_entropy",
        **optimizer_args: Any,
    ) -> None:
        super().__init__(**optimizer_args)
        self.save_hyperparameters()
        if use_labels and loss_share >= 1.0:
            raise MisconfigurationException(
                "use_labels needs loss_share < 1, because the labels that are features cannot form the loss; set --model.loss_share 0.5."
            )
        self.in_channels, self.num_classes, self.num_layers = in_channels, num_classes, num_layers
        self.use_labels, self.loss_share, self.log_loss = use_labels, loss_share, loss == "log_cross_entropy"
        from recipes.graph.networks import GAT, GCN  # torch-geometric takes seconds to import, so that --help does without

        inputs = in_channels + (num_classes if use_labels else 0)
        if network == "gcn":
            sizes = [inputs, *[hidden_channels] * (num_layers - 1), num_classes]
            self.net: nn.Module = GCN(sizes, dropout, input_dropout, batch_norm)
        else:
            sizes = [inputs, *[hidden_channels * heads] * (num_layers - 1), num_classes]
            self.net = GAT(sizes, heads, dropout, input_dropout, batch_norm, target_attention, edge_dropout)
        self.val_accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.test_accuracy = MulticlassAccuracy(num_classes, average="micro")

    @override
    def setup(self, stage: str) -> None:
        """Check that the graph fits the model, and that one device trains it."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        for name, ours in (("in_channels", self.in_channels), ("num_classes", self.num_classes)):
            found = getattr(data, name, ours)
            if found != ours:
                raise MisconfigurationException(f"The model has {name} {ours} but the graph has {found}; set --model.{name} {found}.")
        sampled = getattr(data, "sample_neighbours", None)
        if sampled is not None and len(sampled) != self.num_layers:
            raise MisconfigurationException(
                f"--data.sample_neighbours {sampled} is for {len(sampled)} layers but the model has {self.num_layers}; give one a layer."
            )
        if self.trainer.world_size > 1:
            raise MisconfigurationException(
                f"The whole graph is one batch, which {self.trainer.world_size} devices would each train on alike; set --trainer.devices 1."
            )

    @override
    def forward(self, graph: Any, known: Tensor | None = None) -> Tensor:
        """Return the logits of every node.

        Args:
            graph: A torch-geometric `Data`.
            known: Mask of the nodes whose labels may be features.
        """
        x = graph.x
        if self.use_labels:
            labels = one_hot(graph.y, self.num_classes).to(x)
            x = torch.cat([x.to_dense(), labels if known is None else labels * known.unsqueeze(1)], dim=1)
        return self.net(x, graph.edge_index)

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of the training nodes, or of a random share of them."""
        scored = batch.train_mask
        seeds = getattr(batch, "batch_size", None)
        if seeds is not None:  # a sample: the nodes that it was drawn for come first, and the others lack neighbours
            scored = scored & (torch.arange(len(scored), device=scored.device) < seeds)
        if self.loss_share < 1.0:
            scored = scored & (torch.rand(scored.shape, device=scored.device) < self.loss_share)
        logits = self(batch, known=batch.train_mask & ~scored)
        losses = cross_entropy(logits[scored], batch.y[scored], reduction="none")
        loss = (torch.log(LOG_EPSILON + losses) - math.log(LOG_EPSILON)).mean() if self.log_loss else losses.mean()
        self.log("train/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=1)
        return loss

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Measure the validation nodes."""
        self._measure(batch, batch.val_mask, "val", self.val_accuracy)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Measure the test nodes."""
        self._measure(batch, batch.test_mask, "test", self.test_accuracy)

    @override
    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the class of every node."""
        return self(batch, known=batch.train_mask).argmax(dim=1)

    def _measure(self, graph: Any, mask: Tensor, split: str, accuracy: MulticlassAccuracy) -> None:
        logits, labels = self(graph, known=graph.train_mask)[mask], graph.y[mask]
        accuracy(logits, labels)
        self.log(f"{split}/loss", cross_entropy(logits, labels), batch_size=1)
        self.log(f"{split}/acc", accuracy, prog_bar=True, batch_size=1)
