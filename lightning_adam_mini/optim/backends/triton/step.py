"""The step of all parameters on a GPU, by the Triton kernels."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from lightning_adam_mini._sums import second_moment_dtype
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.backends.protocol import Task
from lightning_adam_mini.optim.backends.triton.launch import Launch
from lightning_adam_mini.optim.backends.triton.plan import LINES, Plan, Sizes, make_plan, plan_coded, plan_update
from lightning_adam_mini.optim.codecs import SCALE, Codec, EightBit
from lightning_adam_mini.optim.functional import Blocks
from lightning_adam_mini.optim.segments import in_memory_of, put_in_order
from lightning_adam_mini.optim.shards.part import CutBlocks

SIZES = Sizes()
DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16", torch.float16: "float16", torch.int8: "int8"}
_NEVER = -1e4  # stands for the logarithm of 0


@lru_cache(maxsize=1)
def load_kernels() -> Any | str:
    """The module of the kernels, or why there is none. Triton comes with torch where it has a GPU, on Linux."""
    try:
        return import_module("lightning_adam_mini.optim.backends.triton.kernel")
    except ImportError as error:
        return f"Triton cannot be imported ({error}): install triton"


def plan_of(p: Tensor, layout: Blocks, codec: Codec) -> Plan:
    """What the programs of a parameter do."""
    in_codes = isinstance(codec, EightBit)
    if isinstance(layout, BlockLayout):
        return (plan_coded if in_codes else make_plan)(layout, p.stride(), p.device, SIZES)
    assert isinstance(layout, CutBlocks)
    factors = layout.over(tuple(p.shape))
    assert factors is not None
    return (plan_coded if in_codes else plan_update)(factors, p.stride(), p.device, SIZES)


def step(work: Sequence[tuple[Mapping[str, Any], Sequence[Task]]], tables: MutableMapping[Any, Any]) -> None:
    """Step all parameters in place. Nothing waits for the device.

    Args:
        work: For each group its options, and its parameters with their plans. Gradients may have any strides.
        tables: What this function keeps from step to step; an empty dict at first.
    """
    batches: dict[Any, _Batch] = {}
    options, held = array("d"), []
    for g, (group, members) in enumerate(work):
        lr = group["lr"]
        lr_there = is_there(lr)
        options.extend(options_of(group))
        for task in members:
            p, state, plan = task.p, task.state, task.plan
            put_in_order(p, state)
            grad = in_memory_of(p, task.grad)
            factors = _advance(group, task, grad)
            held.extend((grad, *factors))
            key = key_of(p, state)
            batch = batches.get(key)
            if batch is None:
                batch = batches[key] = tables.get(key) or _Batch(*key)
                batch.begin()
            batch.add(p, grad, state, plan, g, batch.address_of_lr(g, lr) if lr_there else 0, factors)
    for key, batch in batches.items():
        tables[key] = batch
        batch.launch(options)
    torch.autograd.graph.increment_version([task.p for _, members in work for task in members])


def key_of(p: Tensor, state: Mapping[str, Tensor]) -> tuple[torch.device, torch.dtype, torch.dtype]:
    """What tensors of one batch have in common."""
    return p.device, p.dtype, state["exp_avg"].dtype


def is_there(lr: float | Tensor) -> bool:
    """Whether a learning rate is on a device, where the kernels read it."""
    return isinstance(lr, Tensor) and lr.is_cuda


def options_of(group: Mapping[str, Any]) -> tuple[float, ...]:
    """The options of a group as the kernels take them."""
    lr = group["lr"]
    beta1, beta2 = map(float, group["betas"])
    return (
        0.0 if is_there(lr) else float(lr),
        beta1,
        beta2,
        math.log(beta1) if beta1 else _NEVER,
        math.log(beta2) if beta2 else _NEVER,
        float(group["eps"]),
        float(group["weight_decay"]),
        bool(group["decoupled_weight_decay"]) + 2 * bool(group["maximize"]),
    )


def _advance(group: Mapping[str, Any], task: Task, grad: Tensor) -> tuple[Tensor, ...]:
    """Step the second moments of blocks that other ranks hold parts of, if it has such; return the factors of their roots."""
    blocks, state = task.layout, task.state
    if not isinstance(blocks, CutBlocks):
        return ()
    if group["weight_decay"] and not group["decoupled_weight_decay"] and any(mean is None for mean in blocks.means):
        grad = torch.add(-grad if group["maximize"] else grad, task.p, alpha=group["weight_decay"])
    moments = [state[name] for name in ("exp_avg_sq", "exp_avg_sq_col") if name in state]
    return tuple(factor.contiguous() for factor in blocks.advance(moments, grad, group["betas"][1]))


class _Batch:
    """The tensors of one device and one pair of dtypes, and the tables that tell the kernels of them.

    Tables go to the device when something in them changed: the pointers after gradients were freed, the options after a scheduler's step.
    They are written over there, so that the same launches can be made again.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, momentum_dtype: torch.dtype) -> None:
        self.device, self.dtype, self.compute = device, dtype, second_moment_dtype(dtype)
        self.momentum_dtype = momentum_dtype
        self.sent_fields, self.sent_options, self.sent_plans = array("q"), array("d"), []
        self.tasks = self.options = self.scalars = self.partials = torch.empty(0)
        self.tables: dict[tuple, Tensor] = {}
        self.launches: list[Launch] = []  # of the last step, if they are of the present tables
        self.lrs: dict[int, Tensor] = {}
        self.captured: list[Tensor] = []
        self.begin()

    def begin(self) -> None:
        self.fields, self.plans, self.fresh_lrs = array("q"), [], {}

    def address_of_lr(self, g: int, lr: Tensor) -> int:
        """A float32 copy on this device, if the tensor is not that itself."""
        if lr.device == self.device and lr.dtype == torch.float32:
            return lr.data_ptr()
        if g not in self.fresh_lrs:
            kept = self.lrs.get(g)
            self.lrs[g] = kept = torch.empty((), dtype=torch.float32, device=self.device) if kept is None else kept
            self.fresh_lrs[g] = kept.copy_(lr.reshape(()), non_blocking=True)
        return self.lrs[g].data_ptr()

    def add(self, p: Tensor, grad: Tensor, state: Mapping[str, Tensor], plan: Plan, group: int, lr: int, factors: Sequence[Tensor]) -> None:
        numbers, order = plan.numbers, plan.order
        row_numbers = 0 if plan.row_numbers is None else plan.row_numbers.data_ptr()
        margins = [state["exp_avg_sq"].data_ptr(), state["exp_avg_sq_col"].data_ptr() if len(plan.tiles) else 0]
        rows, others = reversed(margins) if plan.swapped else margins
        if factors:
            rows, others, row_numbers = 0, factors[0].data_ptr(), factors[-1].data_ptr()
        pointers = (p.data_ptr(), grad.data_ptr(), state["exp_avg"].data_ptr(), rows)
        self.fields.extend(
            (
                *pointers,
                state["step"].data_ptr(),
                group,
                lr,
                0 if numbers is None else numbers.data_ptr(),
                0 if order is None else order.data_ptr(),
                plan.wide,
                p.numel(),
                others,
                row_numbers,
                0 if plan.tables is None else state["exp_avg" + SCALE].data_ptr(),
                0 if plan.tables is None else plan.tables.data_ptr(),
            )
        )
        aligned = plan.divisible and not (pointers[0] | pointers[1] | pointers[2] | pointers[3]) & 15
        self.plans.append((plan, aligned))

    def move_gradients(self, addresses: array[int]) -> bool:
        """Follow gradients that are elsewhere, if programs can read them as they read them there; say whether."""
        fields = array("q", self.fields)
        width = len(fields) // len(self.plans)
        if any((now ^ then) & 15 for now, then in zip(addresses, fields[1::width], strict=True)):
            return False
        fields[1::width] = addresses
        self.fields = fields
        return True

    def launch(self, options: array[float]) -> None:
        if self.device.type != "cuda":
            return self._launch(options, None)
        with torch.cuda.device(self.device):
            self._launch(options, torch.cuda.current_stream().cuda_stream)
            if torch.cuda.is_current_stream_capturing():
                self._leave_to_graph()

    def _launch(self, options: array[float], stream: int | None) -> None:
        if self.plans is not self.sent_plans and (
            len(self.plans) != len(self.sent_plans)
            or any(a is not c or b is not d for (a, b), (c, d) in zip(self.plans, self.sent_plans, strict=True))
        ):
            self._send_plans()
        if self.fields != self.sent_fields:
            self.tasks = self._send(torch.frombuffer(self.fields, dtype=torch.int64), self.tasks)
            self.sent_fields = self.fields
        if options != self.sent_options:
            self.options = self._send(torch.frombuffer(options, dtype=torch.float64), self.options)
            self.sent_options = options
        if self.launches:
            for launch in self.launches:
                launch.again(stream)
        else:
            self.launches = list(self._first_launches())

    def _first_launches(self) -> Iterator[Launch]:
        kernels = load_kernels()
        assert not isinstance(kernels, str)
        import triton.language as tl

        from lightning_adam_mini.optim.backends.triton.coded import update_coded

        n, sizes = len(self.plans), SIZES
        p, m, compute = (getattr(tl, DTYPES[dtype]) for dtype in (self.dtype, self.momentum_dtype, self.compute))
        lanes = kernels.PREPARE_LANES
        yield Launch(kernels.prepare, -(-n // lanes), (self.tasks, self.options, self.scalars, n), (lanes,), num_warps=2)
        dtypes, index, rest = (p, m, compute), self.tables.get(("index",)), (self.tasks, self.scalars)
        for (kind, *shape), table in self.tables.items():
            if kind == "items":
                yield Launch(kernels.step_blocks, len(table), (table, *rest), (*dtypes, sizes.tile, sizes.widths, *shape), num_warps=8)
            elif kind == "updates":
                yield Launch(kernels.update_tiles, len(table), (table, *rest), (*dtypes, sizes.tile, *shape), num_warps=8)
        rest = (*rest, self.partials)
        for update in (False, True):
            for (kind, *shape), table in self.tables.items():
                if kind == "coded" and update:
                    shape = (max(sizes.tile // 2, shape[0]), *shape)  # so that two programs share a multiprocessor
                    yield Launch(update_coded, len(table), (table, *rest), (p, compute, *shape), num_warps=8)
                elif kind in ("pieces", "tiles") and not (update and self.momentum_dtype == torch.int8):
                    kernel = kernels.step_pieces if kind == "pieces" else kernels.step_tiles
                    yield Launch(kernel, len(table), (table, *rest), (*dtypes, sizes.tile, *shape, update), num_warps=8)
            if update:
                break
            blocks, lines, means = (self.tables.get((kind,)) for kind in ("blocks", "lines", "means"))
            if blocks is not None:
                yield Launch(kernels.finish, len(blocks), (blocks, index, *rest), (compute, kernels.FINISH_LANES), num_warps=1)
            if lines is not None:
                lanes = (LINES, kernels.LINES_AT_ONCE)
                yield Launch(kernels.finish_lines, len(lines), (lines, *rest), (compute, *lanes), num_warps=2)
            if means is not None:
                args = (means, index, self.tasks, self.partials)
                yield Launch(kernels.average, len(means), args, (compute, kernels.AVERAGE_LANES), num_warps=4)

    def _send_plans(self) -> None:
        kernels = load_kernels()
        assert not isinstance(kernels, str)
        rows: dict[tuple, list[Tensor]] = {}
        sums = listed = 0
        for tensor, (plan, aligned) in enumerate(self.plans):
            parts = {
                ("items", aligned): plan.items,
                ("pieces", SIZES.columns, aligned): _plus(plan.pieces, sums, 5),
                ("tiles", plan.columns, aligned, plan.apart): _plus(plan.tiles, sums, 4, 5, 6),
                ("updates", plan.columns, aligned, plan.order is not None): plan.updates,
                ("coded", plan.run, aligned, plan.kind): _plus(plan.coded, sums, 2),
                ("blocks",): _plus(_plus(plan.blocks, listed, 3), sums, 5),
                ("means",): _plus(_plus(plan.means, listed, 3), sums, 5),
                ("lines",): _plus(plan.lines, sums, 4),
            }
            for key, part in parts.items():
                if len(part):
                    rows.setdefault(key, []).append(torch.cat([part.new_full((len(part), 1), tensor), part], dim=1))
            if len(plan.entries):
                rows.setdefault(("index",), []).append(plan.entries)
            sums += plan.sums
            listed += len(plan.entries)
        self.launches = []
        self.tables = {key: self._send(torch.cat(parts)) for key, parts in rows.items()}
        self.scalars = torch.empty(len(self.plans), kernels.SCALARS, dtype=torch.float64, device=self.device)
        self.partials = torch.empty(max(sums, 1), dtype=self.compute, device=self.device)
        self.sent_plans = self.plans

    def _send(self, table: Tensor, old: Tensor | None = None) -> Tensor:
        """A table on the device: the old one with other contents, if there is one of that length that no graph may read."""
        if self.device.type == "cuda":
            table = table.pin_memory()
            if torch.cuda.is_current_stream_capturing():
                self.captured.append(table)
                old = None
        if old is not None and old.shape == table.shape:
            return old.copy_(table, non_blocking=True)
        self.launches = []
        return table.to(self.device, non_blocking=True, copy=True)

    def _leave_to_graph(self) -> None:
        """Keep for good what a CUDA graph reads that is being captured; later steps get tables of their own."""
        self.captured += (self.tasks, self.options, self.scalars, self.partials, *self.tables.values())
        self.sent_fields, self.sent_options, self.sent_plans = array("q"), array("d"), []
        self.tasks = self.options = torch.empty(0)


def _plus(table: Tensor, number: int, *columns: int) -> Tensor:
    if not number or not len(table):
        return table
    table = table.clone()
    table[:, list(columns)] += number
    return table
