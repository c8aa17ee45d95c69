"""T5 with its own head size, and a switch transformer with stacked experts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


class T5LayerNorm(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.weight * hidden_states * torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + 1e-6)


class T5Attention(nn.Module):
    """The inner width is not the model's; a bias for each head from how far apart two places are."""

    def __init__(self, d_model: int, d_kv: int, num_heads: int, has_relative_attention_bias: bool) -> None:
        super().__init__()
        self.key_value_proj_dim, self.n_heads = d_kv, num_heads
        inner_dim = d_kv * num_heads
        self.q = nn.Linear(d_model, inner_dim, bias=False)
        self.k = nn.Linear(d_model, inner_dim, bias=False)
        self.v = nn.Linear(d_model, inner_dim, bias=False)
        self.o = nn.Linear(inner_dim, d_model, bias=False)
        self.relative_attention_bias = nn.Embedding(16, num_heads) if has_relative_attention_bias else None

    def shape(self, states: Tensor) -> Tensor:
        return states.view(states.shape[0], -1, self.n_heads, self.key_value_proj_dim).transpose(1, 2)

    def forward(self, hidden_states: Tensor, kv: Tensor | None = None, position_bias: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        source = hidden_states if kv is None else kv
        query, key, value = self.shape(self.q(hidden_states)), self.shape(self.k(source)), self.shape(self.v(source))
        scores = torch.matmul(query, key.transpose(3, 2))
        if position_bias is None and self.relative_attention_bias is not None:
            steps = torch.arange(key.shape[2])[None] - torch.arange(query.shape[2])[:, None]
            position_bias = self.relative_attention_bias(steps.clamp(-8, 7) + 8).permute(2, 0, 1).unsqueeze(0)
        if position_bias is not None:
            scores = scores + position_bias
        out = torch.matmul(F.softmax(scores, dim=-1), value).transpose(1, 2).flatten(2)
        return self.o(out), position_bias


class T5DenseReluDense(nn.Module):
    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.wi = nn.Linear(d_model, d_ff, bias=False)
        self.wo = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.wo(F.relu(self.wi(hidden_states)))


class T5Block(nn.Module):
    def __init__(self, d_model: int, first: bool, is_decoder: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(d_model, 6, 4, first)
        self.EncDecAttention = T5Attention(d_model, 6, 4, False) if is_decoder else None
        self.DenseReluDense = T5DenseReluDense(d_model, 80)
        self.layer_norm = nn.ModuleList([T5LayerNorm(d_model) for _ in range(3)])

    def forward(self, x: Tensor, memory: Tensor | None, position_bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        y, position_bias = self.SelfAttention(self.layer_norm[0](x), position_bias=position_bias)
        x = x + y
        if self.EncDecAttention is not None:
            x = x + self.EncDecAttention(self.layer_norm[1](x), memory)[0]
        return x + self.DenseReluDense(self.layer_norm[2](x)), position_bias


class T5Stack(nn.Module):
    def __init__(self, d_model: int, embed_tokens: nn.Embedding, is_decoder: bool) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.block = nn.ModuleList([T5Block(d_model, i == 0, is_decoder) for i in range(2)])
        self.final_layer_norm = T5LayerNorm(d_model)

    def forward(self, input_ids: Tensor, memory: Tensor | None = None) -> Tensor:
        x, bias = self.embed_tokens(input_ids), None
        for block in self.block:
            x, bias = block(x, memory, bias)
        return self.final_layer_norm(x)


class T5Model(nn.Module):
    def __init__(self, vocab_size: int = 59, d_model: int = 32) -> None:
        super().__init__()
        self.shared = nn.Embedding(vocab_size, d_model)
        self.encoder = T5Stack(d_model, self.shared, False)
        self.decoder = T5Stack(d_model, self.shared, True)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor) -> Tensor:
        return self.lm_head(self.decoder(decoder_input_ids, self.encoder(input_ids)))


# A switch transformer: the experts' weights in one tensor each, one expert a token.
class SwitchFFN(nn.Module):
    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.switch = nn.Linear(width, experts)
        self.lift = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.land = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        chosen, which = self.switch(x).softmax(-1).max(-1)
        h = F.relu(torch.einsum("btw,btwh->bth", x, self.lift[which]))
        return torch.einsum("bth,bthw->btw", h, self.land[which]) * chosen.unsqueeze(-1)


class Expert(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layer1, self.layer2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(F.relu(self.layer1(x)))


# The same with a module for each expert and two experts a token.
class TopTwoFFN(nn.Module):
    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList([Expert(width, hidden) for _ in range(experts)])

    def forward(self, x: Tensor) -> Tensor:
        weight, which = self.gate(x).topk(2, dim=-1)
        weight, out = weight.softmax(-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            share = (weight * (which == i)).sum(-1, keepdim=True)
            out = out + share * expert(x)
        return out


class SelfMix(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_map, self.k_map, self.v_map, self.o_map = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).movedim(-2, -3) for f in (self.q_map, self.k_map, self.v_map))
        return self.o_map(F.scaled_dot_product_attention(q, k, v, is_causal=True).movedim(-3, -2).flatten(-2))


class SwitchLayer(nn.Module):
    def __init__(self, width: int, ffn: type[nn.Module]) -> None:
        super().__init__()
        self.mix, self.ffn = SelfMix(width, 4), ffn(width, 40, 3)
        self.before_mix, self.before_ffn = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.before_mix(x))
        return x + self.ffn(self.before_ffn(x))


class SwitchLM(nn.Module):
    def __init__(self, ffn: type[nn.Module], vocab: int = 59, width: int = 32) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocab, width), nn.Embedding(10, width)
        self.layers = nn.ModuleList([SwitchLayer(width, ffn) for _ in range(2)])
        self.unembed = nn.Linear(width, vocab)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.unembed(x)


def _ids(*lengths: int) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    return tuple(torch.randint(59, (1, n)) for n in lengths), {}


_SWITCH = {
    "words.weight": {"token_embedding"},
    "places.weight": {"position_embedding"},
    "*.q_map.weight": {"query"},
    "*.k_map.weight": {"key"},
    "*.v_map.weight": {"value"},
    "*.o_map.weight": {"attn_out"},
    "unembed.weight": {"lm_head"},
}
_SWITCH_LINES = {"*.q_map.weight": "q:4x8", "*.k_map.weight": "k:4x8"}

STYLES: list[Style] = [
    Style(
        "t5",
        T5Model,
        lambda: _ids(6, 4),
        {"transformer"},
        {
            "shared.weight": {"token_embedding"},
            "*.relative_attention_bias.weight": {"position_embedding", "attn_other", "bias"},
            "*Attention.q.weight": {"query"},
            "*Attention.k.weight": {"key"},
            "*Attention.v.weight": {"value"},
            "*Attention.o.weight": {"attn_out"},
            "*.wi.weight": {"mlp_up"},
            "*.DenseReluDense.wo.weight": {"mlp_down"},
            "lm_head.weight": {"lm_head"},
        },
        {"*Attention.q.weight": "q:4x6", "*Attention.k.weight": "k:4x6"},
    ),
    Style(
        "switch transformer, stacked experts",
        lambda: SwitchLM(SwitchFFN),
        lambda: _ids(6),
        {"transformer"},
        {
            **_SWITCH,
            "*.ffn.switch.weight": {"router", "linear"},
            "*.ffn.lift": {"mlp_up", "other", "linear"},
            "*.ffn.land": {"mlp_down", "other", "linear"},
        },
        _SWITCH_LINES,
    ),
    Style(
        "mixture of experts, a module each",
        lambda: SwitchLM(TopTwoFFN),
        lambda: _ids(6),
        {"transformer"},
        {
            **_SWITCH,
            "*.ffn.gate.weight": {"router", "linear"},
            "*.layer1.weight": {"mlp_up"},
            "*.layer2.weight": {"mlp_down"},
        },
        _SWITCH_LINES,
    ),
]
