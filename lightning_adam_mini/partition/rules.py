"""SlimAdam's rules: which dimensions each parameter, or each type of layer, is averaged over, and where that comes from.

Rules are a small YAML or JSON file::

    format: slim-adam-rules
    version: 1
    by: layer_type          # or parameter
    provenance: {model: GPT, lr: 0.0003, steps: 1000, cutoff: 1.0, ...}
    rules:
      query: {dims: [1], snr: 3.1, tensors: 12}
      norm: {dims: [], snr: 0.7, tensors: 25}
      mlp_up: {dims: [1], crossed: [0], snr: 8.2, tensors: 12}

**Dimensions** are counted with the lines of a parameter first, whatever way it is stored: dimension 0 is that of output neurons, channels
or tokens. So ``[1]`` averages over fan_in and ``[0]`` over fan_out, for a Linear as for GPT-2's transposed Conv1D. ``[]`` averages nothing.

With ``crossed`` a second mean is kept, over these dimensions, and the two cross (a factored second moment). Such files are of version 2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from lightning_adam_mini.detection.report import ParameterReport
from lightning_adam_mini.layout import BlockLayout

_FORMAT = "slim-adam-rules"
_LEGEND = (
    "Dimensions: 0 is that of output neurons, channels or tokens, so [0] averages over fan_out and all others together over fan_in;"
    " [1] x [0] keeps both means."
)
By = Literal["layer_type", "parameter"]


@dataclass(frozen=True)
class Rule:
    """What is averaged.

    Attributes:
        dims: The dimensions, lines first.
        snr: The averaged signal-to-noise ratio over these dimensions; where nothing is averaged, the highest of any; None if unknown.
        tensors: How many tensors it was measured on.
        crossed: The dimensions of a second mean that crosses the first; None for one mean.
    """

    dims: tuple[int, ...]
    snr: float | None = None
    tensors: int = 1
    crossed: tuple[int, ...] | None = None

    def layout(self, parameter: ParameterReport) -> BlockLayout:
        """The layout that the rule makes.

        Raises:
            ValueError: If the rule has dimensions that the parameter does not have.
        """
        order = lines_first(parameter)
        if any(d >= len(order) for d in (*self.dims, *(self.crossed or ()))):
            raise ValueError(
                f"The rule of parameter {parameter.name!r} averages over dimensions {self}, but its shape is {parameter.shape}."
                " Derive rules from a model of the same kind, or override the parameter."
            )
        crossed = None if self.crossed is None else tuple(order[d] for d in self.crossed)
        return BlockLayout(parameter.shape, tuple(order[d] for d in self.dims), crossed=crossed)

    def __str__(self) -> str:
        if not self.dims:
            return "nothing"
        return str(list(self.dims)) + ("" if self.crossed is None else f" x {list(self.crossed)}")


@dataclass(frozen=True)
class SlimAdamRules:
    """The rules of a model.

    Attributes:
        by: What ``rules`` are keyed by.
        rules: A rule for each parameter name or layer type.
        provenance: Where they come from: model, learning rate, steps, cut-off and the like.

    Example:
        >>> rules = SlimAdamRules("layer_type", {"query": Rule((1,), 3.1, 12)}, {"lr": 3e-4})
        >>> SlimAdamRules.from_plain(rules.to_plain()) == rules
        True
    """

    by: By
    rules: dict[str, Rule]
    provenance: dict[str, Any] = field(default_factory=dict)

    def rule_for(self, parameter: ParameterReport) -> Rule | None:
        """The rule of a parameter, or None.

        Rules by parameter are found whatever prefix the model has here or had there, if only one fits.
        """
        if self.by == "layer_type":
            return self.rules.get(layer_type(parameter))
        for name in (parameter.name, *parameter.aliases):
            if name in self.rules:
                return self.rules[name]
        near = [key for key in self.rules if parameter.name.endswith(f".{key}") or key.endswith(f".{parameter.name}")]
        return self.rules[near[0]] if len(near) == 1 else None

    def layout_for(self, parameter: ParameterReport) -> BlockLayout | None:
        """The layout that the parameter's rule makes, or None without a rule.

        Raises:
            ValueError: If the rule has dimensions that the parameter does not have.
        """
        rule = self.rule_for(parameter)
        return None if rule is None else rule.layout(parameter)

    def table(self) -> str:
        """The rules as plain text: where they come from, then one line a rule."""
        heading = ["layer type" if self.by == "layer_type" else "parameter", "tensors", "averages over", "SNR"]
        rows = [[key, str(rule.tensors), str(rule), "-" if rule.snr is None else f"{rule.snr:.3g}"] for key, rule in self.rules.items()]
        widths = [max(len(row[i]) for row in [heading, *rows]) for i in range(len(heading))]
        where = ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in self.provenance.items())
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [heading, *rows]]
        return "\n".join([f"SlimAdam rules by {self.by.replace('_', ' ')}: {where or 'of unknown origin'}", "", *lines, "", _LEGEND])

    # ---- files --------------------------------------------------------------------------------------------------------

    def to_plain(self) -> dict[str, Any]:
        """The rules as mappings, lists, strings and numbers."""
        rules = {
            key: {
                "dims": list(rule.dims),
                **({} if rule.crossed is None else {"crossed": list(rule.crossed)}),
                "snr": rule.snr,
                "tensors": rule.tensors,
            }
            for key, rule in self.rules.items()
        }
        version = 1 if all(rule.crossed is None for rule in self.rules.values()) else 2  # which an older reader has to refuse
        return {"format": _FORMAT, "version": version, "by": self.by, "provenance": dict(self.provenance), "rules": rules}

    @classmethod
    def from_plain(cls, plain: Any, source: str = "these rules") -> SlimAdamRules:
        """The inverse of :meth:`to_plain`.

        Raises:
            ValueError: If ``plain`` is something else, or of a newer version. Names ``source``.
        """
        if not isinstance(plain, Mapping) or plain.get("format") != _FORMAT:
            raise ValueError(f"{source}: no rules of SlimAdam, because they begin with 'format: {_FORMAT}'. SNRMonitor writes such a file.")
        if plain.get("version") not in (1, 2):
            raise ValueError(f"{source}: version {plain.get('version')!r} is not known here, only 1 and 2. Derive the rules again.")
        if plain.get("by") not in ("layer_type", "parameter"):
            raise ValueError(f"{source}: 'by' is {plain.get('by')!r}, but rules are by layer_type or by parameter.")
        rules = plain.get("rules")
        if not isinstance(rules, Mapping) or not rules:
            raise ValueError(f"{source}: there are no rules in it. Derive them from a run that measured something.")
        return cls(plain["by"], {str(key): _rule(key, rule, source) for key, rule in rules.items()}, dict(plain.get("provenance") or {}))

    def save(self, file: str | Path) -> None:
        """Write the rules: as JSON if the file's name ends so, else as YAML."""
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        plain = self.to_plain()
        text = json.dumps(plain, indent=1) if file.suffix == ".json" else yaml.safe_dump(plain, sort_keys=False, default_flow_style=None)
        file.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, file: str | Path) -> SlimAdamRules:
        """Read rules.

        Raises:
            ValueError: If there is no such file, or it does not hold rules.
        """
        file = Path(file)
        if not file.is_file():
            raise ValueError(f"There is no file {file} to read SlimAdam's rules from. SNRMonitor writes one at the end of an AdamW run.")
        text = file.read_text(encoding="utf-8")
        try:
            plain = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        except (ValueError, yaml.YAMLError) as error:
            raise ValueError(f"{file} cannot be read as {'JSON' if file.suffix == '.json' else 'YAML'}: {error}") from error
        return cls.from_plain(plain, str(file))


