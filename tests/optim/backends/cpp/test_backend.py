"""What holds of the compiled loop alone; its arithmetic is tested with that of the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, BlockLayout
from lightning_adam_mini.optim.backends.cpp.build import load_kernel
from tests.optim.backends.table import CPP, CPU, KINDS, give, large_kinds, layouts_of, make_grads, make_params

pytestmark = pytest.mark.skipif(isinstance(load_kernel(), str), reason=f"no compiled loop here: {load_kernel()}")
LARGE = large_kinds(*CPP.large)


def results(kinds, gradient_of=lambda g: g, **options):
    """Weights, momentum and second moments after two steps."""
    params = make_params(kinds)
    optimizer = CPP.optimizer(params.items(), layouts_of(kinds), **options)
    for step in range(2):
        give(params, make_grads(step, kinds))
        for p in params.values():
            p.grad = gradient_of(p.grad)
        optimizer.step()
    states = (optimizer.state[p] for p in params.values())
    return [*params.values(), *(t for state in states for t in state.values())]


@pytest.mark.parametrize("momentum_dtype", [None, "8bit"])
def test_the_number_of_threads_changes_no_bit(momentum_dtype):
    threads, runs = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            runs.append(results({name: kind for name, kind in LARGE.items() if kind.order is None}, momentum_dtype=momentum_dtype))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_large_sums_are_as_exact_as_float64():
    p = nn.Parameter(torch.zeros(3, 2**20 + 5))
    optimizer = CPP.optimizer([("p", p)], {"p": BlockLayout.whole(p.shape)}, betas=(0.9, 0.95))
    p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    assert float(optimizer.second_moments()["p"]) == pytest.approx(0.05 * float(p.grad.double().square().mean()), rel=3e-7)


def test_gradients_in_the_memory_order_of_another_layout_give_the_same_bits():
    some = {name: KINDS[name] for name in ("rows", "columns", "heads", "whole", "alternate dimensions, channels last")}
    plain = results(some)
    turned = results(some, lambda g: g.transpose(0, -1).contiguous().transpose(0, -1))
    assert all(torch.equal(a, b) for a, b in zip(plain, turned, strict=True))


def test_dimensions_of_one_line_may_have_any_stride():
    """As in a gradient of a 1x1 convolution, which comes in channels_last strides: it is read where it lies."""
    values = torch.randn(8, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    runs = []
    for strides in ((4, 1, 1, 1), (4, 1, 4, 4)):
        p = nn.Parameter(values.clone())
        optimizer = CPP.optimizer([("p", p)], {"p": BlockLayout.each_line(p.shape)})
        p.grad = torch.ones(32).as_strided(p.shape, strides)
        optimizer.step()
        runs.append(p)
    assert torch.equal(*runs)


def test_momentum_of_another_memory_format_is_put_in_order_and_stays_there():
    p = nn.Parameter(torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last))
    optimizer = CPP.optimizer([("p", p)], {"p": BlockLayout.whole(p.shape)})
    for step in range(3):
        p.grad = torch.ones_like(p)
        if step == 1:
            optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].contiguous()
        optimizer.step()
    assert optimizer.state[p]["exp_avg"].stride() == p.stride()


def test_all_parameters_of_all_groups_are_one_call(monkeypatch):
    from lightning_adam_mini.optim.backends.cpp import backend

    calls, run = [], backend.run_kernel
    monkeypatch.setattr(backend, "run_kernel", lambda tasks, groups, params: (calls.append(len(groups)), run(tasks, groups, params)))
    params = make_params()
    names = list(params)
    groups = [{"params": [(name, params[name]) for name in names[i::3]], "lr": 10.0**-i} for i in range(3)]
    optimizer = AdamMini(groups, layouts=layouts_of(KINDS))
    give(params, make_grads(0))
    optimizer.step()
    CPP.check(optimizer)
    assert len(calls) == 1


def test_it_leaves_other_devices_to_others():
    p = nn.Parameter(torch.ones(4, 3, device="meta"))
    optimizer = AdamMini([("p", p)], layouts={"p": BlockLayout.each_line((4, 3))})
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].device.type == "meta"
    assert CPU.type == CPP.backend.device
