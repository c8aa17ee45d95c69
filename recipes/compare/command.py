"""The command line of ``python -m recipes compare``."""

import argparse
import gc
import logging
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_adam_mini import AdamMiniCallback, partition_model
from recipes.compare.figure import draw
from recipes.compare.plan import BASELINE, Plan, Run, callback_arguments
from recipes.compare.results import Result, load_result, select_each
from recipes.compare.table import build_rows, csv_text, markdown
from recipes.compare.train import train
from recipes.files import write_atomically

EPILOG = """\
Further arguments are those of `python -m recipes fit` and hold for every run: --trainer.max_epochs 2 --data.batch_size 32.
An interrupted comparison goes on where it stopped: a finished run (one JSON file under OUT/runs) is never repeated.
"""


def parse(argv: Sequence[str]) -> tuple[Plan, int]:
    """Read the command line.

    Args:
        argv: What follows ``compare``.

    Returns:
        The comparison, and how many runs to run side by side.
    """
    parser = argparse.ArgumentParser(
        prog="python -m recipes compare",
        description="Train a recipe under several optimizers and seeds; write a table (Markdown, CSV) and a figure.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("-c", "--config", type=Path, required=True, help="the recipe's YAML, such as configs/resnet18_digits.yaml")
    parser.add_argument(
        "--optimizers",
        default="adamw,adam_mini",
        help="names with commas between: adamw (the recipe without the callback) or any partition of AdamMiniCallback, if need be with its "
        "momentum_dtype and options after colons (adam_mini:8bit, slim_adam:rules=rules.yaml); the others are compared with the first "
        "(default: %(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 (default: %(default)s)")
    parser.add_argument("--lrs", default="", help="learning rates with commas between, selected on validation (default: the recipe's)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: runs/compare/<name of the config>)")
    parser.add_argument("--jobs", type=int, default=1, help="how many runs side by side, in processes of their own (default: %(default)s)")
    known, overrides = parser.parse_known_args(argv)
    optimizers = tuple(name.strip() for name in known.optimizers.split(",") if name.strip())
    if not known.config.is_file():
        parser.error(f"there is no file {known.config}")
    if not optimizers or len(set(optimizers)) < len(optimizers):
        parser.error(f"--optimizers {known.optimizers!r} must name at least one optimizer, each once")
    for name in optimizers:
        try:
            if name != BASELINE:
                arguments = callback_arguments(name)
                partition_model(nn.Linear(1, 1), arguments["partition"], **arguments.get("options", {}))
                AdamMiniCallback(momentum_dtype=cast(Any, arguments.get("momentum_dtype")))
        except (ValueError, MisconfigurationException) as error:
            parser.error(f"--optimizers names neither {BASELINE} nor a partition: {error}")
    if known.seeds < 1 or known.jobs < 1:
        parser.error(f"--seeds and --jobs must be at least 1, not {min(known.seeds, known.jobs)}")
    try:
        lrs = tuple(float(rate) for rate in known.lrs.split(",") if rate.strip())
    except ValueError:
        parser.error(f"--lrs {known.lrs!r} must be numbers with commas between")
    out = known.out or Path("runs") / "compare" / known.config.stem
    return Plan(known.config, tuple(overrides), out, optimizers, lrs, tuple(range(known.seeds))), known.jobs


def main(argv: Sequence[str]) -> int:
    """Run a comparison.

    Args:
        argv: What follows ``compare``.
    """
    plan, jobs = parse(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        results = run_all(plan, jobs)
        chosen = select_each(results, plan.optimizers)
    except MisconfigurationException as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    rows = build_rows(chosen)
    table = markdown(rows, results[0].headline.title, plan.lrs)
    write_atomically(plan.out / "table.md", table)
    write_atomically(plan.out / "table.csv", csv_text(rows))
    drawn = draw(chosen, plan.out / "figure.png")
    figure = "figure.png" if drawn else "no figure, because no run validated while it trained"
    sys.stdout.write(f"\n{table}\nWritten to {plan.out}: table.md, table.csv and {figure}\n")
    return 0


def run_all(plan: Plan, jobs: int) -> list[Result]:
    """Do the runs that have not been done, and return the results of all.

    Args:
        plan: The comparison.
        jobs: How many runs side by side.
    """
    runs = plan.runs()
    todo = [run for run in runs if load_result(plan, run) is None]
    if len(todo) < len(runs):
        sys.stdout.write(f"{len(runs) - len(todo)} of {len(runs)} runs were finished before\n")
    started = time.perf_counter()

    def report(run: Run, finished: int) -> None:
        result = load_result(plan, run)
        seconds = time.perf_counter() - started
        reached = "" if result is None else f"val {result.metric('val'):.4f} test {result.metric('test'):.4f}"
        left = seconds / finished * (len(todo) - finished)
        sys.stdout.write(f"[{len(runs) - len(todo) + finished}/{len(runs)}] {run.name}: {reached} ({left / 60:.1f} min left)\n")
        sys.stdout.flush()

    if jobs == 1:
        for finished, run in enumerate(todo, start=1):
            train(plan, run)
            gc.collect()  # a trainer refers to itself in circles, and with it a run's weights would stay
            report(run, finished)
    elif todo:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(train, plan, run, threads): run for run in todo}
            for finished, future in enumerate(as_completed(futures), start=1):
                future.result()
                report(futures[future], finished)
    return [result for run in runs if (result := load_result(plan, run)) is not None]
