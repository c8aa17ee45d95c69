"""This package's optimizer among the rivals, by the names that `compare` and the timings have in common.

A name is a partition of `AdamMiniCallback`, if need be with its momentum_dtype and options after colons: ``adam_mini:8bit``,
``adam_mini:embedding=none``, ``slim_adam:rules=rules.yaml``. After a plus stands what it is combined with, and its settings:
``auto+sophia``, ``auto+galore:rank=32``; ``auto+badam:every=50`` trains beside `BAdam`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from experiments.rivals.paired import orthogonalised
from experiments.rivals.rival import Rival, blocks_of, blockwise
from lightning_adam_mini import AdamMini
from lightning_adam_mini.combine.part import read_settings
from recipes.optim import Groups, Settings

MOMENTUM = {"bfloat16": (torch.bfloat16, 2), "8bit": ("8bit", 1)}  # what AdamMini calls it, and its bytes


def callback_arguments(name: str) -> dict[str, Any]:
    """Return the arguments of `AdamMiniCallback` that a name stands for.

    Args:
        name: Name of an optimizer that is a partition.

    Example:
        >>> callback_arguments("adam_mini:value=whole:bfloat16")
        {'partition': 'adam_mini', 'momentum_dtype': 'bfloat16', 'options': {'value': 'whole'}}
        >>> callback_arguments("auto+galore:rank=32")
        {'partition': 'auto', 'combine': 'galore:rank=32'}
    """
    asked, _, combined = name.partition("+")
    partition, *parts = asked.split(":")
    arguments: dict[str, Any] = {"partition": partition}
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if equals:
            options[key] = value
        else:
            arguments["momentum_dtype"] = part
    if combined and badam_arguments(name) is None:
        arguments["combine"] = combined
    return arguments | ({"options": options} if options else {})


def badam_arguments(name: str) -> dict[str, Any] | None:
    """Return the arguments of `BAdam` that a name stands for; none of one that does not train by blocks.

    Args:
        name: Name of an optimizer that is a partition.

    Example:
        >>> badam_arguments("auto+badam:every=50"), badam_arguments("auto+sophia")
        ({'every': 50}, None)
    """
    combined, settings = read_settings(name.partition("+")[2])
    return settings if combined == "badam" else None


def ours(name: str, suffix: str = "", **options: Any) -> Rival:
    """Return this package's optimizer as a rival that is timed.

    Args:
        name: Its partition, with its momentum_dtype after a colon.
        suffix: What its title has besides.
        options: Further arguments of `AdamMini`.

    Example:
        >>> [ours(name).title for name in ("auto", "auto:8bit", "normuon:8bit")]
        ['AdamMini', 'AdamMini 8-bit momentum', 'AdamMini normuon, 8-bit momentum']
    """
    arguments = callback_arguments(name)
    partition, kept = arguments["partition"], arguments.get("momentum_dtype", "")
    dtype, momentum_bytes = MOMENTUM.get(kept, (None, 4))
    momentum = {"8bit": "8-bit momentum", "bfloat16": "bfloat16 momentum"}.get(kept, "")
    parts = ", ".join(part for part in ("" if partition == "auto" else partition, momentum, suffix) if part)

    def build(groups: Groups, settings: Settings) -> Optimizer:
        model = settings.model
        assert model is not None
        names = {p: parameter for parameter, p in model.named_parameters()}
        named: Any = [{**group, "params": [(names[p], p) for p in group["params"]]} for group in groups]
        rest = {"betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay, "momentum_dtype": dtype, **options}
        return AdamMini(named, lr=settings.lr, layouts=blocks_of(model, partition), **rest)

    floor = orthogonalised if partition in ("muon", "normuon") else blockwise(momentum_bytes, partition)
    title = f"AdamMini {parts}".strip()
    return Rival(name + f":{suffix}" * bool(suffix), title, build, floor, "lightning_adam_mini", timed=True, decay=1e-2)
