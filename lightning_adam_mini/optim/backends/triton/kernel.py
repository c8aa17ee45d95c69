"""One step of Adam with a second moment per block, for all parameters at once (Adam-mini, arXiv 2406.16793, Algorithm 1), in Triton.

``prepare`` counts the steps and computes each tensor's scalars. ``step_blocks`` steps the blocks that one program holds: it reads each
gradient once. ``step_pieces`` works on larger blocks in pieces, and on blocks that are scattered in memory in tiles: once for the sums of
squares, which ``finish`` adds up to second moments, and once for the update. ``step_tiles`` does the same for factored layouts, in tiles
of a matrix that have a sum for each row and for each column: ``finish_lines`` adds up those of ordinary rows and columns, and ``average``
takes the mean that both margins have in common. ``update_tiles`` is for blocks that other ranks hold parts of: it only updates, by roots
that torch's operators make of sums that the ranks have added up. Of first moments in codes (int8) these kernels step the second moments
alone, and ``update_coded`` of ``coded.py`` does the rest.

All sums are taken in an order that the tensors' shapes alone decide, so that a step gives the same bits each time. A sum of squares may
overflow where no square and no mean does. It is taken again then, of gradients that are made smaller: only then, because to make them
smaller always would make nothing of tiny ones.

Only the kernels' tables name the tensors: a step is the same few launches for 10 tensors and for 10,000.
"""

# Triton's language only looks like Python, and where Triton is not installed pyright takes this folder for it.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

# Fields of a tensor in `tasks`, of a row of each other table, and of `scalars`. plan.py and step.py write them in this order.
TASK, ITEM, PIECE, BLOCK, TILE, LINE, UPDATED, CODED = 15, 6, 7, 7, 8, 9, 4, 4
GROUP, SCALARS = 8, 10
# What makes gradients so small that 65536 of their squares (a program adds up no more: Sizes.block) do not overflow together, what undoes
# that in the squares, and what makes room for sums of float64 partials. All are powers of two, which round nothing.
DOWN, UP, TINY = 2.0**-8, 2.0**16, 2.0**-64
PREPARE_LANES, FINISH_LANES, AVERAGE_LANES, LINES_AT_ONCE = 64, 128, 1024, 8

_TASK: tl.constexpr = tl.constexpr(TASK)
_ITEM: tl.constexpr = tl.constexpr(ITEM)
_PIECE: tl.constexpr = tl.constexpr(PIECE)
_BLOCK: tl.constexpr = tl.constexpr(BLOCK)
_TILE: tl.constexpr = tl.constexpr(TILE)
_LINE: tl.constexpr = tl.constexpr(LINE)
_UPDATED: tl.constexpr = tl.constexpr(UPDATED)
_GROUP: tl.constexpr = tl.constexpr(GROUP)
_SCALARS: tl.constexpr = tl.constexpr(SCALARS)
_DOWN: tl.constexpr = tl.constexpr(DOWN)
_UP: tl.constexpr = tl.constexpr(UP)
_TINY: tl.constexpr = tl.constexpr(TINY)
_INFINITE: tl.constexpr = tl.constexpr(float("inf"))


@triton.jit
def _kept(at, inside):
    """What lies where the caller will store.

    Several threads may load the same element, and one of them stores it: none may do so before all have loaded.
    """
    kept = tl.load(at) if inside is None else tl.load(at, mask=inside, other=0.0)
    tl.debug_barrier()
    return kept


