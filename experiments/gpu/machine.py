"""What the machine is: nothing that was measured means anything without it."""

from __future__ import annotations

import os
import platform

import torch

from experiments.gpu.case import Bench, Case
from experiments.result import commit, versions


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
        **versions(),
        "commit": commit() or "unknown",
    }
