import json
import math
from collections import Counter

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException

from experiments.__main__ import main
from experiments.all import SLIM_ADAM
from experiments.slim_adam.command import FIGURES
from experiments.slim_adam.models import gpt, resnet, vit
from experiments.slim_adam.room import Run, Task, rules_digest, train
from experiments.slim_adam.sweep import ADAMW, CROSSED, Sweep
from lightning_adam_mini.partition import Rule, SlimAdamRules
from recipes.__main__ import main as recipes
from tests.recipes.conftest import QUIET
from tests.recipes.conftest import cifar as cifar
from tests.recipes.conftest import image_tree as image_tree

TEXT = "def f(x):\n    return x + 1\n\n\n"


@pytest.fixture
def documents(tmp_path):
    """A folder of text files: of every 20, one tests and one validates."""
    folder = tmp_path / "documents"
    folder.mkdir()
    for number in range(22):
        (folder / f"{number:02}.txt").write_text(TEXT * 40 + f"g = f({number})\n")
    return folder


def small_gpt(documents, steps=4):
    return gpt(steps, 1, 32, documents)


def test_every_figure_is_run_by_all():
    assert sorted(SLIM_ADAM) == sorted(FIGURES)


def test_a_run_is_measured_as_snr_monitor_measures(documents, tmp_path):
    run = train(Task("gpt", small_gpt(documents), 1e-3, every=2), tmp_path / "run.json")
    monitor = [
        "--trainer.callbacks",
        "lightning_adam_mini.SNRMonitor",
        "--trainer.callbacks.every",
        "2",
        "--trainer.callbacks.dirpath",
        "own",
    ]
    assert recipes(["fit", *small_gpt(documents), *monitor, "--model.lr=1e-3", "--trainer.logger=false", *QUIET]) == 0
    own = SlimAdamRules.load(tmp_path / "own" / "slim_adam_rules.yaml")
    assert run.rules().rules == own.rules
    assert run.rules().provenance["second_moments_kept"] == own.provenance["second_moments_kept"] == round(run.kept(own), 6)
    assert run.history.csv_text() == (tmp_path / "own" / "snr.csv").read_text()
    assert {"fan_in", "fan_out", "all", "crossed"} == run.ratios["query"].keys()


def test_rules_that_average_nothing_are_adamw_and_runs_are_not_repeated(documents, tmp_path):
    args = small_gpt(documents)
    adamw = train(Task("gpt", args, 1e-3, every=2), tmp_path / "a.json")
    nothing, rows = (SlimAdamRules("layer_type", dict.fromkeys(adamw.ratios, rule)) for rule in (Rule(()), Rule((1,))))
    assert train(Task("gpt", args, 1e-3, rules=nothing), tmp_path / "b.json").test == adamw.test
    assert train(Task("gpt", args, 1e-3, rules=rows), tmp_path / "c.json").test != adamw.test
    written = (tmp_path / "a.json").stat().st_mtime_ns
    assert train(Task("gpt", args, 1e-3, every=2), tmp_path / "a.json").history.csv_text() == adamw.history.csv_text()
    assert (tmp_path / "a.json").stat().st_mtime_ns == written
    with pytest.raises(MisconfigurationException, match="another configuration"):
        train(Task("gpt", small_gpt(documents, 6), 1e-3, every=2), tmp_path / "a.json")
    assert rules_digest(rows) == rules_digest(SlimAdamRules("layer_type", {name: Rule((1,), 7.0) for name in adamw.ratios}))
    assert rules_digest(rows) != rules_digest(nothing)


def test_vocabulary_on_a_folder_of_text(documents, tmp_path):
    command = ["slim_adam", "vocabulary", "--small", "--out", "out", "--root", str(documents)]
    assert main(command) == 0
    result = json.loads((tmp_path / "out" / "vocabulary.json").read_text())
    train_text = [file.read_bytes() + b"\0" for number, file in enumerate(sorted(documents.iterdir())) if number % 20 > 1]
    counts = sorted(Counter(b"".join(train_text)).values(), reverse=True)
    assert math.isclose(result["facts"]["frequency"]["256"]["top_tenth"], sum(counts[:25]) / sum(counts))
    assert {(row["vocabulary"], row["layer"]) for row in result["rows"]} == {
        (n, kind) for n in (256, 280) for kind in ("embedding", "head")
    }
    runs = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("**/*") if file.suffix in (".bin", ".json")}
    assert main(command) == 0
    assert all(file.stat().st_mtime_ns == then for file, then in runs.items() if "runs" in file.parts or file.suffix == ".bin")


def test_images_in_their_true_layout(cifar, image_tree, tmp_path):
    run = train(Task("cifar", resnet(2, cifar), 1e-3, every=1), tmp_path / "run.json")
    assert run.title == "accuracy"
    assert {"first_conv_4d", "conv_4d", "classifier"} <= run.ratios.keys()
    (cifar / "cifar-10-batches-py").rename(tmp_path / "elsewhere")
    assert "--model.num_classes=100" in resnet(1, cifar)
    assert {"--data=ImageFolderData", "--model.num_classes=2"} <= set(vit(1, image_tree))
    with pytest.raises(MisconfigurationException, match="holds no images"):
        vit(1, tmp_path)


def test_the_table_of_a_sweep():
    def run(test):
        return Run(1e-3, test, test, "loss", True, PARAMETERS, "transformer")

    rules = SlimAdamRules("layer_type", {"query": Rule((1,))})
    found = Sweep(1e-3, {CROSSED: rules}, {ADAMW: {1e-3: [run(2.0), run(3.0)]}, CROSSED: {1e-3: [run(2.5), run(3.3)]}})
    line = found.table("").rows[1]
    assert line[1] == "25.00%"  # 4 of 16
    assert line[3].startswith("+0.400 [")
    assert list(found.curves) == [ADAMW, CROSSED]


PARAMETERS = [
    {"name": "q.weight", "shape": [4, 4], "role": "query", "owner": "query", "reason": "", "aliases": [], "source": 1},
]


def test_mistakes(tmp_path, capsys):
    assert main(["slim_adam", "kept", "--root", "nowhere"]) == 1
    assert "is no folder" in capsys.readouterr().err
    assert main(["slim_adam", "kept", "--seeds", "0"]) == 1
    assert "at least 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["slim_adam", "kept", "--model.layers", "3"])
