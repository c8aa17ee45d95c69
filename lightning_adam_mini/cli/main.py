"""The commands and their arguments."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from lightning_adam_mini.cli.memory import add_memory_command
from lightning_adam_mini.cli.models import HELP, build_model
from lightning_adam_mini.cli.rules import add_rules_command
from lightning_adam_mini.detection import ModelReport, inspect_model
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.partition import partition_model


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The command line without the program's name; ``sys.argv`` by default.

    Returns:
        The exit status: 0, or 2 after a mistake in the arguments.
    """
    parser = argparse.ArgumentParser(prog="python -m lightning_adam_mini", description="Look at models as AdamMiniCallback would.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inspect = commands.add_parser(
        "inspect",
        help="what a model is, the role of each of its parameters, and its blocks",
        description="Say what kind of network a model is, what each parameter is for, and how many second moments a partition keeps.",
    )
    inspect.add_argument("model", metavar="MODEL", help=HELP)
    inspect.add_argument("--format", choices=("table", "json"), default="table", help="a table of roles, or JSON with every parameter")
    inspect.add_argument("--partition", default="auto", help="partition that the blocks are of (default: %(default)s)")
    inspect.add_argument(
        "--strict", action="store_true", help="fail where the partition needs the heads of an attention and they cannot be found"
    )
    inspect.set_defaults(run=_inspect)
    add_memory_command(commands)
    add_rules_command(commands)
    arguments = parser.parse_args(argv)
    try:
        output = arguments.run(arguments)
    except (ValueError, ModuleNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{output}\n")
    return 0


def _inspect(arguments: argparse.Namespace) -> str:
    report = inspect_model(build_model(arguments.model))
    layouts = partition_model(report, arguments.partition, strict=arguments.strict)
    return report.table(layouts) if arguments.format == "table" else to_json(report, layouts)


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
            "reason": p.reason,
            "trainable": p.trainable,
            "aliases": p.aliases,
            "blocks": layouts[p.name].num_blocks,
            "layout": str(layouts[p.name]),
        }
        for p in report.parameters
    }
    parts = [{"path": part.path, "architecture": part.architecture, "reason": part.reason} for part in report.parts]
    return json.dumps({"architecture": report.architecture, "reason": report.reason, "parts": parts, "parameters": parameters}, indent=2)
