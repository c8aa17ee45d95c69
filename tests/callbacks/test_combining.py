"""Runs of a trainer whose AdamMini is combined with other methods."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI

from lightning_adam_mini import AdamMini, AdamMiniCallback, combine_, partition_model
from lightning_adam_mini.combine import ScheduleFree
from tests.callbacks import combining_ranks
from tests.callbacks.models import TokenModel, assert_differ, assert_equal, fit, weights
from tests.launch import run_ranks


class Watch(pl.Callback):
    """Keeps the weights that validations and checkpoints find, and those that gradients are taken at."""

    def __init__(self):
        self.validated, self.saved, self.trained = [], [], []

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking and batch_idx == 0:
            self.validated.append(weights(pl_module))

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.saved.append({name: value.clone() for name, value in checkpoint["state_dict"].items()})

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.trained.append(weights(pl_module))


def averages(trainer):
    """The weights that a run's optimizer averages to: x of y and z."""
    optimizer = trainer.optimizers[0]
    names = optimizer.parameter_names()
    optimizer.train()
    return {names[p]: torch.lerp(p, state["z"], 1 - 1 / 0.9).detach() for p, state in optimizer.state.items()}


@pytest.mark.parametrize("weights_only", [False, True])
def test_evaluations_and_checkpoints_have_averages(tmp_path, weights_only):
    watch, model = Watch(), TokenModel()
    saved = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1, save_weights_only=weights_only)
    trainer = fit(
        model,
        *(watch, AdamMiniCallback(combine="schedule_free"), saved),
        max_epochs=1,
        limit_val_batches=1,
        enable_checkpointing=True,
    )
    assert_equal(weights(model), watch.validated[-1])  # the fit ends with averages in place
    kept = torch.load(tmp_path / "step=5.ckpt", weights_only=True)["state_dict"]
    # Until then the average is of five sequences of weights, and gradients are taken elsewhere.
    assert_differ(kept, watch.trained[5])
    expected = averages(trainer)
    for name, value in watch.validated[-1].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)
    # No evaluation and no checkpoint: the averages come out the same but for rounding.
    bare = TokenModel()
    fit(bare, AdamMiniCallback(combine="schedule_free"), max_epochs=1)
    for name, value in weights(bare).items():
        if name == "encoder.self_attn.in_proj_bias":
            continue  # keys' biases have no gradient but rounding
        torch.testing.assert_close(value, watch.validated[-1][name], rtol=1e-3, atol=1e-5)


def resumes(tmp_path, callback, kind=TokenModel, **kwargs):
    """A run that is resumed after its first epoch ends as the run that goes on, to the bit."""

    def once(folder, ckpt_path=None):
        model = kind(lambda m: torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1))
        saved = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        options = {"limit_val_batches": 1, "val_check_interval": 4, "enable_checkpointing": True, **kwargs}
        trainer = fit(model, callback(), saved, ckpt_path=ckpt_path, **options)
        return trainer, weights(model)

    trainer, whole = once("whole")
    _, again = once("again", tmp_path / "whole" / "epoch=0.ckpt")
    assert_equal(whole, again)
    return trainer


def test_a_schedule_free_run_resumes_exactly(tmp_path):
    resumes(tmp_path, lambda: AdamMiniCallback(combine="schedule_free"))


def test_accumulated_gradients_and_a_state_dict_in_a_batch(tmp_path):
    class Curious(TokenModel):
        def training_step(self, batch, batch_idx):
            self.state_dict()  # must not move the weights under the forward pass
            return super().training_step(batch, batch_idx)

    runs = []
    for kind in (TokenModel, Curious):
        model = kind()
        fit(model, AdamMiniCallback(combine="schedule_free"), max_epochs=1, accumulate_grad_batches=2)
        runs.append(weights(model))
    assert_equal(*runs)


