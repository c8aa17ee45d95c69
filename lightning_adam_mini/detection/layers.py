"""Claims from the type of the layer that holds a tensor: what a Linear, a convolution or a norm says of its own weights."""

from __future__ import annotations

from functools import partial
from math import prod

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lightning_adam_mini.detection.names import own_parameter, words
from lightning_adam_mini.detection.roles import QUERIES_KEYS, Role, Source
from lightning_adam_mini.detection.tree import Claim, Slot, Tree

_KERNEL = 15  # places along a side of a kernel
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_POSITIONS = frozenset({"pos", "position", "positions", "positional", "rel", "relative", "biases", "rope", "posenc", "posemb", "level"})
_TOKENS = frozenset(
    {"token", "tokens", "cls", "mask", "masked", "prompt", "prompts", "latents", "latent", "query", "mem", "registers", "class"}
)
_SCALES = frozenset(
    {"gamma", "scale", "ls", "temperature", "temp", "lambda", "alpha", "factor", "sinks", "decay", "modulation", "modulate"}
)
# Words of the names of bare parameters. Strategies treat all of these alike (neither heads nor rows), so a name may decide among them.
_BARE: tuple[tuple[frozenset[str], Role], ...] = (
    (_POSITIONS, Role.POSITION_EMBEDDING),
    (_TOKENS, Role.SPECIAL_TOKEN),
    (_SCALES, Role.SCALE),
)


def is_norm(layer: nn.Module) -> bool:
    """Whether ``layer`` normalises: torch's own norms, or a class with the word Norm in its name."""
    return isinstance(layer, _NORMS) or "norm" in words(type(layer).__name__)


def is_norm_weight(slot: Slot) -> bool:
    """Whether the tensor is the scale or the shift of a norm."""
    return is_norm(slot.layer) and len(_long_dims(slot)) <= 1


def is_linear(layer: nn.Module) -> bool:
    """Whether ``layer`` is a linear map of the last dimension: torch's own, or one called Linear or Conv whose ``weight`` is a matrix."""
    return isinstance(layer, nn.Linear) or is_transposed(layer) or _is_called(layer, {"linear", "conv"}, 2, 2)


def is_transposed(layer: nn.Module) -> bool:
    """Whether ``layer`` is a linear map whose weight is (in, out): GPT-2's Conv1D, or a class of one's own whose bias says so."""
    if isinstance(layer, nn.Linear) or not _is_called(layer, {"linear", "conv"}, 2, 2):
        return False
    weight, bias = own_parameter(layer, "weight"), own_parameter(layer, "bias")
    assert weight is not None
    if bias is not None and bias.ndim == 1 and weight.shape[0] != weight.shape[1]:
        return bias.shape[0] == weight.shape[1]
    return type(layer).__name__ == "Conv1D"


def is_embedding(layer: nn.Module) -> bool:
    """Whether ``layer`` is a table of vectors, torch's own or one with ``Embedding`` in its name and a matrix ``weight``."""
    return isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) or _is_called(layer, {"embedding"}, 2, 2)


def is_conv(layer: nn.Module) -> bool:
    """Whether ``layer`` is a convolution, torch's own or one with ``Conv`` in its name and a ``weight`` of three dimensions or more."""
    return isinstance(layer, _ConvNd) or _is_called(layer, {"conv"}, 3, 6)


def _is_called(layer: nn.Module, names: set[str], least: int, most: int) -> bool:
    """Whether the class has one of the words in its name, and a ``weight`` of so many dimensions. No more is known of it than that."""
    weight = own_parameter(layer, "weight")
    return weight is not None and least <= weight.ndim <= most and not names.isdisjoint(words(type(layer).__name__))


def is_depthwise(layer: nn.Module) -> bool:
    """Whether ``layer`` is a convolution of each channel by itself."""
    return isinstance(layer, _ConvNd) and layer.groups == layer.in_channels > 1


def is_pointwise(layer: nn.Module) -> bool:
    """Whether ``layer`` is a convolution that sees one place at a time and all channels: a matrix."""
    return isinstance(layer, _ConvNd) and prod(layer.kernel_size) == 1 and layer.groups == 1


