import csv
import gc
import weakref
from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.optim import AdamW

from lightning_adam_mini import AdamMiniCallback, AdamMiniWarning, SNRMonitor, partition_model
from lightning_adam_mini.optim import state_bytes
from lightning_adam_mini.partition import SlimAdamRules

from .models import TokenModel, assert_differ, assert_equal, fit, weights

# Cut-off 0 averages every matrix, whatever these few steps measure.
OPTIONS = {"steps": 6, "every": 2, "cutoff": 0.0}


def auto(**options):
    return AdamMiniCallback("slim_adam_auto", options={**OPTIONS, **options})


def steps(count, **kwargs):
    return {"max_steps": count, "max_epochs": -1, **kwargs}


def one_batch_an_epoch():
    """Lightning resumes an epoch from its beginning."""
    return TokenModel(size=8)


class Recorder(Callback):
    """Keeps layouts, bytes and learning rates after each batch."""

    def __init__(self):
        self.shared, self.bytes, self.lrs = [], [], []

    def on_train_batch_end(self, trainer, *_):
        optimizer = trainer.optimizers[0]
        self.shared.append(sum(not layout.is_per_parameter for layout in optimizer.layouts.values()))
        self.bytes.append(state_bytes(optimizer))
        self.lrs.append(optimizer.param_groups[0]["lr"])


def test_is_adamw_until_it_has_measured():
    plain, ours = TokenModel(), TokenModel()
    fit(plain, **steps(6))
    with pytest.warns(AdamMiniWarning, match="ended after 6 steps"):
        fit(ours, auto(lr_scale=1.0), **steps(6))
    assert_equal(weights(plain), weights(ours))
    fit(ours := TokenModel(), auto(lr_scale=1.0), **steps(7))
    fit(plain := TokenModel(), **steps(7))
    assert_differ(weights(plain), weights(ours))


def test_reduced_learning_rate_is_that_of_the_steps_alone():
    tenth, ours = TokenModel(lambda model: AdamW(model.parameters(), lr=1e-3)), TokenModel()
    fit(tenth, **steps(6))
    recorder = Recorder()
    with pytest.warns(AdamMiniWarning, match="ended after 6 steps"):
        fit(ours, auto(), recorder, **steps(6))
    for name, p in weights(tenth).items():
        torch.testing.assert_close(p, weights(ours)[name], rtol=1e-5, atol=1e-7)
    assert recorder.lrs == [1e-2] * 6  # a scheduler that multiplies what it finds goes on from the whole


