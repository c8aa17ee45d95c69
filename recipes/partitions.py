"""A partition that only ablations want; registered by its name, as users register their own."""

from dataclasses import dataclass

from typing_extensions import override

from lightning_adam_mini.lines import LineOrder
from lightning_adam_mini.partition import AdamMiniPartition, register_strategy


@register_strategy("adam_mini_qk_tensor")
@dataclass(frozen=True, kw_only=True)
class QueryKeyByTensor(AdamMiniPartition):
    """Adam-mini with all queries of a layer in one block, and all keys in another: the head structure of the Hessian, ignored.

    Example:
        >>> from lightning_adam_mini.lines import parse_lines
        >>> print(QueryKeyByTensor().group_lines(parse_lines("q:4x8|k:4x8|v:2x2")))
        q:32|k:32|v:4x1
    """

    @override
    def group_lines(self, order: LineOrder) -> LineOrder:
        """Query and key whole; value as the option says; other lines each a block."""
        whole = ("q", "k", *(("v",) if self.value == "whole" else ()))
        return order.merge(*whole).split(*(role for role in order.roles if role not in whole))
