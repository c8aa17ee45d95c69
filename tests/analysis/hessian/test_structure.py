import itertools
import math

import pytest
import torch

from lightning_adam_mini import BlockLayout
from lightning_adam_mini.analysis.hessian import Mass


def symmetric(n, seed=0):
    a = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return a + a.T


def by_hand(hessian, blocks):
    same = torch.tensor([[a == b for b in blocks] for a in blocks])
    return float((hessian.square() * same).sum() / hessian.square().sum())


def test_shares():
    h, shape = symmetric(12), (4, 3)
    mass = Mass.of_hessian(h, shape)
    lines, columns = [i // 3 for i in range(12)], [i % 3 for i in range(12)]
    assert mass.share(BlockLayout(shape, dims=(1,))).share == pytest.approx(by_hand(h, lines))
    assert mass.share(BlockLayout(shape, dims=(0,))).share == pytest.approx(by_hand(h, columns))
    assert mass.share(BlockLayout.grouped(shape, "q:2x2")).share == pytest.approx(by_hand(h, [i // 6 for i in range(12)]))
    either = by_hand(h, lines) + by_hand(h, columns) - by_hand(h, list(range(12)))
    assert mass.share(BlockLayout((4, 3), dims=(1,), crossed=(0,))).share == pytest.approx(either)
    assert mass.share(BlockLayout.whole(shape)).share == 1
    assert math.isnan(mass.share(BlockLayout.whole(shape)).concentration)


def test_null_of_heads_is_the_mean_over_permutations_of_rows():
    h, shape = symmetric(8), (4, 2)
    h[:4, :4] *= 10
    found = Mass.of_hessian(h, shape).share(BlockLayout.grouped(shape, "q:2x2"))
    shares = []
    for order in itertools.permutations(range(4)):
        index = torch.tensor([row * 2 + column for row in order for column in range(2)])
        shares.append(by_hand(h[index][:, index], [0, 0, 0, 0, 1, 1, 1, 1]))
    assert found.null == pytest.approx(sum(shares) / len(shares))


def test_null_of_rows_is_the_mean_over_permutations_of_elements():
    h, shape = symmetric(6), (2, 3)
    found = Mass.of_hessian(h, shape).share(BlockLayout(shape, dims=(1,)))
    shares = [by_hand(h[list(order)][:, list(order)], [0, 0, 0, 1, 1, 1]) for order in itertools.permutations(range(6))]
    assert found.null == pytest.approx(sum(shares) / len(shares))


def test_within_a_coarser_layout():
    h, shape = symmetric(8), (8, 1)
    h[:4, 4:] = h[4:, :4] = 0
    h[:2, 2:4] = h[2:4, :2] = h[4:6, 6:] = h[6:, 4:6] = 0
    mass = Mass.of_hessian(h, shape)
    halves, quarters, eighths = (BlockLayout.grouped(shape, f"q:{n}x{8 // n}") if n < 8 else BlockLayout(shape) for n in (2, 4, 8))
    assert mass.share(quarters, halves).share == 1
    assert mass.share(quarters, halves).concentration == pytest.approx(1)
    assert mass.share(eighths, quarters).null == pytest.approx(8 / 16)
    outside = h.clone()
    outside[:4, 4:] = outside[4:, :4] = 100  # what lies outside of the coarser blocks does not count
    assert Mass.of_hessian(outside, shape).share(quarters, halves) == mass.share(quarters, halves)


def test_a_sample_of_columns_is_within_its_error():
    h, shape = symmetric(60), (12, 5)
    h[:30] *= 5
    h[:, :30] *= 5
    layouts = [BlockLayout(shape, dims=(1,)), BlockLayout.grouped(shape, "q:3x4"), BlockLayout(shape, dims=(1,), crossed=(0,))]
    exact = [Mass.of_hessian(h, shape).share(layout) for layout in layouts]
    chances = torch.linspace(1, 3, 60, dtype=torch.float64)
    chances /= chances.sum()
    off = []
    for seed in range(60):
        index = torch.multinomial(chances, 100, replacement=True, generator=torch.Generator().manual_seed(seed))
        held = Mass.of_columns(h[index].view(-1, *shape), index, 1 / chances[index]).measure(layouts)
        shares = [held.share(layout) for layout in layouts]
        off.append([(s.share - e.share) / s.error for s, e in zip(shares, exact, strict=True)])
    off = torch.tensor(off)
    assert off.mean(0).abs().max() < 0.7
    assert bool((off.square().mean(0) < 2.5).all())


def test_no_curvature_and_mistakes():
    assert math.isnan(Mass.of_hessian(torch.zeros(4, 4), (2, 2)).share(BlockLayout((2, 2))).share)
    with pytest.raises(ValueError, match=r"is not that of a parameter of shape \(3, 2\)"):
        Mass.of_hessian(torch.zeros(4, 4), (3, 2))
    with pytest.raises(ValueError, match="is not for a parameter of shape"):
        Mass.of_hessian(torch.zeros(4, 4), (2, 2)).share(BlockLayout((4,)))
