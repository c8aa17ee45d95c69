"""Turn an optimizer into an AdamMini in place, as ``fully_shard`` turns modules: whatever holds it goes on holding what trains."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.layout_spec import LayoutSpec
from lightning_adam_mini.optim.adam_mini import AdamMini
from lightning_adam_mini.optim.codecs import MomentumDtype, MomentumName, Plain
from lightning_adam_mini.optim.own_step import check_step, is_of_a_scheduler
from lightning_adam_mini.optim.regroup import check_nested, how_to_regroup
from lightning_adam_mini.optim.shards.flat import FlatShard
from lightning_adam_mini.optim.state import (
    FIRST,
    Kind,
    Moments,
    StateFormat,
    in_blocks,
    moments_in,
    put_in_blocks,
    slots_of,
    with_restarted_moment,
)


class AdamMiniAdam(AdamMini, Adam):
    """What was made as torch's Adam and became an AdamMini."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # type(optimizer)(...) makes what it made before
        self.__class__ = Adam  # type: ignore[assignment]
        self.__init__(*args, **kwargs)


class AdamMiniAdamW(AdamMini, AdamW):
    """What was made as torch's AdamW and became an AdamMini."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.__class__ = AdamW  # type: ignore[assignment]
        self.__init__(*args, **kwargs)


# The names by which loggers and profilers know them stay; pickle goes by __qualname__.
AdamMiniAdam.__name__, AdamMiniAdamW.__name__ = "Adam", "AdamW"

_BOTH: dict[type, type[AdamMini]] = {AdamW: AdamMiniAdamW, Adam: AdamMiniAdam}
_DEFAULTS = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2, "maximize": False, "foreach": None, "capturable": False}
# How other optimizers decay weights, where their groups do not say.
_COUPLED = frozenset({"Adadelta", "Adagrad", "Adam", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"})


@torch.no_grad()
def convert_optimizer_(
    optimizer: Optimizer,
    layouts: Mapping[str, LayoutSpec],
    named_parameters: Iterable[tuple[str, Tensor]] = (),
    *,
    force: bool = False,
    convert_state: bool = True,
    momentum_dtype: MomentumDtype | MomentumName | None = None,
    stochastic_rounding: bool = False,
    flat_shards: Mapping[Tensor, FlatShard] | None = None,
) -> AdamMini:
    """Turn torch's Adam or AdamW into an :class:`AdamMini`, in place.

    It stays the same object, with the same groups, hooks and schedulers, and an instance of Adam or AdamW. Second moments that it has
    are averaged into blocks. An AdamMini gets the new blocks. To go back, make a new AdamW and load
    ``to_adamw_state_dict(optimizer.state_dict())``.

    A ``step`` that was kept from before the conversion (``f = optimizer.step``), or wrapped by a patch that goes on to call it, takes
    AdamMini's step. This rests on how torch's steps collect their tensors (``_init_group``), the same from torch 2.6 to 2.14; the tests
    would tell of a change, and Adam's own arithmetic refuses second moments per block. ``register_step_pre_hook`` rests on nothing.

    Args:
        optimizer: The optimizer.
        layouts: Blocks by parameter name.
        named_parameters: ``(name, parameter)`` pairs: ``model.named_parameters()``. [default: the names that its groups have]
        force: Whether any other optimizer becomes an AdamMini too, with its groups' lr, betas, eps and weight decay, without its state.
        convert_state: As for :class:`AdamMini`, and so the rest.
        momentum_dtype: As there.
        stochastic_rounding: As there.
        flat_shards: As there.

    Returns:
        The same object.

    Raises:
        ValueError: If it cannot become one: another optimizer without ``force``, a wrapper of one, ``amsgrad`` or ``differentiable``, a
            ``step`` that would hide AdamMini's, a complex parameter, a layout that does not fit, blocks that do not nest with those of
            its state, or a CUDA graph that is being captured. The optimizer is as it was then.

    Example:
        >>> model = torch.nn.Linear(6, 4)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        >>> layouts = {"weight": BlockLayout.each_line((4, 6)), "bias": BlockLayout.per_parameter((4,))}
        >>> convert_optimizer_(optimizer, layouts, model.named_parameters()) is scheduler.optimizer
        True
        >>> isinstance(optimizer, torch.optim.AdamW) and isinstance(optimizer, AdamMini)
        True
    """
    check_convertible(optimizer, force)
    with unless_it_fails(optimizer):
        before = None
        if isinstance(optimizer, AdamMini):
            before = {p: layout for _, p, layout in optimizer._present()}, optimizer._format
        else:
            _change_class(optimizer)
        assert isinstance(optimizer, AdamMini)
        names = ((n, p) for group in optimizer.param_groups for n, p in zip(group.get("param_names", ()), group["params"], strict=False))
        optimizer._set_up(layouts, (*named_parameters, *names), momentum_dtype, stochastic_rounding, convert_state, flat_shards)
        for group in optimizer.param_groups:
            optimizer._check_options(group)
        optimizer._blocks.check_some_match(optimizer._blocks.known)
        optimizer._settle(optimizer._blocks.find(optimizer.param_groups, {}, optimizer._shards.shape_of))
        _convert_state(optimizer, before)
    return optimizer


def check_convertible(optimizer: Any, force: bool = False) -> None:
    """Refuse an optimizer that cannot become an AdamMini.

    Args:
        optimizer: The optimizer.
        force: Whether the user takes an AdamMini for any optimizer.

    Raises:
        ValueError: As :func:`convert_optimizer_` says.
    """
    kind = type(optimizer)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        raise ValueError(
            f"{name} cannot become an AdamMini because it only wraps an optimizer. Convert that one, before it is wrapped (by fabric.setup"
            " or accelerator.prepare)."
        )
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"{name} cannot become an AdamMini because it is not a torch.optim.Optimizer. Use torch.optim.AdamW.")
    if not (kind in _BOTH or isinstance(optimizer, AdamMini) or force):
        raise ValueError(
            f"{name} cannot become an AdamMini because only torch.optim.Adam and AdamW, and not their subclasses, do what it does. Make"
            " one of them; or pass force=True to take over its groups' lr, betas, eps and weight decay all the same."
        )
    for flag, why in (
        ("amsgrad", "no block-wise method defines the maximum of second moments"),
        ("differentiable", "AdamMini updates in place"),
    ):
        if any(group.get(flag) for group in optimizer.param_groups):
            raise ValueError(f"{name} with {flag}=True cannot become an AdamMini because {why}. Set {flag}=False.")
    if getattr(optimizer, "part", None) is not None and isinstance(optimizer, AdamMini):
        raise ValueError(
            f"{name} is combined with {optimizer.part} already, so it cannot be converted again. Make a new optimizer."  # pyright: ignore[reportAttributeAccessIssue]
        )
    check_step(optimizer, may_be_patched=kind in _BOTH or isinstance(optimizer, AdamMini))
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        raise ValueError(
            f"{name} cannot become an AdamMini while a CUDA graph is captured, because the graph would hold steps of both. Convert it"
            " before the capture begins."
        )


@contextmanager
def unless_it_fails(optimizer: Optimizer) -> Iterator[None]:
    """Restore class, attributes, options and state of an optimizer if what is within raises."""
    kind, attributes, state = type(optimizer), dict(vars(optimizer)), dict(optimizer.state)
    dicts = [optimizer.defaults, *optimizer.param_groups, *(entry for entry in state.values() if isinstance(entry, dict))]
    before = [dict(d) for d in dicts]
    try:
        yield
    except BaseException:
        optimizer.__class__ = kind
        vars(optimizer).clear()
        vars(optimizer).update(attributes)
        optimizer.state.clear()
        optimizer.state.update(state)
        for d, old in zip(dicts, before, strict=True):
            d.clear()
            d.update(old)
        raise


def _change_class(optimizer: Optimizer) -> None:
    kind = type(optimizer)
    if kind not in _BOTH:
        optimizer.state.clear()
    if is_of_a_scheduler(optimizer):
        del optimizer.step  # AdamMini tells schedulers itself
    vars(optimizer).pop("_step_supports_amp_scaling", None)  # of fused steps, which unscale gradients themselves
    decoupled = optimizer.defaults.get("decoupled_weight_decay", kind.__name__ not in _COUPLED)  # torch 2.6 has none
    for options in (optimizer.defaults, *optimizer.param_groups):
        options.setdefault("decoupled_weight_decay", decoupled)
        for key, value in _DEFAULTS.items():
            options.setdefault(key, value)
        if len(options["betas"]) != 2:
            options["betas"] = _DEFAULTS["betas"]
        options["fused"] = None  # AdamMini chooses for itself
    optimizer.__class__ = next((both for theirs, both in _BOTH.items() if issubclass(kind, theirs)), AdamMini)
    optimizer._made_as = kind.__name__  # type: ignore[attr-defined]
    optimizer._patch_step_function()


def _convert_state(optimizer: AdamMini, before: tuple[Mapping[Tensor, BlockLayout], StateFormat] | None) -> None:
    """Average or spread the moments that an optimizer has.

    Args:
        optimizer: The optimizer, with its new blocks.
        before: The blocks that it had, and how it kept its state; None if it was torch's.
    """
    present, format, moments = optimizer._present(), optimizer._format, []
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    for name, p, layout in present:
        old = BlockLayout.per_parameter(layout.shape) if before is None else before[0].get(p, layout)
        state, kept = optimizer.state.get(p), None
        if state:
            check_nested(name, old, layout)
            if how_to_regroup(old, layout) == "restarted":
                state.update(with_restarted_moment(state, old, groups[p]))
                old = BlockLayout.per_parameter(old.shape)
            if before is not None and old != layout and format.is_sharded(p):
                raise ValueError(
                    f"Parameter {name!r} is sharded and has a second moment, so a second conversion cannot change its blocks. Change them"
                    " with set_layouts, keep the partition that it was trained with, or make a new optimizer."
                )
            if before is not None or not format.is_sharded(p):
                was = Plain(format.codec(p, layout).shape, state[FIRST.name].dtype) if before is None else before[1].codec(p, old)
                format.recode(p, layout, state, was)
                if old != layout or any(state[slot.name].dtype != slot.dtype(p.dtype) for slot in slots_of(Kind.BLOCK, old)):
                    wide = {slot.name: state[slot.name].to(slot.dtype(p.dtype)) for slot in slots_of(Kind.BLOCK, old)}
                    put_in_blocks(state, in_blocks(p, wide, old, layout))
            else:
                kept = moments_in(state)
                for slot in slots_of(Kind.ELEMENT):
                    del state[slot.name]
        moments.append(Moments(old, kept))
    any_here = "" if any(one.kept is not None for one in moments) else None
    if optimizer._shards.agree(any_here) is not None:  # each rank takes part for all parameters, even where it has no state itself
        optimizer._adopt(present, moments)
