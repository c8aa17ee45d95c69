"""Under ``lightning.pytorch`` and under ``pytorch_lightning``: the same steps, files and messages."""

from __future__ import annotations

import csv
import importlib
import logging
import pickle
import subprocess
import sys

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.utilities import rank_zero
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import nn

import lightning_adam_mini.pytorch_lightning
from experiments.strategies.model import Network
from lightning_adam_mini import AdamMini, AdamMiniCallback, SNRMonitor
from lightning_adam_mini.callbacks.distribution import inform, is_lightnings
from lightning_adam_mini.callbacks.loggers import log_metrics
from lightning_adam_mini.callbacks.strategies import check_measurable, check_strategy, load_whole_checkpoints
from tests.callbacks import distribution_ranks
from tests.callbacks.models import TokenModel, weights
from tests.launch import run_ranks

PACKAGES = {package.__name__: package for package in (lightning.pytorch, pytorch_lightning)}


def in_each(function, *args, **kwargs):
    """What a function gives for each distribution, the ordinary one first."""
    return [function(package, *args, **kwargs) for package in PACKAGES.values()]


def part(pl, name):
    return importlib.import_module(f"{pl.__name__}.{name}")


def fit(pl, *callbacks, ckpt_path=None, **options):
    trainer = pl.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 2, "logger": False, "enable_checkpointing": False, "limit_val_batches": 0, **options},
    )
    trainer.fit(distribution_ranks.twin(TokenModel, pl.LightningModule)(), ckpt_path=ckpt_path)
    return trainer


def difference(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max() / b[name].abs().max()) for name in b)


@pytest.fixture(params=PACKAGES)
def pl(request):
    return PACKAGES[request.param]


# ---- what is trained -----------------------------------------------------------------------------------------------------------


def test_swaps_and_resumes_from_either(tmp_path):
    def straight(pl):
        trainer = fit(pl, AdamMiniCallback())
        assert isinstance(trainer.optimizers[0], AdamMini)
        return weights(trainer.model)

    def resumed(pl, written_by):
        fit(PACKAGES[written_by], AdamMiniCallback(), max_epochs=1).save_checkpoint(tmp_path / "epoch.ckpt")
        trainer = fit(pl, AdamMiniCallback(), ckpt_path=tmp_path / "epoch.ckpt")
        assert isinstance(trainer.optimizers[0], AdamMini)
        return weights(trainer.model)

    ours, theirs = in_each(straight)
    assert difference(theirs, ours) < 1e-6
    for name in PACKAGES:
        assert all(difference(found, ours) < 1e-6 for found in in_each(resumed, name))


def test_goes_on_without_the_callback(tmp_path, pl):
    fit(pl, AdamMiniCallback(), max_epochs=1).save_checkpoint(tmp_path / "epoch.ckpt")
    trainer = fit(pl, ckpt_path=tmp_path / "epoch.ckpt")
    assert type(trainer.optimizers[0]) is torch.optim.AdamW


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    outcomes = run_ranks(distribution_ranks.weights_of_runs, 2, folder, folder, seconds=300)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes


@pytest.fixture(scope="module")
def of_one_device():
    model = Network()
    options = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = lightning.pytorch.Trainer(
        accelerator="cpu", max_epochs=2, callbacks=[AdamMiniCallback(overrides=distribution_ranks.BLOCKS)], **options
    )
    trainer.fit(model)
    return weights(model)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", distribution_ranks.STRATEGIES)
def test_two_ranks(of_two_ranks, of_one_device, name):
    for outcome in of_two_ranks:
        ours, theirs, resumed = outcome[name]
        assert difference(ours, of_one_device) < 1e-5  # their sums are in another order
        for found in (theirs, resumed):
            assert difference(found, ours) < 1e-6


def test_measures_the_same_and_resumes_from_either(tmp_path):
    def measured(pl, folder, **options):
        monitor = SNRMonitor(every=3, dirpath=tmp_path / folder / pl.__name__, figures=False)
        trainer = fit(pl, monitor, **options)
        trainer.save_checkpoint(tmp_path / f"{folder} {pl.__name__}.ckpt")
        return monitor

    ours, theirs = in_each(measured, "straight")
    assert torch.equal(theirs.history.table(), ours.history.table())
    assert theirs.rules == ours.rules
    in_each(measured, "short", max_epochs=1)
    for name in PACKAGES:
        for resumed in in_each(measured, "resumed", ckpt_path=tmp_path / f"short {name}.ckpt"):
            assert resumed.history.steps == ours.history.steps
            assert torch.equal(resumed.history.table(), ours.history.table())


def test_slim_adam_in_one_run(tmp_path):
    def trained(pl):
        callback = AdamMiniCallback("slim_adam_auto", options={"steps": 6})
        trainer = fit(pl, callback, logger=part(pl, "loggers").CSVLogger(tmp_path, pl.__name__))
        assert list((tmp_path / pl.__name__).rglob("slim_adam_rules.yaml"))
        return weights(trainer.model)

    ours, theirs = in_each(trained)
    assert difference(theirs, ours) < 1e-6


