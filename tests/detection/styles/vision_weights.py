"""Vision models that keep bare weights of their own shapes, and models without attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# One 3-D weight for query, key, value and output, (4, in, out), used by einsum.
class QKVOAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkvo = nn.Parameter(torch.randn(4, dim, dim) * dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = torch.einsum("bnd,wde->wbne", x, self.qkvo[:3]).view(3, b, n, self.heads, -1).transpose(2, 3).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return torch.einsum("bhne,hed->bnd", y, self.qkvo[3].view(self.heads, -1, d))


# As in JAX: (in, heads, head size) for query, key, value and (heads, head size, out) for the output.
class HeadAxisAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        d = dim // heads
        self.w_q, self.w_k, self.w_v = (nn.Parameter(torch.randn(dim, heads, d) * dim**-0.5) for _ in range(3))
        self.w_o = nn.Parameter(torch.randn(heads, d, dim) * dim**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        q = torch.einsum("btd,dhe->bthe", x, self.w_q)
        k = torch.einsum("bsd,dhe->bshe", x, self.w_k)
        v = torch.einsum("bsd,dhe->bshe", x, self.w_v)
        logits = torch.einsum("bthe,bshe->bhts", q, k) / q.shape[-1] ** 0.5
        return torch.einsum("bhts,bshe,hed->btd", torch.softmax(logits, -1), v, self.w_o)


class MatMulMLP(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.w_in = nn.Parameter(torch.randn(dim, hidden) * dim**-0.5)
        self.w_out = nn.Parameter(torch.randn(hidden, dim) * hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x @ self.w_in) @ self.w_out


class WeightBlock(nn.Module):
    def __init__(self, dim: int, attn: nn.Module) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = attn
        self.mlp = MatMulMLP(dim, 3 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class WeightViT(nn.Module):
    def __init__(self, attention: type[QKVOAttention] | type[HeadAxisAttention], width: int = 48, heads: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, width, 8, 8)
        self.posemb = nn.Parameter(torch.randn(1, 16, width) * width**-0.5)
        self.encoder = nn.Sequential(*(WeightBlock(width, attention(width, heads)) for _ in range(2)))
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embedding(image).flatten(2).mT + self.posemb
        return self.head(self.encoder(x).mean(1))


# MLP-Mixer, named by its author after what is mixed.
class Perceptron(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.expand, self.shrink = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.shrink(F.gelu(self.expand(x)))


class MixLayer(nn.Module):
    def __init__(self, places: int, features: int) -> None:
        super().__init__()
        self.norm_places, self.norm_features = nn.LayerNorm(features), nn.LayerNorm(features)
        self.across_places = Perceptron(places, 2 * places)
        self.across_features = Perceptron(features, 4 * features)

    def forward(self, u: Tensor) -> Tensor:
        u = u + self.across_places(self.norm_places(u).transpose(1, 2)).transpose(1, 2)
        return u + self.across_features(self.norm_features(u))


class PatchMLP(nn.Module):
    def __init__(self, features: int = 32, depth: int = 3) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, features, 8, 8)
        self.layers = nn.Sequential(*(MixLayer(16, features) for _ in range(depth)))
        self.final_norm = nn.LayerNorm(features)
        self.classify = nn.Linear(features, 10)

    def forward(self, pictures: Tensor) -> Tensor:
        u = self.cut(pictures).flatten(2).transpose(1, 2)
        return self.classify(self.final_norm(self.layers(u)).mean(1))


# NeRF: eight layers, the input again in the middle, density and colour apart.
class NeRF(nn.Module):
    def __init__(self, D: int = 8, W: int = 32, input_ch: int = 39, input_ch_views: int = 15, skips: tuple[int, ...] = (4,)) -> None:
        super().__init__()
        self.input_ch, self.input_ch_views, self.skips = input_ch, input_ch_views, skips
        widths = [input_ch] + [W + input_ch if i in skips else W for i in range(D - 1)]
        self.pts_linears = nn.ModuleList([nn.Linear(w, W) for w in widths])
        self.views_linears = nn.ModuleList([nn.Linear(input_ch_views + W, W // 2)])
        self.feature_linear = nn.Linear(W, W)
        self.alpha_linear = nn.Linear(W, 1)
        self.rgb_linear = nn.Linear(W // 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        input_pts, input_views = torch.split(x, [self.input_ch, self.input_ch_views], dim=-1)
        h = input_pts
        for i, layer in enumerate(self.pts_linears):
            h = F.relu(layer(h))
            if i in self.skips:
                h = torch.cat([input_pts, h], -1)
        alpha = self.alpha_linear(h)
        h = torch.cat([self.feature_linear(h), input_views], -1)
        for layer in self.views_linears:
            h = F.relu(layer(h))
        return torch.cat([self.rgb_linear(h), alpha], -1)


def image() -> tuple[tuple[Tensor], dict[str, Tensor]]:
    return (torch.randn(1, 3, 32, 32),), {}


_WEIGHT_ROLES = {
    "embedding.weight": {"patch_embedding"},
    "posemb": {"position_embedding"},
    "encoder.*.mlp.w_in": {"mlp_up"},
    "encoder.*.mlp.w_out": {"mlp_down"},
    "head.weight": {"classifier"},
}

STYLES: list[Style] = [
    Style(
        "3-D qkvo weight",
        lambda: WeightViT(QKVOAttention),
        image,
        {"transformer"},
        # No one axis has the heads of all four matrices, so there is no line order.
        {**_WEIGHT_ROLES, "encoder.*.attn.qkvo": {"qkv", "attn_other", "other"}},
    ),
    Style(
        "3-D weights with a head axis",
        lambda: WeightViT(HeadAxisAttention),
        image,
        {"transformer"},
        {
            **_WEIGHT_ROLES,
            "encoder.*.attn.w_q": {"query"},
            "encoder.*.attn.w_k": {"key"},
            "encoder.*.attn.w_v": {"value"},
            "encoder.*.attn.w_o": {"attn_out"},
        },
        {"encoder.*.attn.w_q": "q:6x1@1", "encoder.*.attn.w_k": "k:6x1@1"},
    ),
    Style(
        "mlp-mixer",
        PatchMLP,
        image,
        {"mlp_mixer"},
        {
            "cut.weight": {"patch_embedding", "first_conv"},
            "layers.*.across_places.*.weight": {"token_mix"},
            "layers.*.across_features.expand.weight": {"mlp_up"},
            "layers.*.across_features.shrink.weight": {"mlp_down"},
            "classify.weight": {"classifier"},
        },
    ),
    Style(
        "nerf",
        NeRF,
        lambda: ((torch.randn(5, 54),), {}),
        {"mlp"},
        {
            "pts_linears.*.weight": {"linear", "mlp_up"},
            "views_linears.0.weight": {"linear", "mlp_up"},
            "feature_linear.weight": {"linear", "mlp_up", "mlp_down"},
            # Two outputs; no layer reads either again.
            "alpha_linear.weight": {"classifier", "lm_head", "linear"},
            "rgb_linear.weight": {"classifier", "lm_head", "linear"},
        },
    ),
]
