"""Running attention alone: where the heads are not proven, the module is run by itself on a made-up input.

A module that a user wrote says by names which of its layers makes queries. In which order their lines are heads only its forward says.
So it is run with made-up weights, on the CPU or else on the meta device: nothing of the user's module is touched, and the sizes of the
input are chosen so that no two are equal. Where a module cannot be run alone, the one that holds it is tried, out to the whole model.

A network written by hand is run once as a whole: what no layer reads is an output, and a feed-forward is what feeds one another.
"""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from enum import Enum
from functools import partial

import torch
from torch import Tensor, nn

from lightning_adam_mini.detection.calls import calls_attention, reads
from lightning_adam_mini.detection.evidence import DoesNotRunError, Evidence, TooLongError, probe_call
from lightning_adam_mini.detection.inputs import Call
from lightning_adam_mini.detection.mending import Trials
from lightning_adam_mini.detection.names import ATTENTION_WORDS, words
from lightning_adam_mini.detection.registry import is_conventional
from lightning_adam_mini.detection.roles import ATTENTION, Role, Source
from lightning_adam_mini.detection.shown import UNCLEAR, claim_shown
from lightning_adam_mini.detection.signs import core_of
from lightning_adam_mini.detection.tree import Claim, Tree

SECONDS = 20.0
"""The most time that all runs of one inspection take; what is not proven by then stays a guess."""

_log = logging.getLogger(__name__)
_ON_CPU = 1 << 24  # elements of the largest module that is run with values, buffers included
_LONGEST = 5.0  # seconds of one run
_FARTHEST = 4  # modules that are run for one: itself, two around it, the whole model
_NAMED = ATTENTION_WORDS | {"msa"}
_INTERNAL = frozenset(vars(nn.Module()))
_PLACE = frozenset({"idx", "index", "id", "layer", "depth", "i"})


def claim_running(tree: Tree, seconds: float = SECONDS) -> None:
    """Run the modules that may be attention and whose heads are not proven, and add what that shows.

    Args:
        tree: The model.
        seconds: The most time that it may take.
    """
    deadline = time.monotonic() + seconds
    known: dict[object, tuple[Evidence, bool]] = {}
    suspects = [module for module in reversed(tree.modules.values()) if _unproven(tree, module)]  # inner before outer
    # Each alone, before any is tried within what is around it, which takes longer.
    for distance in range(_FARTHEST):
        for module in list(suspects):
            with tree.guarded(module):
                around = _outwards(tree, module)
                if distance < len(around) and time.monotonic() < deadline and _unproven(tree, module):
                    part = around[distance]
                    key = _signature(part)
                    if key not in known:
                        known[key] = run_alone(part, deadline)
                    evidence, ran = known[key]
                    claim_shown(tree, evidence, tree.paths[part])
                    if ran and not evidence.attentions:  # it does something else
                        suspects.remove(module)
    whole = _whole(tree)
    if whole is not None and not tree.shown.unread:
        with tree.guarded(whole):
            key = _signature(whole)
            evidence = known[key][0] if key in known else run_alone(whole, min(deadline, time.monotonic() + _LONGEST), once=True)[0]
            claim_shown(tree, replace(evidence, parameters=(), not_seen=()), tree.paths[whole], whole=True)
    for module in suspects:
        _complete(tree, module)
        if _unproven(tree, module):
            _doubt(tree, module)


def _whole(tree: Tree) -> nn.Module | None:
    """The network to be run for what its layers give to each other: the outermost with a forward of its own, written by hand."""
    for module in core_of(tree):
        if _has_forward(module):
            held = set(tree.under(module))
            inner = module.modules() if isinstance(module, nn.Sequential) else [module]
            is_plain = all(is_conventional(type(part)) for part in inner)
            return None if is_plain or any(len(slot.shape) >= 2 and slot not in held for slot in tree.slots) else module
    return None


def _has_forward(module: nn.Module) -> bool:
    """Whether the class says what running it is."""
    return getattr(type(module).forward, "__qualname__", "") not in ("_forward_unimplemented", "LightningModule.forward")


