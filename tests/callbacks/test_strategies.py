"""The callback under FSDP2 and FSDP1 on two CPU processes: as on one device, and no rank waits for another that has failed."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from experiments.strategies.command import Bench, table
from experiments.strategies.rows import ROWS
from lightning_adam_mini.callbacks.strategies import check_strategy
from tests.callbacks import strategy_ranks
from tests.launch import run_ranks, what_went_wrong

STRATEGIES = ("FSDP2", "FSDP1")


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """What went wrong on any rank, by strategy and check."""
    folder = tmp_path_factory.mktemp("ranks")
    (single,) = run_ranks(strategy_ranks.single, 1, folder, folder)
    if isinstance(single, Exception):
        raise single
    outcomes = {name: run_ranks(strategy_ranks.run_checks, 2, folder, name, folder, *single) for name in STRATEGIES}
    return [(name, check, text) for name, found in outcomes.items() for check, text in what_went_wrong(found)]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("check", [check.__name__ for check in strategy_ranks.CHECKS])
def test_as_on_one_device(wrong, name, check):
    problems = [text for strategy, what, text in wrong if (strategy, what) == (name, check)]
    assert not problems, "\n".join(problems)


@pytest.mark.timeout(600)
def test_a_killed_rank_ends_the_run_and_the_last_checkpoint_loads(tmp_path):
    name = "FSDP2"
    survivor, victim = run_ranks(strategy_ranks.killed, 2, tmp_path, name, tmp_path, seconds=60)
    assert "ended with code 7" in str(victim)
    assert isinstance(survivor, RuntimeError)
    assert "hung" not in str(survivor)
    assert "onnection" in str(survivor)  # gloo's own error
    for outcome in run_ranks(strategy_ranks.resumed, 2, tmp_path, name, tmp_path):
        resumed, straight = outcome
        assert all(torch.equal(resumed[k], straight[k]) for k in straight)


@pytest.mark.timeout(600)
def test_a_row_of_the_table(tmp_path):
    row = Bench(tmp_path).measure(ROWS["FSDP2 x tensor parallel"], ("steps", "resume_sharded", "to_single"))
    assert row["resume_sharded"] == 0.0
    assert all(row[column] < 1e-5 for column in ("steps", "to_single")), row
    assert row["calls"] == 2  # one a dimension of the mesh
    assert table([row]).rows[0][:2] == ["FSDP2 x tensor parallel", "4"]


@pytest.mark.parametrize("strategy", [FSDPStrategy, ModelParallelStrategy])
def test_probing_is_refused_where_layers_are_sharded(strategy):
    check_strategy(strategy(), probe=False)
    with pytest.raises(MisconfigurationException, match="cannot run the module once more under .* overrides="):
        check_strategy(strategy(), probe=True)


def test_flat_parameters_are_refused():
    with pytest.raises(MisconfigurationException, match=r"FSDPStrategy\(use_orig_params=False\) .* Set use_orig_params=True"):
        check_strategy(FSDPStrategy(use_orig_params=False), probe=False)
