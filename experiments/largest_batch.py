"""The largest batch that fits into a given memory: what a smaller optimizer state is good for.

On a CPU it is reckoned from measured bytes; on a GPU it is found by trying.
"""

from __future__ import annotations

import argparse
import gc
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experiments.figures import bars, new_figure
from experiments.options import choose_workloads, make_parser, prepare
from experiments.result import conditions, new_result, progress, publish
from experiments.rivals import BASELINE, Entrant, Rival, enter, select, without_compiling
from experiments.statistics import Interval
from experiments.tables import Table
from experiments.workloads import Workload
from lightning_adam_mini.optim import state_bytes
from lightning_adam_mini.optim.memory import bytes_held, plain_tensors

CPU_SIZES = "1GB,2GB,4GB,8GB"
TIMED_STEPS = 5
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


class Fit(NamedTuple):
    """How large a batch fits.

    Args:
        batch: Examples; 0 where not one fits.
        speed: Examples a second at that batch; none where it was not tried.
    """

    batch: int
    speed: float | None = None


class Activations(NamedTuple):
    """Bytes that are kept for the backward pass.

    Args:
        fixed: Whatever the batch.
        each: For each example more.
    """

    fixed: float
    each: float


class Found(NamedTuple):
    """What was found of a rival.

    Args:
        note: Why it failed, or by which remedy it did not.
        state: Bytes of its state; none where it failed.
        fits: The largest batch, by size of memory.
    """

    note: str
    state: int | None
    fits: dict[str, Fit]