def test_a_second_fit_goes_on(tmp_path):
    optimizers = []

    def configure(module):
        if not optimizers:
            optimizers.append(torch.optim.AdamW(module.parameters(), lr=1e-2))
        return optimizers[0]

    model, callback = TokenModel(configure), AdamMiniCallback(combine="schedule_free")
    fit(model, callback, max_epochs=1)
    before = weights(model)
    trainer = fit(model, callback, max_epochs=1)
    assert_differ(before, weights(model))
    assert {float(state["step"]) for state in trainer.optimizers[0].state.values()} == {16.0}
    with pytest.raises(MisconfigurationException, match="combined with .* already"):
        fit(model, AdamMiniCallback(), max_epochs=1)


def test_from_yaml(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        """
trainer:
  max_steps: 2
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  limit_val_batches: 0
  callbacks:
    - class_path: lightning_adam_mini.AdamMiniCallback
      init_args:
        combine: {schedule_free: {r: 1.0}}
"""
    )
    cli = LightningCLI(TokenModel, save_config_callback=None, args=["fit", "--config", str(config)])
    assert cli.trainer.optimizers[0].part == ScheduleFree(r=1.0)


def test_a_user_s_own_combination_is_switched_too():
    def configure(module):
        return combine_(AdamMini(module.named_parameters(), layouts=partition_model(module)), "schedule_free")

    watch, model = Watch(), TokenModel(configure)
    fit(model, AdamMiniCallback(), watch, max_epochs=1, limit_val_batches=1)
    assert_differ(watch.validated[0], watch.trained[-1])
    with pytest.raises(MisconfigurationException, match="combines what it converts"):
        fit(TokenModel(lambda m: AdamMini(m.named_parameters(), layouts={})), AdamMiniCallback(combine="schedule_free"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"combine": "scheduled"}, "no combination 'scheduled'. Give one of schedule_free"),
        ({"combine": "badam"}, "BAdam is a callback of its own. Add lightning_adam_mini.BAdam"),
        ({"combine": "galore:rank=4:rank=5"}, "has two settings 'rank'"),
        ({"combine": {"schedule_free": {"rr": 1}}}, "ScheduleFree has no 'rr'. It takes r, power"),
        ({"combine": "schedule_free", "partition": "slim_adam_auto"}, "slim_adam_auto changes blocks"),
    ],
)
def test_what_is_refused_at_once(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        AdamMiniCallback(**arguments)


def test_what_is_refused_when_the_fit_begins():
    for arguments, message in (
        ({"partition": "muon"}, "ScheduleFree does not go with orthogonalised updates .* parameter 'encoder"),
        ({"momentum_dtype": "8bit"}, "ScheduleFree does not go with momentum_dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(TokenModel(), AdamMiniCallback(combine="schedule_free", **arguments))
    with pytest.raises(MisconfigurationException, match=r"combine='schedule_free'\) does not go with FSDPStrategy"):
        fit(TokenModel(), AdamMiniCallback(combine="schedule_free"), strategy=_fsdp())


def _fsdp():
    from lightning.pytorch.strategies import FSDPStrategy

    class FSDPOnCPU(FSDPStrategy):
        """Refused before anything of it is used."""

        @property
        def root_device(self):
            return torch.device("cpu")

        def setup_environment(self):
            pass

    FSDPOnCPU.__name__ = "FSDPStrategy"
    return FSDPOnCPU()


@pytest.mark.timeout(300)
def test_two_ranks_under_ddp_are_one_process(tmp_path):
    (alone,) = run_ranks(combining_ranks.train, 1, tmp_path, 1)
    ranks = run_ranks(combining_ranks.train, 2, tmp_path, 2)
    for outcome in (alone, *ranks):
        if isinstance(outcome, Exception):
            raise outcome
    for name, whole in alone.items():
        assert_equal(ranks[0][name], ranks[1][name])
        for key, value in whole.items():
            if key != "encoder.self_attn.in_proj_bias":  # keys' biases have no gradient but rounding
                torch.testing.assert_close(ranks[0][name][key], value, rtol=1e-3, atol=2e-4, msg=f"{name} {key}")