def test_probes_the_first_batch(pl):
    callback = AdamMiniCallback("adam_mini", probe=True)
    fit(pl, callback, max_steps=2)
    assert callback._run.evidence is not None


# ---- what is logged ------------------------------------------------------------------------------------------------------------


def test_tensorboard(tmp_path):
    def logged(pl):
        logger = part(pl, "loggers").TensorBoardLogger(tmp_path, pl.__name__)
        options = {"log_every_n_steps": 4, "limit_val_batches": 1, "max_epochs": 1}
        fit(pl, AdamMiniCallback("adam_mini", histograms=True, heatmap=True), logger=logger, **options)
        sizes = dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0)
        return EventAccumulator(str(tmp_path / pl.__name__ / "version_0"), sizes).Reload()

    ours, theirs = in_each(logged)
    tags = theirs.Tags()
    assert {kind: sorted(names) for kind, names in tags.items() if isinstance(names, list)} == {
        kind: sorted(names) for kind, names in ours.Tags().items() if isinstance(names, list)
    }
    assert "weight_lr.qkv/log10" in tags["histograms"]
    assert tags["images"] == ["weight_lr/heads", "weight_lr/lines"]
    (config,) = theirs.Tensors("custom_scalars__config__")
    categories = Layout.FromString(config.tensor_proto.string_val[0]).category
    assert [category.title for category in categories] == ["effective learning rate / learning rate", "effective learning rate"]
    scalars = [tag for tag in tags["scalars"] if tag.startswith("weight_lr")]
    assert scalars
    for tag in scalars:
        assert [(e.step, e.value) for e in theirs.Scalars(tag)] == [(e.step, e.value) for e in ours.Scalars(tag)]


def test_csv(tmp_path):
    def logged(pl):
        fit(pl, AdamMiniCallback(), logger=part(pl, "loggers").CSVLogger(tmp_path, pl.__name__), log_every_n_steps=4)
        return list(csv.DictReader((tmp_path / pl.__name__ / "version_0" / "metrics.csv").read_text().splitlines()))

    ours, theirs = in_each(logged)
    assert theirs == ours
    assert any(name.startswith("weight_lr") for name in ours[0])


def test_mlflow_takes_a_thousand_at_a_time(pl):
    class Recorder(part(pl, "loggers").MLFlowLogger):
        def __init__(self):  # needs no MLflow
            self.calls = []

        def log_metrics(self, metrics, step=None):
            self.calls.append(len(metrics))

    recorder = Recorder()
    log_metrics(recorder, dict.fromkeys(map(str, range(2500)), 0.0), 1)
    assert recorder.calls == [1000, 1000, 500]


def test_messages_go_to_the_trainers_logger(tmp_path, pl, caplog, monkeypatch):
    # The one that was imported last, to which Lightning's functions would send them.
    monkeypatch.setattr(rank_zero.rank_zero_module, "log", logging.getLogger("imported.last"))
    run = dict(max_steps=4, max_epochs=-1)
    with caplog.at_level("INFO"):
        fit(pl, AdamMiniCallback("slim_adam_auto", options={"steps": 2}, probe=True), **run)
        fit(pl, SNRMonitor(every=2, dirpath=tmp_path, figures=False), **run)
    for what in ("token_embedding", "first batch ran", "averaged by what", "% of AdamW's", "SNRMonitor: wrote"):
        assert {record.name for record in caplog.records if what in record.message} == {f"{pl.__name__}.utilities.rank_zero"}
    caplog.clear()
    with caplog.at_level("WARNING", logger=pl.__name__):  # as darts silences one of them
        fit(pl, AdamMiniCallback(), **run)
    assert "AdamMini" not in caplog.text


def test_only_rank_zero_is_told(caplog, monkeypatch):
    with caplog.at_level("INFO"):
        inform(None, "first")
        monkeypatch.setattr(rank_zero.rank_zero_only, "rank", 1)
        inform(None, "second")
    assert [(record.name, record.message) for record in caplog.records] == [("lightning.pytorch.utilities.rank_zero", "first")]


def test_our_import_of_lightning_leaves_the_other_its_messages():
    code = "import pytorch_lightning\nfrom lightning_utilities.core import rank_zero"
    for ours in ("lightning_adam_mini", "lightning_adam_mini.pytorch_lightning"):
        code += f"\nimport {ours}\nassert rank_zero.log.name.startswith('pytorch_lightning'), '{ours}'"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- what is refused -----------------------------------------------------------------------------------------------------------


def test_errors_are_of_both(pl):
    kind = part(pl, "utilities.exceptions").MisconfigurationException
    with pytest.raises(kind, match="has 2 AdamMiniCallbacks") as caught:
        fit(pl, AdamMiniCallback(), type("Mine", (AdamMiniCallback,), {})())
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), copy.args) == (type(caught.value), caught.value.args)
    for make in (lambda: AdamMiniCallback(momentum_dtype="float8"), lambda: SNRMonitor(every=0)):
        with pytest.raises(kind):
            make()

    class SGDModel(distribution_ranks.twin(TokenModel, pl.LightningModule)):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, callbacks=[AdamMiniCallback()]
    )
    with pytest.raises(kind, match="no faithful translation of torch.optim"):
        trainer.fit(SGDModel())


