"""What each rank of the tests of distributions runs, and the same classes for both; ``test_distributions.py`` starts the ranks."""

from __future__ import annotations

import importlib
import sys
import types
import warnings

from experiments.strategies.model import BLOCKS, Network
from experiments.strategies.run import whole_weights
from lightning_adam_mini import AdamMini, AdamMiniCallback
from lightning_adam_mini.callbacks.distribution import misconfiguration
from recipes.strategies import CPUFSDPStrategy

DISTRIBUTIONS = ("lightning.pytorch", "pytorch_lightning")
STRATEGIES = ("DDP", "FSDP1", "FSDP2")


def twin(kind, base):
    """A class as if it had been written on another base: ``super()`` in its functions is of that one."""
    cell = types.CellType()

    def rewritten(value):
        if not isinstance(value, types.FunctionType) or "__class__" not in value.__code__.co_freevars:
            return value
        names = value.__code__.co_freevars
        closure = tuple(cell if name == "__class__" else old for name, old in zip(names, value.__closure__, strict=True))
        function = types.FunctionType(value.__code__, value.__globals__, value.__name__, value.__defaults__, closure)
        function.__kwdefaults__ = value.__kwdefaults__
        return function

    written = {name: rewritten(value) for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    cell.cell_contents = type(kind.__name__, (base,), written)
    return cell.cell_contents


def make_strategy(pl, name):
    strategies = importlib.import_module(f"{pl.__name__}.strategies")
    if name == "DDP":
        return strategies.DDPStrategy(process_group_backend="gloo")
    if name == "FSDP1":
        return twin(CPUFSDPStrategy, strategies.FSDPStrategy)()  # one unit
    return strategies.ModelParallelStrategy(2, 1, save_distributed_checkpoint=False, process_group_backend="gloo")


def fit(pl, name, ckpt_path=None, epochs=2):
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=make_strategy(pl, name),
        max_epochs=epochs,
        callbacks=[AdamMiniCallback(overrides=BLOCKS)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(twin(Network, pl.LightningModule)(("fsdp2",) if name == "FSDP2" else ()), ckpt_path=ckpt_path)
    return trainer


def weights_of_runs(folder):
    """By strategy, whole weights of a run under each distribution, and of one that went on from the other's whole checkpoint."""
    warnings.simplefilter("ignore")
    first, second = map(importlib.import_module, DISTRIBUTIONS)
    found = {}
    for name in STRATEGIES:
        fit(first, name, epochs=1).save_checkpoint(folder / f"{name}.ckpt")
        runs = fit(first, name), fit(second, name), fit(second, name, ckpt_path=folder / f"{name}.ckpt")
        found[name] = tuple(map(whole_weights, runs))
    return found


def without_the_other():
    """Train where ``pytorch_lightning`` cannot be imported and nothing has imported it; what the class of an error is then."""
    warnings.simplefilter("ignore")
    assert "pytorch_lightning" not in sys.modules
    sys.modules["pytorch_lightning"] = None
    pl = importlib.import_module(DISTRIBUTIONS[0])
    trainer = pl.Trainer(accelerator="cpu", callbacks=[AdamMiniCallback()], fast_dev_run=2, enable_progress_bar=False)
    trainer.fit(Network())
    assert isinstance(trainer.optimizers[0], AdamMini)
    return type(misconfiguration("")).__mro__
