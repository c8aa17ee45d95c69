"""Sound, series, graphs and tables: causal convolutions, time first, dense adjacency, messages, attention to a candidate."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.detection.styles.style import Style


# A temporal convolutional network: pad on both sides, chomp the future off.
class Chomp1d(nn.Module):
    def __init__(self, chomp_size: int) -> None:
        super().__init__()
        self.chomp_size = chomp_size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.chomp_size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, n_inputs: int, n_outputs: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        padding = (kernel_size - 1) * dilation
        self.conv1 = weight_norm(nn.Conv1d(n_inputs, n_outputs, kernel_size, padding=padding, dilation=dilation))
        self.conv2 = weight_norm(nn.Conv1d(n_outputs, n_outputs, kernel_size, padding=padding, dilation=dilation))
        self.net = nn.Sequential(self.conv1, Chomp1d(padding), nn.ReLU(), self.conv2, Chomp1d(padding), nn.ReLU())
        self.downsample = nn.Conv1d(n_inputs, n_outputs, 1) if n_inputs != n_outputs else None

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.net(x) + (x if self.downsample is None else self.downsample(x)))


class TCN(nn.Module):
    def __init__(self, input_size: int = 5, output_size: int = 3, channels: tuple[int, ...] = (16, 24, 24)) -> None:
        super().__init__()
        self.network = nn.Sequential(
            *[TemporalBlock(a, b, 3, 2**i) for i, (a, b) in enumerate(zip((input_size, *channels), channels, strict=False))]
        )
        self.linear = nn.Linear(channels[-1], output_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.network(x)[:, :, -1])


# A decoder of fairseq's: time first, heads folded into the batch, keys kept between steps, places by a wide grouped convolution.
class TimeFirstAttention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, kdim: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, embed_dim // num_heads
        self.k_proj = nn.Linear(kdim or embed_dim, embed_dim)
        self.v_proj = nn.Linear(kdim or embed_dim, embed_dim)
        self.q_proj, self.out_proj = nn.Linear(embed_dim, embed_dim), nn.Linear(embed_dim, embed_dim)

    def forward(
        self, query: Tensor, key: Tensor, attn_mask: Tensor | None = None, incremental_state: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        tgt_len, bsz, embed_dim = query.size()
        q, k, v = self.q_proj(query) * self.head_dim**-0.5, self.k_proj(key), self.v_proj(key)
        q = q.contiguous().view(tgt_len, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        k = k.contiguous().view(-1, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        v = v.contiguous().view(-1, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        if incremental_state is not None:
            if "prev_key" in incremental_state:
                k, v = torch.cat([incremental_state["prev_key"], k], dim=1), torch.cat([incremental_state["prev_value"], v], dim=1)
            incremental_state["prev_key"], incremental_state["prev_value"] = k, v
        attn_weights = torch.bmm(q, k.transpose(1, 2))
        if attn_mask is not None:
            attn_weights = attn_weights + attn_mask.unsqueeze(0)
        attn_probs = F.softmax(attn_weights, dim=-1)
        attn = torch.bmm(attn_probs, v).transpose(0, 1).contiguous().view(tgt_len, bsz, embed_dim)
        return self.out_proj(attn), attn_probs.view(bsz, self.num_heads, tgt_len, -1).mean(1)


class TimeFirstLayer(nn.Module):
    def __init__(self, embed_dim: int, encoder_dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.encoder_attn = TimeFirstAttention(embed_dim, heads), TimeFirstAttention(embed_dim, heads, encoder_dim)
        self.self_attn_layer_norm, self.encoder_attn_layer_norm, self.final_layer_norm = (nn.LayerNorm(embed_dim) for _ in range(3))
        self.fc1, self.fc2 = nn.Linear(embed_dim, 70), nn.Linear(70, embed_dim)

    def forward(self, x: Tensor, encoder_out: Tensor, mask: Tensor) -> Tensor:
        x = self.self_attn_layer_norm(x + self.self_attn(x, x, attn_mask=mask)[0])
        x = self.encoder_attn_layer_norm(x + self.encoder_attn(x, encoder_out)[0])
        return self.final_layer_norm(x + self.fc2(F.relu(self.fc1(x))))


class TimeFirstDecoder(nn.Module):
    def __init__(self, vocab: int = 63, embed_dim: int = 28, encoder_dim: int = 18) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, embed_dim, 1)
        self.pos_conv = nn.Sequential(nn.Conv1d(embed_dim, embed_dim, 5, padding=2, groups=4), nn.GELU())
        self.layers = nn.ModuleList([TimeFirstLayer(embed_dim, encoder_dim, 4) for _ in range(2)])
        self.output_projection = nn.Linear(embed_dim, vocab, bias=False)
        self.output_projection.weight = self.embed_tokens.weight

    def forward(self, prev_output_tokens: Tensor, encoder_out: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.embed_tokens(prev_output_tokens) * 28**0.5
        x = (x + self.pos_conv(x.transpose(1, 2)).transpose(1, 2)).transpose(0, 1)
        mask = torch.triu(torch.full((len(x), len(x)), float("-inf")), 1)
        for layer in self.layers:
            x = layer(x, encoder_out, mask)
        x = x.transpose(0, 1)
        return self.output_projection(x), {"inner": x}


# Deep Speech 2: convolutions over the spectrum, recurrences both ways with norms between.
class BatchRNN(nn.Module):
    def __init__(self, input_size: int, hidden_size: int, batch_norm: bool) -> None:
        super().__init__()
        self.batch_norm = nn.BatchNorm1d(input_size) if batch_norm else None
        self.rnn = nn.GRU(input_size, hidden_size, bidirectional=True, bias=True)
        self.hidden_size = hidden_size

    def forward(self, x: Tensor) -> Tensor:
        if self.batch_norm is not None:
            x = self.batch_norm(x.flatten(0, 1)).view_as(x)
        x, _ = self.rnn(x)
        return x.view(x.size(0), x.size(1), 2, -1).sum(2)


class DeepSpeech(nn.Module):
    def __init__(self, labels: int = 29, hidden: int = 26) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 8, (9, 5), (2, 2), (4, 2)),
            nn.BatchNorm2d(8),
            nn.Hardtanh(0, 20),
            nn.Conv2d(8, 10, (5, 5), (2, 1), (2, 2)),
            nn.Hardtanh(0, 20),
        )
        self.rnns = nn.Sequential(BatchRNN(50, hidden, False), BatchRNN(hidden, hidden, True))
        self.fc = nn.Sequential(nn.BatchNorm1d(hidden), nn.Linear(hidden, labels, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x = self.rnns(x.flatten(1, 2).permute(2, 0, 1).contiguous())
        return self.fc(x.flatten(0, 1)).view(*x.shape[:2], -1).transpose(0, 1).log_softmax(-1)


# GIN with a dense adjacency: neighbours are summed, then an MLP; all layers vote.
class GINMLP(nn.Module):
    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(input_dim, hidden_dim), nn.Linear(hidden_dim, hidden_dim)])
        self.batch_norm = nn.BatchNorm1d(hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linears[0](x)
        return self.linears[1](F.relu(self.batch_norm(h.flatten(0, 1)).view_as(h)))


class GIN(nn.Module):
    def __init__(self, input_dim: int = 11, hidden_dim: int = 20, output_dim: int = 2, layers: int = 3) -> None:
        super().__init__()
        self.eps = nn.Parameter(torch.zeros(layers))
        self.mlps = nn.ModuleList([GINMLP(input_dim if i == 0 else hidden_dim, hidden_dim) for i in range(layers)])
        self.linears_prediction = nn.ModuleList([nn.Linear(input_dim if i == 0 else hidden_dim, output_dim) for i in range(layers + 1)])

    def forward(self, h: Tensor, adj: Tensor) -> Tensor:
        hidden = [h]
        for i, mlp in enumerate(self.mlps):
            pooled = torch.bmm(adj, h) + (1 + self.eps[i]) * h
            h = F.relu(mlp(pooled))
            hidden.append(h)
        return sum((p(x.sum(1)) for p, x in zip(self.linears_prediction, hidden, strict=True)), torch.zeros(()))


# GAT, second kind: scores by a small vector after the nonlinearity, heads by a view.
class GraphAttentionV2(nn.Module):
    def __init__(self, in_features: int, out_features: int, n_heads: int, is_concat: bool = True) -> None:
        super().__init__()
        self.is_concat, self.n_heads = is_concat, n_heads
        self.n_hidden = out_features // n_heads if is_concat else out_features
        self.linear_l = nn.Linear(in_features, self.n_hidden * n_heads, bias=False)
        self.linear_r = nn.Linear(in_features, self.n_hidden * n_heads, bias=False)
        self.attn = nn.Linear(self.n_hidden, 1, bias=False)

    def forward(self, h: Tensor, adj_mat: Tensor) -> Tensor:
        n = h.shape[0]
        g_l = self.linear_l(h).view(n, self.n_heads, self.n_hidden)
        g_r = self.linear_r(h).view(n, self.n_heads, self.n_hidden)
        e = self.attn(F.leaky_relu(g_l[None] + g_r[:, None], 0.2)).squeeze(-1)
        a = F.softmax(e.masked_fill(adj_mat == 0, float("-inf")), dim=1)
        res = torch.einsum("ijh,jhf->ihf", a, g_r)
        return res.reshape(n, -1) if self.is_concat else res.mean(dim=1)


class GATv2(nn.Module):
    def __init__(self, in_features: int = 34, n_hidden: int = 24, n_classes: int = 5) -> None:
        super().__init__()
        self.layer1, self.output = GraphAttentionV2(in_features, n_hidden, 4), GraphAttentionV2(n_hidden, n_classes, 1, is_concat=False)

    def forward(self, x: Tensor, adj_mat: Tensor) -> Tensor:
        return self.output(F.elu(self.layer1(x, adj_mat)), adj_mat.unsqueeze(-1) if adj_mat.dim() == 2 else adj_mat)


# A message passing network: edges make matrices, a gated unit updates the nodes.
class MessagePassing(nn.Module):
    def __init__(self, node_in: int = 13, edge_in: int = 6, hidden: int = 14, steps: int = 3, targets: int = 4) -> None:
        super().__init__()
        self.hidden, self.steps = hidden, steps
        self.project_node = nn.Sequential(nn.Linear(node_in, hidden), nn.ReLU())
        self.edge_network = nn.Sequential(nn.Linear(edge_in, 30), nn.ReLU(), nn.Linear(30, hidden * hidden))
        self.update = nn.GRUCell(hidden, hidden)
        self.i, self.j = nn.Linear(hidden + node_in, 18), nn.Linear(hidden, 18)
        self.predict = nn.Linear(18, targets)

    def forward(self, nodes: Tensor, edges: Tensor, src: Tensor, dst: Tensor) -> Tensor:
        h = self.project_node(nodes)
        A = self.edge_network(edges).view(-1, self.hidden, self.hidden)
        for _ in range(self.steps):
            m = torch.bmm(A, h[src].unsqueeze(-1)).squeeze(-1)
            h = self.update(torch.zeros_like(h).index_add(0, dst, m), h)
        r = torch.sigmoid(self.i(torch.cat((h, nodes), -1))) * torch.tanh(self.j(h))
        return self.predict(r.sum(0))


# Deep interest: what was bought before is weighed by a small network that sees the candidate.
class Dice(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.alpha, self.bn = nn.Parameter(torch.zeros(n)), nn.BatchNorm1d(n, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        p = torch.sigmoid(self.bn(x.flatten(0, -2)).view_as(x))
        return p * x + (1 - p) * self.alpha * x


class ActivationUnit(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.dice, self.fc2 = nn.Linear(4 * dim, 21), Dice(21), nn.Linear(21, 1)

    def forward(self, query: Tensor, facts: Tensor, mask: Tensor) -> Tensor:
        q = query.unsqueeze(1).expand_as(facts)
        w = self.fc2(self.dice(self.fc1(torch.cat([q, facts, q - facts, q * facts], dim=-1)))).squeeze(-1)
        return (w.masked_fill(~mask, 0.0).unsqueeze(1) @ facts).squeeze(1)


class DeepInterest(nn.Module):
    def __init__(self, users: int = 40, items: int = 55, cats: int = 12, dim: int = 10) -> None:
        super().__init__()
        self.uid_emb, self.mid_emb, self.cat_emb = nn.Embedding(users, dim), nn.Embedding(items, dim), nn.Embedding(cats, dim)
        self.attention = ActivationUnit(2 * dim)
        self.dnn = nn.Sequential(nn.Linear(5 * dim, 44), Dice(44), nn.Linear(44, 25), Dice(25), nn.Linear(25, 1))

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        target = torch.cat((self.mid_emb(features["mid"]), self.cat_emb(features["cat"])), -1)
        history = torch.cat((self.mid_emb(features["mid_his"]), self.cat_emb(features["cat_his"])), -1)
        interest = self.attention(target, history, features["mid_his"] > 0)
        return torch.sigmoid(self.dnn(torch.cat((self.uid_emb(features["uid"]), target, interest), -1))).squeeze(-1)


# AutoInt: fields attend to each other by tensordot with (in, heads x size) weights, heads are split and stacked.
class InteractingLayer(nn.Module):
    def __init__(self, embedding_size: int, att_size: int, head_num: int) -> None:
        super().__init__()
        self.head_num, self.att = head_num, att_size
        self.W_Query = nn.Parameter(torch.randn(embedding_size, att_size * head_num) * 0.2)
        self.W_key = nn.Parameter(torch.randn(embedding_size, att_size * head_num) * 0.2)
        self.W_Value = nn.Parameter(torch.randn(embedding_size, att_size * head_num) * 0.2)
        self.W_Res = nn.Parameter(torch.randn(embedding_size, att_size * head_num) * 0.2)

    def forward(self, inputs: Tensor) -> Tensor:
        querys = torch.tensordot(inputs, self.W_Query, dims=([-1], [0]))  # pyright: ignore[reportArgumentType]
        keys = torch.tensordot(inputs, self.W_key, dims=([-1], [0]))  # pyright: ignore[reportArgumentType]
        values = torch.tensordot(inputs, self.W_Value, dims=([-1], [0]))  # pyright: ignore[reportArgumentType]
        querys = torch.stack(torch.split(querys, self.att, dim=2))
        keys = torch.stack(torch.split(keys, self.att, dim=2))
        values = torch.stack(torch.split(values, self.att, dim=2))
        scores = F.softmax(torch.einsum("bnik,bnjk->bnij", querys, keys), dim=-1)
        result = torch.cat(torch.split(torch.matmul(scores, values), 1), dim=-1).squeeze(0)
        return F.relu(result + torch.tensordot(inputs, self.W_Res, dims=([-1], [0])))  # pyright: ignore[reportArgumentType]


class AutoInt(nn.Module):
    def __init__(self, sizes: tuple[int, ...] = (31, 17, 23, 9), dim: int = 12, dense: int = 5) -> None:
        super().__init__()
        self.embedding_dict = nn.ModuleDict({f"C{i}": nn.Embedding(n, dim) for i, n in enumerate(sizes)})
        self.int_layers = nn.ModuleList([InteractingLayer(dim, 6, 3), InteractingLayer(18, 6, 3)])
        self.dnn = nn.ModuleList([nn.Linear(dense + 4 * dim, 35), nn.Linear(35, 20)])
        self.dnn_linear = nn.Linear(4 * 18 + 20, 1, bias=False)

    def forward(self, sparse: Tensor, dense: Tensor) -> Tensor:
        e = torch.stack([table(sparse[:, i]) for i, table in enumerate(self.embedding_dict.values())], 1)
        a = e
        for layer in self.int_layers:
            a = layer(a)
        d = torch.cat((dense, e.flatten(1)), -1)
        for linear in self.dnn:
            d = F.relu(linear(d))
        return torch.sigmoid(self.dnn_linear(torch.cat((a.flatten(1), d), -1)))


def _interest() -> tuple[tuple[dict[str, Tensor]], dict[str, Tensor]]:
    ids = {"uid": torch.randint(40, (2,)), "mid": torch.randint(1, 55, (2,)), "cat": torch.randint(12, (2,))}
    return ({**ids, "mid_his": torch.randint(1, 55, (2, 4)), "cat_his": torch.randint(12, (2, 4))},), {}


_HIDDEN, _LAST = {"linear", "mlp_up", "mlp_down"}, {"classifier", "lm_head"}
_NODES = {"gnn_weight", "linear", "mlp_up", "mlp_down"}
STYLES: list[Style] = [
    Style(
        "temporal convolutions",
        TCN,
        lambda: ((torch.randn(1, 5, 12),), {}),
        {"cnn"},
        {
            "network.0.conv1.parametrizations.weight.original1": {"first_conv", "conv"},
            "network.0.conv2.parametrizations.weight.original1": {"conv"},
            "network.[12].conv?.parametrizations.weight.original1": {"conv"},
            "network.[01].downsample.weight": {"conv", "first_conv"},
            "linear.weight": {"classifier", "lm_head"},
        },
    ),
    Style(
        "time first, keys kept",
        TimeFirstDecoder,
        lambda: ((torch.randint(63, (2, 5)), torch.randn(7, 2, 18)), {}),
        {"transformer"},
        {
            "embed_tokens.weight": {"token_embedding", "lm_head"},
            "pos_conv.0.weight": {"conv", "position_embedding"},
            "*_attn.q_proj.weight": {"query"},
            "*_attn.k_proj.weight": {"key"},
            "*_attn.v_proj.weight": {"value"},
            "*_attn.out_proj.weight": {"attn_out"},
            "layers.*.fc1.weight": {"mlp_up"},
            "layers.*.fc2.weight": {"mlp_down"},
        },
        {"*_attn.q_proj.weight": "q:4x7", "*_attn.k_proj.weight": "k:4x7"},
    ),
    Style(
        "deep speech 2",
        DeepSpeech,
        lambda: ((torch.randn(2, 1, 20, 16),), {}),
        {"rnn", "hybrid"},
        {
            "conv.0.weight": {"first_conv"},
            "conv.3.weight": {"conv"},
            "rnns.*.rnn.weight_ih_*": {"rnn_ih"},
            "rnns.*.rnn.weight_hh_*": {"rnn_hh"},
            "fc.1.weight": _LAST,
        },
    ),
    Style(
        "gin with a dense adjacency",
        GIN,
        lambda: ((torch.randn(2, 7, 11), torch.ones(2, 7, 7)), {}),
        {"gnn"},
        {"mlps.*.linears.?.weight": _NODES, "linears_prediction.*.weight": {*_LAST, "linear"}},
    ),
    Style(
        "gat of the second kind",
        GATv2,
        lambda: ((torch.randn(7, 34), torch.ones(7, 7, 1)), {}),
        {"gnn"},
        {
            "*.linear_l.weight": _NODES | {"query", "key"},
            "*.linear_r.weight": _NODES | {"value", "key", "query"},
            "*.attn.weight": {"attn_other", "linear", "gnn_weight"},
        },
    ),
    Style(
        "messages with edge matrices",
        MessagePassing,
        lambda: ((torch.randn(5, 13), torch.randn(4, 6), torch.tensor([0, 1, 2, 3]), torch.tensor([1, 2, 3, 4])), {}),
        {"gnn", "hybrid"},
        {
            "project_node.0.weight": _NODES | {"patch_embedding"},
            "edge_network.?.weight": _NODES,
            "update.weight_ih": {"rnn_ih"},
            "update.weight_hh": {"rnn_hh"},
            "[ij].weight": _NODES | {"mlp_gate"},
            "predict.weight": _LAST,
        },
    ),
    Style(
        "deep interest",
        DeepInterest,
        _interest,
        {"mlp"},
        {
            "???_emb.weight": {"token_embedding"},
            "attention.fc?.weight": _HIDDEN | {"attn_other"},
            "dnn.[02].weight": _HIDDEN,
            "dnn.4.weight": _LAST,
        },
    ),
    Style(
        "autoint",
        AutoInt,
        lambda: ((torch.randint(9, (2, 4)), torch.randn(2, 5)), {}),
        {"transformer", "hybrid"},
        {
            "embedding_dict.*.weight": {"token_embedding"},
            "int_layers.*.W_Query": {"query"},
            "int_layers.*.W_key": {"key"},
            "int_layers.*.W_Value": {"value"},
            "int_layers.*.W_Res": {"linear", "attn_other", "attn_out", "other"},
            "dnn.?.weight": _HIDDEN,
            "dnn_linear.weight": _LAST,
        },
        {"int_layers.*.W_Query": "q:3x6@1", "int_layers.*.W_key": "k:3x6@1"},
    ),
]
