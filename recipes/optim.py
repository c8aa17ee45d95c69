"""The optimizer of the recipes and its schedule: a linear warm-up, stepped every step, and what follows it."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, TypeAlias

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LinearLR, ReduceLROnPlateau

Schedule = Literal["cosine", "constant", "plateau"]
Groups: TypeAlias = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """What a recipe says of its optimizer.

    Args:
        lr: Peak learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        model: What is trained, for an optimizer that must know what each matrix is for.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    model: nn.Module | None = None


Builder: TypeAlias = Callable[[Groups, Settings], Optimizer]


def adamw(groups: Groups, settings: Settings) -> Optimizer:
    """Return torch's AdamW.

    Args:
        groups: Parameter groups.
        settings: The recipe's.
    """
    return AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay)


def find_builder(name: str) -> Builder:
    """Return what makes an optimizer.

    Args:
        name: ``adamw``, or where a function stands that takes parameter groups and `Settings`: ``my_package.optimizers.lion``.

    Raises:
        MisconfigurationException: If nothing stands there.

    Example:
        >>> find_builder("recipes.optim.adamw") is find_builder("adamw") is adamw
        True
    """
    module, _, function = ("recipes.optim.adamw" if name == "adamw" else name).rpartition(".")
    try:
        found: Builder | None = getattr(import_module(module), function) if module else None
    except (ImportError, AttributeError) as error:
        raise MisconfigurationException(f"There is no optimizer {name!r}, because {error}; name another function.") from error
    if found is None or not callable(found):
        raise MisconfigurationException(
            f"There is no optimizer {name!r}; it is adamw, or where a function stands that makes another, such as experiments.rivals.lion."
        )
    return found


def wants_graph(optimizer: Optimizer) -> bool:
    """Return whether the next step of an optimizer differentiates the gradients, so that the backward pass must keep their graph.

    Args:
        optimizer: The optimizer.
    """
    period = getattr(optimizer, "update_period", None)
    return period is not None and optimizer.param_groups[0].get("step", 0) % period == 0


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
        optimizer: ``adamw``, which `AdamMiniCallback` turns into Adam-mini, or where a function stands that makes another from parameter
            groups and `Settings`, such as ``experiments.rivals.lion``.
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
    made = find_builder(optimizer)(groups, settings)
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