def test_compresses_once_and_frees_the_memory(tmp_path):
    callback, recorder, monitor = auto(), Recorder(), SNRMonitor(every=2, cutoff=0.0, dirpath=tmp_path, figures=False)
    model, seen = TokenModel(), {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 6:
                state = trainer.optimizers[0].state
                seen.update({name: weakref.ref(state[p]["exp_avg_sq"]) for name, p in pl_module.named_parameters()})

    logger = CSVLogger(tmp_path)
    trainer = fit(model, callback, recorder, Watch(), monitor, logger=logger, **steps(9))
    gc.collect()
    matrices = [name for name, p in model.named_parameters() if p.ndim == 2]
    assert recorder.shared == [0] * 6 + [len(matrices)] * 3
    assert all(seen[name]() is None for name in matrices)

    rules = callback._run.one_run.rules
    layouts = partition_model(model, "slim_adam", rules=rules)
    assert trainer.optimizers[0].layouts == layouts
    # What the monitor measured at the same steps gives the same rules.
    assert monitor.history.steps == [2, 4, 6, 8]
    assert {
        name for (name, _), snr in zip(monitor.history.columns(), monitor.history.table()[-1].tolist(), strict=True) if snr == snr
    }.isdisjoint(matrices)  # afterwards there is nothing to measure in them
    assert {key: rule.dims for key, rule in monitor.rules.rules.items()} == {key: rule.dims for key, rule in rules.rules.items()}
    assert rules.provenance["measurements"] == 3
    assert rules.provenance["lr"] == pytest.approx(1e-3)
    for name, p in model.named_parameters():
        assert trainer.optimizers[0].state[p]["exp_avg_sq"].shape == layouts[name].block_shape

    fewer = sum(4 * (p.numel() - layouts[name].num_blocks) for name, p in model.named_parameters())
    assert recorder.bytes[5] - recorder.bytes[6] == fewer > 0
    with open(f"{logger.log_dir}/metrics.csv") as file:
        row = next(row for row in csv.DictReader(file) if row.get("weight_state/averaged_at_step"))
    logged = {key: float(row[f"weight_state/{key}"]) for key in ("averaged_at_step", "bytes_before", "bytes_after")}
    assert logged == {"averaged_at_step": 6, "bytes_before": recorder.bytes[5], "bytes_after": recorder.bytes[6]}
    assert SlimAdamRules.load(f"{logger.log_dir}/slim_adam_rules.yaml") == rules


def test_second_moments_go_on_as_the_averages_of_what_they_were():
    before, after = {}, {}

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 6:
                before.update({name: v.clone() for name, v in trainer.optimizers[0].second_moments().items()})

        def on_before_optimizer_step(self, trainer, *_):
            if trainer.global_step == 6:
                after.update(trainer.optimizers[0].second_moments())
                after["step"] = trainer.optimizers[0].state[trainer.model.head.weight]["step"].clone()

    callback = auto()
    fit(model := TokenModel(), callback, Watch(), **steps(7))
    assert after.pop("step") == 6  # nothing begins again
    layouts = partition_model(model, "slim_adam", rules=callback._run.one_run.rules)
    for name, v in after.items():
        dims = layouts[name].dims
        expected = before[name].mean(dims, keepdim=True) if dims else before[name]
        torch.testing.assert_close(v.expand(before[name].shape), expected.expand_as(before[name]))


def test_rows_that_cross_columns(tmp_path):
    """They go on from the averages over both, and a resumed run goes on with them."""
    means, model = {}, one_batch_an_epoch()

    class Watch(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 6:
                v = trainer.optimizers[0].state[model.encoder.linear1.weight]["exp_avg_sq"].double()
                means.update(exp_avg_sq=v.mean(1, keepdim=True), exp_avg_sq_col=v.mean(0, keepdim=True))

        def on_before_optimizer_step(self, trainer, *_):
            if trainer.global_step == 6:
                for name, mean in means.items():
                    ours = trainer.optimizers[0].state[model.encoder.linear1.weight][name]
                    torch.testing.assert_close(ours.double(), mean, rtol=1e-6, atol=0)

    fit(one_batch_an_epoch(), plain := auto(by="parameter"), **steps(7))
    snr = plain._run.one_run.rules.rules["encoder.linear1.weight"].snr
    factored = dict(by="parameter", factored=True, cutoff=snr)  # one mean is not enough
    fit(model, whole := auto(**factored), Watch(), **steps(12))
    assert means
    rule = whole._run.one_run.rules.rules["encoder.linear1.weight"]
    assert (rule.dims, rule.crossed) == ((1,), (0,))
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    fit(one_batch_an_epoch(), auto(**factored), checkpoint, **steps(9, enable_checkpointing=True))
    fit(resumed := one_batch_an_epoch(), again := auto(**factored), ckpt_path=checkpoint.last_model_path, **steps(12))
    assert_equal(weights(model), weights(resumed))
    assert again._run.one_run.rules == whole._run.one_run.rules


@pytest.mark.parametrize("at", [1, 4, 6, 7])
def test_resumed_run_is_the_uninterrupted_one(tmp_path, at):
    whole, recorder = one_batch_an_epoch(), Recorder()
    fit(whole, whole_callback := auto(), recorder, **steps(12))
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    with pytest.warns(AdamMiniWarning, match=f"ended after {at} steps") if at <= 6 else nullcontext():
        fit(one_batch_an_epoch(), auto(), checkpoint, **steps(at, enable_checkpointing=True))
    resumed, again = one_batch_an_epoch(), Recorder()
    fit(resumed, callback := auto(), again, ckpt_path=checkpoint.last_model_path, **steps(12))
    assert_equal(weights(whole), weights(resumed))
    assert again.shared == recorder.shared[at:]
    assert again.bytes == recorder.bytes[at:]
    assert callback._run.one_run.rules == whole_callback._run.one_run.rules


def test_checkpoint_written_by_another_callback_first(tmp_path):
    class Early(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "early.ckpt")

    fit(whole := one_batch_an_epoch(), auto(), **steps(12))
    fit(one_batch_an_epoch(), Early(), auto(), **steps(8))
    fit(resumed := one_batch_an_epoch(), auto(), ckpt_path=str(tmp_path / "early.ckpt"), **steps(12))
    assert_equal(weights(whole), weights(resumed))


def test_goes_on_without_the_callback(tmp_path):
    checkpoint = ModelCheckpoint(tmp_path, save_last=True)
    fit(TokenModel(), auto(), checkpoint, **steps(8, enable_checkpointing=True))
    trainer = fit(TokenModel(), ckpt_path=checkpoint.last_model_path, **steps(10))
    assert type(trainer.optimizers[0]) is AdamW
    assert trainer.global_step == 10


def test_overrides_hold_before_and_after():
    callback = AdamMiniCallback("slim_adam_auto", options=OPTIONS, overrides={"embed.weight": "parameter", "head.weight": "tensor"})
    recorder = Recorder()
    trainer = fit(TokenModel(), callback, recorder, **steps(8))
    layouts = trainer.optimizers[0].layouts
    assert recorder.shared[0] == 1
    assert layouts["embed.weight"].is_per_parameter
    assert layouts["head.weight"].num_blocks == 1


def test_a_cutoff_that_nothing_reaches_leaves_adamw():
    fit(plain := TokenModel(), **steps(9))
    fit(ours := TokenModel(), auto(cutoff=1e9, lr_scale=1.0), **steps(9))
    for name, p in weights(plain).items():
        torch.testing.assert_close(p, weights(ours)[name])


def test_a_run_too_short_says_so():
    with pytest.warns(AdamMiniWarning, match="ended after 4 steps, all of them Adam's"):
        fit(TokenModel(), auto(), **steps(4))


def test_two_optimizers_and_accumulation():
    def two(model):
        return AdamW(
            [{"params": model.encoder.parameters(), "lr": 1e-3}, {"params": [*model.embed.parameters(), *model.head.parameters()]}], lr=2e-3
        )

    recorder = Recorder()
    callback = auto()
    fit(TokenModel(two), callback, recorder, max_epochs=3, accumulate_grad_batches=2)  # 12 steps
    assert recorder.shared[11] == 0 < recorder.shared[12]
    assert callback._run.one_run.rules.provenance["lr"] == pytest.approx(2e-4)
    assert recorder.lrs == [1e-3] * 24


def test_a_second_fit_measures_anew():
    callback, model = auto(), TokenModel()
    fit(model, callback, **steps(8))
    first = callback._run.one_run.rules
    recorder = Recorder()
    fit(model, callback, recorder, **steps(8))
    assert recorder.shared[0] == 0 < recorder.shared[-1]
    assert callback._run.one_run.rules is not first
