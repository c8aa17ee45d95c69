"""Every experiment once, as a user starts it, as toys: this also rehearses the GPU's on a CPU, in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.__main__ import EXPERIMENTS
from experiments.all import commands
from experiments.gpu.command import PARTS
from experiments.result import Result

REPOSITORY = Path(__file__).parents[2]


def test_every_experiment_is_among_all():
    assert {command[0] for command in commands(True)} == {command[0] for command in commands(False)} == set(EXPERIMENTS)


@pytest.mark.timeout(900)
def test_all_as_toys(tmp_path):
    pytest.importorskip("triton", reason="Triton is not installed, so its kernels are not rehearsed here")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)  # a checkout needs no install
    done = subprocess.run(
        [sys.executable, "-m", "experiments", "all", "--small", "--out", str(tmp_path)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    folders = list(tmp_path.iterdir())
    found = {folder.name: [Result.load(file) for file in folder.glob("*.json") if "runs" not in file.name] for folder in folders}
    assert {result.experiment for results in found.values() for result in results} == set(EXPERIMENTS)
    for name, (result, *_) in found.items():
        assert result.command.startswith(f"python -m experiments {result.experiment} "), name
        assert result.rows, name
        assert result.machine, name
        assert result.versions["torch"], name
    check_gpu(found["gpu"][0].facts, (tmp_path / "gpu" / "gpu.md").read_text())


def check_gpu(report, text):
    """What the rehearsal of the GPU's experiment must have found."""
    parts = {part["part"]: part for part in report["parts"]}
    assert list(parts) == list(PARTS)
    for part in parts.values():
        assert part["status"] in ("ok", "skipped"), json.dumps(part)
        assert all(found["status"] == "ok" or found["reason"] for found in part["cases"])
        assert all(found.get("reason") != "no time left" for found in part["cases"])
    assert [name for name, part in parts.items() if part["status"] == "skipped"] in (["graph"], ["graph", "recipe"])
    found = {found["case"]: found for found in parts["correct"]["cases"]}
    layouts = found["every layout, float32"]
    assert layouts["by"] == "Triton"
    assert layouts["tensors"] >= 10
    assert layouts["steps"] >= 2
    assert 0 < max(layouts[kind] for kind in ("weights", "exp_avg", "exp_avg_sq", "exp_avg_sq_col")) <= 1  # two ways to round
    assert any(name.endswith("times") and values["equal"] == 1 for name, values in found.items())
    assert {row["optimizer"] for row in parts["step"]["cases"][0]["rows"]} >= {"AdamW fused", "AdamMini", "AdamMini 8-bit momentum"}
    assert all(fit["resumes"] for fit in parts["fit"]["cases"] if fit["status"] == "ok")
    assert {values["backend"] for values in parts["sharded"]["cases"]} == {"gloo"}
    assert all(f"## {name}: " in text for name in parts)
