"""What each rank of the tests of strategies runs; ``test_strategies.py`` starts the ranks."""

from __future__ import annotations

import csv
import os
import warnings
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from experiments.strategies.model import BLOCKS, Network
from experiments.strategies.rows import ROWS
from experiments.strategies.run import whole_weights
from lightning_adam_mini import AdamMiniCallback, SNRMonitor, partition_model
from lightning_adam_mini.partition import SlimAdamAutoPartition, SlimAdamRules
from recipes.strategies import CPUFSDPStrategy
from tests import launch


def fit(name, *callbacks, model=None, ckpt_path=None, sharded=False, blocks=None, partition="auto", **options):
    row = ROWS.get(name)
    ranks = row.ranks if row else 1
    model = model or Network(row.sharding if row else ())
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=row.make(ranks, sharded) if row else "auto",
        callbacks=[*([AdamMiniCallback(partition, overrides=BLOCKS if blocks is None else blocks)] if partition else []), *callbacks],
        **{"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options},
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


def differences(a, b):
    return max(float((a[name] - b[name]).abs().max() / b[name].abs().max()) for name in b)


OPTIONS = {
    "accumulation, clipping by value": {"accumulate_grad_batches": 3, "gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
    "clipping by norm": {"gradient_clip_val": 0.05},
}


def single(folder):
    """One device's weights with each option, its logged rates, and its checkpoint."""
    warnings.simplefilter("ignore")
    weights = {name: whole_weights(fit("", **options)) for name, options in OPTIONS.items()}
    fit("", SNRMonitor(every=4, dirpath=folder / "snr of one", figures=False), partition="adam", blocks={})
    weights["in one run"] = whole_weights(fit("", partition=IN_ONE_RUN, blocks={}))
    trainer = fit("", logger=CSVLogger(folder, "single"), log_every_n_steps=5)
    trainer.save_checkpoint(folder / "single.ckpt")
    return weights, logged(folder / "single")


def logged(folder):
    (file,) = folder.glob("**/metrics.csv")
    with file.open() as lines:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]


def check_options(name, folder, weights, rates):
    for option, kwargs in OPTIONS.items():
        if name == "FSDP1" and option == "clipping by norm":
            continue  # Lightning refuses it there
        assert differences(whole_weights(fit(name, **kwargs)), weights[option]) < 1e-5, option


def check_mixed_precision_resumes(name, folder, weights, rates):
    path = str(folder / f"{name}-mixed.ckpt")
    straight = fit(name, precision="bf16-mixed", max_epochs=2)
    assert {v.dtype for v in straight.optimizers[0].second_moments().values()} == {torch.float32}
    fit(name, precision="bf16-mixed").save_checkpoint(path)
    resumed = fit(name, precision="bf16-mixed", max_epochs=2, ckpt_path=path)
    a, b = whole_weights(straight), whole_weights(resumed)
    assert all(torch.equal(a[k], b[k]) for k in a)


def check_monitoring(name, folder, weights, rates):
    trainer = fit(name, logger=CSVLogger(folder, name), log_every_n_steps=5)
    if trainer.is_global_zero:
        here = logged(folder / name)
        assert len(here) == len(rates) == 2
        for ours, theirs in zip(here, rates, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(ours[tag] == pytest.approx(theirs[tag], rel=1e-4) for tag in theirs)


IN_ONE_RUN = SlimAdamAutoPartition(steps=6, every=3)


def ratios(folder):
    with (folder / "snr.csv").open() as lines:
        return {(row["step"], row["key"], row["compress_dims"]): float(row["snr"]) for row in csv.DictReader(lines)}


def check_signal_to_noise(name, folder, weights, rates):
    """Of a second moment that is sharded the ratio is that of all of it, also where AdamW keeps it, and the rules follow from it."""
    folders = {partition: folder / f"snr {name} {partition}" for partition in ("adam", None)}
    trainers = [
        fit(name, SNRMonitor(every=4, dirpath=here, figures=False), partition=partition, blocks={}) for partition, here in folders.items()
    ]
    if trainers[0].is_global_zero:  # only now: the other ranks do not wait for one that has failed
        expected, rules = ratios(folder / "snr of one"), SlimAdamRules.load(folder / "snr of one" / "slim_adam_rules.yaml")
        for here in folders.values():
            found, ours = ratios(here), SlimAdamRules.load(here / "slim_adam_rules.yaml")
            assert found == pytest.approx(expected, rel=1e-5)
            assert {key: rule.dims for key, rule in ours.rules.items()} == {key: rule.dims for key, rule in rules.rules.items()}
            assert ours.provenance["parameters"] == rules.provenance["parameters"]


def check_slim_adam_in_one_run(name, folder, weights, rates):
    trainer = fit(name, partition=IN_ONE_RUN, blocks={})
    assert any(not layout.is_per_parameter for layout in trainer.optimizers[0].layouts.values())
    assert differences(whole_weights(trainer), weights["in one run"]) < 1e-5


class Encoder(Network):
    """With attention, whose heads detection has to find behind what the strategy has wrapped."""

    def __init__(self, sharding=()):
        super().__init__(sharding)
        self.encoder = nn.TransformerEncoderLayer(12, 4, 20, dropout=0.0, batch_first=True)

    def forward(self, tokens):
        x = self.encoder(self.embed(tokens))
        return self.head(self.norm(self.down(torch.relu(self.up(self.qkv(self.query(x)))))).mean(1))


def check_detection(name, folder, weights, rates):
    expected = partition_model(Encoder(), "adam_mini")
    # nn.MultiheadAttention reads the weight of its output projection past FSDP1's wrapper, if that has one.
    row = "FSDP1, one unit" if name == "FSDP1" else name
    trainer = fit(row, model=Encoder(ROWS[row].sharding), blocks={}, partition="adam_mini", max_steps=2)
    assert trainer.optimizers[0].layouts == expected
    assert expected["encoder.self_attn.in_proj_weight"].lines == "q:4x3|k:4x3|v:12x1"


def check_refusals(name, folder, weights, rates):
    other = {**BLOCKS, "down.weight": {"dims": [1]}}
    with pytest.raises(ValueError, match="'down.weight' has blocks .* neither finer nor coarser"):
        fit(name, ckpt_path=str(folder / "single.ckpt"), blocks=other, max_epochs=2)
    if name == "FSDP1":
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        flat = pl.Trainer(
            accelerator="cpu", devices=2, strategy=CPUFSDPStrategy(use_orig_params=False), callbacks=[AdamMiniCallback()], **quiet
        )
        with pytest.raises(MisconfigurationException, match="use_orig_params=False"):
            flat.fit(Network())


CHECKS = (
    check_options,
    check_mixed_precision_resumes,
    check_monitoring,
    check_signal_to_noise,
    check_slim_adam_in_one_run,
    check_detection,
    check_refusals,
)


def run_checks(name, folder, weights, rates):
    """Run all checks of a strategy in one group of ranks; what went wrong, by name."""
    warnings.simplefilter("ignore")
    return launch.run_checks(CHECKS, name, folder, weights, rates)


class Kill(pl.Callback):
    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 14 and trainer.global_rank == 1:
            os._exit(7)


def killed(name, folder):
    warnings.simplefilter("ignore")
    every_epoch = ModelCheckpoint(folder / "kept", save_last=True, enable_version_counter=False)
    fit(name, every_epoch, Kill(), max_epochs=2, enable_checkpointing=True, sharded=True)


def resumed(name, folder):
    warnings.simplefilter("ignore")
    path = Path(folder / "kept" / "last.ckpt")
    return whole_weights(fit(name, max_epochs=2, ckpt_path=str(path), sharded=True)), whole_weights(fit(name, max_epochs=2))
