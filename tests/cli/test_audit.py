import json
import sys

import pytest

from lightning_adam_mini.cli.main import main

FACTORIES = """
import torch
from torch import nn

def model_and_loss():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(8, 4)
    return model, lambda module: module(x).square().mean()

def no_gradient():
    return nn.Linear(2, 2), lambda module: torch.zeros(())

def inputs_and_targets():
    return nn.Linear(2, 2), (torch.zeros(4, 2), torch.zeros(4, 2))

def raises():
    raise ValueError("no such data")

def three():
    return nn.Linear(2, 2), torch.zeros(4, 2), 1

def no_batch():
    return nn.Linear(2, 2), None

def loss_raises():
    return nn.Linear(2, 2), lambda module: module(torch.zeros(4, 3)).sum()

def model_only():
    return nn.Linear(2, 2)
"""


@pytest.fixture(autouse=True)
def factories(tmp_path, monkeypatch):
    (tmp_path / "audited.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("audited", None)


def test_table(capsys):
    assert main(["audit", "audited:model_and_loss", "--partition", "tensor", "--columns", "8"]) == 0
    text = capsys.readouterr().out
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("0.weight")] == [["0.weight", "tensor"]]
    assert "Note: Second moments are those of one gradient" in text


def test_json(capsys):
    assert main(["audit", "audited:model_and_loss", "--override", "0.weight=line", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    by_name = {finding["parameter"]: finding for finding in found["findings"]}
    assert by_name.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert by_name["0.weight"]["own"]["layout"] == "rows"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["audited:model_only"], "gave Linear, not a model and a batch. Return (model, batch) or (model, loss)."),
        (["audited:three"], "gave a tuple of Linear, Tensor, int, not a model and a batch. Return (model, batch) or (model, loss)."),
        (["audited:no_batch"], "Linear raised TypeError of a batch of type NoneType: linear()"),
        (["audited:loss_raises"], "The loss of audited:loss_raises raised an error: RuntimeError: mat1 and mat2 shapes"),
        (["audited"], "Write module.path:factory"),
        (["timm:resnet18"], "an audit needs a batch too. Write module.path:factory"),
        (["absent:model"], "There is no module 'absent' to import"),
        (["audited:raises"], "audited:raises raised an error: ValueError: no such data"),
        (["audited:inputs_and_targets"], "cannot be called with the batch: too many positional arguments. It has no training_step"),
        (["audited:absent"], "has no function 'absent'"),
        (["audited:no_gradient"], "The loss has no gradient"),
        (["audited:model_and_loss", "--seconds", "0"], "some seconds, columns and examples"),
        (["audited:model_and_loss", "--partition", "adam_mni"], "adam_mni"),
    ],
)
def test_mistakes(capsys, arguments, message):
    assert main(["audit", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
