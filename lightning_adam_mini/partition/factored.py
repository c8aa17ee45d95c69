"""The default partition, and the one that it stands on: the means of rows and of columns, whose product AdamW's second moment nearly is.

The gradient of a linear layer is a sum of products, (error at the output) x (input). So the mean of g² is nearly an output factor times an
input factor. Blocks of rows keep the first and lose the second, which in attention's output projection and in an MLP's way down explains
most. Adafactor (Shazeer & Stern, arXiv 1804.04235) keeps both. Here they stand within AdamW's own step, with nothing else of Adafactor's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import Role
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import LineOrder
from lightning_adam_mini.partition.strategy import Granularity, PartitionStrategy, register_strategy


@register_strategy("factored")
@dataclass(frozen=True, kw_only=True)
class FactoredPartition(PartitionStrategy):
    """The mean of each row and of each column; vectors per element.

    Of a convolution: of each output and each input channel. Of a depthwise one: of each channel and each kernel position. Of a stack of
    experts: of each row and column of each expert.

    Example:
        >>> from lightning_adam_mini.detection.roles import Architecture
        >>> weight = ParameterReport("fc.weight", (8, 5), Role.LINEAR, Role.LINEAR, "an nn.Linear")
        >>> print(FactoredPartition()(ModelReport(Architecture.MLP, "", (weight,)))["fc.weight"])
        mean over dim 1 x mean over dim 0
    """

    needs_heads: ClassVar[bool] = False

    def granularity(self, parameter: ParameterReport, report: ModelReport) -> Granularity | BlockLayout:
        """``"factored"``."""
        return "factored"

    def group_lines(self, order: LineOrder) -> LineOrder:
        """Where a user gives heads: queries and keys by head, as in Adam-mini, and each other line is a block."""
        return order.split(*(role for role in order.roles if role not in ("q", "k")))


@register_strategy("auto")
@dataclass(frozen=True, kw_only=True)
class AutoPartition(FactoredPartition):
    """The default: as ``"factored"``, but embeddings of tokens and positions by row, where columns were measured to add nothing.

    It needs no heads. A role that is guessed wrong changes names in the report and, of an embedding only, blocks.

    Args:
        embedding: Blocks of token embeddings: each ``"token"``, each ``"parameter"``, or ``"factored"``.

    Example:
        >>> from lightning_adam_mini.detection.roles import Architecture
        >>> table = ParameterReport("wte.weight", (50, 8), Role.TOKEN_EMBEDDING, Role.TOKEN_EMBEDDING, "an nn.Embedding")
        >>> print(AutoPartition()(ModelReport(Architecture.TRANSFORMER, "", (table,)))["wte.weight"])
        mean over dim 1
    """

    embedding: Literal["token", "parameter", "factored"] = "token"

    def granularity(self, parameter: ParameterReport, report: ModelReport) -> Granularity | BlockLayout:
        """How fine the blocks of ``parameter`` are."""
        if parameter.role is Role.TOKEN_EMBEDDING and self.embedding != "factored":
            return "line" if self.embedding == "token" else "parameter"
        if parameter.role is Role.POSITION_EMBEDDING and sum(size > 1 for size in parameter.shape) > 1:
            return BlockLayout(parameter.shape, (len(parameter.shape) - 1,))
        return super().granularity(parameter, report)
