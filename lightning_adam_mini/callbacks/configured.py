"""What ``configure_optimizers`` returned: its optimizers, and whether each can become an AdamMini."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from lightning_adam_mini.callbacks.distribution import misconfiguration
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.adam_mini import AdamMini
from lightning_adam_mini.optim.convert import check_convertible


class Intercepted:
    """A module's ``configure_optimizers`` that hands on what it returns, until it is undone.

    Args:
        module: The module. Its attribute ``configure_optimizers`` becomes this object.
        use: What to do with what it returned, each time.
    """

    def __init__(self, module: Any, use: Callable[[Any], None]) -> None:
        self._module = module
        self._use: Callable[[Any], None] | None = use
        self._original = module.configure_optimizers
        self._own = vars(module).get("configure_optimizers")  # LightningCLI sets one
        functools.update_wrapper(self, self._original, updated=())  # by which Lightning sees that the module defines it
        vars(module)["configure_optimizers"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's own returns, once it was used."""
        configured = self._original(*args, **kwargs)
        if self._use is not None:
            self._use(configured)
        return configured

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """What a copy of the module has, as weight averaging and teachers make them: its own, which nobody uses."""
        twin = memo.get(id(self._module))
        if twin is None or self._own is not None:
            return copy.deepcopy(self._own, memo)
        return types.MethodType(type(twin).configure_optimizers, twin)

    def undo(self) -> None:
        """Be what it was; and where another has wrapped this, do nothing any more but call that."""
        self._use = None
        if vars(self._module).get("configure_optimizers") is self:
            del vars(self._module)["configure_optimizers"]
            if self._own is not None:
                vars(self._module)["configure_optimizers"] = self._own


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
    if isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        raise misconfiguration(
            f"AdamMiniCallback: configure_optimizers returned {name}, which only wraps a {type(inner).__name__}. Return that one, and wrap"
            " it afterwards (in on_fit_start)."
        )
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


def check_rounding(optimizers: Sequence[Optimizer]) -> None:
    """Refuse to round weights at random where none is bfloat16.

    Args:
        optimizers: The optimizers that are to be converted.

    Raises:
        MisconfigurationException: If none of them has a bfloat16 parameter.
    """
    dtypes = {p.dtype for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if dtypes and torch.bfloat16 not in dtypes:
        raise misconfiguration(
            "AdamMiniCallback(stochastic_rounding=True) rounds bfloat16 weights, but the optimizer's are"
            f' {", ".join(sorted(map(str, dtypes)))}. Train with Trainer(precision="bf16-true"), or leave it out.'
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


def what_differs(optimizers: Sequence[Optimizer], layouts: Mapping[str, BlockLayout]) -> list[str]:
    """Why an AdamMini with a second moment per element is not the configured optimizer to the bit, where it is not.

    Args:
        optimizers: The optimizers, before they are converted.
        layouts: The blocks that they will have.
    """
    if not all(layout.is_per_parameter for layout in layouts.values()):
        return []
    groups = [group for optimizer in optimizers if not isinstance(optimizer, AdamMini) for group in optimizer.param_groups]
    out = []
    if any(group.get("fused") for group in groups):
        out.append("AdamMiniCallback: fused=True is dropped, so that this equals the optimizer with fused=False to the bit.")
    narrow = {str(p.dtype) for group in groups for p in group["params"] if p.dtype in (torch.bfloat16, torch.float16)}
    if narrow:
        out.append(
            f"AdamMiniCallback: second moments of {' and '.join(sorted(narrow))} weights are kept in float32, in which they go on moving."
            " With one per element this takes more memory than the configured optimizer, and is not the same to the bit."
        )
    return out


def _parts(configured: Any) -> Iterator[Any]:
    if isinstance(configured, dict):
        for value in configured.values():
            yield from _parts(value)
    elif isinstance(configured, (list, tuple)):
        for value in configured:
            yield from _parts(value)
    else:
        yield configured
