"""The logger of effective learning rates, on a real trainer with the real optimizer."""

from __future__ import annotations

import copy
import csv
import math
import pickle
import re
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from lightning_adam_mini import AdamMini, AdamMiniCallback, AdamMiniWarning, BlockLayout, Monitoring
from lightning_adam_mini.callbacks import heatmap as heatmap_file
from lightning_adam_mini.callbacks.monitor import BlockLearningRateLogger
from lightning_adam_mini.callbacks.summary import ParameterRates, parts_of, summarize
from tests.callbacks import models

LAYOUTS = {
    "qkv.weight": BlockLayout.grouped((12, 4), "2*(q:1x2|k:1x2|v:2x1)"),
    "qkv.bias": BlockLayout.per_parameter((12,)),
    "out.weight": BlockLayout.whole((3, 12)),
    "out.bias": BlockLayout.whole((3,)),
    "mlp.weight": BlockLayout.factored((5, 4)),
}
GROUPS = {"qkv.weight": "qkv", "qkv.bias": "bias", "out.weight": "classifier", "out.bias": "bias", "mlp.weight": "mlp_up"}
HEADS = ["q.0", "q.1", "k.0", "k.1"]
CURVES = {  # beside min and max
    *(f"qkv/qkv.weight/{name}" for name in [*HEADS, "v/median"]),
    "vectors/bias/median",
    "classifier/out.weight",
    *(f"mlp_up/mlp.weight/{line}/median" for line in ("row", "column")),
}
TAGS = {
    *(f"weight_lr{ratio}.{curve}" for curve in CURVES for ratio in ("", "_ratio")),
    *(f"weight_lr.{curve.removesuffix('median')}{word}" for curve in CURVES if curve.endswith("median") for word in ("min", "max")),
}
LATE = {"weight_lr.parameters/late.weight", "weight_lr_ratio.parameters/late.weight"}


class Model(pl.LightningModule):
    """12 steps an epoch; layer ``late`` is not used before step 6."""

    def __init__(self, lr=1e-2):
        super().__init__()
        torch.manual_seed(0)
        self.lr = lr
        self.qkv, self.out, self.late = nn.Linear(4, 12), nn.Linear(12, 3), nn.Linear(3, 3, bias=False)
        self.mlp = nn.Linear(4, 5, bias=False)

    def training_step(self, batch, batch_idx):
        y = self.out(self.qkv(batch[0]).relu())
        return (self.late(y) if self.global_step >= 6 else y).square().mean() + self.mlp(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        layouts = LAYOUTS | {"late.weight": BlockLayout.whole((3, 3))}
        return AdamMini(self.named_parameters(), lr=self.lr, layouts=layouts)

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(24, 4)), batch_size=2)

    val_dataloader = train_dataloader


class Monitor(pl.Callback):
    """Calls the logger as AdamMiniCallback does, and keeps what the optimizer said at each logging step."""

    def __init__(self, logger):
        self.logger, self.said = logger, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer._logger_connector.should_update_logs:
            self.said[trainer.global_step - 1] = trainer.optimizers[0].margin_learning_rates()
            self.logger.log(trainer, trainer.optimizers)

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.logger.log_heatmap(trainer, trainer.optimizers)


def fit(tmp_path, logger, max_steps=12, **options):
    monitor = Monitor(BlockLearningRateLogger(Monitoring(**options), groups=GROUPS))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        log_every_n_steps=4,
        logger=logger,
        callbacks=[monitor],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Model())
    return monitor


def read(tmp_path) -> EventAccumulator:
    (path,) = [p.parent for p in tmp_path.rglob("events.out.*")]
    return EventAccumulator(str(path), dict.fromkeys(("scalars", "histograms", "images", "tensors"), 0)).Reload()


# ---- what is shown --------------------------------------------------------------------------------------------------------


