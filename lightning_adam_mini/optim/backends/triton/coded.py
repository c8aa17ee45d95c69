"""The update of tensors whose first moments are kept in codes (``codecs.EightBit``), in Triton: it follows kernels of ``kernel.py``.

Those step second moments as of any other tensor, and leave weights and first moments of int8 alone. ``update_coded`` does the rest, in
tiles that have a run of elements with one scale in each row, whatever the blocks are: the largest of a run has to be known before its codes
are.

A tensor is a matrix of the codec's rows. Element ``(r, c)`` belongs to block ``of_row[r] + of_column[c]`` of each factor of its second
moment; its place in memory is ``order[c]`` of row ``r``.
"""

# Triton's language only looks like Python, and where Triton is not installed pyright takes this folder for it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from lightning_adam_mini.optim.backends.triton import kernel
from lightning_adam_mini.optim.backends.triton.kernel import _bounded, _gradient, _root, _second_moment, _tensors
from lightning_adam_mini.optim.backends.triton.plan import COUNTING, CROSSED, EACH, PLACE, ROOT, ROOTS

_TASK: tl.constexpr = tl.constexpr(kernel.TASK)
_SCALARS: tl.constexpr = tl.constexpr(kernel.SCALARS)
_CODED: tl.constexpr = tl.constexpr(kernel.CODED)
_EACH: tl.constexpr = tl.constexpr(EACH)
_CROSSED: tl.constexpr = tl.constexpr(CROSSED)
_ROOT: tl.constexpr = tl.constexpr(ROOT)
_ROOTS: tl.constexpr = tl.constexpr(ROOTS)
_PLACE: tl.constexpr = tl.constexpr(PLACE)
_COUNTING: tl.constexpr = tl.constexpr(COUNTING)
_LARGEST: tl.constexpr = tl.constexpr(127)
_ZERO: tl.constexpr = tl.constexpr(2.0**-100)  # as in codecs.py
_TO_WHOLE: tl.constexpr = tl.constexpr(1.5 * 2.0**23)  # float32 numbers beside it are whole, so that to add it rounds, ties to even


