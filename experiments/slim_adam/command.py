"""The command line of ``python -m experiments slim_adam``."""

import argparse
import importlib
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from experiments.compare.command import TOY
from experiments.compare.command import main as compare
from experiments.options import recipe_parser
from experiments.result import new_result, publish
from experiments.slim_adam.figures import draw_ratios, draw_sweep
from experiments.slim_adam.room import Asked, Run, Task, recipe_lr, train
from experiments.slim_adam.tables import final, load_runs, rules_table, sweep_table
from experiments.tables import Table
from lightning_adam_mini.analysis import average_snr
from lightning_adam_mini.callbacks.snr_figures import draw_depth, draw_trajectories

SWEPT = ("adam_mini_v1", "adam_mini", "adalayer", "adalayer_ln_tl")
EPILOG = "Runs that were finished are not repeated. Results are in OUT, by default runs/slim_adam/<name of the config>."
FIGURES = {
    "vocabulary": "ratios of an embedding and an output layer over the vocabulary, and the tail of its tokens (Figures 7, 29)",
    "vision": "ratios of a ResNet18 and a vision transformer over learning rates, along the run and over depth (Figures 5, 6, 19-23)",
    "transfer": "rules averaged over depth, of a smaller model and of other data, beside rules per layer (Figure 30, Section 5)",
    "depth": "ratios of a small and a medium GPT over depth, by layer type (Figures 13-17)",
    "trajectories": "ratios of a small and a medium GPT along the run, by layer type (Figures 13-17)",
    "fine_tuning": "ratios of a fine-tuned GPT beside those of its pre-training, all weights and LoRA; loss by rules (Figures 18, 27, 28)",
    "kept": "what rules keep over learning rates and cut-offs, rows x columns among them, and their loss (Figures 10, 26)",
}
"""The paper's figures on recipes of their own; a module each, with the learning rates, steps and seeds of the default."""


def main(argv: Sequence[str]) -> int:
    """Run one of SlimAdam's experiments.

    Args:
        argv: What follows ``slim_adam``.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments slim_adam", description="SlimAdam's experiments at small scale.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    told = {
        run_rules: "derive rules at a tenth of the learning rate and at all of it; train with both beside AdamW",
        run_sweep: "AdamW, SlimAdam and coarser partitions over learning rates: a table and a figure",
        run_figures: "signal-to-noise ratios by learning rate, or by another argument of the recipe",
    }
    rules, sweep, figures = (add_command(commands, run, text) for run, text in told.items())
    for command in (rules, sweep):
        command.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 (default: %(default)s)")
    for command in (sweep, figures):
        command.add_argument("--lrs", required=True, help="learning rates with commas between")
    figures.add_argument("--vary", metavar="ARG=A,B", help="an argument of the recipe and its values, such as model.init=gpt2,torch")
    for name, text in FIGURES.items():
        add_figure(commands, name, text)
    known, overrides = parser.parse_known_args(list(argv))
    known.argv = argv
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    try:
        if known.command in FIGURES:
            if overrides:
                parser.error(f"unrecognized arguments: {' '.join(overrides)}")
            return run_figure(known)
        if known.small:
            known.every, overrides = 2, [*TOY, *overrides]
        known.out = known.out or Path("runs") / "slim_adam" / known.config.stem
        return known.run(known, overrides)
    except MisconfigurationException as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def add_command(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", run: Callable[[argparse.Namespace, list[str]], int], text: str
) -> argparse.ArgumentParser:
    """Add one of the experiments to the command line, and return its parser.

    Args:
        commands: What it is added to.
        run: Runs it.
        text: What it does.
    """
    name = run.__name__.removeprefix("run_")
    usual = recipe_parser(f"slim_adam {name}", text, required=True)
    command = commands.add_parser(name, help=text, parents=[usual], add_help=False, epilog=f"{usual.epilog} {EPILOG}")
    command.add_argument("--every", type=int, default=20, help="steps between measurements (default: %(default)s)")
    command.set_defaults(out=None, run=run)
    return command


def add_figure(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, text: str) -> None:
    """Add one of the paper's figures to the command line.

    Args:
        commands: What it is added to.
        name: The figure's.
        text: What it shows.
    """
    default = importlib.import_module(f"experiments.slim_adam.{name}")
    one = commands.add_parser(name, help=text, description=f"SlimAdam: {text}.", epilog="Runs that were finished are not repeated.")
    one.add_argument("--out", type=Path, default=Path("runs/slim_adam"), help="folder of the results (default: %(default)s)")
    lrs = ",".join(f"{lr:g}" for lr in default.LRS)
    one.add_argument("--lrs", default=lrs, help="learning rates with commas between (default: %(default)s)")
    one.add_argument("--seeds", type=int, default=default.SEEDS, help="how many seeds, from 0 (default: %(default)s)")
    one.add_argument("--steps", type=int, default=default.STEPS, help="steps of a run (default: %(default)s)")
    one.add_argument("--jobs", type=int, default=1, help="how many runs side by side, in processes of their own (default: %(default)s)")
    one.add_argument("--root", type=Path, help="folder of real data: text files or images (default: data that are embedded)")
    one.add_argument("--small", action="store_true", help="as few runs and steps as there can be: only to see that it runs")


def run_figure(known: argparse.Namespace) -> int:
    """Make one of the paper's figures."""
    lrs = sorted(set(_numbers(known.lrs)))
    if known.small:
        lrs, known.seeds, known.steps = lrs[:1], 1, 2
    if not lrs or min(known.seeds, known.steps, known.jobs) < 1:
        raise MisconfigurationException(f"--lrs {known.lrs!r} must hold a number, and --seeds, --steps and --jobs must be at least 1.")
    if known.root is not None and not known.root.is_dir():
        raise MisconfigurationException(f"--root {known.root} is no folder. Give the folder that holds the data, or leave it out.")
    started = time.perf_counter()
    asked = Asked(tuple(known.argv), known.out, tuple(lrs), tuple(range(known.seeds)), known.steps, known.jobs, known.root, known.small)
    importlib.import_module(f"experiments.slim_adam.{known.command}").make(asked)
    sys.stdout.write(f"{known.command}: {time.perf_counter() - started:.0f} s\n")
    return 0


