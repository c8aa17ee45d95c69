"""The command line of the Hessian's figures."""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.result import new_result, publish

FIGURES = {
    "fig3": "quadratics of three dense blocks: one rate, a rate for each block, and Adam (Figure 3)",
    "fig4": "|Hessian| of a transformer's matrices, at initialisation and in training, with its share in blocks (Figures 4, 10-13)",
    "fig8": "Adam without Adam: tensors left out of it get one rate each, found on a grid (Figure 8)",
    "fig9": "densities of eigenvalues of each tensor's Hessian, of a transformer and of a CNN (Figure 9)",
    "fig14": "the MLP of the last layer: near-diagonal, and one rate against Adam on it (Figure 14)",
    "audit": "audits of the recipes' GPT, ViT, ResNet18, GAT and DDPM UNet, of a GPT with wrong heads, and what an audit costs",
}


PLACES = {name: 10 * (i + 1) for i, name in enumerate(FIGURES)}
"""Where each stands on the page of results."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make one figure, or audits.

    Args:
        argv: The command line, without the program's name; ``sys.argv`` by default.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m experiments hessian", description="Figures of the Adam-mini paper about the Hessian.")
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    for name, text in FIGURES.items():
        one = figures.add_parser(name, help=text, description=text)
        one.add_argument(
            "--out", type=Path, default=Path("runs/hessian"), metavar="FOLDER", help="where the files go (default: %(default)s)"
        )
        one.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random (default: %(default)s)")
        one.add_argument("--quick", "--small", action="store_true", help="a small version of it, to see that it works")
        if name == "audit":
            one.add_argument("--model", action="append", metavar="NAME", help="only this one; may be repeated")
            one.add_argument(
                "--seconds",
                type=float,
                default=200.0,
                metavar="N",
                help="time limit of the columns of a model (default: %(default)g); Ctrl-C keeps what is done",
            )
    arguments = vars(parser.parse_args(argv))
    figure, out, started = arguments.pop("figure"), arguments.pop("out"), time.process_time()
    for i, found in enumerate(importlib.import_module(f"experiments.hessian.{figure}").make(**arguments)):
        seconds, started = time.process_time() - started, time.process_time()
        text = f"{found.text} CPU time in all: {seconds:.0f} s."
        facts = {**found.facts, "cpu_seconds": round(seconds, 1)}
        rows = [{"seed": arguments["seed"], **row} for row in found.rows]
        more: dict[str, Any] = dict(text=text, facts=facts, rows=rows, seeds=sorted({row["seed"] for row in rows}), tables=[found.table])
        result = new_result("hessian", found.title, argv, page="hessian", place=PLACES[figure] + i, **more)
        publish(result, out, found.figures, f"hessian_{found.name}")
    return 0
