"""The two ends of a network: embeddings, patch embeddings and first convolutions, output layers and classifiers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from lightning_adam_mini.detection.claims import Claim, Claims, Source
from lightning_adam_mini.detection.layers import is_conv, is_embedding, is_linear, is_norm, line_axis
from lightning_adam_mini.detection.names import unwrap, words
from lightning_adam_mini.detection.roles import Architecture, Role
from lightning_adam_mini.detection.tree import Slot, Tree

_POSITION = frozenset({"pos", "position", "positions", "positional", "rel", "relative", "wpe", "distance"})
_TYPE = frozenset({"type", "segment", "class", "label", "labels", "language", "langs", "lang"})
_TIME = frozenset({"time", "timestep", "timesteps"})
_SPECIAL = frozenset({"query", "queries", "token", "cls", "refpoint", "prompt"})
_MODULATION = frozenset({"ada", "adaptive", "adaln", "zero", "single", "continuous", "modulation", "modulated", "mod", "modulate", "film"})
_MODULATORS = frozenset({"modulation", "mod", "modulate", "film", "adaln"})
_HEADS = frozenset({"head", "heads", "classifier", "fc", "classification", "logits", "output", "out", "predictor", "prediction"})


def claim_tables(tree: Tree, claims: Claims, architecture: Architecture) -> None:
    """Add the claims of all embeddings and output layers."""
    declared = {id(slot) for slot in _declared(tree, "get_input_embeddings")}
    for slot in tree.slots:
        if is_embedding(slot.layer) and slot.attr == "weight" and claims.is_open(slot):
            claims.add(slot, _claim_embedding(slot, id(slot) in declared))
    _claim_time(tree, claims)
    _claim_output(tree, claims, architecture)
    _claim_first(tree, claims)
    _claim_patches(tree, claims)


def _declared(tree: Tree, method: str) -> Iterator[Slot]:
    """The weights of the modules that a method such as ``get_input_embeddings`` returns."""
    for module in tree.modules.values():
        get = getattr(type(module), method, None)
        if get is None:
            continue
        try:
            found = get(module)
        except Exception:  # not implemented, or not for this variant of the model
            continue
        if isinstance(found, nn.Module) and "weight" in (own := tree.own(unwrap(found))):
            yield own["weight"]


def _claim_embedding(slot: Slot, declared: bool) -> Claim:
    kind = type(slot.layer).__name__
    *outer, name = slot.path.split(".")
    named = set(words(name)) | set(words(kind))
    if name in ("emb", "embedding", "embed", "weight") and outer:
        named |= set(words(outer[-1]))
    if declared and named.isdisjoint(_POSITION):
        return Claim(Source.KNOWN, Role.TOKEN_EMBEDDING, "what get_input_embeddings() returns")
    for known, role in ((_POSITION, Role.POSITION_EMBEDDING), (_TIME, Role.TIME_EMBEDDING), (_TYPE, Role.TYPE_EMBEDDING)):
        if not known.isdisjoint(named):
            return Claim(Source.STRUCTURE, role, f"{kind} of {slot.shape[0]} entries named {name}")
    if "query" in named or "queries" in named:
        return Claim(Source.STRUCTURE, Role.SPECIAL_TOKEN, f"{kind} of {slot.shape[0]} entries named {name}")
    return Claim(Source.STRUCTURE, Role.TOKEN_EMBEDDING, f"{kind} of {slot.shape[0]} entries")


def _claim_time(tree: Tree, claims: Claims) -> None:
    """Layers that turn a time step or a condition into features, or these into scales and shifts of a norm."""
    for module in tree.modules.values():
        named = set(words(type(module).__name__))
        if module in tree.parents:
            named |= set(words(tree.parents[module][1]))
        if not named.isdisjoint(_TIME):
            role, why = Role.TIME_EMBEDDING, "embeds the time step"
        elif not is_linear(module) and not named.isdisjoint(_MODULATION) and (is_norm(module) or not named.isdisjoint(_MODULATORS)):
            role, why = Role.MODULATION, "scales and shifts a norm"
        else:
            continue
        for slot in tree.under(module):
            if is_linear(slot.layer) and claims.is_open(slot) and claims.role(slot) is Role.LINEAR:
                claims.add(slot, Claim(Source.STRUCTURE, role, f"{type(module).__name__} {why}", axis=line_axis(slot.layer)))


def _claim_output(tree: Tree, claims: Claims, architecture: Architecture) -> None:
    for slot in _declared(tree, "get_output_embeddings"):
        if claims.is_open(slot):
            claims.add(slot, Claim(Source.KNOWN, Role.LM_HEAD, "what get_output_embeddings() returns", axis=line_axis(slot.layer)))
    open_ = [s for s in tree.slots if is_linear(s.layer) and claims.is_open(s) and claims.role(s) is Role.LINEAR]
    vocabularies = {slot.shape for slot in tree.slots if claims.role(slot) is Role.TOKEN_EMBEDDING}
    for slot in open_:
        axis = line_axis(slot.layer)
        is_table = (slot.shape[axis], slot.shape[1 - axis]) in vocabularies or slot.path.rsplit(".", 1)[-1] == "lm_head"
        if is_table and not is_repeated(tree, slot.layer):
            why = "one output a token"
            claims.add(slot, Claim(Source.STRUCTURE, Role.LM_HEAD, why, axis=axis))
    for slot in _declared(tree, "get_classifier"):
        if claims.is_open(slot):
            claims.add(slot, Claim(Source.STRUCTURE, Role.CLASSIFIER, "what get_classifier() returns", axis=line_axis(slot.layer)))
    if any(claims.role(slot) in (Role.LM_HEAD, Role.CLASSIFIER) for slot in tree.slots):
        return
    last = next((slot for slot in reversed(tree.slots) if len(slot.shape) >= 2), None)
    named = set() if last is None else set(words(last.path.replace(".", "_")))
    plain = architecture in (Architecture.MLP, Architecture.CNN, Architecture.RNN)
    is_open = last is not None and any(last is slot for slot in open_) and claims.is_open(last)
    if last is not None and is_open and not is_repeated(tree, last.layer) and (plain or not named.isdisjoint(_HEADS)):
        claims.add(last, Claim(Source.STRUCTURE, Role.CLASSIFIER, "last linear layer", axis=line_axis(last.layer)))


def is_repeated(tree: Tree, module: nn.Module) -> bool:
    """Whether ``module`` is part of one of several like blocks in a list."""
    while module in tree.parents:
        parent, _ = tree.parents[module]
        if isinstance(parent, (nn.ModuleList, nn.Sequential)) and module._modules:
            peers = [type(child) for child in tree.children(parent).values()]
            if peers.count(type(module)) > 1:
                return True
        module = parent
    return False


def _claim_patches(tree: Tree, claims: Claims) -> None:
    """A linear layer in a module that is called a patch embedding."""
    for module in tree.modules.values():
        named = set(words(type(module).__name__)) | (set(words(tree.parents[module][1])) if module in tree.parents else set())
        if not ({"patch", "patches"} & named and {"embed", "embedding", "embedder", "embeddings"} & named):
            continue
        linears = [s for s in tree.under(module) if is_linear(s.layer) and claims.is_open(s) and claims.role(s) is Role.LINEAR]
        if len(linears) == 1:
            slot = linears[0]
            why = f"{type(module).__name__} embeds patches"
            claims.add(slot, Claim(Source.STRUCTURE, Role.PATCH_EMBEDDING, why, axis=line_axis(slot.layer)))


def _claim_first(tree: Tree, claims: Claims) -> None:
    """The first convolution: of patches if it steps over its whole kernel or is called so, else of an image."""
    convs = (s for s in tree.slots if is_conv(s.layer) and len(s.shape) >= 3 and not s.magnitude)
    first = next(convs, None)
    if first is None or not claims.is_open(first) or claims.role(first) is not Role.CONV:
        return
    conv = first.layer
    assert isinstance(conv, nn.modules.conv._ConvNd)
    named: set[str] = set(words(first.path.replace(".", "_")))
    if (conv.kernel_size == conv.stride and max(conv.stride) > 1) or "patch" in named:
        claims.add(first, Claim(Source.STRUCTURE, Role.PATCH_EMBEDDING, "first convolution, one output a patch"))
    else:
        claims.add(first, Claim(Source.STRUCTURE, Role.FIRST_CONV, "first convolution"))
