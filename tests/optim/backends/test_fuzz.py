"""Random tensors, layouts, dtypes, options and memory, stepped in every way, each step beside an exact one."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_adam_mini import BlockLayout
from lightning_adam_mini.optim.backends import slices
from lightning_adam_mini.optim.backends.cpp.build import load_kernel
from tests.optim.backends import exact
from tests.optim.backends.beside import Beside
from tests.optim.backends.table import CPP, FOREACH, LOOP, TRITON, Kind, Way, double, skip_without

pytestmark = [
    pytest.mark.filterwarnings("ignore:AdamMini steps parameter"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of NumPy in Triton's interpreter: of what lies outside of masks
]
DEFAULT = Way("default", object, {})


# ---- line orders


def random_lines(r, n):
    """A line order of ``n`` lines, and the block of each line, counted here."""
    texts, blocks, heads = [], [], {}

    def count(role, n):
        first = heads.get(role, 0)
        heads[role] = first + n
        return range(first, first + n)

    def plain(role, n):
        return f"{role}:{n}", lambda: blocks.extend([(role, None)] * n)

    def segment(n):
        """Text, and what adds its blocks: brackets repeat it."""
        role, heads_of_it = r.choice("qkvgh"), r.choice(divisors(n))
        size, what = n // heads_of_it, r.random()
        if what < 0.3:
            return plain(role, n)
        if what < 0.6:
            return f"{role}:{heads_of_it}x{size}", lambda: blocks.extend((role, h) for h in count(role, heads_of_it) for _ in range(size))
        if what < 0.8:
            return f"{role}:{heads_of_it}x{size}t", lambda: blocks.extend([(role, h) for h in count(role, heads_of_it)] * size)
        roles = [role for role, _ in zip("qkv", range(next((k for k in (3, 2) if n % k == 0), 1)), strict=False)]
        if len(roles) == 1:
            return plain(role, n)
        times = r.choice(divisors(n // len(roles)))
        length = n // len(roles) // times

        def alternate():
            for _ in range(times):
                turn = [(role, h) for role in roles for h in count(role, 1)]
                blocks.extend(turn * length)

        return f"{times}*[{','.join(roles)}]x{length}", alternate

    while n:
        k = r.randint(1, n)
        n -= k
        repeats = [d for d in divisors(k) if d > 1]
        if repeats and r.random() < 0.25:
            times, parts = r.choice(repeats), []
            left = k // times
            while left:
                parts.append(segment(some := r.randint(1, left)))
                left -= some
            texts.append(f"{times}*({'|'.join(text for text, _ in parts)})")
            for _ in range(times):
                for _, add in parts:
                    add()
        else:
            text, add = segment(k)
            texts.append(text)
            add()
    return "|".join(texts), blocks


def divisors(n):
    return [d for d in range(1, n + 1) if n % d == 0]


# ---- memory


def strided(r, values, how):
    """The values in memory of some kind."""
    order = list(range(values.ndim))
    if how != "in order":
        r.shuffle(order)
    shape = [values.shape[d] for d in order]
    if how == "gaps":
        wide = values.new_zeros([size + r.randint(0, 2) for size in shape])
        memory = wide[tuple(slice(0, size) for size in shape)]
    else:
        offset = r.randint(1, 7) if how == "within a storage" else 0
        memory = values.new_zeros(values.numel() + offset + 3)[offset : offset + values.numel()].view(shape)
    memory = memory.permute([order.index(d) for d in range(values.ndim)])
    memory.copy_(values)
    return memory


def is_dense(t):
    """Whether the elements fill a piece of memory, by the places of all of them."""
    places = torch.zeros(t.shape, dtype=torch.int64)
    for d, (size, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
        places += (torch.arange(size) * stride).view([-1 if i == d else 1 for i in range(t.ndim)])
    return torch.equal(places.flatten().sort().values, torch.arange(t.numel()))


def has_rows_in_order(t):
    """Whether the rows of codes lie one after the other and alike; and if all is one row, in the order of its indices."""
    in_memory = torch.empty_strided(t.shape, t.stride(), dtype=torch.int64).copy_(torch.arange(t.numel()).view(t.shape))
    indices = in_memory.as_strided((t.numel(),), (1,))
    row = exact.row_by_hand(t.shape)
    if t.ndim < 2 or exact.row_by_hand((3, *t.shape[1:])) == 3 * math.prod(t.shape[1:]):  # lines that are too short for rows
        return torch.equal(indices, torch.arange(t.numel()))
    rows = indices.view(-1, row)
    return bool((rows // row == torch.arange(len(rows))[:, None]).all() and (rows % row == rows[:1]).all())


# ---- cases

PAIRS = {
    torch.float32: (torch.float32, torch.bfloat16, "8bit"),
    torch.float64: (torch.float64, "8bit"),
    torch.bfloat16: (torch.float32, torch.bfloat16, "8bit"),
    torch.float16: (torch.float32, torch.bfloat16, torch.float16, "8bit"),
}
"""What the compiled loop takes: dtypes of weights, and what momentum may be kept in."""
SIZES = [1, 2, 3, 4, 5, 6, 8, 9, 12, 17, 64, 65, 130]


@dataclass
class Case:
    """What is stepped."""

    kind: Kind
    start: torch.Tensor
    grads: list[torch.Tensor]
    memory: str
    memory_of_grads: str
    swapped_before: int | None
    momentum_dtype: Any
    stochastic_rounding: bool
    options: dict[str, Any]

    def __str__(self):
        layout = self.kind.layout
        return (
            f"{layout!r}, {self.start.dtype}, momentum {self.momentum_dtype}, random {self.stochastic_rounding}, memory {self.memory},"
            f" of gradients {self.memory_of_grads}, swapped before {self.swapped_before}, {len(self.grads)} steps, {self.options}"
        )

    def can_be_fused(self, p, way):
        """Whether the compiled loop, or Triton's kernels, are to take the parameter as it lies."""
        dtype = self.start.dtype
        in_codes = self.momentum_dtype == "8bit" and p.numel() >= 4096
        momentum = "8bit" if in_codes else dtype if self.momentum_dtype in (None, "8bit") else self.momentum_dtype
        if not is_dense(p):
            return False
        if way is TRITON:
            if in_codes:
                return has_rows_in_order(p) and not self.stochastic_rounding
            return not self.stochastic_rounding and (momentum == torch.float64) == (dtype == torch.float64)
        return momentum in PAIRS[dtype] and (has_rows_in_order(p) or not (in_codes or self.stochastic_rounding))