def test_numbers():
    """Each head, each whole tensor, and min, median and max of the rest, in the layout's own order of blocks."""
    rates = torch.arange(1.0, 13).view(12, 1)
    for i, j in ((0, 1), (2, 3), (6, 7), (8, 9)):  # both lines of a head
        rates[j] = rates[i]
    parameters = [
        ParameterRates("qkv.weight", "qkv", LAYOUTS["qkv.weight"], [rates]),
        ParameterRates("qkv.bias", "bias", LAYOUTS["qkv.bias"], [torch.arange(12.0).double()]),
        ParameterRates("out.weight", "classifier", LAYOUTS["out.weight"], [torch.tensor([[0.5]])]),
        ParameterRates("out.bias", "bias", LAYOUTS["out.bias"], [torch.tensor([0.25])]),
        ParameterRates("empty", "other", BlockLayout((0, 2), (1,)), [torch.ones(0, 1)]),
        ParameterRates("mlp.weight", "mlp_up", LAYOUTS["mlp.weight"], [torch.tensor([[4.0], [1], [5], [2], [3]]), torch.arange(4.0)[None]]),
    ]
    numbers, samples = summarize(parameters, max_heads=64, histograms=True)
    assert {tag: x for tag, x in numbers.items() if tag.startswith("weight_lr.")} == {
        "weight_lr.qkv/qkv.weight/q.0": 1,
        "weight_lr.qkv/qkv.weight/k.0": 3,
        "weight_lr.qkv/qkv.weight/q.1": 7,
        "weight_lr.qkv/qkv.weight/k.1": 9,
        "weight_lr.qkv/qkv.weight/v/min": 5,
        "weight_lr.qkv/qkv.weight/v/median": 6,
        "weight_lr.qkv/qkv.weight/v/max": 12,
        "weight_lr.bias/qkv.bias/min": 0,
        "weight_lr.bias/qkv.bias/median": 5,
        "weight_lr.bias/qkv.bias/max": 11,
        "weight_lr.classifier/out.weight": 0.5,
        "weight_lr.bias/out.bias": 0.25,
        "weight_lr.mlp_up/mlp.weight/row/min": 1,
        "weight_lr.mlp_up/mlp.weight/row/median": 3,
        "weight_lr.mlp_up/mlp.weight/row/max": 5,
        "weight_lr.mlp_up/mlp.weight/column/min": 0,
        "weight_lr.mlp_up/mlp.weight/column/median": 1,
        "weight_lr.mlp_up/mlp.weight/column/max": 3,
    }
    assert {group: len(values) for group, values in samples.items()} == {"qkv": 8, "bias": 13, "classifier": 1, "other": 0, "mlp_up": 20}
    torch.testing.assert_close(samples["qkv"], torch.tensor([1.0, 3, 5, 6, 7, 9, 11, 12]).log10())
    assert summarize([], max_heads=64) == ({}, {})


def test_many_parameters_of_the_same_length_and_long_ones():
    generator = torch.Generator().manual_seed(0)
    tensors = {f"p{i}": torch.rand(n, generator=generator) for i, n in enumerate([5, 5, 7, 5, 200_000])}
    parameters = [ParameterRates(name, "other", BlockLayout(tuple(t.shape)), [t]) for name, t in tensors.items()]
    numbers, _ = summarize(parameters, max_heads=64)
    for name, t in tensors.items():
        shown = [numbers[f"weight_lr.other/{name}/{word}"] for word in ("min", "median", "max")]
        assert shown[::2] == [t.min(), t.max()]
        assert shown[1] == pytest.approx(t.median().item(), abs=0 if len(t) < 10 else 0.01)


