"""What the methods of a class call, by the names in their compiled code: no source text is read, and nothing is run."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType

from torch import nn

_WEIGHING = frozenset(
    {"softmax", "Softmax", "scaled_dot_product_attention", "multi_head_attention_forward", "flex_attention", "memory_efficient_attention"}
    | {"flash_attn_func", "flash_attn_qkvpacked_func", "sdpa_kernel", "MultiheadAttention"}
)
_OWN = ("torch.", "lightning.", "lightning_fabric.", "pytorch_lightning.")


def calls_attention(module: nn.Module) -> bool:
    """Whether a method of the class of ``module``, or a function that it calls by name, calls softmax or attention as a whole."""
    return not _WEIGHING.isdisjoint(called_names(type(module))) or any(isinstance(c, nn.Softmax) for c in module._modules.values())


@lru_cache(maxsize=4096)
def called_names(cls: type) -> frozenset[str]:
    """Names of the functions, methods and attributes that the methods of ``cls`` use, and those of the functions that these name."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base in (nn.Module, object) or f"{base.__module__}.".startswith(_OWN):
            continue  # fully_shard puts a class of torch's before the user's
        for value in vars(base).values():
            function = getattr(value, "__func__", value)
            if isinstance(function, FunctionType):
                used = set(_names(function.__code__))
                names |= used
                for name in used:
                    helper = function.__globals__.get(name)
                    names.add(str(getattr(helper, "__name__", name)))  # imported under another name
                    if isinstance(helper, FunctionType) and not helper.__module__.startswith("torch"):
                        names.update(_names(helper.__code__))
    return frozenset(names)


@lru_cache(maxsize=4096)
def reads(cls: type, name: str) -> bool:
    """Whether a method of ``cls`` other than ``__init__`` uses an attribute called ``name``."""
    return any(key != "__init__" and name in _names(function.__code__) for key, function in methods(cls))


def methods(cls: type) -> Iterator[tuple[str, FunctionType]]:
    """The functions that ``cls`` and its bases but ``nn.Module`` define, by name."""
    for base in cls.__mro__:
        if base is not nn.Module:
            yield from ((key, value) for key, value in vars(base).items() if isinstance(value, FunctionType))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
