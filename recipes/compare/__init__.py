"""One recipe under several optimizers, learning rates and seeds: ``python -m recipes compare``."""
