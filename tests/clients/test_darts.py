"""darts (``pytorch_lightning``): forecasting models that pickle their trainer's callbacks, and load them back by an allow-list."""

from __future__ import annotations

import functools

import pytest
import torch

pytest.importorskip("darts", reason="needs darts with torch: see tests/clients/README.md")

import numpy
from darts.models import TFTModel, TransformerModel
from darts.utils.serialization import safe_globals
from darts.utils.serialization.base import UnpicklingError
from darts.utils.timeseries_generation import sine_timeseries

from lightning_adam_mini import AdamMiniCallback
from tests.clients.common import assert_differ, assert_halved, assert_reported, assert_same, state

EPOCHS = 4
SIZES = {
    TransformerModel: dict(d_model=32, nhead=4, num_encoder_layers=1, num_decoder_layers=1, dim_feedforward=64, dropout=0.1),
    TFTModel: dict(hidden_size=32, lstm_layers=1, num_attention_heads=4, dropout=0.1, add_relative_index=True),
}


def make(kind, *callbacks, **options):
    settings = dict(
        input_chunk_length=12,
        output_chunk_length=4,
        batch_size=16,
        n_epochs=EPOCHS,
        optimizer_cls=torch.optim.AdamW,
        optimizer_kwargs={"lr": 1e-3},
        lr_scheduler_cls=torch.optim.lr_scheduler.ReduceLROnPlateau,
        lr_scheduler_kwargs={"monitor": "val_loss", "patience": 0, "threshold": 1.0, "factor": 0.5},
        random_state=0,
        pl_trainer_kwargs={"accelerator": "cpu", "callbacks": list(callbacks), "enable_progress_bar": False, "enable_model_summary": False},
    )
    return kind(**{**settings, **SIZES[kind], **options})


def fit(model, **options):
    series = sine_timeseries(length=80).astype(numpy.float32)
    model.fit(series[:60], val_series=series[40:], dataloader_kwargs={"shuffle": False}, **options)
    return model


def swap(partition):
    return [AdamMiniCallback(partition)] if partition else []


@functools.cache
def straight(kind, partition):
    """A run as a user would write it, without our callback if ``partition`` is None."""
    callbacks = swap(partition)
    return fit(make(kind, *callbacks)), *callbacks


@pytest.mark.parametrize("kind", SIZES)
def test_report_and_halved_state(kind):
    model, callback = straight(kind, "auto")
    assert_reported(callback, model.model, *model.trainer.optimizers)
    assert_halved(callback, model.trainer.optimizers, straight(kind, None)[0].trainer.optimizers)


@pytest.mark.parametrize("kind", SIZES)
def test_adam_is_the_plain_run(kind):
    """With a scheduler that reduces on a plateau, and dropout."""
    (plain,), (ours, _) = straight(kind, None), straight(kind, "adam")
    assert_same(state(plain.model), state(ours.model))
    [group], [expected] = ours.trainer.optimizers[0].param_groups, plain.trainer.optimizers[0].param_groups
    assert group["lr"] == expected["lr"] < 1e-3
    assert plain.predict(4) == ours.predict(4)
    assert_differ(state(plain.model), state(straight(kind, "auto")[0].model))


def test_double_precision():
    """darts trains in the precision of its series, which is double unless asked otherwise."""

    def run(*callbacks):
        model = make(TransformerModel, *callbacks, lr_scheduler_cls=None, lr_scheduler_kwargs=None)
        model.fit(sine_timeseries(length=60))
        return model

    callback = AdamMiniCallback()
    plain, ours = run(), run(callback)
    assert {p.dtype for p in ours.model.parameters()} == {torch.float64}
    assert_halved(callback, ours.trainer.optimizers, plain.trainer.optimizers)
    assert_same(state(plain.model), state(run(AdamMiniCallback("adam")).model))


@pytest.mark.parametrize("partition", [None, "auto"])
def test_resume_from_its_checkpoint(partition, tmp_path):
    """As darts documents it: ``load_from_checkpoint`` and ``fit``.

    Its files hold the trainer's callbacks, which it unpickles by an allow-list. That ours must be on it is what its own error says.
    The schedule is by epoch: on a plateau's, Lightning's resumed runs are one epoch behind, with torch's AdamW too.
    """
    options = dict(dropout=0.0, lr_scheduler_cls=torch.optim.lr_scheduler.ExponentialLR, lr_scheduler_kwargs={"gamma": 0.7})
    unbroken = fit(make(TransformerModel, *swap(partition), **options))
    saving = dict(model_name="resumed", work_dir=str(tmp_path), save_checkpoints=True)
    fit(make(TransformerModel, *swap(partition), **options, **saving), epochs=EPOCHS // 2)
    if partition:
        with pytest.raises(UnpicklingError, match=r"add_safe_globals\(\[lightning_adam_mini.*AdamMiniCallback\]\)"):
            TransformerModel.load_from_checkpoint("resumed", work_dir=str(tmp_path), best=False)
    with safe_globals([AdamMiniCallback]):
        loaded = TransformerModel.load_from_checkpoint("resumed", work_dir=str(tmp_path), best=False)
    fit(loaded, epochs=EPOCHS)
    assert loaded.epochs_trained == EPOCHS
    assert_same(state(unbroken.model), state(loaded.model))


def test_saved_model_forecasts(tmp_path):
    """``save`` and ``load``; a clean save needs no allow-list, since it holds no callbacks."""
    model, _ = straight(TransformerModel, "auto")
    model.save(str(tmp_path / "model.pt"))
    model.save(str(tmp_path / "clean.pt"), clean=True)
    with safe_globals([AdamMiniCallback]):
        loaded = TransformerModel.load(str(tmp_path / "model.pt"))
    clean = TransformerModel.load(str(tmp_path / "clean.pt"), pl_trainer_kwargs={"accelerator": "cpu"})
    assert model.predict(4) == loaded.predict(4) == clean.predict(4, series=model.training_series)
