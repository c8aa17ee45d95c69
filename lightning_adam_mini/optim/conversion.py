"""States written with other blocks or another dtype of momentum: to the present ones, and to torch's AdamW."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.optim.quantized import SCALE, convert_momentum, num_scales

# Options of torch's Adam and AdamW that AdamMini does not have. A loaded group would bring them in.
TORCH_ONLY = ("amsgrad", "capturable", "differentiable", "fused")


class Moments(NamedTuple):
    """The saved moments of a parameter, and the blocks that they were written with; None where nothing was saved."""

    layout: BlockLayout
    momentum: dict[str, Tensor] | None
    second_moment: Tensor


class Loaded(NamedTuple):
    """What a saved state holds.

    Attributes:
        state_dict: The state dict without moments and without torch's own options.
        moments: Of each parameter.
        converted: What has to be done to second moments ("averaged" or "spread"), by name.
    """

    state_dict: dict[str, Any]
    moments: list[Moments]
    converted: dict[str, str]


def convert_state_dict(state_dict: Mapping[str, Any], present: Sequence[tuple[str, Tensor, BlockLayout]], convert: bool = True) -> Loaded:
    """Prepare a state dict of AdamMini, Adam or AdamW for an AdamMini with other blocks.

    Args:
        state_dict: The state dict, left as it is.
        present: Name, parameter and layout of each parameter of the optimizer, in the order of its groups.
        convert: Whether second moments with other blocks may be converted.

    Raises:
        ValueError: If the state does not fit the parameters or must not or cannot be converted.
    """
    saved_groups = state_dict["param_groups"]
    saved_ids = [(i, group, j) for group in saved_groups for j, i in enumerate(group["params"])]
    if len(saved_ids) != len(present):
        raise ValueError(
            f"The loaded state is of {len(saved_ids)} parameters, but the optimizer has {len(present)}."
            " Load it into an optimizer of the same parameters in the same groups."
        )
    if any(group.get("amsgrad") for group in saved_groups):
        raise ValueError(
            "The loaded state was written with amsgrad=True, which no block-wise second moment defines. Start a new run without it."
        )
    state: dict[Any, Any] = dict(state_dict["state"])
    moments: list[Moments] = []
    done: dict[str, str] = {}
    for (saved_id, group, place), (name, p, layout) in zip(saved_ids, present, strict=True):
        entry = state_dict["state"].get(saved_id)  # of a parameter that stands in a group twice, both times
        saved = _saved_layout(group, place, layout, (entry or {}).get("exp_avg_sq"))
        if saved.shape != layout.shape:
            raise ValueError(
                f"The loaded blocks of parameter {name!r} are for shape {saved.shape}, but the parameter has shape {layout.shape}."
                " Load the state of the same model."
            )
        if not entry:
            moments.append(Moments(saved, None, torch.empty(0)))
            continue
        missing = {"step", "exp_avg", "exp_avg_sq"} - entry.keys()
        if missing:
            raise ValueError(
                f"The loaded state of parameter {name!r} has no {', '.join(sorted(missing))}, because another kind of optimizer wrote it"
                f" (it has {', '.join(entry)}). Load a state of AdamMini, AdamW or Adam."
            )
        if tuple(entry["exp_avg"].shape) != tuple(p.shape):
            raise ValueError(
                f"The loaded state of parameter {name!r} is for shape {tuple(entry['exp_avg'].shape)}, but the parameter has shape"
                f" {tuple(p.shape)}. Load the state of the same model."
            )
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
        value = entry["exp_avg_sq"]
        if value.shape != saved.block_shape and value.shape != p.shape:
            raise ValueError(
                f"The loaded second moment of parameter {name!r} has shape {tuple(value.shape)}, which is neither the parameter's shape"
                f" {tuple(p.shape)} nor that of its blocks ({saved}): {saved.block_shape}. The checkpoint is damaged or of another program."
            )
        if SCALE in entry and entry[SCALE].shape != (num_scales(p.numel()),):
            raise ValueError(
                f"The loaded momentum of parameter {name!r} in 8 bits has scales of shape {tuple(entry[SCALE].shape)}, but for a tensor of"
                f" shape {tuple(p.shape)} there are {num_scales(p.numel())}. The checkpoint is damaged or of another program."
            )
        moments.append(Moments(saved, {k: v for k, v in entry.items() if k in ("exp_avg", SCALE)}, value))
        if how:
            done[name] = how
        # Without the moments, which torch would cast to the parameter's dtype.
        state[saved_id] = {k: v for k, v in entry.items() if k not in ("exp_avg", SCALE, "exp_avg_sq")}
    groups = [{k: v for k, v in group.items() if k not in TORCH_ONLY} for group in saved_groups]
    return Loaded({**state_dict, "state": state, "param_groups": groups}, moments, done)


def regroup(second_moment: Tensor, saved: BlockLayout, present: BlockLayout) -> Tensor:
    """A second moment in other blocks: the mean over blocks that grow, a copy in blocks that split.

    Args:
        second_moment: Of ``saved``'s ``block_shape``, or of the parameter's shape.
        saved: The blocks that it has.
        present: The blocks that it gets; finer or coarser.

    Returns:
        A tensor of ``present``'s ``block_shape``.

    Example:
        >>> rows, matrix = BlockLayout((2, 3), dims=(1,)), BlockLayout.whole((2, 3))
        >>> regroup(torch.tensor([[1.0], [3.0]]), rows, matrix).tolist()
        [[2.0]]
    """
    if second_moment.shape == saved.block_shape and saved != present:
        second_moment = saved.spread(second_moment).expand(saved.shape)
    return second_moment if second_moment.shape == present.block_shape else present.average(second_moment)


def _saved_layout(group: Mapping[str, Any], place: int, present: BlockLayout, second_moment: Tensor | None) -> BlockLayout:
    """The blocks that a parameter's second moment was written with."""
    if "layouts" not in group:
        return BlockLayout.per_parameter(present.shape)
    saved = BlockLayout.from_plain(group["layouts"][place])
    # torch's AdamW keeps unknown keys of the groups that it loads, but its second moments are per parameter again from its first step.
    if "amsgrad" in group and (second_moment is None or second_moment.shape != saved.block_shape):
        return BlockLayout.per_parameter(present.shape)
    return saved


