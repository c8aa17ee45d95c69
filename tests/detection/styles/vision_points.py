"""Points and atoms: PointNet++, Point Transformer, SchNet, EGNN; a vision-language pair; a teacher and a student."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# PointNet++: 1x1 convolutions over the neighbours of sampled points, the largest of which remains.
class SetAbstraction(nn.Module):
    def __init__(self, npoint: int | None, k: int, in_channel: int, mlp: list[int]) -> None:
        super().__init__()
        self.npoint, self.k = npoint, k
        widths = [in_channel + 3, *mlp]
        self.mlp_convs = nn.ModuleList([nn.Conv2d(a, b, 1) for a, b in zip(widths, mlp, strict=False)])
        self.mlp_bns = nn.ModuleList([nn.BatchNorm2d(b) for b in mlp])

    def forward(self, xyz: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        centres = xyz[:, : self.npoint]
        near = torch.cdist(centres, xyz).topk(self.k, largest=False).indices
        batch = torch.arange(len(xyz))[:, None, None]
        grouped = torch.cat((xyz[batch, near] - centres[:, :, None], features[batch, near]), -1).permute(0, 3, 2, 1)
        for conv, bn in zip(self.mlp_convs, self.mlp_bns, strict=True):
            grouped = F.relu(bn(conv(grouped)))
        return centres, grouped.amax(2).mT


class PointNet2(nn.Module):
    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.sa1, self.sa2 = SetAbstraction(12, 4, 3, [16, 24]), SetAbstraction(5, 4, 24, [32, 48])
        self.fc1, self.bn1, self.fc2 = nn.Linear(48, 36), nn.BatchNorm1d(36), nn.Linear(36, classes)

    def forward(self, xyz: Tensor) -> Tensor:
        _, x = self.sa2(*self.sa1(xyz, xyz))
        return F.log_softmax(self.fc2(F.relu(self.bn1(self.fc1(x.amax(1))))), -1)


# Point Transformer: attention by differences, with a weight for each channel and so no heads.
class PointTransformerLayer(nn.Module):
    def __init__(self, d_points: int, d_model: int, k: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(d_points, d_model), nn.Linear(d_model, d_points)
        self.fc_delta = nn.Sequential(nn.Linear(3, d_model), nn.ReLU(), nn.Linear(d_model, d_model))
        self.fc_gamma = nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(), nn.Linear(d_model, d_model))
        self.w_qs, self.w_ks, self.w_vs = (nn.Linear(d_model, d_model, bias=False) for _ in range(3))
        self.k = k

    def forward(self, xyz: Tensor, features: Tensor) -> Tensor:
        near = torch.cdist(xyz, xyz).topk(self.k, largest=False).indices
        batch = torch.arange(len(xyz))[:, None, None]
        x = self.fc1(features)
        q, k, v = self.w_qs(x), self.w_ks(x)[batch, near], self.w_vs(x)[batch, near]
        pos_enc = self.fc_delta(xyz[:, :, None] - xyz[batch, near])
        attn = F.softmax(self.fc_gamma(q[:, :, None] - k + pos_enc) / k.size(-1) ** 0.5, dim=-2)
        return self.fc2(torch.einsum("bmnf,bmnf->bmf", attn, v + pos_enc)) + features


class PointTransformer(nn.Module):
    def __init__(self, classes: int = 9, d: int = 20) -> None:
        super().__init__()
        self.fc1 = nn.Sequential(nn.Linear(3, d), nn.ReLU(), nn.Linear(d, d))
        self.transformers = nn.ModuleList([PointTransformerLayer(d, 28, 4) for _ in range(2)])
        self.fc2 = nn.Sequential(nn.Linear(d, 40), nn.ReLU(), nn.Linear(40, classes))

    def forward(self, xyz: Tensor) -> Tensor:
        x = self.fc1(xyz)
        for layer in self.transformers:
            x = layer(xyz, x)
        return self.fc2(x.mean(1))


# SchNet: filters from distances multiply the features of neighbours.
class InteractionBlock(nn.Module):
    def __init__(self, hidden: int, gaussians: int, filters: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(gaussians, filters), nn.Softplus(), nn.Linear(filters, filters))
        self.lin1, self.lin2 = nn.Linear(hidden, filters, bias=False), nn.Linear(filters, hidden)
        self.lin = nn.Linear(hidden, hidden)

    def forward(self, h: Tensor, edge_index: Tensor, edge_attr: Tensor) -> Tensor:
        source, target = edge_index
        messages = self.lin1(h)[source] * self.mlp(edge_attr)
        summed = messages.new_zeros(len(h), messages.shape[1]).index_add_(0, target, messages)
        return h + self.lin(F.softplus(self.lin2(summed)))


class SchNet(nn.Module):
    offset: Tensor

    def __init__(self, hidden: int = 24, filters: int = 28, gaussians: int = 15) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, hidden)
        self.register_buffer("offset", torch.linspace(0, 5, gaussians))
        self.interactions = nn.ModuleList([InteractionBlock(hidden, gaussians, filters) for _ in range(3)])
        self.lin1, self.lin2 = nn.Linear(hidden, hidden // 2), nn.Linear(hidden // 2, 1)

    def forward(self, z: Tensor, pos: Tensor, edge_index: Tensor) -> Tensor:
        distance = (pos[edge_index[0]] - pos[edge_index[1]]).norm(dim=-1)
        edge_attr, h = torch.exp(-2 * (distance[:, None] - self.offset) ** 2), self.embedding(z)
        for interaction in self.interactions:
            h = interaction(h, edge_index, edge_attr)
        return self.lin2(F.softplus(self.lin1(h))).sum(0)


# EGNN: messages from pairs and distances that also move the points.
class E_GCL(nn.Module):
    def __init__(self, nf: int) -> None:
        super().__init__()
        self.edge_mlp = nn.Sequential(nn.Linear(2 * nf + 1, nf), nn.SiLU(), nn.Linear(nf, nf), nn.SiLU())
        self.node_mlp = nn.Sequential(nn.Linear(2 * nf, nf), nn.SiLU(), nn.Linear(nf, nf))
        self.coord_mlp = nn.Sequential(nn.Linear(nf, nf), nn.SiLU(), nn.Linear(nf, 1, bias=False))

    def forward(self, h: Tensor, edge_index: Tensor, coord: Tensor) -> tuple[Tensor, Tensor]:
        row, col = edge_index
        diff = coord[row] - coord[col]
        m = self.edge_mlp(torch.cat((h[row], h[col], (diff**2).sum(1, keepdim=True)), 1))
        coord = coord.index_add(0, row, diff * self.coord_mlp(m))
        return h + self.node_mlp(torch.cat((h, m.new_zeros(h.shape).index_add(0, row, m)), 1)), coord


class EGNN(nn.Module):
    def __init__(self, in_node_nf: int = 5, hidden_nf: int = 24, out_node_nf: int = 2) -> None:
        super().__init__()
        self.embedding_in, self.embedding_out = nn.Linear(in_node_nf, hidden_nf), nn.Linear(hidden_nf, out_node_nf)
        for i in range(3):
            self.add_module(f"gcl_{i}", E_GCL(hidden_nf))

    def forward(self, h: Tensor, x: Tensor, edge_index: Tensor) -> tuple[Tensor, Tensor]:
        h = self.embedding_in(h)
        for i in range(3):
            h, x = self._modules[f"gcl_{i}"](h, edge_index, x)  # pyright: ignore
        return self.embedding_out(h), x


# CLIP as it was first written: packed weights of torch's function, bare projections, two towers.
class ResidualAttentionBlock(nn.Module):
    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.attn, self.ln_1, self.ln_2 = nn.MultiheadAttention(width, heads, batch_first=True), nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width))
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        n, h = x.shape[1], self.ln_1(x)
        mask = torch.full((n, n), float("-inf")).triu(1) if self.causal else None
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class CLIP(nn.Module):
    def __init__(self, embed_dim: int = 20, vocab: int = 57, context: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 32, 4, 4, bias=False)
        self.class_embedding, self.visual_positional_embedding = nn.Parameter(torch.randn(32)), nn.Parameter(torch.randn(5, 32))
        self.visual = nn.Sequential(*(ResidualAttentionBlock(32, 4, causal=False) for _ in range(2)))
        self.visual_proj = nn.Parameter(torch.randn(32, embed_dim))
        self.token_embedding, self.positional_embedding = nn.Embedding(vocab, 24), nn.Parameter(torch.randn(context, 24))
        self.transformer = nn.Sequential(*(ResidualAttentionBlock(24, 2, causal=True) for _ in range(2)))
        self.ln_post, self.ln_final = nn.LayerNorm(32), nn.LayerNorm(24)
        self.text_projection = nn.Parameter(torch.randn(24, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(2.66))

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        x = self.conv1(image).flatten(2).mT
        x = torch.cat((self.class_embedding.expand(len(x), 1, -1), x), 1) + self.visual_positional_embedding
        x = self.ln_post(self.visual(x)[:, 0]) @ self.visual_proj
        y = self.ln_final(self.transformer(self.token_embedding(text) + self.positional_embedding))
        y = y[torch.arange(len(y)), text.argmax(-1)] @ self.text_projection
        return self.logit_scale.exp() * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).mT


# BYOL: a network, a slow copy of it that is not trained, and a head that predicts one from the other.
def _projector(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(inplace=True), nn.Linear(64, n_out))


class BYOL(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1))
        self.online = nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), _projector(24, 18))
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.predictor = _projector(18, 18)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.no_grad():
            goal = F.normalize(self.target(b), dim=-1)
        return 2 - 2 * (F.normalize(self.predictor(self.online(a)), dim=-1) * goal).sum(-1).mean()


_LINEAR = {"linear", "mlp_up", "mlp_down"}
_MESSAGE = _LINEAR | {"gnn_weight"}
_OUT = {"classifier", "lm_head"}


def _cloud() -> tuple[tuple[Tensor], dict[str, Tensor]]:
    return (torch.randn(2, 20, 3),), {}


STYLES: list[Style] = [
    Style(
        "pointnet++",
        PointNet2,
        _cloud,
        {"cnn", "mlp", "hybrid"},
        {"sa?.mlp_convs.*.weight": _LINEAR | {"conv", "first_conv"}, "fc1.weight": _LINEAR, "fc2.weight": _OUT},
    ),
    Style(
        "point transformer",
        PointTransformer,
        _cloud,
        {"transformer"},
        {
            "fc1.?.weight": _LINEAR | {"patch_embedding"},
            "*.w_qs.weight": {"query"},
            "*.w_ks.weight": {"key"},
            "*.w_vs.weight": {"value"},
            "*.fc_delta.*.weight": _LINEAR | {"attn_other"},
            "*.fc_gamma.*.weight": _LINEAR | {"attn_other"},
            "transformers.*.fc1.weight": _LINEAR,
            "transformers.*.fc2.weight": _LINEAR | {"attn_out"},
            "fc2.0.weight": _LINEAR,
            "fc2.2.weight": _OUT,
        },
    ),
    Style(
        "schnet",
        SchNet,
        lambda: ((torch.tensor([1, 6, 8]), torch.randn(3, 3), torch.tensor([[0, 1, 2, 1], [1, 0, 1, 2]])), {}),
        {"gnn"},
        {
            "embedding.weight": {"token_embedding"},
            "interactions.*.weight": _MESSAGE,
            "lin1.weight": _LINEAR,
            "lin2.weight": _OUT,
        },
    ),
    Style(
        "egnn",
        EGNN,
        lambda: ((torch.randn(3, 5), torch.randn(3, 3), torch.tensor([[0, 1, 2, 1], [1, 0, 1, 2]])), {}),
        {"gnn"},
        {"embedding_in.weight": _LINEAR, "gcl_[01]*.weight": _MESSAGE, "gcl_2*.weight": _MESSAGE | _OUT, "embedding_out.weight": _OUT},
    ),
    Style(
        "clip",
        CLIP,
        lambda: ((torch.randn(2, 3, 8, 8), torch.randint(57, (2, 6))), {}),
        {"transformer"},
        {
            "conv1.weight": {"patch_embedding"},
            "*positional_embedding": {"position_embedding"},
            "token_embedding.weight": {"token_embedding"},
            "*.attn.in_proj_weight": {"qkv"},
            "*.attn.out_proj.weight": {"attn_out"},
            "*.mlp.0.weight": {"mlp_up"},
            "*.mlp.2.weight": {"mlp_down"},
            "visual_proj": _OUT | {"linear"},
            "text_projection": _OUT | {"linear"},
        },
        {"visual.*.in_proj_weight": "q:4x8|k:4x8|v:4x8", "transformer.*.in_proj_weight": "q:2x12|k:2x12|v:2x12"},
    ),
    Style(
        "byol",
        BYOL,
        lambda: ((torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)), {}),
        {"cnn"},
        {
            "online.0.0.weight": {"conv", "first_conv"},
            "online.0.3.weight": {"conv"},
            "online.3.[03].weight": _LINEAR | _OUT,
            "predictor.0.weight": _LINEAR,
            "predictor.3.weight": _OUT | _LINEAR,
        },
    ),
]