@triton.jit
def prepare(tasks, groups, scalars, n, LANES: tl.constexpr):  # noqa: N803
    """Add 1 to the steps, and compute what a tensor's programs need of its step and group, in float64: 1 - beta**t cancels."""
    i = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = i < n
    task = tasks + i * _TASK
    counter = tl.load(task + 4, mask=inside, other=0).to(tl.pointer_type(tl.float32))
    step = _kept(counter, inside) + 1.0
    tl.store(counter, step, mask=inside)
    step = step.to(tl.float64)
    group = groups + tl.load(task + 5, mask=inside, other=0) * _GROUP
    lr = tl.load(group, mask=inside, other=0.0)
    lr_address = tl.load(task + 6, mask=inside, other=0)
    lr_there = tl.load(lr_address.to(tl.pointer_type(tl.float32)), mask=lr_address != 0, other=0.0)
    lr = tl.where(lr_address != 0, lr_there.to(tl.float64), lr)
    beta1 = tl.load(group + 1, mask=inside, other=0.0)
    beta2 = tl.load(group + 2, mask=inside, other=0.0)
    # Logarithms are taken on the host; that of a beta of 0 is a large negative number, because 0 * inf is none.
    power1 = tl.exp(step * tl.load(group + 3, mask=inside, other=-1.0))
    power2 = tl.exp(step * tl.load(group + 4, mask=inside, other=-1.0))
    weight_decay = tl.load(group + 6, mask=inside, other=0.0)
    flags = tl.load(group + 7, mask=inside, other=0.0).to(tl.int32)
    decoupled = (flags & 1) != 0
    out = scalars + i * _SCALARS
    tl.store(out, 1.0 - beta1, mask=inside)
    tl.store(out + 1, tl.where(decoupled, 1.0 - lr * weight_decay, 1.0), mask=inside)
    tl.store(out + 2, tl.where(decoupled, 0.0, weight_decay), mask=inside)
    tl.store(out + 3, tl.where((flags & 2) != 0, -1.0, 1.0), mask=inside)
    tl.store(out + 4, lr / (1.0 - power1), mask=inside)
    tl.store(out + 5, 1.0 / tl.sqrt(1.0 - power2), mask=inside)
    tl.store(out + 6, tl.load(group + 5, mask=inside, other=0.0), mask=inside)
    tl.store(out + 7, beta2, mask=inside)
    tl.store(out + 8, 1.0 - beta2, mask=inside)
    # No update of AdamW's is larger (Kingma & Ba, section 2.1), before the first moment is divided by 1 - beta1**t.
    tl.store(out + 9, tl.maximum(1.0, (1.0 - beta1) / tl.sqrt(1.0 - beta2)) * (1.0 - power1), mask=inside)


@triton.jit
def _gradient(g, x, sign, coupled):
    g = sign * g
    return tl.where(coupled != 0, g + coupled * x, g)  # nothing of an infinite x where decay is decoupled


@triton.jit
def _second_moment(v, mean_square, s, COMPUTE: tl.constexpr):  # noqa: N803
    return tl.load(s + 7).to(COMPUTE) * v + tl.load(s + 8).to(COMPUTE) * mean_square


@triton.jit
def _root(v):
    small = v < 2.0**-64  # a GPU's root takes denormal numbers for 0
    return tl.sqrt(tl.where(small, v * 2.0**64, v)) * tl.where(small, 2.0**-32, 1.0)


@triton.jit
def _scale(v, s, COMPUTE: tl.constexpr):  # noqa: N803
    return tl.load(s + 4).to(COMPUTE) / (_root(v) * tl.load(s + 5).to(COMPUTE) + tl.load(s + 6).to(COMPUTE))


@triton.jit
def _momentum(m, at, g, s, inside, COMPUTE: tl.constexpr):  # noqa: N803
    old = tl.load(m + at, mask=inside, other=0.0).to(COMPUTE)
    rest = tl.load(s)
    now = (1.0 - rest).to(COMPUTE) * old + rest.to(COMPUTE) * g  # nothing cancels where beta1 is small
    tl.store(m + at, now.to(m.dtype.element_ty), mask=inside)
    return now


@triton.jit
def _update(p, m, at, x, g, scale, s, inside, COMPUTE: tl.constexpr):  # noqa: N803
    if m.dtype.element_ty != tl.int8:
        now = _momentum(m, at, g, s, inside, COMPUTE)
        tl.store(p + at, (x * tl.load(s + 1).to(COMPUTE) - scale * now).to(p.dtype.element_ty), mask=inside)


@triton.jit
def _weights(p, m, at, s, inside, COMPUTE: tl.constexpr):  # noqa: N803
    """Weights, where they are needed: where first moments are codes, to add decay to gradients and for nothing else."""
    if m.dtype.element_ty != tl.int8:
        x = tl.load(p + at, mask=inside, other=0.0).to(COMPUTE)
    else:
        x = tl.zeros_like(at).to(COMPUTE)
        if tl.load(s + 2) != 0:
            x = tl.load(p + at, mask=inside, other=0.0).to(COMPUTE)
    return x


