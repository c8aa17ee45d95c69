"""Attention over sets and latents: Set Transformer, Perceiver IO, slot attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Set Transformer: heads are cut off the width and stacked on the batch.
class MAB(nn.Module):
    def __init__(self, dim_Q: int, dim_K: int, dim_V: int, num_heads: int) -> None:
        super().__init__()
        self.dim_V, self.num_heads = dim_V, num_heads
        self.fc_q = nn.Linear(dim_Q, dim_V)
        self.fc_k = nn.Linear(dim_K, dim_V)
        self.fc_v = nn.Linear(dim_K, dim_V)
        self.ln0, self.ln1 = nn.LayerNorm(dim_V), nn.LayerNorm(dim_V)
        self.fc_o = nn.Linear(dim_V, dim_V)

    def forward(self, Q: Tensor, K: Tensor) -> Tensor:
        Q = self.fc_q(Q)
        K, V = self.fc_k(K), self.fc_v(K)
        dim_split = self.dim_V // self.num_heads
        Q_, K_, V_ = (torch.cat(t.split(dim_split, 2), 0) for t in (Q, K, V))
        A = torch.softmax(Q_.bmm(K_.transpose(1, 2)) / math.sqrt(self.dim_V), 2)
        O = torch.cat((Q_ + A.bmm(V_)).split(Q.size(0), 0), 2)  # noqa: E741
        O = self.ln0(O)  # noqa: E741
        return self.ln1(O + F.relu(self.fc_o(O)))


class ISAB(nn.Module):
    def __init__(self, dim_in: int, dim_out: int, num_heads: int, num_inds: int) -> None:
        super().__init__()
        self.I = nn.Parameter(torch.empty(1, num_inds, dim_out))
        nn.init.xavier_uniform_(self.I)
        self.mab0 = MAB(dim_out, dim_in, dim_out, num_heads)
        self.mab1 = MAB(dim_in, dim_out, dim_out, num_heads)

    def forward(self, X: Tensor) -> Tensor:
        return self.mab1(X, self.mab0(self.I.repeat(X.size(0), 1, 1), X))


class PMA(nn.Module):
    def __init__(self, dim: int, num_heads: int, num_seeds: int) -> None:
        super().__init__()
        self.S = nn.Parameter(torch.empty(1, num_seeds, dim))
        nn.init.xavier_uniform_(self.S)
        self.mab = MAB(dim, dim, dim, num_heads)

    def forward(self, X: Tensor) -> Tensor:
        return self.mab(self.S.repeat(X.size(0), 1, 1), X)


class SetTransformer(nn.Module):
    def __init__(self, dim_input: int = 3, num_outputs: int = 1, dim_output: int = 10, dim_hidden: int = 32, num_heads: int = 4) -> None:
        super().__init__()
        self.enc = nn.Sequential(ISAB(dim_input, dim_hidden, num_heads, 8), ISAB(dim_hidden, dim_hidden, num_heads, 8))
        self.dec = nn.Sequential(PMA(dim_hidden, num_heads, num_outputs), nn.Linear(dim_hidden, dim_output))

    def forward(self, X: Tensor) -> Tensor:
        return self.dec(self.enc(X))


# Perceiver IO: latents ask the inputs with one wide head, output queries ask the latents.
class PerceiverAttention(nn.Module):
    def __init__(self, query_dim: int, context_dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_kv = nn.Linear(context_dim, inner * 2, bias=False)
        self.to_out = nn.Linear(inner, query_dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, n, h = len(x), x.shape[1], self.heads
        q = self.to_q(x)
        k, v = self.to_kv(context).chunk(2, dim=-1)
        q, k, v = (t.reshape(b, -1, h, t.shape[-1] // h).transpose(1, 2).reshape(b * h, -1, t.shape[-1] // h) for t in (q, k, v))
        sim = torch.einsum("bid,bjd->bij", q, k) * q.shape[-1] ** -0.5
        out = torch.einsum("bij,bjd->bid", sim.softmax(dim=-1), v)
        return self.to_out(out.reshape(b, h, n, -1).transpose(1, 2).reshape(b, n, -1))


class GEGLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x, gates = x.chunk(2, dim=-1)
        return x * F.gelu(gates)


class FeedForward(nn.Module):
    def __init__(self, dim: int, mult: int = 2) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, dim * mult * 2), GEGLU(), nn.Linear(dim * mult, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class PerceiverIO(nn.Module):
    def __init__(self, depth: int = 2, dim: int = 27, queries_dim: int = 20, num_latents: int = 6, latent_dim: int = 32) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(num_latents, latent_dim))
        self.cross_attend = PerceiverAttention(latent_dim, dim, heads=1, dim_head=32)
        self.cross_ff = FeedForward(latent_dim)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(latent_dim, latent_dim, heads=4, dim_head=8), FeedForward(latent_dim)]) for _ in range(depth)
        )
        self.decoder_cross_attn = PerceiverAttention(queries_dim, latent_dim, heads=2, dim_head=10)
        self.to_logits = nn.Linear(queries_dim, 7)

    def forward(self, data: Tensor, queries: Tensor) -> Tensor:
        x = self.latents.expand(len(data), -1, -1)
        x = self.cross_attend(x, data) + x
        x = self.cross_ff(x) + x
        for attn, ff in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = attn(x, x) + x
            x = ff(x) + x
        return self.to_logits(self.decoder_cross_attn(queries, x))


# Slot attention: one head, softmax over the slots that ask, a GRU that updates them.
class SlotAttention(nn.Module):
    def __init__(self, num_slots: int, dim: int, iters: int = 3, hidden_dim: int = 64) -> None:
        super().__init__()
        self.num_slots, self.iters, self.scale = num_slots, iters, dim**-0.5
        self.slots_mu = nn.Parameter(torch.randn(1, 1, dim))
        self.slots_log_sigma = nn.Parameter(torch.zeros(1, 1, dim))
        self.to_q, self.to_k, self.to_v = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gru = nn.GRUCell(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, hidden_dim), nn.Linear(hidden_dim, dim)
        self.norm_input, self.norm_slots, self.norm_pre_ff = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, inputs: Tensor) -> Tensor:
        b, _, d = inputs.shape
        slots = self.slots_mu + self.slots_log_sigma.exp() * torch.randn(b, self.num_slots, d)
        inputs = self.norm_input(inputs)
        k, v = self.to_k(inputs), self.to_v(inputs)
        for _ in range(self.iters):
            slots_prev = slots
            q = self.to_q(self.norm_slots(slots))
            attn = (torch.einsum("bid,bjd->bij", q, k) * self.scale).softmax(dim=1) + 1e-8
            updates = torch.einsum("bjd,bij->bid", v, attn / attn.sum(dim=-1, keepdim=True))
            slots = self.gru(updates.reshape(-1, d), slots_prev.reshape(-1, d)).reshape(b, -1, d)
            slots = slots + self.fc2(F.relu(self.fc1(self.norm_pre_ff(slots))))
        return slots


class SlotEncoder(nn.Module):
    def __init__(self, hid_dim: int = 32) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, hid_dim, 5, padding=2, stride=2), nn.Conv2d(hid_dim, hid_dim, 5, padding=2, stride=2)
        self.mlp = nn.Sequential(nn.Linear(hid_dim, hid_dim), nn.ReLU(), nn.Linear(hid_dim, hid_dim))
        self.slot_attention = SlotAttention(4, hid_dim)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(image)))).flatten(2).transpose(1, 2)
        return self.slot_attention(self.mlp(x))


STYLES: list[Style] = [
    Style(
        "set transformer",
        SetTransformer,
        lambda: ((torch.randn(1, 7, 3),), {}),
        {"transformer"},
        {
            "*.fc_q.weight": {"query"},
            "*.fc_k.weight": {"key"},
            "*.fc_v.weight": {"value"},
            # After the heads are joined and added: a residual layer of its own, that some call the output.
            "*.fc_o.weight": {"attn_out", "linear", "mlp_up"},
            "dec.1.weight": {"classifier", "lm_head"},
        },
        {"*.fc_q.weight": "q:4x8", "*.fc_k.weight": "k:4x8"},
    ),
    Style(
        "perceiver io",
        PerceiverIO,
        lambda: ((), {"data": torch.randn(1, 9, 27), "queries": torch.randn(1, 4, 20)}),
        {"transformer"},
        {
            "*.to_q.weight": {"query"},
            "*.to_kv.weight": {"qkv"},
            "*.to_out.weight": {"attn_out"},
            "*.net.0.weight": {"mlp_gate_up"},
            "*.net.2.weight": {"mlp_down"},
            "to_logits.weight": {"classifier", "lm_head"},
        },
        {
            "cross_attend.to_q.weight": "q:1x32",
            "cross_attend.to_kv.weight": "k:1x32|v:1x32",
            "layers.*.to_q.weight": "q:4x8",
            "layers.*.to_kv.weight": "k:4x8|v:4x8",
            "decoder_cross_attn.to_q.weight": "q:2x10",
            "decoder_cross_attn.to_kv.weight": "k:2x10|v:2x10",
        },
    ),
    Style(
        "slot attention",
        SlotEncoder,
        lambda: ((torch.randn(1, 3, 16, 16),), {}),
        {"transformer", "hybrid", "cnn"},
        {
            "slot_attention.to_q.weight": {"query"},
            "slot_attention.to_k.weight": {"key"},
            "slot_attention.to_v.weight": {"value"},
            "slot_attention.gru.weight_ih": {"rnn_ih"},
            "slot_attention.gru.weight_hh": {"rnn_hh"},
            "slot_attention.fc1.weight": {"mlp_up"},
            "slot_attention.fc2.weight": {"mlp_down"},
        },
        {"slot_attention.to_q.weight": "q:1x32", "slot_attention.to_k.weight": "k:1x32"},
    ),
]
