"""The command line of ``python -m experiments compare``."""

import gc
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TypeVar

from lightning.fabric.utilities.exceptions import MisconfigurationException

from experiments.compare.figure import draw, draw_losses
from experiments.compare.optimizers import check_optimizer
from experiments.compare.plan import Plan, Run, Setting, runs_at
from experiments.compare.results import Finished, check_folder, load_result, results_at, select_each
from experiments.compare.sensitivity import build_cells, draw_sensitivity, sensitivity_rows
from experiments.compare.table import csv_rows, rows_of, tables_of
from experiments.compare.train import record, train
from experiments.compare.trajectory import (
    draw_trajectories,
    measure_trajectories,
    trajectory_rows,
    trajectory_table,
    weights_file,
)
from experiments.options import recipe_parser
from experiments.result import Result, new_result, publish
from experiments.rivals import RIVALS
from experiments.tables import csv_text
from recipes.files import write_atomically
from recipes.recipe import Headline

T = TypeVar("T")
EPILOG = """An interrupted comparison goes on where it stopped: a finished run (one JSON file under OUT/runs, by default under
runs/compare/<name of the config>) is never repeated."""
TOY = ("--trainer.max_steps=4", "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1", "--trainer.val_check_interval=2")


def parse(argv: Sequence[str]) -> tuple[Plan, int, int]:
    """Read the command line.

    Args:
        argv: What follows ``compare``.

    Returns:
        The comparison; how many runs to run side by side; how many points a trajectory has, 0 for none.
    """
    parser = recipe_parser(
        "compare", "Train a recipe under several optimizers and seeds; write a table (Markdown, CSV, JSON) and figures.", required=True
    )
    parser.epilog = f"{parser.epilog} {EPILOG}"
    parser.set_defaults(out=None)
    parser.add_argument(
        "--optimizers",
        default="adamw,auto",
        help=f"names with commas between: {', '.join(RIVALS)}, or any partition of AdamMiniCallback, if need be with its "
        "momentum_dtype and options after colons (adam_mini:8bit, slim_adam:rules=rules.yaml); the others are compared with the first "
        "(default: %(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 (default: %(default)s)")
    parser.add_argument("--lrs", default="", help="learning rates with commas between, selected on validation (default: the recipe's)")
    parser.add_argument("--betas", default="", help="pairs such as 0.9/0.95,0.9/0.99, likewise (default: the recipe's)")
    parser.add_argument("--tune-seeds", type=int, help="how many seeds get every learning rate and betas, and select (default: all)")
    parser.add_argument(
        "--trajectory",
        type=int,
        default=0,
        metavar="POINTS",
        help="train the selected runs once more, keep their weights at so many points, and draw their distance to those of the first "
        "optimizer",
    )
    parser.add_argument("--jobs", type=int, default=1, help="how many runs side by side, in processes of their own (default: %(default)s)")
    known, overrides = parser.parse_known_args(argv)
    if known.small:
        known.seeds, overrides = min(2, known.seeds), [*TOY, *overrides]
    optimizers = tuple(name.strip() for name in known.optimizers.split(",") if name.strip())
    if not known.config.is_file():
        parser.error(f"there is no file {known.config}")
    if not optimizers or len(set(optimizers)) < len(optimizers):
        parser.error(f"--optimizers {known.optimizers!r} must name at least one optimizer, each once")
    for name in optimizers:
        try:
            check_optimizer(name)
        except MisconfigurationException as error:
            parser.error(str(error))
    tune_seeds = known.seeds if known.tune_seeds is None else known.tune_seeds
    if known.seeds < 1 or known.jobs < 1 or not 1 <= tune_seeds <= known.seeds or known.trajectory < 0:
        parser.error(
            f"--seeds {known.seeds} and --jobs {known.jobs} must be at least 1, --tune-seeds {tune_seeds} between 1 and --seeds, and "
            f"--trajectory {known.trajectory} at least 0"
        )
    try:
        lrs = [float(rate) for rate in known.lrs.split(",") if rate.strip()]
    except ValueError:
        parser.error(f"--lrs {known.lrs!r} must be numbers with commas between")
    try:
        betas = [tuple(map(float, pair.split("/"))) for pair in known.betas.split(",") if pair.strip()]
        pairs = [(first, second) for first, second in betas]
    except ValueError:
        parser.error(f"--betas {known.betas!r} must be pairs such as 0.9/0.95 with commas between")
    settings = tuple(Setting(lr, pair) for pair, lr in itertools.product(pairs or [None], lrs or [None]))
    out = known.out or Path("runs") / "compare" / known.config.stem
    fewer = None if tune_seeds == known.seeds else tune_seeds
    plan = Plan(known.config, tuple(overrides), out, optimizers, tuple(range(known.seeds)), settings, fewer)
    return plan, known.jobs, known.trajectory