def test_parts():
    def names(layout, max_heads=64):
        return [(part.label, len(part.names)) for part in parts_of(layout, max_heads)]

    assert names(BlockLayout.grouped((12, 4), "q:4x2|k:1x2|v:2")) == [("q", 4), ("k", 1), ("v", 1)]
    assert names(BlockLayout.grouped((12, 4), "q:4x2|k:1x2|v:2"), max_heads=3) == [("q", 0), ("k", 1), ("v", 1)]
    assert names(BlockLayout.grouped((12, 4), "q:4x2|v:4x1")) == [("q", 4), ("v", 0)]
    assert names(BlockLayout((4, 6), (), 0, "q:2x2")) == [("", 0)]
    assert names(BlockLayout((12, 4), (1,), 0, "q:4x2|v:4x1", crossed=(0,))) == [("q", 4), ("v", 0), ("column", 0)]
    assert names(BlockLayout.factored((8, 4, 3, 3))) == [("row", 0), ("column", 0)]
    assert names(BlockLayout.factored((1, 6))) == [("", 0)]
    assert names(BlockLayout.each_line((4, 6))) == [("", 0)]
    assert names(BlockLayout((1, 1))) == [("", 1)]
    assert names(BlockLayout.whole(())) == [("", 1)]
    assert names(BlockLayout((0,))) == []


def test_tags_are_safe():
    odd = ParameterRates("blocks[0]=a:b/é.weight", "a/b c:d", BlockLayout.whole((2,)), [torch.ones(1)])
    tag, ratio = summarize([odd], max_heads=64)[0]
    assert tag == "weight_lr.a.b c_d/blocks_0__a_b._.weight"
    assert ratio == tag.replace("weight_lr", "weight_lr_ratio")
    assert re.fullmatch(r"[A-Za-z0-9_./ -]+", tag)


def test_one_transfer(monkeypatch):
    """However many parameters there are, the host waits once."""
    waits = []
    for method in ("cpu", "item", "tolist", "numpy", "__float__", "__bool__", "__int__"):
        original = getattr(torch.Tensor, method)

        def counted(self, *args, _original=original, _method=method, **kwargs):
            waits.append(_method)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, method, counted)
    rates = [ParameterRates(f"p{i}", "other", BlockLayout((i,)), [torch.ones(i)]) for i in range(1, 30)]
    rates.append(ParameterRates("w", "other", BlockLayout.factored((8, 5)), [torch.ones(8, 1), torch.ones(1, 5)], torch.tensor(0.1)))
    summarize(rates, max_heads=64, histograms=True, vectors=False)
    assert waits == ["cpu", "tolist"]  # the second is of what is on the host by then


def trained(layout, steps=3, seed=0, **options):
    """The optimizer of a parameter whose gradients differ along each dimension, one line of which is never seen."""
    generator = torch.Generator().manual_seed(seed)
    p = nn.Parameter(torch.zeros(layout.shape))
    optimizer = AdamMini([("w", p)], layouts={"w": layout}, foreach=True, **options)
    for _ in range(steps):
        p.grad = torch.randn(layout.shape, generator=generator)
        for d, size in enumerate(layout.shape):
            p.grad *= torch.linspace(-3, 3, size).exp().view([-1 if d == e else 1 for e in range(p.ndim)])
        p.grad[0] = 0
        optimizer.step()
    return optimizer


FACTORED = [
    BlockLayout.factored((40, 30)),
    BlockLayout.factored((200, 150)),
    BlockLayout.factored((20, 30), 1, 0),
    BlockLayout.factored((20, 12, 3, 3)),
    BlockLayout((16, 1, 3, 3), dims=(2, 3), crossed=(0,)),
    BlockLayout((4, 20, 15), dims=(2,), crossed=(1,)),
    BlockLayout((12, 20), (1,), 0, "q:2x3|k:2x3", crossed=(0,)),
]


