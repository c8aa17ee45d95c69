"""diffusers' attention."""

from lightning_adam_mini.detection.registry import KnownModule

MODULES: tuple[KnownModule, ...] = ()
