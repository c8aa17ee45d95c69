"""Segment Anything: image encoder with windows and relative positions, and the two-way mask decoder."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


class LayerNorm2d(nn.Module):
    def __init__(self, num_channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(num_channels)), nn.Parameter(torch.zeros(num_channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = (x - x.mean(1, keepdim=True)) / torch.sqrt(x.var(1, unbiased=False, keepdim=True) + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class MLPBlock(nn.Module):
    def __init__(self, embedding_dim: int, mlp_dim: int, act: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(embedding_dim, mlp_dim), nn.Linear(mlp_dim, embedding_dim)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x)))


def get_rel_pos(size: int, rel_pos: Tensor) -> Tensor:
    places = torch.arange(size)
    return rel_pos[places[:, None] - places[None, :] + size - 1]


class EncoderAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, input_size: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * input_size - 1, dim // num_heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * input_size - 1, dim // num_heads))

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, _ = x.shape
        qkv = self.qkv(x).reshape(B, H * W, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, B * self.num_heads, H * W, -1).unbind(0)
        attn = (q * self.scale) @ k.transpose(-2, -1)
        r_q = q.reshape(B * self.num_heads, H, W, -1)
        rel_h = torch.einsum("bhwc,hkc->bhwk", r_q, get_rel_pos(H, self.rel_pos_h))
        rel_w = torch.einsum("bhwc,wkc->bhwk", r_q, get_rel_pos(W, self.rel_pos_w))
        attn = (attn.view(-1, H, W, H, W) + rel_h[:, :, :, :, None] + rel_w[:, :, :, None, :]).view(-1, H * W, H * W)
        x = (attn.softmax(dim=-1) @ v).view(B, self.num_heads, H, W, -1).permute(0, 2, 3, 1, 4).reshape(B, H, W, -1)
        return self.proj(x)


class Block(nn.Module):
    def __init__(self, dim: int, num_heads: int, window_size: int, input_size: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = EncoderAttention(dim, num_heads, window_size or input_size)
        self.mlp = MLPBlock(dim, 2 * dim)
        self.window_size = window_size

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        y, s = self.norm1(x), self.window_size
        if s:
            y = y.view(B, H // s, s, W // s, s, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, s, s, C)
        y = self.attn(y)
        if s:
            y = y.view(B, H // s, W // s, s, s, C).permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, kernel_size=8, stride=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).permute(0, 2, 3, 1)


class ImageEncoderViT(nn.Module):
    def __init__(self, embed_dim: int = 40, num_heads: int = 4, out_chans: int = 24) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(embed_dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 4, embed_dim))
        self.blocks = nn.ModuleList([Block(embed_dim, num_heads, window, 4) for window in (2, 0)])
        self.neck = nn.Sequential(
            nn.Conv2d(embed_dim, out_chans, 1, bias=False),
            LayerNorm2d(out_chans),
            nn.Conv2d(out_chans, out_chans, 3, padding=1, bias=False),
            LayerNorm2d(out_chans),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        for blk in self.blocks:
            x = blk(x)
        return self.neck(x.permute(0, 3, 1, 2))


class Attention(nn.Module):
    def __init__(self, embedding_dim: int, num_heads: int, downsample_rate: int = 1) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim
        self.internal_dim = embedding_dim // downsample_rate
        self.num_heads = num_heads
        self.q_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.k_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.v_proj = nn.Linear(embedding_dim, self.internal_dim)
        self.out_proj = nn.Linear(self.internal_dim, embedding_dim)

    def _separate_heads(self, x: Tensor, num_heads: int) -> Tensor:
        b, n, c = x.shape
        return x.reshape(b, n, num_heads, c // num_heads).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q = self._separate_heads(self.q_proj(q), self.num_heads)
        k = self._separate_heads(self.k_proj(k), self.num_heads)
        v = self._separate_heads(self.v_proj(v), self.num_heads)
        attn = torch.softmax(q @ k.permute(0, 1, 3, 2) / math.sqrt(q.shape[-1]), dim=-1)
        return self.out_proj((attn @ v).transpose(1, 2).flatten(2))


class TwoWayAttentionBlock(nn.Module):
    def __init__(self, embedding_dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = Attention(embedding_dim, num_heads)
        self.norm1, self.norm2 = nn.LayerNorm(embedding_dim), nn.LayerNorm(embedding_dim)
        self.norm3, self.norm4 = nn.LayerNorm(embedding_dim), nn.LayerNorm(embedding_dim)
        self.cross_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=2)
        self.mlp = MLPBlock(embedding_dim, mlp_dim, nn.ReLU)
        self.cross_attn_image_to_token = Attention(embedding_dim, num_heads, downsample_rate=2)

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        q = queries + query_pe
        queries = self.norm1(queries + self.self_attn(q=q, k=q, v=queries))
        queries = self.norm2(queries + self.cross_attn_token_to_image(q=queries + query_pe, k=keys + key_pe, v=keys))
        queries = self.norm3(queries + self.mlp(queries))
        keys = self.norm4(keys + self.cross_attn_image_to_token(q=keys + key_pe, k=queries + query_pe, v=queries))
        return queries, keys


class TwoWayTransformer(nn.Module):
    def __init__(self, depth: int, embedding_dim: int, num_heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayAttentionBlock(embedding_dim, num_heads, mlp_dim) for _ in range(depth))
        self.final_attn_token_to_image = Attention(embedding_dim, num_heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(embedding_dim)

    def forward(self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor) -> tuple[Tensor, Tensor]:
        keys, key_pe = (t.flatten(2).permute(0, 2, 1) for t in (image_embedding, image_pe))
        queries = point_embedding
        for layer in self.layers:
            queries, keys = layer(queries=queries, keys=keys, query_pe=point_embedding, key_pe=key_pe)
        attn_out = self.final_attn_token_to_image(q=queries + point_embedding, k=keys + key_pe, v=keys)
        return self.norm_final_attn(queries + attn_out), keys


class MLP(nn.Module):
    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int, num_layers: int) -> None:
        super().__init__()
        h = [hidden_dim] * (num_layers - 1)
        self.layers = nn.ModuleList(nn.Linear(n, k) for n, k in zip([input_dim, *h], [*h, output_dim], strict=True))

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            x = F.relu(layer(x)) if i < len(self.layers) - 1 else layer(x)
        return x


class MaskDecoder(nn.Module):
    def __init__(self, transformer_dim: int = 32, num_mask_tokens: int = 2) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(2, transformer_dim, 4, 64)
        self.iou_token = nn.Embedding(1, transformer_dim)
        self.num_mask_tokens = num_mask_tokens
        self.mask_tokens = nn.Embedding(num_mask_tokens, transformer_dim)
        self.output_upscaling = nn.Sequential(nn.ConvTranspose2d(transformer_dim, transformer_dim // 4, kernel_size=2, stride=2), nn.GELU())
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(transformer_dim, transformer_dim, transformer_dim // 4, 3) for _ in range(2))
        self.iou_prediction_head = MLP(transformer_dim, 16, num_mask_tokens, 3)

    def forward(self, image_embeddings: Tensor, image_pe: Tensor, sparse_prompt_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        b, c, h, w = image_embeddings.shape
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight]).unsqueeze(0).expand(b, -1, -1)
        hs, src = self.transformer(image_embeddings, image_pe, torch.cat((output_tokens, sparse_prompt_embeddings), dim=1))
        upscaled = self.output_upscaling(src.transpose(1, 2).view(b, c, h, w))
        hyper_in = torch.stack([mlp(hs[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], dim=1)
        masks = (hyper_in @ upscaled.flatten(2)).view(b, -1, 2 * h, 2 * w)
        return masks, self.iou_prediction_head(hs[:, 0])


STYLES: list[Style] = [
    Style(
        "sam image encoder",
        ImageEncoderViT,
        lambda: ((torch.randn(1, 3, 32, 32),), {}),
        {"transformer", "hybrid"},
        {
            "patch_embed.proj.weight": {"patch_embedding"},
            "pos_embed": {"position_embedding"},
            "blocks.*.attn.rel_pos_?": {"position_embedding"},
            "blocks.*.attn.qkv.weight": {"qkv"},
            "blocks.*.attn.proj.weight": {"attn_out"},
            "blocks.*.mlp.lin1.weight": {"mlp_up"},
            "blocks.*.mlp.lin2.weight": {"mlp_down"},
            "neck.*.weight": {"conv", "norm"},
        },
        {"blocks.*.attn.qkv.weight": "q:4x10|k:4x10|v:4x10"},
    ),
    Style(
        "sam mask decoder",
        MaskDecoder,
        lambda: (
            (),
            {
                "image_embeddings": torch.randn(1, 32, 4, 4),
                "image_pe": torch.randn(1, 32, 4, 4),
                "sparse_prompt_embeddings": torch.randn(1, 3, 32),
            },
        ),
        {"transformer", "hybrid"},
        {
            # Each row is a learned query.
            "iou_token.weight": {"special_token", "token_embedding", "position_embedding"},
            "mask_tokens.weight": {"special_token", "token_embedding", "position_embedding"},
            "transformer.*.q_proj.weight": {"query"},
            "transformer.*.k_proj.weight": {"key"},
            "transformer.*.v_proj.weight": {"value"},
            "transformer.*.out_proj.weight": {"attn_out"},
            "transformer.layers.*.mlp.lin1.weight": {"mlp_up"},
            "transformer.layers.*.mlp.lin2.weight": {"mlp_down"},
            "iou_prediction_head.layers.2.weight": {"classifier", "linear", "mlp_down"},
        },
        {
            "*self_attn.q_proj.weight": "q:4x8",
            "*self_attn.k_proj.weight": "k:4x8",
            "*_image.q_proj.weight": "q:4x4",
            "*_image.k_proj.weight": "k:4x4",
            "*_to_token.q_proj.weight": "q:4x4",
            "*_to_token.k_proj.weight": "k:4x4",
        },
    ),
]
