"""Monitoring: what AdamMiniCallback logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lightning_adam_mini.callbacks.distribution import misconfiguration
from lightning_adam_mini.callbacks.heatmap import require_matplotlib
from lightning_adam_mini.partition.strategy import did_you_mean


@dataclass(frozen=True)
class Monitoring:
    """What :class:`~lightning_adam_mini.AdamMiniCallback` logs of the blocks' effective learning rates, besides the rates themselves.

    Args:
        vectors: Whether biases, norms and other vectors have curves each; else there are min, median and max of each kind of them.
        histograms: Whether to log a histogram of log10 of the rates for each layer type (TensorBoard only).
        heatmap: Whether to log figures at the end of each validation and of the fit (TensorBoard only; needs matplotlib): layers x heads
            where heads are known, whatever the blocks are, and layers x quantiles of the rows and columns of other matrices and
            convolutions.
        max_heads: Heads of a role in one parameter that have a curve each; of more there are min, median and max.

    Raises:
        MisconfigurationException: If a switch is neither True nor False, or ``max_heads`` is no whole number from 1.
        ModuleNotFoundError: If ``heatmap`` is asked for and matplotlib is missing.

    Example:
        >>> Monitoring(histograms=True)
        Monitoring(vectors=False, histograms=True, heatmap=False, max_heads=64)
    """

    vectors: bool = False
    histograms: bool = False
    heatmap: bool = False
    max_heads: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "max_heads" and not isinstance(value, bool):
                raise misconfiguration(f"Monitoring has no {field.name}={value!r}. Give True or False.")
        if not isinstance(self.max_heads, int) or isinstance(self.max_heads, bool) or self.max_heads < 1:
            raise misconfiguration(f"Monitoring(max_heads={self.max_heads!r}) leaves no head to log. Give a whole number from 1.")
        if self.heatmap:
            require_matplotlib()


def what_to_monitor(monitoring: Any, *, monitor: bool = True, histograms: bool = False, heatmap: bool = False) -> Monitoring | None:
    """What the arguments of a callback ask for; None for nothing.

    Args:
        monitoring: A :class:`Monitoring`, a mapping of its arguments, or whether to monitor at all.
        monitor: The older spelling of ``monitoring=False``.
        histograms: The older spelling of ``Monitoring(histograms=True)``.
        heatmap: The older spelling of ``Monitoring(heatmap=True)``.

    Raises:
        MisconfigurationException: If an argument is none of these, or figures or histograms are asked for without monitoring.
    """
    switches = {"monitor": monitor, "histograms": histograms, "heatmap": heatmap}
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise misconfiguration(f"AdamMiniCallback has no {name}={value!r}. Give True or False.")
    asked = {name: value for name, value in switches.items() if name != "monitor" and value}
    if isinstance(monitoring, Mapping):
        names = [field.name for field in fields(Monitoring)]
        for name in monitoring:
            if name not in names:
                raise misconfiguration(f"Monitoring has no {name!r}{did_you_mean(name, names)}. It takes {', '.join(names)}.")
        monitoring = Monitoring(**monitoring)
    if isinstance(monitoring, bool):
        monitoring = Monitoring() if monitoring else None
    elif not isinstance(monitoring, Monitoring):
        raise misconfiguration(f"AdamMiniCallback has no monitoring={monitoring!r}. Give True, False or a Monitoring(...).")
    if monitor and monitoring is not None:
        return replace(monitoring, **asked)
    if asked:
        raise misconfiguration(f"AdamMiniCallback draws no {' or '.join(asked)} without monitoring. Turn it on, or leave them out.")
    return None
