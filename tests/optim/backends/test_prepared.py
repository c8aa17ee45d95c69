"""The step that is ready to be taken again: the same bits as the one that looks at each tensor, and never on trust."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from lightning_adam_mini import BlockLayout
from tests.optim.backends.table import CPP, GPU, TRITON, ways

PREPARED = ways(CPP, TRITON)


def make(way, momentum_dtype=None, dtype=torch.float32, **options):
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 5), (3,), (), (4, 2, 3, 3), (64, 100) if way.quick else (12, 10)]
    ps = [nn.Parameter(torch.randn(shape, generator=generator).to(way.device, dtype)) for shape in shapes]
    ps[3].data = ps[3].data.to(memory_format=torch.channels_last)
    layouts = {str(i): BlockLayout.each_line(p.shape) if p.ndim > 1 else BlockLayout.whole(p.shape) for i, p in enumerate(ps)}
    layouts["4"] = BlockLayout.factored(shapes[4])
    groups = [{"params": [(str(i), ps[i]) for i in part], **more} for part, more in (((0, 1, 2), {"lr": 1e-2}), ((3, 4), {}))]
    return ps, way.optimizer(groups, layouts, momentum_dtype=momentum_dtype, **options)


def give(ps, step, which=None):
    generator = torch.Generator().manual_seed(10 + step)
    for i, p in enumerate(ps):
        grad = torch.randn(p.shape, generator=generator).to(p)
        p.grad = torch.empty_like(p).copy_(grad) if which is None or i in which else None


def is_prepared(optimizer):
    return optimizer._stepper._prepared is not None


def looked_at(optimizer):
    optimizer._stepper.forget()


@PREPARED
@pytest.mark.parametrize("momentum_dtype", [None, torch.bfloat16, "8bit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_it_gives_the_same_bits(way, momentum_dtype, dtype):
    if dtype == torch.float64 and (momentum_dtype == torch.bfloat16 or way.device.type == "cuda"):
        pytest.skip("the compiled loops do not step these")
    (ps, ours), (qs, theirs) = make(way, momentum_dtype, dtype), make(way, momentum_dtype, dtype)
    prepared, steps = 0, 12 if way.quick else 4
    for step in range(steps):
        give(ps, step), give(qs, step)
        for optimizer in (ours, theirs):
            optimizer.param_groups[0].update(lr=torch.tensor(1e-2 / (step + 1)), weight_decay=0.01 * step, betas=(0.8, 0.9 + 0.001 * step))
        prepared += is_prepared(ours)
        looked_at(theirs)
        ours.step(), theirs.step()
        way.check(ours)
        assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True)), step
    assert prepared == steps - 1


@PREPARED
def test_other_parameters_have_gradients_each_step(way):
    """As with experts: it is prepared again, and less and less often where that is in vain."""
    (ps, ours), (qs, theirs) = make(way), make(way)
    steps = 30 if way.quick else 9
    for step in range(steps):
        which = None if step > steps * 2 // 3 else {step % 5, (step + 1) % 5}
        give(ps, step, which), give(qs, step, which)
        looked_at(theirs)
        ours.step(), theirs.step()
        assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True)), step
    assert [int(ours.state[p]["step"]) for p in ps[:5]] == [int(theirs.state[q]["step"]) for q in qs[:5]]


@PREPARED
def test_gradients_in_another_order_of_memory(way):
    (ps, ours), (qs, theirs) = make(way), make(way)
    for step in range(6):
        give(ps, step), give(qs, step)
        if step % 2:
            for some in (ps, qs):
                some[4].grad = some[4].grad.t().contiguous().t()
        looked_at(theirs)
        ours.step(), theirs.step()
        assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True)), step


def _with_other_weights(p, state):
    p.data = p.data.flip(0)


def _with_other_state(p, state):
    state.update({name: tensor.clone() * 2 for name, tensor in state.items()})


def _with_gradient_elsewhere(p, state):
    memory = torch.empty(p.numel() + 1, dtype=p.dtype, device=p.device)
    p.grad = memory[1:].view(p.shape).copy_(p.grad)  # at no multiple of 16 bytes


def _with_the_opposite_gradient(p, state):
    p.grad = torch._neg_view(p.grad)


def _without_gradient(p, state):
    p.grad = None


@PREPARED
@pytest.mark.parametrize(
    "change", [_with_other_weights, _with_other_state, _with_gradient_elsewhere, _with_the_opposite_gradient, _without_gradient]
)
def test_what_is_changed_between_steps_is_followed(way, change):
    (ps, ours), (qs, theirs) = make(way), make(way)
    for step in range(4):
        give(ps, step), give(qs, step)
        if step == 2:
            assert is_prepared(ours)
            change(ps[4], ours.state[ps[4]]), change(qs[4], theirs.state[qs[4]])
        looked_at(theirs)
        ours.step(), theirs.step()
        assert all(torch.equal(p, q) for p, q in zip(ps, qs, strict=True)), step
    assert all(torch.equal(ours.state[p][name], theirs.state[q][name]) for p, q in zip(ps, qs, strict=True) for name in ours.state[p])


@PREPARED
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda p, state: setattr(p, "grad", p.grad.to_sparse()), "sparse"),
        (lambda p, state: state.update(exp_avg=state["exp_avg"].to(torch.float16)), "float16"),
        (lambda p, state: state.update(exp_avg_sq=state["exp_avg_sq"][:-1]), "keeps its"),
        (lambda p, state: setattr(p, "data", p.data[:-1]), "resized|gradient has shape"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(way, change, why):
    ps, optimizer = make(way)
    for step in range(3):
        give(ps, step)
        optimizer.step()
    assert is_prepared(optimizer)
    give(ps, 3)
    change(ps[4], optimizer.state[ps[4]])
    before = [p.clone() for p in ps]
    with pytest.raises(RuntimeError, match=f"parameter '4' of shape .*{why}"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(ps, before, strict=True))


@PREPARED
def test_autograd_knows_that_weights_changed(way):
    ps, optimizer = make(way)
    for step in range(3):
        give(ps, step)
        loss = (ps[4] ** 2).sum()
        optimizer.step()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


@PREPARED
@pytest.mark.parametrize("key", ["fused", "foreach"])
def test_another_way_to_step_is_followed(way, key):
    ps, optimizer = make(way, fused=None)
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


@ways(CPP, *([] if GPU else [TRITON]))
@pytest.mark.parametrize("change", [freed, cut])
@pytest.mark.parametrize("which", ["parameter", "gradient", "exp_avg", "exp_avg_sq", "exp_avg_sq_col"])
def test_memory_that_is_gone_is_refused(way, change, which):
    ps, optimizer = make(way)
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


@PREPARED
def test_nothing_is_kept_alive(way):
    ps, optimizer = make(way)
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