@pytest.mark.parametrize("eps", [1e-8, 1e-2, 0.0])
@pytest.mark.parametrize("layout", FACTORED, ids=str)
def test_histogram_of_a_factored_parameter_is_that_of_its_elements(layout, eps):
    optimizer = trained(layout, lr=2e-3, eps=eps)
    logger = BlockLearningRateLogger(groups={"w": "mlp_up"})
    _, samples = summarize(logger._parameters([optimizer]), 64, histograms=True)
    dense = optimizer.block_learning_rates()["w"].double()
    shares = torch.tensor([0.02, 0.1, 0.25, 0.5, 0.75, 0.9], dtype=torch.float64)
    found = samples["mlp_up"].double().quantile(shares, interpolation="nearest")
    few = all(size <= 64 for size in layout.shape)
    expected = dense.log10().flatten().quantile(shares, interpolation="nearest")
    torch.testing.assert_close(found, expected, rtol=1e-5 if few else 0.02, atol=1e-5 if few else 0.03)


def test_nothing_as_large_as_a_factored_parameter_is_made():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            self.numel = max([self.numel, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor))])
            return out

    optimizer = trained(BlockLayout.factored((700, 600)), steps=1)
    logger = BlockLearningRateLogger()
    with Largest() as largest:
        parameters = list(logger._parameters([optimizer]))
        summarize(parameters, 64, histograms=True)
        heatmap_file.draw_lines(parameters)
    assert 700 <= largest.numel <= 2**16


def test_a_warm_up_from_zero(tmp_path):
    """A rate of 0, whose logarithm is infinite, is in no histogram."""
    logger = TensorBoardLogger(tmp_path)
    optimizers = [trained(BlockLayout.factored((8, 6)), lr=lr) for lr in (0.0, torch.tensor([0.0]))]
    BlockLearningRateLogger(Monitoring(histograms=True)).log(stand_in([logger]), optimizers)
    logger.finalize("success")
    assert not read(tmp_path).Tags()["histograms"]


def test_vectors_by_kind_and_ratios():
    """Of a kind there are min, median and max of all elements; ratios are rates over the learning rate of the parameter's own group."""
    parameters = [
        ParameterRates("a.bias", "bias", BlockLayout((3,)), [torch.tensor([1.0, 2.0, 3.0])], lr=0.5),
        ParameterRates("b.bias", "bias", BlockLayout((2,)), [torch.tensor([10.0, 20.0])], lr=torch.tensor([0.1])),
        ParameterRates("n.weight", "norm", BlockLayout.whole((3,)), [torch.tensor([4.0])], lr=0.0),
        ParameterRates("empty", "bias", BlockLayout((0,)), [torch.ones(0)], lr=0.5),
        ParameterRates("w", "linear", BlockLayout.each_line((2, 5)), [torch.tensor([[0.3], [0.5]])], lr=torch.tensor(0.1)),
    ]
    numbers, _ = summarize(parameters, max_heads=64, vectors=False)
    assert numbers == pytest.approx({
        "weight_lr.vectors/bias/min": 1, "weight_lr.vectors/bias/median": 3, "weight_lr.vectors/bias/max": 20,
        "weight_lr_ratio.vectors/bias/median": 6,  # of 2, 4, 6, 100, 200
        "weight_lr.vectors/norm/min": 4, "weight_lr.vectors/norm/median": 4, "weight_lr.vectors/norm/max": 4,
        "weight_lr.linear/w/min": 0.3, "weight_lr.linear/w/median": 0.3, "weight_lr.linear/w/max": 0.5,
        "weight_lr_ratio.linear/w/median": 3,
    })  # fmt: skip


def test_tags_sort_below_the_users_own(tmp_path):
    fit(tmp_path, CSVLogger(tmp_path), max_steps=4)
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        ours = [key for key in next(csv.reader(file)) if key not in ("epoch", "step")]
    assert len(ours) == len(TAGS)
    assert min(ours) > max("train/loss", "train_loss", "val/accuracy", "val_loss", "valid/loss", "validation_loss", "test_loss")


# ---- loggers -----------------------------------------------------------------------------------------------------------------


