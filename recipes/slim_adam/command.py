"""The command line of ``python -m recipes slim_adam``."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from recipes.compare.command import main as compare
from recipes.files import write_atomically
from recipes.slim_adam.derive import Derived, derive, recipe_lr
from recipes.slim_adam.figures import draw_ratios, draw_sweep
from recipes.slim_adam.tables import load_runs, rules_table, sweep_table

SWEPT = ("adam_mini_v1", "adam_mini", "adalayer", "adalayer_ln_tl")
EPILOG = "Further arguments are those of `python -m recipes fit` and hold for every run. Runs that were finished are not repeated."


def main(argv: Sequence[str]) -> int:
    """Run one of SlimAdam's experiments.

    Args:
        argv: What follows ``slim_adam``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m recipes slim_adam", description="SlimAdam's experiments at small scale.", epilog=EPILOG
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    rules = commands.add_parser(
        "rules", help="derive rules at a tenth of the learning rate and at all of it; train with both beside AdamW", epilog=EPILOG
    )
    sweep = commands.add_parser(
        "sweep", help="AdamW, SlimAdam and coarser partitions over learning rates: a table and a figure", epilog=EPILOG
    )
    figures = commands.add_parser(
        "figures", help="signal-to-noise ratios by learning rate, or by another argument of the recipe", epilog=EPILOG
    )
    for command in (rules, sweep, figures):
        command.add_argument("-c", "--config", type=Path, required=True, help="the recipe's YAML")
        command.add_argument("--out", type=Path, help="folder of the results (default: runs/slim_adam/<name of the config>)")
        command.add_argument("--every", type=int, default=20, help="steps between measurements (default: %(default)s)")
        command.set_defaults(run={rules: run_rules, sweep: run_sweep, figures: run_figures}[command])
    for command in (rules, sweep):
        command.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 (default: %(default)s)")
    for command in (sweep, figures):
        command.add_argument("--lrs", required=True, help="learning rates with commas between")
    figures.add_argument("--vary", metavar="ARG=A,B", help="an argument of the recipe and its values, such as model.init=gpt2,torch")
    known, overrides = parser.parse_known_args(list(argv))
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    known.out = known.out or Path("runs") / "slim_adam" / known.config.stem
    try:
        return known.run(known, overrides)
    except MisconfigurationException as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def measured_at(known: argparse.Namespace, overrides: Sequence[str], lr: float, variant: str = "") -> Derived:
    """Return what a measuring run at a learning rate gives.

    Args:
        known: The command's own arguments.
        overrides: The recipe's.
        lr: Peak learning rate.
        variant: What to call it besides.
    """
    sys.stdout.write(f"measuring at lr {lr:g} {variant}\n")
    sys.stdout.flush()
    return derive(known.config, overrides, lr, known.every, known.out / f"lr{lr:g}{variant}")


def run_rules(known: argparse.Namespace, overrides: list[str]) -> int:
    """Derive rules at a tenth of the learning rate and at all of it, and train with both."""
    lr = recipe_lr(known.config)
    derived = {rate: measured_at(known, overrides, rate) for rate in (lr / 10, lr)}
    names = {rate: f"slim_adam:rules={found.rules_file}" for rate, found in derived.items()}
    folder = known.out / "rules"
    given = ["--config", str(known.config), "--seeds", str(known.seeds), "--out", str(folder), *overrides]
    if status := compare([*given, "--optimizers", ",".join(["adamw", *names.values()])]):
        return status
    text = rules_table(load_runs(folder), {names[rate]: (rate, found.kept) for rate, found in derived.items()})
    return _write(known.out / "rules.md", text)


def run_sweep(known: argparse.Namespace, overrides: list[str]) -> int:
    """Train AdamW, SlimAdam and coarser partitions over learning rates."""
    found = measured_at(known, overrides, recipe_lr(known.config) / 10)
    slim, folder = f"slim_adam:rules={found.rules_file}", known.out / "sweep"
    given = ["--config", str(known.config), "--seeds", str(known.seeds), "--lrs", known.lrs, "--out", str(folder), *overrides]
    if status := compare([*given, "--optimizers", ",".join(["adamw", slim, *SWEPT])]):
        return status
    runs = [{**run, "optimizer": "slim_adam" if run["optimizer"] == slim else run["optimizer"]} for run in load_runs(folder)]
    draw_sweep(runs, known.out / "sweep.png")
    return _write(known.out / "sweep.md", sweep_table(runs, ["adamw", "slim_adam", *SWEPT]))


def run_figures(known: argparse.Namespace, overrides: list[str]) -> int:
    """Draw signal-to-noise ratios by learning rate, for each value of another argument if one is varied."""
    argument, _, values = (known.vary or "").partition("=")
    variants = {value: [f"--{argument}", value] for value in values.split(",") if value} or {"": []}
    curves = {
        variant: {rate: measured_at(known, [*overrides, *more], rate, f"_{variant}" * bool(variant)).ratios for rate in _numbers(known.lrs)}
        for variant, more in variants.items()
    }
    draw_ratios(curves, argument, known.out / "ratios.png")
    sys.stdout.write(f"Written to {known.out / 'ratios.png'}; trajectories and depth are in the folders beside it\n")
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(rate) for rate in text.split(",") if rate.strip()]
    except ValueError:
        raise MisconfigurationException(f"--lrs {text!r} must be numbers with commas between.") from None


def _write(file: Path, text: str) -> int:
    write_atomically(file, text)
    sys.stdout.write(f"\n{text}\nWritten to {file}\n")
    return 0
