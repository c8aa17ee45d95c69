"""SlimAdam's rules from measured signal-to-noise ratios."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_adam_mini.analysis.snr_history import average_snr
from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import CONVOLUTIONS
from lightning_adam_mini.partition.factored import FactoredPartition
from lightning_adam_mini.partition.rules import By, Rule, SlimAdamRules, is_matrix, layer_type, lines_first


def derive_rules(
    report: ModelReport,
    averages: Mapping[str, Mapping[Any, float]],
    cutoff: float = 1.0,
    by: By = "layer_type",
    provenance: Mapping[str, Any] | None = None,
    factored: bool = False,
) -> SlimAdamRules:
    """Derive SlimAdam's rules: average over the dimensions whose signal-to-noise ratio is the highest, if it exceeds the cut-off.

    Vectors are never averaged. Of several sets with the same ratio the largest is taken. A convolution is averaged over its fan_out, its
    fan_in (the sides of its kernel with its inputs) or both: three numbers along one side of a kernel are always alike, and would win.

    With ``factored`` the rule is the cheapest of those above the cut-off instead, and rows that cross columns are among them. All of a
    tensor together is not.

    Args:
        report: The model that was measured.
        averages: Averaged signal-to-noise ratios by parameter name and dimensions of the tensor (or ``"crossed"``), as
            :meth:`~lightning_adam_mini.analysis.SNRHistory.averages` gives them.
        cutoff: What the ratio has to exceed. The paper's is 1.
        by: ``"layer_type"`` averages over depth, all tensors of a type, which gives rules for other widths and depths; ``"parameter"``
            decides for each tensor.
        provenance: What to write down about the run.
        factored: Whether rules may keep the means of rows and of columns, which is not SlimAdam's. It needs their ratios.

    Raises:
        ValueError: If nothing was measured, or the cut-off is negative.

    Example:
        >>> from lightning_adam_mini.detection.roles import Architecture, Role
        >>> fc = ParameterReport("fc.weight", (8, 3), Role.LINEAR, Role.LINEAR, "an nn.Linear")
        >>> snr = {"fc.weight": {(0,): 0.4, (1,): 2.5, (0, 1): 0.3}}
        >>> derive_rules(ModelReport(Architecture.MLP, "", (fc,)), snr).rules["linear"]
        Rule(dims=(1,), snr=2.5, tensors=1, crossed=None)
        >>> snr = {"fc.weight": {(0,): 0.4, (1,): 0.8, (0, 1): 0.3, "crossed": 6.0}}
        >>> derive_rules(ModelReport(Architecture.MLP, "", (fc,)), snr, factored=True).rules["linear"]
        Rule(dims=(1,), snr=6.0, tensors=1, crossed=(0,))
    """
    if not cutoff >= 0:
        raise ValueError(f"The cut-off is {cutoff}, but a signal-to-noise ratio is never negative. Give 0 or more; the paper's is 1.")
    groups = group_ratios(report, averages, by)
    if not groups:
        raise ValueError(
            "No signal-to-noise ratio of a parameter of this model was measured, so no rules can be derived. Measure more often"
            " (SNRMonitor(every=...)), or in a longer run."
        )
    rules = {}
    for key, ratios in groups.items():
        crossed = ratios.pop("crossed", {})
        members = [report.by_name[name] for name in dict.fromkeys(name for found in ratios.values() for name in found)]
        if members[0].role in CONVOLUTIONS:
            ratios = {subset: ratios[measured] for subset, measured in fans(ratios, len(members[0].shape)).values()}
        known = {subset: snr for subset, found in ratios.items() if not math.isnan(snr := average_snr(found.values()))}
        best = max(known, key=lambda subset: (known[subset], len(subset), subset), default=())
        averaged = any(map(is_matrix, members)) and known.get(best, 0.0) > cutoff
        rules[key] = Rule(best if averaged else (), known.get(best), len(members))
        if factored and any(map(is_matrix, members)):
            candidates = [Rule(subset, snr, len(members)) for subset, snr in known.items()]
            candidates = [rule for rule in candidates if any(rule.layout(p).num_blocks > 1 for p in members)]
            if not math.isnan(snr := average_snr(crossed.values())):
                candidates.append(_crossed([report.by_name[name] for name in crossed], snr))
            rules[key] = _cheapest(candidates, members, cutoff)
    return SlimAdamRules(by, rules, {**(provenance or {}), "cutoff": cutoff, "depth_averaged": by == "layer_type"})


def _crossed(measured: Sequence[ParameterReport], snr: float) -> Rule:
    """The rule by which the largest of some tensors is factored."""
    largest = max(measured, key=lambda p: math.prod(p.shape))
    order = lines_first(largest)
    margins = FactoredPartition().layout(largest, "factored").margins
    dims, crossed = (tuple(sorted(order.index(d) for d in margin.dims)) for margin in margins)
    return Rule(dims, snr, len(measured), crossed)


def _cheapest(rules: Sequence[Rule], members: Sequence[ParameterReport], cutoff: float) -> Rule:
    """That of the fewest second moments whose ratio exceeds the cut-off, of as many the one of the highest ratio; else none."""
    snrs = [rule.snr for rule in rules if rule.snr is not None]
    above = [(snr, rule) for snr, rule in zip(snrs, rules, strict=True) if snr > cutoff]
    if not above:
        return Rule((), max(snrs, default=None), len(members))
    return min(above, key=lambda pair: (sum(pair[1].layout(p).num_blocks for p in members), -pair[0]))[1]


def fans(ratios: Mapping[Any, Any], ndim: int) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """What of ``ratios`` is ``fan_out``, ``fan_in`` and ``all``: the dimensions, and the same without those of length 1, as measured.

    Args:
        ratios: Anything by measured dimensions, lines first.
        ndim: Number of dimensions.

    Example:
        >>> fans(dict.fromkeys([(0,), (2,), (3,), (2, 3), (0, 2, 3)]), ndim=4)["fan_in"]
        ((1, 2, 3), (2, 3))
    """
    longer = tuple(sorted({d for dims in ratios if dims != "crossed" for d in dims}))
    found = {
        "fan_out": ((0,), (0,)),
        "fan_in": (tuple(range(1, ndim)), tuple(d for d in longer if d)),
        "all": (tuple(range(ndim)), longer),
    }
    return {kind: both for kind, both in found.items() if both[1] in ratios}


def group_ratios(
    report: ModelReport, averages: Mapping[str, Mapping[Any, float]], by: By = "layer_type"
) -> dict[str, dict[Any, dict[str, float]]]:
    """Signal-to-noise ratios by layer type (or parameter), by dimensions counted lines first, and by parameter in the order of the model.

    Those of rows that cross columns, where they were measured, come last, under ``"crossed"``.

    Args:
        report: The model that was measured.
        averages: Ratios by parameter name and dimensions of the tensor, or ``"crossed"``.
        by: ``"layer_type"``, or ``"parameter"`` for groups of one.
    """
    groups: dict[str, list[ParameterReport]] = {}
    for p in report.parameters:
        if averages.get(p.name):
            groups.setdefault(layer_type(p) if by == "layer_type" else p.name, []).append(p)
    out: dict[str, dict[Any, dict[str, float]]] = {}
    for key, members in groups.items():
        orders = {p.name: lines_first(p) for p in members}
        subsets = {tuple(sorted(orders[p.name].index(d) for d in dims)) for p in members for dims in averages[p.name] if dims != "crossed"}
        for subset in sorted(subsets, key=lambda subset: (len(subset), subset)):
            found = {}
            for p in members:
                # To average over a dimension of length 1, in a 1x1 convolution, makes no difference to a tensor.
                dims = tuple(sorted(d for d in (orders[p.name][i] for i in subset) if p.shape[d] > 1))
                if dims in averages[p.name]:
                    found[p.name] = averages[p.name][dims]
            out.setdefault(key, {})[subset] = found
        crossed = {p.name: averages[p.name]["crossed"] for p in members if "crossed" in averages[p.name]}
        if crossed:
            out.setdefault(key, {})["crossed"] = crossed
    return out
