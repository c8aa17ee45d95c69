import pytest

from lightning_adam_mini.cli.main import main
from lightning_adam_mini.partition import Rule, SlimAdamRules

SMALL = SlimAdamRules(
    "layer_type", {"query": Rule((1,), 5.6, 12), "value": Rule((0,), 2.5, 12)}, {"model": "GPT", "lr": 3e-4, "cutoff": 1.0}
)
LARGE = SlimAdamRules("layer_type", {"query": Rule((1,), 1.9, 12), "value": Rule((), 0.7, 12)}, {"model": "GPT", "lr": 3e-3, "cutoff": 1.0})


@pytest.fixture
def files(tmp_path):
    SMALL.save(tmp_path / "small.yaml")
    LARGE.save(tmp_path / "large.json")
    return str(tmp_path / "small.yaml"), str(tmp_path / "large.json")


def test_show(files, capsys):
    assert main(["rules", "show", files[0]]) == 0
    text = capsys.readouterr().out
    assert "model GPT, lr 0.0003, cutoff 1" in text
    assert ["query", "12", "[1]", "5.6"] in [line.split() for line in text.splitlines()]


def test_diff(files, capsys):
    assert main(["rules", "diff", *files]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["lr: 0.0003 -> 0.003", "value  [0] (SNR 2.5) -> nothing (SNR 0.7)", "1 of 2 rules differ."]
    assert main(["rules", "diff", files[0], files[0]]) == 0
    assert capsys.readouterr().out == "0 of 2 rules differ.\n"


def test_diff_of_what_crosses(tmp_path, capsys):
    SlimAdamRules("layer_type", {"query": Rule((1,), 5.6, 12), "value": Rule((1,), 4.0, 12, (0,))}, SMALL.provenance).save(
        tmp_path / "a.yaml"
    )
    SlimAdamRules("layer_type", {"query": Rule((1,), 5.6, 12), "value": Rule((1,), 2.5, 12)}, SMALL.provenance).save(tmp_path / "b.yaml")
    assert main(["rules", "diff", str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]) == 0
    assert capsys.readouterr().out.splitlines() == ["value  [1] x [0] (SNR 4) -> [1] (SNR 2.5)", "1 of 2 rules differ."]


def test_mistakes(files, tmp_path, capsys):
    assert main(["rules", "show", "absent.yaml"]) == 2
    assert "error: There is no file absent.yaml" in capsys.readouterr().err
    SlimAdamRules("parameter", {"w": Rule((1,))}).save(tmp_path / "other.yaml")
    assert main(["rules", "diff", files[0], str(tmp_path / "other.yaml")]) == 2
    assert "cannot be compared" in capsys.readouterr().err