def test_the_other_is_not_needed(tmp_path):
    (kinds,) = run_ranks(distribution_ranks.without_the_other, 1, tmp_path)  # in a process that has imported less than this one
    if isinstance(kinds, Exception):
        raise kinds
    assert kinds[0] is lightning.pytorch.utilities.exceptions.MisconfigurationException


@pytest.mark.parametrize("name", ["FSDPStrategy", "ModelParallelStrategy"])
def test_sharded_layers_are_not_probed(pl, name):
    error = part(pl, "utilities.exceptions").MisconfigurationException
    kind = getattr(part(pl, "strategies"), name)
    for strategy in (kind(), type("Mine", (kind,), {})()):
        check_strategy(strategy, probe=False)
        with pytest.raises(error, match="cannot run the module once more"):
            check_strategy(strategy, probe=True)


def test_what_flattens_is_refused(pl):
    error = part(pl, "utilities.exceptions").MisconfigurationException
    strategies = part(pl, "strategies")
    with pytest.raises(error, match="use_orig_params=False"):
        check_strategy(strategies.FSDPStrategy(use_orig_params=False), probe=False)
    strategy = object.__new__(strategies.DeepSpeedStrategy)  # needs no DeepSpeed
    strategy.config, strategy._precision_plugin = {"zero_optimization": {"elastic_checkpoint": True}}, None
    with pytest.raises(error, match="DeepSpeedStrategy .* elastic checkpoints"):
        check_strategy(strategy, probe=False)
    with pytest.raises(error, match="DeepSpeedStrategy"):
        check_measurable(strategy, "SNRMonitor")


def test_lightnings_classes_are_known_by_more_than_their_name(pl):
    strategies = part(pl, "strategies")
    foreign = type("ModelParallelStrategy", (), {"load_checkpoint": print, "__module__": "lightning.pytorch_of_mine"})()
    for strategy, found in ((strategies.ModelParallelStrategy(), True), (strategies.DDPStrategy(), False), (foreign, False)):
        assert is_lightnings(strategy, "ModelParallelStrategy") is found
        load_whole_checkpoints(strategy)
        assert ("load_checkpoint" in vars(strategy)) is found
    assert not is_lightnings(nn.Linear(1, 1), "Linear")


# ---- the command line ----------------------------------------------------------------------------------------------------------

YAML = """
trainer:
  callbacks:
    - class_path: lightning_adam_mini{}.AdamMiniCallback
      init_args: {{partition: adam}}
    - class_path: lightning_adam_mini{}.SNRMonitor
      init_args: {{every: 2, figures: false}}
"""


@pytest.fixture(autouse=True)
def _called_without_arguments(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py"])  # LightningCLI warns of pytest's


def callbacks_of(pl, args):
    boring = part(pl, "demos.boring_classes").BoringModel
    cli = part(pl, "cli").LightningCLI(boring, run=False, args=[*args, "--trainer.accelerator=cpu"], save_config_callback=None)
    return [callback for callback in cli.trainer.callbacks if type(callback).__module__.startswith("lightning_adam_mini")]


@pytest.mark.parametrize("path", ["", "lightning_adam_mini.", "lightning_adam_mini.pytorch_lightning."])
@pytest.mark.parametrize("sign", ["=", "+="])
def test_command_line(pl, path, sign):
    for name in ("AdamMiniCallback", "SNRMonitor"):
        (callback,) = callbacks_of(pl, [f"--trainer.callbacks{sign}{path}{name}"])
        assert type(callback).__name__ == name
        assert isinstance(callback, pl.Callback)


@pytest.mark.parametrize("module", ["", ".pytorch_lightning"])
def test_config_file(tmp_path, pl, module):
    (tmp_path / "config.yaml").write_text(YAML.format(module, module))
    swap, monitor = callbacks_of(pl, [f"--config={tmp_path / 'config.yaml'}"])
    assert (swap.partition, monitor.every) == ("adam", 2)


def test_fit_by_command_line(tmp_path, pl):
    boring = part(pl, "demos.boring_classes").BoringModel
    args = ["fit", "--optimizer=AdamW", "--trainer.callbacks+=AdamMiniCallback", "--trainer.callbacks.partition=adam_mini"]
    quiet = [
        "--trainer.accelerator=cpu",
        "--trainer.max_steps=2",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.limit_val_batches=0",
    ]
    cli = part(pl, "cli").LightningCLI(boring, args=args + quiet)
    assert isinstance(cli.trainer.optimizers[0], AdamMini)
    assert "AdamMiniCallback" in next(tmp_path.rglob("config.yaml")).read_text()


def test_one_class_for_both():
    assert lightning_adam_mini.pytorch_lightning.AdamMiniCallback is AdamMiniCallback
    assert lightning_adam_mini.pytorch_lightning.SNRMonitor is SNRMonitor
    importlib.reload(lightning_adam_mini.pytorch_lightning)
    assert AdamMiniCallback.__bases__.count(pytorch_lightning.Callback) == 1
    assert AdamMiniCallback().state_key == "AdamMiniCallback"
