"""Two optimizers that train one model as one: one for its hidden matrices, and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_adam_mini import inspect_model
from lightning_adam_mini.detection import Role, parameter_names
from recipes.optim import Groups, Settings, adamw

NOT_HIDDEN = frozenset(  # tables, outputs, and what is no linear map
    {
        *(Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING, Role.TYPE_EMBEDDING, Role.TIME_EMBEDDING, Role.SPECIAL_TOKEN),
        *(Role.LM_HEAD, Role.CLASSIFIER, Role.NORM, Role.BIAS, Role.SCALE),
    }
)


class Paired(Optimizer):
    """Two optimizers that train one model as one: the same parameter groups and state, so that whatever steers this one steers both.

    Args:
        hidden: What steps the first groups.
        rest: What steps the others.
    """

    def __init__(self, hidden: Optimizer, rest: Optimizer) -> None:
        self.hidden, self.rest = hidden, rest
        super().__init__([*hidden.param_groups, *rest.param_groups], {})

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = len(self.hidden.param_groups)
        for part, groups in ((self.hidden, self.param_groups[:first]), (self.rest, self.param_groups[first:])):
            part.param_groups, part.state = groups, self.state  # each time, for a checkpoint that is loaded brings new ones
            part.step()
        return loss


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """Return the matrices of a model that are no embedding and no output layer; convolutions are no matrices.

    Args:
        model: The model.

    Example:
        >>> model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 8))
        >>> [name for name, parameter in model.named_parameters() if parameter in hidden_matrices(model)]
        ['1.weight']
    """
    report = inspect_model(model).by_name
    return {p for p, name in parameter_names(model).items() if p.ndim == 2 and report[name].role not in NOT_HIDDEN}


def orthogonalised(model: nn.Module) -> float:
    """Return the floor of Muon beside AdamW, the products of matrices left out: p and m read and written, g read; the rest as AdamW's.

    Args:
        model: The model.
    """
    hidden = hidden_matrices(model)
    return sum((20 if p in hidden else 28) * p.numel() for p in model.parameters())


def paired(name: str, groups: Groups, settings: Settings, build: Callable[[Groups], Optimizer]) -> Optimizer:
    """Return an optimizer for hidden matrices, and AdamW for the rest: embeddings, convolutions, the output layer and vectors.

    Args:
        name: Of the rival.
        groups: Parameter groups.
        settings: The recipe's, with its model.
        build: Makes the first for its groups.

    Raises:
        MisconfigurationException: If the model is not known, or has no hidden matrix.
    """
    if settings.model is None:
        raise MisconfigurationException(f"The optimizer {name} must know the model, to find its hidden matrices; give Settings(model=...).")
    found = hidden_matrices(settings.model)
    hidden, rest = _groups_of(groups, found, True), _groups_of(groups, found, False)
    if not hidden:
        raise MisconfigurationException(
            f"The optimizer {name} has nothing to do, because none of what is trained is a hidden matrix: embeddings, convolutions, "
            "output layers and vectors are left to AdamW; take the optimizer adamw."
        )
    return Paired(build(hidden), adamw(rest, settings)) if rest else build(hidden)


def _groups_of(groups: Groups, found: Collection[Tensor], inside: bool) -> list[dict[str, Any]]:
    parts = [{**group, "params": [p for p in group["params"] if (p in found) == inside]} for group in groups]
    return [part for part in parts if part["params"]]
