"""Blocks of which other ranks hold parts, in the Triton kernels: in real ranks, and as one of them sees them."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard

from lightning_adam_mini import BlockLayout
from lightning_adam_mini.optim.backends.protocol import Task
from lightning_adam_mini.optim.backends.triton import step as triton_step
from lightning_adam_mini.optim.backends.triton.plan import Sizes
from lightning_adam_mini.optim.codecs import EightBit, Plain, codec_of
from lightning_adam_mini.optim.functional import adam_mini
from lightning_adam_mini.optim.shards.dtensor import local, with_local
from lightning_adam_mini.optim.shards.flat import FlatShard, flat_part
from lightning_adam_mini.optim.shards.part import CutBlocks, Part, apart_in, window_of
from lightning_adam_mini.optim.state import FIRST, elements_in
from tests.launch import run_ranks
from tests.optim import shard_ranks
from tests.optim.backends.table import DEVICE, GPU, TRITON, in_order

pytest.importorskip("triton", reason="Triton is not installed, so its kernels are not tested here")
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy in Triton's interpreter: of means that are not finite

OPTIONS = {"lr": 0.5, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": False}
COUPLED = {"weight_decay": 0.1, "decoupled_weight_decay": False, "maximize": True}


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    monkeypatch.setattr(triton_step, "SIZES", Sizes(tile=64, widths=3, block=128, run=128, columns=8, rows=16))


# ---- real ranks


def step_on_a_rank(options):
    """Against float64 arithmetic of whole tensors; ``fused=True`` lets nothing else step."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    line = init_device_mesh("cpu", (dist.get_world_size(),))
    weights, moments = shard_ranks.expected(2, options["weight_decay"], options["decoupled_weight_decay"], options["maximize"])
    for placement in (Shard(0), Shard(1)):
        model = shard_ranks.shard_with(line, placement)
        for name, p in shard_ranks.named(model):  # torch 2.6 leaves gaps in the memory of uneven shards
            getattr(model, name).w = torch.nn.Parameter(with_local(p.detach(), local(p.detach()).contiguous()))
        given = {"lr": shard_ranks.LR, "betas": shard_ranks.BETAS, "eps": shard_ranks.EPS, **options}
        optimizer = TRITON.optimizer(shard_ranks.named(model), shard_ranks.LAYOUTS, **given)
        shard_ranks.train(model, optimizer, steps=2)
        shard_ranks.close(dict(shard_ranks.named(model)), weights)
        shard_ranks.close(optimizer.second_moments(), moments)


@pytest.mark.skipif(GPU, reason="the ranks have Triton's interpreter")
@pytest.mark.parametrize(
    "options", [{"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": False}, COUPLED], ids=["", "coupled"]
)
def test_ranks_step_as_one_device_does(tmp_path, options):
    for outcome in run_ranks(step_on_a_rank, 2, tmp_path, options):
        if isinstance(outcome, Exception):
            raise outcome


# ---- one rank by hand


class Cut(NamedTuple):
    """What a rank holds of a tensor.

    Attributes:
        layout: Blocks of the tensor.
        offsets: Where what the rank holds begins.
        sizes: Its sizes.
        order: Its dimensions from the outermost in memory to the innermost; None if in order.
    """

    layout: BlockLayout
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    order: tuple[int, ...] | None = None

    @property
    def part(self):
        margins = []
        for margin, apart in zip(self.layout.margins, apart_in(self.layout), strict=True):
            window, corner = window_of(margin, apart, self.offsets, self.sizes)
            piece = window.shard([o - c for o, c in zip(self.offsets, corner, strict=True)], self.sizes)
            margins.append(Part(margin, apart, window, corner, (piece,), None, (), (), DEVICE))
        return replace(margins[0], crossing=margins[1]) if len(margins) > 1 else margins[0]


