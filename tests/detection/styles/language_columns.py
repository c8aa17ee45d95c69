"""Tables and ratings: TabTransformer, FT-Transformer, TabNet, SAINT, NCF, two towers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# TabTransformer: attention over embedded categories, then an MLP over them and the numbers.
class Attention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_qkv = nn.Linear(dim, heads * dim_head * 3, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.to_qkv(x).chunk(3, dim=-1))
        attn = (torch.einsum("bhid,bhjd->bhij", q, k) * self.scale).softmax(dim=-1)
        return self.to_out(torch.einsum("bhij,bhjd->bhid", attn, v).transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    def __init__(self, dim: int, mult: int = 3) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Linear(dim, dim * mult * 2), nn.Linear(dim * mult, dim)

    def forward(self, x: Tensor) -> Tensor:
        x, gates = self.w1(x).chunk(2, dim=-1)
        return self.w2(x * F.gelu(gates))


class TabTransformer(nn.Module):
    offsets: Tensor

    def __init__(self, categories: tuple[int, ...] = (7, 5, 9), numbers: int = 4, dim: int = 24) -> None:
        super().__init__()
        self.register_buffer("offsets", torch.tensor((0, *categories[:-1])).cumsum(0))
        self.category_embed = nn.Embedding(sum(categories), dim)
        self.shared_embed = nn.Parameter(torch.randn(len(categories), dim) * 0.02)
        self.layers = nn.ModuleList([nn.ModuleList([Attention(dim, 3, 8), GatedFeedForward(dim)]) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(4)])
        self.norm = nn.LayerNorm(numbers)
        width = dim * len(categories) + numbers
        self.mlp = nn.Sequential(nn.Linear(width, 96), nn.ReLU(), nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 1))

    def forward(self, x_categ: Tensor, x_cont: Tensor) -> Tensor:
        x = self.category_embed(x_categ + self.offsets) + self.shared_embed
        for i, (attn, ff) in enumerate(self.layers):  # pyright: ignore
            x = x + attn(self.norms[2 * i](x))
            x = x + ff(self.norms[2 * i + 1](x))
        return self.mlp(torch.cat((x.flatten(1), self.norm(x_cont)), dim=-1))


# FT-Transformer: each number has a vector of its own that it scales; a class token is read at the end.
class FeatureTokenizer(nn.Module):
    def __init__(self, n_num: int, cardinalities: list[int], d: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_num + 1, d) * 0.1)
        self.bias = nn.Parameter(torch.zeros(n_num + len(cardinalities), d))
        self.cat_embeddings = nn.ModuleList([nn.Embedding(c, d) for c in cardinalities])

    def forward(self, x_num: Tensor, x_cat: Tensor) -> Tensor:
        x_num = torch.cat((x_num.new_ones(len(x_num), 1), x_num), dim=1)
        x = self.weight[None] * x_num[:, :, None]
        x = torch.cat((x, *(e(x_cat[:, i : i + 1]) for i, e in enumerate(self.cat_embeddings))), dim=1)
        return x + torch.cat((self.bias.new_zeros(1, self.bias.shape[1]), self.bias))


class FTBlock(nn.Module):
    def __init__(self, d: int, n_heads: int) -> None:
        super().__init__()
        self.W_q, self.W_k, self.W_v, self.W_out = (nn.Linear(d, d) for _ in range(4))
        self.n_heads = n_heads
        self.linear0, self.linear1 = nn.Linear(d, 96), nn.Linear(48, d)
        self.norm0, self.norm1 = nn.LayerNorm(d), nn.LayerNorm(d)

    def _reshape(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        dh = d // self.n_heads
        return x.reshape(b, n, self.n_heads, dh).transpose(1, 2).reshape(b * self.n_heads, n, dh)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm0(x)
        q, k, v = self._reshape(self.W_q(h)), self._reshape(self.W_k(h)), self._reshape(self.W_v(h))
        attention = F.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1) @ v
        x = x + self.W_out(attention.unflatten(0, (len(x), -1)).transpose(1, 2).flatten(2))
        a, b = self.linear0(self.norm1(x)).chunk(2, dim=-1)
        return x + self.linear1(a * F.relu(b))


class FTTransformer(nn.Module):
    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.tokenizer = FeatureTokenizer(5, [6, 4], d)
        self.layers = nn.ModuleList([FTBlock(d, 4) for _ in range(2)])
        self.last_normalization = nn.LayerNorm(d)
        self.head = nn.Linear(d, 3)

    def forward(self, x_num: Tensor, x_cat: Tensor) -> Tensor:
        x = self.tokenizer(x_num, x_cat)
        for layer in self.layers:
            x = layer(x)
        return self.head(F.relu(self.last_normalization(x[:, 0])))


# TabNet: steps that each choose features by a mask and pass them through gated layers, some of them shared.
class GLULayer(nn.Module):
    def __init__(self, n_in: int, n_out: int, fc: nn.Linear | None = None) -> None:
        super().__init__()
        self.fc = nn.Linear(n_in, 2 * n_out, bias=False) if fc is None else fc
        self.bn = nn.BatchNorm1d(2 * n_out)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.bn(self.fc(x)).chunk(2, dim=1)
        return a * torch.sigmoid(b)


class FeatTransformer(nn.Module):
    def __init__(self, n_in: int, n: int, shared: nn.Linear) -> None:
        super().__init__()
        self.shared = GLULayer(n_in, n, shared)
        self.specific = nn.ModuleList([GLULayer(n, n), GLULayer(n, n)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(x)
        for layer in self.specific:
            x = (x + layer(x)) * 0.5**0.5
        return x


class TabNet(nn.Module):
    def __init__(self, n_in: int = 11, n_d: int = 12, n_a: int = 10, steps: int = 3, classes: int = 4) -> None:
        super().__init__()
        self.n_d = n_d
        shared = nn.Linear(n_in, 2 * (n_d + n_a), bias=False)
        self.initial_bn = nn.BatchNorm1d(n_in)
        self.initial_splitter = FeatTransformer(n_in, n_d + n_a, shared)
        self.feat_transformers = nn.ModuleList([FeatTransformer(n_in, n_d + n_a, shared) for _ in range(steps)])
        self.att_transformers = nn.ModuleList([nn.Sequential(nn.Linear(n_a, n_in, bias=False), nn.BatchNorm1d(n_in)) for _ in range(steps)])
        self.final_mapping = nn.Linear(n_d, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.initial_bn(x)
        prior, att, total = torch.ones_like(x), self.initial_splitter(x)[:, self.n_d :], x.new_zeros(len(x), self.n_d)
        for feat, attentive in zip(self.feat_transformers, self.att_transformers, strict=True):
            mask = torch.softmax(prior * attentive(att), dim=-1)
            prior = prior * (1.3 - mask)
            out = feat(mask * x)
            total, att = total + F.relu(out[:, : self.n_d]), out[:, self.n_d :]
        return self.final_mapping(total)


# SAINT: attention over the columns of a row, then over the rows of the batch.
class RowColTransformer(nn.Module):
    def __init__(self, dim: int, nfeats: int) -> None:
        super().__init__()
        self.col_attn, self.row_attn = Attention(dim, 2, 8), Attention(dim * nfeats, 4, 10)
        self.col_ff, self.row_ff = GatedFeedForward(dim), GatedFeedForward(dim * nfeats, 2)
        self.norms = nn.ModuleList([nn.LayerNorm(d) for d in (dim, dim, dim * nfeats, dim * nfeats)])

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        x = x + self.col_attn(self.norms[0](x))
        x = (x + self.col_ff(self.norms[1](x))).flatten(1)[None]
        x = x + self.row_attn(self.norms[2](x))
        return (x + self.row_ff(self.norms[3](x)))[0].unflatten(1, (n, -1))


class SAINT(nn.Module):
    def __init__(self, n_num: int = 3, categories: int = 13, dim: int = 16) -> None:
        super().__init__()
        self.embeds = nn.Embedding(categories, dim)
        self.simple_MLP = nn.ModuleList([nn.Sequential(nn.Linear(1, 20), nn.ReLU(), nn.Linear(20, dim)) for _ in range(n_num)])
        self.transformer = nn.Sequential(*(RowColTransformer(dim, 2 + n_num) for _ in range(2)))
        self.mlpfory = nn.Sequential(nn.Linear(dim, 50), nn.ReLU(), nn.Linear(50, 2))

    def forward(self, x_categ: Tensor, x_cont: Tensor) -> Tensor:
        numbers = torch.stack([mlp(x_cont[:, i : i + 1]) for i, mlp in enumerate(self.simple_MLP)], dim=1)
        return self.mlpfory(self.transformer(torch.cat((self.embeds(x_categ), numbers), dim=1))[:, 0])


# NCF: a product of two embeddings beside an MLP over two others.
class NCF(nn.Module):
    def __init__(self, user_num: int = 37, item_num: int = 29, factor_num: int = 8) -> None:
        super().__init__()
        self.embed_user_GMF, self.embed_item_GMF = nn.Embedding(user_num, factor_num), nn.Embedding(item_num, factor_num)
        self.embed_user_MLP, self.embed_item_MLP = nn.Embedding(user_num, 16), nn.Embedding(item_num, 16)
        self.MLP_layers = nn.Sequential(nn.Dropout(0.0), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.predict_layer = nn.Linear(factor_num + 8, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        gmf = self.embed_user_GMF(user) * self.embed_item_GMF(item)
        mlp = self.MLP_layers(torch.cat((self.embed_user_MLP(user), self.embed_item_MLP(item)), -1))
        return self.predict_layer(torch.cat((gmf, mlp), -1)).view(-1)


# Two towers that meet in a dot product: neither has an output layer that the other reads.
class Tower(nn.Module):
    def __init__(self, ids: int, features: int, dim: int) -> None:
        super().__init__()
        self.id_embedding = nn.EmbeddingBag(ids, dim, mode="mean")
        self.dense1, self.dense2 = nn.Linear(dim + features, 64), nn.Linear(64, dim)

    def forward(self, ids: Tensor, features: Tensor) -> Tensor:
        return F.normalize(self.dense2(F.relu(self.dense1(torch.cat((self.id_embedding(ids), features), 1)))), dim=-1)


class TwoTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query_tower, self.candidate_tower = Tower(41, 6, 20), Tower(67, 3, 20)
        self.log_temperature = nn.Parameter(torch.zeros(()))

    def forward(self, user: Tensor, user_x: Tensor, item: Tensor, item_x: Tensor) -> Tensor:
        return self.query_tower(user, user_x) @ self.candidate_tower(item, item_x).mT * self.log_temperature.exp()


_LINEAR = {"linear", "mlp_up", "mlp_down"}
_OUT = {"classifier", "lm_head"}

STYLES: list[Style] = [
    Style(
        "tabtransformer",
        TabTransformer,
        lambda: ((torch.randint(5, (2, 3)), torch.randn(2, 4)), {}),
        {"transformer"},
        {
            "category_embed.weight": {"token_embedding"},
            "shared_embed": {"position_embedding", "type_embedding"},
            "*.to_qkv.weight": {"qkv"},
            "*.to_out.weight": {"attn_out"},
            "*.w1.weight": {"mlp_gate_up"},
            "*.w2.weight": {"mlp_down"},
            "mlp.[02].weight": _LINEAR,
            "mlp.4.weight": _OUT,
        },
        {"*.to_qkv.weight": "q:3x8|k:3x8|v:3x8"},
    ),
    Style(
        "ft-transformer",
        FTTransformer,
        lambda: ((torch.randn(2, 5), torch.randint(4, (2, 2))), {}),
        {"transformer"},
        {
            "tokenizer.cat_embeddings.*.weight": {"token_embedding"},
            "tokenizer.weight": {"other", "linear", "token_embedding", "patch_embedding", "special_token"},
            "*.W_q.weight": {"query"},
            "*.W_k.weight": {"key"},
            "*.W_v.weight": {"value"},
            "*.W_out.weight": {"attn_out"},
            "*.linear0.weight": {"mlp_gate_up"},
            "*.linear1.weight": {"mlp_down"},
            "head.weight": _OUT,
        },
        {"*.W_q.weight": "q:4x8", "*.W_k.weight": "k:4x8"},
    ),
    Style(
        "tabnet",
        TabNet,
        lambda: ((torch.randn(4, 11),), {}),
        {"mlp"},
        {
            "initial_splitter.*.fc.weight": _LINEAR | {"mlp_gate_up"},
            "feat_transformers.*.specific.*.fc.weight": _LINEAR | {"mlp_gate_up"},
            "att_transformers.*.0.weight": {"linear", "attn_other", "mlp_down", "mlp_gate"},
            "final_mapping.weight": _OUT,
        },
    ),
    Style(
        "saint",
        SAINT,
        lambda: ((torch.randint(13, (3, 2)), torch.randn(3, 3)), {}),
        {"transformer"},
        {
            "embeds.weight": {"token_embedding"},
            "simple_MLP.*.weight": _LINEAR,
            "*.to_qkv.weight": {"qkv"},
            "*.to_out.weight": {"attn_out"},
            "*.w1.weight": {"mlp_gate_up"},
            "*.w2.weight": {"mlp_down"},
            "mlpfory.0.weight": _LINEAR,
            "mlpfory.2.weight": _OUT,
        },
        {"*.col_attn.to_qkv.weight": "q:2x8|k:2x8|v:2x8", "*.row_attn.to_qkv.weight": "q:4x10|k:4x10|v:4x10"},
    ),
    Style(
        "ncf",
        NCF,
        lambda: ((torch.randint(37, (3,)), torch.randint(29, (3,))), {}),
        {"mlp"},
        {"embed_*.weight": {"token_embedding"}, "MLP_layers.*.weight": _LINEAR, "predict_layer.weight": _OUT},
    ),
    Style(
        "two towers",
        TwoTower,
        lambda: ((torch.randint(41, (3, 2)), torch.randn(3, 6), torch.randint(67, (3, 2)), torch.randn(3, 3)), {}),
        {"mlp"},
        {"*.id_embedding.weight": {"token_embedding"}, "*.dense1.weight": _LINEAR, "*.dense2.weight": _LINEAR | _OUT},
    ),
]
