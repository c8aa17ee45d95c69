"""Encoders and mixtures: disentangled places, keys first, queries with keys, parallel layers, experts that choose, no softmax."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# DeBERTa: places have queries and keys of their own, and three products are added.
class DisentangledSelfAttention(nn.Module):
    def __init__(self, hidden_size: int, num_attention_heads: int, max_relative: int) -> None:
        super().__init__()
        self.num_attention_heads, self.span = num_attention_heads, max_relative
        self.query_proj, self.key_proj, self.value_proj = (nn.Linear(hidden_size, hidden_size) for _ in range(3))
        self.pos_key_proj, self.pos_query_proj = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        x = x.view(*x.size()[:-1], self.num_attention_heads, -1)
        return x.permute(0, 2, 1, 3).contiguous().view(-1, x.size(1), x.size(-1))

    def forward(self, hidden_states: Tensor, rel_embeddings: Tensor) -> Tensor:
        b, n, c = hidden_states.shape
        q = self.transpose_for_scores(self.query_proj(hidden_states))
        k = self.transpose_for_scores(self.key_proj(hidden_states))
        v = self.transpose_for_scores(self.value_proj(hidden_states))
        pos_k = self.transpose_for_scores(self.pos_key_proj(rel_embeddings[None])).repeat(b, 1, 1)
        pos_q = self.transpose_for_scores(self.pos_query_proj(rel_embeddings[None])).repeat(b, 1, 1)
        scale = math.sqrt(q.size(-1) * 3)
        where = (torch.arange(n)[:, None] - torch.arange(n)[None]).clamp(-self.span, self.span - 1) + self.span
        scores = torch.bmm(q, k.transpose(-1, -2)) / scale
        where = where.expand(q.size(0), n, n)
        scores = scores + torch.gather(torch.bmm(q, pos_k.transpose(-1, -2)), 2, where) / scale
        scores = scores + torch.gather(torch.bmm(k, pos_q.transpose(-1, -2)), 2, where).transpose(-1, -2) / scale
        out = torch.bmm(torch.softmax(scores, -1), v).view(b, self.num_attention_heads, n, -1).permute(0, 2, 1, 3)
        return out.reshape(b, n, c)


class DebertaLayer(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.self = DisentangledSelfAttention(hidden_size, 4, 5)
        self.output = nn.ModuleDict({"dense": nn.Linear(hidden_size, hidden_size), "LayerNorm": nn.LayerNorm(hidden_size)})
        self.intermediate_dense = nn.Linear(hidden_size, 66)
        self.output_dense, self.LayerNorm = nn.Linear(66, hidden_size), nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor, rel: Tensor) -> Tensor:
        x = self.output["LayerNorm"](self.output["dense"](self.self(x, rel)) + x)
        return self.LayerNorm(self.output_dense(F.gelu(self.intermediate_dense(x))) + x)


class Deberta(nn.Module):
    def __init__(self, vocab: int = 72, hidden_size: int = 24, labels: int = 3) -> None:
        super().__init__()
        self.word_embeddings, self.LayerNorm = nn.Embedding(vocab, hidden_size, padding_idx=0), nn.LayerNorm(hidden_size)
        self.rel_embeddings = nn.Embedding(10, hidden_size)
        self.layer = nn.ModuleList([DebertaLayer(hidden_size) for _ in range(2)])
        self.pooler, self.classifier = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, labels)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.LayerNorm(self.word_embeddings(input_ids))
        for layer in self.layer:
            x = layer(x, self.rel_embeddings.weight)
        return self.classifier(F.gelu(self.pooler(x[:, 0])))


# Keys come first in the one layer, and forward takes a record of tensors and gives another.
@dataclass
class Batch:
    src: Tensor
    mask: Tensor


@dataclass
class Prediction:
    scores: Tensor
    hidden: Tensor


class KeysFirstLayer(nn.Module):
    def __init__(self, cfg: dict[str, int]) -> None:
        super().__init__()
        self.cfg, d = cfg, cfg["dim"]
        self.kqv, self.mix = nn.Linear(d, d * 3), nn.Linear(d, d)
        self.expand, self.contract = nn.Linear(d, cfg["inner"]), nn.Linear(cfg["inner"], d)
        self.a, self.b = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        B, T, C = x.shape
        nh = self.cfg["n_head"] * 2
        k, q, v = torch.split(self.kqv(self.a(x)), C, dim=2)
        k = k.view(B, T, nh, C // nh).transpose(1, 2)
        q = q.view(B, T, nh, C // nh).transpose(1, 2)
        v = v.view(B, T, nh, C // nh).transpose(1, 2)
        att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        att = att.masked_fill(~mask[:, None, None, :], float("-inf")).softmax(-1)
        x = x + self.mix((att @ v).transpose(1, 2).contiguous().view(B, T, C))
        return x + self.contract(F.leaky_relu(self.expand(self.b(x))))


class KeysFirstTagger(nn.Module):
    def __init__(self, cfg: dict[str, int] | None = None) -> None:
        super().__init__()
        cfg = cfg or {"dim": 36, "n_head": 2, "inner": 50, "vocab": 60, "tags": 9, "length": 14}
        self.lookup = nn.Embedding(cfg["vocab"], cfg["dim"])
        self.where = nn.Parameter(torch.zeros(1, cfg["length"], cfg["dim"]))
        for i in range(2):
            self.add_module(f"layer{i}", KeysFirstLayer(cfg))
        self.tags = nn.Linear(cfg["dim"], cfg["tags"])

    def forward(self, batch: Batch) -> Prediction:
        x = self.lookup(batch.src) + self.where[:, : batch.src.shape[1]]
        for i in range(2):
            x = getattr(self, f"layer{i}")(x, batch.mask)
        return Prediction(self.tags(x), x)


# Queries and keys in one layer, values in another with a gate; a norm by hand.
class HandNorm(nn.Module):
    def __init__(self, features: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.a_2, self.b_2, self.eps = nn.Parameter(torch.ones(features)), nn.Parameter(torch.zeros(features)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.a_2 * (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps) + self.b_2


class PairedAttention(nn.Module):
    def __init__(self, size: int, h: int) -> None:
        super().__init__()
        self.h = h
        self.qk, self.vg, self.o = nn.Linear(size, 2 * size), nn.Linear(size, 2 * size), nn.Linear(size, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k = self.qk(x).reshape(b, n, 2, self.h, c // self.h).permute(2, 0, 3, 1, 4)
        v, g = self.vg(x).chunk(2, -1)
        v = v.reshape(b, n, self.h, c // self.h).transpose(1, 2)
        p = torch.einsum("bhid,bhjd->bhij", q, k).div(math.sqrt(c // self.h)).masked_fill(mask, -1e9).softmax(-1)
        y = torch.einsum("bhij,bhjd->bihd", p, v).reshape(b, n, c)
        return self.o(y * torch.sigmoid(g))


class PairedEncoder(nn.Module):
    def __init__(self, vocab: int = 58, size: int = 40, h: int = 5) -> None:
        super().__init__()
        self.emb, self.pe = nn.Embedding(vocab, size), nn.Embedding(16, size)
        self.att = nn.ModuleList([PairedAttention(size, h) for _ in range(2)])
        self.norms = nn.ModuleList([HandNorm(size) for _ in range(5)])
        self.w_1 = nn.ModuleList([nn.Linear(size, 64) for _ in range(2)])
        self.w_2 = nn.ModuleList([nn.Linear(64, size) for _ in range(2)])
        self.project = nn.Linear(size, vocab)

    def forward(self, x: Tensor, pad: Tensor) -> Tensor:
        h = self.emb(x) + self.pe(torch.arange(x.shape[1]))
        for i in range(2):
            h = h + self.att[i](self.norms[2 * i](h), pad[:, None, None])
            h = h + self.w_2[i](F.relu(self.w_1[i](self.norms[2 * i + 1](h))))
        return self.project(self.norms[4](h))


# Attention and feed-forward side by side from one matrix, the feed-forward first; one matrix back.
class SideBySide(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.splits = heads, (hidden, heads * dim_head, heads * dim_head, heads * dim_head)
        self.norm = nn.LayerNorm(dim)
        self.in_proj = nn.Linear(dim, sum(self.splits), bias=False)
        self.q_norm, self.k_norm = nn.LayerNorm(dim_head), nn.LayerNorm(dim_head)
        self.out_proj = nn.Linear(hidden + heads * dim_head, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        mlp, q, k, v = torch.split(self.in_proj(self.norm(x)), self.splits, dim=-1)  # pyright: ignore[reportArgumentType]
        q, k, v = (t.reshape(b, n, self.heads, -1).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v).transpose(1, 2).reshape(b, n, -1)
        return x + self.out_proj(torch.cat((F.gelu(mlp), y), dim=-1))


class SideBySideViT(nn.Module):
    def __init__(self, dim: int = 30, classes: int = 11) -> None:
        super().__init__()
        self.patchify = nn.Linear(4 * 4 * 3, dim)
        self.pos = nn.Parameter(torch.randn(1, 16, dim) * 0.02)
        self.trunk = nn.Sequential(*[SideBySide(dim, 3, 8, 70) for _ in range(3)])
        self.head = nn.Linear(dim, classes)

    def forward(self, img: Tensor) -> Tensor:
        p = img.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(len(img), 16, -1)
        return self.head(self.trunk(self.patchify(p) + self.pos).mean(dim=1))


# Experts choose their tokens; attention has one weight of (3, heads, in, head).
class OneWeightAttention(nn.Module):
    def __init__(self, d: int, h: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, h, d, d // h) * d**-0.5)
        self.w_o = nn.Parameter(torch.randn(h, d // h, d) * d**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = torch.einsum("bnd,thde->tbhne", x, self.w)
        p = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5, -1)
        return torch.einsum("bhne,hed->bnd", p @ v, self.w_o)


class ExpertChoice(nn.Module):
    def __init__(self, d: int, hidden: int, experts: int, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.gate = nn.Linear(d, experts, bias=False)
        self.w1 = nn.Parameter(torch.randn(experts, d, hidden) * d**-0.5)
        self.w2 = nn.Parameter(torch.randn(experts, hidden, d) * hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        scores = self.gate(flat).softmax(-1).t()
        g, chosen = scores.topk(self.capacity, dim=-1)
        y = torch.einsum("ecd,edh->ech", flat[chosen], self.w1)
        y = torch.einsum("ech,ehd->ecd", F.gelu(y), self.w2) * g[..., None]
        return torch.zeros_like(flat).index_add(0, chosen.flatten(), y.flatten(0, 1)).view_as(x)


class ExpertChoiceLM(nn.Module):
    def __init__(self, vocab: int = 62, d: int = 28) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab, d)
        self.blocks = nn.ModuleList()
        for _ in range(2):
            self.blocks.append(
                nn.ModuleDict(
                    {"ln1": nn.LayerNorm(d), "sa": OneWeightAttention(d, 4), "ln2": nn.LayerNorm(d), "moe": ExpertChoice(d, 44, 5, 3)}
                )
            )
        self.ln_f, self.unembedding = nn.LayerNorm(d), nn.Linear(d, vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids)
        for b in self.blocks:
            x = x + b["sa"](b["ln1"](x))  # pyright: ignore[reportIndexIssue]
            x = x + b["moe"](b["ln2"](x))  # pyright: ignore[reportIndexIssue]
        return self.unembedding(self.ln_f(x))


# Mamba 2 in three layers of four, attention with fewer keys in the fourth.
class SSD(nn.Module):
    def __init__(self, d_model: int, d_state: int, headdim: int) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.nheads = 2 * d_model, d_state, 2 * d_model // headdim
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner + 2 * d_state + self.nheads, bias=False)
        channels = self.d_inner + 2 * d_state
        self.conv1d = nn.Conv1d(channels, channels, 4, groups=channels, padding=3)
        self.dt_bias, self.A_log = nn.Parameter(torch.zeros(self.nheads)), nn.Parameter(torch.zeros(self.nheads))
        self.D = nn.Parameter(torch.ones(self.nheads))
        self.norm = nn.RMSNorm(self.d_inner)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        b, n, _ = u.shape
        z, xBC, dt = torch.split(self.in_proj(u), [self.d_inner, self.d_inner + 2 * self.d_state, self.nheads], dim=-1)
        dt = F.softplus(dt + self.dt_bias)
        xBC = F.silu(self.conv1d(xBC.transpose(1, 2))[..., :n].transpose(1, 2))
        x, B, C = torch.split(xBC, [self.d_inner, self.d_state, self.d_state], dim=-1)
        x = x.reshape(b, n, self.nheads, -1)
        state, ys = x.new_zeros(b, self.nheads, x.shape[-1], self.d_state), []
        for t in range(n):
            decay = torch.exp(-dt[:, t] * self.A_log.exp())[..., None, None]
            state = state * decay + (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, None, None, :]
            ys.append(torch.einsum("bhpn,bn->bhp", state, C[:, t]))
        y = torch.stack(ys, 1) + x * self.D[:, None]
        return self.out_proj(self.norm(y.reshape(b, n, -1) * F.silu(z)))


class FewKeys(nn.Module):
    def __init__(self, d: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.hd = heads, kv_heads, d // heads
        self.q_proj = nn.Linear(d, heads * self.hd, bias=False)
        self.kv_proj = nn.Linear(d, 2 * kv_heads * self.hd, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q_proj(x).view(b, n, self.heads, self.hd).transpose(1, 2)
        k, v = self.kv_proj(x).view(b, n, 2, self.kv_heads, self.hd).unbind(2)
        k, v = (t.transpose(1, 2).repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        return self.o_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, n, -1))


class HybridLM(nn.Module):
    def __init__(self, vocab: int = 65, d: int = 24) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, d)
        self.mixers = nn.ModuleList([FewKeys(d, 4, 2) if i == 2 else SSD(d, 10, 8) for i in range(4)])
        self.norms = nn.ModuleList([nn.RMSNorm(d) for _ in range(5)])
        self.lm_head = nn.Linear(d, vocab, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        for norm, mixer in zip(self.norms, self.mixers, strict=False):
            x = x + mixer(norm(x))
        return self.lm_head(self.norms[-1](x))


# The delta rule: a memory of keys and values that is corrected at each step; no softmax.
class DeltaNet(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d, d, bias=False) for _ in range(3))
        self.q_conv1d, self.k_conv1d, self.v_conv1d = (nn.Conv1d(d, d, 3, padding=2, groups=d, bias=False) for _ in range(3))
        self.b_proj, self.o_norm, self.o_proj = nn.Linear(d, heads, bias=False), nn.RMSNorm(d // heads), nn.Linear(d, d, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (
            F.silu(conv(proj(x).mT)[..., :n].mT).view(b, n, self.heads, -1)
            for proj, conv in (
                (self.q_proj, self.q_conv1d),
                (self.k_proj, self.k_conv1d),
                (self.v_proj, self.v_conv1d),
            )
        )
        q, k, beta = F.normalize(q, dim=-1), F.normalize(k, dim=-1), self.b_proj(x).sigmoid()
        S, out = x.new_zeros(b, self.heads, d // self.heads, d // self.heads), []
        for t in range(n):
            error = v[:, t] - torch.einsum("bhkv,bhk->bhv", S, k[:, t])
            S = S + torch.einsum("bhk,bhv->bhkv", k[:, t], error * beta[:, t, :, None])
            out.append(torch.einsum("bhkv,bhk->bhv", S, q[:, t]))
        return self.o_proj(self.o_norm(torch.stack(out, 1)).reshape(b, n, d))


class DeltaLM(nn.Module):
    def __init__(self, vocab: int = 69, d: int = 32) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(vocab, d)
        self.attn = nn.ModuleList([DeltaNet(d, 4) for _ in range(2)])
        self.gate_proj = nn.ModuleList([nn.Linear(d, 54, bias=False) for _ in range(2)])
        self.up_proj = nn.ModuleList([nn.Linear(d, 54, bias=False) for _ in range(2)])
        self.down_proj = nn.ModuleList([nn.Linear(54, d, bias=False) for _ in range(2)])
        self.lm_head = nn.Linear(d, vocab, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings(ids)
        for attn, gate, up, down in zip(self.attn, self.gate_proj, self.up_proj, self.down_proj, strict=True):
            x = x + attn(F.rms_norm(x, x.shape[-1:]))
            y = F.rms_norm(x, x.shape[-1:])
            x = x + down(F.silu(gate(y)) * up(y))
        return self.lm_head(x)


# Universal transformer: one block over and over, halting at each place; encoder told places and steps by sines.
class UniversalEncoder(nn.Module):
    def __init__(self, vocab: int = 57, hidden: int = 30, heads: int = 3, depth: int = 12, steps: int = 4) -> None:
        super().__init__()
        self.heads, self.steps, self.hidden = heads, steps, hidden
        self.embedding = nn.Embedding(vocab, hidden)
        self.query_linear = nn.Linear(hidden, heads * depth, bias=False)
        self.key_linear = nn.Linear(hidden, heads * depth, bias=False)
        self.value_linear = nn.Linear(hidden, heads * depth, bias=False)
        self.output_linear = nn.Linear(heads * depth, hidden, bias=False)
        self.transition = nn.Sequential(nn.Linear(hidden, 75), nn.ReLU(), nn.Linear(75, hidden))
        self.layer_norm_mha, self.layer_norm_ffn = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.p = nn.Linear(hidden, 1)
        self.W = nn.Linear(hidden, 20)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.view(x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads).permute(0, 2, 1, 3)

    def forward(self, story: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(story)
        n = x.shape[1]
        halting, total = torch.zeros(x.shape[:2]), torch.zeros_like(x)
        place = torch.arange(n)[:, None] * 50.0 ** -(torch.arange(self.hidden // 2) / 15)
        for step in range(self.steps):
            x = x + torch.cat((place.sin() + math.sin(step), place.cos() + math.cos(step)), -1)
            p = torch.sigmoid(self.p(x)).squeeze(-1)
            p = torch.minimum(p, 1 - halting)
            y = self.layer_norm_mha(x)
            q, k, v = (
                self._split_heads(self.query_linear(y)),
                self._split_heads(self.key_linear(y)),
                self._split_heads(self.value_linear(y)),
            )
            q *= (q.shape[-1]) ** -0.5
            logits = torch.matmul(q, k.permute(0, 1, 3, 2))
            contexts = torch.matmul(F.softmax(logits, dim=-1), v).permute(0, 2, 1, 3).contiguous().view(x.shape[0], n, -1)
            x = x + self.output_linear(contexts)
            x = x + self.transition(self.layer_norm_ffn(x))
            halting, total = halting + p, total + p[..., None] * x
        return F.softmax(self.W(total.sum(1)), -1), halting


def _experts() -> tuple[tuple[Tensor], dict[str, Tensor]]:
    return (torch.randint(62, (1, 7)),), {}


_TABLE = {"token_embedding"}
STYLES: list[Style] = [
    Style(
        "deberta",
        Deberta,
        lambda: ((torch.randint(1, 72, (2, 6)),), {}),
        {"transformer"},
        {
            "word_embeddings.weight": _TABLE,
            "rel_embeddings.weight": {"position_embedding"},
            "*.self.query_proj.weight": {"query"},
            "*.self.key_proj.weight": {"key"},
            "*.self.value_proj.weight": {"value"},
            "*.self.pos_key_proj.weight": {"key"},
            "*.self.pos_query_proj.weight": {"query"},
            "*.output.dense.weight": {"attn_out"},
            "*.intermediate_dense.weight": {"mlp_up"},
            "*.output_dense.weight": {"mlp_down"},
            "pooler.weight": {"linear", "mlp_up"},
            "classifier.weight": {"classifier"},
        },
        {
            "*.self.query_proj.weight": "q:4x6",
            "*.self.key_proj.weight": "k:4x6",
            "*.self.pos_key_proj.weight": "k:4x6",
            "*.self.pos_query_proj.weight": "q:4x6",
        },
    ),
    Style(
        "keys first, a record in and out",
        KeysFirstTagger,
        lambda: ((Batch(torch.randint(60, (1, 6)), torch.ones(1, 6, dtype=torch.bool)),), {}),
        {"transformer"},
        {
            "lookup.weight": _TABLE,
            "where": {"position_embedding"},
            "layer?.kqv.weight": {"qkv"},
            "layer?.mix.weight": {"attn_out"},
            "layer?.expand.weight": {"mlp_up"},
            "layer?.contract.weight": {"mlp_down"},
            "tags.weight": {"classifier", "lm_head"},
        },
        {"layer?.kqv.weight": "k:4x9|q:4x9|v:4x9"},
    ),
    Style(
        "queries with keys, values with gates",
        PairedEncoder,
        lambda: ((torch.randint(58, (1, 6)), torch.zeros(1, 6, dtype=torch.bool)), {}),
        {"transformer"},
        {
            "emb.weight": _TABLE,
            "pe.weight": {"position_embedding"},
            "att.*.qk.weight": {"qkv"},
            "att.*.vg.weight": {"value", "qkv", "attn_other"},
            "att.*.o.weight": {"attn_out"},
            "w_1.*.weight": {"mlp_up"},
            "w_2.*.weight": {"mlp_down"},
            "norms.*.a_2": {"norm"},
            "project.weight": {"lm_head"},
        },
        {"att.*.qk.weight": "q:5x8|k:5x8"},
    ),
    Style(
        "feed-forward and attention side by side",
        SideBySideViT,
        lambda: ((torch.randn(1, 3, 16, 16),), {}),
        {"transformer"},
        {
            "patchify.weight": {"patch_embedding", "linear"},
            "pos": {"position_embedding"},
            "trunk.*.in_proj.weight": {"qkv"},
            "trunk.*.out_proj.weight": {"attn_out", "mlp_down"},
            "head.weight": {"classifier"},
        },
        {"trunk.*.in_proj.weight": "mlp_up:70|q:3x8|k:3x8|v:3x8"},
    ),
    Style(
        "experts choose, one weight of (3, heads, in, head)",
        ExpertChoiceLM,
        _experts,
        {"transformer"},
        {
            "wte.weight": _TABLE,
            "blocks.*.sa.w": {"qkv"},  # no one axis has the heads of all three
            "blocks.*.sa.w_o": {"attn_out"},
            "blocks.*.moe.gate.weight": {"router"},
            "blocks.*.moe.w1": {"mlp_up"},
            "blocks.*.moe.w2": {"mlp_down"},
            "unembedding.weight": {"lm_head"},
        },
    ),
    Style(
        "mamba 2 with some attention",
        HybridLM,
        lambda: ((torch.randint(65, (1, 6)),), {}),
        {"hybrid"},
        {
            "embed_tokens.weight": _TABLE,
            "mixers.[013].in_proj.weight": {"linear", "mlp_gate_up", "mlp_up"},
            "mixers.[013].conv1d.weight": {"conv_dw"},
            "mixers.[013].out_proj.weight": {"linear", "mlp_down"},
            "mixers.2.q_proj.weight": {"query"},
            "mixers.2.kv_proj.weight": {"qkv"},
            "mixers.2.o_proj.weight": {"attn_out"},
            "lm_head.weight": {"lm_head"},
        },
        {"mixers.2.q_proj.weight": "q:4x6", "mixers.2.kv_proj.weight": "k:2x6|v:2x6"},
    ),
    Style(
        "delta rule",
        DeltaLM,
        lambda: ((torch.randint(69, (1, 5)),), {}),
        {"transformer", "rnn", "hybrid", "unknown"},
        {
            "embeddings.weight": _TABLE,
            "attn.*.q_proj.weight": {"query"},
            "attn.*.k_proj.weight": {"key"},
            "attn.*.v_proj.weight": {"value"},
            "attn.*.?_conv1d.weight": {"conv_dw"},
            "attn.*.b_proj.weight": {"attn_other", "linear"},
            "attn.*.o_proj.weight": {"attn_out"},
            "gate_proj.*.weight": {"mlp_gate"},
            "up_proj.*.weight": {"mlp_up"},
            "down_proj.*.weight": {"mlp_down"},
            "lm_head.weight": {"lm_head"},
        },
    ),
    Style(
        "universal transformer",
        UniversalEncoder,
        lambda: ((torch.randint(57, (1, 6)),), {}),
        {"transformer"},
        {
            "embedding.weight": _TABLE,
            "query_linear.weight": {"query"},
            "key_linear.weight": {"key"},
            "value_linear.weight": {"value"},
            "output_linear.weight": {"attn_out"},
            "transition.0.weight": {"mlp_up"},
            "transition.2.weight": {"mlp_down"},
            "p.weight": {"linear", "classifier", "router"},
            "W.weight": {"classifier", "lm_head"},
        },
        {"query_linear.weight": "q:3x12", "key_linear.weight": "k:3x12"},
    ),
]
