"""Put an AdamMini in the place of each optimizer that ``configure_optimizers`` returned, with its schedulers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any
from weakref import ref

from torch.optim import Optimizer

from lightning_adam_mini.optim.adam_mini import AdamMini


def configured_optimizers(configured: Any) -> list[Any]:
    """All optimizers in what ``configure_optimizers`` returned, in whichever of Lightning's forms."""
    return [part for part in _parts(configured) if _is_optimizer(part)]


def replace_optimizers(configured: Any, swapped: Mapping[Optimizer, AdamMini]) -> Any:
    """What ``configure_optimizers`` returned, with optimizers replaced and their schedulers attached to the new ones.

    Args:
        configured: One optimizer, a list, a tuple, a dict with a scheduler config, or a list of dicts.
        swapped: The new optimizer for each old one; others stay.

    Returns:
        The same form.
    """
    for part in _parts(configured):
        if not _is_optimizer(part):
            attach_scheduler(part, swapped)
    return _rebuild(configured, swapped)


def attach_scheduler(scheduler: Any, swapped: Mapping[Optimizer, AdamMini]) -> None:
    """Make a scheduler, and all schedulers within it, drive the new optimizers.

    Works on torch's schedulers, timm's and others that keep their optimizers and inner schedulers as attributes or lists of them.
    """
    _attach(scheduler, swapped, set())


def _attach(scheduler: Any, swapped: Mapping[Optimizer, AdamMini], seen: set[int]) -> None:
    if id(scheduler) in seen or not hasattr(scheduler, "__dict__"):
        return
    seen.add(id(scheduler))
    for name, value in list(vars(scheduler).items()):
        if isinstance(value, Optimizer):
            if value in swapped:
                setattr(scheduler, name, swapped[value])
                _count_steps(swapped[value])
                if hasattr(scheduler, "use_beta1"):  # OneCycleLR and CyclicLR looked at the old optimizer's defaults
                    scheduler.use_beta1 = True
        elif isinstance(value, (list, tuple)):
            if any(isinstance(item, Optimizer) for item in value):
                setattr(scheduler, name, type(value)(swapped.get(o, o) if isinstance(o, Optimizer) else o for o in value))
            for item in value:
                if _is_scheduler(item):
                    _attach(item, swapped, seen)
        elif _is_scheduler(value):
            _attach(value, swapped, seen)


def _is_scheduler(value: Any) -> bool:
    return not isinstance(value, Optimizer) and callable(getattr(value, "step", None)) and callable(getattr(value, "state_dict", None))


def _count_steps(optimizer: Optimizer) -> None:
    """Mark ``step`` as torch's schedulers do in their constructors; without the mark they warn of a wrong order of calls."""
    if hasattr(optimizer.step, "_wrapped_by_lr_sched"):
        return
    function = optimizer.step.__func__
    weak = ref(optimizer)

    @wraps(function)
    def step(*args: Any, **kwargs: Any) -> Any:
        self = weak()
        self._opt_called = True  # type: ignore[union-attr]
        return function.__get__(self, type(self))(*args, **kwargs)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
    optimizer.step = step  # type: ignore[method-assign]


def retire(optimizer: Optimizer, why: str) -> Callable[[], None]:
    """Make an optimizer's ``step`` raise ``RuntimeError(why)``, so that code that kept it does not train beside its replacement.

    Returns:
        A function that undoes it.
    """
    before = vars(optimizer).get("step")

    def step(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(why)

    optimizer.step = step  # type: ignore[method-assign]

    def undo() -> None:
        if before is None:
            vars(optimizer).pop("step", None)
        else:
            optimizer.step = before  # type: ignore[method-assign]

    return undo


def _is_optimizer(part: Any) -> bool:
    # Lightning takes any object with an optimizer's attributes for one.
    return isinstance(part, Optimizer) or all(hasattr(part, name) for name in ("param_groups", "defaults", "state", "step"))


def _parts(configured: Any) -> Iterator[Any]:
    if isinstance(configured, dict):
        for value in configured.values():
            yield from _parts(value)
    elif isinstance(configured, (list, tuple)):
        for value in configured:
            yield from _parts(value)
    else:
        yield configured


def _rebuild(configured: Any, swapped: Mapping[Optimizer, AdamMini]) -> Any:
    if isinstance(configured, dict):
        return type(configured)({key: _rebuild(value, swapped) for key, value in configured.items()})
    if isinstance(configured, (list, tuple)):
        return type(configured)(_rebuild(value, swapped) for value in configured)
    return swapped.get(configured, configured) if isinstance(configured, Optimizer) else configured
