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


def test_a_long_name_leaves_room_for_its_heads():
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(64, 4, 128), 1, enable_nested_tensor=False)
    deep = nn.ModuleDict({"a_rather_long_name_for_a_submodule" * 3: model})
    (row,) = [line for line in str(inspect_model(deep)).splitlines() if line.startswith("qkv ")]
    assert row.endswith("in_proj_weight 192x64 (q:4x16|k:4x16|v:4x16)")
    assert "  ..." in row
    assert len(row) == 120


def test_guesses_are_marked_and_listed_with_their_reason():
    text = str(inspect_model(Unknown()))
    assert "qkv ?" in text
    assert "qkv.weight: Unknown.qkv holds q, k, v, but their line order is not known" in text


def test_frozen_parameters_are_counted():
    model = nn.Linear(2, 2)
    model.weight.requires_grad_(False)
    assert "1 of 2 tensors frozen" in str(inspect_model(model))


def test_frozen_parameters_have_no_second_moments():
    model = nn.Linear(8, 4)
    model.weight.requires_grad_(False)
    layouts = {"weight": BlockLayout.each_line((4, 8)), "bias": BlockLayout.whole((4,))}
    rows = {line.split()[0]: line.split() for line in inspect_model(model).table(layouts).splitlines() if line}
    # Four float32 elements train, and one block of them.
    assert rows["total"] == ["total", "2", "36", "1", "16", "B", "->", "4", "B"]
    assert " ".join(rows["1"]) == "1 of 2 tensors frozen (32 parameters): no blocks until they train."


def test_parts_have_a_line_each():
    class Captioner(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(*(nn.Conv2d(a, 16, 3) for a in (3, 16, 16, 16)))
            self.text = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 1, enable_nested_tensor=False)
            self.head = nn.Linear(16, 9)

    lines = str(inspect_model(Captioner())).splitlines()
    assert lines[0].startswith("hybrid: ")
    assert [line.split()[:4] for line in lines[1:4]] == [
        ["backbone", "cnn", "8", "tensors"],
        ["text", "transformer", "12", "tensors"],
        ["(the", "rest)", "hybrid", "2"],
    ]
    assert lines[1].endswith("has convolutions and no attention")
    assert max(map(len, lines)) <= 120
    assert not str(inspect_model(nn.Linear(2, 2))).splitlines()[1]
