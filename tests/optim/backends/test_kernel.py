"""The compiled loop by itself, through its one function, against the algorithm in float64, and in a build that finds a wrong address.

The file shares no code with the package and imports neither it nor torch, so that it also runs by itself, as
``python test_kernel.py LIBRARY SEED CASES``, in a process that the address sanitizer watches.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EACH, ROWS, SEGMENTS, COLUMNS, CROSSED = range(5)
F32, F64, BF16, F16, CODES = range(5)
PAIRS = [(F32, F32), (F32, BF16), (F32, CODES), (F64, F64), (F64, CODES), (BF16, F32), (BF16, BF16), (BF16, CODES)]
PAIRS += [(F16, F32), (F16, BF16), (F16, F16), (F16, CODES)]
STORED = {F32: np.float32, F64: np.float64, BF16: np.uint16, F16: np.float16, CODES: np.int8}
EPS = {F32: 2.0**-23, F64: 2.0**-52, BF16: 2.0**-7, F16: 2.0**-10}  # from 1 to the next number
TINY = {F32: 2.0**-149, F64: 2.0**-1074, BF16: 2.0**-133, F16: 2.0**-24}
RUN = 256
OPTIONS = dict(lr=1e-2, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, decoupled=1.0, maximize=0.0)

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
libc.free.argtypes = (ctypes.c_void_p,)


class Memory:
    """An array in a block of memory of its own and of exactly its size, on either side of which the address sanitizer keeps watch."""

    def __init__(self, values):
        values = np.ascontiguousarray(values)
        self.address = libc.malloc(values.nbytes)
        self.array = values
        if values.size:
            raw = (ctypes.c_byte * values.nbytes).from_address(self.address)
            self.array = np.frombuffer(raw, dtype=values.dtype).reshape(values.shape)
            self.array[...] = values

    def __del__(self):
        libc.free(self.address)


# ---- numbers


def widen(values, dtype):
    """As float64."""
    if dtype == BF16:
        with np.errstate(invalid="ignore"):  # of NaN that signal
            return (values.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return values.astype(np.float64)


def narrow(values, dtype):
    """Float64 as a dtype keeps it, cut off for bfloat16."""
    if dtype == BF16:
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(STORED[dtype])


def random_bits(step, place, i):
    """The 16 bits for one element, in Python's integers."""
    low, full = 2**32 - 1, 2**64 - 1
    seed = (step * 0x9E3779B97F4A7C15 + place * 0xD1B54A32D192ED03) & full
    seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & full
    seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) & full
    seed ^= seed >> 31
    x = (i & low) ^ (seed & low)
    x ^= x >> 16
    x = (x * 0x7FEB352D) & low
    x ^= x >> 15
    x = (x + (seed >> 32) + (i >> 32) * 0x9E3779B1) & low
    x = (x * 0x846CA68B) & low
    x ^= x >> 16
    x = (x * 0x7FEB352D) & low
    return x >> 16


# ---- a tensor


