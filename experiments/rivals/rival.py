"""What a rival is, and the floors of memory traffic: the bytes that a step of a float32 model must read and write."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from lightning_adam_mini import BlockLayout, partition_model
from recipes.optim import Builder

ON_CHIP = 2**16  # elements of a block that a processor core's cache or a GPU's block holds, so that they are read once

Floor = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Rival:
    """An optimizer.

    Args:
        name: Its name in `compare` and on the command line.
        title: How the tables of timings call it.
        build: Makes it for parameter groups and a recipe's settings.
        floor: Bytes that its algorithm must move in a step, by model.
        module: What must be installed; its package has the same name, with dashes.
        since: The first torch that has it, where the oldest that we support does not.
        remedy: A second way to make it, for models on which its own fails, and what that way is.
        timed: Whether it is timed without being asked for.
        decay: The weight decay that it is timed with.
    """

    name: str
    title: str
    build: Builder
    floor: Floor
    module: str = "torch"
    since: str = ""
    remedy: tuple[Builder, str] | None = None
    timed: bool = False
    decay: float = 0.0

    def why_not(self) -> str:
        """Return why it cannot take part here, and the remedy; nothing where it can."""
        if find_spec(self.module) is None:
            return f"not installed: pip install {self.module.replace('_', '-')}"
        if self.since and torch.__version__ < self.since:  # torch compares its version as a version
            return f"torch {self.since} or later is needed, but this is {torch.__version__}: pip install 'torch>={self.since}'"
        return ""


def per_element(bytes_each: float) -> Floor:
    """Return a floor that is so many bytes for each element.

    Args:
        bytes_each: Bytes an element.
    """
    return lambda model: bytes_each * sum(p.numel() for p in model.parameters())


def blocks_of(model: nn.Module, partition: str) -> dict[str, BlockLayout]:
    """Return AdamMini's blocks.

    Args:
        model: A network, or a list of tensors whose ``known_blocks`` say what detection cannot know of them.
        partition: Their partition.
    """
    return partition_model(model, partition, overrides=getattr(model, "known_blocks", None) if partition == "adam_mini" else None)


def blockwise(momentum_bytes: int = 4, partition: str = "auto") -> Floor:
    """Return the floor of a blockwise optimizer: p and m read and written, g read once where its block stays on chip and else twice.

    Args:
        momentum_bytes: Bytes of an element of the momentum.
        partition: What its blocks are.
    """
    return lambda model: sum(bytes_of(layout, momentum_bytes) for layout in blocks_of(model, partition).values())


def bytes_of(layout: BlockLayout, momentum_bytes: int = 4) -> float:
    """Return the bytes that a blockwise step of a float32 tensor must move.

    Args:
        layout: The tensor's blocks.
        momentum_bytes: Bytes of an element of the momentum.

    Example:
        >>> [bytes_of(BlockLayout((1024, 1024), dims)) / 2**20 for dims in ((), (1,), (0, 1))]
        [28.0, 20.0078125, 24.00000762939453]
        >>> bytes_of(BlockLayout.factored((1024, 1024))) / 2**20
        24.015625
    """
    elements = math.prod(layout.shape)
    once = layout.is_per_parameter or (elements <= ON_CHIP * layout.num_blocks and not layout.is_factored)
    gradient = 4 if once else 8
    return elements * (8 + gradient + 2 * momentum_bytes) + 8 * layout.num_blocks
