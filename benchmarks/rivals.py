"""The optimizers that are compared."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from benchmarks.workloads import Workload
from lightning_adam_mini import AdamMini, BlockLayout
from recipes.rivals import RIVALS as RIVALS_OF_RECIPES
from recipes.rivals import Settings, hidden_matrices

LR = 1e-5  # small, so that thousands of steps on the same gradient lead nowhere
ON_CHIP = 2**16  # elements of a block that a processor core's cache or a GPU's block holds, so that they are read once

Build = Callable[[Workload, nn.Module], Optimizer]


@dataclass(frozen=True)
class Rival:
    """An optimizer.

    Args:
        name: How tables call it.
        build: Makes it for a model.
        floor: Bytes that its algorithm must move in a step, by workload and model.
        remedy: A second way to make it, for models on which its own fails, and what that way is.
        package: What to install, where it is not torch's or ours.
    """

    name: str
    build: Build
    floor: Callable[[Workload, nn.Module], float]
    remedy: tuple[Build, str] | None = None
    package: str = ""


@dataclass(frozen=True)
class Entrant:
    """A rival that has taken its first step on a model, or why it could not.

    Args:
        rival: The rival.
        optimizer: Its optimizer; none where it failed.
        note: What there is to say of it: why it failed, or by which remedy it did not.
        build: What made the optimizer.
    """

    rival: Rival
    optimizer: Optimizer | None
    note: str = ""
    build: Build | None = None


def per_element(bytes_each: float) -> Callable[[Workload, nn.Module], float]:
    """Return a floor that is so many bytes for each element.

    Args:
        bytes_each: Bytes an element.
    """
    return lambda _, model: bytes_each * sum(p.numel() for p in model.parameters())


def blockwise(momentum_bytes: int = 4, partition: str = "auto") -> Callable[[Workload, nn.Module], float]:
    """Return the floor of a blockwise optimizer: p and m read and written, g read once where its block stays on chip and else twice.

    Args:
        momentum_bytes: Bytes of an element of the momentum.
        partition: What its blocks are.
    """

    def floor(workload: Workload, model: nn.Module) -> float:
        return sum(bytes_of(layout, momentum_bytes) for layout in workload.layouts(model, partition).values())

    return floor


def bytes_of(layout: BlockLayout, momentum_bytes: int = 4) -> float:
    """Return the bytes that a blockwise step of a float32 tensor must move.

    Args:
        layout: The tensor's blocks.
        momentum_bytes: Bytes of an element of the momentum.

    Example:
        >>> [bytes_of(BlockLayout((1024, 1024), dims)) / 2**20 for dims in ((), (1,), (0, 1))]
        [28.0, 20.0078125, 24.00000762939453]
        >>> bytes_of(BlockLayout.factored((1024, 1024))) / 2**20
        24.015625
    """
    elements = math.prod(layout.shape)
    once = layout.is_per_parameter or (elements <= ON_CHIP * layout.num_blocks and not layout.is_factored)
    gradient = 4 if once else 8
    return elements * (8 + gradient + 2 * momentum_bytes) + 8 * layout.num_blocks


def orthogonalised(_: Workload, model: nn.Module) -> float:
    """Return the floor of Muon beside AdamW, the products of matrices left out: p and m read and written, g read; the rest as AdamW's.

    Args:
        model: The model.
    """
    hidden = hidden_matrices(model)
    return sum((20 if p in hidden else 28) * p.numel() for p in model.parameters())


def _adamw(**options: Any) -> Build:
    return lambda _, model: torch.optim.AdamW(model.parameters(), lr=LR, **options)


def _adafactor(_: Workload, model: nn.Module) -> Optimizer:
    return torch.optim.Adafactor(model.parameters(), lr=LR)


def _adam_mini(workload: Workload, model: nn.Module, renamed: bool = False) -> Optimizer:
    from adam_mini import Adam_mini

    named = list(model.named_parameters())
    if renamed:
        named = [(name if p.ndim == 2 or "bias" in name else f"tensor{i}", p) for i, (name, p) in enumerate(named)]
    return cast(Optimizer, Adam_mini(named, lr=LR, dim=workload.dim, n_heads=workload.heads, verbose=False))


def _renamed_adam_mini(workload: Workload, model: nn.Module) -> Optimizer:
    return _adam_mini(workload, model, renamed=True)


def _pytorch_optimizer(workload: Workload, model: nn.Module) -> Optimizer:
    from pytorch_optimizer import AdamMini as Theirs

    return Theirs(model, lr=LR, num_embeds=workload.dim, num_heads=workload.heads)


def _of_recipes(name: str) -> Build:
    return lambda _, model: RIVALS_OF_RECIPES[name].build([{"params": list(model.parameters())}], Settings(LR, model=model))


def _ours(partition: str = "auto", **options: object) -> Build:
    def build(workload: Workload, model: nn.Module) -> Optimizer:
        return AdamMini(model.named_parameters(), lr=LR, layouts=workload.layouts(model, partition), **options)  # pyright: ignore[reportArgumentType]

    return build


def _has(argument: str) -> bool:
    return argument in inspect.signature(AdamMini).parameters


BASELINE = Rival("AdamW fused", _adamw(fused=True), per_element(28))
RIVALS = (
    BASELINE,
    Rival("AdamW foreach", _adamw(foreach=True), per_element(28)),
    Rival("AdamW for-loop", _adamw(foreach=False), per_element(28)),
    Rival("Adafactor", _adafactor, per_element(16)),
    Rival(
        "adam-mini (PyPI)",
        _adam_mini,
        blockwise(partition="adam_mini"),
        (_renamed_adam_mini, "with renamed parameters, because with their own names it raises"),
        "adam-mini",
    ),
    Rival("AdamMini (pytorch-optimizer)", _pytorch_optimizer, blockwise(partition="adam_mini"), package="pytorch-optimizer"),
    Rival("AdamW8bit (torchao)", _of_recipes("adamw_8bit"), per_element(16), package="torchao"),
    Rival("Lion (timm)", _of_recipes("lion"), per_element(20), package="timm"),
    *([Rival("Muon and AdamW (torch)", _of_recipes("muon_adamw"), orthogonalised)] if hasattr(torch.optim, "Muon") else []),
    Rival("NorMuon (pytorch-optimizer)", _of_recipes("normuon_adamw"), orthogonalised, package="pytorch-optimizer"),
    Rival("AdamMini", _ours(), blockwise()),
    Rival("AdamMini adam_mini", _ours("adam_mini"), blockwise(partition="adam_mini")),
    Rival("AdamMini muon", _ours("muon"), orthogonalised),
    Rival("AdamMini normuon", _ours("normuon"), orthogonalised),
    Rival("AdamMini normuon, 8-bit momentum", _ours("normuon", momentum_dtype="8bit"), orthogonalised),
    *([Rival("AdamMini fused=False", _ours(fused=False), blockwise())] if _has("fused") else []),
    *([Rival("AdamMini bfloat16 momentum", _ours(momentum_dtype=torch.bfloat16), blockwise(2))] if _has("momentum_dtype") else []),
    Rival("AdamMini 8-bit momentum", _ours(momentum_dtype="8bit"), blockwise(1)),
)


def select(pattern: str) -> list[Rival]:
    """Return the rivals whose names match, and AdamW fused, which all are compared with.

    Args:
        pattern: Regular expression, searched for in the name without regard to case.

    Raises:
        MisconfigurationException: If it is none, or matches none.

    Example:
        >>> [rival.name for rival in select("^adafactor|lion")]
        ['AdamW fused', 'Adafactor', 'Lion (timm)']
    """
    try:
        found = [rival for rival in RIVALS if re.search(pattern, rival.name, re.IGNORECASE)]
    except re.error as error:
        raise MisconfigurationException(f"--only {pattern!r} is not a regular expression: {error}") from error
    if not found:
        raise MisconfigurationException(f"--only {pattern!r} matches none of the rivals: {', '.join(rival.name for rival in RIVALS)}")
    return found if BASELINE in found else [BASELINE, *found]


def without_compiling() -> contextlib.AbstractContextManager[object]:
    """Return a context in which what would be compiled runs as it is, for whatever is not timed: torchao compiles for every shape."""
    return torch.compiler.set_stance("force_eager")


def enter(rival: Rival, workload: Workload, model: nn.Module) -> Entrant:
    """Make a rival's optimizer and take its first step; a failure is a result.

    Args:
        rival: The rival.
        workload: What is stepped.
        model: Its model, with gradients.
    """
    note = ""
    for build, title in [(rival.build, ""), *([rival.remedy] if rival.remedy else [])]:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                optimizer = build(workload, model)
                optimizer.step()
        except ModuleNotFoundError as error:
            if not rival.package or error.name is None or error.name.replace("_", "-") != rival.package:
                return Entrant(rival, None, f"raises: {short(error)}")
            return Entrant(rival, None, f"not installed: pip install {rival.package}")
        except Exception as error:
            note = note or f"raises: {short(error)}"
        else:
            return Entrant(rival, optimizer, title, build)
    return Entrant(rival, None, note)


def short(error: Exception) -> str:
    r"""Return an error in one line that fits into a table.

    Args:
        error: The error.

    Example:
        >>> short(ValueError("a | b is long\nand longer"))
        'ValueError: a / b is long'
    """
    first = next(iter(str(error).strip().splitlines()), "")
    text = f"{type(error).__name__}: {first}".replace("|", "/")
    return text if len(text) <= 120 else text[:117] + "..."
