"""``python -m benchmarks``: one command a question, all rivals in one process."""

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "step": "how long a step takes on ResNet18, ViT-S, a 60M GPT and 1,000 tiny tensors, and how near to the floor",
    "state": "bytes of the optimizer's state, a parameter",
    "training-step": "how long a training step takes, and the optimizer's share in it",
    "scaling": "how the step time grows with parameters and with tensors",
    "launches": "how many operators a step calls, from 10 to 1,000 tensors",
    "strategies": "whether every strategy of Lightning gives one result and one checkpoint, and what it holds and sends",
    "largest-batch": "the largest batch that fits into a given memory",
    "gpu": "all of this on one GPU, whether the kernels are right and whether what depends on one works, in a few minutes",
}
USAGE = (
    "usage: python -m benchmarks COMMAND ...\n\n"
    + "".join(f"  {name:<14} {text}\n" for name, text in COMMANDS.items())
    + "\n`python -m benchmarks COMMAND --help` explains each. The rivals are installed by: pip install -e '.[benchmarks]'\n"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one benchmark.

    Args:
        argv: The command line, without the program's name; ``sys.argv`` by default.
    """
    command, *args = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    if command not in COMMANDS:
        sys.stderr.write(f"{USAGE}\nerror: there is no benchmark {command!r}\n")
        return 2

    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        return importlib.import_module(f"benchmarks.{command.replace('-', '_')}").main(args)
    except MisconfigurationException as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
