"""What an audit found, as a table and as overrides."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lightning_adam_mini.analysis.audit.segments import Segment, group_text
from lightning_adam_mini.analysis.audit.verdict import Compared, Finding
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import parse_lines
from lightning_adam_mini.table import align

_EXPLAINED = """\
Hessian: share of its squared mass within blocks (share that blocks at random would hold). finer: the finer layout that holds most of what
lies within these blocks, and its concentration there: 0 as at random, 1 all. coarser: the coarser layout in which these cuts count least,
and theirs there. crossed: concentration of rows and columns. 2nd moments: part of the variance of root mean square gradients that this /
the finer / the coarser / the crossed layout explains, of one half of the batch by the other. Too coarse: finer holds 0.67 or more. Finer
than needed: below 0.33 in the coarser, which explains as much of the second moments. ?: within two standard errors of another verdict."""


@dataclass(frozen=True)
class AuditReport:
    """What an audit found. ``print`` shows it as a table.

    Attributes:
        findings: One for each parameter, or for each role in a fused one.
        left_out: Why a parameter was not looked at, by name.
        notes: What the user should know about how it was done.
        seconds: How long it took.
    """

    findings: tuple[Finding, ...]
    left_out: Mapping[str, str]
    notes: tuple[str, ...]
    seconds: float

    @property
    def overrides(self) -> dict[str, Any]:
        """What to give as ``overrides=`` so that the layouts are those suggested: specs by parameter, empty if all match.

        Of a fused parameter, what is not suggested otherwise stays as it is. So does what is near another verdict, which the table marks.
        """
        by_name: dict[str, list[Finding]] = {}
        for finding in self.findings:
            sure = replace(finding, suggestion=None) if finding.near else finding
            by_name.setdefault(finding.segment.parameter.name, []).append(sure)
        specs = {name: _spec(found) for name, found in by_name.items() if any(f.suggestion for f in found)}
        return {name: spec for name, spec in specs.items() if spec != _now(by_name[name][0].segment.layout)}

    def table(self) -> str:
        """The findings as plain text, with what was left out, and the overrides to paste."""
        heading = ["parameter", "layout", "columns", "Hessian", "finer", "coarser", "crossed", "2nd moments", "verdict"]
        lines = [line.rstrip() for line in align([heading, *map(_row, self.findings)], "<<><<<><<")]
        counts = Counter(str(finding.verdict) for finding in self.findings)
        lines += ["", f"{', '.join(f'{count} {verdict}' for verdict, count in counts.most_common())}; {self.seconds:.0f} s.", _EXPLAINED]
        lines += [f"Note: {note}" for note in self.notes]
        for why, count in Counter(self.left_out.values()).items():
            first = next(name for name, reason in self.left_out.items() if reason == why)
            lines.append(f"Left out, {why}: {first}{f' and {count - 1} more' if count > 1 else ''}.")
        overrides = self.overrides
        kept = {f.segment.parameter.name for f in self.findings if f.suggestion and not f.near} - overrides.keys()
        if kept:
            lines.append(f"Without an override, because other lines of the parameter need its layout: {', '.join(sorted(kept))}.")
        if overrides:
            lines += ["", "overrides={", *(f"    {name!r}: {spec!r}," for name, spec in overrides.items()), "}"]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The findings as plain data."""
        return {
            "findings": [_plain(finding) for finding in self.findings],
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
            "overrides": self.overrides,
            "seconds": round(self.seconds, 2),
        }

    def __str__(self) -> str:
        return self.table()


def _row(finding: Finding) -> list[str]:
    own, crossed = finding.own, finding.crossed
    moments = " / ".join("-" if c is None else _number(c.moments) for c in (own, finding.finer, finding.coarser, crossed))
    verdict = f"{finding.verdict}{' ?' if finding.near else ''}"
    if finding.suggestion is not None:
        verdict += f": {finding.suggestion.label}"
    elif finding.reason.startswith("by second moments"):
        verdict += ", by second moments"
    share = "-" if math.isnan(own.share.share) else f"{own.share.share:.2f} ({own.share.null:.2f})"
    return [
        finding.segment.name,
        own.label,
        str(finding.columns),
        share,
        _beside(finding.finer),
        _beside(finding.coarser),
        "-" if crossed is None else _number(crossed.share.concentration),
        moments,
        verdict,
    ]


