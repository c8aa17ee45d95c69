"""scvi-tools (``lightning``): its training plans keep the network as ``module``; some train two optimizers by hand."""

from __future__ import annotations

import functools

import pytest
import torch

pytest.importorskip("scvi", reason="needs scvi-tools: see tests/clients/README.md")

import lightning.pytorch as pl
import scvi

from lightning_adam_mini import AdamMiniCallback
from tests.clients.common import assert_differ, assert_halved, assert_reported, assert_same, per_step_randomness, state

EPOCHS = 4
PLATEAU = {"reduce_lr_on_plateau": True, "lr_scheduler_metric": "reconstruction_loss_validation", "lr_patience": 0, "lr_threshold": 1e6}


class LearningRates(pl.Callback):
    """Writes down the learning rate of each epoch."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, *_):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


class SameShuffles(pl.Callback):
    """Makes a resumed run shuffle each epoch as an unbroken one; scvi-tools always shuffles, by torch's generator."""

    def __init__(self):
        self.began = False

    def on_train_epoch_start(self, trainer, *_):
        torch.manual_seed(trainer.current_epoch)
        if not self.began:  # the loader draws once when it begins an epoch: in a run's first, before this hook; in others, after it
            torch.empty((), dtype=torch.int64).random_()
        self.began = True


def cells():
    """Counts of genes and proteins that scvi-tools draws itself."""
    scvi.settings.seed = 0
    return scvi.data.synthetic_iid(batch_size=64, n_genes=60, n_proteins=20)


def scvi_model():
    data = cells()
    scvi.model.SCVI.setup_anndata(data, batch_key="batch")
    return scvi.model.SCVI(data, n_hidden=64, n_latent=8, dropout_rate=0.1)


def totalvi_model():
    """It has an adversarial classifier, and so two optimizers under manual optimization."""
    data = cells()
    scvi.model.TOTALVI.setup_anndata(data, batch_key="batch", protein_expression_obsm_key="protein_expression")
    return scvi.model.TOTALVI(data, n_latent=8)


def train(make, *callbacks, plan=PLATEAU, **options):
    model = make()
    model.train(
        max_epochs=EPOCHS,
        accelerator="cpu",
        batch_size=32,
        train_size=0.75,
        check_val_every_n_epoch=1,
        early_stopping=False,
        shuffle_set_split=False,
        plan_kwargs={"optimizer": "AdamW", "lr": 1e-3, "weight_decay": 1e-3, **plan},
        callbacks=[per_step_randomness(pl), *callbacks],
        enable_progress_bar=False,
        **options,
    )
    return model


def swap(partition):
    return [AdamMiniCallback(partition)] if partition else []


@functools.cache
def straight(make, partition):
    """The run without a break, without our callback if ``partition`` is None."""
    callbacks, rates = swap(partition), LearningRates()
    return train(make, rates, *callbacks), rates.seen, *callbacks


@pytest.mark.parametrize("make", [scvi_model, totalvi_model])
def test_report_and_halved_state(make):
    model, _, callback = straight(make, "auto")
    plan = model.trainer.lightning_module
    assert_reported(callback, plan, *model.trainer.optimizers)
    assert all(name.startswith("module.") for name in model.trainer.optimizers[0].layouts)
    assert_halved(callback, model.trainer.optimizers, straight(make, None)[0].trainer.optimizers)


@pytest.mark.parametrize("make", [scvi_model, totalvi_model])
def test_adam_is_the_plain_run(make):
    """With scvi-tools' own ``reduce_lr_on_plateau``."""
    (plain, plain_rates), (ours, rates, _) = straight(make, None), straight(make, "adam")
    assert_same(state(plain.module), state(ours.module))
    assert_same(state(plain.trainer.lightning_module), state(ours.trainer.lightning_module))
    assert rates == plain_rates
    assert rates[-1] < rates[0], "the rate was reduced"
    assert_differ(state(plain.module), state(straight(make, "auto")[0].module))


@pytest.mark.parametrize("partition", [None, "auto"])
@pytest.mark.parametrize(("make", "plan"), [(scvi_model, {}), (totalvi_model, PLATEAU)])
def test_resume(make, plan, partition, tmp_path, monkeypatch):
    """From Lightning's checkpoint, which ``train`` takes as ``ckpt_path``, beside scvi-tools' own, which hold no optimizer.

    On a plateau's schedule, Lightning's resumed runs are one epoch behind, with torch's AdamW too, unless the plan steps it by hand.
    """
    monkeypatch.setattr(scvi.settings, "logging_dir", tmp_path)
    saving = pl.callbacks.ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    unbroken = train(make, SameShuffles(), *swap(partition), saving, plan=plan, enable_checkpointing=True)
    resumed = train(make, SameShuffles(), *swap(partition), plan=plan, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert_same(state(unbroken.trainer.lightning_module), state(resumed.trainer.lightning_module))


def test_saved_model_loads(tmp_path):
    model, *_ = straight(scvi_model, "auto")
    model.save(str(tmp_path / "model"), save_anndata=True)
    loaded = scvi.model.SCVI.load(str(tmp_path / "model"))
    assert_same(state(model.module), state(loaded.module))
    loaded.train(max_epochs=1, accelerator="cpu", callbacks=[AdamMiniCallback()], enable_progress_bar=False)
    assert_differ(state(model.module), state(loaded.module))
