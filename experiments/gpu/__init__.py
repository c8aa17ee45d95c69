"""``python -m experiments gpu``: all that is to be known of this package on one GPU, in a few minutes."""

from experiments.gpu.command import main as main
