"""What each rank of the test of probing runs; ``test_probe.py`` starts the ranks."""

from __future__ import annotations

import os
import warnings

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from lightning_adam_mini import AdamMiniCallback, BlockLayout
from tests.callbacks.models import WIDTH, TokenModel


class Attention(nn.Module):
    """Two heads in an order that nothing says, which only the first rank shows when it is run alone."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if x.is_meta and os.environ["LOCAL_RANK"] != "0":
            raise RuntimeError("this rank has no time")
        v, q, k = self.to_qkv(x).unflatten(-1, (2, 24)).transpose(1, 2).split(8, -1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def train(ranks: int) -> tuple[dict[str, BlockLayout], dict[str, Tensor]]:
    """The layouts that the optimizer has on this rank, and the weights that it ends with."""
    warnings.simplefilter("ignore")
    model = TokenModel(batch_size=4)
    model.encoder = Attention()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=DDPStrategy(process_group_backend="gloo"),
        max_steps=3,
        callbacks=[AdamMiniCallback("adam_mini")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model)
    (optimizer,) = trainer.optimizers
    return optimizer.layouts, {name: p.detach().clone() for name, p in model.named_parameters()}