def random_case(seed):
    r, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    ndim, large = r.choice([0, 1, 1, 2, 2, 2, 3, 3, 4, 5]), r.random()
    shape = [r.choice(SIZES if ndim <= 2 else SIZES[:7]) for _ in range(ndim)]
    if ndim and large < 0.25:  # enough for codes, or for pieces of the compiled loop
        wanted = r.choice([140_000, 300_000]) if large < 0.04 else r.choice([4096, 5000, 9000])
        shape[r.randrange(ndim)] *= -(-wanted // math.prod(shape))
    shape = tuple(shape)
    dims = tuple(d for d in range(ndim) if r.random() < 0.5)
    kept, axis, text, blocks = [d for d in range(ndim) if d not in dims], None, None, None
    lines = [d for d in kept if 1 < shape[d] <= 5000]
    if lines and r.random() < 0.5:
        axis = r.choice(lines)
        text, blocks = random_lines(r, shape[axis])
    dtype = r.choice([*[torch.float32] * 4, torch.float64, torch.float64, torch.bfloat16, torch.bfloat16, torch.float16])
    momentum_dtype = r.choice([None, None, torch.bfloat16, torch.float32, torch.float16])
    if math.prod(shape) >= 4096 and r.random() < 0.6:
        momentum_dtype = "8bit"
    size = 10.0 ** r.randint(-3, 2)
    grads = [torch.randn(shape, generator=generator, dtype=torch.float64) * size for _ in range(r.randint(1, 4))]
    grads = [torch.zeros_like(g) if r.random() < 0.05 else g for g in grads]
    memories = ["in order", "in another order", "within a storage", "gaps"]
    return Case(
        kind=Kind(BlockLayout(shape, dims, axis, text), exact.block_numbers(shape, kept, axis, blocks)),
        start=torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype),
        grads=[g.to(dtype) for g in grads],
        memory=r.choice(["in order", *memories]),
        memory_of_grads=r.choice(["as weights", "as weights", "one number", *memories]),
        swapped_before=r.randrange(len(grads)) if r.random() < 0.15 else None,
        momentum_dtype=momentum_dtype,
        stochastic_rounding=dtype == torch.bfloat16 and r.random() < 0.4,
        options=dict(
            lr=r.choice([1e-3, 1e-2, 0.3, 0.0, torch.tensor(1e-2, dtype=torch.float64)]),
            betas=(r.choice([0.0, 0.5, 0.9]), r.choice([0.0, 0.9, 0.999, 1 - 1e-7])),
            eps=r.choice([1e-8, 1e-3, 0.0]),
            weight_decay=r.choice([0.0, 0.1, 1.0]),
            decoupled_weight_decay=r.random() < 0.6,
            maximize=r.random() < 0.3,
        ),
    )


