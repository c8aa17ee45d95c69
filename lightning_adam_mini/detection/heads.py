"""How many heads a module declares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

from torch import nn

from lightning_adam_mini.detection.expressions import MissingError, attribute

# What the libraries call these numbers. Names only propose: a number counts where the rows of a weight are heads x head_dim exactly.
_HEADS = (
    "num_heads",
    "num_attention_heads",
    "n_heads",
    "n_head",
    "num_head",
    "heads",
    "nhead",
    "nheads",
    "num_q_heads",
    "num_query_heads",
    "attention_heads",
    "encoder_attention_heads",
    "attn_heads",
    "h",
)
_KEY_HEADS = (
    "num_key_value_heads",
    "num_kv_heads",
    "n_kv_heads",
    "kv_heads",
    "n_kv_head",
    "n_query_groups",
    "num_query_groups",
    "num_key_heads",
    "multi_query_group_num",
    "n_heads_kv",
    "num_heads_kv",
    "num_heads_k",
)
_HEAD_DIM = (
    "head_dim",
    "attention_head_size",
    "dim_head",
    "head_size",
    "d_head",
    "key_value_proj_dim",
    "dim_key",
    "key_dim",
    "d_k",
    "d_kv",
    "kv_channels",
    "attention_head_dim",
    "channels_per_head",
)


def _declared(module: nn.Module, names: tuple[str, ...]) -> Iterator[int]:
    holders: list[object] = [module]
    with suppress(MissingError):
        holders.append(attribute(module, "config"))
    for holder in holders:
        for name in names:
            try:
                value = attribute(holder, name)
            except MissingError:
                continue
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                yield value


def is_head_count(name: str) -> bool:
    """Whether an attribute called ``name`` is a number of heads by its name."""
    return name in _HEADS or name in _KEY_HEADS


def declared_heads(module: nn.Module) -> tuple[int, ...]:
    """Head counts that ``module`` or its ``config`` declares, likeliest first."""
    return tuple(dict.fromkeys(_declared(module, _HEADS)))


def declared_key_heads(module: nn.Module) -> tuple[int, ...]:
    """Counts of key and value heads that ``module`` or its ``config`` declares, where grouped-query attention has fewer."""
    return tuple(dict.fromkeys(_declared(module, _KEY_HEADS)))


def declared_head_dims(module: nn.Module) -> tuple[int, ...]:
    """Sizes of a head that ``module`` or its ``config`` declares."""
    return tuple(dict.fromkeys(_declared(module, _HEAD_DIM)))
