"""Running a model once, without leaving a trace in it, and reading off where its attention comes from."""

from __future__ import annotations

import copy
import random
import sys
import threading
import time
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_flatten

from lightning_adam_mini.detection.evidence.evidence import Evidence, NotSeen, Whole
from lightning_adam_mini.detection.evidence.failure import Calls, DoesNotRunError, find_failure
from lightning_adam_mini.detection.evidence.read import read
from lightning_adam_mini.detection.evidence.tape import Tape, TooLongError
from lightning_adam_mini.detection.tree import Tree

_running = threading.local()


def probe_attention(module: nn.Module, *args: Any, **kwargs: Any) -> Evidence:
    """Run ``module`` once on an example and find the lines of its parameters that make queries, keys and values.

    Sees softmax attention however it is written, in custom autograd functions, checkpoints and compiled modules too (these run without
    compilation). What it cannot trace is listed in :attr:`Evidence.not_seen`, and nothing is claimed of it. Parameters, buffers,
    gradients, random numbers and attributes are left as they were. Works on the meta device, unless the model needs values.

    Args:
        module: The model. It runs in the mode, train or eval, that it is in.
        args: What to call it with: an example of at least two tokens.
        kwargs: What to call it with.

    Raises:
        ValueError: If the model does not run on the example.

    Example:
        >>> layer = nn.MultiheadAttention(8, 2)
        >>> x = torch.zeros(5, 1, 8)
        >>> probe_attention(layer, x, x, x).by_name["in_proj_weight"].lines
        'q:2x4|k:2x4|v:2x4'
    """
    return probe_call(module, lambda: module(*args, **kwargs), (args, kwargs))


