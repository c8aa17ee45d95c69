"""States written with other blocks or another dtype of momentum: to the present ones, and to torch's AdamW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini._sums import second_moment_dtype
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.lines import shorten
from lightning_adam_mini.optim.broadcast import BroadcastTensor
from lightning_adam_mini.optim.codecs import codec_of
from lightning_adam_mini.optim.regroup import check_nested, how_to_regroup
from lightning_adam_mini.optim.state import (
    CROSSING,
    FIRST,
    SECOND,
    STEP,
    Kind,
    Moments,
    elements_in,
    moments_in,
    slots_for,
    slots_of,
    values_of,
    with_elements,
    with_restarted_moment,
)
from lightning_adam_mini.table import count

# Options of torch's Adam and AdamW that AdamMini does not have. A loaded group would bring them in.
TORCH_ONLY = ("amsgrad", "capturable", "differentiable", "fused")

COMBINED = "combined"
"""Where in a group the name of what AdamMini is combined with stands, if it is."""
MEANS = "means"
"""Where the means of factored second moments stand in the groups of what AdamW can load: for each parameter None or, for each margin, a
list of numbers. FSDP1 wants all tensors of a state to be as large as their parameters, and plain numbers go through everything."""


class Loaded(NamedTuple):
    """What a saved state holds.

    Attributes:
        state_dict: The state dict without moments and without torch's own options.
        moments: Of each parameter.
        converted: What has to be done to second moments (as :func:`~lightning_adam_mini.optim.regroup.how_to_regroup` says), by name.
    """

    state_dict: dict[str, Any]
    moments: list[Moments]
    converted: dict[str, str]


def check_state_dict(state_dict: Any) -> None:
    """Refuse what no optimizer's ``state_dict()`` has returned.

    Raises:
        ValueError: If it is no mapping, or has no ``state`` or no ``param_groups``.
    """
    if not isinstance(state_dict, Mapping):
        hint = " Read it by torch.load first." if isinstance(state_dict, (str, PathLike)) else ""
        raise ValueError(
            f"The loaded state is {shorten(state_dict)}, and not a dict.{hint} Give what an optimizer's state_dict() returned."
        )
    missing = {"state", "param_groups"} - state_dict.keys()
    if missing:
        what = ""
        if "optimizer_states" in state_dict:
            what = " It is a checkpoint of Lightning's: give its ['optimizer_states'][0]."
        elif state_dict and all(isinstance(value, Tensor) for value in state_dict.values()):
            what = " It is the state of a module."
        raise ValueError(
            f"The loaded state has no {' and no '.join(sorted(missing))}.{what} Give what an optimizer's state_dict() returned."
        )


def _refuse_combined(groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what a combination has written (`combine_`), whose second moments and weights mean something else."""
    name = next((group[COMBINED] for group in groups if group.get(COMBINED)), None)
    if name is not None:
        raise ValueError(
            f"The loaded state was written by an AdamMini that is combined with {name!r}, and nothing else goes on from it. Combine with"
            f" the same (AdamMiniCallback(combine={name!r}), combine_), or load the model's weights alone and begin the optimizer anew."
        )


