"""Bringing what running showed into a report: it confirms or corrects what modules and structure said."""

from __future__ import annotations

from dataclasses import replace

from lightning_adam_mini.detection.evidence.evidence import Evidence, ParameterEvidence
from lightning_adam_mini.detection.evidence.order import write_lines
from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import Architecture, Role
from lightning_adam_mini.lines import parse_lines

_ATTENTION = ("q", "k", "v")
_ROLES = {frozenset("q"): Role.QUERY, frozenset("k"): Role.KEY, frozenset("v"): Role.VALUE}
# What a tensor with heads may be called besides: the low-rank part of a projection.
_KEPT = frozenset({Role.LORA_B, Role.BIAS, Role.NORM, Role.SCALE})
_ATTENTIVE = frozenset({Role.QUERY, Role.KEY, Role.VALUE, Role.QKV})


def reconcile(report: ModelReport, evidence: Evidence) -> ModelReport:
    """The report with each parameter that running showed confirmed or corrected, and the others as they were.

    A confirmed parameter keeps its lines and is no guess any more; its reason gains "confirmed by running". The reason of a corrected one
    says what was believed and what running showed.

    Args:
        report: What :func:`~lightning_adam_mini.detection.inspect_model` found.
        evidence: What :func:`~lightning_adam_mini.detection.evidence.probe_attention` found on the same module.

    Example:
        >>> from torch import nn, zeros
        >>> from lightning_adam_mini.detection import inspect_model
        >>> from lightning_adam_mini.detection.evidence import probe_attention
        >>> class Odd(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.mix = nn.Linear(8, 24)
        ...     def forward(self, x):
        ...         a, b, c = self.mix(x).view(1, 5, 2, 12).transpose(1, 2).split(4, -1)
        ...         return (b @ c.mT).softmax(-1) @ a
        >>> report = reconcile(inspect_model(Odd()), probe_attention(Odd(), zeros(1, 5, 8)))
        >>> report.by_name["mix.weight"].lines
        '2*(v:1x4|q:1x4|k:1x4)'
    """
    found = evidence.by_name
    parameters = tuple(_merge(p, found[p.name]) if p.name in found and found[p.name].shape == p.shape else p for p in report.parameters)
    parameters = tuple(_follow(p, report, parameters) for p in parameters)
    architecture, reason = report.architecture, report.reason
    if architecture in (Architecture.MLP, Architecture.UNKNOWN) and evidence.parameters:
        architecture, reason = Architecture.TRANSFORMER, f"{len(evidence.attentions)} softmax attentions found by running; before: {reason}"
    return replace(report, architecture=architecture, reason=reason, parameters=parameters)


def disagreements(before: ModelReport, after: ModelReport) -> tuple[ParameterReport, ...]:
    """The parameters of ``after`` that running corrected.

    Example:
        >>> from torch import nn
        >>> from lightning_adam_mini.detection import inspect_model
        >>> report = inspect_model(nn.Linear(2, 2))
        >>> disagreements(report, report)
        ()
    """
    old = before.by_name
    return tuple(p for p in after.parameters if (p.role, p.owner, p.lines, p.axis) != _key(old[p.name]))


def _key(p: ParameterReport) -> tuple[object, ...]:
    return p.role, p.owner, p.lines, p.axis


def _merge(p: ParameterReport, seen: ParameterEvidence) -> ParameterReport:
    if p.axis == seen.axis and p.lines is not None and _agree(p.lines, seen.lines):
        return replace(p, guess=False, reason=f"{p.reason}; confirmed by running")
    lines = _with_others(seen.lines, p.lines)
    owner = _role(lines)
    role = p.role if p.role in _KEPT else owner
    if seen.is_bias and role is not Role.BIAS:
        return p
    if p.lines is None and (p.role in _ATTENTIVE or p.role in _KEPT):
        reason = f"{p.reason}; {seen.reason}"
    else:
        was = f"{p.role}" + (f" {p.lines}" if p.lines else "") + (f" along axis {p.axis}" if p.axis != seen.axis else "")
        reason = f"{seen.reason}; believed before: {was} ({p.reason})"
    return replace(p, role=role, owner=p.owner if role is Role.LORA_B else owner, lines=lines, axis=seen.axis, guess=False, reason=reason)


def _role(lines: str) -> Role:
    attention = frozenset(parse_lines(lines).roles) & frozenset(_ATTENTION)
    return _ROLES.get(attention, Role.QKV)


def _agree(believed: str, seen: str) -> bool:
    """Whether both say the same of queries and keys, and of values wherever running saw some."""
    one, other = parse_lines(believed).expand(), parse_lines(seen).expand()
    if len(one) != len(other):
        return False
    roles = {role for role, _ in other} & set(_ATTENTION)
    return all(_blocks(one, role) == _blocks(other, role) for role in roles - {"v"}) and (
        "v" not in roles or {i for i, (r, _) in enumerate(one) if r == "v"} == {i for i, (r, _) in enumerate(other) if r == "v"}
    )


def _blocks(lines: tuple[tuple[str, int], ...], role: str) -> set[frozenset[int]]:
    heads: dict[int, list[int]] = {}
    for i, (name, head) in enumerate(lines):
        if name == role:
            heads.setdefault(head, []).append(i)
    return {frozenset(head) for head in heads.values()}


def _with_others(seen: str, believed: str | None) -> str:
    """What running showed; lines that feed no attention keep the name that they had."""
    lines = list(parse_lines(seen).expand())
    names = parse_lines(believed).expand() if believed is not None else ()
    if len(names) != len(lines) or all(role != "n" for role, _ in lines):
        return seen
    merged = [names[i] if line[0] == "n" and names[i][0] not in _ATTENTION else line for i, line in enumerate(lines)]
    return write_lines(merged) or seen


def _follow(p: ParameterReport, before: ModelReport, parameters: tuple[ParameterReport, ...]) -> ParameterReport:
    """A bias whose weight was corrected, and that running did not show by itself."""
    if p.role is not Role.BIAS or p is not before.by_name[p.name] or "bias" not in p.name:
        return p
    name = p.name[::-1].replace("saib", "thgiew", 1)[::-1]
    weight = next((w for w in parameters if w.name == name), None)
    if weight is None or weight is before.by_name[name] or weight.lines is None or weight.lines == p.lines:
        return p
    if len(p.shape) != 1 or parse_lines(weight.lines).size != p.shape[0]:
        return p
    return replace(p, owner=weight.role, lines=weight.lines, reason=f"{p.reason}; follows its weight, which running showed")
