import pytest

from lightning_adam_mini.optim.backends import slices
from lightning_adam_mini.optim.backends.triton import step
from lightning_adam_mini.optim.backends.triton.plan import Sizes


@pytest.fixture
def small_pieces(monkeypatch):
    """Have small tensors cut up as large ones are: into tiles of several rows, long rows, runs of large blocks, tiles of matrices."""
    monkeypatch.setattr(step, "SIZES", Sizes(tile=64, widths=3, block=128, run=64, columns=8, rows=16))
    monkeypatch.setattr(slices, "_SLICE", 40)
