"""How long a step takes beside other optimizers, how near that is to what the memory allows, and how many kernels it launches."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

from experiments import step
from experiments.gpu.case import Bench, Case
from experiments.gpu.models import workloads
from experiments.launches import calls
from experiments.rivals import Rival, enter, select, without_compiling
from experiments.workloads import Workload, add_random_gradients

ROUNDS, TOY_ROUNDS = 30, 6
ONLY = r"^AdamW (fused|foreach)|torchao|bitsandbytes|^AdamMini$|^AdamMini (adam_mini|bfloat16|8-bit)"


def cases(bench: Bench) -> list[Case]:
    """Return a case for each model, and one for its launches.

    Args:
        bench: Where.
    """
    models = workloads(bench)
    rivals = [rival for rival in select(bench.only or ONLY) if not (bench.toy and rival.module == "bitsandbytes")]
    found = [Case(f"launches of {workload.name}", partial(launches, bench, workload, rivals)) for workload in models[:3]]
    return [Case(w.name, partial(timed, bench, w, rivals, len(models) - i)) for i, w in enumerate(models)] + found


def timed(bench: Bench, workload: Workload, rivals: list[Rival], more: int) -> dict[str, object]:
    """Let the rivals take turns.

    Args:
        bench: Where.
        workload: The model.
        rivals: Who steps it.
        more: Models that are still to be stepped, this one included.
    """
    seconds = bench.left() / (more + 1)
    copied = 1000 if bench.toy else None
    with without_compiling() if bench.toy else nullcontext():
        measured = step.measure(workload, rivals, TOY_ROUNDS if bench.toy else ROUNDS, seconds / 2, bench.device, copied)
    table, rows, _ = step.section(workload, *measured, bench.device)
    return {"text": table.markdown(), "rows": rows}


def launches(bench: Bench, workload: Workload, rivals: list[Rival]) -> dict[str, object]:
    """Count what a step launches.

    Args:
        bench: Where.
        workload: The model.
        rivals: Who steps it.
    """
    model = workload.make(bench.device)
    add_random_gradients(model)
    found: dict[str, object] = {}
    with without_compiling() if bench.toy else nullcontext():
        for rival in rivals:
            optimizer = enter(rival, model).optimizer
            if optimizer is not None:
                counted = calls(optimizer)
                found[rival.title] = counted.operators if bench.toy else counted.launches
    return found
