"""AdamMini combined with other methods: a part of each step is theirs."""

from lightning_adam_mini.combine.combined import Combined as Combined
from lightning_adam_mini.combine.combined import combine_ as combine_
from lightning_adam_mini.combine.galore import GaLore as GaLore
from lightning_adam_mini.combine.part import Part as Part
from lightning_adam_mini.combine.part import read_part as read_part
from lightning_adam_mini.combine.schedule_free import ScheduleFree as ScheduleFree
from lightning_adam_mini.combine.sophia import Sophia as Sophia

PARTS: dict[str, type[Part]] = {part.name: part for part in (ScheduleFree, GaLore, Sophia)}
"""By name."""
