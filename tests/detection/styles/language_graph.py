"""Graphs and sets of points: SuperGlue, graph transformers, GCN, GAT, AlphaFold's gated attention."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# SuperGlue: all is a convolution of width 1; the head is the fastest index.
def MLP(channels: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(1, len(channels)):
        layers.append(nn.Conv1d(channels[i - 1], channels[i], kernel_size=1, bias=True))
        if i < len(channels) - 1:
            layers += [nn.BatchNorm1d(channels[i]), nn.ReLU()]
    return nn.Sequential(*layers)


class MultiHeadedAttention(nn.Module):
    def __init__(self, num_heads: int, d_model: int) -> None:
        super().__init__()
        self.dim, self.num_heads = d_model // num_heads, num_heads
        self.merge = nn.Conv1d(d_model, d_model, kernel_size=1)
        self.proj = nn.ModuleList([nn.Conv1d(d_model, d_model, kernel_size=1) for _ in range(3)])

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        batch_dim = query.size(0)
        query, key, value = (
            layer(x).view(batch_dim, self.dim, self.num_heads, -1) for layer, x in zip(self.proj, (query, key, value), strict=True)
        )
        scores = torch.einsum("bdhn,bdhm->bhnm", query, key) / self.dim**0.5
        x = torch.einsum("bhnm,bdhm->bdhn", F.softmax(scores, dim=-1), value)
        return self.merge(x.contiguous().view(batch_dim, self.dim * self.num_heads, -1))


class AttentionalPropagation(nn.Module):
    def __init__(self, feature_dim: int, num_heads: int) -> None:
        super().__init__()
        self.attn = MultiHeadedAttention(num_heads, feature_dim)
        self.mlp = MLP([feature_dim * 2, feature_dim * 2, feature_dim])

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        return self.mlp(torch.cat([x, self.attn(x, source, source)], dim=1))


class SuperGlue(nn.Module):
    def __init__(self, descriptor_dim: int = 32, names: tuple[str, ...] = ("self", "cross")) -> None:
        super().__init__()
        self.kenc = MLP([3, 16, descriptor_dim])
        self.gnn = nn.ModuleList([AttentionalPropagation(descriptor_dim, 4) for _ in names])
        self.names = names
        self.final_proj = nn.Conv1d(descriptor_dim, descriptor_dim, kernel_size=1)
        self.bin_score = nn.Parameter(torch.tensor(1.0))

    def forward(self, desc0: Tensor, desc1: Tensor, kpts0: Tensor, kpts1: Tensor) -> Tensor:
        desc0, desc1 = desc0 + self.kenc(kpts0), desc1 + self.kenc(kpts1)
        for layer, name in zip(self.gnn, self.names, strict=True):
            src0, src1 = (desc1, desc0) if name == "cross" else (desc0, desc1)
            desc0, desc1 = desc0 + layer(desc0, src0), desc1 + layer(desc1, src1)
        scores = torch.einsum("bdn,bdm->bnm", self.final_proj(desc0), self.final_proj(desc1))
        return F.pad(scores, (0, 1, 0, 1)) + self.bin_score


# A graph transformer on a dense batch: Q, K, V by name, edges multiply the scores.
class DenseGraphAttention(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, num_heads: int) -> None:
        super().__init__()
        self.out_dim, self.num_heads = out_dim, num_heads
        self.Q, self.K, self.V = (nn.Linear(in_dim, out_dim * num_heads, bias=False) for _ in range(3))
        self.proj_e = nn.Linear(in_dim, num_heads, bias=True)

    def forward(self, h: Tensor, e: Tensor, adj: Tensor) -> Tensor:
        B, N, _ = h.shape
        Q_h, K_h, V_h = (f(h).view(B, N, self.num_heads, self.out_dim).transpose(1, 2) for f in (self.Q, self.K, self.V))
        score = Q_h @ K_h.mT / math.sqrt(self.out_dim) * self.proj_e(e).permute(0, 3, 1, 2)
        score = score.clamp(-5, 5).masked_fill(adj.unsqueeze(1) == 0, -1e9)
        return (score.softmax(-1) @ V_h).transpose(1, 2).reshape(B, N, -1)


class GraphTransformerLayer(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = DenseGraphAttention(dim, dim // num_heads, num_heads)
        self.O_h = nn.Linear(dim, dim)
        self.layer_norm1_h, self.layer_norm2_h = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.FFN_h_layer1, self.FFN_h_layer2 = nn.Linear(dim, dim * 2), nn.Linear(dim * 2, dim)

    def forward(self, h: Tensor, e: Tensor, adj: Tensor) -> Tensor:
        h = self.layer_norm1_h(h + self.O_h(self.attention(h, e, adj)))
        return self.layer_norm2_h(h + self.FFN_h_layer2(F.relu(self.FFN_h_layer1(h))))


class GraphTransformerNet(nn.Module):
    def __init__(self, num_atom_type: int = 28, num_bond_type: int = 4, hidden_dim: int = 32) -> None:
        super().__init__()
        self.embedding_h = nn.Embedding(num_atom_type, hidden_dim)
        self.embedding_e = nn.Embedding(num_bond_type, hidden_dim)
        self.embedding_lap_pos_enc = nn.Linear(6, hidden_dim)
        self.layers = nn.ModuleList([GraphTransformerLayer(hidden_dim, 4) for _ in range(2)])
        self.MLP_layer = nn.Sequential(nn.Linear(hidden_dim, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, h: Tensor, e: Tensor, adj: Tensor, h_lap_pos_enc: Tensor) -> Tensor:
        h, e = self.embedding_h(h) + self.embedding_lap_pos_enc(h_lap_pos_enc), self.embedding_e(e)
        for conv in self.layers:
            h = conv(h, e, adj)
        return self.MLP_layer(h.mean(1))


# Graphormer: a bias to the scores from distances, tokens for the degree and for the graph.
class BiasedAttention(nn.Module):
    def __init__(self, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.att_size = num_heads, hidden_size // num_heads
        self.linear_q, self.linear_k, self.linear_v = (nn.Linear(hidden_size, num_heads * self.att_size) for _ in range(3))
        self.output_layer = nn.Linear(num_heads * self.att_size, hidden_size)

    def forward(self, x: Tensor, attn_bias: Tensor) -> Tensor:
        batch = x.size(0)
        q, k, v = (
            f(x).view(batch, -1, self.num_heads, self.att_size).transpose(1, 2) for f in (self.linear_q, self.linear_k, self.linear_v)
        )
        weights = torch.softmax(torch.matmul(q * self.att_size**-0.5, k.transpose(2, 3)) + attn_bias, dim=3)
        return self.output_layer(weights.matmul(v).transpose(1, 2).contiguous().view(batch, -1, self.num_heads * self.att_size))


class GraphormerLayer(nn.Module):
    def __init__(self, hidden_size: int, ffn_size: int, num_heads: int) -> None:
        super().__init__()
        self.self_attention_norm, self.self_attention = nn.LayerNorm(hidden_size), BiasedAttention(hidden_size, num_heads)
        self.ffn_norm, self.layer1, self.layer2 = (
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, ffn_size),
            nn.Linear(ffn_size, hidden_size),
        )

    def forward(self, x: Tensor, attn_bias: Tensor) -> Tensor:
        x = x + self.self_attention(self.self_attention_norm(x), attn_bias)
        return x + self.layer2(F.gelu(self.layer1(self.ffn_norm(x))))


class Graphormer(nn.Module):
    def __init__(self, hidden_dim: int = 32, num_heads: int = 4) -> None:
        super().__init__()
        self.atom_encoder = nn.Embedding(40, hidden_dim, padding_idx=0)
        self.in_degree_encoder = nn.Embedding(8, hidden_dim)
        self.spatial_pos_encoder = nn.Embedding(10, num_heads)
        self.graph_token = nn.Embedding(1, hidden_dim)
        self.layers = nn.ModuleList([GraphormerLayer(hidden_dim, hidden_dim, num_heads) for _ in range(2)])
        self.final_ln, self.out_proj = nn.LayerNorm(hidden_dim), nn.Linear(hidden_dim, 2)

    def forward(self, x: Tensor, in_degree: Tensor, spatial_pos: Tensor) -> Tensor:
        nodes = self.atom_encoder(x).sum(-2) + self.in_degree_encoder(in_degree)
        h = torch.cat([self.graph_token.weight.unsqueeze(0).repeat(len(x), 1, 1), nodes], dim=1)
        bias = F.pad(self.spatial_pos_encoder(spatial_pos).permute(0, 3, 1, 2), (1, 0, 1, 0))
        for layer in self.layers:
            h = layer(h, bias)
        return self.out_proj(self.final_ln(h)[:, 0])


# Kipf's GCN with an adjacency matrix, and GAT from scratch.
class GraphConvolution(nn.Module):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(in_features, out_features) * 0.1)
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, input: Tensor, adj: Tensor) -> Tensor:
        return torch.spmm(adj, torch.mm(input, self.weight)) + self.bias


class GCN(nn.Module):
    def __init__(self, nfeat: int = 50, nhid: int = 16, nclass: int = 7) -> None:
        super().__init__()
        self.gc1, self.gc2 = GraphConvolution(nfeat, nhid), GraphConvolution(nhid, nclass)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return F.log_softmax(self.gc2(F.relu(self.gc1(x, adj)), adj), dim=1)


class GraphAttentionLayer(nn.Module):
    def __init__(self, in_features: int, out_features: int, concat: bool = True) -> None:
        super().__init__()
        self.out_features, self.concat = out_features, concat
        self.W = nn.Parameter(torch.randn(in_features, out_features) * 0.2)
        self.a = nn.Parameter(torch.randn(2 * out_features, 1) * 0.2)

    def forward(self, h: Tensor, adj: Tensor) -> Tensor:
        Wh = torch.mm(h, self.W)
        e = F.leaky_relu(Wh @ self.a[: self.out_features] + (Wh @ self.a[self.out_features :]).T, 0.2)
        attention = F.softmax(torch.where(adj > 0, e, -9e15 * torch.ones_like(e)), dim=1)
        h_prime = torch.matmul(attention, Wh)
        return F.elu(h_prime) if self.concat else h_prime


class GAT(nn.Module):
    def __init__(self, nfeat: int = 50, nhid: int = 8, nclass: int = 7, nheads: int = 4) -> None:
        super().__init__()
        self.attentions = [GraphAttentionLayer(nfeat, nhid) for _ in range(nheads)]
        for i, attention in enumerate(self.attentions):
            self.add_module(f"attention_{i}", attention)
        self.out_att = GraphAttentionLayer(nhid * nheads, nclass, concat=False)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = torch.cat([att(x, adj) for att in self.attentions], dim=1)
        return F.log_softmax(F.elu(self.out_att(x, adj)), dim=1)


def _two_sets() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    return (torch.randn(1, 32, 4), torch.randn(1, 32, 5), torch.randn(1, 3, 4), torch.randn(1, 3, 5)), {}


def _molecule() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    return (torch.randint(28, (1, 5)), torch.randint(4, (1, 5, 5)), torch.ones(1, 5, 5), torch.randn(1, 5, 6)), {}


def _atoms() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    return (torch.randint(1, 40, (1, 5, 3)), torch.randint(8, (1, 5)), torch.randint(10, (1, 5, 5))), {}


def _nodes() -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    return (torch.randn(9, 50), (torch.rand(9, 9) > 0.5).float() + torch.eye(9)), {}


_FEATURES = {"linear", "mlp_up", "mlp_down", "patch_embedding"}
STYLES: list[Style] = [
    Style(
        "superglue",
        SuperGlue,
        _two_sets,
        {"transformer", "gnn"},
        {
            "gnn.*.proj.0.weight": {"query"},
            "gnn.*.proj.1.weight": {"key"},
            "gnn.*.proj.2.weight": {"value"},
            "gnn.*.merge.weight": {"attn_out"},
            "gnn.*.mlp.0.weight": {"mlp_up"},
            "gnn.*.mlp.3.weight": {"mlp_down"},
            "kenc.[03].weight": {*_FEATURES, "conv", "first_conv", "position_embedding"},
            "final_proj.weight": {"classifier", "lm_head", "linear", "conv"},
        },
        {"gnn.*.proj.0.weight": "q:4x8t", "gnn.*.proj.1.weight": "k:4x8t"},
    ),
    Style(
        "graph transformer, dense",
        GraphTransformerNet,
        _molecule,
        {"transformer", "gnn"},
        {
            "embedding_h.weight": {"token_embedding"},
            "embedding_e.weight": {"token_embedding", "type_embedding"},
            "embedding_lap_pos_enc.weight": {"linear", "position_embedding"},
            "*.attention.Q.weight": {"query"},
            "*.attention.K.weight": {"key"},
            "*.attention.V.weight": {"value"},
            "*.O_h.weight": {"attn_out"},
            "*.FFN_h_layer1.weight": {"mlp_up"},
            "*.FFN_h_layer2.weight": {"mlp_down"},
            "MLP_layer.0.weight": {"linear", "mlp_up"},
            "MLP_layer.2.weight": {"classifier"},
        },
        {"*.attention.Q.weight": "q:4x8", "*.attention.K.weight": "k:4x8"},
    ),
    Style(
        "graphormer",
        Graphormer,
        _atoms,
        {"transformer", "gnn"},
        {
            "atom_encoder.weight": {"token_embedding"},
            "in_degree_encoder.weight": {"token_embedding", "position_embedding", "type_embedding"},
            "spatial_pos_encoder.weight": {"position_embedding", "attn_other", "token_embedding"},
            "graph_token.weight": {"special_token", "token_embedding", "type_embedding"},
            "*.linear_q.weight": {"query"},
            "*.linear_k.weight": {"key"},
            "*.linear_v.weight": {"value"},
            "*.output_layer.weight": {"attn_out"},
            "*.layer1.weight": {"mlp_up"},
            "*.layer2.weight": {"mlp_down"},
            "out_proj.weight": {"classifier"},
        },
        {"*.linear_q.weight": "q:4x8", "*.linear_k.weight": "k:4x8"},
    ),
    Style("gcn", GCN, _nodes, {"gnn"}, {"gc1.weight": {"gnn_weight"}, "gc2.weight": {"gnn_weight", "classifier"}}),
    Style("gat", GAT, _nodes, {"gnn"}, {"attention_*.W": {"gnn_weight"}, "out_att.W": {"gnn_weight", "classifier"}}),
]
