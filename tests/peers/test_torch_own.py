"""torch's own tests of its optimizers, on ours.

They are not part of torch's wheel. Name the file ``test/test_optim.py`` of a checkout of torch, of about the version that is installed, and
install expecttest, which torch's test tools import::

    TORCH_TEST_OPTIM=pytorch/test/test_optim.py python -m pytest tests/peers/test_torch_own.py -rP
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# By the beginning of the test's name.
MAY_FAIL = {
    "test_fused_error_on_params_on_meta": "wants a sentence of torch's: ours names the parameter, and a converted AdamW picks another loop",
    "test_fused_does_not_step_if_foundinf": "sets found_inf by hand, as a GradScaler does only for optimizers that ask for it; ours do not",
}


@pytest.mark.parametrize("flavour", ["plain", "in_blocks", "converted"])
def test_torchs_own_tests_of_optimizers(flavour):
    file = os.environ.get("TORCH_TEST_OPTIM")
    if not file:
        pytest.skip("TORCH_TEST_OPTIM does not name torch's test/test_optim.py: torch's own tests of optimizers are NOT run on AdamMini")
    script = Path(__file__).with_name("torch_own.py")
    environment = {**os.environ, "PYTORCH_PRINT_REPRO_ON_FAILURE": "0"}
    done = subprocess.run([sys.executable, str(script), file, flavour], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, tuple[str, str]] = json.loads(done.stdout.splitlines()[-1])
    for name, (outcome, why) in sorted(outcomes.items()):
        print(outcome, name, why.strip().splitlines()[-1] if why else "")
    failed = {name: why for name, (outcome, why) in outcomes.items() if outcome == "failed"}
    unforeseen = {name: why for name, why in failed.items() if not name.startswith(tuple(MAY_FAIL))}
    assert not unforeseen, "\n".join([*unforeseen, *unforeseen.values()])
    assert sum(outcome == "passed" for outcome, _ in outcomes.values()) >= 40  # that they were found, and not skipped
