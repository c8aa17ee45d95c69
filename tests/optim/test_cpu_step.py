"""The compiled loop against the readable one, on tensors of all sizes, memory formats and dtypes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_adam_mini import AdamMini, BlockLayout
from lightning_adam_mini.optim.cpu import build

pytestmark = pytest.mark.skipif(isinstance(build.load_kernel(), str), reason=f"no compiled loop here: {build.load_kernel()}")
OPTIONS = dict(lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)


def train(start, layout, steps=3, grad_format=lambda g: g, **options):
    """Weights, momentum and second moments after a few steps."""
    p = nn.Parameter(start.clone(memory_format=torch.preserve_format))
    optimizer = AdamMini([("p", p)], layouts={"p": layout}, **{**OPTIONS, **options})
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 10.0 ** torch.randn((), generator=generator)
        p.grad = grad_format(grad.to(p.dtype))
        if p.grad.shape == p.shape and p.is_contiguous(memory_format=torch.channels_last) and p.ndim == 4:
            p.grad = p.grad.contiguous(memory_format=torch.channels_last)
        optimizer.step()
    state = optimizer.state[p]
    return p.detach(), state["exp_avg"], optimizer.second_moments()["p"]


def assert_paths_agree(start, layout, rtol=2e-5, atol=2e-6, **options):
    for ours, readable in zip(
        train(start, layout, fused=True, **options), train(start, layout, fused=False, foreach=False, **options), strict=True
    ):
        assert ours.dtype == readable.dtype
        torch.testing.assert_close(ours, readable, rtol=rtol, atol=atol)


@st.composite
def layouts(draw):
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=0, max_size=4)))
    dims = tuple(draw(st.sets(st.integers(0, len(shape) - 1)))) if shape else ()
    free = [d for d in range(len(shape)) if d not in dims]
    if free and draw(st.booleans()):
        axis = draw(st.sampled_from(free))
        heads = draw(st.lists(st.integers(0, 2), min_size=shape[axis], max_size=shape[axis]))
        return BlockLayout(shape, dims, axis, "|".join(f"q{'abc'[h]}:1" for h in heads))
    return BlockLayout(shape, dims)


@settings(max_examples=150, deadline=None)
@given(layouts(), st.permutations(range(4)), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_any_layout_in_any_memory_order(layout, order, decoupled, dtype):
    order = [d for d in order if d < len(layout.shape)]
    inverse = [order.index(d) for d in range(len(order))]
    start = torch.randn([layout.shape[d] for d in order], dtype=dtype).permute(inverse)
    assert_paths_agree(start, layout, decoupled_weight_decay=decoupled, maximize=not decoupled)


LARGE = {
    "whole": BlockLayout.whole((400, 500)),
    "rows": BlockLayout.each_line((400, 500)),
    "long rows": BlockLayout.each_line((2, 150_000)),
    "columns": BlockLayout.each_line((400, 500), axis=1),
    "heads": BlockLayout.grouped((400, 500), "q:4x50|k:4x25|v:100x1"),
    "heads that interleave": BlockLayout.grouped((400, 500), "100*(q:1x2|k:1x2)"),
    "heads of columns": BlockLayout.grouped((500, 400), "q:4x50|k:4x25|v:100x1", axis=1),
    "elements": BlockLayout.per_parameter((400, 500)),
    "convolution": BlockLayout((64, 256, 3, 5), dims=(0, 2)),
}


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_tensors_that_are_cut_into_pieces(kind, memory_format):
    layout = LARGE[kind]
    if memory_format is torch.channels_last and len(layout.shape) != 4:
        pytest.skip("has no channels")
    torch.manual_seed(0)
    assert_paths_agree(torch.randn(layout.shape).to(memory_format=memory_format), layout)


def test_large_sums_are_as_exact_as_float64():
    layout = BlockLayout.whole((3, 2**20 + 5))
    _, _, v = train(torch.zeros(layout.shape), layout, steps=1, weight_decay=0.0, fused=True)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(layout.shape, generator=generator, dtype=torch.float64) * 10.0 ** torch.randn((), generator=generator)
    assert float(v) == pytest.approx(0.05 * float(grad.float().double().square().mean()), rel=3e-7)


def test_the_number_of_threads_changes_no_bit():
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            torch.manual_seed(0)
            results.append([train(torch.randn(layout.shape), layout, fused=True) for layout in LARGE.values()])
    finally:
        torch.set_num_threads(threads)
    for one, three in zip(*results, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


@pytest.mark.parametrize("momentum_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["rows", "heads", "elements", "columns"])
def test_half_precision_within_its_rounding(dtype, momentum_dtype, kind):
    torch.manual_seed(0)
    eps = torch.finfo(torch.bfloat16 if torch.bfloat16 in (dtype, momentum_dtype) else dtype).eps
    assert_paths_agree(torch.randn(400, 500, dtype=dtype), LARGE[kind], rtol=4 * eps, atol=4 * eps, momentum_dtype=momentum_dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_is_to_nearest_even_as_torch_does(dtype):
    """One step with lr 0 and decay only rounds x * decay, of which torch has an answer for each bit pattern."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    p = nn.Parameter(bits.clone())
    optimizer = AdamMini([("p", p)], lr=1e-2, weight_decay=1.0, layouts={"p": BlockLayout.whole(bits.shape)}, fused=True)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    expected = (bits.float() * 0.99).to(dtype)
    same = (p.detach() == expected) | (p.detach().isnan() & expected.isnan())
    assert bool(same.all())


