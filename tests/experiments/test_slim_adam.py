import csv

from PIL import Image

from experiments.__main__ import main
from experiments.slim_adam.tables import rules_table, sweep_table
from lightning_adam_mini.partition import Rule, SlimAdamRules
from recipes.__main__ import main as recipes
from tests.recipes.conftest import CONFIGS, NARROW

from .conftest import folded

SMALL = ["--trainer.max_steps", "4", "--trainer.limit_val_batches", "1", "--trainer.limit_test_batches", "1"]
GIVEN = ["--config", str(CONFIGS / "resnet18_digits.yaml"), "--out", "out", "--every", "2", *NARROW, *SMALL]


def result(optimizer, seed, test, lr=None):
    return {
        "optimizer": optimizer,
        "seed": seed,
        "lr": lr,
        "headline": {"metric": "acc", "title": "accuracy"},
        "points": {"1": {"test/acc": test}},
    }


def test_rules_from_two_learning_rates_and_training_with_them(tmp_path, capsys):
    command = ["slim_adam", "rules", *GIVEN, "--seeds", "2"]
    assert main(command) == 0
    text = (tmp_path / "out" / "rules.md").read_text()
    assert text in capsys.readouterr().out
    text = folded(text)
    small, large = (SlimAdamRules.load(tmp_path / "out" / name / "slim_adam_rules.yaml") for name in ("lr0.0002", "lr0.002"))
    assert (small.provenance["lr"], large.provenance["lr"]) == (2e-4, 2e-3)
    assert small.provenance["measurements"] == 2
    assert f"| SlimAdam | 0.0002 | {small.provenance['second_moments_kept']:.2%} |" in text
    with (tmp_path / "out" / "rules" / "table.csv").open() as file:
        rows = {row["optimizer"]: int(row["state_bytes"]) for row in csv.DictReader(file)}
    assert len(rows) == 3
    assert rows[f"slim_adam:rules=out/{'lr0.0002'}/slim_adam_rules.yaml"] < rows["adamw"]
    assert main(command) == 0  # nothing is repeated
    assert "6 of 6 runs were finished before" in capsys.readouterr().out
    assert main([*command, "--data.batch_size", "32"]) == 1
    assert "was made with another configuration" in capsys.readouterr().err


def test_sweep_and_figures(tmp_path):
    assert main(["slim_adam", "sweep", *GIVEN, "--trainer.max_steps", "2", "--seeds", "1", "--lrs", "1e-3,1e-2"]) == 0
    table = (tmp_path / "out" / "sweep.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in table if line.startswith("|")][2:] == [
        "adamw",
        "slim_adam",
        "adam_mini_v1",
        "adam_mini",
        "adalayer",
        "adalayer_ln_tl",
    ]
    vary = ["--vary", "model.weight_decay=0.0,0.1"]
    assert main(["slim_adam", "figures", *GIVEN, "--lrs", "1e-3,1e-2", *vary]) == 0
    for name in ("sweep.png", "ratios.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.width > 300
    with (tmp_path / "out" / "ratios.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["over"] for row in rows if row["layer_type"] == "conv_4d" and row["variant"] == "0.1"} >= {"fan_in", "fan_out", "all"}
    assert (tmp_path / "out" / "lr0.01_0.1" / "snr_depth.png").stat().st_size


def test_rules_by_path_in_yaml(tmp_path, capsys):
    rules = {name: Rule((1, 2, 3)) for name in ("conv_4d", "first_conv_4d")} | {"classifier": Rule((1,))}
    SlimAdamRules("layer_type", rules).save(tmp_path / "rules.yaml")
    (tmp_path / "slim.yaml").write_text(
        "trainer:\n  callbacks:\n  - class_path: AdamMiniCallback\n    init_args:\n      partition: slim_adam\n"
        f"      options: {{rules: {tmp_path / 'rules.yaml'}}}\n"
    )
    files = ["--config", str(CONFIGS / "resnet18_digits.yaml"), "--config", str(tmp_path / "slim.yaml")]
    assert recipes(["fit", *files, *NARROW, *SMALL]) == 0
    assert "% saved" in capsys.readouterr().out
    (tmp_path / "rules.yaml").unlink()
    assert recipes(["fit", *files, *NARROW, *SMALL]) == 1
    assert "There is no file" in capsys.readouterr().err


def test_cost_of_the_monitor(tmp_path, capsys):
    small = ["--steps", "4", "--every", "2", "--out", "out", *NARROW]
    assert main(["snr", "--config", str(CONFIGS / "resnet18_digits.yaml"), *small]) == 0
    assert (tmp_path / "out" / "snr_resnet18_digits.md").read_text() in capsys.readouterr().out


def test_tables():
    runs = [result("adamw", seed, test) for seed, test in ((0, 0.90), (1, 0.92))]
    runs += [result("slim_adam:rules=a.yaml", seed, test) for seed, test in ((0, 0.91), (1, 0.91))]
    row = rules_table(runs, {"slim_adam:rules=a.yaml": (1e-4, 0.02)}).rows[-1]
    assert row == ["SlimAdam", "0.0001", "2.00%", "0.9100 ± 0.0000", "+0.0000 [-0.1271, +0.1271]", "+0.00"]
    swept = sweep_table([result("adamw", 0, 0.9, 1e-3), result("adamw", 0, float("nan"), 1e-1)], ["adamw"])
    assert swept.rows == [["adamw", "0.9000", "diverged"]]


def test_mistakes(capsys):
    assert main(["slim_adam", "figures", *GIVEN, "--lrs", "fast"]) == 1
    assert "must be numbers" in capsys.readouterr().err
    assert main(["slim_adam", "rules", *GIVEN, "--every", "999"]) == 1
    assert "fewer than 999 steps" in capsys.readouterr().err
