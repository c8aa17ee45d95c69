"""What to say where heads, the kind of a network or its matrices are not certain, with overrides that are accepted as printed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from lightning_adam_mini.detection.attention import projection_parts
from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import LETTERS, Role
from lightning_adam_mini.table import count

_HEAD = 64
"""The size of a head in the examples, where it divides."""
_SHOWN = 4
_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
_PROBE = "let the model show it (AdamMiniCallback(probe=True), or inspect_model(model, example_input))"


def unknown_heads(parameters: Sequence[ParameterReport], report: ModelReport) -> str:
    """The warning that heads are not known at all."""
    paste = {glob: _example(p) for glob, p in _globs(parameters, report)}
    return (
        f"The attention heads in {_count(parameters)} could not be found ({_names(parameters)}), so that each line is a block of its own,"
        f" which is finer than Adam-mini asks for. To settle it, {_PROBE}, or give the heads, for example overrides={paste}"
    )


def likely_heads(parameters: Sequence[ParameterReport], report: ModelReport) -> str:
    """The warning that heads are only supposed."""
    paste = {glob: p.lines for glob, p in _globs(parameters, report)}
    return (
        f"The attention heads in {_count(parameters)} are only likely ({_names(parameters)}): {parameters[0].reason}. To settle it,"
        f" {_PROBE}, or confirm or correct them: overrides={paste}"
    )


def likely_network(report: ModelReport) -> str:
    """The warning that the kind of a network is only likely."""
    whole = [f"{report.architecture} ({report.reason})"] if report.guess else []
    parts = [f"{part.path}: {part.architecture} ({part.reason})" for part in report.parts if part.guess]
    return (
        f"What kind of network this is, is only likely: {'; '.join([*whole, *parts])}. Where it may be a transformer it gets the finer"
        f" blocks of one. To settle it, {_PROBE}, or give the heads of its attention as overrides."
    )


def unknown_matrices(parameters: Sequence[ParameterReport], report: ModelReport) -> str:
    """The warning that it is not known whether matrices are hidden ones, which Muon steps."""
    paste = {glob: "muon" for glob, _ in _globs(parameters, report)}
    return (
        f"{_count(parameters)} may belong to the hidden matrices, but that is not known ({_names(parameters)}), so that 'auto' gives them"
        f" blocks. If they do, say so: overrides={paste}; if not, write 'factored' there."
    )


def unknown_cut(parameters: Sequence[ParameterReport], report: ModelReport) -> str:
    """The warning that it is not known where the matrices of fused projections lie."""
    paste = {glob: _parts(p) for glob, p in _globs(parameters, report)}
    return (
        f"The order of the parts in {_count(parameters)} is not known ({_names(parameters)}), so that each tensor is orthogonalised whole,"
        f" which may cost quality. To cut it, give the order, for example overrides={paste}; to leave it whole, write 'muon' there."
    )


def _count(parameters: Sequence[ParameterReport]) -> str:
    return count(len(parameters), "parameter")


def _names(parameters: Sequence[ParameterReport]) -> str:
    more = f" and {len(parameters) - _SHOWN} more" if len(parameters) > _SHOWN else ""
    return ", ".join(f"{p.name} {p.shape}" for p in parameters[:_SHOWN]) + more


def _globs(parameters: Sequence[ParameterReport], report: ModelReport) -> Iterable[tuple[str, ParameterReport]]:
    """Globs that match all of ``parameters`` and no other shape, each with one that it matches."""
    found: dict[str, ParameterReport] = {}
    for p in parameters:
        if not any(fnmatchcase(p.name, glob) and like.shape == p.shape for glob, like in found.items()):
            found[_glob(p, report)] = p
    return found.items()


def _glob(p: ParameterReport, report: ModelReport) -> str:
    """The name with as many of its numbers left open as leave only parameters of one shape and one line order."""
    places = [m.span() for m in _NUMBER.finditer(p.name)]
    for first in range(len(places)):
        glob = p.name
        for start, end in reversed(places[first:]):
            glob = f"{glob[:start]}*{glob[end:]}"
        if all((q.shape, q.role, q.lines) == (p.shape, p.role, p.lines) for q in report.parameters if fnmatchcase(q.name, glob)):
            return glob
    return p.name


def _example(p: ParameterReport) -> str:
    """A line order that fills the parameter: what its name says it holds, in heads of the usual size."""
    lines = p.shape[p.axis]
    held = LETTERS.get(p.role) or next((parts for word in reversed(p.name.split(".")) if (parts := projection_parts(word))), "qkv")
    if lines % len(held):
        return "line"
    size = lines // len(held)
    head = next(head for head in (_HEAD, _HEAD // 2, _HEAD // 4, _HEAD // 8, size) if size % head == 0)
    return "|".join(f"{role}:{size // head}x{head}" for role in held)


def _parts(p: ParameterReport) -> str:
    """A line order that fills a fused projection."""
    lines = p.shape[p.axis]
    if p.role is Role.MLP_GATE_UP:
        return "muon" if lines % 2 else f"gate:{lines // 2}|up:{lines // 2}"
    found = _example(p)
    return "muon" if found == "line" else found
