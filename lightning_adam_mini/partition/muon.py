"""Muon and NorMuon: hidden matrices step by orthogonalised momentum, and everything else as in ``"auto"``.

Muon (Keller Jordan, 2024; Moonlight, arXiv 2502.16982) is for matrices between one hidden layer and the next. What reads tokens, positions
or pixels, what gives logits, and vectors stay with Adam, as there. So do depthwise convolutions: each of their kernels reads one channel by
itself and is a matrix of one row, which orthogonalisation would only normalise.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lightning_adam_mini._warnings import warn
from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import ATTENTION, CONVOLUTIONS, FEED_FORWARD, MATRICES, RECURRENT, Role
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.matrix_layout import MatrixLayout
from lightning_adam_mini.partition.doubts import likely_heads, unknown_cut, unknown_matrices
from lightning_adam_mini.partition.factored import AutoPartition
from lightning_adam_mini.partition.strategy import Granularity, matrix_layout, register_strategy

_HIDDEN = (
    ATTENTION
    | FEED_FORWARD
    | RECURRENT
    | {Role.ATTN_OUT, Role.ATTN_OTHER, Role.TOKEN_MIX, Role.MODULATION, Role.ROUTER, Role.LINEAR}
    | {Role.CONV, Role.GRAPH_CONV, Role.LORA_A, Role.LORA_B}
)
_LINEAR = {Role.LINEAR, Role.MLP_UP, Role.MLP_DOWN}
_MAYBE_OUTPUTS = _LINEAR | {Role.CONV, Role.GRAPH_CONV}
_WEIGHTS = (MATRICES - {Role.ATTN_OTHER}) | CONVOLUTIONS | RECURRENT | {Role.GRAPH_CONV}


@register_strategy("muon")
@dataclass(frozen=True, kw_only=True)
class MuonPartition(AutoPartition):
    """Hidden matrices by Muon, which keeps a momentum and no second moment; the rest as in ``"auto"``.

    Hidden are: attention's and feed-forward layers' matrices, each expert's by itself; convolutions but the first, the last if no layer
    reads it, and depthwise ones, as outputs x the rest; recurrent and graph layers; adapters; and other linear layers inside the network.

    Args:
        cut: Where a fused projection is cut whose line order is known: the lines of each ``"role"`` (query, key, value; gates of an LSTM)
            are a matrix, or those of each ``"head"``, or all lines are one (``"none"``).
        convolutions: Whether convolutions are hidden matrices.
        momentum: Decay of their momentum, which is Nesterov's.
        iterations: Newton-Schulz iterations.
        precision: Dtype of these. [default: bfloat16 on GPUs, float32 elsewhere]

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> from lightning_adam_mini.detection.roles import Architecture
        >>> query = ParameterReport("q.weight", (8, 5), Role.QUERY, Role.QUERY, "")
        >>> table = ParameterReport("wte.weight", (50, 5), Role.TOKEN_EMBEDDING, Role.TOKEN_EMBEDDING, "an nn.Embedding")
        >>> for layout in MuonPartition()(ModelReport(Architecture.TRANSFORMER, "", (query, table))).values():
        ...     print(layout)
        orthogonalised
        mean over dim 1
    """

    needs_heads: ClassVar[bool] = True  # a fused projection written by hand is cut where running shows its order
    by_network: ClassVar[bool] = False

    cut: Literal["role", "head", "none"] = "role"
    convolutions: bool = True
    momentum: float = 0.95
    iterations: int = 5
    precision: Literal["float32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("convolutions", isinstance(self.convolutions, bool), "true or false")
        self._check("momentum", _is_decay(self.momentum), "a number from 0 to below 1")
        whole = isinstance(self.iterations, int) and not isinstance(self.iterations, bool)
        self._check("iterations", whole and self.iterations >= 1, "a whole number from 1 on")

    def _check(self, name: str, is_right: bool, what: str) -> None:
        if not is_right:
            raise ValueError(f"{name}={getattr(self, name)!r} is not an option of {type(self).__name__}, because {name} is {what}.")

    def granularity(self, parameter: ParameterReport, report: ModelReport) -> Granularity | BlockLayout:
        """The matrices of a hidden matrix; of what is none, how fine its blocks are."""
        return self._hidden(parameter, report) or super().granularity(parameter, report)

    def layout(self, parameter: ParameterReport, granularity: Granularity) -> BlockLayout:
        """The layout of ``granularity`` for one parameter; where a user gives a hidden matrix a line order, it is cut by that."""
        is_cut = granularity == "head" and parameter.role in _HIDDEN and len(_long(parameter)) > 1
        if granularity == "muon" or is_cut:
            return matrix_layout(parameter, self.cut, **self._rule())
        return super().layout(parameter, granularity)

    def __call__(self, report: ModelReport, names: Collection[str] | None = None, strict: bool = False) -> dict[str, BlockLayout]:
        """The layout of each parameter in ``report``, or of those in ``names`` only.

        Raises:
            ValueError: If ``strict`` and it is not known where a fused projection is cut.

        Warns:
            AdamMiniWarning: The same, if not ``strict``; and if it is not known whether a matrix is hidden: such go as in ``"auto"``.
        """
        asked = [p for p in report.parameters if names is None or p.name in names]
        hidden = [p for p in asked if self._hidden(p, report) is not None]
        uncut = [p for p in hidden if p.lines is None and self._is_fused(p)]
        if uncut and strict:
            raise ValueError(unknown_cut(uncut, report))
        unread = {p.name for p in asked if p.role in _LINEAR and self._may_be_hidden(p) and _is_output(p, report)}
        unknown = [p for p in asked if p.name in unread or self._is_unknown(p)]
        messages = [unknown_matrices(unknown, report)] if unknown else []
        messages += [unknown_cut(uncut, report)] if uncut else []
        likely = [p for p in hidden if p.lines is not None and p.guess] if self.cut == "head" else []
        messages += [likely_heads(likely, report)] if likely else []
        if messages:
            warn(" ".join(messages))
        return super().__call__(report, names, strict)

    def _rule(self) -> dict[str, Any]:
        return {"momentum": self.momentum, "iterations": self.iterations, "precision": self.precision}

    def _hidden(self, parameter: ParameterReport, report: ModelReport) -> MatrixLayout | None:
        """Its matrices, if it is a hidden matrix."""
        if not self._may_be_hidden(parameter) or self._is_unknown(parameter) or _is_output(parameter, report):
            return None
        try:
            return matrix_layout(parameter, self.cut, **self._rule())
        except ValueError:  # of one row only
            return None

    def _may_be_hidden(self, p: ParameterReport) -> bool:
        if p.role is Role.CONV:  # one with one input channel is depthwise, of whatever class it is
            return self.convolutions and (p.axis > 0 or p.shape[1] > 1)
        return p.role in _HIDDEN and len(_long(p)) > 1 and not (p.role is Role.ATTN_OTHER and len(p.shape) > 2)  # a GAT's vectors

    def _is_unknown(self, p: ParameterReport) -> bool:
        """Whether it may be a hidden matrix, but its role, or which of its dimensions are rows, is only guessed."""
        if p.role is Role.OTHER:
            return p.guess and len(_long(p)) > 1
        # Of attention's a guess is about heads.
        is_guessed = p.guess and p.role not in ATTENTION
        is_stack = len(p.shape) == 3 and p.axis > 0 and p.role in FEED_FORWARD | {Role.GRAPH_CONV}
        is_odd = len(_long(p)) > 2 and not (is_stack or p.role is Role.CONV)
        return self._may_be_hidden(p) and (is_guessed or is_odd)

    def _is_fused(self, p: ParameterReport) -> bool:
        fused = {"role": {Role.QKV, Role.MLP_GATE_UP}, "head": ATTENTION | {Role.MLP_GATE_UP}, "none": set[Role]()}
        return p.role in fused[self.cut]


@register_strategy("normuon")
@dataclass(frozen=True, kw_only=True)
class NorMuonPartition(MuonPartition):
    """Hidden matrices by NorMuon (arXiv 2510.05491): Muon, with a second moment of each row's update; the rest as in ``"auto"``.

    Args:
        beta2: Decay of that second moment. Other options are those of :class:`MuonPartition`.

    Raises:
        ValueError: If an option is out of range.

    Example:
        >>> from lightning_adam_mini.detection.roles import Architecture
        >>> query = ParameterReport("q.weight", (8, 5), Role.QUERY, Role.QUERY, "")
        >>> print(NorMuonPartition()(ModelReport(Architecture.TRANSFORMER, "", (query,)))["q.weight"])
        orthogonalised, a second moment per row
    """

    beta2: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("beta2", _is_decay(self.beta2), "a number from 0 to below 1")

    def _rule(self) -> dict[str, Any]:
        return {**super()._rule(), "beta2": self.beta2}


def _is_decay(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def _long(p: ParameterReport) -> list[int]:
    return [size for size in p.shape if size != 1]


def _is_output(parameter: ParameterReport, report: ModelReport) -> bool:
    """Whether a layer seems to give an output of the network that detection has not found, because no other reads as many channels.

    What a linear layer gives may be split, and what a convolution gives may be flattened before it is read. The last convolution, on
    images as on graphs, gives an output also where the first layer has as many inputs.
    """
    if parameter.role not in _MAYBE_OUTPUTS:
        return False
    part, outputs = report.part_of(parameter), parameter.shape[parameter.axis]
    beside = [p for p in report.parameters if report.part_of(p) == part]
    matrices = [p for p in beside if p.role in _WEIGHTS and len(_long(p)) > 1]
    behind = matrices[matrices.index(parameter) :] if parameter in matrices else []
    read = {_inputs(p) for p in matrices[1:] if p.role not in (Role.FIRST_CONV, Role.PATCH_EMBEDDING)}
    read |= {p.shape[0] for p in beside if p.role is Role.NORM and p.shape}
    every = {_inputs(p) for p in matrices} | read
    if parameter.role in _LINEAR:
        return not any(size > 1 and outputs % size == 0 for size in every)
    return not any(size % outputs == 0 for size in every) or (outputs not in read and all(p.shape[p.axis] == outputs for p in behind))


def _inputs(p: ParameterReport) -> int:
    return p.shape[p.axis - 1] if p.axis else p.shape[1]
