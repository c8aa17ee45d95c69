"""What the tests of the Triton backend share."""

from __future__ import annotations

import pytest

KERNELS = ("prepare", "step_blocks", "step_pieces", "finish", "step_tiles", "finish_lines", "average", "update_tiles")


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that are launched, in order, of which none runs; clear it before what is to be counted."""
    from lightning_adam_mini.optim.backends.triton import coded, kernel
    from lightning_adam_mini.optim.backends.triton.launch import Launch

    names = []

    class Counted:
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *args, **options: names.append(self.name)

    for module, name in (*((kernel, name) for name in KERNELS), (coded, "update_coded")):
        monkeypatch.setattr(module, name, Counted(name))
    monkeypatch.setattr(Launch, "again", lambda self, stream: self._anew())  # which would not come by here
    return names