def _complete(tree: Tree, module: nn.Module) -> None:
    """Queries are compared with keys head by head: where running showed one of them to lie as supposed, the other does too."""
    slots = [(slot, slot.claim, slot.claim.lines.partition("x")[2]) for slot in tree.under(module) if slot.claim.lines]
    shown = {(claim.role, size) for _, claim, size in slots if claim.source is Source.EVIDENCE}
    for slot, held, size in slots:
        other = {Role.QUERY: Role.KEY, Role.KEY: Role.QUERY}.get(held.role)
        if _is_supposed(held) and (other, size) in shown:
            reason = f"{held.reason.removesuffix(' if its heads lie in turn')}, as running showed of the {other}"
            slot.add(replace(held, source=Source.EVIDENCE, reason=reason, guess=False))


def _doubt(tree: Tree, module: nn.Module) -> None:
    """Mark what is open in a module that calls attention, or is called so, none of which was found; of what is only called so, its own."""
    slots = list(tree.under(module))
    if not calls_attention(module):
        slots = [slot for slot in slots if tree.parent(slot.layer) is module and not is_conventional(type(module))]
    for slot in slots:
        if slot.is_open and slot.role in UNCLEAR and len(slot.shape) >= 2:
            why = f"{slot.claim.reason}; {type(module).__name__} is attention, and it was not found what makes queries and keys"
            slot.add(replace(slot.claim, reason=why, guess=True))


def _outwards(tree: Tree, module: nn.Module) -> list[nn.Module]:
    """``module``, the two around it that can be run, and the whole model; of known libraries the module alone."""
    found = [part for part in tree.around(module) if _has_forward(part) and next(tree.under(part), None) is not None]
    return found[:1] if is_conventional(type(module)) else list(dict.fromkeys([*found[: _FARTHEST - 1], *found[-1:]]))


def _unproven(tree: Tree, module: nn.Module) -> bool:
    """Whether ``module`` is attention, or may be, and neither a known module nor running has said which of its lines are heads."""
    kind = type(module)
    if module in tree.attention:
        return any(_is_supposed(slot.claim) for slot in tree.under(module))
    if not _is_named(module) and (is_conventional(kind) or not calls_attention(module)):
        return False
    # Functions of attention have no weights of their own: those of the module that holds them count.
    held = list(tree.under(module)) or list(tree.under(tree.parent(module) or module))
    matrices = [slot.claim for slot in held if len(slot.shape) >= 2]
    is_met = any(claim.role in ATTENTION and not _is_supposed(claim) for claim in matrices)
    return not is_met and any(_is_supposed(claim) or claim.role in UNCLEAR for claim in matrices)


def _is_named(module: nn.Module) -> bool:
    return not _NAMED.isdisjoint(words(type(module).__name__))


def _is_supposed(claim: Claim) -> bool:
    return claim.source < Source.EVIDENCE and claim.role in ATTENTION and (claim.lines is None or claim.guess)


def run_alone(module: nn.Module, deadline: float, *, once: bool = False) -> tuple[Evidence, bool]:
    """What ``module`` shows by itself on made-up inputs, and whether it ran on one at all.

    With values on the CPU; on the meta device, where no index is too large, if it is large or if one was.

    Args:
        module: The module.
        deadline: When to stop.
        once: Whether the first input that it runs on is enough. [default: the first on which its attention shows]
    """
    found, ran, out_of_range = Evidence(), False, True
    if not _can_run(module):
        return found, ran
    if sum(t.numel() for t in (*module.parameters(), *module.buffers())) <= _ON_CPU:
        found, ran, out_of_range = _run_on("cpu", _on_cpu, module, deadline, once)
    if out_of_range and not ran:
        found, ran, _ = _run_on("meta", _on_meta, module, deadline, once)
    return found, ran


def _run_on(device: str, make: Callable[[Tensor], Tensor], module: nn.Module, deadline: float, once: bool) -> tuple[Evidence, bool, bool]:
    """What it shows there, whether it ran, and whether a run failed because an index was too large."""
    best, ran, out_of_range = Evidence(), False, False
    trials = Trials(module, device)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        _elsewhere(module, make),
    ):
        warnings.simplefilter("ignore")
        torch.default_generator.manual_seed(0)
        for trial in trials:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            try:
                call = partial(_call, module, min(left, _LONGEST), trial)
                evidence = probe_call(module, call, [tensor for _, tensor in trial.leaves], seconds=left, alone=True)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # whatever it is, it is the forward's, and ends nothing else
                _log.debug("%s does not run alone on %s", type(module).__name__, device, exc_info=True)
                if isinstance(error, TooLongError):
                    break
                if isinstance(error, DoesNotRunError):
                    trials.failed(trial, error.failure)
                out_of_range |= isinstance(error.__cause__, IndexError)
                for raised in (error, error.__cause__):  # their frames hold what the forward held
                    traceback.clear_frames(raised.__traceback__ if raised is not None else None)
                continue
            if not evidence.parameters and time.monotonic() >= deadline:
                break  # it was not read to its end
            if evidence.parameters or once:
                return evidence, True, False
            ran = trials.ran = True
            best = evidence if evidence.attentions or not best.whole.unread else best
    return best, ran, out_of_range


