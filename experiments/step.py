"""How long a step takes, without forward and backward pass, and how near that is to what the memory allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch

from experiments.figures import bars, new_figure
from experiments.options import choose_workloads, make_parser, prepare
from experiments.result import conditions, new_result, progress, publish
from experiments.rivals import BASELINE, Entrant, Rival, enter, remarks, select
from experiments.statistics import Interval, paired, spread
from experiments.tables import QUARTILES, Table, milliseconds, named
from experiments.timing import COPY, Copy, Times, take_turns
from experiments.workloads import Workload, add_random_gradients
from lightning_adam_mini.table import count

TOY_COPY = 1000  # elements

HEAD = [
    "optimizer",
    "ms (quartiles)",
    "CPU ms (quartiles)",
    "time by AdamW fused [95 %]",
    "CPU time by AdamW fused [95 %]",
    "floor",
    "GB/s of floor",
]


def measure(
    workload: Workload, rivals: Sequence[Rival], rounds: int, seconds: float, device: torch.device, copy_elements: int | None = None
) -> tuple[list[Entrant], dict[str, Times], dict[str, float]]:
    """Let the rivals step a model in turns. They share its parameters and gradients, whose values do not matter here.

    Args:
        workload: The model.
        rivals: Who steps it.
        rounds: Rounds at most.
        seconds: Start no round after so long.
        device: Where.
        copy_elements: Size of the copy that is timed beside them.

    Returns:
        The rivals, their times, and the bytes that each must move; the copy is among both.
    """
    model = workload.make(device)
    add_random_gradients(model)
    entrants = []
    for rival in rivals:
        progress(f"{workload.name}: {rival.title}")
        entrants.append(enter(rival, model))
    copy = Copy(device, copy_elements)
    tasks: dict[str, Callable[[], object]] = {entrant.rival.title: entrant.optimizer.step for entrant in entrants if entrant.optimizer}
    floors = {entrant.rival.title: entrant.rival.floor(model) for entrant in entrants}
    progress(f"{workload.name}: at most {count(rounds, 'round')} or {seconds:g} s")
    times = take_turns({**tasks, COPY: copy}, rounds, seconds, device)
    return entrants, times, floors | {COPY: copy.traffic}


def section(
    workload: Workload, entrants: Sequence[Entrant], times: dict[str, Times], floors: dict[str, float], device: torch.device
) -> tuple[Table, list[dict[str, object]], dict[str, Interval]]:
    """Return a model's table, its rows and the ratios for the figure.

    Args:
        workload: The model.
        entrants: The rivals.
        times: Their times.
        floors: The bytes that each must move.
        device: Where.
    """
    base = times[BASELINE.title]
    where = {"model": workload.name, "device": device.type, "threads": torch.get_num_threads()}
    lines: list[list[str]] = []
    rows: list[dict[str, object]] = []
    ratios: dict[str, Interval] = {}
    for entrant in entrants:
        name = entrant.rival.title
        row: dict[str, object] = {**where, "optimizer": name, "note": entrant.note}
        rows.append(row)
        if name not in times:
            lines.append([name, entrant.note, *[""] * (len(HEAD) - 2)])
            continue
        wall, cpu = times[name].wall, times[name].cpu
        ratios[name], cpu_ratio = paired(wall, base.wall), paired(cpu, base.cpu)
        rate = floors[name] / median(wall) / 1e9
        row |= {"rounds": len(wall), **named("wall", spread(wall), QUARTILES), **named("cpu", spread(cpu), QUARTILES)}
        row |= named("wall_ratio", ratios[name]) | named("cpu_ratio", cpu_ratio)
        row |= {"floor_bytes": floors[name], "gigabytes_per_second": rate}
        shown = ["-", "-"] if entrant.rival is BASELINE else [ratios[name].text(".3f"), cpu_ratio.text(".3f")]
        floor = f"{floors[name] / 1e6:,.1f} MB"
        lines.append([entrant.title, milliseconds(wall), milliseconds(cpu), *shown, floor, f"{rate:.1f}"])
    copied = median(times[COPY].wall)
    rate = floors[COPY] / copied / 1e9
    same = {"rounds": len(base.wall), "wall_seconds": copied, "floor_bytes": floors[COPY], "gigabytes_per_second": rate}
    rows.append({**where, "optimizer": COPY, **same})
    taken = [milliseconds(times[COPY].wall), milliseconds(times[COPY].cpu)]
    lines.append([f"({COPY} of {floors[COPY] / 2e6:,.0f} MB)", *taken, "", "", "", f"{rate:.1f}"])
    return Table(HEAD, lines, workload.title, f"{count(len(base.wall), 'round')}.", remarks(entrants)), rows, ratios


def main(argv: Sequence[str]) -> int:
    """Run the experiment.

    Args:
        argv: What follows ``step``.
    """
    parser = make_parser("step", "Time the step of each optimizer, without forward and backward pass.", rounds=25, seconds=45)
    options = parser.parse_args(argv)
    device = prepare(options)
    workloads, rivals = choose_workloads(options, device), select(options.only)
    figure, charts = new_figure(min(2, len(workloads)), -(-len(workloads) // 2), width=6.5)
    tables, rows = [], []
    for axes, workload in zip(charts, workloads, strict=False):
        measured = measure(workload, rivals, options.rounds, options.seconds, device, TOY_COPY if options.small else None)
        table, more, ratios = section(workload, *measured, device)
        tables.append(table)
        rows += more
        bars(axes, ratios, workload.title, "step time by AdamW fused, paired median, 95 %", ".2f", line=1.0, log=True)
    for axes in charts[len(workloads) :]:
        axes.remove()
    text = (
        f"{conditions(device)} Random gradients, no forward or backward pass. The optimizers take turns in one process, "
        "in a new random order each round; medians over rounds. Ratios are paired within a round, with the 95 % interval of their median. "
        "The floor is what the algorithm must read and write in float32: 28 bytes a parameter for AdamW; for a step by blocks 20 where a "
        "block stays on chip and 24 where its gradient must be read twice. The copy says how fast the memory is; most "
        "processors read what a copy overwrites as well, so that work in place can run at up to one and a half times its rate."
    )
    publish(new_result("step", "Step time", argv, device, text=text, tables=tables, rows=rows), options.out, {"step": figure})
    return 0
