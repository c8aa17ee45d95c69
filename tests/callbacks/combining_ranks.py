"""What each rank of the tests of combinations runs; ``test_combining.py`` starts the ranks."""

from __future__ import annotations

import warnings

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_adam_mini import AdamMiniCallback, BAdam
from tests.callbacks.models import TokenModel, weights

RUNS = {
    "schedule_free": lambda: [AdamMiniCallback(combine="schedule_free")],
    "galore": lambda: [AdamMiniCallback(combine="galore:rank=4:every=3")],
    "sophia": lambda: [AdamMiniCallback(combine="sophia:every=3")],
    "badam": lambda: [AdamMiniCallback(), BAdam(every=3)],
}


def train(ranks: int) -> dict[str, dict[str, torch.Tensor]]:
    """The weights that each combination ends with, on this rank."""
    warnings.simplefilter("ignore")
    found = {}
    for name, callbacks in RUNS.items():
        strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=name == "badam") if ranks > 1 else "auto"
        # Two ranks' batches of 4 are one batch of 8.
        model = TokenModel(lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, eps=1e-4), batch_size=8 // ranks)
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=ranks,
            strategy=strategy,
            max_epochs=1,
            callbacks=callbacks(),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=1,
            use_distributed_sampler=False,
        )
        trainer.fit(model)
        found[name] = weights(model)
    return found
