"""What holds of the Triton kernels alone: on a GPU, or without one in Triton's interpreter. Their arithmetic is tested with the others'."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, AdamMiniWarning, BlockLayout
from lightning_adam_mini.optim.backends.triton import check
from lightning_adam_mini.optim.backends.triton import step as triton_step
from lightning_adam_mini.optim.backends.triton.plan import Sizes, make_plan
from tests.optim.backends.table import DEVICE, FEW, GPU, KINDS, TRITON, give, layouts_of, make_grads, make_params

pytest.importorskip("triton", reason="Triton is not installed, so its kernels are not tested here")


def many(times=1):
    """Small tensors of all kinds, so many times each."""
    kinds = {f"{i} {name}": KINDS[name] for i in range(times) for name in FEW if KINDS[name].numbers.max() < 10}
    return make_params(kinds, device=DEVICE), kinds


@pytest.mark.usefixtures("small_pieces")
def test_the_tensors_of_the_table_have_all_kinds_of_programs():
    sizes, seen = triton_step.SIZES, set()
    for kind in KINDS.values():
        p = make_params({"p": kind})["p"]
        plan = make_plan(kind.layout, p.stride(), p.device, sizes)
        seen |= {("tile", width) for width in plan.items[:, 0].tolist()} | {("piece", run) for run in plan.pieces[:, 0].tolist()}
        if len(plan.pieces):
            several = len(plan.entries) > len(plan.blocks)
            seen |= {("numbers", plan.numbers is not None), ("order", plan.order is not None), ("several sums per block", several)}
        seen.add(("divisible", plan.divisible))
    both = ("piece", "numbers", "order", "several sums per block", "divisible")
    assert seen == {("tile", width) for width in range(sizes.widths + 2)} | {(what, value) for what in both for value in (False, True)}


@pytest.mark.usefixtures("small_pieces")
def test_what_has_not_changed_is_not_sent_again(monkeypatch, launched):
    sent, send = [], triton_step._Batch._send
    monkeypatch.setattr(triton_step._Batch, "_send", lambda self, *tables: sent.append(len(tables[0])) or send(self, *tables))
    params, kinds = many()
    optimizer = TRITON.optimizer(params.items(), layouts_of(kinds))
    give(params, make_grads(0, kinds))
    counts = []
    for lr in (1e-3, 1e-3, 1e-4):
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        counts.append(len(sent))
        sent.clear()
    assert counts[0] > 3
    assert counts[1:] == [0, 1], "the options alone"


@pytest.mark.usefixtures("small_pieces")
def test_three_times_as_many_tensors_are_no_more_launches(launched):
    counts = []
    for times in (1, 3):
        params, kinds = many(times)
        optimizer = TRITON.optimizer(params.items(), layouts_of(kinds))
        give(params, make_grads(0, kinds))
        launched.clear()
        optimizer.step()
        counts.append(list(launched))
    assert counts[0] == counts[1]
    assert len(counts[0]) <= 8


@pytest.mark.skipif(GPU, reason="traffic is counted in the interpreter")
@pytest.mark.parametrize(
    ("layout", "dtype", "momentum_dtype", "expected"),
    [
        (BlockLayout.each_line((8, 4096)), torch.float32, None, 20),
        (BlockLayout.grouped((8, 4096), "q:8x1"), torch.float32, torch.bfloat16, 16),
        (BlockLayout.each_line((8, 4096)), torch.bfloat16, None, 10),
        (BlockLayout.per_parameter((8, 4096)), torch.float32, None, 28),
        (BlockLayout.whole((17, 4096)), torch.float32, None, 24),
        (BlockLayout.each_line((256, 256), axis=1), torch.float32, None, 24),
        (BlockLayout.grouped((256, 256), "q:2x64|k:2x64", axis=1), torch.bfloat16, None, 12),
        (BlockLayout.factored((256, 512)), torch.float32, None, 24),
        (BlockLayout.factored((1024, 64, 2, 2)), torch.bfloat16, None, 12),
        (BlockLayout.each_line((8, 4096)), torch.float32, "8bit", 18),
        (BlockLayout.whole((17, 4096)), torch.bfloat16, "8bit", 10),
        (BlockLayout.per_parameter((8, 4096)), torch.float32, "8bit", 22),
    ],
)
def test_bytes_that_the_kernels_read_and_write_a_parameter(monkeypatch, layout, dtype, momentum_dtype, expected):
    """The floor of the algorithm, and less than 2 % more for second moments, sums and tables."""
    from triton.runtime.interpreter import InterpreterBuilder

    monkeypatch.setattr(triton_step, "SIZES", Sizes())
    moved = []

    def counted(name, pointers, mask):
        inner = getattr(InterpreterBuilder, name)

        def count(self, *args, **kwargs):
            ptrs = args[pointers]
            size = ptrs.get_element_ty().primitive_bitwidth // 8
            moved.append(size * (ptrs.data.size if mask is None else int(args[mask].data.sum())))
            return inner(self, *args, **kwargs)

        monkeypatch.setattr(InterpreterBuilder, name, count)

    # create_load and create_store call the masked ones.
    counted("create_masked_load", 0, 1)
    counted("create_masked_store", 0, 2)
    p = nn.Parameter(torch.zeros(layout.shape, dtype=dtype))
    p.grad = torch.ones_like(p)
    TRITON.optimizer([("p", p)], {"p": layout}, momentum_dtype=momentum_dtype).step()
    assert expected <= sum(moved) / torch.Size(layout.shape).numel() < 1.02 * expected


COMPILE = """
import re
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lightning_adam_mini.optim.backends.triton import coded, kernel
from lightning_adam_mini.optim.backends.triton.plan import CROSSED, EACH, LINES, ONE, ROOTS, Sizes

