"""What `AdamMiniCallback` and its monitoring cost a training step, beside plain AdamW."""

import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from jsonargparse import Namespace

from experiments.compare.optimizers import CALLBACK
from experiments.options import recipe_parser
from experiments.result import conditions, new_result, publish
from experiments.statistics import paired, spread
from experiments.tables import Table, named
from experiments.timing import fit_in_turns
from recipes.cli import RecipeCLI

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


def table(times: dict[str, list[float]], every: int) -> tuple[Table, list[dict[str, object]]]:
    """Return the results as a table and as rows.

    Args:
        times: What `measure` returns.
        every: Training steps a round.
    """
    plain, quiet, _ = VARIANTS
    lines, rows = [], []
    for name, seconds in times.items():
        speed = spread([every / second for second in seconds])
        pairs = {"by_adamw": plain, "by_unmonitored": quiet}
        found = {kind: paired(seconds, times[to]) for kind, to in pairs.items() if name != to}
        shown = [found[kind].text(".4f") if kind in found else "-" for kind in pairs]
        lines.append([name, f"{speed.centre:.2f} ({speed.low:.2f}-{speed.high:.2f})", *shown])
        row: dict[str, object] = {"variant": name, "rounds": len(seconds)}
        row |= named("steps_per_second", speed, ("", "quartile1", "quartile3"))
        for kind, ratio in found.items():
            row |= named(kind, ratio, ("median", "low95", "high95"))
        rows.append(row)
    head = ["variant", "steps/s (quartiles)", "time by AdamW's [95 %]", "time by that without monitoring [95 %]"]
    return Table(head, lines), rows


def main(argv: Sequence[str]) -> int:
    """Run the experiment.

    Args:
        argv: What follows ``callback``.
    """
    parser = recipe_parser(
        "callback",
        "Compare steps/s of plain AdamW, of AdamMini by the callback without monitoring, and with monitoring at its defaults.",
    )
    parser.add_argument("--rounds", type=int, default=20, help="measured rounds (default: %(default)s)")
    parser.add_argument("--every", type=int, default=50, help="log_every_n_steps, and steps a round (default: %(default)s)")
    parser.add_argument("--turn", type=int, default=10, help="steps a turn, a divisor of --every (default: %(default)s)")
    known, overrides = parser.parse_known_args(argv)
    if known.small:
        known.rounds, known.every, known.turn = 2, 4, 2
    if known.rounds < 1 or known.turn < 1 or known.every < 1 or known.every % known.turn:
        parser.error(f"--rounds {known.rounds} must be at least 1 and --turn {known.turn} a divisor of --every {known.every}")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    times = measure(["--config", str(known.config), *overrides], known.rounds, known.every, known.turn)
    shown, rows = table(times, known.every)
    text = (
        f"{known.config.stem}, {conditions(torch.device('cpu'))} Median over {known.rounds} rounds of {known.every} training steps, the "
        "variants taking turns in one process; times are paired within a round, with the 95 % interval of their median."
    )
    publish(new_result("callback", "What the callback costs", argv, text=text, tables=[shown], rows=rows), known.out)
    return 0
