"""What a user says about single parameters."""

from __future__ import annotations

import warnings

import pytest

from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import Architecture as A
from lightning_adam_mini.detection.roles import Role as R
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.partition import partition_model

PARAMETERS = (
    ParameterReport("blocks.0.qkv.weight", (12, 8), R.QKV, R.QKV, "", lines="q:2x2|k:2x2|v:2x2"),
    ParameterReport("blocks.0.mystery.weight", (8, 12), R.LINEAR, R.LINEAR, ""),
    ParameterReport("blocks.0.mystery.bias", (12,), R.BIAS, R.LINEAR, ""),
    ParameterReport("wte.weight", (10, 8), R.TOKEN_EMBEDDING, R.TOKEN_EMBEDDING, "", aliases=("lm_head.weight",)),
    ParameterReport("scale", (), R.SCALE, R.SCALE, ""),
)
TRANSFORMER = ModelReport(A.TRANSFORMER, "", PARAMETERS)
UNET = ModelReport(A.DIFFUSION_UNET, "", PARAMETERS)

MYSTERY = "blocks.0.mystery.weight"


@pytest.mark.parametrize(
    ("spec", "dims", "axis", "lines"),
    [
        ("parameter", (), None, None),
        ("tensor", (0, 1), None, None),
        ("line", (1,), None, None),
        ("q:4x2", (1,), 0, "q:4x2"),
        ("v:4x2", (1,), None, None),
        ("q:2x2|k:2x1|v:2x1", (1,), 0, "q:2x2|k:2x1|v:2x1"),
        ("2*(q:1x2|v:1x2)", (1,), 0, "2*(q:1x2|v:2x1)"),
        ({"role": "query", "heads": 4}, (1,), 0, "q:4x2"),
        ({"role": "key", "heads": 3, "axis": 1}, (0,), 1, "k:3x4"),
        ({"role": "key", "heads": 3, "axis": -1}, (0,), 1, "k:3x4"),
        ({"lines": "k:2x4"}, (1,), 0, "k:2x4"),
        ({"role": "qkv", "axis": 1, "lines": "q:2x2|k:2x2|v:2x2"}, (0,), 1, "q:2x2|k:2x2|v:4x1"),
        ({"role": "token_embedding"}, (1,), None, None),
        ({"role": "token_embedding", "axis": 1}, (0,), None, None),
        ({"dims": [0]}, (0,), None, None),
        ({"dims": []}, (), None, None),
        ({"dims": [-1], "axis": 0, "lines": "v:2x4"}, (1,), 0, "v:2x4"),
        (BlockLayout((8, 12), (1,), 0, "v:2x4"), (1,), 0, "v:2x4"),
    ],
)
@pytest.mark.parametrize("report", [TRANSFORMER, UNET], ids=["transformer", "unet"])
def test_specs(report, spec, dims, axis, lines):
    """In any network: an override does what it says in a UNet too, where nothing is split otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layouts = partition_model(report, overrides={MYSTERY: spec})
    assert layouts[MYSTERY] == BlockLayout((8, 12), dims, axis, lines)
    untouched = partition_model(report)
    assert {k: v for k, v in layouts.items() if k != MYSTERY} == {k: v for k, v in untouched.items() if k != MYSTERY}
    assert list(layouts) == list(untouched)


@pytest.mark.parametrize(
    ("spec", "rows", "columns"),
    [
        ("factored", (8, 1), (1, 12)),
        ({"role": "mlp_up"}, (8, 1), (1, 12)),
        ({"role": "mlp_up", "axis": 1}, (1, 12), (8, 1)),
        ({"dims": [1], "crossed": [0]}, (8, 1), (1, 12)),
        ({"dims": [1], "axis": 0, "lines": "q:4x2", "crossed": [0]}, (4, 1), (1, 12)),
        (BlockLayout.factored((8, 12)), (8, 1), (1, 12)),
    ],
)
def test_specs_of_rows_and_columns(spec, rows, columns):
    layout = partition_model(TRANSFORMER, overrides={MYSTERY: spec})[MYSTERY]
    assert [margin.block_shape for margin in layout.margins] == [rows, columns]


@pytest.mark.parametrize("role", ["mlp_up", "norm", "value"])
def test_a_corrected_role_is_what_the_strategy_goes_by(role):
    layout = partition_model(UNET, "adam_mini", overrides={MYSTERY: {"role": role}})[MYSTERY]
    assert layout.dims == ((0, 1) if role == "norm" else (1,))


def test_value_option_applies_to_line_orders():
    lines = "q:2x2|k:2x1|v:2x1"
    assert partition_model(TRANSFORMER, "adam_mini", overrides={MYSTERY: lines}, value="whole")[MYSTERY].num_blocks == 2 + 2 + 1
    assert partition_model(TRANSFORMER, "adam_mini_v1", overrides={MYSTERY: lines})[MYSTERY].num_blocks == 2 + 2 + 1
    assert partition_model(TRANSFORMER, "adam_mini", overrides={MYSTERY: "v:4x2"}, value="whole")[MYSTERY].num_blocks == 1


@pytest.mark.parametrize("partition", ["tensor", "adam", "adalayer_ln_tl"])
def test_line_orders_under_strategies_without_heads(partition):
    assert partition_model(TRANSFORMER, partition, overrides={MYSTERY: "q:2x2|v:2x2"})[MYSTERY].num_blocks == 4
    assert partition_model(TRANSFORMER, partition, overrides={MYSTERY: {"role": "query", "heads": 2}})[MYSTERY].num_blocks == 2


def test_heads_of_a_known_role():
    report = ModelReport(A.TRANSFORMER, "", (ParameterReport("k.weight", (12, 8), R.KEY, R.KEY, ""),))
    assert partition_model(report, overrides={"*": {"heads": 3}})["k.weight"].lines == "k:3x4"


def test_globs():
    """Later entries win, aliases match, and case counts."""
    layouts = partition_model(TRANSFORMER, overrides={"*": "tensor", "*.weight": "line", "lm_head.*": "parameter"})
    assert [layout.num_blocks for layout in layouts.values()] == [12, 8, 1, 80, 1]
    layouts = partition_model(TRANSFORMER, overrides={"lm_head.*": "parameter", "*": "tensor"})
    assert [layout.num_blocks for layout in layouts.values()] == [1] * 5
    with pytest.raises(ValueError, match="matches no parameter"):
        partition_model(TRANSFORMER, overrides={"WTE.*": "tensor"})


def test_scalars_and_vectors():
    layouts = partition_model(TRANSFORMER, overrides={"scale": "line", "*.bias": "line"})
    assert layouts["scale"].num_blocks == 1
    assert layouts["blocks.0.mystery.bias"].num_blocks == 12


@pytest.mark.parametrize(
    ("glob", "spec", "message"),
    [
        ("blocks.*.qvk.weight", "tensor", r"'blocks.\*.qvk.weight' matches no parameter. Near names: .*blocks.0.qkv.weight"),
        ("*mystery*foo", "tensor", r"Near names: blocks.0.mystery.weight, blocks.0.mystery.bias"),
        ("zzz", "tensor", r"The first names: blocks.0.qkv.weight,"),
        (MYSTERY, "lines", r"override 'blocks.0.mystery.weight': 'lines' is not valid: 'lines' \(did you mean 'line'\?\)"),
        (MYSTERY, "q:12", "12 lines, but there are 8 along dimension 0"),
        (MYSTERY, "q:4y2", "Cannot read the line order"),
        (MYSTERY, {"heads": 3, "role": "query"}, "3 heads do not divide its 8 lines along dimension 0"),
        (MYSTERY, {"heads": 0, "role": "query"}, "0 heads are no heads"),
        (MYSTERY, {"heads": "3", "role": "query"}, "heads is '3', but it has to be a whole number"),
        (MYSTERY, {"heads": 4}, "because the role is linear; give 'lines'"),
        ("*.qkv.weight", {"heads": 2}, "because the role is qkv; give 'lines'"),
        (MYSTERY, {"role": "querry"}, r"'querry' \(did you mean 'query'\?\) is unknown; the roles are token_embedding, "),
        (
            MYSTERY,
            {"head": 4},
            r"the key 'head' \(did you mean 'heads'\?\) is unknown; the keys are role, heads, axis, lines, dims, crossed",
        ),
        (MYSTERY, {"axis": 2}, "there is no dimension 2; the dimensions are 0 to 1"),
        (MYSTERY, {"axis": 1, "lines": "q:4x2"}, "8 lines, but there are 12 along dimension 1"),
        (MYSTERY, {"lines": "q:4x2", "heads": 4}, "give one of them"),
        (MYSTERY, {"dims": [2]}, "Dimension 2 is out of range"),
        (MYSTERY, {"dims": [0], "role": "query"}, "'dims' is the layout itself"),
        (MYSTERY, {"crossed": [0]}, "'crossed' is a second mean beside that of 'dims'; give both, or write 'factored'"),
        (MYSTERY, {"dims": [1], "axis": 0, "lines": "q:4x2", "crossed": [1]}, "has a second mean over that dimension"),
        (MYSTERY, {"dims": [0], "axis": 1}, "both axis and lines or neither"),
        (MYSTERY, {"dims": 0}, "is not valid: dims is 0, but it has to be a list of dimensions"),
        (MYSTERY, {"dims": [1], "crossed": 0}, "crossed is 0, but it has to be a list of dimensions"),
        (MYSTERY, {"lines": 4}, "lines is 4, but it has to be a line order"),
        (MYSTERY, {}, "it says nothing"),
        (MYSTERY, 3, "not int; write one of 'tensor'"),
        (MYSTERY, BlockLayout((12, 8)), r"the layout is for shape \(12, 8\); make it with BlockLayout\(\(8, 12\), ...\)"),
        ("scale", {"role": "query", "heads": 2}, "2 heads do not divide its 1 lines"),
        ("scale", "q:1x1", "but there are None along dimension 0"),
    ],
)
def test_bad_specs(glob, spec, message):
    with pytest.raises(ValueError, match=message):
        partition_model(TRANSFORMER, overrides={glob: spec})
