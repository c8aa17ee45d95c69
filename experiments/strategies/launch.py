"""Ranks as processes that have imported everything and done nothing: a group of them is there in a moment."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """Return what torchrun tells a rank on one machine.

    Args:
        rank: Which.
        ranks: How many.
        port: Where they meet.
    """
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    rest = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "experiments", "GLOO_SOCKET_IFNAME": "lo"}
    return {name: str(number) for name, number in numbers.items()} | rest


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def run_ranks(function: Callable[..., Any], ranks: int, folder: Path, *args: Any) -> list[Any]:
    """Run a function once a rank, each in a process of its own; the first that fails ends them all.

    Args:
        function: What each rank runs, of a module that can be imported; what it returns comes back through a file.
        ranks: How many.
        folder: For these files.
        args: The function's arguments.

    Raises:
        RuntimeError: What a rank raised, in a line.
    """
    get_context("forkserver").set_forkserver_preload(["experiments.strategies.run"])
    try:
        mp.start_processes(_enter, (function, ranks, free_port(), folder, args), nprocs=ranks, start_method="forkserver")
    except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
        raise RuntimeError(str(error).strip().splitlines()[-1]) from error
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(ranks)]


def _enter(rank: int, function: Callable[..., Any], ranks: int, port: int, folder: Path, args: tuple[Any, ...]) -> None:
    os.environ.update(environment(rank, ranks, port), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    torch.save(function(*args), folder / f"rank{rank}.pt")
    os._exit(0)  # without waiting for other ranks, of which one may have failed
