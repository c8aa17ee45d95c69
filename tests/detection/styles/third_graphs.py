"""Graphs, molecules, tables, series, agents, speech and lists of exercises, as papers and contests write them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Gated graph network: a linear for each kind of edge, both ways; gates written out over a dense adjacency.
class Propagator(nn.Module):
    def __init__(self, state_dim: int, n_node: int, n_edge_types: int) -> None:
        super().__init__()
        self.n_node, self.n_edge_types = n_node, n_edge_types
        self.reset_gate = nn.Sequential(nn.Linear(state_dim * 3, state_dim), nn.Sigmoid())
        self.update_gate = nn.Sequential(nn.Linear(state_dim * 3, state_dim), nn.Sigmoid())
        self.tansform = nn.Sequential(nn.Linear(state_dim * 3, state_dim), nn.Tanh())

    def forward(self, state_in: Tensor, state_out: Tensor, state_cur: Tensor, A: Tensor) -> Tensor:
        A_in, A_out = A[:, :, : self.n_node * self.n_edge_types], A[:, :, self.n_node * self.n_edge_types :]
        a_in, a_out = torch.bmm(A_in, state_in), torch.bmm(A_out, state_out)
        a = torch.cat((a_in, a_out, state_cur), 2)
        r, z = self.reset_gate(a), self.update_gate(a)
        h_hat = self.tansform(torch.cat((a_in, a_out, r * state_cur), 2))
        return (1 - z) * state_cur + z * h_hat


class GGNN(nn.Module):
    def __init__(self, state_dim: int = 22, annotation_dim: int = 3, n_edge_types: int = 2, n_node: int = 6, n_steps: int = 3) -> None:
        super().__init__()
        self.state_dim, self.annotation_dim = state_dim, annotation_dim
        self.n_edge_types, self.n_node, self.n_steps = n_edge_types, n_node, n_steps
        for i in range(n_edge_types):
            self.add_module(f"in_{i}", nn.Linear(state_dim, state_dim))
            self.add_module(f"out_{i}", nn.Linear(state_dim, state_dim))
        self.propogator = Propagator(state_dim, n_node, n_edge_types)
        self.out = nn.Sequential(nn.Linear(state_dim + annotation_dim, state_dim), nn.Tanh(), nn.Linear(state_dim, 1))

    def forward(self, prop_state: Tensor, annotation: Tensor, A: Tensor) -> Tensor:
        for _ in range(self.n_steps):
            in_states = torch.cat([getattr(self, f"in_{i}")(prop_state) for i in range(self.n_edge_types)], 1)
            out_states = torch.cat([getattr(self, f"out_{i}")(prop_state) for i in range(self.n_edge_types)], 1)
            prop_state = self.propogator(in_states, out_states, prop_state, A)
        return self.out(torch.cat((prop_state, annotation), 2)).sum(2)


# Molecules: scalars and vectors go from atom to atom by distance.
class PainnMessage(nn.Module):
    def __init__(self, node_size: int, edge_size: int) -> None:
        super().__init__()
        self.node_size, self.edge_size = node_size, edge_size
        self.scalar_message_mlp = nn.Sequential(nn.Linear(node_size, node_size), nn.SiLU(), nn.Linear(node_size, node_size * 3))
        self.filter_layer = nn.Linear(edge_size, node_size * 3)

    def forward(self, s: Tensor, v: Tensor, edge: Tensor, diff: Tensor, dist: Tensor) -> tuple[Tensor, Tensor]:
        rbf = torch.sin(dist[:, None] * torch.arange(1, self.edge_size + 1) * math.pi / 5) / dist[:, None]
        filter_weight = self.filter_layer(rbf) * (0.5 * (torch.cos(math.pi * dist / 5) + 1))[:, None]
        filter_out = filter_weight * self.scalar_message_mlp(s)[edge[:, 1]]
        gate_v, gate_e, message_s = torch.split(filter_out, self.node_size, dim=1)
        message_v = v[edge[:, 1]] * gate_v.unsqueeze(1) + gate_e.unsqueeze(1) * (diff / dist[:, None]).unsqueeze(-1)
        ds = torch.zeros_like(s).index_add_(0, edge[:, 0], message_s)
        return s + ds, v + torch.zeros_like(v).index_add_(0, edge[:, 0], message_v)


class PainnUpdate(nn.Module):
    def __init__(self, node_size: int) -> None:
        super().__init__()
        self.update_U, self.update_V = nn.Linear(node_size, node_size, bias=False), nn.Linear(node_size, node_size, bias=False)
        self.update_mlp = nn.Sequential(nn.Linear(node_size * 2, node_size), nn.SiLU(), nn.Linear(node_size, node_size * 3))

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        Uv, Vv = self.update_U(v), self.update_V(v)
        Vv_norm = (Vv.square().sum(1) + 1e-8).sqrt()
        a_vv, a_sv, a_ss = torch.chunk(self.update_mlp(torch.cat((Vv_norm, s), dim=1)), 3, dim=1)
        return s + a_sv * torch.sum(Uv * Vv, dim=1) + a_ss, v + a_vv.unsqueeze(1) * Uv


class PainnModel(nn.Module):
    def __init__(self, hidden: int = 26, edge_size: int = 8) -> None:
        super().__init__()
        self.atom_embedding = nn.Embedding(19, hidden)
        self.message_layers = nn.ModuleList([PainnMessage(hidden, edge_size) for _ in range(2)])
        self.update_layers = nn.ModuleList([PainnUpdate(hidden) for _ in range(2)])
        self.readout_mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))

    def forward(self, elems: Tensor, pos: Tensor, edge: Tensor) -> Tensor:
        diff = pos[edge[:, 1]] - pos[edge[:, 0]]
        dist = diff.norm(dim=1)
        s = self.atom_embedding(elems)
        v = s.new_zeros(len(s), 3, s.shape[1])
        for message, update in zip(self.message_layers, self.update_layers, strict=True):
            s, v = message(s, v, edge, diff, dist)
            s, v = update(s, v)
        return self.readout_mlp(s).sum()


# Several tasks over experts that all share, each task with a gate of its own.
class EmbeddingLayer(nn.Module):
    offsets: Tensor

    def __init__(self, field_dims: list[int], embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sum(field_dims), embed_dim)
        self.register_buffer("offsets", torch.tensor([0, *field_dims[:-1]]).cumsum(0))
        nn.init.xavier_uniform_(self.embedding.weight.data)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(x + self.offsets)


class MultiLayerPerceptron(nn.Module):
    def __init__(self, input_dim: int, embed_dims: tuple[int, ...], output_layer: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for embed_dim in embed_dims:
            layers += [nn.Linear(input_dim, embed_dim), nn.BatchNorm1d(embed_dim), nn.ReLU(), nn.Dropout(p=0.2)]
            input_dim = embed_dim
        if output_layer:
            layers.append(nn.Linear(input_dim, 1))
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class MMoEModel(nn.Module):
    def __init__(self, task_num: int = 2, expert_num: int = 4) -> None:
        super().__init__()
        self.embedding, self.numerical_layer = EmbeddingLayer([7, 9, 12], 8), nn.Linear(5, 8)
        dim, self.task_num = 4 * 8, task_num
        self.expert = nn.ModuleList([MultiLayerPerceptron(dim, (28, 20), output_layer=False) for _ in range(expert_num)])
        self.tower = nn.ModuleList([MultiLayerPerceptron(20, (14,)) for _ in range(task_num)])
        self.gate = nn.ModuleList([nn.Sequential(nn.Linear(dim, expert_num), nn.Softmax(dim=1)) for _ in range(task_num)])

    def forward(self, categorical_x: Tensor, numerical_x: Tensor) -> list[Tensor]:
        emb = torch.cat([self.embedding(categorical_x), self.numerical_layer(numerical_x).unsqueeze(1)], 1).flatten(1)
        gate_value = [gate(emb).unsqueeze(1) for gate in self.gate]
        fea = torch.cat([expert(emb).unsqueeze(1) for expert in self.expert], dim=1)
        task_fea = [torch.bmm(value, fea).squeeze(1) for value in gate_value]
        return [torch.sigmoid(tower(x).squeeze(1)) for tower, x in zip(self.tower, task_fea, strict=True)]


# Agents with one recurrence each, mixed by weights that layers make from the state of the world.
class RNNAgent(nn.Module):
    def __init__(self, input_shape: int, hidden: int, n_actions: int) -> None:
        super().__init__()
        self.fc1, self.rnn, self.fc2 = nn.Linear(input_shape, hidden), nn.GRUCell(hidden, hidden), nn.Linear(hidden, n_actions)

    def forward(self, inputs: Tensor, hidden_state: Tensor) -> tuple[Tensor, Tensor]:
        h = self.rnn(F.relu(self.fc1(inputs)), hidden_state)
        return self.fc2(h), h


class QMixer(nn.Module):
    def __init__(self, n_agents: int, state_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.n_agents, self.embed_dim = n_agents, embed_dim
        self.hyper_w_1 = nn.Linear(state_dim, embed_dim * n_agents)
        self.hyper_w_final = nn.Linear(state_dim, embed_dim)
        self.hyper_b_1 = nn.Linear(state_dim, embed_dim)
        self.V = nn.Sequential(nn.Linear(state_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, 1))

    def forward(self, agent_qs: Tensor, states: Tensor) -> Tensor:
        w1 = torch.abs(self.hyper_w_1(states)).view(-1, self.n_agents, self.embed_dim)
        b1 = self.hyper_b_1(states).view(-1, 1, self.embed_dim)
        hidden = F.elu(torch.bmm(agent_qs.view(-1, 1, self.n_agents), w1) + b1)
        w_final = torch.abs(self.hyper_w_final(states)).view(-1, self.embed_dim, 1)
        return (torch.bmm(hidden, w_final) + self.V(states).view(-1, 1, 1)).view(-1)


class QMix(nn.Module):
    def __init__(self, n_agents: int = 3, obs: int = 11, state: int = 17, hidden: int = 24) -> None:
        super().__init__()
        self.n_agents, self.hidden = n_agents, hidden
        self.agent, self.mixer = RNNAgent(obs + n_agents, hidden, 5), QMixer(n_agents, state, 13)

    def forward(self, obs: Tensor, states: Tensor) -> Tensor:
        b, t = obs.shape[:2]
        ids = torch.eye(self.n_agents).expand(b, -1, -1)
        h, qs = torch.zeros(b * self.n_agents, self.hidden), []
        for i in range(t):
            q, h = self.agent(torch.cat([obs[:, i], ids], -1).flatten(0, 1), h)
            qs.append(q.max(dim=-1).values.view(b, self.n_agents))
        return self.mixer(torch.stack(qs, 1).flatten(0, 1), states.flatten(0, 1)).view(b, t)


# Long series: only the queries that say most are asked, and the encoder halves its length between layers.
class ProbAttention(nn.Module):
    def __init__(self, factor: int, causal: bool) -> None:
        super().__init__()
        self.factor, self.causal = factor, causal

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        B, L_Q, H, D = queries.shape
        queries, keys, values = queries.transpose(2, 1), keys.transpose(2, 1), values.transpose(2, 1)
        L_K = keys.shape[2]
        U = min(int(self.factor * math.ceil(math.log(L_K))), L_K)
        u = min(int(self.factor * math.ceil(math.log(L_Q))), L_Q)
        index_sample = torch.randint(L_K, (L_Q, U))
        K_sample = keys.unsqueeze(-3).expand(B, H, L_Q, L_K, D)[:, :, torch.arange(L_Q).unsqueeze(1), index_sample, :]
        Q_K_sample = torch.matmul(queries.unsqueeze(-2), K_sample.transpose(-2, -1)).squeeze(-2)
        M = Q_K_sample.max(-1)[0] - torch.div(Q_K_sample.sum(-1), L_K)
        M_top = M.topk(u, sorted=False)[1]
        rows, heads = torch.arange(B)[:, None, None], torch.arange(H)[None, :, None]
        scores = torch.matmul(queries[rows, heads, M_top, :], keys.transpose(-2, -1)) * D**-0.5
        if self.causal:
            scores = scores.masked_fill(torch.ones(L_Q, L_K, dtype=torch.bool).triu(1)[M_top], -1e9)
            context = values.cumsum(dim=-2)
        else:
            context = values.mean(dim=-2).unsqueeze(-2).expand(B, H, L_Q, values.shape[-1]).clone()
        context[rows, heads, M_top, :] = torch.matmul(torch.softmax(scores, dim=-1), values)
        return context.transpose(2, 1).contiguous()


class AttentionLayer(nn.Module):
    def __init__(self, attention: ProbAttention, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.inner_attention, self.n_heads = attention, n_heads
        self.query_projection, self.key_projection = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.value_projection, self.out_projection = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        B, L, _ = queries.shape
        _, S, _ = keys.shape
        queries = self.query_projection(queries).view(B, L, self.n_heads, -1)
        keys = self.key_projection(keys).view(B, S, self.n_heads, -1)
        values = self.value_projection(values).view(B, S, self.n_heads, -1)
        return self.out_projection(self.inner_attention(queries, keys, values).view(B, L, -1))


class InformerLayer(nn.Module):
    def __init__(self, d_model: int, d_ff: int, n_heads: int, cross: bool) -> None:
        super().__init__()
        self.attention = AttentionLayer(ProbAttention(2, cross), d_model, n_heads)
        self.cross_attention = AttentionLayer(ProbAttention(2, False), d_model, n_heads) if cross else None
        self.conv1, self.conv2 = nn.Conv1d(d_model, d_ff, kernel_size=1), nn.Conv1d(d_ff, d_model, kernel_size=1)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d_model), nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, x: Tensor, cross: Tensor | None = None) -> Tensor:
        x = self.norm1(x + self.attention(x, x, x))
        if self.cross_attention is not None and cross is not None:
            x = self.norm3(x + self.cross_attention(x, cross, cross))
        y = self.conv2(F.gelu(self.conv1(x.transpose(-1, 1)))).transpose(-1, 1)
        return self.norm2(x + y)


class DataEmbedding(nn.Module):
    def __init__(self, c_in: int, d_model: int) -> None:
        super().__init__()
        self.tokenConv = nn.Conv1d(c_in, d_model, kernel_size=3, padding=1, padding_mode="circular")
        self.hour_embed, self.weekday_embed = nn.Embedding(24, d_model), nn.Embedding(7, d_model)
        self.position_embedding = nn.Parameter(torch.randn(1, 32, d_model) * 0.02)

    def forward(self, x: Tensor, x_mark: Tensor) -> Tensor:
        value = self.tokenConv(x.permute(0, 2, 1)).transpose(1, 2)
        return value + self.position_embedding[:, : x.shape[1]] + self.hour_embed(x_mark[..., 0]) + self.weekday_embed(x_mark[..., 1])


class ConvLayer(nn.Module):
    def __init__(self, c_in: int) -> None:
        super().__init__()
        self.downConv = nn.Conv1d(c_in, c_in, kernel_size=3, padding=1, padding_mode="circular")
        self.norm, self.activation, self.maxPool = nn.BatchNorm1d(c_in), nn.ELU(), nn.MaxPool1d(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.maxPool(self.activation(self.norm(self.downConv(x.permute(0, 2, 1))))).transpose(1, 2)


class Informer(nn.Module):
    def __init__(self, c_in: int = 5, d_model: int = 32, n_heads: int = 4, pred_len: int = 4) -> None:
        super().__init__()
        self.pred_len = pred_len
        self.enc_embedding, self.dec_embedding = DataEmbedding(c_in, d_model), DataEmbedding(c_in, d_model)
        self.encoder = nn.ModuleList([InformerLayer(d_model, 54, n_heads, False) for _ in range(2)])
        self.conv_layers = nn.ModuleList([ConvLayer(d_model)])
        self.decoder = nn.ModuleList([InformerLayer(d_model, 54, n_heads, True)])
        self.projection = nn.Linear(d_model, c_in)

    def forward(self, x_enc: Tensor, x_mark_enc: Tensor, x_dec: Tensor, x_mark_dec: Tensor) -> Tensor:
        enc_out = self.enc_embedding(x_enc, x_mark_enc)
        for layer, conv in zip(self.encoder, self.conv_layers, strict=False):
            enc_out = conv(layer(enc_out))
        enc_out = self.encoder[-1](enc_out)
        dec_out = self.dec_embedding(x_dec, x_mark_dec)
        for layer in self.decoder:
            dec_out = layer(dec_out, enc_out)
        return self.projection(dec_out)[:, -self.pred_len :, :]


# Two voices are told apart: a bank of filters, masks by dilated depthwise convolutions, the bank's inverse.
class GlobalLayerNorm(nn.Module):
    def __init__(self, channel_size: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(1, channel_size, 1)), nn.Parameter(torch.zeros(1, channel_size, 1))

    def forward(self, y: Tensor) -> Tensor:
        mean = y.mean(dim=(1, 2), keepdim=True)
        var = (y - mean).pow(2).mean(dim=(1, 2), keepdim=True)
        return self.gamma * (y - mean) / torch.pow(var + 1e-8, 0.5) + self.beta


class TemporalBlock(nn.Module):
    def __init__(self, B: int, H: int, P: int, dilation: int) -> None:
        super().__init__()
        depthwise = nn.Conv1d(H, H, P, padding=dilation * (P - 1) // 2, dilation=dilation, groups=H, bias=False)
        dsconv = nn.Sequential(depthwise, nn.PReLU(), GlobalLayerNorm(H), nn.Conv1d(H, B, 1, bias=False))
        self.net = nn.Sequential(nn.Conv1d(B, H, 1, bias=False), nn.PReLU(), GlobalLayerNorm(H), dsconv)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + x


class ConvTasNet(nn.Module):
    def __init__(self, N: int = 24, L: int = 8, B: int = 16, H: int = 30, C: int = 2) -> None:
        super().__init__()
        self.C, self.N, self.L = C, N, L
        self.conv1d_U = nn.Conv1d(1, N, kernel_size=L, stride=L // 2, bias=False)
        blocks = [TemporalBlock(B, H, 3, 2**i) for i in range(3)]
        self.separator = nn.Sequential(
            GlobalLayerNorm(N), nn.Conv1d(N, B, 1, bias=False), nn.Sequential(*blocks), nn.Conv1d(B, C * N, 1, bias=False)
        )
        self.basis_signals = nn.Linear(N, L, bias=False)

    def forward(self, mixture: Tensor) -> Tensor:
        mixture_w = F.relu(self.conv1d_U(mixture.unsqueeze(1)))
        est_mask = F.relu(self.separator(mixture_w).view(len(mixture), self.C, self.N, -1))
        frames = self.basis_signals((mixture_w.unsqueeze(1) * est_mask).transpose(2, 3))
        b, c, k, n = frames.shape
        folded = F.fold(frames.reshape(b * c, k, n).transpose(1, 2), (1, (k + 1) * n // 2), (1, n), stride=(1, n // 2))
        return folded.reshape(b, c, -1)


# A contest on what pupils know: exercises ask what was answered before.
class FFN(nn.Module):
    def __init__(self, state_size: int) -> None:
        super().__init__()
        self.lr1, self.relu, self.lr2 = nn.Linear(state_size, state_size), nn.ReLU(), nn.Linear(state_size, state_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.lr2(self.relu(self.lr1(x)))


class SAKTModel(nn.Module):
    def __init__(self, n_skill: int = 31, max_seq: int = 8, embed_dim: int = 28) -> None:
        super().__init__()
        self.n_skill, self.embed_dim = n_skill, embed_dim
        self.embedding = nn.Embedding(2 * n_skill + 1, embed_dim)
        self.pos_embedding = nn.Embedding(max_seq - 1, embed_dim)
        self.e_embedding = nn.Embedding(n_skill + 1, embed_dim)
        self.multi_att = nn.MultiheadAttention(embed_dim=embed_dim, num_heads=4, dropout=0.0)
        self.layer_normal = nn.LayerNorm(embed_dim)
        self.ffn, self.pred = FFN(embed_dim), nn.Linear(embed_dim, 1)

    def forward(self, x: Tensor, question_ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(x) + self.pos_embedding(torch.arange(x.size(1)).unsqueeze(0))
        e, x = self.e_embedding(question_ids).permute(1, 0, 2), x.permute(1, 0, 2)
        att_mask = torch.triu(torch.ones(x.size(0), x.size(0)), diagonal=1).bool()
        att_output, att_weight = self.multi_att(e, x, x, attn_mask=att_mask)
        att_output = self.layer_normal(att_output + e).permute(1, 0, 2)
        x = self.ffn(att_output)
        return self.pred(self.layer_normal(x + att_output)).squeeze(-1), att_weight


# Agents in a row: an encoder over what they see, a decoder that acts one after another.
def init_(m: nn.Linear, activate: bool = False) -> nn.Linear:
    nn.init.orthogonal_(m.weight, nn.init.calculate_gain("relu") if activate else 0.5)
    return m


class SelfAttention(nn.Module):
    mask: Tensor

    def __init__(self, n_embd: int, n_head: int, n_agent: int, masked: bool = False) -> None:
        super().__init__()
        self.masked, self.n_head = masked, n_head
        self.key, self.query = init_(nn.Linear(n_embd, n_embd)), init_(nn.Linear(n_embd, n_embd))
        self.value, self.proj = init_(nn.Linear(n_embd, n_embd)), init_(nn.Linear(n_embd, n_embd))
        self.register_buffer("mask", torch.tril(torch.ones(n_agent + 1, n_agent + 1)).view(1, 1, n_agent + 1, n_agent + 1))

    def forward(self, key: Tensor, value: Tensor, query: Tensor) -> Tensor:
        B, L, D = query.size()
        k = self.key(key).view(B, L, self.n_head, D // self.n_head).transpose(1, 2)
        q = self.query(query).view(B, L, self.n_head, D // self.n_head).transpose(1, 2)
        v = self.value(value).view(B, L, self.n_head, D // self.n_head).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        if self.masked:
            att = att.masked_fill(self.mask[:, :, :L, :L] == 0, float("-inf"))
        y = (F.softmax(att, dim=-1) @ v).transpose(1, 2).contiguous().view(B, L, D)
        return self.proj(y)


class AgentEncodeBlock(nn.Module):
    def __init__(self, n_embd: int, n_head: int, n_agent: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.attn = SelfAttention(n_embd, n_head, n_agent)
        self.mlp = nn.Sequential(init_(nn.Linear(n_embd, n_embd), activate=True), nn.GELU(), init_(nn.Linear(n_embd, n_embd)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln1(x + self.attn(x, x, x))
        return self.ln2(x + self.mlp(x))


class AgentDecodeBlock(nn.Module):
    def __init__(self, n_embd: int, n_head: int, n_agent: int) -> None:
        super().__init__()
        self.ln1, self.ln2, self.ln3 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.attn1 = SelfAttention(n_embd, n_head, n_agent, masked=True)
        self.attn2 = SelfAttention(n_embd, n_head, n_agent, masked=True)
        self.mlp = nn.Sequential(init_(nn.Linear(n_embd, n_embd), activate=True), nn.GELU(), init_(nn.Linear(n_embd, n_embd)))

    def forward(self, x: Tensor, rep_enc: Tensor) -> Tensor:
        x = self.ln1(x + self.attn1(x, x, x))
        x = self.ln2(rep_enc + self.attn2(key=x, value=x, query=rep_enc))
        return self.ln3(x + self.mlp(x))


class MultiAgentTransformer(nn.Module):
    def __init__(self, obs_dim: int = 15, action_dim: int = 6, n_agent: int = 4, n_embd: int = 24, n_head: int = 3) -> None:
        super().__init__()
        self.action_dim = action_dim
        self.obs_encoder = nn.Sequential(nn.LayerNorm(obs_dim), init_(nn.Linear(obs_dim, n_embd), activate=True), nn.GELU())
        self.enc_ln, self.dec_ln = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.enc_blocks = nn.Sequential(*[AgentEncodeBlock(n_embd, n_head, n_agent) for _ in range(2)])
        self.enc_head = nn.Sequential(
            init_(nn.Linear(n_embd, n_embd), activate=True), nn.GELU(), nn.LayerNorm(n_embd), init_(nn.Linear(n_embd, 1))
        )
        self.action_encoder = nn.Sequential(nn.Linear(action_dim + 1, n_embd, bias=False), nn.GELU())
        self.dec_blocks = nn.ModuleList([AgentDecodeBlock(n_embd, n_head, n_agent) for _ in range(2)])
        self.dec_head = nn.Sequential(
            init_(nn.Linear(n_embd, n_embd), activate=True), nn.GELU(), nn.LayerNorm(n_embd), init_(nn.Linear(n_embd, action_dim))
        )

    def forward(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        rep = self.enc_blocks(self.enc_ln(self.obs_encoder(obs)))
        v_loc = self.enc_head(rep)
        shifted = torch.zeros(*action.shape, self.action_dim + 1)
        shifted[:, 0, 0] = 1
        shifted[:, 1:, 1:] = F.one_hot(action, self.action_dim)[:, :-1].float()
        x = self.dec_ln(self.action_encoder(shifted))
        for block in self.dec_blocks:
            x = block(x, rep)
        return torch.distributions.Categorical(logits=self.dec_head(x)).log_prob(action), v_loc


# Molecules as strings, through a latent that every step of the decoder reads.
class SmilesVAE(nn.Module):
    def __init__(self, n_vocab: int = 33, q_d_h: int = 18, d_z: int = 10, d_d_h: int = 28) -> None:
        super().__init__()
        self.x_emb = nn.Embedding(n_vocab, n_vocab, 0)
        self.x_emb.weight.data.copy_(torch.eye(n_vocab))
        self.encoder_rnn = nn.GRU(n_vocab, q_d_h, num_layers=1, batch_first=True, bidirectional=True)
        self.q_mu, self.q_logvar = nn.Linear(q_d_h * 2, d_z), nn.Linear(q_d_h * 2, d_z)
        self.decoder_rnn = nn.GRU(n_vocab + d_z, d_d_h, num_layers=2, batch_first=True)
        self.decoder_lat, self.decoder_fc = nn.Linear(d_z, d_d_h), nn.Linear(d_d_h, n_vocab)

    def forward(self, x: list[Tensor]) -> tuple[Tensor, Tensor]:
        _, h = self.encoder_rnn(nn.utils.rnn.pack_sequence([self.x_emb(i_x) for i_x in x]))
        h = torch.cat((h[-2], h[-1]), dim=-1)
        mu, logvar = self.q_mu(h), self.q_logvar(h)
        z = mu + (logvar / 2).exp() * torch.randn_like(mu)
        kl_loss = 0.5 * (logvar.exp() + mu**2 - 1 - logvar).sum(1).mean()
        padded = nn.utils.rnn.pad_sequence(x, batch_first=True, padding_value=0)
        x_input = torch.cat([self.x_emb(padded), z.unsqueeze(1).repeat(1, padded.shape[1], 1)], dim=-1)
        h_0 = self.decoder_lat(z).unsqueeze(0).repeat(self.decoder_rnn.num_layers, 1, 1)
        y = self.decoder_fc(self.decoder_rnn(x_input, h_0)[0])
        return kl_loss, F.cross_entropy(y[:, :-1].reshape(-1, y.size(-1)), padded[:, 1:].reshape(-1), ignore_index=0)


# A graph of facts: subject and relation become a picture, whose features are compared with all things.
class ConvE(nn.Module):
    def __init__(self, num_entities: int = 87, num_relations: int = 9, embedding_dim: int = 24) -> None:
        super().__init__()
        self.emb_e = nn.Embedding(num_entities, embedding_dim, padding_idx=0)
        self.emb_rel = nn.Embedding(num_relations, embedding_dim, padding_idx=0)
        self.inp_drop, self.hidden_drop, self.feature_map_drop = nn.Dropout(0.2), nn.Dropout(0.3), nn.Dropout2d(0.2)
        self.conv1 = nn.Conv2d(1, 10, (3, 3), 1, 0, bias=True)
        self.bn0, self.bn1, self.bn2 = nn.BatchNorm2d(1), nn.BatchNorm2d(10), nn.BatchNorm1d(embedding_dim)
        self.b = nn.Parameter(torch.zeros(num_entities))
        self.fc = nn.Linear(10 * 6 * 4, embedding_dim)

    def forward(self, e1: Tensor, rel: Tensor) -> Tensor:
        e1_embedded = self.emb_e(e1).view(-1, 1, 4, 6)
        rel_embedded = self.emb_rel(rel).view(-1, 1, 4, 6)
        x = self.inp_drop(self.bn0(torch.cat([e1_embedded, rel_embedded], 2)))
        x = self.feature_map_drop(F.relu(self.bn1(self.conv1(x))))
        x = F.relu(self.bn2(self.hidden_drop(self.fc(x.view(x.shape[0], -1)))))
        x = torch.mm(x, self.emb_e.weight.transpose(1, 0)) + self.b.expand(x.shape[0], -1)
        return torch.sigmoid(x)


_TABLE = {"token_embedding"}
_HIDDEN = {"linear", "mlp_up", "mlp_down"}
_NODES = _HIDDEN | {"gnn_weight"}
_LAST = {"lm_head", "classifier"}
_POINT = {"conv", "linear", "mlp_up", "mlp_down"}
_MARKS = {"time_embedding", "position_embedding", "token_embedding", "type_embedding"}


def _atoms() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    edge = torch.tensor([[i, j] for i in range(4) for j in range(4) if i != j])
    return (torch.randint(19, (4,)), torch.randn(4, 3), edge), {}


def _hours() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    return (torch.randn(2, 12, 5), torch.randint(7, (2, 12, 2)), torch.randn(2, 8, 5), torch.randint(7, (2, 8, 2))), {}


STYLES: list[Style] = [
    Style(
        "gates over kinds of edges",
        GGNN,
        lambda: ((torch.randn(2, 6, 22), torch.randn(2, 6, 3), torch.rand(2, 6, 24)), {}),
        {"gnn", "rnn", "hybrid"},
        {
            "in_?.weight": _NODES,
            "out_?.weight": _NODES,
            "propogator.*_gate.0.weight": _NODES | {"mlp_gate", "rnn_ih", "rnn_hh"},
            "propogator.tansform.0.weight": _NODES | {"rnn_ih", "rnn_hh"},
            "out.0.weight": _NODES,
            "out.2.weight": _LAST,
        },
    ),
    Style(
        "scalars and vectors of atoms",
        PainnModel,
        _atoms,
        {"gnn"},
        {
            "atom_embedding.weight": _TABLE,
            "message_layers.*.scalar_message_mlp.?.weight": _NODES,
            "message_layers.*.filter_layer.weight": _NODES,
            "update_layers.*.update_?.weight": _NODES,
            "update_layers.*.update_mlp.?.weight": _NODES,
            "readout_mlp.0.weight": _NODES,
            "readout_mlp.2.weight": _LAST,
        },
    ),
    Style(
        "many tasks, a gate for each",
        MMoEModel,
        lambda: ((torch.randint(7, (4, 3)), torch.randn(4, 5)), {}),
        {"mlp"},
        {
            "embedding.embedding.weight": _TABLE,
            "numerical_layer.weight": _HIDDEN,
            "expert.*.mlp.[04].weight": _HIDDEN,
            "gate.*.0.weight": {"router", "linear"},
            "tower.*.mlp.0.weight": _HIDDEN,
            "tower.*.mlp.4.weight": _LAST,
        },
    ),
    Style(
        "agents whose values are mixed",
        QMix,
        lambda: ((torch.randn(2, 3, 3, 11), torch.randn(2, 3, 17)), {}),
        {"rnn", "hybrid"},
        {
            "agent.fc1.weight": _HIDDEN,
            "agent.rnn.weight_ih": {"rnn_ih"},
            "agent.rnn.weight_hh": {"rnn_hh"},
            "agent.fc2.weight": _LAST | {"linear"},  # the mixer reads the best of them
            "mixer.hyper_*.weight": _HIDDEN | {"modulation", "other"},
            "mixer.V.0.weight": _HIDDEN,
            "mixer.V.2.weight": _LAST | _HIDDEN,
        },
    ),
    Style(
        "only the queries that say most",
        Informer,
        _hours,
        {"transformer"},
        {
            "*_embedding.tokenConv.weight": {"conv", "first_conv", "patch_embedding"},
            "*_embed.weight": _MARKS,
            "*_embedding.position_embedding": {"position_embedding"},
            "*.query_projection.weight": {"query"},
            "*.key_projection.weight": {"key"},
            "*.value_projection.weight": {"value"},
            "*.out_projection.weight": {"attn_out"},
            "*.conv1.weight": {"mlp_up"},
            "*.conv2.weight": {"mlp_down"},
            "conv_layers.*.downConv.weight": {"conv"},
            "projection.weight": _LAST,
        },
        {"*.query_projection.weight": "q:4x8", "*.key_projection.weight": "k:4x8"},
    ),
    Style(
        "two voices told apart",
        ConvTasNet,
        lambda: ((torch.randn(2, 64),), {}),
        {"cnn"},
        {
            "conv1d_U.weight": {"first_conv", "conv", "patch_embedding"},
            "separator.1.weight": _POINT,
            "separator.2.*.net.0.weight": _POINT,
            "separator.2.*.net.3.0.weight": {"conv_dw"},
            "separator.2.*.net.3.3.weight": _POINT,
            "separator.3.weight": _POINT | {"mlp_gate"} | _LAST,
            "basis_signals.weight": _LAST | {"linear"},
        },
    ),
    Style(
        "exercises ask what was answered",
        SAKTModel,
        lambda: ((torch.randint(63, (2, 6)), torch.randint(32, (2, 6))), {}),
        {"transformer"},
        {
            "embedding.weight": _TABLE,
            "e_embedding.weight": _TABLE,
            "pos_embedding.weight": {"position_embedding"},
            "multi_att.in_proj_weight": {"qkv"},
            "multi_att.out_proj.weight": {"attn_out"},
            "ffn.lr1.weight": {"mlp_up"},
            "ffn.lr2.weight": {"mlp_down"},
            "pred.weight": _LAST,
        },
        {"multi_att.in_proj_weight": "q:4x7|k:4x7|v:4x7"},
    ),
    Style(
        "agents in a row",
        MultiAgentTransformer,
        lambda: ((torch.randn(2, 4, 15), torch.randint(6, (2, 4))), {}),
        {"transformer"},
        {
            "obs_encoder.1.weight": _HIDDEN | {"patch_embedding"},
            "*_blocks.*.query.weight": {"query"},
            "*_blocks.*.key.weight": {"key"},
            "*_blocks.*.value.weight": {"value"},
            "*_blocks.*.proj.weight": {"attn_out"},
            "*_blocks.*.mlp.0.weight": {"mlp_up"},
            "*_blocks.*.mlp.2.weight": {"mlp_down"},
            "enc_head.0.weight": _HIDDEN,
            "enc_head.3.weight": _LAST,
            "action_encoder.0.weight": _HIDDEN | {"token_embedding", "patch_embedding"},
            "dec_head.0.weight": _HIDDEN,
            "dec_head.3.weight": _LAST,
        },
        {"*_blocks.*.query.weight": "q:3x8", "*_blocks.*.key.weight": "k:3x8"},
    ),
    Style(
        "strings of molecules through a latent",
        SmilesVAE,
        lambda: (([torch.randint(1, 33, (7,)), torch.randint(1, 33, (5,))],), {}),
        {"rnn"},
        {
            "x_emb.weight": _TABLE,
            "*_rnn.weight_ih_*": {"rnn_ih"},
            "*_rnn.weight_hh_*": {"rnn_hh"},
            "q_*.weight": _HIDDEN | _LAST,  # the loss takes them too
            "decoder_lat.weight": _HIDDEN,
            "decoder_fc.weight": _LAST,
        },
    ),
    Style(
        "facts as pictures",
        ConvE,
        lambda: ((torch.randint(87, (4,)), torch.randint(9, (4,))), {}),
        {"cnn"},
        {
            "emb_e.weight": {"token_embedding", "lm_head", "classifier"},
            "emb_rel.weight": {"token_embedding", "type_embedding"},
            "conv1.weight": {"conv", "first_conv"},
            "fc.weight": _HIDDEN,
        },
    ),
]
