"""The callback beside the rest of Lightning: precision, clipping, checkpoints, other callbacks, DDP."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, LearningRateMonitor, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import lr_scheduler as ls

from lightning_adam_mini import AdamMini, AdamMiniCallback, AdamMiniWarning, SNRMonitor, partition_model
from tests.callbacks.models import ConvModel, TokenModel, assert_differ, assert_equal, fit, weights


@pytest.mark.parametrize(
    "kwargs",
    [
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.01},
        {"gradient_clip_val": 0.001, "gradient_clip_algorithm": "value"},
        {"precision": "bf16-mixed"},
        {"precision": "16-mixed"},
        {"precision": "bf16-true"},
        {"detect_anomaly": True},
    ],
    ids=str,
)
def test_trainer_features_train_as_without_the_callback(kwargs):
    plain, swapped = TokenModel(), TokenModel()
    fit(plain, **kwargs)
    narrow = kwargs.get("precision") == "bf16-true"
    with pytest.warns(AdamMiniWarning, match="are kept in float32") if narrow else nullcontext():
        trainer = fit(swapped, AdamMiniCallback("adam"), **kwargs)
    if narrow:  # AdamW's second moments are bfloat16 there, ours are not
        assert {v.dtype for v in trainer.optimizers[0].second_moments().values()} == {torch.float32}
        assert_differ(weights(plain), weights(swapped))
    else:
        assert_equal(weights(plain), weights(swapped))


class Compiled(TokenModel):
    def __init__(self):
        super().__init__()
        self.encoder = torch.compile(self.encoder, backend="aot_eager")


def test_compiled_parts_are_inspected_and_named_without_the_wrapper():
    model = Compiled()
    trainer = fit(model, AdamMiniCallback("adam_mini"), max_epochs=1)
    layouts = trainer.optimizers[0].layouts
    assert layouts["encoder.self_attn.in_proj_weight"].lines == "q:4x4|k:4x4|v:16x1"
    assert not any("_orig_mod" in name for name in layouts)


def test_whole_module_compiled():
    model = torch.compile(TokenModel(), backend="eager")
    trainer = fit(model, AdamMiniCallback("adam_mini"), max_epochs=1)
    assert trainer.optimizers[0].layouts["encoder.self_attn.in_proj_weight"].lines == "q:4x4|k:4x4|v:16x1"


# ---- checkpoints


class Killed(Exception):
    pass


class Kill(pl.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Killed


def every_epoch(path: Path) -> ModelCheckpoint:
    return ModelCheckpoint(path, save_on_train_epoch_end=True, save_top_k=-1, filename="{step}")


def scheduled(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return [optimizer], [{"scheduler": ls.OneCycleLR(optimizer, 1e-2, total_steps=40), "interval": "step"}]


@pytest.mark.parametrize(
    ("model_class", "partition"), [(TokenModel, "adam_mini"), (TokenModel, "adam"), (ConvModel, "adam_mini"), (ConvModel, "adalayer_ln_tl")]
)
def test_a_killed_run_resumes_to_the_bit(tmp_path, partition, model_class):
    straight = model_class(scheduled)
    fit(straight, AdamMiniCallback(partition), max_epochs=4)

    def run(ckpt_path=None, *more):
        model = model_class(scheduled)
        callbacks = [AdamMiniCallback(partition), every_epoch(tmp_path), *more]
        return model, lambda: fit(model, *callbacks, max_epochs=4, enable_checkpointing=True, ckpt_path=ckpt_path)

    _, start = run(None, Kill(13))
    with pytest.raises(Killed):
        start()
    assert (tmp_path / "step=8.ckpt").exists()
    resumed, go_on = run(str(tmp_path / "step=8.ckpt"))
    go_on()
    assert_equal(weights(straight), weights(resumed))


def save(path: Path, model: TokenModel, *callbacks: pl.Callback) -> str:
    trainer = fit(model, *callbacks, max_epochs=2)
    trainer.save_checkpoint(path)
    return str(path)


def test_adamw_run_goes_on_with_the_callback(tmp_path):
    plain = TokenModel()
    path = save(tmp_path / "adamw.ckpt", plain)
    theirs = torch.load(path, weights_only=True)["optimizer_states"][0]["state"]
    seen = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            seen.update({k: v.clone() for k, v in trainer.optimizers[0].second_moments().items()})

    with pytest.warns(AdamMiniWarning, match="averaged"):
        fit(TokenModel(), AdamMiniCallback("tensor"), Look(), max_epochs=3, ckpt_path=path)
    for i, name in enumerate(dict(plain.named_parameters())):
        torch.testing.assert_close(seen[name].double().squeeze(), theirs[i]["exp_avg_sq"].double().mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", ["32-true", "bf16-true", "64-true"])
def test_run_with_the_callback_goes_on_without_it(tmp_path, precision):
    model = TokenModel()
    trainer = fit(model, AdamMiniCallback(), precision=precision)
    trainer.save_checkpoint(tmp_path / "mini.ckpt")
    ours = trainer.optimizers[0].second_moments()
    seen = {}

    class Look(pl.Callback):
        def on_train_start(self, trainer, pl_module):
            optimizer = trainer.optimizers[0]
            assert type(optimizer) is torch.optim.AdamW
            seen.update({n: optimizer.state[p]["exp_avg_sq"].clone() for n, p in pl_module.named_parameters()})

    resumed = TokenModel()
    fit(resumed, Look(), max_epochs=3, ckpt_path=str(tmp_path / "mini.ckpt"), precision=precision)
    for name, p in resumed.named_parameters():
        torch.testing.assert_close(seen[name], ours[name].to(p.dtype).expand(p.shape), rtol=2 * torch.finfo(p.dtype).eps, atol=0)
    assert_differ(weights(model), weights(resumed))


def test_checkpoint_holds_tensors_and_plain_data_and_is_smaller(tmp_path):
    mini = Path(save(tmp_path / "mini.ckpt", TokenModel(), AdamMiniCallback("tensor")))
    adamw = Path(save(tmp_path / "adamw.ckpt", TokenModel()))
    checkpoint = torch.load(mini, weights_only=True)
    assert len(checkpoint["optimizer_states"][0]["param_groups"][0]["layouts"]) == 15
    assert mini.stat().st_size < adamw.stat().st_size


def test_another_partition_is_converted_where_blocks_nest_else_refused(tmp_path):
    path = save(tmp_path / "v2.ckpt", TokenModel(), AdamMiniCallback("adam_mini"))
    with pytest.warns(AdamMiniWarning, match="averaged"):
        fit(TokenModel(), AdamMiniCallback("tensor"), max_epochs=3, ckpt_path=path)
    with pytest.raises(ValueError, match="'head.weight' has blocks .* neither finer nor coarser"):
        fit(TokenModel(), AdamMiniCallback(overrides={"head.weight": {"dims": [0]}}), max_epochs=3, ckpt_path=path)


def test_conversion_of_checkpoints_can_be_forbidden(tmp_path):
    path = save(tmp_path / "adamw.ckpt", TokenModel())
    with pytest.raises(ValueError, match="'embed.weight' has other blocks .per parameter. .* convert_checkpoints=False"):
        fit(TokenModel(), AdamMiniCallback(convert_checkpoints=False), max_epochs=3, ckpt_path=path)
    path = save(tmp_path / "mini.ckpt", TokenModel(), AdamMiniCallback())
    fit(TokenModel(), AdamMiniCallback(convert_checkpoints=False), max_epochs=3, ckpt_path=path)


# ---- other callbacks


def moving_average():
    if not hasattr(pl.callbacks, "EMAWeightAveraging"):
        pytest.skip("needs lightning 2.6")
    return pl.callbacks.EMAWeightAveraging(decay=0.9)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("make", [moving_average, lambda: StochasticWeightAveraging(1e-3, swa_epoch_start=1)])
def test_weight_averaging_averages_as_without_the_callback(make):
    plain, swapped = ConvModel(), ConvModel()
    fit(plain, make(), max_epochs=3)
    fit(swapped, AdamMiniCallback("adam"), make(), max_epochs=3)
    assert_equal(weights(plain), weights(swapped))


def test_weight_averaging_resumes_with_the_callback(tmp_path):
    def run(**kwargs):
        model = TokenModel()
        fit(
            model,
            AdamMiniCallback(),
            moving_average(),
            every_epoch(tmp_path),
            enable_checkpointing=True,
            max_epochs=4,
            **kwargs,
        )
        return model

    straight = run()
    resumed = run(ckpt_path=str(tmp_path / "step=16.ckpt"))
    assert_equal(weights(straight), weights(resumed))


class HeadFirst(ConvModel):
    def configure_optimizers(self):
        return torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=1e-2)


def test_backbone_finetuning_adds_its_groups_with_layouts(recwarn):
    model = HeadFirst()
    finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-3)
    optimizer = fit(model, finetuning, AdamMiniCallback(), max_epochs=4).optimizers[0]
    assert len(optimizer.param_groups) == 2
    assert optimizer.layouts.items() <= partition_model(model).items()
    assert "backbone.0.weight" in optimizer.block_learning_rates()
    assert not [w for w in recwarn if issubclass(w.category, AdamMiniWarning)]


@pytest.mark.filterwarnings("ignore:The provided params to be frozen")
def test_backbone_finetuning_resumes_as_without_the_callback(tmp_path):
    def run(*callbacks, **kwargs):
        model = HeadFirst()
        finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=1, backbone_initial_lr=1e-3)
        fit(model, finetuning, *callbacks, max_epochs=4, **kwargs)
        return model

    run(AdamMiniCallback("adam"), every_epoch(tmp_path), enable_checkpointing=True)
    path = str(tmp_path / "step=16.ckpt")
    assert_equal(weights(run(ckpt_path=path)), weights(run(AdamMiniCallback("adam"), ckpt_path=path)))
    run(AdamMiniCallback(convert_checkpoints=True, overrides={"*": "parameter"}), ckpt_path=path)


def test_learning_rate_monitor_logs_one_curve_a_group(tmp_path):
    def configure(model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        return [optimizer], [ls.ExponentialLR(optimizer, 0.5)]

    logger = CSVLogger(tmp_path)
    fit(TokenModel(configure), AdamMiniCallback(monitor=False), LearningRateMonitor(), logger=logger, log_every_n_steps=1)
    header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert [h for h in header if h.startswith("lr-")] == ["lr-AdamW"]


# ---- memory


def test_bytes_are_counted_from_the_real_state(caplog):
    callback = AdamMiniCallback("tensor")
    model = TokenModel()
    with caplog.at_level("INFO"):
        trainer = fit(model, callback)
    counts = [p.numel() for p in model.parameters()]
    assert callback.optimizer_state_bytes == (sum(4 * n + 4 + 4 for n in counts), sum(8 * n + 4 for n in counts))
    assert trainer.optimizers[0].state_dict()["state"][0]["exp_avg_sq"].numel() == 1
    assert "optimizer state 0.01 MB, 50." in caplog.text


def test_report_is_shown_once_with_bytes(caplog):
    with caplog.at_level("INFO"):
        fit(TokenModel(), AdamMiniCallback())
    assert caplog.text.count("token_embedding") == 1
    assert "transformer" in caplog.text


def test_nothing_to_log_to_is_no_error():
    for kwargs in ({"logger": False}, {"fast_dev_run": True}, {"barebones": True, "enable_checkpointing": None, "logger": None}):
        settings = {k: v for k, v in kwargs.items() if v is not None}
        if "barebones" in kwargs:
            model = nn.Module.__new__(TokenModel)
            TokenModel.__init__(model)
            model.training_step = lambda batch, i, m=model: nn.functional.cross_entropy(m(batch[0]), batch[1])
            trainer = pl.Trainer(accelerator="cpu", devices=1, max_epochs=1, barebones=True, callbacks=[AdamMiniCallback()])
            trainer.fit(model)
        else:
            trainer = fit(TokenModel(), AdamMiniCallback(), **settings)
        assert isinstance(trainer.optimizers[0], AdamMini)


@pytest.mark.parametrize(
    "make", [lambda: AdamMiniCallback(overrides={"head.weight": "tensor"}), lambda: SNRMonitor(every=2, figures=False)]
)
@pytest.mark.parametrize("fitted", [False, True])
def test_a_pickle_names_no_class_but_the_callbacks(make, fitted, tmp_path):
    """As libraries that load by an allow-list of classes need it."""
    callback = make()
    if fitted:
        fit(TokenModel(), callback, default_root_dir=tmp_path)
    torch.save(callback, tmp_path / "callback.pt")
    assert len(torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / "callback.pt")) == 1
    assert (tmp_path / "callback.pt").stat().st_size < 20_000
    with torch.serialization.safe_globals([type(callback)]):
        twin = torch.load(tmp_path / "callback.pt")
    fit(TokenModel(), twin, default_root_dir=tmp_path)
