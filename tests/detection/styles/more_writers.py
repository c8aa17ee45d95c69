"""Language models: a latent of keys absorbed, a cache, blocks of two inputs, queries with values before keys, windows, skewed places."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Latent attention as it is served: the weight that makes keys is multiplied into the queries, and experts share one.
class Norm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def rotate(x: Tensor) -> Tensor:
    n, d = x.shape[1], x.shape[-1]
    angle = torch.arange(n)[:, None] * 100.0 ** (-torch.arange(0, d, 2) / d)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


class MLA(nn.Module):
    def __init__(self, dim: int, n_heads: int, q_rank: int, kv_rank: int, nope: int, rope: int, v_dim: int) -> None:
        super().__init__()
        self.n_heads, self.nope, self.rope, self.v_dim, self.kv_rank = n_heads, nope, rope, v_dim, kv_rank
        self.wq_a, self.q_norm = nn.Linear(dim, q_rank, bias=False), Norm(q_rank)
        self.wq_b = nn.Linear(q_rank, n_heads * (nope + rope), bias=False)
        self.wkv_a, self.kv_norm = nn.Linear(dim, kv_rank + rope, bias=False), Norm(kv_rank)
        self.wkv_b = nn.Linear(kv_rank, n_heads * (nope + v_dim), bias=False)
        self.wo = nn.Linear(n_heads * v_dim, dim, bias=False)
        self.softmax_scale = (nope + rope) ** -0.5

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        bsz, seqlen, _ = x.size()
        q = self.wq_b(self.q_norm(self.wq_a(x))).view(bsz, seqlen, self.n_heads, self.nope + self.rope)
        q_nope, q_pe = torch.split(q, [self.nope, self.rope], dim=-1)
        q_pe = rotate(q_pe)
        kv, k_pe = torch.split(self.wkv_a(x), [self.kv_rank, self.rope], dim=-1)
        k_pe = rotate(k_pe.unsqueeze(2)).squeeze(2)
        wkv_b = self.wkv_b.weight.view(self.n_heads, -1, self.kv_rank)
        q_nope = torch.einsum("bshd,hdc->bshc", q_nope, wkv_b[:, : self.nope])
        kv = self.kv_norm(kv)
        scores = torch.einsum("bshc,btc->bsht", q_nope, kv) + torch.einsum("bshr,btr->bsht", q_pe, k_pe)
        scores = (scores * self.softmax_scale + mask.unsqueeze(1)).softmax(dim=-1)
        x = torch.einsum("bshc,hdc->bshd", torch.einsum("bsht,btc->bshc", scores, kv), wkv_b[:, -self.v_dim :])
        return self.wo(x.flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, dim: int, inter_dim: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = (
            nn.Linear(dim, inter_dim, bias=False),
            nn.Linear(inter_dim, dim, bias=False),
            nn.Linear(dim, inter_dim, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class SharedMoE(nn.Module):
    def __init__(self, dim: int, inter_dim: int, n: int, top: int) -> None:
        super().__init__()
        self.top = top
        self.gate, self.bias = nn.Linear(dim, n, bias=False), nn.Parameter(torch.zeros(n), requires_grad=False)
        self.experts = nn.ModuleList([SwiGLU(dim, inter_dim) for _ in range(n)])
        self.shared_experts = SwiGLU(dim, 2 * inter_dim)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(-1, x.shape[-1])
        scores = self.gate(flat).sigmoid()
        indices = torch.topk(scores + self.bias, self.top, dim=-1)[1]
        weights = scores.gather(1, indices)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        y = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            idx, top = torch.where(indices == i)
            if len(idx):
                y = y.index_add(0, idx, expert(flat[idx]) * weights[idx, top, None])
        return (y + self.shared_experts(flat)).view_as(x)


class AbsorbedBlock(nn.Module):
    def __init__(self, layer_id: int, dim: int) -> None:
        super().__init__()
        self.attn = MLA(dim, 4, 18, 14, 8, 6, 7)
        self.ffn = SwiGLU(dim, 54) if layer_id < 1 else SharedMoE(dim, 22, 5, 2)
        self.attn_norm, self.ffn_norm = Norm(dim), Norm(dim)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), mask)
        return x + self.ffn(self.ffn_norm(x))


class AbsorbedLM(nn.Module):
    def __init__(self, vocab: int = 61, dim: int = 30) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList([AbsorbedBlock(i, dim) for i in range(2)])
        self.norm, self.head = Norm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h, n = self.embed(tokens), tokens.shape[1]
        mask = torch.full((n, n), float("-inf")).triu_(1)
        for layer in self.layers:
            h = layer(h, mask)
        return self.head(self.norm(h))


# One linear for few keys, with a cache that is made before it is used.
class KVCache(nn.Module):
    k_cache: Tensor
    v_cache: Tensor

    def __init__(self, shape: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.register_buffer("k_cache", torch.zeros(shape))
        self.register_buffer("v_cache", torch.zeros(shape))

    def update(self, input_pos: Tensor, k_val: Tensor, v_val: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self.k_cache.clone(), self.v_cache.clone()
        k[:, :, input_pos], v[:, :, input_pos] = k_val, v_val
        return k, v


class CachedAttention(nn.Module):
    def __init__(self, dim: int, n_head: int, n_local_heads: int) -> None:
        super().__init__()
        self.n_head, self.n_local_heads, self.head_dim, self.dim = n_head, n_local_heads, dim // n_head, dim
        self.wqkv = nn.Linear(dim, (n_head + 2 * n_local_heads) * self.head_dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)
        self.kv_cache: KVCache | None = None

    def forward(self, x: Tensor, mask: Tensor, input_pos: Tensor) -> Tensor:
        bsz, seqlen, _ = x.shape
        kv_size = self.n_local_heads * self.head_dim
        q, k, v = self.wqkv(x).split([self.dim, kv_size, kv_size], dim=-1)
        q = rotate(q.view(bsz, seqlen, self.n_head, self.head_dim))
        k = rotate(k.view(bsz, seqlen, self.n_local_heads, self.head_dim))
        v = v.view(bsz, seqlen, self.n_local_heads, self.head_dim)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        if self.kv_cache is not None:
            k, v = self.kv_cache.update(input_pos, k, v)
        k = k.repeat_interleave(self.n_head // self.n_local_heads, dim=1)
        v = v.repeat_interleave(self.n_head // self.n_local_heads, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.0)
        return self.wo(y.transpose(1, 2).contiguous().view(bsz, seqlen, self.dim))


class CachedBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention, self.feed_forward = CachedAttention(dim, 6, 2), SwiGLU(dim, 74)
        self.ffn_norm, self.attention_norm = nn.RMSNorm(dim), nn.RMSNorm(dim)

    def forward(self, x: Tensor, input_pos: Tensor, mask: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x), mask, input_pos)
        return h + self.feed_forward(self.ffn_norm(h))


class CachedLM(nn.Module):
    def __init__(self, vocab: int = 67, dim: int = 36) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(CachedBlock(dim) for _ in range(2))
        self.norm, self.output = nn.RMSNorm(dim), nn.Linear(dim, vocab, bias=False)
        self.max_seq_length = -1

    def setup_caches(self, batch: int, length: int) -> None:
        self.max_seq_length = length
        for b in self.layers:
            b.attention.kv_cache = KVCache((batch, 2, length, 6))  # pyright: ignore
        self.causal_mask = torch.tril(torch.ones(length, length, dtype=torch.bool))

    def forward(self, idx: Tensor, input_pos: Tensor | None = None) -> Tensor:
        if input_pos is None:
            input_pos = torch.arange(idx.shape[1])
        n = max(self.max_seq_length, idx.shape[1])
        mask = torch.tril(torch.ones(n, n, dtype=torch.bool))[None, None, input_pos]
        x = self.tok_embeddings(idx)
        for layer in self.layers:
            x = layer(x, input_pos, mask)
        return self.output(self.norm(x))


# One head of keys and values for all queries; the gate is in the second half.
class OneKeyAttention(nn.Module):
    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim_head * heads, bias=False)
        self.to_k, self.to_v = nn.Linear(dim, dim_head, bias=False), nn.Linear(dim, dim_head, bias=False)
        self.rel_pos = nn.Embedding(9, heads)
        self.to_out = nn.Linear(dim_head * heads, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.to_q(x).reshape(b, n, self.heads, -1).transpose(1, 2)
        k, v = self.to_k(x), self.to_v(x)
        dots = torch.einsum("b h i d, b j d -> b h i j", q, k) * q.shape[-1] ** -0.5
        where = (torch.arange(n)[:, None] - torch.arange(n)[None]).clamp(0, 8)
        dots = dots + self.rel_pos(where).permute(2, 0, 1)
        dots = dots.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.finfo(dots.dtype).max)
        out = torch.einsum("b h i j, b j d -> b h i d", dots.softmax(dim=-1), v)
        return self.to_out(out.transpose(1, 2).reshape(b, n, -1))


class GLU(nn.Module):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.act, self.proj = nn.SiLU(), nn.Linear(dim_in, dim_out * 2)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * self.act(gate)


class AttentionLayers(nn.Module):
    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([])
        for kind in ("a", "f") * depth:
            layer = OneKeyAttention(dim, 7, 5) if kind == "a" else nn.Sequential(GLU(dim, 58), nn.Dropout(0.0), nn.Linear(58, dim))
            self.layers.append(nn.ModuleList([nn.ModuleList([nn.LayerNorm(dim), None, None]), layer]))  # pyright: ignore[reportArgumentType]
        self.final_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        for norms, layer in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = x + layer(norms[0](x))
        return self.final_norm(x)


class Wrapper(nn.Module):
    def __init__(self, num_tokens: int = 59, dim: int = 32) -> None:
        super().__init__()
        self.token_emb, self.attn_layers = nn.Embedding(num_tokens, dim), AttentionLayers(dim, 2)
        self.to_logits = nn.Linear(dim, num_tokens, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.to_logits(self.attn_layers(self.token_emb(x)))


# Queries, values, keys: in four groups, each of them the heads of one machine.
class QVKAttention(nn.Module):
    def __init__(self, n_embd: int, n_head: int, mp_num: int) -> None:
        super().__init__()
        self.num_attention_heads, self.head_dim, self.mp_num = n_head, n_embd // n_head, mp_num
        self.qkv_proj = nn.Linear(n_embd, n_embd * 3, bias=False)
        self.out_proj = nn.Linear(n_embd, n_embd, bias=False)

    def _split_heads(self, x: Tensor, n_head: int, dim_head: int, mp_num: int) -> Tensor:
        reshaped = x.reshape((*x.shape[:-1], n_head // mp_num, dim_head))
        return reshaped.reshape((*x.shape[:-2], -1, *reshaped.shape[-1:]))

    def forward(self, hidden_states: Tensor) -> Tensor:
        qkv = self.qkv_proj(hidden_states)
        qkv_split = qkv.reshape((*qkv.shape[:-1], self.mp_num, -1))
        local_dim = self.head_dim * self.num_attention_heads // self.mp_num
        query, value, key = torch.split(qkv_split, local_dim, dim=-1)
        query = self._split_heads(query, self.num_attention_heads, self.head_dim, self.mp_num)
        key = self._split_heads(key, self.num_attention_heads, self.head_dim, self.mp_num)
        value = self._split_heads(value, self.num_attention_heads, self.head_dim, self.mp_num).permute(0, 2, 1, 3)
        query, key = rotate(query).permute(0, 2, 1, 3), rotate(key).permute(0, 2, 1, 3)
        w = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.head_dim)
        n = w.shape[-1]
        w = torch.where(torch.ones(n, n, dtype=torch.bool).tril(), w, torch.finfo(w.dtype).min)
        out = torch.matmul(F.softmax(w, dim=-1), value).permute(0, 2, 1, 3).contiguous()
        return self.out_proj(out.view(hidden_states.shape))


class QVKBlock(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(n_embd), QVKAttention(n_embd, 8, 4)
        self.mlp = nn.ModuleDict({"fc_in": nn.Linear(n_embd, 100), "fc_out": nn.Linear(100, n_embd)})

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln_1(x)
        return self.attn(h) + self.mlp["fc_out"](F.gelu(self.mlp["fc_in"](h), approximate="tanh")) + x


class QVKLM(nn.Module):
    def __init__(self, vocab: int = 71, n_embd: int = 48) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab, n_embd),
                "h": nn.ModuleList([QVKBlock(n_embd) for _ in range(2)]),
                "ln_f": nn.LayerNorm(n_embd),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.transformer["wte"](input_ids)
        for block in self.transformer["h"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


# A tutorial's translator: one small linear for all heads of the values, one for those of the keys, one for the queries.
class TutorialAttention(nn.Module):
    def __init__(self, embed_size: int, heads: int) -> None:
        super().__init__()
        self.embed_size, self.heads, self.head_dim = embed_size, heads, embed_size // heads
        self.values, self.keys, self.queries = (nn.Linear(self.head_dim, self.head_dim, bias=False) for _ in range(3))
        self.fc_out = nn.Linear(heads * self.head_dim, embed_size)

    def forward(self, values: Tensor, keys: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        N, value_len, key_len, query_len = query.shape[0], values.shape[1], keys.shape[1], query.shape[1]
        values = self.values(values.reshape(N, value_len, self.heads, self.head_dim))
        keys = self.keys(keys.reshape(N, key_len, self.heads, self.head_dim))
        queries = self.queries(query.reshape(N, query_len, self.heads, self.head_dim))
        energy = torch.einsum("nqhd,nkhd->nhqk", [queries, keys]).masked_fill(mask == 0, float("-1e20"))
        attention = torch.softmax(energy / (self.embed_size ** (1 / 2)), dim=3)
        out = torch.einsum("nhql,nlhd->nqhd", [attention, values]).reshape(N, query_len, self.heads * self.head_dim)
        return self.fc_out(out)


class TutorialBlock(nn.Module):
    def __init__(self, embed_size: int, heads: int) -> None:
        super().__init__()
        self.attention = TutorialAttention(embed_size, heads)
        self.norm1, self.norm2 = nn.LayerNorm(embed_size), nn.LayerNorm(embed_size)
        self.feed_forward = nn.Sequential(nn.Linear(embed_size, 3 * embed_size), nn.ReLU(), nn.Linear(3 * embed_size, embed_size))

    def forward(self, value: Tensor, key: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(self.attention(value, key, query, mask) + query)
        return self.norm2(self.feed_forward(x) + x)


class TutorialDecoderBlock(nn.Module):
    def __init__(self, embed_size: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(embed_size), TutorialAttention(embed_size, heads)
        self.transformer_block = TutorialBlock(embed_size, heads)

    def forward(self, x: Tensor, value: Tensor, key: Tensor, src_mask: Tensor, trg_mask: Tensor) -> Tensor:
        return self.transformer_block(value, key, self.norm(self.attention(x, x, x, trg_mask) + x), src_mask)


class TutorialTranslator(nn.Module):
    def __init__(self, src_vocab: int = 53, trg_vocab: int = 47, embed_size: int = 40, heads: int = 5) -> None:
        super().__init__()
        self.src_word, self.src_pos = nn.Embedding(src_vocab, embed_size), nn.Embedding(11, embed_size)
        self.trg_word, self.trg_pos = nn.Embedding(trg_vocab, embed_size), nn.Embedding(11, embed_size)
        self.encoder = nn.ModuleList([TutorialBlock(embed_size, heads) for _ in range(2)])
        self.decoder = nn.ModuleList([TutorialDecoderBlock(embed_size, heads) for _ in range(2)])
        self.fc_out = nn.Linear(embed_size, trg_vocab)

    def forward(self, src: Tensor, trg: Tensor) -> Tensor:
        src_mask = (src != 0)[:, None, None]
        trg_mask = torch.tril(torch.ones(trg.shape[1], trg.shape[1]))[None, None]
        e = self.src_word(src) + self.src_pos(torch.arange(src.shape[1]))
        for layer in self.encoder:
            e = layer(e, e, e, src_mask)
        x = self.trg_word(trg) + self.trg_pos(torch.arange(trg.shape[1]))
        for layer in self.decoder:
            x = layer(x, e, e, src_mask, trg_mask)
        return self.fc_out(x)


# A lecture's language model: each head a module.
class Head(nn.Module):
    tril: Tensor

    def __init__(self, n_embd: int, head_size: int, block_size: int) -> None:
        super().__init__()
        self.key, self.query, self.value = (nn.Linear(n_embd, head_size, bias=False) for _ in range(3))
        self.register_buffer("tril", torch.tril(torch.ones(block_size, block_size)))

    def forward(self, x: Tensor) -> Tensor:
        _, T, _ = x.shape
        k, q = self.key(x), self.query(x)
        wei = q @ k.transpose(-2, -1) * k.shape[-1] ** -0.5
        wei = F.softmax(wei.masked_fill(self.tril[:T, :T] == 0, float("-inf")), dim=-1)
        return wei @ self.value(x)


class MultiHead(nn.Module):
    def __init__(self, n_embd: int, num_heads: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList([Head(n_embd, n_embd // num_heads, 10) for _ in range(num_heads)])
        self.proj = nn.Linear(n_embd, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.cat([h(x) for h in self.heads], dim=-1))


class LectureBlock(nn.Module):
    def __init__(self, n_embd: int, n_head: int) -> None:
        super().__init__()
        self.sa, self.ln1, self.ln2 = MultiHead(n_embd, n_head), nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.ffwd = nn.Sequential(nn.Linear(n_embd, 4 * n_embd), nn.ReLU(), nn.Linear(4 * n_embd, n_embd), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.sa(self.ln1(x))
        return x + self.ffwd(self.ln2(x))


class LectureLM(nn.Module):
    def __init__(self, vocab_size: int = 65, n_embd: int = 27) -> None:
        super().__init__()
        self.token_embedding_table, self.position_embedding_table = nn.Embedding(vocab_size, n_embd), nn.Embedding(10, n_embd)
        self.blocks = nn.Sequential(*[LectureBlock(n_embd, n_head=3) for _ in range(2)])
        self.ln_f, self.lm_head = nn.LayerNorm(n_embd), nn.Linear(n_embd, vocab_size)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.token_embedding_table(idx) + self.position_embedding_table(torch.arange(idx.shape[1]))
        logits = self.lm_head(self.ln_f(self.blocks(x)))
        if targets is None:
            return logits, None
        return logits, F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


# Music: places relative to the query by a skewed product; the feed-forward layers have no class of their own.
class SkewedAttention(nn.Module):
    def __init__(self, h: int, d: int, max_seq: int) -> None:
        super().__init__()
        self.h, self.dh, self.max_seq = h, d // h, max_seq
        self.Wq, self.Wk, self.Wv = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)
        self.fc, self.E = nn.Linear(d, d), nn.Parameter(torch.randn(max_seq, d // h))

    def forward(self, x: list[Tensor], mask: Tensor) -> Tensor:
        q, k, v = x
        q = torch.reshape(self.Wq(q), (q.size(0), q.size(1), self.h, -1)).permute(0, 2, 1, 3)
        k = torch.reshape(self.Wk(k), (k.size(0), k.size(1), self.h, -1)).permute(0, 2, 1, 3)
        v = torch.reshape(self.Wv(v), (v.size(0), v.size(1), self.h, -1)).permute(0, 2, 1, 3)
        n = q.size(2)
        qe = torch.einsum("bhld,md->bhlm", q, self.E[max(0, self.max_seq - n) :])
        srel = F.pad(qe, (1, 0)).reshape(q.size(0), self.h, n + 1, n)[:, :, 1:]
        logits = (torch.matmul(q, k.permute(0, 1, 3, 2)) + srel) / math.sqrt(self.dh)
        out = torch.matmul(F.softmax(logits + mask * -1e9, -1), v).permute(0, 2, 1, 3)
        return self.fc(torch.reshape(out, (out.size(0), -1, self.h * self.dh)))


class SkewedLayer(nn.Module):
    def __init__(self, d: int, h: int, max_seq: int) -> None:
        super().__init__()
        self.rga = SkewedAttention(h, d, max_seq)
        self.FFN_pre, self.FFN_suf = nn.Linear(d, d // 2), nn.Linear(d // 2, d)
        self.layernorm1, self.layernorm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        out1 = self.layernorm1(self.rga([x, x, x], mask) + x)
        return self.layernorm2(out1 + self.FFN_suf(F.relu(self.FFN_pre(out1))))


class SkewedMusic(nn.Module):
    def __init__(self, vocab: int = 77, d: int = 36, max_seq: int = 12) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab, d)
        self.enc_layers = nn.ModuleList([SkewedLayer(d, 4, max_seq) for _ in range(2)])
        self.fc = nn.Linear(d, vocab)

    def forward(self, x: Tensor) -> Tensor:
        h, n = self.embedding(x) * math.sqrt(self.embedding.embedding_dim), x.shape[1]
        mask = torch.ones(n, n).triu(1)
        for layer in self.enc_layers:
            h = layer(h, mask)
        return self.fc(h)


# Gated halves without names, one fused layer with few keys, the output layer inside the dictionary.
class SequentialBlock(nn.Module):
    def __init__(self, d: int, n_heads: int, n_kv: int, hidden: int) -> None:
        super().__init__()
        hd = d // n_heads
        self.n_heads, self.n_kv, self.hd, self.fused_dims = n_heads, n_kv, hd, (d, n_kv * hd, n_kv * hd)
        self.attn_norm, self.ff_norm = nn.LayerNorm(d, bias=False), nn.LayerNorm(d, bias=False)
        self.att_proj, self.attn_out = nn.Linear(d, sum(self.fused_dims), bias=False), nn.Linear(d, d, bias=False)
        self.ff_proj, self.ff_out = nn.Linear(d, hidden, bias=False), nn.Linear(hidden // 2, d, bias=False)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        B, T, C = q.size()
        q = q.view(B, T, self.n_heads, self.hd).transpose(1, 2)
        k = k.view(B, T, self.n_kv, self.hd).transpose(1, 2)
        v = v.view(B, T, self.n_kv, self.hd).transpose(1, 2)
        if self.n_kv != self.n_heads:
            k = k.repeat_interleave(self.n_heads // self.n_kv, dim=1, output_size=self.n_heads)
            v = v.repeat_interleave(self.n_heads // self.n_kv, dim=1, output_size=self.n_heads)
        att = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.attn_out(att.transpose(1, 2).contiguous().view(B, T, C))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.att_proj(self.attn_norm(x)).split(self.fused_dims, dim=-1)
        x = x + self.attention(q, k, v)
        y, gate = self.ff_proj(self.ff_norm(x)).chunk(2, dim=-1)
        return x + self.ff_out(F.silu(gate) * y)


class DictionaryLM(nn.Module):
    def __init__(self, vocab: int = 63, d: int = 42) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(vocab + 1, d), "emb_drop": nn.Dropout(0.0), "ln_f": nn.LayerNorm(d)})
        self.transformer.update({"blocks": nn.ModuleList([SequentialBlock(d, 6, 3, 92) for _ in range(2)])})
        self.transformer.update({"wpe": nn.Embedding(13, d), "ff_out": nn.Linear(d, vocab + 1, bias=False)})

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.transformer["wte"](input_ids) + self.transformer["wpe"](torch.arange(input_ids.shape[1]))
        for block in self.transformer["blocks"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = block(x)
        return self.transformer["ff_out"](self.transformer["ln_f"](x))


# Retention: products of queries and keys that fade, without softmax.
class Retention(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads, self.key_dim = heads, d // heads
        self.q_proj, self.k_proj = nn.Linear(d, d, bias=False), nn.Linear(d, d, bias=False)
        self.v_proj, self.g_proj = nn.Linear(d, 2 * d, bias=False), nn.Linear(d, 2 * d, bias=False)
        self.out_proj, self.group_norm = nn.Linear(2 * d, d, bias=False), nn.LayerNorm(2 * d // heads, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (p(x).view(b, n, self.heads, -1).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        decay = torch.log(1 - 2.0 ** (-3 - torch.arange(self.heads)))
        lag = torch.arange(n)[:, None] - torch.arange(n)[None]
        mask = torch.exp(decay[:, None, None] * lag).tril()
        y = (q @ (k * self.key_dim**-0.5).transpose(-1, -2) * mask) @ v
        y = self.group_norm(y.transpose(1, 2)).reshape(b, n, -1)
        return self.out_proj(F.silu(self.g_proj(x)) * y)


class RetNet(nn.Module):
    def __init__(self, vocab: int = 55, d: int = 24) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, d)
        self.retention = nn.ModuleList([Retention(d, 3) for _ in range(2)])
        self.norms = nn.ModuleList([nn.RMSNorm(d) for _ in range(4)])
        self.fc1 = nn.ModuleList([nn.Linear(d, 38, bias=False) for _ in range(2)])
        self.gate = nn.ModuleList([nn.Linear(d, 38, bias=False) for _ in range(2)])
        self.fc2 = nn.ModuleList([nn.Linear(38, d, bias=False) for _ in range(2)])
        self.output_projection = nn.Linear(d, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed_tokens(tokens)
        for i, (ret, up, gate, down) in enumerate(zip(self.retention, self.fc1, self.gate, self.fc2, strict=True)):
            x = x + ret(self.norms[2 * i](x))
            y = self.norms[2 * i + 1](x)
            x = x + down(F.gelu(up(y)) * gate(y))
        return self.output_projection(x)


def _ids(vocab: int, length: int = 7) -> Any:
    return lambda: ((torch.randint(1, vocab, (1, length)),), {})


STYLES: list[Style] = [
    Style(
        "latent attention, keys absorbed",
        AbsorbedLM,
        _ids(61),
        {"transformer"},
        {
            "embed.weight": {"token_embedding"},
            "*.wq_a.weight": {"query", "linear", "attn_other", "lora_a"},
            "*.wq_b.weight": {"query"},
            "*.wkv_a.weight": {"qkv", "key", "value", "linear", "attn_other"},
            "*.wkv_b.weight": {"qkv"},
            "*.wo.weight": {"attn_out"},
            "*.ffn.gate.weight": {"router"},
            "*.w1.weight": {"mlp_gate"},
            "*.w2.weight": {"mlp_down"},
            "*.w3.weight": {"mlp_up"},
            "head.weight": {"lm_head"},
        },
        {"*.wq_b.weight": "q:4x14", "*.wkv_b.weight": "4*(k:1x8|v:1x7)"},
    ),
    Style(
        "one fused layer and a cache made later",
        CachedLM,
        _ids(67),
        {"transformer"},
        {
            "tok_embeddings.weight": {"token_embedding"},
            "*.wqkv.weight": {"qkv"},
            "*.wo.weight": {"attn_out"},
            "*.w1.weight": {"mlp_gate"},
            "*.w2.weight": {"mlp_down"},
            "*.w3.weight": {"mlp_up"},
            "output.weight": {"lm_head"},
        },
        {"*.wqkv.weight": "q:6x6|k:2x6|v:2x6"},
    ),
    Style(
        "one head of keys, gate in the second half",
        Wrapper,
        _ids(59),
        {"transformer"},
        {
            "token_emb.weight": {"token_embedding"},
            "*.to_q.weight": {"query"},
            "*.to_k.weight": {"key"},
            "*.to_v.weight": {"value"},
            "*.to_out.weight": {"attn_out"},
            "*.rel_pos.weight": {"position_embedding", "attn_other"},
            "*.1.0.proj.weight": {"mlp_gate_up"},
            "*.1.2.weight": {"mlp_down"},
            "to_logits.weight": {"lm_head"},
        },
        {"*.to_q.weight": "q:5x7", "*.to_k.weight": "k:1x7"},
    ),
    Style(
        "queries, values, keys in four groups",
        QVKLM,
        _ids(71),
        {"transformer"},
        {
            "*.wte.weight": {"token_embedding"},
            "*.qkv_proj.weight": {"qkv"},
            "*.out_proj.weight": {"attn_out"},
            "*.fc_in.weight": {"mlp_up"},
            "*.fc_out.weight": {"mlp_down"},
            "lm_head.weight": {"lm_head"},
        },
        {"*.qkv_proj.weight": "4*(q:2x6|v:2x6|k:2x6)"},
    ),
    Style(
        "one small linear for all heads",
        TutorialTranslator,
        lambda: ((torch.randint(1, 53, (1, 6)), torch.randint(1, 47, (1, 5))), {}),
        {"transformer"},
        {
            "*_word.weight": {"token_embedding"},
            "*_pos.weight": {"position_embedding"},
            "*.attention.values.weight": {"value"},
            "*.attention.keys.weight": {"key"},
            "*.attention.queries.weight": {"query"},
            "*.attention.fc_out.weight": {"attn_out"},
            "*.feed_forward.0.weight": {"mlp_up"},
            "*.feed_forward.2.weight": {"mlp_down"},
            "fc_out.weight": {"lm_head"},
        },
        {"*.attention.keys.weight": "k:1x8", "*.attention.queries.weight": "q:1x8"},
    ),
    Style(
        "each head a module",
        LectureLM,
        _ids(65),
        {"transformer"},
        {
            "token_embedding_table.weight": {"token_embedding"},
            "position_embedding_table.weight": {"position_embedding"},
            "*.key.weight": {"key"},
            "*.query.weight": {"query"},
            "*.value.weight": {"value"},
            "*.sa.proj.weight": {"attn_out"},
            "*.ffwd.0.weight": {"mlp_up"},
            "*.ffwd.2.weight": {"mlp_down"},
            "lm_head.weight": {"lm_head"},
        },
        {"*.key.weight": "k:1x9", "*.query.weight": "q:1x9"},
    ),
    Style(
        "skewed places for music",
        SkewedMusic,
        _ids(77),
        {"transformer"},
        {
            "embedding.weight": {"token_embedding"},
            "*.Wq.weight": {"query"},
            "*.Wk.weight": {"key"},
            "*.Wv.weight": {"value"},
            "*.rga.fc.weight": {"attn_out"},
            "*.rga.E": {"position_embedding", "attn_other"},
            "*.FFN_pre.weight": {"mlp_up"},
            "*.FFN_suf.weight": {"mlp_down"},
            "fc.weight": {"lm_head"},
        },
        {"*.Wq.weight": "q:4x9", "*.Wk.weight": "k:4x9"},
    ),
    Style(
        "the output layer is in the dictionary",
        DictionaryLM,
        _ids(63),
        {"transformer"},
        {
            "transformer.wte.weight": {"token_embedding"},
            "transformer.wpe.weight": {"position_embedding"},
            "*.att_proj.weight": {"qkv"},
            "*.attn_out.weight": {"attn_out"},
            "*.ff_proj.weight": {"mlp_gate_up"},
            "*.blocks.*.ff_out.weight": {"mlp_down"},
            "transformer.ff_out.weight": {"lm_head"},
        },
        {"*.att_proj.weight": "q:6x7|k:3x7|v:3x7"},
    ),
    Style(
        "retention",
        RetNet,
        _ids(55),
        {"transformer", "rnn", "hybrid"},
        {
            "embed_tokens.weight": {"token_embedding"},
            "*.q_proj.weight": {"query"},
            "*.k_proj.weight": {"key"},
            "*.v_proj.weight": {"value"},
            "*.g_proj.weight": {"attn_other", "linear", "mlp_gate"},
            "*.out_proj.weight": {"attn_out"},
            "fc1.*.weight": {"mlp_up", "mlp_gate"},
            "gate.*.weight": {"mlp_gate", "mlp_up"},
            "fc2.*.weight": {"mlp_down"},
            "output_projection.weight": {"lm_head"},
        },
    ),
]
