"""The table: 20 steps, checkpoints to and fro, bytes of state and of communication under each strategy, against one device."""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from experiments.result import new_result, progress, publish
from experiments.strategies.launch import run_ranks
from experiments.strategies.rows import ROWS, Row
from experiments.strategies.run import Job, Outcome, run
from experiments.tables import Table
from recipes.files import write_atomically

WHOLE, HALF = 2, 1  # epochs of ten steps
COLUMNS = {
    "steps": "20 steps",
    "resume": "save, resume",
    "resume_sharded": "sharded",
    "to_single": "save here, load on one device",
    "from_single": "the reverse",
    "2 -> 1": "2 to 1 ranks",
    "1 -> 2": "1 to 2",
    "2 -> 4": "2 to 4",
    "from_adamw": "from AdamW",
    "to_adamw": "to AdamW",
}
"""Measured differences, with what the table calls them."""
TEXT = (
    "Largest relative difference of a weight after 20 steps: from one device that trained all 20 (from AdamW's and to AdamW: that"
    " resumed with the same); after saving and resuming, from the same strategy that trained all 20."
)


def difference(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Return the largest difference of any weight, by the largest weight of its tensor.

    Args:
        a: Weights.
        b: The weights that they should be.
    """
    return max(((a[name] - b[name]).abs().max() / b[name].abs().max()).item() for name in b)


class Bench:
    """Runs jobs, each once.

    Args:
        folder: For checkpoints.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[Job, list[Outcome]] = {}

    def outcomes(self, job: Job) -> list[Outcome]:
        """Return what came of a job on each rank.

        Args:
            job: The job.

        Raises:
            RuntimeError: If a rank raised something.
        """
        if job not in self.done:
            self.done[job] = run_ranks(run, job.ranks, self.folder, job)
        return self.done[job]

    def weights(self, job: Job) -> Mapping[str, Tensor]:
        """Return the weights at the end of a job.

        Args:
            job: The job.
        """
        return self.outcomes(job)[0].weights

    def saved(self, job: Job) -> str:
        """Return a checkpoint written after half of the run.

        Args:
            job: What is run.
        """
        name = f"{job.row or 'single'} {job.ranks}{' sharded' * job.sharded}{' adamw' * job.plain} {job.momentum} {job.groups}"
        path = str(self.folder / f"{re.sub(r'[^a-zA-Z0-9]+', '_', name)}.ckpt")
        self.outcomes(job._replace(epochs=HALF, save=path))
        return path

    def measure(self, row: Row, columns: Collection[str] = tuple(COLUMNS)) -> dict[str, object]:
        """Return the numbers of a strategy; an error's first line in the place of a number that it kept from being measured.

        Args:
            row: The strategy.
            columns: What is measured.
        """
        name, n = row.name, row.ranks
        single = Job("", 1, WHOLE, momentum=row.momentum, wide=bool(row.momentum))
        here = single._replace(row=name, ranks=n)

        def moved(source: int, target: int) -> float:
            if n != 2:
                raise NotImplementedError
            job = here._replace(sharded=row.shards)
            ckpt = self.saved(job._replace(ranks=source))
            return difference(self.weights(job._replace(ranks=target, load=ckpt)), self.weights(single))

        def resumed(sharded: bool) -> float:
            if sharded and not row.shards:
                raise NotImplementedError
            job = here._replace(sharded=sharded)
            return difference(self.weights(job._replace(load=self.saved(job))), self.weights(here))

        def from_adamw() -> float:
            ckpt = self.saved(single._replace(plain=True, groups=1))
            there = single._replace(load=ckpt, groups=1)
            return difference(self.weights(there._replace(row=name, ranks=n)), self.weights(there))

        def to_adamw() -> float:
            there = single._replace(plain=True)
            return difference(self.weights(there._replace(load=self.saved(here))), self.weights(there._replace(load=self.saved(single))))

        measures = {
            "steps": lambda: difference(self.weights(here), self.outcomes(here)[0].replayed or self.weights(single)),
            "resume": lambda: resumed(False),
            "resume_sharded": lambda: resumed(True),
            "to_single": lambda: difference(self.weights(single._replace(load=self.saved(here))), self.weights(single)),
            "from_single": lambda: difference(self.weights(here._replace(load=self.saved(single))), self.weights(single)),
            "2 -> 1": lambda: moved(2, 1),
            "1 -> 2": lambda: moved(1, 2),
            "2 -> 4": lambda: moved(2, 4),
            "from_adamw": from_adamw,
            "to_adamw": to_adamw,
        }
        if row.zero:
            columns = [column for column in columns if column in ("steps", "resume")]
        result: dict[str, object] = {"strategy": name, "ranks": n}
        for column, measure in measures.items():
            try:
                result[column] = measure() if column in columns else None
            except NotImplementedError:
                result[column] = None
            except RuntimeError as error:
                result[column] = str(error)
        outcomes = self.outcomes(here)
        parameters = sum(p.numel() for p in outcomes[0].weights.values())
        result["bytes"] = max(outcome.state for outcome in outcomes) / parameters
        result["sent"], result["calls"] = outcomes[0].sent
        return result


def main(argv: Sequence[str]) -> int:
    """Make the table.

    Args:
        argv: The command line after ``strategies``.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments strategies", description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="folder of the results (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="REGEX", help="strategies by name")
    parser.add_argument("--small", action="store_true", help="one strategy, two measures: only to see that it runs")
    options = parser.parse_args(list(argv))
    rows = [row for row in ROWS.values() if re.search(options.only or "^DDP$" * options.small, row.name)]
    if not rows:
        raise MisconfigurationException(f"--only {options.only!r} matches none of {', '.join(ROWS)}")
    kept = options.out / "strategies.runs.json"
    results: dict[str, dict[str, object]] = json.loads(kept.read_text()) if kept.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        for row in rows:
            if row.name not in results:
                progress(row.name)
                results[row.name] = bench.measure(row, ("steps", "resume") if options.small else tuple(COLUMNS))
                write_atomically(kept, json.dumps(results, indent=1))
    chosen = [results[row.name] for row in rows]
    publish(new_result("strategies", "Strategies", argv, text=TEXT, tables=[table(chosen)], rows=chosen), options.out)
    return 0 if all(not isinstance(value, str) for result in chosen for column, value in result.items() if column in COLUMNS) else 1


def table(results: Sequence[Mapping[str, object]]) -> Table:
    """Return the results as a table.

    Args:
        results: What :meth:`Bench.measure` gave.
    """
    measured = {column: title for column, title in COLUMNS.items() if any(result[column] is not None for result in results)}
    head = ["strategy", "ranks", *measured.values(), "state, bytes a parameter", "sent a step, bytes (calls)"]
    lines = []
    errors = []
    for result in results:
        cells = []
        for column in measured:
            value = result[column]
            cells.append("" if value is None else "0" if value == 0 else f"{value:.0e}" if isinstance(value, float) else "error")
            if isinstance(value, str):
                errors.append(f"{result['strategy']}, {COLUMNS[column]}: {value.splitlines()[0]}")
        lines.append(
            [str(result["strategy"]), str(result["ranks"]), *cells, f"{result['bytes']:.2f}", f"{result['sent']} ({result['calls']})"]
        )
    return Table(head, lines, notes=errors)
