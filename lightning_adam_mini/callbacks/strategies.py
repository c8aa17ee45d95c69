"""What Lightning's strategies do to a model, as far as a callback has to know: refuse what flattens blocks, see through what shards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_adam_mini.callbacks.deepspeed import check_deepspeed
from lightning_adam_mini.callbacks.distribution import is_lightnings, misconfiguration
from lightning_adam_mini.optim.adam_mini import AdamMini
from lightning_adam_mini.optim.shards.flat import FlatShard, find_flat_shards
from lightning_adam_mini.optim.shards.zero import shards_of_zero_init


def check_strategy(strategy: Any, probe: bool) -> None:
    """Refuse a strategy under which parameters cannot keep their blocks. Every rank raises the same.

    Args:
        strategy: The trainer's strategy.
        probe: Whether the module is to be run once more.

    Raises:
        MisconfigurationException: If it flattens parameters into one without a way back, or does not let the module run once more.
    """
    if is_lightnings(strategy, "FSDPStrategy") and strategy.kwargs.get("use_orig_params") is False:
        raise misconfiguration(
            "AdamMiniCallback cannot tell parameters apart under FSDPStrategy(use_orig_params=False) because FSDP puts many into a flat one"
            " then. Set use_orig_params=True, which is Lightning's default."
        )
    check_deepspeed(strategy, probe)
    if probe and is_lightnings(strategy, "FSDPStrategy", "ModelParallelStrategy"):
        raise misconfiguration(
            f"AdamMiniCallback(probe=True) cannot run the module once more under {type(strategy).__name__} because its layers are sharded."
            " Run inspect_model(model, example_input=...) once on one device, and give what it found as overrides={...}."
        )


def check_measurable(strategy: Any, what: str) -> None:
    """Refuse to measure second moments that cannot be gathered. Every rank raises the same.

    Args:
        strategy: The trainer's strategy.
        what: Who measures.

    Raises:
        MisconfigurationException: If it is DeepSpeed's, which keeps them in an optimizer of its own.
    """
    if is_lightnings(strategy, "DeepSpeedStrategy"):
        raise misconfiguration(
            f"{what} cannot measure signal-to-noise ratios under {type(strategy).__name__} because DeepSpeed keeps second moments in flat"
            " tensors. Measure a short run on one device, under DDP or under FSDP, and train with its rules:"
            ' AdamMiniCallback(partition="slim_adam", options={"rules": file}).'
        )


def share_work(strategy: Any, optimizer: AdamMini) -> bool:
    """Let ranks share the work of matrices that are orthogonalised, where all of them have the same parameters and gradients: under DDP.

    Args:
        strategy: The trainer's strategy.
        optimizer: The optimizer.

    Returns:
        Whether they do.
    """
    # With model averaging, or a hook of the user's, gradients may differ; DeepSpeed's is a DDPStrategy too.
    alike = is_lightnings(strategy, "DDPStrategy") and not is_lightnings(strategy, "DeepSpeedStrategy")
    alike = alike and strategy._model_averaging_period is None and strategy._ddp_comm_hook is None
    if not alike or strategy.world_size == 1:
        return False
    optimizer.share_work(torch.distributed.group.WORLD)
    return True


def flat_shards_of(trainer: pl.Trainer, module: pl.LightningModule) -> dict[Tensor, FlatShard]:
    """Which range of each parameter this rank holds, where FSDP1 or ``deepspeed.zero.Init`` has sharded the model; else nothing."""
    model = trainer.strategy.model
    return find_flat_shards(module if model is None else model) or shards_of_zero_init(module)


@contextmanager
def as_unsharded(module: nn.Module, flat: Mapping[Tensor, FlatShard]) -> Iterator[None]:
    """Within it the module has the classes that it was written with and, on the meta device, whole parameters.

    Args:
        module: A module that FSDP1, FSDP2 or ``deepspeed.zero.Init`` has sharded; others stay as they are.
        flat: What :func:`flat_shards_of` gave.
    """
    whole = {p: nn.Parameter(torch.empty(shard.shape, device="meta"), p.requires_grad) for p, shard in flat.items()}
    undo: list[tuple[nn.Module, type, dict[str, Any]]] = []
    try:
        for part in module.modules():
            kind, written = type(part), _written_class(type(part))
            held = {name: p for name, p in part._parameters.items() if p is not None and p in whole} if whole else {}
            if written is kind and not held:
                continue  # TorchScript's modules let nothing be written to them
            undo.append((part, kind, held))
            if written is not kind:
                part.__class__ = written
            part._parameters.update({name: whole[p] for name, p in held.items()})
        yield
    finally:
        for part, kind, parameters in undo:
            if type(part) is not kind:
                part.__class__ = kind
            part._parameters.update(parameters)


def _written_class(kind: type) -> type:
    """The class that ``fully_shard`` has put its own before."""
    from torch.distributed.fsdp import FSDPModule

    return kind.__bases__[1] if issubclass(kind, FSDPModule) and len(kind.__bases__) == 2 and kind.__bases__[0] is FSDPModule else kind


def is_whole(state_dict: Mapping[str, Any]) -> bool:
    """Whether a state dict is whole and here: a sharded one has names for numbers, and other ranks than zero have nothing."""
    return bool(state_dict) and all(isinstance(i, int) for group in state_dict["param_groups"] for i in group["params"])


def number_as_in(module: pl.LightningModule, optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Number the parameters of a state dict as the module lists them, and list them in the order of their groups.

    Torch takes any numbers in that order. But FSDPStrategy and ModelParallelStrategy take them for places in ``module.parameters()`` when
    they load what another strategy wrote, and sort them when they write: with frozen parameters, several groups or another order, states
    would go to the wrong parameters.

    Args:
        module: The module.
        optimizer: The optimizer that gave the state dict.
        state_dict: The state dict, which is whole; left as it is.
    """
    place = {p: i for i, p in enumerate(module.parameters())}
    ours = [p for group in optimizer.param_groups for p in group["params"]]
    saved = [i for group in state_dict["param_groups"] for i in group["params"]]
    if any(p not in place for p in ours):
        return state_dict
    state = state_dict["state"]
    if not is_lightnings(module.trainer.strategy, "FSDPStrategy", "ModelParallelStrategy"):
        state = {place[p]: state[i] for i, p in zip(saved, ours, strict=True) if i in state}
    groups = [
        {**saved_group, "params": [place[p] for p in group["params"]]}
        for saved_group, group in zip(state_dict["param_groups"], optimizer.param_groups, strict=True)
    ]
    return {**state_dict, "state": state, "param_groups": groups}


def load_whole_checkpoints(strategy: Any) -> None:
    """Let the optimizers load checkpoints that are one file themselves under ModelParallelStrategy.

    Each rank reads its part of the file then. Lightning would have rank zero send it to all, and torch sends wrong numbers where a tensor
    is a broadcast view, as second moments are in checkpoints that AdamW may load too.

    Args:
        strategy: The strategy, which loads so for good, because it loads into the optimizers for tests after the fit too; others stay as
            they are.
    """
    if not is_lightnings(strategy, "ModelParallelStrategy") or "load_checkpoint" in vars(strategy):
        return
    original = strategy.load_checkpoint

    @wraps(original)
    def load_checkpoint(checkpoint_path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        optimizers = strategy.optimizers
        if not Path(checkpoint_path).is_file() or not all(isinstance(optimizer, AdamMini) for optimizer in optimizers):
            return original(checkpoint_path, *args, **kwargs)
        try:
            strategy.optimizers = []
            checkpoint = original(checkpoint_path, *args, **kwargs)
        finally:
            strategy.optimizers = optimizers
        for optimizer, state_dict in zip(optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            optimizer.load_state_dict(state_dict)
        return checkpoint

    strategy.load_checkpoint = load_checkpoint  # type: ignore[method-assign]
