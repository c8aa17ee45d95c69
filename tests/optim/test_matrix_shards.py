"""Matrices on several ranks step and save as on one: see ``matrix_ranks.py``."""

from __future__ import annotations

import pytest
import torch

from tests.launch import run_ranks, what_went_wrong
from tests.optim import matrix_ranks


@pytest.fixture(scope="module")
def wrong(request, tmp_path_factory):
    """What went wrong on any rank, by check: one group of processes runs them all."""
    return what_went_wrong(run_ranks(matrix_ranks.run_checks, request.param, tmp_path_factory.mktemp("ranks"), request.param))


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("wrong", "check"),
    [(ranks, check.__name__) for ranks, checks in matrix_ranks.CHECKS.items() for check in checks],
    indirect=["wrong"],
)
def test_matrix_shards(wrong, check):
    problems = [text for name, text in wrong if name == check]
    assert not problems, "\n".join(problems)


@pytest.mark.timeout(300)
def test_a_sharded_checkpoint_goes_from_two_ranks_to_one_and_to_four(tmp_path):
    for ranks, first, last in ((2, 1, 4), (1, 5, 6), (4, 7, 8)):
        weights = run_ranks(matrix_ranks.keep, ranks, tmp_path, tmp_path, first, last, first > 1)
    straight, _ = matrix_ranks.alone("normuon", steps=8)
    for of_rank in weights:
        assert not isinstance(of_rank, Exception), of_rank
        for name, p in matrix_ranks.named(straight):
            torch.testing.assert_close(of_rank[name], p.detach(), rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def of_one_device(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    (alone,) = run_ranks(matrix_ranks.fitted, 1, folder, "", folder)
    assert not isinstance(alone, Exception), alone
    return alone[0]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["DDP", "FSDP2", "FSDP2, CPU offload"])
def test_a_fit_on_two_ranks_is_that_of_one_device(of_one_device, name, tmp_path):
    if "FSDP2" in name and not hasattr(torch.cpu.Stream, "record_event"):
        pytest.skip("this version of torch runs no module that FSDP2 has sharded on a CPU")
    single = of_one_device
    for outcome in run_ranks(matrix_ranks.fitted, 2, tmp_path, name, tmp_path):
        assert not isinstance(outcome, Exception), outcome
        weights, resumed, shared, left = outcome
        assert max(float((weights[key] - single[key]).abs().max() / single[key].abs().max()) for key in single) < 1e-5
        assert all(torch.equal(weights[key], resumed[key]) for key in weights)
        assert shared == [name == "DDP"] * 20
        assert left  # after the fit
