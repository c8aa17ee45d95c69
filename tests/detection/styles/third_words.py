"""Language models: differences of attention, memories, retrieval, bytes in patches, several tokens at once, layers used again."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Attention is the difference of two softmaxes: twice as many heads of queries and keys as of values.
def repeat_kv(x: Tensor, n_rep: int) -> Tensor:
    bs, n_kv_heads, slen, head_dim = x.shape
    return x[:, :, None].expand(bs, n_kv_heads, n_rep, slen, head_dim).reshape(bs, n_kv_heads * n_rep, slen, head_dim)


class MultiheadDiffAttn(nn.Module):
    def __init__(self, embed_dim: int, depth: int, num_heads: int, num_kv_heads: int) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.n_rep = num_heads, num_kv_heads, num_heads // num_kv_heads
        self.head_dim = embed_dim // num_heads // 2
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.k_proj = nn.Linear(embed_dim, embed_dim // self.n_rep, bias=False)
        self.v_proj = nn.Linear(embed_dim, embed_dim // self.n_rep, bias=False)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=False)
        self.lambda_init = 0.8 - 0.6 * math.exp(-0.3 * depth)
        self.lambda_q1 = nn.Parameter(torch.zeros(self.head_dim).normal_(mean=0, std=0.1))
        self.lambda_k1 = nn.Parameter(torch.zeros(self.head_dim).normal_(mean=0, std=0.1))
        self.lambda_q2 = nn.Parameter(torch.zeros(self.head_dim).normal_(mean=0, std=0.1))
        self.lambda_k2 = nn.Parameter(torch.zeros(self.head_dim).normal_(mean=0, std=0.1))
        self.subln = nn.RMSNorm(2 * self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        bsz, tgt_len, embed_dim = x.size()
        q = self.q_proj(x).view(bsz, tgt_len, 2 * self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(bsz, tgt_len, 2 * self.num_kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(x).view(bsz, tgt_len, self.num_kv_heads, 2 * self.head_dim).transpose(1, 2)
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        attn_weights = torch.matmul(q * self.scaling, k.transpose(-1, -2))
        attn_weights = attn_weights + torch.triu(torch.full((tgt_len, tgt_len), float("-inf")), 1)
        attn_weights = F.softmax(attn_weights, dim=-1)
        lambda_1 = torch.exp(torch.sum(self.lambda_q1 * self.lambda_k1, dim=-1))
        lambda_2 = torch.exp(torch.sum(self.lambda_q2 * self.lambda_k2, dim=-1))
        attn_weights = attn_weights.view(bsz, self.num_heads, 2, tgt_len, tgt_len)
        attn_weights = attn_weights[:, :, 0] - (lambda_1 - lambda_2 + self.lambda_init) * attn_weights[:, :, 1]
        attn = self.subln(torch.matmul(attn_weights, v)) * (1 - self.lambda_init)
        return self.out_proj(attn.transpose(1, 2).reshape(bsz, tgt_len, embed_dim))


class SwiGLUFFN(nn.Module):
    def __init__(self, embed_dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(embed_dim, ffn_dim, bias=False)
        self.fc1, self.fc2 = nn.Linear(embed_dim, ffn_dim, bias=False), nn.Linear(ffn_dim, embed_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.gate(x)) * self.fc1(x))


class DiffTransformer(nn.Module):
    def __init__(self, vocab: int = 66, dim: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, dim)
        self.attns = nn.ModuleList([MultiheadDiffAttn(dim, i, 4, 2) for i in range(depth)])
        self.ffns = nn.ModuleList([SwiGLUFFN(dim, 80) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.RMSNorm(dim) for _ in range(2 * depth + 1)])
        self.output_projection = nn.Linear(dim, vocab, bias=False)

    def forward(self, src_tokens: Tensor) -> Tensor:
        x = self.embed_tokens(src_tokens)
        for i, (attn, ffn) in enumerate(zip(self.attns, self.ffns, strict=True)):
            x = x + attn(self.norms[2 * i](x))
            x = x + ffn(self.norms[2 * i + 1](x))
        return self.output_projection(self.norms[-1](x))


# A contest's notebook: two recurrences, a vector that weighs the words, pools side by side; the table is frozen.
class Attention(nn.Module):
    def __init__(self, feature_dim: int, step_dim: int) -> None:
        super().__init__()
        self.feature_dim, self.step_dim = feature_dim, step_dim
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.zeros(feature_dim, 1)))
        self.b = nn.Parameter(torch.zeros(step_dim))

    def forward(self, x: Tensor) -> Tensor:
        eij = torch.mm(x.contiguous().view(-1, self.feature_dim), self.weight).view(-1, self.step_dim)
        a = torch.exp(torch.tanh(eij + self.b))
        a = a / (torch.sum(a, 1, keepdim=True) + 1e-10)
        return torch.sum(x * torch.unsqueeze(a, -1), 1)


class NeuralNet(nn.Module):
    def __init__(self, embedding_matrix: Tensor | None = None, hidden_size: int = 20, maxlen: int = 7) -> None:
        super().__init__()
        embedding_matrix = torch.randn(90, 30) if embedding_matrix is None else embedding_matrix
        self.embedding = nn.Embedding(embedding_matrix.shape[0], embedding_matrix.shape[1])
        self.embedding.weight = nn.Parameter(embedding_matrix)
        self.embedding.weight.requires_grad = False
        self.embedding_dropout = nn.Dropout2d(0.1)
        self.lstm = nn.LSTM(embedding_matrix.shape[1], hidden_size, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(hidden_size * 2, hidden_size, bidirectional=True, batch_first=True)
        self.lstm_attention = Attention(hidden_size * 2, maxlen)
        self.gru_attention = Attention(hidden_size * 2, maxlen)
        self.linear, self.relu, self.dropout = nn.Linear(hidden_size * 8, 16), nn.ReLU(), nn.Dropout(0.1)
        self.out = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h_embedding = self.embedding(x)
        h_embedding = torch.squeeze(self.embedding_dropout(torch.unsqueeze(h_embedding, 0)), 0)
        h_lstm, _ = self.lstm(h_embedding)
        h_gru, _ = self.gru(h_lstm)
        avg_pool, (max_pool, _) = torch.mean(h_gru, 1), torch.max(h_gru, 1)
        conc = torch.cat((self.lstm_attention(h_lstm), self.gru_attention(h_gru), avg_pool, max_pool), 1)
        return self.out(self.dropout(self.relu(self.linear(conc))))


# Several tokens ahead: each further module reads the trunk beside the next tokens; the vocabulary's layers are shared.
class FastHeadsAttention(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.to_qkv, self.proj = nn.Linear(d_model, 3 * d_model, bias=False), nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = self.to_qkv(x).view(B, T, 3, C // self.n_heads, self.n_heads).permute(2, 0, 4, 1, 3)
        att = torch.matmul(q, k.transpose(2, 3)) * (C // self.n_heads) ** -0.5
        att = att.masked_fill(torch.triu(torch.ones(T, T), 1).bool(), -1e10)
        y = torch.matmul(att.softmax(dim=3), v)
        return self.proj(y.permute(0, 2, 3, 1).reshape(B, T, C))


class DecoderLayer(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.pre, self.post = nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        self.mixer = FastHeadsAttention(d_model, n_heads)
        self.feed = nn.Sequential(nn.Linear(d_model, 3 * d_model), nn.SiLU(), nn.Linear(3 * d_model, d_model))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.pre(x))
        return x + self.feed(self.post(x))


class FutureModule(nn.Module):
    def __init__(self, d_model: int, n_heads: int) -> None:
        super().__init__()
        self.hnorm, self.enorm, self.final = nn.RMSNorm(d_model), nn.RMSNorm(d_model), nn.RMSNorm(d_model)
        self.eh_proj = nn.Linear(2 * d_model, d_model, bias=False)
        self.layer = DecoderLayer(d_model, n_heads)

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        return self.layer(self.eh_proj(torch.cat([self.hnorm(h), self.enorm(emb)], dim=-1)))


class MultiTokenLM(nn.Module):
    def __init__(self, vocab: int = 70, d_model: int = 32, n_heads: int = 4, n_future: int = 2) -> None:
        super().__init__()
        self.tokens, self.n_future = nn.Embedding(vocab, d_model), n_future
        self.places = nn.Parameter(torch.zeros(1, 16, d_model))
        self.trunk = nn.ModuleList([DecoderLayer(d_model, n_heads) for _ in range(2)])
        self.final = nn.RMSNorm(d_model)
        self.mtp = nn.ModuleList([FutureModule(d_model, n_heads) for _ in range(n_future)])
        self.unembed = nn.Linear(d_model, vocab, bias=False)

    def forward(self, idx: Tensor) -> list[Tensor]:
        T = idx.shape[1] - self.n_future
        h = self.tokens(idx[:, :T]) + self.places[:, :T]
        for layer in self.trunk:
            h = layer(h)
        logits = [self.unembed(self.final(h))]
        for i, module in enumerate(self.mtp, 1):
            h = module(h, self.tokens(idx[:, i : i + T]))
            logits.append(self.unembed(module.final(h)))  # pyright: ignore[reportCallIssue]
        return logits


# A memory of products of keys instead of every second feed-forward; attention in the manner of the same authors.
class HashingMemory(nn.Module):
    def __init__(self, input_dim: int, k_dim: int, heads: int, n_keys: int, knn: int) -> None:
        super().__init__()
        self.k_dim, self.heads, self.n_keys, self.knn = k_dim, heads, n_keys, knn
        self.keys = nn.Parameter(torch.randn(heads, 2, n_keys, k_dim // 2) * (k_dim // 2) ** -0.5)
        self.values = nn.EmbeddingBag(n_keys**2, input_dim, mode="sum")
        self.query_proj = nn.Linear(input_dim, heads * k_dim)

    def forward(self, x: Tensor) -> Tensor:
        bs, half = x.shape[0] * x.shape[1], self.k_dim // 2
        query = self.query_proj(x.reshape(bs, -1)).view(bs, self.heads, self.k_dim)
        scores1 = torch.einsum("bhd,hnd->bhn", query[..., :half], self.keys[:, 0])
        scores2 = torch.einsum("bhd,hnd->bhn", query[..., half:], self.keys[:, 1])
        (scores1, indices1), (scores2, indices2) = scores1.topk(self.knn, dim=2), scores2.topk(self.knn, dim=2)
        all_scores = (scores1[..., :, None] + scores2[..., None, :]).view(bs, self.heads, -1)
        all_indices = (indices1[..., :, None] * self.n_keys + indices2[..., None, :]).view(bs, self.heads, -1)
        scores, best = torch.topk(all_scores, self.knn, dim=2)
        indices = all_indices.gather(2, best).view(bs, -1)
        return self.values(indices, per_sample_weights=F.softmax(scores, dim=-1).view(bs, -1)).view_as(x)


class LinedAttention(nn.Module):
    def __init__(self, n_heads: int, dim: int) -> None:
        super().__init__()
        self.n_heads, self.dim = n_heads, dim
        self.q_lin, self.k_lin, self.v_lin, self.out_lin = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        bs, _, dim = x.size()
        dim_per_head = self.dim // self.n_heads

        def shape(x: Tensor) -> Tensor:
            return x.view(bs, -1, self.n_heads, dim_per_head).transpose(1, 2)

        q, k, v = shape(self.q_lin(x)), shape(self.k_lin(x)), shape(self.v_lin(x))
        scores = torch.matmul(q / math.sqrt(dim_per_head), k.transpose(2, 3))
        scores = scores.masked_fill((mask == 0)[:, None, None].expand_as(scores), -float("inf"))
        context = torch.matmul(F.softmax(scores.float(), dim=-1).type_as(scores), v)
        return self.out_lin(context.transpose(1, 2).contiguous().view(bs, -1, dim))


class TransformerFFN(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.gelu(self.lin1(x)))


class MemoryEncoder(nn.Module):
    def __init__(self, n_words: int = 73, n_langs: int = 3, dim: int = 30) -> None:
        super().__init__()
        self.embeddings, self.position_embeddings = nn.Embedding(n_words, dim, padding_idx=2), nn.Embedding(12, dim)
        self.lang_embeddings, self.layer_norm_emb = nn.Embedding(n_langs, dim), nn.LayerNorm(dim)
        self.attentions, self.layer_norm1, self.layer_norm2 = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.ffns, self.memories = nn.ModuleList(), nn.ModuleDict()
        for _ in range(2):
            self.attentions.append(LinedAttention(5, dim))
            self.layer_norm1.append(nn.LayerNorm(dim))
            self.layer_norm2.append(nn.LayerNorm(dim))
            self.ffns.append(TransformerFFN(dim, 64))
        self.memories["1"] = HashingMemory(dim, 12, 2, 5, 3)
        self.pred_layer = nn.Linear(dim, n_words)
        self.pred_layer.weight = self.embeddings.weight

    def forward(self, x: Tensor, langs: Tensor) -> Tensor:
        mask = x != 2
        tensor = self.embeddings(x) + self.position_embeddings(torch.arange(x.shape[1])[None]) + self.lang_embeddings(langs)
        tensor = self.layer_norm_emb(tensor)
        for i, (attention, ffn) in enumerate(zip(self.attentions, self.ffns, strict=True)):
            tensor = self.layer_norm1[i](tensor + attention(tensor, mask))
            if f"{i}" in self.memories:
                tensor = tensor + self.memories[f"{i}"](tensor)
            tensor = self.layer_norm2[i](tensor + ffn(tensor))
        return self.pred_layer(tensor)


# Retrieval: chunks attend to the neighbours of the chunk before, which an encoder of their own has read.
class ChunkAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head, bias=False)
        self.null_kv = nn.Parameter(torch.randn(2, heads * dim_head))
        self.to_out = nn.Linear(heads * dim_head, dim)

    def split(self, t: Tensor) -> Tensor:
        return t.reshape(*t.shape[:2], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        x = self.norm(x)
        kv_input = x if context is None else context
        q, (k, v) = self.to_q(x), self.to_kv(kv_input).chunk(2, dim=-1)
        nk, nv = (t.expand(len(x), 1, -1) for t in self.null_kv)
        q, k, v = (self.split(t) for t in (q, torch.cat((nk, k), 1), torch.cat((nv, v), 1)))
        sim = torch.einsum("b h i d, b h j d -> b h i j", q * q.shape[-1] ** -0.5, k)
        if self.causal:
            i, j = sim.shape[-2:]
            sim = sim.masked_fill(torch.ones(i, j, dtype=torch.bool).triu(j - i + 1), -torch.finfo(sim.dtype).max)
        out = torch.einsum("b h i j, b h j d -> b h i d", sim.softmax(dim=-1), v)
        return self.to_out(out.transpose(1, 2).flatten(2))


def feed_forward(dim: int, mult: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim * mult), nn.GELU(), nn.Dropout(0.0), nn.Linear(dim * mult, dim))


class Retro(nn.Module):
    def __init__(self, num_tokens: int = 62, enc_dim: int = 24, dec_dim: int = 32, chunk_size: int = 4) -> None:
        super().__init__()
        self.chunk_size = chunk_size
        self.token_emb, self.pos_emb = nn.Embedding(num_tokens, enc_dim), nn.Embedding(16, enc_dim)
        self.to_decoder_model_dim = nn.Linear(enc_dim, dec_dim)
        self.encoder_output_to_decoder_dim = nn.Linear(enc_dim, dec_dim)
        self.encoder = nn.ModuleList([nn.ModuleList([ChunkAttention(enc_dim, 3, 8), feed_forward(enc_dim)]) for _ in range(2)])
        self.decoder = nn.ModuleList([])
        for i in range(3):
            cross = ChunkAttention(dec_dim, 4, 8) if i else None
            layer: list[nn.Module | None] = [ChunkAttention(dec_dim, 4, 8, causal=True), cross, feed_forward(dec_dim)]
            self.decoder.append(nn.ModuleList(layer))  # pyright: ignore[reportArgumentType]
        self.norm, self.to_logits = nn.LayerNorm(dec_dim), nn.Linear(dec_dim, num_tokens)

    def forward(self, seq: Tensor, retrieved: Tensor) -> Tensor:
        b, n, c = *seq.shape, self.chunk_size
        x = self.token_emb(seq) + self.pos_emb(torch.arange(n))
        r = retrieved.flatten(0, 2)
        r = self.token_emb(r) + self.pos_emb(torch.arange(r.shape[-1]))
        for attn, ff in self.encoder:  # pyright: ignore[reportGeneralTypeIssues]
            r = r + attn(r)
            r = r + ff(r)
        context = self.encoder_output_to_decoder_dim(r).reshape(b * n // c, -1, self.to_decoder_model_dim.out_features)
        x = self.to_decoder_model_dim(x)
        for attn, cross, ff in self.decoder:  # pyright: ignore[reportGeneralTypeIssues]
            x = x + attn(x)
            if cross is not None:
                shifted = F.pad(x, (0, 0, -(c - 1), c - 1)).reshape(b * n // c, c, -1)
                x = x + F.pad(cross(shifted, context).reshape(b, n, -1), (0, 0, c - 1, -(c - 1)))
            x = x + ff(x)
        return self.to_logits(self.norm(x))


# The translator of a tutorial around torch's own module, time first.
class PositionalEncoding(nn.Module):
    pos_embedding: Tensor

    def __init__(self, emb_size: int, maxlen: int = 20) -> None:
        super().__init__()
        den = torch.exp(-torch.arange(0, emb_size, 2) * math.log(10000) / emb_size)
        pos = torch.arange(0, maxlen).reshape(maxlen, 1)
        pos_embedding = torch.zeros((maxlen, emb_size))
        pos_embedding[:, 0::2], pos_embedding[:, 1::2] = torch.sin(pos * den), torch.cos(pos * den)
        self.register_buffer("pos_embedding", pos_embedding.unsqueeze(-2))

    def forward(self, token_embedding: Tensor) -> Tensor:
        return token_embedding + self.pos_embedding[: token_embedding.size(0)]


class TokenEmbedding(nn.Module):
    def __init__(self, vocab_size: int, emb_size: int) -> None:
        super().__init__()
        self.embedding, self.emb_size = nn.Embedding(vocab_size, emb_size), emb_size

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens.long()) * math.sqrt(self.emb_size)


class Seq2SeqTransformer(nn.Module):
    def __init__(self, emb_size: int = 32, nhead: int = 4, src_vocab_size: int = 57, tgt_vocab_size: int = 68) -> None:
        super().__init__()
        self.transformer = nn.Transformer(emb_size, nhead, 2, 2, dim_feedforward=50, dropout=0.0)
        self.generator = nn.Linear(emb_size, tgt_vocab_size)
        self.src_tok_emb = TokenEmbedding(src_vocab_size, emb_size)
        self.tgt_tok_emb = TokenEmbedding(tgt_vocab_size, emb_size)
        self.positional_encoding = PositionalEncoding(emb_size)

    def forward(self, src: Tensor, trg: Tensor, src_padding_mask: Tensor) -> Tensor:
        src_emb = self.positional_encoding(self.src_tok_emb(src))
        tgt_emb = self.positional_encoding(self.tgt_tok_emb(trg))
        tgt_mask = torch.triu(torch.ones(len(trg), len(trg), dtype=torch.bool), 1)
        outs = self.transformer(src_emb, tgt_emb, None, tgt_mask, None, src_padding_mask, None, src_padding_mask)
        return self.generator(outs)


# Convolutions from one language to another, and one look at the source in each layer.
class ConvEncoder(nn.Module):
    def __init__(self, input_dim: int, emb_dim: int, hid_dim: int, n_layers: int, kernel_size: int) -> None:
        super().__init__()
        self.scale = 0.5**0.5
        self.tok_embedding, self.pos_embedding = nn.Embedding(input_dim, emb_dim), nn.Embedding(14, emb_dim)
        self.emb2hid, self.hid2emb = nn.Linear(emb_dim, hid_dim), nn.Linear(hid_dim, emb_dim)
        self.convs = nn.ModuleList([nn.Conv1d(hid_dim, 2 * hid_dim, kernel_size, padding=kernel_size // 2) for _ in range(n_layers)])

    def forward(self, src: Tensor) -> tuple[Tensor, Tensor]:
        pos = torch.arange(0, src.shape[1]).unsqueeze(0).repeat(src.shape[0], 1)
        embedded = self.tok_embedding(src) + self.pos_embedding(pos)
        conved = conv_input = self.emb2hid(embedded).permute(0, 2, 1)
        for conv in self.convs:
            conved = (F.glu(conv(conv_input), dim=1) + conv_input) * self.scale
            conv_input = conved
        conved = self.hid2emb(conved.permute(0, 2, 1))
        return conved, (conved + embedded) * self.scale


class ConvDecoder(nn.Module):
    def __init__(self, output_dim: int, emb_dim: int, hid_dim: int, n_layers: int, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size, self.scale = kernel_size, 0.5**0.5
        self.tok_embedding, self.pos_embedding = nn.Embedding(output_dim, emb_dim), nn.Embedding(14, emb_dim)
        self.emb2hid, self.hid2emb = nn.Linear(emb_dim, hid_dim), nn.Linear(hid_dim, emb_dim)
        self.attn_hid2emb, self.attn_emb2hid = nn.Linear(hid_dim, emb_dim), nn.Linear(emb_dim, hid_dim)
        self.fc_out = nn.Linear(emb_dim, output_dim)
        self.convs = nn.ModuleList([nn.Conv1d(hid_dim, 2 * hid_dim, kernel_size) for _ in range(n_layers)])

    def calculate_attention(self, embedded: Tensor, conved: Tensor, encoder_conved: Tensor, encoder_combined: Tensor) -> Tensor:
        conved_emb = self.attn_hid2emb(conved.permute(0, 2, 1))
        combined = (conved_emb + embedded) * self.scale
        attention = F.softmax(torch.matmul(combined, encoder_conved.permute(0, 2, 1)), dim=2)
        attended_encoding = self.attn_emb2hid(torch.matmul(attention, encoder_combined))
        return (conved + attended_encoding.permute(0, 2, 1)) * self.scale

    def forward(self, trg: Tensor, encoder_conved: Tensor, encoder_combined: Tensor) -> Tensor:
        pos = torch.arange(0, trg.shape[1]).unsqueeze(0).repeat(trg.shape[0], 1)
        embedded = self.tok_embedding(trg) + self.pos_embedding(pos)
        conved = conv_input = self.emb2hid(embedded).permute(0, 2, 1)
        for conv in self.convs:
            padding = torch.zeros(conv_input.shape[0], conv_input.shape[1], self.kernel_size - 1)
            conved = F.glu(conv(torch.cat((padding, conv_input), dim=2)), dim=1)
            conved = (self.calculate_attention(embedded, conved, encoder_conved, encoder_combined) + conv_input) * self.scale
            conv_input = conved
        return self.fc_out(self.hid2emb(conved.permute(0, 2, 1)))


class ConvSeq2Seq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = ConvEncoder(55, 22, 36, 2, 3), ConvDecoder(64, 22, 36, 2, 3)

    def forward(self, src: Tensor, trg: Tensor) -> Tensor:
        return self.decoder(trg, *self.encoder(src))


# Bytes in patches: a wide model over the patches, a narrow one within each; channels before time.
class ChannelsFirstBlock(nn.Module):
    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.GroupNorm(1, channels), nn.GroupNorm(1, channels)
        self.qkv, self.proj_out = nn.Conv1d(channels, channels * 3, 1), nn.Conv1d(channels, channels, 1)
        self.ffn_in, self.ffn_out = nn.Conv1d(channels, 2 * channels, 1), nn.Conv1d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, n = x.shape
        q, k, v = (t.reshape(b, self.heads, c // self.heads, n) for t in self.qkv(self.ln1(x)).chunk(3, dim=1))
        weight = torch.einsum("bhcs,bhct->bhst", q, k) / math.sqrt(c // self.heads)
        weight = torch.softmax(weight + torch.full((n, n), -1e4).triu(1), dim=-1)
        x = x + self.proj_out(torch.einsum("bhst,bhct->bhcs", weight, v).reshape(b, c, n))
        return x + self.ffn_out(F.silu(self.ffn_in(self.ln2(x))))


class BytePatches(nn.Module):
    def __init__(self, patch: int = 3, local: int = 18, wide: int = 40) -> None:
        super().__init__()
        self.patch, self.local = patch, local
        self.byte_emb, self.local_byte_emb = nn.Embedding(64, local), nn.Embedding(64, local)
        self.global_start = nn.Parameter(torch.randn(1, 1, wide))
        self.patch_pos = nn.Embedding(8, wide)
        self.patch_to_global = nn.Linear(patch * local, wide)
        self.global_model = nn.Sequential(*[ChannelsFirstBlock(wide, 4) for _ in range(2)])
        self.global_to_local = nn.Linear(wide, patch * local)
        self.local_model = nn.Sequential(*[ChannelsFirstBlock(local, 2) for _ in range(2)])
        self.logits = nn.Linear(local, 64)

    def forward(self, ids: Tensor) -> Tensor:
        b, n = ids.shape
        patches = n // self.patch
        g = self.patch_to_global(self.byte_emb(ids).reshape(b, patches, -1))
        g = torch.cat([self.global_start.expand(b, -1, -1), g[:, :-1]], 1) + self.patch_pos(torch.arange(patches))
        g = self.global_model(g.transpose(1, 2)).transpose(1, 2)
        x = self.global_to_local(g).reshape(b * patches, self.patch, self.local)
        before = F.pad(self.local_byte_emb(ids).reshape(b * patches, self.patch, -1), (0, 0, 1, -1))
        return self.logits(self.local_model((x + before).transpose(1, 2)).transpose(1, 2)).reshape(b, n, -1)


# A soft mixture: every expert gets mixtures of the words; values stand before keys in their layer.
class SoftMoE(nn.Module):
    def __init__(self, d: int, n: int, p: int, hidden: int) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.randn(d, n, p) * d**-0.5)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d)) for _ in range(n)])

    def forward(self, X: Tensor) -> Tensor:
        logits = torch.einsum("bmd,dnp->bmnp", X, self.phi)
        D = logits.softmax(dim=1)
        C = logits.flatten(2).softmax(dim=-1).view_as(logits)
        Xs = torch.einsum("bmd,bmnp->bnpd", X, D)
        Ys = torch.stack([f_i(Xs[:, i]) for i, f_i in enumerate(self.experts)], dim=1)
        return torch.einsum("bnpd,bmnp->bmd", Ys, C)


class ValuesFirst(nn.Module):
    def __init__(self, d: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.query, self.vk, self.fc_o = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        b, m, d = x.shape
        h = d // self.n_head
        q = self.query(x).view(b, m, self.n_head, h)
        vk = self.vk(x).view(b, m, 2, self.n_head, h)
        v, k = vk[:, :, 0], vk[:, :, 1]
        a = nn.functional.softmax(torch.einsum("bqhd,bkhd->bhqk", q, k) / h**0.5, dim=-1)
        return self.fc_o(torch.einsum("bhqk,bkhd->bqhd", a, v).reshape(b, m, d))


class SoftMoEClassifier(nn.Module):
    def __init__(self, vocab: int = 58, d: int = 27, classes: int = 4) -> None:
        super().__init__()
        self.word_vectors, self.cls = nn.Embedding(vocab, d), nn.Parameter(torch.zeros(1, 1, d))
        self.sines = nn.Parameter(torch.randn(12, d) * 0.02)
        for i in (1, 2):
            setattr(self, f"norm{i}a", nn.LayerNorm(d))
            setattr(self, f"norm{i}b", nn.LayerNorm(d))
            setattr(self, f"look{i}", ValuesFirst(d, 3))
            setattr(self, f"moe{i}", SoftMoE(d, 4, 2, 46))
        self.sentiment = nn.Linear(d, classes)

    def forward(self, words: Tensor) -> Tensor:
        x = torch.cat([self.cls.repeat(len(words), 1, 1), self.word_vectors(words)], 1)
        x = x + self.sines[: x.shape[1]]
        for i in (1, 2):
            x = x + getattr(self, f"look{i}")(getattr(self, f"norm{i}a")(x))
            x = x + getattr(self, f"moe{i}")(getattr(self, f"norm{i}b")(x))
        return self.sentiment(x[:, 0])


# Two blocks in a loop, told which turn it is; weights are (in, out), the input is mixed in again.
class LoopBlock(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        shapes = {"wq": (width, width), "wk": (width, width // 2), "wv": (width, width // 2), "wo": (width, width)}
        shapes |= {"w_in": (width, inner), "w_out": (inner, width)}
        self.w = nn.ParameterDict({name: nn.Parameter(torch.randn(shape) * shape[0] ** -0.5) for name, shape in shapes.items()})

    def forward(self, x: Tensor) -> Tensor:
        b, t, width = x.shape
        hd = width // self.heads
        y = F.rms_norm(x, (width,))
        q = (y @ self.w["wq"]).reshape(b, t, self.heads // 2, 2, hd)
        k, v = ((y @ self.w[name]).reshape(b, t, self.heads // 2, hd) for name in ("wk", "wv"))
        logits = torch.einsum("btgrd,bsgd->bgrts", q, k) / hd**0.5
        logits = torch.where(torch.ones(t, t).tril() > 0, logits, -1e30)
        y = torch.einsum("bgrts,bsgd->btgrd", torch.softmax(logits, -1), v).reshape(b, t, width)
        x = x + y @ self.w["wo"]
        return x + F.relu(F.rms_norm(x, (width,)) @ self.w["w_in"]).square() @ self.w["w_out"]


class LoopedLM(nn.Module):
    def __init__(self, vocab: int = 74, width: int = 36, turns: int = 3) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocab, width) * 0.02)
        self.place, self.turn = nn.Parameter(torch.zeros(10, width)), nn.Embedding(turns, width)
        self.core = nn.ModuleList([LoopBlock(width, 6, 70) for _ in range(2)])
        self.inject, self.turns = nn.Linear(2 * width, width, bias=False), turns

    def forward(self, ids: Tensor) -> Tensor:
        x = start = F.embedding(ids, self.table) + self.place[: ids.shape[1]]
        for i in range(self.turns):
            x = self.inject(torch.cat([x, start], -1)) + self.turn.weight[i]
            for block in self.core:
                x = block(x)
        return F.linear(F.rms_norm(x, x.shape[-1:]), self.table)


_TABLE = {"token_embedding"}
_HIDDEN = {"linear", "mlp_up", "mlp_down"}
_LAST = {"lm_head", "classifier"}
_WORDS = {"lm_head"}
STYLES: list[Style] = [
    Style(
        "the difference of two softmaxes",
        DiffTransformer,
        lambda: ((torch.randint(66, (1, 5)),), {}),
        {"transformer"},
        {
            "embed_tokens.weight": _TABLE,
            "attns.*.q_proj.weight": {"query"},
            "attns.*.k_proj.weight": {"key"},
            "attns.*.v_proj.weight": {"value"},
            "attns.*.out_proj.weight": {"attn_out"},
            "ffns.*.gate.weight": {"mlp_gate"},
            "ffns.*.fc1.weight": {"mlp_up"},
            "ffns.*.fc2.weight": {"mlp_down"},
            "output_projection.weight": _WORDS,
        },
        {"attns.*.q_proj.weight": "q:8x6", "attns.*.k_proj.weight": "k:4x6"},
    ),
    Style(
        "a contest's two recurrences",
        NeuralNet,
        lambda: ((torch.randint(90, (2, 7)),), {}),
        {"rnn"},
        {
            "embedding.weight": _TABLE,
            "*.weight_ih_*": {"rnn_ih"},
            "*.weight_hh_*": {"rnn_hh"},
            "*_attention.weight": {"attn_other", "query", "linear", "other"},
            "linear.weight": _HIDDEN,
            "out.weight": _LAST,
        },
    ),
    Style(
        "several tokens ahead",
        MultiTokenLM,
        lambda: ((torch.randint(70, (1, 7)),), {}),
        {"transformer"},
        {
            "tokens.weight": _TABLE,
            "places": {"position_embedding"},
            "*.mixer.to_qkv.weight": {"qkv"},
            "*.mixer.proj.weight": {"attn_out"},
            "*.feed.0.weight": {"mlp_up"},
            "*.feed.2.weight": {"mlp_down"},
            "mtp.*.eh_proj.weight": _HIDDEN,
            "unembed.weight": _WORDS,
        },
        {"*.mixer.to_qkv.weight": "q:4x8t|k:4x8t|v:4x8t"},
    ),
    Style(
        "a memory of products of keys",
        MemoryEncoder,
        lambda: ((torch.randint(3, 73, (1, 5)), torch.randint(3, (1, 5))), {}),
        {"transformer"},
        {
            "embeddings.weight": {"token_embedding", "lm_head"},
            "position_embeddings.weight": {"position_embedding"},
            "lang_embeddings.weight": {"type_embedding", "token_embedding"},
            "*.q_lin.weight": {"query"},
            "*.k_lin.weight": {"key"},
            "*.v_lin.weight": {"value"},
            "*.out_lin.weight": {"attn_out"},
            "*.lin1.weight": {"mlp_up"},
            "*.lin2.weight": {"mlp_down"},
            "memories.*.query_proj.weight": {"query", "attn_other", "router", "linear", "mlp_up"},
            "memories.*.keys": {"key", "attn_other", "router", "linear", "mlp_up", "other"},
            "memories.*.values.weight": {"token_embedding", "value", "mlp_down", "attn_other"},
        },
        {"*.q_lin.weight": "q:5x6", "*.k_lin.weight": "k:5x6"},
    ),
    Style(
        "neighbours of the chunk before",
        Retro,
        lambda: ((torch.randint(62, (1, 8)), torch.randint(62, (1, 2, 2, 5))), {}),
        {"transformer"},
        {
            "token_emb.weight": _TABLE,
            "pos_emb.weight": {"position_embedding"},
            "to_decoder_model_dim.weight": _HIDDEN,
            "encoder_output_to_decoder_dim.weight": _HIDDEN,
            "*.to_q.weight": {"query"},
            "*.to_kv.weight": {"qkv"},
            "*.null_kv": {"special_token", "attn_other", "qkv", "key", "value", "other"},
            "*.to_out.weight": {"attn_out"},
            "*coder.?.[12].1.weight": {"mlp_up"},
            "*coder.?.[12].4.weight": {"mlp_down"},
            "to_logits.weight": _WORDS,
        },
        {
            "encoder.*.to_q.weight": "q:3x8",
            "encoder.*.to_kv.weight": "k:3x8|v:3x8",
            "decoder.*.to_q.weight": "q:4x8",
            "decoder.*.to_kv.weight": "k:4x8|v:4x8",
        },
    ),
    Style(
        "a tutorial around torch's transformer",
        Seq2SeqTransformer,
        lambda: ((torch.randint(57, (5, 2)), torch.randint(68, (4, 2)), torch.zeros(2, 5, dtype=torch.bool)), {}),
        {"transformer"},
        {
            "???_tok_emb.embedding.weight": _TABLE,
            "*.in_proj_weight": {"qkv"},
            "*.out_proj.weight": {"attn_out"},
            "*.linear1.weight": {"mlp_up"},
            "*.linear2.weight": {"mlp_down"},
            "generator.weight": _WORDS,
        },
        {"*.in_proj_weight": "q:4x8|k:4x8|v:4x8"},
    ),
    Style(
        "convolutions between languages",
        ConvSeq2Seq,
        lambda: ((torch.randint(55, (1, 6)), torch.randint(64, (1, 5))), {}),
        {"cnn", "hybrid"},
        {
            "*.tok_embedding.weight": _TABLE,
            "*.pos_embedding.weight": {"position_embedding"},
            "*.emb2hid.weight": _HIDDEN,
            "encoder.hid2emb.weight": {*_HIDDEN, "key"},
            "decoder.hid2emb.weight": _HIDDEN,
            "decoder.attn_hid2emb.weight": {*_HIDDEN, "query", "attn_other"},
            "decoder.attn_emb2hid.weight": {*_HIDDEN, "attn_out", "attn_other"},
            "*.convs.*.weight": {"conv", "first_conv"},
            "decoder.fc_out.weight": _WORDS,
        },
    ),
    Style(
        "bytes in patches, channels first",
        BytePatches,
        lambda: ((torch.randint(64, (1, 9)),), {}),
        {"transformer"},
        {
            "byte_emb.weight": _TABLE,
            "local_byte_emb.weight": _TABLE,
            "global_start": {"special_token"},
            "patch_pos.weight": {"position_embedding"},
            "patch_to_global.weight": {*_HIDDEN, "patch_embedding"},
            "global_to_local.weight": _HIDDEN,
            "*_model.*.qkv.weight": {"qkv"},
            "*_model.*.proj_out.weight": {"attn_out"},
            "*_model.*.ffn_in.weight": {"mlp_up"},
            "*_model.*.ffn_out.weight": {"mlp_down"},
            "logits.weight": _WORDS,
        },
        {"global_model.*.qkv.weight": "q:4x10|k:4x10|v:4x10", "local_model.*.qkv.weight": "q:2x9|k:2x9|v:2x9"},
    ),
    Style(
        "a soft mixture of experts, values first",
        SoftMoEClassifier,
        lambda: ((torch.randint(58, (1, 6)),), {}),
        {"transformer"},
        {
            "word_vectors.weight": _TABLE,
            "cls": {"special_token"},
            "sines": {"position_embedding"},
            "look?.query.weight": {"query"},
            "look?.vk.weight": {"qkv"},
            "look?.fc_o.weight": {"attn_out"},
            "moe?.phi": {"router", "attn_other", "token_mix", "other"},
            "moe?.experts.?.0.weight": {"mlp_up"},
            "moe?.experts.?.2.weight": {"mlp_down"},
            "sentiment.weight": {"classifier"},
        },
        {"look?.query.weight": "q:3x9", "look?.vk.weight": "v:3x9|k:3x9"},
    ),
    Style(
        "two blocks in a loop",
        LoopedLM,
        lambda: ((torch.randint(74, (1, 5)),), {}),
        {"transformer"},
        {
            "table": {"token_embedding", "lm_head"},
            "place": {"position_embedding"},
            "turn.weight": {"position_embedding", "type_embedding", "time_embedding", "token_embedding"},
            "core.*.w.wq": {"query"},
            "core.*.w.wk": {"key"},
            "core.*.w.wv": {"value"},
            "core.*.w.wo": {"attn_out"},
            "core.*.w.w_in": {"mlp_up"},
            "core.*.w.w_out": {"mlp_down"},
            "inject.weight": _HIDDEN,
        },
        {"core.*.w.wq": "q:6x6@1", "core.*.w.wk": "k:3x6@1"},
    ),
]
