"""Speech, series, routes, proteins and points: weights shared by attentions, landmarks, variables as tokens, heads in 3-D weights."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Speech: weights of attention are made once and used by two attentions that have only values.
class AttentionWeights(nn.Module):
    def __init__(self, embed_dim: int, pos_dim: int, num_heads: int, query_head_dim: int, pos_head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.query_head_dim, self.pos_head_dim = num_heads, query_head_dim, pos_head_dim
        self.in_proj = nn.Linear(embed_dim, (2 * query_head_dim + pos_head_dim) * num_heads)
        self.linear_pos = nn.Linear(pos_dim, num_heads * pos_head_dim, bias=False)

    def forward(self, x: Tensor, pos_emb: Tensor) -> Tensor:
        x = self.in_proj(x)
        seq_len, batch_size, _ = x.shape
        query_dim = self.query_head_dim * self.num_heads
        q = x[..., 0:query_dim].reshape(seq_len, batch_size, self.num_heads, self.query_head_dim).permute(2, 1, 0, 3)
        k = x[..., query_dim : 2 * query_dim].reshape(seq_len, batch_size, self.num_heads, self.query_head_dim).permute(2, 1, 3, 0)
        p = x[..., 2 * query_dim :].reshape(seq_len, batch_size, self.num_heads, self.pos_head_dim).permute(2, 1, 0, 3)
        attn_scores = torch.matmul(q, k)
        pos = self.linear_pos(pos_emb).reshape(1, 2 * seq_len - 1, self.num_heads, self.pos_head_dim).permute(2, 0, 3, 1)
        pos_scores = torch.matmul(p, pos)
        pos_scores = pos_scores.as_strided(
            (self.num_heads, batch_size, seq_len, seq_len),
            (pos_scores.stride(0), pos_scores.stride(1), pos_scores.stride(2) - pos_scores.stride(3), pos_scores.stride(3)),
            storage_offset=pos_scores.stride(3) * (seq_len - 1),
        )
        return (attn_scores + pos_scores).softmax(dim=-1)


class ValueAttention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int, value_head_dim: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(embed_dim, num_heads * value_head_dim), nn.Linear(num_heads * value_head_dim, embed_dim)

    def forward(self, x: Tensor, attn_weights: Tensor) -> Tensor:
        seq_len, batch_size, _ = x.shape
        num_heads = attn_weights.shape[0]
        x = self.in_proj(x).reshape(seq_len, batch_size, num_heads, -1).permute(2, 1, 0, 3)
        x = torch.matmul(attn_weights, x).permute(2, 1, 0, 3).contiguous()
        return self.out_proj(x.view(seq_len, batch_size, -1))


class FeedforwardModule(nn.Module):
    def __init__(self, embed_dim: int, feedforward_dim: int) -> None:
        super().__init__()
        self.in_proj, self.out_proj = nn.Linear(embed_dim, feedforward_dim), nn.Linear(feedforward_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.in_proj(x)
        return self.out_proj(F.softplus(x - 1) - 0.08 * x)


class SpeechLayer(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.self_attn_weights = AttentionWeights(d, 10, 4, 6, 3)
        self.self_attn1, self.self_attn2 = ValueAttention(d, 4, 5), ValueAttention(d, 4, 5)
        self.feed_forward1, self.feed_forward2 = FeedforwardModule(d, 44), FeedforwardModule(d, 58)
        self.pointwise_conv1, self.pointwise_conv2 = nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.depthwise_conv, self.bypass_scale = nn.Conv1d(d, d, 5, padding=2, groups=d), nn.Parameter(torch.full((d,), 0.5))

    def forward(self, src: Tensor, pos_emb: Tensor) -> Tensor:
        orig = src
        w = self.self_attn_weights(src, pos_emb)
        src = src + self.feed_forward1(src)
        src = src + self.self_attn1(src, w)
        x, s = self.pointwise_conv1(src).chunk(2, dim=2)
        x = self.depthwise_conv((x * s.sigmoid()).permute(1, 2, 0)).permute(2, 0, 1)
        src = src + self.pointwise_conv2(F.silu(x))
        src = src + self.self_attn2(src, w)
        src = src + self.feed_forward2(src)
        return orig + (src - orig) * self.bypass_scale


class SharedWeightsSpeech(nn.Module):
    def __init__(self, d: int = 26, vocab: int = 31) -> None:
        super().__init__()
        self.embed_conv = nn.Sequential(nn.Conv2d(1, 8, 3, (1, 2), 1), nn.SiLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.SiLU())
        self.embed_out = nn.Linear(12 * 4, d)
        self.layers = nn.ModuleList([SpeechLayer(d) for _ in range(2)])
        self.ctc_output = nn.Linear(d, vocab)

    def forward(self, fbank: Tensor) -> Tensor:
        x = self.embed_conv(fbank.unsqueeze(1))
        b, c, t, f = x.shape
        x = self.embed_out(x.transpose(1, 2).reshape(b, t, c * f)).permute(1, 0, 2)
        where = torch.arange(-(t - 1), t)[:, None] * torch.exp(-torch.arange(5) / 2.0)
        pos = torch.cat([where.cos(), where.atan()], -1)[None]
        for layer in self.layers:
            x = layer(x, pos)
        return self.ctc_output(x).log_softmax(-1).permute(1, 0, 2)


# Means of neighbours are landmarks, and an inverse is found by iteration.
def inverse(x: Tensor, iters: int = 4) -> Tensor:
    z = x.mT / (x.abs().sum(-1).max() * x.abs().sum(-2).max())
    eye = torch.eye(x.shape[-1])
    for _ in range(iters):
        xz = x @ z
        z = 0.25 * z @ (13 * eye - xz @ (15 * eye - xz @ (7 * eye - xz)))
    return z


class LandmarkAttention(nn.Module):
    def __init__(self, dim: int, dim_head: int, heads: int, landmarks: int) -> None:
        super().__init__()
        self.heads, self.scale, self.landmarks, inner = heads, dim_head**-0.5, landmarks, heads * dim_head
        self.to_qkv, self.to_out = nn.Linear(dim, inner * 3, bias=False), nn.Sequential(nn.Linear(inner, dim), nn.Dropout(0.0))
        self.res_conv = nn.Conv2d(heads, heads, (3, 1), padding=(1, 0), groups=heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        q, k, v = (t.reshape(b, n, self.heads, -1).permute(0, 2, 1, 3) for t in (q, k, v))
        q = q * self.scale
        ql = q.reshape(b, self.heads, self.landmarks, n // self.landmarks, -1).sum(dim=3) / (n // self.landmarks)
        kl = k.reshape(b, self.heads, self.landmarks, n // self.landmarks, -1).sum(dim=3) / (n // self.landmarks)
        eq = "... i d, ... j d -> ... i j"
        a1, a2, a3 = (torch.einsum(eq, s, t).softmax(dim=-1) for s, t in ((q, kl), (ql, kl), (ql, k)))
        out = (a1 @ inverse(a2)) @ (a3 @ v) + self.res_conv(v)
        return self.to_out(out.permute(0, 2, 1, 3).reshape(b, n, -1))


class Landmarks(nn.Module):
    def __init__(self, vocab: int = 51, dim: int = 30, classes: int = 4) -> None:
        super().__init__()
        self.embed, self.pos = nn.Embedding(vocab, dim), nn.Embedding(8, dim)
        self.layers = nn.ModuleList([])
        for _ in range(2):
            ff = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
            self.layers.append(nn.ModuleList([nn.Sequential(nn.LayerNorm(dim), LandmarkAttention(dim, 8, 3, 4)), ff]))
        self.out = nn.Linear(dim, classes)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.pos.weight
        for attn, ff in self.layers:  # pyright: ignore
            x = attn(x) + x
            x = ff(x) + x
        return self.out(x.mean(1))


# Each variable of a series is a token; its past is embedded by one linear.
class SeriesAttentionLayer(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.query_projection, self.key_projection = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.value_projection, self.out_projection = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.n_heads = n_heads

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        B, L, _ = queries.shape
        _, S, _ = keys.shape
        H = self.n_heads
        queries = self.query_projection(queries).view(B, L, H, -1)
        keys = self.key_projection(keys).view(B, S, H, -1)
        values = self.value_projection(values).view(B, S, H, -1)
        scores = torch.einsum("blhe,bshe->bhls", queries, keys)
        A = torch.softmax(1.0 / math.sqrt(queries.shape[-1]) * scores, dim=-1)
        out = torch.einsum("bhls,bshd->blhd", A, values).contiguous().view(B, L, -1)
        return self.out_projection(out), A


class SeriesEncoderLayer(nn.Module):
    def __init__(self, attention: nn.Module, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.attention = attention
        self.conv1, self.conv2 = nn.Conv1d(d_model, d_ff, kernel_size=1), nn.Conv1d(d_ff, d_model, kernel_size=1)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        new_x, attn = self.attention(x, x, x)
        y = x = self.norm1(x + new_x)
        y = self.conv2(F.gelu(self.conv1(y.transpose(-1, 1)))).transpose(-1, 1)
        return self.norm2(x + y), attn


class VariablesAsTokens(nn.Module):
    def __init__(self, seq_len: int = 24, pred_len: int = 10, d_model: int = 36) -> None:
        super().__init__()
        self.enc_embedding = nn.ModuleDict({"value_embedding": nn.Linear(seq_len, d_model)})
        self.encoder = nn.ModuleList([SeriesEncoderLayer(SeriesAttentionLayer(d_model, 4), d_model, 50) for _ in range(2)])
        self.norm, self.projector = nn.LayerNorm(d_model), nn.Linear(d_model, pred_len)

    def forward(self, x_enc: Tensor, x_mark_enc: Tensor) -> Tensor:
        means = x_enc.mean(1, keepdim=True).detach()
        stdev = torch.sqrt(torch.var(x_enc, dim=1, keepdim=True, unbiased=False) + 1e-5)
        x = torch.cat([((x_enc - means) / stdev).permute(0, 2, 1), x_mark_enc.permute(0, 2, 1)], 1)
        x = self.enc_embedding["value_embedding"](x)
        for layer in self.encoder:
            x, _ = layer(x)
        out = self.projector(self.norm(x)).permute(0, 2, 1)[:, :, : x_enc.shape[2]]
        return out * stdev + means


# The old way: weights of (heads, model, head), queries repeated and multiplied in a batch.
class BatchedHeads(nn.Module):
    def __init__(self, n_head: int, d_model: int, d_k: int, d_v: int) -> None:
        super().__init__()
        self.n_head, self.d_k, self.d_v = n_head, d_k, d_v
        self.w_qs, self.w_ks = nn.Parameter(torch.empty(n_head, d_model, d_k)), nn.Parameter(torch.empty(n_head, d_model, d_k))
        self.w_vs = nn.Parameter(torch.empty(n_head, d_model, d_v))
        self.proj, self.layer_norm = nn.Linear(n_head * d_v, d_model), nn.LayerNorm(d_model)
        for w in (self.w_qs, self.w_ks, self.w_vs):
            nn.init.xavier_normal_(w)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        n_head, residual = self.n_head, q
        mb_size, len_q, d_model = q.size()
        len_k = k.size(1)
        q_s = q.repeat(n_head, 1, 1).view(n_head, -1, d_model)
        k_s = k.repeat(n_head, 1, 1).view(n_head, -1, d_model)
        v_s = v.repeat(n_head, 1, 1).view(n_head, -1, d_model)
        q_s = torch.bmm(q_s, self.w_qs).view(-1, len_q, self.d_k)
        k_s = torch.bmm(k_s, self.w_ks).view(-1, len_k, self.d_k)
        v_s = torch.bmm(v_s, self.w_vs).view(-1, len_k, self.d_v)
        attn = torch.softmax(torch.bmm(q_s, k_s.transpose(1, 2)) / d_model**0.5, dim=-1)
        outputs = torch.cat(torch.split(torch.bmm(attn, v_s), mb_size, dim=0), dim=-1)
        return self.layer_norm(self.proj(outputs) + residual)


class BatchedHeadsTranslator(nn.Module):
    def __init__(self, src: int = 57, tgt: int = 43, d: int = 30) -> None:
        super().__init__()
        self.src_word_emb, self.tgt_word_emb = nn.Embedding(src, d, padding_idx=0), nn.Embedding(tgt, d, padding_idx=0)
        self.position_enc = nn.Embedding(9, d)
        self.slf_attn, self.dec_slf_attn, self.enc_attn = (BatchedHeads(5, d, 6, 7) for _ in range(3))
        self.w_1, self.w_2 = nn.ModuleList([nn.Conv1d(d, 48, 1) for _ in "ed"]), nn.ModuleList([nn.Conv1d(48, d, 1) for _ in "ed"])
        self.tgt_word_proj = nn.Linear(d, tgt, bias=False)

    def ffn(self, i: int, x: Tensor) -> Tensor:
        return x + self.w_2[i](F.relu(self.w_1[i](x.transpose(1, 2)))).transpose(2, 1)

    def forward(self, src_seq: Tensor, tgt_seq: Tensor) -> Tensor:
        e = self.src_word_emb(src_seq) + self.position_enc(torch.arange(src_seq.shape[1]))
        e = self.ffn(0, self.slf_attn(e, e, e))
        d = self.tgt_word_emb(tgt_seq) + self.position_enc(torch.arange(tgt_seq.shape[1]))
        d = self.dec_slf_attn(d, d, d)
        d = self.ffn(1, self.enc_attn(d, e, e))
        seq_logit = self.tgt_word_proj(d)
        return seq_logit.view(-1, seq_logit.size(2))


# Routes: attention among places, weights of (heads, in, head), normalised in batches, then chosen one by one.
class PlaceAttention(nn.Module):
    def __init__(self, n_heads: int, embed_dim: int) -> None:
        super().__init__()
        self.n_heads, self.key_dim = n_heads, embed_dim // n_heads
        self.W_query = nn.Parameter(torch.empty(n_heads, embed_dim, self.key_dim).uniform_(-0.2, 0.2))
        self.W_key = nn.Parameter(torch.empty(n_heads, embed_dim, self.key_dim).uniform_(-0.2, 0.2))
        self.W_val = nn.Parameter(torch.empty(n_heads, embed_dim, self.key_dim).uniform_(-0.2, 0.2))
        self.W_out = nn.Parameter(torch.empty(n_heads, self.key_dim, embed_dim).uniform_(-0.2, 0.2))

    def forward(self, h: Tensor) -> Tensor:
        batch_size, graph_size, input_dim = h.size()
        hflat, shp = h.contiguous().view(-1, input_dim), (self.n_heads, batch_size, graph_size, -1)
        Q = torch.matmul(hflat, self.W_query).view(shp)
        K = torch.matmul(hflat, self.W_key).view(shp)
        V = torch.matmul(hflat, self.W_val).view(shp)
        attn = torch.softmax(torch.matmul(Q, K.transpose(2, 3)) / math.sqrt(self.key_dim), dim=-1)
        heads = torch.matmul(attn, V)
        out = torch.mm(heads.permute(1, 2, 0, 3).contiguous().view(-1, input_dim), self.W_out.view(-1, input_dim))
        return out.view(batch_size, graph_size, input_dim)


class Skip(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return x + self.module(x)


class TokenBatchNorm(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.normalizer = nn.BatchNorm1d(d)

    def forward(self, x: Tensor) -> Tensor:
        return self.normalizer(x.view(-1, x.size(-1))).view(x.size())


class Router(nn.Module):
    def __init__(self, d: int = 32, hidden: int = 54) -> None:
        super().__init__()
        self.init_embed = nn.Linear(2, d)
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [Skip(PlaceAttention(4, d)), TokenBatchNorm(d)]
            layers += [Skip(nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, d))), TokenBatchNorm(d)]
        self.embedder = nn.Sequential(*layers)
        self.W_placeholder = nn.Parameter(torch.randn(d))
        self.project_step_context, self.project_logit_key = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)

    def forward(self, places: Tensor) -> tuple[Tensor, Tensor]:
        e = self.embedder(self.init_embed(places))
        keys, q, ll = self.project_logit_key(e), e.mean(1) + self.W_placeholder, []
        mask, tour = torch.zeros(e.shape[:2], dtype=torch.bool), []
        for _ in range(places.shape[1]):
            logits = 10 * torch.tanh(torch.einsum("bd,bnd->bn", q, keys) / math.sqrt(e.shape[-1]))
            p = logits.masked_fill(mask, -math.inf).log_softmax(-1)
            at = p.argmax(-1, keepdim=True)
            mask, last = mask.scatter(1, at, True), e.gather(1, at[..., None].expand(-1, -1, e.shape[-1]))[:, 0]
            ll.append(p.gather(1, at))
            tour.append(at)
            q = e.mean(1) + self.project_step_context(last)
        return torch.cat(ll, 1).sum(1), torch.cat(tour, 1)


# Proteins: time first, heads beside the batch, contacts from all maps of attention.
class ProteinAttention(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.scaling = num_heads, embed_dim // num_heads, (embed_dim // num_heads) ** -0.5
        self.k_proj, self.v_proj, self.q_proj = (
            nn.Linear(embed_dim, embed_dim),
            nn.Linear(embed_dim, embed_dim),
            nn.Linear(embed_dim, embed_dim),
        )
        self.out_proj = nn.Linear(embed_dim, embed_dim)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        tgt_len, bsz, embed_dim = query.size()
        q, k, v = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        q = q * self.scaling
        q = q.contiguous().view(tgt_len, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        k = k.contiguous().view(-1, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        v = v.contiguous().view(-1, bsz * self.num_heads, self.head_dim).transpose(0, 1)
        t = torch.arange(tgt_len)[:, None] * torch.tensor([1.0, 0.2, 0.04]).repeat(2)
        q, k = (x * t.cos() + torch.cat((-x[..., 3:], x[..., :3]), -1) * t.sin() for x in (q, k))
        weights = F.softmax(torch.bmm(q, k.transpose(1, 2)), dim=-1)
        attn = torch.bmm(weights, v).transpose(0, 1).contiguous().view(tgt_len, bsz, embed_dim)
        return self.out_proj(attn), weights.view(bsz, self.num_heads, tgt_len, -1)


class ProteinLayer(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.self_attn, self.self_attn_layer_norm = ProteinAttention(d, heads), nn.LayerNorm(d)
        self.fc1, self.fc2, self.final_layer_norm = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), nn.LayerNorm(d)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        residual, x = x, self.self_attn_layer_norm(x)
        x, attn = self.self_attn(x, x, x)
        x = residual + x
        return x + self.fc2(F.gelu(self.fc1(self.final_layer_norm(x)))), attn


class Proteins(nn.Module):
    def __init__(self, alphabet: int = 33, d: int = 24) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(alphabet, d, padding_idx=1)
        self.layers = nn.ModuleList([ProteinLayer(d, 4) for _ in range(2)])
        self.contact_head = nn.Linear(8, 1)
        self.emb_layer_norm_after = nn.LayerNorm(d)
        self.dense, self.layer_norm = nn.Linear(d, d), nn.LayerNorm(d)
        self.weight, self.bias = self.embed_tokens.weight, nn.Parameter(torch.zeros(alphabet))

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x, maps = self.embed_tokens(tokens).transpose(0, 1), []
        for layer in self.layers:
            x, attn = layer(x)
            maps.append(attn)
        x = self.emb_layer_norm_after(x).transpose(0, 1)
        a = torch.cat(maps, 1)
        contacts = self.contact_head((a + a.mT).permute(0, 2, 3, 1)).sigmoid().squeeze(-1)
        return {"logits": F.linear(self.layer_norm(F.gelu(self.dense(x))), self.weight) + self.bias, "contacts": contacts}


# Aligned proteins: one map of attention for all rows, and a map for each column.
class AlignedAttention(nn.Module):
    def __init__(self, d: int, heads: int, rows: bool) -> None:
        super().__init__()
        self.heads, self.rows = heads, rows
        self.k_proj, self.v_proj, self.q_proj, self.out_proj = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        R, C, B, D = x.shape
        q = self.q_proj(x).view(R, C, B, self.heads, D // self.heads) * (D // self.heads) ** -0.5
        k = self.k_proj(x).view(R, C, B, self.heads, D // self.heads)
        v = self.v_proj(x).view(R, C, B, self.heads, D // self.heads)
        if self.rows:
            p = torch.einsum("rinhd,rjnhd->hnij", q / math.sqrt(R), k).softmax(-1)
            y = torch.einsum("hnij,rjnhd->rinhd", p, v)
        else:
            p = torch.einsum("icnhd,jcnhd->hcnij", q, k).softmax(-1)
            y = torch.einsum("hcnij,jcnhd->icnhd", p, v)
        return self.out_proj(y.contiguous().view(R, C, B, D))


class Residue(nn.Module):
    def __init__(self, layer: nn.Module, d: int) -> None:
        super().__init__()
        self.layer, self.layer_norm = layer, nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layer(self.layer_norm(x))


class Aligned(nn.Module):
    def __init__(self, alphabet: int = 29, d: int = 28) -> None:
        super().__init__()
        self.embed_tokens, self.embed_positions = nn.Embedding(alphabet, d), nn.Embedding(9, d)
        self.layers = nn.ModuleList()
        for _ in range(2):
            ffn = nn.Sequential(nn.Linear(d, 46), nn.GELU(), nn.Linear(46, d))
            self.layers.append(
                nn.ModuleDict(
                    {
                        "row_self_attention": Residue(AlignedAttention(d, 4, True), d),
                        "column_self_attention": Residue(AlignedAttention(d, 4, False), d),
                        "feed_forward_layer": Residue(ffn, d),
                    }
                )
            )
        self.lm_head = nn.Linear(d, alphabet)

    def forward(self, tokens: Tensor) -> Tensor:
        x = (self.embed_tokens(tokens) + self.embed_positions(torch.arange(tokens.shape[2]))).permute(1, 2, 0, 3)
        for layer in self.layers:
            x = layer["row_self_attention"](x)  # pyright: ignore
            x = layer["feed_forward_layer"](layer["column_self_attention"](x))  # pyright: ignore
        return self.lm_head(x.permute(2, 0, 1, 3))


# Clouds of points: attention whose output is taken from its input, over channels first.
class OffsetAttention(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q_conv, self.k_conv = nn.Conv1d(channels, channels // 4, 1, bias=False), nn.Conv1d(channels, channels // 4, 1, bias=False)
        self.v_conv, self.trans_conv, self.after_norm = (
            nn.Conv1d(channels, channels, 1),
            nn.Conv1d(channels, channels, 1),
            nn.BatchNorm1d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        x_q = self.q_conv(x).permute(0, 2, 1)
        attention = torch.softmax(torch.bmm(x_q, self.k_conv(x)), -1)
        attention = attention / (1e-9 + attention.sum(dim=1, keepdim=True))
        x_r = torch.bmm(self.v_conv(x), attention)
        return x + F.relu(self.after_norm(self.trans_conv(x - x_r)))


class Cloud(nn.Module):
    def __init__(self, c: int = 36, classes: int = 10) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv1d(3, c, 1, bias=False), nn.BatchNorm1d(c)
        self.conv2, self.bn2 = nn.Conv1d(c, c, 1, bias=False), nn.BatchNorm1d(c)
        self.sa1, self.sa2 = OffsetAttention(c), OffsetAttention(c)
        self.conv_fuse = nn.Sequential(nn.Conv1d(2 * c, 50, 1, bias=False), nn.BatchNorm1d(50), nn.LeakyReLU(0.2))
        self.linear1, self.bn6, self.linear2 = nn.Linear(50, 26), nn.BatchNorm1d(26), nn.Linear(26, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x1 = self.sa1(x)
        x2 = self.sa2(x1)
        x = torch.max(self.conv_fuse(torch.cat((x1, x2), dim=1)), 2)[0]
        return self.linear2(F.relu(self.bn6(self.linear1(x))))


_HEAD = {"classifier", "lm_head"}
_LINEAR = {"linear", "mlp_up", "mlp_down"}


def _call(*args: Any) -> Any:
    return lambda: (args, {})


STYLES: list[Style] = [
    Style(
        "weights of attention used twice",
        SharedWeightsSpeech,
        _call(torch.randn(1, 12, 16)),
        {"transformer", "hybrid"},
        {
            "embed_conv.0.weight": {"first_conv"},
            "embed_conv.2.weight": {"conv"},
            "embed_out.weight": {"linear", "patch_embedding"},
            "*.self_attn_weights.in_proj.weight": {"qkv"},
            "*.self_attn_weights.linear_pos.weight": {"key", "position_embedding", "attn_other", "linear"},
            "*.self_attn?.in_proj.weight": {"value"},
            "*.self_attn?.out_proj.weight": {"attn_out"},
            "*.feed_forward?.in_proj.weight": {"mlp_up"},
            "*.feed_forward?.out_proj.weight": {"mlp_down"},
            "*.depthwise_conv.weight": {"conv_dw"},
            "ctc_output.weight": _HEAD,
        },
        {"*.self_attn_weights.in_proj.weight": "q:4x6|k:4x6|q:4x3"},
    ),
    Style(
        "landmarks",
        Landmarks,
        _call(torch.randint(51, (1, 8))),
        {"transformer"},
        {
            "embed.weight": {"token_embedding"},
            "pos.weight": {"position_embedding"},
            "*.to_qkv.weight": {"qkv"},
            "*.to_out.0.weight": {"attn_out"},
            "*.res_conv.weight": {"conv_dw"},
            "layers.*.1.1.weight": {"mlp_up"},
            "layers.*.1.3.weight": {"mlp_down"},
            "out.weight": {"classifier"},
        },
        {"*.to_qkv.weight": "q:3x8|k:3x8|v:3x8"},
    ),
    Style(
        "variables as tokens",
        VariablesAsTokens,
        _call(torch.randn(1, 24, 5), torch.randn(1, 24, 2)),
        {"transformer"},
        {
            "enc_embedding.value_embedding.weight": {"patch_embedding", "linear"},
            "*.query_projection.weight": {"query"},
            "*.key_projection.weight": {"key"},
            "*.value_projection.weight": {"value"},
            "*.out_projection.weight": {"attn_out"},
            "encoder.*.conv1.weight": {"mlp_up"},
            "encoder.*.conv2.weight": {"mlp_down"},
            "projector.weight": _HEAD | {"linear"},
        },
        {"*.query_projection.weight": "q:4x9", "*.key_projection.weight": "k:4x9"},
    ),
    Style(
        "heads multiplied in a batch",
        BatchedHeadsTranslator,
        _call(torch.randint(1, 57, (2, 5)), torch.randint(1, 43, (2, 4))),
        {"transformer"},
        {
            "*_word_emb.weight": {"token_embedding"},
            "position_enc.weight": {"position_embedding"},
            "*.w_qs": {"query"},
            "*.w_ks": {"key"},
            "*.w_vs": {"value"},
            "*.proj.weight": {"attn_out"},
            "w_1.*.weight": {"mlp_up"},
            "w_2.*.weight": {"mlp_down"},
            "tgt_word_proj.weight": {"lm_head"},
        },
        {"*.w_qs": "q:5x1", "*.w_ks": "k:5x1"},
    ),
    Style(
        "routes",
        Router,
        _call(torch.rand(3, 5, 2)),
        {"transformer"},
        {
            "init_embed.weight": {"linear", "patch_embedding"},
            "*.W_query": {"query"},
            "*.W_key": {"key"},
            "*.W_val": {"value"},
            "*.W_out": {"attn_out"},
            "embedder.*.module.0.weight": {"mlp_up"},
            "embedder.*.module.2.weight": {"mlp_down"},
        },
        {"*.W_query": "q:4x1", "*.W_key": "k:4x1"},
    ),
    Style(
        "proteins and their contacts",
        Proteins,
        _call(torch.randint(2, 33, (2, 6))),
        {"transformer"},
        {
            "weight": {"token_embedding", "lm_head"},
            "*.q_proj.weight": {"query"},
            "*.k_proj.weight": {"key"},
            "*.v_proj.weight": {"value"},
            "*.out_proj.weight": {"attn_out"},
            "*.fc1.weight": {"mlp_up"},
            "*.fc2.weight": {"mlp_down"},
            "dense.weight": {"linear"},
            "contact_head.weight": _HEAD | {"linear"},
        },
        {"*.q_proj.weight": "q:4x6", "*.k_proj.weight": "k:4x6"},
    ),
    Style(
        "one map for all rows",
        Aligned,
        _call(torch.randint(29, (1, 3, 6))),
        {"transformer"},
        {
            "embed_tokens.weight": {"token_embedding"},
            "embed_positions.weight": {"position_embedding"},
            "*.q_proj.weight": {"query"},
            "*.k_proj.weight": {"key"},
            "*.v_proj.weight": {"value"},
            "*.out_proj.weight": {"attn_out"},
            "*.feed_forward_layer.layer.0.weight": {"mlp_up"},
            "*.feed_forward_layer.layer.2.weight": {"mlp_down"},
            "lm_head.weight": {"lm_head"},
        },
        {"*.q_proj.weight": "q:4x7", "*.k_proj.weight": "k:4x7"},
    ),
    Style(
        "what attention leaves of a cloud",
        Cloud,
        _call(torch.randn(2, 3, 12)),
        {"transformer", "hybrid", "cnn"},
        {
            "conv1.weight": {"first_conv", "conv", "linear", "patch_embedding", "mlp_up"},
            "sa?.q_conv.weight": {"query", "key"},  # its softmax is over keys, and its sum over queries
            "sa?.k_conv.weight": {"query", "key"},
            "sa?.v_conv.weight": {"value"},
            "linear1.weight": _LINEAR,
            "linear2.weight": {"classifier"},
        },
    ),
]
