"""Language models as forks write them: speed runs, groups, compressed keys, two streams, one flat class, a linear for each head."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


def rotate(x: Tensor) -> Tensor:
    """Rotary places over the second axis from the end."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] * 100.0 ** -(torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1)


# A speed run: values mixed with a table of their own, squared relu, skips from the first half to the second, a cap on the logits.
class SpeedAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.n_head, self.head_dim = num_heads, dim // num_heads
        self.c_q, self.c_k, self.c_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.c_proj = nn.Linear(dim, dim, bias=False)
        self.c_proj.weight.data.zero_()
        self.lamb = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor, vi: Tensor) -> Tensor:
        B, T = x.size(0), x.size(1)
        q = self.c_q(x).view(B, T, self.n_head, self.head_dim)
        k = self.c_k(x).view(B, T, self.n_head, self.head_dim)
        v = self.c_v(x).view(B, T, self.n_head, self.head_dim)
        v = (1 - self.lamb) * v + self.lamb * vi.view_as(v)
        q, k = F.rms_norm(q, (q.size(-1),)), F.rms_norm(k, (k.size(-1),))
        q, k = rotate(q.transpose(1, 2)), rotate(k.transpose(1, 2))
        y = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view_as(x))


class SpeedMLP(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.relu(self.c_fc(x)).square())


class SpeedBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attn, self.mlp = SpeedAttention(dim, num_heads), SpeedMLP(dim)
        self.lambdas = nn.Parameter(torch.tensor([1.0, 0.0]))

    def forward(self, x: Tensor, vi: Tensor, x0: Tensor) -> Tensor:
        x = self.lambdas[0] * x + self.lambdas[1] * x0
        x = x + self.attn(F.rms_norm(x, (x.size(-1),)), vi)
        return x + self.mlp(F.rms_norm(x, (x.size(-1),)))


