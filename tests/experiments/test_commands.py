"""Each command end to end, on models of a few tensors."""

import csv

import pytest
import torch

from experiments.__main__ import main
from experiments.largest_batch import Fit, Found, search, section
from experiments.launches import calls
from experiments.workloads import TOYS

from .conftest import folded

SMALL = TOYS[0]

ONLY = ["--out", "out", "--small", "--threads", "1", "--only", "AdamMini$|for-loop"]
NAMES = ["AdamW fused", "AdamW for-loop", "AdamMini"]


def rows_of(folder, name):
    assert (folder / "out" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "out" / f"{name}.md").read_text().startswith("# ")
    with (folder / "out" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_state(tmp_path):
    assert main(["state", *ONLY]) == 0
    rows = rows_of(tmp_path, "state")
    assert [(row["model"], row["optimizer"]) for row in rows] == [(model, name) for model in ("small", "list") for name in NAMES]
    elements = 8 * 16 + 16 + 16 * 4 + 4
    # A step count a tensor; AdamMini: a second moment a row and a column of a matrix, and an element of a vector.
    kept = (8 + 16) + 16 + (16 + 4) + 4
    assert [int(row["state_bytes"]) for row in rows[:3]] == [8 * elements + 16, 8 * elements + 16, 4 * elements + 4 * kept + 16]
    assert "100.0%" in (tmp_path / "out" / "state.md").read_text()


def test_training_step(tmp_path):
    assert main(["training-step", *ONLY, "--batch", "3"]) == 0
    rows = rows_of(tmp_path, "training-step")
    assert [row["optimizer"] for row in rows] == NAMES  # the list has no forward pass
    assert all(0 < float(row["share"]) < 1 for row in rows)
    assert {row["batch"] for row in rows} == {"3"}
    assert float(rows[0]["ratio"]) == 1


def test_scaling(tmp_path):
    assert main(["scaling", *ONLY]) == 0
    rows = rows_of(tmp_path, "scaling")
    cases = [("64", "2"), ("128", "2"), ("64", "2"), ("64", "4")]
    assert [(row["parameters"], row["tensors"]) for row in rows[::3]] == cases
    assert all(float(row["wall_seconds"]) > 0 for row in rows)


def test_launches(tmp_path):
    assert main(["launches", "--out", "out", "--small", "--only", "for-loop"]) == 0
    found = {(row["optimizer"], row["tensors"]): int(row["operators"]) for row in rows_of(tmp_path, "launches")}
    assert found["AdamW fused", "2"] == found["AdamW fused", "4"]
    assert 0 < found["AdamW for-loop", "2"] < found["AdamW for-loop", "4"]


def test_calls_tells_operators_from_those_inside():
    parameter = torch.nn.Parameter(torch.ones(3))

    class Two(torch.optim.Optimizer):
        def step(self, closure=None):
            torch.add(parameter.detach(), 1)
            torch.ones_like(parameter)  # calls empty_like and fill_

    operators, nested, launches = calls(Two([parameter], {}))
    assert operators == 3  # detach is one
    assert nested >= 2
    assert launches == 0 or torch.cuda.is_available()


def test_largest_batch(tmp_path):
    assert main(["largest-batch", *ONLY, "--memory", "1KB,20KB,1MB"]) == 0
    rows = rows_of(tmp_path, "largest-batch")
    batch = {(row["optimizer"], row["memory_bytes"]): int(row["batch"]) for row in rows}
    elements, each = 8 * 16 + 16 + 16 * 4 + 4, 4 * (8 + 16 + 4) + 8
    assert batch["AdamW fused", "1000"] == batch["AdamMini", "1000"] == 0
    assert batch["AdamW fused", "20000"] == pytest.approx((20000 - 16 * elements) / each, abs=2)
    assert batch["AdamMini", "20000"] - batch["AdamW fused", "20000"] == pytest.approx(4 * (elements - 64) / each, abs=2)


def test_search_finds_the_largest_and_tries_few():
    for limit in (0, 1, 2, 3, 63, 64, 65, 1000):
        tried = []
        found = search(lambda batch, limit=limit, tried=tried: (tried.append(batch), batch <= limit)[1])
        assert found <= limit <= found * (1 + 1 / 32)
        assert len(tried) <= 20
    assert search(lambda batch: True, most=100) <= 128


def test_a_rival_that_fails_is_a_row_and_speed_is_shown():
    found = {
        "AdamW fused": Found("", 80, {"8GB": Fit(10, 5.0)}),
        "broken": Found("raises: x", None, {}),
        "half": Found("", 40, {"8GB": Fit(12, 5.5)}),
    }
    table, rows = section(SMALL, "Tried.", found, {"8GB": 8 * 10**9})
    text = folded(table.markdown())
    assert "| broken | raises: x |" in text
    assert "12 (+20.0%), 5.5/s" in text
    assert len(rows) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["scaling", "--parameters", "100"], "100 parameters in 64 tensors: each tensor must have the same power of two"),
        (["scaling", "--tensors", "many"], "'many' is no list of positive whole numbers"),
        (["launches", "--tensors", "0"], "'0' is no list of positive whole numbers"),
        (["largest-batch", "--memory", "8 cats"], "'8 cats' is no size of memory such as 8GB"),
        (["training-step", "--small", "--models", "list"], "--models 'list' matches none of small"),
        (["training-step", "--batch", "0"], "--batch 0 must be at least 1"),
    ],
)
def test_mistakes(args, message, capsys, tmp_path):
    try:
        code = main(args)
    except SystemExit as stop:  # argparse's way
        code = stop.code
    assert code in (1, 2)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
