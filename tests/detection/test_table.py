"""The report as a table."""

from torch import nn

from lightning_adam_mini import BlockLayout
from lightning_adam_mini.detection import inspect_model


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = 3
        self.qkv = nn.Linear(64, 192)
        self.a_rather_long_name_for_a_submodule = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))


def test_the_table_counts_and_fits():
    text = str(inspect_model(nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128), 3, enable_nested_tensor=False)))
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
    assert text.startswith("transformer: ")
    assert rows["qkv"][1:3] == ["3", f"{3 * 192 * 64:,}"]
    assert rows["mlp_up"][1:3] == ["3", f"{3 * 128 * 64:,}"]
    assert rows["total"][2] == f"{3 * (4 * 64 * 64 + 2 * 64 * 128 + 4 * 64 + 128 + 64 + 4 * 64):,}"
    assert max(map(len, text.splitlines())) <= 120


def test_layouts_add_blocks_and_bytes():
    model = nn.Linear(8, 4)
    layouts = {"weight": BlockLayout.each_line((4, 8)), "bias": BlockLayout.whole((4,))}
    text = inspect_model(model).table(layouts)
    assert text.splitlines()[-1].split() == ["total", "2", "36", "5", "144", "B", "->", "20", "B"]


def test_guesses_are_marked_and_listed_with_their_reason():
    text = str(inspect_model(Unknown()))
    assert "qkv ?" in text
    assert "qkv.weight: Unknown.qkv holds q, k, v, but their line order is not known" in text


def test_frozen_parameters_are_counted():
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert "1 of 2 tensors are frozen" in str(inspect_model(model))