def example_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example input as arguments: a mapping as keywords, a tuple or list one by one, anything else as the only one.

    Example:
        >>> example_call({"x": 1}), example_call((1, 2)), example_call(1)
        (((), {'x': 1}), ((1, 2), {}), ((1,), {}))
    """
    if isinstance(example, Mapping):
        return (), {str(key): value for key, value in example.items()}
    return (tuple(example), {}) if isinstance(example, (tuple, list)) else ((example,), {})


def probe_call(
    module: nn.Module, function: Callable[[], Any], inputs: Any = (), *, seconds: float | None = None, alone: bool = False
) -> Evidence:
    """Like :func:`probe_attention`, for any way of running ``module``, such as a training step.

    Args:
        module: The model whose parameters are wanted.
        function: What runs it.
        inputs: The tensors that ``function`` works on, in any nesting.
        seconds: The most time that it may take; what was not seen by then is not told. [default: no limit]
        alone: Whether other processes do not run it too, so that it may not call them.

    Raises:
        ValueError: If it does not run.

    Example:
        >>> layer = nn.TransformerEncoderLayer(8, 2, 16)
        >>> x = torch.zeros(5, 1, 8)
        >>> probe_call(layer, lambda: layer(x).sum(), x).attentions
        ('self_attn',)
    """
    if getattr(_running, "on", False):  # a hook of the module probes the module that runs because of a probe
        return Evidence(not_seen=(NotSeen("", "a probe is already running"),))
    _running.on = True
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        tree = Tree.of(module)
        tape, is_sound = _record(module, tree, function, inputs, deadline, alone)
    except TooLongError:
        return Evidence(not_seen=(NotSeen("", f"it takes longer than {seconds:.0f} seconds"),))
    finally:
        _running.on = False
    with torch.random.fork_rng(devices=[]), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        torch.default_generator.manual_seed(0)  # and no device's, as torch.manual_seed would, now or when it is first used
        evidence = read(tape, tree.slots)
    # Where a call failed and the forward went on, it may have ended before its end.
    return evidence if is_sound else replace(evidence, whole=Whole())


def _record(
    module: nn.Module, tree: Tree, function: Callable[[], Any], inputs: Any, deadline: float | None, alone: bool
) -> tuple[Tape, bool]:
    names = {inner: path for path, inner in tree.modules.items()}
    weights = {slot.name: slot.param for slot in tree.slots}
    tensors = [leaf for leaf in tree_flatten(inputs)[0] if isinstance(leaf, Tensor)]
    tape = Tape(module, names, weights, tensors, deadline, alone)
    with _as_it_was(module, [t.device for t in (*weights.values(), *tensors)], tape), ExitStack() as stack:
        stack.callback(register_module_forward_pre_hook(tape.enter_module).remove)
        stack.callback(register_module_forward_hook(tape.leave_module, always_call=True).remove)
        stack.enter_context(_plainly())
        calls = Calls()
        if alone:  # it will be asked what the forward wants
            stack.enter_context(calls)
        try:
            with tape:
                function()
        except TooLongError:
            raise
        except Exception as error:
            on_meta = any(tensor.is_meta for tensor in (*weights.values(), *tensors))
            remedy = (
                "Its forward needs values: probe a small one that is not on the meta device"
                if on_meta
                else "Give it what its forward takes"
            )
            refused = DoesNotRunError(
                f"Cannot probe {type(module).__name__} because it does not run on the example: {type(error).__name__}: {error}. {remedy}."
            )
            refused.failure = find_failure(error, tape, calls)
            raise refused from error
    return tape, calls.failed is None


@contextmanager
def _as_it_was(module: nn.Module, devices: list[torch.device], tape: Tape) -> Iterator[None]:
    """Put everything back: written tensors, buffers and attributes of modules, random states."""
    cuda = {device.index for device in devices if device.type == "cuda" and device.index is not None}
    states = [(m, dict(vars(m))) for m in module.modules()]
    # Parameters, buffers and modules of each module, and whatever it collects, as a list of losses.
    contents: dict[int, tuple[Any, Any]] = {}
    generators: dict[int, tuple[torch.Generator, Tensor]] = {}
    others: dict[int, tuple[Any, Any]] = {}  # of Python's and numpy's random numbers
    todo: list[tuple[Any, int]] = [(value, 0) for _, attributes in states for value in attributes.values()]
    while todo:
        value, depth = todo.pop()
        if isinstance(value, torch.Generator):
            generators[id(value)] = (value, value.get_state())
        elif isinstance(value, random.Random):
            others.setdefault(id(value), (value.setstate, value.getstate()))
        elif hasattr(bits := getattr(value, "bit_generator", None), "state"):
            others.setdefault(id(value), (partial(setattr, bits, "state"), copy.deepcopy(getattr(bits, "state"))))  # noqa: B009
        elif type(value) in _CONTAINERS and id(value) not in contents:
            contents[id(value)] = (value, value.copy() if value else ())
            inner = value.values() if isinstance(value, dict) else value
            todo += [(v, depth + 1) for v in inner] if depth < _DEEPEST and len(value) <= _WIDEST else []
    state, numpy = random.getstate(), sys.modules.get("numpy")
    settings = [get() for get, _ in _SETTINGS]
    numpy_state = None if numpy is None else numpy.random.get_state()
    with torch.random.fork_rng(devices=sorted(cuda)):
        try:
            yield
        finally:
            random.setstate(state)
            if numpy is not None and numpy_state is not None:
                numpy.random.set_state(numpy_state)
            for holder, attributes in states:
                vars(holder).clear()
                vars(holder).update(attributes)
            for generator, before in generators.values():
                generator.set_state(before)
            for restore, before in others.values():
                restore(before)
            for (get, restore), before in zip(_SETTINGS, settings, strict=True):
                if get() != before:
                    restore(before)
            for container, before in contents.values():
                container.clear()
                (container.extend if isinstance(container, (list, deque)) else container.update)(before)
            tape.put_back()


_SETTINGS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_num_threads, torch.set_num_threads),
    (torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),  # as an error or as a warning
    (lambda: torch.backends.cudnn.benchmark, lambda value: setattr(torch.backends.cudnn, "benchmark", value)),
    (lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()), lambda modes: torch.autograd.set_detect_anomaly(*modes)),
    (sys.getrecursionlimit, sys.setrecursionlimit),
)
"""What a forward may set for all of the process. Not the precision of products: torch refuses to say it where a user set it anew."""
_DEEPEST, _WIDEST = 4, 1000  # containers in containers, apart from those that hold data
_CONTAINERS = (dict, OrderedDict, defaultdict, list, set, deque)


@contextmanager
def _plainly() -> Iterator[None]:
    """Every operation by itself: no compilation, no fused layers, no casts from before; and no graph, which would take memory."""
    flex = sys.modules.get("torch.nn.attention.flex_attention")
    switch = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    before = None if flex is None else getattr(flex, switch, None)
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        if before is not None:
            stack.callback(setattr, flex, switch, before)
            setattr(flex, switch, True)
        stack.enter_context(warnings.catch_warnings())
        for message in ("Using `torch.compile", "flex_attention called without"):
            warnings.filterwarnings("ignore", message=message)
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        torch.clear_autocast_cache()
        stack.callback(torch.clear_autocast_cache)
        yield
