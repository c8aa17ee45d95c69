"""What a parameter is for, and what kind of network it is part of."""

from __future__ import annotations

from enum import Enum


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


CONVOLUTIONS = frozenset({Role.CONV, Role.CONV_DEPTHWISE})
"""Roles of convolutions, the first one apart."""


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
