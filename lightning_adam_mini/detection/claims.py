"""What one layer of detection says of a parameter, and the one place where what they say is merged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from torch import nn

from lightning_adam_mini.detection.roles import Role, Source
from lightning_adam_mini.detection.tree import Slot, Tree

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """One statement on one parameter. The fields are those of :class:`~lightning_adam_mini.detection.report.ParameterReport`."""

    source: Source
    role: Role
    reason: str
    owner: Role | None = None
    axis: int = 0
    lines: str | None = None
    guess: bool = False


@dataclass
class Claims:
    """All claims on all parameters of a model."""

    attention: dict[nn.Module, None] = field(default_factory=dict)
    """The modules that are attention, in order."""
    _best: dict[int, Claim] = field(default_factory=dict)

    def add(self, slot: Slot, claim: Claim) -> None:
        """Record a claim. The stronger source wins; of equals the later, which knows the smaller part of the model."""
        held = self._best.get(id(slot))
        if held is None or claim.source >= held.source:
            self._best[id(slot)] = claim

    def best(self, slot: Slot) -> Claim | None:
        """The claim that holds."""
        return self._best.get(id(slot))

    def is_open(self, slot: Slot) -> bool:
        """Whether no more is known than the type of the layer."""
        held = self._best.get(id(slot))
        return held is None or held.source is Source.LAYER

    def role(self, slot: Slot) -> Role | None:
        """The role that holds."""
        held = self._best.get(id(slot))
        return None if held is None else held.role

    @contextmanager
    def guarded(self, tree: Tree, module: nn.Module) -> Iterator[None]:
        """Let no error in looking at one module stop a run: its own parameters become guesses instead, and the log has the traceback."""
        try:
            yield
        except Exception as error:
            _log.debug("Detection failed on %s (%s)", tree.paths.get(module, "?"), type(module).__name__, exc_info=True)
            for slot in tree.own(module).values():
                held = self._best.get(id(slot)) or Claim(Source.LAYER, Role.OTHER, f"parameter of {type(module).__name__}")
                why = f"{held.reason}; looking further failed with {type(error).__name__}: {error}"
                self._best[id(slot)] = replace(held, reason=why, guess=True)
