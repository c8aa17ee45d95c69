"""The largest batch that fits into a given memory: what a smaller optimizer state is good for.

On a CPU it is reckoned from measured bytes; on a GPU it is found by trying.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import NamedTuple

import torch

from benchmarks.activations import activations
from benchmarks.memory_sizes import memory_sizes
from benchmarks.options import choose_workloads, make_parser, prepare
from benchmarks.report import bars, conditions, markdown_table, new_figure, progress, write
from benchmarks.rivals import BASELINE, Build, Entrant, Rival, enter, select, without_compiling
from benchmarks.workloads import Workload
from recipes.held import bytes_held, gradient_bytes, state_bytes
from recipes.statistics import Interval

CPU_SIZES = "1GB,2GB,4GB,8GB"
TIMED_STEPS = 5


class Fit(NamedTuple):
    """How large a batch fits.

    Args:
        batch: Examples; 0 where not one fits.
        speed: Examples a second at that batch; none where it was not tried.
    """

    batch: int
    speed: float | None = None


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


def first_step(workload: Workload, rival: Rival, device: torch.device) -> tuple[torch.nn.Module, Entrant]:
    """Build a model and let a rival step it once, after the smallest batch.

    Args:
        workload: The model; it has a loss.
        rival: The rival.
        device: Where.
    """
    model = workload.make(device).train()
    assert workload.loss is not None
    workload.loss(model, 2).backward()
    return model, enter(rival, workload, model)


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
        progress(f"{workload.name}: {rival.name}")
        with without_compiling():
            model, entrant = first_step(workload, rival, device)
        own = bytes_held([*model.parameters(), *model.buffers()])
        gradients = gradient_bytes(model)
        sentence = (
            f"Parameters and buffers {own / 1e6:,.1f} MB, gradients {gradients / 1e6:,.1f} MB, kept for the backward pass "
            f"{kept.fixed / 1e6:,.1f} MB and {kept.each / 1e6:,.1f} MB for each {workload.example}."
        )
        if entrant.optimizer is None:
            found[rival.name] = Found(entrant.note, None, {})
            continue
        state = state_bytes(entrant.optimizer)
        rest = {name: size - own - gradients - state - kept.fixed for name, size in sizes.items()}
        found[rival.name] = Found(entrant.note, state, {name: Fit(max(0, int(left // kept.each))) for name, left in rest.items()})
    return sentence, found


def train(workload: Workload, build: Build, batch: int, device: torch.device, steps: int) -> list[float]:
    """Build a model and train it, and return the seconds of each step.

    Args:
        workload: The model; it has a loss.
        build: Makes the optimizer.
        batch: Examples a step.
        device: Where.
        steps: How many; the second is the first that has all of the state.
    """
    model = workload.make(device).train()
    optimizer = build(workload, model)
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
        if entrant.optimizer is None or entrant.build is None:
            found[rival.name] = Found(entrant.note, None, {})
            continue
        build, note, state = entrant.build, entrant.note, state_bytes(entrant.optimizer)
        del _, entrant
        fits: dict[str, Fit] = {}
        for name, size in sizes.items():
            torch.cuda.set_per_process_memory_fraction(min(1.0, size / whole))

            def works(batch: int, build: Build = build, title: str = f"{workload.name}, {name}: {rival.name}") -> bool:
                progress(f"{title} with {batch}")
                free()
                try:
                    train(workload, build, batch, device, steps=2)
                except torch.cuda.OutOfMemoryError:
                    return False
                return True

            batch = search(works)
            free()
            speed = batch / median(train(workload, build, batch, device, TIMED_STEPS + 2)[2:]) if batch else None
            fits[name] = Fit(batch, speed)
        found[rival.name] = Found(note, state, fits)
    torch.cuda.set_per_process_memory_fraction(1.0)
    return "Found by training two steps with each batch, below 64 to the exact number and above to 1/64.", found


def free() -> None:
    """Give back what the last trial held."""
    gc.collect()
    torch.cuda.empty_cache()


def section(workload: Workload, sentence: str, found: Mapping[str, Found], sizes: Mapping[str, int]) -> tuple[str, list[dict[str, object]]]:
    """Return a model's Markdown and its rows of the CSV file.

    Args:
        workload: The model.
        sentence: How the batches were found.
        found: What was found, by rival.
        sizes: Bytes of memory, by name.
    """
    base = found[BASELINE.name]
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
            more = f" ({batch / baseline - 1:+.1%})" if baseline and name != BASELINE.name else ""
            cells.append(f"{batch:,}{more}" + (f", {speed:,.1f}/s" if speed is not None else ""))
            row: dict[str, object] = {"model": workload.name, "optimizer": name, "note": note, "state_bytes": state}
            row |= {"memory_bytes": sizes[size], "batch": batch, "examples_per_second": "" if speed is None else speed}
            rows.append(row)
        lines.append([name + ("*" if note else ""), f"{state / 1e6:,.1f} MB", *cells])
    notes = [f"\n\\* {name}: {note}.\n" for name, (note, state, _) in found.items() if note and state is not None]
    return f"## {workload.title}\n\n{sentence}\n\n{markdown_table(['optimizer', 'state', *sizes], lines)}\n" + "".join(notes), rows


def main(argv: Sequence[str]) -> int:
    """Run the benchmark.

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
    sizes = options.memory or ({"all": torch.cuda.get_device_properties(device).total_memory} if cuda else memory_sizes(CPU_SIZES))
    workloads = choose_workloads(options.models, device, trained=True)
    rivals = select(options.only)
    figure, charts = new_figure(len(sizes), len(workloads), width=4.5)
    texts, rows = [], []
    for line, workload in enumerate(workloads):
        sentence, found = (try_out if cuda else reckon)(workload, rivals, sizes, device)
        text, more = section(workload, sentence, found, sizes)
        texts.append(text)
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
    intro = f"# Largest batch\n\n{conditions(device)} Examples of a training step that fit into so much memory, {how}\n"
    write(options.out, "largest-batch", "\n".join([intro, *texts]), rows, figure)
    return 0
