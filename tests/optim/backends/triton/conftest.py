"""What the tests of the Triton backend share."""

from __future__ import annotations

import pytest

KERNELS = ("prepare", "step_blocks", "step_pieces", "finish", "step_tiles", "finish_lines", "average", "update_tiles")


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that are launched, in order; clear it before what is to be counted."""
    from lightning_adam_mini.optim.backends.triton import kernel

    names = []

    class Counted:
        def __init__(self, name):
            self.name, self.kernel = name, getattr(kernel, name)

        def __getitem__(self, grid):
            names.append(self.name)
            return self.kernel[grid]

    for name in KERNELS:
        monkeypatch.setattr(kernel, name, Counted(name))
    return names
