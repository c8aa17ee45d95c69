"""How many operators a step calls as the number of tensors grows, by torch.profiler."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from experiments.figures import new_figure, styles
from experiments.options import counts, make_parser, prepare
from experiments.result import conditions, new_result, progress, publish
from experiments.rivals import Entrant, enter, remarks, select, without_compiling
from experiments.tables import Table
from experiments.workloads import add_random_gradients, rows

EACH = 64  # parameters a tensor
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaMemcpyAsync", "cudaMemsetAsync")


class Calls(NamedTuple):
    """What a step calls.

    Args:
        operators: Operators that the optimizer calls.
        nested: Operators that these call in turn.
        launches: Kernels, copies and fills that are launched on a GPU.
    """

    operators: int
    nested: int
    launches: int


def calls(optimizer: Optimizer) -> Calls:
    """Profile a step.

    Args:
        optimizer: An optimizer that has taken steps before.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with profile(activities=activities) as profiler:
        optimizer.step()
    outer = nested = launches = 0
    for event in profiler.events() or ():
        if event.name.startswith(LAUNCHES):
            launches += 1
        elif "::" in event.name:
            parent = event.cpu_parent
            while parent is not None and "::" not in parent.name:
                parent = parent.cpu_parent
            outer, nested = (outer + 1, nested) if parent is None else (outer, nested + 1)
    return Calls(outer, nested, launches)


def main(argv: Sequence[str]) -> int:
    """Run the experiment.

    Args:
        argv: What follows ``launches``.
    """
    parser = make_parser("launches", "Count the operators of a step, from few tensors to many.", models=False)
    parser.add_argument("--tensors", type=counts, default="10,30,100,300,1000", help="numbers of tensors (default: %(default)s)")
    options = parser.parse_args(argv)
    device = prepare(options)
    rivals = select(options.only)
    sizes = [2, 4] if options.small else options.tensors
    found: dict[str, dict[int, Calls]] = {rival.title: {} for rival in rivals}
    entrants: list[Entrant] = []
    for tensors in sizes:
        model = rows(EACH * tensors, tensors).make(device)
        add_random_gradients(model)
        for rival in rivals:
            progress(f"{tensors} tensors: {rival.title}")
            # What is compiled for a CPU calls no operators, and what is compiled for a GPU may: there it is compiled.
            with without_compiling() if device.type == "cpu" else nullcontext():
                entrants.append(entrant := enter(rival, model))
                if entrant.optimizer is not None:
                    found[rival.title][tensors] = calls(entrant.optimizer)
    kinds = ["operators", "nested"] + ["launches"] * (device.type == "cuda")
    titles = {"operators": "Operators that the optimizer calls", "nested": "Operators inside these", "launches": "Launches on the GPU"}
    tables = []
    for kind in kinds:
        lines = [[name, *(f"{getattr(by[n], kind):,}" if n in by else "-" for n in sizes)] for name, by in found.items()]
        tables.append(Table(["optimizer", *(f"{n:,} tensors" for n in sizes)], lines, titles[kind]))
    figure, charts = new_figure(len(kinds), width=5.5)
    for axes, kind in zip(charts, kinds, strict=True):
        for name, style in styles(list(found)).items():
            axes.plot(list(found[name]), [getattr(c, kind) for c in found[name].values()], **style, marker="o", label=name)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1)  # has a place for 0
        axes.set_ylim(-0.3, 2.0 * max([1, *(getattr(c, kind) for by in found.values() for c in by.values())]))
        axes.set_xlabel("tensors")
        axes.set_title(titles[kind])
    figure.legend(*charts[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    text = (
        f"{conditions(device)} Counted by torch.profiler in a step of so many 8x8 matrices, after the first. On a "
        "CPU, what an optimizer would compile (torchao's) runs as it is, because what is compiled calls no operators. AdamMini's compiled "
        "loop is one. " + " ".join(remarks(entrants))
    )
    counted = [{"optimizer": name, "tensors": n, **c._asdict()} for name, by in found.items() for n, c in by.items()]
    result = new_result("launches", "Operators a step", argv, device, text=text, tables=tables, rows=counted)
    publish(result, options.out, {"launches": figure})
    return 0