def memory_sizes(text: str) -> dict[str, int]:
    """Return the bytes of each size in a comma-separated list.

    Args:
        text: The list.

    Example:
        >>> memory_sizes("500MB,8GB,1GiB")
        {'500MB': 500000000, '8GB': 8000000000, '1GiB': 1073741824}
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B", part.strip().upper())
        if match is None or not float(match[1]):
            raise argparse.ArgumentTypeError(f"{part!r} is no size of memory such as 8GB, 500MB or 16GiB")
        sizes[part.strip()] = int(float(match[1]) * UNITS[match[2] or ""])
    return sizes


def search(fits: Callable[[int], bool], most: int = 2**20) -> int:
    """Return the largest number that fits, to the exact number below 64 and to 1/64 above.

    Args:
        fits: Whether a number fits; a larger one than one that does not, does not either.
        most: The largest number that is tried.

    Example:
        >>> [search(lambda batch, limit=limit: batch <= limit) for limit in (0, 1, 37, 64)]
        [0, 1, 37, 64]
    """
    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, high * 2
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def kept_bytes(workload: Workload, model: nn.Module, batch: int) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, the model's own tensors left out.

    Args:
        workload: The model's description; it has a loss.
        model: The model.
        batch: Examples.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []  # alive until they are counted, so that no two have one address

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    assert workload.loss is not None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        workload.loss(model, batch)
    return bytes_held(tensor for value in kept for tensor in plain_tensors(value) if tensor.untyped_storage().data_ptr() not in own)


def activations(workload: Workload, model: nn.Module) -> Activations:
    """Measure a model's activations on two small batches.

    Args:
        workload: The model's description; it has a loss.
        model: The model.
    """
    two, four = (kept_bytes(workload, model, batch) for batch in (2, 4))
    each = (four - two) / 2
    return Activations(max(0.0, two - 2 * each), each)


def first_step(workload: Workload, rival: Rival, device: torch.device) -> tuple[nn.Module, Entrant]:
    """Build a model and let a rival step it once, after the smallest batch.

    Args:
        workload: The model; it has a loss.
        rival: The rival.
        device: Where.
    """
    model = workload.make(device).train()
    assert workload.loss is not None
    workload.loss(model, 2).backward()
    return model, enter(rival, model)


def reckon(workload: Workload, rivals: Sequence[Rival], sizes: Mapping[str, int], device: torch.device) -> tuple[str, dict[str, Found]]:
    """Reckon the largest batches from measured bytes.

    Args:
        workload: The model.
        rivals: The rivals, one after the other.
        sizes: Bytes of memory, by name.
        device: Where.

    Returns:
        What was measured, in a sentence, and what was found by rival.
    """
    model = workload.make(device).train()
    kept = activations(workload, model)
    sentence = ""
    found: dict[str, Found] = {}
    for rival in rivals:
        progress(f"{workload.name}: {rival.title}")
        with without_compiling():
            model, entrant = first_step(workload, rival, device)
        own = bytes_held([*model.parameters(), *model.buffers()])
        gradients = bytes_held(parameter.grad for parameter in model.parameters())
        sentence = (
            f"Parameters and buffers {own / 1e6:,.1f} MB, gradients {gradients / 1e6:,.1f} MB, kept for the backward pass "
            f"{kept.fixed / 1e6:,.1f} MB and {kept.each / 1e6:,.1f} MB for each {workload.example}."
        )
        if entrant.optimizer is None:
            found[rival.title] = Found(entrant.note, None, {})
            continue
        state = state_bytes(entrant.optimizer)
        rest = {name: size - own - gradients - state - kept.fixed for name, size in sizes.items()}
        found[rival.title] = Found(entrant.note, state, {name: Fit(max(0, int(left // kept.each))) for name, left in rest.items()})
    return sentence, found


def train(workload: Workload, entrant: Entrant, batch: int, device: torch.device, steps: int) -> list[float]:
    """Build a model and train it, and return the seconds of each step.

    Args:
        workload: The model; it has a loss.
        entrant: Makes the optimizer.
        batch: Examples a step.
        device: Where.
        steps: How many; the second is the first that has all of the state.
    """
    model = workload.make(device).train()
    optimizer = entrant.make(model)
    assert workload.loss is not None
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        workload.loss(model, batch).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return seconds


def try_out(workload: Workload, rivals: Sequence[Rival], sizes: Mapping[str, int], device: torch.device) -> tuple[str, dict[str, Found]]:
    """Find the largest batches on a GPU by training with them.

    Args:
        workload: The model.
        rivals: The rivals, one after the other.
        sizes: Bytes of memory, by name.
        device: The GPU.

    Returns:
        What was done, in a sentence, and what was found by rival.
    """
    whole = torch.cuda.get_device_properties(device).total_memory
    found: dict[str, Found] = {}
    for rival in rivals:
        torch.cuda.set_per_process_memory_fraction(1.0)
        free()
        _, entrant = first_step(workload, rival, device)
        if entrant.optimizer is None:
            found[rival.title] = Found(entrant.note, None, {})
            continue
        state, entrant = state_bytes(entrant.optimizer), replace(entrant, optimizer=None)  # which lets go of its memory
        del _
        fits: dict[str, Fit] = {}
        for name, size in sizes.items():
            torch.cuda.set_per_process_memory_fraction(min(1.0, size / whole))

            def works(batch: int, entrant: Entrant = entrant, title: str = f"{workload.name}, {name}: {rival.title}") -> bool:
                progress(f"{title} with {batch}")
                free()
                try:
                    train(workload, entrant, batch, device, steps=2)
                except torch.cuda.OutOfMemoryError:
                    return False
                return True

            batch = search(works)
            free()
            speed = batch / median(train(workload, entrant, batch, device, TIMED_STEPS + 2)[2:]) if batch else None
            fits[name] = Fit(batch, speed)
        found[rival.title] = Found(entrant.note, state, fits)
    torch.cuda.set_per_process_memory_fraction(1.0)
    return "Found by training two steps with each batch, below 64 to the exact number and above to 1/64.", found


def free() -> None:
    """Give back what the last trial held."""
    gc.collect()
    torch.cuda.empty_cache()


def section(
    workload: Workload, sentence: str, found: Mapping[str, Found], sizes: Mapping[str, int]
) -> tuple[Table, list[dict[str, object]]]:
    """Return a model's table and its rows.

    Args:
        workload: The model.
        sentence: How the batches were found.
        found: What was found, by rival.
        sizes: Bytes of memory, by name.
    """
    base = found[BASELINE.title]
    lines: list[list[str]] = []
    rows: list[dict[str, object]] = []
    for name, (note, state, fits) in found.items():
        if state is None:
            lines.append([name, note, *[""] * len(sizes)])
            rows.append({"model": workload.name, "optimizer": name, "note": note})
            continue
        cells = []
        for size, (batch, speed) in fits.items():
            baseline = base.fits[size].batch if size in base.fits else 0
            more = f" ({batch / baseline - 1:+.1%})" if baseline and name != BASELINE.title else ""
            cells.append(f"{batch:,}{more}" + (f", {speed:,.1f}/s" if speed is not None else ""))
            row: dict[str, object] = {"model": workload.name, "optimizer": name, "note": note, "state_bytes": state}
            row |= {"memory_bytes": sizes[size], "batch": batch, "examples_per_second": "" if speed is None else speed}
            rows.append(row)
        lines.append([name + ("*" if note else ""), f"{state / 1e6:,.1f} MB", *cells])
    notes = [f"\\* {name}: {note}." for name, (note, state, _) in found.items() if note and state is not None]
    return Table(["optimizer", "state", *sizes], lines, workload.title, sentence, notes), rows


def main(argv: Sequence[str]) -> int:
    """Run the experiment.

    Args:
        argv: What follows ``largest-batch``.
    """
    parser = make_parser("largest-batch", "Find the largest batch that fits into a given memory.", trained=True)
    parser.add_argument(
        "--memory", type=memory_sizes, default=None, metavar="8GB", help=f"sizes of memory (default: {CPU_SIZES}; on a GPU, all of its own)"
    )
    options = parser.parse_args(argv)
    device = prepare(options)
    cuda = device.type == "cuda"
    sizes = options.memory or (
        {"all": torch.cuda.get_device_properties(device).total_memory} if cuda else memory_sizes("1KB,20KB" if options.small else CPU_SIZES)
    )
    workloads = choose_workloads(options, device, trained=True)
    rivals = select(options.only)
    figure, charts = new_figure(len(sizes), len(workloads), width=4.5)
    tables, rows = [], []
    for line, workload in enumerate(workloads):
        sentence, found = (try_out if cuda else reckon)(workload, rivals, sizes, device)
        table, more = section(workload, sentence, found, sizes)
        tables.append(table)
        rows += more
        for axes, size in zip(charts[line * len(sizes) :], sizes, strict=False):
            values = {name: Interval(*[float(of.fits[size].batch)] * 3) for name, of in found.items() if size in of.fits}
            bars(axes, values, f"{workload.title}, {size}", f"largest batch ({workload.example})", ",.0f")
    how = (
        "tried for real, and examples a second with them."
        if cuda
        else "reckoned from parameters, gradients, the optimizer's real state and what the forward pass keeps for the backward pass, each "
        "measured. What an operator needs while it runs is left out."
    )
    text = f"{conditions(device)} Examples of a training step that fit into so much memory, {how}"
    result = new_result("largest-batch", "Largest batch", argv, device, text=text, tables=tables, rows=rows)
    publish(result, options.out, {"largest-batch": figure})
    return 0