_MATRIX, _IMAGE = BlockLayout.factored((22, 18)), BlockLayout.factored((6, 5, 3, 2))
_EXPERTS, _HEADS = BlockLayout((3, 8, 10), dims=(2,), crossed=(1,)), "q:4x3"
CUTS = {
    "columns": Cut(_MATRIX, (5, 0), (11, 18)),
    "rows": Cut(_MATRIX, (0, 5), (22, 7)),
    "both": Cut(_MATRIX, (3, 5), (9, 7)),
    "a row": Cut(_MATRIX, (21, 0), (1, 18)),
    "an element": Cut(_MATRIX, (21, 17), (1, 1)),
    "columns, transposed": Cut(_MATRIX, (5, 0), (11, 18), (1, 0)),
    "in multiples of 8": Cut(BlockLayout.factored((32, 24)), (16, 0), (16, 24)),
    "long rows": Cut(BlockLayout.factored((6, 150)), (3, 0), (3, 150)),
    "short rows": Cut(BlockLayout.factored((90, 3)), (20, 0), (70, 3)),
    "heads": Cut(BlockLayout.grouped((12, 5), _HEADS), (4, 0), (6, 5)),
    "heads of columns": Cut(BlockLayout.grouped((5, 12), _HEADS, axis=1), (0, 2), (5, 8)),
    "heads and columns": Cut(BlockLayout((12, 7), (1,), 0, _HEADS, (0,)), (4, 0), (6, 7)),
    "bias of heads": Cut(BlockLayout.grouped((12,), _HEADS), (4,), (6,)),
    "bias": Cut(BlockLayout.whole((30,)), (7,), (20,)),
    "tensor": Cut(BlockLayout.whole((10, 15)), (3, 0), (5, 15)),
    "one mean of columns": Cut(BlockLayout.each_line((21, 10), axis=1), (3, 0), (9, 10)),
    "one mean of rows": Cut(BlockLayout.each_line((21, 10)), (0, 4), (21, 6)),
    "alternate dimensions": Cut(BlockLayout((6, 4, 2, 3), dims=(0, 2)), (2, 0, 0, 0), (3, 4, 2, 3)),
    "input channels": Cut(_IMAGE, (2, 0, 0, 0), (3, 5, 3, 2)),
    "input channels, channels last": Cut(_IMAGE, (2, 0, 0, 0), (3, 5, 3, 2), (0, 2, 3, 1)),
    "output channels, channels last": Cut(_IMAGE, (0, 1, 0, 0), (6, 3, 3, 2), (0, 2, 3, 1)),
    "rows of experts": Cut(_EXPERTS, (0, 0, 3), (3, 8, 5)),
    "columns of experts": Cut(_EXPERTS, (0, 3, 0), (3, 4, 10)),
    "columns of experts in turns": Cut(_EXPERTS, (0, 3, 0), (3, 4, 10), (2, 1, 0)),
}  # fmt: skip


CODED = {
    "columns": Cut(BlockLayout.factored((40, 300)), (20, 0), (20, 300)),
    "rows": Cut(BlockLayout.factored((40, 90)), (0, 10), (40, 70)),
    "in multiples of 8": Cut(BlockLayout.factored((32, 144)), (16, 0), (16, 144)),
    "one mean of columns": Cut(BlockLayout.each_line((42, 100), axis=1), (6, 0), (18, 100)),
    "tensor": Cut(BlockLayout.whole((60, 90)), (30, 0), (30, 90)),
    "input channels, channels last": Cut(BlockLayout.factored((12, 40, 3, 3)), (4, 0, 0, 0), (4, 40, 3, 3), (0, 2, 3, 1)),
}
"""Of tensors whose first moments are kept in codes."""


class Held(NamedTuple):
    """A rank's part of a parameter, and its state."""

    p: torch.Tensor
    state: dict[str, torch.Tensor]


def numbers():
    return torch.Generator().manual_seed(0)


def make_held(cuts, dtype, generator):
    """After some steps."""
    held = []
    for cut in cuts:
        p, m = (in_order(torch.randn(cut.sizes, generator=generator).to(DEVICE, dtype), cut.order) for _ in range(2))
        state = {"step": torch.tensor(4.0, device=DEVICE), "exp_avg": m}
        for name, margin in zip(("exp_avg_sq", "exp_avg_sq_col"), cut.part.margins, strict=False):
            state[name] = torch.rand(margin.window.block_shape, generator=generator).to(DEVICE, torch.promote_types(dtype, torch.float32))
        held.append(Held(p, state))
    return held


def make_grads(cuts, dtype, generator):
    return [torch.randn(cut.sizes, generator=generator).to(DEVICE, dtype) for cut in cuts]


