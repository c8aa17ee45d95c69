"""``python -m experiments slim_adam``: SlimAdam's experiments at small scale."""

from experiments.slim_adam.command import main as main
