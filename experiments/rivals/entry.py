"""How rivals take part in what is timed: who is chosen, and whether each takes its first step."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from experiments.rivals.rival import Rival
from experiments.rivals.roster import OURS, RIVALS
from recipes.optim import Builder, Settings

LR = 1e-5  # small, so that thousands of steps on the same gradient lead nowhere
BASELINE = RIVALS["adamw_fused"]


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
    build: Builder | None = None

    @property
    def title(self) -> str:
        """Its title in a table, with a mark where there is something to say of it."""
        return self.rival.title + "*" * bool(self.note and self.optimizer)

    def make(self, model: nn.Module) -> Optimizer:
        """Make the optimizer for another model, in the way that succeeded.

        Args:
            model: The model.
        """
        return make(self.rival, self.build or self.rival.build, model)


def remarks(entrants: Iterable[Entrant]) -> list[str]:
    """Return what there is to say of those that took part, below a table.

    Args:
        entrants: The rivals.
    """
    return list(dict.fromkeys(f"\\* {entrant.rival.title}: {entrant.note}." for entrant in entrants if entrant.note and entrant.optimizer))


def make(rival: Rival, build: Builder, model: nn.Module) -> Optimizer:
    """Make an optimizer for all parameters of a model, at the settings of timings.

    Args:
        rival: The rival.
        build: One of the ways to make it.
        model: The model.
    """
    return build([{"params": list(model.parameters())}], Settings(LR, weight_decay=rival.decay, model=model))


def select(pattern: str) -> list[Rival]:
    """Return the rivals whose titles or names match, and AdamW fused, which all are compared with.

    Args:
        pattern: Regular expression, searched for without regard to case; without one, those that are timed by default.

    Raises:
        MisconfigurationException: If it is none, or matches none.

    Example:
        >>> [rival.name for rival in select("^lion|for-loop")]
        ['adamw_fused', 'adamw_loop', 'lion']
    """
    rivals = (*RIVALS.values(), *OURS.values())
    try:
        search = re.compile(pattern, re.IGNORECASE).search
    except re.error as error:
        raise MisconfigurationException(f"--only {pattern!r} is not a regular expression: {error}") from error
    found = [rival for rival in rivals if (search(rival.title) or search(rival.name) if pattern else rival.timed)]
    if not found:
        raise MisconfigurationException(f"--only {pattern!r} matches none of the rivals: {', '.join(rival.title for rival in rivals)}")
    return found if BASELINE in found else [BASELINE, *found]


def without_compiling() -> contextlib.AbstractContextManager[object]:
    """Return a context in which what would be compiled runs as it is, for whatever is not timed: torchao compiles for every shape."""
    return torch.compiler.set_stance("force_eager")


def enter(rival: Rival, model: nn.Module) -> Entrant:
    """Make a rival's optimizer and take its first step; a failure is a result.

    Args:
        rival: The rival.
        model: What is stepped, with gradients.
    """
    if why := rival.why_not():
        return Entrant(rival, None, why)
    note = ""
    for build, title in [(rival.build, ""), *([rival.remedy] if rival.remedy else [])]:
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                optimizer = make(rival, build, model)
                optimizer.step()
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
        >>> short(ValueError("it is long\nand longer"))
        'ValueError: it is long'
    """
    first = next(iter(str(error).strip().splitlines()), "")
    text = f"{type(error).__name__}: {first}"
    return text if len(text) <= 120 else text[:117] + "..."
