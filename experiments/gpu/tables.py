"""The report as Markdown, made from what is written as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.tables import markdown_table
from lightning_adam_mini.table import count

_OWN = {"case", "status", "seconds", "reason", "error", "text", "rows"}


def summary(part: Mapping[str, Any]) -> str:
    """Return what came of a part, in a line.

    Args:
        part: What was found.

    Example:
        >>> summary({"part": "fit", "status": "ok", "seconds": 9.5, "share": 20, "cases": [{"case": "a", "status": "ok"}]})
        'fit       ok       9.5 s of 20: 1 case ok'
    """
    numbers = {status: sum(case["status"] == status for case in part["cases"]) for status in ("ok", "failed", "skipped")}
    told = ", ".join(f"{count(number, 'case')} {status}" for status, number in numbers.items() if number) or "nothing"
    return f"{part['part']:<9} {part['status']:<7} {part['seconds']:>4.1f} s of {part['share']:.0f}: {told}"


def markdown(report: Mapping[str, Any]) -> str:
    """Return the report.

    Args:
        report: What is written as JSON.
    """
    machine = {key: value for key, value in report["machine"].items() if key not in ("case", "status", "seconds")}
    parts = report["parts"]
    overview = [
        [part["part"], part["status"], f"{part['seconds']:.1f} of {part['share']:.0f} s", *_numbers(part["cases"])] for part in parts
    ]
    texts = [
        f"# On {machine.get('card', 'a CPU')}\n\n`python -m experiments {' '.join(report['command'])}`, {report['seconds']:.0f} s in all.",
        markdown_table(["", ""], [[key, _cell(value)] for key, value in machine.items()]),
        markdown_table(["part", "status", "time", "ok", "failed", "skipped"], overview),
    ]
    for part in parts:
        texts.append(f"## {part['part']}: {part['status']}")
        if part.get("error"):
            texts.append(_code(part["error"]))
        texts.extend(_tables([case for case in part["cases"] if case["status"] == "ok"]))
        for case in part["cases"]:
            if case["status"] == "failed":
                texts.append(f"**{case['case']} failed**\n\n{_code(case.get('error', []))}")
        skipped: dict[str, list[str]] = {}
        for case in part["cases"]:
            if case["status"] == "skipped":
                skipped.setdefault(case["reason"], []).append(case["case"])
        if skipped:
            texts.append("\n".join(f"- skipped, {reason}: {', '.join(names)}" for reason, names in skipped.items()))
    return "\n\n".join(texts) + "\n"


def _numbers(cases: Sequence[Mapping[str, Any]]) -> list[int]:
    return [sum(case["status"] == status for case in cases) for status in ("ok", "failed", "skipped")]


def _tables(cases: Iterable[Mapping[str, Any]]) -> list[str]:
    """A table for each stretch of cases that found values of the same names; what a case wrote itself stays as it is."""
    texts: list[str] = []
    stretch: list[list[str]] = []
    head: list[str] = []
    for case in cases:
        columns = ["case", *(key for key in case if key not in _OWN), "s"]
        if stretch and (columns != head or "text" in case):
            texts.append(markdown_table(head, stretch))
            stretch = []
        if "text" in case:
            texts.append(case["text"].strip().replace("## ", "### "))
            continue
        head = columns
        stretch.append([case["case"], *(_cell(case[key]) for key in head[1:-1]), f"{case['seconds']:.1f}"])
    return [*texts, *([markdown_table(head, stretch)] if stretch else [])]


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_cell(each)}" for key, each in value.items())
    return ", ".join(map(_cell, value)) if isinstance(value, list) else str(value)


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```", *lines, "```"])
