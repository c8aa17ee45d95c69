"""``python -m experiments all``: every experiment, one after the other; as toys, to see that each still runs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from experiments.__main__ import EXPERIMENTS
from experiments.hessian.command import FIGURES
from experiments.tables import markdown_table

REPOSITORY = Path(__file__).parents[1]
GPT = f"--config {REPOSITORY / 'configs' / 'gpt_stdlib.yaml'}"
TINY = "--model.layers=1 --model.width=32 --model.context=32 --data.context=32 --data.batch_size=4 --data.epoch_windows=16"
TINY_GPT = f"{GPT} {TINY} --data.eval_windows=8"
SLIM_ADAM = ("vision", "fine_tuning", "vocabulary", "kept", "transfer", "depth", "trajectories")
ARGUMENTS = {  # of those that need some; a name may stand for several runs
    "compare": [f"{GPT} --optimizers adamw,auto --seeds 5"],
    "hessian": [*FIGURES],
    "slim_adam": [f"rules {GPT}", f"sweep {GPT} --lrs 1e-3,3e-3", f"figures {GPT} --lrs 1e-3,3e-3", *SLIM_ADAM],
}
SMALL = {
    "compare": [f"{TINY_GPT} --optimizers adamw,auto:8bit --lrs 1e-3,1e-2 --seeds 1 --trajectory 2"],
    "slim_adam": [
        f"rules {TINY_GPT} --seeds 1",
        f"sweep {TINY_GPT} --lrs 1e-3,1e-2 --seeds 1",
        f"figures {TINY_GPT} --lrs 1e-3,1e-2",
        *SLIM_ADAM,
    ],
    "hessian": ["fig3"],
    "callback": [TINY_GPT],
    "snr": [TINY_GPT],
    "gpu": ["--device cpu --minutes 12"],
}
"""As toys, where ``--small`` is not enough."""


def commands(small: bool) -> list[list[str]]:
    """Return what is run.

    Args:
        small: Whether as toys.
    """
    found = []
    for name in EXPERIMENTS:
        for arguments in (SMALL if small else ARGUMENTS).get(name, [""]):
            words = arguments.split()
            at = int(bool(words) and not words[0].startswith("-"))  # a command of its own comes first
            found.append([name, *words[:at], *(["--small"] if small else []), *words[at:]])
    return found


def run(out: Path, command: Sequence[str]) -> list[str]:
    """Run an experiment in a process of its own, and return its title, whether all went well, and how long it took.

    Args:
        out: The folder, in which it gets one.
        command: What follows ``python -m experiments``.
    """
    title = " ".join(word for word in command[:2] if not word.startswith("-"))
    folder = out / title.replace(" ", "-")
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    started = time.perf_counter()
    whole = [sys.executable, "-m", "experiments", *command, "--out", str(folder)]
    done = subprocess.run(whole, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    line = [title, "ok" if done.returncode == 0 and list(folder.glob("*.json")) else "failed", f"{time.perf_counter() - started:.0f} s"]
    sys.stdout.write(f"{' '.join(line)}\n")
    sys.stdout.flush()
    if line[1] == "failed":
        sys.stderr.write(f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}\n")
    return line


def main(argv: Sequence[str]) -> int:
    """Run every experiment.

    Args:
        argv: What follows ``all``.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments all", description="Run every experiment, one after the other.")
    parser.add_argument("--small", action="store_true", help="as toys, on a CPU: only to see that each runs; minutes in place of hours")
    parser.add_argument("--only", default="", metavar="NAMES", help="some of them, with commas between (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/all"), help="folder of the results, one a command (default: %(default)s)")
    options = parser.parse_args(argv)
    only = {name.strip() for name in options.only.split(",")} - {""}
    if only - EXPERIMENTS.keys():
        parser.error(
            f"--only {options.only}: there is no experiment {sorted(only - EXPERIMENTS.keys())[0]!r} among {', '.join(EXPERIMENTS)}"
        )
    chosen = [command for command in commands(options.small) if not only or command[0] in only]
    chosen.sort(key=lambda command: command[0] != "gpu")  # the longest first
    with ThreadPoolExecutor(2 if options.small else 1) as pool:  # what is timed has the machine for itself
        lines = list(pool.map(partial(run, options.out), chosen))
    sys.stdout.write(f"\n{markdown_table(['experiment', '', 'time'], lines)}\n")
    return int(any(line[1] == "failed" for line in lines))