def _beside(compared: Compared | None) -> str:
    return "-" if compared is None else f"{compared.label} {_number(compared.share.concentration)}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _plain(finding: Finding) -> dict[str, Any]:
    def plain(compared: Compared | None) -> dict[str, Any] | None:
        if compared is None:
            return None
        numbers = dict(compared.share._asdict(), concentration=compared.share.concentration, moments=compared.moments)
        return {"layout": compared.label, **{key: None if math.isnan(value) else value for key, value in numbers.items()}}

    return {
        "parameter": finding.segment.parameter.name,
        "role": finding.segment.role or str(finding.segment.parameter.role),
        "shape": list(finding.segment.shape),
        "columns": finding.columns,
        "verdict": str(finding.verdict),
        "near_another": finding.near,
        "reason": finding.reason,
        "own": plain(finding.own),
        "finer": plain(finding.finer),
        "coarser": plain(finding.coarser),
        "crossed": plain(finding.crossed),
        "suggestion": plain(finding.suggestion),
    }


def _spec(findings: list[Finding]) -> Any:
    """The override of one parameter: of one piece its layout, of several their groups of lines put together."""
    if len(findings) == 1:
        suggestion = findings[0].suggestion
        assert suggestion is not None
        return _spec_of(suggestion.layout)
    wanted = [(f.segment, f.own.layout if f.suggestion is None else f.suggestion.layout) for f in findings]
    first = findings[0].segment
    others = [d for d in range(len(first.layout.shape)) if d != first.axis]
    if any(layout.is_per_parameter for _, layout in wanted):  # pieces of one parameter have one mean over the other dimensions
        return "parameter"
    if any(layout.is_factored for _, layout in wanted):
        return "factored"
    groups: dict[int, tuple[str, int]] = {}
    for segment, layout in wanted:
        groups.update(zip(segment.lines or (), _groups(segment, layout), strict=True))
    ordered = [groups[i] for i in range(first.layout.shape[first.axis])]
    return {"dims": others, "axis": first.axis, "lines": _by_role(ordered)}


def _now(layout: BlockLayout) -> str | None:
    """The override that changes nothing: pieces of one parameter keep a fine layout that one of them needs."""
    return "parameter" if layout.is_per_parameter else "factored" if layout.is_factored else None


def _groups(segment: Segment, layout: BlockLayout) -> list[tuple[str, int]]:
    """The group of each line of a piece, by role and number."""
    size = segment.shape[segment.axis]
    if layout.lines is not None:
        numbers = {group: i for i, group in enumerate(dict.fromkeys(parse_lines(layout.lines).expand()))}
        return [(segment.letter, numbers[group]) for group in parse_lines(layout.lines).expand()]
    return [(segment.letter, i if segment.axis not in layout.dims else 0) for i in range(size)]


def _by_role(groups: list[tuple[str, int]]) -> str:
    """A line order of runs of roles if each role's lines are together, else of groups."""
    runs: list[list[tuple[str, int]]] = []
    for group in groups:
        if not runs or runs[-1][-1][0] != group[0]:
            runs.append([])
        runs[-1].append(group)
    texts = [group_text(run, run[0][0]) for run in runs]
    if len(runs) == len({run[0][0] for run in runs}) and not any(text.startswith("g_") for text in texts):
        return "|".join(texts)
    return group_text(groups, "g")


def _spec_of(layout: BlockLayout) -> Any:
    if layout.is_per_parameter:
        return "parameter"
    if layout.num_blocks == 1:
        return "tensor"
    if layout.lines is not None:
        return {"dims": list(layout.dims), "axis": layout.axis, "lines": layout.lines}
    return {"dims": list(layout.dims)}
