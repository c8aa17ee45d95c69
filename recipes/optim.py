"""The optimizer of the recipes and its schedule: a linear warm-up, stepped every step, and what follows it."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

from recipes.rivals import Settings, find_rival

Schedule = Literal["cosine", "constant", "plateau"]


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, end: float = 0.0) -> float:
    """Return the share of the peak learning rate that a step takes.

    Args:
        step: The step about to be taken, from 0.
        total_steps: Length of the run.
        warmup_steps: Steps of the linear rise at its start.
        end: Share at the end.

    Example:
        >>> [round(warmup_cosine(step, total_steps=6, warmup_steps=2), 3) for step in range(6)]
        [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))


def configure(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    total_steps: int,
    model: nn.Module | None = None,
    *,
    optimizer: str = "adamw",
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    warmup: float = 0.0,
    schedule: Schedule = "cosine",
    cosine_end: float = 0.0,
) -> OptimizerLRScheduler:
    """Build what ``configure_optimizers`` returns. Its keyword arguments are those of every recipe's model.

    Args:
        parameters: What to train.
        total_steps: Length of the run (``trainer.estimated_stepping_batches``).
        model: What is trained, for an optimizer that must know what each matrix is for.
        optimizer: ``adamw``, which `AdamMiniCallback` turns into Adam-mini, or the name of a rival: adafactor, adafactor_zhai, sm3, came,
            lamb, lion, novograd, adamw_8bit, galore, sophia, muon_adamw or normuon_adamw.
        lr: Peak learning rate.
        betas: AdamW's decay of the first and the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        warmup: Share of the run over which the learning rate rises.
        schedule: What follows: ``cosine``; ``constant``; ``plateau`` halves it, to 0.001 at the least, after each 100 epochs in which the
            training loss has not fallen.
        cosine_end: Share of the peak learning rate at which the cosine ends.
    """
    if not 0.0 <= warmup < 1.0:
        raise MisconfigurationException(f"Invalid warmup value: {warmup}, because it is a share of the run; give a number in [0, 1)")
    given = list(parameters)
    groups = [one for one in given if isinstance(one, dict)] or [{"params": given}]
    settings = Settings(lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, model=model)
    made = find_rival(optimizer).build(groups, settings)
    warmup_steps = round(warmup * total_steps)
    if schedule == "cosine":
        scheduler = LambdaLR(made, lambda step: warmup_cosine(step, total_steps, warmup_steps, cosine_end))
        return {"optimizer": made, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
    # LinearLR, unlike LambdaLR, multiplies the rate that it finds, so that the plateau's cuts last
    rise = LinearLR(made, start_factor=1.0 / max(1, warmup_steps), total_iters=max(0, warmup_steps - 1))
    schedulers: list[LRSchedulerConfigType] = [{"scheduler": rise, "interval": "step"}]
    if schedule == "plateau":
        plateau = ReduceLROnPlateau(made, factor=0.5, patience=100, min_lr=1e-3)
        schedulers.append({"scheduler": plateau, "interval": "epoch", "monitor": "train/loss"})
    return [made], schedulers  # pyright: ignore[reportReturnType]  (Lightning takes dicts here, its type does not)
