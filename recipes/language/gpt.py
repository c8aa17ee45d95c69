"""A small GPT: pre-norm blocks of causal attention and an MLP."""

import math
from typing import Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention
from typing_extensions import override

Positions = Literal["learned", "rotary"]
Init = Literal["gpt2", "torch"]


class Attention(nn.Module):
    """Causal self-attention, with as many heads for keys and values as for queries, or fewer (grouped-query attention).

    Args:
        width: Size of a token's vector.
        num_heads: Heads of the queries.
        num_kv_heads: Heads of the keys and values.
        fused_qkv: Whether one matrix makes queries, keys and values, in this order.
        bias: Whether linear layers have one.
    """

    def __init__(self, width: int, num_heads: int, num_kv_heads: int, fused_qkv: bool, bias: bool) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = num_heads, num_kv_heads, width // num_heads
        self.q_size, self.kv_size = width, num_kv_heads * self.head_dim
        self.qkv_proj = nn.Linear(width, self.q_size + 2 * self.kv_size, bias=bias) if fused_qkv else None
        if not fused_qkv:
            self.q_proj = nn.Linear(width, self.q_size, bias=bias)
            self.k_proj = nn.Linear(width, self.kv_size, bias=bias)
            self.v_proj = nn.Linear(width, self.kv_size, bias=bias)
        self.out_proj = nn.Linear(width, width, bias=bias)

    @override
    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Return the attention of each token to itself and those before it.

        Args:
            x: The tokens, of shape (batch, length, width).
            rotation: What turns queries and keys, from `rotary_angles`; none for learned positions.
        """
        batch, length, width = x.shape
        if self.qkv_proj is not None:
            q, k, v = self.qkv_proj(x).split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q = q.view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        k = k.view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = v.view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        grouped = self.num_kv_heads < self.num_heads
        y = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self.out_proj(y.transpose(1, 2).reshape(batch, length, width))


class MLP(nn.Module):
    """Two linear layers with GELU between, four times as wide inside.

    Args:
        width: Size of a token's vector.
        bias: Whether linear layers have one.
    """

    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.up_proj = nn.Linear(width, 4 * width, bias=bias)
        self.down_proj = nn.Linear(4 * width, width, bias=bias)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return the output for each token."""
        return self.down_proj(gelu(self.up_proj(x)))


class Block(nn.Module):
    """Attention and an MLP, each after a norm and added to what goes in.

    Args:
        width: Size of a token's vector.
        bias: Whether linear layers and norms have one.
        dropout: Dropout of what is added.
        attention: The attention.
    """

    def __init__(self, width: int, bias: bool, dropout: float, attention: Attention) -> None:
        super().__init__()
        self.attn_norm = nn.LayerNorm(width, bias=bias)
        self.attn = attention
        self.mlp_norm = nn.LayerNorm(width, bias=bias)
        self.mlp = MLP(width, bias)
        self.dropout = nn.Dropout(dropout)

    @override
    def forward(self, x: Tensor, rotation: Tensor | None) -> Tensor:
        """Return the output for each token; `Attention.forward` explains the arguments."""
        x = x + self.dropout(self.attn(self.attn_norm(x), rotation))
        return x + self.dropout(self.mlp(self.mlp_norm(x)))


class GPT(nn.Module):
    """A causal language model.

    Args:
        vocab_size: Number of tokens that it tells apart.
        context: Longest sequence.
        layers: Number of blocks.
        heads: Attention heads of a block.
        kv_heads: Heads of keys and values, a divisor of `heads`; as many as those of queries if none.
        width: Size of a token's vector, a multiple of `heads`.
        positions: ``learned`` vectors (GPT-2), or ``rotary`` (RoPE, Llama).
        tied: Whether the output layer shares the token embedding's weights.
        fused_qkv: Whether one matrix makes queries, keys and values.
        bias: Whether linear layers and norms have one.
        dropout: Dropout of the embeddings and of what each layer adds.
        init: ``gpt2`` (normal of deviation .02; .02 / sqrt(2 layers) where a layer adds to its input), or PyTorch's own (``torch``).

    Example:
        >>> GPT(vocab_size=256, context=16, layers=1, heads=4, kv_heads=2, width=32)(torch.zeros(1, 16, dtype=torch.int64)).shape
        torch.Size([1, 16, 256])
    """

    def __init__(
        self,
        vocab_size: int,
        context: int,
        layers: int,
        heads: int,
        kv_heads: int | None = None,
        width: int = 128,
        positions: Positions = "learned",
        tied: bool = True,
        fused_qkv: bool = False,
        bias: bool = False,
        dropout: float = 0.0,
        init: Init = "gpt2",
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if min(layers, heads, kv_heads, context) < 1 or width % heads or heads % kv_heads:
            raise MisconfigurationException(
                f"A GPT cannot have layers={layers}, heads={heads}, kv_heads={kv_heads}, width={width} and context={context}, because each "
                "must be at least 1, heads must divide width, and kv_heads must divide heads."
            )
        if positions == "rotary" and width // heads % 2:
            raise MisconfigurationException(
                f"Rotary positions turn pairs, but a head of width {width} / {heads} heads has an odd size; change one of the two."
            )
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.position_embedding = nn.Embedding(context, width) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        attentions = [Attention(width, heads, kv_heads, fused_qkv, bias) for _ in range(layers)]
        self.blocks = nn.ModuleList([Block(width, bias, dropout, attention) for attention in attentions])
        self.norm = nn.LayerNorm(width, bias=bias)
        self.lm_head = nn.Linear(width, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.token_embedding.weight
        rotation = rotary_angles(context, width // heads) if positions == "rotary" else None
        self.rotation: Tensor | None
        self.register_buffer("rotation", rotation, persistent=False)
        if init == "gpt2":
            self._init_like_gpt2(layers)

    def _init_like_gpt2(self, layers: int) -> None:
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                adds = name.endswith((".out_proj", ".down_proj"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * layers) if adds else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def get_output_embeddings(self) -> nn.Linear:
        """Return the output layer, by the name that Hugging Face's models give it."""
        return self.lm_head

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits of each next token, of shape (batch, length, vocabulary).

        Args:
            tokens: Tokens, of shape (batch, length) with a length of at most `context`.
        """
        return self.lm_head(self.features(tokens))

    def features(self, tokens: Tensor) -> Tensor:
        """Return what the output layer reads of each token, of shape (batch, length, width).

        Args:
            tokens: Tokens, of shape (batch, length) with a length of at most `context`.
        """
        length = tokens.shape[1]
        x = self.token_embedding(tokens)
        if self.position_embedding is not None:
            x = x + self.position_embedding(torch.arange(length, device=tokens.device))
        rotation = None if self.rotation is None else self.rotation[:length]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, rotation)
        return self.norm(x)


def rotary_angles(length: int, size: int, base: float = 10_000.0) -> Tensor:
    """Return cosine and sine of the angle of each pair of a head at each position (RoPE, Su et al. 2021).

    Args:
        length: Number of positions.
        size: Size of a head.
        base: The slowest pair takes about so many positions for a radian.

    Returns:
        A tensor of shape (length, 2, size / 2).
    """
    angles = torch.outer(torch.arange(length), base ** (-torch.arange(0, size, 2) / size))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair (i, i + size / 2) of a head by its angle.

    Args:
        x: Queries or keys, of shape (batch, heads, length, size).
        rotation: What `rotary_angles` returns.
    """
    cos, sin = rotation.unbind(dim=1)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
