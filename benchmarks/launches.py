"""How many operators a step calls as the number of tensors grows, by torch.profiler."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from benchmarks.options import counts, make_parser, prepare
from benchmarks.report import conditions, line_style, markdown_table, new_figure, progress, write
from benchmarks.rivals import enter, select, without_compiling
from benchmarks.workloads import add_random_gradients, rows

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
    """Run the benchmark.

    Args:
        argv: What follows ``launches``.
    """
    parser = make_parser("launches", "Count the operators of a step, from few tensors to many.", models=False)
    parser.add_argument("--tensors", type=counts, default="10,30,100,300,1000", help="numbers of tensors (default: %(default)s)")
    options = parser.parse_args(argv)
    device = prepare(options)
    rivals = select(options.only)
    found: dict[str, dict[int, Calls]] = {rival.name: {} for rival in rivals}
    notes: dict[str, str] = {}
    for tensors in options.tensors:
        workload = rows(EACH * tensors, tensors)
        model = workload.make(device)
        add_random_gradients(model)
        for rival in rivals:
            progress(f"{tensors} tensors: {rival.name}")
            # What is compiled for a CPU calls no operators, and what is compiled for a GPU may: there it is compiled.
            with without_compiling() if device.type == "cpu" else nullcontext():
                entrant = enter(rival, workload, model)
                if entrant.note:
                    notes[rival.name] = entrant.note
                if entrant.optimizer is not None:
                    found[rival.name][tensors] = calls(entrant.optimizer)
    kinds = ["operators", "nested"] + ["launches"] * (device.type == "cuda")
    titles = {"operators": "Operators that the optimizer calls", "nested": "Operators inside these", "launches": "Launches on the GPU"}
    texts = []
    for kind in kinds:
        lines = [[name, *(f"{getattr(by[n], kind):,}" if n in by else "-" for n in options.tensors)] for name, by in found.items()]
        texts.append(f"## {titles[kind]}\n\n{markdown_table(['optimizer', *(f'{n:,} tensors' for n in options.tensors)], lines)}\n")
    figure, charts = new_figure(len(kinds), width=5.5)
    for axes, kind in zip(charts, kinds, strict=True):
        for number, (name, by) in enumerate(found.items()):
            axes.plot(list(by), [getattr(c, kind) for c in by.values()], **line_style(name, number))
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1)  # has a place for 0
        axes.set_ylim(-0.3, 2.0 * max([1, *(getattr(c, kind) for by in found.values() for c in by.values())]))
        axes.set_xlabel("tensors")
        axes.set_title(titles[kind])
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*charts[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
    rows_out = [{"optimizer": name, "tensors": n, **c._asdict()} for name, by in found.items() for n, c in by.items()]
    intro = (
        f"# Operators a step\n\n{conditions(device)} Counted by torch.profiler in a step of so many 8x8 matrices, after the first. On a "
        "CPU, what an optimizer would compile (torchao's) runs as it is, because what is compiled calls no operators. AdamMini's compiled "
        "loop is one.\n"
    )
    remarks = "".join(f"\n\\* {name}: {note}.\n" for name, note in notes.items())
    write(options.out, "launches", "\n".join([intro, *texts]) + remarks, rows_out, figure)
    return 0
