"""SlimAdam (Kalra et al. 2025): matrices are averaged over the dimensions in which their second moments vary little; vectors are not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_adam_mini._warnings import warn
from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import Role
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.partition.rules import SlimAdamRules, is_matrix, lines_first
from lightning_adam_mini.partition.strategy import Granularity, PartitionStrategy, register_strategy


@dataclass(frozen=True, kw_only=True)
class _ByRules(PartitionStrategy):
    """Averages what a rule says; a parameter without one keeps a second moment per element, and matrices among these are told."""

    def rule(self, parameter: ParameterReport) -> BlockLayout | None:
        """The layout that the parameter's rule makes, or None without a rule."""
        raise NotImplementedError

    def granularity(self, parameter: ParameterReport, report: ModelReport) -> Granularity | BlockLayout:
        """The rule's layout, or ``"parameter"``."""
        return self.rule(parameter) or "parameter"

    def __call__(self, report: ModelReport, names: Collection[str] | None = None, strict: bool = False) -> dict[str, BlockLayout]:
        """The layout of each parameter in ``report``, or of those in ``names`` only.

        Raises:
            ValueError: If no matrix of several has a rule, or if some have none and ``strict``.

        Warns:
            AdamMiniWarning: If some matrices have no rule.
        """
        matrices = [p for p in report.parameters if (names is None or p.name in names) and p.trainable and is_matrix(p)]
        without = [p for p in matrices if self.rule(p) is None]
        if without:
            shown = ", ".join(f"{p.name} ({p.role})" for p in without[:8]) + (f" and {len(without) - 8} more" if len(without) > 8 else "")
            message = f"{self._source()} for {len(without)} of {len(matrices)} matrices of this model: {shown}."
            if strict or (len(without) == len(matrices) and self._must_match):
                raise ValueError(f"{message} Derive rules from a model with the same types of layers, or override these.")
            warn(f"{message} Their elements each keep a second moment. Derive rules from a model with such layers, or override them.")
        return super().__call__(report, names, strict)

    _must_match = False

    def _source(self) -> str:
        return "There is no rule"


@register_strategy("slim_adam")
@dataclass(frozen=True, kw_only=True)
class SlimAdamPartition(_ByRules):
    """SlimAdam by measured rules: a file that :class:`~lightning_adam_mini.SNRMonitor` wrote.

    Args:
        rules: Path of the file, or :class:`~lightning_adam_mini.partition.SlimAdamRules`.

    Raises:
        ValueError: If there are no such rules; once called, if they match no matrix of the model.

    Example:
        >>> from lightning_adam_mini.detection.roles import Architecture
        >>> from lightning_adam_mini.partition import Rule
        >>> strategy = SlimAdamPartition(rules=SlimAdamRules("layer_type", {"query": Rule((1,))}))
        >>> query = ParameterReport("q.weight", (64, 32), Role.QUERY, Role.QUERY, "q of attention")
        >>> print(strategy(ModelReport(Architecture.TRANSFORMER, "", (query,)))["q.weight"])
        mean over dim 1
    """

    rules: str | Path | SlimAdamRules | None = None

    _must_match = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rules is None:
            raise ValueError(
                "The partition 'slim_adam' needs rules, because SlimAdam measures what can be averaged: options={'rules': 'rules.yaml'}."
                " SNRMonitor writes the file in a run with AdamW; 'slim_adam_auto' needs no file; 'slim_adam_table3' has the paper's."
            )
        if not isinstance(self.rules, SlimAdamRules):
            object.__setattr__(self, "rules", SlimAdamRules.load(self.rules))

    def rule(self, parameter: ParameterReport) -> BlockLayout | None:
        """The layout that the rules give to ``parameter``, or None."""
        assert isinstance(self.rules, SlimAdamRules)
        return self.rules.layout_for(parameter)

    def _source(self) -> str:
        assert isinstance(self.rules, SlimAdamRules)
        return f"The SlimAdam rules (by {self.rules.by}, of {self.rules.provenance.get('model', 'an unnamed model')}) have none"