class Case:
    """A tensor, its state and its blocks, in memory order, and where they lie for the kernel.

    Args:
        rng: Where numbers come from.
        kind: Of the kernel's kinds.
        dtypes: Of the weights and of the momentum.
        rows: How many rows.
        row: Elements of a row.
        order: The place by its indices of each element of a row in memory; None if the same.
        length: Elements of a segment.
        segment: Block of each segment; None for the obvious one.
        column: Block of each column; None if it counts up.
        line: Of kind CROSSED, block of each segment in the other mean; None if it counts up.
        across: What is added for each element of a segment; None if nothing.
        common: The number of the common mean of each block of one mean, and then of the other; None if there is one.
        turned: Whether the second mean is that of the lines.
        place: Number of the tensor for random rounding; -1 for rounding to the nearest.
        first: Number of its first element.
        options: Those of its group that differ.
    """

    def __init__(
        self,
        rng,
        kind,
        dtypes,
        rows,
        row,
        order=None,
        length=1,
        segment=None,
        column=None,
        line=None,
        across=None,
        common=None,
        turned=False,
        place=-1,
        first=0,
        steps=1,
        options=None,
    ):
        self.rng, self.kind, self.dtypes, self.rows, self.row, self.order = rng, kind, dtypes, rows, row, order
        self.length, self.segment, self.column, self.place, self.first, self.steps = length, segment, column, place, first, steps
        self.options = {**OPTIONS, **(options or {})}
        n = self.n = rows * row
        at = np.arange(n)
        self.columns = 0
        if kind == EACH:
            blocks = [at]
        elif kind in (COLUMNS, CROSSED):
            at_column = (np.zeros(n // length, np.int64) if segment is None else segment)[at // length] + at % length
            self.columns = int(at_column.max(initial=-1)) + 1
            blocks = [at_column if column is None else column[at_column]]
            if kind == CROSSED:
                of = np.arange(n // length) * (across is None) if line is None else line
                blocks.append(of[at // length] + (0 if across is None else across[at % length]))
        else:
            blocks = [at // length if segment is None else segment[at // length]]
        if kind == CROSSED and not turned:
            blocks.reverse()
        self.means = blocks  # the block of each element, in each mean
        self.blocks = [int(of.max(initial=-1)) + 1 for of in blocks]
        self.columns = self.columns or self.blocks[0]
        self.common, self.turned = common, turned
        inside = np.arange(row) if order is None else order
        self.index = (at // row) * row + inside[at % row] if n else at  # in the order of the indices
        self.run = (at // row) * -(-row // RUN) + inside[at % row] // RUN if n else at
        count = np.bincount(blocks[0], minlength=self.blocks[0])
        sizes = None if kind == EACH or (count == count[0]).all() else count.astype(np.float64)
        self.tables = [None if t is None else Memory(t) for t in (segment, column, sizes, order, line, across, common)]
        dtype, momentum = dtypes
        wide = np.float64 if dtype == F64 else np.float32
        self.p = Memory(narrow(rng.standard_normal(n), dtype))
        self.g = Memory(narrow(rng.standard_normal(n) * 10.0 ** rng.uniform(-4, 1), dtype))
        self.v, *self.w = (Memory((rng.random(count) * 1e-3).astype(wide)) for count in self.blocks)
        self.t = Memory(np.array([steps - 1], np.float32))
        moments = rng.standard_normal(n) * 0.01
        self.scale = Memory(np.abs(rng.standard_normal(rows * -(-row // RUN)) * 0.01).astype(np.float32)) if momentum == CODES else None
        self.m = Memory(rng.integers(-127, 128, n).astype(np.int8) if momentum == CODES else narrow(moments, momentum))

    def fields(self, group):
        addresses = [self.p, self.g, self.m, self.v, self.t, self.scale, *(self.w or [None]), *self.tables]
        numbers = [self.kind, self.n, self.length, self.blocks[0], *self.dtypes, self.columns, self.blocks[-1], self.turned]
        numbers += [self.row, self.first, self.place, group]
        return [0 if a is None else a.address for a in addresses] + numbers

    def state(self):
        """What a step changes."""
        return [a.array for a in (self.p, self.m, self.v, *self.w, self.t, self.scale) if a is not None]

    def moments(self):
        if self.dtypes[1] != CODES:
            return widen(self.m.array, self.dtypes[1])
        c = self.m.array.astype(np.float64)
        return c * np.abs(c) / 127**2 * self.scale.array.astype(np.float64)[self.run]


def step(kernel, cases, threads):
    """Have the kernel step the cases, each in a group of its own."""
    tasks = Memory(np.array([case.fields(g) for g, case in enumerate(cases)], np.int64))
    groups = Memory(np.array([[float(value) for value in case.options.values()] for case in cases]))
    kernel.adam_mini_step(tasks.address, len(cases), groups.address, threads)


# ---- what a step has to do


class Expected:
    """A case after a step, in float64, with how far off the arithmetic of its dtype may be."""

    def __init__(self, case):
        o, (dtype, _) = case.options, case.dtypes
        eps = EPS[F64 if dtype == F64 else F32]
        p, g, m = widen(case.p.array, dtype), widen(case.g.array, dtype), case.moments()
        coupled = 0 if o["decoupled"] else o["weight_decay"]
        gradient = (-g if o["maximize"] else g) + coupled * p
        off = 2 * eps * (np.abs(g) + coupled * np.abs(p))  # what the two may cancel
        self.v, self.v_bound = [], []
        for v, block, blocks in zip((case.v, *case.w), case.means, case.blocks, strict=True):
            count = np.bincount(block, minlength=blocks)
            square = np.bincount(block, gradient**2, minlength=blocks) / count
            self.v.append(o["beta2"] * v.array.astype(np.float64) + (1 - o["beta2"]) * square)
            cancelled = np.bincount(block, 2 * np.abs(gradient) * off, minlength=blocks) / count
            self.v_bound.append(40 * eps * self.v[-1] + cancelled + 1e-44)
        relative = [bound / np.maximum(v, 1e-300) for v, bound in zip(self.v, self.v_bound, strict=True)]
        in_root = sum(of[block] for of, block in zip(relative, case.means, strict=True)) + 40 * eps
        root, most = self.v[0][case.means[0]], np.inf
        if case.w:
            first, second = self.v
            common = np.zeros(len(first) + len(second), np.int64) if case.common is None else case.common
            of_first, of_second = common[: len(first)], common[len(first) :]
            both = np.bincount(of_second, second, minlength=common.max() + 1) / np.bincount(of_second, minlength=common.max() + 1)
            root = root * second[case.means[1]] / both[of_first[case.means[0]]]
            in_root = in_root + relative[1].max()
            most = max(1, (1 - o["beta1"]) / (1 - o["beta2"]) ** 0.5)
        self.m = m + (1 - o["beta1"]) * (gradient - m)
        denominator = np.sqrt(root / (1 - o["beta2"] ** case.steps)) + o["eps"]
        change = o["lr"] * np.clip(self.m / (1 - o["beta1"] ** case.steps) / denominator, -most, most)
        kept = p * (1 - o["lr"] * o["weight_decay"] if o["decoupled"] else 1)
        self.p = kept - change
        self.m_bound = off + 4 * eps * (np.abs(m) + np.abs(gradient)) + 1e-44
        self.p_bound = 4 * eps * np.abs(kept) + in_root * np.abs(change) + self.m_bound * np.abs(change / np.where(self.m == 0, 1, self.m))
        self.p_bound += 1e-44


def assert_within(got, expected, bound, what):
    wrong = ~(np.abs(got - expected) <= bound)
    assert not wrong.any(), f"{what}: {wrong.sum()} of {wrong.size}: {got[wrong][:3]} and not {expected[wrong][:3]} {bound[wrong][:3]}"


def spacing(values, dtype):
    """How far the numbers of a dtype lie apart there."""
    return np.maximum(EPS[dtype] * 2.0 ** np.floor(np.log2(np.maximum(np.abs(values), 1e-300))), TINY[dtype])


def check(case, expected):
    dtype, momentum = case.dtypes
    assert case.t.array[0] == case.steps
    for got, v, bound in zip((case.v, *case.w), expected.v, expected.v_bound, strict=True):
        assert_within(got.array.astype(np.float64), v, bound, "second moments")
    got = widen(case.p.array, dtype)
    if case.place == -1:
        assert_within(got, expected.p, expected.p_bound + 0.51 * spacing(expected.p, dtype), "weights")
    else:
        assert_within(got, expected.p, expected.p_bound + 1.01 * spacing(expected.p, dtype), "weights")
        for at in case.rng.integers(0, case.n, 30):
            bits = random_bits(case.steps, case.place, case.first + int(case.index[at]))
            near = np.array([expected.p[at] - expected.p_bound[at], expected.p[at] + expected.p_bound[at]], np.float32).view(np.uint32)
            if (near[0] ^ near[1]) >> 31 == 0:  # both of one sign, so that their bits are in order
                assert case.p.array[at] in range((int(min(near)) + bits) >> 16, ((int(max(near)) + bits) >> 16) + 1), f"element {at}"
    if momentum != CODES:
        return assert_within(case.moments(), expected.m, expected.m_bound + 0.51 * spacing(expected.m, momentum), "momentum")
    largest, bound = np.zeros(case.scale.array.size), np.zeros(case.scale.array.size)
    np.maximum.at(largest, case.run, np.abs(expected.m))
    np.maximum.at(bound, case.run, expected.m_bound)
    assert_within(case.scale.array.astype(np.float64), largest, bound + 2.0**-23 * largest, "scales")
    scale = largest[case.run]
    codes = 127 * np.sqrt(np.abs(expected.m) / scale)
    off = np.abs(np.sqrt((np.abs(expected.m) + expected.m_bound + bound[case.run]) / scale) * 127 - codes)
    assert_within(np.abs(case.m.array.astype(np.float64)), codes, 0.5 + 1e-3 + off, "codes")
    assert (case.m.array.astype(np.float64) * expected.m >= -127 * expected.m_bound).all(), "signs"


# ---- tensors at random


def divisor(rng, n):
    return int(rng.choice([d for d in range(1, n + 1) if n % d == 0]))


def covering(rng, n, blocks):
    """Numbers below `blocks`, each at least once."""
    return rng.permutation(np.arange(n) % blocks).astype(np.int32)


def random_tables(rng, segments, length, crossed):
    """Columns, and lines that cross them. All blocks of the second mean, which has no sizes, are of one size."""
    groups, tables, turned = divisor(rng, segments) if rng.random() < 0.3 else 1, {}, bool(crossed and rng.random() < 0.5)
    if groups > 1:
        by_turns = np.repeat(np.arange(groups), segments // groups).astype(np.int32) * length
        tables["segment"] = by_turns if rng.random() < 0.5 else rng.permutation(by_turns)
    columns = groups * length
    if rng.random() < 0.5:
        tables["column"] = covering(rng, columns, int(rng.integers(1, columns + 1)) if turned or not crossed else divisor(rng, columns))
    if not crossed:
        return tables
    lines = segments
    if rng.random() < 0.5:
        lines = divisor(rng, segments) if turned else int(rng.integers(1, segments + 1))
        tables["line"] = covering(rng, segments, lines)
    if rng.random() < 0.3:
        wide = divisor(rng, length)
        lines = (lines if "line" in tables else 1) * wide
        if "line" in tables:
            tables["line"] *= wide
        tables["across"] = covering(rng, length, wide)
    if rng.random() < 0.3:
        second = lines if turned else int(tables["column"].max()) + 1 if "column" in tables else columns
        first = int(tables["column"].max()) + 1 if turned and "column" in tables else columns if turned else lines
        numbers = int(rng.integers(1, second + 1))
        tables["common"] = np.concatenate([rng.integers(0, numbers, first).astype(np.int32), covering(rng, second, numbers)])
    return {**tables, "turned": turned}


def random_case(rng, kind=None, dtypes=None, large=False):
    kind = int(rng.integers(5)) if kind is None else kind
    dtypes = PAIRS[rng.integers(len(PAIRS))] if dtypes is None else dtypes
    rows = int(rng.integers(1, 6)) if rng.random() < 0.5 else int(rng.integers(1, 80))
    row = int(rng.choice([1, 3, 8, 16, 50, 64, 127, 128, 256, 257, 300, 512, 600, 768, 1000]))
    if large:
        rows, row = [(1, 200_003), (3, 70_001), (150, 1000), (2100, 64), (2, 98_304), (60, 2304)][rng.integers(6)]
    options: dict[str, Any] = dict(lr=10.0 ** rng.uniform(-4, -1), decoupled=float(rng.random() < 0.7), maximize=float(rng.random() < 0.3))
    if rng.random() < 0.2:
        options["weight_decay"] = 0.0
    order = None
    if rng.random() < 0.4:
        inner = divisor(rng, row)
        order = np.arange(row, dtype=np.int32).reshape(inner, -1).T.reshape(-1).copy() if rng.random() < 0.7 else None
        if order is None and row < 2000:
            order = rng.permutation(row).astype(np.int32)
    length, tables = 1, {}
    if kind in (ROWS, SEGMENTS):
        length = row * divisor(rng, rows) if rng.random() < 0.7 else divisor(rng, row)
        if row % RUN == 0 and rng.random() < 0.3:
            length = RUN
        if kind == SEGMENTS:
            segments = rows * row // length
            tables["segment"] = covering(rng, segments, int(rng.integers(1, segments + 1)))
    if kind in (COLUMNS, CROSSED):
        length = row if rng.random() < 0.7 else divisor(rng, row)
        tables = random_tables(rng, rows * row // length, length, kind == CROSSED)
    place = int(rng.integers(0, 50)) if dtypes[0] == BF16 and rng.random() < 0.6 else -1
    first = int(rng.choice([0, 5, 2**32 - 100, 2**32 + 7, 2**40 - 1000]))
    steps = int(rng.integers(1, 30))
    return Case(rng, kind, dtypes, rows, row, order, length, **tables, place=place, first=first, steps=steps, options=options)


def run_random_cases(kernel, seed, count, threads, large):
    """Step `count` tensors, some at a time, and check each."""
    rng = np.random.default_rng(seed)
    pairs = PAIRS if kernel.has_half() else [pair for pair in PAIRS if F16 not in pair]
    for done in range(0, count, 4):
        cases = [random_case(rng, (done + i) % 5, pairs[rng.integers(len(pairs))], rng.random() < large) for i in range(4)]
        expected = [Expected(case) for case in cases]
        step(kernel, cases, threads)
        for case, after in zip(cases, expected, strict=True):
            what = f"kind {case.kind}, dtypes {case.dtypes}, {case.rows} rows of {case.row}, length {case.length}, place {case.place}"
            try:
                check(case, after)
            except AssertionError as error:
                raise AssertionError(f"{what}, {'as it lies' if case.order is None else 'in another order'}: {error}") from error


def open_library(path):
    kernel = ctypes.CDLL(str(path))
    kernel.adam_mini_step.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
    kernel.adam_mini_step.restype = None
    return kernel


if __name__ == "__main__":
    run_random_cases(open_library(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), threads=2, large=0.02)
    sys.exit()


# ---- tests


@pytest.fixture(scope="module")
def kernel():
    from lightning_adam_mini.optim.backends.cpp import build  # here, because the process under the sanitizer has no use for torch

    library = build.load_kernel()
    if isinstance(library, str):
        pytest.skip(f"no compiled loop here: {library}")
    assert library.fields() == len(Case(np.random.default_rng(0), EACH, (F32, F32), 1, 1).fields(0))
    assert library.options() == len(OPTIONS)
    return library


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_random_tensors_against_float64(kernel, seed, threads):
    run_random_cases(kernel, 10 * seed + threads, 80, threads, large=0.1)


def test_no_address_outside_of_a_tensor_is_touched(tmp_path):
    """200 random tensors, each in memory of exactly its size, under the address sanitizer and the one for undefined behaviour."""
    compiler = next(filter(None, map(shutil.which, ("g++", "c++"))), None)
    if compiler is None:
        pytest.skip("no g++ to compile the kernel with sanitizers")
    runtime = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True).stdout.strip()
    if not Path(runtime).is_absolute():
        pytest.skip(f"{compiler} has no libasan.so, the address sanitizer")
    source = Path(__file__).parents[3] / "lightning_adam_mini/optim/backends/cpp/kernel.cpp"
    library = tmp_path / "kernel.so"
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=all -g1 -O1 -std=c++17 -fopenmp-simd -fno-math-errno -fPIC -shared -pthread"
    subprocess.run([compiler, *flags.split(), str(source), "-o", str(library)], check=True, timeout=300)
    environment = {**os.environ, "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(library), "1", "200"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]


def large_cases():
    """Tensors that are cut into pieces of work: of all kinds, with momentum as it is and in codes, and with random rounding."""
    for dtypes, place in [((F32, F32), -1), ((F32, CODES), -1), ((BF16, BF16), 2), ((BF16, CODES), 2)]:
        for kind in range(5):
            for order in (False, True):
                yield random_large(kind, dtypes, place, 300, 600, order)
            yield random_large(kind, dtypes, place, 1, 180_000, False)


def random_large(kind, dtypes, place, rows, row, ordered):
    rng = np.random.default_rng(3)
    order = np.arange(row, dtype=np.int32).reshape(-1, 6).T.reshape(-1).copy() if ordered else None
    length = {EACH: 1, ROWS: row if rows > 1 else 1000, SEGMENTS: 400, COLUMNS: 600, CROSSED: 600}[kind]
    segment = covering(rng, rows * row // length, 7) if kind == SEGMENTS else None
    return Case(rng, kind, dtypes, rows, row, order, length, segment, place=place, steps=2)


def test_the_number_of_threads_changes_no_bit(kernel):
    results = []
    for threads in (1, 2, 3):
        cases = list(large_cases())
        step(kernel, cases, threads)
        results.append([array.tobytes() for case in cases for array in case.state()])
    for one, two, three in zip(*results, strict=True):
        assert one == two == three


@pytest.mark.parametrize("size", [1e18, 1e19, 3e19])
@pytest.mark.parametrize("momentum", [F32, CODES])
@pytest.mark.parametrize("kind", range(5))
def test_sums_of_squares_past_the_largest_float(kernel, kind, momentum, size):
    """As AdamW with eps = 0: the first step has the size of the learning rate, however large the gradient."""
    rows, row = 40, 5003
    length = 1 if kind == EACH else row
    segment = np.zeros(rows, np.int32) if kind == SEGMENTS else None
    options = dict(eps=0.0, weight_decay=0.0, beta2=0.999)
    case = Case(np.random.default_rng(0), kind, (F32, momentum), rows, row, None, length, segment, options=options)
    sign = case.rng.choice([-1.0, 1.0], case.n)
    case.p.array[...], case.g.array[...], case.v.array[...], case.m.array[...] = 0, sign * size, 0, 0
    step(kernel, [case], 1)
    for mean in (case.v, *case.w):
        np.testing.assert_allclose(mean.array, 0.001 * size**2, rtol=1e-5)
    np.testing.assert_allclose(case.p.array, -0.01 * sign, rtol=1e-5)
    np.testing.assert_allclose(case.moments(), 0.1 * sign * size, rtol=1e-5)


@pytest.mark.parametrize("dtypes", [(F32, CODES), (BF16, CODES), (BF16, F32), (F64, CODES)])
def test_the_memory_format_changes_no_bit_of_what_is_not_summed(kernel, dtypes):
    place = 4 if dtypes[0] == BF16 else -1
    order = np.arange(1152, dtype=np.int32).reshape(128, 9).T.reshape(-1).copy()
    plain = Case(np.random.default_rng(0), EACH, dtypes, 20, 1152, place=place, first=2**32 - 5000)
    moved = Case(np.random.default_rng(0), EACH, dtypes, 20, 1152, order, place=place, first=2**32 - 5000)
    for name in ("p", "g", "m", "v"):
        getattr(moved, name).array[...] = getattr(plain, name).array.reshape(20, 1152)[:, order].reshape(-1)
    if plain.scale is not None:
        moved.scale.array[...] = plain.scale.array
    step(kernel, [plain, moved], 1)
    for name in ("p", "m", "v"):
        assert (getattr(moved, name).array == getattr(plain, name).array.reshape(20, 1152)[:, order].reshape(-1)).all(), name
    if plain.scale is not None:
        assert (moved.scale.array == plain.scale.array).all()


@pytest.mark.parametrize("ordered", [False, True])
def test_runs_that_are_not_finite_or_too_small(kernel, ordered):
    """The scale of a run with a NaN or an infinity is NaN, below 2^-100 it is 0, and the runs beside it know nothing of it."""
    order = np.arange(1000, dtype=np.int32).reshape(100, 10).T.reshape(-1).copy() if ordered else None
    case = Case(np.random.default_rng(0), EACH, (F32, CODES), 3, 1000, order)
    case.scale.array[5] = case.scale.array[0] = 0
    by_index = np.argsort(case.index)
    case.g.array[by_index[1000:1256]] = 2.0**-98  # row 1, run 0, without momentum: 0.1 of it
    case.scale.array[4] = 0
    case.g.array[by_index[2999]] = np.inf  # in run 11
    case.g.array.view(np.uint32)[by_index[300]] = 2**32 - 1  # a NaN, in run 1
    step(kernel, [case], 1)
    assert np.isnan(case.scale.array).nonzero()[0].tolist() == [1, 11]
    assert (case.scale.array == 0).nonzero()[0].tolist() == [4]
    assert not case.m.array[np.isin(case.run, [1, 4, 11])].any()
    for run in (0, 2, 3, 5, 6, 7, 8, 9, 10):
        assert np.abs(case.m.array[case.run == run]).max() == 127


@pytest.mark.parametrize("momentum", [F32, BF16, CODES])
def test_random_rounding_of_all_numbers(kernel, momentum):
    """NaN stays NaN whatever its bits, infinities stay, and a weight that bfloat16 has stays as it is."""
    case = Case(np.random.default_rng(0), EACH, (BF16, momentum), 256, 256, place=0, options=dict(weight_decay=0.0, lr=0.0))
    case.p.array[...] = np.arange(2**16)
    before = widen(case.p.array, BF16)
    if momentum == F32:
        case.m.array.view(np.uint32)[:1000] = 2**32 - 1
        before[:1000] = np.nan
    step(kernel, [case], 1)
    after = widen(case.p.array, BF16)
    assert ((after == before) | (np.isnan(after) & np.isnan(before))).all()


def test_random_rounding_is_right_in_the_mean(kernel):
    case = Case(np.random.default_rng(0), EACH, (BF16, F32), 1, 100_000, place=1, options=dict(weight_decay=0.0, lr=0.001, eps=0.0))
    case.m.array[...], case.v.array[...] = 0, 0
    case.p.array[...], case.g.array[...] = narrow(np.array([1.0, -1.0]), BF16)
    step(kernel, [case], 1)  # to 1.001, between 1 and 1 + 1/128
    values, counts = np.unique(widen(case.p.array, BF16), return_counts=True)
    assert values.tolist() == [1, 1 + 1 / 128]
    assert abs(counts[1] / case.n - 0.128) < 0.005


@pytest.mark.parametrize("momentum", [F32, CODES])
def test_of_an_empty_tensor_the_step_is_counted(kernel, momentum):
    empty = Case(np.random.default_rng(0), EACH, (F32, momentum), 0, 0, steps=5)
    other = Case(np.random.default_rng(0), ROWS, (F32, F32), 4, 30, length=30)
    after = Expected(other)
    step(kernel, [empty, other], 1)
    assert empty.t.array[0] == 5
    check(other, after)
