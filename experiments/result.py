"""What a finished experiment leaves: its numbers and tables as data, and all that a reader must know to repeat it."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from experiments.figures import save
from experiments.tables import Table, csv_text
from lightning_adam_mini.table import count
from recipes.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = ("torch", "triton", "lightning", "timm", "torch-geometric", "torchao", "bitsandbytes", "transformers", "jsonargparse", "numpy")
RUNS, TABLE_ONLY = "runs", "table only"


@dataclass(frozen=True)
class Result:
    """What a finished experiment leaves.

    Args:
        experiment: Its name on the command line.
        title: What it found out, in a few words.
        text: What a reader must know of all tables.
        command: What was typed, from ``python`` on.
        commit: Of this repository.
        machine: Where, in words.
        versions: Of Python and the packages.
        seeds: Of its runs; empty where nothing depends on one.
        rows: The numbers: one row a run, a rival or whatever is measured.
        tables: What is shown. That of ``compare`` is made of its rows, and not kept.
        recorded: Whether rows are kept, or what once was shown in a table only.
        facts: What else the tables are made of.
        page: Name of the page of results that it belongs to; empty for none.
        place: Where it stands there.
    """

    experiment: str
    title: str
    command: str
    text: str = ""
    commit: str = ""
    machine: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seeds: Sequence[int] = ()
    rows: Sequence[Mapping[str, Any]] = ()
    tables: Sequence[Table] = ()
    recorded: str = RUNS
    facts: Mapping[str, Any] = field(default_factory=dict)
    page: str = ""
    place: int = 0

    def markdown(self) -> str:
        """Return title, text and tables."""
        return "\n".join([f"# {self.title}\n\n{self.text.strip()}\n", *(table.markdown() for table in self.tables)])

    def json(self) -> str:
        """Return it as JSON, a line for each row."""
        whole = {key: value for key, value in asdict(self).items() if value not in ("", (), [], {}) and value != 0}
        return _lines(whole) + "\n"

    @staticmethod
    def load(file: Path) -> Result:
        """Return what a file holds.

        Args:
            file: What `json` gave.
        """
        stored: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return Result(**{**stored, "tables": [Table(**table) for table in stored.get("tables", ())]})


def _lines(value: Any, depth: int = 0) -> str:
    """JSON with a line for each row, and for whatever else holds no other things."""
    parts = list(value.values() if isinstance(value, dict) else value) if isinstance(value, (dict, list, tuple)) else []
    if depth > 3 or (depth and not any(isinstance(part, (dict, list, tuple)) for part in parts)):
        return json.dumps(value, ensure_ascii=False)
    texts = [_lines(part, depth + 1) for part in parts]
    if isinstance(value, dict):
        texts = [f"{json.dumps(key)}: {text}" for key, text in zip(value, texts, strict=True)]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}\n{' ' * (depth + 1)}" + f",\n{' ' * (depth + 1)}".join(texts) + f"\n{' ' * depth}{last}"


def new_result(experiment: str, title: str, argv: Sequence[str], device: torch.device | None = None, **more: Any) -> Result:
    """Return the result of what was run here and now.

    Args:
        experiment: Its name on the command line.
        title: What it found out.
        argv: What followed the name.
        device: Where it was measured.
        more: Other fields of `Result`.
    """
    command = f"python -m experiments {experiment} {shlex.join(argv)}".strip()
    machine = machine_text(device or torch.device("cpu"))
    return Result(experiment, title, command, commit=commit(), machine=machine, versions=versions(), **more)


def publish(
    result: Result,
    out: Path,
    figures: Mapping[str, Figure] | None = None,
    name: str = "",
    shown: Sequence[Table] = (),
    rows: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write a result as JSON, Markdown and CSV with its figures, and show it.

    Args:
        result: The result.
        out: The folder.
        figures: By name.
        name: Of the files; that of the experiment by default.
        shown: Tables that are made of the result's rows, and so not kept in it.
        rows: What the CSV file has, where that is not the result's rows.
    """
    name = name or result.experiment
    text = replace(result, tables=[*shown, *result.tables]).markdown()
    written = {f"{name}.json": result.json(), f"{name}.csv": csv_text(rows or result.rows)}
    for figure, drawn in (figures or {}).items():
        save(drawn, out / f"{figure}.png")
        text += f"\n![{figure}]({figure}.png)\n"
    written[f"{name}.md"] = text
    for file, content in written.items():
        write_atomically(out / file, content)
    names = [*written, *(f"{figure}.png" for figure in figures or {})]
    sys.stdout.write(f"\n{text}\nWritten to {out}: {', '.join(names)}\n")


def progress(text: str) -> None:
    """Tell who waits what is being done.

    Args:
        text: A line.
    """
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def machine_text(device: torch.device) -> str:
    """Return the machine in words.

    Args:
        device: Where something is measured.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {count(os.cpu_count() or 1, 'core')}, {count(torch.get_num_threads(), 'thread')}"


def conditions(device: torch.device) -> str:
    """Return what a reader must know of the machine, in a sentence.

    Args:
        device: Where something is measured.
    """
    return f"torch {torch.__version__}, {machine_text(device)}, float32."


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def commit() -> str:
    """Return the commit of this checkout, with a mark where files were changed since; empty where there is none."""
    folder = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        head = git("rev-parse", "HEAD")
        return f"{head} with changes" if head and git("status", "--porcelain", "--untracked-files=no") else head
    except OSError:  # no git here
        return ""