def make_blocks(cuts, dtype, value):
    """Blocks with means as if from all ranks, each of what a function makes of its shape; a margin that is not cut has the rank's own."""
    return [
        CutBlocks(
            cut.part,
            tuple(
                None if margin.is_uncut else value(margin.window.block_shape).to(DEVICE, torch.promote_types(dtype, torch.float32))
                for margin in cut.part.margins
            ),
        )
        for cut in cuts
    ]


def of_all_sizes(generator):
    return lambda shape: 10 ** torch.randn(shape, generator=generator)


def take(held, grads, blocks, tables=None, **options):
    """A step of the kernels."""
    codecs = [codec_of(elements_in(state, FIRST)) for _, state in held]
    tasks = [
        Task(p, grad, state, of, codec, None, triton_step.plan_of(p, of, codec))
        for (p, state), grad, of, codec in zip(held, grads, blocks, codecs, strict=True)
    ]
    triton_step.step([({**OPTIONS, **options}, tasks)], {} if tables is None else tables)


def take_exactly(held, grads, blocks, **options):
    """The same by the readable arithmetic, in float64."""
    exact = [Held(p.double(), {name: t.clone() if name == "step" else t.double() for name, t in state.items()}) for p, state in held]
    given = {**OPTIONS, **options}
    beta1, beta2 = given.pop("betas")
    adam_mini(
        [p for p, _ in exact],
        [grad.double() for grad in grads],
        *([state[name] for _, state in exact] for name in ("exp_avg", "exp_avg_sq", "step")),
        [CutBlocks(of.part, tuple(None if mean is None else mean.double() for mean in of.means)) for of in blocks],
        [state.get("exp_avg_sq_col") for _, state in exact],
        beta1=beta1,
        beta2=beta2,
        foreach=False,
        **given,
    )
    return exact


