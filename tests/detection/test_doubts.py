"""Warnings about what is not certain: short, with overrides that are accepted as they are printed."""

from __future__ import annotations

import re
import warnings
from ast import literal_eval
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_adam_mini import AdamMiniWarning, inspect_model, partition_model
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import parse_lines


class Attention(nn.Module):
    """Projections that names tell and heads that nothing tells."""

    def __init__(self, width: int, names: str, heads: int | None = None) -> None:
        super().__init__()
        if heads is not None:
            self.num_heads = heads
        for name in names.split():
            size = {"to_kv": 2, "qkv": 3, "to_qkv": 3}.get(name, 1)
            self.add_module(name, nn.Linear(width, size * width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(torch.cat([layer(x) for layer in self.children()], -1), -1)


def _stack(width: int, names: str, heads: int | None = None, depth: int = 3) -> nn.Module:
    model = nn.Module()
    model.blocks = nn.ModuleList(
        nn.ModuleDict({"attn": Attention(width, names, heads), "mlp": nn.Linear(width, width)}) for _ in range(depth)
    )
    return model


def _told(model: nn.Module) -> tuple[list[str], dict[str, BlockLayout]]:
    report = inspect_model(model, probe=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layouts = partition_model(report, "adam_mini")
    return [str(w.message) for w in caught if issubclass(w.category, AdamMiniWarning)], layouts


def _overrides(message: str) -> dict[str, str]:
    return literal_eval(re.findall(r"overrides=(\{.*?\})", message)[0])


@pytest.mark.parametrize(
    ("build", "globs", "roles"),
    [
        (lambda: _stack(128, "qkv"), {"blocks.*.attn.qkv.weight"}, "qkv"),
        (lambda: _stack(128, "to_q to_kv"), {"blocks.*.attn.to_q.weight", "blocks.*.attn.to_kv.weight"}, "qkv"),
        (lambda: _stack(36, "to_q to_kv"), {"blocks.*.attn.to_q.weight", "blocks.*.attn.to_kv.weight"}, "qkv"),
        (lambda: _stack(96, "qkv", depth=1), {"blocks.*.attn.qkv.weight"}, "qkv"),
    ],
)
def test_unknown_heads_come_with_an_override_for_each_shape_that_is_accepted(
    build: Callable[[], nn.Module], globs: set[str], roles: str
) -> None:
    messages, layouts = _told(build())
    assert len(messages) == 1
    assert "AdamMiniCallback(probe=True)" in messages[0]
    overrides = _overrides(messages[0])
    assert set(overrides) <= globs | {glob.replace("*", "0") for glob in globs}
    assert len(overrides) == len(globs)
    assert {role for lines in overrides.values() for role in parse_lines(lines).roles} == set(roles)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pasted = partition_model(inspect_model(build(), probe=False), "adam_mini", overrides)
    assert {name for name in layouts if pasted[name] != layouts[name]} == {
        n for n in layouts if re.search(r"qkv|to_q|to_kv", n) and "bias" not in n
    }


def test_keys_and_values_in_one_are_offered_as_such() -> None:
    (message,), _ = _told(_stack(128, "to_q to_kv"))
    assert _overrides(message)["blocks.*.attn.to_kv.weight"] == "k:2x64|v:2x64"


def test_likely_heads_are_confirmed_by_pasting_what_is_believed() -> None:
    model = _stack(128, "q_proj k_proj v_proj", heads=4)
    messages, layouts = _told(model)
    message = next(m for m in messages if "only likely" in m)
    overrides = _overrides(message)
    assert overrides == {f"blocks.*.attn.{n}_proj.weight": f"{n}:4x32" for n in "qk"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert partition_model(inspect_model(model, probe=False), "adam_mini", overrides) == layouts


def test_shapes_that_differ_under_one_name_get_a_glob_each() -> None:
    model = nn.Module()
    model.stages = nn.ModuleList(_stack(width, "qkv") for width in (64, 128))
    (message,), _ = _told(model)
    overrides = _overrides(message)
    assert set(overrides) == {f"stages.{i}.blocks.*.attn.qkv.weight" for i in range(2)}
    assert [parse_lines(lines).size for lines in overrides.values()] == [3 * 64, 3 * 128]


def test_a_network_that_may_be_a_transformer_is_told_and_one_that_is_not_is_silent() -> None:
    class GateAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.one(x).softmax(-1) * self.two(x)

    messages, _ = _told(nn.Sequential(GateAttention(), nn.Linear(8, 2)))
    assert any(m.startswith("What kind of network this is, is only likely") and "GateAttention" in m for m in messages)
    assert _told(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))[0] == []
