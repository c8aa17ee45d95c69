"""What is stepped and trained: models that need no package but timm, and a toy of each for the rehearsal."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, silu
from torch.utils.data import DataLoader, TensorDataset
from typing_extensions import override

from experiments.gpu.case import Bench
from experiments.workloads import WORKLOADS, Workload
from recipes.language.gpt import GPT

BYTES = 56  # of a float32 parameter, when all rivals have their state at once, and what a step needs while it runs


class Gated(nn.Module):
    """Llama's MLP: the product of two linear layers, and a third.

    Args:
        width: Size of a token's vector.
        hidden: Size inside.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return the output for each token."""
        return self.down_proj(silu(self.gate_proj(x)) * self.up_proj(x))


def llama(layers: int, width: int, hidden: int, heads: int, kv_heads: int, vocabulary: int, context: int) -> GPT:
    """Return a language model whose tensors have the shapes of Llama's.

    Args:
        layers: Blocks.
        width: Size of a token's vector.
        hidden: Size inside the MLP.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        vocabulary: Tokens.
        context: Longest sequence.
    """
    model = GPT(vocabulary, context, layers, heads, kv_heads, width, positions="rotary", tied=False)
    for block in model.blocks:
        block.mlp = Gated(width, hidden)
    return model


def _language(name: str, title: str, layers: int, width: int, hidden: int, heads: int, kv_heads: int, context: int = 512) -> Workload:
    vocabulary = 32000 if width >= 512 else 64

    def loss(model: nn.Module, batch: int) -> Tensor:
        tokens = torch.randint(vocabulary, (batch, context), device=next(model.parameters()).device)
        return cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    return Workload(
        name,
        title,
        lambda: llama(layers, width, hidden, heads, kv_heads, vocabulary, context),
        loss,
        example=f"sequence of {context} tokens",
    )


TOY = _language("toy", "A toy", 1, 16, 24, 2, 1, context=8)


def gpt_60m() -> Workload:
    """Return the GPT of 60 million parameters."""
    return _language("gpt_60m", "GPT 60M (Llama's shapes)", layers=8, width=512, hidden=1536, heads=8, kv_heads=8)


def llama_1b(memory: float) -> Workload:
    """Return the language model of 1.1 billion parameters, or what of its 22 layers the memory holds.

    Args:
        memory: Bytes.
    """
    tables, layer = 2 * 32000 * 2048, 44e6
    layers = max(1, min(22, int((memory / BYTES - tables) / layer)))
    return _language("llama", f"Llama 1B's shapes, {layers} of 22 layers", layers, 2048, 5632, 32, 4)


def workloads(bench: Bench) -> list[Workload]:
    """Return what is stepped, small ones first.

    Args:
        bench: Where.
    """
    if bench.toy:
        return [TOY]
    named = {workload.name: workload for workload in WORKLOADS}
    return [named["resnet18"], named["vit_small"], gpt_60m(), llama_1b(torch.cuda.get_device_properties(bench.device).total_memory)]


class Sequences(pl.LightningModule):
    """Names the first token of a sequence: attention, embeddings, norms and an output layer in a small fit.

    Args:
        width: Size of a token's vector.
        batch: Examples of each of the 20 batches.
        lr: Learning rate.
    """

    def __init__(self, width: int, batch: int, lr: float = 3e-3) -> None:
        super().__init__()
        self.batch, self.lr = batch, lr
        torch.manual_seed(0)
        self.net = GPT(vocab_size=16, context=8, layers=2, heads=4, width=width, tied=False)
        self.losses: list[float] = []

    @override
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss = cross_entropy(self.net(batch[0])[:, -1].float(), batch[0][:, 0])
        self.losses.append(loss.item())
        return loss

    @override
    def configure_optimizers(self) -> Any:
        """Return AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.1)

    @override
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return 20 batches, always the same."""
        tokens = torch.randint(0, 16, (20 * self.batch, 8), generator=torch.Generator().manual_seed(1))
        return DataLoader(TensorDataset(tokens), batch_size=self.batch)
