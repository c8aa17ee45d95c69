"""neuralforecast (``pytorch_lightning``): it trains copies of models and so of callbacks, with trainers that it does not keep."""

from __future__ import annotations

import functools

import numpy
import pytest
import torch

pytest.importorskip("neuralforecast", reason="needs neuralforecast: see tests/clients/README.md")

import pandas
import pytorch_lightning as pl
from neuralforecast import NeuralForecast
from neuralforecast.models import NHITS, PatchTST
from neuralforecast.tsdataset import TimeSeriesDataModule, TimeSeriesDataset

from lightning_adam_mini import AdamMiniCallback
from tests.clients.common import assert_differ, assert_halved, assert_reported, assert_same, per_step_randomness, state

STEPS, HORIZON = 6, 4
SIZES = {
    NHITS: dict(mlp_units=3 * [[32, 32]]),
    PatchTST: dict(encoder_layers=1, n_heads=4, hidden_size=32, linear_hidden_size=64, patch_len=4, stride=4, dropout=0.1),
}


class KeepTrainer(pl.Callback):
    """Keeps the trainer, which neuralforecast does not, and the learning rates of all steps."""

    def __init__(self):
        self.trainer, self.rates = None, []

    def on_train_batch_end(self, trainer, *_):
        self.trainer = trainer
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def __deepcopy__(self, memo):
        return self  # so that the test's own is the one that runs


def series(count):
    hours = numpy.arange(60)
    times = pandas.date_range("2024", periods=len(hours), freq="h")
    return pandas.concat(pandas.DataFrame({"unique_id": str(i), "ds": times, "y": numpy.sin(hours / (2 + i))}) for i in range(count))


def make(kind, *callbacks, **options):
    return kind(
        h=HORIZON,
        input_size=16,
        max_steps=STEPS,
        optimizer=torch.optim.AdamW,
        optimizer_kwargs={"weight_decay": 0.1},
        learning_rate=1e-2,
        lr_scheduler=torch.optim.lr_scheduler.OneCycleLR,
        lr_scheduler_kwargs={"max_lr": 1e-2, "total_steps": 2 * STEPS},
        windows_batch_size=16,
        random_seed=0,
        accelerator="cpu",
        callbacks=[per_step_randomness(pl), *callbacks],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **SIZES[kind],
        **options,
    )


def ours(model):
    """The copy of our callback that ran."""
    [callback] = [c for c in model.trainer_kwargs["callbacks"] if isinstance(c, AdamMiniCallback)]
    return callback


@functools.cache
def forecast(kind, partition):
    """A run as a user would write it, without our callback if ``partition`` is None."""
    kept = KeepTrainer()
    forecaster = NeuralForecast([make(kind, kept, *([AdamMiniCallback(partition)] if partition else []))], freq="h")
    forecaster.fit(series(3))
    return forecaster, kept


@pytest.mark.parametrize("kind", SIZES)
def test_report_and_halved_state(kind):
    forecaster, kept = forecast(kind, "auto")
    [model] = forecaster.models
    assert_reported(ours(model), model, *kept.trainer.optimizers)
    assert_halved(ours(model), kept.trainer.optimizers, forecast(kind, None)[1].trainer.optimizers)


@pytest.mark.parametrize("kind", SIZES)
def test_adam_is_the_plain_run(kind):
    """With a scheduler that cycles the momentum as well."""
    (plain, plain_kept), (swapped, kept) = forecast(kind, None), forecast(kind, "adam")
    assert_same(state(plain.models[0]), state(swapped.models[0]))
    assert kept.rates == plain_kept.rates
    assert len(set(kept.rates)) == STEPS
    assert plain.predict().equals(swapped.predict())
    assert_differ(state(plain.models[0]), state(forecast(kind, "auto")[0].models[0]))


@pytest.mark.parametrize("partition", [None, "auto"])
@pytest.mark.parametrize("kind", SIZES)
def test_resume_from_lightnings_checkpoint(kind, partition, tmp_path):
    """neuralforecast itself cannot resume: its model goes to a trainer with a checkpoint instead."""

    def model(*callbacks):
        made = make(kind, *callbacks, *([AdamMiniCallback(partition)] if partition else []), enable_checkpointing=True)
        made.trainer_kwargs["default_root_dir"] = str(tmp_path)
        return made

    dataset = TimeSeriesDataset.from_df(series(1))[0]
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=STEPS // 2, save_top_k=-1)
    straight, resumed = model(saving), model()
    straight.fit(dataset)
    resumed.val_size = resumed.test_size = 0  # what its fit sets
    trainer = pl.Trainer(**resumed.trainer_kwargs)
    data = TimeSeriesDataModule(dataset, batch_size=32)
    # Its checkpoints hold classes of its own, and the callbacks that the model was made with.
    trainer.fit(resumed, data, ckpt_path=tmp_path / f"step={STEPS // 2}.ckpt", weights_only=False)
    assert trainer.global_step == STEPS
    assert_same(state(straight), state(resumed))


@pytest.mark.parametrize("partition", [None, "auto"])
def test_saved_forecaster_goes_on(partition, tmp_path):
    """Its files hold weights and no callbacks: these are given anew, and the optimizer begins anew, with the callback as without."""
    forecaster = NeuralForecast([make(NHITS, *([AdamMiniCallback(partition)] if partition else []))], freq="h")
    forecaster.fit(series(3))
    forecaster.save(str(tmp_path), overwrite=True)
    loaded = NeuralForecast.load(str(tmp_path))
    assert_same(state(forecaster.models[0]), state(loaded.models[0]))
    loaded.models[0].trainer_kwargs["callbacks"] = [per_step_randomness(pl), *([AdamMiniCallback(partition)] if partition else [])]
    forecaster.fit(series(3))
    loaded.fit(series(3))
    assert_same(state(forecaster.models[0]), state(loaded.models[0]))
