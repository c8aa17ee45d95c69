"""chemprop (``lightning``): message passing over molecules, with Adam and the Noam-like schedule that its MPNN always makes."""

from __future__ import annotations

import functools

import pytest
import torch

pytest.importorskip("chemprop", reason="needs chemprop: see tests/clients/README.md")

from chemprop import data, models, nn
from lightning import pytorch as pl

from lightning_adam_mini import AdamMiniCallback
from tests.clients.common import assert_differ, assert_halved, assert_reported, assert_same, per_step_randomness, state

EPOCHS = 4
SMILES = ["CCO", "CCN", "c1ccccc1", "CC(=O)O", "C1CCCCC1", "CCCl", "c1ccncc1", "CC(C)O", "OCCO", "CC#N", "CCOC", "Cc1ccccc1"]


class LearningRates(pl.Callback):
    """Writes down the learning rate of each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(*callbacks, ckpt_path=None, folder=None):
    """A run; with a ``folder``, Lightning saves a checkpoint of each epoch there."""
    pl.seed_everything(0, verbose=False)
    points = [data.MoleculeDatapoint.from_smi(smiles, [float(len(smiles))]) for smiles in SMILES]
    train, val = data.MoleculeDataset(points[:8]), data.MoleculeDataset(points[8:])
    scaler = train.normalize_targets()
    val.normalize_targets(scaler)
    model = models.MPNN(
        nn.BondMessagePassing(d_h=64, dropout=0.1),
        nn.AttentiveAggregation(output_size=64),
        nn.RegressionFFN(input_dim=64, hidden_dim=64, output_transform=nn.UnscaleTransform.from_standard_scaler(scaler)),
        batch_norm=True,
        warmup_epochs=1,
    )
    saving = [pl.callbacks.ModelCheckpoint(folder, "{epoch}", monitor="val_loss", save_top_k=-1)] if folder else []
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        callbacks=[per_step_randomness(pl), *callbacks, *saving],
        logger=False,
        enable_checkpointing=bool(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        model,
        data.build_dataloader(train, batch_size=4, shuffle=False),  # chemprop's shuffle would begin anew in a resumed run
        data.build_dataloader(val, batch_size=4, shuffle=False),
        ckpt_path=ckpt_path,
        weights_only=False,  # chemprop keeps classes of its own in checkpoints
    )
    return model, trainer


@functools.cache
def straight(partition):
    """The run without a break, without our callback if ``partition`` is None."""
    callbacks = [AdamMiniCallback(partition)] if partition else []
    rates = LearningRates()
    return *fit(rates, *callbacks), rates.seen, *callbacks


def test_report_and_halved_state():
    model, trainer, _, callback = straight("auto")
    assert_reported(callback, model, *trainer.optimizers)
    assert_halved(callback, trainer.optimizers, straight(None)[1].optimizers)


def test_adam_is_the_plain_run():
    plain, _, plain_rates = straight(None)
    ours, _, rates, _ = straight("adam")
    assert_same(state(plain), state(ours))
    assert rates == plain_rates
    assert rates[0] < max(rates) > rates[-1], "the schedule warms up and cools down"
    assert_differ(state(plain), state(straight("auto")[0]))


@pytest.mark.parametrize("partition", [None, "auto"])
def test_resume(partition, tmp_path):
    def callbacks():
        return [AdamMiniCallback(partition)] if partition else []

    fit(*callbacks(), folder=tmp_path)
    resumed, _ = fit(*callbacks(), ckpt_path=tmp_path / "epoch=1.ckpt")
    assert_same(state(straight(partition)[0]), state(resumed))


def test_checkpoint_loads_as_a_model(tmp_path):
    """``MPNN.load_from_checkpoint`` reads what a run with the callback saved."""
    model, _ = fit(AdamMiniCallback(), folder=tmp_path)
    loaded = models.MPNN.load_from_checkpoint(tmp_path / f"epoch={EPOCHS - 1}.ckpt")
    weights = {name: value for name, value in state(model).items() if not name.startswith("metrics")}
    assert_same(weights, {name: value for name, value in state(loaded).items() if name in weights})
    points = [data.MoleculeDatapoint.from_smi(smiles) for smiles in SMILES]
    batch = next(iter(data.build_dataloader(data.MoleculeDataset(points), shuffle=False)))
    with torch.no_grad():
        assert torch.equal(model.eval()(batch.bmg), loaded.eval()(batch.bmg))
