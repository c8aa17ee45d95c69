"""What a user says about single parameters: ``{glob: spec}``, from Python or YAML.

A glob is matched (case and all) against a parameter's name and its aliases; of several that match, the last one counts. A spec is

- ``"parameter"``, ``"tensor"``, ``"line"`` or ``"factored"``: how fine the blocks are, whatever the strategy thinks;
- ``"muon"``: no blocks, for it is a hidden matrix, whose updates are orthogonalised (under ``"normuon"`` as there);
- a line order such as ``"q:12x64|k:12x64|v:12x64"``: the heads, each of which is a block (lines of the value go as the strategy's
  ``value`` option says, if it has one); under ``"muon"`` and ``"normuon"``, where a hidden matrix is cut;
- a mapping that corrects what detection believes, before the strategy decides: ``role``, ``axis`` and either ``lines`` (a line order) or
  ``heads`` (a number, for a plain query, key or value). What kind of network it is part of is decided again with that, but
  the parameter itself is treated as part of a transformer, even within another network;
- ``{"dims": [1]}``: the layout itself, the dimensions to average over, with ``axis`` and ``lines`` if lines are grouped, and with
  ``crossed``, the dimensions that a second mean averages over, if rows and columns are to cross: ``{"dims": [1], "crossed": [0]}``;
- ``{"rows": 0, "cut": "q:768|k:768|v:768"}``: the matrices that are orthogonalised, outright: the arguments of a
  :class:`~lightning_adam_mini.MatrixLayout` (NorMuon's has a ``beta2``);
- a :class:`~lightning_adam_mini.layout.BlockLayout`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, cast

from lightning_adam_mini.detection.report import ModelReport, ParameterReport
from lightning_adam_mini.detection.roles import LETTERS, Role, Source
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import parse_lines, shorten
from lightning_adam_mini.matrix_layout import MatrixLayout
from lightning_adam_mini.partition.strategy import Granularity, did_you_mean

Override: TypeAlias = "str | Mapping[str, Any] | BlockLayout"
"""What can be said about a parameter; see the top of this module."""

_GRANULARITIES = ("parameter", "tensor", "line", "factored", "muon")
_KEYS = ("role", "heads", "axis", "lines", "dims", "crossed")
_MATRIX_KEYS = tuple(f.name for f in fields(MatrixLayout) if f.init and f.name != "shape")
_EXAMPLES = "'tensor', 'q:12x64|k:12x64|v:12x64', {'role': 'query', 'heads': 12}, {'dims': [1]}"


@dataclass(frozen=True)
class Resolved:
    """What the overrides come to for one parameter.

    Attributes:
        parameter: Its report, corrected.
        layout: Its layout, if the override gives it outright.
        granularity: How fine its blocks are, if the override says so. If neither is given, the strategy decides.
    """

    parameter: ParameterReport
    layout: BlockLayout | None = None
    granularity: Granularity | None = None


def resolve_overrides(report: ModelReport, overrides: Mapping[str, Override]) -> dict[str, Resolved]:
    """Apply each override to the parameters that it matches.

    Args:
        report: The parameters.
        overrides: Specs by glob.

    Returns:
        What was said of each parameter that is matched, by name.

    Raises:
        ValueError: If a glob matches nothing, or a spec cannot be read or does not fit the parameter.

    Example:
        >>> fc = ParameterReport("fc.weight", (8, 3), Role.LINEAR, Role.LINEAR, "an nn.Linear")
        >>> from lightning_adam_mini.detection.roles import Architecture
        >>> resolve_overrides(ModelReport(Architecture.MLP, "", (fc,)), {"fc.*": "line"})["fc.weight"].granularity
        'line'
    """
    check_overrides(overrides)
    last: dict[str, tuple[ParameterReport, str, Override]] = {}
    for glob, spec in overrides.items():
        matched = [p for p in report.parameters if any(fnmatchcase(name, glob) for name in (p.name, *p.aliases))]
        if not matched:
            raise ValueError(_no_match(glob, list(report.by_name)))
        last.update((p.name, (p, glob, spec)) for p in matched)
    resolved = {}
    for name, (parameter, glob, spec) in last.items():
        try:
            resolved[name] = _resolve(parameter, spec)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The override {glob!r}: {shorten(spec)} does not suit parameter {name!r} of shape {parameter.shape}: {error}"
            ) from error
    return resolved


def check_overrides(overrides: Any) -> None:
    """Refuse what is wrong with overrides whatever the model is.

    Raises:
        ValueError: If they are no mapping of specs by glob, or a spec cannot be read.
    """
    if not isinstance(overrides, Mapping):
        raise ValueError(f"Overrides are blocks by glob, such as {{'*': 'tensor'}}, not {shorten(overrides)}.")
    for glob, spec in overrides.items():
        if not isinstance(glob, str):
            raise ValueError(f"The override {glob!r}: {shorten(spec)} has no glob over names of parameters, such as '*.weight'.")
        try:
            _check_spec(spec)
        except (TypeError, ValueError) as error:
            raise ValueError(f"The override {glob!r}: {shorten(spec)} is not valid: {error}") from None


def _check_spec(spec: Any) -> None:
    if isinstance(spec, str):
        if spec not in _GRANULARITIES:
            _check_lines(spec)
    elif isinstance(spec, Mapping):
        _check_keys(spec)
        for key in ("axis", "heads", "rows"):
            if key in spec and spec[key] is not None:
                _whole_number(spec, key)
        for key in ("dims", "stacked", "crossed"):
            if spec.get(key) is not None:
                _dimensions(spec, key)
        if "role" in spec:
            _role(spec["role"])
        if spec.get("heads", 1) < 1:
            raise ValueError(f"{spec['heads']} heads are no heads; give a whole number from 1.")
        for key in ("lines", "cut"):
            if spec.get(key) is not None:
                if not isinstance(spec[key], str):
                    raise ValueError(f"{key} is {spec[key]!r}, but it has to be a line order, such as 'q:12x64|k:12x64|v:12x64'.")
                parse_lines(spec[key])
    elif not isinstance(spec, BlockLayout):
        raise ValueError(f"a spec is a string, a mapping or a BlockLayout, not {type(spec).__name__}; write one of {_EXAMPLES}.")


def _no_match(glob: str, names: list[str]) -> str:
    near = difflib.get_close_matches(glob, names, n=5, cutoff=0.5)
    if not near:
        parts = [part for part in glob.replace("?", "*").replace("*", ".").split(".") if part]
        near = [name for name in names if any(part in name for part in parts)][:5]
    listed = f"Near names: {', '.join(near)}." if near else f"The first names: {', '.join(names[:5])}."
    return f"The override {glob!r} matches no parameter. {listed} Globs are matched against whole names: '*.weight', 'blocks.*.attn.qkv.*'."


def _resolve(parameter: ParameterReport, spec: Override) -> Resolved:
    if isinstance(spec, BlockLayout):
        if spec.shape != parameter.shape:
            raise ValueError(f"the layout is for shape {spec.shape}; make it with BlockLayout({parameter.shape}, ...).")
        return Resolved(parameter, layout=spec)
    if isinstance(spec, str):
        return _from_string(parameter, spec)
    return _from_mapping(parameter, spec)


def _from_string(parameter: ParameterReport, spec: str) -> Resolved:
    if spec in _GRANULARITIES:
        return Resolved(parameter, granularity=cast("Granularity", spec))
    return Resolved(_with_lines(parameter, spec), granularity="head")


def _check_lines(spec: str) -> None:
    if ":" not in spec and "[" not in spec:
        raise ValueError(
            f"{shorten(spec)}{did_you_mean(spec, _GRANULARITIES)} is neither one of {', '.join(_GRANULARITIES)} nor a line order."
        )
    parse_lines(spec)


def _check_keys(spec: Mapping[str, Any]) -> None:
    is_matrix = "rows" in spec
    keys = _MATRIX_KEYS if is_matrix else _KEYS
    for key in spec:
        if key not in keys:
            beside = " beside 'rows'" if is_matrix else ""
            if key in _MATRIX_KEYS:
                raise ValueError(f"the key {key!r} goes with 'rows', the dimension of the rows of an orthogonalised matrix; give both.")
            raise ValueError(f"the key {key!r}{did_you_mean(key, keys)} is unknown; the keys{beside} are {', '.join(keys)}.")
    if not spec:
        raise ValueError(f"it says nothing; write one of {_EXAMPLES}.")
    if "dims" in spec and spec.keys() & {"role", "heads"}:
        raise ValueError("'dims' is the layout itself and cannot go with 'role' or 'heads'; leave those out.")
    if "crossed" in spec and "dims" not in spec:
        raise ValueError("'crossed' is a second mean beside that of 'dims'; give both, or write 'factored'.")
    if "lines" in spec and "heads" in spec:
        raise ValueError("'lines' and 'heads' both say what the heads are; give one of them.")


def _from_mapping(parameter: ParameterReport, spec: Mapping[str, Any]) -> Resolved:
    if "rows" in spec:
        stacked = _dimensions(spec, "stacked") if "stacked" in spec else ()
        matrices = {**spec, "rows": _whole_number(spec, "rows"), "stacked": stacked}
        return Resolved(parameter, layout=MatrixLayout(parameter.shape, **matrices))
    if "dims" in spec:
        crossed = None if spec.get("crossed") is None else _dimensions(spec, "crossed")
        dims = _dimensions(spec, "dims")
        return Resolved(parameter, layout=BlockLayout(parameter.shape, dims, spec.get("axis"), spec.get("lines"), crossed))
    if "axis" in spec:
        axis = _whole_number(spec, "axis")
        if not -len(parameter.shape) <= axis < len(parameter.shape):
            raise ValueError(f"there is no dimension {axis}; the dimensions are 0 to {len(parameter.shape) - 1}.")
        parameter = replace(parameter, axis=axis % len(parameter.shape))
    if "heads" in spec:
        role = _role(spec["role"]) if "role" in spec else parameter.role
        parameter = _with_lines(parameter, _lines_of_heads(parameter, role, _whole_number(spec, "heads")))
    if "lines" in spec:
        parameter = _with_lines(parameter, spec["lines"])
    if "role" in spec:
        role = _role(spec["role"])
        parameter = replace(parameter, role=role, owner=role, reason="the user says so", guess=False, source=Source.USER)
    return Resolved(parameter, granularity="head" if spec.keys() & {"heads", "lines"} else None)


def _dimensions(spec: Mapping[str, Any], key: str) -> tuple[int, ...]:
    if not isinstance(spec[key], (list, tuple)) or not all(isinstance(d, int) and not isinstance(d, bool) for d in spec[key]):
        raise ValueError(f"{key} is {spec[key]!r}, but it has to be a list of dimensions, such as [1].")
    return tuple(spec[key])


def _whole_number(spec: Mapping[str, Any], key: str) -> int:
    if not isinstance(spec[key], int) or isinstance(spec[key], bool):
        raise ValueError(f"{key} is {spec[key]!r}, but it has to be a whole number.")
    return spec[key]


def _role(name: str) -> Role:
    try:
        return Role(name)
    except ValueError:
        roles = [role.value for role in Role]
        raise ValueError(f"the role {name!r}{did_you_mean(name, roles)} is unknown; the roles are {', '.join(roles)}.") from None


def _lines_of_heads(parameter: ParameterReport, role: Role, heads: int) -> str:
    if role not in LETTERS:
        raise ValueError(
            f"the number of heads alone does not say what each line is, because the role is {role}; give 'lines' such as"
            " 'q:12x64|k:12x64|v:12x64', or a 'role' among query, key, value."
        )
    size = parameter.shape[parameter.axis] if parameter.shape else 1
    if heads < 1 or size % heads:
        raise ValueError(f"{heads} heads do not divide its {size} lines along dimension {parameter.axis}; give a divisor of {size}.")
    return f"{LETTERS[role]}:{heads}x{size // heads}"


def _with_lines(parameter: ParameterReport, lines: str) -> ParameterReport:
    order = parse_lines(lines)
    size = parameter.shape[parameter.axis] if parameter.axis < len(parameter.shape) else None
    if order.size != size:
        raise ValueError(f"the line order {shorten(lines)} has {order.size} lines, but there are {size} along dimension {parameter.axis}.")
    known = {letter: role for role, letter in LETTERS.items()}
    fused = Role.QKV if known.keys() & {*order.roles} else parameter.role  # gates of an LSTM are no attention
    role = known.get(order.roles[0], parameter.role) if len(order.roles) == 1 else fused
    return replace(parameter, lines=str(order), role=role, owner=role, reason="the user says so", guess=False, source=Source.USER)
