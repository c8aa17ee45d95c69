"""Signs of what kind a network is, read off its modules without running them."""

from __future__ import annotations

import dis
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

from torch import nn

from lightning_adam_mini.detection.architecture import Signs
from lightning_adam_mini.detection.calls import called_names, calls_attention, methods
from lightning_adam_mini.detection.graph import forward_arguments, graph_argument, is_message_passing
from lightning_adam_mini.detection.heads import is_head_count
from lightning_adam_mini.detection.layers import fans, is_bare, is_conv, is_depthwise, is_embedding, is_linear
from lightning_adam_mini.detection.names import ATTENTION_WORDS, words
from lightning_adam_mini.detection.roles import FEED_FORWARD, QUERIES_KEYS, Role
from lightning_adam_mini.detection.tree import Slot, Tree
from lightning_adam_mini.detection.unet import down_and_up, find_time_blocks

_STEPS = frozenset({"timestep", "timesteps"})
_TIME_ARGUMENTS = _STEPS | {"time", "t", "time_cond", "sigma", "sigmas", "noise_labels", "noise_level"}
_TIME_WORDS = _STEPS | {"time", "temb", "t", "noise"}
_STATE_SPACE = frozenset({"A_log", "A_logs", "time_decay"})
_WHOLE = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward", "flex_attention", "flash_attn_func"})
_SOFTMAX = frozenset({"softmax", "Softmax"})
_FOURIER = frozenset({"fft", "fft2", "fftn", "rfft", "rfft2", "rfftn"})
_PRODUCTS = frozenset({"matmul", "bmm", "einsum", "baddbmm", "mm"})
_PLAIN = FEED_FORWARD | {Role.LINEAR, Role.OTHER, Role.ATTN_OTHER, Role.CLASSIFIER}


def find_signs(tree: Tree) -> Signs:
    """The signs of a model or of a part of one."""

    def first(check: Callable[[nn.Module], str | None]) -> str | None:
        for module in tree.modules.values():
            with tree.guarded(module):
                if found := check(module):
                    return found
        return None

    core = list(core_of(tree))
    messages = first(lambda m: f"passes messages ({type(m).__name__})" if is_message_passing(m) else None)
    messages = messages or next((f"forward() takes {name}" for name in map(graph_argument, core) if name), None)
    messages = messages or first(lambda m: f"{type(m).__name__} takes edge_index" if graph_argument(m) == "edge_index" else None)
    messages = messages or next((why for module, why in tree.shown.messages.items() if module in tree.paths), None)
    states = any(slot.attr in _STATE_SPACE for slot in tree.slots)
    is_known = any(slot.role in QUERIES_KEYS for slot in tree.slots)
    strong = None if is_known else first(lambda m: _strong_attention(tree, m))
    weak = None
    fourier = None if is_known else _fourier(tree)
    # Of a network that was run whole it is known where it attends.
    was_run = any(slot in tree.shown.unread for slot in tree.slots) and tree.shown.attends.keys().isdisjoint(tree.paths)
    if not is_known and (strong or not fourier):
        weak = strong or (None if was_run else first(lambda m: _attention(tree, m))) or _tied_table(tree)
        weak = weak or next(
            (f"{type(m).__name__} multiplies products, as running showed" for m in tree.shown.products if m in tree.paths), None
        )
    time = _time(tree, core)
    return Signs(
        messages=messages,
        unet=_unet(tree, core, time),
        time=time,
        states="has state space layers" if states else None,
        fourier=fourier,
        attention=weak,
        strong=strong is not None,
    )


def core_of(tree: Tree) -> Iterator[nn.Module]:
    """The root, and what it holds as long as one child holds nearly all of it: a network in its LightningModule."""
    module, total = tree.root, sum(slot.param.numel() for slot in tree.slots)
    seen: set[nn.Module] = set()
    while module not in seen:
        yield module
        seen.add(module)
        heavy = [c for c in tree.children(module).values() if sum(s.param.numel() for s in tree.under(c)) > 0.95 * total]
        if len(heavy) != 1 or isinstance(heavy[0], (nn.ModuleList, nn.Sequential)):
            return
        module = heavy[0]


def _argument(modules: Iterable[nn.Module], names: frozenset[str]) -> str | None:
    found = next((name for module in modules for name in forward_arguments(module) if name in names), None)
    return f"forward() takes {found}" if found else None


def time_argument(core: Iterable[nn.Module]) -> str | None:
    """What says that a network is told the time, or a level of noise: an argument of its forward."""
    return _argument(core, _TIME_ARGUMENTS)


def time_words(core: Iterable[nn.Module]) -> frozenset[str]:
    """What embeds time is called by: the first word of the argument that it is given, such as ``sigma``."""
    found = [words(name)[0] for module in core for name in forward_arguments(module) if name in _TIME_ARGUMENTS]
    return frozenset(found[:1])


