"""Vision in stages: class attention, convolutions before attention, gates over places, reconstruction, cosines."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# CaiT: heads talk before and after the softmax; late layers in which the class alone asks.
class TalkingHeads(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3, bias=True), nn.Linear(dim, dim)
        self.proj_l, self.proj_w = nn.Linear(num_heads, num_heads), nn.Linear(num_heads, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        attn = self.proj_l((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        attn = self.proj_w(attn.softmax(dim=-1).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class ClassAttn(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q = self.q(x[:, 0]).unsqueeze(1).reshape(B, 1, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        k = self.k(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        v = self.v(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        attn = (q * self.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, 1, C))


class ScaledLayer(nn.Module):
    def __init__(self, dim: int, attn: nn.Module, late: bool) -> None:
        super().__init__()
        self.late, self.attn = late, attn
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(dim, 3 * dim))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(3 * dim, dim))
        self.gamma_1, self.gamma_2 = nn.Parameter(1e-2 * torch.ones(dim)), nn.Parameter(1e-2 * torch.ones(dim))

    def forward(self, x: Tensor, x_cls: Tensor | None = None) -> Tensor:
        if x_cls is not None:
            x_cls = x_cls + self.gamma_1 * self.attn(self.norm1(torch.cat((x_cls, x), dim=1)))
            return x_cls + self.gamma_2 * self.mlp(self.norm2(x_cls))
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class CaiT(nn.Module):
    def __init__(self, dim: int = 36, num_heads: int = 4, classes: int = 13) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 4, 4)
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, 16, dim))
        self.blocks = nn.ModuleList([ScaledLayer(dim, TalkingHeads(dim, num_heads), False) for _ in range(2)])
        self.blocks_token_only = nn.ModuleList([ScaledLayer(dim, ClassAttn(dim, num_heads), True) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        cls = self.cls_token.expand(len(x), -1, -1)
        for blk in self.blocks:
            x = blk(x)
        for blk in self.blocks_token_only:
            cls = blk(x, cls)
        return self.head(self.norm(torch.cat((cls, x), dim=1))[:, 0])


# CoAtNet: inverted bottlenecks, then attention on a grid with a table of relative places.
class Squeeze(nn.Module):
    def __init__(self, oup: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(oup, 6, bias=False), nn.GELU(), nn.Linear(6, oup, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3)))[..., None, None]


class MBConv(nn.Module):
    def __init__(self, inp: int, oup: int, expansion: int = 4) -> None:
        super().__init__()
        hidden = inp * expansion
        self.pool, self.proj = nn.MaxPool2d(3, 2, 1), nn.Conv2d(inp, oup, 1, bias=False)
        self.norm = nn.BatchNorm2d(inp)
        self.conv = nn.Sequential(
            nn.Conv2d(inp, hidden, 1, 2, 0, bias=False),
            nn.BatchNorm2d(hidden),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, 1, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.GELU(),
            Squeeze(hidden),
            nn.Conv2d(hidden, oup, 1, bias=False),
            nn.BatchNorm2d(oup),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.pool(x)) + self.conv(self.norm(x))


class GridAttention(nn.Module):
    relative_index: Tensor

    def __init__(self, inp: int, oup: int, size: tuple[int, int], heads: int, dim_head: int) -> None:
        super().__init__()
        self.ih, self.iw = size
        self.heads, self.scale = heads, dim_head**-0.5
        self.relative_bias_table = nn.Parameter(torch.zeros((2 * self.ih - 1) * (2 * self.iw - 1), heads))
        coords = torch.stack(torch.meshgrid(torch.arange(self.ih), torch.arange(self.iw), indexing="ij")).flatten(1)
        steps = coords[:, :, None] - coords[:, None, :]
        self.register_buffer("relative_index", ((steps[0] + self.ih - 1) * (2 * self.iw - 1) + steps[1] + self.iw - 1).flatten())
        self.attend = nn.Softmax(dim=-1)
        self.to_qkv = nn.Linear(inp, heads * dim_head * 3, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, oup), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = map(lambda t: t.unflatten(-1, (self.heads, -1)).transpose(1, 2), self.to_qkv(x).chunk(3, dim=-1))  # noqa: C417
        dots = torch.matmul(q, k.transpose(-1, -2)) * self.scale
        n = self.ih * self.iw
        bias = self.relative_bias_table.gather(0, self.relative_index.unsqueeze(-1).repeat(1, self.heads)).view(n, n, -1)
        out = torch.matmul(self.attend(dots + bias.permute(2, 0, 1).unsqueeze(0)), v)
        return self.to_out(out.transpose(1, 2).flatten(2))


class GridTransformer(nn.Module):
    def __init__(self, inp: int, size: tuple[int, int]) -> None:
        super().__init__()
        self.attn_norm, self.attn = nn.LayerNorm(inp), GridAttention(inp, inp, size, 3, 10)
        self.ff_norm, self.ff = nn.LayerNorm(inp), nn.Sequential(nn.Linear(inp, inp * 2), nn.GELU(), nn.Linear(inp * 2, inp))

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(2).transpose(1, 2)
        h = h + self.attn(self.attn_norm(h))
        h = h + self.ff(self.ff_norm(h))
        return h.transpose(1, 2).view_as(x)


class CoAtNet(nn.Module):
    def __init__(self, classes: int = 9) -> None:
        super().__init__()
        self.s0 = nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.GELU())
        self.s1 = nn.Sequential(MBConv(12, 20), MBConv(20, 28))
        self.s2 = nn.Sequential(GridTransformer(28, (4, 4)), GridTransformer(28, (4, 4)))
        self.fc = nn.Linear(28, classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.s2(self.s1(self.s0(x))).mean((2, 3)))


# gMLP: a gate that is mixed over places by a convolution of width one.
class SpatialGatingUnit(nn.Module):
    def __init__(self, d_ffn: int, seq_len: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_ffn)
        self.spatial_proj = nn.Conv1d(seq_len, seq_len, kernel_size=1)
        nn.init.constant_(self.spatial_proj.bias, 1.0)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        return u * self.spatial_proj(self.norm(v))


class gMLPBlock(nn.Module):
    def __init__(self, d_model: int, d_ffn: int, seq_len: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.channel_proj1, self.channel_proj2 = nn.Linear(d_model, d_ffn * 2), nn.Linear(d_ffn, d_model)
        self.sgu = SpatialGatingUnit(d_ffn, seq_len)

    def forward(self, x: Tensor) -> Tensor:
        return self.channel_proj2(self.sgu(F.gelu(self.channel_proj1(self.norm(x))))) + x


class gMLPVision(nn.Module):
    def __init__(self, d_model: int = 26, d_ffn: int = 40, classes: int = 10) -> None:
        super().__init__()
        self.patcher = nn.Conv2d(3, d_model, kernel_size=4, stride=4)
        self.model = nn.Sequential(*[gMLPBlock(d_model, d_ffn, 16) for _ in range(3)])
        self.classifier = nn.Linear(d_model, classes)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patcher(x)
        patches = patches.permute(0, 2, 3, 1).view(len(x), -1, patches.shape[1])
        return self.classifier(self.model(patches).mean(dim=1))


# ConvMixer in one expression.
class Residually(nn.Module):
    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


class Lambda(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


def conv_mixer(h: int = 24, depth: int = 3, k: int = 5, p: int = 4, n: int = 10) -> nn.Sequential:
    def act(c: nn.Module) -> nn.Sequential:
        return nn.Sequential(c, nn.GELU(), nn.BatchNorm2d(h))

    mix = [nn.Sequential(Residually(act(nn.Conv2d(h, h, k, groups=h, padding="same"))), act(nn.Conv2d(h, h, 1))) for _ in range(depth)]
    return nn.Sequential(act(nn.Conv2d(3, h, p, stride=p)), *mix, Lambda(lambda x: x.mean((2, 3))), nn.Linear(h, n))


# Masked autoencoder: some patches go in, all come out; two widths.
class MaeAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        attn = ((q @ k.transpose(-2, -1)) * (C // self.num_heads) ** -0.5).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class MaeBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), MaeAttention(dim, num_heads), nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class MaskedAutoencoder(nn.Module):
    def __init__(self, dim: int = 32, decoder_dim: int = 18, p: int = 4) -> None:
        super().__init__()
        self.p = p
        self.proj = nn.Conv2d(3, dim, p, p)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, dim), requires_grad=False)
        self.blocks, self.norm = nn.ModuleList([MaeBlock(dim, 4) for _ in range(2)]), nn.LayerNorm(dim)
        self.decoder_embed = nn.Linear(dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 17, decoder_dim), requires_grad=False)
        self.decoder_blocks, self.decoder_norm = nn.ModuleList([MaeBlock(decoder_dim, 3)]), nn.LayerNorm(decoder_dim)
        self.decoder_pred = nn.Linear(decoder_dim, p * p * 3)

    def forward(self, imgs: Tensor, mask_ratio: float = 0.75) -> tuple[Tensor, Tensor]:
        x = self.proj(imgs).flatten(2).transpose(1, 2) + self.pos_embed[:, 1:]
        N, L, D = x.shape
        ids_shuffle = torch.argsort(torch.rand(N, L), dim=1)
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        keep = ids_shuffle[:, : int(L * (1 - mask_ratio))]
        x = torch.gather(x, 1, keep.unsqueeze(-1).repeat(1, 1, D))
        x = torch.cat(((self.cls_token + self.pos_embed[:, :1]).expand(N, -1, -1), x), dim=1)
        for blk in self.blocks:
            x = blk(x)
        x = self.decoder_embed(self.norm(x))
        tokens = torch.cat([x[:, 1:], self.mask_token.repeat(N, L + 1 - x.shape[1], 1)], dim=1)
        tokens = torch.gather(tokens, 1, ids_restore.unsqueeze(-1).repeat(1, 1, x.shape[2]))
        x = torch.cat([x[:, :1], tokens], dim=1) + self.decoder_pos_embed
        for blk in self.decoder_blocks:
            x = blk(x)
        pred = self.decoder_pred(self.decoder_norm(x))[:, 1:]
        target = F.unfold(imgs, self.p, stride=self.p).transpose(1, 2)
        return ((pred - target) ** 2).mean(), pred


# SegFormer: patches that overlap, keys of a smaller map, a depthwise convolution within the feed-forward, an all-linear decoder.
class EfficientSelfAttention(nn.Module):
    def __init__(self, dim: int, head: int, reduction_ratio: int) -> None:
        super().__init__()
        self.head, self.reduction_ratio = head, reduction_ratio
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim * 2), nn.Linear(dim, dim)
        if reduction_ratio > 1:
            self.sr, self.norm = nn.Conv2d(dim, dim, reduction_ratio, reduction_ratio), nn.LayerNorm(dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.head, C // self.head).permute(0, 2, 1, 3)
        if self.reduction_ratio > 1:
            x = self.norm(self.sr(x.permute(0, 2, 1).reshape(B, C, H, W)).reshape(B, C, -1).permute(0, 2, 1))
        k, v = self.kv(x).reshape(B, -1, 2, self.head, C // self.head).permute(2, 0, 3, 1, 4)
        attn = ((q @ k.transpose(-2, -1)) * (C // self.head) ** -0.5).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class MixFFN(nn.Module):
    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.fc1, self.dwconv, self.fc2 = nn.Linear(c1, c2), nn.Conv2d(c2, c2, 3, 1, 1, groups=c2), nn.Linear(c2, c1)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = self.fc1(x)
        x = self.dwconv(x.transpose(1, 2).unflatten(2, (H, W))).flatten(2).transpose(1, 2)
        return self.fc2(F.gelu(x))


class MiTBlock(nn.Module):
    def __init__(self, dim: int, head: int, sr: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), EfficientSelfAttention(dim, head, sr)
        self.norm2, self.mlp = nn.LayerNorm(dim), MixFFN(dim, 2 * dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = x + self.attn(self.norm1(x), H, W)
        return x + self.mlp(self.norm2(x), H, W)


class SegFormer(nn.Module):
    def __init__(self, classes: int = 7) -> None:
        super().__init__()
        self.patch_embed1, self.patch_embed2 = nn.Conv2d(3, 16, 7, 4, 3), nn.Conv2d(16, 30, 3, 2, 1)
        self.block1, self.block2 = nn.ModuleList([MiTBlock(16, 1, 2)]), nn.ModuleList([MiTBlock(30, 3, 1)])
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(30)
        self.linear_c1, self.linear_c2 = nn.Linear(16, 22), nn.Linear(30, 22)
        self.linear_fuse = nn.Sequential(nn.Conv2d(44, 22, 1, bias=False), nn.BatchNorm2d(22), nn.ReLU())
        self.linear_pred = nn.Conv2d(22, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        outs = []
        for embed, blocks, norm, c in (
            (self.patch_embed1, self.block1, self.norm1, self.linear_c1),
            (self.patch_embed2, self.block2, self.norm2, self.linear_c2),
        ):
            x = embed(x)
            H, W = x.shape[2:]
            t = x.flatten(2).transpose(1, 2)
            for block in blocks:
                t = block(t, H, W)
            t = norm(t)
            x = t.transpose(1, 2).unflatten(2, (H, W))
            outs.append(F.interpolate(c(t).transpose(1, 2).unflatten(2, (H, W)), size=(8, 8)))
        return self.linear_pred(self.linear_fuse(torch.cat(outs, 1)))


# LeViT: head by head a short query, a short key and a long value; linears with a norm over the batch behind.
class Linear_BN(nn.Sequential):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.add_module("c", nn.Linear(a, b, bias=False))
        self.add_module("bn", nn.BatchNorm1d(b))

    def forward(self, input: Tensor) -> Tensor:
        x = self.c(input)  # pyright: ignore[reportCallIssue]
        return self.bn(x.flatten(0, 1)).reshape_as(x)  # pyright: ignore[reportCallIssue]


class LeViTAttention(nn.Module):
    idxs: Tensor

    def __init__(self, dim: int, key_dim: int, num_heads: int, attn_ratio: int, resolution: int) -> None:
        super().__init__()
        self.num_heads, self.key_dim, self.d = num_heads, key_dim, attn_ratio * key_dim
        self.qkv = Linear_BN(dim, (self.d + 2 * key_dim) * num_heads)
        self.proj = nn.Sequential(nn.Hardswish(), Linear_BN(self.d * num_heads, dim))
        places = torch.cartesian_prod(torch.arange(resolution), torch.arange(resolution))
        steps = (places[:, None] - places[None]).abs()
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, resolution**2))
        self.register_buffer("idxs", steps[..., 0] * resolution + steps[..., 1])

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        q, k, v = self.qkv(x).view(B, N, self.num_heads, -1).split([self.key_dim, self.key_dim, self.d], dim=3)
        q, k, v = q.permute(0, 2, 1, 3), k.permute(0, 2, 1, 3), v.permute(0, 2, 1, 3)
        attn = (q @ k.transpose(-2, -1)) * self.key_dim**-0.5 + self.attention_biases[:, self.idxs]
        return self.proj((attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, -1))


class LeViT(nn.Module):
    def __init__(self, dim: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.patch_embed = nn.Sequential(
            nn.Conv2d(3, 14, 3, 2, 1, bias=False), nn.BatchNorm2d(14), nn.Hardswish(), nn.Conv2d(14, dim, 3, 2, 1), nn.BatchNorm2d(dim)
        )
        self.blocks = nn.Sequential()
        for _ in range(2):
            self.blocks.append(Residually(LeViTAttention(dim, 6, 3, 2, 4)))
            self.blocks.append(Residually(nn.Sequential(Linear_BN(dim, 2 * dim), nn.Hardswish(), Linear_BN(2 * dim, dim))))
        self.head, self.head_dist = nn.Linear(dim, classes), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.blocks(self.patch_embed(x).flatten(2).transpose(1, 2)).mean(1)
        return self.head(x), self.head_dist(x)


# Swin 2: cosines with a learnt scale, a small network for the bias, norms behind, biases of query and value alone.
class CosineWindow(nn.Module):
    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.dim, self.window, self.heads = dim, window, heads
        self.logit_scale = nn.Parameter(torch.log(10 * torch.ones(heads, 1, 1)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 19), nn.ReLU(inplace=True), nn.Linear(19, heads, bias=False))
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B_, N, C = x.shape
        bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(input=x, weight=self.qkv.weight, bias=bias).reshape(B_, N, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        attn = attn * torch.clamp(self.logit_scale, max=math.log(100.0)).exp()
        w = torch.cartesian_prod(torch.arange(self.window), torch.arange(self.window)).float()
        attn = attn + 16 * torch.sigmoid(self.cpb_mlp(w[:, None] - w[None])).permute(2, 0, 1).unsqueeze(0)
        return self.proj((attn.softmax(-1) @ v).transpose(1, 2).reshape(B_, N, C))


class SwinV2Block(nn.Module):
    def __init__(self, dim: int, window: int, heads: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.attn, self.norm1, self.norm2 = CosineWindow(dim, window, heads), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        w = self.window
        s = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        s = s.view(B, H // w, w, W // w, w, C).transpose(2, 3).reshape(-1, w * w, C)
        s = self.attn(s).view(B, H // w, W // w, w, w, C).transpose(2, 3).reshape(B, H, W, C)
        x = x + self.norm1(torch.roll(s, (self.shift, self.shift), (1, 2)))
        return x + self.norm2(self.mlp(x))


class SwinV2(nn.Module):
    def __init__(self, dim: int = 20, classes: int = 12) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, dim, 4, 4), nn.LayerNorm(dim)
        self.stage1 = nn.Sequential(SwinV2Block(dim, 4, 2, 0), SwinV2Block(dim, 4, 2, 2))
        self.reduction, self.reduction_norm = nn.Linear(4 * dim, 2 * dim, bias=False), nn.LayerNorm(2 * dim)
        self.stage2 = nn.Sequential(SwinV2Block(2 * dim, 4, 5, 0))
        self.head = nn.Linear(2 * dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage1(self.stem_norm(self.stem(x).permute(0, 2, 3, 1)))
        x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
        return self.head(self.stage2(self.reduction_norm(self.reduction(x))).mean((1, 2)))


def _image(size: int) -> Callable[[], tuple[tuple[Tensor], dict[str, Tensor]]]:
    return lambda: ((torch.randn(2, 3, size, size),), {})


_CONV = {"conv"}
STYLES: list[Style] = [
    Style(
        "cait",
        CaiT,
        _image(16),
        {"transformer"},
        {
            "patch_embed.weight": {"patch_embedding"},
            "pos_embed": {"position_embedding"},
            "cls_token": {"special_token"},
            "blocks.*.attn.qkv.weight": {"qkv"},
            "blocks.*.attn.proj_[lw].weight": {"attn_other", "linear"},
            "*.attn.proj.weight": {"attn_out"},
            "blocks_token_only.*.attn.q.weight": {"query"},
            "blocks_token_only.*.attn.k.weight": {"key"},
            "blocks_token_only.*.attn.v.weight": {"value"},
            "*.mlp.fc1.weight": {"mlp_up"},
            "*.mlp.fc2.weight": {"mlp_down"},
            "head.weight": {"classifier"},
        },
        {
            "blocks.*.attn.qkv.weight": "q:4x9|k:4x9|v:4x9",
            "blocks_token_only.*.attn.q.weight": "q:4x9",
            "blocks_token_only.*.attn.k.weight": "k:4x9",
        },
    ),
    Style(
        "coatnet",
        CoAtNet,
        _image(32),
        {"hybrid", "transformer"},
        {
            "s0.0.weight": {"first_conv"},
            "s1.*.proj.weight": _CONV,
            "s1.*.conv.0.weight": _CONV,
            "s1.*.conv.3.weight": {"conv_dw"},
            "s1.*.conv.7.weight": _CONV,
            "*.relative_bias_table": {"position_embedding"},
            "*.to_qkv.weight": {"qkv"},
            "*.to_out.0.weight": {"attn_out"},
            "*.ff.0.weight": {"mlp_up"},
            "*.ff.2.weight": {"mlp_down"},
            "fc.weight": {"classifier"},
        },
        {"*.to_qkv.weight": "q:3x10|k:3x10|v:3x10"},
    ),
    Style(
        "gmlp on patches",
        gMLPVision,
        _image(16),
        {"mlp_mixer"},
        {
            "patcher.weight": {"patch_embedding"},
            "model.*.channel_proj1.weight": {"mlp_up", "mlp_gate_up"},
            "model.*.channel_proj2.weight": {"mlp_down"},
            "model.*.sgu.spatial_proj.weight": {"token_mix"},
            "classifier.weight": {"classifier"},
        },
    ),
    Style(
        "convmixer in one expression",
        conv_mixer,
        _image(16),
        {"cnn"},
        {
            "0.0.weight": {"patch_embedding", "first_conv"},
            "[123].0.fn.0.weight": {"conv_dw"},
            "[123].1.0.weight": _CONV,
            "5.weight": {"classifier"},
        },
    ),
    Style(
        "masked autoencoder",
        MaskedAutoencoder,
        _image(16),
        {"transformer"},
        {
            "proj.weight": {"patch_embedding"},
            "cls_token": {"special_token"},
            "mask_token": {"special_token"},
            "*blocks.*.attn.qkv.weight": {"qkv"},
            "*blocks.*.attn.proj.weight": {"attn_out"},
            "*.mlp.fc1.weight": {"mlp_up"},
            "*.mlp.fc2.weight": {"mlp_down"},
            "decoder_embed.weight": {"linear"},
            "decoder_pred.weight": {"classifier", "lm_head", "linear"},
        },
        {"blocks.*.attn.qkv.weight": "q:4x8|k:4x8|v:4x8", "decoder_blocks.*.attn.qkv.weight": "q:3x6|k:3x6|v:3x6"},
    ),
    Style(
        "segformer",
        SegFormer,
        _image(32),
        {"transformer", "hybrid"},
        {
            "patch_embed1.weight": {"patch_embedding", "first_conv"},
            "patch_embed2.weight": {"conv", "patch_embedding"},
            "*.attn.q.weight": {"query"},
            "*.attn.kv.weight": {"qkv"},
            "*.attn.sr.weight": _CONV,
            "*.attn.proj.weight": {"attn_out"},
            "*.mlp.fc1.weight": {"mlp_up"},
            "*.mlp.dwconv.weight": {"conv_dw"},
            "*.mlp.fc2.weight": {"mlp_down"},
            "linear_c?.weight": {"linear"},
            "linear_fuse.0.weight": _CONV,
            "linear_pred.weight": {"conv", "classifier", "lm_head"},
        },
        {
            "block1.*.attn.q.weight": "q:1x16",
            "block1.*.attn.kv.weight": "k:1x16|v:1x16",
            "block2.*.attn.q.weight": "q:3x10",
            "block2.*.attn.kv.weight": "k:3x10|v:3x10",
        },
    ),
    Style(
        "levit",
        LeViT,
        _image(16),
        {"transformer", "hybrid"},
        {
            "patch_embed.0.weight": {"first_conv", "patch_embedding"},
            "patch_embed.3.weight": {"conv", "patch_embedding"},
            "blocks.*.qkv.c.weight": {"qkv"},
            "blocks.*.proj.1.c.weight": {"attn_out"},
            "blocks.[13].fn.0.c.weight": {"mlp_up"},
            "blocks.[13].fn.2.c.weight": {"mlp_down"},
            "head*.weight": {"classifier"},
        },
        {"blocks.*.qkv.c.weight": "3*(q:1x6|k:1x6|v:1x12)"},
    ),
    Style(
        "swin 2",
        SwinV2,
        _image(32),
        {"transformer"},
        {
            "stem.weight": {"patch_embedding"},
            "*.attn.qkv.weight": {"qkv"},
            "*.attn.proj.weight": {"attn_out"},
            "*.cpb_mlp.0.weight": {"linear", "mlp_up", "position_embedding", "attn_other"},
            "*.cpb_mlp.2.weight": {"linear", "mlp_down", "position_embedding", "attn_other"},
            "*.mlp.0.weight": {"mlp_up"},
            "*.mlp.2.weight": {"mlp_down"},
            "reduction.weight": {"linear"},
            "head.weight": {"classifier"},
        },
        {"stage1.*.attn.qkv.weight": "q:2x10|k:2x10|v:2x10", "stage2.*.attn.qkv.weight": "q:5x8|k:5x8|v:5x8"},
    ),
]