@pytest.mark.parametrize("options", [{}, COUPLED], ids=["", "coupled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_each_step_is_the_readable_one(dtype, options):
    cuts, generator, tables = list(CUTS.values()), numbers(), {}
    held = make_held(cuts, dtype, generator)
    bound = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-7}[dtype]  # the interpreter cuts bfloat16 off
    for _ in range(2):
        grads, blocks = make_grads(cuts, dtype, generator), make_blocks(cuts, dtype, of_all_sizes(generator))
        expected = take_exactly(held, grads, blocks, **options)
        take(held, grads, blocks, tables, **options)
        for name, got, exact in zip(CUTS, held, expected, strict=True):
            for what, t, there in (("weights", got.p, exact.p), *((key, t, exact.state[key]) for key, t in got.state.items())):
                wrong = (t.double() - there.double()).abs() > bound * (1 / 4 + there.double().abs())
                assert not wrong.any(), f"{what} of {name!r}: {t[wrong]} and not {there[wrong]}"


def test_each_step_is_the_readable_one_where_first_moments_are_codes():
    dtype = torch.float32
    cuts, generator = [CODED[name] for name in CODED], numbers()
    held = make_held(cuts, dtype, generator)
    codecs = [EightBit(cut.sizes) for cut in cuts]
    for codec, (_, state) in zip(codecs, held, strict=True):
        values = state["exp_avg"]
        for suffix, field in codec.fields.items():
            state["exp_avg" + suffix] = torch.zeros(field.shape, dtype=field.dtype, device=DEVICE)
        codec.encode_(values, elements_in(state, FIRST))
    for _ in range(2):
        grads, blocks = make_grads(cuts, dtype, generator), make_blocks(cuts, dtype, of_all_sizes(generator))
        plain = [
            Held(p, {**{k: t for k, t in state.items() if k != "exp_avg_scale"}, "exp_avg": codec.decode(elements_in(state, FIRST), dtype)})
            for codec, (p, state) in zip(codecs, held, strict=True)
        ]
        expected = take_exactly(plain, grads, blocks)
        take(held, grads, blocks)
        for name, codec, got, exact in zip(CODED, codecs, held, expected, strict=True):
            torch.testing.assert_close(
                got.p.double(), exact.p, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"weights of {name!r}: {text}"
            )
            codes = {suffix: torch.zeros_like(t) for suffix, t in elements_in(got.state, FIRST).items()}
            codec.encode_(exact.state["exp_avg"], codes)
            off = (got.state["exp_avg"].int() - codes[""].int()).abs()
            assert off.max() <= 1, name
            assert off.double().mean() < 1e-3, "where a value is halfway between two codes"
            torch.testing.assert_close(got.state["exp_avg_scale"], codes["_scale"], rtol=1e-5, atol=0)


def test_updates_are_bounded_where_means_cross_and_only_there():
    cuts = [CUTS["both"], CUTS["one mean of columns"]]
    held = make_held(cuts, torch.float32, numbers())
    for t in (t for _, state in held for t in state.values()):
        t.zero_()
    before = [p.clone() for p, _ in held]
    grads = [torch.ones(cut.sizes, device=DEVICE) for cut in cuts]
    take(held, grads, make_blocks(cuts, torch.float32, lambda shape: torch.full(shape, 1e-6)), weight_decay=0.0)
    for (p, _), was, expected in zip(held, before, (1, 1000), strict=True):
        torch.testing.assert_close(was - p, torch.full_like(p, OPTIONS["lr"] * expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("bad", "in_one_mean"), [(math.nan, math.nan), (math.inf, 0.0)])
def test_a_mean_that_is_no_number_spoils_what_it_reaches_and_no_more(bad, in_one_mean):
    cuts, generator = [CUTS["columns of experts"], CUTS["one mean of columns"]], numbers()
    held = make_held(cuts, torch.float32, generator)
    (experts, _), (columns, _) = held
    blocks = make_blocks(cuts, torch.float32, of_all_sizes(generator))
    blocks[0].means[1][1, 0, 3] = blocks[1].means[0][0, 3] = bad
    before = columns.clone()
    take(held, make_grads(cuts, torch.float32, generator), blocks, weight_decay=0.0)
    assert [bool(expert.isnan().all()) for expert in experts] == [False, True, False]
    assert not experts[::2].isnan().any()
    torch.testing.assert_close((columns - before)[:, 3], torch.full((9,), in_one_mean, device=DEVICE), rtol=0, atol=0, equal_nan=True)
    assert not columns[:, [0, 1, 2, *range(4, 10)]].isnan().any()


def test_what_never_had_a_gradient_is_left_alone():
    cuts = [CUTS["columns of experts"], CUTS["tensor"]]
    held = make_held(cuts, torch.float32, numbers())
    for t in (t for _, state in held for t in state.values()):
        t.zero_()
    before = [p.clone() for p, _ in held]
    take(held, [torch.zeros(cut.sizes, device=DEVICE) for cut in cuts], make_blocks(cuts, torch.float32, torch.zeros), weight_decay=0.0)
    for (p, _), was in zip(held, before, strict=True):
        assert torch.equal(p, was)


# ---- beside others


def test_three_times_as_many_tensors_are_no_more_launches_and_nothing_is_planned_again(monkeypatch, launched):
    sent = []
    plans_sent = triton_step._Batch._send_plans
    monkeypatch.setattr(triton_step._Batch, "_send_plans", lambda self: (sent.append(len(self.plans)), plans_sent(self))[1])
    generator = numbers()
    some = [CUTS[name] for name in ("columns", "rows", "in multiples of 8", "heads", "short rows")]
    counts = []
    for times in (1, 3):
        cuts, tables = times * some, {}
        held = make_held(cuts, torch.float32, generator)
        for _ in range(2):
            launched.clear()
            blocks = make_blocks(cuts, torch.float32, of_all_sizes(generator))
            take(held, make_grads(cuts, torch.float32, generator), blocks, tables)
            counts.append([*launched])
    assert sent == [len(some), 3 * len(some)], "in first steps alone"
    assert all(count == counts[0] for count in counts)
    assert counts[0] == ["prepare", *["update_tiles"] * (len(counts[0]) - 1)]
    assert len(counts[0]) <= 6


def test_a_flat_range_is_refused_if_it_is_no_rectangle():
    layout, backend = BlockLayout.factored((8, 6)), TRITON.others[0]()
    reasons = []
    for begin, end in ((12, 30), (10, 30)):
        part = flat_part(FlatShard((8, 6), (0, 1), begin, end, None, DEVICE), layout)
        p = part.shaped(torch.zeros(end - begin, device=DEVICE))
        reasons.append(backend.why_not(p, Plain(tuple(p.shape), torch.float32), CutBlocks(part, (None, None)), None))
    assert reasons == [None, "other ranks hold parts of its blocks"]
