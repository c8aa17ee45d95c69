"""Arithmetic on a module's attributes, as registered modules write it: ``num_heads``, ``config.d_kv``, ``num_heads // 2``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import nn

_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class MissingError(LookupError):
    """An attribute that the expression names is not there."""


@lru_cache(maxsize=1024)
def _parse(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except SyntaxError as error:
        message = f"Cannot read {text!r} because it is not an expression on attributes. Write for example 'num_heads // 2'."
        raise ValueError(message) from error


_ALLOWED = (ast.Constant, ast.Name, ast.Attribute, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp)
_WORDS = (ast.expr_context, ast.boolop, ast.Not, ast.Eq, ast.NotEq, *_OPERATORS)


def check(text: str) -> None:
    """Refuse what :func:`evaluate` does not understand.

    Raises:
        ValueError: If ``text`` is anything but attributes, integers and arithmetic.
    """
    for node in ast.walk(_parse(text)):
        if not isinstance(node, (*_ALLOWED, *_WORDS)):
            raise ValueError(
                f"Cannot use {text!r} because of its {type(node).__name__}: only attributes, integers, + - * // %, ==, !=, and, or, not and"
                " if-else are understood."
            )


def evaluate(text: str, module: nn.Module, symbols: Mapping[str, int]) -> Any:
    """The value of ``text``, where names are ``symbols`` or else attributes of ``module``.

    Raises:
        MissingError: If the module has no such attribute.
        ValueError: If ``text`` is not such an expression.
    """

    def run(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name):
            return symbols[node.id] if node.id in symbols else attribute(module, node.id)
        if isinstance(node, ast.Attribute):
            return attribute(run(node.value), node.attr)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](run(node.left), run(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return not run(node.operand)
        if isinstance(node, ast.BoolOp):
            values = (run(value) for value in node.values)
            return all(values) if isinstance(node.op, ast.And) else any(values)
        if isinstance(node, ast.Compare) and len(node.ops) == 1 and isinstance(node.ops[0], (ast.Eq, ast.NotEq)):
            return (run(node.left) == run(node.comparators[0])) == isinstance(node.ops[0], ast.Eq)
        if isinstance(node, ast.IfExp):
            return run(node.body) if run(node.test) else run(node.orelse)
        raise ValueError(f"Cannot evaluate {text!r} because of its {type(node).__name__}.")

    return run(_parse(text))


def attribute(value: object, name: str) -> Any:
    """``value.name``; a :class:`MissingError` if it is not there or cannot be had."""
    try:
        return getattr(value, name)
    except Exception as error:  # a property may raise anything
        raise MissingError(name) from error
