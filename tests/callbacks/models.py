"""LightningModules that the callback's tests train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

VOCABULARY, WIDTH, HEADS = 11, 16, 4


class TokenModel(pl.LightningModule):
    """A transformer that reads five tokens and names the class of their sum; ``configure`` is its ``configure_optimizers``."""

    def __init__(self, configure: Callable[[TokenModel], Any] | None = None, size: int = 64, batch_size: int = 8) -> None:
        super().__init__()
        self.configure, self.size, self.batch_size = configure, size, batch_size
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.encoder = nn.TransformerEncoderLayer(WIDTH, HEADS, dim_feedforward=32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(tokens)).mean(1))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        if self.configure is None:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)
        return self.configure(self)

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(0, VOCABULARY, (self.size, 5), generator=generator)
        data = TensorDataset(tokens, tokens.sum(1) % 3)
        # In turn to each rank and unshuffled, so that two ranks' batches of 4 hold the examples of one batch of 8.
        sampler = DistributedSampler(data, shuffle=False) if torch.distributed.is_initialized() else None
        return DataLoader(data, batch_size=self.batch_size, sampler=sampler)

    val_dataloader = train_dataloader


class ConvModel(TokenModel):
    """A small CNN on the same interface: images made of the tokens."""

    def __init__(self, configure: Callable[[TokenModel], Any] | None = None, size: int = 64, batch_size: int = 8) -> None:
        super().__init__(configure, size, batch_size)
        del self.embed, self.encoder
        self.backbone = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())

    def forward(self, tokens: Tensor) -> Tensor:
        images = tokens.float()[:, None, :, None] * tokens.float()[:, None, None, :] / VOCABULARY**2
        return self.head(self.backbone(images).mean((2, 3)))


def fit(model: pl.LightningModule, *callbacks: pl.Callback, ckpt_path: str | None = None, **kwargs: Any) -> pl.Trainer:
    """Train on the CPU, quietly and without files unless asked for."""
    settings: dict[str, Any] = dict(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer = pl.Trainer(callbacks=list(callbacks), **{**settings, **kwargs})
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert any(not torch.equal(a[name], b[name]) for name in a)
