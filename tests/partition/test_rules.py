import json
import math
from dataclasses import replace

import pytest
import torch
import yaml
from torch import nn

from lightning_adam_mini import AdamMiniWarning, BlockLayout, inspect_model, partition_model
from lightning_adam_mini.detection import ParameterReport, Role
from lightning_adam_mini.partition import Rule, SlimAdamAutoPartition, SlimAdamRules, make_strategy

BY_TYPE = SlimAdamRules(
    "layer_type",
    {
        "token_embedding": Rule((1,), 5.1, 1),
        "qkv": Rule((1,), 3.0, 2),
        "attn_out": Rule((0,), 11.2, 2),
        "mlp_up": Rule((), 0.9, 2),
        "mlp_down": Rule((0, 1), math.inf, 2),
        "norm": Rule((), 0.7, 4),
    },
    {"model": "Small", "lr": 3e-5, "steps": 1000, "cutoff": 1.0, "depth_averaged": True},
)


class Transformer(nn.Module):
    def __init__(self, width=16, depth=2, vocabulary=11):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 4, dim_feedforward=2 * width)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


@pytest.mark.parametrize("name", ["rules.yaml", "rules.json"])
def test_a_file_comes_back_as_it_was(tmp_path, name):
    BY_TYPE.save(tmp_path / "new" / name)
    assert SlimAdamRules.load(tmp_path / "new" / name) == BY_TYPE
    parse = json.loads if name.endswith("json") else yaml.safe_load
    plain = parse((tmp_path / "new" / name).read_text())
    assert (plain["format"], plain["version"]) == ("slim-adam-rules", 1)
    assert plain["rules"]["qkv"] == {"dims": [1], "snr": 3.0, "tensors": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: {}", "begin with 'format: slim-adam-rules'"),
        ("[1, 2]", "begin with 'format"),
        ("a: [", "cannot be read as YAML"),
        ("{format: slim-adam-rules, version: 3}", "version 3 is not known"),
        ("{format: slim-adam-rules, version: 1, by: name}", "'by' is 'name'"),
        ("{format: slim-adam-rules, version: 1, by: parameter, rules: {}}", "no rules in it"),
        ("{format: slim-adam-rules, version: 1, by: parameter, rules: {w: [1]}}", "the rule of 'w'"),
        ("{format: slim-adam-rules, version: 1, by: parameter, rules: {w: {dims: [-1]}}}", "whole numbers"),
        ("{format: slim-adam-rules, version: 2, by: parameter, rules: {w: {dims: [1], crossed: 0}}}", "whole numbers"),
    ],
)
def test_what_is_no_file_of_rules(tmp_path, text, message):
    file = tmp_path / "rules.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        partition_model(Transformer(), "slim_adam", rules=str(file))


@pytest.mark.parametrize("name", ["rules.yaml", "rules.json"])
def test_rules_that_cross(tmp_path, name):
    rules = SlimAdamRules("layer_type", {**BY_TYPE.rules, "mlp_up": Rule((1,), 8.2, 2, (0,))})
    rules.save(tmp_path / name)
    assert SlimAdamRules.load(tmp_path / name) == rules
    plain = (json.loads if name.endswith("json") else yaml.safe_load)((tmp_path / name).read_text())
    assert plain["version"] == 2  # which what knows nothing of them refuses
    assert plain["rules"]["mlp_up"] == {"dims": [1], "crossed": [0], "snr": 8.2, "tensors": 2}
    layouts = partition_model(Transformer(), "slim_adam", rules=str(tmp_path / name))
    assert layouts["encoder.layers.0.linear1.weight"] == BlockLayout.factored((32, 16))
    assert layouts["encoder.layers.0.linear2.weight"].num_blocks == 1
    assert ["mlp_up", "2", "[1]", "x", "[0]", "8.2"] in [line.split() for line in rules.table().splitlines()]


def test_no_rules_at_all(tmp_path):
    with pytest.raises(ValueError, match="needs rules"):
        make_strategy("slim_adam")
    with pytest.raises(ValueError, match="no file .*absent.yaml"):
        make_strategy("slim_adam", rules=tmp_path / "absent.yaml")


@pytest.mark.parametrize(("width", "depth"), [(16, 2), (32, 5)])
@pytest.mark.parametrize("wrap", [lambda m: m, torch.compile, lambda m: nn.ModuleDict({"model": m})])
def test_rules_by_type_fit_other_widths_depths_and_prefixes(tmp_path, width, depth, wrap):
    BY_TYPE.save(tmp_path / "rules.yaml")
    layouts = partition_model(wrap(Transformer(width, depth)), "slim_adam", rules=str(tmp_path / "rules.yaml"))
    layouts = {name.removeprefix("model."): layout for name, layout in layouts.items()}
    for i in range(depth):
        block = f"encoder.layers.{i}"
        assert layouts[f"{block}.self_attn.in_proj_weight"] == BlockLayout((3 * width, width), (1,))
        assert layouts[f"{block}.self_attn.out_proj.weight"] == BlockLayout((width, width), (0,))
        assert layouts[f"{block}.linear2.weight"].num_blocks == 1
        for name in ("linear1.weight", "norm1.weight", "linear1.bias", "self_attn.in_proj_bias"):
            assert layouts[f"{block}.{name}"].is_per_parameter
    assert layouts["embed.weight"] == BlockLayout((11, width), (1,))


