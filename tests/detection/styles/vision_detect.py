"""Detectors: Deformable DETR, and YOLO with attention by 1x1 convolutions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Deformable DETR: offsets and weights come from the query alone; only the decoder's self-attention has keys.
class MSDeformAttn(nn.Module):
    def __init__(self, d_model: int, n_heads: int, n_points: int) -> None:
        super().__init__()
        self.n_heads, self.n_points = n_heads, n_points
        self.sampling_offsets = nn.Linear(d_model, n_heads * n_points * 2)
        self.attention_weights = nn.Linear(d_model, n_heads * n_points)
        self.value_proj = nn.Linear(d_model, d_model)
        self.output_proj = nn.Linear(d_model, d_model)

    def forward(self, query: Tensor, reference_points: Tensor, input_flatten: Tensor, spatial: tuple[int, int]) -> Tensor:
        n, len_q, c = query.shape
        h, p = self.n_heads, self.n_points
        value = self.value_proj(input_flatten).transpose(1, 2).reshape(n * h, c // h, *spatial)
        offsets = self.sampling_offsets(query).view(n, len_q, h, p, 2)
        weights = F.softmax(self.attention_weights(query).view(n, len_q, h, p), -1)
        grid = 2 * (reference_points[:, :, None, None] + offsets / max(spatial)) - 1
        sampled = F.grid_sample(value, grid.transpose(1, 2).flatten(0, 1), align_corners=False)
        out = (sampled * weights.transpose(1, 2).reshape(n * h, 1, len_q, p)).sum(-1)
        return self.output_proj(out.view(n, c, len_q).transpose(1, 2))


class DeformableEncoderLayer(nn.Module):
    def __init__(self, d_model: int, d_ffn: int, n_heads: int, n_points: int) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(d_model, n_heads, n_points)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.linear1, self.linear2 = nn.Linear(d_model, d_ffn), nn.Linear(d_ffn, d_model)

    def forward(self, src: Tensor, pos: Tensor, reference_points: Tensor, spatial: tuple[int, int]) -> Tensor:
        src = self.norm1(src + self.self_attn(src + pos, reference_points, src, spatial))
        return self.norm2(src + self.linear2(F.relu(self.linear1(src))))


class DeformableDecoderLayer(nn.Module):
    def __init__(self, d_model: int, d_ffn: int, n_heads: int, n_points: int) -> None:
        super().__init__()
        self.cross_attn = MSDeformAttn(d_model, n_heads, n_points)
        self.self_attn = nn.MultiheadAttention(d_model, n_heads)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d_model), nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.linear1, self.linear2 = nn.Linear(d_model, d_ffn), nn.Linear(d_ffn, d_model)

    def forward(self, tgt: Tensor, query_pos: Tensor, reference_points: Tensor, src: Tensor, spatial: tuple[int, int]) -> Tensor:
        q = (tgt + query_pos).transpose(0, 1)
        tgt = self.norm2(tgt + self.self_attn(q, q, tgt.transpose(0, 1))[0].transpose(0, 1))
        tgt = self.norm1(tgt + self.cross_attn(tgt + query_pos, reference_points, src, spatial))
        return self.norm3(tgt + self.linear2(F.relu(self.linear1(tgt))))


class DeformableDETR(nn.Module):
    def __init__(self, hidden_dim: int = 32, num_queries: int = 5, num_classes: int = 6) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU())
        self.input_proj = nn.Conv2d(24, hidden_dim, 1)
        self.encoder = nn.ModuleList(DeformableEncoderLayer(hidden_dim, 48, 4, 2) for _ in range(2))
        self.decoder = nn.ModuleList(DeformableDecoderLayer(hidden_dim, 48, 4, 2) for _ in range(2))
        self.query_embed = nn.Embedding(num_queries, hidden_dim * 2)
        self.reference_points = nn.Linear(hidden_dim, 2)
        self.class_embed = nn.Linear(hidden_dim, num_classes)
        self.bbox_embed = nn.Linear(hidden_dim, 4)

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        src = self.input_proj(self.backbone(samples))
        h, w = src.shape[-2:]
        ys, xs = torch.meshgrid((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w, indexing="ij")
        places = torch.stack([xs, ys], -1).view(1, h * w, 2)
        pos = torch.cat([places.sin(), places.cos()], -1).repeat(1, 1, src.shape[1] // 4)
        memory = src.flatten(2).transpose(1, 2)
        for layer in self.encoder:
            memory = layer(memory, pos, places, (h, w))
        query_pos, tgt = self.query_embed.weight.unsqueeze(0).expand(len(samples), -1, -1).chunk(2, dim=-1)
        reference_points = self.reference_points(query_pos).sigmoid()
        for layer in self.decoder:
            tgt = layer(tgt, query_pos, reference_points, memory, (h, w))
        return {"pred_logits": self.class_embed(tgt), "pred_boxes": self.bbox_embed(tgt).sigmoid()}


# YOLO: a Conv that is a convolution, a norm and an activation; heads are cut before query, key and value are.
class Conv(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int, attn_ratio: float = 0.5) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.key_dim = int(self.head_dim * attn_ratio)
        self.scale = self.key_dim**-0.5
        self.qkv = Conv(dim, dim + self.key_dim * num_heads * 2, 1, act=False)
        self.proj = Conv(dim, dim, 1, act=False)
        self.pe = Conv(dim, dim, 3, 1, g=dim, act=False)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(x).view(B, self.num_heads, self.key_dim * 2 + self.head_dim, H * W)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        attn = ((q.transpose(-2, -1) @ k) * self.scale).softmax(dim=-1)
        x = (v @ attn.transpose(-2, -1)).view(B, C, H, W) + self.pe(v.reshape(B, C, H, W))
        return self.proj(x)


class PSABlock(nn.Module):
    def __init__(self, c: int, num_heads: int) -> None:
        super().__init__()
        self.attn = Attention(c, num_heads)
        self.ffn = nn.Sequential(Conv(c, c * 2, 1), Conv(c * 2, c, 1, act=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.ffn(x)


class C2PSA(nn.Module):
    def __init__(self, c1: int, n: int = 1, e: float = 0.5) -> None:
        super().__init__()
        self.c = int(c1 * e)
        self.cv1, self.cv2 = Conv(c1, 2 * self.c), Conv(2 * self.c, c1)
        self.m = nn.Sequential(*(PSABlock(self.c, num_heads=2) for _ in range(n)))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        return self.cv2(torch.cat((a, self.m(b)), 1))


class AAttn(nn.Module):
    def __init__(self, dim: int, num_heads: int, area: int) -> None:
        super().__init__()
        self.area, self.num_heads, self.head_dim = area, num_heads, dim // num_heads
        self.qkv = Conv(dim, dim * 3, 1, act=False)
        self.proj = Conv(dim, dim, 1, act=False)
        self.pe = Conv(dim, dim, 7, 1, g=dim, act=False)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        qkv = self.qkv(x).flatten(2).transpose(1, 2).reshape(B * self.area, H * W // self.area, C * 3)
        qkv = qkv.view(B * self.area, -1, self.num_heads, self.head_dim * 3).permute(0, 2, 3, 1)
        q, k, v = qkv.split([self.head_dim] * 3, dim=2)
        attn = ((q.transpose(-2, -1) @ k) * self.head_dim**-0.5).softmax(dim=-1)
        x, v = ((t.permute(0, 3, 1, 2).reshape(B, H, W, C).permute(0, 3, 1, 2)) for t in (v @ attn.transpose(-2, -1), v))
        return self.proj(x + self.pe(v))


class ABlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, area: int) -> None:
        super().__init__()
        self.attn = AAttn(dim, num_heads, area)
        self.mlp = nn.Sequential(Conv(dim, dim * 2, 1), Conv(dim * 2, dim, 1, act=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class Detect(nn.Module):
    def __init__(self, nc: int, c: int) -> None:
        super().__init__()
        self.cv2 = nn.Sequential(Conv(c, 16, 3), nn.Conv2d(16, 4, 1))
        self.cv3 = nn.Sequential(Conv(c, 16, 3), nn.Conv2d(16, nc, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.cv2(x), self.cv3(x)), 1)


class DetectionModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(Conv(3, 16, 3, 2), Conv(16, 32, 3, 2), ABlock(32, 2, 4), Conv(32, 48, 3, 2), C2PSA(48, 2), Detect(5, 48))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


STYLES: list[Style] = [
    Style(
        "deformable detr",
        DeformableDETR,
        lambda: ((torch.randn(1, 3, 16, 16),), {}),
        {"transformer", "hybrid"},
        {
            "*.sampling_offsets.weight": {"attn_other", "linear"},
            "*.attention_weights.weight": {"attn_other", "linear"},
            "*.value_proj.weight": {"value", "linear"},
            "*.output_proj.weight": {"attn_out", "linear"},
            "decoder.*.self_attn.in_proj_weight": {"qkv"},
            "decoder.*.self_attn.out_proj.weight": {"attn_out"},
            "*coder.*.linear1.weight": {"mlp_up"},
            "*coder.*.linear2.weight": {"mlp_down"},
            # Each row is a learned query and its place.
            "query_embed.weight": {"position_embedding", "special_token", "token_embedding"},
            "class_embed.weight": {"classifier"},
            "bbox_embed.weight": {"classifier", "linear"},
        },
        {"decoder.*.self_attn.in_proj_weight": "q:4x8|k:4x8|v:4x8"},
    ),
    Style(
        "yolo",
        DetectionModel,
        lambda: ((torch.randn(2, 3, 32, 32),), {}),
        {"cnn", "hybrid"},
        {
            "*.attn.qkv.conv.weight": {"qkv"},
            "*.attn.proj.conv.weight": {"attn_out"},
            "*.attn.pe.conv.weight": {"conv_dw"},
            "model.2.mlp.0.conv.weight": {"mlp_up", "conv"},
            "model.2.mlp.1.conv.weight": {"mlp_down", "conv"},
            "model.4.m.*.ffn.0.conv.weight": {"mlp_up", "conv"},
            "model.4.m.*.ffn.1.conv.weight": {"mlp_down", "conv"},
            "model.5.cv3.1.weight": {"classifier", "conv"},
        },
        {
            "model.2.attn.qkv.conv.weight": "2*(q:1x16|k:1x16|v:1x16)",
            "model.4.m.*.attn.qkv.conv.weight": "2*(q:1x6|k:1x6|v:1x12)",
        },
    ),
]
