"""Roles and line orders of small models, against what their forward code says."""

import copy
import warnings

import pytest
import torch
from torch import nn

from lightning_adam_mini.detection import Architecture, Role, inspect_model


def test_heads_of_multihead_attention_are_the_rows_that_move_its_attention_maps():
    attention = nn.MultiheadAttention(24, 3, batch_first=True)
    x = torch.randn(1, 5, 24)

    def maps(module):
        return module(x, x, x, average_attn_weights=False)[1][0]

    before = maps(attention)
    lines = _lines(inspect_model(attention).by_name["in_proj_weight"])
    for row, (role, head) in enumerate(lines):
        moved = copy.deepcopy(attention)
        moved.in_proj_weight.data[row] += 1
        changed = [h for h in range(3) if not torch.equal(maps(moved)[h], before[h])]
        assert changed == ([head] if role in "qk" else [])


def test_separate_projections_of_multihead_attention():
    report = inspect_model(nn.MultiheadAttention(24, 3, kdim=8, vdim=16)).by_name
    assert [report[f"{n}_proj_weight"].lines for n in "qkv"] == ["q:3x8", "k:3x8", "v:3x8"]
    assert report["in_proj_bias"].lines == "q:3x8|k:3x8|v:3x8"
    assert report["in_proj_bias"].role is Role.BIAS


def test_gates_of_recurrent_layers_are_the_rows_of_each_gate():
    lstm = nn.LSTM(4, 6, 2, bidirectional=True)
    report = inspect_model(lstm)
    assert report.architecture is Architecture.RNN
    lines = _lines(report.by_name["weight_hh_l1_reverse"])
    assert [role for role, _ in lines[::6]] == ["input", "forget", "cell", "output"]  # torch's order: W_ii|W_if|W_ig|W_io
    assert inspect_model(nn.GRU(4, 6)).by_name["weight_ih_l0"].lines == "reset:6|update:6|new:6"


def test_tied_weights_are_one_parameter_with_aliases():
    model = nn.Module()
    model.embedding = nn.Embedding(50, 8)
    model.output = nn.Linear(8, 50, bias=False)
    model.output.weight = model.embedding.weight
    report = inspect_model(model)
    (p,) = report.parameters
    assert (p.name, p.role, p.aliases) == ("embedding.weight", Role.TOKEN_EMBEDDING, ("output.weight",))
    assert report.by_name["output.weight"] is p


def test_an_untied_output_layer_with_a_row_a_token_is_an_lm_head():
    model = nn.Module()
    model.embedding = nn.Embedding(50, 8)
    model.output = nn.Linear(8, 50)
    assert inspect_model(model).by_name["output.weight"].role is Role.LM_HEAD


def test_wrapped_models_report_as_bare_ones():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    bare = nn.TransformerEncoderLayer(16, 2, 32)
    expected = inspect_model(bare).parameters
    wrapped = copy.deepcopy(bare)
    wrapped.self_attn = checkpoint_wrapper(wrapped.self_attn)
    for model in (torch.compile(copy.deepcopy(bare)), nn.DataParallel(copy.deepcopy(bare)), wrapped):
        assert inspect_model(model).parameters == expected


def test_a_module_that_holds_the_module_it_is_in():
    outer, inner = nn.Module(), nn.Linear(2, 2)
    outer.inner = inner
    inner.back = outer
    assert [p.name for p in inspect_model(outer).parameters] == ["inner.weight", "inner.bias"]


def test_a_users_own_attribute_called_module_keeps_its_name():
    model = nn.Module()
    model.module = nn.Linear(2, 2)
    report = inspect_model(model)
    assert [p.name for p in report.parameters] == ["module.weight", "module.bias"]


def test_a_lazy_parameter_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'1\.weight'.*Run one batch"):
        inspect_model(nn.Sequential(nn.ReLU(), nn.LazyLinear(3)))


def test_frozen_parameters_are_reported():
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    assert [p.trainable for p in inspect_model(model).parameters] == [True, False]


def test_biases_follow_the_heads_of_their_weight():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.head_dim = 4, 8
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(16, 32), nn.Linear(16, 16), nn.Linear(16, 16)
            self.o_proj = nn.Linear(32, 16)

    report = inspect_model(Attention()).by_name
    assert [report[f"{n}_proj.weight"].lines for n in "qkv"] == ["q:4x8", "k:2x8", "v:2x8"]
    assert (report["k_proj.bias"].role, report["k_proj.bias"].owner, report["k_proj.bias"].lines) == (Role.BIAS, Role.KEY, "k:2x8")
    assert report["o_proj.weight"].role is Role.ATTN_OUT


class Projections(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads = 4
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(16, 16) for _ in range(4))


def test_parametrized_weights_are_those_of_their_layer():
    model = Projections()
    nn.utils.parametrizations.weight_norm(model.q_proj)
    nn.utils.parametrizations.orthogonal(model.k_proj)
    nn.utils.parametrize.register_parametrization(model.v_proj, "weight", nn.Identity())
    report = inspect_model(model).by_name
    assert report["q_proj.parametrizations.weight.original1"].lines == "q:4x4"
    assert report["q_proj.parametrizations.weight.original0"].role is Role.NORM
    assert report["k_proj.parametrizations.weight.original"].lines == "k:4x4"
    assert report["v_proj.parametrizations.weight.original"].lines == "v:4x4"
    assert report["q_proj.bias"].lines == "q:4x4"


def test_old_weight_norm_and_spectral_norm():
    model = Projections()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model.q_proj)
        nn.utils.spectral_norm(model.k_proj)
    report = inspect_model(model).by_name
    assert report["q_proj.weight_v"].lines == "q:4x4"
    assert report["q_proj.weight_g"].role is Role.NORM
    assert report["k_proj.weight_orig"].lines == "k:4x4"


def test_heads_that_do_not_fit_the_rows_are_not_believed():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.head_dim = 4, 8
            self.q_proj, self.k_proj, self.v_proj = nn.Linear(16, 40), nn.Linear(16, 40), nn.Linear(16, 40)

    p = inspect_model(Attention()).by_name["q_proj.weight"]
    assert (p.role, p.lines, p.guess) == (Role.QUERY, None, True)


def test_a_fused_layout_of_an_unknown_class_is_never_guessed():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = 4
            self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    p = inspect_model(Attention()).by_name["qkv.weight"]
    assert (p.role, p.lines, p.guess) == (Role.QKV, None, True)


def test_words_of_other_names_are_not_projections():
    model = nn.Module()
    model.num_heads = 2
    model.network, model.q_norm, model.key_padding = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)
    report = inspect_model(model).by_name
    assert report["network.weight"].role not in (Role.QUERY, Role.KEY, Role.VALUE, Role.QKV)
    assert report["q_norm.weight"].role is Role.NORM
    assert report["key_padding.weight"].role not in (Role.QUERY, Role.KEY, Role.VALUE, Role.QKV)


def _lines(parameter):
    from lightning_adam_mini.lines import parse_lines

    return parse_lines(parameter.lines).expand()
