"""Tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], sides: str) -> list[str]:
    r"""The rows as lines, two spaces between columns.

    Args:
        rows: The cells of each row.
        sides: For each column the side its cells are on: ``<`` or ``>``.

    Example:
        >>> print(*align([["convs", "7"], ["fc", "12"]], "<>"), sep="\n")
        convs   7
        fc     12
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)) for row in rows]


def cut(text: str, width: int) -> str:
    """``text``, with dots at its end where it is longer than ``width``.

    Example:
        >>> cut("attention", 7)
        'atte...'
    """
    return text if len(text) <= width else text[: max(1, width - 3)] + "..."


def count(number: int, noun: str) -> str:
    """A number of things.

    Args:
        number: How many.
        noun: Of what, in the singular; an ``s`` makes it a plural.

    Example:
        >>> count(1, "round"), count(2000, "round")
        ('1 round', '2,000 rounds')
    """
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def size_text(count: int) -> str:
    """A number of bytes in the unit that suits it.

    Example:
        >>> size_text(20), size_text(3 << 20)
        ('20 B', '3.0 MiB')
    """
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
