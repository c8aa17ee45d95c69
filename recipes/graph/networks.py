"""GCN and GAT as DGL's ogbn-arxiv examples build them, from torch-geometric's convolutions."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, relu
from torch_geometric.nn import GATConv, GCNConv
from torch_geometric.utils import dropout_edge
from typing_extensions import override


def drop_features(x: Tensor, share: float, training: bool) -> Tensor:
    """Return features with a share of them set to zero; of sparse ones only those that are not zero are drawn, which is the same and fast.

    Args:
        x: The features, dense or sparse.
        share: Probability of each to become zero.
        training: Whether to drop any.
    """
    if not x.is_sparse:
        return dropout(x, share, training)
    return torch.sparse_coo_tensor(x.indices(), dropout(x.values(), share, training), x.shape, is_coalesced=True, check_invariants=False)


class GCN(nn.Module):
    """Graph convolutions, with BatchNorm, ReLU and dropout between them.

    Args:
        sizes: Channels of the input, of each hidden layer, and of the output.
        dropout: Dropout after each hidden layer.
        input_dropout: Dropout of the features.
        batch_norm: Whether to normalise each hidden layer (its convolution then has no bias).
    """

    def __init__(self, sizes: list[int], dropout: float, input_dropout: float, batch_norm: bool) -> None:
        super().__init__()
        self.dropout, self.input_dropout = dropout, input_dropout
        pairs = list(pairwise(sizes))
        last = len(pairs) - 1
        self.convs = nn.ModuleList(
            [GCNConv(inner, outer, bias=layer == last or not batch_norm) for layer, (inner, outer) in enumerate(pairs)]
        )
        self.norms = nn.ModuleList([nn.BatchNorm1d(outer) if batch_norm else nn.Identity() for outer in sizes[1:-1]])

    @override
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return the logits of every node."""
        x = drop_features(x, self.input_dropout, self.training)
        for conv, norm in zip(self.convs, self.norms, strict=False):
            x = dropout(relu(norm(conv(x, edge_index))), self.dropout, self.training)
        return self.convs[-1](x, edge_index)


class GAT(nn.Module):
    """Graph attention with a linear residual in every layer, one head in the last; BatchNorm, ReLU and dropout between them.

    Args:
        sizes: Channels of the input, of each hidden layer (of all its heads together), and of the output.
        heads: Heads of each hidden layer.
        dropout: Dropout after each hidden layer.
        input_dropout: Dropout of the features.
        batch_norm: Whether to normalise each hidden layer.
        target_attention: Whether a node's own features weigh in its attention (DGL's ``--no-attn-dst`` is false).
        edge_dropout: Share of the edges that each layer leaves out in training; a node's edge to itself stays.
    """

    def __init__(
        self,
        sizes: list[int],
        heads: int,
        dropout: float,
        input_dropout: float,
        batch_norm: bool,
        target_attention: bool,
        edge_dropout: float,
    ) -> None:
        super().__init__()
        self.edge_dropout = edge_dropout
        self.dropout, self.input_dropout, self.target_attention = dropout, input_dropout, target_attention
        self.convs, self.residuals = nn.ModuleList(), nn.ModuleList()
        pairs = list(pairwise(sizes))
        for layer, (inner, outer) in enumerate(pairs):
            layer_heads = 1 if layer == len(pairs) - 1 else heads
            conv = GATConv(inner, outer // layer_heads, layer_heads, bias=False)
            if not target_attention:
                conv.att_dst = None  # pyright: ignore[reportAttributeAccessIssue]
            self.convs.append(conv)
            self.residuals.append(nn.Linear(inner, outer, bias=False))
        self.norms = nn.ModuleList([nn.BatchNorm1d(outer) if batch_norm else nn.Identity() for outer in sizes[1:-1]])
        self.bias = nn.Parameter(torch.zeros(sizes[-1]))

    @override
    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Return the logits of every node."""
        x = drop_features(x, self.input_dropout, self.training)
        for conv, residual, norm in zip(self.convs, self.residuals, self.norms, strict=False):
            x = dropout(relu(norm(self._layer(x, edge_index, conv, residual))), self.dropout, self.training)
        return self._layer(x, edge_index, self.convs[-1], self.residuals[-1]) + self.bias

    def _layer(self, x: Tensor, edge_index: Tensor, conv: nn.Module, residual: nn.Module) -> Tensor:
        edge_index = dropout_edge(edge_index, self.edge_dropout, training=self.training)[0]
        # GATConv leaves the targets' part of the attention out where it is told that the targets have no features.
        return conv(x if self.target_attention else (x, None), edge_index) + residual(x)
