"""Which backend steps what: what falls back says so, once, and keeps nothing else from its step."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, AdamMiniWarning, BlockLayout
from lightning_adam_mini.optim import stepper
from lightning_adam_mini.optim.backends.cpp import build
from tests.optim.backends.table import Subclass

pytestmark = pytest.mark.skipif(isinstance(build.load_kernel(), str), reason=f"no compiled loop here: {build.load_kernel()}")

SHAPE = (6, 8)
GOOD = {"good": torch.ones(SHAPE)}
FALLS_BACK = {
    "a subclass of tensors": (torch.ones(SHAPE).as_subclass(Subclass), {}, "it is a Subclass"),
    "gaps in memory": (torch.ones(6, 16)[:, ::2], {}, "its elements overlap or have gaps between them"),
    "float16 momentum": (torch.ones(SHAPE), {"momentum_dtype": torch.float16}, "its dtype is torch.float32 and its momentum's float16"),
    "rows of codes that are scattered": (torch.ones(64, 80).t(), {"momentum_dtype": "8bit"}, "its rows do not lie one after the other"),
}


def make(weights, **options):
    """An optimizer of some parameters, each of whose rows is a block."""
    params = {name: nn.Parameter(values.clone(memory_format=torch.preserve_format)) for name, values in weights.items()}
    for name, values in weights.items():  # a clone has no gaps
        if params[name].stride() != values.stride():
            params[name] = nn.Parameter(torch.empty_strided(values.shape, values.stride()).copy_(values))
    layouts = {name: BlockLayout.each_line(p.shape) if p.ndim else BlockLayout.whole(()) for name, p in params.items()}
    return params, AdamMini(params.items(), layouts=layouts, **{"lr": 0.1, "weight_decay": 0.0, **options})


def step(params, optimizer, times=1):
    """Take steps, and return what is said."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(times):
            for p in params.values():
                p.grad = torch.ones_like(p)
            optimizer.step()
    return [str(w.message) for w in told if issubclass(w.category, AdamMiniWarning)]


def backend_of(optimizer, p):
    """What steps a parameter, by default."""
    row = optimizer._stepper._rows[id(p)]
    return type(optimizer._stepper._backends[row.slow if row.fast is None else row.fast]).__name__


@pytest.mark.parametrize("case", FALLS_BACK)
def test_what_falls_back_says_so_once_with_name_and_reason(case):
    weights, options, reason = FALLS_BACK[case]
    params, optimizer = make({"bad": weights}, **options)
    told = step(params, optimizer, 3)
    assert len(told) == 1
    assert f"steps parameter 'bad' slowly, about five times as long, because {reason}" in told[0]
    assert backend_of(optimizer, params["bad"]) in ("Readable", "Slices")
    torch.testing.assert_close(params["bad"].detach().as_subclass(torch.Tensor), torch.full(weights.shape, 0.7), rtol=1e-4, atol=0)
    other, again = make({"bad": weights}, **options)
    assert len(step(other, again)) == 1, "once per optimizer"


def test_each_reason_is_said_once_for_all_parameters():
    weights = {f"bad.{i}": torch.ones(6, 16)[:, ::2] for i in range(5)} | {"worse": torch.ones(SHAPE).as_subclass(Subclass)} | GOOD
    params, optimizer = make(weights)
    told = step(params, optimizer, 2)
    assert len(told) == 2
    assert "parameter 'bad.0' and 4 more slowly" in told[0]
    assert "parameter 'worse' slowly" in told[1]
    assert backend_of(optimizer, params["good"]) == "Cpp"
    assert all(bool((p == params["good"]).all()) for p in params.values())


QUIET = {
    "fused=False": {"fused": False},
    "foreach=False": {"foreach": False},
    "foreach=True": {"foreach": True},
}


@pytest.mark.parametrize("options", QUIET.values(), ids=QUIET)
@pytest.mark.parametrize("case", FALLS_BACK)
def test_who_asks_for_the_readable_arithmetic_is_told_nothing(case, options):
    weights, more, _ = FALLS_BACK[case]
    if options.get("foreach") and case == "a subclass of tensors":
        pytest.skip("which foreach operators do not take")
    params, optimizer = make({"bad": weights}, **more, **options)
    assert not step(params, optimizer, 2)
    assert bool((params["bad"] < 1).all())


def test_nothing_is_said_where_nothing_is_shared_or_all_is_well():
    p = nn.Parameter(torch.ones(6, 16)[:, ::2])
    optimizer = AdamMini([p], layouts={}, momentum_dtype=torch.float16)
    assert not step({"p": p}, optimizer)
    empty, scalar = torch.ones(0, 3), torch.ones(())
    assert not step(*make({**GOOD, "empty": empty, "scalar": scalar}), 3)
    assert not step(*make({"good": torch.ones(80, 64)}, momentum_dtype="8bit"), 3)
    assert not step(*make({"good": torch.ones(SHAPE, dtype=torch.bfloat16)}, stochastic_rounding=True), 3)


