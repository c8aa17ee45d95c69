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

TOKENS, CLASSES, BATCH = 37, 5, 8

# What is shared over what: by token, by head (which ranks cut), a fused projection, rows and columns, columns, whole tensors, elements.
_BLOCKS: dict[str, Any] = {
    "embed.weight": "line",
    "query.bias": "parameter",
    "qkv.bias": "tensor",
    "up.weight": "factored",
    "up.bias": "parameter",
    "down.weight": {"dims": [0]},
    "down.bias": "parameter",
    "norm.weight": "tensor",
    "norm.bias": "tensor",
    "head.weight": "factored",
    "head.bias": "parameter",
}


def blocks(wide: bool) -> dict[str, Any]:
    """What is shared over what in a network.

    Args:
        wide: Whether it is ten times as wide.
    """
    head, projected, values = (30, 50, 100) if wide else (3, 5, 10)
    return {**_BLOCKS, "query.weight": f"q:4x{head}", "qkv.weight": f"q:2x{projected}|k:2x{projected}|v:{values}x1"}


BLOCKS = blocks(wide=False)


class Network(pl.LightningModule):
    """Tokens to classes.

    Args:
        sharding: ``fsdp2`` and ``tensor`` say that this module shards itself in ``configure_model``, over data and tensors; ``offload``
            that its shards are offloaded.
        groups: 2, of which one does not decay, or 1: Lightning confuses those of AdamW when they go from one device to FSDP.
        wide: Whether it is ten times as wide, so that its matrices are large enough for momentum in 8 bits.
    """

    def __init__(self, sharding: tuple[str, ...] = (), groups: int = 2, wide: bool = False) -> None:
        super().__init__()
        self.groups = groups
        self.sharding = sharding
        torch.manual_seed(0)
        width, projected, hidden, out = (120, 300, 240, 90) if wide else (12, 30, 24, 9)
        self.embed = nn.Embedding(TOKENS, width)
        self.query = nn.Linear(width, width)
        self.qkv = nn.Linear(width, projected)
        self.up = nn.Linear(projected, hidden)
        self.down = nn.Linear(hidden, out)
        self.norm = nn.LayerNorm(out)
        self.head = nn.Linear(out, CLASSES)

    @override
    def configure_model(self) -> None:
        """Shard the layers, under ModelParallelStrategy."""
        if not self.sharding or isinstance(self.head.weight, DTensor):
            return
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard
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
            offload = CPUOffloadPolicy(pin_memory=False) if "offload" in self.sharding else OffloadPolicy()
            for layer in self.children():
                fully_shard(layer, mesh=mesh["data_parallel"], offload_policy=offload)

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
