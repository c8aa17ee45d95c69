"""One step of Adam-mini (arXiv 2406.16793, Algorithm 1) in float64 numpy, for whole models.

The blocks come from the plain data of a layout (shape, dims, axis, lines) by label of element; neither the package's reader of line orders
nor its averaging is used.
"""

from __future__ import annotations

import re

import numpy as np

from lightning_adam_mini import BlockLayout


def line_labels(lines: str) -> list[tuple[str, int]]:
    """The block of each line: its role and the number of the block within the role, 0 for all lines of a role that has one block."""
    used: dict[str, int] = {}
    out: list[tuple[str, int]] = []
    for item in _flat(lines):
        if alternating := re.fullmatch(r"(\d+)\*\[(.*)\]x(\d+)", item):
            roles = alternating[2].split(",")
            for head, line in np.ndindex(int(alternating[1]), int(alternating[3])):
                for role in roles:
                    number = {"+": 0, "*": head * int(alternating[3]) + line}.get(role[-1], head)
                    out.append((role.rstrip("*+"), number))
            continue
        role, size = item.split(":")
        if "x" not in size:
            out += [(role, 0)] * int(size)
            continue
        heads, length = map(int, size.rstrip("t").split("x"))
        first = used.get(role, 0)
        order = np.arange(heads * length) % heads if size.endswith("t") else np.arange(heads * length) // length
        out += [(role, first + int(head)) for head in order]
        used[role] = first + heads
    return out


def _flat(lines: str) -> list[str]:
    """The segments with repeats written out."""
    while repeat := re.search(r"(\d+)\*\(([^()]*)\)", lines):
        lines = lines.replace(repeat[0], "|".join([repeat[2]] * int(repeat[1])), 1)
    return lines.split("|")


def labels_of(layout: BlockLayout) -> np.ndarray:
    """The number of the block of each element."""
    labels = np.zeros((1,) * len(layout.shape), dtype=np.int64)
    for dim, size in enumerate(layout.shape):
        if dim in layout.dims:
            continue
        numbers = np.arange(size)
        if dim == layout.axis:
            assert layout.lines is not None
            names = line_labels(layout.lines)
            assert len(names) == size
            distinct = {name: number for number, name in enumerate(dict.fromkeys(names))}
            numbers = np.array([distinct[name] for name in names])
        along = [1] * len(layout.shape)
        along[dim] = size
        labels = labels * (int(numbers.max()) + 1) + numbers.reshape(along)
    return np.broadcast_to(labels, layout.shape)


def first_step(p: np.ndarray, g: np.ndarray, labels: np.ndarray, lr: float, betas: tuple[float, float], eps: float, decay: float):
    """The parameter after the first step and the second moment of each block."""
    beta1, beta2 = betas
    p, g, flat = p.astype(np.float64), g.astype(np.float64), labels.ravel()
    mean = np.bincount(flat, weights=(g * g).ravel()) / np.bincount(flat)
    m, v = (1 - beta1) * g, (1 - beta2) * mean
    m_hat, v_hat = m / (1 - beta1), v / (1 - beta2)
    return p * (1 - lr * decay) - lr * m_hat / (np.sqrt(v_hat)[labels] + eps), v
