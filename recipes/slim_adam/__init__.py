"""SlimAdam's experiments at small scale: ``python -m recipes slim_adam``."""
