"""``python -m lightning_adam_mini audit``: whether a partition follows the Hessian of a model on a batch."""

from __future__ import annotations

import argparse
import json
import sys
import time
from inspect import isroutine
from typing import Any

from torch import nn

from lightning_adam_mini.analysis.audit import audit_partition
from lightning_adam_mini.cli.models import attempt, find_factory
from lightning_adam_mini.cli.partitions import add_partition_arguments, read_partition
from lightning_adam_mini.detection import inspect_model
from lightning_adam_mini.partition import partition_model

_WANTED = "module.path:factory, a function that gives (model, batch) or (model, loss)"


def add_audit_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``audit`` to the commands."""
    parser = commands.add_parser(
        "audit",
        help="whether a partition follows the Hessian, and the second moments, of a model on a batch",
        description="Compute columns of each parameter's Hessian and say how much of it lies within the partition's blocks, beside blocks"
        " at random, finer and coarser ones, and rows crossed with columns: a verdict for each parameter, and overrides to paste.",
    )
    parser.add_argument(
        "what",
        metavar="module.path:factory",
        help="a function without arguments that gives a model with its values and a batch, (model, batch), for a model with a training_step"
        " or one that returns a loss; or (model, loss), a function of the model",
    )
    add_partition_arguments(parser)
    parser.add_argument("--seconds", type=float, default=120.0, metavar="N", help="about how long it may take (default: %(default)g)")
    parser.add_argument("--columns", type=int, default=32, metavar="N", help="columns of each Hessian, at most (default: %(default)s)")
    parser.add_argument("--examples", type=int, default=16, metavar="N", help="examples of the batch to use (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sample and of what the loss draws")
    parser.add_argument("--format", choices=("table", "json"), default="table", help="a table, or JSON (default: %(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> str:
    """What the command prints.

    Raises:
        ValueError: If the factory does not give a model and a batch, or the audit cannot be made; see
            :func:`~lightning_adam_mini.analysis.audit_partition`.
    """
    strategy, overrides = read_partition(arguments)
    module, colon, name = arguments.what.partition(":")
    if not colon or not name or module in ("timm", "hf"):
        raise ValueError(f"Cannot tell what to audit by {arguments.what!r}, because an audit needs a batch too. Write {_WANTED}.")
    made = find_factory(module, name, _WANTED, failed="raised an error")
    if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
        raise ValueError(f"{arguments.what} gave {_described(made)}, not a model and a batch. Return (model, batch) or (model, loss).")
    model, batch_or_loss = made
    if isroutine(batch_or_loss):
        loss = batch_or_loss
        batch_or_loss = lambda module: attempt(f"The loss of {arguments.what}", lambda: loss(module), "raised an error")  # noqa: E731
    report = inspect_model(model, heads=True)
    found = audit_partition(
        model,
        batch_or_loss,
        partition_model(report, strategy, overrides),
        report=report,
        seconds=arguments.seconds,
        columns=arguments.columns,
        examples=arguments.examples,
        seed=arguments.seed,
        progress=Bar(sys.stderr),
    )
    return json.dumps(found.to_json(), indent=2) if arguments.format == "json" else found.table()


def _described(made: Any) -> str:
    """What was given instead of a pair."""
    if not isinstance(made, (tuple, list)):
        return type(made).__name__
    return f"a {type(made).__name__} of {', '.join(type(part).__name__ for part in made[:4]) or 'nothing'}"


class Bar:
    """One line of progress, written twice a second at most; nothing if nobody watches."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._last = stream, time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Show how many columns are done, and of how many."""
        now = time.monotonic()
        if self._stream.isatty() and (done == total or now - self._last > 0.5):
            self._last = now
            end = "\n" if done == total else ""
            self._stream.write(f"\r{done:,} of {total:,} columns of Hessians (Ctrl-C: what is done so far){end}")
            self._stream.flush()
