"""What holds for every strategy, on real modules: the common list that a new strategy has to pass."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, AdamMiniWarning, inspect_model
from lightning_adam_mini.partition import STRATEGIES, partition_model

MODELS = {
    "attention": lambda: nn.TransformerEncoderLayer(16, 4, dim_feedforward=32, batch_first=True),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)),
    "recurrent": lambda: nn.LSTM(4, 8),
    "scalar": lambda: nn.ParameterDict({"temperature": nn.Parameter(torch.tensor(1.0)), "empty": nn.Parameter(torch.ones(0, 3))}),
}

WITHOUT_RULES = [name for name in STRATEGIES if name != "slim_adam"]  # which is tested with its rules
BY_BLOCKS = [name for name in WITHOUT_RULES if name not in ("muon", "normuon")]  # of matrices these keep none, or that of updates


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]()


@pytest.mark.parametrize("partition", WITHOUT_RULES)
def test_every_strategy(model, partition):
    """A layout for each parameter, frozen ones too, that fits it and that the optimizer trains with."""
    frozen = next(model.parameters()).requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdamMiniWarning)
        layouts = partition_model(model, partition)
        assert layouts == partition_model(inspect_model(model), partition)
    assert {name: layout.shape for name, layout in layouts.items()} == {name: tuple(p.shape) for name, p in model.named_parameters()}
    optimizer = AdamMini(model.named_parameters(), layouts=layouts)
    for p in model.parameters():
        p.grad = None if p is frozen else torch.randn_like(p)
    optimizer.step()
    assert optimizer.layouts == layouts
    kept = ("exp_avg_sq", "exp_avg_sq_col")
    blocks = sum(state[name].numel() for state in optimizer.state.values() for name in kept if name in state)
    assert blocks == sum(layouts[name].num_blocks for name, p in model.named_parameters() if p is not frozen)


def test_coarser_or_equal_in_this_order(model):
    """Adam keeps a second moment per element and AdaLayer one per tensor; the others are between the two."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdamMiniWarning)
        chosen = {name: partition_model(model, name).values() for name in BY_BLOCKS}
    # The one block of a tensor without elements would count more than its elements.
    blocks = {name: sum(layout.num_blocks for layout in layouts if 0 not in layout.shape) for name, layouts in chosen.items()}
    assert blocks["adam"] == sum(p.numel() for p in model.parameters())
    assert all(blocks["tensor"] <= blocks[name] <= blocks["adam"] for name in BY_BLOCKS)


def test_heads_of_a_real_module():
    layouts = partition_model(MODELS["attention"](), "adam_mini")
    assert layouts["self_attn.in_proj_weight"].lines == "q:4x4|k:4x4|v:16x1"
    assert layouts["linear1.weight"].num_blocks == 32
    assert layouts["norm1.weight"].num_blocks == 1