@contextlib.contextmanager
def _elsewhere(module: nn.Module, make: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Made-up parameters and buffers in the place of the module's own, which nothing reads or writes meanwhile, and no hooks."""
    tables = [table for inner in module.modules() for table in (inner._parameters, inner._buffers)]
    hooks = [table for inner in module.modules() for table in (inner._forward_hooks, inner._forward_pre_hooks)]
    before = [(table, dict(table)) for table in (*tables, *hooks)]
    made: dict[int, Tensor] = {}
    try:
        for table in tables:
            for name, tensor in table.items():
                if tensor is not None:
                    table[name] = made.setdefault(id(tensor), make(tensor))  # type: ignore[assignment]
        for table in hooks:
            for key in [key for key, hook in table.items() if not type(hook).__module__.startswith("torch.nn.utils.")]:
                del table[key]  # weight_norm and the like make the weight
        yield
    finally:
        for table, held in before:
            table.clear()
            table.update(held)  # type: ignore[arg-type]


def _can_run(module: nn.Module) -> bool:
    """Whether the parameters of ``module`` can be replaced for a while: those of TorchScript cannot."""
    return not any(isinstance(inner, torch.jit.ScriptModule) for inner in module.modules())


@contextlib.contextmanager
def _stopped(seconds: float) -> Iterator[None]:
    """End what sleeps or waits, where signals can do that and nobody else uses the timer."""
    if (
        threading.current_thread() is not threading.main_thread()
        or not hasattr(signal, "setitimer")
        or any(signal.getitimer(signal.ITIMER_REAL))
    ):
        yield
        return

    def stop(*_: object) -> None:
        raise TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01), 1.0)  # again, if a forward goes on nevertheless
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _call(module: nn.Module, seconds: float, call: Call) -> object:
    with _stopped(seconds):
        return module(*call.args, **call.kwargs)


def _on_meta(tensor: Tensor) -> Tensor:
    made = torch.empty(tensor.shape, dtype=_dtype(tensor), device="meta")
    return nn.Parameter(made, requires_grad=made.is_floating_point()) if isinstance(tensor, nn.Parameter) else made


def _on_cpu(tensor: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(
            torch.randn(tensor.shape) * 0.1 if tensor.is_floating_point() else torch.zeros(tensor.shape, dtype=tensor.dtype),
            requires_grad=tensor.is_floating_point(),
        )
    if tensor.is_meta:
        return torch.zeros(tensor.shape, dtype=_dtype(tensor))
    return tensor.detach().to("cpu", _dtype(tensor), copy=True)


def _dtype(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def _signature(module: nn.Module) -> object:
    """Equal for modules that do the same: classes, shapes and settings, apart from unread numbers that say where a module stands."""
    parts = []
    for path, inner in module.named_modules():
        plain = tuple((name, _plain(value)) for name, value in vars(inner).items() if not _is_place(inner, name, value))
        shapes = tuple((name, tuple(p.shape)) for name, p in inner._parameters.items() if p is not None)
        parts.append((path, type(inner), plain, shapes))
    return tuple(parts)


def _is_place(module: nn.Module, name: str, value: object) -> bool:
    """Whether an attribute is torch's own, or a number of the module that nothing reads."""
    return name in _INTERNAL or (isinstance(value, int) and not _PLACE.isdisjoint(words(name)) and not reads(type(module), name))


def _plain(value: object, depth: int = 3) -> object:
    """What of a setting may change what a module does: its value, or which object it is."""
    if isinstance(value, float):
        return None  # a rate of dropout
    if value is None or isinstance(value, (bool, int, str, Enum, torch.dtype)):
        return repr(value)
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return tuple((str(key), _plain(inner, depth - 1)) for key, inner in value.items()) if depth else len(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(_plain(inner, depth - 1) for inner in value) if depth else len(value)
    if callable(value) and not isinstance(value, nn.Module):
        return id(value)
    held = getattr(value, "__dict__", None)
    return (type(value), _plain(held, depth - 1) if isinstance(held, dict) and depth and not isinstance(value, nn.Module) else None)
