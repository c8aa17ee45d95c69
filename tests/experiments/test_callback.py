import csv

import pytest

from experiments.__main__ import main
from tests.recipes.conftest import CONFIGS, NARROW

CALLBACK = ["callback", "--config", str(CONFIGS / "resnet18_digits.yaml"), "--out", "out"]


def test_the_table_is_written(tmp_path, capsys):
    assert main([*CALLBACK, "--rounds", "2", "--every", "4", "--turn", "2", *NARROW, "--data.batch_size", "2"]) == 0
    assert (tmp_path / "out" / "callback.md").read_text() in capsys.readouterr().out
    with (tmp_path / "out" / "callback.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["AdamW", "AdamMini, no monitoring", "AdamMini, default monitoring"]
    assert all(float(row["steps_per_second"]) > 0 for row in rows)
    assert [row["by_adamw_median"] == "" for row in rows] == [True, False, False]


def test_mistakes(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*CALLBACK, "--turn", "7"])
    assert "a divisor of --every 50" in capsys.readouterr().err
