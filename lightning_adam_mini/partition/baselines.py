"""The partitions that Adam-mini is compared with: Adam, AdaLayer, and AdaLayer with norms and last layer left to Adam."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import Role
from lightning_adam_mini.partition.strategy import Granularity, PartitionStrategy, register_strategy


@register_strategy("adam")
@dataclass(frozen=True, kw_only=True)
class AdamPartition(PartitionStrategy):
    """Each parameter a block: Adam and AdamW themselves.

    Example:
        >>> AdamPartition().granularity(None, None)
        'parameter'
    """

    needs_heads: ClassVar[bool] = False

    def granularity(self, parameter: ParameterReport, report: ModelReport) -> Granularity:
        """Always ``"parameter"``."""
        return "parameter"


@register_strategy("tensor", "adalayer")
@dataclass(frozen=True, kw_only=True)
class TensorPartition(PartitionStrategy):
    """One block per tensor: PyTorch's default partition, and AdaLayer. On large transformers it trains unstably, as the papers show.

    Example:
        >>> TensorPartition().granularity(None, None)
        'tensor'
    """

    needs_heads: ClassVar[bool] = False

    def granularity(self, parameter: ParameterReport, report: ModelReport) -> Granularity:
        """Always ``"tensor"``."""
        return "tensor"


@register_strategy("adalayer_ln_tl")
@dataclass(frozen=True, kw_only=True)
class AdaLayerNormLastPartition(PartitionStrategy):
    """AdaLayer+LN+TL (Zhao et al. 2024): norms and the last layer, with their biases, per parameter; any other tensor one block.

    The last layer is the language model head or classifier. A token embedding that is tied to other tensors is taken for it if there is
    no other.

    Example:
        >>> from lightning_adam_mini.detection.roles import Architecture
        >>> bias = ParameterReport("norm.bias", (8,), Role.BIAS, Role.NORM, "bias of an nn.LayerNorm")
        >>> AdaLayerNormLastPartition().granularity(bias, ModelReport(Architecture.MLP, "", (bias,)))
        'parameter'
    """

    needs_heads: ClassVar[bool] = False

    def granularity(self, parameter: ParameterReport, report: ModelReport) -> Granularity:
        """``"parameter"`` for norms and the last layer, else ``"tensor"``."""
        last_layer = (Role.LM_HEAD, Role.CLASSIFIER)
        if parameter.owner in (Role.NORM, *last_layer):
            return "parameter"
        if parameter.owner is Role.TOKEN_EMBEDDING and parameter.aliases and not any(p.role in last_layer for p in report.parameters):
            return "parameter"
        return "tensor"
