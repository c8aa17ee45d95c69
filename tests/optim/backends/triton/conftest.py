"""What the tests of the Triton backend share."""

from __future__ import annotations

import pytest

KERNELS = ("prepare", "step_blocks", "step_pieces", "finish", "step_tiles", "finish_lines", "average", "update_tiles")


@pytest.fixture
def launched(monkeypatch):
    """The names of the kernels that are launched, in order; clear it before what is to be counted."""
    from lightning_adam_mini.optim.backends.triton import coded, kernel
    from lightning_adam_mini.optim.backends.triton.launch import Launch

    names = []

    class Counted:
        def __init__(self, module, name):
            self.name, self.kernel = name, getattr(module, name)

        def __getitem__(self, grid):
            def launch(*args, **options):
                names.append(self.name)
                return self.kernel[grid](*args, **options)

            return launch

    for module, name in (*((kernel, name) for name in KERNELS), (coded, "update_coded")):
        monkeypatch.setattr(module, name, Counted(module, name))
    monkeypatch.setattr(Launch, "again", lambda self, stream: self._anew())  # which would not come by here
    return names
