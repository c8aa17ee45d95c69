"""The truth about the vision styles, checked by running them: what each slice of the attention scores depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_adam_mini.detection import Architecture, Role
from lightning_adam_mini.lines import parse_lines
from tests.detection.styles.style import Style

FILES = sorted(path.stem for path in Path(__file__).parent.glob("vision_*.py") if path.stem != "vision_test")
STYLES: list[Style] = [style for file in FILES for style in import_module(f"tests.detection.styles.{file}").STYLES]


@contextmanager
def score_recorder() -> Iterator[list[Tensor]]:
    """Scores of attention in the order of the calls: what softmax is given, or what a function with its own gradient makes of it."""
    scores: list[Tensor] = []
    sdpa = F.scaled_dot_product_attention

    def recorded(softmax: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def record(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            scores.append(input)
            return softmax(input, *args, **kwargs)

        return record

    def attention(q: Tensor, k: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        scores.append(q @ k.mT)
        return sdpa(q, k, *args, **kwargs)

    def apply(cls: type[torch.autograd.Function], *args: Any) -> Tensor:
        scores.append(super(torch.autograd.Function, cls).apply(*args))  # pyright: ignore[reportAttributeAccessIssue]
        return scores[-1]

    with pytest.MonkeyPatch.context() as patch:
        for place in (F, torch, Tensor):
            patch.setattr(place, "softmax", recorded(place.softmax))
        patch.setattr(F, "scaled_dot_product_attention", attention)
        patch.setattr(torch.autograd.Function, "apply", classmethod(apply))
        # A norm of queries over all heads makes each head depend on all, and has no part in which lines are whose.
        patch.setattr(F, "layer_norm", lambda x, *args: x)
        yield scores


def moved_lines(value: Tensor, weight: Tensor, axis: int) -> set[int]:
    """The lines of ``weight`` that ``value`` depends on."""
    gradient = torch.autograd.grad((value * torch.randn_like(value)).sum(), weight, retain_graph=True, allow_unused=True)[0]
    return set() if gradient is None else {i for i, line in enumerate(gradient.movedim(axis, 0).flatten(1)) if line.any()}


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_the_truth_is_well_formed(style: Style) -> None:
    names = [name for name, _ in style.build().named_parameters()]
    for glob in (*style.roles, *style.lines):
        assert any(fnmatchcase(name, glob) for name in names), glob
    for name in names:
        assert sum(fnmatchcase(name, glob) for glob in style.roles) <= 1, name
        assert sum(fnmatchcase(name, glob) for glob in style.lines) <= sum(fnmatchcase(name, glob) for glob in style.roles), name
    assert style.architecture <= {a.value for a in Architecture}
    assert set().union(*style.roles.values()) <= {r.value for r in Role}


@pytest.mark.parametrize("style", STYLES, ids=lambda style: style.name)
def test_each_slice_of_the_scores_moves_the_lines_of_one_head(style: Style) -> None:
    torch.manual_seed(0)
    model: nn.Module = style.build()
    for parameter in model.parameters():  # weights that start at zero would hide what depends on what
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    args, kwargs = style.example()
    with score_recorder() as scores:
        model(*args, **kwargs)
    for name, weight in model.named_parameters():
        for text in [text for glob, text in style.lines.items() if fnmatchcase(name, glob)]:
            order, _, axis = text.partition("@")
            lines, axis = parse_lines(order).expand(), int(axis or 0)
            assert len(lines) == weight.shape[axis], name
            # The first scores that depend on the weight are its own; those of later layers depend on all of it.
            own = next(s for s in scores if s.requires_grad and moved_lines(s, weight, axis))
            counts = [len({line for line in lines if line[0] == role}) for role in "qk"]
            seen: set[tuple[str, int]] = set()
            for part in own.flatten(0, -3):
                moved = moved_lines(part, weight, axis)
                heads = {lines[i] for i in moved}
                assert len({role for role, _ in heads}) == len(heads), (name, heads)
                if all(counts):  # grouped queries share a key
                    query = max(head for role, head in heads if role == "q")
                    assert heads == {("q", query), ("k", query * counts[1] // counts[0])}, name
                assert moved == {i for i, line in enumerate(lines) if line in heads}, name
                seen |= heads
            assert seen == {line for line in lines if line[0] in "qk"}, name
