"""What Lightning's DeepSpeedStrategy does to an optimizer: ZeRO puts its parameters into flat tensors after it was configured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl

from lightning_adam_mini.callbacks.distribution import inform, is_lightnings, misconfiguration
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.adam_mini import AdamMini
from lightning_adam_mini.optim.shards.zero import why_not
from lightning_adam_mini.optim.zero import FlatAdamMini, bind_zero_
from lightning_adam_mini.table import count

_FORCE = "zero_force_ds_cpu_optimizer"


def zero_stage(strategy: Any) -> int:
    """The stage of ZeRO that a strategy trains with; 0 if it does not."""
    if not is_lightnings(strategy, "DeepSpeedStrategy"):
        return 0
    return int((_config(strategy).get("zero_optimization") or {}).get("stage", 0))


def check_deepspeed(strategy: Any, probe: bool) -> None:
    """Refuse what AdamMini cannot follow in the configuration of a DeepSpeedStrategy; others pass. Every rank raises the same.

    Args:
        strategy: The trainer's strategy.
        probe: Whether the module is to be run once more.

    Raises:
        MisconfigurationException: If it configures something that AdamMini cannot follow.
    """
    if not is_lightnings(strategy, "DeepSpeedStrategy"):
        return
    config, stage = _config(strategy), zero_stage(strategy)
    problem = why_not(config)
    precision = str(getattr(strategy.precision_plugin, "precision", "32-true"))
    half = any((config.get(kind) or {}).get("enabled") for kind in ("fp16", "bf16")) or not precision.startswith("32")
    if problem is None and half and not stage:
        problem = "its optimizers of 16 bits without ZeRO were not tried. Use DeepSpeedStrategy(stage=1), which trains in 16 bits too."
    if problem is None and stage and probe:
        problem = (
            "probe=True cannot run the module once more where ZeRO shards it. Run inspect_model(model, example_input=...) once on one"
            " device, and give what it found as overrides={...}."
        )
    if problem is not None:
        raise misconfiguration(f"AdamMiniCallback cannot follow DeepSpeedStrategy here, because {problem}")


def check_layouts(strategy: Any, layouts: Mapping[str, BlockLayout], stochastic_rounding: bool) -> None:
    """Refuse blocks and rounding that do not go with ZeRO.

    Args:
        strategy: The trainer's strategy.
        layouts: The blocks of all parameters.
        stochastic_rounding: Whether bfloat16 weights are to be rounded at random.

    Raises:
        MisconfigurationException: If the strategy trains with ZeRO, and updates are orthogonalised or weights rounded at random.
    """
    if not zero_stage(strategy):
        return
    matrices = [name for name, layout in layouts.items() if layout.is_orthogonal]
    if matrices:
        raise misconfiguration(
            f"AdamMiniCallback cannot orthogonalise the updates of {count(len(matrices), 'parameter')}, {matrices[0]!r} among them,"
            " because ZeRO cuts matrices anywhere. Use FSDP2 (ModelParallelStrategy) or DDP, or choose the partition 'auto'."
        )
    if stochastic_rounding:
        raise misconfiguration(
            "AdamMiniCallback(stochastic_rounding=True) has nothing to round, because ZeRO steps float32 weights also if the model trains"
            " in bfloat16. Leave it out."
        )


def allow_offload(trainer: pl.Trainer) -> None:
    """Let DeepSpeed offload an optimizer that is not its own, which it refuses unless it is told otherwise.

    Args:
        trainer: The trainer, whose strategy gets a configuration of its own if it offloads the optimizer.
    """
    strategy: Any = trainer.strategy
    if not zero_stage(strategy):
        return
    config = _config(strategy)
    if _FORCE not in config and (config["zero_optimization"].get("offload_optimizer") or {}).get("device") == "cpu":
        strategy.config = {**config, _FORCE: False}
        inform(trainer, f"AdamMiniCallback: {_FORCE} is set to false, so that DeepSpeed offloads AdamMini's state")


def bind(trainer: pl.Trainer) -> None:
    """Let the optimizer step what ZeRO has made of its parameters, if it has and it is an AdamMini. Every rank has to call it."""
    if zero_stage(trainer.strategy) and any(isinstance(getattr(o, "optimizer", None), AdamMini) for o in trainer.optimizers):
        try:
            bind_zero_(trainer.strategy.model)
        except ValueError as error:
            raise misconfiguration(f"AdamMiniCallback: {error}") from error


def adam_minis(optimizers: Iterable[Any]) -> list[AdamMini]:
    """The AdamMinis among a trainer's optimizers; under ZeRO, one per flat tensor."""
    found: list[AdamMini] = []
    for optimizer in optimizers:
        inner = getattr(optimizer, "optimizer", None)
        if isinstance(inner, FlatAdamMini):
            found += inner.pieces()
        elif isinstance(optimizer, AdamMini):
            found.append(optimizer)
    return found


def _config(strategy: Any) -> Mapping[str, Any]:
    return strategy.config if isinstance(strategy.config, dict) else {}
