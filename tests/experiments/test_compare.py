import contextlib
import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.__main__ import main
from experiments.compare.figure import build_curve, draw
from experiments.compare.plan import Plan, Run, Setting
from experiments.compare.results import Finished, from_row, results_at, select_by_validation, select_each
from experiments.compare.spikes import find_spikes
from experiments.compare.table import build_rows, build_table, rows_of
from experiments.result import Result, commit
from lightning_adam_mini import partition_model
from recipes.language.gpt import GPT
from recipes.recipe import Headline
from tests.recipes.conftest import CONFIGS, NARROW, REPOSITORY, TINY_GPT, TINY_TEXT

from .conftest import folded

ACCURACY = Headline("acc", "accuracy", "max")
COMPARE = [
    "compare",
    "--config",
    str(CONFIGS / "resnet18_digits.yaml"),
    "--out",
    "out",
    *NARROW,
    "--trainer.max_steps",
    "4",
    "--trainer.val_check_interval",
    "2",
]
SMALL = ["--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"]
AVERAGED = ["--model.channels", "[8, 16]", "--model.timesteps", "20", "--model.lr", "0.05"]


def result(optimizer, seed, test, lr=None, val=0.5, headline=ACCURACY):
    points = {point: {"val/acc": val, "test/acc": test} for point in ("0.25", "0.5", "0.75", "1")}
    return Finished(Run(optimizer, seed, Setting(lr)), headline, points, 800 if optimizer == "adamw" else 401, 2.0, parameters=100)


