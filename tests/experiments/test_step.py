import csv

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from experiments import step
from experiments.__main__ import main
from experiments.rivals import BASELINE, OURS, RIVALS, Rival, enter, remarks, select
from experiments.rivals.rival import per_element
from experiments.rivals.roster import _attention
from experiments.workloads import TOYS, WORKLOADS, add_random_gradients
from recipes.optim import Settings

from .conftest import folded

SMALL, LIST = TOYS
CPU = torch.device("cpu")


def test_step_writes_table_rows_and_figure(tmp_path, capsys):
    assert main(["step", "--out", "out", "--small", "--threads", "1", "--only", "AdamMini$|for-loop"]) == 0
    assert (tmp_path / "out" / "step.md").read_text() in capsys.readouterr().out
    assert (tmp_path / "out" / "step.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "out" / "step.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["optimizer"] for row in rows] == ["AdamW fused", "AdamW for-loop", "AdamMini", "copy"] * 2
    assert all(float(row["wall_seconds"]) > 0 for row in rows)
    assert [row["rounds"] for row in rows] == ["6"] * 8
    assert float(rows[0]["wall_ratio"]) == 1
    assert float(rows[2]["wall_ratio_low95"]) <= float(rows[2]["wall_ratio"]) <= float(rows[2]["wall_ratio_high95"])
    elements = 8 * 16 + 16 + 16 * 4 + 4
    ours = 24 * (8 * 16 + 16 * 4) + 8 * (8 + 16 + 16 + 4) + 28 * (16 + 4)  # matrices by row and column, vectors by element
    assert [float(row["floor_bytes"]) for row in rows[:4]] == [28 * elements, 28 * elements, ours, 8000]


def broken(groups, settings):
    raise ValueError("cannot | do\nthis")


def test_a_rival_that_fails_is_a_row():
    rivals = [
        BASELINE,
        Rival("broken", "broken", broken, per_element(1)),
        Rival("gone", "missing", broken, per_element(1), "no_such_package"),
    ]
    entrants, times, floors = step.measure(LIST, rivals, 6, 0.0, CPU, 1000)
    table, rows, ratios = step.section(LIST, entrants, times, floors, CPU)
    text = folded(table.markdown())
    assert "| broken | raises: ValueError: cannot / do |" in text
    assert "| missing | not installed: pip install no-such-package |" in text
    assert list(ratios) == ["AdamW fused"]
    assert [row["optimizer"] for row in rows] == ["AdamW fused", "broken", "missing", "copy"]


def test_a_remedy_is_tried_and_told():
    model = SMALL.make(CPU)
    add_random_gradients(model)
    entrant = enter(Rival("fragile", "Fragile", broken, per_element(1), remedy=(BASELINE.build, "by the remedy")), model)
    assert entrant.optimizer is not None
    assert remarks([entrant]) == ["\\* Fragile: by the remedy."]
    assert entrant.title == "Fragile*"


def test_every_rival_that_torch_or_we_have_steps():
    for rival in (*RIVALS.values(), *OURS.values()):
        if rival.module not in ("torch", "lightning_adam_mini"):
            continue
        model = SMALL.make(CPU)
        add_random_gradients(model)
        before = [p.clone() for p in model.parameters()]
        assert enter(rival, model).note == rival.why_not(), rival.name
        assert rival.why_not() or any((p != q).any() for p, q in zip(model.parameters(), before, strict=True)), rival.name


def test_the_models_have_their_size():
    names = {workload.name: workload for workload in WORKLOADS}
    sizes = {"resnet18": 11.69e6, "vit_small": 22.05e6, "gpt_60m": 60e6, "gpt2_60m": 60e6, "tiny": 160e3, "llama_1b": 1.1e9}
    assert names.keys() == sizes.keys()
    for name, size in sizes.items():
        with torch.device("meta"):
            model = names[name].build()
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(size, rel=0.03), name


def test_width_and_heads_are_those_of_the_model():
    asked = {"resnet18": (2048, 32), "vit_small": (384, 6), "gpt_60m": (512, 8), "gpt2_60m": (576, 9), "tiny": (2048, 32)}
    for workload in WORKLOADS:
        if workload.name in asked:
            with torch.device("meta"):
                model = workload.build()
            assert _attention(Settings(1e-3, model=model))[1:] == asked[workload.name], workload.name


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--only", "nobody"], "--only 'nobody' matches none of the rivals: AdamW, AdamW fused"),
        (["--only", "("], "--only '(' is not a regular expression"),
        (["--small", "--models", "gpt5"], "--models 'gpt5' matches none of small, list"),
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
        (["--threads", "0"], "--threads 0 must be at least 1"),
    ],
)
def test_mistakes(args, message, capsys, tmp_path):
    assert main(["step", *args]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_without_a_gpu(capsys):
    assert main(["step", "--device", "cuda"]) == 1
    assert "torch finds no GPU here" in capsys.readouterr().err


def test_an_unknown_experiment(capsys):
    assert main(["speed"]) == 2
    assert "there is no experiment 'speed'" in capsys.readouterr().err
    assert main([]) == 0
    assert "step " in capsys.readouterr().out


def test_the_baseline_always_takes_part():
    assert [rival.name for rival in select("adafactor_torch")] == ["adamw_fused", "adafactor_torch"]
    assert {rival.title for rival in select("")} >= {"AdamW fused", "Lion (timm)", "AdamMini", "AdamMini 8-bit momentum"}
    assert all(rival.timed for rival in select(""))
    with pytest.raises(MisconfigurationException):
        select("nobody")
