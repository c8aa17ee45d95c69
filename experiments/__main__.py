"""``python -m experiments NAME ...``: everything that compares or measures."""

import importlib
import sys
import warnings
from collections.abc import Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException

EXPERIMENTS = {
    "compare": "train a recipe under several optimizers, learning rates and seeds; a ranked table and figures",
    "slim_adam": "SlimAdam: derive rules and train with them; sweep learning rates; draw signal-to-noise ratios; the paper's figures",
    "step": "how long a step takes on ResNet18, ViT-S, a 60M GPT and 1,000 tiny tensors, and how near to the floor",
    "training-step": "how long a training step takes, and the optimizer's share in it",
    "scaling": "how the step time grows with parameters and with tensors",
    "launches": "how many operators a step calls, from 10 to 1,000 tensors",
    "state": "bytes of the optimizer's state, a parameter",
    "largest-batch": "the largest batch that fits into a given memory",
    "callback": "what AdamMiniCallback and its monitoring cost a training step",
    "snr": "what SNRMonitor costs a run",
    "hessian": "the Adam-mini paper's figures of the Hessian: hessian fig3|fig4|fig8|fig9|fig14, and audits of the recipes' models",
    "strategies": "whether every strategy of Lightning gives one result and one checkpoint, and what it holds and sends",
    "gpu": "timings and memory on one GPU, whether the kernels are right and whether what depends on one works, in a few minutes",
}
"""What is measured. A new experiment is a module with a ``main``, and a line here."""
OTHERS = {
    "all": "every experiment, one after the other; --small: as toys, only to see that each runs",
    "pages": "the pages of results in docs/results, from the JSON files beside them",
}
USAGE = (
    "usage: python -m experiments NAME ...\n\n"
    + "".join(f"  {name:<14} {text}\n" for name, text in (EXPERIMENTS | OTHERS).items())
    + "\n`python -m experiments NAME --help` explains each. The rivals are installed by: pip install -e '.[experiments]'\n"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one experiment.

    Args:
        argv: The command line, without the program's name; ``sys.argv`` by default.
    """
    name, *args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    if name not in EXPERIMENTS | OTHERS:
        sys.stderr.write(f"{USAGE}\nerror: there is no experiment {name!r}\n")
        return 2
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning's own use of torch, which no user can change
    try:
        return importlib.import_module(f"experiments.{name.replace('-', '_')}").main(args)
    except MisconfigurationException as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
