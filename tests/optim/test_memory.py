"""What a state holds, in bytes, counted by hand."""

import pytest
import torch
from torch import nn

from lightning_adam_mini.optim import state_bytes
from lightning_adam_mini.optim.memory import bytes_held


def stepped(optimizer, model):
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return optimizer


def test_plain_tensors_count_once():
    model = nn.Linear(8, 16)
    optimizer = stepped(torch.optim.AdamW(model.parameters()), model)
    elements = 8 * 16 + 16
    assert state_bytes(optimizer) == 8 * elements + 2 * 4
    optimizer.state["not a parameter"] = "a user's"  # pyright: ignore[reportArgumentType]
    optimizer.state[model.bias]["again"] = optimizer.state[model.bias]["exp_avg"][:3]
    optimizer.state[model.bias]["itself"] = optimizer.state[model.bias]
    assert state_bytes(optimizer) == 8 * elements + 2 * 4


def test_bytes_inside_a_tensor_subclass_count():
    quantized = pytest.importorskip("torchao.optim", reason="torchao is not installed")
    model = nn.Linear(256, 64, bias=False)
    with torch.compiler.set_stance("force_eager"):
        optimizer = stepped(quantized.AdamW8bit(model.parameters()), model)
    elements = 256 * 64
    one = elements + 4 * elements // 256 + 256 * 4  # codes, scales, the map from codes to values
    assert state_bytes(optimizer) - 2 * one in (0, 4)  # and a step, which may be a number


def test_bytes_inside_objects_count():
    class Projection:
        def __init__(self):
            self.matrix, self.owner = torch.zeros(5, 3), self

    assert bytes_held([{"projection": Projection()}]) == 4 * 15
