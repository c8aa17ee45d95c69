"""DeepSpeed's ZeRO 1, 2 and 3 on CPU processes: as on one device, and refused by name where it cannot be."""

from __future__ import annotations

import os
import warnings

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # before DeepSpeed is imported
try:
    import deepspeed  # noqa: F401
except ImportError:
    warnings.warn("NOTHING OF ZERO IS TESTED: deepspeed is not installed (pip install -e '.[deepspeed]')", stacklevel=1)
    pytest.skip("NOTHING OF ZERO IS TESTED: deepspeed is not installed (pip install -e '.[deepspeed]')", allow_module_level=True)

from benchmarks.strategies.launch import run_ranks
from tests.deepspeed import ranks


@pytest.fixture(scope="module")
def wrong(tmp_path_factory):
    """What went wrong on any rank, by stage and check."""
    found = []
    for stage in ranks.STAGES:
        folder = tmp_path_factory.mktemp("ranks")
        for rank, outcome in enumerate(run_ranks(ranks.run_checks, 2, folder, stage, folder)):
            if isinstance(outcome, Exception):
                raise outcome
            found += [(stage, check, f"rank {rank}:\n{text}") for check, text in outcome.items()]
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", ranks.STAGES)
@pytest.mark.parametrize("check", [check.__name__ for check in ranks.CHECKS])
def test_as_on_one_device(wrong, check, stage):
    problems = [text for where, what, text in wrong if (where, what) == (stage, check)]
    assert not problems, "\n".join(problems)
