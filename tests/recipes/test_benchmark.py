import csv

import pytest

from recipes.__main__ import main

from .conftest import CONFIGS, NARROW

BENCHMARK = ["benchmark", "callback", "--config", str(CONFIGS / "resnet18_digits.yaml"), "--out", "out"]


def test_callback_benchmark_writes_its_table(tmp_path, capsys):
    assert main([*BENCHMARK, "--rounds", "2", "--every", "4", "--turn", "2", *NARROW, "--data.batch_size", "2"]) == 0
    assert (tmp_path / "out" / "callback.md").read_text() in capsys.readouterr().out
    with (tmp_path / "out" / "callback.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["AdamW", "AdamMini, no monitoring", "AdamMini, default monitoring"]
    assert all(float(row["steps_per_second"]) > 0 for row in rows)
    assert [row["by_adamw_median"] == "" for row in rows] == [True, False, False]


def test_mistakes(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*BENCHMARK, "--turn", "7"])
    assert "a divisor of --every 50" in capsys.readouterr().err
    assert main(["benchmark", "speed"]) == 2
    assert "there is no benchmark 'speed'" in capsys.readouterr().err
