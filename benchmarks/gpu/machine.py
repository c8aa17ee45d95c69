"""What the machine is: nothing that was measured means anything without it."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from benchmarks.gpu.case import Bench, Case

PACKAGES = ("torch", "triton", "lightning", "timm", "torch-geometric", "torchao", "bitsandbytes", "transformers", "jsonargparse", "numpy")


def cases(bench: Bench) -> list[Case]:
    """Return the one case."""
    return [Case("machine", lambda: describe(bench.device))]


def describe(device: torch.device) -> dict[str, object]:
    """Return names and versions.

    Args:
        device: Where everything is measured.
    """
    found: dict[str, object] = {}
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found = {
            "card": card.name,
            "capability": f"{card.major}.{card.minor}",
            "memory": f"{card.total_memory / 2**30:.1f} GiB",
            "multiprocessors": card.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return {
        **found,
        "system": platform.platform(),
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "commit": _commit(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit of the checkout, where there is one, and whether files differ from it."""
    where = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=where, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" and changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
