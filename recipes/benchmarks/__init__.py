"""Measurements of speed: ``python -m recipes benchmark``."""