def convert_state_dict(state_dict: Mapping[str, Any], present: Sequence[tuple[str, Tensor, BlockLayout]], convert: bool = True) -> Loaded:
    """Prepare a state dict of AdamMini, Adam or AdamW for an AdamMini with other blocks.

    Args:
        state_dict: The state dict, left as it is.
        present: Name, parameter and layout of each parameter of the optimizer, in the order of its groups.
        convert: Whether second moments with other blocks may be converted.

    Raises:
        ValueError: If the state does not fit the parameters or must not or cannot be converted.
    """
    check_state_dict(state_dict)
    saved_groups = state_dict["param_groups"]
    _refuse_combined(saved_groups)
    for group in saved_groups:
        if "layouts" in group and len(group["layouts"] or ()) != len(group["params"]):
            raise ValueError(
                f"The loaded state has the blocks of {count(len(group['layouts'] or ()), 'parameter')} for a group of"
                f" {len(group['params'])}. The checkpoint is damaged."
            )
    saved_ids = [(i, group, j) for group in saved_groups for j, i in enumerate(group["params"])]
    if len(saved_ids) != len(present):
        raise ValueError(
            f"The loaded state is of {count(len(saved_ids), 'parameter')}, but the optimizer has {len(present)}."
            " Load it into an optimizer of the same parameters in the same groups."
        )
    if any(group.get("amsgrad") for group in saved_groups):
        raise ValueError(
            "The loaded state was written with amsgrad=True, which no block-wise second moment defines. Start a new run without it."
        )
    strange = next((group for group in saved_groups if "lr" in group and "betas" not in group), None)
    if strange is not None:
        raise ValueError(
            "The loaded state has no betas, because another kind of optimizer wrote it. Load a state of AdamMini, AdamW or Adam."
        )
    state: dict[Any, Any] = dict(state_dict["state"])
    moments: list[Moments] = []
    done: dict[str, str] = {}
    for (saved_id, group, place), (name, p, layout) in zip(saved_ids, present, strict=True):
        entry = state_dict["state"].get(saved_id)  # of a parameter that stands in a group twice, both times
        saved = _saved_layout(group, place, layout, (entry or {}).get(SECOND.name))
        if saved.shape != layout.shape:
            raise ValueError(
                f"The loaded blocks of parameter {name!r} are for shape {saved.shape}, but the parameter has shape {layout.shape}."
                " Load the state of the same model."
            )
        if not entry:
            moments.append(Moments(saved, None))
            continue
        entry = _with_means(entry, group, place, saved)
        _check_entry(name, p, entry, saved)
        how = how_to_regroup(saved, layout)
        if how and not convert:
            raise ValueError(
                f"The loaded second moment of parameter {name!r} has other blocks ({saved}) than the present ones ({layout}), and"
                " converting is forbidden (convert_state=False; convert_checkpoints=False of AdamMiniCallback). Use the partition that it"
                " was written with, or allow it."
            )
        if how == "mixed":
            raise ValueError(
                f"The loaded second moment of parameter {name!r} has blocks ({saved}) that are neither finer nor coarser than the present"
                f" ones ({layout}). Resume with the partition that it was written with."
            )
        if how == "restarted":
            entry, saved = with_restarted_moment(entry, saved, group), BlockLayout.per_parameter(saved.shape)
        for slot, margin in zip(slots_of(Kind.BLOCK, saved), saved.margins, strict=True):
            shape = entry[slot.name].shape
            if shape != margin.block_shape and shape != p.shape:
                raise ValueError(
                    f"The loaded {slot.what} of parameter {name!r} has shape {tuple(shape)}, which is neither the parameter's shape"
                    f" {tuple(p.shape)} nor that of its blocks ({margin}): {margin.block_shape}. The checkpoint is damaged or of another"
                    " program."
                )
        kept = moments_in(entry)
        moments.append(Moments(saved, kept))
        if how:
            done[name] = how
        # Without the moments, which torch would cast to the parameter's dtype.
        state[saved_id] = {k: v for k, v in entry.items() if k not in kept}
    groups = [{k: v for k, v in group.items() if k not in (*TORCH_ONLY, MEANS)} for group in saved_groups]
    return Loaded({**state_dict, "state": state, "param_groups": groups}, moments, done)


def as_numbers(means: Sequence[Tensor]) -> tuple[list[float], ...]:
    """The means of each margin as :data:`MEANS` holds them."""
    return tuple(one.reshape(-1).tolist() for one in means)


def _with_means(entry: Mapping[str, Any], group: Mapping[str, Any], place: int, saved: BlockLayout) -> Mapping[str, Any]:
    """A parameter's saved state with the means that stand in its group, if its dense second moment is still that of these means."""
    there = saved.is_factored and CROSSING.name not in entry
    there |= saved.is_orthogonal and len(saved.margins) > 0 and SECOND.name in entry and entry[SECOND.name].shape != saved.block_shape
    numbers = (group.get(MEANS) or {place: None})[place] if there else None
    if numbers is None:
        return entry
    margins = zip(slots_of(Kind.BLOCK, saved), saved.margins, numbers, strict=True)
    means = {slot.name: torch.tensor(one, dtype=torch.float64).view(margin.block_shape) for slot, margin, one in margins}
    dense = entry[SECOND.name]
    if not saved.is_orthogonal and isinstance(dense, Tensor) and dense.shape == saved.shape:  # else it is a range of FSDP1's
        expected = saved.combine(list(means.values())).expand(saved.shape).to(dense.dtype)
        if not torch.equal(expected.nan_to_num(), dense.cpu().nan_to_num()):  # somebody has edited the checkpoint
            means = dict(zip(means, saved.averages(dense), strict=True))
    return {**entry, **means}


