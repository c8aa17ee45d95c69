"""The step of matrices whose updates are orthogonalised: all of one shape at once, so that launches grow with shapes, not with tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.matrix_layout import MatrixLayout
from lightning_adam_mini.optim.backends.protocol import ANY, Backend, Task
from lightning_adam_mini.optim.codecs import Codec, Plain
from lightning_adam_mini.optim.functional import Blocks
from lightning_adam_mini.optim.orthogonal import SIZE, normalized_by_row, orthogonalize, resized, row_factors
from lightning_adam_mini.optim.rounding import Place, round_at_random, seed_of
from lightning_adam_mini.optim.shards.matrices import Exchange, add_up_rows, share
from lightning_adam_mini.optim.state import FIRST, SECOND, STEP, elements_in

_AT_ONCE = 2**25  # elements that are orthogonalised together: enough for the launches not to count


class _Job(NamedTuple):
    """Tasks of one device, dtype and rule, all of whole matrices or all of matrices that are cut.

    Attributes:
        group: Options of their group.
        tasks: The tasks.
    """

    group: Mapping[str, Any]
    tasks: list[Task]


class _Part(NamedTuple):
    """The matrices of one part of a tensor's cut.

    Attributes:
        number: The tensor's number.
        layout: Its matrices, and how they are stepped.
        values: Of shape (number, rows, columns).
    """

    number: int
    layout: MatrixLayout
    values: Tensor


class Orthogonal(Backend):
    """Matrices of one shape at a time."""

    device: str | None = ANY
    orthogonal = True

    def __init__(self) -> None:
        self.group: Any = None
        """Ranks with the same parameters and gradients, which share the work; None if this one does all."""
        self.rates: dict[Tensor, float | Tensor] = {}
        """By parameter: the learning rate of its last update."""
        self.sizes: dict[Tensor, Tensor] = {}
        """By parameter, in learning rates: root mean square of the last update of each matrix. Of matrices that are cut, the sum of its
        squares over this rank's part of each row."""

    def counts_there(self, group: Mapping[str, Any]) -> bool:
        """Only where a CUDA graph is to hold the step."""
        return group["capturable"]

    def why_not(self, p: Tensor, codec: Codec, layout: Blocks, place: Place | None) -> str | None:
        """Nothing: what is laid out as matrices is stepped as matrices."""
        return None

    def step(self, work: Sequence[tuple[Mapping[str, Any], Sequence[Task]]]) -> None:
        """Step the matrices of each group."""
        jobs = [_Job(group, some) for group, tasks in work for some in _by_rule(tasks)]
        cut = [job for job in jobs if _is_cut(job.tasks[0])]
        whole = [job for job in jobs if not _is_cut(job.tasks[0])]
        for some in [[job] for job in whole] if self.group is None else [whole]:
            self._step(some, self._updates)
        if cut:
            self._step(cut, self._updates_of_cut)

    def forget(self) -> None:
        """Keep nothing of any parameter."""
        self.sizes.clear()
        self.rates.clear()

    def _step(self, jobs: Sequence[_Job], updates_of: Callable[[Sequence[_Job], Sequence[Tensor]], Sequence[Tensor]]) -> None:
        momenta = [one for job in jobs for one in _momenta(job)]
        updates = iter(updates_of(jobs, momenta))
        for job in jobs:
            lr = job.group["lr"]
            # A scheduler may change the rate before anyone asks.
            self.rates.update((task.param, lr.clone() if isinstance(lr, Tensor) else lr) for task in job.tasks if task.param is not None)
            _apply(job, [next(updates) for _ in job.tasks])

    def _updates(self, jobs: Sequence[_Job], momenta: Sequence[Tensor]) -> list[Tensor]:
        """The update of each task, in learning rates, of its parameter's shape."""
        tasks = [task for job in jobs for task in job.tasks]
        parts = [part for i, (task, m) in enumerate(zip(tasks, momenta, strict=True)) for part in _split(i, task, m)]
        rows = [one for task in tasks for one in _rows_of(task)]
        results: dict[int, Tensor] = {}
        sizes: dict[int, Tensor] = {}
        for batch, orthogonal in self._orthogonalized(parts, self.group):
            first, counts = parts[batch[0]], [len(parts[i].values) for i in batch]
            if first.layout.beta2 is None:
                update = resized(orthogonal.to(first.values.dtype))
            else:
                second = torch.cat([rows[i] for i in batch])
                update = normalized_by_row(orthogonal, second, first.layout.beta2).to(first.values.dtype)
                for i, one in zip(batch, second.split(counts), strict=True):
                    rows[i] = one
            results.update(zip(batch, update.split(counts), strict=True))
            sizes.update(zip(batch, update.float().square().mean(dim=(1, 2)).sqrt_().split(counts), strict=True))
        joined: list[Tensor] = []
        kept: list[tuple[Tensor, Tensor]] = []
        at = 0
        for task in tasks:
            layout = _matrices(task)
            ours = range(at, at := at + len(layout.matrices))
            joined.append(layout.join([results[i] for i in ours]))
            if layout.beta2 is not None:
                kept.append((task.state[SECOND.name], layout.join([rows[i] for i in ours])))
            if task.param is not None:
                self.sizes[task.param] = sizes[ours[0]] if len(ours) == 1 else torch.cat([sizes[i] for i in ours])
        if kept:
            torch._foreach_copy_([there for there, _ in kept], [new for _, new in kept])
        return joined

    def _updates_of_cut(self, jobs: Sequence[_Job], momenta: Sequence[Tensor]) -> list[Tensor]:
        """The same of matrices of which this rank holds parts: the part of it."""
        tasks = [task for job in jobs for task in job.tasks]
        held = [task.part for task in tasks if task.part is not None]
        exchange = Exchange(held, [_precision(_matrices(task), m) for task, m in zip(tasks, momenta, strict=True)])
        parts = [part for i, whole in exchange.bring(momenta).items() for part in _split(i, tasks[i], whole)]
        results: dict[int, Tensor] = {}
        for batch, orthogonal in self._orthogonalized(parts, None):
            results.update(zip(batch, orthogonal.split([len(parts[i].values) for i in batch]), strict=True))
        owned: dict[int, list[Tensor]] = {}
        for i, part in enumerate(parts):
            owned.setdefault(part.number, []).append(results[i])
        pieces = exchange.back({i: _matrices(tasks[i]).join(some) for i, some in owned.items()}, momenta)
        sums = [part.sum_square(piece.to(m.dtype)) for part, piece, m in zip(held, pieces, momenta, strict=True)]
        by_row = [i for i, task in enumerate(tasks) if _matrices(task).beta2 is not None]
        total = dict(zip(by_row, add_up_rows([held[i] for i in by_row], [sums[i] for i in by_row]), strict=True))
        updates: list[Tensor] = []
        for i, (task, part, m) in enumerate(zip(tasks, held, momenta, strict=True)):
            layout = _matrices(task)
            if layout.beta2 is None:
                factors = [sums[i].new_full((n, rows, 1), SIZE * math.sqrt(max(rows, columns))) for n, rows, columns in layout.matrices]
            else:
                second, columns = task.state[SECOND.name], layout.matrices[0][2]
                mean_squares = total[i] / columns
                second.lerp_(mean_squares, 1 - layout.beta2)
                both = zip(layout.split(mean_squares), layout.split(second), strict=True)
                factors = [row_factors(mean_square, one, columns) for mean_square, one in both]
            factor = layout.join(factors)
            updates.append(pieces[i].to(m.dtype) * part.spread(factor))
            if task.param is not None:
                self.sizes[task.param] = sums[i] * factor.square()
        return updates

    @staticmethod
    def _orthogonalized(parts: Sequence[_Part], group: Any) -> Iterator[tuple[list[int], Tensor]]:
        """The matrices of parts, orthogonalised, in the dtype in which they are: numbers of parts of one shape, and theirs together."""
        batches = list(_batches(parts))

        def run(number: int, matrices: Tensor) -> Tensor:
            layout = parts[batches[number][0]].layout
            return orthogonalize(matrices.to(_precision(layout, matrices)), layout.iterations)

        if group is not None:
            firsts = [parts[batch[0]] for batch in batches]
            dtypes = [_precision(first.layout, first.values) for first in firsts]
            yield from zip(batches, share([[parts[i].values for i in batch] for batch in batches], dtypes, run, group), strict=True)
            return
        for number, batch in enumerate(batches):
            yield batch, run(number, _stack([parts[i].values for i in batch]))


