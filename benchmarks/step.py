"""How long a step takes, without forward and backward pass, and how near that is to what the memory allows."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from statistics import median

import torch

from benchmarks.bandwidth import COPY, Copy
from benchmarks.options import choose_workloads, make_parser, prepare
from benchmarks.report import bars, conditions, count, markdown_table, milliseconds, new_figure, paired, progress, spread, write
from benchmarks.rivals import BASELINE, Entrant, Rival, enter, select
from benchmarks.turns import Times, take_turns
from benchmarks.workloads import Workload, add_random_gradients
from recipes.statistics import Interval

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
        progress(f"{workload.name}: {rival.name}")
        entrants.append(enter(rival, workload, model))
    copy = Copy(device, copy_elements)
    tasks: dict[str, Callable[[], object]] = {entrant.rival.name: entrant.optimizer.step for entrant in entrants if entrant.optimizer}
    floors = {entrant.rival.name: entrant.rival.floor(workload, model) for entrant in entrants}
    progress(f"{workload.name}: at most {count(rounds, 'round')} or {seconds:g} s")
    times = take_turns({**tasks, COPY: copy}, rounds, seconds, device)
    return entrants, times, floors | {COPY: copy.traffic}


def section(
    workload: Workload, entrants: Sequence[Entrant], times: dict[str, Times], floors: dict[str, float], device: torch.device
) -> tuple[str, list[dict[str, object]], dict[str, Interval]]:
    """Return a model's Markdown, its rows of the CSV file and the ratios for the figure.

    Args:
        workload: The model.
        entrants: The rivals.
        times: Their times.
        floors: The bytes that each must move.
        device: Where.
    """
    base = times[BASELINE.name]
    lines: list[list[str]] = []
    rows: list[dict[str, object]] = []
    ratios: dict[str, Interval] = {}
    for entrant in entrants:
        name = entrant.rival.name
        row: dict[str, object] = {"model": workload.name, "device": device.type, "threads": torch.get_num_threads(), "optimizer": name}
        rows.append(row)
        row["note"] = entrant.note
        if name not in times:
            lines.append([name, entrant.note, *[""] * (len(HEAD) - 2)])
            continue
        wall, cpu = times[name].wall, times[name].cpu
        ratio, cpu_ratio = paired(wall, base.wall), paired(cpu, base.cpu)
        rate = floors[name] / median(wall) / 1e9
        ratios[name] = ratio
        row["rounds"] = len(wall)
        for kind, values in (("wall", wall), ("cpu", cpu)):
            row |= dict(zip((f"{kind}_seconds", f"{kind}_quartile1", f"{kind}_quartile3"), spread(values), strict=True))
        for kind, interval in (("wall", ratio), ("cpu", cpu_ratio)):
            row |= dict(zip((f"{kind}_ratio", f"{kind}_ratio_low95", f"{kind}_ratio_high95"), interval, strict=True))
        row |= {"floor_bytes": floors[name], "gigabytes_per_second": rate}
        shown = ["-", "-"] if name == BASELINE.name else [ratio.text(".3f"), cpu_ratio.text(".3f")]
        lines.append(
            [
                name + ("*" if entrant.note else ""),
                milliseconds(wall),
                milliseconds(cpu),
                *shown,
                f"{floors[name] / 1e6:,.1f} MB",
                f"{rate:.1f}",
            ]
        )
    copied = median(times[COPY].wall)
    rows.append(
        {
            "model": workload.name,
            "device": device.type,
            "threads": torch.get_num_threads(),
            "optimizer": COPY,
            "rounds": len(base.wall),
            "wall_seconds": copied,
            "floor_bytes": floors[COPY],
            "gigabytes_per_second": floors[COPY] / copied / 1e9,
        }
    )
    lines.append(
        [
            f"({COPY} of {floors[COPY] / 2e6:,.0f} MB)",
            milliseconds(times[COPY].wall),
            milliseconds(times[COPY].cpu),
            "",
            "",
            "",
            f"{floors[COPY] / copied / 1e9:.1f}",
        ]
    )
    notes = [f"\n\\* {entrant.rival.name}: {entrant.note}." for entrant in entrants if entrant.note and entrant.optimizer]
    text = f"## {workload.title}\n\n{count(len(base.wall), 'round')}.\n\n{markdown_table(HEAD, lines)}\n" + "".join(
        f"{note}\n" for note in notes
    )
    return text, rows, ratios


def run(workloads: Sequence[Workload], rivals: Sequence[Rival], options: argparse.Namespace, device: torch.device) -> None:
    """Measure and write.

    Args:
        workloads: The models.
        rivals: The optimizers.
        options: The command line.
        device: Where.
    """
    figure, charts = new_figure(min(2, len(workloads)), -(-len(workloads) // 2), width=6.5)
    texts, rows = [], []
    for axes, workload in zip(charts, workloads, strict=False):
        text, more, ratios = section(workload, *measure(workload, rivals, options.rounds, options.seconds, device), device)
        texts.append(text)
        rows += more
        bars(axes, ratios, workload.title, "step time by AdamW fused, paired median, 95 %", ".2f", line=1.0, log=True)
    for axes in charts[len(workloads) :]:
        axes.remove()
    intro = (
        f"# Step time\n\n{conditions(device)} Random gradients, no forward or backward pass. The optimizers take turns in one process, "
        "in a new random order each round; medians over rounds. Ratios are paired within a round, with the 95 % interval of their median. "
        "The floor is what the algorithm must read and write in float32: 28 bytes a parameter for AdamW; for a step by blocks 20 where a "
        "block stays on chip and 24 where its gradient must be read twice. The copy says how fast the memory is; most "
        "processors read what a copy overwrites as well, so that work in place can run at up to one and a half times its rate.\n"
    )
    write(options.out, "step", "\n".join([intro, *texts]), rows, figure)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark.

    Args:
        argv: What follows ``step``.
    """
    parser = make_parser("step", "Time the step of each optimizer, without forward and backward pass.", rounds=25, seconds=45)
    options = parser.parse_args(argv)
    device = prepare(options)
    run(choose_workloads(options.models, device), select(options.only), options, device)
    return 0