def _check_entry(name: str, p: Tensor, entry: Mapping[str, Any], saved: BlockLayout) -> None:
    """Refuse the saved state of a parameter that lacks something, or is for another shape."""
    missing = {slot.name for slot in slots_for(saved)} - entry.keys()
    if missing:
        raise ValueError(
            f"The loaded state of parameter {name!r} has no {', '.join(sorted(missing))}, because another kind of optimizer wrote it"
            f" (it has {', '.join(entry)}). Load a state of AdamMini, AdamW or Adam."
        )
    per_block = {slot.name for slot in slots_of(Kind.BLOCK)}
    for key, kept in {STEP.name: entry[STEP.name], **moments_in(entry)}.items():
        if key == STEP.name and isinstance(kept, (int, float)) and not isinstance(kept, bool):
            kept = torch.tensor(float(kept))  # as torch wrote it once
        problem = None
        if not isinstance(kept, Tensor):
            problem = f"{kept!r}, which is no tensor"
        elif kept.is_meta and not p.is_meta:
            problem = "a tensor without values, on the meta device"
        elif key == STEP.name and (kept.numel() != 1 or not (kept.is_meta or float(kept) >= 0)):
            problem = f"{kept}, which is no count"
        elif key in per_block and not kept.is_floating_point():
            problem = f"a tensor in {kept.dtype}"
        if problem:
            raise ValueError(f"The loaded state of parameter {name!r} has as {key} {problem}. The checkpoint is damaged.")
    for slot in slots_of(Kind.ELEMENT):
        try:
            shape = codec_of(elements_in(entry, slot)).shape
        except ValueError as error:
            raise ValueError(
                f"The loaded {slot.what} of parameter {name!r} {error}. The checkpoint is damaged or of another program."
            ) from None
        if shape != tuple(p.shape):
            raise ValueError(
                f"The loaded state of parameter {name!r} is for shape {shape}, but the parameter has shape {tuple(p.shape)}. Load the state"
                " of the same model."
            )


def _saved_layout(group: Mapping[str, Any], place: int, present: BlockLayout, second_moment: Tensor | None) -> BlockLayout:
    """The blocks that a parameter's second moment was written with."""
    if "layouts" not in group:
        return BlockLayout.per_parameter(present.shape)
    saved = BlockLayout.from_plain(group["layouts"][place])
    # torch's AdamW keeps unknown keys of the groups that it loads, but its second moments are per parameter again from its first step.
    if "amsgrad" in group and (second_moment is None or second_moment.shape != saved.block_shape):  # also if it is factored
        return BlockLayout.per_parameter(present.shape)
    return saved


def moments_of(
    state: Mapping[Tensor, Mapping[str, Any]],
    saved: Sequence[tuple[Sequence[Any] | None, int]],
    present: Sequence[tuple[str, Tensor, BlockLayout]],
) -> list[Moments] | None:
    """The moments that a state holds, with the blocks that they have; None if it holds none.

    Args:
        state: The state of each parameter.
        saved: For each group the plain layouts that came with the state (None where none did, as from Adam and AdamW), and how many
            parameters it has.
        present: Name, parameter and layout of each parameter of the optimizer, in the order of its groups.

    Raises:
        ValueError: If blocks are neither finer nor coarser than the present ones. Names the parameter.
    """
    plains = [None if layouts is None else layouts[j] for layouts, n in saved for j in range(n)]
    moments = []
    for plain, (name, p, layout) in zip(plains, present, strict=True):
        entry = state.get(p) or {}
        group = {} if plain is None else {"layouts": [plain], "amsgrad": None}
        blocks = _saved_layout(group, 0, layout, entry.get(SECOND.name))
        if not entry.keys() >= {slot.name for slot in slots_for(blocks)}:
            moments.append(Moments(blocks, None))
            continue
        check_nested(name, blocks, layout)
        moments.append(Moments(blocks, moments_in(entry)))
    return moments if any(one.kept is not None for one in moments) else None


