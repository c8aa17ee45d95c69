"""Sums of squares that overflow where the squares and their mean do not: AdamW steps there, and so does AdamMini."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lightning_adam_mini import AdamMini, BlockLayout
from lightning_adam_mini._sums import second_moment_dtype, sum_square

# Each way that a sum takes: norms of the innermost dimensions, with outer ones, squares of outer ones alone, groups of lines.
LAYOUTS = {
    "whole": BlockLayout.whole((20, 30)),
    "more than one norm": BlockLayout.whole((3, 2**15)),
    "rows": BlockLayout.each_line((7, 40)),
    "columns": BlockLayout.each_line((21, 18), axis=1),
    "heads": BlockLayout.grouped((24, 16), "q:2x5|k:2x5|v:4x1"),
    "heads that interleave": BlockLayout.grouped((24, 10), "4*(q:1x2|k:1x2|v:1x2)"),
    "alternate dimensions": BlockLayout((6, 8, 3, 5), dims=(0, 2)),
    "pairs of lines": BlockLayout((12, 5), (), 0, "q:6x2"),
}
# The largest squares that the dtype of the second moment holds, and ten times smaller gradients.
LARGE = [(torch.float32, 1.8e19), (torch.float32, 1e18), (torch.bfloat16, 1e19), (torch.bfloat16, 1e18), (torch.float64, 1.3e154)]
eachway = pytest.mark.parametrize("kind", LAYOUTS)


def gradient(layout: BlockLayout, dtype: torch.dtype, magnitude: float) -> Tensor:
    """Numbers between a third of the magnitude and all of it, of both signs."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(layout.shape, generator=generator, dtype=torch.float64) * 2 + 1) / 3
    signs = torch.randint(0, 2, layout.shape, generator=generator, dtype=torch.float64) * 2 - 1
    return (values * signs * magnitude).to(dtype)


def exact(layout: BlockLayout, grad: Tensor) -> Tensor:
    """Mean squares in float64, of gradients that are made small first."""
    return layout.average((grad.double() / 2.0**64).square()) * 2.0**64 * 2.0**64


@pytest.mark.parametrize(("dtype", "magnitude"), LARGE)
@eachway
def test_means_of_large_squares(kind, dtype, magnitude):
    layout = LAYOUTS[kind]
    grad = gradient(layout, dtype, magnitude)
    before = grad.clone()
    means = layout.mean_square(grad)
    assert means.dtype == second_moment_dtype(dtype)
    assert tuple(means.shape) == layout.block_shape
    torch.testing.assert_close(means.double(), exact(layout, grad), rtol=1e-6 if dtype != torch.float64 else 1e-13, atol=0)
    assert torch.equal(grad, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@eachway
def test_ordinary_means_keep_their_bits(kind, dtype):
    layout = LAYOUTS[kind]
    grad = gradient(layout, dtype, 1.0)
    sums = layout._sum_groups(sum_square(grad, layout.dims, second_moment_dtype(dtype)))
    assert torch.equal(layout.mean_square(grad), layout._divide_by_size(sums))


def test_a_block_that_overflows_changes_no_bit_of_the_others():
    layout = LAYOUTS["rows"]
    grad = gradient(layout, torch.float32, 1.0)
    expected = layout.mean_square(grad)
    grad[2] = 1e19
    means = layout.mean_square(grad)
    others = [i for i in range(7) if i != 2]
    assert torch.equal(means[others], expected[others])
    assert means[2].item() == pytest.approx(1e38)


def test_what_is_not_finite_stays_so():
    layout = LAYOUTS["rows"]
    for value, holds in ((math.inf, torch.isinf), (-math.inf, torch.isinf), (math.nan, torch.isnan), (2e19, torch.isinf)):
        grad = torch.ones(layout.shape)
        grad[1], grad[5, 3], grad[6] = value, value, 1e19
        means = layout.mean_square(grad)
        assert holds(means[1])
        assert holds(means[5]) or value == 2e19  # of which one alone is less than the largest float32
        assert means[[0, 2, 3, 4]].unique().tolist() == [1.0]
        assert means[6].item() == pytest.approx(1e38)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), ()])
def test_nothing_to_look_at(shape):
    layout = BlockLayout.whole(shape)
    assert tuple(layout.mean_square(torch.zeros(shape)).shape) == layout.block_shape
    rows = BlockLayout(shape, (1,) if shape else ())
    assert tuple(rows.mean_square(torch.zeros(shape)).shape) == rows.block_shape


def test_strides_do_not_matter():
    layout = LAYOUTS["alternate dimensions"]
    grad = gradient(layout, torch.float32, 1e19)
    strided = grad.to(memory_format=torch.channels_last)
    torch.testing.assert_close(layout.mean_square(strided), layout.mean_square(grad), rtol=1e-6, atol=0)
    one = torch.tensor(1e19).expand(20, 30)
    assert LAYOUTS["whole"].mean_square(one).item() == pytest.approx(1e38)


@pytest.mark.parametrize("how", [{"foreach": False}, {"foreach": True}, {"momentum_dtype": "8bit", "foreach": False}])
@pytest.mark.parametrize("magnitude", [1e18, 1e19])
@eachway
def test_steps_where_adamw_does(kind, magnitude, how):
    """Gradients of one magnitude and eps=0: each block's second moment is its elements', so that AdamMini is AdamW."""
    layout = LAYOUTS[kind]
    ours, theirs = (nn.Parameter(torch.ones(layout.shape)) for _ in range(2))
    options = dict(lr=0.1, eps=0.0, weight_decay=0.0)
    optimizers = (
        AdamMini([("p", ours)], layouts={"p": layout}, fused=False, **options, **how),
        torch.optim.AdamW([theirs], foreach=False, **options),
    )
    for _ in range(3):
        grad = gradient(layout, torch.float32, 1.0).sign() * magnitude
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (theirs - 1).abs().min() > 0.25
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_compiled_code_does_not_look():
    """Nothing reads a number, which would break the graph."""
    layout = LAYOUTS["whole"]
    compiled = torch.compile(layout.mean_square, backend="eager", fullgraph=True)
    grad = gradient(layout, torch.float32, 1.0)
    assert torch.equal(compiled(grad), layout.mean_square(grad))