def test_rules_by_parameter_are_found_under_another_prefix():
    names = [p.name for p in inspect_model(Transformer()).parameters if len(p.shape) == 2]
    here = SlimAdamRules("parameter", {name: Rule((1,)) for name in names})
    there = SlimAdamRules("parameter", {f"net.{name}": Rule((1,)) for name in names})
    for rules, model in (
        (here, nn.ModuleDict({"model": Transformer()})),
        (there, Transformer()),
        (there, nn.ModuleDict({"net": Transformer()})),
    ):
        layouts = partition_model(model, "slim_adam", rules=rules)
        assert sum(layout.dims == (1,) for layout in layouts.values()) == len(names) == 9


def test_rules_that_match_nothing_are_an_error():
    with pytest.raises(ValueError, match=r"have none for 9 of 9 matrices .*Derive rules from"):
        partition_model(Transformer(), "slim_adam", rules=SlimAdamRules("layer_type", {"conv_4d": Rule((1,))}))


def test_rules_that_match_a_part_are_a_warning_with_the_list():
    rules = SlimAdamRules("layer_type", {"attn_out": Rule((0,)), "qkv": Rule((1,))}, {"model": "Small"})
    with pytest.warns(AdamMiniWarning, match=r"of Small\) have none for 5 of 9 matrices .*embed.weight \(token_embedding\)"):
        layouts = partition_model(Transformer(), "slim_adam", rules=rules)
    assert layouts["embed.weight"].is_per_parameter
    with pytest.raises(ValueError, match="have none for 5 of 9"):
        partition_model(Transformer(), "slim_adam", rules=rules, strict=True)
    quiet = partition_model(
        Transformer(), "slim_adam", {"embed.weight": "line", "*.linear?.weight": {"dims": [0]}}, strict=True, rules=rules
    )  # what is overridden needs no rule
    assert quiet["embed.weight"].dims == (1,)


def test_a_rule_with_more_dimensions_than_the_parameter():
    with pytest.raises(ValueError, match=r"'0.weight' averages over dimensions \[2, 3\]"):
        partition_model(nn.Sequential(nn.Linear(4, 3)), "slim_adam", rules=SlimAdamRules("parameter", {"0.weight": Rule((2, 3))}))
    crossed = SlimAdamRules("parameter", {"0.weight": Rule((1,), crossed=(0, 2))})
    with pytest.raises(ValueError, match=r"'0.weight' averages over dimensions \[1\] x \[0, 2\]"):
        partition_model(nn.Sequential(nn.Linear(4, 3)), "slim_adam", rules=crossed)


def test_table_says_where_rules_come_from():
    text = BY_TYPE.table()
    assert "model Small, lr 3e-05, steps 1000, cutoff 1, depth_averaged True" in text
    rows = [line.split() for line in text.splitlines()]
    assert ["attn_out", "2", "[0]", "11.2"] in rows
    assert ["mlp_up", "2", "nothing", "0.9"] in rows


def parameter(role, shape, axis=0):
    return ParameterReport("p", shape, role, role, "", axis=axis)


@pytest.mark.parametrize(
    ("role", "shape", "dims"),
    [
        (Role.QUERY, (8, 4), (1,)),
        (Role.KEY, (8, 4), (1,)),
        (Role.VALUE, (8, 4), (0,)),
        (Role.ATTN_OUT, (8, 4), (0,)),
        (Role.MLP_UP, (8, 4), (0,)),
        (Role.MLP_GATE, (8, 4), (0,)),
        (Role.MLP_DOWN, (8, 4), (0,)),
        (Role.TOKEN_EMBEDDING, (100, 4), (1,)),
        (Role.POSITION_EMBEDDING, (1, 10, 4), (2,)),
        (Role.LM_HEAD, (100, 4), (1,)),
        (Role.CLASSIFIER, (10, 4), (1,)),
        (Role.FIRST_CONV, (8, 3, 7, 7), (1, 2, 3)),
        (Role.PATCH_EMBEDDING, (8, 3, 4, 4), (1, 2, 3)),
        (Role.NORM, (8,), ()),
        (Role.BIAS, (8,), ()),
    ],
)
def test_table3(role, shape, dims):
    report = replace(inspect_model(nn.Linear(1, 1)), parameters=(parameter(role, shape),))
    assert partition_model(report, "slim_adam_table3")["p"] == BlockLayout(shape, dims)


def test_table3_counts_lines_of_transposed_and_stacked_weights():
    for p, dims in ((parameter(Role.MLP_UP, (4, 8), axis=1), (1,)), (parameter(Role.QUERY, (4, 8), axis=1), (0,))):
        assert make_strategy("slim_adam_table3").granularity(p, None) == BlockLayout(p.shape, dims)
    experts = parameter(Role.MLP_UP, (6, 8, 4), axis=1)
    assert make_strategy("slim_adam_table3").granularity(experts, None) == BlockLayout((6, 8, 4), (1,))


def test_table3_has_no_rule_for_inner_convolutions():
    with pytest.warns(AdamMiniWarning, match="Table 3 has no rule for 1 of 2 matrices"):
        layouts = partition_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), "slim_adam_table3")
    assert layouts["1.weight"].is_per_parameter


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 10, "every": 11}, "leave no measurement"),
        ({"lr_scale": 0}, "lr_scale=0"),
        ({"lr_scale": 2}, "lr_scale=2"),
        ({"cutoff": -1}, "cutoff=-1"),
        ({"by": "name"}, "by='name'"),
    ],
)
def test_options_of_the_one_run_mode(options, message):
    with pytest.raises(ValueError, match=message):
        SlimAdamAutoPartition(**options)