def to_adamw_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a state dict of AdamMini into one that torch's AdamW and Adam load.

    Each second moment gets its parameter's shape. Most take hardly any memory: they are broadcast views of their blocks (on disk too),
    float64 so that AdamW, which casts what it loads to the parameter's dtype, makes dense tensors of its own from them. That of a factored
    matrix is a dense tensor on the CPU, as large as AdamW's, and its means stand in the groups. A matrix whose updates are orthogonalised
    has no second moment of gradients, and gets that of gradients without a common direction whose mean its first moment is. AdamMini loads
    the result as well, and gets its blocks back exactly. First moments in 8 bits become float32, on the CPU, and come back exactly too.

    Args:
        state_dict: What ``AdamMini.state_dict()`` returned, left as it is.

    Returns:
        The state dict for AdamW. Other optimizers' come back unchanged.

    Raises:
        ValueError: If it is no optimizer's, or a combination's (`combine_`), which is not AdamW's in anything.

    Example:
        >>> from lightning_adam_mini import AdamMini, BlockLayout
        >>> p = torch.nn.Parameter(torch.ones(4, 6))
        >>> p.grad = torch.ones(4, 6)
        >>> optimizer = AdamMini([("p", p)], layouts={"p": BlockLayout.whole((4, 6))})
        >>> optimizer.step()
        >>> to_adamw_state_dict(optimizer.state_dict())["state"][0]["exp_avg_sq"].shape
        torch.Size([4, 6])
    """
    check_state_dict(state_dict)
    _refuse_combined(state_dict["param_groups"])
    state, groups = dict(state_dict["state"]), []
    for group in state_dict["param_groups"]:
        means: list[Any] = [None] * len(group["params"])
        for place, (saved_id, plain) in enumerate(zip(group["params"], group.get("layouts", ()), strict=False)):
            entry = state.get(saved_id)
            # What is sharded goes into a sharded checkpoint, as it is.
            if entry and type(entry.get(SECOND.name, entry[FIRST.name])) is Tensor:
                layout = BlockLayout.from_plain(plain)
                kept = _blocks_of(_with_means(entry, group, place, layout), layout)
                means[place] = as_numbers(kept) if layout.is_factored or (layout.is_orthogonal and kept) else None
                others = {k: v for k, v in _without_codes(entry).items() if k != CROSSING.name}
                if layout.is_orthogonal:
                    same = with_restarted_moment(others, layout, group)[SECOND.name]
                    kept, layout = [same[tuple(slice(1) for _ in same.shape)]], BlockLayout.whole(layout.shape)
                state[saved_id] = {**others, SECOND.name: _spread(kept, layout, second_moment_dtype(others[FIRST.name].dtype))}
        groups.append({**group, MEANS: means} if any(means) else group)
    return {**state_dict, "state": state, "param_groups": groups}


def _without_codes(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter's state with what is per element in floating point."""
    for slot in slots_of(Kind.ELEMENT):
        kept = elements_in(entry, slot)
        if len(kept) > 1:
            entry = with_elements(entry, slot, {slot.name: values_of(kept, codec_of(kept)).cpu()})
    return dict(entry)


def _blocks_of(entry: Mapping[str, Any], layout: BlockLayout) -> list[Tensor]:
    """What a parameter's state has per block, of each margin."""
    kept = [entry[slot.name] for slot in slots_of(Kind.BLOCK, layout)]
    # From FSDP1 they come with one value per element.
    return [blocks if blocks.shape == of.block_shape else of.average(blocks) for blocks, of in zip(kept, layout.margins, strict=True)]


def _spread(kept: Sequence[Tensor], layout: BlockLayout, dtype: torch.dtype) -> Tensor:
    """Second moments per element."""
    if layout.is_per_parameter:
        return kept[0]
    # Where the model trains there may be no room for what is dense.
    wide = layout.combine([blocks.to("cpu" if layout.is_factored else blocks.device, torch.float64) for blocks in kept])
    if wide.shape == layout.shape:  # nothing is broadcast
        return wide.to(dtype)
    wide = wide.expand(layout.shape).as_subclass(BroadcastTensor)
    # AdamW would keep a view of its dtype, and then write through it.
    return wide.contiguous() if dtype == torch.float64 else wide
