"""First moments in codes, in the Triton kernels. The arithmetic is compared with exact one that shares no code with the package."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_adam_mini import BlockLayout
from lightning_adam_mini.optim.backends.triton import step as triton_step
from lightning_adam_mini.optim.backends.triton.plan import CROSSED, EACH, ONE, RUNS, Sizes, plan_coded
from lightning_adam_mini.optim.codecs import EightBit
from lightning_adam_mini.optim.segments import memory_order
from tests.optim.backends.beside import Beside
from tests.optim.backends.table import DEVICE, TRITON, crossed_kind, give, kind, layouts_of, make_grads, make_params

pytest.importorskip("triton", reason="Triton is not installed, so its kernels are not tested here")

_IMAGES, _LAST = (16, 32, 3, 3), (0, 2, 3, 1)
CODED = {
    "rows": kind(BlockLayout.each_line((65, 70)), (0,)),
    "rows in multiples of 8": kind(BlockLayout.each_line((9, 648)), (0,)),
    "long rows": kind(BlockLayout.each_line((2, 2500)), (0,)),
    "short rows": kind(BlockLayout.each_line((460, 9)), (0,)),
    "rows of 3": kind(BlockLayout.each_line((1400, 3)), (0,)),
    "columns": kind(BlockLayout.each_line((70, 65), axis=1), (1,)),
    "heads": kind(BlockLayout.grouped((60, 72), "q:2x20|v:20x1"), (0,), f"a20 b20 {' '.join(f'{c}1' for c in 'cdefghijklmnopqrstuv')}"),
    "whole": kind(BlockLayout.whole((8, 600)), ()),
    "vector": kind(BlockLayout.whole((4500,)), ()),
    "elements": kind(BlockLayout.per_parameter((65, 70)), (0, 1)),
    "elements in multiples of 8": kind(BlockLayout.per_parameter((8, 520)), (0, 1)),
    "elements, channels last": kind(BlockLayout(_IMAGES), (0, 1, 2, 3), order=_LAST),
    "output channels, channels last": kind(BlockLayout(_IMAGES, dims=(1, 2, 3)), (0,), order=_LAST),
    "input channels, channels last": kind(BlockLayout(_IMAGES, dims=(0, 2, 3)), (1,), order=_LAST),
    "positions": kind(BlockLayout(_IMAGES, dims=(0, 1)), (2, 3)),
    "rows and columns": crossed_kind(BlockLayout.factored((9, 500)), (0,), (1,)),
    "rows and columns in multiples of 8": crossed_kind(BlockLayout.factored((16, 264)), (0,), (1,)),
    "columns and rows": crossed_kind(BlockLayout.factored((64, 65), 1, 0), (1,), (0,)),
    "output and input channels, channels last": crossed_kind(BlockLayout.factored(_IMAGES), (0,), (1,), order=_LAST),
    "rows and columns of experts": crossed_kind(BlockLayout((3, 35, 40), dims=(2,), crossed=(1,)), (0, 1), (0, 2), (0,)),
    "too small": kind(BlockLayout.each_line((6, 20)), (0,)),
}  # fmt: skip
FEW = ("rows in multiples of 8", "elements", "input channels, channels last", "rows and columns of experts", "too small")


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(triton_step, "SIZES", Sizes(tile=2048, widths=3, block=4096, run=4096, columns=32, rows=64))


def test_the_tensors_have_all_kinds_of_tables():
    seen = set()
    for some in CODED.values():
        p = make_params({"p": some})["p"]
        plan = plan_coded(some.layout, p.stride(), p.device, triton_step.SIZES)
        head = plan.tables.tolist()
        seen |= {("kind", plan.kind), ("run", plan.run), ("divisible", plan.divisible), ("order", head[2] > 0)}
        if plan.kind != EACH:
            seen.add(("columns", min(head[4], 2)))
    assert {kind for what, kind in seen if what == "kind"} == {EACH, ONE, CROSSED}
    assert {run for what, run in seen if what == "run"} == set(RUNS)
    assert {(what, value) for what in ("divisible", "order") for value in (False, True)} <= seen
    assert {columns for what, columns in seen if what == "columns"} == {0, 1, 2}, "of no number, counted up, and listed"


@pytest.mark.parametrize(
    ("dtype", "names", "options"),
    [
        (torch.float32, tuple(CODED), {}),
        (torch.bfloat16, FEW, {}),
        (torch.float64, FEW, {}),
        (torch.float32, FEW, {"decoupled_weight_decay": False, "maximize": True}),
    ],
    ids=["float32", "bfloat16", "float64", "coupled"],
)
def test_steps_are_exact_and_codes_are_the_nearest(dtype, names, options):
    kinds = {name: CODED[name] for name in names}
    beside = Beside.make(TRITON, kinds, dtype, "8bit", **options)
    for step in range(2):
        beside.step(make_grads(step, kinds, dtype, powers=0.5))
    kept = {name: beside.optimizer.state[p]["exp_avg"].dtype for name, p in beside.params.items()}
    assert {name for name, dtype in kept.items() if dtype != torch.int8} == {"too small"}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy in Triton's interpreter: of what is not finite
def test_runs_of_zeros_tiny_numbers_and_of_what_is_not_finite():
    rows = torch.zeros(24, 300)
    rows[1], rows[2], rows[3] = 1e-44, 2.0**-101, 2.0**-99
    rows[4, 7], rows[5, 270], rows[6, 0] = math.nan, math.inf, -math.inf
    rows[7, ::2], rows[8] = 1e38, torch.linspace(-1, 1, 300)
    rows[9, 5] = -1e-30
    p = torch.nn.Parameter(torch.zeros(24, 300, device=DEVICE))
    optimizer = TRITON.optimizer([("p", p)], {"p": BlockLayout.each_line((24, 300))}, momentum_dtype="8bit", betas=(0.0, 0.9))
    p.grad = rows.to(DEVICE)  # the first moments, where beta1 is 0
    optimizer.step()
    TRITON.check(optimizer)
    state, codec = optimizer.state[p], EightBit((24, 300))
    expected = {suffix: torch.zeros(field.shape, dtype=field.dtype) for suffix, field in codec.fields.items()}
    codec.encode_(rows, expected)
    codes, scales = state["exp_avg"].cpu(), state["exp_avg_scale"].cpu()
    torch.testing.assert_close(scales, expected["_scale"], rtol=1e-6, atol=0, equal_nan=True)
    finite = expected["_scale"].isfinite().repeat_interleave(256, dim=1)[:, :300]
    off = (codes.int() - expected[""].int()).abs()[finite]
    assert off.max() <= 1
    assert off.double().mean() < 1e-3, "where a value is halfway between two codes"
    back = codec.decode({"": codes, "_scale": scales}, torch.float32)
    assert not back[~finite].isfinite().any()
    assert bool((scales[:3] == 0).all())
    assert bool((codes[3] == 127).all())


def test_what_is_rounded_twice_is_rounded_once():
    """Codes that no gradient changes stay what they are."""
    p = torch.nn.Parameter(torch.zeros(16, 300, device=DEVICE))
    optimizer = TRITON.optimizer([("p", p)], {"p": BlockLayout.each_line((16, 300))}, momentum_dtype="8bit", betas=(0.5, 0.9))
    p.grad = torch.randn(16, 300, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    optimizer.step()
    codes, scales = optimizer.state[p]["exp_avg"].clone(), optimizer.state[p]["exp_avg_scale"].clone()
    p.grad.zero_()
    optimizer.step()
    assert torch.equal(optimizer.state[p]["exp_avg"], codes)
    torch.testing.assert_close(optimizer.state[p]["exp_avg_scale"], scales / 2, rtol=1e-6, atol=0)


def test_three_times_as_many_tensors_are_no_more_launches(launched, monkeypatch):
    monkeypatch.setattr(triton_step, "SIZES", Sizes())
    counts = []
    for times in (1, 3):
        kinds = {f"{i} {name}": CODED[name] for i in range(times) for name in ("rows", "whole", "rows and columns in multiples of 8")}
        params = make_params(kinds, device=DEVICE)
        optimizer = TRITON.optimizer(params.items(), layouts_of(kinds), momentum_dtype="8bit")
        give(params, make_grads(0, kinds))
        launched.clear()
        optimizer.step()
        counts.append(list(launched))
    assert counts[0] == counts[1]
    assert counts[0].count("update_coded") == 3, "of rows, of rows in multiples of 8, and of these where means cross"
    assert len(counts[0]) <= 9


@pytest.mark.parametrize("shape", [(64, 80), (5000, 3), (8, 20, 40)])
def test_rows_that_are_scattered_are_refused(shape):
    p = torch.zeros(shape[::-1], device=DEVICE).permute(*range(len(shape)))
    turned = p.permute(*reversed(range(len(shape))))
    assert memory_order(tuple(turned.shape), turned.stride()) is not None
    reason = TRITON.others[0]().why_not(turned, EightBit(tuple(turned.shape)), BlockLayout.whole(tuple(turned.shape)), None)
    assert reason == "its rows do not lie one after the other in memory, and its momentum is in 8 bits"


def test_a_range_of_a_larger_tensor_is_refused():
    reason = TRITON.others[0]().why_not(torch.zeros(5000, device=DEVICE), EightBit((5000,), 300, 120), BlockLayout.whole((5000,)), None)
    assert reason == "it is a range of a larger tensor, and its momentum is in 8 bits"
