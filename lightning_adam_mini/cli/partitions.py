"""The arguments that say what a partition is: ``--partition``, ``--option``, ``--override``."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lightning_adam_mini.partition import PartitionStrategy, make_strategy
from lightning_adam_mini.partition.overrides import check_overrides


def add_partition_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to a command."""
    parser.add_argument(
        "--partition", default="auto", metavar="NAME[:KEY=VALUE]", help="partition, such as adam_mini:value=whole (default: %(default)s)"
    )
    parser.add_argument(
        "--option", action="append", default=[], metavar="KEY=VALUE", help="option of the partition, such as value=whole; may be repeated"
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="GLOB=SPEC",
        help="blocks of the parameters that GLOB matches, such as 'head.*=tensor', '*.qkv.weight=q:12x64|k:12x64|v:12x64' or a mapping in"
        """ JSON, '*.wq={"role": "query", "heads": 12}'; may be repeated""",
    )


def read_partition(arguments: argparse.Namespace) -> tuple[PartitionStrategy, dict[str, Any]]:
    """The strategy, and overrides by glob.

    Raises:
        ValueError: If the partition or an option is unknown, or an override or an argument cannot be read.
    """
    name, *more = arguments.partition.split(":")  # options as compare writes them: adam_mini:value=whole:bias=tensor
    options = {key: _value(text) for key, text in map(_pair, [*more, *arguments.option])}
    overrides = {glob: _spec(glob, text) for glob, text in map(_pair, arguments.override)}
    check_overrides(overrides)
    return make_strategy(name, **options), overrides


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ValueError(f"{text!r} has no name or no value. Write NAME=VALUE.")
    return key, value


def _value(text: str) -> Any:
    """A number, true, false, null, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _spec(glob: str, text: str) -> Any:
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f'The override of {glob!r} is not JSON: {error}. Write it as {{"role": "query", "heads": 12}}.') from error
