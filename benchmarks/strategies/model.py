"""A small network with every kind of block, of sizes that no number of ranks divides, and how each strategy shards it."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

TOKENS, WIDTH, CLASSES, BATCH = 37, 12, 5, 8

# What is shared over what: by token, by head (which ranks cut), a fused projection, columns, rows, whole tensors, single elements.
BLOCKS: dict[str, Any] = {
    "embed.weight": "line",
    "query.weight": "q:4x3",
    "query.bias": "parameter",
    "qkv.weight": "q:2x5|k:2x5|v:10x1",
    "qkv.bias": "tensor",
    "up.weight": "line",
    "up.bias": "parameter",
    "down.weight": {"dims": [0]},
    "down.bias": "parameter",
    "norm.weight": "tensor",
    "norm.bias": "tensor",
    "head.weight": "tensor",
    "head.bias": "parameter",
}


class Network(pl.LightningModule):
    """Tokens to classes.

    Args:
        sharding: ``fsdp2`` and ``tensor`` say that this module shards itself in ``configure_model``, over data and tensors; ``offload``
            that its shards are offloaded.
        groups: 2, of which one does not decay, or 1: Lightning confuses those of AdamW when they go from one device to FSDP.
    """

    def __init__(self, sharding: tuple[str, ...] = (), groups: int = 2) -> None:
        super().__init__()
        self.groups = groups
        self.sharding = sharding
        torch.manual_seed(0)
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.qkv = nn.Linear(WIDTH, 30)
        self.up = nn.Linear(30, 22)
        self.down = nn.Linear(22, 9)
        self.norm = nn.LayerNorm(9)
        self.head = nn.Linear(9, CLASSES)

    @override
    def configure_model(self) -> None:
        """Shard the layers, under ModelParallelStrategy."""
        if not self.sharding or isinstance(self.head.weight, DTensor):
            return
        from torch.distributed.fsdp import CPUOffloadPolicy, fully_shard
        from torch.distributed.tensor import Replicate
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        mesh = self.device_mesh
        assert mesh is not None
        if "tensor" in self.sharding:
            plan = {
                "embed": RowwiseParallel(input_layouts=Replicate()),
                "query": ColwiseParallel(output_layouts=Replicate()),
                "up": ColwiseParallel(),
                "down": RowwiseParallel(),
            }
            parallelize_module(self, mesh["tensor_parallel"], plan)
        if "fsdp2" in self.sharding:
            options = {"offload_policy": CPUOffloadPolicy(pin_memory=False)} if "offload" in self.sharding else {}
            for layer in self.children():
                fully_shard(layer, mesh=mesh["data_parallel"], **options)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of a batch of token lists."""
        x = torch.tanh(self.query(self.embed(tokens)))
        x = self.down(torch.relu(self.up(torch.tanh(self.qkv(x)))))
        return self.head(self.norm(x).mean(1))

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of this rank's share of the batch, so that the mean over ranks is the loss of the batch."""
        ranks = self.trainer.strategy.distributed_sampler_kwargs if self.trainer.world_size > 1 else {"rank": 0, "num_replicas": 1}  # pyright: ignore[reportAttributeAccessIssue]
        tokens, labels = (part[ranks["rank"] :: ranks["num_replicas"]] for part in batch)
        return cross_entropy(self(tokens), labels)

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return AdamW."""
        if self.groups == 1:
            return torch.optim.AdamW(self.parameters(), lr=1e-2, weight_decay=0.1)
        weights = [p for name, p in self.named_parameters() if name.endswith("weight")]
        biases = [p for name, p in self.named_parameters() if not name.endswith("weight")]
        return torch.optim.AdamW([{"params": biases, "weight_decay": 0.0}, {"params": weights}], lr=1e-2, weight_decay=0.1)

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return ten batches, the same on every rank."""
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(0, TOKENS, (10 * BATCH, 6), generator=generator)
        return DataLoader(TensorDataset(tokens, tokens.sum(1) % CLASSES), batch_size=BATCH)