def test_tensorboard(tmp_path):
    monitor = fit(tmp_path, TensorBoardLogger(tmp_path), histograms=True, heatmap=True)
    events = read(tmp_path)
    tags = {tag for tag in events.Tags()["scalars"] if tag.startswith("weight_lr")}
    assert tags == TAGS | LATE
    for step, name in ((3, "q.0"), (7, "k.1"), (11, "q.1")):
        logged = {e.step: e.value for e in events.Scalars(f"weight_lr.qkv/qkv.weight/{name}")}
        line = {"q.0": 0, "k.1": 8, "q.1": 6}[name]
        assert list(logged) == [3, 7, 11]
        assert logged[step] == pytest.approx(monitor.said[step]["qkv.weight"][0][line].item(), rel=1e-6)
    least = {e.step: e.value for e in events.Scalars("weight_lr.mlp_up/mlp.weight/column/min")}
    assert least[7] == pytest.approx(monitor.said[7]["mlp.weight"][1].min().item(), rel=1e-6)
    assert [e.step for e in events.Scalars("weight_lr.parameters/late.weight")] == [7, 11]
    assert [e.step for e in events.Histograms("weight_lr.qkv/log10")] == [3, 7, 11]
    assert [e.step for e in events.Histograms("weight_lr.mlp_up/log10")] == [3, 7, 11]
    for figure in ("heads", "lines"):
        assert events.Images(f"weight_lr/{figure}")[0].width > 100


def test_one_event_a_logging_step(tmp_path, monkeypatch):
    """A thousand scalars as a thousand events would cost a hundred times more."""
    from torch.utils.tensorboard.writer import FileWriter

    calls = []
    original = FileWriter.add_summary
    monkeypatch.setattr(FileWriter, "add_summary", lambda self, summary, *a, **k: (calls.append(summary), original(self, summary, *a, **k)))
    fit(tmp_path, TensorBoardLogger(tmp_path, log_graph=False))
    ours = [summary for summary in calls if any(v.tag.startswith("weight_lr") and "how to" not in v.tag for v in summary.value)]
    assert len(ours) == 3
    assert len([summary for summary in calls if summary.value[0].tag == "custom_scalars__config__"]) == 1


@pytest.mark.parametrize("prefix", ["", "run"])
def test_custom_scalars(tmp_path, prefix):
    """One chart a layer type or role, whose pattern matches that type's curves, but neither min nor max, and those of no other type."""
    fit(tmp_path, TensorBoardLogger(tmp_path, prefix=prefix))
    events = read(tmp_path)
    (config,) = events.Tensors("custom_scalars__config__")
    layout = Layout.FromString(config.tensor_proto.string_val[0])
    start = f"{prefix}-" if prefix else ""
    titles = ["effective learning rate / learning rate", "effective learning rate"]
    assert [category.title for category in layout.category] == titles
    for category, first in zip(layout.category, ("weight_lr_ratio", "weight_lr"), strict=True):
        shown = {
            chart.title: {tag for tag in events.Tags()["scalars"] for pattern in chart.multiline.tag if re.match(pattern, tag)}
            for chart in category.chart
        }
        assert shown == {
            title: {f"{start}{first}.{curve}" for curve in curves}
            for title, curves in {
                "qkv: queries": ["qkv/qkv.weight/q.0", "qkv/qkv.weight/q.1"],
                "qkv: keys": ["qkv/qkv.weight/k.0", "qkv/qkv.weight/k.1"],
                "qkv: values": ["qkv/qkv.weight/v/median"],
                "vectors": ["vectors/bias/median"],
                "classifier": ["classifier/out.weight"],
                "mlp_up: rows": ["mlp_up/mlp.weight/row/median"],
                "mlp_up: columns": ["mlp_up/mlp.weight/column/median"],
                "parameters": ["parameters/late.weight"],
            }.items()
        }
    assert "how to read" in next(tag for tag in events.Tags()["tensors"] if tag.startswith(f"{start}weight_lr/"))
    if not prefix:  # the first event of a tag describes it
        said = {tag: events.summary_metadata[tag].summary_description for tag in TAGS}
        assert all("`1 / (sqrt(v) + eps)`" in text for tag, text in said.items() if tag.startswith("weight_lr_ratio"))
        assert "each row" in said["weight_lr.mlp_up/mlp.weight/row/max"]


