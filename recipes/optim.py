"""The optimizer of the recipes: torch's AdamW with a linear warm-up and a cosine to zero, stepped every step."""

import math
from collections.abc import Iterable

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the share of the peak learning rate that a step takes.

    Args:
        step: The step about to be taken, from 0.
        total_steps: Length of the run.
        warmup_steps: Steps of the linear rise at its start.

    Example:
        >>> [round(warmup_cosine(step, total_steps=6, warmup_steps=2), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def adamw_warmup_cosine(
    parameters: Iterable[nn.Parameter],
    total_steps: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    warmup: float,
) -> OptimizerLRSchedulerConfig:
    """Build what ``configure_optimizers`` returns.

    Args:
        parameters: What to train.
        total_steps: Length of the run (``trainer.estimated_stepping_batches``).
        lr: Peak learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        warmup: Share of the run over which the learning rate rises.
    """
    if not 0.0 <= warmup < 1.0:
        raise MisconfigurationException(f"Invalid warmup value: {warmup}, because it is a share of the run; give a number in [0, 1)")
    optimizer = AdamW(parameters, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    warmup_steps = round(warmup * total_steps)
    scheduler = LambdaLR(optimizer, lambda step: warmup_cosine(step, total_steps, warmup_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
