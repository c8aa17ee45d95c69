"""Known modules: what is held where, in which line order, written down once per class.

An entry is plain data. It names classes by their qualified name, so that nothing is imported that the user has not imported; subclasses
are covered. Its ``parts`` say what each child or parameter is: a role, or a line order as a template over the module's attributes::

    register_module("my_package.Attention", {"qkv": "q:{H}x{D}|k:{H}x{D}|v:{H}x{D}", "proj": "attn_out"}, H="num_heads")

``{H}``, ``{G}`` and ``{D}`` stand for heads, key/value heads and head size. Where they are not given they are looked up among the usual
attribute names (``num_heads``, ``num_key_value_heads``, ...), ``G`` falls back to ``H``, and ``D`` is solved for so that the lines fill the
weight. ``rows`` is the length of the weight along its lines, and other names in braces are attributes. A template that does not fill the
weight exactly is not believed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache

from torch import nn

from lightning_adam_mini.detection.expressions import MissingError, check, evaluate
from lightning_adam_mini.detection.heads import declared_heads, declared_key_heads
from lightning_adam_mini.detection.roles import Role
from lightning_adam_mini.lines import parse_lines

STACKED = "q:{H}x{D}|k:{G}x{D}|v:{G}x{D}"
"""Queries, then keys, then values; grouped-query attention too."""
PER_HEAD = "{H}*(q:1x{D}|k:1x{D}|v:1x{D})"
"""Head by head, each with its query, key and value."""

# A module that says how large its heads are is taken at its word.
_OWN_HEAD_DIM = ("head_dim", "attention_head_size", "head_size", "dim_head", "dim_heads", "d_head")
_CONVENTIONAL = ("transformers.models.", "peft.", "diffusers.", "timm.", "torchvision.", "torch_geometric.", "torch.nn.", "x_transformers.")
_BRACES = re.compile(r"\{([^{}]*)\}")
_ROLES = frozenset(role.value for role in Role)


@dataclass(frozen=True)
class KnownModule:
    """What a class of modules holds.

    Attributes:
        names: Qualified names of the classes, ``fnmatch`` patterns allowed.
        parts: What each child or parameter is. Keys are paths below the module, ``*`` for any name. Values are a role (``attn_out``), a
            line order template (its roles tell the role of the tensor), or both (``gnn_weight=v:{H}x{D}``); ``@1`` at the end puts the
            lines on another axis than the layer's own.
        symbols: Expressions on attributes for the names in the templates.
        when: Expression on attributes that must hold for this entry to be used.
    """

    names: tuple[str, ...]
    parts: Mapping[str, str]
    symbols: Mapping[str, str] = field(default_factory=dict)
    when: str | None = None

    def __post_init__(self) -> None:
        for path, text in self.parts.items():
            part = Part.read(text)
            if part.role is not None and part.role not in _ROLES:
                raise ValueError(
                    f"Cannot register {self.names[0]!r} because its part {path!r} is {part.role!r}, neither a role nor a line order."
                    f" Write one of {', '.join(sorted(_ROLES))}, or a line order such as {STACKED!r}."
                )
            for expression in _BRACES.findall(part.template or ""):
                check(expression)
        for expression in (*self.symbols.values(), *([self.when] if self.when else [])):
            check(expression)


@dataclass(frozen=True)
class Part:
    """A value of :attr:`KnownModule.parts`, taken apart."""

    role: str | None
    template: str | None
    axis: int | None

    @classmethod
    @lru_cache(maxsize=1024)
    def read(cls, text: str) -> Part:
        """Take ``role``, ``template``, ``role=template`` apart, each with an optional ``@axis``."""
        text, _, axis = text.partition("@")
        head, equals, tail = text.partition("=")
        role, template = (head, tail) if equals else (None, text) if ":" in text or "[" in text else (text, None)
        return cls(role, template, int(axis) if axis else None)


def register_module(name: str | Iterable[str], parts: Mapping[str, str | Role], *, when: str | None = None, **symbols: str) -> None:
    """Teach detection a class of modules.

    Args:
        name: Qualified name of the class, ``module.Class``, or several; subclasses are covered. ``fnmatch`` patterns are allowed.
        parts: What each child or parameter of the module is: a role, or a line order as a template.
        when: Expression on attributes that must hold, such as ``"head_first"``; register a class twice to tell its variants apart.
        **symbols: Expressions on attributes for names in the templates, such as ``H="num_heads"``.

    Raises:
        ValueError: If a part is neither a role nor a line order, or an expression is more than arithmetic on attributes.

    Example:
        >>> register_module("my_package.Attention", {"qkv": "q:{H}x{D}|k:{H}x{D}|v:{H}x{D}", "proj": "attn_out"}, H="num_heads")
    """
    names = (name,) if isinstance(name, str) else tuple(name)
    _add(KnownModule(names, {path: str(part) for path, part in parts.items()}, symbols, when))
    _entries_of_name.cache_clear()


_exact: dict[str, list[KnownModule]] = {}
_patterns: list[tuple[re.Pattern[str], KnownModule]] = []


def _add(entry: KnownModule) -> None:
    # The latest comes first, so that a user's entry overrules a built-in one.
    for name in entry.names:
        if any(c in name for c in "*?["):
            _patterns.insert(0, (re.compile(translate(name)), entry))
        else:
            _exact.setdefault(name, []).insert(0, entry)


def add_builtin(entries: Iterable[KnownModule]) -> None:
    """Add the package's own entries, the first of them first in line."""
    for entry in reversed(tuple(entries)):
        _add(entry)
    _entries_of_name.cache_clear()