def _is_cut(task: Task) -> bool:
    """Whether other ranks hold parts of its matrices."""
    return task.part is not None and task.part.along is not None


def _matrices(task: Task) -> MatrixLayout:
    assert isinstance(task.layout, MatrixLayout)
    return task.layout


def _split(number: int, task: Task, values: Tensor) -> list[_Part]:
    layout = _matrices(task)
    return [_Part(number, layout, one) for one in layout.split(values)]


def _rows_of(task: Task) -> list[Tensor]:
    """The second moments of the rows of each part; of Muon's, which has none, whatever."""
    layout = _matrices(task)
    return [task.p] * len(layout.matrices) if layout.beta2 is None else layout.split(task.state[SECOND.name])


def _by_rule(tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks of one device, dtype and rule, all of whole matrices or all of matrices that are cut."""
    found: dict[tuple, list[Task]] = {}
    for task in tasks:
        layout = _matrices(task)
        if not (task.p.numel() or _is_cut(task)):  # a rank without any of the experts
            task.state[STEP.name].add_(1)
            continue
        rule = (layout.momentum, layout.beta2, layout.iterations, layout.precision, _is_cut(task))
        found.setdefault((task.p.device, task.p.dtype, *rule), []).append(task)
    return list(found.values())


def _momenta(job: _Job) -> list[Tensor]:
    """Count the step and step the first moments, and return what is orthogonalised: Nesterov's, which are one gradient ahead."""
    group, tasks = job
    momentum = _matrices(tasks[0]).momentum
    torch._foreach_add_([task.state[STEP.name] for task in tasks], 1)
    wide = torch.promote_types(tasks[0].p.dtype, torch.float32)
    grads = [task.grad for task in tasks]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    if group["weight_decay"] and not group["decoupled_weight_decay"]:
        grads = list(torch._foreach_add(grads, [task.p for task in tasks], alpha=group["weight_decay"]))
    kept = [elements_in(task.state, FIRST) for task in tasks]
    plain = all(isinstance(task.codec, Plain) for task in tasks)
    if plain and all(one[""].dtype == grad.dtype == wide for one, grad in zip(kept, grads, strict=True)):
        moments = [one[""] for one in kept]
        torch._foreach_lerp_(moments, grads, 1 - momentum)
        return list(torch._foreach_lerp(grads, moments, momentum))
    ahead: dict[int, Tensor] = {}
    for some in _stacks(tasks, grads):
        codec = tasks[some[0]].codec.stacked(len(some))
        assert codec is not None
        stored = {suffix: _stack([kept[i][suffix] for i in some]) for suffix in kept[some[0]]}
        grad = _stack([grads[i] for i in some]).to(wide)
        moment = codec.decode(stored, wide).lerp_(grad, 1 - momentum)
        ahead.update(zip(some, grad.lerp(moment, momentum).split(len(grad) // len(some)), strict=True))
        codec.encode_(moment, stored)
        if len(some) > 1:
            for suffix, new in stored.items():
                torch._foreach_copy_([kept[i][suffix] for i in some], list(new.split(len(new) // len(some))))
    return [ahead[i] for i in range(len(tasks))]


def _stacks(tasks: Sequence[Task], grads: Sequence[Tensor]) -> Iterator[list[int]]:
    """Numbers of tasks whose moments are decoded at once: a codec's launches are many, so they grow with shapes, not with tensors."""
    found: dict[tuple, list[int]] = {}
    for i, (task, grad) in enumerate(zip(tasks, grads, strict=True)):
        can = grad.numel() and task.codec.stacked(2)
        found.setdefault((task.codec, grad.dtype) if can else (i,), []).append(i)
    for some in found.values():
        by = max(_AT_ONCE // max(grads[some[0]].numel(), 1), 1)
        yield from (some[first : first + by] for first in range(0, len(some), by))


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(tensors)) if len(tensors) > 1 else tensors[0]


def _batches(parts: Sequence[_Part]) -> Iterator[list[int]]:
    """Numbers of parts whose matrices have one shape and rule, so many that they fit."""
    found: dict[tuple, list[int]] = {}
    for i, part in enumerate(parts):
        if part.values.numel():
            rule = (part.layout.beta2, part.layout.iterations, part.layout.precision)
            found.setdefault((*part.values.shape[1:], part.values.dtype, part.values.device, *rule), []).append(i)
    for some in found.values():
        batch, held = [], 0
        for i in some:
            if batch and held + parts[i].values.numel() > _AT_ONCE:
                yield batch
                batch, held = [], 0
            batch.append(i)
            held += parts[i].values.numel()
        yield batch


def _precision(rule: MatrixLayout, like: Tensor) -> torch.dtype:
    if rule.precision is not None:
        return getattr(torch, rule.precision)
    return torch.bfloat16 if like.is_cuda else like.dtype


def _apply(job: _Job, updates: Sequence[Tensor]) -> None:
    group, tasks = job
    lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
    decay = group["weight_decay"] if group["decoupled_weight_decay"] else 0
    wide = updates[0].dtype
    if tasks[0].p.dtype == wide:
        params = [task.p for task in tasks]
        if decay:
            torch._foreach_mul_(params, 1 - lr * decay)
        torch._foreach_sub_(params, list(torch._foreach_mul(list(updates), lr)))
        return
    for task, update in zip(tasks, updates, strict=True):
        weights = task.p.to(wide)
        if decay:
            weights.mul_(1 - lr * decay)
        weights.sub_(update * lr)
        if task.place is not None:
            seed = seed_of(int(task.state[STEP.name].item()), task.place.number)
            weights = round_at_random(weights, task.place.indices(slice(0, len(weights)), weights.device), seed)
        task.p.copy_(weights)
