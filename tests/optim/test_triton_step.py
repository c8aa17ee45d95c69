"""The Triton kernels against Algorithm 1 in float64 and against the readable loop: on a GPU, or without one in Triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_adam_mini import AdamMini, AdamMiniWarning, BlockLayout
from lightning_adam_mini.optim import stepper
from lightning_adam_mini.optim.triton import check
from lightning_adam_mini.optim.triton import step as triton_step
from lightning_adam_mini.optim.triton.plan import Sizes
from tests.optim import reference as ref
from tests.optim.test_adam_mini import KINDS, LAYOUTS, feed, make
from tests.optim.test_cpu_step import layouts

pytest.importorskip("triton", reason="Triton is not installed, so its kernels are not tested here")

GPU = torch.cuda.is_available()
FUSED = stepper._FUSED
DEVICE = torch.device("cuda", 0) if GPU else torch.device("cpu")
OPTIONS = dict(lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
# So small that small tensors have all kinds of programs: tiles of several rows, long rows, runs of large blocks, tiles of matrices.
SMALL = Sizes(tile=256, widths=4, block=512, run=256, columns=16, rows=16)

SPLIT = {
    "whole": BlockLayout.whole((20, 30)),
    "rows": BlockLayout.each_line((7, 40)),
    "short rows": BlockLayout.each_line((40, 3)),
    "long rows": BlockLayout.each_line((3, 300)),
    "very long rows": BlockLayout.each_line((2, 600)),
    "columns": BlockLayout.each_line((21, 18), axis=1),
    "a few columns": BlockLayout.each_line((50, 3), axis=1),
    "heads": BlockLayout.grouped((24, 16), "q:2x5|k:2x5|v:4x1"),
    "heads that interleave": BlockLayout.grouped((24, 10), "4*(q:1x2|k:1x2|v:1x2)"),
    "gates that interleave": BlockLayout.grouped((24, 10), "6*(i:1|f:1|g:1|o:1)"),
    "heads of columns": BlockLayout.grouped((16, 24), "q:2x5|k:2x5|v:4x1", axis=1),
    "elements": BlockLayout.per_parameter((20, 30)),
    "input channels": BlockLayout((6, 8, 3, 3), dims=(0, 2, 3)),
    "alternate dimensions": BlockLayout((6, 8, 3, 5), dims=(0, 2)),
    "experts": BlockLayout((3, 12, 16), dims=(1,)),
    "rows in multiples of 8": BlockLayout.each_line((8, 64)),
}


@pytest.fixture(autouse=True)
def _kernels_on_any_device(monkeypatch):
    monkeypatch.setitem(FUSED, "cpu", triton_step)
    monkeypatch.setattr(triton_step, "SIZES", SMALL)


def train(start, layout, steps=3, path="fused", **options):
    """Weights, momentum and second moments after a few steps."""
    p = nn.Parameter(start.clone(memory_format=torch.preserve_format))
    fused = path == "fused"
    optimizer = AdamMini([("p", p)], layouts={"p": layout}, fused=fused, foreach=None if fused else False, **{**OPTIONS, **options})
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        grad = torch.randn(p.shape, generator=generator, dtype=torch.float64) * 10.0 ** torch.randn((), generator=generator)
        p.grad = torch.empty_like(p).copy_(grad)
        optimizer.step()
    return p.detach(), optimizer.state[p]["exp_avg"], optimizer.second_moments()["p"]


def assert_paths_agree(start, layout, rtol=2e-5, atol=2e-6, **options):
    start = start.to(DEVICE)
    for ours, readable in zip(train(start, layout, **options), train(start, layout, path="loop", **options), strict=True):
        assert ours.dtype == readable.dtype
        torch.testing.assert_close(ours, readable, rtol=rtol, atol=atol)


@pytest.mark.parametrize(("decoupled", "maximize"), [(True, False), (False, True)])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_equals_algorithm_1_in_float64(decoupled, maximize, tensor_lr):
    start = make()
    params = {name: nn.Parameter(p.detach().to(DEVICE)) for name, p in start.items()}
    options = dict(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, maximize=maximize)
    blocks = {k: blocks(shape) for k, (shape, _, blocks) in KINDS.items()}
    reference = ref.ReferenceAdamMini({k: p.detach().numpy() for k, p in start.items()}, blocks, lr=0.01, decoupled=decoupled, **options)
    lr = torch.tensor(0.01, device=DEVICE) if tensor_lr else 0.01
    optimizer = AdamMini(params.items(), lr=lr, layouts=LAYOUTS, decoupled_weight_decay=decoupled, fused=True, **options)
    for step in range(6):
        grads = feed(start, step)
        for name, p in params.items():
            p.grad = grads[name].to(DEVICE)
        optimizer.step()
        reference.step({k: g.numpy() for k, g in grads.items()})
        assert all(torch.equal(params[k].grad.cpu(), grads[k]) for k in params), "gradients are never written"
    assert optimizer._stepper.tables, "the kernels did the steps"
    moments = optimizer.second_moments()
    for name, p in params.items():
        torch.testing.assert_close(p.detach().cpu().double(), torch.from_numpy(reference.params[name]), rtol=2e-5, atol=2e-6, msg=name)
        v = moments[name].expand(p.shape)
        for index, block in blocks[name].items():
            assert float(v[index]) == pytest.approx(reference.v[name][block], rel=2e-5)
        assert optimizer.state[p]["step"].item() == 6


@pytest.mark.parametrize("kind", SPLIT)
def test_every_kind_of_program(kind):
    torch.manual_seed(0)
    assert_paths_agree(torch.randn(SPLIT[kind].shape), SPLIT[kind])


@pytest.mark.parametrize("kind", ["input channels", "alternate dimensions"])
def test_channels_last(kind):
    torch.manual_seed(0)
    assert_paths_agree(torch.randn(SPLIT[kind].shape).to(memory_format=torch.channels_last), SPLIT[kind], decoupled_weight_decay=False)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layouts(), st.permutations(range(4)), st.booleans(), st.sampled_from([torch.float32, torch.float64]))
def test_any_layout_in_any_memory_order(layout, order, decoupled, dtype):
    order = [d for d in order if d < len(layout.shape)]
    inverse = [order.index(d) for d in range(len(order))]
    start = torch.randn([layout.shape[d] for d in order], dtype=dtype).permute(inverse)
    assert_paths_agree(start, layout, steps=2, decoupled_weight_decay=decoupled, maximize=not decoupled)


@pytest.mark.parametrize("momentum_dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["rows", "heads", "elements", "columns"])
def test_half_precision_within_its_rounding(dtype, momentum_dtype, kind):
    torch.manual_seed(0)
    eps = torch.finfo(torch.bfloat16 if torch.bfloat16 in (dtype, momentum_dtype) else dtype).eps
    start = torch.randn(SPLIT[kind].shape, dtype=dtype)
    assert_paths_agree(start, SPLIT[kind], rtol=4 * eps, atol=4 * eps, momentum_dtype=momentum_dtype)


def test_float64_parameters_are_stepped_in_float64():
    torch.manual_seed(0)
    for kind in ("rows", "whole", "columns", "elements"):
        assert_paths_agree(torch.randn(SPLIT[kind].shape, dtype=torch.float64), SPLIT[kind], rtol=1e-12, atol=1e-13)


def many(n):
    """Small tensors of the kinds of ``SPLIT``, with their layouts."""
    kinds = [*SPLIT.values()]
    found = {str(i): kinds[i % len(kinds)] for i in range(n)}
    return {name: nn.Parameter(torch.randn(layout.shape, device=DEVICE)) for name, layout in found.items()}, found


def test_groups_schedules_and_gradients_that_move():
    """What changes from step to step reaches the kernels: options of groups, which parameters have gradients, where these lie."""
    results = []
    for path in ("fused", "loop"):
        torch.manual_seed(0)
        params, found = many(16)
        names = list(params)
        groups = [
            {"params": [(n, params[n]) for n in names[:9]], "lr": 0.1},
            {"params": [(n, params[n]) for n in names[9:]], "weight_decay": 0.5, "betas": (0.0, 0.9), "maximize": True},
        ]
        how = dict(fused=True) if path == "fused" else dict(fused=False, foreach=False)
        optimizer = AdamMini(groups, lr=0.01, layouts=found, **how)
        for step in range(4):
            for i, p in enumerate(params.values()):
                p.grad = torch.randn_like(p) if (i + step) % 5 else None
            optimizer.param_groups[0]["lr"] /= 2
            optimizer.step()
        results.append(params)
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], rtol=2e-5, atol=2e-6)


def test_a_step_gives_the_same_bits_again_and_leaves_no_table_to_send(monkeypatch):
    sent = []
    send = triton_step._Batch._send
    monkeypatch.setattr(triton_step._Batch, "_send", lambda self, table: sent.append(len(table)) or send(self, table))
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        params, found = many(16)
        optimizer = AdamMini(params.items(), layouts=found, fused=True)
        for p in params.values():
            p.grad = torch.randn_like(p)
        optimizer.step()
        first = len(sent)
        optimizer.step()
        assert len(sent) == first, "nothing changed, so nothing is sent"
        sent.clear()
        runs.append(params)
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_as_many_launches_for_64_tensors_as_for_16(monkeypatch):
    from lightning_adam_mini.optim.triton import kernel

    launched = []

    class Counted:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(kernel, name)

        def __getitem__(self, grid):
            launched.append(self.name)
            return self.kernel[grid]

    for name in ("prepare", "step_blocks", "step_pieces", "finish"):
        monkeypatch.setattr(kernel, name, Counted(name))
    counts = []
    for n in (16, 64):
        params, found = many(n)
        optimizer = AdamMini(params.items(), layouts=found, fused=True)
        for p in params.values():
            p.grad = torch.randn_like(p)
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
    train(torch.zeros(layout.shape, dtype=dtype), layout, steps=1, momentum_dtype=momentum_dtype)
    assert expected <= sum(moved) / torch.Size(layout.shape).numel() < 1.02 * expected


COMPILE = """
import re
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lightning_adam_mini.optim.triton import kernel
from lightning_adam_mini.optim.triton.plan import Sizes

