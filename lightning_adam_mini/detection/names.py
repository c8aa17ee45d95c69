"""Names of parameters: without the prefixes of wrappers, and cut into words."""

from __future__ import annotations

import re
from functools import lru_cache

from torch import nn

# Wrappers put themselves between a module and its parameters: torch.compile, FSDP, activation checkpointing, Fabric.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
_DATA_PARALLEL = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")


def canonical_name(name: str, root: nn.Module | None = None) -> str:
    """A parameter's name without the prefixes that wrappers add.

    Args:
        name: Name as ``named_parameters()`` gives it.
        root: The module that ``named_parameters()`` was called on. A leading ``module.`` is taken for a wrapper's, unless ``root`` shows
            that it is not (a user's own attribute may be called ``module``).

    Example:
        >>> canonical_name("module._orig_mod.layer1.0.conv1.weight")
        'layer1.0.conv1.weight'
    """
    name = strip_wrappers(name)
    for _ in range(1 if root is None else unwrap_root(root)[1]):
        name = name.removeprefix("module.")
    return name


def strip_wrappers(name: str) -> str:
    """A parameter's name without the prefixes of wrappers whose names no user chooses; a leading ``module.`` stays."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside wrappers (torch.compile, checkpointing, FSDP)."""
    while True:
        inner = next((module._modules[name] for name in _WRAPPERS if module._modules.get(name) is not None), None)
        if inner is None:
            return module
        module = inner


def unwrap_root(root: nn.Module) -> tuple[nn.Module, int]:
    """The module inside all wrappers around a whole model, and how many of them are data parallelism, which adds ``module.``."""
    layers = 0
    while True:
        root = unwrap(root)
        inner = root._modules.get("module") if type(root).__name__ in _DATA_PARALLEL else None
        if inner is None:
            return root, layers
        root, layers = inner, layers + 1


@lru_cache(maxsize=16384)
def words(name: str) -> tuple[str, ...]:
    """The words of an identifier, lower case.

    Example:
        >>> words("k_proj"), words("toQuery2"), words("SelfAttention"), words("network")
        (('k', 'proj'), ('to', 'query', '2'), ('self', 'attention'), ('network',))
    """
    return tuple(word.lower() for word in _WORD.findall(name))