def main(argv: Sequence[str]) -> int:
    """Run a comparison.

    Args:
        argv: What follows ``compare``.
    """
    plan, jobs, points = parse(argv)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    try:
        check_folder(plan)
        tuned = run_all(plan, plan.tuning_runs(), jobs)
        chosen = select_each(tuned, plan.optimizers)
        others = run_all(plan, plan.other_runs(chosen), jobs)
        results = results_at([*tuned, *others], chosen)
        if points:
            recorded = [run for run in runs_at(chosen, plan.seeds) if not weights_file(plan, run, points).is_file()]
            do_each(recorded, partial(record, plan, points=points), jobs, lambda run, finished: None)
    except MisconfigurationException as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    headline = tuned[0].headline
    figures = {"figure": draw(results)}
    if all(result.losses for found in results.values() for result in found):
        figures["losses"] = draw_losses(results)
    if len(plan.settings) > 1:
        cells = build_cells(tuned)
        write_atomically(plan.out / "sensitivity.csv", csv_text(sensitivity_rows(cells)))
        figures["sensitivity"] = draw_sensitivity(cells, chosen, headline.title)
    kept = kept_of(plan, argv, [*tuned, *others], headline)
    shown = tables_of(kept)
    if points and len(chosen) > 1:
        trajectories = measure_trajectories(plan, chosen, points)
        table = trajectory_table(trajectories, plan.optimizers[0])
        write_atomically(plan.out / "trajectory.md", table.markdown())
        write_atomically(plan.out / "trajectory.csv", csv_text(trajectory_rows(trajectories)))
        figures["trajectory"] = draw_trajectories(trajectories, plan.optimizers[0])
        shown.append(table)
    drawn = {name: figure for name, figure in figures.items() if figure is not None}  # no run may have validated while it trained
    publish(kept, plan.out, drawn, "table", shown, csv_rows(rows_of(kept)))
    return 0


def kept_of(plan: Plan, argv: Sequence[str], finished: Sequence[Finished], headline: Headline) -> Result:
    """Return what is kept of a comparison beside its table.

    Args:
        plan: The comparison.
        argv: Its command line.
        finished: All of its runs.
        headline: What they are judged by.
    """
    facts = {
        "headline": asdict(headline),
        "optimizers": plan.optimizers,
        "settings": [(setting.lr, setting.betas) for setting in plan.settings],
        **({} if plan.tune_seeds is None else {"tune_seeds": plan.tune_seeds}),
    }
    rows = [one.row() for one in finished]
    here = new_result("compare", plan.config.stem, argv, seeds=plan.seeds, rows=rows, facts=facts)
    commits, machines = (", ".join(dict.fromkeys(getattr(one, name) for one in finished)) for name in ("commit", "machine"))
    return replace(here, commit=commits, machine=machines, versions=finished[-1].versions)


def run_all(plan: Plan, runs: Sequence[Run], jobs: int) -> list[Finished]:
    """Do the runs that have not been done, and return the results of all.

    Args:
        plan: The comparison.
        runs: The runs.
        jobs: How many runs side by side.
    """
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

    do_each(todo, partial(train, plan), jobs, report)
    return [result for run in runs if (result := load_result(plan, run)) is not None]


def do_each(runs: Sequence[T], work: Callable[..., None], jobs: int, report: Callable[[T, int], None]) -> None:
    """Do something with each run, in processes of their own where several go side by side.

    Args:
        runs: The runs.
        work: What to do; it takes the run, and how many ``threads`` torch may use.
        jobs: How many runs side by side.
        report: What to do after each; it takes the run, and how many are done.
    """
    if jobs == 1:
        for finished, run in enumerate(runs, start=1):
            work(run)
            gc.collect()  # a trainer refers to itself in circles, and with it a run's weights would stay
            report(run, finished)
    elif runs:
        threads = max(1, (os.cpu_count() or 1) // jobs)
        with ProcessPoolExecutor(max_workers=jobs, mp_context=get_context("spawn"), initializer=end_with_parent) as pool:
            futures = {pool.submit(work, run, threads=threads): run for run in runs}
            for finished, future in enumerate(as_completed(futures), start=1):
                future.result()
                report(futures[future], finished)


def end_with_parent() -> None:
    """Have this process end as soon as the one that started it does: a killed comparison would otherwise train on, unseen."""

    def watch() -> None:
        if (parent := parent_process()) is not None:
            parent.join()
            os._exit(1)  # a thread's SystemExit ends the thread alone

    threading.Thread(target=watch, daemon=True).start()
