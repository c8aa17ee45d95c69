"""``python -m experiments pages``: the pages of results in docs/results, from the JSON files beside them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

from experiments.compare.table import tables_of
from experiments.result import TABLE_ONLY, Result
from recipes.files import write_atomically

FOLDER = Path(__file__).parents[1] / "docs" / "results"
PAGES = {
    "default": "The default beside AdamW",
    "muon": "Muon and NorMuon",
    "rivals": "Optimizers of other libraries",
    "partitions": "Adam-mini's own partitions",
    "combine": "Combined with other methods",
    "slim_adam": "SlimAdam",
    "low_memory": "Momentum in fewer bits",
    "hessian": "The Hessian: figures and audits",
    "strategies": "Strategies of Lightning",
    "speed": "What a step costs",
}
"""Names of the pages, in order, with their titles."""
LIST = "data.md"
MADE = "<!-- Made by `python -m experiments pages` from the JSON files in this folder. Do not edit. -->"


def section(result: Result, file: str) -> str:
    """Return what a page says of a result.

    Args:
        result: The result.
        file: Name of its file.
    """
    tables = tables_of(result) if result.experiment == "compare" and result.rows else result.tables
    facts = {
        "Command": f"`{result.command}`",
        "Machine": result.machine,
        "Versions": ", ".join(f"{name} {number}" for name, number in result.versions.items()),
        "Commit": result.commit,
        "Seeds": ", ".join(map(str, result.seeds)),
        "Recorded": "as a table; the numbers of single runs were not kept" if result.recorded == TABLE_ONLY else "",
        "Data": f"[{file}]({file})",
    }
    told = "\n".join(f"- {name}: {value}" for name, value in facts.items() if value)
    shown = "\n".join(table.markdown().replace("## ", "### ") for table in tables)
    return "\n\n".join(part.strip() for part in (f"## {result.title}", result.text, shown, told) if part.strip())


def pages(folder: Path) -> Mapping[str, str]:
    """Return the pages by name of their file, the list of them among them.

    Args:
        folder: Where the JSON files are.

    Raises:
        ValueError: A result belongs to a page that there is not.
    """
    found: dict[str, list[tuple[int, str, Result]]] = {}
    for file in sorted(folder.glob("*.json")):
        result = Result.load(file)
        if result.page not in PAGES:
            raise ValueError(f"{file.name} belongs to the page {result.page!r}, but there are {', '.join(PAGES)}; set its 'page' to one.")
        found.setdefault(result.page, []).append((result.place, file.name, result))
    made: dict[str, str] = {}
    links = []
    for name, title in PAGES.items():
        if name in found:
            parts = [section(result, file) for _, file, result in sorted(found[name], key=lambda one: one[:2])]
            made[f"{name}.md"] = "\n\n".join([MADE, f"# {title}", *parts]) + "\n"
            links.append(f"- [{title}]({name}.md)")
    text = "Every table is made of the JSON file that is named below it, which has the command, the commit, the versions and the machine."
    made[LIST] = "\n\n".join([MADE, "# Results as data", text, "\n".join(links)]) + "\n"
    return made


def main(argv: Sequence[str]) -> int:
    """Write the pages.

    Args:
        argv: What follows ``pages``.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments pages", description="Make the pages of results from their JSON files.")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where both are (default: docs/results of this checkout)")
    folder = parser.parse_args(argv).folder
    if not any(folder.glob("*.json")):
        raise MisconfigurationException(f"--folder {folder}: there is no JSON file of a result. Give the folder that holds them.")
    made = pages(folder)
    for name, text in made.items():
        write_atomically(folder / name, text)
    sys.stdout.write(f"Written to {folder}: {', '.join(made)}\n")
    return 0
