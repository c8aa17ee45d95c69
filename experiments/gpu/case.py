"""What a part is made of: cases, each of which is guarded, and written down as soon as it is known."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from lightning_adam_mini import AdamMiniWarning

BROKEN = 3  # exit code of a part whose device no longer works
LINES = 12  # of a traceback


class SkipCaseError(Exception):
    """Why a case cannot be run here."""


@dataclass(frozen=True)
class Bench:
    """Where a part runs.

    Args:
        device: The device; the CPU stands for a rehearsal, at toy size.
        folder: For files.
        end: When no further case is begun, by ``time.monotonic``.
        only: Regular expression of rivals.
    """

    device: torch.device
    folder: Path
    end: float
    only: str = ""

    @property
    def toy(self) -> bool:
        """Whether this is a rehearsal."""
        return self.device.type == "cpu"

    def left(self) -> float:
        """Return the seconds left."""
        return self.end - time.monotonic()

    def need_cuda(self, what: str) -> None:
        """Skip the rest of a case on a CPU.

        Args:
            what: What a CPU lacks.
        """
        if self.toy:
            raise SkipCaseError(f"a CPU has no {what}; rehearsed without")


class Case(NamedTuple):
    """Something to find out.

    Attributes:
        name: What tables call it.
        run: Finds out and returns values; raises where something is wrong.
        least: Seconds that must be left for it to be begun.
    """

    name: str
    run: Callable[[], Mapping[str, object]]
    least: float = 0


def run_cases(part: str, bench: Bench, file: Path) -> None:
    """Run the cases of a part that are not in its file yet, and write each down there.

    Args:
        part: The part's module.
        bench: Where.
        file: JSON lines.
    """
    begun = {json.loads(line)["case"] for line in file.read_text(encoding="utf-8").splitlines()} if file.exists() else set()

    def note(case: str, status: str, **values: object) -> None:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"case": case, "status": status, **values}, default=str) + "\n")

    for case in importlib.import_module(f"experiments.gpu.{part}").cases(bench):
        if case.name in begun:
            continue
        if bench.left() <= case.least:
            note(case.name, "skipped", reason="no time left")
            continue
        note(case.name, "begun")
        sys.stderr.write(f"--- {case.name}\n")
        start = time.monotonic()
        try:
            values = case.run()
            if not bench.toy:
                torch.cuda.synchronize()
            note(case.name, "ok", seconds=time.monotonic() - start, **values)
        except SkipCaseError as reason:
            note(case.name, "skipped", seconds=time.monotonic() - start, reason=str(reason))
        except Exception:
            text = traceback.format_exc()
            sys.stderr.write(text)
            note(case.name, "failed", seconds=time.monotonic() - start, error=text.strip().splitlines()[-LINES:])
            if not works(bench.device):
                os._exit(BROKEN)


def works(device: torch.device) -> bool:
    """Return whether a device still computes: after an illegal access it does not, in this process.

    Args:
        device: The device.
    """
    try:
        return torch.ones(2, device=device).sum().item() == 2
    except Exception:
        return False


def enter(part: str, device: str, seconds: float, folder: Path, only: str, threads: int | None) -> None:
    """Run a part in the process that was made for it.

    Args:
        part: The part's module.
        device: Kind of device.
        seconds: How long.
        folder: For its files.
        only: Regular expression of rivals.
        threads: Torch's threads; none for its own choice.
    """
    code = 1
    log = os.open(folder / f"{part}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", AdamMiniWarning)
        if threads is not None:
            torch.set_num_threads(threads)
        run_cases(part, Bench(torch.device(device), folder, time.monotonic() + seconds, only), folder / f"{part}.jsonl")
        code = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # without waiting for what a case may have left running