def test_csv(tmp_path):
    """One row a logging step, with the same keys in each that a parameter has been stepped in."""
    fit(tmp_path, CSVLogger(tmp_path), max_steps=6)
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows if row["weight_lr.vectors/bias/max"]] == ["3"]
    assert {key for key in rows[0] if key.startswith("weight_lr")} == TAGS


def test_every_logger(tmp_path):
    fit(tmp_path, [TensorBoardLogger(tmp_path), CSVLogger(tmp_path)])
    assert read(tmp_path).Scalars("weight_lr.vectors/bias/max")
    assert list(tmp_path.rglob("metrics.csv"))


def stand_in(loggers=(), **attributes):
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(_batches_that_stepped=5))
    return SimpleNamespace(loggers=list(loggers), is_global_zero=True, fit_loop=loop, fast_dev_run=False, **attributes)


def stepped(names=("a", "b"), **layouts):
    parameters = [(name, nn.Parameter(torch.ones(layouts[name].shape if name in layouts else (2,)))) for name in names]
    optimizer = AdamMini(parameters, layouts={name: layouts.get(name, BlockLayout.whole((2,))) for name in names})
    for _, p in parameters:
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer


class Recorder(MLFlowLogger):
    """An MLFlowLogger that needs no MLflow."""

    def __init__(self):
        self._prefix, self.calls = "", []

    def log_metrics(self, metrics, step=None):
        self.calls.append((dict(metrics), step))


def test_mlflow_takes_a_thousand_at_a_time():
    recorder = Recorder()
    BlockLearningRateLogger(Monitoring(vectors=True)).log(stand_in([recorder]), [stepped([f"p{i}" for i in range(2500)])])
    assert [(len(metrics), step) for metrics, step in recorder.calls] == [(1000, 5)] * 5  # a rate and a ratio each


@pytest.mark.parametrize("options", [{"logger": False}, {"logger": True, "fast_dev_run": True}, {"barebones": True}])
def test_nothing_without_a_logger(tmp_path, options, monkeypatch):
    trainer = pl.Trainer(accelerator="cpu", default_root_dir=tmp_path, enable_model_summary=False, enable_progress_bar=False,
                         **({"enable_checkpointing": False} | options))  # fmt: skip
    monkeypatch.setattr(AdamMini, "margin_learning_rates", lambda self: pytest.fail("asked for nothing"))
    logger = BlockLearningRateLogger(Monitoring(histograms=True, heatmap=True))
    logger.log(trainer, [stepped()])
    logger.log_heatmap(trainer, [stepped()])
    assert not list(tmp_path.iterdir())


def test_only_rank_zero_logs():
    recorder = Recorder()
    trainer = stand_in([recorder])
    trainer.is_global_zero = False
    BlockLearningRateLogger().log(trainer, [stepped()])
    assert recorder.calls == []


def test_nothing_before_the_first_step():
    recorder = Recorder()
    BlockLearningRateLogger().log(stand_in([recorder]), [AdamMini([("a", nn.Parameter(torch.ones(2)))], layouts={})])
    assert recorder.calls == []


def test_optimizers_with_the_same_names():
    recorder = Recorder()
    BlockLearningRateLogger(Monitoring(vectors=True)).log(stand_in([recorder]), [stepped("ab"), stepped("bc")])
    ((metrics, _),) = recorder.calls
    shown = ("a", "c", "optimizer_0.b", "optimizer_1.b")
    assert sorted(metrics) == [f"weight_lr{ratio}.parameters/{name}" for ratio in ("", "_ratio") for name in shown]
    assert all(math.isfinite(value) for value in metrics.values())


