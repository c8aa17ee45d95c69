"""DeepSpeed's ZeRO 1, 2 and 3 on CPU processes: as on one device, and refused by name where it cannot be."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed is imported
try:
    import deepspeed  # noqa: F401
except ImportError:
    pytest.skip("NOTHING OF ZERO IS TESTED: deepspeed is not installed (pip install -e '.[deepspeed]')", allow_module_level=True)

from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_adam_mini.callbacks.strategies import check_strategy
from tests.deepspeed import ranks
from tests.launch import run_ranks, what_went_wrong


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """What went wrong on any rank, by stage and check."""
    folder = tmp_path_factory.mktemp("ranks")
    outcomes = {stage: run_ranks(ranks.run_checks, 2, folder, stage, folder, seconds=600) for stage in ranks.STAGES}
    return [(stage, check, text) for stage, found in outcomes.items() for check, text in what_went_wrong(found)]


@pytest.mark.timeout(1900)
@pytest.mark.parametrize("stage", ranks.STAGES)
@pytest.mark.parametrize("check", [check.__name__ for check in ranks.CHECKS])
def test_as_on_one_device(wrong, check, stage):
    problems = [text for where, what, text in wrong if (where, what) == (stage, check)]
    assert not problems, "\n".join(problems)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [2, 3])
def test_universal_checkpoints_go_from_2_to_4_ranks(tmp_path, stage):
    for outcome in run_ranks(ranks.save_universal, 2, tmp_path, stage, tmp_path):
        assert outcome is None, outcome
    for outcome in run_ranks(ranks.load_universal, 4, tmp_path, stage, tmp_path):
        assert not isinstance(outcome, Exception), outcome
        assert max(outcome) < 2e-6  # as on 2 ranks, and as on one device


@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [2])
def test_a_killed_rank_ends_the_run_and_the_last_checkpoint_loads(tmp_path, stage):
    survivor, victim = run_ranks(ranks.killed, 2, tmp_path, stage, tmp_path, seconds=60)
    assert "ended with code -9" in str(victim)
    assert isinstance(survivor, RuntimeError)
    assert "hung" not in str(survivor)
    for outcome in run_ranks(ranks.resumed, 2, tmp_path, stage, tmp_path):
        assert not isinstance(outcome, Exception), outcome
        again, straight = outcome
        assert all((again[name] == straight[name]).all() for name in straight)


CONFIGS = {
    "NVMe": {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
    "ZenFlow": {"zero_optimization": {"stage": 2, "zenflow": {"topk_ratio": 0.1}}},
    "SuperOffload": {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "super_offload": True}}},
    "partial offload": {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.5}}},
    "MiCS": {"zero_optimization": {"stage": 3, "mics_shard_size": 2}},
    "elastic checkpoints": {"zero_optimization": {"stage": 1, "elastic_checkpoint": True}},
    "fp16_master_weights_and_grads": {"fp16": {"enabled": True, "fp16_master_weights_and_grads": True}, "zero_optimization": {"stage": 2}},
    "torch_autocast": {"zero_optimization": {"stage": 2}, "torch_autocast": {"enabled": True}},
    "its configuration has an 'optimizer'": {"zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW"}},
    "16 bits without ZeRO": {"bf16": {"enabled": True}},
}


@pytest.mark.parametrize("what", CONFIGS)
def test_what_cannot_be_followed_is_refused_by_name(what):
    with pytest.raises(MisconfigurationException, match=f"cannot follow DeepSpeedStrategy here, because .*{what}"):
        check_strategy(DeepSpeedStrategy(config=CONFIGS[what]), probe=False)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_each_stage_passes(stage):
    check_strategy(DeepSpeedStrategy(stage=stage), probe=False)
    check_strategy(DeepSpeedStrategy(stage=stage, offload_optimizer=True), probe=False)
