"""The audit: does a partition follow the Hessian of this model on this batch?"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from inspect import isroutine
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_adam_mini.analysis.audit.batch import batch_loss, batch_size, take_examples
from lightning_adam_mini.analysis.audit.report import AuditReport
from lightning_adam_mini.analysis.audit.segments import Segment, split_segments
from lightning_adam_mini.analysis.audit.verdict import decide
from lightning_adam_mini.analysis.hessian.curvature import Curvature, Loss, choose_parameters, differentiate_twice
from lightning_adam_mini.analysis.hessian.structure import Held, Mass
from lightning_adam_mini.detection import inspect_model
from lightning_adam_mini.detection.report import ModelReport
from lightning_adam_mini.layout import BlockLayout

Progress = Callable[[int, int], None]
"""Told how many columns are done, and of how many."""

_LARGE = 2**22
"""Elements from which columns are taken one at a time."""


def audit_partition(
    module: nn.Module,
    batch_or_loss: Any,
    layouts: Mapping[str, BlockLayout],
    *,
    report: ModelReport | None = None,
    seconds: float = 120.0,
    columns: int = 32,
    examples: int = 16,
    seed: int = 0,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: Progress | None = None,
) -> AuditReport:
    """Compare the blocks of each parameter with the Hessian of the loss, and with second moments.

    Of each parameter (of each role in a fused projection) some exact columns of its Hessian are computed, elements with larger gradients
    being drawn more often and weighted less. What lies within blocks is compared with blocks of the same sizes at random, with finer, with
    coarser layouts, and with rows crossed with columns; see :mod:`lightning_adam_mini.analysis.hessian.structure`. Second moments are
    means of squared gradients over up to 8 parts of the batch; what they explain is asked of one half by the other.

    Args:
        module: The module, with its values, in the mode (train, eval) that it is to be looked at. It is left as it is.
        batch_or_loss: A batch, if the module has a ``training_step`` or returns a ``loss``; or a function of the module that gives the
            loss, one number.
        layouts: The blocks, by parameter, as :func:`~lightning_adam_mini.partition_model` gives them. Those that orthogonalise are left
            out.
        report: What :func:`~lightning_adam_mini.inspect_model` said of the module. [default: it is asked]
        seconds: About how long it may take. What is not done by then stays undecided; an interrupt (Ctrl-C) keeps what is done as well.
        columns: Columns of each piece's Hessian, at most. A column costs a backward pass through the gradient's graph.
        examples: Examples of the batch that are used, the first ones. A function decides itself what it looks at.
        seed: Of the sample, and of the random numbers that the loss draws.
        context: What each forward pass on a batch is made in, such as autocast.
        progress: Told how many columns are done, and of how many.

    Returns:
        The findings, of which ``print`` shows a table; ``overrides`` are what to paste.

    Raises:
        ValueError: If the loss is no finite number with a gradient, an operation has no second derivative, the module is sharded or on the
            meta device, or a layout is not that of its parameter.

    Example:
        >>> from lightning_adam_mini import partition_model
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(8, 4)
        >>> audit = audit_partition(model, lambda m: m(x).square().mean(), partition_model(model, "tensor"))
        >>> [str(finding.verdict) for finding in audit.findings][:1]
        ['matches']
    """
    found = audit_partitions(
        module,
        batch_or_loss,
        {"": layouts},
        report=report,
        seconds=seconds,
        columns=columns,
        examples=examples,
        seed=seed,
        context=context,
        progress=progress,
    )
    return found[""]


def audit_partitions(
    module: nn.Module,
    batch_or_loss: Any,
    partitions: Mapping[str, Mapping[str, BlockLayout]],
    *,
    report: ModelReport | None = None,
    seconds: float = 120.0,
    columns: int = 32,
    examples: int = 16,
    seed: int = 0,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    progress: Progress | None = None,
) -> dict[str, AuditReport]:
    """Audit several partitions by the same columns, in the time of one.

    Args:
        module: The module; this and all that follows but ``partitions`` as for :func:`audit_partition`.
        batch_or_loss: A batch or a loss.
        partitions: The layouts of each, by what it is called.
        report: What :func:`~lightning_adam_mini.inspect_model` said of the module.
        seconds: About how long it may take.
        columns: Columns of each piece's Hessian, at most.
        examples: Examples of the batch.
        seed: Of the sample, and of the random numbers that the loss draws.
        context: What each forward pass on a batch is made in.
        progress: Told how many columns are done, and of how many.

    Returns:
        The findings of each.

    Raises:
        ValueError: As for :func:`audit_partition`.

    Example:
        >>> from lightning_adam_mini import partition_model
        >>> model, x = nn.Linear(4, 2), torch.randn(64, 4) + 2
        >>> partitions = {how: partition_model(model, overrides={"weight": how}) for how in ("tensor", "line")}
        >>> audits = audit_partitions(model, lambda m: m(x).square().mean(), partitions)
        >>> [str(audit.findings[0].verdict) for audit in audits.values()]
        ['too coarse', 'matches']
    """
    if not seconds > 0 or columns < 1 or examples < 1:
        raise ValueError(f"An audit takes some seconds, columns and examples; got {seconds=}, {columns=}, {examples=}.")
    started, notes = time.monotonic(), list[str]()
    known = (inspect_model(module, heads=True) if report is None else report).by_name
    chosen = {label: _choose(module, layouts) for label, layouts in partitions.items()}
    names = list(dict.fromkeys(name for some, _ in chosen.values() for name in some))
    loss, parts = _losses(batch_or_loss, examples, context, notes)
    with differentiate_twice(module, loss, names, seed=seed) as curvature:
        notes += curvature.notes
        moments, count = _second_moments(module, parts, curvature, seed, started + seconds / 4)
        if count == 1:
            notes.append("Second moments are those of one gradient, and noisy: there are no parts of a batch to average over.")
        pieces: dict[Any, dict[str, Segment]] = {}
        for name in curvature.parameters:
            for label, (some, _) in chosen.items():
                for segment in split_segments(known[name], partitions[label][name]) if name in some else ():
                    pieces.setdefault((name, segment.axis, segment.lines), {})[label] = segment
        works = [_Work(by, moments[name], columns, seed) for (name, *_), by in pieces.items()]
        stopped = _measure(curvature, works, started + seconds, progress)
        unused = curvature.left_out
    taken = time.monotonic() - started
    if stopped:
        notes.append(f"Stopped {stopped} after {taken:.0f} s: see the columns that each verdict rests on.")
    largest = max((work.root_mean_square for work in works), default=0.0)
    found: dict[str, AuditReport] = {}
    for label, (_, left_out) in chosen.items():
        ours = [work for work in works if label in work.segments]
        findings = tuple(decide(work.segments[label], work.held, work.moments, largest) for work in ours)
        left_out |= {name: why for name, why in unused.items() if name in partitions[label]}
        found[label] = AuditReport(findings, left_out, tuple(notes), taken)
    return found


def _choose(module: nn.Module, layouts: Mapping[str, BlockLayout]) -> tuple[list[str], dict[str, str]]:
    """The parameters to look at, and why others are not."""
    chosen, left_out = choose_parameters(module, None)
    unknown = [name for name in layouts if name not in chosen and name not in left_out]
    if unknown:
        raise ValueError(f"There is a layout of {unknown[0]!r}, which is no parameter. Take layouts of partition_model(module, ...).")
    left_out = {name: why for name, why in left_out.items() if name in layouts}
    left_out |= {name: "orthogonalised, without blocks" for name in chosen if name in layouts and layouts[name].is_orthogonal}
    left_out |= {name: "empty" for name, p in chosen.items() if name in layouts and not p.numel()}
    names = [name for name in chosen if name in layouts and name not in left_out]
    if not names:
        raise ValueError("No parameter with a layout has blocks and a gradient, so there is nothing to audit. Unfreeze some.")
    for name in names:
        if layouts[name].shape != tuple(chosen[name].shape):
            raise ValueError(
                f"The layout of {name!r} is for shape {layouts[name].shape}, but the parameter has {tuple(chosen[name].shape)}. Partition"
                " the module anew: partition_model(module, ...)."
            )
    return names, left_out


def _losses(
    batch_or_loss: Any, examples: int, context: Callable[[], AbstractContextManager[Any]], notes: list[str]
) -> tuple[Loss, list[Loss]]:
    """The loss to look at, and those of parts of the batch, whose gradients make second moments."""
    if isroutine(batch_or_loss) or isinstance(batch_or_loss, nn.Module) or (callable(batch_or_loss) and not hasattr(batch_or_loss, "to")):
        # A graph is callable too, but can be moved.
        return cast(Loss, batch_or_loss), []

    def loss_of(batch: Any) -> Loss:
        def loss(module: nn.Module) -> Tensor:
            with context():
                return batch_loss(module, batch)

        return loss

    size = batch_size(batch_or_loss)
    if size is None:
        return loss_of(batch_or_loss), []
    if size > examples:
        notes.append(f"The first {examples} of the batch's {size} examples are used; examples={size} takes all.")
    size = min(size, examples)
    length = math.ceil(size / 8)
    whole = take_examples(batch_or_loss, 0, size)
    return loss_of(whole), [loss_of(take_examples(whole, i, i + length)) for i in range(0, size - length + 1, length)]


def _second_moments(
    module: nn.Module, parts: list[Loss], curvature: Curvature, seed: int, until: float
) -> tuple[dict[str, list[Tensor]], int]:
    """Mean squared gradients of two halves of the parts, as long as there is time; of the whole where there are no two parts."""
    names, tensors = list(curvature.parameters), list(curvature.parameters.values())
    means, count = {name: [torch.zeros_like(p) for _ in range(2)] for name, p in curvature.parameters.items()}, 0
    for part in parts if len(parts) > 1 else ():
        torch.manual_seed(seed + count)
        found = torch.autograd.grad(part(module), tensors, allow_unused=True)
        for name, gradient in zip(names, found, strict=True):
            if gradient is not None:
                means[name][count % 2].lerp_(gradient.square(), 1 / (count // 2 + 1))
        count += 1
        if count % 2 == 0 and time.monotonic() > until:
            break
    if count < 2:
        return {name: [gradient.square()] for name, gradient in curvature.gradients.items()}, 1
    return means, count


@dataclass
class _Work:
    """The columns of one piece that are to be computed, and what those that were hold, within the layouts of each partition."""

    segments: Mapping[str, Segment]
    moments: list[Tensor]
    columns: int
    seed: int
    done: int = 0
    indices: Tensor = field(init=False)
    weights: Tensor = field(init=False)
    sampled: bool = field(init=False)
    held: Held = field(init=False)

    def __post_init__(self) -> None:
        self.moments = [self.segment.take(moment) for moment in self.moments]
        size = self.size
        self.sampled = size > self.columns
        if self.sampled:
            roots = torch.stack(self.moments).mean(0).reshape(-1).sqrt().cpu().double()
            if not roots.sum() > 0:
                roots = torch.ones_like(roots)
            # Those of no gradient may have curvature all the same.
            chances = 0.9 * roots / roots.sum() + 0.1 / size
            self.indices = _draw(chances, self.columns, torch.Generator().manual_seed(self.seed))
            self.weights = 1 / chances[self.indices]
        else:
            self.indices = torch.arange(size)
            self.weights = torch.ones(size, dtype=torch.float64)
        nothing = Mass(self.segment.shape, self.indices[:0], torch.zeros(0, size, dtype=torch.float64), self.weights[:0], self.sampled)
        self.held = nothing.measure(self.layouts)

    @property
    def segment(self) -> Segment:
        """One of them: they differ in their layouts only."""
        return next(iter(self.segments.values()))

    @property
    def size(self) -> int:
        return math.prod(self.segment.shape)

    @property
    def layouts(self) -> list[BlockLayout]:
        found: list[BlockLayout] = []
        for segment in self.segments.values():
            crossed = [] if segment.crossed is None else [segment.crossed]
            found += [segment.own, *segment.own.margins, *segment.candidates.values(), *crossed]
        return list(dict.fromkeys(found))

    @property
    def root_mean_square(self) -> float:
        """Of the second derivatives."""
        whole = BlockLayout.whole(self.segment.shape)
        total = float(self.held.weights.sum()) * self.size
        return math.sqrt(float(self.held.weights @ self.held.held[whole]) / total) if total else 0.0

    def step(self, curvature: Curvature, chunk: int) -> int:
        """Compute the next columns, and say how many."""
        some = slice(self.done, self.done + (1 if self.size > _LARGE else chunk))
        here = self.indices[some]
        name, elements = self.segment.parameter.name, self.segment.elements
        columns = self.segment.take(curvature.columns(name, elements[here].to(curvature.parameters[name].device), chunk))
        self.held = self.held.joined(Mass.of_columns(columns, here, self.weights[some], self.sampled).measure(self.layouts))
        self.done += len(here)
        return len(here)


def _draw(chances: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw with replacement; multinomial takes no more than 2**24 categories."""
    ends = chances.cumsum(0)
    return torch.searchsorted(ends, torch.rand(count, generator=generator, dtype=torch.float64) * ends[-1]).clamp_(max=len(chances) - 1)


def _measure(curvature: Curvature, works: list[_Work], until: float, progress: Progress | None, chunk: int = 8) -> str:
    """Compute columns in turns, so that all pieces have about as many whenever it ends; why it ended before all were done, or nothing."""
    total, done = sum(len(work.indices) for work in works), 0
    try:
        while any(work.done < len(work.indices) for work in works):
            for work in works:
                if work.done >= len(work.indices):
                    continue
                if time.monotonic() > until:
                    return "by the clock"
                done += work.step(curvature, chunk)
                if progress is not None:
                    progress(done, total)
    except KeyboardInterrupt:
        return "by an interrupt"
    return ""
