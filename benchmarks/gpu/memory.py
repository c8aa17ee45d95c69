"""The most memory that a training step takes, and the largest batch, beside AdamW's."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.gpu.case import Bench, Case, SkipCaseError
from benchmarks.gpu.models import TOY, gpt_60m, llama_1b
from benchmarks.largest_batch import first_step, free, reckon, section, train, try_out
from benchmarks.rivals import Rival, select
from benchmarks.workloads import Workload
from recipes.held import state_bytes

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
            Case("peak of toy", partial(peaks, bench, TOY, [rival for rival in rivals if not rival.package])),
            Case("largest batch of toy", partial(largest, bench, TOY, rivals)),
        ]
    whole = torch.cuda.get_device_properties(bench.device).total_memory
    llama = llama_1b(1.5 * whole)  # one optimizer at a time
    return [
        *(Case(f"peak of {w.name}", partial(peaks, bench, w, rivals)) for w in (gpt_60m(), llama)),
        Case(f"largest batch of {llama.name}", partial(largest, bench, llama, [r for r in rivals if "8" not in r.name][:2]), least=10),
    ]


def peaks(bench: Bench, workload: Workload, rivals: list[Rival]) -> dict[str, object]:
    """Train three steps with each rival, with a batch of one.

    Args:
        bench: Where.
        workload: The model.
        rivals: The rivals.
    """
    lines: list[str] = []
    rows: list[dict[str, object]] = []
    baseline = 0.0
    for rival in rivals:
        free()
        _, entrant = first_step(workload, rival, bench.device)
        row: dict[str, object] = {"model": workload.name, "optimizer": rival.name, "note": entrant.note}
        rows.append(row)
        if entrant.optimizer is None or entrant.build is None:
            lines.append(f"| {rival.name} | {entrant.note} | | |")
            continue
        row["state_bytes"], build = state_bytes(entrant.optimizer), entrant.build
        del _, entrant
        free()
        if not bench.toy:
            torch.cuda.reset_peak_memory_stats()
        train(workload, build, 1, bench.device, steps=3)
        peak = 0 if bench.toy else torch.cuda.max_memory_allocated()
        row["peak_bytes"], baseline = peak, baseline or float(peak)
        share = peak / baseline if baseline else 0.0
        lines.append(f"| {rival.name} | {peak / 2**20:,.0f} MiB | {share:.1%} | {float(str(row['state_bytes'])) / 2**20:,.0f} MiB |")
    if bench.toy:
        bench.need_cuda("count of the memory that is in use")
    head = "| optimizer | peak of a training step | by AdamW fused | state |\n| --- | --- | --- | --- |\n"
    return {"text": f"## {workload.title}, a batch of one {workload.example}\n\n{head}" + "\n".join(lines), "rows": rows}


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
    text, rows = section(workload, sentence, found, sizes)
    return {"text": text, "rows": rows}
