"""``python -m benchmarks strategies``: one result and one checkpoint under every strategy of Lightning."""

from benchmarks.strategies.command import main as main
