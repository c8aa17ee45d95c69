"""The tensors that the kernels are tried on: every layout, memory in every order, and many sizes."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini import BlockLayout

_IMAGE = (0, 2, 3, 1)  # channels_last


class Piece(NamedTuple):
    """A tensor.

    Attributes:
        layout: Its blocks.
        order: Dimensions from the outermost in memory to the innermost; none if in order.
    """

    layout: BlockLayout
    order: tuple[int, ...] | None = None

    def in_memory(self, values: Tensor) -> Tensor:
        """Return a copy of values with memory in this order.

        Args:
            values: Of the layout's shape.
        """
        if self.order is None:
            return values.clone(memory_format=torch.contiguous_format)
        return values.permute(self.order).clone(memory_format=torch.contiguous_format).permute([*map(self.order.index, range(values.ndim))])


Pieces = Mapping[str, Piece]


def every_layout() -> dict[str, Piece]:
    """Return a tensor of each layout, and those of other orders in memory."""
    image = (10, 12, 3, 3)
    matrices: dict[str, BlockLayout] = {
        "rows": BlockLayout.each_line((48, 130)),
        "rows in multiples of 8": BlockLayout.each_line((64, 128)),
        "columns": BlockLayout.each_line((21, 70), axis=1),
        "heads": BlockLayout.grouped((24, 40), "q:2x5|k:2x5|v:4x1"),
        "heads of columns": BlockLayout.grouped((40, 24), "q:2x5|k:2x5|v:4x1", axis=1),
        "heads that interleave": BlockLayout.grouped((24, 40), "4*(q:1x2|k:1x2|v:2x1)"),
        "gates that interleave": BlockLayout.grouped((16, 40), "4*(i:1|f:1|g:1|o:1)"),
        "whole": BlockLayout.whole((33, 65)),
        "elements": BlockLayout.per_parameter((33, 65)),
        "factored": BlockLayout.factored((48, 296)),
        "factored, columns first": BlockLayout.factored((300, 20), axis=1, other=0),
        "heads and columns": BlockLayout((24, 40), dims=(1,), axis=0, lines="q:2x5|k:2x5|v:4x1", crossed=(0,)),
    }
    images: dict[str, BlockLayout] = {
        "output channels": BlockLayout(image, dims=(1, 2, 3)),
        "input channels": BlockLayout(image, dims=(0, 2, 3)),
        "alternate dimensions": BlockLayout(image, dims=(0, 2)),
        "elements of images": BlockLayout(image),
        "factored images": BlockLayout.factored(image),
        "output channels, and inputs of each position": BlockLayout(image, dims=(1, 2, 3), crossed=(0,)),
    }
    experts = {
        "experts": BlockLayout((3, 20, 40), dims=(1,)),
        "factored experts": BlockLayout((3, 20, 40), dims=(2,), crossed=(1,)),
    }
    vectors = {
        "scalar": BlockLayout.whole(()),
        "vector": BlockLayout.whole((37,)),
        "elements of a vector": BlockLayout.per_parameter((300,)),
        "bias of heads": BlockLayout.grouped((24,), "q:2x5|k:2x5|v:4x1"),
    }
    pieces = {name: Piece(layout) for name, layout in {**matrices, **images, **experts, **vectors}.items()}
    pieces |= {f"{name}, transposed": Piece(layout, (1, 0)) for name, layout in matrices.items()}
    pieces |= {f"{name}, channels last": Piece(layout, _IMAGE) for name, layout in images.items()}
    return pieces | {f"{name}, permuted": Piece(layout, (1, 2, 0)) for name, layout in experts.items()}


def matrices(shapes: Iterable[tuple[int, int]], kinds: Sequence[str]) -> dict[str, Piece]:
    """Return matrices, of each kind one of each shape.

    Args:
        shapes: The shapes.
        kinds: Of ``rows``, ``columns``, ``heads``, ``whole``, ``elements``, ``factored``.
    """
    return {f"{kind} {rows}x{columns}": Piece(_matrix(kind, rows, columns)) for rows, columns in shapes for kind in kinds}


def _matrix(kind: str, rows: int, columns: int) -> BlockLayout:
    shape = (rows, columns)
    if kind == "heads":
        head, rest = rows // 3, rows - 2 * (rows // 3)
        return BlockLayout.grouped(shape, f"q:2x{head}|v:{rest}x1" if head else f"v:{rest}x1")
    if kind in ("rows", "columns"):
        return BlockLayout.each_line(shape, axis=int(kind == "columns"))
    return {"whole": BlockLayout.whole, "elements": BlockLayout.per_parameter, "factored": BlockLayout.factored}[kind](shape)


def small(toy: bool, seed: int) -> dict[str, Piece]:
    """Return matrices of up to 70 rows of up to 70, of every kind.

    Args:
        toy: Whether few.
        seed: Which columns each number of rows comes with.
    """
    draw = random.Random(seed)
    shapes = [(1, 1), (5, 3), (3, 33), (66, 2)] if toy else [(r, c) for r in range(1, 71) for c in draw.sample(range(1, 71), 2)]
    return matrices(shapes, ("rows", "columns", "heads", "whole", "factored"))


def lengths(toy: bool) -> dict[str, Piece]:
    """Return matrices of rows of 4 to 4,096 and more elements: on both sides of each width of a tile.

    Args:
        toy: Whether few.
    """
    if toy:
        return matrices([(3, 257)], ("rows", "columns"))
    sizes = sorted({max(1, 2**k + d) for k in range(2, 14) for d in (-1, 0, 1)} | {100, 200, 300, 1000, 3000})
    return matrices([(rows, columns) for columns in sizes for rows in (2, 33)], ("rows", "columns", "heads", "elements", "factored"))


def large() -> dict[str, Piece]:
    """Return tensors that take many programs, pieces of blocks among them."""
    pieces = matrices([(1024, 4096)], ("rows", "columns", "heads", "whole", "factored"))
    pieces |= matrices([(5, 65535), (5, 65536), (5, 65537), (3, 200_001)], ("rows", "factored"))
    pieces |= matrices([(4099, 1031), (50_257, 96)], ("rows", "columns", "factored"))
    for shape in ((64, 3, 7, 7), (512, 256, 3, 3), (512, 512, 1, 1)):
        for order in (None, _IMAGE):
            at = f"{'x'.join(map(str, shape))}{', channels last' * (order is not None)}"
            pieces |= {f"{dims} of {at}": Piece(BlockLayout(shape, dims=dims), order) for dims in ((1, 2, 3), (0, 2, 3), (0, 2))}
            pieces[f"factored {at}"] = Piece(BlockLayout.factored(shape), order)
    return pieces


def coded(toy: bool) -> dict[str, Piece]:
    """Return tensors that are large enough for momentum in codes.

    Args:
        toy: Whether few.
    """
    shapes = [(64, 64), (65, 70)] if toy else [(64, 64), (65, 70), (4096, 1), (2, 2048), (7, 4097), (300, 256), (257, 1000), (1000, 257)]
    return matrices(shapes, ("rows", "columns", "heads", "whole", "elements", "factored")) | {
        "images, channels last": Piece(BlockLayout((32, 16, 3, 3), dims=(1, 2, 3)), _IMAGE)
    }


def elements(pieces: Pieces) -> int:
    """Return the number of elements of all tensors.

    Args:
        pieces: The tensors.
    """
    return sum(math.prod(piece.layout.shape) for piece in pieces.values())
