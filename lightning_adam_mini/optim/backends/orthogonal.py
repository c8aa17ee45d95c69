"""The step of matrices whose updates are orthogonalised: all of one shape at once, so that launches grow with shapes, not with tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.matrix_layout import MatrixLayout
from lightning_adam_mini.optim.backends.protocol import ANY, Backend, Task
from lightning_adam_mini.optim.codecs import Codec, Plain
from lightning_adam_mini.optim.functional import Blocks
from lightning_adam_mini.optim.orthogonal import normalized_by_row, orthogonalize, resized
from lightning_adam_mini.optim.rounding import Place, round_at_random, seed_of
from lightning_adam_mini.optim.state import FIRST, SECOND, STEP, elements_in

_AT_ONCE = 2**25  # elements that are orthogonalised together: enough for the launches not to count


class _Part(NamedTuple):
    """The matrices of one part of a task's cut.

    Attributes:
        task: Number of the task.
        values: Of shape (number, rows, columns).
    """

    task: int
    values: Tensor


class Orthogonal(Backend):
    """Matrices of one shape at a time."""

    device = ANY
    orthogonal = True

    def __init__(self) -> None:
        self.sizes: dict[Tensor, Tensor] = {}
        """Root mean square of the last update of each matrix, by parameter, in learning rates."""

    def counts_there(self, group: Mapping[str, Any]) -> bool:
        """Only where a CUDA graph is to hold the step."""
        return group["capturable"]

    def why_not(self, p: Tensor, codec: Codec, layout: Blocks, place: Place | None) -> str | None:
        """Nothing: what is laid out as matrices is stepped as matrices."""
        return None

    def step(self, work: Sequence[tuple[Mapping[str, Any], Sequence[Task]]]) -> None:
        """Step the matrices of each group."""
        for group, tasks in work:
            for rule, members in _by_rule(tasks):
                _count(members)
                updates = self._updates(rule, members, _momenta(group, rule, members))
                lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
                _apply(group, lr, members, updates)

    def forget(self) -> None:
        """Keep nothing of any parameter."""
        self.sizes.clear()

    def _updates(self, rule: MatrixLayout, tasks: Sequence[Task], momenta: Sequence[Tensor]) -> list[Tensor]:
        """The update of each task, in learning rates, of its parameter's shape."""
        parts = [_Part(i, one) for i, (task, m) in enumerate(zip(tasks, momenta, strict=True)) for one in _matrices(task).split(m)]
        rows = [one for task in tasks for one in _matrices(task).split(task.state[SECOND.name])] if rule.beta2 is not None else None
        done: list[list[Tensor]] = [[] for _ in tasks]
        sizes: list[list[Tensor]] = [[] for _ in tasks]
        results: dict[int, Tensor] = {}
        for batch in _batches(parts):
            stacked = torch.cat([parts[i].values for i in batch]) if len(batch) > 1 else parts[batch[0]].values
            update = orthogonalize(stacked.to(_precision(rule, stacked)), rule.iterations)
            if rows is None:
                update = resized(update.to(stacked.dtype))
            else:
                second = torch.cat([rows[i] for i in batch])
                update = normalized_by_row(update, second, rule.beta2 or 0.0).to(stacked.dtype)
                for i, one in zip(batch, second.split([len(parts[i].values) for i in batch]), strict=True):
                    rows[i] = one
            size = update.float().square().mean(dim=(1, 2)).sqrt_()
            counts = [len(parts[i].values) for i in batch]
            results.update(zip(batch, update.split(counts), strict=True))
            for i, one in zip(batch, size.split(counts), strict=True):
                sizes[parts[i].task].append(one)
        for i, part in enumerate(parts):
            done[part.task].append(results[i])
        if rows is not None:
            _write_rows(tasks, rows)
        for task, some in zip(tasks, sizes, strict=True):
            self.sizes[task.p] = some[0] if len(some) == 1 else torch.cat(some)
        return [_matrices(task).join(some) for task, some in zip(tasks, done, strict=True)]


def _matrices(task: Task) -> MatrixLayout:
    assert isinstance(task.layout, MatrixLayout)
    return task.layout


def _by_rule(tasks: Sequence[Task]) -> Iterator[tuple[MatrixLayout, list[Task]]]:
    """Tasks of one device, dtype and rule, with a layout that says what the rule is."""
    found: dict[tuple, list[Task]] = {}
    for task in tasks:
        layout = _matrices(task)
        rule = (layout.momentum, layout.beta2, layout.iterations, layout.precision)
        found.setdefault((task.p.device, task.p.dtype, *rule), []).append(task)
    for some in found.values():
        yield _matrices(some[0]), some


def _count(tasks: Sequence[Task]) -> None:
    torch._foreach_add_([task.state[STEP.name] for task in tasks], 1)


def _momenta(group: Mapping[str, Any], rule: MatrixLayout, tasks: Sequence[Task]) -> list[Tensor]:
    """Step the first moments, and return what is orthogonalised: Nesterov's, which are one gradient ahead."""
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
        torch._foreach_lerp_(moments, grads, 1 - rule.momentum)
        return list(torch._foreach_lerp(grads, moments, rule.momentum))
    ahead = []
    for task, grad, one in zip(tasks, grads, kept, strict=True):
        moment = one[""].to(wide) if isinstance(task.codec, Plain) else task.codec.decode(one, wide)
        grad = grad.to(wide)
        moment = moment.lerp(grad, 1 - rule.momentum)
        ahead.append(grad.lerp(moment, rule.momentum))
        task.codec.encode_(moment, one)
    return ahead


def _batches(parts: Sequence[_Part]) -> Iterator[list[int]]:
    """Numbers of parts whose matrices have one shape, so many that they fit."""
    found: dict[tuple[int, ...], list[int]] = {}
    for i, part in enumerate(parts):
        if part.values.numel():
            found.setdefault(tuple(part.values.shape[1:]), []).append(i)
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


def _write_rows(tasks: Sequence[Task], rows: Sequence[Tensor]) -> None:
    given, new = iter(rows), []
    for task in tasks:
        layout = _matrices(task)
        new.append(layout.join([next(given) for _ in layout.matrices]))
    torch._foreach_copy_([task.state[SECOND.name] for task in tasks], new)


def _apply(group: Mapping[str, Any], lr: float | Tensor, tasks: Sequence[Task], updates: Sequence[Tensor]) -> None:
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
