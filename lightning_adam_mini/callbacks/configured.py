"""What ``configure_optimizers`` returned: its optimizers, and whether each can become an AdamMini."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from lightning_adam_mini.callbacks.distribution import misconfiguration
from lightning_adam_mini.optim.adam_mini import AdamMini
from lightning_adam_mini.optim.convert import check_convertible


def configured_optimizers(configured: Any) -> list[Any]:
    """All optimizers in what ``configure_optimizers`` returned, in whichever of Lightning's forms, each once."""
    # Lightning takes any object with an optimizer's attributes for one.
    names = ("param_groups", "defaults", "state", "step")
    found = [part for part in _parts(configured) if isinstance(part, Optimizer) or all(hasattr(part, name) for name in names)]
    return list({id(optimizer): optimizer for optimizer in found}.values())


def cycle_beta1(configured: Any, converted: Collection[Optimizer]) -> None:
    """Let OneCycleLR and CyclicLR, which were made for an optimizer without betas, cycle those that it has now."""
    for part in _parts(configured):
        if getattr(part, "use_beta1", True) is False and part.optimizer in converted:
            part.use_beta1 = True


def check_configured(optimizer: Any, names: Mapping[Tensor, str], force: bool) -> None:
    """Refuse an optimizer that AdamMini cannot stand for.

    Args:
        optimizer: An optimizer that ``configure_optimizers`` returned.
        names: Name of each parameter of the module.
        force: Whether the user takes an AdamMini for any optimizer.

    Raises:
        MisconfigurationException: If it is not exactly torch's Adam or AdamW and ``force`` is False, cannot become an AdamMini for another
            reason, or has a parameter that is not one of the module's.
    """
    kind = type(optimizer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    known = kind in (Adam, AdamW) or isinstance(optimizer, AdamMini) or not isinstance(optimizer, Optimizer)
    if not (known or force):
        raise misconfiguration(
            f"AdamMiniCallback has no faithful translation of {name}: only torch.optim.Adam and torch.optim.AdamW (and not their"
            " subclasses) are converted. Return one of them from configure_optimizers or, where a library makes the optimizer, ask it for"
            " one (darts: optimizer_cls=torch.optim.AdamW; neuralforecast: optimizer=torch.optim.AdamW; pytorch-forecasting:"
            ' optimizer="adamw"; scvi-tools: plan_kwargs={"optimizer": "AdamW"}); or return an AdamMini with the settings that you want'
            " (AdamMini(self.named_parameters(), layouts=partition_model(self))); or pass AdamMiniCallback(force=True) to convert it all"
            " the same, with its groups' lr, betas, eps and weight decay."
        )
    try:
        check_convertible(optimizer, force=True)
    except ValueError as error:
        raise misconfiguration(f"AdamMiniCallback: {error}") from None
    for i, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            if p not in names:
                raise misconfiguration(
                    f"Group {i} of the configured {kind.__name__} holds a parameter of shape {tuple(p.shape)} that is not one of"
                    " the LightningModule's, so its role is unknown. Register its module as an attribute of the LightningModule, or give it"
                    " to an AdamMini of your own."
                )


def what_was_forced(optimizer: Optimizer) -> str:
    """What an AdamMini takes over from another optimizer, group by group."""
    kind = type(optimizer).__name__
    groups = [
        f"lr={float(group['lr']):g}, betas={tuple(group.get('betas', ())) or 'its own'}, weight_decay={group.get('weight_decay', 0):g}"
        for group in optimizer.param_groups
    ]
    return (
        f"AdamMiniCallback(force=True): {kind} becomes AdamMini with {'; '.join(dict.fromkeys(groups))}. A learning rate that suits {kind}"
        " may be far from one that suits Adam: AdamMini wants AdamW's."
    )


def _parts(configured: Any) -> Iterator[Any]:
    if isinstance(configured, dict):
        for value in configured.values():
            yield from _parts(value)
    elif isinstance(configured, (list, tuple)):
        for value in configured:
            yield from _parts(value)
    else:
        yield configured
