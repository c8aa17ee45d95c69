import csv
import pickle
import re

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Adam, AdamW

from lightning_adam_mini import AdamMiniCallback, AdamMiniWarning, SNRMonitor
from lightning_adam_mini.analysis import measure_snr
from lightning_adam_mini.partition import SlimAdamRules

from .models import ConvModel, TokenModel, fit, weights


def configured(kind, **options):
    return lambda model: kind(model.parameters(), lr=1e-3, **options)


def test_measures_what_adamw_holds(tmp_path):
    monitor = SNRMonitor(every=3, dirpath=tmp_path, figures=False)
    model = TokenModel()
    trainer = fit(model, monitor, max_steps=6, max_epochs=-1)
    assert monitor.history.steps == [3, 6]
    state = trainer.optimizers[0].state
    last = dict(zip(((name, layout) for name, layout in monitor.history.columns()), monitor.history.table()[-1].tolist(), strict=True))
    assert {name for name, _ in last} == {name for name, p in model.named_parameters() if p.numel() > 1}
    for (name, layout), snr in last.items():
        v = state[model.get_parameter(name)]["exp_avg_sq"]
        assert snr == pytest.approx(measure_snr(v, [layout]).item())
    assert sum(layout.lines is not None for _, layout in last) == 1  # heads of the fused qkv


@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_torch_and_ours_give_the_same(tmp_path, kind):
    torch_run, ours = (SNRMonitor(every=4, dirpath=tmp_path, figures=False) for _ in range(2))
    fit(ConvModel(configured(kind)), torch_run)
    fit(ConvModel(configured(kind)), AdamMiniCallback("adam"), ours)
    assert torch.equal(torch_run.history.table(), ours.history.table())
    assert torch_run.rules == ours.rules


def test_does_not_change_the_run(tmp_path):
    plain, monitored = TokenModel(), TokenModel()
    fit(plain)
    fit(monitored, SNRMonitor(every=1, dirpath=tmp_path))
    for name, p in weights(plain).items():
        assert torch.equal(p, weights(monitored)[name])


def test_writes_rules_measurements_and_figures(tmp_path):
    monitor = SNRMonitor(every=4, dirpath=tmp_path)
    fit(TokenModel(configured(AdamW)), monitor)
    rules = SlimAdamRules.load(tmp_path / "slim_adam_rules.yaml")
    assert rules == monitor.rules
    facts = {"model": "TokenModel", "architecture": "transformer", "lr": 1e-3, "steps": 16, "measurements": 4, "cutoff": 1.0}
    assert facts.items() <= rules.provenance.items()
    assert rules.provenance["depth_averaged"] is True
    assert {"token_embedding", "qkv", "attn_out", "mlp_up", "mlp_down", "norm", "bias"} <= rules.rules.keys()
    assert rules.rules["norm"].dims == ()
    with (tmp_path / "snr.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows} == {"4", "8", "12", "16"}
    for name in ("snr_trajectories.png", "snr_depth.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"

    model = TokenModel(configured(AdamW))
    fit(model, callback := AdamMiniCallback("slim_adam", options={"rules": str(tmp_path / "slim_adam_rules.yaml")}))
    kept = sum(v.numel() for state in callback._run.optimizers[0].state.values() for v in [state["exp_avg_sq"]])
    total = sum(p.numel() for p in model.parameters())
    assert rules.provenance["second_moments_kept"] == pytest.approx(kept / total, abs=1e-6)


def test_rules_that_cross_rows_and_columns(tmp_path):
    """Where neither rows nor columns alone will do: with this cut-off, which lies between their ratios and that of both."""
    plain = SNRMonitor(every=4, dirpath=tmp_path, by="parameter", figures=False)
    fit(TokenModel(), plain)
    ratios = plain.history.averages()["encoder.linear1.weight"]
    cutoff = (max(ratios[0,], ratios[1,]) + ratios["crossed"]) / 2
    assert max(ratios[0,], ratios[1,]) < cutoff < ratios["crossed"]
    monitor = pickle.loads(pickle.dumps(SNRMonitor(4, cutoff, "parameter", tmp_path, figures=False, factored=True)))
    fit(TokenModel(), monitor)
    assert torch.equal(monitor.history.table(), plain.history.table())
    rule = SlimAdamRules.load(tmp_path / "slim_adam_rules.yaml").rules["encoder.linear1.weight"]
    assert (rule.dims, rule.crossed, rule.snr) == ((1,), (0,), pytest.approx(ratios["crossed"]))
    fit(model := TokenModel(), callback := AdamMiniCallback("slim_adam", options={"rules": monitor.rules}))
    state = callback._run.optimizers[0].state[model.encoder.linear1.weight]
    assert [tuple(state[name].shape) for name in ("exp_avg_sq", "exp_avg_sq_col")] == [(32, 1), (1, 16)]
    kept = sum(
        v.numel() for state in callback._run.optimizers[0].state.values() for name, v in state.items() if name.startswith("exp_avg_sq")
    )
    total = sum(p.numel() for p in model.parameters())
    assert monitor.rules.provenance["second_moments_kept"] == pytest.approx(kept / total, abs=1e-6)


def test_lr_of_the_provenance_is_the_peak_of_a_schedule(tmp_path):
    def warm(model):
        optimizer = AdamW(model.parameters(), lr=4e-3)
        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1, s / 100)), "interval": "step"}]

    monitor = SNRMonitor(every=4, dirpath=tmp_path, by="parameter", figures=False)
    fit(TokenModel(warm), monitor)
    assert monitor.rules is not None
    assert monitor.rules.provenance["lr"] == 4e-3
    assert monitor.rules.by == "parameter"


