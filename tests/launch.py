"""Ranks as forks of a process that has imported everything and done nothing: a group of them is there in a moment."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


def run_ranks(function: Callable[..., Any], ranks: int, folder: Path, *args: Any, seconds: float = 280.0) -> list[Any]:
    """Run a function once a rank, each in a process of its own, in an environment like torchrun's.

    Args:
        function: What each rank runs, of a module that can be imported; what it returns comes back through a file.
        ranks: How many.
        folder: For these files.
        args: The function's arguments.
        seconds: After which the ranks are ended.

    Returns:
        What each rank returned; its exception, as text in a RuntimeError, where it raised one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["experiments.strategies.run"])
    processes = [context.Process(target=_enter, args=(function, rank, ranks, port, folder, args)) for rank in range(ranks)]
    sys.stdout.flush()
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    results: list[Any] = []
    for rank, process in enumerate(processes):
        if process.is_alive():
            process.kill()
            process.join()
            results.append(RuntimeError(f"rank {rank} hung for {seconds} s"))
            continue
        file = folder / f"rank{rank}.pt"
        results.append(
            torch.load(file, weights_only=False) if file.exists() else RuntimeError(f"rank {rank} ended with code {process.exitcode}")
        )
        file.unlink(missing_ok=True)
    return results


def run_checks(checks: Sequence[Callable[..., None]], *args: Any) -> dict[str, str]:
    """Run the checks of one group of ranks on this one, up to the first that raises: other ranks may wait for this one in it for ever.

    Args:
        checks: Each raises where something is wrong.
        args: Of each.

    Returns:
        The traceback of the one that raised, by its name, and that those after it were not run.
    """
    for i, check in enumerate(checks):
        try:
            check(*args)
        except Exception:
            rest = {later.__name__: f"not run, because {check.__name__} failed" for later in checks[i + 1 :]}
            return {check.__name__: traceback.format_exc(), **rest}
    return {}


def what_went_wrong(outcomes: Sequence[Any]) -> list[tuple[str, str]]:
    """Return what went wrong on any rank, by check; raise what kept a rank from running them.

    Args:
        outcomes: What :func:`run_ranks` returned, of a function that returns :func:`run_checks`.
    """
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return [(name, f"rank {rank}:\n{text}") for rank, found in enumerate(outcomes) for name, text in found.items()]


def _enter(function: Callable[..., Any], rank: int, ranks: int, port: int, folder: Path, args: tuple[Any, ...]) -> None:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", TORCHELASTIC_RUN_ID="tests", OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    try:
        result = function(*args)
    except BaseException as error:
        result = RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    partial = folder / f"rank{rank}.part"
    torch.save(result, partial)
    partial.rename(folder / f"rank{rank}.pt")
    os._exit(0)  # without waiting for other ranks, of which one may have failed
