"""How long a whole training step takes, and the optimizer's share in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.optim import Optimizer

from experiments.figures import colour, new_figure
from experiments.options import choose_workloads, make_parser, prepare
from experiments.result import conditions, new_result, progress, publish
from experiments.rivals import BASELINE, Entrant, Rival, enter, remarks, select
from experiments.statistics import paired, spread
from experiments.tables import QUARTILES, Table, milliseconds, named
from experiments.timing import Clock, Times, take_turns
from experiments.workloads import Workload
from lightning_adam_mini.table import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEAD = ["optimizer", "training step ms (quartiles)", "its optimizer step ms (quartiles)", "share", "time by AdamW fused [95 %]"]
CUDA_BATCH = 16  # times the batch of a CPU


def training_step(workload: Workload, model: nn.Module, optimizer: Optimizer, batch: int, device: torch.device) -> Callable[[], float]:
    """Return a function that takes a training step and returns the seconds of the optimizer in it.

    Args:
        workload: The model's description.
        model: The model.
        optimizer: Its optimizer.
        batch: Examples a step.
        device: Where.
    """
    clock = Clock(device)

    def step() -> float:
        optimizer.zero_grad()
        assert workload.loss is not None
        workload.loss(model, batch).backward()
        clock.start()
        optimizer.step()
        return clock.stop()[0]

    return step


def measure(
    workload: Workload, rivals: Sequence[Rival], batch: int, rounds: int, seconds: float, device: torch.device
) -> tuple[list[Entrant], dict[str, Times]]:
    """Let the rivals train a model in turns; they share its parameters, whose values do not matter here.

    Args:
        workload: The model; it has a loss.
        rivals: Who trains it.
        batch: Examples a step.
        rounds: Rounds at most.
        seconds: Start no round after so long.
        device: Where.
    """
    model = workload.make(device).train()
    assert workload.loss is not None
    workload.loss(model, batch).backward()
    entrants = []
    for rival in rivals:
        progress(f"{workload.name}: {rival.title}")
        entrants.append(enter(rival, model))
    tasks = {e.rival.title: training_step(workload, model, e.optimizer, batch, device) for e in entrants if e.optimizer}
    progress(f"{workload.name}: at most {count(rounds, 'round')} or {seconds:g} s")
    return entrants, take_turns(tasks, rounds, seconds, device)


def section(workload: Workload, batch: int, entrants: Sequence[Entrant], times: dict[str, Times]) -> tuple[Table, list[dict[str, object]]]:
    """Return a model's table and its rows.

    Args:
        workload: The model.
        batch: Examples a step.
        entrants: The rivals.
        times: Their times.
    """
    base = times[BASELINE.title]
    lines: list[list[str]] = []
    rows: list[dict[str, object]] = []
    for entrant in entrants:
        name = entrant.rival.title
        row: dict[str, object] = {"model": workload.name, "batch": batch, "optimizer": name, "note": entrant.note}
        rows.append(row)
        if name not in times:
            lines.append([name, entrant.note, *[""] * (len(HEAD) - 2)])
            continue
        own = times[name]
        shares = spread([inner / wall for inner, wall in zip(own.inner, own.wall, strict=True)])
        ratio = paired(own.wall, base.wall)
        row["rounds"] = len(own.wall)
        for kind, values in (("step", own.wall), ("optimizer", own.inner), ("step_cpu", own.cpu)):
            row |= named(kind, spread(values), QUARTILES)
        row |= named("share", shares, ("", *QUARTILES[1:])) | named("ratio", ratio)
        shown = "-" if entrant.rival is BASELINE else ratio.text(".3f")
        lines.append([entrant.title, milliseconds(own.wall), milliseconds(own.inner), f"{shares.centre:.1%}", shown])
    text = f"A batch of {batch} ({workload.example}), {count(len(base.wall), 'round')}."
    return Table(HEAD, lines, workload.title, text, remarks(entrants)), rows


def draw(axes: Axes, times: dict[str, Times], title: str) -> None:
    """Draw a bar for each rival, of forward and backward pass and of the optimizer.

    Args:
        axes: The chart.
        times: Times by rival.
        title: The chart's title.
    """
    names = list(times)[::-1]
    whole = [median(times[name].wall) * 1e3 for name in names]
    inner = [median(times[name].inner) * 1e3 for name in names]
    axes.barh(names, [w - i for w, i in zip(whole, inner, strict=True)], color="#d8dee4")
    axes.barh(names, inner, left=[w - i for w, i in zip(whole, inner, strict=True)], color=[colour(name) for name in names])
    for name, w, i in zip(names, whole, inner, strict=True):
        axes.annotate(f"{i / w:.1%}", (w, name), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, max(whole) * 1.15)
    axes.set_title(title)
    axes.set_xlabel("ms a training step; dark: the optimizer, its share")
    axes.grid(visible=False, axis="y")


def main(argv: Sequence[str]) -> int:
    """Run the experiment.

    Args:
        argv: What follows ``training-step``.
    """
    parser = make_parser(
        "training-step", "Time whole training steps, and the optimizer's share in them.", rounds=15, seconds=60, trained=True
    )
    parser.add_argument("--batch", type=int, default=None, help="examples a step (default: 1 to 4 on a CPU, 16 times that on a GPU)")
    options = parser.parse_args(argv)
    device = prepare(options)
    workloads = choose_workloads(options, device, trained=True)
    rivals = select(options.only)
    figure, charts = new_figure(len(workloads), width=6.0)
    tables, rows = [], []
    for axes, workload in zip(charts, workloads, strict=True):
        batch = options.batch or workload.batch * (CUDA_BATCH if device.type == "cuda" else 1)
        entrants, times = measure(workload, rivals, batch, options.rounds, options.seconds, device)
        table, more = section(workload, batch, entrants, times)
        tables.append(table)
        rows += more
        draw(axes, times, workload.title)
    text = (
        f"{conditions(device)} Forward pass, backward pass and optimizer step on random examples. The optimizers take "
        "turns in one process, in a new random order each round; medians over rounds, ratios paired within a round. The optimizer's share "
        "falls as the batch grows."
    )
    result = new_result("training-step", "Training step", argv, device, text=text, tables=tables, rows=rows)
    publish(result, options.out, {"training-step": figure})
    return 0
