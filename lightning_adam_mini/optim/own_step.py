"""Whether an optimizer's ``step`` was replaced by one that would hide AdamMini's."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch.optim import Optimizer, lr_scheduler
from torch.utils import _contextlib

_TRUSTED = (os.path.dirname(lr_scheduler.__file__), os.path.dirname(_contextlib.__file__), os.path.dirname(__file__))
# A function that names one of these and "step" may look the class's step up when it is called.
_CLASSES = frozenset({"Adam", "AdamW", "AdamMini", "Optimizer", "__class__", "super", "type"})


def is_of_a_scheduler(optimizer: Optimizer) -> bool:
    """Whether ``step`` on the instance is what one of torch's schedulers made of the class's, to know of a first step."""
    step = vars(optimizer).get("step")
    code = getattr(step, "__code__", None)
    return code is not None and code.co_filename == lr_scheduler.__file__ and step.__wrapped__ is type(optimizer).step  # type: ignore[union-attr]


def check_step(optimizer: Optimizer, may_be_patched: bool) -> None:
    """Refuse an optimizer whose ``step`` was replaced by one that would not come to AdamMini's.

    A patch that holds the step which it replaced, or looks it up in the class, is taken to call it.

    Args:
        optimizer: The optimizer.
        may_be_patched: Whether its own step, called by a patch, would take AdamMini's.

    Raises:
        ValueError: If it was.
    """
    kind, step = type(optimizer), vars(optimizer).get("step")
    name = f"{kind.__module__}.{kind.__qualname__}"
    if "_torchdynamo_orig_callable" in getattr(step, "__dict__", ()):
        raise ValueError(
            f"{name} cannot become an AdamMini because its step was compiled already, and the compiled one would go on as it is. Call"
            " torch.compile on it afterwards (in Lightning: in on_fit_start)."
        )
    if may_be_patched and not all(code.co_filename.startswith(_TRUSTED) for code in _codes(kind.step)):
        raise ValueError(
            f"{name} cannot become an AdamMini because {name}.step itself was replaced{_where(kind.step)}, which AdamMini's would hide."
            " Undo it, and use torch.optim.optimizer.register_optimizer_step_pre_hook or _post_hook, which are for all optimizers."
        )
    if step is not None and not is_of_a_scheduler(optimizer) and not (may_be_patched and _reaches(step, optimizer)):
        raise ValueError(
            f"{name} cannot become an AdamMini because the step of this object was replaced{_where(step)}, which would hide AdamMini's. Use"
            " register_step_pre_hook or register_step_post_hook, or replace the step afterwards (in Lightning: in on_fit_start)."
        )


def _where(step: Any) -> str:
    """By whom a step was replaced."""
    codes = list(_codes(step))
    code = next((code for code in codes if not code.co_filename.startswith(_TRUSTED)), codes[0] if codes else None)
    return "" if code is None else f" by {code.co_name} ({code.co_filename}:{code.co_firstlineno})"


def _codes(step: Any) -> Iterator[CodeType]:
    """The code of a function and of all that it wraps."""
    while step is not None:
        step = getattr(step, "__func__", step)
        if hasattr(step, "__code__"):
            yield step.__code__
        step = getattr(step, "__wrapped__", None)


def _reaches(patch: Any, optimizer: Optimizer) -> bool:
    """Whether a patch holds the step of the optimizer's class, however deep, or looks it up by name."""
    classes = [kind for kind in type(optimizer).__mro__ if "step" in vars(kind) and kind is not Optimizer]
    targets = {code for kind in classes for code in _codes(vars(kind)["step"]) if code.co_name == "step"}
    seen: set[int] = set()
    todo = [patch]
    while todo and len(seen) < 1000:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, (type(None), str, bytes, int, float, type, torch.Tensor, Optimizer, torch.nn.Module)):
            continue
        seen.add(id(thing))
        if isinstance(thing, FunctionType):
            code = thing.__code__
            names = {*code.co_names, *(name for const in code.co_consts if isinstance(const, CodeType) for name in const.co_names)}
            if code in targets or ("step" in names and names & _CLASSES):
                return True
            todo += [cell.cell_contents for cell in thing.__closure__ or () if _is_filled(cell)]
            todo += [getattr(thing, "__wrapped__", None), *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        elif isinstance(thing, MethodType):
            todo += [thing.__func__, thing.__self__]
        elif isinstance(thing, functools.partial):
            todo += [thing.func, *thing.args, *thing.keywords.values()]
        elif isinstance(thing, (list, tuple, set, frozenset)):
            todo += list(thing)[:100]
        elif isinstance(thing, dict):
            todo += list(thing.values())[:100]
        else:  # an object that is called
            todo += [vars(type(thing)).get("__call__"), *getattr(thing, "__dict__", {}).values()]
    return False


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
