"""What the callback is asked to log: the object, its older spellings, and YAML."""

import copy
import json
import pickle

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_adam_mini import AdamMiniCallback, Monitoring


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, Monitoring()),
        ({"monitoring": True}, Monitoring()),
        ({"monitoring": False}, None),
        ({"monitoring": Monitoring(histograms=True)}, Monitoring(histograms=True)),
        ({"monitoring": {"heatmap": True, "max_heads": 4}}, Monitoring(heatmap=True, max_heads=4)),
        ({"monitor": False}, None),
        ({"histograms": True, "heatmap": True}, Monitoring(histograms=True, heatmap=True)),
        ({"monitoring": Monitoring(max_heads=2), "heatmap": True}, Monitoring(heatmap=True, max_heads=2)),
        ({"monitoring": Monitoring(heatmap=True), "monitor": True, "histograms": False, "heatmap": False}, Monitoring(heatmap=True)),
    ],
    ids=str,
)
def test_spellings(arguments, expected):
    callback = AdamMiniCallback(**arguments)
    assert callback.monitoring == expected
    for twin in (copy.deepcopy(callback), pickle.loads(pickle.dumps(callback))):
        assert twin.monitoring == expected


def test_an_unknown_argument_is_a_type_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'heatmpa'"):
        AdamMiniCallback(heatmpa=True)


YAML = {
    "plain": ({"monitoring": {"heatmap": True}}, Monitoring(heatmap=True)),
    "class": ({"monitoring": {"class_path": "lightning_adam_mini.Monitoring", "init_args": {"max_heads": 3}}}, Monitoring(max_heads=3)),
    "off": ({"monitoring": False}, None),
    "older": ({"histograms": True, "heatmap": True}, Monitoring(histograms=True, heatmap=True)),
    "older off": ({"monitor": False}, None),
}


def callback_of(*args: str) -> AdamMiniCallback:
    cli = LightningCLI(BoringModel, run=False, save_config_callback=None, args=list(args))
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, AdamMiniCallback))


@pytest.mark.parametrize("name", YAML)
def test_yaml(name, tmp_path):
    arguments, expected = YAML[name]
    path = tmp_path / "config.yaml"
    callbacks = [{"class_path": "AdamMiniCallback", "init_args": arguments}]
    path.write_text(json.dumps({"trainer": {"logger": False, "callbacks": callbacks}}))  # JSON is YAML
    assert callback_of("--config", str(path)).monitoring == expected


def test_command_line():
    add = "--trainer.callbacks+=AdamMiniCallback"
    assert callback_of(add, "--trainer.callbacks.monitoring.histograms=true").monitoring == Monitoring(histograms=True)
    assert callback_of(add, "--trainer.callbacks.histograms=true").monitoring == Monitoring(histograms=True)
    assert callback_of(add, "--trainer.callbacks.monitoring=false").monitoring is None


def test_what_is_printed_is_read_again(tmp_path, capsys):
    args = ["--trainer.callbacks+=AdamMiniCallback", "--trainer.callbacks.monitoring.heatmap=true"]
    with pytest.raises(SystemExit):
        callback_of(*args, "--print_config")
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert callback_of("--config", str(tmp_path / "config.yaml")).monitoring == Monitoring(heatmap=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitoring": "yes"}, "no monitoring='yes'. Give True, False"),
        ({"monitoring": {"heatmpa": True}}, r"no 'heatmpa' \(did you mean 'heatmap'\?\)"),
        ({"monitoring": {"heatmap": "yes"}}, "no heatmap='yes'"),
        ({"monitoring": {"max_heads": 0}}, r"max_heads=0\) leaves no head"),
        ({"monitoring": False, "heatmap": True}, "draws no heatmap without monitoring"),
        ({"monitor": 1}, "no monitor=1"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        AdamMiniCallback(**arguments)
