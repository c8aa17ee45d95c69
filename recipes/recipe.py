"""What every recipe's model has in common: the one number that it is judged by."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import lightning.pytorch as pl


@dataclass(frozen=True)
class Headline:
    """The number that a recipe is judged by, logged by its model as ``val/<metric>`` and ``test/<metric>``.

    Args:
        metric: Name of the metric without its ``val/`` or ``test/``.
        title: How a person calls it.
        mode: Whether more of it is better (``"max"``) or less (``"min"``).
    """

    metric: str
    title: str
    mode: Literal["max", "min"]


class Recipe(pl.LightningModule):
    """Base of the recipes' models: a LightningModule that names its headline and takes its peak learning rate as ``lr``."""

    headline: ClassVar[Headline]
