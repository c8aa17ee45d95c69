"""Sizes of the updates of orthogonalised matrices, as a few numbers a parameter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lightning_adam_mini.callbacks.summary import safe_tag
from lightning_adam_mini.optim.adam_mini import MatrixUpdates

PREFIX = "weight_update"
"""First word of every tag."""


def summarize_updates(updates: Mapping[str, MatrixUpdates], shown: Mapping[str, str], groups: Mapping[str, str]) -> dict[str, float]:
    """Bring the numbers to show to the host, in one transfer.

    Args:
        updates: What ``AdamMini.matrix_updates`` gave.
        shown: What each parameter is called in tags, by name.
        groups: Layer type of each parameter, by name, by which tags are grouped.

    Returns:
        By tag, ``rms`` (the update's root mean square) and ``ratio`` (that over the weights'), of several matrices their ``min``,
        ``median`` and ``max``; and so of NorMuon's learning rates of rows (``row``).

    Example:
        >>> one = MatrixUpdates(torch.tensor([2e-4]), torch.tensor([1e-2]), None)
        >>> sorted(summarize_updates({"fc.weight": one}, {"fc.weight": "fc.weight"}, {"fc.weight": "linear"}))
        ['weight_update.linear/fc.weight/ratio', 'weight_update.linear/fc.weight/rms']
    """
    tags: list[str] = []
    pieces: list[Tensor] = []
    for name, update in updates.items():
        tag = f"{PREFIX}.{safe_tag(groups.get(name, 'parameters'))}/{safe_tag(shown[name])}"
        for kind, values in zip(update._fields, update, strict=True):
            if values is not None:
                for word, number in _few(values.float().flatten()):
                    tags.append("/".join(filter(None, (tag, kind.removesuffix("s") if kind == "rows" else kind, word))))
                    pieces.append(number.view(1))
    if not pieces:
        return {}
    return dict(zip(tags, torch.cat([piece.to(pieces[0].device, non_blocking=True) for piece in pieces]).tolist(), strict=True))


def _few(values: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A single value, or the least, the median and the greatest."""
    if len(values) == 1:
        yield "", values
    else:
        yield from (("min", values.min()), ("median", values.median()), ("max", values.max()))
