"""Line orders read from source code: how ``forward()`` cuts what one linear layer gives into q, k and v.

For attention that a user wrote, such as::

    q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
    q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)

only plain forms are understood: the output of the layer, perhaps reshaped, is assigned to variables called q, k and v, and each is
reshaped into heads. Where anything is missing or does not add up to the rows of the weight, nothing is claimed.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from lightning_adam_mini.detection.heads import is_head_count
from lightning_adam_mini.detection.names import words

_ROLES = {**dict.fromkeys(("q", "query", "queries"), "q"), **dict.fromkeys(("k", "key", "keys"), "k")}
_ROLES |= dict.fromkeys(("v", "value", "values"), "v")
_RESHAPES = frozenset({"view", "reshape", "unflatten"})
_CUTS = frozenset({"split", "chunk", "unbind", "tensor_split"})
_OPERATORS = {ast.Add: int.__add__, ast.Sub: int.__sub__, ast.Mult: int.__mul__, ast.FloorDiv: int.__floordiv__}


@dataclass(frozen=True)
class _Call:
    """A method called on a tensor: its name and arguments."""

    name: str
    args: tuple[ast.expr, ...]


def read_lines(module: nn.Module, child: str, rows: int) -> str | None:
    """The line order of the weight of ``module.<child>``, if the source of the module's methods says it plainly.

    Args:
        module: The attention module.
        child: Name of the linear layer that holds several of q, k and v.
        rows: Number of its outputs.
    """
    for function in _functions(type(module)):
        reader = _Reader(module, child, function)
        lines = reader.read(rows)
        if lines is not None:
            return lines
    return None


@lru_cache(maxsize=512)
def _functions(cls: type) -> tuple[ast.FunctionDef, ...]:
    """The methods of a class, its own and inherited, as syntax trees."""
    found: dict[str, ast.FunctionDef] = {}
    for base in cls.__mro__:
        if base is nn.Module:
            break
        for name, value in vars(base).items():
            if not inspect.isfunction(value) or name == "__init__" or name in found:
                continue
            try:
                tree = ast.parse(textwrap.dedent(inspect.getsource(value))).body[0]
            except (OSError, TypeError, SyntaxError, IndexError):
                continue  # defined in a shell, or not by plain source
            if isinstance(tree, ast.FunctionDef):
                found[name] = tree
    return tuple(found.values())


class _Reader:
    """Reads one method."""

    def __init__(self, module: nn.Module, child: str, function: ast.FunctionDef) -> None:
        self.module, self.child = module, child
        self.me = function.args.args[0].arg if function.args.args else "self"
        self.assigns = sorted((n for n in ast.walk(function) if isinstance(n, ast.Assign)), key=lambda n: (n.lineno, n.col_offset))
        self.calls = [n for n in ast.walk(function) if isinstance(n, ast.Call)]
        self.locals: dict[str, ast.expr] = {}
        for assign in self.assigns:
            for target in assign.targets:
                if isinstance(target, ast.Name):
                    self.locals[target.id] = assign.value
                elif isinstance(target, ast.Tuple) and isinstance(assign.value, ast.Tuple) and len(target.elts) == len(assign.value.elts):
                    for name, value in zip(target.elts, assign.value.elts, strict=True):
                        if isinstance(name, ast.Name):
                            self.locals.setdefault(name.id, value)

    def read(self, rows: int) -> str | None:
        for assign in self.assigns:
            target = assign.targets[0]
            if not isinstance(target, ast.Tuple) or not all(isinstance(e, ast.Name) for e in target.elts):
                continue
            names = [e.id for e in target.elts if isinstance(e, ast.Name)]
            roles = [_role(name) for name in names]
            if not {"k"} <= set(roles) <= {"q", "k", "v"} or len(set(roles)) != len(roles) or len(roles) < 2:
                continue
            chain = self._chain(assign.value, depth=0)
            if chain is not None and chain and chain[-1].name in _CUTS:
                return self._lines(names, [role or "" for role in roles], chain, rows)
        return None

    def _chain(self, node: ast.expr, depth: int) -> list[_Call] | None:
        """The methods called on the layer's output, first to last; None if ``node`` does not come from it."""
        if depth > 24:
            return None
        if isinstance(node, ast.Tuple) and all(isinstance(e, ast.Subscript) for e in node.elts):  # qkv[0], qkv[1], qkv[2]
            bases = [e.value for e in node.elts if isinstance(e, ast.Subscript)]
            indices = [getattr(e.slice, "value", None) for e in node.elts if isinstance(e, ast.Subscript)]
            if indices == list(range(len(indices))) and len({ast.dump(base) for base in bases}) == 1:
                chain = self._chain(bases[0], depth + 1)
                return None if chain is None else [*chain, _Call("unbind", (ast.Constant(0),))]
            return None
        if isinstance(node, ast.Name):
            value = self.locals.get(node.id)
            return None if value is None else self._chain(value, depth + 1)
        if not isinstance(node, ast.Call):
            return None
        function = node.func
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == self.me:
            return [] if function.attr == self.child else None
        if not isinstance(function, ast.Attribute):
            return None
        arguments = (*node.args, *(keyword.value for keyword in node.keywords))
        if isinstance(function.value, ast.Name) and function.value.id == "torch" and arguments:
            inner, arguments = arguments[0], arguments[1:]
        else:
            inner = function.value
        chain = self._chain(inner, depth + 1)
        return None if chain is None else [*chain, _Call(function.attr, arguments)]

    def _lines(self, names: list[str], roles: list[str], chain: list[_Call], rows: int) -> str | None:
        shapes = [call for call in chain[:-1] if call.name in _RESHAPES]
        if shapes:
            return self._reshaped(roles, shapes[-1], rows)
        sizes = self._sizes(chain[-1], len(roles), rows)
        if sizes is None:
            return None
        parts = []
        for name, role, size in zip(names, roles, sizes, strict=True):
            heads = self._heads_of(name, size)
            if heads is None:
                return None
            count, fastest = heads
            if count <= 0 or size % count:
                return None
            parts.append(f"{role}:{count}x{size // count}{'t' if fastest and count > 1 else ''}")
        return "|".join(parts)

    def _reshaped(self, roles: list[str], shape: _Call, rows: int) -> str | None:
        """Reshaped before it is cut: ``(..., 3, heads, size)`` or ``(..., heads, 3, size)`` or ``(..., heads, size, 3)``."""
        values = [self._value(arg) for arg in shape.args]
        n = len(roles)
        at_head = next((i for i, arg in enumerate(shape.args) if self._is_heads(arg)), None)
        if at_head is None or values.count(n) != 1 or values[at_head] in (None, n):
            return None
        at_role, count = values.index(n), int(values[at_head] or 0)
        size, rest = divmod(rows, n * count)
        if rest or abs(at_role - at_head) > 2 or max(at_role, at_head) < len(values) - 2:
            return None
        if at_role < at_head:
            return "|".join(f"{role}:{count}x{size}" for role in roles) if at_head < len(values) - 1 else None
        if at_role == len(values) - 1:
            return f"{count}*[{','.join(roles)}]x{size}"
        return f"{count}*({'|'.join(f'{role}:1x{size}' for role in roles)})"

    def _sizes(self, cut: _Call, n: int, rows: int) -> list[int] | None:
        first = cut.args[0] if cut.args else None
        if isinstance(first, ast.Name):
            first = self.locals.get(first.id, first)
        if cut.name == "split" and isinstance(first, (ast.List, ast.Tuple)):
            sizes = [self._value(e) for e in first.elts]
            if len(sizes) == n and sizes.count(None) == 1:  # one size is not an attribute: what is left
                sizes[sizes.index(None)] = rows - sum(size for size in sizes if size is not None)
            return [s for s in sizes if s is not None] if len(sizes) == n and sum(s or 0 for s in sizes) == rows else None
        if cut.name not in ("split", "chunk") or rows % n or first is None or isinstance(first, (ast.List, ast.Tuple)):
            return None
        value = self._value(first)
        return [rows // n] * n if value in (None, n if cut.name == "chunk" else rows // n) else None

    def _heads_of(self, name: str, size: int) -> tuple[int, bool] | None:
        """How many heads a variable of ``size`` channels is reshaped into, and whether their index is the fastest."""
        own = [c for c in self.calls if self._reshapes(c, name)]
        for call in own or [c for c in self.calls if self._reshapes(c, None)]:
            args = call.args[1:] if isinstance(call.func, ast.Attribute) and call.func.attr == "unflatten" else call.args
            if len(args) == 1 and isinstance(args[0], (ast.Tuple, ast.List)):
                args = args[0].elts
            if len(args) < 2:
                continue
            at = self._moved(call, len(args))
            if at is None:
                at = next((i for i, arg in enumerate(args) if self._is_heads(arg)), None)
            if at is None or at < len(args) - 2:
                continue
            other = len(args) - 1 if at == len(args) - 2 else len(args) - 2
            count, width = self._value(args[at]), self._value(args[other])
            if count is None or count <= 0:
                count = size // width if width and width > 0 else None
            if count and size % count == 0 and (width is None or width < 0 or count * width == size):
                return count, at == len(args) - 1
        return None

    def _reshapes(self, call: ast.Call, name: str | None) -> bool:
        function = call.func
        if not isinstance(function, ast.Attribute) or function.attr not in _RESHAPES or not isinstance(function.value, ast.Name):
            return False
        # Without a name: a variable that stands for each of them, `for t in (q, k, v)`.
        return function.value.id == name if name is not None else _role(function.value.id) is None and function.value.id not in self.locals

    def _moved(self, call: ast.Call, dims: int) -> int | None:
        """Which dimension of a 4-D reshape is moved to the second place, where attention has its heads."""
        for outer in self.calls:
            function = outer.func
            if not isinstance(function, ast.Attribute) or function.value is not call or dims != 4:
                continue
            order = [self._value(arg) for arg in outer.args]
            if function.attr == "transpose" and sorted(o % 4 for o in order if o is not None) == [1, 2]:
                return 2
            if function.attr == "permute" and len(order) == 4:
                return order[1]
        return None

    def _is_heads(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Name) and node.id in self.locals:
            return self._is_heads(self.locals[node.id]) if not isinstance(self.locals[node.id], ast.Name) else False
        return isinstance(node, ast.Attribute) and is_head_count(node.attr)

    def _value(self, node: ast.expr, depth: int = 0) -> int | None:
        """The integer that an expression is, if it needs nothing but the module's attributes."""
        value: Any = None
        if depth > 8:
            return None
        if isinstance(node, ast.Constant):
            value = node.value
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            inner = self._value(node.operand, depth + 1)
            value = None if inner is None else -inner
        elif isinstance(node, ast.Name) and node.id in self.locals:
            value = self._value(self.locals[node.id], depth + 1)
        elif isinstance(node, ast.Attribute):
            value = self._attribute(node)
        elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = self._value(node.left, depth + 1), self._value(node.right, depth + 1)
            if left is not None and right is not None and not (isinstance(node.op, ast.FloorDiv) and right == 0):
                value = _OPERATORS[type(node.op)](left, right)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def _attribute(self, node: ast.Attribute) -> Any:
        path = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            path.append(inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name) or inner.id != self.me:
            return None
        value: Any = self.module
        for name in reversed(path):
            value = getattr(value, name, None)
        return value


def _role(name: str) -> str | None:
    """The part that a variable's name says it is."""
    known = [_ROLES[word] for word in words(name) if word in _ROLES]
    return known[0] if len(known) == 1 else None
