"""Momentum in fewer bits, and bfloat16 weights that are rounded at random, through the callback."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_adam_mini import AdamMiniCallback
from tests.callbacks.models import TokenModel, assert_differ, assert_equal, fit, weights


class WideModel(TokenModel):
    """With tensors that are large enough for 8 bits."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.encoder = nn.TransformerEncoderLayer(16, 4, dim_feedforward=300, dropout=0.0, batch_first=True)


def checkpointed(model, folder, *callbacks, ckpt_path=None, **kwargs):
    saver = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, save_on_train_epoch_end=True)
    return fit(model, saver, *callbacks, ckpt_path=ckpt_path, enable_checkpointing=True, **kwargs)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "8bit"])
def test_momentum_is_kept_as_asked_and_resuming_is_exact(kind, tmp_path):
    def callback():
        return AdamMiniCallback(momentum_dtype=kind)

    whole, resumed = WideModel(), WideModel()
    trainer = checkpointed(whole, tmp_path, callback())
    dtypes = {state["exp_avg"].dtype for state in trainer.optimizers[0].state.values()}
    assert dtypes == {"float32": {torch.float32}, "bfloat16": {torch.bfloat16}, "8bit": {torch.int8, torch.float32}}[kind]
    fit(resumed, callback(), ckpt_path=str(tmp_path / "step=8.ckpt"))
    assert_equal(weights(whole), weights(resumed))


@pytest.mark.parametrize(("before", "after"), [("8bit", None), (None, "8bit"), ("bfloat16", "8bit"), ("8bit", "without")])
def test_a_run_goes_on_with_another_momentum_dtype_or_without_the_callback(before, after, tmp_path):
    checkpointed(WideModel(), tmp_path, AdamMiniCallback("adam", momentum_dtype=before))
    callbacks = [] if after == "without" else [AdamMiniCallback("adam", momentum_dtype=after)]
    trainer = fit(WideModel(), *callbacks, ckpt_path=str(tmp_path / "step=8.ckpt"))
    assert trainer.global_step == 16
    codes = {name for state in trainer.optimizers[0].state.values() for name in state if "scale" in name}
    assert bool(codes) == (after == "8bit")


def test_rounding_at_random_repeats_resumes_and_differs(tmp_path):
    plain, whole, again, resumed = (WideModel() for _ in range(4))
    fit(plain, AdamMiniCallback(), precision="bf16-true")
    checkpointed(whole, tmp_path, AdamMiniCallback(stochastic_rounding=True), precision="bf16-true")
    torch.manual_seed(9)
    fit(again, AdamMiniCallback(stochastic_rounding=True), precision="bf16-true")
    fit(resumed, AdamMiniCallback(stochastic_rounding=True), ckpt_path=str(tmp_path / "step=8.ckpt"), precision="bf16-true")
    assert_differ(weights(plain), weights(whole))
    assert_equal(weights(whole), weights(again))
    assert_equal(weights(whole), weights(resumed))


def test_mistakes_are_told_before_training():
    with pytest.raises(MisconfigurationException, match="Invalid momentum_dtype value: 'int8'"):
        AdamMiniCallback(momentum_dtype="int8")
    model = WideModel()
    before = {name: value.clone() for name, value in weights(model).items()}
    with pytest.raises(MisconfigurationException, match='rounds bfloat16 weights, but the optimizer\'s are torch.float32.*"bf16-true"'):
        fit(model, AdamMiniCallback(stochastic_rounding=True))
    assert_equal(before, weights(model))