def compile(fn, pointers, warps, **constants):
    names = fn.arg_names
    signature = {name: pointers.get(name, "constexpr") for name in names}
    attributes = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if pointers.get(name, "").startswith("*")}
    source = ASTSource(fn, signature, {(names.index(name),): value for name, value in constants.items()}, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": warps}).asm["ptx"]

sizes, types = Sizes(), dict(P=tl.bfloat16, M=tl.bfloat16, COMPUTE=tl.float32)
tables = dict(tasks="*i64", scalars="*fp64")
compile(kernel.prepare, dict(tables, groups="*fp64", n="i32"), 2, LANES=kernel.PREPARE_LANES)
compile(kernel.finish, dict(tables, blocks="*i64", index="*i32", partials="*fp32"), 1, COMPUTE=tl.float32, LANES=kernel.FINISH_LANES)
rest = dict(types, TILE=sizes.tile, ALIGNED=True)
for ptx in (
    compile(kernel.step_blocks, dict(tables, items="*i64"), 8, WIDTHS=sizes.widths, **rest),
    compile(kernel.step_pieces, dict(tables, pieces="*i64", partials="*fp32"), 8, COLUMNS=sizes.columns, UPDATE=True, **rest),
):
    assert re.search(r"ld\\.global[\\w.:]*\\.v4\\.b32", ptx) and "st.global.v4.b32" in ptx, "16 bytes a thread"
    assert not re.search(r"(ld|st)\\.global[\\w.:]*\\.b16", ptx), "nothing less of parameters"
"""


def test_kernels_compile_for_a_gpu_and_move_16_bytes_a_thread(tmp_path):
    pytest.importorskip("triton.backends.nvidia")
    env = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_state_goes_to_the_readable_loop_and_back():
    torch.manual_seed(0)
    params, found = many(16)
    twins = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
    plain = dict(fused=False, foreach=False)
    a, b = (AdamMini(some.items(), layouts=found, **how) for some, how in ((params, dict(fused=True)), (twins, plain)))
    for step in range(6):
        if step in (2, 4):
            how = dict(fused=True) if step == 4 else plain
            fresh = AdamMini(params.items(), layouts=found, **how)
            fresh.load_state_dict(a.state_dict())
            a = fresh
        for name, p in params.items():
            p.grad = torch.randn_like(p)
            twins[name].grad = p.grad.clone()
        a.step(), b.step()
    for name, p in params.items():
        torch.testing.assert_close(p, twins[name], rtol=2e-5, atol=2e-6)
    for rate, expected in zip(a.block_learning_rates().values(), b.block_learning_rates().values(), strict=True):
        torch.testing.assert_close(rate, expected, rtol=2e-5, atol=0)


def test_what_it_cannot_do_is_refused_by_name_before_anything_changes():
    good, bad = nn.Parameter(torch.ones(3, device=DEVICE)), nn.Parameter(torch.ones(3, device=DEVICE).expand(2, 3))
    optimizer = AdamMini([("good", good), ("bad", bad)], layouts={"good": BlockLayout.whole((3,))}, fused=True)
    good.grad, bad.grad = torch.ones_like(good), torch.ones(2, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match="'bad'.*overlap.*fused=None"):
        optimizer.step()
    assert bool((good == 1).all())
    assert not optimizer.state


def test_without_triton_the_other_paths_take_over(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError("No module named 'triton'")

    monkeypatch.setattr(triton_step, "import_module", missing)
    triton_step.load_kernels.cache_clear()
    try:
        p = nn.Parameter(torch.ones(2, 3, device=DEVICE))
        p.grad = torch.ones_like(p)
        AdamMini([("p", p)], layouts={"p": BlockLayout.each_line((2, 3))}).step()
        assert bool((p < 1).all())
        with pytest.raises(RuntimeError, match="'p'.*No module named 'triton'.*install triton"):
            AdamMini([("p", p)], layouts={"p": BlockLayout.each_line((2, 3))}, fused=True).step()
    finally:
        triton_step.load_kernels.cache_clear()


# ---- the check before the kernels are used on a GPU


@pytest.fixture
def _unchecked():
    check.disagreement.cache_clear()
    yield
    check.disagreement.cache_clear()


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(("dtype", "momentum_dtype"), [(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16)])
def test_the_check_passes(dtype, momentum_dtype):
    state = torch.random.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check.disagreement(DEVICE, dtype, momentum_dtype) is None
    assert torch.equal(torch.random.get_rng_state(), state)


def _steps_wrongly(work, tables):
    right(work, tables)
    work[0][1][2][2]["exp_avg_sq"].mul_(1.01)


def _raises(work, tables):
    raise RuntimeError("no such instruction\nand a long listing")


right = triton_step.step


@pytest.mark.usefixtures("_unchecked")
@pytest.mark.parametrize(
    ("broken", "reason"), [(_steps_wrongly, "AssertionError: exp_avg_sq"), (_raises, "RuntimeError: no such instruction$")]
)
def test_kernels_that_fail_the_check_are_not_used(monkeypatch, broken, reason):
    monkeypatch.setattr(triton_step, "step", broken)
    with pytest.warns(AdamMiniWarning, match=f"by foreach because the Triton kernels failed their check on {DEVICE}: {reason}"):
        assert check.disagreement(DEVICE, torch.float32, torch.float32)


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


# ---- capturable


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_capturable_is_the_same_step_without_a_number_read_off_it(monkeypatch, foreach, tensor_lr):
    runs = []
    for capturable in (False, True):
        params = {name: nn.Parameter(p.detach().to(DEVICE)) for name, p in make().items()}
        lr = torch.tensor(1e-2, device=DEVICE) if tensor_lr else 1e-2
        optimizer = AdamMini(params.items(), lr=lr, layouts=LAYOUTS, fused=False, foreach=foreach, capturable=capturable)
        with monkeypatch.context() as patch:
            if capturable:
                patch.setattr(torch.Tensor, "item", lambda self: pytest.fail("a number is read"))
            for step in range(20):
                for p, grad in zip(params.values(), feed(make(), step).values(), strict=True):
                    p.grad = grad.to(DEVICE)
                optimizer.step()
        assert all(state["step"].device == DEVICE for state in optimizer.state.values() if capturable)
        runs.append(params)
    for name, p in runs[0].items():
        # torch's own capturable steps take 1 - beta2**t in float32, which cancels.
        torch.testing.assert_close(p, runs[1][name], rtol=1e-4, atol=2e-5)


def test_capturable_refuses_what_reads_numbers():
    with pytest.raises(ValueError, match="capturable=True.*8bit.*because"):
        AdamMini([nn.Parameter(torch.ones(3))], capturable=True, momentum_dtype="8bit")


@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_a_step_waits_for_nothing_and_a_graph_can_hold_it():
    torch.manual_seed(0)
    params, found = many(32)
    twins = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
    lr = torch.tensor(1e-2, device=DEVICE)
    a, b = AdamMini(params.items(), lr=lr, layouts=found), AdamMini(twins.items(), lr=lr, layouts=found)
    for name, p in params.items():
        p.grad = torch.randn_like(p)
        twins[name].grad = p.grad.clone()
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


@pytest.mark.parametrize("foreach", [False, True])
def test_torch_compile_of_a_capturable_step_gives_the_same_numbers(foreach):
    """With graph breaks, where the step looks up layouts."""
    runs = []
    for compiled in (False, True):
        params = {name: nn.Parameter(p.detach().to(DEVICE)) for name, p in make().items()}
        optimizer = AdamMini(params.items(), lr=1e-2, layouts=LAYOUTS, fused=False, foreach=foreach, capturable=True)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for i in range(4):
            for p, grad in zip(params.values(), feed(make(), i).values(), strict=True):
                p.grad = grad.to(DEVICE)
            step()
        runs.append(params)
    assert all(torch.equal(p, runs[1][name]) for name, p in runs[0].items())