def test_gradients_of_other_strides_are_read_as_they_are():
    torch.manual_seed(0)
    start, layout = torch.randn(40, 50), BlockLayout.each_line((40, 50))
    plain = train(start, layout, fused=True)
    strided = train(start, layout, fused=True, grad_format=lambda g: g.t().contiguous().t())
    assert all(torch.equal(a, b) for a, b in zip(plain, strided, strict=True))
    p = nn.Parameter(start.clone())
    optimizer = AdamMini([("p", p)], layouts={"p": layout}, fused=True)
    p.grad = torch.ones(()).expand(40, 50)
    optimizer.step()
    assert bool(p.isfinite().all())
    assert p.grad.stride() == (0, 0)


def test_momentum_of_another_memory_format_is_put_in_order():
    """As from a checkpoint of a run without channels_last."""
    layout = BlockLayout.whole((8, 4, 3, 3))
    start = torch.randn(8, 4, 3, 3)
    p, q = nn.Parameter(start.clone()), nn.Parameter(start.to(memory_format=torch.channels_last))
    a, b = (AdamMini([("p", x)], layouts={"p": layout}, fused=True) for x in (p, q))
    for step in range(4):
        if step == 2:
            b.state[q]["exp_avg"] = b.state[q]["exp_avg"].contiguous()
        p.grad = torch.randn(8, 4, 3, 3)
        q.grad = p.grad.contiguous(memory_format=torch.channels_last)
        a.step(), b.step()
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_what_it_cannot_do_is_refused_by_name_before_anything_changes():
    good, bad = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3).expand(2, 3))
    optimizer = AdamMini([("good", good), ("bad", bad)], layouts={"good": BlockLayout.whole((3,))}, fused=True)
    good.grad, bad.grad = torch.ones(3), torch.ones(2, 3)
    with pytest.raises(RuntimeError, match="'bad'.*overlap.*fused=None"):
        optimizer.step()
    assert torch.equal(good, torch.ones(3))
    assert not optimizer.state
    with pytest.raises(ValueError, match="fused.*foreach"):
        AdamMini([good], fused=True, foreach=True)


def test_without_a_compiler_the_readable_loop_takes_over(monkeypatch, tmp_path):
    for name, value in (("CXX", ""), ("PATH", str(tmp_path)), (build.CACHE, str(tmp_path))):
        monkeypatch.setenv(name, value)
    build.load_kernel.cache_clear()
    try:
        layout = LARGE["rows"]
        torch.manual_seed(0)
        start = torch.randn(layout.shape)
        assert all(torch.equal(a, b) for a, b in zip(train(start, layout), train(start, layout, fused=False), strict=True))
        with pytest.raises(RuntimeError, match="no C\\+\\+ compiler"):
            train(start, layout, fused=True)
    finally:
        build.load_kernel.cache_clear()


def test_bytes_with_bfloat16_momentum():
    from lightning_adam_mini.optim import state_bytes

    p = nn.Parameter(torch.zeros(64, 256))
    optimizer = AdamMini([("p", p)], layouts={"p": BlockLayout.each_line((64, 256))}, momentum_dtype=torch.bfloat16)
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert state_bytes(optimizer) == 2 * math.prod(p.shape) + 4 * 64 + 4
    again = AdamMini([("p", p)], layouts={"p": BlockLayout.each_line((64, 256))}, momentum_dtype=torch.bfloat16)
    again.load_state_dict(optimizer.state_dict())
    assert again.state[p]["exp_avg"].dtype == torch.bfloat16
    assert torch.equal(again.state[p]["exp_avg"], optimizer.state[p]["exp_avg"])
