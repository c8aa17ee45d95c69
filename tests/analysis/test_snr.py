import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lightning_adam_mini import BlockLayout
from lightning_adam_mini.analysis import measure_snr, subset_layouts
from lightning_adam_mini.analysis.snr_history import SNRHistory, average_snr


def literal(v, dims):
    """SNR_K as the paper writes it, block by block in float64: blocks of zeros have none, constant ones count where none varies."""
    v = torch.as_tensor(v).double().numpy()
    kept = [d for d in range(v.ndim) if d not in dims]
    ratios, constant = [], False
    for place in itertools.product(*(range(v.shape[d]) for d in kept)):
        block = v[tuple(place[kept.index(d)] if d in kept else slice(None) for d in range(v.ndim))]
        mean = block.mean()
        variance = ((block - mean) ** 2).mean()
        if variance > 1e-12 * mean**2:
            ratios.append(mean**2 / variance)
        elif mean > 0:
            constant = True
    return np.mean(ratios) if ratios else (math.inf if constant else math.nan)


def check(v, rel=1e-9):
    layouts = subset_layouts(v.shape)
    found = measure_snr(v).tolist()
    for layout, snr in zip(layouts, found, strict=True):
        assert snr == pytest.approx(literal(v, layout.dims), rel=rel, nan_ok=True), layout
    return layouts, found


# Values whose ratios float64 tells from noise: nothing nearer to constant than one part in a thousand.
values = st.one_of(st.just(0.0), st.integers(1, 1000).map(float), st.floats(1e-6, 1e6).map(lambda x: float(np.float32(x))))
tensors = st.integers(1, 4).flatmap(lambda n: hnp.arrays(np.float64, hnp.array_shapes(min_dims=n, max_dims=n, max_side=5), elements=values))


@given(tensors)
@settings(max_examples=150, deadline=None)
def test_equals_the_definition(v):
    check(torch.from_numpy(v), rel=1e-4)


@given(tensors, st.sampled_from([1e-30, 1e-36, 1e30]))
@settings(max_examples=50, deadline=None)
def test_does_not_depend_on_scale(v, scale):
    scaled = torch.from_numpy((v * scale).astype(np.float32))
    for layout, snr in zip(subset_layouts(v.shape), measure_snr(scaled).tolist(), strict=True):
        assert snr == pytest.approx(literal(scaled.double().numpy(), layout.dims), rel=1e-2, nan_ok=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1.0])
def test_small_second_moments_are_right_within_a_percent(dtype, scale):
    v = (torch.rand(20, 30, dtype=torch.float64).square() * scale).to(dtype)
    v[3] *= 1e-8  # rows of unlike sizes, as tokens have
    check(v, rel=1e-2)


def test_float64_below_the_square_root_of_its_smallest_number():
    v = torch.rand(6, 5, dtype=torch.float64) * 1e-200
    assert measure_snr(v).tolist() == pytest.approx(measure_snr(v * 1e200).tolist())


@pytest.mark.parametrize("value", [1.0, 1e-30, 3.3e-5])
@pytest.mark.parametrize("shape", [(7,), (300, 77), (8, 4, 3, 3)])
def test_constant_is_infinitely_compressible(shape, value):
    assert all(math.isinf(snr) for snr in measure_snr(torch.full(shape, value)).tolist())


def test_constant_lines_let_those_that_vary_decide():
    v = torch.tensor([[5.0, 5.0], [1.0, 3.0]])
    assert measure_snr(v, [BlockLayout((2, 2), dims=(1,))]).item() == pytest.approx(4.0)
    rows = torch.tensor([[5.0, 5.0], [3.0, 3.0]])  # each row constant, the columns not
    assert measure_snr(rows).tolist() == pytest.approx([16.0, math.inf, 16.0])


def test_zero_lines_are_left_out_and_nothing_but_zeros_is_unknown():
    v = torch.tensor([[0.0, 0.0], [1.0, 3.0], [0.0, 0.0]])
    assert measure_snr(v, [BlockLayout((3, 2), dims=(1,))]).item() == pytest.approx(4.0)
    assert all(math.isnan(snr) for snr in measure_snr(torch.zeros(4, 3)).tolist())


