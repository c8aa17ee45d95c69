"""The readable arithmetic where a graph holds it: captured, or compiled by torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini
from tests.optim.backends.table import DEVICE, FACTORED, KINDS, give, layouts_of, make_grads, make_params

SOME = {name: KINDS[name] for name in ("scalar", "elements", "rows", "heads that interleave", "gates of columns", "input channels")}


def make(**options):
    params = make_params(SOME, device=DEVICE)
    return params, AdamMini(params.items(), layouts=layouts_of(SOME), **options)


@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
def test_capturable_is_the_same_step_without_a_number_read_off_it(monkeypatch, foreach, tensor_lr):
    runs = []
    for capturable in (False, True):
        lr = torch.tensor(1e-2, device=DEVICE) if tensor_lr else 1e-2
        params, optimizer = make(lr=lr, fused=False, foreach=foreach, capturable=capturable)
        with monkeypatch.context() as patch:
            if capturable:
                patch.setattr(torch.Tensor, "item", lambda self: pytest.fail("a number is read"))
            for step in range(20):
                give(params, make_grads(step, SOME))
                optimizer.step()
        assert all(state["step"].device == DEVICE for state in optimizer.state.values() if capturable)
        runs.append(params)
    for name, p in runs[0].items():
        # torch's own capturable steps take 1 - beta2**t in float32, which cancels.
        torch.testing.assert_close(p, runs[1][name], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("options", [{"momentum_dtype": "8bit"}, {"stochastic_rounding": True}], ids=["8bit", "rounding"])
def test_capturable_refuses_what_reads_numbers(options):
    with pytest.raises(ValueError, match="capturable=True.*8bit.*stochastic_rounding.*because"):
        AdamMini([nn.Parameter(torch.ones(3))], capturable=True, **options)


def test_torch_compile_of_a_capturable_step_gives_the_same_numbers():
    """With graph breaks, where the step looks up layouts."""
    runs = []
    for compiled in (False, True):
        params, optimizer = make(lr=1e-2, fused=False, foreach=True, capturable=True)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for i in range(4):
            give(params, make_grads(i, SOME))
            step()
        runs.append(params)
    for name, p in runs[0].items():
        torch.testing.assert_close(p, runs[1][name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("foreach", "tensor_lr"), [(False, False), (True, True)], ids=["loop-number", "foreach-tensor"])
def test_torch_compile_makes_one_graph_of_the_step(foreach, tensor_lr):
    lr = torch.tensor(0.01) if tensor_lr else 0.01
    (eager_params, eager), (params, optimizer) = (make(lr=lr, foreach=foreach) for _ in range(2))
    torch._dynamo.reset()
    step = torch.compile(optimizer.step, fullgraph=True, backend="aot_eager")
    for i in range(3):
        for some in (eager_params, params):
            give(some, make_grads(i, SOME))
        eager.step()
        step()
    for name, p in params.items():
        torch.testing.assert_close(p, eager_params[name])
    assert {name: len(v) for name, v in optimizer.state_dict()["state"].items()} == dict.fromkeys(range(len(SOME)), 3)


@pytest.mark.parametrize("foreach", [True, False])
def test_torch_compile_makes_one_graph_of_a_step_with_rows_and_columns(foreach):
    some = ("rows and columns", "output and input channels", "heads and columns")
    kinds = {**{name: FACTORED[name] for name in some}, "elements": KINDS["elements"]}
    runs = []
    for compiled in (False, True):
        torch._dynamo.reset()
        params = make_params(kinds)
        layouts = {name: kind.layout for name, kind in kinds.items()}
        optimizer = AdamMini(params.items(), lr=1e-2, layouts=layouts, fused=False, foreach=foreach)
        step = torch.compile(optimizer.step, fullgraph=True, backend="aot_eager") if compiled else optimizer.step
        for i in range(3):
            give(params, make_grads(i, kinds))
            step()
        runs.append(params)
    for name, p in runs[0].items():
        torch.testing.assert_close(runs[1][name], p, rtol=1e-6, atol=1e-6)
