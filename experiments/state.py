"""How many bytes an optimizer's state holds, from the real state after a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from experiments.figures import bars, new_figure
from experiments.options import choose_workloads, make_parser, prepare
from experiments.result import conditions, new_result, progress, publish
from experiments.rivals import BASELINE, Rival, enter, select, without_compiling
from experiments.statistics import Interval
from experiments.tables import Table
from experiments.workloads import Workload, add_random_gradients
from lightning_adam_mini.optim import state_bytes


def measure(workload: Workload, rivals: Sequence[Rival], device: torch.device) -> tuple[int, dict[str, int | None], dict[str, str]]:
    """Let each rival take a step and count its state.

    Args:
        workload: The model.
        rivals: Who steps it, one after the other.
        device: Where.

    Returns:
        The model's parameters, and for each rival the bytes (none where it fails) and a note.
    """
    model = workload.make(device)
    add_random_gradients(model)
    held: dict[str, int | None] = {}
    notes: dict[str, str] = {}
    for rival in rivals:
        progress(f"{workload.name}: {rival.title}")
        with without_compiling():
            entrant = enter(rival, model)
        held[rival.title] = state_bytes(entrant.optimizer) if entrant.optimizer else None
        notes[rival.title] = entrant.note
    return sum(p.numel() for p in model.parameters()), held, notes


def run(workloads: Sequence[Workload], rivals: Sequence[Rival], device: torch.device) -> tuple[Table, list[dict[str, object]]]:
    """Measure all models.

    Args:
        workloads: The models.
        rivals: The optimizers.
        device: Where.

    Returns:
        The table and the rows.
    """
    rows: list[dict[str, object]] = []
    cells: dict[str, list[str]] = {rival.title: [] for rival in rivals}
    remarks: dict[str, None] = {}
    for workload in workloads:
        parameters, held, notes = measure(workload, rivals, device)
        baseline = held[BASELINE.title]
        for name, size in held.items():
            row: dict[str, object] = {"model": workload.name, "optimizer": name, "parameters": parameters, "note": notes[name]}
            rows.append(row)
            if size is None:
                cells[name].append(notes[name])
                continue
            share = size / baseline if baseline else 1.0
            row |= {"state_bytes": size, "bytes_a_parameter": size / parameters, "share_of_adamw": share}
            cells[name].append(f"{size / parameters:.3f} ({share:.1%})" + "*" * bool(notes[name]))
            if notes[name]:
                remarks[f"\\* {name}: {notes[name]}."] = None
    head = ["optimizer", *(workload.title for workload in workloads)]
    return Table(head, [[name, *line] for name, line in cells.items()], notes=list(remarks)), rows


def main(argv: Sequence[str]) -> int:
    """Run the experiment.

    Args:
        argv: What follows ``state``.
    """
    options = make_parser("state", "Count the bytes of each optimizer's state after a step.").parse_args(argv)
    device = prepare(options)
    workloads = choose_workloads(options, device)
    table, rows = run(workloads, select(options.only), device)
    figure, charts = new_figure(min(2, len(workloads)), -(-len(workloads) // 2), width=6.5)
    for axes, workload in zip(charts, workloads, strict=False):
        values = {
            str(row["optimizer"]): Interval(*[float(str(row["bytes_a_parameter"]))] * 3)
            for row in rows
            if row["model"] == workload.name and "bytes_a_parameter" in row
        }
        bars(axes, values, workload.title, "state bytes a parameter", ".2f")
    for axes in charts[len(workloads) :]:
        axes.remove()
    text = (
        f"{conditions(device)} Counted from the storages of the state after one step, those inside quantized tensors included; "
        "in brackets the share of AdamW's."
    )
    publish(
        new_result("state", "State bytes a parameter", argv, device, text=text, tables=[table], rows=rows), options.out, {"state": figure}
    )
    return 0
