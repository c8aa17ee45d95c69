"""What the command lines have in common."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from experiments.timing import LEAST_ROUNDS
from experiments.workloads import TOYS, WORKLOADS, Workload


def make_parser(
    name: str, description: str, rounds: int | None = None, seconds: float | None = None, models: bool = True, trained: bool = False
) -> argparse.ArgumentParser:
    """Return a parser with the options that every timing has.

    Args:
        name: The experiment.
        description: What it measures.
        rounds: Default number of rounds; none for what is not timed.
        seconds: Default seconds a model.
        models: Whether it takes ``--models``.
        trained: Whether it takes only networks, which have a loss.
    """
    parser = argparse.ArgumentParser(prog=f"python -m experiments {name}", description=description, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="folder of the results (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="REGEX", help="rivals by name; AdamW fused always takes part")
    if models:
        names = ", ".join(workload.name for workload in WORKLOADS if workload.loss or not trained)
        parser.add_argument(
            "--models", default="", metavar="REGEX", help=f"models by name, of {names} (default: those that fit the device)"
        )
    if rounds is not None:
        parser.add_argument("--rounds", type=int, default=rounds, help="rounds at most (default: %(default)s)")
        parser.add_argument(
            "--seconds",
            type=float,
            default=seconds,
            help="start no round after so many seconds on a model, the first 6 excepted (default: %(default)s)",
        )
    parser.add_argument("--small", action="store_true", help="toys in the place of models, and few rounds: only to see that it runs")
    parser.add_argument("--threads", type=int, default=None, help="torch's threads (default: torch's own choice)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where (default: %(default)s)")
    return parser


def recipe_parser(name: str, description: str, required: bool = False) -> argparse.ArgumentParser:
    """Return a parser of what trains a recipe, with the options that all of these have.

    Args:
        name: The experiment.
        description: What it does.
        required: Whether a recipe must be named.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments {name}",
        description=description,
        epilog="Further arguments are those of `python -m recipes fit`, for every run: --trainer.max_epochs 2 --data.batch_size 32.",
        allow_abbrev=False,
    )
    usual = None if required else Path("configs/resnet18_digits.yaml")
    told = "the recipe's YAML, such as configs/resnet18_digits.yaml" if required else "the recipe's YAML (default: %(default)s)"
    parser.add_argument("-c", "--config", type=Path, required=required, default=usual, help=told)
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="folder of the results (default: %(default)s)")
    parser.add_argument("--small", action="store_true", help="as few steps as there can be: only to see that it runs")
    return parser


def counts(text: str) -> list[int]:
    """Return the numbers of a comma-separated list, smallest first.

    Args:
        text: The list.

    Example:
        >>> counts("1000,10")
        [10, 1000]
    """
    try:
        numbers = sorted({int(number) for number in text.split(",")})
    except ValueError:
        numbers = [0]
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of positive whole numbers such as 10,100,1000")
    return numbers


def prepare(options: argparse.Namespace) -> torch.device:
    """Check the common options, set the threads and return the device.

    Args:
        options: What was parsed.

    Raises:
        MisconfigurationException: If one is out of range, or there is no such device.
    """
    for name, least in (("rounds", 1), ("threads", 1), ("seconds", 0), ("batch", 1)):
        value = getattr(options, name, None)
        if value is not None and value < least:
            raise MisconfigurationException(f"--{name} {value} must be at least {least}")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise MisconfigurationException("--device cuda: torch finds no GPU here; leave the option out to measure on the CPU")
    if options.small and hasattr(options, "rounds"):
        options.rounds, options.seconds = LEAST_ROUNDS, 0.0
    if options.small:
        torch.compiler.set_stance("force_eager")  # torchao would compile for every shape
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    return torch.device(options.device)


def choose_workloads(options: argparse.Namespace, device: torch.device, trained: bool = False) -> list[Workload]:
    """Return the models whose names match ``--models``; without it, those of a default run.

    Args:
        options: What was parsed; its pattern is searched for in the name without regard to case.
        device: Where; a pattern may name what is too large for a default run on a CPU.
        trained: Whether only networks count, which have a loss.

    Raises:
        MisconfigurationException: If it is no regular expression, or matches none.
    """
    pattern = options.models
    usable = [workload for workload in (TOYS if options.small else WORKLOADS) if workload.loss or not trained]
    if not pattern:
        return [workload for workload in usable if workload.default and (device.type == "cuda" or not workload.only_cuda)]
    try:
        found = [workload for workload in usable if re.search(pattern, workload.name, re.IGNORECASE)]
    except re.error as error:
        raise MisconfigurationException(f"--models {pattern!r} is not a regular expression: {error}") from error
    if not found:
        raise MisconfigurationException(f"--models {pattern!r} matches none of {', '.join(workload.name for workload in usable)}")
    return found
