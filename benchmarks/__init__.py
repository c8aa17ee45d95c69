"""Measurements of optimizers beside their rivals: ``python -m benchmarks``."""
