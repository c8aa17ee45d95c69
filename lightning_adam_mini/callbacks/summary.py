"""Effective learning rates as a few numbers a parameter: one a block where blocks are few, min, median and max where they are many."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import parse_lines

PREFIX = "weight_lr"
"""First word of every tag: loggers sort tags, and the user's own (``loss``, ``train/``, ``val/``) are to come first."""

RATIO = "weight_lr_ratio"
"""First word of the tags of rates over the learning rate of their group, which is what blocks do: a scheduler moves all rates alike."""

VECTORS = "vectors"
"""The layer type of biases, norms and other vectors, where they are shown by kind."""

_WORDS = ("min", "median", "max")
_SAMPLE = 2**16
"""Of more blocks than this, the median and the histogram are those of an even sample."""
_GRID = 64
"""Quantiles of rows and of columns whose crossings stand for the elements in a histogram."""

_UNSAFE = re.compile(r"[^A-Za-z0-9_./ -]")
"""Characters that not every logger takes; MLflow is the strictest."""


def safe_tag(name: str) -> str:
    """A name in characters that every logger takes, without slashes."""
    return _UNSAFE.sub("_", name.replace("/", "."))


def group_tag(group: str, prefix: str = PREFIX) -> str:
    """First part of the tags of a layer type; TensorBoard shows together what is the same up to the first slash.

    Example:
        >>> group_tag("mlp_up")
        'weight_lr.mlp_up'
    """
    return f"{prefix}.{safe_tag(group)}"


@dataclass(frozen=True)
class ParameterRates:
    """The effective learning rates of one parameter.

    Attributes:
        name: Name of the parameter.
        group: Layer type, by which tags are grouped.
        layout: Its blocks.
        rates: For each margin of the layout, what ``spread`` gave of it: a tensor that broadcasts to the parameter.
        floor: ``eps / lr``, which no rate's inverse is below.
        heads: The lines that are heads, where the layout's own do not say so.
        lr: The learning rate of its group.
    """

    name: str
    group: str
    layout: BlockLayout
    rates: Sequence[Tensor]
    floor: float | Tensor = 0.0
    heads: BlockLayout | None = None
    lr: float | Tensor = 1.0

    @property
    def tag(self) -> str:
        """The parameter's tags after their first word, in characters that every logger takes."""
        return f"{safe_tag(self.group)}/{safe_tag(self.name)}"

    @property
    def is_vector(self) -> bool:
        """Whether it has one dimension at most, others than of size 1."""
        return sum(size > 1 for size in self.layout.shape) < 2

    def blocks(self, over_lr: bool = False) -> list[Tensor]:
        """One float32 value per block, in one dimension, for each margin: its rate, or the rate over the group's learning rate."""
        found = [margin.gather(rates).detach().float().flatten() for margin, rates in zip(self.layout.margins, self.rates, strict=True)]
        return [values / (self.lr if isinstance(self.lr, Tensor) or self.lr else math.nan) for values in found] if over_lr else found

    def elements(self) -> Tensor:
        """Rates of what has one of its own: an even sample of the blocks, or quantiles of rows crossed with those of columns."""
        if not self.layout.is_factored:
            return sample(self.blocks()[0])
        first, second = self.layout.margins
        apart = [d for d in range(len(first.shape)) if d not in first.dims and d not in second.dims]  # those of experts
        products = math.prod(first.shape[d] for d in apart)
        rows, columns = (
            sample(root.movedim(apart, list(range(len(apart)))).reshape(products, -1), _SAMPLE // _GRID**2) for root in self.roots()
        )
        rows = rows / columns.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(columns.dtype).tiny)
        rows, columns = (quantiles(root, min(_GRID, root.shape[1])) for root in (rows, columns))
        return (rows[:, :, None] * columns[:, None, :] + self.floor).reciprocal().flatten()

    def roots(self) -> list[Tensor]:
        """Square roots of the second moments over the learning rate, for each margin."""
        return [(rates.detach().float().reciprocal() - self.floor).clamp_min(0) for rates in self.rates]


