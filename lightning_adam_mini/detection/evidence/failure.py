"""Why a forward failed on its inputs, and which of them led to that."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from lightning_adam_mini.detection.evidence.tape import Ref, Tape

_UNPACKED = re.compile(r"not enough values to unpack \(expected \d+, got (\d+)\)")

_LONGEST = 2000  # characters of an error that are read


class DoesNotRunError(ValueError):
    """A model does not run on what it was given."""

    failure: Failure


@dataclass(frozen=True)
class Failure:
    """Why a forward failed.

    Attributes:
        error: What it raised.
        text: What that says, or its beginning.
        progress: How many calls and operations went well before.
        blamed: By number of an input, the shapes of what was made of it where the forward failed.
        key: What the forward wants of an input that is a tensor, as of a dict or a record.
    """

    error: BaseException
    text: str
    progress: int
    blamed: dict[int, list[tuple[int, ...]]]
    key: str | None = None


class Calls(TorchFunctionMode):
    """Counts calls of torch, and keeps the tensors that the last one that failed was given."""

    def __init__(self) -> None:
        """Nothing was called yet."""
        super().__init__()
        self.count = 0
        self.failed: tuple[BaseException, tuple[Any, ...], Any] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the call."""
        try:
            out = func(*args, **(kwargs or {}))
        except Exception as error:
            self.failed = (error, (args, kwargs), func)
            raise
        self.count += 1
        return out


def find_failure(error: BaseException, tape: Tape, calls: Calls) -> Failure:
    """What is known of the ``error`` that ended a forward."""
    text = _text(error)
    progress = calls.count + len(tape.nodes)  # before what is called here counts
    values, key = calls.failed[1] if calls.failed is not None and calls.failed[0] is error else (), None
    if calls.failed is not None and calls.failed[2] is Tensor.__getitem__ and values:
        key = values[0][1] if isinstance(values[0][1], str) else None
        values = values if key or not _tensors(values[0][1]) else values[0][1:]  # an index is at fault
    elif isinstance(error, AttributeError) and isinstance(error.obj, Tensor):
        values, key = (error.obj,), error.name
    calls.failed = None  # it holds what the forward held
    blamed = _origins(tape, map(tape.ref, _tensors(values)))
    if not blamed:
        unpacked = _UNPACKED.search(text)
        refs = [ref for ref in map(tape.ref, _locals(error.__traceback__)) if ref is not None]
        blamed = _origins(tape, (ref for ref in refs if unpacked is None or len(ref.shape) == int(unpacked[1])))
    return Failure(error, text, progress, blamed, key)


def _text(error: BaseException) -> str:
    try:
        return str(error)[:_LONGEST]
    except Exception:  # a class of the user's
        return ""


def _locals(traceback: TracebackType | None) -> list[Tensor]:
    """The tensors in reach of the innermost line that is not torch's."""
    found: list[Tensor] = []
    while traceback is not None:
        frame = traceback.tb_frame
        if not frame.f_globals.get("__name__", "").startswith(("torch.", "lightning_adam_mini.")):
            values = [value for name, value in frame.f_locals.items() if name != "self"]
            found = _tensors(values)
        traceback = traceback.tb_next
    return found


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(values)[0] if isinstance(leaf, Tensor)]


def _origins(tape: Tape, refs: Iterator[Ref | None]) -> dict[int, list[tuple[int, ...]]]:
    """From which inputs they were made, and their shapes."""
    origins: dict[int, frozenset[int]] = {}
    for number, given in enumerate(tape.given):
        if given is not None:
            origins[given.storage] = origins.get(given.storage, frozenset()) | {number}
    for node in tape.nodes:
        came = frozenset().union(*(origins.get(ref.storage, ()) for ref in node.inputs))
        for ref in (*node.outputs, *node.written):
            origins[ref.storage] = origins.get(ref.storage, frozenset()) | came
    found: dict[int, list[tuple[int, ...]]] = {}
    for ref in filter(None, refs):
        for number in sorted(origins.get(ref.storage, ())):
            found.setdefault(number, []).append(ref.shape)
    return found
