"""Small GPTs: minGPT, nanoGPT, one module per head, GPT-2 with its own Conv1D, per-head fused orders."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style

VOCAB = 61


# minGPT of 2020: key first, then query, then value.
class CausalSelfAttention(nn.Module):
    mask: Tensor

    def __init__(self, n_embd: int, n_head: int, block_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(n_embd, n_embd)
        self.query = nn.Linear(n_embd, n_embd)
        self.value = nn.Linear(n_embd, n_embd)
        self.proj = nn.Linear(n_embd, n_embd)
        self.register_buffer("mask", torch.tril(torch.ones(block_size, block_size)).view(1, 1, block_size, block_size))
        self.n_head = n_head

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        k = self.key(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = self.query(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = self.value(x).view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = F.softmax(att.masked_fill(self.mask[:, :, :T, :T] == 0, float("-inf")), dim=-1)
        return self.proj((att @ v).transpose(1, 2).contiguous().view(B, T, C))


# nanoGPT: one c_attn, split at the width.
class FusedSelfAttention(nn.Module):
    def __init__(self, n_embd: int, n_head: int, block_size: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.c_proj = nn.Linear(n_embd, n_embd, bias=False)
        self.n_head, self.n_embd = n_head, n_embd

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (a.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for a in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


# A class of head each, as in the lecture that builds a GPT from nothing.
class Head(nn.Module):
    tril: Tensor

    def __init__(self, n_embd: int, head_size: int, block_size: int) -> None:
        super().__init__()
        self.key = nn.Linear(n_embd, head_size, bias=False)
        self.query = nn.Linear(n_embd, head_size, bias=False)
        self.value = nn.Linear(n_embd, head_size, bias=False)
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))

    def forward(self, x: Tensor) -> Tensor:
        T = x.shape[1]
        k, q = self.key(x), self.query(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        wei = F.softmax(wei.masked_fill(self.tril[:T, :T] == 0, float("-inf")), dim=-1)
        return wei @ self.value(x)


class HeadByHead(nn.Module):
    def __init__(self, n_embd: int, n_head: int, block_size: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head(n_embd, n_embd // n_head, block_size) for _ in range(n_head)])
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.cat([h(x) for h in self.heads], dim=-1))


class FeedForward(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    def __init__(self, n_embd: int, n_head: int, block_size: int, attention: type[nn.Module]) -> None:
        super().__init__()
        self.sa = attention(n_embd, n_head, block_size)
        self.ffwd = FeedForward(n_embd)
        self.ln1, self.ln2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class GPTLanguageModel(nn.Module):
    def __init__(self, attention: type[nn.Module], n_embd: int = 32, n_head: int = 4, n_layer: int = 2, block_size: int = 8) -> None:
        super().__init__()
        self.token_embedding_table = nn.Embedding(VOCAB, n_embd)
        self.position_embedding_table = nn.Embedding(block_size, n_embd)
        self.blocks = nn.Sequential(*[Block(n_embd, n_head, block_size, attention) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, VOCAB)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.token_embedding_table(idx) + self.position_embedding_table(torch.arange(idx.shape[1], device=idx.device))
        logits = self.lm_head(self.ln_f(self.blocks(x)))
        return logits, None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# GPT-2: a class called Conv1D whose weight is (in, out).
class Conv1D(nn.Module):
    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf) * 0.2)
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.size(-1)), self.weight).view(*x.size()[:-1], self.nf)


class Attention(nn.Module):
    def __init__(self, nx: int, n_head: int) -> None:
        super().__init__()
        self.n_head, self.split_size = n_head, nx
        self.c_attn = Conv1D(nx * 3, nx)
        self.c_proj = Conv1D(nx, nx)

    def split_heads(self, x: Tensor, k: bool = False) -> Tensor:
        x = x.view(*x.size()[:-1], self.n_head, x.size(-1) // self.n_head)
        return x.permute(0, 2, 3, 1) if k else x.permute(0, 2, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.c_attn(x).split(self.split_size, dim=2)
        w = torch.matmul(self.split_heads(query), self.split_heads(key, k=True)) / math.sqrt(self.split_size // self.n_head)
        b = torch.ones_like(w[0, 0]).tril()
        a = torch.matmul(nn.Softmax(dim=-1)(w * b - 1e10 * (1 - b)), self.split_heads(value))
        return self.c_proj(a.permute(0, 2, 1, 3).flatten(-2))


class MLP(nn.Module):
    def __init__(self, n_state: int, nx: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(n_state, nx), Conv1D(nx, n_state)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class GPT2Block(nn.Module):
    def __init__(self, nx: int, n_head: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(nx), Attention(nx, n_head)
        self.ln_2, self.mlp = nn.LayerNorm(nx), MLP(4 * nx, nx)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT2LMHeadModel(nn.Module):
    def __init__(self, n_embd: int = 32, n_head: int = 4, n_layer: int = 2) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCAB, n_embd), nn.Embedding(8, n_embd)
        self.h = nn.ModuleList([GPT2Block(n_embd, n_head) for _ in range(n_layer)])
        self.ln_f = nn.LayerNorm(n_embd)
        self.decoder = nn.Linear(n_embd, VOCAB, bias=False)
        self.decoder.weight = self.wte.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.wte(input_ids) + self.wpe(torch.arange(input_ids.size(-1)))
        for block in self.h:
            x = block(x)
        return self.decoder(self.ln_f(x))


# NeoX: per head q, k, v. CodeGen: two parts for tensor parallelism, in each query, value, key.
class NeoXOrder(nn.Module):
    def __init__(self, n_embd: int, n_head: int, block_size: int) -> None:
        super().__init__()
        self.np, self.hn = n_head, n_embd // n_head
        self.query_key_value = nn.Linear(n_embd, 3 * n_embd)
        self.dense = nn.Linear(n_embd, n_embd)

    def forward(self, hidden_states: Tensor) -> Tensor:
        mixed = self.query_key_value(hidden_states)
        mixed = mixed.view(*mixed.shape[:-1], self.np, 3 * self.hn).permute(0, 2, 1, 3)
        q, k, v = torch.split(mixed, self.hn, dim=-1)
        scores = torch.baddbmm(q.new_zeros(q.size(0) * self.np, q.size(2), q.size(2)), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0.0)
        probs = (scores.view(*q.shape[:3], -1) / math.sqrt(self.hn)).softmax(-1)
        return self.dense((probs @ v).permute(0, 2, 1, 3).flatten(2))


class CodeGenOrder(nn.Module):
    def __init__(self, n_embd: int, n_head: int, block_size: int) -> None:
        super().__init__()
        self.num_attention_heads, self.head_dim = n_head, n_embd // n_head
        self.qkv_proj = nn.Linear(n_embd, 3 * n_embd, bias=False)
        self.out_proj = nn.Linear(n_embd, n_embd, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        b, t, c = hidden_states.shape
        mp_num = 2
        qkv = self.qkv_proj(hidden_states).reshape(b, t, mp_num, -1)
        query, value, key = (
            a.reshape(b, t, self.num_attention_heads, self.head_dim).transpose(1, 2) for a in torch.split(qkv, c // mp_num, dim=-1)
        )
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.out_proj(y.transpose(1, 2).reshape(b, t, c))


# One layer, tied, its MLP as wide as the vocabulary.
class TiedOneLayer(nn.Module):
    def __init__(self, vocab: int = 128, dim: int = 32) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab, dim)
        self.pos = nn.Parameter(torch.randn(8, dim) * 0.02)
        self.attn = FusedSelfAttention(dim, 4, 8)
        self.up, self.down = nn.Linear(dim, vocab), nn.Linear(vocab, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.emb(tokens) + self.pos[: tokens.shape[1]]
        x = x + self.attn(F.layer_norm(x, x.shape[-1:]))
        x = x + self.down(F.gelu(self.up(F.layer_norm(x, x.shape[-1:]))))
        return F.linear(x, self.emb.weight)


def _tokens() -> tuple[tuple[Tensor], dict[str, Tensor]]:
    return (torch.randint(VOCAB, (1, 6)),), {}


_GPT = {
    "token_embedding_table.weight": {"token_embedding"},
    "position_embedding_table.weight": {"position_embedding"},
    "blocks.*.ffwd.net.0.weight": {"mlp_up"},
    "blocks.*.ffwd.net.2.weight": {"mlp_down"},
    "lm_head.weight": {"lm_head"},
}
_SEPARATE = {
    "blocks.*.query.weight": {"query"},
    "blocks.*.key.weight": {"key"},
    "blocks.*.value.weight": {"value"},
    "blocks.*.sa.proj.weight": {"attn_out"},
}


def _gpt(name: str, attention: type[nn.Module], roles: dict[str, set[str]], lines: dict[str, str]) -> Style:
    return Style(name, lambda: GPTLanguageModel(attention), _tokens, {"transformer"}, {**_GPT, **roles}, lines)


def _fused(name: str, attention: type[nn.Module], qkv: str, out: str, lines: str) -> Style:
    qkv, out = f"blocks.*.sa.{qkv}.weight", f"blocks.*.sa.{out}.weight"
    return _gpt(name, attention, {qkv: {"qkv"}, out: {"attn_out"}}, {qkv: lines})


_STACKED = "q:4x8|k:4x8|v:4x8"
STYLES: list[Style] = [
    _gpt("minGPT", CausalSelfAttention, _SEPARATE, {"blocks.*.query.weight": "q:4x8", "blocks.*.key.weight": "k:4x8"}),
    _gpt("one module per head", HeadByHead, _SEPARATE, {"blocks.*.query.weight": "q:1x8", "blocks.*.key.weight": "k:1x8"}),
    _fused("nanoGPT", FusedSelfAttention, "c_attn", "c_proj", _STACKED),
    _fused("neox order", NeoXOrder, "query_key_value", "dense", "4*(q:1x8|k:1x8|v:1x8)"),
    _fused("codegen order", CodeGenOrder, "qkv_proj", "out_proj", "2*(q:2x8|v:2x8|k:2x8)"),
    Style(
        "gpt-2 with its own Conv1D",
        GPT2LMHeadModel,
        _tokens,
        {"transformer"},
        {
            "wte.weight": {"token_embedding", "lm_head"},
            "wpe.weight": {"position_embedding"},
            "h.*.attn.c_attn.weight": {"qkv"},
            "h.*.attn.c_proj.weight": {"attn_out"},
            "h.*.mlp.c_fc.weight": {"mlp_up"},
            "h.*.mlp.c_proj.weight": {"mlp_down"},
        },
        {"h.*.attn.c_attn.weight": f"{_STACKED}@1"},
    ),
    Style(
        "one layer, tied, an MLP as wide as the vocabulary",
        TiedOneLayer,
        _tokens,
        {"transformer"},
        {
            "emb.weight": {"token_embedding", "lm_head"},
            "pos": {"position_embedding"},
            "attn.c_attn.weight": {"qkv"},
            "attn.c_proj.weight": {"attn_out"},
            "up.weight": {"mlp_up"},
            "down.weight": {"mlp_down"},
        },
        {"attn.c_attn.weight": _STACKED},
    ),
]