@triton.jit
def _tensors(task, P: tl.constexpr, M: tl.constexpr, COMPUTE: tl.constexpr, ALIGNED: tl.constexpr):  # noqa: N803
    p = tl.load(task).to(tl.pointer_type(P))
    g = tl.load(task + 1).to(tl.pointer_type(P))
    m = tl.load(task + 2).to(tl.pointer_type(M))
    v = tl.load(task + 3).to(tl.pointer_type(COMPUTE))
    if ALIGNED:  # loads of 16 bytes per thread
        p = tl.multiple_of(p, 16)
        g = tl.multiple_of(g, 16)
        m = tl.multiple_of(m, 16)
        v = tl.multiple_of(v, 16)
    return p, g, m, v


@triton.jit
def step_blocks(
    items,
    tasks,
    scalars,
    P: tl.constexpr,  # noqa: N803
    M: tl.constexpr,  # noqa: N803
    COMPUTE: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    WIDTHS: tl.constexpr,  # noqa: N803
    ALIGNED: tl.constexpr,  # noqa: N803
):
    """Step whole blocks: ``4**width`` of at most ``TILE / 4**width`` elements, a longer one, or single elements."""
    item = items + tl.program_id(0).to(tl.int64) * _ITEM
    tensor = tl.load(item)
    width = tl.load(item + 1)
    start = tl.load(item + 2)
    length = tl.load(item + 3)
    count = tl.load(item + 4)
    first = tl.load(item + 5)
    if ALIGNED:
        start = tl.multiple_of(start, 8)
        length = tl.multiple_of(length, 8)
    task = tasks + tensor * _TASK
    s = scalars + tensor * _SCALARS
    p, g, m, v = _tensors(task, P, M, COMPUTE, ALIGNED)
    numbers = tl.load(task + 7)
    for k in tl.static_range(WIDTHS):
        if width == k:
            _rows(p, g, m, v, s, numbers, start, length, count, first, COMPUTE, 4**k, TILE // 4**k)
    if width == WIDTHS:
        _long_row(p, g, m, v, s, numbers, start, length, first, COMPUTE, TILE)
    if width == WIDTHS + 1:
        _elements(p, g, m, v, s, start, length, COMPUTE, TILE)


@triton.jit
def _rows(p, g, m, v, s, numbers, start, length, count, first, COMPUTE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # noqa: N803
    row = tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)[None, :]
    there = row < count
    inside = there[:, None] & (column < length)
    at = (start + row * length)[:, None] + column
    x = _weights(p, m, at, s, inside, COMPUTE)
    grad = tl.load(g + at, mask=inside, other=0.0).to(COMPUTE)
    grad = _gradient(grad, x, tl.load(s + 3).to(COMPUTE), tl.load(s + 2).to(COMPUTE))
    mean_square = tl.sum(grad * grad, axis=1) / length.to(COMPUTE)
    if tl.max((mean_square == _INFINITE).to(tl.int32), axis=0) != 0:
        small = grad * _DOWN
        mean_square = tl.where(mean_square == _INFINITE, tl.sum(small * small, axis=1) / length.to(COMPUTE) * _UP, mean_square)
    block = first + row
    if numbers != 0:
        block = tl.load(numbers.to(tl.pointer_type(tl.int32)) + block, mask=there, other=0).to(tl.int64)
    square = _second_moment(_kept(v + block, there), mean_square, s, COMPUTE)
    tl.store(v + block, square, mask=there)
    _update(p, m, at, x, grad, _scale(square, s, COMPUTE)[:, None], s, inside, COMPUTE)


@triton.jit
def _long_row(p, g, m, v, s, numbers, start, length, first, COMPUTE: tl.constexpr, TILE: tl.constexpr):  # noqa: N803
    sign = tl.load(s + 3).to(COMPUTE)
    coupled = tl.load(s + 2).to(COMPUTE)
    total = _sum_square(p, g, start, length, sign, coupled, COMPUTE, TILE)
    mean_square = tl.where(total < 0, -total / length.to(COMPUTE) * _UP, total / length.to(COMPUTE))
    block = first
    if numbers != 0:
        block = tl.load(numbers.to(tl.pointer_type(tl.int32)) + first).to(tl.int64)
    square = _second_moment(_kept(v + block, None), mean_square, s, COMPUTE)
    tl.store(v + block, square)
    if m.dtype.element_ty != tl.int8:
        _update_run(p, g, m, s, start, length, sign, coupled, _scale(square, s, COMPUTE), COMPUTE, TILE)


@triton.jit
def _sum_square(p, g, start, length, sign, coupled, COMPUTE: tl.constexpr, TILE: tl.constexpr):  # noqa: N803
    """The sum; where it would overflow, ``-DOWN**2`` times it: no sum of squares is negative."""
    total = _sum_square_of(p, g, start, length, sign, coupled, 1.0, COMPUTE, TILE)
    if total == _INFINITE:  # hardly ever, so it may be slow, but must not take more registers
        total = -_sum_square_of(p, g, start, length, sign, coupled, _DOWN, COMPUTE, TILE // 4)
    return total


@triton.jit
def _sum_square_of(p, g, start, length, sign, coupled, FACTOR: tl.constexpr, COMPUTE: tl.constexpr, TILE: tl.constexpr):  # noqa: N803
    lane = tl.arange(0, TILE)
    sums = tl.zeros([TILE], COMPUTE)
    for i in range(0, length, TILE):
        inside = lane < length - i
        grad = tl.load(g + start + i + lane, mask=inside, other=0.0, eviction_policy="evict_last").to(COMPUTE)
        if coupled != 0:
            grad = sign * grad + coupled * tl.load(p + start + i + lane, mask=inside, other=0.0).to(COMPUTE)
        if FACTOR != 1.0:
            grad *= FACTOR
        sums += grad * grad
    return tl.sum(sums, axis=0)


@triton.jit
def _update_run(p, g, m, s, start, length, sign, coupled, scale, COMPUTE: tl.constexpr, TILE: tl.constexpr):  # noqa: N803
    lane = tl.arange(0, TILE)
    for i in range(0, length, TILE):
        inside = lane < length - i
        at = start + i + lane
        x = tl.load(p + at, mask=inside, other=0.0).to(COMPUTE)
        grad = _gradient(tl.load(g + at, mask=inside, other=0.0, eviction_policy="evict_first").to(COMPUTE), x, sign, coupled)
        _update(p, m, at, x, grad, scale, s, inside, COMPUTE)


@triton.jit
def _elements(p, g, m, v, s, start, length, COMPUTE: tl.constexpr, TILE: tl.constexpr):  # noqa: N803
    lane = tl.arange(0, TILE)
    inside = lane < length
    at = start + lane
    x = tl.load(p + at, mask=inside, other=0.0).to(COMPUTE)
    grad = tl.load(g + at, mask=inside, other=0.0).to(COMPUTE)
    grad = _gradient(grad, x, tl.load(s + 3).to(COMPUTE), tl.load(s + 2).to(COMPUTE))
    square = _second_moment(_kept(v + at, inside), grad * grad, s, COMPUTE)
    tl.store(v + at, square, mask=inside)
    _update(p, m, at, x, grad, _scale(square, s, COMPUTE), s, inside, COMPUTE)


@triton.jit
def step_pieces(
    pieces,
    tasks,
    scalars,
    partials,
    P: tl.constexpr,  # noqa: N803
    M: tl.constexpr,  # noqa: N803
    COMPUTE: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    ALIGNED: tl.constexpr,  # noqa: N803
    UPDATE: tl.constexpr,  # noqa: N803
):
    """Sums of squares of pieces of blocks (``UPDATE=False``), or their update.

    A piece is a run of elements of one block, or a tile of a matrix whose element ``(r, c)`` belongs to block ``base + number[c]``. Of a
    sum that would overflow, ``partials`` get ``DOWN**2`` times it, and negative: no sum of squares is.
    """
    piece = pieces + tl.program_id(0).to(tl.int64) * _PIECE
    tensor = tl.load(piece)
    is_run = tl.load(piece + 1)
    start = tl.load(piece + 2)
    length = tl.load(piece + 3)
    base = tl.load(piece + 4)
    left = tl.load(piece + 5)
    partial = partials + tl.load(piece + 6)
    task = tasks + tensor * _TASK
    s = scalars + tensor * _SCALARS
    p, g, m, v = _tensors(task, P, M, COMPUTE, ALIGNED)
    sign = tl.load(s + 3).to(COMPUTE)
    coupled = tl.load(s + 2).to(COMPUTE)
    if is_run != 0:
        if ALIGNED:
            start = tl.multiple_of(start, 8)
            length = tl.multiple_of(length, 8)
        if UPDATE:
            _update_run(p, g, m, s, start, length, sign, coupled, _scale(tl.load(v + base), s, COMPUTE), COMPUTE, TILE)
        else:
            tl.store(partial, _sum_square(p, g, start, length, sign, coupled, COMPUTE, TILE))
    else:
        wide = tl.load(task + 9)
        numel = tl.load(task + 10)
        if ALIGNED:
            wide = tl.multiple_of(wide, 8)
            left = tl.multiple_of(left, 8)
            numel = tl.multiple_of(numel, 8)
        rows: tl.constexpr = TILE // COLUMNS
        column = left + tl.arange(0, COLUMNS)
        there = column < wide
        number = column
        if tl.load(task + 7) != 0:
            number = tl.load(tl.load(task + 7).to(tl.pointer_type(tl.int32)) + column, mask=there, other=0).to(tl.int64)
        order = tl.load(task + 8)
        if UPDATE:
            scale = _scale(tl.load(v + base + number, mask=there, other=0.0), s, COMPUTE)[None, :]
            for i in range(0, length, rows):
                at, inside = _tile(order, start + i, length - i, wide, numel, column, there, 1, rows)
                x = tl.load(p + at, mask=inside, other=0.0).to(COMPUTE)
                grad = _gradient(tl.load(g + at, mask=inside, other=0.0).to(COMPUTE), x, sign, coupled)
                _update(p, m, at, x, grad, scale, s, inside, COMPUTE)
        else:
            total = _sum_columns(p, g, order, start, length, wide, numel, column, there, sign, coupled, 1.0, COMPUTE, rows, COLUMNS)
            if tl.max((total == _INFINITE).to(tl.int32), axis=0) != 0:
                few: tl.constexpr = rows // 4
                small = _sum_columns(p, g, order, start, length, wide, numel, column, there, sign, coupled, _DOWN, COMPUTE, few, COLUMNS)
                total = tl.where(total == _INFINITE, -small, total)
            tl.store(partial + tl.arange(0, COLUMNS), total, mask=there)


@triton.jit
def _sum_columns(
    p,
    g,
    order,
    start,
    length,
    wide,
    numel,
    column,
    there,
    sign,
    coupled,
    FACTOR: tl.constexpr,  # noqa: N803
    COMPUTE: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    sums = tl.zeros([ROWS, COLUMNS], COMPUTE)
    for i in range(0, length, ROWS):
        at, inside = _tile(order, start + i, length - i, wide, numel, column, there, 1, ROWS)
        grad = sign * tl.load(g + at, mask=inside, other=0.0).to(COMPUTE)
        if coupled != 0:
            grad += coupled * tl.load(p + at, mask=inside, other=0.0).to(COMPUTE)
        if FACTOR != 1.0:
            grad *= FACTOR
        sums += grad * grad
    return tl.sum(sums, axis=0)


@triton.jit
def _tile(order, first, count, wide, numel, column, there, APART: tl.constexpr, ROWS: tl.constexpr):  # noqa: N803
    """Where the elements of some rows lie: those of ``APART`` rows lie in turns. Rows of one base may be anywhere: ``order`` lists them."""
    row = tl.arange(0, ROWS)
    near = row < count
    place = first + row
    if order != 0:
        place = tl.load(order.to(tl.pointer_type(tl.int32)) + place, mask=near, other=0).to(tl.int64)
    at = (place // APART * (wide * APART) + place % APART)[:, None] + column[None, :] * APART
    return at, near[:, None] & there[None, :] & (at < numel)


@triton.jit
def step_tiles(
    tiles,
    tasks,
    scalars,
    partials,
    P: tl.constexpr,  # noqa: N803
    M: tl.constexpr,  # noqa: N803
    COMPUTE: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    ALIGNED: tl.constexpr,  # noqa: N803
    APART: tl.constexpr,  # noqa: N803
    UPDATE: tl.constexpr,  # noqa: N803
):
    """Sums of squares of the rows and of the columns of tiles of matrices, or (``UPDATE``) the update of the tiles.

    Row ``r`` belongs to block ``row number[r]`` of one margin, and element ``(r, c)`` to block ``base + number[c]`` of the other.
    """
    tile = tiles + tl.program_id(0).to(tl.int64) * _TILE
    tensor = tl.load(tile)
    start = tl.load(tile + 1)
    length = tl.load(tile + 2)
    left = tl.load(tile + 3)
    base = tl.load(tile + 4)
    task = tasks + tensor * _TASK
    s = scalars + tensor * _SCALARS
    p, g, m, v = _tensors(task, P, M, COMPUTE, ALIGNED)
    sign = tl.load(s + 3).to(COMPUTE)
    coupled = tl.load(s + 2).to(COMPUTE)
    wide = tl.load(task + 9)
    numel = tl.load(task + 10)
    if ALIGNED:
        wide = tl.multiple_of(wide, 8)
        left = tl.multiple_of(left, 8)
        numel = tl.multiple_of(numel, 8)
    rows: tl.constexpr = TILE // COLUMNS
    row = tl.arange(0, rows)
    column = left + tl.arange(0, COLUMNS)
    there = column < wide
    order = tl.load(task + 8)
    if UPDATE:
        both = tl.load(partials + tl.load(tile + 5))
        number = column
        if tl.load(task + 7) != 0:
            number = tl.load(tl.load(task + 7).to(tl.pointer_type(tl.int32)) + column, mask=there, other=0).to(tl.int64)
        of_columns = tl.load(tl.load(task + 11).to(tl.pointer_type(COMPUTE)) + base + number, mask=there, other=0.0)
        root_of_columns = _root(of_columns) * tl.load(s + 5).to(COMPUTE)
        eps = tl.load(s + 6).to(COMPUTE)
        bound = tl.load(s + 9).to(COMPUTE)
        lr = tl.load(s + 4).to(COMPUTE)
        decay = tl.load(s + 1).to(COMPUTE)
        row_numbers = tl.load(task + 12)
        for i in range(0, length, rows):
            at, inside = _tile(order, start + i, length - i, wide, numel, column, there, APART, rows)
            line = start + i + row
            if row_numbers != 0:
                line = tl.load(row_numbers.to(tl.pointer_type(tl.int32)) + line, mask=row < length - i, other=0).to(tl.int64)
            of_rows = tl.load(v + line, mask=row < length - i, other=0.0)
            # 0 / 0 is 0, as a block that never had a gradient; where the mean is infinite no ratio is right, and none is to seem so.
            root_of_rows = _root(tl.where(both == 0, 0.0, of_rows / both) + (both - both))
            x = tl.load(p + at, mask=inside, other=0.0).to(COMPUTE)
            grad = _gradient(tl.load(g + at, mask=inside, other=0.0).to(COMPUTE), x, sign, coupled)
            update = _momentum(m, at, grad, s, inside, COMPUTE) / (root_of_rows[:, None] * root_of_columns[None, :] + eps)
            tl.store(p + at, (x * decay - lr * _bounded(update, bound)).to(p.dtype.element_ty), mask=inside)
    else:
        of_row = partials + tl.load(tile + 6)
        total, most = _sum_tile(
            p, g, of_row, order, start, length, wide, numel, column, there, APART, sign, coupled, 1.0, COMPUTE, rows, COLUMNS
        )
        if tl.maximum(tl.max((total == _INFINITE).to(tl.int32), axis=0), tl.max((most == _INFINITE).to(tl.int32), axis=0)) != 0:
            few: tl.constexpr = rows // 4
            tl.debug_barrier()  # sums of rows are written a second time, by other threads
            small, _ = _sum_tile(
                p, g, of_row, order, start, length, wide, numel, column, there, APART, sign, coupled, _DOWN, COMPUTE, few, COLUMNS
            )
            total = tl.where(total == _INFINITE, -small, total)
        tl.store(partials + tl.load(tile + 7) + tl.arange(0, COLUMNS), total, mask=there)


@triton.jit
def _sum_tile(
    p,
    g,
    of_row,
    order,
    start,
    length,
    wide,
    numel,
    column,
    there,
    APART: tl.constexpr,  # noqa: N803
    sign,
    coupled,
    FACTOR: tl.constexpr,  # noqa: N803
    COMPUTE: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
):
    """Store the sums of rows, or with another ``FACTOR`` than 1 those that overflowed, as ``_sum_square`` has them; return the columns'."""
    sums = tl.zeros([ROWS, COLUMNS], COMPUTE)
    most = tl.zeros([ROWS], COMPUTE)
    row = tl.arange(0, ROWS)
    for i in range(0, length, ROWS):
        at, inside = _tile(order, start + i, length - i, wide, numel, column, there, APART, ROWS)
        grad = sign * tl.load(g + at, mask=inside, other=0.0).to(COMPUTE)
        if coupled != 0:
            grad += coupled * tl.load(p + at, mask=inside, other=0.0).to(COMPUTE)
        total = tl.sum(grad * grad, axis=1)
        near = row < length - i
        if FACTOR != 1.0:
            grad *= FACTOR
            tl.store(of_row + i + row, -tl.sum(grad * grad, axis=1), mask=near & (total == _INFINITE))
        else:
            tl.store(of_row + i + row, total, mask=near)
            most = tl.maximum(most, total)
        sums += grad * grad
    return tl.sum(sums, axis=0), most


@triton.jit
def update_tiles(
    tiles,
    tasks,
    scalars,
    P: tl.constexpr,  # noqa: N803
    M: tl.constexpr,  # noqa: N803
    COMPUTE: tl.constexpr,  # noqa: N803
    TILE: tl.constexpr,  # noqa: N803
    COLUMNS: tl.constexpr,  # noqa: N803
    ALIGNED: tl.constexpr,  # noqa: N803
    FACTORED: tl.constexpr,  # noqa: N803
):
    """Update tiles of matrices of whose second moments the roots are known: one factor of them, or two (``FACTORED``).

    Element ``(r, c)`` has number ``of_row[r] + of_column[c]`` of a factor.
    """
    tile = tiles + tl.program_id(0).to(tl.int64) * _UPDATED
    tensor = tl.load(tile)
    start = tl.load(tile + 1)
    length = tl.load(tile + 2)
    left = tl.load(tile + 3)
    task = tasks + tensor * _TASK
    s = scalars + tensor * _SCALARS
    p, g, m, _ = _tensors(task, P, M, COMPUTE, ALIGNED)
    sign = tl.load(s + 3).to(COMPUTE)
    coupled = tl.load(s + 2).to(COMPUTE)
    wide = tl.load(task + 9)
    numel = tl.load(task + 10)
    if ALIGNED:
        wide = tl.multiple_of(wide, 8)
        left = tl.multiple_of(left, 8)
        numel = tl.multiple_of(numel, 8)
    rows: tl.constexpr = TILE // COLUMNS
    column = left + tl.arange(0, COLUMNS)
    there = column < wide
    of_column, of_row = _numbers(task + 7, column, there, wide)
    first = tl.load(task + 11).to(tl.pointer_type(COMPUTE)) + of_column[None, :]
    second, of_row_too = first, of_row
    if FACTORED:
        of_column, of_row_too = _numbers(task + 8, column, there, wide)
        second = tl.load(task + 12).to(tl.pointer_type(COMPUTE)) + of_column[None, :]
    correction = tl.load(s + 5).to(COMPUTE)
    eps = tl.load(s + 6).to(COMPUTE)
    bound = tl.load(s + 9).to(COMPUTE)
    lr = tl.load(s + 4).to(COMPUTE)
    decay = tl.load(s + 1).to(COMPUTE)
    for i in range(0, length, rows):
        at, inside = _tile(0, start + i, length - i, wide, numel, column, there, 1, rows)
        row = tl.arange(0, rows)
        near = row < length - i
        line = start + i + row
        root = tl.load(first + tl.load(of_row + line, mask=near, other=0)[:, None], mask=inside, other=1.0) * correction
        if FACTORED:
            root *= tl.load(second + tl.load(of_row_too + line, mask=near, other=0)[:, None], mask=inside, other=1.0)
        x = tl.load(p + at, mask=inside, other=0.0).to(COMPUTE)
        grad = _gradient(tl.load(g + at, mask=inside, other=0.0).to(COMPUTE), x, sign, coupled)
        update = _momentum(m, at, grad, s, inside, COMPUTE) / (root + eps)
        if FACTORED:
            update = _bounded(update, bound)
        tl.store(p + at, (x * decay - lr * update).to(p.dtype.element_ty), mask=inside)


@triton.jit
def _numbers(field, column, there, wide):
    """The numbers of some columns, and where those of all rows are."""
    numbers = tl.load(field).to(tl.pointer_type(tl.int32))
    return tl.load(numbers + column, mask=there, other=0), numbers + wide


@triton.jit
def _bounded(update, bound):
    return tl.where(update > bound, bound, tl.where(update < -bound, -bound, update))  # NaN stays


@triton.jit
def finish(blocks, index, tasks, scalars, partials, COMPUTE: tl.constexpr, LANES: tl.constexpr):  # noqa: N803
    """Add up the sums of squares of a block's pieces, in their order, and step its second moment."""
    row = blocks + tl.program_id(0).to(tl.int64) * _BLOCK
    tensor = tl.load(row)
    block = tl.load(row + 2)
    mean_square = _mean_of(row, index, partials + tl.load(row + 6), LANES)
    v = _moments(tasks + tensor * _TASK, tl.load(row + 1), COMPUTE) + block
    tl.store(v, _second_moment(_kept(v, None), mean_square.to(COMPUTE), scalars + tensor * _SCALARS, COMPUTE))


@triton.jit
def average(blocks, index, tasks, partials, COMPUTE: tl.constexpr, LANES: tl.constexpr):  # noqa: N803
    """The mean of the second margin's moments over what the first margin averages over: that which both have in common."""
    row = blocks + tl.program_id(0).to(tl.int64) * _BLOCK
    v = _moments(tasks + tl.load(row) * _TASK, tl.load(row + 1), COMPUTE)
    tl.store(partials + tl.load(row + 6) + tl.load(row + 2), _mean_of(row, index, v, LANES).to(COMPUTE))


@triton.jit
def _moments(task, margin, COMPUTE: tl.constexpr):  # noqa: N803
    return tl.load(task + 3 + 8 * margin).to(tl.pointer_type(COMPUTE))


@triton.jit
def _mean_of(row, index, values, LANES: tl.constexpr):  # noqa: N803
    size = tl.load(row + 3).to(tl.float64)
    first = tl.load(row + 4)
    count = tl.load(row + 5)
    mean = _sum_partials(index + first, count, values, 1.0, LANES) / size
    if mean == _INFINITE:  # only of float64 gradients
        mean = _sum_partials(index + first, count, values, _TINY, LANES) / size / _TINY
    return mean


@triton.jit
def _sum_partials(index, count, partials, FACTOR: tl.constexpr, LANES: tl.constexpr):  # noqa: N803
    """``FACTOR`` times the sum of what ``step_pieces`` stored, in float64."""
    lane = tl.arange(0, LANES)
    sums = tl.zeros([LANES], tl.float64)
    for i in range(0, count, LANES):
        inside = lane < count - i
        at = tl.load(index + i + lane, mask=inside, other=0)
        partial = tl.load(partials + at, mask=inside, other=0.0).to(tl.float64) * FACTOR
        sums += tl.where(partial < 0, partial * -_UP, partial)
    return tl.sum(sums, axis=0)


@triton.jit
def finish_lines(
    lines,
    tasks,
    scalars,
    partials,
    COMPUTE: tl.constexpr,  # noqa: N803
    LANES: tl.constexpr,  # noqa: N803
    AT_ONCE: tl.constexpr,  # noqa: N803
):
    """As ``finish``, for rows or columns of a matrix of which each is a block: their sums lie side by side."""
    row = lines + tl.program_id(0).to(tl.int64) * _LINE
    tensor = tl.load(row)
    margin = tl.load(row + 1)
    first = tl.load(row + 2)
    lane = tl.arange(0, LANES)
    inside = lane < tl.load(row + 3)
    block = first + lane
    base = tl.load(row + 4)
    at = partials + tl.load(row + 5) + lane
    apart = tl.load(row + 6)
    count = tl.load(row + 7)
    size = tl.load(row + 8).to(tl.float64)
    mean_square = _sum_lines(at, inside, apart, count, 1.0, LANES, AT_ONCE) / size
    if tl.max((mean_square == _INFINITE).to(tl.int32), axis=0) != 0:  # only of float64 gradients
        small = _sum_lines(at, inside, apart, count, _TINY, LANES, AT_ONCE) / size / _TINY
        mean_square = tl.where(mean_square == _INFINITE, small, mean_square)
    task = tasks + tensor * _TASK
    numbers = tl.load(task + 12 - 5 * margin)
    if numbers != 0:
        block = tl.load(numbers.to(tl.pointer_type(tl.int32)) + block, mask=inside, other=0).to(tl.int64)
    v = _moments(task, margin, COMPUTE) + base + block
    square = _second_moment(_kept(v, inside), mean_square.to(COMPUTE), scalars + tensor * _SCALARS, COMPUTE)
    tl.store(v, square, mask=inside)


@triton.jit
def _sum_lines(at, inside, apart, count, FACTOR: tl.constexpr, LANES: tl.constexpr, AT_ONCE: tl.constexpr):  # noqa: N803
    step = tl.arange(0, AT_ONCE)
    sums = tl.zeros([AT_ONCE, LANES], tl.float64)
    for i in range(0, count, AT_ONCE):
        some = (step < count - i)[:, None] & inside[None, :]
        partial = tl.load(at[None, :] + ((i + step) * apart)[:, None], mask=some, other=0.0).to(tl.float64) * FACTOR
        sums += tl.where(partial < 0, partial * -_UP, partial)
    return tl.sum(sums, axis=0)
