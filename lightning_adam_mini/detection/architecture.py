"""What kind of a network it is."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator

from torch import nn

from lightning_adam_mini.detection.claims import Claims
from lightning_adam_mini.detection.graph import is_message_passing
from lightning_adam_mini.detection.layers import is_linear
from lightning_adam_mini.detection.names import words
from lightning_adam_mini.detection.roles import CONVOLUTIONS, Architecture, Role
from lightning_adam_mini.detection.tree import Tree

_GRAPH_ARGUMENTS = frozenset({"edge_index", "adj", "adj_t", "graph", "g"})
_TIME_ARGUMENTS = frozenset({"timestep", "timesteps", "time"})
_TIME_WORDS = frozenset({"time", "timestep", "timesteps", "temb", "t"})
_STATE_SPACE = frozenset({"A_log", "time_decay"})
_ATTENTION = frozenset({Role.QUERY, Role.KEY, Role.QKV})
_RECURRENT = frozenset({Role.RECURRENT_INPUT, Role.RECURRENT_HIDDEN})


def find_architecture(tree: Tree, claims: Claims) -> tuple[Architecture, str]:
    """The architecture of a model and why it is believed to be so."""
    core = list(_core(tree))
    conv = next((module for module in tree.modules.values() if is_message_passing(module)), None)
    if conv is not None:
        return Architecture.GNN, f"passes messages ({type(conv).__name__})"
    argument = _argument(core, _GRAPH_ARGUMENTS)
    if argument is not None:
        return Architecture.GNN, f"forward() takes {argument}"
    sizes: Counter[Role] = Counter()
    for slot in tree.slots:
        role = claims.role(slot)
        if role is not None:
            sizes[role] += slot.param.numel()
    attention = sum(sizes[role] for role in _ATTENTION)
    # Three numbers of attention in a network of convolutions (CSATv2) do not make it a transformer.
    has_attention = attention > 0 and not (attention < 1e-3 * sum(sizes.values()) and any(sizes[role] for role in CONVOLUTIONS))
    stages = down_and_up(core)
    time = _time_argument(core, _TIME_ARGUMENTS) if stages else None
    time = time or _time_embedding(tree, core)
    if time is not None and stages is not None:
        return Architecture.DIFFUSION_UNET, f"{time} and has {stages}"
    if time is not None and has_attention:
        return Architecture.DIFFUSION_TRANSFORMER, f"{time} and has attention"
    return _by_size(tree, claims, sizes, has_attention)


def _by_size(tree: Tree, claims: Claims, sizes: Counter[Role], has_attention: bool) -> tuple[Architecture, str]:
    total = max(1, sum(sizes.values()))
    convs = sum(sizes[role] for role in CONVOLUTIONS)
    states = any(slot.attr in _STATE_SPACE for slot in tree.slots)
    if has_attention and states:
        return Architecture.HYBRID, "has attention and state space layers"
    if states:
        return Architecture.RNN, "has state space layers"
    if has_attention:
        # A transformer of images has a convolution or two to make patches; more than that takes part in the work.
        layers = sum(1 for slot in tree.slots if claims.role(slot) in CONVOLUTIONS)
        if convs > 0.05 * total and layers > 2:
            return Architecture.HYBRID, f"attention and {convs / total:.0%} of its parameters in {layers} convolutions"
        return Architecture.TRANSFORMER, "has attention"
    if sizes[Role.TOKEN_MIX]:
        return Architecture.MLP_MIXER, "mixes tokens by linear layers"
    recurrent = sum(sizes[role] for role in _RECURRENT)
    if recurrent and recurrent >= convs:
        return Architecture.RNN, "has recurrent layers"
    if convs > 0.05 * total or (convs and not sizes[Role.LINEAR]):
        return Architecture.CNN, "has convolutions and no attention"
    if sizes[Role.LINEAR] + sizes[Role.TOKEN_EMBEDDING]:
        return Architecture.MLP, "has linear layers only"
    return Architecture.UNKNOWN, "no layer of a known kind"


def _core(tree: Tree) -> Iterator[nn.Module]:
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
    for module in modules:
        try:
            parameters = inspect.signature(type(module).forward).parameters
        except (AttributeError, TypeError, ValueError):  # TorchScript has none
            continue
        for name in parameters:
            if name in names:
                return name
    return None


def _time_argument(core: list[nn.Module], names: frozenset[str]) -> str | None:
    argument = _argument(core, names)
    return None if argument is None else f"forward() takes {argument}"


def _time_embedding(tree: Tree, core: list[nn.Module]) -> str | None:
    """What shows that the model embeds diffusion time, which linear layers compute; a table of positions in time is not it."""
    argument = _time_argument(core, _TIME_ARGUMENTS)
    for module in tree.modules.values():
        kind = type(module).__name__
        if not {"timestep", "timesteps"}.isdisjoint(words(kind)):
            return argument or f"embeds time steps ({kind})"
        if argument is None or module not in tree.parents or _TIME_WORDS.isdisjoint(words(tree.parents[module][1])):
            continue
        if any(is_linear(inner) for inner in module.modules()):
            return argument
    return None


def down_and_up(core: list[nn.Module]) -> str | None:
    """What shows that one of the modules is a UNet of diffusion: lists of stages that go down and up; None if nothing does."""
    for module in core:
        lists = [name for name, child in module._modules.items() if isinstance(child, nn.ModuleList)]
        down = next((name for name in lists if words(name)[0] in ("down", "downs")), None)
        up = next((name for name in lists if words(name)[0] in ("up", "ups")), None)
        if down and up:
            return f"{down} and {up}"
        if down and any(words(name)[0] == "controlnet" for name in lists):
            return f"{down} that control another one"
    return None