def test_copies(tmp_path):
    """What weight averaging and ddp_spawn do to callbacks."""
    logger = BlockLearningRateLogger(Monitoring(histograms=True), groups=GROUPS)
    for twin in (copy.deepcopy(logger), pickle.loads(pickle.dumps(logger))):
        assert (twin.monitoring, twin.groups) == (Monitoring(histograms=True), GROUPS)


# ---- the heat map ------------------------------------------------------------------------------------------------------------


def test_heat_map():
    heads = BlockLayout.grouped((8, 4), "q:4x2")
    parameters = [
        *(ParameterRates(f"h.{i}.q.weight", "query", heads, [torch.full((8, 1), 10.0**-i)]) for i in range(3)),
        ParameterRates("h.0.k.weight", "key", BlockLayout.grouped((4, 4), "k:2x2"), [torch.full((4, 1), 0.1)]),
        ParameterRates("h.0.o.weight", "out", BlockLayout.whole((4, 4)), [torch.ones(1, 1)]),
    ]
    figure = heatmap_file.draw_heads(parameters)
    query, key, _ = figure.axes
    torch.testing.assert_close(torch.tensor(query.images[0].get_array()), torch.tensor([[0.0] * 4, [-1.0] * 4, [-2.0] * 4]))
    assert [label.get_text() for label in query.get_yticklabels()] == ["h.0.q", "h.1.q", "h.2.q"]
    assert key.images[0].get_array().shape == (1, 4)  # as wide as the widest, empty where there is no head
    assert key.images[0].get_array().count() == 2
    assert heatmap_file.draw_heads(parameters[-1:]) is None


@pytest.mark.parametrize("layout", [BlockLayout.factored((12, 20)), BlockLayout.each_line((12, 20)), BlockLayout.factored((20, 12), 1, 0)])
def test_heat_map_of_heads_that_are_known_where_blocks_are_lines(layout):
    """A head's rate is that of its mean g², which Adam-mini would keep."""
    axis = layout.shape.index(12)
    heads = BlockLayout.grouped(layout.shape, "q:2x2|k:2x2|v:2x2", axis)
    expected = trained(heads, lr=2e-3, eps=1e-3).block_learning_rates()["w"].flatten()[::2].log10()
    parameters = list(BlockLearningRateLogger(heads={"w": heads})._parameters([trained(layout, lr=2e-3, eps=1e-3)]))
    figure = heatmap_file.draw_heads(parameters)
    *panels, _ = figure.axes
    assert [panel.get_title() for panel in panels] == ["query", "key", "value"]
    torch.testing.assert_close(torch.tensor([panel.images[0].get_array()[0].tolist() for panel in panels]), expected.view(3, 2))
    lines = heatmap_file.draw_lines(parameters)  # what has been drawn by heads is left out
    assert [panel.get_title() for panel in lines.axes] == ["parameters: columns", ""] if layout.is_factored else lines is None


