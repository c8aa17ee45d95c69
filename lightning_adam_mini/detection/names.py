"""Names of parameters, found by walking the modules past wrappers; and identifiers cut into words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor, nn

# What puts itself between a model and its parameters: a wrapper's package and class, and the attribute in which it holds what it wraps.
# It is known by its class, for a user's own attribute may have any name; and by the name of the class, so that nothing is imported.
_WRAPPERS = {
    ("torch", "OptimizedModule"): "_orig_mod",
    ("torch", "DataParallel"): "module",
    ("torch", "DistributedDataParallel"): "module",
    ("torch", "FullyShardedDataParallel"): "_fsdp_wrapped_module",
    ("torch", "ActivationWrapper"): "_checkpoint_wrapped_module",
    ("lightning", "_FabricModule"): "_forward_module",
    ("lightning_fabric", "_FabricModule"): "_forward_module",
    ("deepspeed", "DeepSpeedEngine"): "module",
    ("apex", "DistributedDataParallel"): "module",
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

ATTENTION_WORDS = frozenset({"attention", "attn", "mha", "mhsa"})
"""Words of what a class of attention is called."""


class Place(NamedTuple):
    """A place in a model where a module is.

    Attributes:
        path: Its canonical path: without the attributes of wrappers.
        module: The module, which is no wrapper.
        holder: The module that holds it, which is none either; None for the root.
        attr: Its name on ``holder``.
    """

    path: str
    module: nn.Module
    holder: nn.Module | None
    attr: str


def parameter_names(module: nn.Module) -> dict[Tensor, str]:
    """Name of each parameter as in its :class:`~lightning_adam_mini.ModelReport`: the one that it had before anything was wrapped.

    Example:
        >>> model = nn.DataParallel(nn.ModuleDict({"module": nn.Linear(2, 2), "last": nn.DataParallel(nn.Linear(2, 2, bias=False))}))
        >>> [name for name, _ in model.named_parameters()]
        ['module.module.weight', 'module.module.bias', 'module.last.module.weight']
        >>> list(parameter_names(model).values())
        ['module.weight', 'module.bias', 'last.weight']
    """
    names: dict[Tensor, str] = {}
    for place in places(module):
        for attr, p in place.module._parameters.items():
            if p is not None:
                names.setdefault(p, join(place.path, attr))
    return names


def places(root: nn.Module) -> Iterator[Place]:
    """All places in ``root``, itself first, in the order of ``named_modules()``. A module that is held several times has several."""
    return _places(Place("", unwrap(root), None, ""), ())


def _places(place: Place, around: tuple[nn.Module, ...]) -> Iterator[Place]:
    yield place
    around = (*around, place.module)
    for attr, child in place.module._modules.items():
        # A module may hold one that it is in itself. Modules may define what equals them.
        if child is None:
            continue
        inner = unwrap(child)
        if all(inner is not outer for outer in around):
            yield from _places(Place(join(place.path, attr), inner, place.module, attr), around)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside wrappers: torch.compile, data parallelism, FSDP, activation checkpointing, Fabric."""
    while (inner := _wrapped(module)) is not None:
        module = inner
    return module


def _wrapped(module: nn.Module) -> nn.Module | None:
    """What a wrapper holds; None for other modules, and for wrappers with parameters beside, whose names may be those of the inner ones."""
    attr = _held_as(type(module))
    inner = None if attr is None else module._modules.get(attr)
    if inner is None or any(p is not None for p in module._parameters.values()):
        return None
    beside = [child for child in module._modules.values() if child is not None and child is not inner]
    if beside:  # Fabric holds the model a second time, as it was given
        within = set(inner.parameters())
        if any(p not in within for child in beside for p in child.parameters()):
            return None
    return inner


@lru_cache(maxsize=4096)
def _held_as(cls: type) -> str | None:
    """The attribute in which a class of wrappers holds what it wraps; None for other classes."""
    classes = ((str(kind.__module__).partition(".")[0], kind.__name__) for kind in cls.__mro__)
    return next((_WRAPPERS[kind] for kind in classes if kind in _WRAPPERS), None)


def join(path: str, attr: str) -> str:
    """The path of what is called ``attr`` at ``path``."""
    return f"{path}.{attr}" if path else attr


@lru_cache(maxsize=16384)
def words(name: str) -> tuple[str, ...]:
    """The words of an identifier, lower case.

    Example:
        >>> words("k_proj"), words("toQuery2"), words("SelfAttention"), words("network")
        (('k', 'proj'), ('to', 'query', '2'), ('self', 'attention'), ('network',))
    """
    return tuple(word.lower() for word in _WORD.findall(name))


def own_parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """A parameter that a module itself holds; None if it has none of that name. TorchScript's modules know no ``_parameters.get``."""
    return next((p for attr, p in module._parameters.items() if attr == name), None)
