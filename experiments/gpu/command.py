"""Runs the parts, each in a process of its own and within a share of the time, and writes down what they found."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from experiments.gpu.case import LINES, enter
from experiments.gpu.tables import markdown, summary
from experiments.options import make_parser, prepare
from experiments.result import machine_text, new_result
from recipes.files import write_atomically

PARTS = {
    "correct": 30,
    "step": 30,
    "graph": 5,
    "compiled": 8,
    "fit": 9,
    "memory": 10,
    "sharded": 5,
    "recipe": 3,
}
"""The parts, in order, and their shares of the time. What one does not need goes to those after it."""
GRACE = 20.0  # seconds for the case that a part is at when its time is over
_PRELOADED = ["experiments.gpu.case", "experiments.gpu.models", "lightning.pytorch", "experiments.rivals", "torch._dynamo"]


def choose_parts(text: str) -> list[str]:
    """Return the parts of a comma-separated list, in their order; all of them if it is empty.

    Args:
        text: The list.

    Raises:
        MisconfigurationException: If one is none.

    Example:
        >>> choose_parts("step,correct")
        ['correct', 'step']
    """
    names = {name.strip() for name in text.split(",")} - {""}
    if names - PARTS.keys():
        raise MisconfigurationException(f"--parts {text}: there is no part {sorted(names - PARTS.keys())[0]!r} among {', '.join(PARTS)}")
    return [name for name in PARTS if name in names or not names]


def run_part(part: str, device: str, seconds: float, folder: Path, only: str, threads: int | None) -> dict[str, Any]:
    """Run a part; begin it again, behind the case that failed, where its process ends before its time.

    Args:
        part: The part's module.
        device: Kind of device.
        seconds: How long.
        folder: For its files.
        only: Regular expression of rivals.
        threads: Torch's threads; none for its own choice.

    Returns:
        Name, status, seconds, share of the time, and cases.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    begun, file = time.monotonic(), folder / f"{part}.jsonl"
    error: list[str] = []
    while True:
        before, left = len(_read(file)), begun + seconds - time.monotonic()
        process = context.Process(target=enter, args=(part, device, left, folder, only, threads))
        process.start()
        process.join(max(left, 0) + GRACE)
        late = process.is_alive()
        if late:
            process.kill()
            process.join()
        cases = _read(file)
        if process.exitcode == 0:
            break
        how = f"no end after {time.monotonic() - begun:.0f} s" if late else f"the process ended with code {process.exitcode}"
        log = (folder / f"{part}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        for case in cases:
            if case["status"] == "begun":
                lost = {**case, "status": "failed", "error": [*log[-LINES:], how]}
                with file.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps(lost) + "\n")
        if late or len(cases) == before:  # what gets nowhere is not tried again
            error = [*([] if late else log[-LINES:]), how]
            break
    cases = _read(file)
    took, statuses = time.monotonic() - begun, {case["status"] for case in cases}
    status = "failed" if error or "failed" in statuses else "ok" if "ok" in statuses else "skipped"
    return {"part": part, "status": status, "seconds": took, "share": seconds, "error": error, "cases": cases}


def _read(file: Path) -> list[dict[str, Any]]:
    """The cases in a file, each as it was last written down."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return list({row["case"]: row for row in map(json.loads, lines)}.values())


def main(argv: Sequence[str]) -> int:
    """Run the experiment.

    Args:
        argv: What follows ``gpu``.
    """
    parser = make_parser("gpu", "Find out all that is to be known of this package on one GPU.", models=False)
    parser.set_defaults(device="cuda", out=Path("runs/experiments/gpu"))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together (default: %(default)s)")
    parser.add_argument("--parts", default="", metavar="LIST", help=f"some of {','.join(PARTS)} (default: all)")
    options = parser.parse_args(argv)
    parts = choose_parts(options.parts)
    if options.minutes <= 0:
        raise MisconfigurationException(f"--minutes {options.minutes:g} must be more than 0")
    prepare(options)
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before any process imports triton
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without which cuBLAS may not repeat itself
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # what is imported before a process is forked must not start CUDA
    folder = (options.out / "parts").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    begun = time.monotonic()
    rest = (options.device, folder, options.only, options.threads)
    _, machine = _run("machine", 60.0, *rest)
    report: dict[str, Any] = {"command": ["gpu", *argv], "machine": machine["cases"][0] if machine["cases"] else {}, "parts": []}
    name = str(report["machine"].get("card", machine_text(torch.device("cpu"))))  # asked in a process of its own
    files = [options.out / "gpu.json", options.out / "gpu.md"]
    for number, part in enumerate(parts):
        left = begun + 60 * options.minutes - time.monotonic()
        seconds = max(0.0, left) * PARTS[part] / sum(PARTS[name] for name in parts[number:])
        line, result = _run(part, seconds, *rest)
        report |= {"seconds": time.monotonic() - begun, "parts": [*report["parts"], result]}
        result = replace(new_result("gpu", f"On {name}", argv, facts=report, rows=rows_of(report)), machine=name)
        write_atomically(files[0], result.json())  # after each part: the machine may be taken away
        files[1].write_text(markdown(report), encoding="utf-8")
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{report['seconds']:.0f} s. Written to {', '.join(map(str, files))}; what the parts said is in {folder}\n")
    return int(any(part["status"] == "failed" for part in report["parts"]))


def rows_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the numbers of all cases that are rows of a table.

    Args:
        report: What was found.
    """
    cases = [(part["part"], case) for part in report["parts"] for case in part["cases"]]
    return [{"part": part, "case": case["case"], **row} for part, case in cases for row in case.get("rows", ())]


def _run(part: str, seconds: float, device: str, folder: Path, only: str, threads: int | None) -> tuple[str, dict[str, Any]]:
    result = run_part(part, device, seconds, folder, only, threads)
    return summary(result), result