def test_the_default_partition_has_both_figures(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    models.fit(models.TokenModel(), AdamMiniCallback(heatmap=True), logger=logger, max_epochs=1, limit_val_batches=1)
    assert sorted(read(tmp_path).Tags()["images"]) == ["weight_lr/heads", "weight_lr/lines"]


def test_heat_map_of_lines():
    """Quantiles of rows and of columns, one line a parameter, in the colours of one scale."""
    rows, columns = torch.logspace(-4, -1, 64), torch.logspace(-2, 0, 16)
    both = [rows[torch.randperm(64)].view(-1, 1), columns.view(1, -1)]
    parameters = [ParameterRates(f"h.{i}.up.weight", "mlp_up", BlockLayout.factored((64, 16)), both) for i in range(3)]
    parameters.append(ParameterRates("norm.weight", "norm", BlockLayout((16,)), [columns]))
    parameters.append(ParameterRates("wte.weight", "token_embedding", BlockLayout.each_line((64, 16)), [both[0]]))
    figure = heatmap_file.draw_lines(parameters)
    up, down, embedding, _ = figure.axes
    assert [panel.get_title() for panel in (up, down, embedding)] == ["mlp_up: rows", "mlp_up: columns", "token_embedding: mean over dim 1"]
    torch.testing.assert_close(torch.tensor(up.images[0].get_array().tolist()), rows[1::2].log10().expand(3, 32))
    torch.testing.assert_close(torch.tensor(down.images[0].get_array().tolist()), columns.repeat_interleave(2).log10().expand(3, 32))
    assert [label.get_text() for label in up.get_yticklabels()] == ["h.0.up", "h.1.up", "h.2.up"]
    assert up.images[0].get_clim() == embedding.images[0].get_clim() == pytest.approx((rows[1].log10().item(), 0.0))


def test_a_heat_map_of_nothing_says_why_once(tmp_path, recwarn):
    logger = BlockLearningRateLogger(Monitoring(heatmap=True))
    trainer = stand_in([TensorBoardLogger(tmp_path)], global_step=3)
    logger.log_heatmap(trainer, [AdamMini([("w", nn.Parameter(torch.ones(2, 2)))], layouts={})])  # not stepped yet
    with pytest.warns(AdamMiniWarning, match="no matrix that has been stepped has more than one learning rate"):
        logger.log_heatmap(trainer, [stepped("a", a=BlockLayout.whole((3, 3)))])
    trainer.global_step = 4
    logger.log_heatmap(trainer, [stepped("a", a=BlockLayout.whole((3, 3)))])
    assert not [w for w in recwarn if issubclass(w.category, AdamMiniWarning)]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"logger": False}, "the trainer has no logger. Give it a TensorBoardLogger"),
        ({"logger": CSVLogger}, "the trainer logs to CSVLogger. Give it a TensorBoardLogger"),
        ({"logger": TensorBoardLogger, "fast_dev_run": True}, "a fast development run logs nothing"),
    ],
    ids=["no logger", "CSV", "fast_dev_run"],
)
def test_figures_that_nobody_takes_are_told_before_training(tmp_path, options, why):
    if options["logger"]:
        options = options | {"logger": options["logger"](tmp_path)}
    with pytest.warns(AdamMiniWarning, match=f"histograms=True and heatmap=True draw nothing, because .*{why}") as record:
        models.fit(models.TokenModel(), AdamMiniCallback(histograms=True, heatmap=True), max_epochs=1, **options)
    assert len([w for w in record if "heatmap" in str(w.message)]) == 1


def test_without_validation_the_figures_come_at_the_end(tmp_path):
    models.fit(models.TokenModel(), AdamMiniCallback(heatmap=True), logger=TensorBoardLogger(tmp_path), max_epochs=1)
    assert [image.step for image in read(tmp_path).Images("weight_lr/heads")] == [8]


@pytest.mark.parametrize(
    ("logger", "where"),
    [
        (TensorBoardLogger, r"go to TensorBoard, pages .* tensorboard --logdir \S*version_0"),
        (CSVLogger, r"go to the columns of \S*version_0/metrics.csv \(charts are for TensorBoard"),
        (None, "not logged, because the trainer has no logger"),
    ],
)
def test_where_the_curves_go_is_told(tmp_path, caplog, logger, where):
    with caplog.at_level("INFO"):
        models.fit(models.TokenModel(), AdamMiniCallback(), logger=logger(tmp_path) if logger else False, max_steps=1)
    assert re.search(f"AdamMiniCallback: effective learning rates .*{where}", caplog.text)


def test_heat_map_needs_matplotlib(monkeypatch):
    monkeypatch.setattr(heatmap_file, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"heatmap=True needs matplotlib.*pip install matplotlib"):
        BlockLearningRateLogger(Monitoring(heatmap=True))
    BlockLearningRateLogger()


def test_max_heads_is_checked():
    with pytest.raises(MisconfigurationException, match="max_heads=0"):
        Monitoring(max_heads=0)