def go(case, way, seed):
    """Step the case one way."""
    r = random.Random(seed + 1)
    p = nn.Parameter(strided(r, case.start.to(way.device), case.memory))
    more = dict(momentum_dtype=case.momentum_dtype, stochastic_rounding=case.stochastic_rounding)
    optimizer = way.optimizer([("p", p)], {"p": case.kind.layout}, **case.options, **more)
    roundings = 3 if way is FOREACH else way.roundings if way is TRITON else 2 if case.stochastic_rounding or way is not CPP else 1
    beside = Beside(optimizer, {"p": p}, {"p": case.kind}, case.options, roundings=roundings)
    for step, grad in enumerate(case.grads):
        if step == case.swapped_before:
            p.data = strided(r, p.data, r.choice(["in order", "in another order", "gaps"]))
        if case.memory_of_grads == "as weights":
            p.grad = torch.empty_like(p).copy_(grad)
        elif case.memory_of_grads == "one number":
            p.grad = grad.to(way.device).flatten()[0].expand(grad.shape)
        else:
            p.grad = strided(r, grad.to(way.device), case.memory_of_grads)
        before, values = double(p), double(p.grad)
        if way in (CPP, TRITON) and not case.can_be_fused(p, way):
            with pytest.raises(RuntimeError, match="parameter 'p' of shape .* in one compiled loop because"):
                optimizer.step()
            assert np.array_equal(double(p), before, equal_nan=True)
            return
        beside.step()
        assert np.array_equal(double(p.grad), values), "gradients are never written"
        if way in (CPP, TRITON):
            way.check(optimizer)
    assert int(optimizer.state[p]["step"]) == len(case.grads)


@pytest.mark.parametrize("seed", range(150))
def test_every_way_is_exact_on_random_tensors(seed, monkeypatch):
    case = random_case(seed)
    monkeypatch.setattr(slices, "_SLICE", case.kind.numbers.size // 5 + 1)
    print(f"seed {seed}: {case}")
    for way in (DEFAULT, CPP, FOREACH, LOOP):
        if way is CPP and isinstance(load_kernel(), str):
            continue
        print(way.name)
        go(case, way, seed)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("seed", range(300, 320))
def test_triton_is_exact_on_random_tensors(seed):
    skip_without(TRITON)
    case = next(case for case in (random_case(seed + 1000 * i) for i in range(100)) if case.kind.numbers.size <= 1500)
    print(f"seed {seed}: {case}")
    go(case, TRITON, seed)
