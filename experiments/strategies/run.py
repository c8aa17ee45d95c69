"""One run on one rank: train some steps from a checkpoint or none, and write one."""

from __future__ import annotations

import logging
import warnings
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.strategies.model import Network, blocks
from experiments.strategies.replay import Replay, masters
from experiments.strategies.rows import ROWS
from lightning_adam_mini import AdamMini, AdamMiniCallback


class Job(NamedTuple):
    """What to run.

    Attributes:
        row: Name of the strategy; empty for a single device.
        ranks: How many.
        epochs: Up to which epoch to train.
        load: Checkpoint to resume from; empty for none.
        save: Where a checkpoint is written at the end; empty for nowhere.
        sharded: Whether that is a sharded one.
        plain: Whether to train with AdamW, without the callback.
        groups: Parameter groups.
        momentum: What AdamMini's first moments are kept in; empty for the parameters' dtype.
        wide: Whether the network is ten times as wide.
    """

    row: str
    ranks: int
    epochs: int
    load: str = ""
    save: str = ""
    sharded: bool = False
    plain: bool = False
    groups: int = 2
    momentum: str = ""
    wide: bool = False


class Outcome(NamedTuple):
    """What came of it on one rank.

    Attributes:
        weights: The whole parameters at the end.
        state: Bytes of optimizer state on this rank.
        sent: Bytes that one step of the optimizer hands to collectives on this rank, and the calls.
        replayed: What the weights should be, if the same steps were taken once more in one process.
    """

    weights: dict[str, Tensor]
    state: int
    sent: tuple[int, int]
    replayed: dict[str, Tensor]


class _Collectives(TorchDispatchMode):
    """Counts what is handed to collectives, whoever calls them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.calls = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func._opname:
            tensors = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, Tensor))
            self.calls += 1
        return func(*args, **(kwargs or {}))


def run(job: Job) -> Outcome:
    """Run a job on this rank.

    Args:
        job: What to run.
    """
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    row = ROWS.get(job.row)
    model = Network(row.sharding if row else (), job.groups, job.wide)
    momentum: Any = job.momentum or None
    callback = AdamMiniCallback(overrides=blocks(job.wide), momentum_dtype=momentum)
    replay = Replay() if row and row.precision != "32-true" and not job.load else None
    trainer = pl.Trainer(
        accelerator="cpu",
        precision=row.precision if row else "32-true",
        devices=job.ranks,
        strategy=row.make(job.ranks, job.sharded) if row else "auto",
        max_epochs=job.epochs,
        callbacks=[*([] if job.plain else [callback]), *([replay] if replay else [])],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, ckpt_path=job.load or None)
    weights = masters(model) if row and row.precision != "32-true" else whole_weights(trainer)
    if job.save:
        trainer.save_checkpoint(job.save)
    optimizer: Any = trainer.optimizers[0]
    counting = _Collectives()
    if row and row.zero:
        ours = [] if job.plain else optimizer.optimizer.pieces()
    else:
        ours = [optimizer] if isinstance(optimizer, AdamMini) else []
    with counting:
        for one in ours:
            one.step()
    return Outcome(
        weights,
        callback.optimizer_state_bytes[0] if not job.plain else 0,
        (counting.bytes, counting.calls),
        replay.weights() if replay else {},
    )


def whole_weights(trainer: pl.Trainer) -> dict[str, Tensor]:
    """Return the parameters, gathered from all ranks.

    Args:
        trainer: A trainer that has fitted.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = trainer.strategy.model
    assert model is not None
    with torch.no_grad(), FullyShardedDataParallel.summon_full_params(model, writeback=False):
        wrappers = ("_forward_module.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "module.")
        weights = {}
        for name, p in model.named_parameters():
            for wrapper in wrappers:
                name = name.replace(wrapper, "")
            weights[name] = _whole(p)
        return weights


def _whole(p: Any) -> Tensor:
    if not hasattr(p, "ds_id"):
        return (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
    import deepspeed

    with deepspeed.zero.GatheredParameters([p]):
        return p.detach().clone()
