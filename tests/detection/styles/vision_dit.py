"""Diffusion transformers: DiT and U-ViT."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    freqs = torch.exp(-math.log(10000) * torch.arange(dim // 2) / (dim // 2))
    args = t[:, None].float() * freqs
    return torch.cat([torch.cos(args), torch.sin(args)], dim=-1)


# DiT in the manner of small rectified-flow code: llama's names, each block modulated by the time.
class TimestepEmbedder(nn.Module):
    def __init__(self, hidden_size: int, frequency_embedding_size: int = 32) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(frequency_embedding_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        self.frequency_embedding_size = frequency_embedding_size

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(timestep_embedding(t, self.frequency_embedding_size))


class LabelEmbedder(nn.Module):
    def __init__(self, num_classes: int, hidden_size: int, dropout_prob: float) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)
        self.num_classes, self.dropout_prob = num_classes, dropout_prob

    def forward(self, labels: Tensor) -> Tensor:
        if self.training:
            labels = torch.where(torch.rand(len(labels)) < self.dropout_prob, self.num_classes, labels)
        return self.embedding_table(labels)


class Attention(nn.Module):
    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_rep = 1
        self.head_dim = dim // n_heads
        self.wq = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wk = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(dim, n_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(n_heads * self.head_dim, dim, bias=False)
        self.q_norm, self.k_norm = nn.LayerNorm(n_heads * self.head_dim), nn.LayerNorm(n_heads * self.head_dim)

    def forward(self, x: Tensor) -> Tensor:
        bsz, seqlen, _ = x.shape
        xq, xk, xv = self.q_norm(self.wq(x)), self.k_norm(self.wk(x)), self.wv(x)
        xq, xk, xv = (t.view(bsz, seqlen, -1, self.head_dim).permute(0, 2, 1, 3) for t in (xq, xk, xv))
        output = F.scaled_dot_product_attention(xq, xk, xv).permute(0, 2, 1, 3)
        return self.wo(output.flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, dim: int, hidden_dim: int, multiple_of: int) -> None:
        super().__init__()
        hidden_dim = multiple_of * ((2 * hidden_dim // 3 + multiple_of - 1) // multiple_of)
        self.w1 = nn.Linear(dim, hidden_dim, bias=False)
        self.w2 = nn.Linear(hidden_dim, dim, bias=False)
        self.w3 = nn.Linear(dim, hidden_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class TransformerBlock(nn.Module):
    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, n_heads)
        self.feed_forward = FeedForward(dim, 4 * dim, 8)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))

    def forward(self, x: Tensor, adaln_input: Tensor) -> Tensor:
        shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(adaln_input).chunk(6, dim=1)
        x = x + gate_msa.unsqueeze(1) * self.attention(modulate(self.attention_norm(x), shift_msa, scale_msa))
        return x + gate_mlp.unsqueeze(1) * self.feed_forward(modulate(self.ffn_norm(x), shift_mlp, scale_mlp))


class FinalLayer(nn.Module):
    def __init__(self, hidden_size: int, patch_size: int, out_channels: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.linear = nn.Linear(hidden_size, patch_size * patch_size * out_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class DiT_Llama(nn.Module):
    def __init__(self, in_channels: int = 4, patch_size: int = 2, dim: int = 48, n_layers: int = 2, n_heads: int = 3) -> None:
        super().__init__()
        self.patch_size, self.out_channels = patch_size, in_channels
        self.init_conv_seq = nn.Sequential(nn.Conv2d(in_channels, 16, 5, padding=2), nn.SiLU(), nn.GroupNorm(4, 16))
        self.x_embedder = nn.Linear(patch_size * patch_size * 16, dim)
        self.t_embedder, self.y_embedder = TimestepEmbedder(dim), LabelEmbedder(10, dim, 0.1)
        self.layers = nn.ModuleList([TransformerBlock(dim, n_heads) for _ in range(n_layers)])
        self.final_layer = FinalLayer(dim, patch_size, in_channels)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = F.pixel_unshuffle(self.init_conv_seq(x), self.patch_size)
        h, w = x.shape[-2:]
        x = self.x_embedder(x.flatten(2).transpose(1, 2))
        adaln_input = self.t_embedder(t) + self.y_embedder(y)
        for layer in self.layers:
            x = layer(x, adaln_input)
        x = self.final_layer(x, adaln_input).transpose(1, 2).unflatten(2, (h, w))
        return F.pixel_shuffle(x, self.patch_size)


# U-ViT: time and label are tokens; long skips join the first half to the second.
class UAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, L, C = x.shape
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, C // self.num_heads)).permute(2, 0, 3, 1, 4)
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, L, C))


class UBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, skip: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = UAttention(dim, num_heads)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        if self.skip_linear is not None and skip is not None:
            x = self.skip_linear(torch.cat([x, skip], dim=-1))
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class UViT(nn.Module):
    def __init__(self, in_chans: int = 3, patch_size: int = 4, embed_dim: int = 32, depth: int = 3, num_heads: int = 4) -> None:
        super().__init__()
        self.embed_dim, self.patch_size = embed_dim, patch_size
        self.patch_embed = nn.Conv2d(in_chans, embed_dim, patch_size, patch_size)
        self.time_embed = nn.Identity()
        self.label_emb = nn.Embedding(10, embed_dim)
        self.pos_embed = nn.Parameter(torch.randn(1, 2 + 16, embed_dim) * 0.02)
        self.in_blocks = nn.ModuleList([UBlock(embed_dim, num_heads) for _ in range(depth // 2)])
        self.mid_block = UBlock(embed_dim, num_heads)
        self.out_blocks = nn.ModuleList([UBlock(embed_dim, num_heads, skip=True) for _ in range(depth // 2)])
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * in_chans)
        self.final_layer = nn.Conv2d(in_chans, in_chans, 3, padding=1)

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor) -> Tensor:
        x = self.patch_embed(x)
        h, w = x.shape[-2:]
        time_token = self.time_embed(timestep_embedding(timesteps, self.embed_dim)).unsqueeze(1)
        x = torch.cat((self.label_emb(y).unsqueeze(1), time_token, x.flatten(2).transpose(1, 2)), dim=1) + self.pos_embed
        skips = []
        for blk in self.in_blocks:
            x = blk(x)
            skips.append(x)
        x = self.mid_block(x)
        for blk in self.out_blocks:
            x = blk(x, skips.pop())
        x = self.decoder_pred(self.norm(x))[:, 2:].transpose(1, 2).unflatten(2, (h, w))
        return self.final_layer(F.pixel_shuffle(x, self.patch_size))


STYLES: list[Style] = [
    Style(
        "dit",
        DiT_Llama,
        lambda: ((torch.randn(1, 4, 8, 8), torch.rand(1), torch.tensor([3])), {}),
        {"diffusion_transformer"},
        {
            "init_conv_seq.0.weight": {"first_conv", "conv", "patch_embedding"},
            "x_embedder.weight": {"patch_embedding", "linear"},
            "t_embedder.mlp.?.weight": {"time_embedding"},
            # One row per class: a token of a vocabulary of labels, or a condition beside the time.
            "y_embedder.embedding_table.weight": {"token_embedding", "time_embedding", "type_embedding"},
            "layers.*.wq.weight": {"query"},
            "layers.*.wk.weight": {"key"},
            "layers.*.wv.weight": {"value"},
            "layers.*.wo.weight": {"attn_out"},
            "layers.*.feed_forward.w1.weight": {"mlp_gate"},
            "layers.*.feed_forward.w3.weight": {"mlp_up"},
            "layers.*.feed_forward.w2.weight": {"mlp_down"},
            "*.adaLN_modulation.1.weight": {"modulation"},
            "final_layer.linear.weight": {"classifier", "lm_head", "linear"},
        },
        {"layers.*.wq.weight": "q:3x16", "layers.*.wk.weight": "k:3x16"},
    ),
    Style(
        "u-vit",
        UViT,
        lambda: ((torch.randn(1, 3, 16, 16), torch.tensor([7]), torch.tensor([3])), {}),
        {"diffusion_transformer"},
        {
            "patch_embed.weight": {"patch_embedding"},
            "label_emb.weight": {"token_embedding", "time_embedding", "type_embedding"},
            "pos_embed": {"position_embedding"},
            "*.attn.qkv.weight": {"qkv"},
            "*.attn.proj.weight": {"attn_out"},
            "*.mlp.0.weight": {"mlp_up"},
            "*.mlp.2.weight": {"mlp_down"},
            "out_blocks.*.skip_linear.weight": {"linear"},
            "decoder_pred.weight": {"classifier", "lm_head", "linear"},
            "final_layer.weight": {"conv", "classifier", "lm_head"},
        },
        {"*.attn.qkv.weight": "q:4x8|k:4x8|v:4x8"},
    ),
]
