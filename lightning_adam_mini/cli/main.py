"""The commands and their arguments."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import torch

from lightning_adam_mini.cli.audit import add_audit_command
from lightning_adam_mini.cli.memory import add_memory_command
from lightning_adam_mini.cli.models import HELP, build_model, find_factory
from lightning_adam_mini.cli.partitions import add_partition_arguments, read_partition
from lightning_adam_mini.cli.rules import add_rules_command
from lightning_adam_mini.detection import ModelReport, inspect_model
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.partition import partition_model

_SIZES = re.compile(r"(\d+(?:x\d+)*)(?::(\w+))?")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The command line without the program's name; ``sys.argv`` by default.

    Returns:
        The exit status: 0, or 2 after a mistake in the arguments.
    """
    parser = argparse.ArgumentParser(prog="python -m lightning_adam_mini", description="Look at models as AdamMiniCallback would.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_inspect_command(commands)
    add_memory_command(commands)
    add_rules_command(commands)
    add_audit_command(commands)
    arguments = parser.parse_args(argv)
    try:
        output = arguments.run(arguments)
    except (ValueError, ModuleNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{output}\n")
    return 0


def _add_inspect_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``inspect`` to the commands."""
    parser = commands.add_parser(
        "inspect",
        help="what a model is, the role of each of its parameters, and its blocks",
        description="Say what kind of network a model is, what each parameter is for, and how many second moments a partition keeps.",
    )
    parser.add_argument("model", metavar="MODEL", help=HELP)
    parser.add_argument("--format", choices=("table", "json"), default="table", help="a table of roles, or JSON with every parameter")
    add_partition_arguments(parser)
    parser.add_argument(
        "--example",
        action="append",
        default=[],
        metavar="INPUT",
        help="run the model once to see its heads: sizes of a tensor, such as 1x3x224x224 or 1x16:int64 (repeat it for each argument), or"
        " module.path:factory (a function that makes the example: a dict as keywords, a tuple one by one)",
    )
    parser.add_argument("--no-probe", action="store_true", help="do not run attention by itself to find its heads")
    parser.add_argument(
        "--strict", action="store_true", help="fail where the partition needs the heads of an attention and they cannot be found"
    )
    parser.set_defaults(run=_inspect)


def _inspect(arguments: argparse.Namespace) -> str:
    strategy, overrides = read_partition(arguments)  # a mistake is told before the model is built
    example = _example(arguments.example)
    report = inspect_model(build_model(arguments.model), example, heads=strategy.needs_heads, probe=not arguments.no_probe)
    layouts = partition_model(report, strategy, overrides, strict=arguments.strict)
    return report.table(layouts) if arguments.format == "table" else to_json(report, layouts)


def _example(inputs: Sequence[str]) -> Any:
    """What to call the model with, on the meta device as the model itself; None if nothing was given."""
    if not inputs:
        return None
    if len(inputs) == 1 and not _SIZES.fullmatch(inputs[0]) and ":" in inputs[0]:
        module, _, name = inputs[0].partition(":")
        with torch.device("meta"):
            return find_factory(module, name)
    return tuple(map(_tensor, inputs))


def _tensor(text: str) -> torch.Tensor:
    found = _SIZES.fullmatch(text)
    dtype = getattr(torch, found[2] or "float32", None) if found else None
    if found is None or not isinstance(dtype, torch.dtype):
        raise ValueError(f"Cannot tell what example {text!r} is. Write the sizes of a tensor, 1x3x224x224 or 1x16:int64, or one factory.")
    return torch.zeros([int(size) for size in found[1].split("x")], dtype=dtype, device="meta")


def to_json(report: ModelReport, layouts: dict[str, BlockLayout]) -> str:
    """A report and its layouts as JSON: one object a parameter, by name."""
    parameters = {
        p.name: {
            "shape": p.shape,
            "role": p.role,
            "owner": p.owner,
            "axis": p.axis,
            "lines": p.lines,
            "guess": p.guess,
            "source": p.source.name.lower(),
            "reason": p.reason,
            "trainable": p.trainable,
            "aliases": p.aliases,
            "blocks": layouts[p.name].num_blocks,
            "layout": str(layouts[p.name]),
        }
        for p in report.parameters
    }
    parts = [{"path": p.path, "architecture": p.architecture, "guess": p.guess, "reason": p.reason} for p in report.parts]
    network = {"architecture": report.architecture, "guess": report.guess, "reason": report.reason}
    return json.dumps({**network, "parts": parts, "parameters": parameters}, indent=2)