def test_diverged_second_moments_say_nothing():
    v = torch.rand(4, 3)
    v[0, 0] = math.inf
    assert not any(math.isinf(snr) for snr in measure_snr(v).tolist())


def test_dimensions_of_length_one_are_not_averaged():
    assert [layout.dims for layout in subset_layouts((1, 5, 1, 2))] == [(1,), (3,), (1, 3)]
    check(torch.rand(1, 5, 1, 2))


@pytest.mark.parametrize("shape", [(1500, 1500), (3, 800_000), (40, 300, 16, 17), (300, 900, 3, 3)])
def test_large_tensors_that_are_read_in_parts(shape):
    v = torch.rand(shape, generator=torch.Generator().manual_seed(0)).square() * 1e-12
    array = v.double().numpy()
    for layout, snr in zip(subset_layouts(shape), measure_snr(v).tolist(), strict=True):
        # Reading once costs a block whose ratio is r the digits of r: among 800,000 triples some are as good as constant.
        ratios = array.mean(layout.dims) ** 2 / array.var(layout.dims)
        assert snr == pytest.approx(ratios.mean(), rel=1e-12 + 1e-15 * (ratios**2).mean() / ratios.mean()), layout


def test_any_strides_dtype_and_number_of_threads():
    v = torch.rand(128, 2000, 3, 3).square()
    found = measure_snr(v)
    assert measure_snr(v.to(memory_format=torch.channels_last)).tolist() == pytest.approx(found.tolist(), rel=1e-12)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert measure_snr(v).tolist() == pytest.approx(found.tolist(), rel=1e-12)
    finally:
        torch.set_num_threads(threads)
    check(torch.rand(5, 7).t())
    check(torch.rand(6, 4).to(torch.bfloat16))


def literal_crossed(v, dims, crossed):
    """Of each block of the first mean, the squares of the product of means over the squares of what it misses."""
    v = torch.as_tensor(v).double().numpy()
    first, second = v.mean(dims, keepdims=True), v.mean(crossed, keepdims=True)
    estimate = first * second / second.mean(tuple(d for d in dims if d not in crossed), keepdims=True)
    estimate = np.broadcast_to(estimate, v.shape)
    return ((estimate**2).sum(dims) / ((v - estimate) ** 2).sum(dims)).mean()


CROSSED = [
    ((5, 7), (1,), (0,)),
    ((5, 7), (0,), (1,)),
    ((6, 4, 3, 3), (1, 2, 3), (0, 2, 3)),
    ((4, 6, 3, 3), (0, 2, 3), (1, 2, 3)),
    ((8, 1, 3, 3), (2, 3), (0,)),
    ((3, 5, 6), (2,), (1,)),
    ((3, 5, 6), (1,), (2,)),
    ((1200, 900), (1,), (0,)),
    ((900, 1200), (0,), (1,)),
    ((3, 70_000), (1,), (0,)),
]


@pytest.mark.parametrize(("shape", "dims", "crossed"), CROSSED)
@pytest.mark.parametrize("scale", [1.0, 1e-30])
def test_rows_that_cross_columns(shape, dims, crossed, scale):
    v = torch.rand(shape, generator=torch.Generator().manual_seed(0)).square() * scale
    layout = BlockLayout(shape, dims, crossed=crossed)
    assert layout.is_factored
    found = measure_snr(v, [layout, BlockLayout(shape, dims)])
    assert found.tolist() == pytest.approx([literal_crossed(v, dims, crossed), literal(v, dims)], rel=1e-6)
    if len(shape) == 4:
        v = v.to(memory_format=torch.channels_last)
        assert measure_snr(v, [layout]).item() == pytest.approx(found[0].item())


def test_columns_that_are_alike_add_nothing_to_rows():
    """Then the product of means is the mean of the row, and the ratio is SlimAdam's."""
    v = torch.rand(6, 8, dtype=torch.float64)
    v = v / v.mean(0)
    factored, rows = measure_snr(v, [BlockLayout.factored((6, 8)), BlockLayout.each_line((6, 8))]).tolist()
    assert factored == pytest.approx(rows)