def _rule(key: Any, rule: Any, source: str) -> Rule:
    given: Mapping[str, Any] = rule if isinstance(rule, Mapping) else {}
    dims, snr, crossed = given.get("dims"), given.get("snr"), given.get("crossed")
    for numbers in (dims, [] if crossed is None else crossed):
        if not isinstance(numbers, list) or not all(isinstance(d, int) and d >= 0 for d in numbers):
            raise ValueError(
                f"{source}: the rule of {key!r} is {rule!r}, but it has to give dims, a list of whole numbers (as is crossed)."
            )
    return Rule(
        _sorted(dims), None if snr is None else float(snr), int(given.get("tensors", 1)), None if crossed is None else _sorted(crossed)
    )


def _sorted(dims: Any) -> tuple[int, ...]:
    return tuple(sorted(set(dims)))


def layer_type(parameter: ParameterReport) -> str:
    """What a rule by layer type is keyed by: the role, with the number of dimensions where it is not a matrix or a vector.

    Example:
        >>> from lightning_adam_mini.detection.roles import Role
        >>> layer_type(ParameterReport("conv1.weight", (8, 3, 3, 3), Role.FIRST_CONV, Role.FIRST_CONV, "an nn.Conv2d"))
        'first_conv_4d'
    """
    dims = len(parameter.shape)
    return parameter.role.value if dims <= 2 else f"{parameter.role.value}_{dims}d"


def is_matrix(parameter: ParameterReport) -> bool:
    """Whether SlimAdam may average the parameter at all: vectors keep one second moment per element."""
    return sum(size > 1 for size in parameter.shape) > 1


def lines_first(parameter: ParameterReport) -> list[int]:
    """The dimensions of a parameter in the order in which rules count them."""
    return [parameter.axis, *(d for d in range(len(parameter.shape)) if d != parameter.axis)] if parameter.shape else []