@lru_cache(maxsize=4096)
def _entries_of_name(name: str) -> tuple[KnownModule, ...]:
    return (*_exact.get(name, ()), *(entry for pattern, entry in _patterns if pattern.match(name)))


@lru_cache(maxsize=4096)
def qualified_names(cls: type) -> tuple[str, ...]:
    """Qualified names of a class and its bases, most special first."""
    return tuple(f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__ if base not in (nn.Module, object))


@lru_cache(maxsize=4096)
def is_conventional(cls: type) -> bool:
    """Whether a class is of a library whose separate projections were read to be heads in turn; exceptions have entries of their own."""
    return any(name.startswith(_CONVENTIONAL) for name in qualified_names(cls))


def find_entry(module: nn.Module) -> tuple[str, KnownModule] | None:
    """The entry for ``module`` and the class name that it was found by."""
    for name in qualified_names(type(module)):
        for entry in _entries_of_name(name):
            try:
                if entry.when is None or evaluate(entry.when, module, {}):
                    return name, entry
            except MissingError:
                continue
    return None


def fill_template(template: str, rows: int, module: nn.Module, symbols: Mapping[str, str]) -> str | None:
    """The line order that ``template`` means for a weight of ``rows`` lines; None if it does not fill them exactly."""
    texts = [*_BRACES.findall(template), *(text for name, text in symbols.items() if name not in ("H", "G"))]
    used = set(re.findall(r"\w+", " ".join(texts)))
    given = {"rows": rows}
    heads = [_evaluate(symbols["H"], module, given)] if "H" in symbols else declared_heads(module) if used & {"H", "G"} else [1]
    for count in heads:
        if count is None:
            continue
        known = {**given, "H": count, "G": count}
        groups = [count]
        if "G" in used:
            groups = [_evaluate(symbols["G"], module, known)] if "G" in symbols else [*declared_key_heads(module), count]
        for group in groups:
            if group is None:
                continue
            values = {**known, "G": group}
            try:
                for name, expression in symbols.items():
                    if name not in ("H", "G"):
                        values[name] = evaluate(expression, module, values)
                lines = _fill(template, rows, module, values)
            except (MissingError, TypeError, ZeroDivisionError):
                continue
            if lines is not None:
                return lines
    return None


def _evaluate(expression: str, module: nn.Module, symbols: Mapping[str, int]) -> int | None:
    try:
        return int(evaluate(expression, module, symbols))
    except (MissingError, TypeError, ValueError):
        return None


def _fill(template: str, rows: int, module: nn.Module, symbols: Mapping[str, int]) -> str | None:
    def text(values: Mapping[str, int]) -> str:
        return _BRACES.sub(lambda m: str(evaluate(m[1], module, values)), template)

    def size(values: Mapping[str, int]) -> int:
        return parse_lines(text(values)).size

    if "D" not in symbols and re.search(r"\{[^{}]*\bD\b", template):
        one, two = size({**symbols, "D": 1}), size({**symbols, "D": 2})
        if two == one or (rows - one) % (two - one) or rows < one:
            return None
        symbols = {**symbols, "D": 1 + (rows - one) // (two - one)}
        declared = [value for value in (getattr(module, name, None) for name in _OWN_HEAD_DIM) if isinstance(value, int)]
        if declared and symbols["D"] not in declared:
            return None
    try:
        return text(symbols) if size(symbols) == rows else None
    except ValueError:  # a negative or fractional number leaves no readable line order
        return None
