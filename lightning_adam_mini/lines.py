"""The lines of a weight: which rows (or columns) belong to which head of what.

A projection of an attention layer is a matrix whose *lines* along its output axis are heads. A line order says so in one
string, read from the first line to the last:

- ``q:12x64`` is 12 query heads of 64 lines each: a plain query projection.
- ``q:12x64|k:4x64|v:4x64`` is a fused projection with grouped-query attention: queries, then keys, then values.
- ``12*(q:1x64|k:1x64|v:1x64)`` repeats the bracket 12 times and keeps counting heads: GPT-NeoX, BLOOM, Falcon.

The rest of the grammar: ``mlp_up:3072`` is 3072 lines without heads; ``q:4x16t`` has the head index fastest (line ``d * 4 + head``);
``4*[q,k,v]x16`` has the role index fastest (line ``(head * 16 + d) * 3 + role``).

The same string, with heads read as *blocks*, says how second moments are shared: ``v:768x1`` is one block per line and ``v:768``
one block for all. :meth:`LineOrder.split` and :meth:`LineOrder.merge` rewrite a line order that way; inside ``[...]``, where the lines of
several roles alternate, they mark the role instead: ``v*`` for one block per line and ``v+`` for one block in all.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

# Numbers are of ASCII digits, and neither zero nor longer than any tensor could be.
_SEGMENT = re.compile(r"([a-z_]+):(?:([1-9][0-9]{0,9})x)?([1-9][0-9]{0,9})(t?)(?![0-9])")
_ALTERNATING = re.compile(r"([1-9][0-9]{0,9})\*\[([a-z_]+[*+]?(?:,[a-z_]+[*+]?)*)\]x([1-9][0-9]{0,9})(?![0-9])")
_REPEAT = re.compile(r"([1-9][0-9]{0,9})\*\(")
_MOST_LINES = 2**22
_DEEPEST = 8


@dataclass(frozen=True)
class _Segment:
    """``role:heads x size``: consecutive heads of consecutive lines (``t``: head index fastest); no heads if ``heads`` is None."""

    role: str
    heads: int | None
    size: int
    head_fastest: bool = False

    @property
    def lines(self) -> int:
        return self.size * (1 if self.heads is None else self.heads)

    def __str__(self) -> str:
        heads = "" if self.heads is None else f"{self.heads}x"
        return f"{self.role}:{heads}{self.size}{'t' if self.head_fastest else ''}"


@dataclass(frozen=True)
class _Alternating:
    """``heads*[roles]x size``: within a head the lines of the roles alternate."""

    heads: int
    roles: tuple[str, ...]
    size: int

    @property
    def lines(self) -> int:
        return self.heads * len(self.roles) * self.size

    def __str__(self) -> str:
        return f"{self.heads}*[{','.join(self.roles)}]x{self.size}"


@dataclass(frozen=True)
class _Repeat:
    """``count*(items)``: the items over and over, heads counting on."""

    count: int
    items: tuple[_Item, ...]

    @property
    def lines(self) -> int:
        return self.count * sum(item.lines for item in self.items)

    def __str__(self) -> str:
        return f"{self.count}*({'|'.join(map(str, self.items))})"


_Item = _Segment | _Alternating | _Repeat


@dataclass(frozen=True)
class LineOrder:
    """What each line of a weight is, in order. Make one with :func:`parse_lines`; ``str()`` gives the string back.

    Example:
        >>> order = parse_lines("q:2x3|k:1x3|v:1x3")
        >>> order.size, order.roles
        (12, ('q', 'k', 'v'))
        >>> str(order.split("v"))
        'q:2x3|k:1x3|v:3x1'
    """

    items: tuple[_Item, ...]

    def __str__(self) -> str:
        return "|".join(map(str, self.items))

    @property
    def size(self) -> int:
        """Number of lines."""
        return sum(item.lines for item in self.items)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles in order of first appearance."""
        return tuple(dict.fromkeys(role for role, _ in self.expand()))

    def expand(self) -> tuple[tuple[str, int], ...]:
        """One ``(role, head)`` per line; head is -1 where the lines of a role have no heads."""
        return _expand(self)

    def split(self, *roles: str) -> LineOrder:
        """The same lines with each line of ``roles`` a head (a block) of its own."""
        return LineOrder(_rewrite(self.items, roles, each_line=True))

    def merge(self, *roles: str) -> LineOrder:
        """The same lines with all lines of ``roles`` together, without heads."""
        return LineOrder(_rewrite(self.items, roles, each_line=False))


