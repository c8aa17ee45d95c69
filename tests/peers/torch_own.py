"""Run torch's own tests of optimizers, its file ``test/test_optim.py``, on one of ours: ``python torch_own.py FILE FLAVOUR``.

torch describes each of its optimizers once (an ``OptimizerInfo``) and makes the tests of that file for every description. Here AdamW's is
the only one left, and makes an optimizer of ours. It wants a process of its own: torch's test tools change settings of torch for good.

torch's file makes one allowance by name, for the weight decay that AdamW has by default: ours goes by that name, and has that default.
"""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lightning_adam_mini import AdamMini, BlockLayout
from lightning_adam_mini.optim.convert import convert_optimizer_


def plain(params: Any, **options: Any) -> AdamMini:
    """AdamMini as it comes: AdamW, since nothing is shared."""
    return AdamMini(params, layouts={}, **options)


def in_blocks(params: Any, **options: Any) -> AdamMini:
    """AdamMini with one block per parameter, so that what is shared is what is tried, in one compiled loop where that can be."""
    groups = AdamMini(params, layouts={}, **options).param_groups
    blocks = [{**group, "layouts": [BlockLayout.whole(tuple(p.shape)) for p in group["params"]]} for group in groups]
    return AdamMini(blocks, layouts={}, **options)


def converted(params: Any, **options: Any) -> torch.optim.Optimizer:
    """torch's AdamW, converted in place."""
    return convert_optimizer_(torch.optim.AdamW(params, **options), layouts={})


FLAVOURS: dict[str, Callable[..., torch.optim.Optimizer]] = {"plain": plain, "in_blocks": in_blocks, "converted": converted}


def describe(make: Callable[..., torch.optim.Optimizer], adamw: Any) -> Any:
    """AdamW's description, of what ``make`` makes: without the options that ours does not have."""
    options = set(inspect.signature(AdamMini).parameters)

    def numbers_in_tensors(kwargs: dict[str, Any]) -> bool:
        values = [kwargs.get("lr"), *kwargs.get("betas", ())]
        return any(isinstance(value, torch.Tensor) and value.numel() == 1 for value in values)

    def inputs(device: Any, dtype: Any = None) -> list[Any]:
        return [case for case in adamw.optim_inputs_func(device, dtype) if case.kwargs.keys() <= options]

    def error_inputs(device: Any, dtype: Any) -> list[Any]:
        # A tensor lr under foreach, which AdamW refuses, we take; tensor betas we always refuse, which only AdamW's own words do not fit.
        cases = [case for case in adamw.optim_error_inputs_func(device, dtype) if case.optimizer_error_input.kwargs.keys() <= options]
        return [case for case in cases if not numbers_in_tensors(case.optimizer_error_input.kwargs)]

    info = copy.copy(adamw)
    info.optim_cls = type("AdamW", (), {"__new__": lambda cls, params, **options: make(params, **options)})
    info.optim_inputs_func, info.optim_error_inputs_func = inputs, error_inputs
    info.supported_impls = tuple(name for name in adamw.supported_impls if name in options)
    info.supports_complex = False
    return info


class Outcomes(unittest.TestResult):
    """What came of each test: passed, skipped or failed, and why."""

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[str, tuple[str, str]] = {}

    def _note(self, test: unittest.TestCase, outcome: str, why: str = "") -> None:
        self.of[test.id().rpartition(".")[2]] = (outcome, why)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._note(test, "passed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._note(test, "skipped", reason)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._note(test, "failed", self._exc_info_to_string(err, test))

    addError = addFailure

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:  # then no more is said of the test
            self.addFailure(test, err)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._note(test, "passed", "as torch expects, it fails")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._note(test, "failed", "torch expects it to fail")


def run(file: Path, flavour: str) -> dict[str, tuple[str, str]]:
    """What comes of torch's tests on the CPU.

    Args:
        file: torch's ``test/test_optim.py``, beside its folder ``optim``.
        flavour: Which of ours.
    """
    from torch.testing._internal import common_optimizers

    [adamw] = [info for info in common_optimizers.optim_db if info.optim_cls is torch.optim.AdamW]
    common_optimizers.optim_db[:] = [describe(FLAVOURS[flavour], adamw)]
    sys.path.insert(0, str(file.parent))
    spec = importlib.util.spec_from_file_location("torch_test_optim", file)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    outcomes = Outcomes()
    unittest.defaultTestLoader.loadTestsFromTestCase(module.TestOptimRenewedCPU).run(outcomes)
    assert outcomes.testsRun == len(outcomes.of), f"{outcomes.testsRun} tests ran, {len(outcomes.of)} said how: {outcomes.of}"
    return outcomes.of


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]).resolve(), sys.argv[2])))
