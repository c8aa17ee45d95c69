"""The arithmetic of every backend where the means of rows and columns cross."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_adam_mini import BlockLayout
from tests.optim.backends import exact
from tests.optim.backends.beside import OPTIONS, Beside
from tests.optim.backends.table import (
    CPP,
    FACTORED,
    FEW_FACTORED,
    KINDS,
    LOOP,
    SLICES,
    double,
    give,
    large_factored,
    make_grads,
    make_params,
    ways,
)

pytestmark = [
    pytest.mark.usefixtures("small_pieces"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of NumPy in Triton's interpreter: of what lies outside of masks
]
NARROW = [torch.bfloat16, torch.float16]


def kinds_of(way):
    return FACTORED if way.quick else {name: FACTORED[name] for name in FEW_FACTORED}


@ways()
@pytest.mark.parametrize(
    ("decoupled", "maximize", "lr"),
    [(True, False, 0.01), (True, True, torch.tensor(0.01)), (False, False, torch.tensor([0.01])), (False, True, 0.01)],
    ids=["decoupled", "decoupled-maximize-tensor", "coupled-tensor of one dimension", "coupled-maximize"],
)
def test_equals_the_algorithm_in_float64(way, decoupled, maximize, lr):
    if not way.quick and decoupled != maximize:
        pytest.skip("two of the four are enough in an interpreter")
    kinds = {**kinds_of(way), "rows": KINDS["rows"], "elements": KINDS["elements"]}  # side by side in one step
    beside = Beside.make(way, kinds, lr=lr, decoupled_weight_decay=decoupled, maximize=maximize)
    for step in range(6 if way.quick else 2):
        beside.step(make_grads(step, kinds))


@ways()
def test_large_tensors_are_cut_into_pieces(way):
    kinds = large_factored(*way.large)
    kinds = kinds if way.quick else {name: kinds[name] for name in ("rows and columns", "convolution, channels last")}
    beside = Beside.make(way, kinds)
    for step in range(2 if way.quick else 1):
        beside.step(make_grads(step, kinds))


@ways()
@pytest.mark.parametrize(
    ("dtype", "momentum_dtype"),
    [(torch.float64, None), (torch.float32, torch.bfloat16), *((dtype, kept) for dtype in NARROW for kept in (None, torch.float32))],
    ids=str,
)
def test_other_dtypes_within_their_rounding(way, dtype, momentum_dtype):
    kinds = kinds_of(way)
    beside = Beside.make(way, kinds, dtype, momentum_dtype)
    for step in range(3 if way.quick else 1):
        beside.step(make_grads(step, kinds, dtype, powers=0.5))
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    assert all(state[name].dtype == kept for state in beside.optimizer.state.values() for name in ("exp_avg_sq", "exp_avg_sq_col"))


@ways(CPP, SLICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_momentum_in_codes(way, dtype):
    kinds = {
        **{
            name: kind for name, kind in large_factored(*way.large).items() if name != "convolution, channels last"
        },  # whose rows are scattered
        "rows and columns, small": FACTORED["rows and columns"],
    }
    beside = Beside.make(way, kinds, dtype, "8bit")
    for step in range(3):
        beside.step(make_grads(step, kinds, dtype, powers=0.5))
    assert any("exp_avg_scale" in state for state in beside.optimizer.state.values())


def test_weights_are_rounded_at_random_alike_by_all_that_can():
    kinds = {
        "rows and columns": FACTORED["rows and columns in multiples of 8"],
        "images": FACTORED["output and input channels, channels last"],
    }
    found = []
    for way in (CPP, SLICES):
        params = make_params(kinds, dtype=torch.bfloat16)
        layouts = {name: kind.layout for name, kind in kinds.items()}
        optimizer = way.optimizer(params.items(), layouts, stochastic_rounding=True, **{**OPTIONS, "lr": 1e-3})
        for step in range(4):
            give(params, make_grads(step, kinds, torch.bfloat16))
            optimizer.step()
        way.check(optimizer)
        found.append(params)
    for name in kinds:
        different = (found[0][name] != found[1][name]).double().mean()
        assert different < 0.02, f"{different:.1%} of {name!r} differ: where a bit of the exact weight decides"


# ---- hard numbers


@ways()
def test_a_column_that_grows_does_not_move_further_than_adam_would(way):
    """One column 1e4 times as large in step 11: its size spoils the ratio of the rows, and an update without a bound is 400 lr."""
    layout = BlockLayout.factored((24, 24))
    p = torch.nn.Parameter(torch.zeros(24, 24, device=way.device))
    options = dict(lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    optimizer = way.optimizer([("p", p)], {"p": layout}, **options)
    grad = torch.randn(24, 24, generator=torch.Generator().manual_seed(0)).to(way.device)
    largest = 0.0
    for step in range(14):
        if step == 11:
            grad[:, 3] *= 1e4
        before, p.grad = p.detach().clone(), grad.clone()
        optimizer.step()
        largest = max(largest, float((p.detach() - before).abs().max()))
    bound = exact.largest_update(0.9, 0.999)
    assert 0.99 * bound < largest <= 1.0001 * bound, "the bound is reached and kept to"


@ways()
def test_what_never_had_a_gradient_is_not_updated(way):
    kinds = {"p": FACTORED["rows and columns in multiples of 8"]}
    params = make_params(kinds, device=way.device)
    optimizer = way.optimizer(params.items(), {"p": kinds["p"].layout}, lr=0.1, weight_decay=0.0)
    start = double(params["p"])
    grad = torch.zeros(16, 24)
    for _ in range(2):
        give(params, {"p": grad})
        optimizer.step()
        assert np.array_equal(double(params["p"]), start)
    grad[2:4, 5:9] = 1.0
    give(params, {"p": grad})
    optimizer.step()
    assert np.array_equal(double(params["p"]) != start, grad.numpy() != 0)


@ways()
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e25])
def test_a_gradient_without_a_square_is_not_passed_over_in_silence(way, bad):
    kinds = {"p": FACTORED["rows and columns in multiples of 8"]}
    params = make_params(kinds, device=way.device)
    optimizer = way.optimizer(params.items(), {"p": kinds["p"].layout})
    grads = make_grads(0, kinds)
    grads["p"][3, 4] = bad
    give(params, grads)
    optimizer.step()
    assert params["p"].isnan().all()


@ways()
@pytest.mark.parametrize("size", [1e18, 1e-20])
def test_large_and_small_gradients_keep_their_scale(way, size):
    """With eps=0 a step does not depend on the size of the gradients."""
    kinds = {"p": FACTORED["rows and columns"]}
    options = {**OPTIONS, "eps": 0.0, "weight_decay": 0.0}
    weights = []
    for factor in (1.0, size):
        params = make_params(kinds, device=way.device)
        optimizer = way.optimizer(params.items(), {"p": kinds["p"].layout}, **options)
        for step in range(2):
            give(params, {"p": make_grads(step, kinds)["p"] * factor})
            optimizer.step()
        weights.append(double(params["p"]))
    np.testing.assert_allclose(weights[1], weights[0], rtol=0, atol=1e-6)


@ways(LOOP, CPP)
def test_one_row_steps_as_torch_does(way):
    """Where crossing saves nothing each element has its own, which is AdamW."""
    p, twin = (torch.nn.Parameter(torch.linspace(-1, 1, 50).view(1, 50)) for _ in range(2))
    layout = BlockLayout.factored((1, 50))
    assert layout.is_per_parameter
    ours = way.optimizer([("p", p)], {"p": layout}, lr=0.01)
    theirs = torch.optim.AdamW([twin], lr=0.01, foreach=False)
    for step in range(5):
        p.grad = torch.randn(1, 50, generator=torch.Generator().manual_seed(step))
        twin.grad = p.grad.clone()
        ours.step(), theirs.step()
    torch.testing.assert_close(p, twin, rtol=1e-6, atol=1e-7)