def parse_lines(text: str) -> LineOrder:
    """Read a line order.

    Args:
        text: The line order, in the grammar at the top of this module.

    Raises:
        ValueError: If ``text`` is not a line order; the message says where reading stopped.
    """
    items, end = _parse(text, 0, depth=0)
    if end != len(text) or not items:
        raise _unreadable(text, end)
    order = LineOrder(items)
    if order.size > _MOST_LINES:  # before anything is made of each
        raise ValueError(
            f"The line order {shorten(text)} has {order.size:,} lines, and more than {_MOST_LINES:,} are not supported. Give such a"
            " tensor blocks without heads: 'tensor' or 'line'."
        )
    return order


def shorten(value: object) -> str:
    """How a value that a user gave is shown in a message: cut if it is long.

    Example:
        >>> shorten("q:12x64"), shorten("q:1|" * 1000)
        ("'q:12x64'", "'q:1|q:1|q:1|q:1|q:1|q:1|q:1|q:1|q:1|q:1|q:1|q:1|q:1|q:1|q:1|...' (4002 characters)")
    """
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:61]}...{text[0]} ({len(text)} characters)"


def _unreadable(text: str, at: int) -> ValueError:
    return ValueError(
        f"Cannot read the line order {shorten(text)} at {shorten(text[at : at + 40])} because it is neither 'role:HEADSxSIZE',"
        f" 'role:SIZE', 'N*(...)', {_DEEPEST} brackets deep at most, nor 'N*[role,role]xSIZE', with numbers from 1 on. Write for example"
        " 'q:12x64|k:12x64|v:12x64'."
    )


def _parse(text: str, i: int, depth: int) -> tuple[tuple[_Item, ...], int]:
    items: list[_Item] = []
    while True:
        if m := _REPEAT.match(text, i):
            if depth == _DEEPEST:
                raise _unreadable(text, i)
            inner, i = _parse(text, m.end(), depth + 1)
            if not text.startswith(")", i):
                raise _unreadable(text, i)
            items.append(_Repeat(int(m[1]), inner))
            i += 1
        elif m := _ALTERNATING.match(text, i):
            items.append(_Alternating(int(m[1]), tuple(m[2].split(",")), int(m[3])))
            i = m.end()
        elif m := _SEGMENT.match(text, i):
            items.append(_Segment(m[1], int(m[2]) if m[2] else None, int(m[3]), bool(m[4])))
            i = m.end()
        else:
            raise _unreadable(text, i)
        if text.startswith("|", i):
            i += 1
        else:
            return tuple(items), i


@lru_cache(maxsize=1024)
def _expand(order: LineOrder) -> tuple[tuple[str, int], ...]:
    counts: Counter[str] = Counter()
    lines: list[tuple[str, int]] = []

    def run(items: tuple[_Item, ...]) -> None:
        for item in items:
            if isinstance(item, _Repeat):
                for _ in range(item.count):
                    run(item.items)
            elif isinstance(item, _Alternating):
                for _ in range(item.heads):
                    for _ in range(item.size):
                        for role in item.roles:
                            name = role.rstrip("*+")
                            lines.append((name, -1 if role.endswith("+") else counts[name]))
                            counts[name] += role.endswith("*")
                    for role in item.roles:
                        counts[role] += role.isidentifier()
            elif item.heads is None:
                lines.extend([(item.role, -1)] * item.size)
            else:
                first = counts[item.role]
                heads = range(first, first + item.heads)
                if item.head_fastest:
                    lines.extend([(item.role, head) for _ in range(item.size) for head in heads])
                else:
                    lines.extend([(item.role, head) for head in heads for _ in range(item.size)])
                counts[item.role] += item.heads

    run(order.items)
    return tuple(lines)


def _rewrite(items: tuple[_Item, ...], roles: tuple[str, ...], each_line: bool) -> tuple[_Item, ...]:
    out: list[_Item] = []
    for item in items:
        if isinstance(item, _Repeat):
            item = replace(item, items=_rewrite(item.items, roles, each_line))
        elif isinstance(item, _Alternating):
            mark = "*" if each_line else "+"
            item = replace(item, roles=tuple(r.rstrip("*+") + mark if r.rstrip("*+") in roles else r for r in item.roles))
        elif item.role in roles:
            lines = item.size * (1 if item.heads is None else item.heads)
            item = _Segment(item.role, lines, 1) if each_line else _Segment(item.role, None, lines)
        out.append(item)
    return tuple(out)
