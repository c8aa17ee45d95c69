"""What a training run amounts to: where its log is, what it reached and what its optimizer holds."""

from collections.abc import Mapping
from dataclasses import dataclass

import lightning.pytorch as pl
from torch import Tensor

from lightning_adam_mini import AdamMiniCallback, BAdam
from lightning_adam_mini.optim import state_bytes
from recipes.recipe import Headline


@dataclass(frozen=True)
class RunSummary:
    """A training run.

    Args:
        log_dir: Folder of its log; none without a logger.
        state_bytes: Bytes that its optimizer's state holds.
        adamw_bytes: Bytes that AdamW's would hold; none where the optimizer was not Adam-mini.
    """

    log_dir: str | None
    state_bytes: int
    adamw_bytes: int | None

    def line(self, headline: Headline, metrics: Mapping[str, Tensor]) -> str:
        """Return the run in one line.

        Args:
            headline: What the recipe is judged by.
            metrics: The metrics of the test.
        """
        reached = metrics.get(f"test/{headline.metric}")
        parts = [
            f"log: {self.log_dir or 'none'}",
            f"test {headline.title}: {'not measured' if reached is None else f'{float(reached):.4f}'}",
            f"optimizer state: {self.memory()}",
        ]
        return " | ".join(parts)

    def memory(self) -> str:
        """Return the optimizer's memory beside AdamW's."""
        if self.adamw_bytes is None:
            return f"{self.state_bytes / 1e6:.2f} MB"
        saved = 100.0 * (1.0 - self.state_bytes / self.adamw_bytes)
        return f"{self.state_bytes / 1e6:.2f} MB, AdamW's would be {self.adamw_bytes / 1e6:.2f} MB ({saved:.2f} % saved)"


def run_summary(trainer: pl.Trainer) -> RunSummary:
    """Read a summary off a trainer that has just fitted.

    Args:
        trainer: The trainer, before it tests.
    """
    badam = next((callback for callback in trainer.callbacks if isinstance(callback, BAdam)), None)  # pyright: ignore[reportAttributeAccessIssue]
    for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(callback, AdamMiniCallback):
            ours, adamw = callback.optimizer_state_bytes
            if badam is not None:
                ours, adamw = badam.most_state_bytes, 8 * sum(p.numel() for p in trainer.lightning_module.parameters())
            return RunSummary(trainer.log_dir, ours, adamw)
    return RunSummary(trainer.log_dir, sum(state_bytes(optimizer) for optimizer in trainer.optimizers), None)
