"""What a parameter is for, and what kind of network it is part of."""

from __future__ import annotations

from enum import Enum, IntEnum


class Role(str, Enum):
    """The part that a parameter plays in its network. Strategies decide on blocks by role; see :class:`ParameterReport`."""

    TOKEN_EMBEDDING = "token_embedding"
    POSITION_EMBEDDING = "position_embedding"
    TYPE_EMBEDDING = "type_embedding"
    TIME_EMBEDDING = "time_embedding"
    SPECIAL_TOKEN = "special_token"
    QUERY = "query"
    KEY = "key"
    VALUE = "value"
    QKV = "qkv"
    """Several of query, key and value (and perhaps more) in one tensor; the line order tells which line is which."""
    ATTN_OUT = "attn_out"
    ATTN_OTHER = "attn_other"
    MLP_UP = "mlp_up"
    MLP_GATE = "mlp_gate"
    MLP_GATE_UP = "mlp_gate_up"
    MLP_DOWN = "mlp_down"
    TOKEN_MIX = "token_mix"
    CONV = "conv"
    CONV_DEPTHWISE = "conv_dw"
    FIRST_CONV = "first_conv"
    PATCH_EMBEDDING = "patch_embedding"
    NORM = "norm"
    BIAS = "bias"
    SCALE = "scale"
    MODULATION = "modulation"
    LM_HEAD = "lm_head"
    CLASSIFIER = "classifier"
    GRAPH_CONV = "gnn_weight"
    RECURRENT_INPUT = "rnn_ih"
    RECURRENT_HIDDEN = "rnn_hh"
    LORA_A = "lora_a"
    LORA_B = "lora_b"
    ROUTER = "router"
    LINEAR = "linear"
    """A linear map of which no more is known."""
    OTHER = "other"
    """Nothing is known."""

    def __str__(self) -> str:
        return self.value


CONVOLUTIONS = frozenset({Role.CONV, Role.CONV_DEPTHWISE, Role.FIRST_CONV, Role.PATCH_EMBEDDING})
"""Weights of convolutions. A patch embedding may be a linear layer too."""

QUERIES_KEYS = frozenset({Role.QUERY, Role.KEY, Role.QKV})
"""Weights that may make queries or keys: what of a network is attention."""

ATTENTION = QUERIES_KEYS | {Role.VALUE}
"""Weights that attention reads its input by."""

FEED_FORWARD = frozenset({Role.MLP_UP, Role.MLP_GATE, Role.MLP_GATE_UP, Role.MLP_DOWN})
"""Weights of feed-forward layers; of three dimensions if they are those of all experts."""

LETTERS = {Role.QUERY: "q", Role.KEY: "k", Role.VALUE: "v"}
"""What line orders call them."""

RECURRENT = frozenset({Role.RECURRENT_INPUT, Role.RECURRENT_HIDDEN})
"""Weights of recurrent layers."""

OUTPUTS = frozenset({Role.LM_HEAD, Role.CLASSIFIER})
"""Weights whose lines are what the network gives."""

MATRICES = (
    ATTENTION
    | FEED_FORWARD
    | OUTPUTS
    | {Role.ATTN_OUT, Role.ATTN_OTHER, Role.TOKEN_MIX, Role.TIME_EMBEDDING, Role.MODULATION, Role.ROUTER, Role.LINEAR}
)
"""Linear maps of the last dimension."""


class Architecture(str, Enum):
    """The kind of a network."""

    TRANSFORMER = "transformer"
    CNN = "cnn"
    GNN = "gnn"
    DIFFUSION_UNET = "diffusion_unet"
    DIFFUSION_TRANSFORMER = "diffusion_transformer"
    MLP_MIXER = "mlp_mixer"
    MLP = "mlp"
    RNN = "rnn"
    HYBRID = "hybrid"
    UNKNOWN = "unknown"

    def __str__(self) -> str:
        return self.value


class Source(IntEnum):
    """Where a claim comes from, weakest first. A stronger source overrules a weaker one."""

    LAYER = 0
    """The type of the layer that holds the tensor: a Linear, a convolution, a norm."""
    STRUCTURE = 1
    """Names, attributes and shapes that fit together."""
    KNOWN = 2
    """A registered module."""
    EVIDENCE = 3
    """What the model computes."""
    USER = 4
    """An override."""
