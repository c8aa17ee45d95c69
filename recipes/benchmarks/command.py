"""The command line of ``python -m recipes benchmark``."""

import sys
from collections.abc import Sequence

USAGE = (
    "usage: python -m recipes benchmark callback|snr [--help]\n\n"
    "  callback   what AdamMiniCallback and its monitoring cost a training step\n"
    "  snr        what SNRMonitor costs a run\n"
)


def main(argv: Sequence[str]) -> int:
    """Run one benchmark.

    Args:
        argv: What follows ``benchmark``.
    """
    name, *args = list(argv) or ["--help"]
    if name in ("-h", "--help"):
        sys.stdout.write(USAGE)
        return 0
    if name == "callback":
        from recipes.benchmarks.callback import main as callback

        return callback(args)
    if name == "snr":
        from recipes.benchmarks.snr import main as snr

        return snr(args)
    sys.stderr.write(f"{USAGE}\nerror: there is no benchmark {name!r}\n")
    return 2
