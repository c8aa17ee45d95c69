"""Recommendation and tables: SASRec, DeepFM, DLRM, a plain deep MLP."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


class PointWiseFeedForward(nn.Module):
    def __init__(self, hidden_units: int, dropout_rate: float = 0.0) -> None:
        super().__init__()
        self.conv1, self.dropout1 = nn.Conv1d(hidden_units, hidden_units, kernel_size=1), nn.Dropout(dropout_rate)
        self.relu = nn.ReLU()
        self.conv2, self.dropout2 = nn.Conv1d(hidden_units, hidden_units, kernel_size=1), nn.Dropout(dropout_rate)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.dropout2(self.conv2(self.relu(self.dropout1(self.conv1(inputs.transpose(-1, -2)))))).transpose(-1, -2)


# SASRec: items that come next are scored by their embeddings, there is no output layer.
class SASRec(nn.Module):
    def __init__(self, user_num: int = 9, item_num: int = 70, maxlen: int = 6, hidden_units: int = 32, num_blocks: int = 2) -> None:
        super().__init__()
        self.item_emb = nn.Embedding(item_num + 1, hidden_units, padding_idx=0)
        self.pos_emb = nn.Embedding(maxlen + 1, hidden_units, padding_idx=0)
        self.attention_layernorms, self.attention_layers = nn.ModuleList(), nn.ModuleList()
        self.forward_layernorms, self.forward_layers = nn.ModuleList(), nn.ModuleList()
        self.last_layernorm = nn.LayerNorm(hidden_units, eps=1e-8)
        for _ in range(num_blocks):
            self.attention_layernorms.append(nn.LayerNorm(hidden_units, eps=1e-8))
            self.attention_layers.append(nn.MultiheadAttention(hidden_units, 2))
            self.forward_layernorms.append(nn.LayerNorm(hidden_units, eps=1e-8))
            self.forward_layers.append(PointWiseFeedForward(hidden_units))

    def log2feats(self, log_seqs: Tensor) -> Tensor:
        poss = torch.arange(1, log_seqs.shape[1] + 1) * (log_seqs != 0)
        seqs = self.item_emb(log_seqs) * self.item_emb.embedding_dim**0.5 + self.pos_emb(poss)
        mask = ~torch.ones((seqs.shape[1], seqs.shape[1]), dtype=torch.bool).tril()
        for i, attention in enumerate(self.attention_layers):
            seqs = seqs.transpose(0, 1)
            Q = self.attention_layernorms[i](seqs)
            seqs = (Q + attention(Q, seqs, seqs, attn_mask=mask)[0]).transpose(0, 1)
            seqs = self.forward_layernorms[i](seqs)
            seqs = seqs + self.forward_layers[i](seqs)
        return self.last_layernorm(seqs)

    def forward(self, user_ids: Tensor, log_seqs: Tensor, pos_seqs: Tensor, neg_seqs: Tensor) -> tuple[Tensor, Tensor]:
        log_feats = self.log2feats(log_seqs)
        return (log_feats * self.item_emb(pos_seqs)).sum(-1), (log_feats * self.item_emb(neg_seqs)).sum(-1)


# DeepFM: one table for all fields with offsets, a table of weights of width one beside it.
class FeaturesLinear(nn.Module):
    def __init__(self, field_dims: list[int]) -> None:
        super().__init__()
        self.fc = nn.Embedding(sum(field_dims), 1)
        self.bias = nn.Parameter(torch.zeros((1,)))
        self.offsets = torch.tensor([0, *field_dims[:-1]]).cumsum(0)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sum(self.fc(x + self.offsets), dim=1) + self.bias


class FeaturesEmbedding(nn.Module):
    def __init__(self, field_dims: list[int], embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(sum(field_dims), embed_dim)
        self.offsets = torch.tensor([0, *field_dims[:-1]]).cumsum(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding(x + self.offsets)


class MultiLayerPerceptron(nn.Module):
    def __init__(self, input_dim: int, embed_dims: list[int], dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for embed_dim in embed_dims:
            layers += [nn.Linear(input_dim, embed_dim), nn.BatchNorm1d(embed_dim), nn.ReLU(), nn.Dropout(dropout)]
            input_dim = embed_dim
        self.mlp = nn.Sequential(*layers, nn.Linear(input_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class DeepFactorizationMachineModel(nn.Module):
    def __init__(self, field_dims: tuple[int, ...] = (30, 7, 12, 4), embed_dim: int = 16) -> None:
        super().__init__()
        self.linear = FeaturesLinear(list(field_dims))
        self.embedding = FeaturesEmbedding(list(field_dims), embed_dim)
        self.embed_output_dim = len(field_dims) * embed_dim
        self.mlp = MultiLayerPerceptron(self.embed_output_dim, [32, 32])

    def forward(self, x: Tensor) -> Tensor:
        embed_x = self.embedding(x)
        pairs = 0.5 * (embed_x.sum(1).square() - embed_x.square().sum(1)).sum(1, keepdim=True)
        return torch.sigmoid((self.linear(x) + pairs + self.mlp(embed_x.view(-1, self.embed_output_dim))).squeeze(1))


# DLRM: a bag of each category, their products with the dense part, two MLPs.
class DLRM_Net(nn.Module):
    def __init__(self, m_spa: int = 16, ln_emb: tuple[int, ...] = (40, 9, 25)) -> None:
        super().__init__()
        self.emb_l = nn.ModuleList([nn.EmbeddingBag(n, m_spa, mode="sum") for n in ln_emb])
        self.bot_l = self.create_mlp([13, 32, m_spa])
        pairs = (len(ln_emb) + 1) * len(ln_emb) // 2
        self.top_l = self.create_mlp([m_spa + pairs, 32, 1], sigmoid_layer=True)

    def create_mlp(self, ln: list[int], sigmoid_layer: bool = False) -> nn.Sequential:
        layers: list[nn.Module] = []
        for n, m in pairwise(ln):
            layers += [nn.Linear(n, m), nn.ReLU()]
        return nn.Sequential(*layers[:-1], nn.Sigmoid() if sigmoid_layer else nn.ReLU())

    def forward(self, dense_x: Tensor, lS_o: Tensor, lS_i: Tensor) -> Tensor:
        x = self.bot_l(dense_x)
        T = torch.stack([x, *(bag(i, o) for bag, o, i in zip(self.emb_l, lS_o, lS_i, strict=True))], 1)
        li, lj = torch.tril_indices(T.shape[1], T.shape[1], -1)
        return self.top_l(torch.cat([x, torch.bmm(T, T.mT)[:, li, lj]], dim=1))


# A deep MLP whose widths are all equal.
class DeepMLP(nn.Module):
    def __init__(self, n_features: int = 32, width: int = 32, n_layers: int = 12, n_classes: int = 32) -> None:
        super().__init__()
        self.fc_in = nn.Linear(n_features, width)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(n_layers)])
        self.fc_out = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.fc_in(x))
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.fc_out(x)


# The same with a residual stream, whose blocks look like those of a transformer without attention.
class ResidualMLP(nn.Module):
    def __init__(self, n_features: int = 20, width: int = 32, n_blocks: int = 4) -> None:
        super().__init__()
        self.first_layer = nn.Linear(n_features, width)
        self.norms = nn.ModuleList([nn.BatchNorm1d(width) for _ in range(n_blocks)])
        self.linear0 = nn.ModuleList([nn.Linear(width, 2 * width) for _ in range(n_blocks)])
        self.linear1 = nn.ModuleList([nn.Linear(2 * width, width) for _ in range(n_blocks)])
        self.head = nn.Linear(width, 1)

    def forward(self, x_num: Tensor) -> Tensor:
        x = self.first_layer(x_num)
        for norm, linear0, linear1 in zip(self.norms, self.linear0, self.linear1, strict=True):
            x = x + linear1(F.relu(linear0(norm(x))))
        return self.head(F.relu(x)).squeeze(-1)


_ANY = {"linear", "mlp_up", "mlp_down"}
STYLES: list[Style] = [
    Style(
        "sasrec",
        SASRec,
        lambda: ((torch.arange(1), *(torch.randint(1, 70, (1, 6)) for _ in range(3))), {}),
        {"transformer"},
        {
            "item_emb.weight": {"token_embedding", "lm_head"},
            "pos_emb.weight": {"position_embedding"},
            "attention_layers.*.in_proj_weight": {"qkv"},
            "attention_layers.*.out_proj.weight": {"attn_out"},
            "forward_layers.*.conv1.weight": {"mlp_up"},
            "forward_layers.*.conv2.weight": {"mlp_down"},
        },
        {"attention_layers.*.in_proj_weight": "q:2x16|k:2x16|v:2x16"},
    ),
    Style(
        "deepfm",
        DeepFactorizationMachineModel,
        lambda: ((torch.randint(4, (3, 4)),), {}),
        {"mlp"},
        {
            # One weight for each category: a table, or the output of a linear model.
            "linear.fc.weight": {"token_embedding", "lm_head", "classifier", "linear"},
            "embedding.embedding.weight": {"token_embedding"},
            "mlp.mlp.[04].weight": _ANY,
            "mlp.mlp.8.weight": {"classifier"},
        },
    ),
    Style(
        "dlrm",
        DLRM_Net,
        lambda: ((torch.randn(2, 13), torch.tensor([[0, 2]] * 3), torch.randint(9, (3, 4))), {}),
        {"mlp"},
        {
            "emb_l.*.weight": {"token_embedding"},
            "bot_l.*.weight": _ANY,
            "top_l.0.weight": _ANY,
            "top_l.2.weight": {"classifier"},
        },
    ),
    Style(
        "deep mlp of one width",
        DeepMLP,
        lambda: ((torch.randn(3, 32),), {}),
        {"mlp"},
        {"fc_in.weight": _ANY, "hidden.*.weight": _ANY, "fc_out.weight": {"classifier"}},
    ),
    Style(
        "residual mlp for tables",
        ResidualMLP,
        lambda: ((torch.randn(3, 20),), {}),
        {"mlp"},
        {
            "first_layer.weight": {"linear", "mlp_up"},
            "linear0.*.weight": {"linear", "mlp_up"},
            "linear1.*.weight": {"linear", "mlp_down"},
            "head.weight": {"classifier"},
        },
    ),
]
