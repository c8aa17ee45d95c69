"""What a backend is: something that steps parameters it says it can step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from lightning_adam_mini.optim.codecs import Codec
from lightning_adam_mini.optim.functional import Blocks
from lightning_adam_mini.optim.rounding import Place
from lightning_adam_mini.optim.shards.part import Part

ANY = "any"
"""The device of a backend that steps all parameters in a few launches wherever they are."""


class Task(NamedTuple):
    """A parameter to be stepped.

    Attributes:
        p: What is stepped, updated in place.
        grad: Its gradient, left as it is.
        state: Its state: what the backend's ``slots`` name, updated in place.
        layout: Its blocks.
        codec: How its first moment is kept.
        place: Where in the parameter it is, of weights that are rounded at random; None if they are rounded to the nearest.
        plan: What :meth:`Backend.plan` gave.
        param: The parameter, as the optimizer holds it; None where nothing is kept of it.
        part: What this rank holds of its matrices, where it is sharded.
    """

    p: Tensor
    grad: Tensor
    state: dict[str, Any]
    layout: Blocks
    codec: Codec
    place: Place | None
    plan: Any
    param: Tensor | None = None
    part: Part | None = None


class Backend(Protocol):
    """Steps parameters. Before it is asked to, all tensors were checked to be what the state's fields say.

    Attributes:
        device: Kind of device on which it steps all parameters in a few launches, or :data:`ANY`; None if it goes through them, on any.
        slots: The slots of a state that its arithmetic knows.
        orthogonal: Whether it steps matrices whose updates are orthogonalised; else all that Adam steps.
    """

    device: str | None = None
    orthogonal: bool = False
    slots: frozenset[str] = frozenset({"step", "exp_avg", "exp_avg_sq", "exp_avg_sq_col"})

    def counts_there(self, group: Mapping[str, Any]) -> bool:
        """Whether it counts the steps of a group's parameters on their device; else on the CPU."""
        return False

    def why_not(self, p: Tensor, codec: Codec, layout: Blocks, place: Place | None) -> str | None:
        """Why it cannot step a parameter, as a clause that follows "because"; None if it can.

        Args:
            p: The parameter.
            codec: How its first moment is kept.
            layout: Its blocks.
            place: Where in the whole parameter it is, if its weights are rounded at random.
        """
        ...

    def plan(self, p: Tensor, codec: Codec, layout: Blocks, place: Place | None) -> Any:
        """What does not change from step to step, of a parameter that it can step."""
        return None

    def step(self, work: Sequence[tuple[Mapping[str, Any], Sequence[Task]]]) -> None:
        """Step parameters in place.

        Args:
            work: The options of each group, and what is to be stepped of it. Gradients may have any strides.
        """
        ...

    def prepare(self, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]], plans: Sequence[Any]) -> Any:
        """Make ready to take the step that was just taken again; None if that would be no faster.

        Args:
            groups: The optimizer's groups, each of whose parameters with a gradient was stepped by this backend.
            state: The state of each parameter.
            plans: For each of these parameters, in order, what :meth:`plan` gave.

        Returns:
            An object whose ``step(groups, state)`` takes the step if all is as it was, and says whether.
        """
        return None

    def forget(self) -> None:
        """Keep nothing from earlier steps, so that tensors that are gone are free."""
        return