@pytest.mark.parametrize("steps", [5, 6])
def test_resumed_run_measures_as_an_uninterrupted_one(tmp_path, steps):
    # An epoch is one batch, because Lightning resumes it from its beginning.
    whole, first, second = (SNRMonitor(every=3, dirpath=tmp_path / name, figures=False) for name in "abc")
    fit(TokenModel(size=8), whole, max_steps=12, max_epochs=-1)
    checkpoint = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_last=True)
    fit(TokenModel(size=8), first, checkpoint, max_steps=steps, max_epochs=-1, enable_checkpointing=True)
    fit(TokenModel(size=8), second, max_steps=12, max_epochs=-1, ckpt_path=checkpoint.last_model_path)
    assert second.history.steps == whole.history.steps == [3, 6, 9, 12]
    assert torch.equal(second.history.table(), whole.history.table())
    assert second.rules == whole.rules


def test_logs_by_parameter_and_by_layer_type(tmp_path):
    loggers = [CSVLogger(tmp_path, "csv"), TensorBoardLogger(tmp_path, "tb")]
    monitor = SNRMonitor(every=8, figures=False)
    fit(TokenModel(), monitor, logger=loggers)
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        row = next(row for row in csv.DictReader(file) if row.get("weight_snr/attn_out/dims_0"))
    one = float(row["weight_snr.attn_out/encoder.self_attn.out_proj.weight/dims_0"])
    assert one == pytest.approx(float(row["weight_snr/attn_out/dims_0"]))
    assert float(row["weight_snr.attn_out/encoder.self_attn.out_proj.weight/crossed"]) == float(row["weight_snr/attn_out/crossed"]) > one
    norms = [float(row[f"weight_snr.norm/encoder.norm{i}.weight/dims_0"]) for i in (1, 2)]
    assert float(row["weight_snr/norm/dims_0"]) == pytest.approx(sum(norms) / 2)
    assert (tmp_path / "csv" / "version_0" / "slim_adam_rules.yaml").is_file()  # beside the first logger's files


def test_accumulated_gradients_make_no_measurements(tmp_path):
    monitor = SNRMonitor(every=1, dirpath=tmp_path, figures=False)
    fit(TokenModel(), monitor, max_epochs=1, accumulate_grad_batches=4)
    assert monitor.history.steps == [1, 2]


def test_papers_cadence_on_a_short_run_is_a_warning(tmp_path):
    with pytest.warns(AdamMiniWarning, match="measured nothing in 16 steps"):
        fit(TokenModel(), SNRMonitor(dirpath=tmp_path))
    assert not list(tmp_path.iterdir())


def test_averaged_second_moments_are_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"cannot measure .*because the optimizer keeps its average only"):
        fit(TokenModel(), AdamMiniCallback(), SNRMonitor(every=1, dirpath=tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"), [({"every": 0}, "every=0"), ({"cutoff": -1.0}, "cutoff=-1.0"), ({"by": "name"}, "by='name'")]
)
def test_bad_arguments(arguments, message):
    with pytest.raises(MisconfigurationException, match=re.escape(message)):
        SNRMonitor(**arguments)