def is_bare(slot: Slot) -> bool:
    """Whether the tensor is of no linear layer and no convolution: a parameter that a module multiplies or adds itself."""
    return not (is_linear(slot.layer) or is_conv(slot.layer))


def is_matrix(slot: Slot) -> bool:
    """Whether the tensor is the matrix of a layer of which no more is known: a linear layer, or a convolution that is used as one."""
    return slot.is_open and slot.role is Role.LINEAR and (is_linear(slot.layer) or is_pointwise(slot.layer))


def line_axis(layer: nn.Module) -> int:
    """The dimension of the weight of ``layer`` along which its output lines lie."""
    if isinstance(layer, _ConvNd):
        return int(layer.transposed)
    weight = own_parameter(layer, "weight")
    batched = weight is not None and weight.ndim > 4 and weight.shape[0] == 1  # StyleGAN2's are (1, out, in, height, width)
    return int(batched or is_transposed(layer))


def fans(slot: Slot) -> tuple[int, int]:
    """Numbers of outputs and inputs of a linear layer or convolution."""
    axis, layer = line_axis(slot.layer), slot.layer
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    into = axis + 1 if len(slot.shape) > axis + 1 and not (is_transposed(layer) or (isinstance(layer, _ConvNd) and axis)) else 0
    return slot.shape[axis] * (groups if into < axis else 1), slot.shape[into] * (groups if into > axis else 1)


def is_lora(slot: Slot) -> bool:
    """Whether the tensor belongs to a low-rank adapter beside the layer."""
    return any(part.startswith("lora_") for part in slot.path.split("."))


def claim_layers(tree: Tree) -> None:
    """Add a claim for every slot."""
    for slot in tree.slots:
        with tree.guarded(slot.layer):
            slot.add(_claim(slot))


def claim_pointwise(tree: Tree) -> None:
    """Take convolutions of one place for linear layers: where no other sees more, or where queries work and two others make patches.

    Where queries work, those too that running showed to be a feed-forward.
    """
    convs = [slot for slot in tree.slots if is_conv(slot.layer) and len(slot.shape) >= 3 and not slot.magnitude]
    attends = any(slot.role in QUERIES_KEYS for slot in tree.slots)
    others = sum(not is_pointwise(slot.layer) for slot in convs)
    pairs = [pair for pair in tree.shown.pairs() if all(slot.role is Role.CONV for slot in pair)] if attends else []
    fed = {slot for down, up in pairs if fans(down) == fans(up)[::-1] for slot in (down, up)}
    is_rare = others <= 2 and (attends or not others)
    for slot in convs:
        if slot.role is not Role.CONV or not slot.is_open or not is_pointwise(slot.layer) or not (is_rare or slot in fed):
            continue
        holder = tree.parent(slot.layer)
        # Beside one that spans places it is part of a small network of convolutions, as in SAM's neck.
        if holder is None or all(is_pointwise(child) or not is_conv(child) for child in tree.children(holder).values()):
            why = f"{type(slot.layer).__name__} of one place, a linear layer"
            slot.add(Claim(Source.LAYER, Role.LINEAR, why, axis=line_axis(slot.layer)))


