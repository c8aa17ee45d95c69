"""Claims from running: what was seen confirms, completes or contradicts what was believed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from lightning_adam_mini.detection.evidence.evidence import Evidence, ParameterEvidence
from lightning_adam_mini.detection.evidence.order import write_lines
from lightning_adam_mini.detection.layers import is_bare, is_conv, is_pointwise
from lightning_adam_mini.detection.names import join
from lightning_adam_mini.detection.roles import ATTENTION, LETTERS, Role, Source
from lightning_adam_mini.detection.tree import Claim, Slot, Tree
from lightning_adam_mini.lines import parse_lines

_QKV = frozenset("qkv")
_ROLES = {frozenset(letter): role for role, letter in LETTERS.items()}
# What a tensor with heads may be called besides: the low-rank part of a projection.
_KEPT = frozenset({Role.LORA_B, Role.BIAS, Role.NORM, Role.SCALE})
_SCALES = "running showed that what it makes of one input scales features of another"
_READS = "running showed that it reads what attention gives"

UNCLEAR = frozenset({Role.LINEAR, Role.CONV, Role.OTHER, Role.FIRST_CONV, Role.PATCH_EMBEDDING})
"""Roles of weights that may be part of attention for all that their layer says."""


def claim_shown(tree: Tree, evidence: Evidence, path: str | None = None, *, whole: bool = False) -> None:
    """Add what running showed.

    A parameter whose lines are as they were believed keeps them and is no guess any more. What was only supposed is replaced. Where a
    known module says otherwise, two sources disagree: the lines are those that running showed, and a guess.

    Args:
        tree: The model.
        evidence: What running showed.
        path: The module that was run alone, on made-up inputs: where that calls queries what its name calls keys, it is a guess.
            [default: the whole model was, on the user's]
        whole: Whether that module holds all layers of the model.
    """
    slots = {name: slot for slot in tree.slots for name in slot.names}
    for seen in evidence.parameters:
        slot = slots.get(join(path or "", seen.name))
        if slot is not None and slot.shape == seen.shape:
            slot.add(_merge(slot.claim, seen, made_up=path is not None))
            if not seen.is_bias:
                tree.attention.setdefault(_holder(tree, slot))
    for lost in evidence.not_seen:
        slot = slots.get(join(path or "", lost.parameter)) if lost.parameter else None
        if slot is not None and slot.is_open:
            why = lost.reason.removeprefix(f"{lost.parameter}: ")
            slot.add(replace(slot.claim, reason=f"{slot.claim.reason}, which feeds attention; {why}", guess=True))
    if whole or not path:  # of a part alone, what is around it may read them
        _claim_whole(tree, evidence, path or "", slots)
    for name in evidence.readers:
        slot = slots.get(join(path or "", name))
        if slot is not None and slot.is_open and slot.role in UNCLEAR and _may_be_output(tree, slot):
            slot.add(replace(slot.claim, source=Source.EVIDENCE, role=Role.ATTN_OUT, reason=_READS, guess=False))


def _may_be_output(tree: Tree, slot: Slot) -> bool:
    """Whether what reads what attention gives may be its projection: outside of it no output of the network, and no kernel."""
    is_inside = any(module in tree.attention for module in tree.around(slot.layer))
    return is_inside or not (tree.shown.unread.get(slot) or (is_conv(slot.layer) and not is_pointwise(slot.layer)))


def _claim_whole(tree: Tree, evidence: Evidence, path: str, slots: dict[str, Slot]) -> None:
    """What running all layers of the model showed of what they give to each other, and how parameters are used."""

    def known(names: Iterable[str]) -> list[Slot]:
        return [slot for name in names if (slot := slots.get(join(path, name))) is not None]

    seen, shown = evidence.whole, tree.shown
    met = set(known((*seen.read, *seen.unread)))
    layers = [slot for slot in tree.slots if slot.attr == "weight" and not is_bare(slot)]
    # A layer that was not run may read what the ones before it give; those of a chain are a network of their own.
    left = [i for i, slot in enumerate(layers) if slot not in met and not isinstance(tree.parent(slot.layer), nn.Sequential)]
    early = set(layers[: max(left, default=0)]) if met else set()
    shown.unread |= dict.fromkeys(known(seen.read), False) | {slot: True for slot in known(seen.unread) if slot not in early}
    shown.fed |= {reader: set(known(by)) for name, by in seen.fed for reader in known([name])}
    shown.uses |= {slot: set(kinds) for name, kinds in seen.uses for slot in known([name])}
    shown.told |= dict.fromkeys(known(seen.told))
    shown.messages |= {tree.modules[at]: why for where, why in seen.messages if (at := join(path, where)) in tree.modules}
    for held, paths in ((shown.joined, seen.joined), (shown.attends, evidence.attentions), (shown.products, seen.products)):
        held |= {tree.modules[at]: None for where in paths if (at := join(path, where)) in tree.modules}
    axes = {slot: axis for name, axis in seen.axes for slot in known([name])}
    makers = {maker for slot in shown.told for maker in shown.fed.get(slot, ())}  # of the time vector, that others read
    modulations = {slot for slot, uses in shown.uses.items() if "scales" in uses} - makers
    beside = {tree.parent(slot.layer) for slot in modulations}
    modulations |= {slot for slot, uses in shown.uses.items() if "shifts" in uses and tree.parent(slot.layer) in beside} - makers
    for slot, uses in shown.uses.items():
        if slot.is_open and slot.role in UNCLEAR and slot in modulations:
            slot.add(replace(slot.claim, source=Source.EVIDENCE, role=Role.MODULATION, reason=_SCALES, guess=False))
        elif slot.is_open and slot.role in (Role.LINEAR, Role.OTHER, Role.SCALE) and is_bare(slot):
            _claim_use(tree, slot, uses, axes.get(slot))


def _claim_use(tree: Tree, slot: Slot, uses: set[str], axis: int | None) -> None:
    """What a parameter is that a module holds itself, by how it is used."""
    is_vector = sum(size > 1 for size in slot.shape) < 2
    role, why = None, ""
    if uses == {"map"} and axis is not None:
        guess = slot.layer in tree.attention and slot.claim.guess
        slot.claim = replace(
            slot.claim, role=Role.LINEAR, axis=axis, guess=guess, reason=f"{slot.claim.reason}; running showed which dimension"
        )
    elif "table" in uses and len(slot.shape) == 2:
        role, why = Role.TOKEN_EMBEDDING, "inputs look it up"
    elif "joined" in uses and not {"map", "table"} & uses:
        role, why = Role.SPECIAL_TOKEN, "it is joined to features"
    elif uses <= {"added", "place"} and not is_vector:
        role, why = Role.POSITION_EMBEDDING, "it is added to features"
    elif uses == {"scaled"}:
        role, why = Role.SCALE, "features are scaled by it"
    if role is not None:
        slot.add(Claim(Source.EVIDENCE, role, f"running showed that {why}"))


def _holder(tree: Tree, slot: Slot) -> nn.Module:
    """The module whose projection ``slot`` is: the one that holds its layer, past lists."""
    around = list(tree.around(slot.layer)) if slot.attr == "weight" else [slot.layer]
    return next((m for m in around[1:] if not isinstance(m, (nn.ModuleList, nn.ModuleDict, nn.Sequential))), around[-1])


def role_of_lines(lines: str) -> Role:
    """The role of a tensor with these lines."""
    return _ROLES.get(_QKV & set(parse_lines(lines).roles), Role.QKV)


def _merge(held: Claim, seen: ParameterEvidence, made_up: bool) -> Claim:
    if held.axis == seen.axis and held.lines is not None and _agree(held.lines, seen.lines):
        reason = held.reason if held.reason.endswith("confirmed by running") else f"{held.reason}; confirmed by running"
        return Claim(Source.EVIDENCE, held.role, reason, held.owner, held.axis, held.lines)
    lines = _with_others(seen.lines, held.lines)
    owner = role_of_lines(lines)
    role = Role.BIAS if seen.is_bias else held.role if held.role in _KEPT else owner
    contradicts = held.source is Source.KNOWN and held.lines is not None and not held.guess
    contradicts |= made_up and {held.role, owner} == {Role.QUERY, Role.KEY}  # its name says otherwise
    if held.lines is None and (held.role in ATTENTION or held.role in _KEPT):
        reason = f"{held.reason}; {seen.reason}"
    else:
        was = f"{held.role}" + (f" {held.lines}" if held.lines else "") + (f" along axis {held.axis}" if held.axis != seen.axis else "")
        reason = f"{seen.reason}; believed before: {was} ({held.reason})"
    return Claim(Source.EVIDENCE, role, reason, held.owner if role is Role.LORA_B else owner, seen.axis, lines, contradicts)


def _agree(believed: str, seen: str) -> bool:
    """Whether both say the same of queries and keys, and of values wherever running saw some."""
    one, other = parse_lines(believed).expand(), parse_lines(seen).expand()
    if len(one) != len(other):
        return False
    roles = {role for role, _ in other} & _QKV
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
    merged = [names[i] if line[0] == "n" and names[i][0] not in _QKV else line for i, line in enumerate(lines)]
    return write_lines(merged) or seen
