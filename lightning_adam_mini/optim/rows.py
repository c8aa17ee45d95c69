"""The state of a parameter whose rows are pruned, added or reordered."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.matrix_layout import MatrixLayout
from lightning_adam_mini.optim.codecs import codec_of
from lightning_adam_mini.optim.state import Kind, StateFormat, elements_in, moments_in, slots_of, values_of


def check_rows(name: str, old: Tensor, new: Tensor, layout: BlockLayout, rows: Tensor | None) -> Tensor:
    """Which row of the old parameter each row of the new one was.

    Args:
        name: The parameter's name.
        old: The parameter.
        new: What takes its place.
        layout: The blocks of the old one.
        rows: For each row of the new one a row of the old one, or -1; None for the same order, with new rows after the old ones.

    Raises:
        ValueError: If shapes, dtypes or rows do not fit, or rows are grouped into blocks.
    """
    if new.ndim == 0 or old.ndim == 0 or new.shape[1:] != old.shape[1:] or new.dtype != old.dtype:
        raise ValueError(
            f"Parameter {name!r} of shape {tuple(old.shape)} and {old.dtype} cannot be replaced by one of shape {tuple(new.shape)} and"
            f" {new.dtype}, because only the first dimension may differ. Make a new optimizer."
        )
    if rows is None:
        numbers = torch.arange(len(new))
        rows = numbers.masked_fill(numbers >= len(old), -1)
    if rows.shape != (len(new),) or rows.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"rows has shape {tuple(rows.shape)} and {rows.dtype}, but for each of the {len(new)} rows of the new {name!r} it needs the"
            " number of the row that it was, or -1. Of a mask, mask.nonzero().flatten() gives the numbers."
        )
    if rows.numel() and not -1 <= int(rows.min()) <= int(rows.max()) < len(old):
        raise ValueError(f"rows has a number that is not from -1 to {len(old) - 1}: parameter {name!r} has {len(old)} rows.")
    if isinstance(layout, MatrixLayout) and layout.cut is not None and layout.rows == 0 and not torch.equal(rows, torch.arange(len(old))):
        raise ValueError(
            f"The rows of parameter {name!r} are cut into matrices ({layout}), so that none can be added, removed or moved. Change them"
            f" first: optimizer.set_layouts({{{name!r}: MatrixLayout({tuple(old.shape)})}}), and give them their cut again afterwards."
        )
    if layout.axis == 0:
        raise ValueError(
            f"The rows of parameter {name!r} are grouped into blocks ({layout}), so that none can be added or removed. Change its blocks"
            f" first: optimizer.set_layouts({{{name!r}: BlockLayout.each_line({tuple(old.shape)})}})."
        )
    return rows


def move_rows(state: Mapping[str, Tensor], new: Tensor, old: BlockLayout, rows: Tensor, format: StateFormat) -> dict[str, Tensor]:
    """The state of the new parameter.

    Args:
        state: The state of the old one.
        new: The new one.
        old: The blocks of the old one.
        rows: What :func:`check_rows` gave.
        format: How the optimizer keeps state.
    """
    rows = rows.to(new.device)
    layout = old.with_shape(new.shape)
    moved = {key: value for key, value in state.items() if key not in moments_in(state)}
    for slot in slots_of(Kind.ELEMENT):
        kept = elements_in(state, slot)
        moved.update(format.keep(new, layout, slot, _take(values_of(kept, codec_of(kept)), rows)))
    for slot, margin in zip(slots_of(Kind.BLOCK, old), old.margins, strict=True):
        moved[slot.name] = state[slot.name] if 0 in margin.dims else _take(state[slot.name], rows)
    if [margin.dims for margin in old.margins] != [margin.dims for margin in layout.margins]:  # of few rows two means save nothing
        wide = old.combine([moved.pop(slot.name) for slot in slots_of(Kind.BLOCK, old)]).expand(new.shape)
        moved.update((slot.name, mean) for slot, mean in zip(slots_of(Kind.BLOCK, layout), layout.averages(wide), strict=True))
    return moved


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """Rows by number; zeros for -1."""
    taken = values[rows.clamp_min(0)] if len(values) else values.new_zeros(len(rows), *values.shape[1:])
    return taken.masked_fill_((rows < 0).view(-1, *([1] * (values.ndim - 1))), 0)
