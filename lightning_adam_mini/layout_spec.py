"""Layouts as users write them: ``"tensor"``, ``"q:12x64|k:12x64|v:12x64"``, ``{"dims": [1]}``. All that they need is a shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import parse_lines, shorten
from lightning_adam_mini.matrix_layout import MatrixLayout

LayoutSpec: TypeAlias = "BlockLayout | str | Mapping[str, Any]"
"""A layout, or one as it is written."""

_NAMED = ("parameter", "tensor", "line", "factored", "muon")


def read_layout(spec: LayoutSpec, shape: tuple[int, ...]) -> BlockLayout:
    """The layout that a spec stands for.

    Args:
        spec: ``"parameter"``, ``"tensor"``, ``"line"`` (along the first dimension), ``"factored"``, ``"muon"``, a line order along the
            first dimension, or a mapping of the arguments of a :class:`BlockLayout` (``dims``) or a :class:`MatrixLayout` (``rows``).
        shape: Shape of the parameter.

    Raises:
        ValueError: If it is none of these or does not fit the shape.

    Example:
        >>> print(read_layout("factored", (8, 3)), "and", read_layout({"dims": [1]}, (8, 3)).block_shape)
        mean over dim 1 x mean over dim 0 and (8, 1)
    """
    if isinstance(spec, BlockLayout):
        return spec
    if isinstance(spec, str):
        matrix = sum(size > 1 for size in shape) > 1
        if spec == "parameter" or (spec == "factored" and not matrix):
            return BlockLayout.per_parameter(shape)
        if spec == "tensor" or (spec == "line" and not shape):
            return BlockLayout.whole(shape)
        if spec in ("line", "factored"):
            return BlockLayout.each_line(shape) if spec == "line" else BlockLayout.factored(shape)
        if spec == "muon":
            return MatrixLayout(shape)
        if ":" in spec or "[" in spec:
            return BlockLayout.grouped(shape, str(parse_lines(spec)))
        raise ValueError(f"{shorten(spec)} is neither one of {', '.join(_NAMED)} nor a line order such as 'q:12x64|k:12x64|v:12x64'.")
    if isinstance(spec, Mapping):
        return read_mapping(spec, shape)
    raise ValueError(f"A layout is a BlockLayout, a string such as 'tensor' or a mapping such as {{'dims': [1]}}, not {shorten(spec)}.")


def read_mapping(spec: Mapping[str, Any], shape: tuple[int, ...]) -> BlockLayout:
    """The layout whose arguments a mapping holds.

    Raises:
        ValueError: If it holds others or they do not fit the shape.
    """
    kind, keys = (MatrixLayout, _MATRIX_KEYS) if "rows" in spec else (BlockLayout, _BLOCK_KEYS)
    unknown = [key for key in spec if key not in keys]
    if unknown or not spec.keys() & {"rows", "dims"}:
        raise ValueError(
            f"A layout is {{'dims': [1]}} with {', '.join(_BLOCK_KEYS[1:])}, or {{'rows': 0}} with {', '.join(_MATRIX_KEYS[1:])}, not"
            f" {shorten(spec)}. What needs a model, such as 'role' or 'heads', goes to partition_model(model, overrides=...)."
        )
    lists = {
        key: value if value is None else _dimensions(key, value) for key, value in spec.items() if key in ("dims", "crossed", "stacked")
    }
    return kind(shape, **{**spec, **lists})


_BLOCK_KEYS = ("dims", "axis", "lines", "crossed")
_MATRIX_KEYS = ("rows", "stacked", "cut", "momentum", "beta2", "iterations", "precision")


def _dimensions(key: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(d, int) and not isinstance(d, bool) for d in value):
        raise ValueError(f"{key} is {value!r}, but it has to be a list of dimensions, such as [1].")
    return tuple(value)
