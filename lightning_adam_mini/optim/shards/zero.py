"""Parameters that DeepSpeed's ZeRO has put into flat tensors: which range of which parameter lies where.

ZeRO hands an optimizer one flat float32 tensor per parameter group (stages 1, 2) or per sub-group (stage 3), of which each rank has a part,
and keeps the map to itself. It is read off private attributes here, those of deepspeed 0.19.8, and never believed: after
``deepspeed.initialize`` the flat tensors are copies of the weights, so that :func:`check_flats` can compare them. The only file that knows
DeepSpeed's attributes; it does not import it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_adam_mini.optim.shards.flat import FlatShard
from lightning_adam_mini.optim.shards.reduce import agree


class Fragment(NamedTuple):
    """What this rank holds of a parameter.

    Attributes:
        param: The parameter of the model.
        shard: The range of it.
        offset: Where in the flat tensor that begins.
    """

    param: Tensor
    shard: FlatShard
    offset: int

    @property
    def numel(self) -> int:
        """Number of elements that this rank holds."""
        return self.shard.end - self.shard.begin


class Flat(NamedTuple):
    """A flat tensor that ZeRO has an optimizer step.

    Attributes:
        tensor: This rank's part of it; float32, of one dimension.
        group: Number of its parameter group.
        fragments: What lies in it, in an order that all ranks share; also of parameters of which this rank holds nothing.
    """

    tensor: Tensor
    group: int
    fragments: list[Fragment]


def why_not(config: Mapping[str, Any]) -> str | None:
    """What in DeepSpeed's configuration AdamMini cannot follow, with the remedy; None if it can follow it all.

    Example:
        >>> why_not({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}) is None
        True
        >>> print(why_not({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}}))
        offload to NVMe moves optimizer state by names and sizes of its own. Offload to the CPU.
    """

    def part(of: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        value = of.get(name)
        return value if isinstance(value, Mapping) else {}

    zero = part(config, "zero_optimization")
    optimizer, parameters = part(zero, "offload_optimizer"), part(zero, "offload_param")
    masters = [
        f"{kind}_master_weights_and_grads" for kind in ("fp16", "bf16") if part(config, kind).get(f"{kind}_master_weights_and_grads")
    ]
    problems = {
        "its configuration has an 'optimizer', which it makes itself. Leave that out, and return torch's AdamW from"
        " configure_optimizers or pass it to deepspeed.initialize": "optimizer" in config,
        "offload to NVMe moves optimizer state by names and sizes of its own. Offload to the CPU": "nvme"
        in (optimizer.get("device"), parameters.get("device")),
        "ZenFlow steps parts of the parameters with an optimizer of its own. Leave zenflow out": bool(zero.get("zenflow")),
        "SuperOffload steps with an optimizer of its own. Leave super_offload out": bool(optimizer.get("super_offload")),
        "partial offload steps the rest with an optimizer of its own. Leave ratio out of offload_optimizer": optimizer.get("ratio", 1) != 1,
        "MiCS shards over groups that were not tried. Leave mics_shard_size out": (zero.get("mics_shard_size") or 0) > 0,
        "elastic checkpoints cut optimizer state as if it had one value per element. Leave elastic_checkpoint out, and use universal"
        " checkpoints": bool(zero.get("elastic_checkpoint")),
        f"{' and '.join(masters)} keeps the weights that are stepped in 16 bits. Leave it out": bool(masters),
        "torch_autocast steps through a gradient scaler of its own, which was not tried. Use bf16 or fp16": bool(
            part(config, "torch_autocast").get("enabled")
        ),
    }
    return next((f"{problem}." for problem, is_so in problems.items() if is_so), None)


def shards_of_zero_init(module: nn.Module) -> dict[Tensor, FlatShard]:
    """Shapes of the parameters that ``deepspeed.zero.Init`` has emptied, as shards of which nothing is here; else nothing.

    Args:
        module: A module that was made within it.
    """
    return {
        p: FlatShard(tuple(p.ds_shape), tuple(range(len(p.ds_shape))), 0, 0, p.ds_process_group, p.device)  # type: ignore[attr-defined]
        for p in module.parameters()
        if hasattr(p, "ds_shape")
    }


def is_flattened_by_zero(p: Any) -> bool:
    """Whether ZeRO has put a parameter into a flat tensor."""
    return hasattr(p, "ds_tensor") or hasattr(p, "_hp_mapping")


def find_flats(zero: Any, device: torch.device) -> list[Flat]:
    """The flat tensors that a ZeRO optimizer steps on this rank.

    Args:
        zero: What ``deepspeed.initialize`` returned as the optimizer.
        device: Where its process groups communicate.

    Raises:
        ValueError: If it is none, or lacks an attribute.
    """
    kinds: dict[str, Callable[[Any, torch.device], Iterator[Flat]]] = {
        "fp32_partitioned_groups_flat": _stage_3,
        "round_robin_bit16_offsets": _stages_1_and_2,
        "fp32_groups_flat_partition": _bf16,
    }
    find = next((find for name, find in kinds.items() if hasattr(zero, name)), None)
    if find is None:
        raise ValueError(
            f"AdamMini cannot tell parameters apart in what {type(zero).__module__}.{type(zero).__name__}{_version()} steps, because it"
            " knows neither of ZeRO's stages 1, 2 and 3 in it. Set zero_optimization.stage."
        )
    try:
        return list(find(zero, device))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ValueError(_changed(f"{type(error).__name__}: {error}")) from error


def check_flats(flats: Sequence[Flat], name_of: Callable[[Tensor], str]) -> None:
    """Compare flat tensors with the weights that they are to hold. Every rank has to call it, right after ``deepspeed.initialize``.

    Args:
        flats: What :func:`find_flats` gave.
        name_of: Name of a parameter.

    Raises:
        ValueError: On all ranks, if on any a range holds other numbers than its parameter, two overlap, the tensors that are stepped are
            not float32, or some element of a parameter is on no rank or on two.
    """
    groups = list(dict.fromkeys(fragment.shard.group for flat in flats for fragment in flat.fragments))
    problem = agree(next(_wrong(flats, name_of), None), groups)
    if problem is not None:
        raise ValueError(problem)
    for group in groups:
        fragments = [fragment for flat in flats for fragment in flat.fragments if fragment.shard.group == group]
        counts = torch.tensor([fragment.numel for fragment in fragments], device=fragments[0].shard.device)
        torch.distributed.all_reduce(counts, group=group)
        for fragment, count in zip(fragments, counts.tolist(), strict=True):
            if count != _numel(fragment.shard.shape):
                raise ValueError(
                    _changed(f"the ranks hold {count} of {_numel(fragment.shard.shape)} elements of {name_of(fragment.param)!r}")
                )


def _wrong(flats: Sequence[Flat], name_of: Callable[[Tensor], str]) -> Iterator[str]:
    for flat in flats:
        if flat.tensor.dtype != torch.float32:
            yield (
                f"AdamMini cannot step what ZeRO keeps in {flat.tensor.dtype}, because its second moments are those of float32 weights."
                " Leave fp16_master_weights_and_grads and bf16_master_weights_and_grads out of DeepSpeed's configuration."
            )
        end = 0
        for fragment in sorted((one for one in flat.fragments if one.numel), key=lambda one: one.offset):
            name, p, shard = name_of(fragment.param), fragment.param, fragment.shard
            if fragment.offset < end or fragment.offset + fragment.numel > flat.tensor.numel():
                yield _changed(f"parameter {name!r} lies over another or past the end")
            end = fragment.offset + fragment.numel
            held = getattr(p, "ds_tensor", None)
            weights = p.detach().reshape(-1)[shard.begin : shard.end] if held is None else held.detach().reshape(-1)[: fragment.numel]
            stepped = flat.tensor.detach()[fragment.offset : end]
            if not torch.equal(weights.to(stepped).nan_to_num(), stepped.nan_to_num()):
                yield _changed(f"the numbers at the place of parameter {name!r} are not its weights")


def _stages_1_and_2(zero: Any, device: torch.device) -> Iterator[Flat]:
    for i, flat in enumerate(zero.single_partition_of_fp32_groups):
        size = int(zero.partition_size[i])
        lists = zero.round_robin_bit16_groups[i], zero.round_robin_bit16_meta[i], zero.round_robin_bit16_offsets[i]
        named = [(p, tuple(meta.shape), offset) for p, meta, offset in zip(*lists, strict=True)]
        yield Flat(flat, i, _cut(named, size, zero.real_dp_process_group[i], device))


def _bf16(zero: Any, device: torch.device) -> Iterator[Flat]:
    """The same of stage 1 in bfloat16 with gradients that accumulate in float32, which has an optimizer of its own."""
    for i, flat in enumerate(zero.fp32_groups_flat_partition):
        named, offset = [], 0
        for p in zero.bf16_groups[i]:
            named.append((p, tuple(p.shape), offset))
            offset += p.numel()
        yield Flat(flat, i, _cut(named, flat.numel(), zero.real_dp_process_group[i], device))


def _cut(params: Iterable[tuple[Tensor, tuple[int, ...], int]], size: int, group: Any, device: torch.device) -> list[Fragment]:
    """What a rank holds of a flat tensor that is cut into equal parts.

    Args:
        params: Parameters with their shapes and where in the whole flat tensor they begin.
        size: Elements of a part.
        group: The ranks.
        device: Where they communicate.
    """
    start, fragments = torch.distributed.get_rank(group) * size, []
    for p, shape, offset in params:
        begin, end = max(0, start - offset), min(_numel(shape), start + size - offset)
        if begin >= end:
            begin = end = 0
        fragments.append(Fragment(p, FlatShard(shape, tuple(range(len(shape))), begin, end, group, device), max(0, offset - start)))
    return fragments


def _stage_3(zero: Any, device: torch.device) -> Iterator[Flat]:
    for i, flat in enumerate(zero.fp32_partitioned_groups_flat):
        group, fragments = zero.sub_group_process_groups[i], []
        rank = torch.distributed.get_rank(group)
        for p in zero.fp16_groups[i]:
            sub_group, offset, size = zero.grad_position[zero.get_param_id(p)]
            if sub_group != i:
                raise ValueError(f"a parameter of sub-group {i} is in sub-group {sub_group}")
            begin, end = (min(r * size, p.ds_numel) for r in (rank, rank + 1))
            shape = tuple(p.ds_shape)
            fragments.append(Fragment(p, FlatShard(shape, tuple(range(len(shape))), begin, end, group, device), int(offset)))
        yield Flat(flat, zero.sub_group_to_group_id[i], fragments)


def _numel(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _changed(what: str) -> str:
    return (
        f"AdamMini cannot tell which parameters ZeRO{_version()} steps, because {what}: they are found by private attributes of deepspeed"
        " 0.19.8. Install that version; or use FSDP2 (fully_shard, ModelParallelStrategy). If the weights were changed after"
        " deepspeed.initialize, call bind_zero_(engine) before."
    )


def _version() -> str:
    version = getattr(sys.modules.get("deepspeed"), "__version__", None)
    return f" of deepspeed {version}" if version else ""
