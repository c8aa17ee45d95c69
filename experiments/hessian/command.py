"""The command line of the Hessian's figures."""

import argparse
import importlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

FIGURES = {
    "fig3": "quadratics of three dense blocks: one rate, a rate for each block, and Adam (Figure 3)",
    "fig4": "|Hessian| of a transformer's matrices, at initialisation and in training, with its share in blocks (Figures 4, 10-13)",
    "fig8": "Adam without Adam: tensors left out of it get one rate each, found on a grid (Figure 8)",
    "fig9": "densities of eigenvalues of each tensor's Hessian, of a transformer and of a CNN (Figure 9)",
    "fig14": "the MLP of the last layer: near-diagonal, and one rate against Adam on it (Figure 14)",
    "audit": "audits of the recipes' GPT, ViT, ResNet18, GAT and DDPM UNet, of a GPT with wrong heads, and what an audit costs",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Make one figure.

    Args:
        argv: The command line, without the program's name; ``sys.argv`` by default.
    """
    parser = argparse.ArgumentParser(prog="python -m experiments hessian", description="Figures of the Adam-mini paper about the Hessian.")
    figures = parser.add_subparsers(dest="figure", required=True, metavar="FIGURE")
    for name, text in FIGURES.items():
        one = figures.add_parser(name, help=text, description=text)
        one.add_argument("--out", type=Path, default=Path("runs/hessian"), metavar="FOLDER", help="where the PNG and the JSON go")
        one.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything random (default: %(default)s)")
        one.add_argument("--quick", "--small", action="store_true", help="a small version of it, to see that it works")
        if name == "audit":
            one.add_argument("--model", action="append", metavar="NAME", help="only this one; may be repeated")
    arguments = vars(parser.parse_args(argv))
    figure, started = arguments.pop("figure"), time.perf_counter()
    text = importlib.import_module(f"experiments.hessian.{figure}").make(**arguments)
    sys.stdout.write(f"{text}\n{figure}: {time.perf_counter() - started:.0f} s, in {arguments['out']}\n")
    return 0
