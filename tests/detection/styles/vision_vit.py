"""Vision transformers (and one mixer) as people write them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# DINOv2: the query is scaled as it is taken from the stack; a feed-forward with one weight for gate and up.
class DinoAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = False, proj_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=qkv_bias)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim, bias=proj_bias)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        attn = self.attn_drop((q @ k.transpose(-2, -1)).softmax(dim=-1))
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class SwiGLUFFN(nn.Module):
    def __init__(self, in_features: int, hidden_features: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(in_features, 2 * hidden_features)
        self.w3 = nn.Linear(hidden_features, in_features)

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(x1) * x2)


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DinoBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = DinoAttention(dim, num_heads, qkv_bias=True)
        self.ls1, self.ls2 = LayerScale(dim), LayerScale(dim)
        self.mlp = SwiGLUFFN(dim, 4 * dim * 2 // 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, embed_dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class DinoVisionTransformer(nn.Module):
    def __init__(self, embed_dim: int = 48, depth: int = 2, num_heads: int = 3) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(8, embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.register_tokens = nn.Parameter(torch.zeros(1, 2, embed_dim))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, embed_dim) * 0.02)
        self.blocks = nn.ModuleList([DinoBlock(embed_dim, num_heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed
        x = torch.cat((x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]), 1)
        for blk in self.blocks:
            x = blk(x)
        return self.head(self.norm(x)[:, 0])


# In the manner of gpt-fast: wqkv cut by widths, grouped keys, w1, w2, w3.
class FastAttention(nn.Module):
    def __init__(self, dim: int, n_head: int, n_local_heads: int) -> None:
        super().__init__()
        self.n_head, self.n_local_heads, self.head_dim, self.dim = n_head, n_local_heads, dim // n_head, dim
        self.wqkv = nn.Linear(dim, (n_head + 2 * n_local_heads) * self.head_dim, bias=False)
        self.wo = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        bsz, seqlen, _ = x.shape
        kv_size = self.n_local_heads * self.head_dim
        q, k, v = self.wqkv(x).split([self.dim, kv_size, kv_size], dim=-1)
        q = q.view(bsz, seqlen, self.n_head, self.head_dim)
        k = k.view(bsz, seqlen, self.n_local_heads, self.head_dim)
        v = v.view(bsz, seqlen, self.n_local_heads, self.head_dim)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        k = k.repeat_interleave(self.n_head // self.n_local_heads, dim=1)
        v = v.repeat_interleave(self.n_head // self.n_local_heads, dim=1)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.wo(y.transpose(1, 2).contiguous().view(bsz, seqlen, self.dim))


class FastFeedForward(nn.Module):
    def __init__(self, dim: int, intermediate_size: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(dim, intermediate_size, bias=False)
        self.w3 = nn.Linear(dim, intermediate_size, bias=False)
        self.w2 = nn.Linear(intermediate_size, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class FastBlock(nn.Module):
    def __init__(self, dim: int, n_head: int, n_local_heads: int) -> None:
        super().__init__()
        self.attention = FastAttention(dim, n_head, n_local_heads)
        self.feed_forward = FastFeedForward(dim, 2 * dim)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        h = x + self.attention(self.attention_norm(x))
        return h + self.feed_forward(self.ffn_norm(h))


class FastViT(nn.Module):
    def __init__(self, dim: int = 48, n_layer: int = 2) -> None:
        super().__init__()
        self.patch = 8
        self.patch_in = nn.Linear(3 * 8 * 8, dim)
        self.pos = nn.Parameter(torch.randn(16, dim) * 0.02)
        self.layers = nn.ModuleList(FastBlock(dim, 4, 2) for _ in range(n_layer))
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim, 10, bias=False)

    def forward(self, img: Tensor) -> Tensor:
        x = F.unfold(img, self.patch, stride=self.patch).transpose(1, 2)
        x = self.patch_in(x) + self.pos
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x).mean(1))


# In the manner of einops: everything in one to_qkv, Residual and PreNorm wrappers, the cut in the forward.
class PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x)) + x


class MHSA(nn.Module):
    def __init__(self, dim: int, heads: int, role_last: bool) -> None:
        super().__init__()
        self.heads, self.role_last = heads, role_last
        self.to_qkv = nn.Linear(dim, dim * 3, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        h = self.heads
        if self.role_last:  # "b n (h d qkv) -> qkv b h n d"
            qkv = self.to_qkv(x).reshape(b, n, h, -1, 3).permute(4, 0, 2, 1, 3)
        else:  # "b n (qkv h d) -> qkv b h n d"
            qkv = self.to_qkv(x).reshape(b, n, 3, h, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        dots = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        out = torch.einsum("bhij,bhjd->bhid", F.softmax(dots, dim=-1), v)
        return self.to_out(out.permute(0, 2, 1, 3).reshape(b, n, -1))


class EinopsViT(nn.Module):
    def __init__(self, role_last: bool, dim: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.to_patch_embedding = nn.Sequential(nn.LayerNorm(3 * 8 * 8), nn.Linear(3 * 8 * 8, dim), nn.LayerNorm(dim))
        self.pos_embedding = nn.Parameter(torch.randn(1, 16, dim))
        self.transformer = nn.ModuleList()
        for _ in range(depth):
            ff = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Dropout(0.0), nn.Linear(2 * dim, dim))
            self.transformer.append(nn.ModuleList([PreNorm(dim, MHSA(dim, heads, role_last)), PreNorm(dim, ff)]))
        self.mlp_head = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 10))

    def forward(self, img: Tensor) -> Tensor:
        b = len(img)
        x = img.reshape(b, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(b, 16, -1)
        x = self.to_patch_embedding(x) + self.pos_embedding
        for attn, ff in self.transformer:  # pyright: ignore[reportGeneralTypeIssues]
            x = ff(attn(x))
        return self.mlp_head(x.mean(dim=1))


def image() -> tuple[tuple[Tensor], dict[str, Tensor]]:
    return (torch.randn(1, 3, 32, 32),), {}


_EINOPS_ROLES = {
    "to_patch_embedding.1.weight": {"patch_embedding", "linear"},
    "transformer.*.to_qkv.weight": {"qkv"},
    "transformer.*.to_out.0.weight": {"attn_out"},
    "transformer.*.1.fn.0.weight": {"mlp_up"},
    "transformer.*.1.fn.3.weight": {"mlp_down"},
    "mlp_head.1.weight": {"classifier"},
}

STYLES: list[Style] = [
    Style(
        "dinov2",
        DinoVisionTransformer,
        image,
        {"transformer"},
        {
            "patch_embed.proj.weight": {"patch_embedding"},
            "blocks.*.attn.qkv.weight": {"qkv"},
            "blocks.*.attn.proj.weight": {"attn_out"},
            "blocks.*.mlp.w12.weight": {"mlp_gate_up"},
            "blocks.*.mlp.w3.weight": {"mlp_down"},
            "pos_embed": {"position_embedding"},
        },
        {"blocks.*.attn.qkv.weight": "q:3x16|k:3x16|v:3x16"},
    ),
    Style(
        "gpt-fast vit",
        FastViT,
        image,
        {"transformer"},
        {
            "patch_in.weight": {"patch_embedding", "linear"},
            "layers.*.attention.wqkv.weight": {"qkv"},
            "layers.*.attention.wo.weight": {"attn_out"},
            "layers.*.feed_forward.w1.weight": {"mlp_gate"},
            "layers.*.feed_forward.w3.weight": {"mlp_up"},
            "layers.*.feed_forward.w2.weight": {"mlp_down"},
            "output.weight": {"classifier"},
        },
        {"layers.*.attention.wqkv.weight": "q:4x12|k:2x12|v:2x12"},
    ),
    Style(
        "einops vit (qkv h d)",
        lambda: EinopsViT(role_last=False),
        image,
        {"transformer"},
        _EINOPS_ROLES,
        {"transformer.*.to_qkv.weight": "q:4x16|k:4x16|v:4x16"},
    ),
    Style(
        "einops vit (h d qkv)",
        lambda: EinopsViT(role_last=True),
        image,
        {"transformer"},
        _EINOPS_ROLES,
        {"transformer.*.to_qkv.weight": "4*[q,k,v]x16"},
    ),
]
