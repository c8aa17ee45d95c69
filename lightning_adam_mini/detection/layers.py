"""Claims from the type of the layer that holds a tensor: what a Linear, a convolution or a norm says of its own weights."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lightning_adam_mini.detection.claims import Claim, Claims, Source
from lightning_adam_mini.detection.names import own_parameter, words
from lightning_adam_mini.detection.registry import qualified_names
from lightning_adam_mini.detection.roles import Role
from lightning_adam_mini.detection.tree import Slot, Tree

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
# Linear maps whose weight is (in, out).
_TRANSPOSED = frozenset({"transformers.pytorch_utils.Conv1D"})

# Words of the names of bare parameters. Strategies treat all of these alike (neither heads nor rows), so a name may decide among them.
_BARE: tuple[tuple[frozenset[str], Role], ...] = (
    (
        frozenset({"pos", "position", "positions", "positional", "rel", "relative", "biases", "rope", "posenc", "level"}),
        Role.POSITION_EMBEDDING,
    ),
    (
        frozenset(
            {"token", "tokens", "cls", "mask", "masked", "prompt", "prompts", "latents", "latent", "query", "mem", "registers", "class"}
        ),
        Role.SPECIAL_TOKEN,
    ),
    (
        frozenset({"gamma", "scale", "ls", "temperature", "temp", "lambda", "alpha", "factor", "sinks", "decay", "modulation", "modulate"}),
        Role.SCALE,
    ),
)


def is_norm(layer: nn.Module) -> bool:
    """Whether ``layer`` normalises: torch's own norms, or a class with the word Norm in its name."""
    return isinstance(layer, _NORMS) or "norm" in words(type(layer).__name__)


def is_norm_weight(slot: Slot) -> bool:
    """Whether the tensor is the scale or the shift of a norm."""
    return is_norm(slot.layer) and len(_long_dims(slot)) <= 1


def is_linear(layer: nn.Module) -> bool:
    """Whether ``layer`` is a linear map of the last dimension, torch's own or one with ``Linear`` in its name and a matrix ``weight``."""
    if isinstance(layer, nn.Linear) or is_transposed(layer):
        return True
    weight = own_parameter(layer, "weight")
    return weight is not None and weight.ndim == 2 and "linear" in words(type(layer).__name__)


def is_transposed(layer: nn.Module) -> bool:
    """Whether ``layer`` is a linear map whose weight is (in, out)."""
    return any(name in _TRANSPOSED for name in qualified_names(type(layer)))


def is_embedding(layer: nn.Module) -> bool:
    """Whether ``layer`` is a table of vectors, torch's own or one with ``Embedding`` in its name and a matrix ``weight``."""
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        return True
    weight = own_parameter(layer, "weight")
    return weight is not None and weight.ndim == 2 and "embedding" in words(type(layer).__name__)


def is_conv(layer: nn.Module) -> bool:
    """Whether ``layer`` is a convolution, torch's own or one with ``Conv`` in its name and a ``weight``."""
    if isinstance(layer, _ConvNd):
        return True
    weight = own_parameter(layer, "weight")
    return weight is not None and weight.ndim >= 2 and not is_linear(layer) and "conv" in words(type(layer).__name__)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether ``layer`` is a convolution of each channel by itself."""
    return isinstance(layer, _ConvNd) and layer.groups == layer.in_channels > 1


def line_axis(layer: nn.Module) -> int:
    """The dimension of the weight of ``layer`` along which its output lines lie."""
    return 1 if is_transposed(layer) or (isinstance(layer, _ConvNd) and layer.transposed) else 0


def is_lora(slot: Slot) -> bool:
    """Whether the tensor belongs to a low-rank adapter beside the layer."""
    return any(part.startswith("lora_") for part in slot.path.split("."))


def claim_layers(tree: Tree, claims: Claims) -> None:
    """Add a claim for every slot."""
    for slot in tree.slots:
        claims.add(slot, _claim(slot))


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
        return claim(Role.CONV, kind, axis=line_axis(layer))
    if is_linear(layer) and len(slot.shape) == 2:
        return claim(Role.LINEAR, kind, axis=line_axis(layer))
    return _claim_bare(slot)


def _claim_bare(slot: Slot) -> Claim:
    """A parameter that a module holds itself: its shape and the words of its name are all there is."""
    kind = type(slot.layer).__name__
    named = words(slot.attr)
    if "bias" in named and not is_relative(slot) and len(slot.shape) <= 2:
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
    return Claim(Source.LAYER, Role.OTHER, f"parameter of {kind}, which is not known", guess=True)


def is_relative(slot: Slot) -> bool:
    """Whether a bias is one of positions (a table of relative position biases)."""
    return not {"rel", "relative", "biases", "table"}.isdisjoint(words(slot.attr))


def _long_dims(slot: Slot) -> list[int]:
    return [size for size in slot.shape if size > 1]