def _time(tree: Tree, core: list[nn.Module]) -> str | None:
    """What shows that the model embeds diffusion time. Linear layers or none compute it; a table is of positions in time."""
    argument, has_table = time_argument(core), False
    if argument and any(slot in tree.shown.told for slot in tree.slots):
        return argument
    called = _TIME_WORDS | time_words(core)
    for module in tree.modules.values():
        kind = type(module).__name__
        if not _STEPS.isdisjoint(words(kind)):
            return argument or f"embeds time steps ({kind})"
        if called.isdisjoint(words(tree.name_of(module))):
            continue
        has_table |= is_embedding(module)
        if argument and any(is_linear(inner) for inner in module.modules()):
            return argument
    return None if has_table else _argument(core, _STEPS)


def _unet(tree: Tree, core: list[nn.Module], time: str | None) -> str | None:
    blocks = find_time_blocks(tree)
    if blocks is not None:
        return str(blocks)
    time = time or _argument(core, _STEPS | {"time"})
    stages = next(filter(None, map(down_and_up, core)), None)
    if stages is None and any(module in tree.paths for module in tree.shown.joined):
        stages = "features of the way down joined on the way up, as running showed"
    return f"{time} and has {stages}" if time and stages else None


def _strong_attention(tree: Tree, module: nn.Module) -> str | None:
    """A module that weighs products of what several of its layers make of one input. Additive scores are one number per place."""
    if not _weighs(module):
        return None
    weights = [slot for slot in _near(tree, module) if _may_project(slot)]
    widths = [fans(slot) for slot in weights]
    inputs = [inner for _, inner in widths]
    if len(weights) > 1 and len(set(inputs)) < len(inputs) and all(outputs > 1 for outputs, _ in widths):
        return f"{type(module).__name__} weighs by softmax what its layers make"
    return None


def _attention(tree: Tree, module: nn.Module) -> str | None:
    kind = type(module).__name__
    matrices = [s for s in tree.under(module) if s.role in _PLAIN and len(s.shape) >= 2 and not is_conv(s.layer)]
    if not matrices:
        return None
    if _weighs(module) and any(slot in matrices for slot in _near(tree, module)):
        return f"{kind} weighs by softmax"
    if len(matrices) > 1 and not ATTENTION_WORDS.isdisjoint(words(kind)):
        return f"a class is called {kind}"
    heads = next((n for n, v in vars(module).items() if is_head_count(n) and n != "h" and type(v) is int and v > 1), None)
    if heads is not None:
        return f"{kind} declares {heads}"
    if isinstance(module, (nn.ModuleList, nn.Sequential)):
        children = list(tree.children(module).values())
        if len(children) > 1 and all(type(child) is type(children[0]) for child in children):
            held = sum(slot in matrices for slot in tree.under(children[0]))
            if held > 3 and any(slot.role is Role.NORM for slot in tree.slots):
                return f"a stack of {len(children)} {type(children[0]).__name__} of {held} matrices each"
    return None


def _fourier(tree: Tree) -> str | None:
    """What takes the place of attention by Fourier transforms, as in FNet: then neither names nor stacks of blocks are signs of it."""
    kinds = {type(module): None for module in tree.modules.values()}
    return next((f"{kind.__name__} mixes by Fourier transforms" for kind in kinds if not _FOURIER.isdisjoint(called_names(kind))), None)


def has_tied_table(tree: Tree) -> bool:
    """Whether a table of tokens is an output layer as well."""
    return any(slot.role is Role.TOKEN_EMBEDDING and len(slot.names) > 1 for slot in tree.slots)


def _tied_table(tree: Tree) -> str | None:
    tied = has_tied_table(tree)
    return "a table of tokens has an output as wide" if tied or any(s.role is Role.LM_HEAD for s in tree.slots) else None


def _near(tree: Tree, module: nn.Module) -> Iterator[Slot]:
    """The slots of a module, of its children and of theirs: what its own methods multiply by."""
    for child in (module, *tree.children(module).values()):
        for inner in (child, *tree.children(child).values()) if child is not module else (module,):
            yield from tree.own(inner).values()


def _may_project(slot: Slot) -> bool:
    if slot.magnitude or is_bare(slot) or is_depthwise(slot.layer) or len(slot.shape) < 2:
        return False
    return slot.role in _PLAIN | {Role.CONV}


def _weighs(module: nn.Module) -> bool:
    """Whether the class calls attention as a whole, or softmax and a product of matrices. Softmax alone is a classifier's."""
    used = called_names(type(module))
    # A name of MultiheadAttention alone may be one of layers to be initialised.
    softmax = calls_attention(module) and not ("MultiheadAttention" in used and _SOFTMAX.isdisjoint(used))
    return not _WHOLE.isdisjoint(used) or (softmax and (not _PRODUCTS.isdisjoint(used) or _multiplies(type(module))))


@lru_cache(maxsize=4096)
def _multiplies(cls: type) -> bool:
    """Whether a method of the class writes ``a @ b``."""
    codes = (code for _, function in methods(cls) for code in dis.get_instructions(function))
    return any(code.argrepr == "@" or "MATRIX_MULTIPLY" in code.opname for code in codes)
