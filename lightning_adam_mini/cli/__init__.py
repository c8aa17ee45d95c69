"""The command line: ``python -m lightning_adam_mini``."""
