"""What `AdamMiniCallback` and its monitoring cost a training step, beside plain AdamW."""

import argparse
import csv
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles

from jsonargparse import Namespace

from recipes.benchmarks.turns import fit_in_turns
from recipes.cli import RecipeCLI
from recipes.compare.optimizers import CALLBACK
from recipes.files import write_atomically
from recipes.statistics import Interval, median_interval

VARIANTS: dict[str, dict[str, object] | None] = {
    "AdamW": None,
    "AdamMini, no monitoring": {"monitor": False},
    "AdamMini, default monitoring": {},
}


def edit_for(arguments: dict[str, object] | None, steps: int, every: int, folder: Path, name: str, config: Namespace) -> None:
    """Turn the configuration of a recipe into that of a variant: its callback alone, TensorBoard, training steps only.

    Args:
        arguments: The callback's arguments; none for no callback.
        steps: Training steps.
        every: Lightning's ``log_every_n_steps``.
        folder: Where the log goes.
        name: Name of the log.
        config: The parsed configuration, changed in place.
    """
    trainer = config.trainer
    trainer.callbacks = []
    if arguments is not None:
        trainer.callbacks.append(Namespace(class_path=f"lightning_adam_mini.{CALLBACK}", init_args=Namespace(**arguments)))
    log = Namespace(save_dir=str(folder), name=name, version=0)
    trainer.logger = Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=log)
    trainer.log_every_n_steps = every
    trainer.max_steps, trainer.max_epochs = steps, -1
    trainer.limit_val_batches = 0
    trainer.enable_checkpointing = trainer.enable_progress_bar = trainer.enable_model_summary = False


def measure(args: Sequence[str], rounds: int, every: int, turn: int) -> dict[str, list[float]]:
    """Train all variants in turns.

    Args:
        args: Command line of the recipe.
        rounds: Measured rounds.
        every: Training steps a round, which are those from one logging step to the next.
        turn: Training steps a turn, a divisor of `every`.

    Returns:
        For each variant, the seconds that its training steps took in each round.
    """
    per_round = every // turn
    turns = per_round * (rounds + 1) + 1  # a round to warm up; a last turn, so that no measured one sees the end of a fit
    with tempfile.TemporaryDirectory() as folder:
        fits = []
        for name, arguments in VARIANTS.items():
            edit: Callable[[Namespace], None] = partial(edit_for, arguments, turns * turn, every, Path(folder), name)
            cli = RecipeCLI(list(args), run=False, edit=edit)
            cli.trainer.callbacks[:] = [c for c in cli.trainer.callbacks if type(c).__name__ != "SaveConfigCallback"]  # pyright: ignore[reportAttributeAccessIssue]
            fits.append((cli.trainer, cli.model, cli.datamodule))
        seconds = fit_in_turns(fits, turns, turn)
    starts = range(per_round, per_round * (rounds + 1), per_round)
    return {name: [sum(taken[start : start + per_round]) for start in starts] for name, taken in zip(VARIANTS, seconds, strict=True)}


def ratios(times: dict[str, list[float]], name: str, to: str) -> Interval:
    """Return the median over rounds of one variant's time by another's, with its 95 % interval.

    Args:
        times: What `measure` returns.
        name: The variant.
        to: The variant that it is compared with.
    """
    return median_interval([ours / theirs for ours, theirs in zip(times[name], times[to], strict=True)])


def tables(times: dict[str, list[float]], every: int) -> tuple[str, str]:
    """Return the results in Markdown and as CSV.

    Args:
        times: What `measure` returns.
        every: Training steps a round.
    """
    plain, quiet, _ = VARIANTS
    rounds = len(times[plain])
    lines = [
        f"Median over {rounds} rounds of {every} training steps, the variants taking turns in one process; times are paired within a "
        "round, with the 95 % interval of their median.",
        "",
        "| variant | steps/s (quartiles) | time by AdamW's [95 %] | time by that without monitoring [95 %] |",
        "| --- | --- | --- | --- |",
    ]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    kinds = [f"{kind}_{end}" for kind in ("by_adamw", "by_unmonitored") for end in ("median", "low95", "high95")]
    writer.writerow(["variant", "rounds", "steps_per_second", "quartile1", "quartile3", *kinds])
    for name, seconds in times.items():
        speeds = [every / second for second in seconds]
        first, _, third = quantiles(speeds, n=4) if len(speeds) > 1 else (speeds[0],) * 3
        pairs = [None if name == to else ratios(times, name, to) for to in (plain, quiet)]
        shown = ["-" if ratio is None else ratio.text(".4f") for ratio in pairs]
        lines.append(f"| {name} | {median(speeds):.2f} ({first:.2f}-{third:.2f}) | {shown[0]} | {shown[1]} |")
        numbers = [number for ratio in pairs for number in (ratio or ("", "", ""))]
        writer.writerow([name, rounds, median(speeds), first, third, *numbers])
    return "\n".join(lines) + "\n", buffer.getvalue()


def main(argv: Sequence[str]) -> int:
    """Run the benchmark.

    Args:
        argv: What follows ``benchmark callback``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m recipes benchmark callback",
        description="Compare steps/s of plain AdamW, of AdamMini by the callback without monitoring, and with monitoring at its defaults.",
        epilog="Further arguments are those of `python -m recipes fit`: --data.batch_size 32.",
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", default="configs/resnet18_digits.yaml", help="the recipe's YAML (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds (default: %(default)s)")
    parser.add_argument("--every", type=int, default=50, help="log_every_n_steps, and steps a round (default: %(default)s)")
    parser.add_argument("--turn", type=int, default=10, help="steps a turn, a divisor of --every (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark"), help="folder of the results (default: %(default)s)")
    known, overrides = parser.parse_known_args(argv)
    if known.rounds < 1 or known.turn < 1 or known.every < 1 or known.every % known.turn:
        parser.error(f"--rounds {known.rounds} must be at least 1 and --turn {known.turn} a divisor of --every {known.every}")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    times = measure(["--config", known.config, *overrides], known.rounds, known.every, known.turn)
    table, text = tables(times, known.every)
    write_atomically(known.out / "callback.md", table)
    write_atomically(known.out / "callback.csv", text)
    sys.stdout.write(f"\n{table}\nWritten to {known.out / 'callback.md'} and {known.out / 'callback.csv'}\n")
    return 0
