"""From a role and a head for each line to the shortest line order that says so."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from lightning_adam_mini.lines import parse_lines

Line = tuple[str, int]
"""A role and a head; -1 where the lines of a role have no heads."""


def write_lines(lines: Sequence[Line]) -> str | None:
    """The line order of ``lines``, or None if the grammar has none. Heads may have any numbers; those of the result count from the first.

    Example:
        >>> write_lines([("q", 0), ("q", 0), ("k", 0), ("k", 0), ("q", 1), ("q", 1), ("k", 1), ("k", 1)])
        '2*(q:1x2|k:1x2)'
    """
    return _write(_numbered(lines))


@lru_cache(maxsize=256)
def _write(wanted: tuple[Line, ...]) -> str | None:
    for text in sorted(_candidates(wanted), key=lambda t: (len(t.split("|")) + t.count("("), len(t))):
        if _numbered(parse_lines(text).expand()) == wanted:
            return text
    return None


def _numbered(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The heads of each role renumbered in the order of their first line."""
    seen: dict[str, dict[int, int]] = {}
    return tuple((role, head if head < 0 else seen.setdefault(role, {}).setdefault(head, len(seen[role]))) for role, head in lines)


def _candidates(lines: tuple[Line, ...]) -> list[str]:
    found = [_plain(lines)]
    for count in _divisors(len(lines)):
        period = len(lines) // count
        found += [f"{count}*({_plain(lines[:period])})"]
        roles = list(dict.fromkeys(role for role, _ in lines))
        if period % len(roles) == 0:
            found.append(f"{count}*[{','.join(roles)}]x{period // len(roles)}")
    return found


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _plain(lines: Sequence[Line]) -> str:
    """Segments one after another: a run of one role each, its heads contiguous or fastest."""
    parts: list[str] = []
    start = 0
    while start < len(lines):
        end = start
        while end < len(lines) and lines[end][0] == lines[start][0] and (lines[end][1] < 0) == (lines[start][1] < 0):
            end += 1
        parts += _segment(lines[start][0], tuple(head for _, head in lines[start:end]))
        start = end
    return "|".join(parts)


@lru_cache(maxsize=1024)
def _segment(role: str, heads: tuple[int, ...]) -> list[str]:
    if heads[0] < 0:
        return [f"{role}:{len(heads)}"]
    distinct = list(dict.fromkeys(heads))
    count, size = len(distinct), len(heads) // len(distinct)
    if size > 1 and count > 1 and list(heads) == distinct * size:
        return [f"{role}:{count}x{size}t"]
    parts: list[str] = []
    runs: list[list[int]] = []
    for head in heads:
        if runs and runs[-1][0] == head:
            runs[-1][1] += 1
        else:
            runs.append([head, 1])
    while runs:
        size = runs[0][1]
        same = next((i for i, run in enumerate(runs) if run[1] != size), len(runs))
        parts.append(f"{role}:{same}x{size}")
        runs = runs[same:]
    return parts
