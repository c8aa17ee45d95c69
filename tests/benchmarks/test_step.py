import csv

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from benchmarks import bandwidth, step
from benchmarks.__main__ import main
from benchmarks.rivals import RIVALS, Rival, enter, per_element, select
from benchmarks.workloads import WORKLOADS, add_random_gradients

from .conftest import LIST, SMALL

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_copy(monkeypatch):
    monkeypatch.setattr(step, "Copy", lambda device, elements: bandwidth.Copy(device, 1000))


def test_step_writes_table_rows_and_figure(tmp_path, capsys):
    assert main(["step", "--out", "out", "--rounds", "6", "--threads", "1", "--only", "AdamMini$|for-loop"]) == 0
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


def broken(_, model):
    raise ValueError("cannot | do\nthis")


def missing(_, model):
    import no_such_package  # pyright: ignore[reportMissingImports]

    return no_such_package


def test_a_rival_that_fails_is_a_row():
    rivals = [RIVALS[0], Rival("broken", broken, per_element(1)), Rival("missing", missing, per_element(1), package="no-such-package")]
    entrants, times, floors = step.measure(LIST, rivals, 6, 0.0, CPU)
    text, rows, ratios = step.section(LIST, entrants, times, floors, CPU)
    assert "| broken | raises: ValueError: cannot / do |" in text
    assert "| missing | not installed: pip install no-such-package |" in text
    assert list(ratios) == ["AdamW fused"]
    assert [row["optimizer"] for row in rows] == ["AdamW fused", "broken", "missing", "copy"]


def test_a_remedy_is_tried_and_told():
    model = SMALL.make(CPU)
    add_random_gradients(model)
    entrant = enter(Rival("fragile", broken, per_element(1), (RIVALS[0].build, "by the remedy")), SMALL, model)
    assert entrant.optimizer is not None
    assert entrant.note == "by the remedy"


def test_every_rival_that_torch_or_we_have_steps():
    for rival in RIVALS:
        if rival.package:
            continue
        model = SMALL.make(CPU)
        add_random_gradients(model)
        before = [p.clone() for p in model.parameters()]
        assert enter(rival, SMALL, model).note == "", rival.name
        assert any((p != q).any() for p, q in zip(model.parameters(), before, strict=True)), rival.name


def test_the_models_have_their_size():
    names = {workload.name: workload for workload in WORKLOADS}
    sizes = {"resnet18": 11.69e6, "vit_small": 22.05e6, "gpt_60m": 60e6, "gpt2_60m": 60e6, "tiny": 160e3, "llama_1b": 1.1e9}
    assert names.keys() == sizes.keys()
    for name, size in sizes.items():
        with torch.device("meta"):
            model = names[name].build()
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(size, rel=0.03), name


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--only", "nobody"], "--only 'nobody' matches none of the rivals: AdamW fused"),
        (["--only", "("], "--only '(' is not a regular expression"),
        (["--models", "gpt5"], "--models 'gpt5' matches none of small, list"),
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


def test_an_unknown_benchmark(capsys):
    assert main(["speed"]) == 2
    assert "there is no benchmark 'speed'" in capsys.readouterr().err
    assert main([]) == 0
    assert "step " in capsys.readouterr().out


def test_the_baseline_always_takes_part():
    assert [rival.name for rival in select("adafactor")] == ["AdamW fused", "Adafactor"]
    with pytest.raises(MisconfigurationException):
        select("nobody")