def compile(fn, pointers, warps, **constants):
    names = fn.arg_names
    signature = {name: pointers.get(name, "constexpr") for name in names}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if pointers.get(name, "").startswith("*")}
    if triton.__version__.startswith("3.2"):
        source = ASTSource(fn, {name: kind for name, kind in signature.items() if kind != "constexpr"}, constants)
    else:
        source = ASTSource(fn, signature, {(names.index(name),): value for name, value in constants.items()}, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": warps}).asm["ptx"]

sizes, types = Sizes(), dict(P=tl.bfloat16, M=tl.bfloat16, COMPUTE=tl.float32)
tables = dict(tasks="*i64", scalars="*fp64")
partials = dict(tables, partials="*fp32")
compile(kernel.prepare, dict(tables, groups="*fp64", n="i32"), 2, LANES=kernel.PREPARE_LANES)
compile(kernel.finish, dict(partials, blocks="*i64", index="*i32"), 1, COMPUTE=tl.float32, LANES=kernel.FINISH_LANES)
compile(kernel.average, dict(partials, blocks="*i64", index="*i32"), 4, COMPUTE=tl.float32, LANES=kernel.AVERAGE_LANES)
compile(kernel.finish_lines, dict(partials, lines="*i64"), 2, COMPUTE=tl.float32, LANES=LINES, AT_ONCE=kernel.LINES_AT_ONCE)
rest = dict(types, TILE=sizes.tile, ALIGNED=True)
in_codes = dict(rest, M=tl.int8)
compile(kernel.step_blocks, dict(tables, items="*i64"), 8, WIDTHS=sizes.widths, **in_codes)
compile(kernel.step_pieces, dict(partials, pieces="*i64"), 8, COLUMNS=sizes.columns, UPDATE=False, **in_codes)

def update_coded(P=tl.bfloat16, COMPUTE=tl.float32, **constants):
    pointers = dict(partials, programs="*i64", partials="*fp64" if COMPUTE == tl.float64 else "*fp32")
    return compile(coded.update_coded, pointers, 8, P=P, COMPUTE=COMPUTE, **{**constants, "TILE": sizes.tile // 2})

update_coded(COLUMNS=64, ALIGNED=False, KIND=ONE)
update_coded(P=tl.float64, COMPUTE=tl.float64, COLUMNS=16, ALIGNED=True, KIND=CROSSED)
compile(kernel.step_tiles, dict(partials, tiles="*i64"), 8, COLUMNS=2 * sizes.columns, APART=1, UPDATE=False, **rest)
for ptx in (
    compile(kernel.step_blocks, dict(tables, items="*i64"), 8, WIDTHS=sizes.widths, **rest),
    compile(kernel.step_pieces, dict(partials, pieces="*i64"), 8, COLUMNS=sizes.columns, UPDATE=True, **rest),
    compile(kernel.step_tiles, dict(partials, tiles="*i64"), 8, COLUMNS=2 * sizes.columns, APART=1, UPDATE=True, **rest),
    compile(kernel.update_tiles, dict(tables, tiles="*i64"), 8, COLUMNS=2 * sizes.columns, FACTORED=False, **rest),
    compile(kernel.update_tiles, dict(tables, tiles="*i64"), 8, COLUMNS=2 * sizes.columns, FACTORED=True, **rest),
    *(update_coded(COLUMNS=256, ALIGNED=True, KIND=kind) for kind in (EACH, ONE, CROSSED, ROOTS)),
):
    assert re.search(r"ld\\.global[\\w.:]*\\.v4\\.b32", ptx) and "st.global.v4.b32" in ptx, "16 bytes per thread"
    assert not re.search(r"(ld|st)\\.global[\\w.:]*\\.b16", ptx), "nothing less of parameters"
"""


def test_kernels_compile_for_a_gpu_and_move_16_bytes_a_thread(tmp_path):
    pytest.importorskip("triton.backends.nvidia")
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_triton_the_other_paths_take_over(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(triton_step, "import_module", missing)
    triton_step.load_kernels.cache_clear()
    try:
        p = nn.Parameter(torch.ones(2, 3, device=DEVICE))
        p.grad = torch.ones_like(p)
        optimizer = TRITON.optimizer([("p", p)], {"p": BlockLayout.each_line((2, 3))}, fused=None)
        with pytest.warns(AdamMiniWarning, match="'p'.*slowly.*because.*No module named 'triton'.*install triton"):
            optimizer.step()
        assert bool((p < 1).all())
        with pytest.raises(RuntimeError, match="'p'.*No module named 'triton'.*install triton"):
            TRITON.optimizer([("p", p)], {"p": BlockLayout.each_line((2, 3))}).step()
    finally:
        triton_step.load_kernels.cache_clear()


# ---- the check before the kernels are used on a GPU


@pytest.fixture
def _unchecked():
    check.disagreement.cache_clear()
    yield
    check.disagreement.cache_clear()


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(
    ("dtype", "momentum_dtype", "cut"),
    [
        (torch.float32, torch.float32, False),
        (torch.bfloat16, torch.int8, False),
        (torch.bfloat16, torch.bfloat16, True),
        (torch.float32, torch.int8, True),
    ],
)
def test_the_check_passes(dtype, momentum_dtype, cut):
    rng_state = torch.cuda.get_rng_state if GPU else torch.random.get_rng_state
    state = rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdamMiniWarning)
        assert check.disagreement(DEVICE, dtype, momentum_dtype, cut) is None
    assert torch.equal(rng_state(), state)


def _steps_wrongly(work, tables):
    right(work, tables)
    work[0][1][2].state["exp_avg_sq"].mul_(1.01)


def _raises(work, tables):
    raise RuntimeError("no such instruction\nand a long listing")


right = triton_step.step


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(
    ("broken", "reason", "cut"),
    [(_steps_wrongly, "AssertionError: exp_avg_sq", True), (_raises, "RuntimeError: no such instruction$", False)],
)
def test_kernels_that_fail_the_check_are_not_used(monkeypatch, broken, reason, cut):
    monkeypatch.setattr(triton_step, "step", broken)
    problem = check.disagreement(DEVICE, torch.float32, torch.float32, cut) or ""
    assert re.search(f"^the Triton kernels failed their check on {DEVICE}: {reason}", problem)


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.usefixtures("_unchecked")
def test_on_a_gpu_others_step_where_the_kernels_fail_their_check(monkeypatch):
    p = nn.Parameter(torch.ones(8, 6, device=DEVICE))
    p.grad = torch.ones_like(p)
    monkeypatch.setattr(triton_step, "step", _raises)
    optimizer = AdamMini([("p", p)], layouts={"p": BlockLayout.each_line((8, 6))})
    with pytest.warns(AdamMiniWarning, match="'p'.*failed their check"):
        optimizer.step()
    assert bool((p < 1).all())


@pytest.mark.skipif(not GPU, reason="needs a GPU")
@pytest.mark.usefixtures("_unchecked")
def test_on_a_gpu_the_kernels_are_chosen_where_they_agree(monkeypatch):
    p = nn.Parameter(torch.ones(8, 6, device=DEVICE))
    p.grad = torch.ones_like(p)
    optimizer = AdamMini([("p", p)], layouts={"p": BlockLayout.each_line((8, 6))})
    calls = []
    monkeypatch.setattr(triton_step, "step", lambda work, tables: (calls.append(len(work)), right(work, tables)))
    optimizer.step()
    assert calls == [1, 1, 1]  # the check's two steps, and this one


# ---- a GPU


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_steps_give_the_same_bits_each_time():
    """Several threads load one second moment, and one of them stores it: no other may read what it stored."""
    names = [f"{rows}x{columns}" for rows in (1, 2, 3, 8, 9, 16, 33, 64, 70) for columns in (1, 3, 7, 16, 60, 250, 5000)]
    shapes = {name: tuple(map(int, name.split("x"))) for name in names}
    layouts = {name: BlockLayout.each_line(shape, axis=min(i % 3, 1)) for i, (name, shape) in enumerate(shapes.items())}
    layouts |= {name: BlockLayout.whole(shape) for name, shape in shapes.items() if shape[0] == 8}
    layouts |= {name: BlockLayout.factored(shape) for name, shape in shapes.items() if shape[0] == 70}

    def run():
        torch.manual_seed(0)
        params = {name: nn.Parameter(torch.randn(shape, device=DEVICE)) for name, shape in shapes.items()}
        optimizer = AdamMini(params.items(), lr=1e-2, layouts=layouts)
        for _ in range(3):
            give(params, {name: torch.randn(p.shape, device=DEVICE) for name, p in params.items()})
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in params.values()])

    first = run()
    assert all(torch.equal(run(), first) for _ in range(100))


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_a_step_waits_for_nothing_and_a_graph_can_hold_it():
    params, kinds = many()
    twins = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
    lr = torch.tensor(1e-2, device=DEVICE)
    a, b = (AdamMini(some.items(), lr=lr, layouts=layouts_of(kinds)) for some in (params, twins))
    for some in (params, twins):
        give(some, make_grads(0, kinds))
    a.step(), b.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        a.step(), b.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        a.step()
    for _ in range(5):
        for name, p in params.items():
            p.grad.normal_()
            twins[name].grad.copy_(p.grad)
        graph.replay()
        b.step()
    for name, p in params.items():
        torch.testing.assert_close(p, twins[name], rtol=0, atol=0)
