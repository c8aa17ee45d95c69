"""Line orders against an independent reading of the grammar: random orders are built together with their lines, item by item."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_adam_mini import BlockLayout
from lightning_adam_mini.lines import parse_lines

ROLES = ("q", "k", "v", "gate", "mlp_up")

# An item is plain data: ("heads", role, n, size, t) | ("plain", role, size) | ("alternating", n, roles, size) | ("repeat", n, items).
roles = st.sampled_from(ROLES)
small = st.integers(1, 3)
segment = st.tuples(st.just("heads"), roles, small, small, st.booleans())
plain = st.tuples(st.just("plain"), roles, st.integers(1, 5))
alternating = st.tuples(st.just("alternating"), small, st.lists(roles, min_size=1, max_size=3, unique=True), small)
item = st.recursive(
    segment | plain | alternating,
    lambda inner: st.tuples(st.just("repeat"), small, st.lists(inner, min_size=1, max_size=3)),
    max_leaves=5,
)
orders = st.lists(item, min_size=1, max_size=3)


def text(items) -> str:
    """The items as the grammar writes them."""
    out = []
    for kind, *args in items:
        if kind == "heads":
            role, heads, size, head_fastest = args
            out.append(f"{role}:{heads}x{size}{'t' if head_fastest else ''}")
        elif kind == "plain":
            out.append("{}:{}".format(*args))
        elif kind == "alternating":
            heads, names, size = args
            out.append(f"{heads}*[{','.join(names)}]x{size}")
        else:
            count, inner = args
            out.append(f"{count}*({text(inner)})")
    return "|".join(out)


def label(items, seen: dict[str, int]) -> list[tuple[str, int]]:
    """One (role, head) a line, by the words of the grammar; ``seen`` counts the heads of each role so far."""
    lines: list[tuple[str, int]] = []
    for kind, *args in items:
        if kind == "heads":
            role, heads, size, head_fastest = args
            place = [None] * (heads * size)
            for head in range(heads):
                for d in range(size):
                    place[d * heads + head if head_fastest else head * size + d] = (role, seen.get(role, 0) + head)
            lines += place
            seen[role] = seen.get(role, 0) + heads
        elif kind == "plain":
            role, size = args
            lines += [(role, -1)] * size
        elif kind == "alternating":
            heads, names, size = args
            place = [None] * (heads * size * len(names))
            for i, role in enumerate(names):
                for head in range(heads):
                    for d in range(size):
                        place[(head * size + d) * len(names) + i] = (role, seen.get(role, 0) + head)
            lines += place
            for role in names:
                seen[role] = seen.get(role, 0) + heads
        else:
            count, inner = args
            for _ in range(count):
                lines += label(inner, seen)
    return lines


def groups(labels) -> set[frozenset[int]]:
    """Which lines are together."""
    together: dict[object, set[int]] = {}
    for i, name in enumerate(labels):
        together.setdefault(name, set()).add(i)
    return {frozenset(lines) for lines in together.values()}


@settings(max_examples=200, deadline=None)
@given(orders)
def test_reading(items):
    order = parse_lines(text(items))
    labels = label(items, {})
    assert list(order.expand()) == labels
    assert order.size == len(labels)
    assert order.roles == tuple(dict.fromkeys(role for role, _ in labels))
    assert str(order) == text(items)
    assert parse_lines(str(order)) == order


@settings(max_examples=200, deadline=None)
@given(orders, st.lists(roles, unique=True), st.lists(roles, unique=True))
def test_split_and_merge(items, split, merge):
    """Each line of a split role is alone, the lines of a merged role are together, and the others are as before; roles do not change."""
    order = parse_lines(text(items))
    labels = label(items, {})
    rewritten = order.split(*split).merge(*merge)
    expected = []
    for i, (role, head) in enumerate(labels):
        expected.append((role, "merged") if role in merge else (role, "line", i) if role in split else (role, head))
    assert groups(rewritten.expand()) == groups(expected)
    assert [role for role, _ in rewritten.expand()] == [role for role, _ in labels]
    assert parse_lines(str(rewritten)) == rewritten


@settings(max_examples=50, deadline=None)
@given(orders, st.lists(roles, unique=True))
def test_the_last_rewriting_counts(items, chosen):
    order = parse_lines(text(items))
    assert groups(order.split(*chosen).merge(*chosen).expand()) == groups(order.merge(*chosen).expand())
    assert groups(order.merge(*chosen).split(*chosen).expand()) == groups(order.split(*chosen).expand())


@pytest.mark.parametrize(
    ("lines", "labels"),
    [
        ("q:2x3", "q0 q0 q0 q1 q1 q1"),
        ("q:2x3t", "q0 q1 q0 q1 q0 q1"),
        ("mlp_up:3", "mlp_up mlp_up mlp_up"),
        ("q:2x2|k:1x2|v:1x2", "q0 q0 q1 q1 k0 k0 v0 v0"),
        ("2*(q:1x2|k:1x1)", "q0 q0 k0 q1 q1 k1"),
        ("2*(q:2x1|v:1x1)", "q0 q1 v0 q2 q3 v1"),
        ("2*[q,k,v]x2", "q0 k0 v0 q0 k0 v0 q1 k1 v1 q1 k1 v1"),
        ("1*[q,v*]x2|v:2x1", "q0 v0 q0 v1 v2 v3"),
        ("1*[q,v+]x2|v:1", "q0 v q0 v v"),
        ("q:1x2|q:1x1|2*(q:1x1)", "q0 q0 q1 q2 q3"),
        ("2*(2*(q:1x1|k:1x1))", "q0 k0 q1 k1 q2 k2 q3 k3"),
    ],
)
def test_by_hand(lines, labels):
    assert [role if head < 0 else f"{role}{head}" for role, head in parse_lines(lines).expand()] == labels.split()


@pytest.mark.parametrize(
    ("lines", "stopped"),
    [
        ("", ""),
        ("q", "q"),
        ("q:", "q:"),
        ("q:2x", "x"),
        ("q:2x3|", ""),
        ("q:2x3||k:1", "|k:1"),
        ("q:2x3 |k:1", " |k:1"),
        ("2*(q:1x1", ""),
        ("2*(q:1x1))", ")"),
        ("2*()", ")"),
        ("2*[q,]x2", "2*[q,]x2"),
        ("2*[q]", "2*[q]"),
        ("Q:2x3", "Q:2x3"),
        ("q:-1", "q:-1"),
        ("q:2xt", "xt"),
    ],
)
def test_unreadable(lines, stopped):
    with pytest.raises(ValueError, match=re.escape(f"Cannot read the line order {lines!r} at {stopped!r} because")):
        parse_lines(lines)


@pytest.mark.parametrize(
    "text",
    [
        "q:999999999x999999999", "v:99999999999", "q:1000000x64", "1000*(1000*(1000*(q:1)))", "9999999999*(q:0)", "q:0x5",
        "0*(q:1)", "0*[q]x2",
        "4*[q,k]x999999999", "q:" + "9" * 5000, "q:\u0662x\u0664", "q:\u00b2", "1*(" * 5000 + "q:1" + ")" * 5000, "q:-1", "q:1.5", "q:01",
    ],
)  # fmt: skip
def test_an_order_that_would_take_the_machine_is_refused_at_once_and_briefly(text):
    with pytest.raises(ValueError, match="line order") as error:
        parse_lines(text)
    assert len(str(error.value)) < 600
    with pytest.raises(ValueError, match="line order"):  # as a checkpoint may have it
        BlockLayout.from_plain(((8, 5), (1,), 0, text))


def test_the_size_is_known_without_making_the_lines():
    for text in ("q:12x64|k:4x64|v:256", "12*(q:1x64|k:1x64)|4*[q,k*,v+]x16", "2*(3*(v:5)|q:2x2t)"):
        order = parse_lines(text)
        assert order.size == len(order.expand())


@pytest.mark.parametrize("dims", [(1.5,), ("1",), (None,)])
def test_dimensions_are_whole_numbers(dims):
    with pytest.raises(ValueError, match="whole numbers"):
        BlockLayout((8, 5), dims=dims)
