"""Noise, bodies and robots: actions by flow matching, chunks of actions, clouds, clips, words painted, motion, shapes and pillars."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# A robot's actions by flow matching: two experts of two widths, one attention over both.
class RMSNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)


class ExpertLayer(nn.Module):
    def __init__(self, hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(hidden, heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(heads * head_dim, hidden, bias=False)
        self.gate_proj, self.up_proj = nn.Linear(hidden, inner, bias=False), nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(hidden), RMSNorm(hidden)

    def forward_qkv(self, x: Tensor) -> list[Tensor]:
        x = self.input_layernorm(x)
        return [p(x).view(*x.shape[:2], -1, self.head_dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)]

    def forward_rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.o_proj(attended)
        h = self.post_attention_layernorm(x)
        return x + self.down_proj(F.gelu(self.gate_proj(h), approximate="tanh") * self.up_proj(h))


class ActionFlow(nn.Module):
    def __init__(self, vocab: int = 29, action_dim: int = 5, state_dim: int = 7) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, 34)
        self.vision = nn.Conv2d(3, 22, 4, 4)
        self.multi_modal_projector = nn.Linear(22, 34)
        self.action_encoder_1 = nn.Linear(action_dim, 20)
        self.action_encoder_2 = nn.Linear(40, 20)
        self.action_encoder_3 = nn.Linear(20, 20)
        self.proprio_encoder = nn.Linear(state_dim, 20)
        self.vlm = nn.ModuleList([ExpertLayer(34, 60, 4, 2, 6) for _ in range(2)])
        self.action = nn.ModuleList([ExpertLayer(20, 36, 4, 2, 6) for _ in range(2)])
        self.norm = RMSNorm(20)
        self.action_decoder = nn.Linear(20, action_dim)

    @staticmethod
    def time_of(t: Tensor, dim: int) -> Tensor:
        freqs = torch.exp(-math.log(100.0) * torch.arange(dim // 2) / (dim // 2 - 1))
        args = t[:, None] * freqs
        return torch.cat([args.sin(), args.cos()], dim=-1)

    def forward(self, image: Tensor, ids: Tensor, proprio: Tensor, actions: Tensor, t: Tensor) -> Tensor:
        patches = self.multi_modal_projector(self.vision(image).flatten(2).transpose(1, 2))
        prefix = torch.cat([patches, self.embed_tokens(ids) * 34**0.5], dim=1)
        time = self.time_of(t, 20)[:, None].expand(-1, actions.shape[1], -1)
        noisy = self.action_encoder_2(torch.cat([self.action_encoder_1(actions), time], dim=-1))
        noisy = self.action_encoder_3(F.silu(noisy))
        suffix = torch.cat([self.proprio_encoder(proprio)[:, None], noisy], dim=1)
        n, m = prefix.shape[1], suffix.shape[1]
        block = torch.cat([torch.zeros(n), torch.ones(1), torch.full((m - 1,), 2.0)])
        mask = torch.where(block[None, :] <= block[:, None], 0.0, -1e9)
        for vlm, action in zip(self.vlm, self.action, strict=True):
            q, k, v = (torch.cat(pair, dim=2) for pair in zip(vlm.forward_qkv(prefix), action.forward_qkv(suffix), strict=True))
            k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
            weights = F.softmax(q @ k.transpose(2, 3) / 6**0.5 + mask, dim=-1)
            attended = (weights @ v).transpose(1, 2).flatten(2)
            prefix, suffix = vlm.forward_rest(prefix, attended[:, :n]), action.forward_rest(suffix, attended[:, n:])
        return self.action_decoder(self.norm(suffix[:, 1:]))


# Chunks of actions by a conditional autoencoder: one encoder for what was done, one for what is seen, learned queries.
class ChunkEncoderLayer(nn.Module):
    def __init__(self, d_model: int, nhead: int, dim_feedforward: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nhead, dropout=0.0)
        self.linear1, self.linear2 = nn.Linear(d_model, dim_feedforward), nn.Linear(dim_feedforward, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, src: Tensor, pos: Tensor) -> Tensor:
        q = k = src + pos
        src = self.norm1(src + self.self_attn(q, k, value=src)[0])
        return self.norm2(src + self.linear2(F.relu(self.linear1(src))))


class ChunkDecoderLayer(nn.Module):
    def __init__(self, d_model: int, nhead: int, dim_feedforward: int) -> None:
        super().__init__()
        self.self_attn, self.multihead_attn = nn.MultiheadAttention(d_model, nhead), nn.MultiheadAttention(d_model, nhead)
        self.linear1, self.linear2 = nn.Linear(d_model, dim_feedforward), nn.Linear(dim_feedforward, d_model)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d_model), nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, tgt: Tensor, memory: Tensor, pos: Tensor, query_pos: Tensor) -> Tensor:
        q = k = tgt + query_pos
        tgt = self.norm1(tgt + self.self_attn(q, k, value=tgt)[0])
        tgt = self.norm2(tgt + self.multihead_attn(query=tgt + query_pos, key=memory + pos, value=memory)[0])
        return self.norm3(tgt + self.linear2(F.relu(self.linear1(tgt))))


class ChunkPolicy(nn.Module):
    def __init__(self, d: int = 32, state_dim: int = 6, chunk: int = 5, latent: int = 9) -> None:
        super().__init__()
        self.latent, self.chunk = latent, chunk
        self.backbone = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 18, 3, 2, 1), nn.ReLU())
        self.input_proj, self.input_proj_robot_state = nn.Conv2d(18, d, 1), nn.Linear(state_dim, d)
        self.cls_embed = nn.Embedding(1, d)
        self.encoder_action_proj, self.encoder_joint_proj = nn.Linear(state_dim, d), nn.Linear(state_dim, d)
        self.latent_proj, self.latent_out_proj = nn.Linear(d, latent * 2), nn.Linear(latent, d)
        self.register_buffer("pos_table", torch.randn(1 + 1 + chunk, 1, d))
        self.register_buffer("image_pos", torch.randn(16, 1, d))
        self.cvae_encoder = nn.ModuleList([ChunkEncoderLayer(d, 4, 44)])
        self.encoder = nn.ModuleList([ChunkEncoderLayer(d, 4, 44) for _ in range(2)])
        self.decoder = nn.ModuleList([ChunkDecoderLayer(d, 4, 44)])
        self.query_embed, self.additional_pos_embed = nn.Embedding(chunk, d), nn.Embedding(2, d)
        self.action_head, self.is_pad_head = nn.Linear(d, state_dim), nn.Linear(d, 1)

    def forward(self, qpos: Tensor, image: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
        bs = qpos.shape[0]
        cls = self.cls_embed.weight.unsqueeze(0).repeat(bs, 1, 1)
        x = torch.cat([cls, self.encoder_joint_proj(qpos).unsqueeze(1), self.encoder_action_proj(actions)], dim=1).permute(1, 0, 2)
        for layer in self.cvae_encoder:
            x = layer(x, self.pos_table)
        info = self.latent_proj(x[0])
        mu, logvar = info[:, : self.latent], info[:, self.latent :]
        sample = mu + logvar.div(2).exp() * torch.randn_like(mu)
        latent_input = self.latent_out_proj(sample)
        src = self.input_proj(self.backbone(image)).flatten(2).permute(2, 0, 1)
        pos = torch.cat([self.additional_pos_embed.weight.unsqueeze(1), self.image_pos], dim=0)
        src = torch.cat([torch.stack([latent_input, self.input_proj_robot_state(qpos)], dim=0), src], dim=0)
        for layer in self.encoder:
            src = layer(src, pos)
        query_embed = self.query_embed.weight.unsqueeze(1).repeat(1, bs, 1)
        hs = torch.zeros_like(query_embed)
        for layer in self.decoder:
            hs = layer(hs, src, pos, query_embed)
        hs = hs.transpose(0, 1)
        return self.action_head(hs), self.is_pad_head(hs), mu, logvar


# A robot told in words: convolutions scaled by the words, few tokens learned from each picture, actions as classes.
class FilmLayer(nn.Module):
    def __init__(self, num_channels: int, text_dim: int) -> None:
        super().__init__()
        self.projection_add, self.projection_mult = nn.Linear(text_dim, num_channels), nn.Linear(text_dim, num_channels)
        nn.init.zeros_(self.projection_add.weight)
        nn.init.zeros_(self.projection_mult.weight)

    def forward(self, conv_filters: Tensor, context: Tensor) -> Tensor:
        add, mult = self.projection_add(context)[:, :, None, None], self.projection_mult(context)[:, :, None, None]
        return (1 + mult) * conv_filters + add


class InvertedBlock(nn.Module):
    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.expand, self.bn0 = nn.Conv2d(i, i * 3, 1, bias=False), nn.BatchNorm2d(i * 3)
        self.depthwise, self.bn1 = nn.Conv2d(i * 3, i * 3, 3, stride, 1, groups=i * 3, bias=False), nn.BatchNorm2d(i * 3)
        self.se_reduce, self.se_expand = nn.Conv2d(i * 3, 4, 1), nn.Conv2d(4, i * 3, 1)
        self.project, self.bn2 = nn.Conv2d(i * 3, o, 1, bias=False), nn.BatchNorm2d(o)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.bn1(self.depthwise(F.silu(self.bn0(self.expand(x))))))
        s = self.se_expand(F.silu(self.se_reduce(x.mean((2, 3), keepdim=True))))
        return self.bn2(self.project(torch.sigmoid(s) * x))


class TokenLearner(nn.Module):
    def __init__(self, dim: int, num_tokens: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(dim)
        self.dense_0, self.dense_1 = nn.Linear(dim, 13), nn.Linear(13, num_tokens)

    def forward(self, inputs: Tensor) -> Tensor:
        inputs = inputs.flatten(2).transpose(1, 2)
        selected = self.dense_1(F.gelu(self.dense_0(self.layernorm(inputs))))
        selected = F.softmax(selected.transpose(1, 2), dim=-1)
        return torch.einsum("...si,...id->...sd", selected, inputs)


class ActionLayer(nn.Module):
    def __init__(self, feed_forward_size: int, num_heads: int) -> None:
        super().__init__()
        self.layernorm1, self.layernorm2 = nn.LayerNorm(feed_forward_size), nn.LayerNorm(feed_forward_size)
        self.mha1 = nn.MultiheadAttention(feed_forward_size, num_heads, batch_first=True)
        self.ff = nn.Linear(feed_forward_size, feed_forward_size)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        x1 = self.layernorm1(x)
        x1, _ = self.mha1(x1, x1, x1, attn_mask=attention_mask)
        x = x + x1
        return x + self.ff(self.layernorm2(x))


class ToldRobot(nn.Module):
    def __init__(self, words: int = 16, actions: int = 23, tokens: int = 3) -> None:
        super().__init__()
        self.stem, self.stem_bn = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.ModuleList([InvertedBlock(8, 14, 2), InvertedBlock(14, 20, 1)])
        self.film = nn.ModuleList([FilmLayer(14, words), FilmLayer(20, words)])
        self.conv1x1 = nn.Conv2d(20, 26, 1, bias=False)
        self.token_learner = TokenLearner(26, tokens)
        self.token_emb, self.position_emb = nn.Linear(26, 30), nn.Embedding(12, 30)
        self.layers = nn.ModuleList([ActionLayer(30, 5) for _ in range(2)])
        self.output_tokens = nn.Linear(30, actions)

    def forward(self, video: Tensor, words: Tensor) -> Tensor:
        b, t = video.shape[:2]
        context = words.repeat_interleave(t, dim=0)
        x = F.silu(self.stem_bn(self.stem(video.flatten(0, 1))))
        for block, film in zip(self.blocks, self.film, strict=True):
            x = film(block(x), context)
        x = self.token_learner(self.conv1x1(x)).reshape(b, -1, 26)
        n = x.shape[1]
        x = self.token_emb(x) + self.position_emb(torch.arange(n))
        mask = torch.triu(torch.full((n, n), -1e9), diagonal=1)
        for layer in self.layers:
            x = layer(x, mask)
        return self.output_tokens(x)


# Clouds by diffusion: each point is a token, time and a picture are tokens too, queries, keys and values head by head.
class CloudAttention(nn.Module):
    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.heads, self.c_qkv, self.c_proj = heads, nn.Linear(width, width * 3), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        bs, n_ctx, width = x.shape
        attn_ch = width // self.heads
        scale = 1 / math.sqrt(math.sqrt(attn_ch))
        q, k, v = torch.split(self.c_qkv(x).view(bs, n_ctx, self.heads, -1), attn_ch, dim=-1)
        weight = torch.einsum("bthc,bshc->bhts", q * scale, k * scale)
        weight = torch.softmax(weight.float(), dim=-1)
        return self.c_proj(torch.einsum("bhts,bshc->bthc", weight, v).reshape(bs, n_ctx, -1))


class CloudMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc, self.c_proj, self.gelu = nn.Linear(width, width * 4), nn.Linear(width * 4, width), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class CloudBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn, self.ln_1, self.mlp, self.ln_2 = CloudAttention(heads, width), nn.LayerNorm(width), CloudMLP(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class CloudDiffusion(nn.Module):
    def __init__(self, width: int = 28, heads: int = 4, clip: int = 19) -> None:
        super().__init__()
        self.width = width
        self.time_embed, self.clip_embed = CloudMLP(width), nn.Linear(clip, width)
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.resblocks = nn.ModuleList([CloudBlock(width, heads) for _ in range(2)])
        self.input_proj, self.output_proj = nn.Linear(6, width), nn.Linear(width, 12)

    def forward(self, x: Tensor, t: Tensor, embeddings: Tensor) -> Tensor:
        freqs = torch.exp(-math.log(10000) * torch.arange(self.width // 2) / (self.width // 2))
        args = t[:, None].float() * freqs[None]
        t_embed = self.time_embed(torch.cat([torch.cos(args), torch.sin(args)], dim=-1))
        clip_embed = self.clip_embed(embeddings)
        h = self.input_proj(x.permute(0, 2, 1))
        h = self.ln_pre(torch.cat([t_embed[:, None], clip_embed[:, None], h], dim=1))
        for block in self.resblocks:
            h = block(h)
        return self.output_proj(self.ln_post(h)[:, 2:]).permute(0, 2, 1)


# Films by diffusion over latents: a block over the places of a frame, then one over the frames of a place.
class FrameAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).contiguous().unbind(0)
        attn = torch.softmax(q @ k.transpose(-2, -1) * (C // self.heads) ** -0.5, dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class FilmBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, elementwise_affine=False), nn.LayerNorm(dim, elementwise_affine=False)
        self.attn = FrameAttention(dim, heads)
        self.mlp = nn.Sequential(nn.Linear(dim, dim * 3), nn.GELU(approximate="tanh"), nn.Linear(dim * 3, dim))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate_a * self.attn(self.norm1(x) * (1 + scale_a) + shift_a)
        return x + gate_m * self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)


class FilmDiT(nn.Module):
    def __init__(self, dim: int = 30, heads: int = 5, frames: int = 3, classes: int = 7) -> None:
        super().__init__()
        self.dim = dim
        self.x_embedder = nn.Conv2d(4, dim, 2, 2)
        self.t_embedder = nn.Sequential(nn.Linear(16, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.y_embedder = nn.Embedding(classes + 1, dim)
        self.pos_embed = nn.Parameter(torch.randn(1, 16, dim), requires_grad=False)
        self.temp_embed = nn.Parameter(torch.randn(1, frames, dim), requires_grad=False)
        self.blocks = nn.ModuleList([FilmBlock(dim, heads) for _ in range(4)])
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False)
        self.linear = nn.Linear(dim, 2 * 2 * 8)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        b, f, _c, height, width = x.shape
        x = self.x_embedder(x.flatten(0, 1)).flatten(2).transpose(1, 2) + self.pos_embed
        n = x.shape[1]
        freqs = torch.exp(-math.log(10000) * torch.arange(8) / 8)
        args = t[:, None].float() * freqs
        c = self.t_embedder(torch.cat([args.cos(), args.sin()], -1)) + self.y_embedder(y)
        for i in range(0, len(self.blocks), 2):
            x = self.blocks[i](x, c.repeat_interleave(f, 0))
            x = x.view(b, f, n, self.dim).transpose(1, 2).reshape(b * n, f, self.dim)
            if i == 0:
                x = x + self.temp_embed
            x = self.blocks[i + 1](x, c.repeat_interleave(n, 0))
            x = x.view(b, n, f, self.dim).transpose(1, 2).reshape(b * f, n, self.dim)
        shift, scale = self.adaLN_modulation(c.repeat_interleave(f, 0)).unsqueeze(1).chunk(2, dim=-1)
        x = self.linear(self.norm_final(x) * (1 + scale) + shift)
        x = x.view(b * f, height // 2, width // 2, 2, 2, 8)
        return torch.einsum("nhwpqc->nchpwq", x).reshape(b, f, 8, height, width)


# Words painted: one head of keys for all, with a null among them; the words are keys beside the places, or are attended across.
class ChanNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(-1, keepdim=True)) * (x.var(-1, unbiased=False, keepdim=True) + 1e-5).rsqrt() * self.g


class NullAttention(nn.Module):
    def __init__(self, dim: int, dim_head: int, heads: int, context_dim: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm, self.null_kv = ChanNorm(dim), nn.Parameter(torch.randn(2, dim_head))
        self.to_q = nn.Linear(dim, dim_head * heads, bias=False)
        self.to_kv = nn.Linear(dim, dim_head * 2, bias=False)
        self.to_context = nn.Sequential(ChanNorm(context_dim), nn.Linear(context_dim, dim_head * 2))
        self.to_out = nn.Sequential(nn.Linear(dim_head * heads, dim, bias=False), ChanNorm(dim))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = self.norm(x)
        q, (k, v) = self.to_q(x), self.to_kv(x).chunk(2, dim=-1)
        q = q.view(b, n, self.heads, -1).transpose(1, 2) * self.scale
        nk, nv = (t.view(1, 1, -1).expand(b, -1, -1) for t in self.null_kv.unbind(dim=-2))
        k, v = torch.cat((nk, k), dim=-2), torch.cat((nv, v), dim=-2)
        ck, cv = self.to_context(context).chunk(2, dim=-1)
        k, v = torch.cat((ck, k), dim=-2), torch.cat((cv, v), dim=-2)
        attn = torch.einsum("b h i d, b j d -> b h i j", q, k).softmax(dim=-1)
        out = torch.einsum("b h i j, b j d -> b h i d", attn, v)
        return self.to_out(out.transpose(1, 2).reshape(b, n, -1))


class NullCrossAttention(nn.Module):
    def __init__(self, dim: int, context_dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm, self.null_kv = ChanNorm(dim), nn.Parameter(torch.randn(2, dim_head))
        self.to_q = nn.Linear(dim, dim_head * heads, bias=False)
        self.to_kv = nn.Linear(context_dim, dim_head * heads * 2, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim_head * heads, dim, bias=False), ChanNorm(dim))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (self.to_q(self.norm(x)), *self.to_kv(context).chunk(2, dim=-1))
        q, k, v = (t.view(b, -1, self.heads, t.shape[-1] // self.heads).transpose(1, 2) for t in (q, k, v))
        nk, nv = (t.view(1, 1, 1, -1).expand(b, self.heads, 1, -1) for t in self.null_kv.unbind(dim=-2))
        k, v = torch.cat((nk, k), dim=-2), torch.cat((nv, v), dim=-2)
        attn = (q * self.scale @ k.transpose(-1, -2)).softmax(dim=-1, dtype=torch.float32)
        return self.to_out((attn @ v).transpose(1, 2).reshape(b, n, -1))


class PaintBlock(nn.Module):
    def __init__(self, dim: int, dim_out: int) -> None:
        super().__init__()
        self.groupnorm, self.project = nn.GroupNorm(4, dim), nn.Conv2d(dim, dim_out, 3, padding=1)

    def forward(self, x: Tensor, scale_shift: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = self.groupnorm(x)
        if scale_shift is not None:
            scale, shift = scale_shift
            x = x * (scale + 1) + shift
        return self.project(F.silu(x))


class PaintResnet(nn.Module):
    def __init__(self, dim: int, dim_out: int, cond: int, time: int, heads: int = 0) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(nn.SiLU(), nn.Linear(time, dim_out * 2))
        self.cross_attn = NullCrossAttention(dim_out, cond, 6, heads) if heads else None
        self.block1, self.block2 = PaintBlock(dim, dim_out), PaintBlock(dim_out, dim_out)
        self.res_conv = nn.Conv2d(dim, dim_out, 1)

    def forward(self, x: Tensor, time_emb: Tensor, cond: Tensor) -> Tensor:
        scale_shift = self.time_mlp(time_emb)[:, :, None, None].chunk(2, dim=1)
        h = self.block1(x)
        if self.cross_attn is not None:
            seq = h.flatten(2).transpose(1, 2)
            h = (self.cross_attn(seq, cond) + seq).transpose(1, 2).view_as(h)
        return self.block2(h, scale_shift) + self.res_conv(x)


class WordPainter(nn.Module):
    def __init__(self, dim: int = 16, cond: int = 18, text: int = 21) -> None:
        super().__init__()
        self.init_conv = nn.Conv2d(3, dim, 7, padding=3)
        self.sinu_weights = nn.Parameter(torch.randn(5))
        self.to_time_hiddens = nn.Sequential(nn.Linear(11, 40), nn.SiLU())
        self.to_time_cond = nn.Sequential(nn.Linear(40, 40))
        self.to_time_tokens = nn.Sequential(nn.Linear(40, cond * 2))
        self.text_to_cond = nn.Linear(text, cond)
        self.to_text_non_attn_cond = nn.Sequential(nn.LayerNorm(cond), nn.Linear(cond, 40), nn.SiLU(), nn.Linear(40, 40))
        self.norm_cond = nn.LayerNorm(cond)
        self.down1, self.pre_down = PaintResnet(dim, 20, cond, 40), nn.Conv2d(20, 28, 4, 2, 1)
        self.mid_block1, self.mid_attn = PaintResnet(28, 28, cond, 40, 3), NullAttention(28, 8, 4, cond)
        self.mid_block2 = PaintResnet(28, 28, cond, 40, 3)
        self.upsample = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(28, 20, 3, padding=1))
        self.up1, self.final_conv = PaintResnet(40, dim, cond, 40), nn.Conv2d(dim, 3, 3, padding=1)

    def forward(self, x: Tensor, time: Tensor, text_embeds: Tensor) -> Tensor:
        freqs = time[:, None] * self.sinu_weights[None] * 2 * math.pi
        hiddens = self.to_time_hiddens(torch.cat((time[:, None], freqs.sin(), freqs.cos()), dim=-1))
        t, time_tokens = self.to_time_cond(hiddens), self.to_time_tokens(hiddens).unflatten(1, (2, -1))
        text_tokens = self.text_to_cond(text_embeds)
        t = t + self.to_text_non_attn_cond(text_tokens.mean(dim=-2))
        c = self.norm_cond(torch.cat((time_tokens, text_tokens), dim=-2))
        skip = self.down1(self.init_conv(x), t, c)
        x = self.mid_block1(self.pre_down(skip), t, c)
        seq = x.flatten(2).transpose(1, 2)
        x = (self.mid_attn(seq, c) + seq).transpose(1, 2).view_as(x)
        x = self.upsample(self.mid_block2(x, t, c))
        return self.final_conv(self.up1(torch.cat((x, skip * 2**-0.5), dim=1), t, c))


# A body's motion by diffusion: a frame is a token, words and step are one more.
class StepEmbedder(nn.Module):
    def __init__(self, latent_dim: int, pe: Tensor) -> None:
        super().__init__()
        self.register_buffer("pe", pe)
        self.time_embed = nn.Sequential(nn.Linear(latent_dim, latent_dim), nn.SiLU(), nn.Linear(latent_dim, latent_dim))

    def forward(self, timesteps: Tensor) -> Tensor:
        return self.time_embed(self.pe[timesteps]).permute(1, 0, 2)


class MotionDiffusion(nn.Module):
    def __init__(self, njoints: int = 9, nfeats: int = 2, latent_dim: int = 36, clip_dim: int = 22) -> None:
        super().__init__()
        self.njoints, self.nfeats = njoints, nfeats
        place = torch.arange(50)[:, None] * torch.exp(torch.arange(0, latent_dim, 2) * (-math.log(10000.0) / latent_dim))
        pe = torch.stack([place.sin(), place.cos()], -1).flatten(1).unsqueeze(1)
        self.register_buffer("pe", pe)
        self.poseEmbedding = nn.Linear(njoints * nfeats, latent_dim)
        layer = nn.TransformerEncoderLayer(d_model=latent_dim, nhead=4, dim_feedforward=52, dropout=0.0, activation="gelu")
        self.seqTransEncoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.embed_timestep = StepEmbedder(latent_dim, pe)
        self.embed_text = nn.Linear(clip_dim, latent_dim)
        self.poseFinal = nn.Linear(latent_dim, njoints * nfeats)

    def forward(self, x: Tensor, timesteps: Tensor, enc_text: Tensor) -> Tensor:
        bs, _j, _f, nframes = x.shape
        emb = self.embed_timestep(timesteps) + self.embed_text(enc_text)
        x = self.poseEmbedding(x.permute(3, 0, 1, 2).reshape(nframes, bs, -1))
        xseq = torch.cat((emb, x), dim=0)
        xseq = xseq + self.pe[: xseq.shape[0]]
        output = self.poseFinal(self.seqTransEncoder(xseq)[1:])
        return output.reshape(nframes, bs, self.njoints, self.nfeats).permute(1, 2, 3, 0)


# A shape as where it is full: a network over points, and a decoder whose norms are told the shape.
class ResnetBlockFC(nn.Module):
    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.fc_0, self.fc_1, self.actvn = nn.Linear(size_in, size_out), nn.Linear(size_out, size_out), nn.ReLU()
        self.shortcut = nn.Linear(size_in, size_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.fc_1(self.actvn(self.fc_0(self.actvn(x))))


class CBatchNorm1d(nn.Module):
    def __init__(self, c_dim: int, f_dim: int) -> None:
        super().__init__()
        self.conv_gamma, self.conv_beta = nn.Conv1d(c_dim, f_dim, 1), nn.Conv1d(c_dim, f_dim, 1)
        self.bn = nn.BatchNorm1d(f_dim, affine=False)
        nn.init.zeros_(self.conv_gamma.weight)
        nn.init.zeros_(self.conv_beta.weight)
        nn.init.ones_(self.conv_gamma.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        c = c.unsqueeze(2)
        return self.conv_gamma(c) * self.bn(x) + self.conv_beta(c)


class CResnetBlockConv1d(nn.Module):
    def __init__(self, c_dim: int, size: int) -> None:
        super().__init__()
        self.bn_0, self.bn_1 = CBatchNorm1d(c_dim, size), CBatchNorm1d(c_dim, size)
        self.fc_0, self.fc_1, self.actvn = nn.Conv1d(size, size, 1), nn.Conv1d(size, size, 1), nn.ReLU()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        net = self.fc_0(self.actvn(self.bn_0(x, c)))
        return x + self.fc_1(self.actvn(self.bn_1(net, c)))


class Occupancy(nn.Module):
    def __init__(self, c_dim: int = 17, hidden: int = 24) -> None:
        super().__init__()
        self.fc_pos, self.fc_c = nn.Linear(3, 2 * hidden), nn.Linear(hidden, c_dim)
        self.enc_0, self.enc_1 = ResnetBlockFC(2 * hidden, hidden), ResnetBlockFC(2 * hidden, hidden)
        self.fc_p = nn.Conv1d(3, 26, 1)
        self.block0, self.block1 = CResnetBlockConv1d(c_dim, 26), CResnetBlockConv1d(c_dim, 26)
        self.bn, self.fc_out = CBatchNorm1d(c_dim, 26), nn.Conv1d(26, 1, 1)

    def forward(self, p: Tensor, inputs: Tensor) -> Tensor:
        net = self.enc_0(self.fc_pos(inputs))
        pooled = net.max(dim=1, keepdim=True)[0].expand(net.size())
        net = self.enc_1(torch.cat([net, pooled], dim=2))
        c = self.fc_c(F.relu(net.max(dim=1)[0]))
        net = self.fc_p(p.transpose(1, 2))
        net = self.block1(self.block0(net, c), c)
        return self.fc_out(F.relu(self.bn(net, c))).squeeze(1)


# Cars among pillars of points: a small network in each pillar, its maximum put on a map, convolutions over the map.
class PillarLayer(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(in_channels, out_channels, bias=False), nn.BatchNorm1d(out_channels)

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.norm(self.linear(inputs).permute(0, 2, 1)).permute(0, 2, 1)
        return torch.max(F.relu(x), dim=1)[0]


class Pillars(nn.Module):
    def __init__(self, classes: int = 3, anchors: int = 2, size: int = 8) -> None:
        super().__init__()
        self.size, self.pfn = size, PillarLayer(9, 14)
        self.blocks = nn.ModuleList([self.stage(14, 18, 1), self.stage(18, 26, 2)])
        self.deblocks = nn.ModuleList(
            [
                nn.Sequential(nn.ConvTranspose2d(18, 16, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
                nn.Sequential(nn.ConvTranspose2d(26, 16, 2, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            ]
        )
        self.conv_cls, self.conv_box = nn.Conv2d(32, anchors * classes, 1), nn.Conv2d(32, anchors * 7, 1)
        self.conv_dir_cls = nn.Conv2d(32, anchors * 2, 1)

    @staticmethod
    def stage(i: int, o: int, stride: int) -> nn.Sequential:
        return nn.Sequential(
            nn.ZeroPad2d(1), nn.Conv2d(i, o, 3, stride, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
            nn.Conv2d(o, o, 3, padding=1, bias=False), nn.BatchNorm2d(o), nn.ReLU(),
        )  # fmt: skip

    def forward(self, voxels: Tensor, num_points: Tensor, coords: Tensor) -> tuple[Tensor, ...]:
        points_mean = voxels[:, :, :3].sum(dim=1, keepdim=True) / num_points.view(-1, 1, 1)
        f_center = voxels[:, :, :2] - coords[:, None, :].float()
        features = torch.cat([voxels, voxels[:, :, :3] - points_mean, f_center], dim=-1)
        mask = (torch.arange(voxels.shape[1])[None] < num_points[:, None]).unsqueeze(-1)
        pillars = self.pfn(features * mask)
        canvas = torch.zeros(pillars.shape[1], self.size * self.size)
        canvas[:, coords[:, 0] * self.size + coords[:, 1]] = pillars.t()
        x = canvas.view(1, -1, self.size, self.size)
        ups = []
        for block, deblock in zip(self.blocks, self.deblocks, strict=True):
            x = block(x)
            ups.append(deblock(x))
        x = torch.cat(ups, dim=1)
        return self.conv_cls(x), self.conv_box(x), self.conv_dir_cls(x)


# A consistency model: what comes in is kept at the smallest noise; keys are made by a convolution with a stride.
class ConsistencyResidual(nn.Module):
    def __init__(self, i: int, o: int, emb: int) -> None:
        super().__init__()
        self.input_projection = nn.Sequential(nn.GroupNorm(2, i), nn.SiLU(), nn.Conv2d(i, o, 3, padding=1))
        self.noise_level_projection = nn.Sequential(nn.SiLU(), nn.Conv2d(emb, o, 1))
        self.output_projection = nn.Sequential(nn.GroupNorm(2, o), nn.SiLU(), nn.Conv2d(o, o, 3, padding=1))
        self.residual_projection = nn.Conv2d(i, o, 1)

    def forward(self, x: Tensor, noise_level: Tensor) -> Tensor:
        h = self.input_projection(x) + self.noise_level_projection(noise_level)
        return self.output_projection(h) + self.residual_projection(x)


class StridedAttention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(2, dim)
        self.to_q, self.to_kv = nn.Conv2d(dim, dim, 1, bias=False), nn.Conv2d(dim, dim * 2, 2, stride=2, bias=False)
        self.to_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.norm(x)
        q = self.to_q(y).view(b, self.heads, c // self.heads, h * w)
        k, v = (t.reshape(b, self.heads, c // self.heads, -1) for t in self.to_kv(y).chunk(2, dim=1))
        sim = torch.einsum("bhdi,bhdj->bhij", q * (c // self.heads) ** -0.5, k)
        out = torch.einsum("bhij,bhdj->bhdi", sim.softmax(dim=-1), v)
        return x + self.to_out(out.reshape(b, c, h, w))


class Consistency(nn.Module):
    def __init__(self, sigma_data: float = 0.5, sigma_min: float = 0.002) -> None:
        super().__init__()
        self.sigma_data, self.sigma_min = sigma_data, sigma_min
        self.register_buffer("W", torch.randn(8) * 16)
        self.noise_level_projection = nn.Sequential(nn.Conv2d(16, 30, 1), nn.SiLU(), nn.Conv2d(30, 30, 1))
        self.input_projection, self.encoder = nn.Conv2d(3, 12, 3, padding=1), ConsistencyResidual(12, 18, 30)
        self.downsample = nn.Conv2d(18 * 4, 24, 1)
        self.middle, self.attention = ConsistencyResidual(24, 24, 30), StridedAttention(24, 3)
        self.upsample, self.decoder = (
            nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv2d(24, 18, 3, padding=1)),
            ConsistencyResidual(36, 12, 30),
        )
        self.output_projection = nn.Conv2d(12, 3, 3, padding=1)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        h = torch.log(sigma)[:, None] * self.W[None] * 2 * math.pi
        emb = self.noise_level_projection(torch.cat([h.sin(), h.cos()], dim=-1)[..., None, None])
        skip = self.encoder(self.input_projection(x), emb)
        h = self.attention(self.middle(self.downsample(F.pixel_unshuffle(skip, 2)), emb))
        h = self.decoder(torch.cat([self.upsample(h), skip], dim=1), emb)
        sigma = sigma[:, None, None, None]
        c_skip = self.sigma_data**2 / ((sigma - self.sigma_min) ** 2 + self.sigma_data**2)
        c_out = self.sigma_data * (sigma - self.sigma_min) / (self.sigma_data**2 + sigma**2) ** 0.5
        return c_skip * x + c_out * self.output_projection(h)


_PLAIN = {"linear", "mlp_up", "mlp_down"}
_TIME, _TOLD = {"time_embedding"}, {"time_embedding", "modulation"}
_LAST = {"classifier", "lm_head", "linear"}
_OUT = {"conv", "classifier", "lm_head"}

STYLES: list[Style] = [
    Style(
        "actions by flow matching, two experts",
        ActionFlow,
        lambda: (
            (torch.randn(1, 3, 8, 8), torch.randint(29, (1, 3)), torch.randn(1, 7), torch.randn(1, 4, 5), torch.rand(1)),
            {},
        ),
        {"diffusion_transformer", "transformer"},
        {
            "embed_tokens.weight": {"token_embedding"},
            "vision.weight": {"patch_embedding"},
            "multi_modal_projector.weight": {"linear", "patch_embedding"},
            "action_encoder_1.weight": {"linear", "mlp_up", "patch_embedding"},
            "action_encoder_2.weight": {"linear", "mlp_up", "time_embedding"},
            "action_encoder_3.weight": {"linear", "mlp_down", "time_embedding"},
            "proprio_encoder.weight": {"linear", "patch_embedding"},
            "*.q_proj.weight": {"query"},
            "*.k_proj.weight": {"key"},
            "*.v_proj.weight": {"value"},
            "*.o_proj.weight": {"attn_out"},
            "*.gate_proj.weight": {"mlp_gate"},
            "*.up_proj.weight": {"mlp_up"},
            "*.down_proj.weight": {"mlp_down"},
            "action_decoder.weight": _LAST,
        },
        {"*.q_proj.weight": "q:4x6", "*.k_proj.weight": "k:2x6"},
    ),
    Style(
        "chunks of actions",
        ChunkPolicy,
        lambda: ((torch.randn(1, 6), torch.randn(1, 3, 16, 16), torch.randn(1, 5, 6)), {}),
        {"transformer", "hybrid"},
        {
            "backbone.0.weight": {"first_conv"},
            "backbone.2.weight": {"conv"},
            "input_proj.weight": {"conv", "linear", "patch_embedding"},
            "input_proj_robot_state.weight": {"linear", "patch_embedding"},
            "cls_embed.weight": {"special_token", "token_embedding"},
            "encoder_*_proj.weight": {"linear", "patch_embedding"},
            "latent_proj.weight": _LAST,
            "latent_out_proj.weight": _PLAIN,
            "*.in_proj_weight": {"qkv"},
            "*attn.out_proj.weight": {"attn_out"},
            "*.linear1.weight": {"mlp_up"},
            "*.linear2.weight": {"mlp_down"},
            "query_embed.weight": {"position_embedding", "special_token", "token_embedding"},
            "additional_pos_embed.weight": {"position_embedding", "type_embedding"},
            "action_head.weight": _LAST,
            "is_pad_head.weight": _LAST,
        },
        {"*.in_proj_weight": "q:4x8|k:4x8|v:4x8"},
    ),
    Style(
        "a robot told in words",
        ToldRobot,
        lambda: ((torch.randn(1, 3, 3, 12, 12), torch.randn(1, 16)), {}),
        {"transformer", "hybrid"},
        {
            "stem.weight": {"first_conv"},
            "blocks.*.expand.weight": {"conv"},
            "blocks.*.depthwise.weight": {"conv_dw"},
            "blocks.*.se_*.weight": {"conv", "linear", "attn_other", "mlp_up", "mlp_down"},
            "blocks.*.project.weight": {"conv"},
            "film.*.weight": {"modulation"},
            "conv1x1.weight": {"conv", "linear"},
            "token_learner.dense_0.weight": {"linear", "mlp_up", "attn_other"},
            "token_learner.dense_1.weight": {"linear", "mlp_down", "attn_other"},
            "token_emb.weight": {"linear", "patch_embedding"},
            "position_emb.weight": {"position_embedding"},
            "layers.*.mha1.in_proj_weight": {"qkv"},
            "layers.*.mha1.out_proj.weight": {"attn_out"},
            "layers.*.ff.weight": _PLAIN,
            "output_tokens.weight": {"lm_head", "classifier"},
        },
        {"layers.*.mha1.in_proj_weight": "q:5x6|k:5x6|v:5x6"},
    ),
    Style(
        "clouds by diffusion, head by head",
        CloudDiffusion,
        lambda: ((torch.randn(1, 6, 9), torch.tensor([40]), torch.randn(1, 19)), {}),
        {"diffusion_transformer"},
        {
            "time_embed.*.weight": _TIME,
            "clip_embed.weight": {"linear", "patch_embedding"},
            "resblocks.*.attn.c_qkv.weight": {"qkv"},
            "resblocks.*.attn.c_proj.weight": {"attn_out"},
            "resblocks.*.mlp.c_fc.weight": {"mlp_up"},
            "resblocks.*.mlp.c_proj.weight": {"mlp_down"},
            "input_proj.weight": {"linear", "patch_embedding"},
            "output_proj.weight": _LAST,
        },
        {"resblocks.*.attn.c_qkv.weight": "4*(q:1x7|k:1x7|v:1x7)"},
    ),
    Style(
        "films by diffusion, places then frames",
        FilmDiT,
        lambda: ((torch.randn(1, 3, 4, 8, 8), torch.tensor([30]), torch.tensor([2])), {}),
        {"diffusion_transformer"},
        {
            "x_embedder.weight": {"patch_embedding"},
            "t_embedder.?.weight": _TIME,
            "y_embedder.weight": {"token_embedding", "type_embedding", "time_embedding", "modulation"},
            "blocks.*.attn.qkv.weight": {"qkv"},
            "blocks.*.attn.proj.weight": {"attn_out"},
            "blocks.*.mlp.0.weight": {"mlp_up"},
            "blocks.*.mlp.2.weight": {"mlp_down"},
            "*adaLN_modulation.1.weight": {"modulation"},
            "linear.weight": _LAST,
        },
        {"blocks.*.attn.qkv.weight": "q:5x6|k:5x6|v:5x6"},
    ),
    Style(
        "words painted, a null among the keys",
        WordPainter,
        lambda: ((torch.randn(1, 3, 8, 8), torch.rand(1), torch.randn(1, 4, 21)), {}),
        {"diffusion_unet"},
        {
            "init_conv.weight": {"first_conv"},
            "to_time_hiddens.0.weight": _TIME,
            "to_time_cond.0.weight": _TIME,
            "to_time_tokens.0.weight": {"time_embedding", "linear"},
            "text_to_cond.weight": {"linear"},
            "to_text_non_attn_cond.1.weight": {"linear", "mlp_up", "time_embedding", "modulation"},
            "to_text_non_attn_cond.3.weight": {"linear", "mlp_down", "time_embedding", "modulation"},
            "*.time_mlp.1.weight": _TOLD,
            "*attn.to_q.weight": {"query"},
            "*attn.to_kv.weight": {"qkv"},
            "mid_attn.to_context.1.weight": {"qkv"},
            "*attn.to_out.0.weight": {"attn_out"},
            "*attn.null_kv": {"special_token", "key", "value", "qkv", "other"},
            "*.project.weight": {"conv"},
            "*.res_conv.weight": {"conv"},
            "pre_down.weight": {"conv"},
            "upsample.1.weight": {"conv"},
            "final_conv.weight": _OUT,
        },
        {
            "mid_block?.cross_attn.to_q.weight": "q:3x6",
            "mid_block?.cross_attn.to_kv.weight": "k:3x6|v:3x6",
            "mid_attn.to_q.weight": "q:4x8",
            "mid_attn.to_kv.weight": "k:1x8|v:1x8",
            "mid_attn.to_context.1.weight": "k:1x8|v:1x8",
        },
    ),
    Style(
        "a body's motion by diffusion",
        MotionDiffusion,
        lambda: ((torch.randn(1, 9, 2, 6), torch.tensor([7]), torch.randn(1, 22)), {}),
        {"diffusion_transformer", "transformer"},
        {
            "poseEmbedding.weight": {"linear", "patch_embedding"},
            "seqTransEncoder.*.in_proj_weight": {"qkv"},
            "seqTransEncoder.*.out_proj.weight": {"attn_out"},
            "seqTransEncoder.*.linear1.weight": {"mlp_up"},
            "seqTransEncoder.*.linear2.weight": {"mlp_down"},
            "embed_timestep.time_embed.?.weight": _TIME,
            "embed_text.weight": {"linear", "time_embedding", "modulation"},
            "poseFinal.weight": _LAST,
        },
        {"seqTransEncoder.*.in_proj_weight": "q:4x9|k:4x9|v:4x9"},
    ),
    Style(
        "where a shape is full",
        Occupancy,
        lambda: ((torch.randn(2, 6, 3), torch.randn(2, 8, 3)), {}),
        {"mlp", "cnn", "hybrid"},
        {
            "fc_pos.weight": {"linear", "mlp_up", "patch_embedding"},
            "enc_?.fc_0.weight": {"mlp_up", "linear"},
            "enc_?.fc_1.weight": {"mlp_down", "linear"},
            "enc_?.shortcut.weight": _PLAIN,
            "fc_c.weight": _PLAIN,
            "fc_p.weight": {"first_conv", "conv", "linear", "mlp_up", "patch_embedding"},
            "*.conv_gamma.weight": {"modulation", "conv"},
            "*.conv_beta.weight": {"modulation", "conv"},
            "block?.fc_0.weight": {"conv", "mlp_up", "linear"},
            "block?.fc_1.weight": {"conv", "mlp_down", "linear"},
            "fc_out.weight": {"conv", "classifier", "lm_head", "linear"},
        },
    ),
    Style(
        "cars among pillars",
        Pillars,
        lambda: ((torch.randn(5, 6, 4), torch.tensor([6, 3, 2, 4, 1]), torch.tensor([[0, 1], [2, 2], [3, 7], [5, 4], [7, 0]])), {}),
        {"cnn", "hybrid"},
        {
            "pfn.linear.weight": {"linear", "mlp_up", "patch_embedding"},
            "blocks.0.1.weight": {"conv", "first_conv"},
            "blocks.1.1.weight": {"conv"},
            "blocks.?.4.weight": {"conv"},
            "deblocks.?.0.weight": {"conv"},
            "conv_*.weight": _OUT,
        },
    ),
    Style(
        "consistency, keys with a stride",
        Consistency,
        lambda: ((torch.randn(1, 3, 8, 8), torch.rand(1) + 0.1), {}),
        {"diffusion_unet"},
        {
            "noise_level_projection.?.weight": _TIME,
            "*.noise_level_projection.1.weight": _TOLD,
            "input_projection.weight": {"first_conv"},
            "*.input_projection.2.weight": {"conv"},
            "*.output_projection.2.weight": {"conv"},
            "*.residual_projection.weight": {"conv"},
            "downsample.weight": {"conv"},
            "upsample.1.weight": {"conv"},
            "attention.to_q.weight": {"query"},
            "attention.to_kv.weight": {"qkv"},
            "attention.to_out.weight": {"attn_out"},
            "output_projection.weight": _OUT,
        },
        {"attention.to_q.weight": "q:3x8", "attention.to_kv.weight": "k:3x8|v:3x8"},
    ),
]