@dataclass(frozen=True)
class Part:
    """Blocks of one parameter that are shown together: as many curves, or as min, median and max.

    Attributes:
        label: Role of the blocks in a fused projection, ``row`` or ``column`` of factored ones, else empty.
        index: Which of the margin's blocks; None for all.
        names: A name for each; empty if min, median and max are shown.
        margin: Which margin of the parameter's layout.
    """

    label: str
    index: tuple[int, ...] | None
    names: tuple[str, ...]
    margin: int = 0


@lru_cache(maxsize=4096)
def parts_of(layout: BlockLayout, max_heads: int) -> tuple[Part, ...]:
    """How the blocks of a parameter are shown: a whole tensor and up to ``max_heads`` heads a role each; rows and elements together.

    Example:
        >>> for part in parts_of(BlockLayout.grouped((12, 4), "q:2x2|k:2x2|v:4x1"), max_heads=64):
        ...     print(part)
        Part(label='q', index=(0, 1), names=('q.0', 'q.1'), margin=0)
        Part(label='k', index=(2, 3), names=('k.0', 'k.1'), margin=0)
        Part(label='v', index=(4, 5, 6, 7), names=(), margin=0)
    """
    if layout.is_factored:
        rows, columns = (parts_of(margin, max_heads) for margin in layout.margins)
        rows = tuple(replace(part, label=part.label or "row") for part in rows)
        return (*rows, *(replace(part, label="column", margin=1) for part in columns))
    if layout.num_blocks == 0 or layout.is_orthogonal:
        return ()
    if layout.num_blocks == 1:
        return (Part("", None, ("",)),)
    if layout.lines is None or len(layout.block_names()) != layout.num_blocks:
        return (Part("", None, ()),)
    lines: dict[str, dict[int, int]] = {}
    place = {name: i for i, name in enumerate(layout.block_names())}
    for role, head in parse_lines(layout.lines).expand():
        counts = lines.setdefault(role, {})
        block = place[role if head < 0 else f"{role}.{head}"]
        counts[block] = counts.get(block, 0) + 1
    names = layout.block_names()
    parts = []
    for role, counts in lines.items():
        each = len(counts) == 1 or (max(counts.values()) > 1 and len(counts) <= max_heads)
        parts.append(Part(role, tuple(counts), tuple(names[block] for block in counts) if each else ()))
    return tuple(parts)


