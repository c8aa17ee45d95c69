"""Adam-mini's own partitions: version 2 (ICLR 2025, and the released code 1.1) and version 1 (arXiv 2406.16793v1).

Both split the parameters of *transformers* along the dense blocks of their Hessian, as the tables below say, and give every other
network one block per tensor (Algorithm 3) and no embedding blocks (Algorithm 4). Transformers are the architectures ``transformer``,
``diffusion_transformer`` and ``hybrid`` of the report. In a model that is composed of several networks (a graph encoder before a
transformer) each part is split as what it is.

**Attention inside a diffusion UNet or a graph network** is not split by head either. That is what the paper ran on DDPM and GAT. To split
it, override it: ``overrides={"*.to_q.weight": "q:8x40", "*.to_k.weight": "k:8x40"}``.

Three options depart from the papers because of what we measured: see ``query_key``, ``position`` and ``weight``. The default partition,
``"auto"``, goes further: it keeps means of rows and of columns (``factored.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import Architecture, Role, Source
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import LineOrder, parse_lines
from lightning_adam_mini.partition.strategy import Granularity, PartitionStrategy, register_strategy

TRANSFORMERS = frozenset({Architecture.TRANSFORMER, Architecture.DIFFUSION_TRANSFORMER, Architecture.HYBRID})
"""Architectures that are split as transformers."""

EMBEDDING_BLOCKS = frozenset({Role.TOKEN_EMBEDDING, Role.LM_HEAD, Role.CLASSIFIER})
"""The token embedding and the output layer, which is the classifier in a vision transformer."""

_BY_EMBEDDING: dict[str, Granularity] = {"token": "line", "parameter": "parameter", "none": "tensor"}

_HEADED = frozenset({Role.QUERY, Role.KEY, Role.QKV, Role.LORA_B})
"""Those that may hold queries or keys."""

_V2: dict[Role, Granularity] = {
    Role.ATTN_OUT: "line",
    Role.MLP_UP: "line",
    Role.MLP_GATE: "line",
    Role.MLP_GATE_UP: "line",
    Role.MLP_DOWN: "line",
    Role.LORA_A: "line",
    Role.ATTN_OTHER: "line",
}
"""The rest, apart from what options decide: one block per tensor."""

_UNKNOWN = frozenset({Role.LINEAR, Role.TIME_EMBEDDING, Role.MODULATION})
"""Matrices that the paper does not name, or whose role was not found. Too fine costs little, too coarse costs quality: a block per line."""

_WEIGHTS = frozenset(
    {
        *(Role.CONV, Role.CONV_DEPTHWISE, Role.FIRST_CONV, Role.PATCH_EMBEDDING, Role.LINEAR, Role.TIME_EMBEDDING, Role.MODULATION),
        *(Role.QUERY, Role.KEY, Role.VALUE, Role.QKV, Role.ATTN_OUT),
        *(Role.MLP_UP, Role.MLP_GATE, Role.MLP_GATE_UP, Role.MLP_DOWN),
    }
)
"""Weights that map input channels or features to output ones."""

_V1: dict[Role, Granularity] = {Role.QUERY: "head", Role.KEY: "head", Role.QKV: "head"}


def _is_split(parameter: ParameterReport, report: ModelReport) -> bool:
    """Whether the roles in a transformer decide: in one, in what may be one, and where the user gave the role."""
    return report.architecture_of(parameter) in TRANSFORMERS or report.guess_of(parameter) or parameter.source is Source.USER


@register_strategy("adam_mini")
@dataclass(frozen=True, kw_only=True)
class AdamMiniPartition(PartitionStrategy):
    """Adam-mini version 2.

    In transformers: query and key by head; value, attention projection and MLP by output neuron; token embedding and output layer
    (language model head or classifier) by token or class; each bias element by itself; norms, position and patch embeddings, convolutions
    and everything else one block per tensor. Linear maps that the paper does not name or whose role is not known (time embeddings and
    modulations among them) go by line in any network, because too fine costs little and too coarse costs quality. A fused qkv is split
    into its parts; lines in it that are neither query, key nor value (an MLP, a gate) go by neuron. Where the heads are unknown each line
    is a block, with a warning. LoRA: A by line, B as the weight that it adds to if its lines are known, else by line. In other networks
    one block per tensor, unless options say otherwise; see the top of this module.

    Args:
        value: Blocks of the value projection of transformers: each output ``"neuron"``, or the ``"whole"`` of it, which the authors
            advise for runs of fewer than 10,000 to 20,000 steps.
        query_key: Blocks of the query and key projections of transformers: each ``"head"``, as in the papers, or each output
            ``"neuron"`` (as SlimAdam's rules have it; ends nearer to AdamW, and needs no heads to be found). LoRA's B follows the weight
            that it adds to.
        position: Blocks of the position embeddings of transformers: each ``"tensor"``, as in version 1.1 of the released code for GPT-2's
            ``wpe``, or each ``"position"`` (average over the last dimension), which ends nearer to AdamW.
        embedding: Blocks of the token embedding and the output layer: each ``"token"``, each ``"parameter"`` or ``"none"``
            (one block per tensor: the papers' ablation, which is unstable). [default: ``"token"`` in transformers, ``"none"`` elsewhere]
        bias: Blocks of biases: each ``"parameter"`` or each ``"tensor"``. [default: ``"parameter"`` in transformers, ``"tensor"``
            elsewhere]
        weight: Blocks of the weights outside of transformers (convolutions, linear maps, attention): each ``"tensor"``, as in the papers,
            or each ``"input"`` channel or feature. ``"auto"`` is input in diffusion UNets (second moments differ between input channels
            there, most where skip connections are joined on) and tensor elsewhere.

    Example:
        >>> from lightning_adam_mini.detection.report import ModelReport, ParameterReport
        >>> query = ParameterReport("q.weight", (64, 64), Role.QUERY, Role.QUERY, "q of attention", lines="q:4x16")
        >>> report = ModelReport(Architecture.TRANSFORMER, "softmax attention", (query,))
        >>> print(AdamMiniPartition()(report)["q.weight"])
        q:4x16 along dim 0
    """

    value: Literal["neuron", "whole"] = "neuron"
    query_key: Literal["head", "neuron"] = "head"
    position: Literal["tensor", "position"] = "tensor"
    embedding: Literal["token", "parameter", "none"] | None = None
    bias: Literal["parameter", "tensor"] | None = None
    weight: Literal["tensor", "input", "auto"] = "tensor"

    def granularity(self, parameter: ParameterReport, report: ModelReport) -> Granularity | BlockLayout:
        """How fine the blocks of ``parameter`` are."""
        role, architecture = parameter.role, report.architecture_of(parameter)
        split = _is_split(parameter, report)
        if role is Role.BIAS:
            return self.bias or ("parameter" if split else "tensor")
        if role in EMBEDDING_BLOCKS:
            return _BY_EMBEDDING[self.embedding or ("token" if split else "none")]
        is_unknown = len(parameter.shape) >= 2 and (role in _UNKNOWN or (role is Role.OTHER and parameter.guess))
        if not split:
            by_input = self.weight == "input" or (self.weight == "auto" and architecture is Architecture.DIFFUSION_UNET)
            if by_input and role in _WEIGHTS and len(parameter.shape) >= 2:
                return BlockLayout.each_line(parameter.shape, axis=0 if parameter.axis else 1)
            return "line" if is_unknown else "tensor"
        if role is Role.POSITION_EMBEDDING and self.position == "position" and len(parameter.shape) > 1:
            return BlockLayout(parameter.shape, (len(parameter.shape) - 1,))
        if role is Role.VALUE:
            return "line" if self.value == "neuron" else "tensor"
        if role in _HEADED:
            if self.query_key == "head":
                return "head" if parameter.lines or role is not Role.LORA_B else "line"
            if self.value == "neuron" or not parameter.lines:
                return "line"
            order = self.group_lines(parse_lines(parameter.lines)).split("q", "k")
            return BlockLayout.grouped(parameter.shape, str(order), parameter.axis)
        return "line" if is_unknown else _V2.get(role, "tensor")

    def group_lines(self, order: LineOrder) -> LineOrder:
        """Query and key by head; value as the option says; each other line is a block."""
        whole = ("v",) if self.value == "whole" else ()
        return order.merge(*whole).split(*(role for role in order.roles if role not in ("q", "k", *whole)))


@register_strategy("adam_mini_v1")
@dataclass(frozen=True, kw_only=True)
class AdamMiniV1Partition(PartitionStrategy):
    """Adam-mini version 1, Algorithms 1 to 4 of the first preprint.

    In transformers: query and key by head; each element of the token embedding and the output layer (language model head or classifier) by
    itself; the rest, value and biases among it, one block per tensor (within a fused qkv: per role). Elsewhere one block per tensor.

    Args:
        embedding: Blocks of the token embedding and the output layer: each ``"token"``, each ``"parameter"`` or ``"none"``
            (one block per tensor). [default: ``"parameter"`` in transformers, ``"none"`` elsewhere]
        bias: Blocks of biases: each ``"parameter"`` or each ``"tensor"``. [default: ``"tensor"``]

    Example:
        >>> from lightning_adam_mini.detection.report import ModelReport, ParameterReport
        >>> fused = ParameterReport("qkv.weight", (96, 32), Role.QKV, Role.QKV, "fused", lines="q:4x8|k:4x8|v:4x8")
        >>> report = ModelReport(Architecture.TRANSFORMER, "softmax attention", (fused,))
        >>> print(AdamMiniV1Partition()(report)["qkv.weight"])
        q:4x8|k:4x8|v:32 along dim 0
    """

    embedding: Literal["token", "parameter", "none"] | None = None
    bias: Literal["parameter", "tensor"] | None = None

    def granularity(self, parameter: ParameterReport, report: ModelReport) -> Granularity:
        """How fine the blocks of ``parameter`` are."""
        split = _is_split(parameter, report)
        if parameter.role is Role.BIAS:
            return self.bias or "tensor"
        if parameter.role in EMBEDDING_BLOCKS:
            return _BY_EMBEDDING[self.embedding or ("parameter" if split else "none")]
        return _V1.get(parameter.role, "tensor") if split else "tensor"

    def group_lines(self, order: LineOrder) -> LineOrder:
        """Query and key by head; all lines of any other role one block."""
        return order.merge(*(role for role in order.roles if role not in ("q", "k")))