@triton.jit
def update_coded(
    programs,
    tasks,
    scalars,
    partials,
    P: tl.constexpr,  # noqa: N803
    COMPUTE: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    ALIGNED: tl.constexpr,  # noqa: N803
    KIND: tl.constexpr,  # noqa: N803
):
    """Update some runs of at most ``COLUMNS`` elements: weights, codes and scales."""
    program = programs + tl.program_id(0).to(tl.int64) * _CODED
    tensor = tl.load(program)
    first = tl.load(program + 1).to(tl.int32)
    count = tl.load(program + 2).to(tl.int32)
    means = partials + tl.load(program + 3)
    task = tasks + tensor * _TASK
    s = scalars + tensor * _SCALARS
    p, g, m, v = _tensors(task, P, tl.int8, COMPUTE, ALIGNED)
    others = tl.load(task + 11).to(tl.pointer_type(COMPUTE))
    more = tl.load(task + 12).to(tl.pointer_type(COMPUTE))
    scales = tl.load(task + 13).to(tl.pointer_type(tl.float32))
    tables = tl.multiple_of(tl.load(task + 14).to(tl.pointer_type(tl.int32)), 16)
    wide = tl.load(tables)
    across = tl.load(tables + 1)
    if ALIGNED:
        wide = tl.multiple_of(wide, 8)
    sign = tl.load(s + 3).to(COMPUTE)
    coupled = tl.load(s + 2).to(COMPUTE)
    rest = tl.load(s)
    correction = tl.load(s + 5).to(COMPUTE)
    eps = tl.load(s + 6).to(COMPUTE)
    bound = tl.load(s + 9).to(COMPUTE)
    lr = tl.load(s + 4).to(COMPUTE)
    decay = tl.load(s + 1).to(COMPUTE)
    rows: tl.constexpr = TILE // COLUMNS
    for i in range(0, count, rows):
        near = i + tl.arange(0, rows) < count
        run = first + i + tl.arange(0, rows)
        row = run // across
        column = ((run - row * across) * COLUMNS)[:, None] + tl.arange(0, COLUMNS)[None, :]
        inside = near[:, None] & (column < wide)
        at = column
        if not ALIGNED:
            order = tl.load(tables + 2)
            if order != 0:
                at = tl.load(tables + tl.multiple_of(order, 8) + column, mask=inside, other=0)
        at += (row * wide)[:, None]
        x = tl.load(p + at, mask=inside, other=0.0).to(COMPUTE)
        grad = _gradient(tl.load(g + at, mask=inside, other=0.0).to(COMPUTE), x, sign, coupled)
        square = grad * grad
        if KIND == _EACH:
            square = _second_moment(tl.load(v + at, mask=inside, other=0.0), square, s, COMPUTE)
            root = _root(square) * correction
        elif KIND == _CROSSED:
            both = _of_blocks(means, tables, 2, row, column, near, inside, 1.0, rows, COLUMNS)
            ratio = _of_blocks(v, tables, 0, row, column, near, inside, 0.0, rows, COLUMNS) / both
            # 0 / 0 is 0, as in step_tiles
            root = _root(tl.where(both == 0, 0.0, ratio) + (both - both))
            root *= _root(_of_blocks(others, tables, 1, row, column, near, inside, 0.0, rows, COLUMNS)) * correction
        elif KIND >= _ROOT:
            root = _of_blocks(others, tables, 0, row, column, near, inside, 1.0, rows, COLUMNS) * correction
            if KIND == _ROOTS:
                root *= _of_blocks(more, tables, 1, row, column, near, inside, 1.0, rows, COLUMNS)
        else:
            root = _root(_of_blocks(v, tables, 0, row, column, near, inside, 0.0, rows, COLUMNS)) * correction
        code = tl.load(m + at, mask=inside, other=0).to(COMPUTE)
        scale = tl.load(scales + run, mask=near, other=0.0).to(COMPUTE)
        # Several threads may load what one of them stores: none may do so before all have loaded.
        tl.debug_barrier()
        now = (1.0 - rest).to(COMPUTE) * (code * tl.abs(code) / (_LARGEST * _LARGEST) * scale[:, None]) + rest.to(COMPUTE) * grad
        update = now / (root + eps)
        if KIND >= _ROOTS:
            update = _bounded(update, bound)
        if KIND == _EACH:
            tl.store(v + at, square, mask=inside)
        tl.store(p + at, (x * decay - lr * update).to(p.dtype.element_ty), mask=inside)
        code, scale = _encode(tl.where(inside, now, 0.0))
        tl.store(m + at, code, mask=inside)
        tl.store(scales + run, scale, mask=near)


@triton.jit
def _of_blocks(
    values,
    tables,
    FACTOR: tl.constexpr,  # noqa: N803
    row,
    column,
    near,
    inside,
    other,
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """What a factor's blocks have, for each element."""
    place = tables + _PLACE + 2 * FACTOR
    of_row = tl.load(tables + tl.load(place) + row, mask=near, other=0)
    of_column = tl.load(place + 1)
    value = tl.load(values + of_row, mask=near, other=other)[:, None] + tl.zeros([ROWS, COLUMNS], values.dtype.element_ty)
    if of_column != 0:  # blocks end within rows
        number = column
        if of_column != _COUNTING:
            number = tl.load(tables + tl.multiple_of(of_column, 8) + column, mask=inside, other=0)
        value = tl.load(values + (of_row[:, None] + number), mask=inside, other=other)
    return value


@triton.jit
def _encode(now):
    """Codes and scales of runs, as ``EightBit.encode_``."""
    # Of numbers that are not negative, larger ones have larger bits, and NaNs the largest.
    if now.dtype == tl.float64:
        bits = now.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
        largest = tl.max(bits, axis=1).to(tl.float64, bitcast=True).to(tl.float32)
    else:
        bits = now.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        largest = tl.max(bits, axis=1).to(tl.float32, bitcast=True)
    zero = largest < _ZERO  # false for NaN, which so gets into the scale
    factor = tl.where(zero, 0.0, _LARGEST * _LARGEST / tl.where(zero, 1.0, largest).to(now.dtype))
    size = tl.sqrt(tl.abs(now) * factor[:, None]).to(tl.float32)
    code = tl.where(size == size, (size + _TO_WHOLE) - _TO_WHOLE, 0.0)
    return tl.where(now < 0, -code, code).to(tl.int8), tl.where(zero, 0.0, largest)
