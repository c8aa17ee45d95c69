import pytest
import torch

from benchmarks.activations import activations, kept_bytes
from benchmarks.workloads import add_random_gradients
from lightning_adam_mini.optim import state_bytes as ours
from recipes.held import bytes_held, gradient_bytes, state_bytes

from .conftest import SMALL

CPU = torch.device("cpu")


def test_state_bytes_of_plain_tensors_are_the_packages():
    model = SMALL.make(CPU)
    add_random_gradients(model)
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    elements = 8 * 16 + 16 + 16 * 4 + 4
    assert state_bytes(optimizer) == ours(optimizer) == 8 * elements + 4 * 4
    assert gradient_bytes(model) == 4 * elements


def test_bytes_inside_a_tensor_subclass_count():
    quantized = pytest.importorskip("torchao.optim", reason="torchao is not installed")
    model = torch.nn.Linear(256, 64, bias=False)
    add_random_gradients(model)
    optimizer = quantized.AdamW8bit(model.parameters())
    optimizer.state[model.weight]["exp_avg"] = optimizer._new_buffer(model.weight, True)
    elements = 256 * 64
    assert bytes_held(optimizer.state.values()) == elements + 4 * elements // 256 + 256 * 4  # codes, scales, the map from codes to values


def test_activations_are_those_of_the_network():
    model = SMALL.make(CPU)
    # a linear layer keeps its input (8 and 16 numbers); ReLU keeps its output, which is the second input; log_softmax 4 numbers and, of
    # 8 bytes, the target; the loss one number in all
    assert kept_bytes(SMALL, model, 4) - kept_bytes(SMALL, model, 2) == 2 * (4 * (8 + 16 + 4) + 8)
    fixed, each = activations(SMALL, model)
    assert each == 4 * (8 + 16 + 4) + 8
    assert 0 <= fixed < 16