def moments_of(
    state: Mapping[Tensor, Mapping[str, Any]],
    saved: Sequence[tuple[Sequence | None, int]],
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
        second_moment = entry.get("exp_avg_sq")
        group = {} if plain is None else {"layouts": [plain], "amsgrad": None}
        blocks = _saved_layout(group, 0, layout, second_moment)
        if second_moment is None or "exp_avg" not in entry:
            moments.append(Moments(blocks, None, torch.empty(0)))
            continue
        check_nested(name, blocks, layout)
        moments.append(Moments(blocks, {k: v for k, v in entry.items() if k in ("exp_avg", SCALE)}, second_moment))
    return moments if any(one.momentum is not None for one in moments) else None


def check_nested(name: str, old: BlockLayout, new: BlockLayout) -> None:
    """Refuse to change blocks of a second moment for others that are neither finer nor coarser.

    Raises:
        ValueError: If they are neither. Names the parameter.
    """
    if how_to_regroup(old, new) == "mixed":
        raise ValueError(
            f"The second moment of parameter {name!r} has blocks ({old}) that are neither finer nor coarser than the new ones ({new})."
            " Keep those that it was trained with, choose others that nest with them, or make a new optimizer."
        )


def how_to_regroup(saved: BlockLayout, present: BlockLayout) -> str | None:
    """How second moments get from one layout to the other: None if they are the same, "averaged", "spread" or "mixed" (not at all)."""
    if saved == present or saved.num_blocks == 0:
        return None
    if _is_finer(saved, present):
        return None if _is_finer(present, saved) else "averaged"
    return "spread" if _is_finer(present, saved) else "mixed"


def _is_finer(fine: BlockLayout, coarse: BlockLayout) -> bool:
    """Whether each block of ``fine`` lies within one block of ``coarse``."""
    if fine.is_per_parameter or coarse.num_blocks == 1:
        return True
    ids = torch.arange(coarse.num_blocks, dtype=torch.float64).view(coarse.block_shape)
    ids = coarse.spread(ids).expand(coarse.shape)
    mean = fine.average(ids)
    return bool((fine.spread(mean).expand(fine.shape) == ids).all())


def to_adamw_state_dict(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a state dict of AdamMini into one that torch's AdamW and Adam load.

    Each second moment gets its parameter's shape, but hardly any memory: it is a broadcast view of its blocks (on disk too). It is
    float64 so that AdamW, which casts what it loads to the parameter's dtype, makes a dense tensor of its own from it. AdamMini loads the
    result as well, and gets its blocks back exactly. First moments in 8 bits become float32, on the CPU, and come back exactly too.

    Args:
        state_dict: What ``AdamMini.state_dict()`` returned, left as it is.

    Returns:
        The state dict for AdamW. Other state dicts come back unchanged.

    Example:
        >>> from lightning_adam_mini import AdamMini, BlockLayout
        >>> p = torch.nn.Parameter(torch.ones(4, 6))
        >>> p.grad = torch.ones(4, 6)
        >>> optimizer = AdamMini([("p", p)], layouts={"p": BlockLayout.whole((4, 6))})
        >>> optimizer.step()
        >>> to_adamw_state_dict(optimizer.state_dict())["state"][0]["exp_avg_sq"].shape
        torch.Size([4, 6])
    """
    state: dict[Any, Any] = dict(state_dict["state"])
    for group in state_dict["param_groups"]:
        for saved_id, plain in zip(group["params"], group.get("layouts", ()), strict=False):
            entry = state.get(saved_id)
            if entry and SCALE in entry:
                wide = convert_momentum(entry, torch.device("cpu"), torch.float32)
                entry = state[saved_id] = {**{k: v for k, v in entry.items() if k != SCALE}, **wide}
            layout = BlockLayout.from_plain(plain)
            # What is sharded goes into a sharded checkpoint, as it is.
            if entry and type(entry["exp_avg_sq"]) is Tensor and not layout.is_per_parameter:
                blocks = entry["exp_avg_sq"]
                if blocks.shape == layout.shape:  # from FSDP1, with one value an element
                    blocks = layout.average(blocks)
                spread = layout.spread(blocks.double()).expand(layout.shape)
                if blocks.dtype == torch.float64:
                    spread = spread.contiguous()  # AdamW would keep the view, and then write through it
                state[saved_id] = {**entry, "exp_avg_sq": spread}
    return {**state_dict, "state": state}
