"""``python -m experiments strategies``: one result and one checkpoint under every strategy of Lightning."""

from experiments.strategies.command import main as main
