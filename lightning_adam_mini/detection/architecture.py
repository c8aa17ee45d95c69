"""What kind of network it is: a claim like any other, decided from the roles of the parameters and a few signs beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from lightning_adam_mini.detection.roles import CONVOLUTIONS, MATRICES, QUERIES_KEYS, RECURRENT, Architecture, Role


@dataclass(frozen=True)
class Signs:
    """What tells the kind of a network beside the roles of its parameters. Each is a reason in a few words, or None.

    Attributes:
        messages: It passes messages along a graph.
        unet: It joins features of the way down on the way up, and one time vector goes into its blocks.
        time: It embeds time, or noise levels.
        states: It has state space layers.
        fourier: It mixes by Fourier transforms, without attention.
        attention: Something in it may be attention whose queries were not recognised.
        strong: Whether hardly anything but attention does that.
    """

    messages: str | None = None
    unet: str | None = None
    time: str | None = None
    states: str | None = None
    fourier: str | None = None
    attention: str | None = None
    strong: bool = False


class Decision(NamedTuple):
    """The kind of a network, why it is believed, and whether it is only likely."""

    architecture: Architecture
    reason: str
    guess: bool = False


def decide(signs: Signs, parameters: Iterable[tuple[Role, int]]) -> Decision:
    """The kind of a network.

    Args:
        signs: What was seen beside the roles.
        parameters: Role and number of elements of each parameter.

    Example:
        >>> print(decide(Signs(), [(Role.CONV, 900), (Role.CLASSIFIER, 40)]).architecture)
        cnn
        >>> decide(Signs(attention="Mix calls softmax and multiplies"), [(Role.LINEAR, 900)]).guess
        True
    """
    sizes, layers = Counter[Role](), Counter[Role]()
    for role, elements in parameters:
        sizes[role] += elements
        layers[role] += 1
    if signs.messages:
        return Decision(Architecture.GNN, signs.messages)
    if signs.unet:
        return Decision(Architecture.DIFFUSION_UNET, signs.unet)
    found = _by_size(signs, sizes, layers)
    if found.architecture in (Architecture.MLP, Architecture.UNKNOWN) and signs.attention:
        found = Decision(Architecture.TRANSFORMER, f"may have attention: {signs.attention}", guess=True)
    elif found.architecture is Architecture.MLP and signs.fourier:
        found = Decision(Architecture.UNKNOWN, signs.fourier)
    elif found.architecture in (Architecture.CNN, Architecture.RNN) and signs.attention and signs.strong:
        found = Decision(found.architecture, f"{found.reason}, unless {signs.attention}", guess=True)
    if signs.time and found.architecture in (Architecture.TRANSFORMER, Architecture.HYBRID):
        return Decision(Architecture.DIFFUSION_TRANSFORMER, f"{signs.time} and {found.reason}", found.guess)
    return found


def _by_size(signs: Signs, sizes: Counter[Role], layers: Counter[Role]) -> Decision:
    total = max(1, sum(sizes.values()))
    worked = CONVOLUTIONS - {Role.PATCH_EMBEDDING}
    convs, conv_layers = sum(sizes[role] for role in worked), sum(layers[role] for role in worked)
    attention = sum(sizes[role] for role in QUERIES_KEYS)
    # Three numbers of attention in a network of convolutions (CSATv2) do not make it a transformer.
    if attention > 0 and not (convs and attention < 1e-3 * total):
        if signs.states:
            return Decision(Architecture.HYBRID, "has attention and state space layers")
        # A transformer of images has a convolution or two to make patches; more than that takes part in the work.
        if convs > 0.05 * total and conv_layers > 2:
            return Decision(Architecture.HYBRID, f"attention and {convs / total:.0%} of its parameters in {conv_layers} convolutions")
        return Decision(Architecture.TRANSFORMER, "has attention")
    if signs.states:
        return Decision(Architecture.RNN, signs.states)
    if sizes[Role.TOKEN_MIX]:
        return Decision(Architecture.MLP_MIXER, "mixes tokens by linear layers")
    recurrent, linear = sum(sizes[role] for role in RECURRENT), sum(sizes[role] for role in MATRICES)
    if recurrent and recurrent >= convs:
        return Decision(Architecture.RNN, "has recurrent layers")
    if convs > 0.05 * total or (not linear and (convs or sizes[Role.PATCH_EMBEDDING])):
        return Decision(Architecture.CNN, "has convolutions and no attention")
    if linear + sizes[Role.TOKEN_EMBEDDING]:
        return Decision(Architecture.MLP, "has linear layers" + (", and few convolutions" if convs else " only"))
    return Decision(Architecture.UNKNOWN, "no layer of a known kind")
