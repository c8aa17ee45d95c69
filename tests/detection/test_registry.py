"""Entries of known modules: templates, conditions, and what happens where they do not fit."""

import pytest
import torch
from torch import nn

from lightning_adam_mini.detection import Role, inspect_model, register_module


def named(cls):
    return f"{cls.__module__}.{cls.__qualname__}"


class Strange(nn.Module):
    def __init__(self, interleaved=False):
        super().__init__()
        self.crew, self.interleaved = 4, interleaved
        self.mixture, self.back = nn.Linear(32, 96), nn.Linear(32, 32)


class Child(Strange):
    pass


class Misfit(Strange):
    pass


class Overruled(nn.MultiheadAttention):
    pass


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 8, 12))


def test_a_registered_module_and_its_subclasses_are_known():
    register_module(named(Strange), {"mixture": "{H}*(v:1x{D}|q:1x{D}|k:1x{D})", "back": "attn_out"}, when="interleaved", H="crew")
    register_module(named(Strange), {"mixture": "q:{H}x{D}|k:{H}x{D}|v:{H}x{D}", "back": Role.ATTN_OUT}, when="not interleaved", H="crew")
    for cls in (Strange, Child):
        report = inspect_model(nn.Sequential(cls(), cls(interleaved=True))).by_name
        assert report["0.mixture.weight"].lines == "q:4x8|k:4x8|v:4x8"
        assert report["1.mixture.weight"].lines == "4*(v:1x8|q:1x8|k:1x8)"
        assert report["1.mixture.bias"].lines == "4*(v:1x8|q:1x8|k:1x8)"
        assert report["0.back.weight"].role is Role.ATTN_OUT


def test_a_users_entry_overrules_a_built_in_one():
    register_module(named(Overruled), {"in_proj_weight": "k:{H}x{D}|q:{H}x{D}|v:{H}x{D}"}, H="num_heads")
    assert inspect_model(Overruled(8, 2)).by_name["in_proj_weight"].lines == "k:2x4|q:2x4|v:2x4"
    assert inspect_model(nn.MultiheadAttention(8, 2)).by_name["in_proj_weight"].lines == "q:2x4|k:2x4|v:2x4"


def test_a_template_that_does_not_fill_the_rows_is_a_guess_that_says_so():
    register_module(named(Misfit), {"mixture": "q:{H}x{D}|k:{H}x{D}"}, H="crew + 1")
    p = inspect_model(Misfit()).by_name["mixture.weight"]
    assert (p.lines, p.guess) == (None, True)
    assert "does not fill 96 lines" in p.reason


def test_lines_on_another_axis():
    register_module(named(Experts), {"weight": "mlp_up=up:12@2"})
    p = inspect_model(Experts()).by_name["weight"]
    assert (p.role, p.axis, p.lines) == (Role.MLP_UP, 2, "up:12")


def test_a_part_that_is_neither_role_nor_line_order_is_refused():
    with pytest.raises(ValueError, match="'atn_out'.*neither a role nor a line order"):
        register_module("some.Class", {"proj": "atn_out"})


@pytest.mark.parametrize("where", ["template", "symbol", "condition"])
def test_an_expression_that_calls_is_refused(where):
    parts = {"proj": "q:{len(crew)}x8" if where == "template" else "q:{H}x8"}
    with pytest.raises(ValueError, match=r"len\(crew\).*only attributes"):
        register_module(
            "some.Class", parts, when="len(crew)" if where == "condition" else None, H="len(crew)" if where == "symbol" else "crew"
        )
