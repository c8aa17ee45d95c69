"""Attention beside other things: AlphaFold's gates and pair bias, trajectories, recommendation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


class Linear(nn.Linear):
    """A linear that remembers how it was initialised."""

    def __init__(self, in_dim: int, out_dim: int, bias: bool = True, init: str = "default") -> None:
        super().__init__(in_dim, out_dim, bias=bias)
        if init == "gating":
            with torch.no_grad():
                self.bias.fill_(1.0)


class Attention(nn.Module):
    def __init__(self, c_q: int, c_k: int, c_v: int, c_hidden: int, no_heads: int) -> None:
        super().__init__()
        self.c_hidden, self.no_heads = c_hidden, no_heads
        self.linear_q = Linear(c_q, c_hidden * no_heads, bias=False)
        self.linear_k = Linear(c_k, c_hidden * no_heads, bias=False)
        self.linear_v = Linear(c_v, c_hidden * no_heads, bias=False)
        self.linear_o = Linear(c_hidden * no_heads, c_q)
        self.linear_g = Linear(c_q, c_hidden * no_heads, init="gating")

    def forward(self, q_x: Tensor, kv_x: Tensor, biases: list[Tensor]) -> Tensor:
        q, k, v = (
            f(x).view(*x.shape[:-1], self.no_heads, -1).transpose(-2, -3)
            for f, x in ((self.linear_q, q_x), (self.linear_k, kv_x), (self.linear_v, kv_x))
        )
        a = torch.matmul(q / self.c_hidden**0.5, k.transpose(-1, -2))
        for b in biases:
            a = a + b
        o = torch.matmul(F.softmax(a, dim=-1), v).transpose(-2, -3)
        g = torch.sigmoid(self.linear_g(q_x)).view(*q_x.shape[:-1], self.no_heads, -1)
        return self.linear_o((o * g).flatten(-2))


class MSARowAttentionWithPairBias(nn.Module):
    def __init__(self, c_m: int, c_z: int, c_hidden: int, no_heads: int) -> None:
        super().__init__()
        self.layer_norm_m, self.layer_norm_z = nn.LayerNorm(c_m), nn.LayerNorm(c_z)
        self.linear_z = Linear(c_z, no_heads, bias=False)
        self.mha = Attention(c_m, c_m, c_m, c_hidden, no_heads)

    def forward(self, m: Tensor, z: Tensor) -> Tensor:
        m = self.layer_norm_m(m)
        return self.mha(m, m, [self.linear_z(self.layer_norm_z(z)).permute(2, 0, 1)])


class Transition(nn.Module):
    def __init__(self, c: int, n: int) -> None:
        super().__init__()
        self.layer_norm, self.linear_1, self.linear_2 = nn.LayerNorm(c), Linear(c, n * c), Linear(n * c, c)

    def forward(self, m: Tensor) -> Tensor:
        return self.linear_2(F.relu(self.linear_1(self.layer_norm(m))))


class OuterProductMean(nn.Module):
    def __init__(self, c_m: int, c_z: int, c_hidden: int) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(c_m)
        self.linear_1, self.linear_2 = Linear(c_m, c_hidden), Linear(c_m, c_hidden)
        self.linear_out = Linear(c_hidden**2, c_z)

    def forward(self, m: Tensor) -> Tensor:
        m = self.layer_norm(m)
        return self.linear_out(torch.einsum("sic,sje->ijce", self.linear_1(m), self.linear_2(m)).flatten(-2) / len(m))


class EvoformerBlock(nn.Module):
    def __init__(self, c_m: int, c_z: int) -> None:
        super().__init__()
        self.msa_att_row = MSARowAttentionWithPairBias(c_m, c_z, 8, 4)
        self.msa_transition, self.pair_transition = Transition(c_m, 4), Transition(c_z, 2)
        self.outer_product_mean = OuterProductMean(c_m, c_z, 4)

    def forward(self, m: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        m = m + self.msa_att_row(m, z)
        m = m + self.msa_transition(m)
        z = z + self.outer_product_mean(m)
        return m, z + self.pair_transition(z)


class Evoformer(nn.Module):
    def __init__(self, tf_dim: int = 22, msa_dim: int = 49, c_m: int = 32, c_z: int = 16) -> None:
        super().__init__()
        self.linear_tf_z_i, self.linear_tf_z_j = Linear(tf_dim, c_z), Linear(tf_dim, c_z)
        self.linear_msa_m = Linear(msa_dim, c_m)
        self.blocks = nn.ModuleList([EvoformerBlock(c_m, c_z) for _ in range(2)])
        self.distogram = Linear(c_z, 10)
        self.masked_msa = Linear(c_m, 23)

    def forward(self, target_feat: Tensor, msa_feat: Tensor) -> dict[str, Tensor]:
        z = self.linear_tf_z_i(target_feat)[:, None] + self.linear_tf_z_j(target_feat)[None]
        m = self.linear_msa_m(msa_feat)
        for block in self.blocks:
            m, z = block(m, z)
        return {"distogram": self.distogram(z + z.transpose(0, 1)), "masked_msa": self.masked_msa(m)}


# Decision Transformer: returns, states and actions in turn, by linears; time from a table.
class CausalBlock(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.mlp = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.c_attn(self.ln_1(x)).view(b, t, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)
        x = x + self.c_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.ln_2(x))


class DecisionTransformer(nn.Module):
    def __init__(self, state_dim: int = 11, act_dim: int = 3, hidden_size: int = 32, max_ep_len: int = 50) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.transformer = nn.Sequential(*(CausalBlock(hidden_size, 4) for _ in range(2)))
        self.embed_timestep = nn.Embedding(max_ep_len, hidden_size)
        self.embed_return = nn.Linear(1, hidden_size)
        self.embed_state = nn.Linear(state_dim, hidden_size)
        self.embed_action = nn.Linear(act_dim, hidden_size)
        self.embed_ln = nn.LayerNorm(hidden_size)
        self.predict_state = nn.Linear(hidden_size, state_dim)
        self.predict_action = nn.Sequential(nn.Linear(hidden_size, act_dim), nn.Tanh())
        self.predict_return = nn.Linear(hidden_size, 1)

    def forward(self, states: Tensor, actions: Tensor, returns_to_go: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, t = states.shape[:2]
        time = self.embed_timestep(timesteps)
        parts = (self.embed_return(returns_to_go), self.embed_state(states), self.embed_action(actions))
        stacked = torch.stack([part + time for part in parts], dim=1).permute(0, 2, 1, 3).reshape(b, 3 * t, self.hidden_size)
        x = self.transformer(self.embed_ln(stacked)).reshape(b, t, 3, self.hidden_size).permute(0, 2, 1, 3)
        return self.predict_state(x[:, 2]), self.predict_action(x[:, 1]), self.predict_return(x[:, 2])


_OUT = {"classifier", "lm_head", "linear"}
_IN = {"linear", "patch_embedding", "token_embedding"}
STYLES: list[Style] = [
    Style(
        "alphafold: gates and pair bias",
        Evoformer,
        lambda: ((torch.randn(5, 22), torch.randn(3, 5, 49)), {}),
        {"transformer"},
        {
            "linear_tf_z_?.weight": _IN,
            "linear_msa_m.weight": _IN,
            "*.linear_z.weight": {"attn_other", "linear"},
            "*.mha.linear_q.weight": {"query"},
            "*.mha.linear_k.weight": {"key"},
            "*.mha.linear_v.weight": {"value"},
            "*.mha.linear_o.weight": {"attn_out"},
            "*.mha.linear_g.weight": {"attn_other", "linear"},
            "*_transition.linear_1.weight": {"mlp_up"},
            "*_transition.linear_2.weight": {"mlp_down"},
            "*.outer_product_mean.linear_*.weight": {"linear", "mlp_up", "mlp_down"},
            "distogram.weight": _OUT,
            "masked_msa.weight": _OUT,
        },
        {"*.mha.linear_q.weight": "q:4x8", "*.mha.linear_k.weight": "k:4x8"},
    ),
    Style(
        "decision transformer",
        DecisionTransformer,
        lambda: ((torch.randn(1, 4, 11), torch.randn(1, 4, 3), torch.randn(1, 4, 1), torch.arange(4)[None]), {}),
        {"transformer"},
        {
            "embed_timestep.weight": {"position_embedding", "time_embedding", "token_embedding"},
            "embed_return.weight": _IN,
            "embed_state.weight": _IN,
            "embed_action.weight": _IN,
            "transformer.*.c_attn.weight": {"qkv"},
            "transformer.*.c_proj.weight": {"attn_out"},
            "transformer.*.mlp.0.weight": {"mlp_up"},
            "transformer.*.mlp.2.weight": {"mlp_down"},
            "predict_state.weight": _OUT,
            "predict_action.0.weight": _OUT,
            "predict_return.weight": _OUT,
        },
        {"transformer.*.c_attn.weight": "q:4x8|k:4x8|v:4x8"},
    ),
]
