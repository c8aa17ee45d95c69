"""Sharded parameters step and save as whole ones do: against float64 arithmetic written out in ``shard_ranks.py``."""

from __future__ import annotations

import pytest

from lightning_adam_mini import BlockLayout
from lightning_adam_mini.optim.shards.flat import _rectangles
from tests.launch import run_ranks, what_went_wrong
from tests.optim import shard_ranks


@pytest.fixture(scope="module")
def wrong(request, tmp_path_factory):
    """What went wrong on any rank, by check: one group of processes runs them all."""
    return what_went_wrong(run_ranks(shard_ranks.run_checks, request.param, tmp_path_factory.mktemp("ranks"), request.param))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("wrong", "check"),
    [(ranks, check.__name__) for ranks, checks in shard_ranks.CHECKS.items() for check in checks],
    indirect=["wrong"],
)
def test_shards(wrong, check):
    problems = [text for name, text in wrong if name == check]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("shape", [(7,), (4, 3), (3, 2, 4), (2, 3, 2, 2), ()])
def test_rectangles_are_the_elements_of_a_range_in_order(shape):
    import numpy as np

    numbers = np.arange(int(np.prod(shape))).reshape(shape)
    for begin in range(numbers.size + 1):
        for end in range(begin, numbers.size + 1):
            pieces = [
                numbers[tuple(slice(o, o + n) for o, n in zip(offsets, sizes, strict=True))].reshape(-1)
                for offsets, sizes in _rectangles(shape, begin, end)
            ]
            assert np.concatenate([*pieces, np.array([], dtype=int)]).tolist() == list(range(begin, end))
            assert len(pieces) <= max(2 * len(shape) - 1, 1)


def test_layouts_survive_what_torch_distributed_makes_of_tuples():
    assert BlockLayout.from_plain([[], None, None, None]) == BlockLayout.per_parameter(())
    assert BlockLayout.from_plain([[4, 6], [1], 0, "q:2x2"]) == BlockLayout.grouped((4, 6), "q:2x2")