def test_a_product_of_rows_and_columns_loses_nothing():
    layout = BlockLayout.factored((6, 8))
    v = torch.rand(6, 1) * torch.rand(8).square()
    v[2] = 0
    assert measure_snr(v.double(), [layout]).item() == math.inf
    v[3, 4] *= 2  # what a row loses decides, and one of zeros has no part in it
    assert measure_snr(v, [layout]).item() == pytest.approx(literal_crossed(v[v.sum(1) > 0], (1,), (0,)), rel=1e-4)
    assert math.isnan(measure_snr(torch.zeros(6, 8), [layout]).item())


@pytest.mark.parametrize(
    ("shape", "lines", "axis"),
    [((12, 5), "q:2x2|k:2x2|v:2x2", 0), ((5, 12), "q:2x2|k:2x2|v:2x2", 1), ((8, 3), "q:2x4t", 0), ((6, 2, 3), "q:3x2", 0)],
)
def test_heads(shape, lines, axis):
    v = torch.rand(shape).square()
    layout = BlockLayout.grouped(shape, lines, axis)
    ids = layout.spread(torch.arange(layout.num_blocks, dtype=torch.float64).view(layout.block_shape)).expand(shape)
    ratios = []
    for block in range(layout.num_blocks):
        inside = v.double()[ids == block]
        ratios.append(float(inside.mean() ** 2 / inside.var(correction=0)))
    assert measure_snr(v, [layout]).item() == pytest.approx(np.mean(ratios))


def test_heads_of_a_tensor_that_is_read_in_parts():
    v = torch.rand(3000, 1000).square()
    blocks = v.double().view(6, -1)
    found = measure_snr(v, [BlockLayout.grouped((3000, 1000), "q:6x500")]).item()
    assert found == pytest.approx(float((blocks.mean(1) ** 2 / blocks.var(1, correction=0)).mean()))


def test_what_cannot_be_measured():
    with pytest.raises(ValueError, match="one value per parameter"):
        measure_snr(torch.rand(4, 1), [BlockLayout((4, 3), dims=(1,))])
    with pytest.raises(ValueError, match="averages over nothing"):
        measure_snr(torch.rand(4, 3), [BlockLayout((4, 3))])
    with pytest.raises(ValueError, match="crosses the means of heads"):
        measure_snr(torch.rand(4, 6), [BlockLayout((4, 6), (1,), 0, "q:2x2", crossed=(0,))])
    assert measure_snr(torch.rand(1, 1)).tolist() == []
    assert math.isnan(measure_snr(torch.rand(0, 3), [BlockLayout((0, 3), dims=(1,))]).item())


def test_history_averages_and_comes_back_from_its_state():
    history = SNRHistory()
    first, second = torch.rand(4, 3), torch.rand(4, 3)
    others = {"w": BlockLayout.grouped((4, 3), "q:2x2")}, {"w": BlockLayout.factored((4, 3))}
    history.measure(10, {"w": first}, *others)
    history.measure(20, {"w": second, "late": torch.ones(3)}, *others)
    assert history.averages()["w"][(1,)] == pytest.approx((literal(first, (1,)) + literal(second, (1,))) / 2)
    assert math.isinf(history.averages()["late"][(0,)])
    assert history.averages()["w"].keys() == {(0,), (1,), (0, 1), "crossed"}
    assert history.averages()["w"]["crossed"] == pytest.approx(sum(literal_crossed(v, (1,), (0,)) for v in (first, second)) / 2)
    assert [layout.lines for name, layout in history.columns() if name == "w"] == [None, None, None, "q:2x2", None]

    again = SNRHistory()
    again.load_state_dict(history.state_dict())
    again.measure(30, {"w": first}, *others)
    history.measure(30, {"w": first}, *others)
    assert torch.equal(again.table().nan_to_num(-1), history.table().nan_to_num(-1))
    assert again.csv_text() == history.csv_text()
    assert f'10,w,"(4, 3)",crossed,{literal_crossed(first, (1,), (0,)):.8g}' in history.csv_text().splitlines()
    assert history.csv_text().splitlines()[:2] == ["step,key,shape,compress_dims,snr", f'10,w,"(4, 3)","(0,)",{literal(first, (0,)):.8g}']


def test_averages_of_what_is_infinite_or_unknown():
    assert average_snr([math.inf, 2.0, math.nan, 4.0]) == 3.0
    assert average_snr([math.inf, math.nan]) == math.inf
    assert math.isnan(average_snr([math.nan]))
