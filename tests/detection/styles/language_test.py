"""The truth about these styles, checked by running them: on which lines of a weight does one attention score depend."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_adam_mini.detection import Architecture, Role
from lightning_adam_mini.lines import parse_lines
from tests.detection.styles.style import Style

_FILES = Path(__file__).parent.glob("*_*.py")
FILES = sorted(file.stem for file in _FILES if file.stem.startswith(("language", "more", "third")) and file.stem != "language_test")
STYLES: list[Style] = [style for file in FILES for style in import_module(f"tests.detection.styles.{file}").STYLES]


@contextmanager
def score_recorder() -> Iterator[list[Tensor]]:
    """What is given to softmax, and the scores of scaled_dot_product_attention, in the order of the calls."""
    scores: list[Tensor] = []

    def recorded(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def softmax(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            scores.append(input)
            return original(input, *args, **kwargs)

        return softmax

    original = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scores.append(query @ key.repeat_interleave(query.shape[-3] // key.shape[-3], -3).mT)
        return original(query, key, value, *args, **kwargs)

    with (
        # A norm of queries over all heads makes each head depend on all, and has no part in which lines are whose.
        patch.object(F, "layer_norm", lambda x, *args: x),
        patch.object(F, "softmax", recorded(F.softmax)),
        patch.object(torch, "softmax", recorded(torch.softmax)),
        patch.object(Tensor, "softmax", recorded(Tensor.softmax)),
        patch.object(F, "scaled_dot_product_attention", attention),
    ):
        yield scores


def matches(name: str, globs: Any) -> list[str]:
    return [glob for glob in globs if fnmatchcase(name, glob)]


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_the_truth_is_well_formed(style: Style) -> None:
    names = [name for name, _ in style.build().named_parameters()]
    assert all(any(fnmatchcase(name, glob) for name in names) for glob in (*style.roles, *style.lines))
    assert all(len(matches(name, style.lines)) <= len(matches(name, style.roles)) <= 1 for name in names)
    assert style.architecture <= {a.value for a in Architecture}
    assert set().union(*style.roles.values()) <= {r.value for r in Role}


HIDDEN = {
    "all in one class of letters": "its softmax is written out",
    "cait": "its heads talk before the softmax",
    "conditional detr": "its first queries are zeros, on which nothing depends",
}
"""Truths that cannot be checked so."""


@pytest.mark.parametrize("style", [s for s in STYLES if s.name not in HIDDEN], ids=lambda style: style.name)
def test_a_score_moves_the_lines_of_one_head(style: Style) -> None:
    torch.manual_seed(0)
    model = style.build().requires_grad_()
    with torch.no_grad():  # weights that start at zero would hide what depends on what
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    args, kwargs = style.example()
    with score_recorder() as scores:
        model(*args, **kwargs)
    scores = [s for s in scores if s.requires_grad]
    waiting = {name: weight for name, weight in model.named_parameters() if matches(name, style.lines)}
    orders = {name: style.lines[matches(name, style.lines)[0]] for name in waiting}
    lines = {name: parse_lines(order.partition("@")[0]).expand() for name, order in orders.items()}
    axes = {name: int(order.partition("@")[2] or 0) for name, order in orders.items()}
    assert all(len(lines[name]) == weight.shape[axes[name]] for name, weight in waiting.items())
    for score in scores:
        if not waiting:
            break
        # The first scores that depend on a weight are its own; those of later layers depend on all of it.
        found = torch.autograd.grad(score.sum(), list(waiting.values()), retain_graph=True, allow_unused=True)
        own = {name: waiting.pop(name) for name, gradient in zip(list(waiting), found, strict=True) if gradient is not None}
        if not own:
            continue
        seen: dict[str, set[tuple[str, int]]] = {name: set() for name in own}
        flat = score.flatten()
        for i in torch.randperm(len(flat))[:120].tolist():
            gradients = torch.autograd.grad(flat[i], list(own.values()), retain_graph=True)
            for name, gradient in zip(own, gradients, strict=True):
                moved = gradient.movedim(axes[name], 0).flatten(1).any(1).tolist()
                heads = {line for line, hit in zip(lines[name], moved, strict=True) if hit}
                assert [line in heads for line in lines[name]] == moved, (name, heads)
                # As many heads of a role as there are segments of it: Transformer-XL's successors have two queries in a head.
                assert all(n <= max(1, orders[name].count(f"{role}:")) for role, n in Counter(role for role, _ in heads).items()), (
                    name,
                    heads,
                )
                seen[name] |= heads
        for name in own:
            assert seen[name] == {line for line in lines[name] if line[0] in "qk"}, name
    assert not waiting
