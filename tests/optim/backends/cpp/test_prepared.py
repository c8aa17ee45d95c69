"""The step that is ready to be taken again: the same bits as the one that looks at each tensor, and never on trust."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, BlockLayout
from lightning_adam_mini.optim.backends.cpp.build import load_kernel

pytestmark = pytest.mark.skipif(isinstance(load_kernel(), str), reason=f"no compiled loop: {load_kernel()}")

SHAPES = [(8, 5), (3,), (), (4, 2, 3, 3), (64, 100)]


def make(momentum_dtype=None, dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(0)
    ps = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    ps[3].data = ps[3].data.to(memory_format=torch.channels_last)
    layouts = {str(i): BlockLayout.each_line(p.shape) if p.ndim > 1 else BlockLayout.whole(p.shape) for i, p in enumerate(ps)}
    layouts["4"] = BlockLayout.factored(SHAPES[4])
    groups = [{"params": [(str(i), ps[i]) for i in part], **more} for part, more in (((0, 1, 2), {"lr": 1e-2}), ((3, 4), {}))]
    return ps, AdamMini(groups, layouts=layouts, momentum_dtype=momentum_dtype, **options)


def give(ps, step, which=None):
    generator = torch.Generator().manual_seed(10 + step)
    for i, p in enumerate(ps):
        grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        p.grad = torch.empty_like(p).copy_(grad) if which is None or i in which else None


def is_prepared(optimizer):
    return optimizer._stepper._prepared is not None


def looked_at(optimizer):
    optimizer._stepper.forget()


@pytest.mark.parametrize("momentum_dtype", [None, torch.bfloat16, "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_gives_the_same_bits(momentum_dtype, dtype):
    if dtype == torch.float64 and momentum_dtype == torch.bfloat16:
        pytest.skip("the compiled loop does not step these")
    (ps, ours), (qs, theirs) = make(momentum_dtype, dtype), make(momentum_dtype, dtype)
    prepared = 0
    for step in range(12):
        give(ps, step), give(qs, step)
        for optimizer in (ours, theirs):
            optimizer.param_groups[0].update(lr=torch.tensor(1e-2 / (step + 1)), weight_decay=0.01 * step, betas=(0.8, 0.9 + 0.001 * step))
        prepared += is_prepared(ours)
        looked_at(theirs)
        ours.step(), theirs.step()
        assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True)), step
    assert prepared == 11


def test_other_parameters_have_gradients_each_step():
    """As with experts: it is prepared again, and less and less often where that is in vain."""
    (ps, ours), (qs, theirs) = make(), make()
    for step in range(30):
        which = None if step > 20 else {step % 5, (step + 1) % 5}
        give(ps, step, which), give(qs, step, which)
        looked_at(theirs)
        ours.step(), theirs.step()
        assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True)), step
    assert [int(ours.state[p]["step"]) for p in ps[:5]] == [int(theirs.state[q]["step"]) for q in qs[:5]]


def test_gradients_in_another_order_of_memory():
    (ps, ours), (qs, theirs) = make(), make()
    for step in range(6):
        give(ps, step), give(qs, step)
        if step % 2:
            for some in (ps, qs):
                some[4].grad = some[4].grad.t().contiguous().t()
        looked_at(theirs)
        ours.step(), theirs.step()
        assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True)), step


@pytest.mark.parametrize("key", ["fused", "foreach"])
def test_another_way_to_step_is_followed(key):
    ps, optimizer = make()
    for step in range(4):
        give(ps, step)
        if step == 2:
            assert is_prepared(optimizer)
            optimizer.param_groups[0][key] = key == "foreach"
        optimizer.step()
    assert not is_prepared(optimizer)


def freed(t):
    t.untyped_storage().resize_(0)


def cut(t):
    t.untyped_storage().resize_(t.untyped_storage().nbytes() // 2)


@pytest.mark.parametrize("change", [freed, cut])
@pytest.mark.parametrize("which", ["parameter", "gradient", "exp_avg", "exp_avg_sq", "exp_avg_sq_col"])
def test_memory_that_is_gone_is_refused(change, which):
    ps, optimizer = make()
    for step in range(3):
        give(ps, step)
        optimizer.step()
    assert is_prepared(optimizer)
    give(ps, 3)
    p = ps[4]
    change({"parameter": p.data, "gradient": p.grad}.get(which, optimizer.state[p].get(which)))
    steps = [int(optimizer.state[q]["step"]) for q in ps[:4]]
    with pytest.raises(RuntimeError, match="parameter '4' of shape .* because .* memory"):
        optimizer.step()
    assert [int(optimizer.state[q]["step"]) for q in ps[:4]] == steps


def test_nothing_is_kept_alive():
    ps, optimizer = make()
    for step in range(3):
        give(ps, step)
        optimizer.step()
    gradient, first = weakref.ref(ps[4].grad), weakref.ref(optimizer.state[ps[4]]["exp_avg"])
    ps[4].grad = None
    optimizer.state[ps[4]]["exp_avg"] = optimizer.state[ps[4]]["exp_avg"].clone()
    give(ps, 3)
    optimizer.step()
    gc.collect()
    assert gradient() is None
    assert first() is None
    whole = weakref.ref(optimizer)
    del optimizer
    assert whole() is None, "freed at once, without the garbage collector"