_FAN_IN = frozenset({
    Role.QUERY, Role.KEY, Role.QKV, Role.TOKEN_EMBEDDING, Role.TYPE_EMBEDDING, Role.LM_HEAD, Role.FIRST_CONV, Role.PATCH_EMBEDDING,
    Role.CLASSIFIER,
})  # fmt: skip
_FAN_OUT = frozenset({Role.VALUE, Role.ATTN_OUT, Role.MLP_UP, Role.MLP_GATE, Role.MLP_GATE_UP, Role.MLP_DOWN})


@register_strategy("slim_adam_table3")
@dataclass(frozen=True, kw_only=True)
class SlimAdamTable3Partition(_ByRules):
    """SlimAdam by the paper's typical rules, by role: its Table 3.

    Averaged over fan_in (one value an output neuron, a token, a class): query, key, token embedding, output layer, first convolution or
    patch embedding. Averaged over fan_out: value, attention projection, MLP. A position embedding is averaged over its width, as in the
    paper's code. Norms and other vectors are not averaged. A fused qkv is averaged over fan_in as a whole, because one tensor is averaged
    one way. The table has no rule for other layers, such as further convolutions: they keep a second moment per element, with a warning.

    The paper marks MLP up, gate and classifier as varying between models; measured rules (``slim_adam``) are better.

    Example:
        >>> value = ParameterReport("v.weight", (64, 32), Role.VALUE, Role.VALUE, "v of attention")
        >>> print(SlimAdamTable3Partition().rule(value))
        mean over dim 0
    """

    def rule(self, parameter: ParameterReport) -> BlockLayout | None:
        """The layout that Table 3 gives to ``parameter``, or None."""
        shape, role = parameter.shape, parameter.role
        order = lines_first(parameter)
        if not is_matrix(parameter):
            return None
        if role is Role.POSITION_EMBEDDING:
            return BlockLayout(shape, (-1,))
        if role in _FAN_IN:
            return BlockLayout(shape, tuple(order[1:]) if len(shape) == 2 or parameter.axis == 0 else (order[-1],))
        return BlockLayout(shape, (order[0],)) if role in _FAN_OUT else None

    def _source(self) -> str:
        return "SlimAdam's Table 3 has no rule"


@register_strategy("slim_adam_auto")
@dataclass(frozen=True, kw_only=True)
class SlimAdamAutoPartition(PartitionStrategy):
    """SlimAdam in one run: Adam at first, while signal-to-noise ratios are measured; then their rules, in place.

    By itself it is Adam. :class:`~lightning_adam_mini.AdamMiniCallback` measures and compresses.

    Args:
        steps: Steps of Adam, after which second moments are averaged.
        every: Steps between measurements. [default: a tenth of ``steps``]
        lr_scale: What the learning rate is multiplied with in these steps. The paper measures at a tenth of the best learning rate, because
            at the best one ratios are lower. 1 leaves the learning rate alone, for a warm-up of your own that is as long.
        cutoff: What a ratio has to exceed for averaging.
        by: Whether rules are by ``layer_type`` (ratios averaged over depth) or by ``parameter``.
        factored: Whether rules may keep the means of rows and of columns, crossed: the cheapest of rows, columns and both whose ratio is
            above the cut-off. SlimAdam, as published, takes the highest ratio and crosses nothing.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> SlimAdamAutoPartition(steps=200).measures_every
        20
    """

    steps: int = 1000
    every: int | None = None
    lr_scale: float = 0.1
    cutoff: float = 1.0
    by: Literal["layer_type", "parameter"] = "layer_type"
    factored: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1 or not 1 <= self.measures_every <= self.steps:
            raise ValueError(f"steps={self.steps} and every={self.every} leave no measurement, because every has to be from 1 to steps.")
        if not 0 < self.lr_scale <= 1:
            raise ValueError(f"lr_scale={self.lr_scale} is no reduction, because it has to be above 0 and at most 1.")
        if not self.cutoff >= 0:
            raise ValueError(f"cutoff={self.cutoff} is never undercut, because a signal-to-noise ratio is not negative. The paper's is 1.")

    @property
    def measures_every(self) -> int:
        """Steps between measurements."""
        return max(1, self.steps // 10) if self.every is None else self.every

    def granularity(self, parameter: ParameterReport, report: ModelReport) -> Granularity:
        """Always ``"parameter"``, as long as nothing is known."""
        return "parameter"