def test_without_a_compiler_all_fall_back_and_say_so(monkeypatch, tmp_path):
    for name, value in (("CXX", ""), ("PATH", str(tmp_path)), (build.CACHE, str(tmp_path))):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(stepper, "_TOLD_OF_THE_MACHINE", set())
    build.load_kernel.cache_clear()
    try:
        params, optimizer = make({**GOOD, "codes": torch.ones(80, 64)}, momentum_dtype="8bit")
        told = step(params, optimizer, 2)
        assert len(told) == 1
        assert "parameter 'good' and 1 more slowly" in told[0]
        assert "no C++ compiler" in told[0]
        assert not step(*make(GOOD)), "told once a process"
        assert [backend_of(optimizer, p) for p in params.values()] == ["Readable", "Slices"]
        assert all(bool(((p - 0.8).abs() < 1e-6).all()) for p in params.values())
        params, optimizer = make(GOOD, fused=True)
        with pytest.raises(RuntimeError, match="'good'.*no C\\+\\+ compiler"):
            step(params, optimizer)
    finally:
        build.load_kernel.cache_clear()


def test_a_parameter_is_looked_at_again_when_it_changes():
    params, optimizer = make(GOOD)
    p = params["good"]
    assert not step(params, optimizer, 2)
    assert backend_of(optimizer, p) == "Cpp"
    p.data = torch.ones(6, 16)[:, ::2]
    assert len(step(params, optimizer)) == 1
    assert backend_of(optimizer, p) == "Readable"
    p.data = torch.ones(SHAPE)
    assert not step(params, optimizer)
    assert backend_of(optimizer, p) == "Cpp"
    assert float(optimizer.state[p]["step"]) == 4


@pytest.mark.parametrize("groups", [1, 2])
def test_some_groups_ask_for_one_thing_and_some_for_another(groups):
    weights = {"a": torch.ones(SHAPE), "b": torch.ones(SHAPE)}
    params, optimizer = make(weights)
    if groups == 2:
        optimizer = AdamMini(
            [{"params": [("a", params["a"])], "fused": True}, {"params": [("b", params["b"])], "foreach": True}],
            lr=0.1,
            weight_decay=0.0,
            layouts={name: BlockLayout.each_line(SHAPE) for name in weights},
        )
    assert not step(params, optimizer, 3)
    took = {type(optimizer._stepper._backends[i]).__name__ for i in optimizer._stepper._took}
    assert took == ({"Cpp"} if groups == 1 else {"Cpp", "Readable"})
    assert (optimizer._stepper._prepared is not None) == (groups == 1)
    torch.testing.assert_close(params["a"], params["b"])


# ---- the prepared step


def test_neither_an_empty_tensor_nor_random_rounding_keeps_others_from_the_prepared_step():
    weights = {
        "empty": torch.ones(0, 3),
        "float32": torch.ones(SHAPE),
        "bfloat16": torch.ones(SHAPE, dtype=torch.bfloat16),
        "codes": torch.ones(80, 64),
        "scalar": torch.ones(()),
    }
    for options in ({}, {"stochastic_rounding": True}, {"stochastic_rounding": True, "momentum_dtype": "8bit"}):
        (params, optimizer), (twins, looked_at) = make(weights, **options), make(weights, **options)
        for _ in range(4):
            assert not step(params, optimizer)
            assert optimizer._stepper._prepared is not None
            looked_at._stepper.forget()
            assert not step(twins, looked_at)
        assert all(torch.equal(p, twins[name]) for name, p in params.items())
        assert [int(optimizer.state[p]["step"]) for p in params.values()] == [4] * 5


def test_what_falls_back_does_and_the_others_still_step_together():
    params, optimizer = make({**GOOD, "bad": torch.ones(6, 16)[:, ::2]})
    step(params, optimizer, 2)
    assert optimizer._stepper._prepared is None
    assert {type(optimizer._stepper._backends[i]).__name__ for i in optimizer._stepper._took} == {"Cpp", "Readable"}
    torch.testing.assert_close(params["good"], params["bad"])


def test_a_copy_tells_again_and_steps_alike():
    params, optimizer = make({**GOOD, "bad": torch.ones(SHAPE)}, momentum_dtype=torch.float16)
    assert len(step(params, optimizer)) == 1
    twin = copy.deepcopy(optimizer)
    twins = dict(zip(params, twin.param_groups[0]["params"], strict=True))
    assert len(step(twins, twin)) == 1
    assert not step(params, optimizer)
    assert all(torch.equal(p, twins[name]) for name, p in params.items())
