"""What a model and its optimizer are like: so far, how much memory they take."""

from lightning_adam_mini.analysis.memory import ModelMemory as ModelMemory
from lightning_adam_mini.analysis.memory import StateMemory as StateMemory
from lightning_adam_mini.analysis.memory import count_memory as count_memory