def test_killed_comparison_goes_on_without_repeating_a_finished_run(tmp_path, capsys):
    out = tmp_path / "out" / "runs"
    command = [sys.executable, "-m", "experiments", *COMPARE, *SMALL, "--seeds", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("*.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {file: file.stat().st_mtime_ns for file in out.glob("*.json")}
    assert before

    assert main([*COMPARE, *SMALL, "--seeds", "2"]) == 0
    text = capsys.readouterr().out
    assert f"{len(before)} of 4 runs were finished before" in text
    assert {file: file.stat().st_mtime_ns for file in before} == before
    names = {f"{name}_seed{seed}.json" for name in ("adamw", "auto") for seed in (0, 1)}
    assert {file.name for file in out.glob("*.json")} == names

    table = (tmp_path / "out" / "table.md").read_text()
    assert table in text
    kept = Result.load(tmp_path / "out" / "table.json")
    assert (kept.experiment, kept.seeds, kept.commit) == ("compare", [0, 1], commit())
    assert kept.command.startswith("python -m experiments compare --config ")
    assert [(row["optimizer"], row["seed"]) for row in kept.rows] == [(name, seed) for seed in (0, 1) for name in ("adamw", "auto")]
    assert [row.points[1.0][0] for row in rows_of(kept)] == sorted((row.points[1.0][0] for row in rows_of(kept)), reverse=True)
    assert "mean ± standard deviation over 2 seeds" in table
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = {row["optimizer"]: row for row in csv.DictReader(file)}
    assert sorted(rows) == ["adamw", "auto"]
    assert 0.49 < int(rows["auto"]["state_bytes"]) / int(rows["adamw"]["state_bytes"]) < 0.55  # rows and columns of small matrices
    assert float(rows["adamw"]["steps_per_second"]) > 0
    with Image.open(tmp_path / "out" / "figure.png") as image:
        assert np.ptp(np.asarray(image.convert("L"))) > 200  # there is ink on it
    low, centre, high = (float(rows["auto"][key]) for key in ("low95", "difference", "high95"))
    assert low <= centre <= high

    stored = [json.loads((out / f"adamw_seed{seed}.json").read_text()) for seed in (0, 1)]
    assert stored[0]["points"]["1"]["val/loss"] != stored[1]["points"]["1"]["val/loss"]  # the seeds are different runs
    assert len({point["val/loss"] for point in stored[0]["points"].values()}) == 4  # and so are the four points of one

    assert (
        main([*COMPARE, *SMALL, "--optimizers", "tensor", "--data.batch_size", "32"]) == 1
    )  # nothing there of this one, yet it is refused
    assert "was made with another configuration" in capsys.readouterr().err
    assert {file.name for file in out.glob("*.json")} == names


def test_nothing_trains_on_after_a_comparison_was_killed(tmp_path):
    endless = [*TINY_GPT, *TINY_TEXT, "--trainer.max_epochs", "1000000", "--out", "out", "--seeds", "1", "--jobs", "2"]
    command = [sys.executable, "-m", "experiments", "compare", "--config", str(CONFIGS / "gpt_stdlib.yaml"), *endless]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes, start_new_session=True)
    try:
        while process.poll() is None and len(list((tmp_path / "out" / "logs").glob("*/events*"))) < 2:
            time.sleep(0.01)
        assert process.poll() is None
        process.kill()
        process.communicate(timeout=120)  # the pipe closes when the last of its processes has ended
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_a_learning_rate_in_a_process_of_its_own(capsys):
    assert main([*COMPARE, *SMALL, "--optimizers", "tensor", "--seeds", "1", "--lrs", "1e-2", "--jobs", "2"]) == 0
    text = capsys.readouterr().out
    assert "[1/1] tensor_lr0.01_seed0: val 0." in text
    assert "| tensor | 0.01 | 0." in folded(text)


def test_partitions_with_the_dtype_of_their_momentum(tmp_path):
    names = "adam_mini,adam_mini:bfloat16,adam_mini:8bit"
    channels = ["--model.model_args", "{channels: [4, 8, 8, 64], zero_init_last: false}"]  # some tensors are large enough for 8 bits
    assert main([*COMPARE, *SMALL, *channels, "--optimizers", names, "--seeds", "1"]) == 0
    with (tmp_path / "out" / "table.csv").open() as file:
        bytes_by_name = {row["optimizer"]: int(row["state_bytes"]) for row in csv.DictReader(file)}
    wide, half, narrow = (bytes_by_name[name] for name in names.split(","))
    assert half / wide == pytest.approx(0.5, abs=0.01)
    assert 0.25 < narrow / wide < 0.35
    assert (tmp_path / "out" / "runs" / "adam_mini-8bit_seed0.json").is_file()


def test_settings_are_chosen_on_few_seeds_and_trajectories_kept(tmp_path, capsys):
    small = [*TINY_GPT, *TINY_TEXT, "--trainer.max_epochs", "2"]
    names = ["adamw", "adam", "adam_mini:embedding=none"]
    command = ["compare", "--config", str(CONFIGS / "gpt_stdlib.yaml"), "--out", "out", *small, "--optimizers", ",".join(names)]
    assert main([*command, "--seeds", "2", "--tune-seeds", "1", "--lrs", "1e-3,1e-2", "--betas", "0.9/0.95", "--trajectory", "4"]) == 0
    runs = {file.name for file in (tmp_path / "out" / "runs").glob("*.json")}
    assert len(runs) == 3 * 2 + 3  # both rates at the first seed, the better one at the second
    assert "adam_mini-embedding=none_lr0.01_betas0.9-0.95_seed0.json" in runs

    table = folded((tmp_path / "out" / "table.md").read_text())
    assert "over 2 seeds, the best first" in table
    assert "Chosen on validation by the first of them from: 0.001, betas 0.9/0.95; 0.01, betas 0.9/0.95 (* at the edge of these)." in table
    assert "| adamw | 0.01, betas 0.9/0.95* |" in table
    with (tmp_path / "out" / "sensitivity.csv").open() as file:
        cells = {(row["optimizer"], float(row["lr"])): row for row in csv.DictReader(file)}
    assert len(cells) == 6
    stored = json.loads((tmp_path / "out" / "runs" / "adam_lr0.001_betas0.9-0.95_seed0.json").read_text())
    assert float(cells["adam", 1e-3]["val_mean"]) == pytest.approx(stored["points"]["1"]["val/loss"], abs=1e-6)
    assert len(stored["losses"]) == 8
    with (tmp_path / "out" / "table.csv").open() as file:
        highest = {row["optimizer"]: float(row["highest_loss"]) for row in csv.DictReader(file)}
    losses = [json.loads(file.read_text())["losses"] for file in (tmp_path / "out" / "runs").glob("adamw_lr0.01_*.json")]
    assert len(losses) == 2
    assert highest["adamw"] == max(map(max, losses))

    with (tmp_path / "out" / "trajectory.csv").open() as file:
        rows = list(csv.DictReader(file))
    ends = {(row["optimizer"], row["seed"]): (int(row["step"]), float(row["relative"])) for row in rows}
    assert list(ends) == [(name, seed) for seed in "01" for name in names[1:]]
    assert ends["adam", "0"] == ends["adam", "1"] == (8, 0.0)  # AdamW to the bit
    ours = [ends["adam_mini:embedding=none", seed][1] for seed in "01"]
    assert 0.01 < ours[0] != ours[1]
    lines = folded((tmp_path / "out" / "trajectory.md").read_text()).splitlines()
    assert lines[2] == "| optimizer | lr | step 2 | step 4 | step 8 |"
    assert lines[4].startswith("| adam | 0.01, betas 0.9/0.95 | 0.00 ± 0.00 |")
    (row,) = [line for line in lines if line.startswith("| adam_mini")]
    assert row.endswith(f"| {fmean(ours):.2f} ± {stdev(ours):.2f} |")
    assert {int(row["step"]) for row in rows} == {0, 2, 4, 6, 8}
    last = []
    for name in ("adamw", "adam_mini-embedding=none"):
        with np.load(tmp_path / "out" / "weights" / f"{name}_lr0.01_betas0.9-0.95_seed0_4.npz") as file:
            last.append(file["weights"][-1])
    distance = math.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(*last, strict=True)))
    assert float(rows[9]["distance"]) == pytest.approx(distance, rel=1e-4)
    for figure in ("figure", "losses", "sensitivity", "trajectory"):
        assert (tmp_path / "out" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    assert main([*command, "--seeds", "2", "--tune-seeds", "1", "--lrs", "1e-3,1e-2", "--betas", "0.9/0.95", "--trajectory", "4"]) == 0
    assert "6 of 6 runs were finished before" in capsys.readouterr().out


def test_compare_measures_the_averaged_weights_of_each_point(tmp_path):
    limits = ["--trainer.limit_val_batches", "1", "--trainer.check_val_every_n_epoch", "1", "--trainer.max_epochs", "4"]
    args = ["--optimizers", "adam_mini", "--seeds", "1", "--out", "out", "--trainer.limit_train_batches", "2", *limits]
    assert main(["compare", "--config", str(CONFIGS / "ddpm_digits.yaml"), *AVERAGED, *args]) == 0
    stored = json.loads((tmp_path / "out" / "runs" / "adam_mini_seed0.json").read_text())
    assert stored["headline"]["mode"] == "min"
    losses = [point["val/loss"] for point in stored["points"].values()]
    assert len(set(losses)) == 4
    assert losses[-1] == pytest.approx(stored["curve"][-1]["val/loss"], abs=1e-6)  # measured while they were averaged


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_beside_adamw(tmp_path):
    """Each at the rate that is best for its mean over the seeds on validation, and judged there on test."""
    small = [*TINY_GPT, *TINY_TEXT, "--trainer.max_epochs", "1"]
    command = ["compare", "--config", str(CONFIGS / "gpt_stdlib.yaml"), "--out", "out", *small, "--optimizers", "adamw,muon_adamw"]
    assert main([*command, "--seeds", "2", "--lrs", "1e-5,1e-2"]) == 0
    reached = {}
    for file in (tmp_path / "out" / "runs").glob("*.json"):
        stored = json.loads(file.read_text())
        reached[stored["optimizer"], stored["lr"], stored["seed"]] = stored["points"]["1"]
    assert len(reached) == 2 * 2 * 2
    with (tmp_path / "out" / "table.csv").open() as file:
        rows = {row["optimizer"]: row for row in csv.DictReader(file)}
    tests = {}
    for name, row in rows.items():
        val = {lr: fmean(reached[name, lr, seed]["val/loss"] for seed in range(2)) for lr in (1e-5, 1e-2)}
        assert float(row["lr"]) == min(val, key=val.__getitem__)
        tests[name] = np.array([reached[name, float(row["lr"]), seed]["test/loss"] for seed in range(2)])
        assert float(row["test_mean_1"]) == pytest.approx(tests[name].mean(), abs=1e-6)
    difference = tests["muon_adamw"] - tests["adamw"]
    half = 12.706205 * difference.std(ddof=1) / 2**0.5  # Student's t of one degree of freedom
    ends = [float(rows["muon_adamw"][key]) for key in ("low95", "difference", "high95")]
    assert ends == pytest.approx([difference.mean() - half, difference.mean(), difference.mean() + half], abs=1e-5)
    assert float(rows["adamw"]["bytes_per_parameter"]) == pytest.approx(8.0, abs=0.01)
    hidden, others = 12 * 32**2, 256 * 32 + 3 * 32  # of one layer; the tokens and three norms
    assert float(rows["muon_adamw"]["bytes_per_parameter"]) == pytest.approx((4 * hidden + 8 * others) / (hidden + others), abs=0.01)


def test_combinations_are_trained_beside_their_originals(tmp_path):
    names = ["schedule_free", "auto+schedule_free", "auto+galore:rank=4", "auto+badam:every=2"]
    small = [*TINY_GPT, *TINY_TEXT, "--trainer.max_epochs", "1"]
    command = ["compare", "--config", str(CONFIGS / "gpt_stdlib.yaml"), "--out", "out", *small, "--optimizers", ",".join(names)]
    assert main([*command, "--seeds", "1"]) == 0
    found = {}
    for file in (tmp_path / "out" / "runs").glob("*.json"):
        stored = json.loads(file.read_text())
        found[stored["optimizer"]] = stored
        # What is measured at the end, and what was validated while it trained, are the same averages.
        assert stored["curve"][-1]["val/loss"] == pytest.approx(stored["points"]["1"]["val/loss"], abs=1e-5)
    bytes_each = {name: found[name]["state_bytes"] / found[name]["parameters"] for name in names}
    assert bytes_each["schedule_free"] == pytest.approx(8, abs=0.1)
    assert bytes_each["auto+schedule_free"] == pytest.approx(4, abs=0.3)
    assert max(bytes_each["auto+galore:rank=4"], bytes_each["auto+badam:every=2"]) < 4
    ours, theirs = (found[name]["points"]["1"]["val/loss"] for name in ("auto+schedule_free", "schedule_free"))
    assert ours == pytest.approx(theirs, rel=0.02)


def test_runs_that_diverge_are_in_the_tables(tmp_path, capsys):
    small = [*TINY_GPT, *TINY_TEXT, "--trainer.max_epochs", "1"]
    command = ["compare", "--config", str(CONFIGS / "gpt_stdlib.yaml"), *small, "--optimizers", "adamw,lion", "--seeds"]
    assert main([*command, "1", "--out", "both", "--lrs", "1e-3,1e30"]) == 0
    assert "| adamw | 0.001* |" in folded(capsys.readouterr().out)
    with (tmp_path / "both" / "sensitivity.csv").open() as file:
        means = {(row["optimizer"], float(row["lr"])): float(row["val_mean"]) for row in csv.DictReader(file)}
    assert math.isfinite(means["lion", 1e-3])
    assert math.isnan(means["lion", 1e30])
    assert main([*command, "2", "--out", "none", "--lrs", "1e30", "--trajectory", "2"]) == 0
    text = folded(capsys.readouterr().out)
    assert text.count("| adamw | 1e+30 | diverged | diverged | diverged | diverged | - |") == 1
    assert text.count("| lion | 1e+30 | diverged | diverged | diverged | diverged | - |") == 1
    with (tmp_path / "none" / "table.csv").open() as file:
        assert [row["highest_loss"] for row in csv.DictReader(file)] == ["inf", "inf"]


def test_spikes_are_counted():
    generator = np.random.default_rng(0)
    calm = (3.0 * np.exp(-np.arange(400) / 100) + 2.0 + 0.05 * generator.normal(size=400)).tolist()
    assert find_spikes(calm) == []
    rough = list(calm)
    rough[200:205] = [4.5, 4.4, 4.3, 4.2, 4.1]
    rough[300] = 3.0
    assert find_spikes(rough) == [200, 300]
    assert find_spikes([*calm[:200], math.nan, math.nan, math.inf]) == [200]
    assert find_spikes([9.0, 1.0] * 5) == []  # too few to judge


def test_queries_and_keys_by_tensor():
    model = GPT(vocab_size=16, context=8, layers=1, heads=4, width=32, fused_qkv=True)
    by_head, by_tensor = (partition_model(model, name)["blocks.0.attn.qkv_proj.weight"] for name in ("adam_mini", "adam_mini_qk_tensor"))
    assert (by_head.num_blocks, by_tensor.num_blocks) == (4 + 4 + 32, 1 + 1 + 32)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--optimizers", "adamw,adam_minni"], "adam_minni"),
        (["--optimizers", "adamw,adamw"], "each once"),
        (["--optimizers", "adamw,adam_mini:4bit"], "Invalid momentum_dtype value: '4bit'"),
        (["--optimizers", "adamw:8bit"], "There is no optimizer 'adamw:8bit'"),
        (["--optimizers", "muonn"], "There is no optimizer 'muonn'"),
        (["--optimizers", "adam_mini:embedding=nun"], "embedding='nun'"),
        (["--optimizers", "auto+sofia"], "There is no combination 'sofia'. Give one of schedule_free, galore, sophia"),
        (["--optimizers", "auto+galore:rank=0"], "GaLore has no rank=0"),
        (["--optimizers", "auto+badam:order=up"], "BAdam has no order='up'"),
        (["--seeds", "2", "--tune-seeds", "3"], "--tune-seeds 3 between 1 and --seeds"),
        (["--betas", "0.9"], "must be pairs"),
        (["--seeds", "0"], "must be at least 1"),
        (["--lrs", "1e-3,fast"], "must be numbers"),
        (["--config", "absent.yaml"], "there is no file absent.yaml"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(args, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*COMPARE, *args])
    assert message in capsys.readouterr().err


def test_learning_rate_is_selected_on_validation_not_on_test():
    runs = [result("adamw", seed, test=test, lr=lr, val=val) for lr, val, test in ((1e-3, 0.9, 0.1), (1e-2, 0.8, 0.99)) for seed in (0, 1)]
    assert select_by_validation(runs) == Run("adamw", 0, Setting(1e-3))
    found = results_at(runs, [select_by_validation(runs)])["adamw"]
    assert [chosen.run for chosen in found] == [Run("adamw", seed, Setting(1e-3)) for seed in (0, 1)]


def test_learning_rate_of_a_loss_is_the_one_that_makes_it_small():
    loss = Headline("acc", "loss", "min")
    runs = [result("adamw", 0, test=0.5, lr=lr, val=val, headline=loss) for lr, val in ((1e-3, 0.9), (1e-2, 0.8))]
    assert select_by_validation(runs).setting.lr == 1e-2


def test_a_learning_rate_that_diverges_is_never_selected():
    loss = Headline("acc", "loss", "min")
    runs = [result("adamw", 0, test=0.5, lr=lr, val=val, headline=loss) for lr, val in ((1e-2, math.nan), (1e-3, 0.9))]
    assert select_by_validation(runs).setting.lr == 1e-3
    assert select_by_validation(runs[::-1]).setting.lr == 1e-3


def test_curve_is_the_mean_over_seeds_where_all_validated():
    runs = [result("adamw", seed, 0.9, lr=1e-2) for seed in (0, 1)]
    runs[0].curve.extend([{"step": 2, "val/acc": 0.5}, {"step": 4, "val/acc": 0.7}, {"step": 6, "val/acc": 0.8}])
    runs[1].curve.extend([{"step": 2, "val/acc": 0.7}, {"step": 4, "val/acc": 0.7}])
    curve = build_curve(runs)
    assert (curve.label, curve.steps) == ("adamw, lr 0.01", (2, 4))
    assert curve.means == pytest.approx((0.6, 0.7))
    assert curve.spreads == pytest.approx((0.02**0.5, 0.0))


def test_what_a_headline_needs_beside_it_is_drawn_below_it_and_stands_in_the_table_and_in_what_is_kept():
    weighed = Headline("acc", "accuracy", "max", beside=("kl",))
    runs = [result(name, seed, 0.9, headline=weighed) for name in ("adamw", "auto") for seed in (0, 1)]
    for run in runs:
        run.points["1"]["test/kl"] = 0.5 + run.run.seed
        run.curve.append({"step": 2, "val/acc": 0.5, "val/kl": 0.25})
    chosen = results_at(runs, select_each(runs, ["adamw", "auto"]))
    figure = draw(chosen)
    assert figure is not None
    assert [axes.get_ylabel() for axes in figure.axes] == [f"validation {what} (mean ± sd of 2 seeds)" for what in ("accuracy", "kl")]
    assert all(line.get_ydata()[0] == height for axes, height in zip(figure.axes, (0.5, 0.25), strict=True) for line in axes.lines[:2])
    kept = [from_row(run.row(), weighed) for run in runs]
    rows = build_rows(results_at(kept, select_each(kept, ["adamw", "auto"])))
    assert all(row.beside == {"kl": (1.0, pytest.approx(0.5**0.5))} for row in rows)
    assert "1.0000 ± 0.7071" in build_table(rows, "adamw", "accuracy").markdown()


def test_nothing_is_drawn_of_runs_that_never_validated():
    assert draw({"adamw": [result("adamw", 0, 0.9)]}) is None


def test_difference_is_paired_by_seed():
    results = [result("adamw", seed, 0.90 + seed / 100) for seed in range(3)]
    results += [result("tensor", seed, 0.91 + seed / 100 + noise) for seed, noise in enumerate((-0.001, 0.0, 0.001))]
    tensor, baseline = build_rows(results_at(results, select_each(results, ["adamw", "tensor"])))  # the best first
    assert baseline.difference is None
    assert tensor.difference is not None
    assert tensor.difference.centre == pytest.approx(0.01)
    assert tensor.difference.high - tensor.difference.low == pytest.approx(2 * 4.302653 * 0.001 / 3**0.5, rel=1e-5)
    table = folded(build_table([tensor, baseline], "adamw", "accuracy").markdown())
    assert "| tensor | config | 0.9200 ± 0.0110 |" in table
    assert "+0.0100 [+0.0075, +0.0125]" in table
    assert "(50.1%) | 4.01 |" in table
    older = [replace(one, parameters=None) for one in results]  # of an earlier version
    again = build_table(build_rows(results_at(older, select_each(older, ["adamw", "tensor"]))), "adamw", "accuracy")
    assert "(50.1%) | - |" in folded(again.markdown())


def test_runs_are_ordered_so_that_every_optimizer_is_there_early():
    plan = Plan(Path("x.yaml"), (), Path("out"), ("adamw", "tensor"), (0, 1))
    assert [run.name for run in plan.tuning_runs()] == ["adamw_seed0", "tensor_seed0", "adamw_seed1", "tensor_seed1"]
