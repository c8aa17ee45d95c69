"""How fast the machine copies: the measure of everything that is bound by memory traffic."""

from __future__ import annotations

import torch

COPY = "copy"  # its name among the things that take turns


class Copy:
    """Copy a tensor that no cache holds to another.

    Args:
        device: Where.
        elements: Float32 elements of each of the two.
    """

    def __init__(self, device: torch.device, elements: int | None = None) -> None:
        elements = elements or 2 ** (28 if device.type == "cuda" else 25)
        self._from = torch.ones(elements, device=device)
        self._to = torch.zeros(elements, device=device)
        self.traffic = 8.0 * elements

    def __call__(self) -> None:
        """Copy once; `traffic` bytes are read or written."""
        self._to.copy_(self._from)