class SpeedGPT(nn.Module):
    def __init__(self, vocab: int = 83, dim: int = 30, layers: int = 4) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab, dim),
                "vte": nn.Embedding(vocab, dim * layers),
                "h": nn.ModuleList([SpeedBlock(dim, 3) for _ in range(layers)]),
            }
        )
        self.skip_weights = nn.Parameter(torch.ones(layers // 2))
        self.lm_head = nn.Linear(dim, vocab, bias=False)

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        x = x0 = F.rms_norm(self.transformer["wte"](idx), (30,))
        vs = self.transformer["vte"](idx).chunk(4, dim=-1)
        skips: list[Tensor] = []
        for i, block in enumerate(self.transformer["h"]):  # pyright: ignore[reportArgumentType]
            if i >= 2:
                x = x + self.skip_weights[i - 2] * skips.pop()
            x = block(x, vs[i], x0)
            if i < 2:
                skips.append(x)
        logits = 30 * torch.tanh(self.lm_head(F.rms_norm(x, (30,))) / 30)
        return F.cross_entropy(logits.view(-1, logits.size(-1)).float(), targets.view(-1))


# CTRL: Wq, Wk, Wv and a dense, the feed-forward in a Sequential made by a function, a mask that forward wants.
def point_wise_feed_forward_network(d_model_size: int, dff: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(d_model_size, dff), nn.ReLU(), nn.Linear(dff, d_model_size))


def scaled_dot_product(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    matmul_qk = torch.matmul(q, k.permute(0, 1, 3, 2)) / math.sqrt(k.shape[-1])
    nd, ns = matmul_qk.size(-2), matmul_qk.size(-1)
    matmul_qk += mask[ns - nd : ns, :ns] * -1e4
    return torch.matmul(torch.softmax(matmul_qk, dim=-1), v)


class CtrlAttention(nn.Module):
    def __init__(self, d_model_size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.d_model_size = num_heads, d_model_size
        self.depth = int(d_model_size / num_heads)
        self.Wq, self.Wk, self.Wv = (nn.Linear(d_model_size, d_model_size) for _ in range(3))
        self.dense = nn.Linear(d_model_size, d_model_size)

    def split_into_heads(self, x: Tensor, batch_size: int) -> Tensor:
        return x.reshape(batch_size, -1, self.num_heads, self.depth).permute([0, 2, 1, 3])

    def forward(self, v: Tensor, k: Tensor, q: Tensor, mask: Tensor, layer_past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        batch_size = q.shape[0]
        q, k, v = self.Wq(q), self.Wk(k), self.Wv(v)
        q, k, v = (self.split_into_heads(t, batch_size) for t in (q, k, v))
        if layer_past is not None:
            k, v = torch.cat((layer_past[0], k), dim=-2), torch.cat((layer_past[1], v), dim=-2)
        out = scaled_dot_product(q, k, v, mask).permute([0, 2, 1, 3])
        return self.dense(out.reshape(batch_size, -1, self.d_model_size)), torch.stack((k, v))


class CtrlLayer(nn.Module):
    def __init__(self, d_model_size: int, num_heads: int, dff: int) -> None:
        super().__init__()
        self.multi_head_attention = CtrlAttention(d_model_size, num_heads)
        self.ffn = point_wise_feed_forward_network(d_model_size, dff)
        self.layernorm1, self.layernorm2 = nn.LayerNorm(d_model_size, eps=1e-6), nn.LayerNorm(d_model_size, eps=1e-6)

    def forward(self, x: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        normed = self.layernorm1(x)
        a, present = self.multi_head_attention(normed, normed, normed, mask, past)
        out1 = x + a
        return out1 + self.ffn(self.layernorm2(out1)), present


class Ctrl(nn.Module):
    def __init__(self, vocab: int = 77, n_embd: int = 40, dff: int = 56) -> None:
        super().__init__()
        self.d_model_size = n_embd
        self.w = nn.Embedding(vocab, n_embd)
        self.h = nn.ModuleList([CtrlLayer(n_embd, 4, dff) for _ in range(2)])
        self.layernorm = nn.LayerNorm(n_embd)
        self.lm_head = nn.Linear(n_embd, vocab, bias=True)
        self.lm_head.weight = self.w.weight

    def forward(self, input_ids: Tensor, past: list[tuple[Tensor, Tensor]] | None = None) -> tuple[Tensor, list[Tensor]]:
        n = input_ids.shape[-1]
        place = torch.arange(n)[:, None] * 100.0 ** -(torch.arange(self.d_model_size // 2) / 20)
        x = self.w(input_ids) * math.sqrt(self.d_model_size) + torch.cat((place.sin(), place.cos()), -1)
        mask, presents = torch.triu(torch.ones(n, n), 1), []
        for h, p in zip(self.h, past or [None] * len(self.h), strict=True):
            x, present = h(x, mask, p)
            presents.append(present)
        return self.lm_head(self.layernorm(x)), presents


# Lit-GPT: queries of a group, then its key, then its value, for each group.
class GroupedAttention(nn.Module):
    def __init__(self, n_embd: int, n_head: int, n_query_groups: int, head_size: int) -> None:
        super().__init__()
        self.n_head, self.n_query_groups, self.head_size = n_head, n_query_groups, head_size
        self.attn = nn.Linear(n_embd, (n_head + 2 * n_query_groups) * head_size)
        self.proj = nn.Linear(n_head * head_size, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        B, T, _ = x.size()
        q_per_kv = self.n_head // self.n_query_groups
        qkv = self.attn(x).view(B, T, self.n_query_groups, q_per_kv + 2, self.head_size).permute(0, 2, 3, 1, 4)
        q, k, v = qkv.split((q_per_kv, 1, 1), dim=2)
        k, v = (t.expand(B, self.n_query_groups, q_per_kv, T, self.head_size).reshape(B, -1, T, self.head_size) for t in (k, v))
        q = q.reshape(B, -1, T, self.head_size)
        y = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(B, T, self.n_head * self.head_size))


class LitMLP(nn.Module):
    def __init__(self, n_embd: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc_1, self.fc_2 = nn.Linear(n_embd, intermediate_size), nn.Linear(n_embd, intermediate_size)
        self.proj = nn.Linear(intermediate_size, n_embd)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.silu(self.fc_1(x)) * self.fc_2(x))


class LitBlock(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.norm_1, self.attn = nn.LayerNorm(n_embd), GroupedAttention(n_embd, 6, 2, 10)
        self.norm_2, self.mlp = nn.LayerNorm(n_embd), LitMLP(n_embd, 52)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm_1(x)) + x
        return self.mlp(self.norm_2(x)) + x


class LitGPT(nn.Module):
    def __init__(self, n_embd: int = 36, vocab: int = 90) -> None:
        super().__init__()
        self.lm_head = nn.Linear(n_embd, vocab, bias=False)
        self.transformer = nn.ModuleDict({"wte": nn.Embedding(vocab, n_embd), "h": nn.ModuleList([LitBlock(n_embd) for _ in range(2)])})
        self.transformer["ln_f"] = nn.LayerNorm(n_embd)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.transformer["wte"](idx)
        for block in self.transformer["h"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = block(x)
        return self.lm_head(self.transformer["ln_f"](x))


# Latent attention with all parts in layers of their own: down, up, and the rotated part of query and key beside.
class LatentAttention(nn.Module):
    def __init__(self, dim: int, n_heads: int, nope: int, rope: int, q_rank: int, kv_rank: int) -> None:
        super().__init__()
        self.n_heads, self.nope, self.rope = n_heads, nope, rope
        self.W_DQ, self.W_UQ, self.W_QR = (
            nn.Linear(dim, q_rank, bias=False),
            nn.Linear(q_rank, n_heads * nope, bias=False),
            nn.Linear(q_rank, n_heads * rope, bias=False),
        )
        self.W_DKV, self.W_KR = nn.Linear(dim, kv_rank, bias=False), nn.Linear(dim, rope, bias=False)
        self.W_UK, self.W_UV = nn.Linear(kv_rank, n_heads * nope, bias=False), nn.Linear(kv_rank, n_heads * nope, bias=False)
        self.W_O = nn.Linear(n_heads * nope, dim, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        b, n, _ = h.shape
        c_q, c_kv = self.W_DQ(h), self.W_DKV(h)
        q_c = self.W_UQ(c_q).view(b, n, self.n_heads, self.nope).transpose(1, 2)
        q_r = rotate(self.W_QR(c_q).view(b, n, self.n_heads, self.rope).transpose(1, 2))
        k_c = self.W_UK(c_kv).view(b, n, self.n_heads, self.nope).transpose(1, 2)
        k_r = rotate(self.W_KR(h).unsqueeze(1)).expand(-1, self.n_heads, -1, -1)
        v = self.W_UV(c_kv).view(b, n, self.n_heads, self.nope).transpose(1, 2)
        scores = torch.cat([q_c, q_r], -1) @ torch.cat([k_c, k_r], -1).transpose(-1, -2) / math.sqrt(self.nope + self.rope)
        scores = scores + torch.full((n, n), -math.inf).triu(1)
        return self.W_O((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class LatentLM(nn.Module):
    def __init__(self, dim: int = 34, vocab: int = 70) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList()
        for _ in range(2):
            layer = nn.Module()
            layer.attn_norm, layer.attn = nn.RMSNorm(dim), LatentAttention(dim, 3, 8, 6, 20, 14)
            layer.ffn_norm, layer.up, layer.gate, layer.down = nn.RMSNorm(dim), nn.Linear(dim, 60), nn.Linear(dim, 60), nn.Linear(60, dim)
            self.layers.append(layer)
        self.norm, self.out = nn.RMSNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.tok_emb(tokens)
        for l in self.layers:  # noqa: E741
            h = h + l.attn(l.attn_norm(h))  # pyright: ignore[reportCallIssue]
            y = l.ffn_norm(h)  # pyright: ignore[reportCallIssue]
            h = h + l.down(F.silu(l.gate(y)) * l.up(y))  # pyright: ignore[reportCallIssue]
        return self.out(self.norm(h))


# XLNet: weights of (in, heads, head), relative places by a weight of their own, time first.
class RelativeAttention(nn.Module):
    def __init__(self, d_model: int, n_head: int, d_head: int) -> None:
        super().__init__()
        self.scale = 1 / d_head**0.5
        self.q, self.k, self.v, self.o, self.r = (nn.Parameter(torch.randn(d_model, n_head, d_head) * 0.1) for _ in range(5))
        self.r_r_bias, self.r_w_bias = nn.Parameter(torch.zeros(n_head, d_head)), nn.Parameter(torch.zeros(n_head, d_head))
        self.layer_norm = nn.LayerNorm(d_model)

    @staticmethod
    def rel_shift_bnij(x: Tensor, klen: int) -> Tensor:
        s = x.shape
        x = x.reshape(s[0], s[1], s[3], s[2])[:, :, 1:, :]
        return x.reshape(s[0], s[1], s[2], s[3] - 1)[..., :klen]

    def forward(self, h: Tensor, r: Tensor) -> Tensor:
        q_head_h = torch.einsum("ibh,hnd->ibnd", h, self.q)
        k_head_h = torch.einsum("ibh,hnd->ibnd", h, self.k)
        v_head_h = torch.einsum("ibh,hnd->ibnd", h, self.v)
        k_head_r = torch.einsum("ibh,hnd->ibnd", r, self.r)
        ac = torch.einsum("ibnd,jbnd->bnij", q_head_h + self.r_w_bias, k_head_h)
        bd = self.rel_shift_bnij(torch.einsum("ibnd,jbnd->bnij", q_head_h + self.r_r_bias, k_head_r), klen=ac.shape[3])
        attn_prob = F.softmax((ac + bd) * self.scale, dim=3)
        attn_vec = torch.einsum("bnij,jbnd->ibnd", attn_prob, v_head_h)
        return self.layer_norm(torch.einsum("ibnd,hnd->ibh", attn_vec, self.o) + h)


class XLNetFeedForward(nn.Module):
    def __init__(self, d_model: int, d_inner: int) -> None:
        super().__init__()
        self.layer_norm, self.layer_1, self.layer_2 = nn.LayerNorm(d_model), nn.Linear(d_model, d_inner), nn.Linear(d_inner, d_model)

    def forward(self, inp: Tensor) -> Tensor:
        return self.layer_norm(self.layer_2(F.gelu(self.layer_1(inp))) + inp)


class XLNet(nn.Module):
    def __init__(self, d_model: int = 32, vocab: int = 75) -> None:
        super().__init__()
        self.d_model = d_model
        self.word_embedding = nn.Embedding(vocab, d_model)
        self.layer = nn.ModuleList([nn.ModuleList([RelativeAttention(d_model, 4, 7), XLNetFeedForward(d_model, 50)]) for _ in range(2)])
        self.lm_loss = nn.Linear(d_model, vocab)
        self.lm_loss.weight = self.word_embedding.weight

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        output_h = self.word_embedding(input_ids.transpose(0, 1))
        n, b = output_h.shape[:2]
        angle = torch.arange(n, -n, -1)[:, None] * 100.0 ** -(torch.arange(16) / 16)
        pos_emb = torch.cat([angle.sin(), angle.cos()], -1)[:, None].expand(-1, b, -1)
        for rel_attn, ff in self.layer:  # pyright: ignore[reportGeneralTypeIssues]
            output_h = ff(rel_attn(output_h, pos_emb))
        return {"logits": self.lm_loss(output_h).transpose(0, 1)}


# FLASH: one gated unit for attention and feed-forward; queries and keys are one projection, scaled and shifted; squared relu.
class OffsetScale(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.ones(heads, dim)), nn.Parameter(torch.zeros(heads, dim))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (torch.einsum("...d,hd->...hd", x, self.gamma) + self.beta).unbind(dim=-2)


class GAU(nn.Module):
    def __init__(self, dim: int, query_key_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.to_hidden = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU())
        self.to_qk = nn.Sequential(nn.Linear(dim, query_key_dim), nn.SiLU())
        self.offsetscale = OffsetScale(query_key_dim, heads=2)
        self.to_out = nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        seq_len, normed_x = x.shape[-2], self.norm(x)
        v, gate = self.to_hidden(normed_x).chunk(2, dim=-1)
        q, k = self.offsetscale(self.to_qk(normed_x))
        A = F.relu(torch.einsum("bid,bjd->bij", q, k) / seq_len) ** 2
        A = A.masked_fill(torch.ones(seq_len, seq_len, dtype=torch.bool).triu(1), 0.0)
        return self.to_out(torch.einsum("bij,bjd->bid", A, v) * gate) + x


class FlashTransformer(nn.Module):
    def __init__(self, num_tokens: int = 68, dim: int = 28) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.layers = nn.ModuleList([GAU(dim, 12) for _ in range(3)])
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_tokens))

    def forward(self, x: Tensor) -> Tensor:
        x = self.token_emb(x)
        for flash in self.layers:
            x = flash(x)
        return self.to_logits(x)


# All in one class with letters for names, (in, out), heads cut by a view, softmax by exp and sum.
class G(nn.Module):
    def __init__(self, V: int = 66, C: int = 35, H: int = 5, L: int = 2, N: int = 12) -> None:
        super().__init__()
        self.H, self.L = H, L
        p = lambda *s: nn.Parameter(torch.randn(*s) / s[0] ** 0.5)  # noqa: E731
        self.E, self.P = p(V, C), p(N, C)
        for i in range(L):
            for n, s in (("q", (C, C)), ("k", (C, C)), ("v", (C, C)), ("o", (C, C)), ("u", (C, 90)), ("d", (90, C))):
                setattr(self, f"{n}{i}", p(*s))
        self.g = nn.Parameter(torch.ones(2 * L, C))

    def forward(self, t: Tensor) -> Tensor:
        B, T = t.shape
        x = self.E[t] + self.P[:T]
        for i in range(self.L):
            q, k, v, o, u, d = (getattr(self, f"{n}{i}") for n in "qkvoud")
            y = x / x.pow(2).mean(-1, keepdim=True).sqrt() * self.g[2 * i]
            Q, K, V = ((y @ w).view(B, T, self.H, -1).transpose(1, 2) for w in (q, k, v))
            a = (Q @ K.mT) / Q.shape[-1] ** 0.5 + torch.full((T, T), -1e9).triu(1)
            a = (a - a.max(-1, keepdim=True).values).exp()
            a = a / a.sum(-1, keepdim=True)
            x = x + (a @ V).transpose(1, 2).reshape(B, T, -1) @ o
            y = x / x.pow(2).mean(-1, keepdim=True).sqrt() * self.g[2 * i + 1]
            x = x + F.gelu(y @ u) @ d
        return x @ self.E.T


# A linear for each head of each of query, key and value, in three lists; one linear joins them.
class ListedHeads(nn.Module):
    def __init__(self, emb: int, heads: int, per_head: int) -> None:
        super().__init__()
        self.queries = nn.ModuleList([nn.Linear(emb, per_head) for _ in range(heads)])
        self.keys = nn.ModuleList([nn.Linear(emb, per_head) for _ in range(heads)])
        self.values = nn.ModuleList([nn.Linear(emb, per_head) for _ in range(heads)])
        self.unify = nn.Linear(heads * per_head, emb)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        outs = []
        for to_q, to_k, to_v in zip(self.queries, self.keys, self.values, strict=True):
            w = torch.bmm(to_q(x), to_k(x).transpose(1, 2)) / math.sqrt(to_k.out_features)  # pyright: ignore[reportArgumentType]
            outs.append(torch.bmm(F.softmax(w.masked_fill(mask == 0, -1e9), dim=2), to_v(x)))
        return self.unify(torch.cat(outs, dim=-1))


class ListedBlock(nn.Module):
    def __init__(self, emb: int) -> None:
        super().__init__()
        self.attention = ListedHeads(emb, 3, 9)
        self.norm1, self.norm2 = nn.LayerNorm(emb), nn.LayerNorm(emb)
        self.ff = nn.Sequential(nn.Linear(emb, 4 * emb), nn.ReLU(), nn.Linear(4 * emb, emb))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(self.attention(x, mask) + x)
        return self.norm2(self.ff(x) + x)


class ListedGenerator(nn.Module):
    def __init__(self, num_tokens: int = 64, emb: int = 25, seq_length: int = 11) -> None:
        super().__init__()
        self.token_embedding, self.pos_embedding = nn.Embedding(num_tokens, emb), nn.Embedding(seq_length, emb)
        self.tblocks = nn.ModuleList([ListedBlock(emb) for _ in range(2)])
        self.toprobs = nn.Linear(emb, num_tokens)

    def forward(self, x: Tensor) -> Tensor:
        t = x.shape[1]
        x = self.token_embedding(x) + self.pos_embedding(torch.arange(t))[None]
        mask = torch.tril(torch.ones(t, t))
        for block in self.tblocks:
            x = block(x, mask)
        return F.log_softmax(self.toprobs(x), dim=2)


_QKVO = ({"query"}, {"key"}, {"value"}, {"attn_out"})
STYLES: list[Style] = [
    Style(
        "speed run with a table of values",
        SpeedGPT,
        lambda: ((torch.randint(83, (1, 6)), torch.randint(83, (1, 6))), {}),
        {"transformer"},
        {
            "transformer.wte.weight": {"token_embedding"},
            "transformer.vte.weight": {"token_embedding"},
            **dict(zip(("*.attn.c_q.weight", "*.attn.c_k.weight", "*.attn.c_v.weight", "*.attn.c_proj.weight"), _QKVO, strict=True)),
            "*.mlp.c_fc.weight": {"mlp_up"},
            "*.mlp.c_proj.weight": {"mlp_down"},
            "lm_head.weight": {"lm_head"},
        },
        {"*.c_q.weight": "q:3x10", "*.c_k.weight": "k:3x10"},
    ),
    Style(
        "ctrl",
        Ctrl,
        lambda: ((torch.randint(77, (1, 6)),), {}),
        {"transformer"},
        {
            "w.weight": {"token_embedding", "lm_head"},
            **dict(zip(("*.Wq.weight", "*.Wk.weight", "*.Wv.weight", "*.dense.weight"), _QKVO, strict=True)),
            "*.ffn.0.weight": {"mlp_up"},
            "*.ffn.2.weight": {"mlp_down"},
        },
        {"*.Wq.weight": "q:4x10", "*.Wk.weight": "k:4x10"},
    ),
    Style(
        "lit-gpt, group by group",
        LitGPT,
        lambda: ((torch.randint(90, (1, 6)),), {}),
        {"transformer"},
        {
            "transformer.wte.weight": {"token_embedding"},
            "*.attn.attn.weight": {"qkv"},
            "*.attn.proj.weight": {"attn_out"},
            "*.mlp.fc_1.weight": {"mlp_gate"},
            "*.mlp.fc_2.weight": {"mlp_up"},
            "*.mlp.proj.weight": {"mlp_down"},
            "lm_head.weight": {"lm_head"},
        },
        {"*.attn.attn.weight": "2*(q:3x10|k:1x10|v:1x10)"},
    ),
    Style(
        "latent attention in eight layers",
        LatentLM,
        lambda: ((torch.randint(70, (1, 6)),), {}),
        {"transformer"},
        {
            "tok_emb.weight": {"token_embedding"},
            "*.W_D*.weight": {"linear", "attn_other"},
            "*.W_UQ.weight": {"query"},
            "*.W_QR.weight": {"query"},
            "*.W_UK.weight": {"key"},
            "*.W_KR.weight": {"key"},
            "*.W_UV.weight": {"value"},
            "*.W_O.weight": {"attn_out"},
            "layers.*.up.weight": {"mlp_up"},
            "layers.*.gate.weight": {"mlp_gate"},
            "layers.*.down.weight": {"mlp_down"},
            "out.weight": {"lm_head"},
        },
        {"*.W_UQ.weight": "q:3x8", "*.W_QR.weight": "q:3x6", "*.W_UK.weight": "k:3x8", "*.W_KR.weight": "k:1x6"},
    ),
    Style(
        "xlnet",
        XLNet,
        lambda: ((torch.randint(75, (2, 6)),), {}),
        {"transformer"},
        {
            "word_embedding.weight": {"token_embedding", "lm_head"},
            "layer.*.0.q": {"query"},
            "layer.*.0.k": {"key"},
            "layer.*.0.v": {"value"},
            "layer.*.0.o": {"attn_out"},
            "layer.*.0.r": {"key", "attn_other"},
            "*.layer_1.weight": {"mlp_up"},
            "*.layer_2.weight": {"mlp_down"},
        },
        {"layer.*.0.q": "q:4x1@1", "layer.*.0.k": "k:4x1@1"},
    ),
    Style(
        "flash: gated attention units",
        FlashTransformer,
        lambda: ((torch.randint(68, (1, 6)),), {}),
        {"transformer", "hybrid"},
        {
            "token_emb.weight": {"token_embedding"},
            "*.to_hidden.0.weight": {"linear", "mlp_gate_up", "mlp_up", "value", "qkv", "attn_other"},
            "*.to_qk.0.weight": {"query", "key", "qkv", "attn_other", "linear"},
            "*.to_out.weight": {"attn_out", "mlp_down"},
            "to_logits.1.weight": {"lm_head"},
        },
    ),
    Style(
        "all in one class of letters",
        G,
        lambda: ((torch.randint(66, (1, 6)),), {}),
        {"transformer"},
        {
            "E": {"token_embedding", "lm_head"},
            "P": {"position_embedding"},
            **dict(zip(("q?", "k?", "v?", "o?"), _QKVO, strict=True)),
            "u?": {"mlp_up"},
            "d?": {"mlp_down"},
        },
        {"q?": "q:5x7@1", "k?": "k:5x7@1"},
    ),
    Style(
        "lists of a linear for each head",
        ListedGenerator,
        lambda: ((torch.randint(64, (1, 6)),), {}),
        {"transformer"},
        {
            "token_embedding.weight": {"token_embedding"},
            "pos_embedding.weight": {"position_embedding"},
            **dict(zip(("*.queries.?.weight", "*.keys.?.weight", "*.values.?.weight", "*.unify.weight"), _QKVO, strict=True)),
            "*.ff.0.weight": {"mlp_up"},
            "*.ff.2.weight": {"mlp_down"},
            "toprobs.weight": {"lm_head"},
        },
        {"*.queries.?.weight": "q:1x9", "*.keys.?.weight": "k:1x9"},
    ),
]
