"""``python -m lightning_adam_mini memory``: bytes of parameters, gradients and optimizer state, before anything is allocated."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, get_args

import torch

from lightning_adam_mini.analysis.memory import BADAM, PARTITIONS, ModelMemory, StateMemory, count_memory
from lightning_adam_mini.analysis.paper_memory import (
    GIGABYTE,
    PAPER_MODELS,
    GaLoreComparison,
    PaperComparison,
    PaperModel,
    compare_with_paper,
)
from lightning_adam_mini.cli.models import HELP, build_model
from lightning_adam_mini.combine import PARTS, read_part
from lightning_adam_mini.optim.codecs import MomentumName, read_momentum_dtype
from lightning_adam_mini.partition import make_strategy
from lightning_adam_mini.table import align, count

_DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_OPTIMIZERS = {"SGD": "SGD, momentum", "AdamW": "AdamW (torch)", "AdamMini": "AdamMini"}


def add_memory_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``memory`` to the commands."""
    parser = commands.add_parser(
        "memory",
        help="bytes of a model's parameters, gradients and optimizer state, per optimizer and partition",
        description="Count what a model takes while it trains: parameters, gradients and the state of SGD, AdamW and AdamMini, to the byte."
        " Nothing is allocated. Activations, buffers and temporary tensors are not counted.",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("model", metavar="MODEL", nargs="?", help=HELP)
    what.add_argument(
        "--paper", action="store_true", help="instead of a model, the Adam-mini paper's Tables 1 and 5 beside the same counted"
    )
    parser.add_argument("--format", choices=("table", "json"), default="table", help="a table, or JSON (default: %(default)s)")
    parser.add_argument(
        "--partition", action="append", metavar="NAME", help=f"partition of AdamMini; may be repeated (default: {', '.join(PARTITIONS)})"
    )
    parser.add_argument(
        "--combine",
        action="append",
        metavar="NAME",
        help=f"what AdamMini is combined with: {', '.join(PARTS)} or {BADAM}, with settings after colons (galore:rank=1024); may be"
        " repeated. With --partition adam it is combined with AdamW, as its authors do",
    )
    parser.add_argument("--dtype", choices=_DTYPES, help="dtype of the parameters (default: each as the model has it)")
    parser.add_argument(
        "--momentum-dtype", choices=get_args(MomentumName), help="dtype of AdamMini's momentum (default: that of the parameter)"
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail where the partition needs the heads of an attention and they cannot be found"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> str:
    """What the command prints.

    Raises:
        ValueError: If the model cannot be built, a partition is unknown, or an option does not go with ``--paper``.
        ModuleNotFoundError: If the library that the model needs is not installed.
    """
    if arguments.paper:
        for option in ("partition", "combine", "dtype", "momentum_dtype", "strict"):
            if getattr(arguments, option):
                flag = f"--{option.replace('_', '-')}"
                raise ValueError(f"{flag} does not go with --paper, because the paper's figures have one setting. Give it with a MODEL.")
        comparisons = [compare_with_paper(model) for model in PAPER_MODELS]
        return paper_json(comparisons) if arguments.format == "json" else paper_tables(comparisons)
    partitions = list(dict.fromkeys(arguments.partition or PARTITIONS))
    for partition in partitions:
        make_strategy(partition)  # an unknown one fails before the model is built
    combine = list(dict.fromkeys(arguments.combine or ()))
    for combined in combine:
        if combined != BADAM:
            read_part(combined)
    model = build_model(arguments.model)
    memory = count_memory(
        model,
        partitions,
        dtype=_DTYPES.get(arguments.dtype),
        momentum_dtype=read_momentum_dtype(arguments.momentum_dtype),
        strict=arguments.strict,
        combine=combine,
    )
    name = type(model).__name__
    if arguments.format == "json":
        return memory_json(name, memory, arguments.momentum_dtype)
    return memory_table(name, memory, arguments.momentum_dtype)


def memory_table(name: str, memory: ModelMemory, momentum_dtype: str | None) -> str:
    """The count of one model as plain text.

    Args:
        name: What the model is called.
        memory: The count.
        momentum_dtype: What AdamMini's momentum is kept in, if not in the parameter's dtype.
    """
    report = memory.report
    tied = [p for p in report.parameters if p.aliases]
    frozen = len(report.parameters) - memory.trainable_tensors
    lines = [
        f"{name}, {report.architecture}{' ?' if report.guess else ''}: {report.reason}",
        "",
        f"parameters  {memory.parameters:>19,} B  {_size(memory.parameters):>10}  {memory.elements:,} in "
        + count(len(report.parameters), "tensor")
        + (f" ({', '.join(memory.dtypes)})" if memory.dtypes else ""),
        f"gradients   {memory.gradients:>19,} B  {_size(memory.gradients):>10}  {memory.trainable:,} in "
        + count(memory.trainable_tensors, "tensor"),
    ]
    if frozen:
        lines.append(f"{count(frozen, 'tensor')} ({count(memory.elements - memory.trainable, 'parameter')}) frozen: no gradient, no state.")
    if tied:
        others = f" and {len(tied) - 1} more" if len(tied) > 1 else ""
        lines.append(f"Tied, counted once: {tied[0].name} = {', '.join(tied[0].aliases)}{others}.")
    combining = any(state.combined for state in memory.states)
    added = ["combination"] if combining else []
    heading = ["optimizer", "momentum", "2nd moments", "steps", *added, "state, bytes", "state", "of AdamW's", "a parameter", "in all"]
    rows = [_state_row(memory, state, combining) for state in memory.states]
    lines += ["", *_align([heading, *rows]), ""]
    if momentum_dtype is not None:
        kept = (
            "8 bits, with a float32 scale for each 256 elements of a row, in tensors of 4,096 elements or more"
            if momentum_dtype == "8bit"
            else momentum_dtype
        )
        lines.append(f"AdamMini's momentum is in {kept}.")
    lines.append("1 GB = 1e9 bytes. In all: parameters, gradients and state; not activations, buffers and temporary tensors.")
    return "\n".join(lines)


def _state_row(memory: ModelMemory, state: StateMemory, combining: bool) -> list[str]:
    adamw = memory.state("AdamW").total
    return [
        f"{_OPTIMIZERS[state.optimizer]} {state.partition}".rstrip() + f" + {state.combined}" * bool(state.combined),
        _size(state.momentum),
        _size(state.second_moment),
        _size(state.step),
        *([_size(state.added)] if combining else []),
        f"{state.total:,}",
        _size(state.total),
        f"{100 * state.total / adamw:.2f} %" if adamw else "-",
        f"{state.total / memory.trainable:.3f} B" if memory.trainable else "-",
        _size(memory.parameters + memory.gradients + state.total),
    ]


def memory_json(name: str, memory: ModelMemory, momentum_dtype: str | None) -> str:
    """The count of one model as JSON."""
    report = memory.report
    states = [
        {
            "optimizer": state.optimizer,
            "partition": state.partition or None,
            "momentum_dtype": momentum_dtype if state.optimizer == "AdamMini" else None,
            "momentum_bytes": state.momentum,
            "second_moments": state.second_moments,
            "second_moment_bytes": state.second_moment,
            "step_bytes": state.step,
            **({"combined": state.combined, "combined_bytes": state.added} if state.combined else {}),
            "state_bytes": state.total,
            "total_bytes": memory.parameters + memory.gradients + state.total,
        }
        for state in memory.states
    ]
    found: dict[str, Any] = {
        "model": name,
        "architecture": report.architecture,
        "guess": report.guess,
        "tensors": len(report.parameters),
        "parameters": memory.elements,
        "dtypes": dict(memory.dtypes),
        "trainable_tensors": memory.trainable_tensors,
        "trainable_parameters": memory.trainable,
        "tied": {p.name: p.aliases for p in report.parameters if p.aliases},
        "parameter_bytes": memory.parameters,
        "gradient_bytes": memory.gradients,
        "optimizers": states,
    }
    return json.dumps(found, indent=2)


_ROWS = (("AdamW", "", "AdamW"), ("AdamMini", "adam_mini_v1", "Adam-mini v1"), ("AdamMini", "adam_mini", "Adam-mini v2"))


def paper_tables(comparisons: Sequence[PaperComparison]) -> str:
    """The paper's tables beside what is counted here."""
    states = [["model", "optimizer", "paper, GB", "here, GB", "difference", "paper saves", "here"]]
    shares = [["model", "parameters", "embedding and output", "paper", "here", "difference"]]
    for c in comparisons:
        for optimizer, partition, label in _ROWS:
            printed = {"AdamW": c.model.adamw, "Adam-mini v1": c.model.adam_mini}.get(label)
            here = c.gigabytes(optimizer, partition)
            states.append(
                [
                    c.model.name if optimizer == "AdamW" else "",
                    label,
                    "-" if printed is None else f"{printed:.2f}",
                    f"{here:.3f}",
                    _difference(here, printed),
                    f"{c.model.saved:.2f} %" if partition == "adam_mini_v1" and c.model.saved is not None else "",
                    f"{c.saved(partition):.2f} %" if partition else "",
                ]
            )
        printed, here = c.model.embedding, c.embedding_share
        paper = "-" if printed is None else f"{printed:.2f} %"
        counted = [f"{c.memory.elements:,}", f"{c.embedding:,}"]
        shares.append([c.model.name, *counted, paper, f"{here:.2f} %", _difference(here, printed)])
    return "\n".join(
        [
            "Table 1: optimizer state in float32; 1 GB = 1e9 bytes. The paper's figures are of version 1. Differences are relative.",
            "",
            *_align(states, text_columns=2),
            "",
            *_notes([(c.model.name, c.model.state_note) for c in comparisons]),
            "",
            "Table 5: share of the token embedding and the output layer in the parameters (tied ones counted once).",
            "",
            *_align(shares),
            "",
            *_notes([(c.model.name, c.model.embedding_note) for c in comparisons]),
            *(line for c in comparisons if c.galore is not None for line in _galore_lines(c.model, c.galore)),
        ]
    )


def _galore_lines(model: PaperModel, galore: GaLoreComparison) -> list[str]:
    """The paper's claim of GaLore-mini beside what is counted here."""
    heading = ["optimizer", "state, GB", "of AdamW's", "of GaLore's"]
    states = {
        "AdamW": galore.adamw,
        "GaLore": galore.galore,
        "GaLore-mini": galore.mini,
        "GaLore-mini, projected matrices": galore.projected,
    }
    rows = [
        [name, f"{size / GIGABYTE:.3f}", f"{100 * (size / galore.adamw - 1):+.1f} %", f"{100 * (size / galore.galore - 1):+.1f} %"]
        for name, size in states.items()
    ]
    return [
        "",
        f"GaLore-mini, {model.name} at rank {model.galore_rank}: the paper claims {-model.galore_saved[0]:+.0f} % on GaLore and"
        f" {-model.galore_saved[1]:+.0f} % on AdamW.",
        "",
        *_align([heading, *rows]),
        "",
        "As we read it, the second claim leaves the embedding and the output layer out of GaLore-mini's state, and not out of AdamW's.",
    ]


def paper_json(comparisons: Sequence[PaperComparison]) -> str:
    """The paper's figures beside what is counted here, as JSON."""
    found = [
        {
            "model": c.model.name,
            "parameters": c.memory.elements,
            "paper": {"adamw_gb": c.model.adamw, "adam_mini_v1_gb": c.model.adam_mini, "saved_percent": c.model.saved}
            | {"embedding_percent": c.model.embedding},
            "state_bytes": {label: c.memory.state(optimizer, partition).total for optimizer, partition, label in _ROWS},
            "saved_percent": {label: c.saved(partition) for _, partition, label in _ROWS if partition},
            "embedding_parameters": c.embedding,
            "embedding_percent": c.embedding_share,
            "why_state": c.model.state_note,
            "why_embedding": c.model.embedding_note,
            **({} if c.galore is None else {"galore_bytes": c.galore._asdict(), "galore_paper_saved_percent": c.model.galore_saved}),
        }
        for c in comparisons
    ]
    return json.dumps(found, indent=2)


def _difference(here: float, printed: float | None) -> str:
    return "-" if printed is None else f"{100 * (here / printed - 1):+.2f} %"


def _notes(notes: Sequence[tuple[str, str]]) -> list[str]:
    said = [(name, note) for name, note in notes if note]
    return ["Why they differ, as we read the paper:", *(f"  {name}: {note}" for name, note in said)]


def _align(rows: Sequence[Sequence[str]], text_columns: int = 1) -> list[str]:
    """Rows as lines: text to the left, numbers to the right."""
    return [line.rstrip() for line in align(rows, "<" * text_columns + ">" * (len(rows[0]) - text_columns))]


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:.2f} {unit}"
