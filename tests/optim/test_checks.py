"""A parameter, gradient or state that changed between two steps is refused by name, before anything is written."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, BlockLayout

SHAPE = (64, 100)
LAYOUTS = {
    "element": BlockLayout.per_parameter(SHAPE),
    "rows": BlockLayout.each_line(SHAPE),
    "columns": BlockLayout.each_line(SHAPE, axis=1),
    "tensor": BlockLayout.whole(SHAPE),
    "heads": BlockLayout.grouped(SHAPE, "q:4x8|k:4x8"),
}
PATHS = {"default": {}, "fused": {"fused": True}, "loop": {"fused": False, "foreach": False}, "foreach": {"foreach": True}}


def make(layout="rows", path="default", **options):
    torch.manual_seed(0)
    p, beside = nn.Parameter(torch.randn(SHAPE)), nn.Parameter(torch.randn(3))
    layouts = {"p": LAYOUTS[layout], "beside": BlockLayout.per_parameter((3,))}
    optimizer = AdamMini([("beside", beside), ("p", p)], layouts=layouts, **PATHS[path], **options)
    for _ in range(2):
        p.grad, beside.grad = torch.randn_like(p), torch.randn_like(beside)
        optimizer.step()
    return p, beside, optimizer


def resized(rows):
    def change(p, optimizer):
        p.grad = None
        p.data = torch.randn(rows, SHAPE[1])
        p.grad = torch.ones_like(p)

    change.__name__ = f"resized to {rows}"
    return change


def shortened_in_its_own_memory(p, optimizer):
    p.grad = None
    p.data = p.data[:8]
    p.grad = torch.ones_like(p)


def transposed(p, optimizer):
    p.grad = None
    p.data = p.data.T.contiguous()
    p.grad = torch.ones_like(p)


def cast(dtype):
    def change(p, optimizer):
        p.grad = None
        p.data = p.data.to(dtype)
        p.grad = torch.ones_like(p)

    change.__name__ = f"cast to {dtype}"
    return change


def state(key, change):
    def changed(p, optimizer):
        optimizer.state[p][key] = change(optimizer.state[p][key])

    changed.__name__ = f"{key} {change.__name__}"
    return changed


def shorter(t):
    return t[:1].clone() if t.ndim else t.new_zeros(2)


def narrow(t):
    return t.to(torch.bfloat16)


def wide(t):
    return t.to(torch.float64)


def elsewhere(t):
    return t.to("meta")


def scalar(t):
    return torch.zeros((), dtype=t.dtype)


def number(t):
    return 5


def without(key):
    def change(p, optimizer):
        del optimizer.state[p][key]

    change.__name__ = f"without {key}"
    return change


REFUSED = [
    *map(resized, (0, 8, 96, 4096)), shortened_in_its_own_memory, transposed, *map(cast, (torch.float64, torch.bfloat16, torch.float16)),
    *(state("exp_avg", change) for change in (shorter, narrow, wide, scalar, elsewhere)),
    *(state("exp_avg_sq", change) for change in (narrow, wide, scalar, elsewhere)),
    state("step", number), state("step", shorter), *map(without, ("step", "exp_avg", "exp_avg_sq")),
]  # fmt: skip


@pytest.mark.parametrize("change", REFUSED, ids=lambda change: change.__name__)
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_changed_is_refused_by_name_before_anything_is_written(change, path, layout):
    if layout == "element" and path == "fused":
        pytest.skip("one path of elements is enough")
    p, beside, optimizer = make(layout, path)
    change(p, optimizer)
    before, beside_before, steps = p.detach().clone(), beside.detach().clone(), optimizer.state[beside]["step"].clone()
    with pytest.raises(RuntimeError, match=r"parameter 'p' of shape .* because .*(replace_parameter|load_state_dict|new optimizer)"):
        optimizer.step()
    assert torch.equal(p, before)
    assert torch.equal(beside, beside_before)
    assert torch.equal(optimizer.state[beside]["step"], steps)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.float16])
@pytest.mark.parametrize("path", PATHS)
def test_steps_are_counted_whatever_the_dtype_of_the_count(dtype, path):
    p, _, optimizer = make(path=path)
    q, _, reference = make(path=path)
    optimizer.state[p]["step"] = optimizer.state[p]["step"].to(dtype)
    q.grad = p.grad.clone()
    optimizer.step(), reference.step()
    assert optimizer.state[p]["step"] == 3
    assert torch.equal(p, q)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("to", [torch.float64, torch.bfloat16, torch.float32])
def test_the_remedy_that_is_named_works(path, to):
    p, beside, optimizer = make(path=path)
    for q in (p, beside):
        q.grad = None
        q.data = q.data.to(to)
        q.grad = torch.ones_like(q)
    optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].to(torch.float16)
    with pytest.raises(RuntimeError, match=r"optimizer.load_state_dict\(optimizer.state_dict\(\)\)"):
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    before = p.detach().clone()
    optimizer.step()
    moved = (p.detach() - before).abs()
    assert float(moved.max()) < 5e-3
    assert float(moved.double().mean()) > 1e-4
    assert optimizer.state[p]["exp_avg_sq"].dtype == (torch.float64 if to == torch.float64 else torch.float32)


def test_scales_of_8_bits_are_checked():
    p, _, optimizer = make(momentum_dtype="8bit")
    optimizer.state[p]["exp_avg_scale"] = optimizer.state[p]["exp_avg_scale"][:3].clone()
    with pytest.raises(RuntimeError, match="'p'.*scales of the first moment"):
        optimizer.step()
