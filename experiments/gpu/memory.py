"""The most memory that a training step takes, and the largest batch, beside AdamW's."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from experiments.gpu.case import Bench, Case, SkipCaseError
from experiments.gpu.models import TOY, gpt_60m, llama_1b
from experiments.largest_batch import first_step, free, reckon, section, train, try_out
from experiments.rivals import Rival, select
from experiments.tables import Table
from experiments.workloads import Workload
from lightning_adam_mini.optim import state_bytes

ONLY = r"^AdamW fused|torchao|^AdamMini$|^AdamMini (bfloat16|8-bit)"
ROOM = 1.5  # memory of the largest batch, by what AdamW keeps for a model


def cases(bench: Bench) -> list[Case]:
    """Return the cases.

    Args:
        bench: Where.
    """
    rivals = select(bench.only or ONLY)
    if bench.toy:
        return [
            Case("peak of toy", partial(peaks, bench, TOY, [r for r in rivals if r.module in ("torch", "lightning_adam_mini")])),
            Case("largest batch of toy", partial(largest, bench, TOY, rivals)),
        ]
    whole = torch.cuda.get_device_properties(bench.device).total_memory
    llama = llama_1b(1.5 * whole)  # one optimizer at a time
    return [
        *(Case(f"peak of {w.name}", partial(peaks, bench, w, rivals)) for w in (gpt_60m(), llama)),
        Case(f"largest batch of {llama.name}", partial(largest, bench, llama, [r for r in rivals if "8" not in r.title][:2]), least=10),
    ]


def peaks(bench: Bench, workload: Workload, rivals: list[Rival]) -> dict[str, object]:
    """Train three steps with each rival, with a batch of one.

    Args:
        bench: Where.
        workload: The model.
        rivals: The rivals.
    """
    lines: list[list[str]] = []
    rows: list[dict[str, object]] = []
    baseline = 0
    for rival in rivals:
        free()
        _, entrant = first_step(workload, rival, bench.device)
        row: dict[str, object] = {"model": workload.name, "optimizer": rival.title, "note": entrant.note}
        rows.append(row)
        if entrant.optimizer is None:
            lines.append([rival.title, entrant.note, "", ""])
            continue
        state, entrant = state_bytes(entrant.optimizer), replace(entrant, optimizer=None)  # which lets go of its memory
        del _
        free()
        if not bench.toy:
            torch.cuda.reset_peak_memory_stats()
        train(workload, entrant, 1, bench.device, steps=3)
        peak = 0 if bench.toy else torch.cuda.max_memory_allocated()
        row |= {"state_bytes": state, "peak_bytes": peak}
        baseline = baseline or peak
        share = peak / baseline if baseline else 0.0
        lines.append([rival.title, f"{peak / 2**20:,.0f} MiB", f"{share:.1%}", f"{state / 2**20:,.0f} MiB"])
    if bench.toy:
        bench.need_cuda("count of the memory that is in use")
    head = ["optimizer", "peak of a training step", "by AdamW fused", "state"]
    return {"text": Table(head, lines, f"{workload.title}, a batch of one {workload.example}").markdown(), "rows": rows}


def largest(bench: Bench, workload: Workload, rivals: list[Rival]) -> dict[str, object]:
    """Find the largest batch in half as much memory again as AdamW's state, weights and gradients take.

    Args:
        bench: Where.
        workload: The model.
        rivals: The rivals.
    """
    with torch.device("meta"):
        needed = 16 * sum(p.numel() for p in workload.build().parameters())
    size = int(ROOM * needed)
    if not bench.toy and size > torch.cuda.get_device_properties(bench.device).total_memory:
        raise SkipCaseError(f"the device has less than {size / 1e9:.0f} GB")
    sizes = {f"{size / 1e9:.3g} GB": size}
    sentence, found = (reckon if bench.toy else try_out)(workload, rivals, sizes, bench.device)
    table, rows = section(workload, sentence, found, sizes)
    return {"text": table.markdown(), "rows": rows}
