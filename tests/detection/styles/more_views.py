"""Pictures: features matched, areas of attention, a detector's encoder, restoration, two scales, moments of a film, a GAN."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Coarse features of two pictures, matched by attention over both.
class FullAttention(nn.Module):
    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        QK = torch.einsum("nlhd,nshd->nlsh", queries, keys)
        A = torch.softmax(QK / queries.size(3) ** 0.5, dim=2)
        return torch.einsum("nlsh,nshd->nlhd", A, values).contiguous()


class MatcherLayer(nn.Module):
    def __init__(self, d_model: int, nhead: int) -> None:
        super().__init__()
        self.dim, self.nhead = d_model // nhead, nhead
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(d_model, d_model, bias=False) for _ in range(3))
        self.attention, self.merge = FullAttention(), nn.Linear(d_model, d_model, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(d_model * 2, d_model * 2, bias=False), nn.ReLU(True), nn.Linear(d_model * 2, d_model, bias=False)
        )
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, x: Tensor, source: Tensor) -> Tensor:
        bs = x.size(0)
        query = self.q_proj(x).view(bs, -1, self.nhead, self.dim)
        key = self.k_proj(source).view(bs, -1, self.nhead, self.dim)
        value = self.v_proj(source).view(bs, -1, self.nhead, self.dim)
        message = self.merge(self.attention(query, key, value).view(bs, -1, self.nhead * self.dim))
        return x + self.norm2(self.mlp(torch.cat([x, self.norm1(message)], dim=2)))


class CoarseMatcher(nn.Module):
    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 14, 7, 2, 3, bias=False), nn.BatchNorm2d(14)
        self.layer1 = nn.Sequential(nn.Conv2d(14, 22, 3, 2, 1, bias=False), nn.BatchNorm2d(22), nn.ReLU())
        self.layer2_outconv = nn.Conv2d(22, d, 1, bias=False)
        self.names = ["self", "cross"] * 2
        self.layers = nn.ModuleList([MatcherLayer(d, 4) for _ in self.names])

    def forward(self, data: dict[str, Tensor]) -> Tensor:
        f = torch.cat([data["image0"], data["image1"]], dim=0)
        f = self.layer2_outconv(self.layer1(F.relu(self.bn1(self.conv1(f))))).flatten(2).transpose(1, 2)
        feat0, feat1 = f.split(f.shape[0] // 2)
        for layer, name in zip(self.layers, self.names, strict=True):
            if name == "self":
                feat0, feat1 = layer(feat0, feat0), layer(feat1, feat1)
            else:
                feat0 = layer(feat0, feat1)
                feat1 = layer(feat1, feat0)
        sim = torch.einsum("nlc,nsc->nls", feat0 / feat0.shape[-1] ** 0.5, feat1) / 0.1
        return F.softmax(sim, 1) * F.softmax(sim, 2)


# Attention over areas of a map, its heads first, inside blocks of convolutions.
class ConvBN(nn.Module):
    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: bool = True) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(c1, c2, k, s, k // 2, groups=g, bias=False), nn.BatchNorm2d(c2)
        self.act = nn.SiLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class AreaAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, area: int) -> None:
        super().__init__()
        self.area, self.num_heads, self.head_dim = area, num_heads, dim // num_heads
        self.qkv, self.proj = ConvBN(dim, dim * 3, 1, act=False), ConvBN(dim, dim, 1, act=False)
        self.pe = ConvBN(dim, dim, 7, 1, g=dim, act=False)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        N = H * W
        qkv = self.qkv(x).flatten(2).transpose(1, 2)
        if self.area > 1:
            qkv = qkv.reshape(B * self.area, N // self.area, C * 3)
            B, N, _ = qkv.shape
        q, k, v = qkv.view(B, N, self.num_heads, self.head_dim * 3).permute(0, 2, 3, 1).split([self.head_dim] * 3, dim=2)
        attn = ((q.transpose(-2, -1) @ k) * (self.head_dim**-0.5)).softmax(dim=-1)
        x = (v @ attn.transpose(-2, -1)).permute(0, 3, 1, 2)
        v = v.permute(0, 3, 1, 2)
        if self.area > 1:
            x, v = (t.reshape(B // self.area, N * self.area, C) for t in (x, v))
            B, N, _ = x.shape
        x = x.reshape(B, H, W, C).permute(0, 3, 1, 2).contiguous()
        v = v.reshape(B, H, W, C).permute(0, 3, 1, 2).contiguous()
        return self.proj(x + self.pe(v))


class AreaBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int, area: int) -> None:
        super().__init__()
        self.attn = AreaAttention(dim, num_heads, area)
        self.mlp = nn.Sequential(ConvBN(dim, int(dim * 1.25), 1), ConvBN(int(dim * 1.25), dim, 1, act=False))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        return x + self.mlp(x)


class AreaStage(nn.Module):
    def __init__(self, c1: int, c_: int, c2: int, heads: int, area: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = ConvBN(c1, c_), ConvBN(3 * c_, c2)
        self.m = nn.ModuleList(nn.Sequential(*(AreaBlock(c_, heads, area) for _ in range(2))) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class AreaDetector(nn.Module):
    def __init__(self, nc: int = 5) -> None:
        super().__init__()
        self.model = nn.Sequential(ConvBN(3, 12, 3, 2), ConvBN(12, 26, 3, 2), AreaStage(26, 24, 34, 3, 4), ConvBN(34, 44, 3, 2))
        self.cv2 = nn.Sequential(ConvBN(44, 20, 3), nn.Conv2d(20, 16, 1))
        self.cv3 = nn.Sequential(ConvBN(44, 44, 3, g=44), ConvBN(44, 18), nn.Conv2d(18, nc, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.model(x)
        return torch.cat((self.cv2(x), self.cv3(x)), 1).flatten(2)


# A detector that attends at its smallest scale only; scales are fused by convolutions that become one.
class RepBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = ConvBN(c, c, 3, act=False), ConvBN(c, c, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.conv1(x) + self.conv2(x))


class EncoderLayer(nn.Module):
    def __init__(self, d_model: int, nhead: int, dim_feedforward: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(d_model, nhead, 0.0, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(d_model, dim_feedforward), nn.Linear(dim_feedforward, d_model)
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def forward(self, src: Tensor, pos: Tensor) -> Tensor:
        q = k = src + pos
        src = self.norm1(src + self.self_attn(q, k, value=src, need_weights=False)[0])
        return self.norm2(src + self.linear2(F.gelu(self.linear1(src))))


class HybridEncoder(nn.Module):
    def __init__(self, d: int = 28, queries: int = 6, labels: int = 7) -> None:
        super().__init__()
        self.backbone = nn.ModuleList([ConvBN(3, 10, 3, 2), ConvBN(10, 18, 3, 2), ConvBN(18, 30, 3, 2)])
        self.input_proj = nn.ModuleList([nn.Conv2d(c, d, 1, bias=False) for c in (18, 30)])
        self.encoder, self.queries = EncoderLayer(d, 4, 46), queries
        self.lateral, self.fpn, self.downsample, self.pan = ConvBN(d, d), RepBlock(2 * d), ConvBN(2 * d, d, 3, 2), RepBlock(2 * d)
        self.enc_output, self.enc_score_head = nn.Linear(2 * d, d), nn.Linear(d, labels)
        self.dec_self_attn = nn.MultiheadAttention(d, 4, batch_first=True)
        self.dec_cross_attn = nn.MultiheadAttention(d, 4, batch_first=True)
        self.dec_linear1, self.dec_linear2 = nn.Linear(d, 50), nn.Linear(50, d)
        self.dec_score_head, self.dec_bbox_head = nn.Linear(d, labels), nn.Linear(d, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        feats = []
        for stage in self.backbone:
            x = stage(x)
            feats.append(x)
        c4, c5 = (proj(f) for proj, f in zip(self.input_proj, feats[1:], strict=True))
        n, d, h, w = c5.shape
        where = torch.arange(h * w)[:, None] * torch.exp(-torch.arange(d // 2) / 3.0)
        pos = torch.cat([where.sin(), where.cos()], -1)[None]
        c5 = self.encoder(c5.flatten(2).permute(0, 2, 1), pos).permute(0, 2, 1).reshape(n, d, h, w)
        c5 = self.lateral(c5)
        p4 = self.fpn(torch.cat([F.interpolate(c5, scale_factor=2.0), c4], dim=1))
        p5 = self.pan(torch.cat([self.downsample(p4), c5], dim=1))
        memory = self.enc_output(torch.cat([p4.flatten(2), p5.flatten(2)], -1).permute(0, 2, 1))
        top = self.enc_score_head(memory).max(-1).values.topk(self.queries, dim=1).indices
        t = memory.gather(1, top[..., None].expand(-1, -1, d))
        t = t + self.dec_self_attn(t, t, t)[0]
        t = t + self.dec_cross_attn(t, memory, memory)[0]
        t = t + self.dec_linear2(F.relu(self.dec_linear1(t)))
        return self.dec_score_head(t), self.dec_bbox_head(t).sigmoid()


# Windows in a U with a depthwise convolution in the feed-forward layer.
class LinearProjection(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.to_q, self.to_kv = heads, nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        B_, N, C = x.shape
        q = self.to_q(x).reshape(B_, N, 1, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        kv = self.to_kv(x).reshape(B_, N, 2, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        return q[0], kv[0], kv[1]


class LeWinBlock(nn.Module):
    def __init__(self, dim: int, heads: int, win: int) -> None:
        super().__init__()
        self.win, self.norm1, self.norm2 = win, nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj, self.scale = LinearProjection(dim, heads), nn.Linear(dim, dim), (dim // heads) ** -0.5
        self.bias = nn.Parameter(torch.zeros((2 * win - 1) ** 2, heads))
        hidden = 2 * dim + 6
        self.linear1 = nn.Sequential(nn.Linear(dim, hidden), nn.GELU())
        self.dwconv = nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden), nn.GELU())
        self.linear2 = nn.Sequential(nn.Linear(hidden, dim))
        y, x = torch.meshgrid(torch.arange(win), torch.arange(win), indexing="ij")
        y, x = y.flatten(), x.flatten()
        self.index = (y[:, None] - y + win - 1) * (2 * win - 1) + x[:, None] - x + win - 1

    def forward(self, x: Tensor) -> Tensor:
        B, L, C = x.shape
        s = int(math.sqrt(L))
        n, w = s // self.win, self.win
        y = self.norm1(x).view(B, n, w, n, w, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, w * w, C)
        q, k, v = self.qkv(y)
        attn = (q * self.scale) @ k.transpose(-2, -1) + self.bias[self.index].permute(2, 0, 1).unsqueeze(0)
        y = self.proj((attn.softmax(-1) @ v).transpose(1, 2).reshape(-1, w * w, C))
        x = x + y.view(B, n, n, w, w, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(B, L, C)
        y = self.linear1(self.norm2(x)).transpose(1, 2).reshape(B, -1, s, s)
        return x + self.linear2(self.dwconv(y).flatten(2).transpose(1, 2))


class WindowU(nn.Module):
    def __init__(self, c: int = 18) -> None:
        super().__init__()
        self.input_proj = nn.Sequential(nn.Conv2d(3, c, 3, padding=1), nn.LeakyReLU())
        self.encoderlayer_0, self.dowsample_0 = LeWinBlock(c, 2, 4), nn.Conv2d(c, 2 * c, 4, 2, 1)
        self.conv = LeWinBlock(2 * c, 4, 4)
        self.upsample_0, self.decoderlayer_0 = nn.ConvTranspose2d(2 * c, c, 2, 2), LeWinBlock(2 * c, 3, 4)
        self.output_proj = nn.Conv2d(2 * c, 3, 3, padding=1)

    def forward(self, img: Tensor) -> Tensor:
        def tokens(x: Tensor) -> Tensor:
            return x.flatten(2).transpose(1, 2).contiguous()

        def image(x: Tensor) -> Tensor:
            s = int(math.sqrt(x.shape[1]))
            return x.transpose(1, 2).contiguous().view(x.shape[0], -1, s, s)

        e = self.encoderlayer_0(tokens(self.input_proj(img)))
        m = self.conv(tokens(self.dowsample_0(image(e))))
        d = self.decoderlayer_0(torch.cat([tokens(self.upsample_0(image(m))), e], -1))
        return img + self.output_proj(image(d))


# No activation at all: halves are multiplied.
class SimpleGate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return x1 * x2


class GateBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(2 * c, 2 * c, 3, padding=1, groups=2 * c)
        self.conv3, self.sg = nn.Conv2d(c, c, 1), SimpleGate()
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, c, 1))
        self.conv4, self.conv5 = nn.Conv2d(c, 2 * c, 1), nn.Conv2d(c, c, 1)
        self.norm1, self.norm2 = nn.GroupNorm(1, c), nn.GroupNorm(1, c)
        self.beta, self.gamma = nn.Parameter(torch.zeros((1, c, 1, 1))), nn.Parameter(torch.zeros((1, c, 1, 1)))

    def forward(self, inp: Tensor) -> Tensor:
        x = self.sg(self.conv2(self.conv1(self.norm1(inp))))
        y = inp + self.conv3(x * self.sca(x)) * self.beta
        return y + self.conv5(self.sg(self.conv4(self.norm2(y)))) * self.gamma


class GateNet(nn.Module):
    def __init__(self, width: int = 14) -> None:
        super().__init__()
        self.intro, self.ending = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.encoders, self.downs = nn.ModuleList([GateBlock(width)]), nn.ModuleList([nn.Conv2d(width, 2 * width, 2, 2)])
        self.middle_blks = nn.Sequential(GateBlock(2 * width), GateBlock(2 * width))
        self.ups = nn.ModuleList([nn.Sequential(nn.Conv2d(2 * width, 4 * width, 1, bias=False), nn.PixelShuffle(2))])
        self.decoders = nn.ModuleList([GateBlock(width)])

    def forward(self, inp: Tensor) -> Tensor:
        x = self.intro(inp)
        encs = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            x = encoder(x)
            encs.append(x)
            x = down(x)
        x = self.middle_blks(x)
        for decoder, up, skip in zip(self.decoders, self.ups, encs[::-1], strict=True):
            x = decoder(up(x) + skip)
        return self.ending(x) + inp


# Biases for queries and values alone, put together when used.
class HalfBiased(nn.Module):
    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, dim * 3, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.relative_position_bias_table = nn.Parameter(torch.zeros((side * side + 1) ** 2, num_heads))
        self.proj, self.n = nn.Linear(dim, dim), side * side + 1

    def forward(self, x: Tensor) -> Tensor:
        B, N, _C = x.shape
        qkv_bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias, requires_grad=False), self.v_bias))
        qkv = F.linear(input=x, weight=self.qkv.weight, bias=qkv_bias)
        qkv = qkv.reshape(B, N, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        attn = q @ k.transpose(-2, -1) + self.relative_position_bias_table.view(N, N, -1).permute(2, 0, 1)[None]
        return self.proj((attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, -1))


class HalfBiasedBlock(nn.Module):
    def __init__(self, dim: int, heads: int, side: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), HalfBiased(dim, heads, side), nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 70), nn.Linear(70, dim)
        self.gamma_1, self.gamma_2 = nn.Parameter(0.1 * torch.ones(dim)), nn.Parameter(0.1 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class MaskedPictures(nn.Module):
    def __init__(self, dim: int = 36, vocab: int = 83) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 4, 4)
        self.cls_token, self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02), nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList([HalfBiasedBlock(dim, 4, 4) for _ in range(2)])
        self.norm, self.lm_head = nn.LayerNorm(dim), nn.Linear(dim, vocab)

    def forward(self, x: Tensor, bool_masked_pos: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        w = bool_masked_pos.unsqueeze(-1).type_as(self.mask_token)
        x = x * (1 - w) + self.mask_token.expand(x.shape[0], x.shape[1], -1) * w
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        for blk in self.blocks:
            x = blk(x)
        return self.lm_head(self.norm(x)[:, 1:][bool_masked_pos.bool()])


# Rotated queries and keys, each linear with a bias of its own or none, a norm inside of attention and of the gates.
class SubNormBlock(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads, self.norm1, self.norm2 = heads, nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.q_proj, self.k_proj, self.v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.inner_attn_ln, self.proj = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.w1, self.w2, self.w3 = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.ffn_ln = nn.LayerNorm(hidden)

    def forward(self, x: Tensor, rope: Tensor) -> Tensor:
        b, n, c = x.shape
        h = self.norm1(x)
        q = self.q_proj(h).reshape(b, n, self.heads, -1).permute(0, 2, 1, 3)
        k = self.k_proj(h).reshape(b, n, self.heads, -1).permute(0, 2, 1, 3)
        v = self.v_proj(h).reshape(b, n, self.heads, -1).permute(0, 2, 1, 3)

        def turn(t: Tensor) -> Tensor:
            p = t[:, :, 1:]
            r = torch.stack((-p[..., 1::2], p[..., ::2]), dim=-1).flatten(-2)
            return torch.cat((t[:, :, :1], p * rope.cos() + r * rope.sin()), -2)

        attn = (turn(q) * (c // self.heads) ** -0.5) @ turn(k).transpose(-2, -1)
        y = (attn.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1)
        x = x + self.proj(self.inner_attn_ln(y))
        h = self.norm2(x)
        return x + self.w3(self.ffn_ln(F.silu(self.w1(h)) * self.w2(h)))


class SubNormViT(nn.Module):
    def __init__(self, dim: int = 40, classes: int = 9) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, dim, 4, 4)})
        self.cls_token, self.pos_embed = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        self.blocks = nn.ModuleList([SubNormBlock(dim, 5, 62) for _ in range(2)])
        self.fc_norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), 1) + self.pos_embed
        rope = (torch.arange(16)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03])).repeat_interleave(2, -1)
        for blk in self.blocks:
            x = blk(x, rope)
        return self.head(self.fc_norm(x[:, 1:].mean(1)))


# Two branches of patches, whose class tokens look at the other branch.
class CrossToken(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.wq, self.wk, self.wv, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q = self.wq(x[:, 0:1, ...]).reshape(B, 1, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        k = self.wk(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        v = self.wv(x).reshape(B, N, self.num_heads, C // self.num_heads).permute(0, 2, 1, 3)
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, 1, C))


class Branch(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.num_heads, self.norm1, self.norm2 = heads, nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj((torch.softmax(q @ k.mT * (C // self.num_heads) ** -0.5, -1) @ v).transpose(1, 2).reshape(B, N, C))
        return x + self.mlp(self.norm2(x))


class TwoScales(nn.Module):
    def __init__(self, dims: tuple[int, int] = (24, 35), classes: int = 8) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleList([nn.Conv2d(3, dims[0], 4, 4), nn.Conv2d(3, dims[1], 8, 8)])
        self.cls_token = nn.ParameterList([nn.Parameter(torch.randn(1, 1, d) * 0.02) for d in dims])
        self.pos_embed = nn.ParameterList([nn.Parameter(torch.randn(1, n, d) * 0.02) for n, d in zip((17, 5), dims, strict=True)])
        self.blocks = nn.ModuleList([Branch(dims[0], 3, 40), Branch(dims[1], 5, 66)])
        self.projs = nn.ModuleList([nn.Sequential(nn.LayerNorm(dims[i]), nn.GELU(), nn.Linear(dims[i], dims[1 - i])) for i in (0, 1)])
        self.fusion = nn.ModuleList([CrossToken(dims[1], 5), CrossToken(dims[0], 3)])
        self.revert_projs = nn.ModuleList([nn.Sequential(nn.LayerNorm(dims[1 - i]), nn.Linear(dims[1 - i], dims[i])) for i in (0, 1)])
        self.head = nn.ModuleList([nn.Linear(d, classes) for d in dims])

    def forward(self, img: Tensor) -> Tensor:
        xs = []
        for i in range(2):
            x = self.patch_embed[i](img).flatten(2).transpose(1, 2)
            xs.append(self.blocks[i](torch.cat((self.cls_token[i].expand(len(x), -1, -1), x), 1) + self.pos_embed[i]))
        outs = []
        for i in range(2):
            token = self.projs[i](xs[i][:, 0:1])
            token = token + self.fusion[i](torch.cat((token, xs[1 - i][:, 1:]), 1))
            outs.append(self.head[i](xs[i][:, 0] + self.revert_projs[i](token)[:, 0]))
        return torch.stack(outs).mean(0)


# A film: attention over moments, then over places, by the same class.
class FilmAttention(nn.Module):
    def __init__(self, dim: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale, inner = heads, dim_head**-0.5, dim_head * heads
        self.to_qkv, self.to_out = nn.Linear(dim, inner * 3, bias=False), nn.Sequential(nn.Linear(inner, dim), nn.Dropout(0.0))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).movedim(-2, 1).flatten(0, 1) for t in self.to_qkv(x).chunk(3, dim=-1))
        attn = torch.einsum("b i d, b j d -> b i j", q * self.scale, k).softmax(dim=-1)
        out = torch.einsum("b i j, b j d -> b i d", attn, v)
        return self.to_out(out.unflatten(0, (-1, self.heads)).movedim(1, 2).flatten(2))


class Film(nn.Module):
    def __init__(self, dim: int = 30, frames: int = 3, classes: int = 6) -> None:
        super().__init__()
        self.to_patch_embedding = nn.Linear(3 * 4 * 4, dim)
        self.pos_emb, self.frame_emb = nn.Embedding(4, dim), nn.Embedding(frames, dim)
        self.layers = nn.ModuleList([])
        for _ in range(2):
            ff = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 52), nn.GELU(), nn.Linear(52, dim))
            self.layers.append(nn.ModuleList([FilmAttention(dim, 9, 4), FilmAttention(dim, 9, 4), ff]))
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in range(4)])
        self.to_out = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, classes))

    def forward(self, video: Tensor) -> Tensor:
        b, f, _c, _h, _w = video.shape
        x = video.unfold(3, 4, 4).unfold(4, 4, 4).permute(0, 1, 3, 4, 5, 6, 2).reshape(b, f, 4, -1)
        x = self.to_patch_embedding(x) + self.pos_emb(torch.arange(4)) + self.frame_emb(torch.arange(f))[:, None]
        for i, (time, space, ff) in enumerate(self.layers):  # pyright: ignore
            y = self.norms[2 * i](x).transpose(1, 2).flatten(0, 1)
            x = x + time(y).unflatten(0, (b, 4)).transpose(1, 2)
            x = x + space(self.norms[2 * i + 1](x).flatten(0, 1)).unflatten(0, (b, f))
            x = x + ff(x)
        return self.to_out(x.mean((1, 2)))


# A GAN with attention over the map, keys of an eighth of the channels, spectral norms.
class MapAttention(nn.Module):
    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.query_conv, self.key_conv = nn.Conv2d(in_dim, in_dim // 8, 1), nn.Conv2d(in_dim, in_dim // 8, 1)
        self.value_conv, self.gamma = nn.Conv2d(in_dim, in_dim, 1), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m, C, width, height = x.size()
        proj_query = self.query_conv(x).view(m, -1, width * height).permute(0, 2, 1)
        proj_key = self.key_conv(x).view(m, -1, width * height)
        attention = torch.softmax(torch.bmm(proj_query, proj_key), dim=-1)
        out = torch.bmm(self.value_conv(x).view(m, -1, width * height), attention.permute(0, 2, 1))
        return self.gamma * out.view(m, C, width, height) + x, attention


class AttendingGAN(nn.Module):
    def __init__(self, z: int = 20) -> None:
        super().__init__()
        sn = torch.nn.utils.parametrizations.spectral_norm
        self.l1 = nn.Sequential(sn(nn.ConvTranspose2d(z, 40, 4)), nn.BatchNorm2d(40), nn.ReLU())
        self.l2 = nn.Sequential(sn(nn.ConvTranspose2d(40, 24, 4, 2, 1)), nn.BatchNorm2d(24), nn.ReLU())
        self.attn1, self.last = MapAttention(24), nn.Sequential(nn.ConvTranspose2d(24, 3, 4, 2, 1), nn.Tanh())
        self.d1 = nn.Sequential(sn(nn.Conv2d(3, 16, 4, 2, 1)), nn.LeakyReLU(0.1))
        self.d2, self.attn2 = nn.Sequential(sn(nn.Conv2d(16, 32, 4, 2, 1)), nn.LeakyReLU(0.1)), MapAttention(32)
        self.d_last = nn.Sequential(nn.Conv2d(32, 1, 4))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        out, _ = self.attn1(self.l2(self.l1(z.view(z.size(0), z.size(1), 1, 1))))
        img = self.last(out)
        out, _ = self.attn2(self.d2(self.d1(img)))
        return img, self.d_last(out).squeeze()


def _image(side: int, *more: Any) -> Any:
    return lambda: ((torch.randn(2, 3, side, side), *more), {})


_OUT = {"conv", "classifier", "lm_head"}
_HEAD = {"classifier", "lm_head"}

STYLES: list[Style] = [
    Style(
        "coarse features matched",
        CoarseMatcher,
        lambda: (({"image0": torch.randn(1, 1, 16, 16), "image1": torch.randn(1, 1, 16, 16)},), {}),
        {"hybrid", "transformer"},
        {
            "conv1.weight": {"first_conv"},
            "layer1.0.weight": {"conv"},
            "layer2_outconv.weight": {"conv"},
            "*.q_proj.weight": {"query"},
            "*.k_proj.weight": {"key"},
            "*.v_proj.weight": {"value"},
            "*.merge.weight": {"attn_out"},
            "*.mlp.0.weight": {"mlp_up"},
            "*.mlp.2.weight": {"mlp_down"},
        },
        {"*.q_proj.weight": "q:4x8", "*.k_proj.weight": "k:4x8"},
    ),
    Style(
        "areas of attention",
        AreaDetector,
        _image(32),
        {"cnn", "hybrid"},
        {
            "model.0.conv.weight": {"first_conv"},
            "model.[13].conv.weight": {"conv"},
            "model.2.cv?.conv.weight": {"conv"},
            "*.attn.qkv.conv.weight": {"qkv"},
            "*.attn.proj.conv.weight": {"attn_out"},
            "*.attn.pe.conv.weight": {"conv_dw"},
            "model.2.m.*.mlp.0.conv.weight": {"mlp_up", "conv"},
            "model.2.m.*.mlp.1.conv.weight": {"mlp_down", "conv"},
            "cv2.1.weight": _OUT,
            "cv3.2.weight": _OUT,
        },
        {"*.attn.qkv.conv.weight": "3*(q:1x8|k:1x8|v:1x8)"},
    ),
    Style(
        "attention at the smallest scale",
        HybridEncoder,
        _image(32),
        {"hybrid", "transformer"},
        {
            "backbone.0.conv.weight": {"first_conv"},
            "backbone.[12].conv.weight": {"conv"},
            "input_proj.?.weight": {"conv"},
            "*attn.in_proj_weight": {"qkv"},
            "*attn.out_proj.weight": {"attn_out"},
            "*linear1.weight": {"mlp_up"},
            "*linear2.weight": {"mlp_down"},
            "fpn.conv?.conv.weight": {"conv"},
            "enc_output.weight": {"linear"},
            "*_score_head.weight": _HEAD,
            "dec_bbox_head.weight": _HEAD | {"linear"},
        },
        {"*attn.in_proj_weight": "q:4x7|k:4x7|v:4x7"},
    ),
    Style(
        "windows in a u",
        WindowU,
        _image(16),
        {"transformer", "hybrid"},
        {
            "input_proj.0.weight": {"first_conv"},
            "*.qkv.to_q.weight": {"query"},
            "*.qkv.to_kv.weight": {"qkv"},
            "*.proj.weight": {"attn_out"},
            "*.linear1.0.weight": {"mlp_up"},
            "*.linear2.0.weight": {"mlp_down"},
            "*.dwconv.0.weight": {"conv_dw"},
            "dowsample_0.weight": {"conv"},
            "output_proj.weight": _OUT,
        },
        {
            "encoderlayer_0.qkv.to_q.weight": "q:2x9",
            "encoderlayer_0.qkv.to_kv.weight": "k:2x9|v:2x9",
            "conv.qkv.to_q.weight": "q:4x9",
            "conv.qkv.to_kv.weight": "k:4x9|v:4x9",
            "decoderlayer_0.qkv.to_q.weight": "q:3x12",
            "decoderlayer_0.qkv.to_kv.weight": "k:3x12|v:3x12",
        },
    ),
    Style(
        "halves are multiplied",
        GateNet,
        _image(8),
        {"cnn"},
        {
            "intro.weight": {"first_conv"},
            "*.conv2.weight": {"conv_dw"},
            "*.conv[1345].weight": {"conv", "mlp_up", "mlp_down", "mlp_gate_up"},
            "*.sca.1.weight": {"conv"},
            "downs.0.weight": {"conv"},
            "ending.weight": _OUT,
        },
    ),
    Style(
        "biases for queries and values",
        MaskedPictures,
        lambda: ((torch.randn(1, 3, 16, 16), torch.arange(16)[None] % 3 == 0), {}),
        {"transformer"},
        {
            "patch_embed.weight": {"patch_embedding"},
            "cls_token": {"special_token"},
            "mask_token": {"special_token"},
            "*.attn.qkv.weight": {"qkv"},
            "*.attn.?_bias": {"bias"},
            "*.relative_position_bias_table": {"position_embedding"},
            "*.attn.proj.weight": {"attn_out"},
            "*.fc1.weight": {"mlp_up"},
            "*.fc2.weight": {"mlp_down"},
            "lm_head.weight": {"lm_head", "classifier"},
        },
        {"*.attn.qkv.weight": "q:4x9|k:4x9|v:4x9"},
    ),
    Style(
        "norms inside of attention and gates",
        SubNormViT,
        _image(16),
        {"transformer"},
        {
            "patch_embed.proj.weight": {"patch_embedding"},
            "pos_embed": {"position_embedding"},
            "*.q_proj.weight": {"query"},
            "*.k_proj.weight": {"key"},
            "*.v_proj.weight": {"value"},
            "blocks.?.proj.weight": {"attn_out"},
            "*.w1.weight": {"mlp_gate"},
            "*.w2.weight": {"mlp_up"},
            "*.w3.weight": {"mlp_down"},
            "head.weight": {"classifier"},
        },
        {"*.q_proj.weight": "q:5x8", "*.k_proj.weight": "k:5x8"},
    ),
    Style(
        "two scales of patches",
        TwoScales,
        _image(16),
        {"transformer"},
        {
            "patch_embed.?.weight": {"patch_embedding"},
            "cls_token.?": {"special_token"},
            "pos_embed.?": {"position_embedding"},
            "blocks.?.qkv.weight": {"qkv"},
            "blocks.?.proj.weight": {"attn_out"},
            "blocks.?.mlp.0.weight": {"mlp_up"},
            "blocks.?.mlp.2.weight": {"mlp_down"},
            "projs.?.2.weight": {"linear"},
            "fusion.?.wq.weight": {"query"},
            "fusion.?.wk.weight": {"key"},
            "fusion.?.wv.weight": {"value"},
            "fusion.?.proj.weight": {"attn_out"},
            "head.?.weight": {"classifier"},
        },
        {
            "blocks.0.qkv.weight": "q:3x8|k:3x8|v:3x8",
            "blocks.1.qkv.weight": "q:5x7|k:5x7|v:5x7",
            "fusion.0.wq.weight": "q:5x7",
            "fusion.0.wk.weight": "k:5x7",
            "fusion.1.wq.weight": "q:3x8",
            "fusion.1.wk.weight": "k:3x8",
        },
    ),
    Style(
        "moments, then places",
        Film,
        lambda: ((torch.randn(1, 3, 3, 8, 8),), {}),
        {"transformer"},
        {
            "to_patch_embedding.weight": {"patch_embedding", "linear"},
            "pos_emb.weight": {"position_embedding"},
            "frame_emb.weight": {"position_embedding"},
            "*.to_qkv.weight": {"qkv"},
            "*.to_out.0.weight": {"attn_out"},
            "layers.*.2.1.weight": {"mlp_up"},
            "layers.*.2.3.weight": {"mlp_down"},
            "to_out.1.weight": {"classifier"},
        },
        {"*.to_qkv.weight": "q:4x9|k:4x9|v:4x9"},
    ),
    Style(
        "gan with attention over the map",
        AttendingGAN,
        lambda: ((torch.randn(2, 20),), {}),
        {"cnn", "hybrid"},
        {
            "l2.0.parametrizations.weight.original": {"conv"},
            "d1.0.parametrizations.weight.original": {"first_conv", "conv"},
            "d2.0.parametrizations.weight.original": {"conv"},
            "attn?.query_conv.weight": {"query"},
            "attn?.key_conv.weight": {"key"},
            "attn?.value_conv.weight": {"value"},
            "last.0.weight": _OUT,
            "d_last.0.weight": _OUT,
        },
        {
            "attn1.query_conv.weight": "q:1x3",
            "attn1.key_conv.weight": "k:1x3",
            "attn2.query_conv.weight": "q:1x4",
            "attn2.key_conv.weight": "k:1x4",
        },
    ),
]
