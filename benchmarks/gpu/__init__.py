"""``python -m benchmarks gpu``: all that is to be known of this package on one GPU, in a few minutes."""

from benchmarks.gpu.command import main as main
