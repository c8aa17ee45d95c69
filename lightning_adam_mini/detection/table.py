"""A model's report as a table of plain text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from lightning_adam_mini.layout import BlockLayout

if TYPE_CHECKING:
    from lightning_adam_mini.detection.report import ModelReport, ParameterReport

_WIDTH = 120
_GUESSES = 12
_BYTES = 4  # second moments are float32


def draw_table(report: ModelReport, layouts: Mapping[str, BlockLayout] | None) -> str:
    """The architecture, its parts if it has some, one row a role, the total, and the guesses."""
    groups: dict[str, list[ParameterReport]] = {}
    for p in report.parameters:
        groups.setdefault(_label(p), []).append(p)
    heading = ["role", "tensors", "parameters"] + (["blocks", "2nd moments", "", "after"] if layouts is not None else [])
    rows = [_row(label, ps, layouts) for label, ps in groups.items()]
    total = _row("total", report.parameters, layouts)
    widths = [max(len(row[i]) for row in [heading, total, *rows]) for i in range(len(heading))]
    room = _WIDTH - sum(widths) - 2 * len(widths)
    lines = [
        f"{report.architecture}: {report.reason}",
        *_parts(report),
        "",
        _join([*heading], widths) + "  example",
        *(_join(row, widths) + "  " + _example(ps, room) for row, ps in zip(rows, groups.values(), strict=True)),
        _join(total, widths),
    ]
    frozen = [p for p in report.parameters if not p.trainable]
    if frozen:
        elements = f"{sum(map(_elements, frozen)):,} parameters"
        lines.append(f"{len(frozen)} of {len(report.parameters)} tensors are frozen ({elements}): no blocks until they train.")
    if report.guesses:
        lines += ["", f"? {len(report.guesses)} not certain:", *_guesses(report.guesses)]
        if layouts and not any(layout.lines for layout in layouts.values()):
            lines.append(
                "No block here depends on heads: a wrong role changes what a parameter is called and, of an embedding, its blocks."
            )
    return "\n".join(line.rstrip() for line in lines)


def _parts(report: ModelReport) -> list[str]:
    """A line for each part, and one for what is in none."""
    if not report.parts:
        return []
    counts = Counter(report.part_of(p) for p in report.parameters)
    parts = [part for part in (*report.parts, None) if counts[part]]
    cells = [[p.path, p.architecture.value] if p is not None else ["(the rest)", report.architecture.value] for p in parts]
    rows = [[*cell, f"{counts[part]:,} tensors"] for cell, part in zip(cells, parts, strict=True)]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return [
        _cut(f"  {path:<{widths[0]}}  {kind:<{widths[1]}}  {count:>{widths[2]}}  {'as the whole' if part is None else part.reason}", _WIDTH)
        for (path, kind, count), part in zip(rows, parts, strict=True)
    ]


def _label(p: ParameterReport) -> str:
    return f"{p.role}{' ?' if p.guess else ''}"


def _row(label: str, parameters: Sequence[ParameterReport], layouts: Mapping[str, BlockLayout] | None) -> list[str]:
    row = [label, f"{len(parameters):,}", f"{sum(map(_elements, parameters)):,}"]
    if layouts is not None:
        trained = [p for p in parameters if p.trainable]
        blocks = sum(layouts[p.name].num_blocks if p.name in layouts else _elements(p) for p in trained)
        row += [f"{blocks:,}", _size(_BYTES * sum(map(_elements, trained))), "->", _size(_BYTES * blocks)]
    return row


def _elements(p: ParameterReport) -> int:
    count = 1
    for size in p.shape:
        count *= size
    return count


def _example(parameters: Iterable[ParameterReport], room: int) -> str:
    """The first parameter; where the room is short, the end of its name, because what it is and its heads come last."""
    p = next(iter(parameters))
    shape = "x".join(map(str, p.shape)) or "scalar"
    rest = f" {shape}" + (f" ({p.lines})" if p.lines else "")
    left = room - len(rest)
    name = p.name if len(p.name) <= left else "..." + p.name[3 - left :] if left > 3 else p.name
    return _cut(name + rest, room)


def _guesses(parameters: Sequence[ParameterReport]) -> list[str]:
    lines = [_cut(f"  {p.name}: {p.reason}", _WIDTH) for p in parameters[:_GUESSES]]
    more = len(parameters) - _GUESSES
    return [*lines, f"  ... and {more} more"] if more > 0 else lines


def _join(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths, strict=True)))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(1, width - 3)] + "..."


def _size(count: int) -> str:
    value, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
