"""What becomes of parts of the GPU's command that fail; `test_all.py` rehearses it."""

import json
import os
import re
import sys
import time

import pytest
import torch
from torch import nn

from experiments.__main__ import main
from experiments.gpu import case, command, correct, tensors
from experiments.gpu.case import Bench, Case, SkipCaseError
from experiments.gpu.tables import markdown

from .conftest import folded

CPU = torch.device("cpu")


def pieces():
    return {name: piece for name, piece in tensors.every_layout().items() if "transposed" in name or "images" in name}


def test_a_wrong_step_is_seen(monkeypatch):
    from lightning_adam_mini.optim import backends
    from lightning_adam_mini.optim.backends.readable import Readable

    class Twice(Readable):
        device = "cpu"

        def step(self, work):
            super().step(work)
            for _, tasks in work:
                task = tasks[0]
                task.p.view(-1)[0].mul_(1 + 1e-4) if task.p.is_contiguous() else task.p[0].mul_(1 + 1e-4)

    assert correct.beside(CPU, pieces(), torch.float32, None)["tensors"] > 5
    monkeypatch.setattr(backends, "BACKENDS", [Twice, Readable])
    with pytest.raises(AssertionError, match="stepped by Twice: weights of "):
        correct.beside(CPU, pieces(), torch.float32, None)


def test_a_race_is_seen(monkeypatch):
    from lightning_adam_mini.optim import backends
    from lightning_adam_mini.optim.backends.readable import Readable

    class Sometimes(Readable):
        device, calls = "cpu", 0

        def step(self, work):
            super().step(work)
            Sometimes.calls += 1
            if Sometimes.calls == 7:
                work[0][1][0].p.mul_(1 + 1e-6)

    assert correct.again(CPU, pieces(), torch.float32, None, 5)["equal"] == 1
    monkeypatch.setattr(backends, "BACKENDS", [Sometimes, Readable])
    with pytest.raises(AssertionError, match="1 of .* differ from the first time: weights of .*: 1 times"):
        correct.again(CPU, pieces(), torch.float32, None, 5)


def bad(bench):
    def skip():
        raise SkipCaseError("nothing to see")

    def fail():
        raise ValueError("it is | broken")

    def wait():
        time.sleep(60)

    return [
        Case("fine", lambda: {"number": 1.5}),
        Case("skipped", skip),
        Case("wrong", fail),
        Case("dies", lambda: os.kill(os.getpid(), 9)),
        Case("goes on", lambda: {"number": 2.5}),
        Case("hangs", wait),
        Case("never", dict),
    ]


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    import multiprocessing
    import types

    module = types.ModuleType("experiments.gpu.bad")
    module.cases = bad
    monkeypatch.setitem(sys.modules, "experiments.gpu.bad", module)
    context = multiprocessing.get_context("fork")  # whose processes know of the module
    context.set_forkserver_preload = lambda names: None
    monkeypatch.setattr(multiprocessing, "get_context", lambda name: context)
    monkeypatch.setattr(command, "GRACE", 0.0)
    part = command.run_part("bad", "cpu", 3.0, tmp_path, "", None)
    found = {found["case"]: found for found in part["cases"]}
    statuses = {name: values["status"] for name, values in found.items()}
    assert statuses == {"fine": "ok", "skipped": "skipped", "wrong": "failed", "dies": "failed", "goes on": "ok", "hangs": "failed"}
    assert part["status"] == "failed"
    assert re.fullmatch(r"no end after \d+ s", *part["error"])
    assert found["wrong"]["error"][-1] == "ValueError: it is | broken"
    assert found["dies"]["error"][-1] == "the process ended with code -9"
    text = folded(markdown({"machine": {"card": "a card"}, "parts": [part], "seconds": 3.0, "command": ["gpu"]}))
    assert "| goes on | 2.5 |" in text
    assert "skipped, nothing to see: skipped" in text
    assert "ValueError: it is | broken" in text


def test_what_there_is_no_time_for_is_told(tmp_path, monkeypatch):
    import types

    module = types.ModuleType("experiments.gpu.bad")
    module.cases = bad
    monkeypatch.setitem(sys.modules, "experiments.gpu.bad", module)
    case.run_cases("bad", Bench(CPU, tmp_path, time.monotonic()), tmp_path / "bad.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert {(row["status"], row["reason"]) for row in rows} == {("skipped", "no time left")}
    assert len(rows) == 7


def test_the_order_of_memory_is_that_of_the_piece():
    piece = tensors.every_layout()["factored images, channels last"]
    values = torch.randn(piece.layout.shape)
    there = piece.in_memory(values)
    assert torch.equal(there, values)
    assert there.is_contiguous(memory_format=torch.channels_last)
    assert nn.Parameter(there).stride() == there.stride()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--parts", "steps"], "--parts steps: there is no part 'steps' among correct, step,"),
        (["--minutes", "0"], "--minutes 0 must be more than 0"),
        (["--threads", "0"], "--threads 0 must be at least 1"),
    ],
)
def test_mistakes(args, message, capsys, tmp_path):
    assert main(["gpu", "--device", "cpu", *args]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
