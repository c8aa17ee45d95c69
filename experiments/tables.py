"""The one table room: what is found as Markdown for people and as CSV for programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from experiments.statistics import Interval, spread


@dataclass(frozen=True)
class Table:
    """A table with what a reader must know of it. All cells are text, so that it is the same after JSON.

    Args:
        head: Its columns.
        rows: Its cells.
        title: What stands above it; empty for nothing.
        text: What is said between the title and the table.
        notes: What is said below it, a paragraph each.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    text: str = ""
    notes: Sequence[str] = ()

    def markdown(self) -> str:
        """Return it in Markdown."""
        parts = [f"## {self.title}" * bool(self.title), self.text.strip(), markdown_table(self.head, self.rows) if self.rows else ""]
        return "\n\n".join(part for part in (*parts, *self.notes) if part) + "\n"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown, whose columns are aligned in plain text too.

    Args:
        head: Its columns.
        rows: Its rows; a cell may hold no line break, and a bar becomes a slash.

    Example:
        >>> print(markdown_table(["a", "b"], [[1, "22|"]]))
        | a   | b   |
        |-----|-----|
        | 1   | 22/ |
    """
    cells = [[str(cell).replace("|", "/") for cell in row] for row in rows]
    return tabulate(cells, list(head), tablefmt="github", disable_numparse=True)


def csv_text(rows: Sequence[Mapping[str, object]]) -> str:
    r"""Return rows as CSV; what a row does not have is empty.

    Args:
        rows: Values by column.

    Example:
        >>> csv_text([{"a": 1}, {"a": 2, "b": 3}])
        'a,b\n1,\n2,3\n'
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


QUARTILES = ("seconds", "quartile1", "quartile3")
LIMITS = ("", "low95", "high95")


def named(kind: str, interval: Interval, ends: tuple[str, str, str] = LIMITS) -> dict[str, float]:
    """Return the columns of an estimate.

    Args:
        kind: What is estimated.
        interval: The estimate.
        ends: What its parts are called.

    Example:
        >>> named("wall", Interval(2.0, 1.0, 3.0))
        {'wall': 2.0, 'wall_low95': 1.0, 'wall_high95': 3.0}
    """
    return {f"{kind}_{end}".rstrip("_"): value for end, value in zip(ends, interval, strict=True)}


def milliseconds(values: Sequence[float]) -> str:
    """Return seconds in milliseconds, with quartiles.

    Args:
        values: Seconds.

    Example:
        >>> milliseconds([0.001, 0.002, 0.003])
        '2.00 (1.50-2.50)'
    """
    middle, low, high = (value * 1e3 for value in spread(values))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2 if middle >= 1 else 4
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"