def _claim(slot: Slot) -> Claim:
    layer, kind = slot.layer, type(slot.layer).__name__
    is_bias = "bias" in words(slot.attr)

    claim = partial(Claim, Source.LAYER)
    if slot.magnitude:
        return claim(Role.NORM, "magnitude of weight normalisation")
    if is_norm(layer) and len(_long_dims(slot)) <= 1:
        if is_bias or slot.attr in ("beta", "b"):
            return claim(Role.BIAS, f"bias of {kind}", owner=Role.NORM)
        return claim(Role.NORM, f"weight of {kind}")
    beside = own_parameter(layer, slot.attr.removesuffix("_bias"))
    if is_bias and not is_relative(slot) and (len(slot.shape) <= 1 or (beside is not None and beside.ndim > len(slot.shape))):
        return claim(Role.BIAS, f"bias of {kind}")
    if is_embedding(layer) and slot.attr == "weight":
        return claim(Role.TOKEN_EMBEDDING, f"{kind} of {slot.param.shape[0]} entries", guess=True)
    if is_conv(layer) and slot.attr == "weight":
        if is_depthwise(layer):
            return claim(Role.CONV_DEPTHWISE, f"depthwise {kind}")
        axis = line_axis(layer)
        # Of a class of one's own only the name is known: where no small kernel comes last, its outputs may lie elsewhere.
        is_odd = not isinstance(layer, _ConvNd) and max(slot.shape[axis + 2 :], default=1) > _KERNEL
        # Outputs of one group read channels of their own. Transposed, groups lie along the inputs, where line orders do not reach.
        groups = layer.groups if isinstance(layer, _ConvNd) and not layer.transposed else 1
        lines = f"group:{groups}x{slot.shape[axis] // groups}" if groups > 1 else None
        return claim(Role.CONV, f"{kind}, if its outputs come first" if is_odd else kind, axis=axis, lines=lines, guess=is_odd)
    if is_linear(layer) and len(slot.shape) == 2:
        return claim(Role.LINEAR, kind, axis=line_axis(layer))
    return _claim_bare(slot)


def _claim_bare(slot: Slot) -> Claim:
    """A parameter that a module holds itself: its shape and the words of its name are all there is."""
    kind = type(slot.layer).__name__
    named = words(slot.path.rsplit(".", 1)[-1] if slot.attr.isdecimal() else slot.attr)  # of one in a ParameterList, that of the list
    if "bias" in named and not is_relative(slot) and (len(slot.shape) <= 2 or _is_bias_of_stack(slot)):
        return Claim(Source.LAYER, Role.BIAS, f"parameter of {kind} named {slot.attr}")
    if len(slot.shape) == 2 and not {"proj", "projection"}.isdisjoint(named):
        return Claim(Source.LAYER, Role.LINEAR, f"matrix of {kind} named {slot.attr}", axis=1)
    for known, role in _BARE:
        if not known.isdisjoint(named):
            return Claim(Source.LAYER, role, f"parameter of {kind} named {slot.attr}")
    if slot.attr == "A_log":
        return Claim(Source.LAYER, Role.OTHER, f"state matrix of {kind}")
    if len(_long_dims(slot)) <= 1:
        return Claim(Source.LAYER, Role.BIAS if "bias" in named else Role.SCALE, f"vector of {kind}")
    if not {"embed", "embedding", "emb", "embeddings"}.isdisjoint((*named, *words(kind))) and len(slot.shape) == 2:
        return Claim(Source.LAYER, Role.TOKEN_EMBEDDING, f"parameter of {kind}, perhaps a table of {slot.shape[0]} entries", guess=True)
    if min(slot.shape) > 1:
        stack = f"{' x '.join(map(str, slot.shape[:-2]))} matrices" if len(slot.shape) > 2 else "a matrix"
        why = f"parameter of {kind}, perhaps {stack} that {'are' if len(slot.shape) > 2 else 'is'} multiplied as x @ W"
        return Claim(Source.LAYER, Role.LINEAR, why, axis=len(slot.shape) - 1, guess=True)
    return Claim(Source.LAYER, Role.OTHER, f"parameter of {kind}, which is not known", guess=True)


def _is_bias_of_stack(slot: Slot) -> bool:
    """Whether it has a vector for each of as many matrices beside it: (n, 1, out) beside (n, in, out)."""
    weight = own_parameter(slot.layer, slot.attr.replace("bias", "weight"))
    return weight is not None and weight.ndim == len(slot.shape) > 2 and (*weight.shape[:-2], 1, weight.shape[-1]) == slot.shape


def is_relative(slot: Slot) -> bool:
    """Whether a bias is one of positions (a table of relative position biases)."""
    return not {"rel", "relative", "biases", "table"}.isdisjoint(words(slot.attr))


def _long_dims(slot: Slot) -> list[int]:
    return [size for size in slot.shape if size > 1]
