"""From the optimizer that the user configured to an AdamMini with the same settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.adam_mini import AdamMini
from lightning_adam_mini.optim.conversion import TORCH_ONLY

_FAITHFUL = (Adam, AdamW)
# How the optimizers that a user may force decay weights, where their groups do not say.
_COUPLED_BY_NAME = frozenset({"Adadelta", "Adagrad", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"})
_KEPT = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "maximize", "foreach", "capturable")


def check_translatable(optimizer: Any, force: bool) -> None:
    """Refuse an optimizer that AdamMini cannot stand for.

    Args:
        optimizer: An optimizer that ``configure_optimizers`` returned.
        force: Whether the user takes an AdamMini for any optimizer.

    Raises:
        MisconfigurationException: If it is not exactly torch's Adam or AdamW and ``force`` is False, or has a setting that no block-wise
            second moment defines.
    """
    kind = type(optimizer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if not isinstance(optimizer, Optimizer):
        raise MisconfigurationException(
            f"AdamMiniCallback cannot replace {name} because it is not a torch.optim.Optimizer. Return torch.optim.AdamW or AdamMini from"
            " configure_optimizers."
        )
    if kind not in _FAITHFUL and not force:
        raise MisconfigurationException(
            f"AdamMiniCallback has no faithful translation of {name}: only torch.optim.Adam and torch.optim.AdamW (and not their"
            " subclasses) are replaced. Return one of them from configure_optimizers; or return an AdamMini with the settings that you want"
            " (AdamMini(self.named_parameters(), layouts=partition_model(self))); or pass AdamMiniCallback(force=True) to replace it all"
            " the same, with its groups' lr, betas, eps and weight decay."
        )
    for flag, why in (
        ("amsgrad", "no block-wise method defines the maximum of second moments"),
        ("differentiable", "AdamMini updates in place"),
    ):
        if any(group.get(flag) for group in optimizer.param_groups):
            raise MisconfigurationException(f"AdamMiniCallback cannot replace {name} with {flag}=True because {why}. Set {flag}=False.")
    if not any(p.requires_grad for group in optimizer.param_groups for p in group["params"]):
        raise MisconfigurationException(
            f"AdamMiniCallback found no trainable parameter in {name}: all are frozen. Unfreeze some before configure_optimizers returns,"
            " or remove the callback."
        )


def translate(
    optimizer: Optimizer, names: Mapping[Tensor, str], layouts: Mapping[str, BlockLayout], **options: Any
) -> tuple[AdamMini, list[str]]:
    """Make the AdamMini that stands for an optimizer. The optimizer stays as it is.

    Args:
        optimizer: One that :func:`check_translatable` let pass.
        names: Name of each parameter of the module.
        layouts: Blocks by name.
        options: Passed to :class:`AdamMini`.

    Returns:
        The AdamMini, with as many groups, the same options and extra keys; and notes about what could not be carried over.

    Raises:
        MisconfigurationException: If a parameter is not one of the module's.
    """
    for i, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            if p not in names:
                raise MisconfigurationException(
                    f"Group {i} of the configured {type(optimizer).__name__} holds a parameter of shape {tuple(p.shape)} that is not one of"
                    " the LightningModule's, so its role is unknown. Register its module as an attribute of the LightningModule, or give it"
                    " to an AdamMini of your own."
                )
    notes = []
    exact = type(optimizer) in _FAITHFUL
    if not exact:
        notes.append(f"forced from {type(optimizer).__name__}: only lr, betas, eps and weight decay are carried over")
    groups = [_translate_group(optimizer, group) for group in optimizer.param_groups]
    defaults = {k: v for k, v in _plain_betas(optimizer.defaults).items() if k in _KEPT}
    if "betas" in defaults and len(defaults["betas"]) != 2:
        del defaults["betas"]
    swapped = AdamMini(
        groups,
        layouts=layouts,
        named_parameters=((name, p) for p, name in names.items()),
        **options,
        **{"decoupled_weight_decay": _is_decoupled(optimizer), **defaults},
    )
    if exact and optimizer.state:
        swapped.load_state_dict(optimizer.state_dict())
    for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        getattr(swapped, hooks).update(getattr(optimizer, hooks))
    return swapped, notes


def _translate_group(optimizer: Optimizer, group: Mapping[str, Any]) -> dict[str, Any]:
    names = group.get("param_names")
    out = {k: v for k, v in _plain_betas(group).items() if k in _KEPT or k not in (*TORCH_ONLY, "params", "param_names")}
    out["params"] = list(zip(names, group["params"], strict=True)) if names else list(group["params"])
    out.setdefault("decoupled_weight_decay", _is_decoupled(optimizer))
    return out


def _plain_betas(options: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(options)
    if "betas" in out:
        out["betas"] = tuple(float(b) if isinstance(b, torch.Tensor) else b for b in out["betas"])
    return out


def _is_decoupled(optimizer: Optimizer) -> bool:
    if "decoupled_weight_decay" in optimizer.defaults:
        return optimizer.defaults["decoupled_weight_decay"]
    return type(optimizer) is not Adam and type(optimizer).__name__ not in _COUPLED_BY_NAME