def measured_at(known: argparse.Namespace, overrides: Sequence[str], lr: float, variant: str = "") -> tuple[Run, Path]:
    """Return what a measuring run at a learning rate gives, and the file of its rules; measurements and figures lie beside it.

    Args:
        known: The command's own arguments.
        overrides: The recipe's.
        lr: Peak learning rate.
        variant: What to call it besides.
    """
    sys.stdout.write(f"measuring at lr {lr:g} {variant}\n")
    sys.stdout.flush()
    folder = known.out / f"lr{lr:g}{variant}"
    task = Task(f"lr{lr:g}{variant}", ("--config", str(known.config), *overrides), lr, every=known.every)
    run = train(task, folder / "run.json")
    rules = folder / "slim_adam_rules.yaml"
    run.rules().save(rules)
    (folder / "snr.csv").write_text(run.history.csv_text(), encoding="utf-8")
    for name, draw in (("trajectories", draw_trajectories), ("depth", draw_depth)):
        draw(run.history, run.report).savefig(folder / f"snr_{name}.png")
    return run, rules


def run_rules(known: argparse.Namespace, overrides: list[str]) -> int:
    """Derive rules at a tenth of the learning rate and at all of it, and train with both."""
    lr = recipe_lr(known.config)
    derived = {rate: measured_at(known, overrides, rate) for rate in (lr / 10, lr)}
    names = {rate: f"slim_adam:rules={rules}" for rate, (_, rules) in derived.items()}
    folder = known.out / "rules"
    given = ["--config", str(known.config), "--seeds", str(known.seeds), "--out", str(folder), *overrides]
    if status := compare([*given, "--optimizers", ",".join(["adamw", *names.values()])]):
        return status
    table = rules_table(load_runs(folder), {names[rate]: (rate, run.kept(run.rules())) for rate, (run, _) in derived.items()})
    return _publish(known, "rules", "Rules from two learning rates", table, load_runs(folder))


def run_sweep(known: argparse.Namespace, overrides: list[str]) -> int:
    """Train AdamW, SlimAdam and coarser partitions over learning rates."""
    _, rules = measured_at(known, overrides, recipe_lr(known.config) / 10)
    slim, folder = f"slim_adam:rules={rules}", known.out / "sweep"
    given = ["--config", str(known.config), "--seeds", str(known.seeds), "--lrs", known.lrs, "--out", str(folder), *overrides]
    if status := compare([*given, "--optimizers", ",".join(["adamw", slim, *SWEPT])]):
        return status
    runs = [{**run, "optimizer": "slim_adam" if run["optimizer"] == slim else run["optimizer"]} for run in load_runs(folder)]
    table = sweep_table(runs, ["adamw", "slim_adam", *SWEPT])
    return _publish(known, "sweep", "Over learning rates", table, runs, {"sweep": draw_sweep(runs)})


def run_figures(known: argparse.Namespace, overrides: list[str]) -> int:
    """Draw signal-to-noise ratios by learning rate, for each value of another argument if one is varied."""
    argument, _, values = (known.vary or "").partition("=")
    variants = {value: [f"--{argument}", value] for value in values.split(",") if value} or {"": []}
    curves = {
        variant: {
            rate: measured_at(known, [*overrides, *more], rate, f"_{variant}" * bool(variant))[0].ratios for rate in _numbers(known.lrs)
        }
        for variant, more in variants.items()
    }
    rows = [
        {"variant": variant, "lr": rate, "layer_type": kind, "over": over, "ratio": average_snr(each.values())}
        for variant, rates in curves.items()
        for rate, ratios in rates.items()
        for kind, by in ratios.items()
        for over, each in by.items()
    ]
    result = new_result("slim_adam", "Signal-to-noise ratios", known.argv, rows=rows)
    publish(result, known.out, {"ratios": draw_ratios(curves, argument)}, "ratios")
    sys.stdout.write("Trajectories and depth are in the folders beside it.\n")
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(rate) for rate in text.split(",") if rate.strip()]
    except ValueError:
        raise MisconfigurationException(f"--lrs {text!r} must be numbers with commas between.") from None


def _publish(known: argparse.Namespace, name: str, title: str, table: Table, runs: Sequence[Mapping[str, Any]], figures: Any = None) -> int:
    kept = ("optimizer", "lr", "seed", "state_bytes", "parameters")
    rows = [{**{key: run.get(key) for key in kept}, "test": final(run), "val": final(run, "val")} for run in runs]
    seeds = sorted({run["seed"] for run in runs})
    publish(new_result("slim_adam", title, known.argv, seeds=seeds, rows=rows), known.out, figures, name, [table])
    return 0