@lru_cache(maxsize=4096)
def _index(index: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(index, device=device)


def summarize(
    parameters: Iterable[ParameterRates], max_heads: int, histograms: bool = False, vectors: bool = True
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Bring the numbers to show to the host, in one transfer.

    Args:
        parameters: The effective learning rates.
        max_heads: Heads of a role in one parameter that are shown each by itself.
        histograms: Whether to bring samples for histograms as well.
        vectors: Whether each vector is shown by itself; else min, median and max of all elements of a kind.

    Returns:
        The numbers by tag (first the rates, then the ratios of all but min and max to their group's learning rate, unless that is zero),
        and log10 of the rates by layer type (empty without ``histograms``).

    Example:
        >>> rates = torch.tensor([[0.1], [0.1], [0.2], [0.2]])
        >>> query = ParameterRates("q.weight", "query", BlockLayout.grouped((4, 4), "q:2x2"), [rates], lr=0.1)
        >>> sorted(summarize([query], max_heads=64)[0])
        ['weight_lr.query/q.weight/q.0', ..., 'weight_lr_ratio.query/q.weight/q.0', 'weight_lr_ratio.query/q.weight/q.1']
    """
    tags: list[str] = []
    pieces: list[Tensor] = []
    lrs: dict[str, float | Tensor] = {}
    many: dict[int, list[tuple[str, Tensor]]] = {}
    kinds: dict[str, list[ParameterRates]] = {}
    samples: dict[str, list[Tensor]] = {}
    for parameter in parameters:
        if histograms:
            samples.setdefault(parameter.group, []).append(parameter.elements().log10())
        if parameter.is_vector and not vectors:
            if not parameter.layout.num_blocks:
                continue
            kinds.setdefault(f"{VECTORS}/{safe_tag(parameter.group)}", []).append(parameter)
            continue
        margins, tag = parameter.blocks(), parameter.tag
        for part in parts_of(parameter.layout, max_heads):
            blocks = margins[part.margin]
            values = blocks if part.index is None else blocks.index_select(0, _index(part.index, blocks.device))
            if part.names:
                curves = [f"{tag}/{name}" if name else tag for name in part.names]
                tags += [f"{PREFIX}.{curve}" for curve in curves]
                pieces.append(values)
            else:
                whole = f"{tag}/{part.label}" if part.label else tag
                curves = [f"{whole}/median"]
                many.setdefault(len(values), []).append((whole, values))
            lrs.update(dict.fromkeys(curves, parameter.lr))
    for length, group in many.items():
        # Parameters with as many blocks share their launches, unless they are so large that stacking costs more than a launch.
        for some in [group] if length <= _SAMPLE else [[one] for one in group]:
            statistics = _statistics([values for _, values in some])
            tags += [f"{PREFIX}.{tag}/{word}" for word in _WORDS for tag, _ in some]
            pieces += statistics
    for tag, members in kinds.items():
        values, ratios = (_joined([v for member in members for v in member.blocks(over_lr)]) for over_lr in (False, True))
        tags += [*(f"{PREFIX}.{tag}/{word}" for word in _WORDS), f"{RATIO}.{tag}/median"]
        pieces += [*_statistics([values]), sample(ratios).median().view(1)]
    shown = len(tags)
    known = {id(lr): lr for lr in lrs.values() if isinstance(lr, Tensor)}
    pieces += [lr.detach().float().view(1) for lr in known.values()]
    pieces += [values for group in samples.values() for values in group]
    if not pieces:
        return {}, {}
    host = torch.cat([piece.to(pieces[0].device, non_blocking=True) for piece in pieces]).cpu()
    first, rest = host[: shown + len(known)].tolist(), host[shown + len(known) :]
    numbers = dict(zip(tags, first, strict=False))
    lr_of = dict(zip(known, first[shown:], strict=True))
    for curve, lr in lrs.items():
        if lr := lr_of[id(lr)] if isinstance(lr, Tensor) else lr:
            numbers[f"{RATIO}.{curve}"] = numbers[f"{PREFIX}.{curve}"] / lr
    lengths = [sum(len(values) for values in group) for group in samples.values()]
    return {tag: x for tag, x in numbers.items() if not math.isnan(x)}, dict(zip(samples, rest.split(lengths), strict=True))


def sample(values: Tensor, most: int = _SAMPLE) -> Tensor:
    """At most so many of the first dimension, evenly spaced."""
    return values[:: -(-len(values) // most)] if len(values) > most else values


def quantiles(values: Tensor, count: int) -> Tensor:
    """As many quantiles along the last dimension, at the middles of ``count`` equal shares.

    Example:
        >>> quantiles(torch.arange(12.0), 3)
        tensor([ 2.,  6., 10.])
    """
    at = torch.arange(1, 2 * count, 2, device=values.device) * values.shape[-1] // (2 * count)
    return values.sort(-1).values.index_select(-1, at)


def _joined(values: Sequence[Tensor]) -> Tensor:
    return torch.cat([v.to(values[0].device) for v in values])


def _statistics(values: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    if len(values) == 1:
        least, greatest = values[0].aminmax()
        return least.view(1), sample(values[0]).median().view(1), greatest.view(1)
    stacked = torch.stack([v.to(values[0].device) for v in values])
    least, greatest = stacked.aminmax(dim=1)
    return least, stacked.median(dim=1).values, greatest
