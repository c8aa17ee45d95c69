"""``python -m experiments compare``: one recipe under several optimizers, learning rates and seeds."""

from experiments.compare.command import main as main
