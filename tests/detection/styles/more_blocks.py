"""Detection, matching, masks, words: conditional queries, roles that alternate, nested and gated UNets, non-local means."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Conditional DETR: content and place have projections of their own, joined head by head.
class ConditionalDecoderLayer(nn.Module):
    def __init__(self, d_model: int, nhead: int, dim_feedforward: int) -> None:
        super().__init__()
        self.nhead = nhead
        self.sa_qcontent_proj, self.sa_qpos_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.sa_kcontent_proj, self.sa_kpos_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.sa_v_proj, self.sa_out_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.ca_qcontent_proj, self.ca_qpos_sine_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.ca_kcontent_proj, self.ca_kpos_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.ca_v_proj, self.ca_out_proj = nn.Linear(d_model, d_model), nn.Linear(d_model, d_model)
        self.linear1, self.linear2 = nn.Linear(d_model, dim_feedforward), nn.Linear(dim_feedforward, d_model)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(d_model), nn.LayerNorm(d_model), nn.LayerNorm(d_model)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        attn = torch.einsum("qbhd,kbhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        return torch.einsum("bhqk,kbhd->qbhd", F.softmax(attn, dim=-1), v).flatten(2)

    def forward(self, tgt: Tensor, memory: Tensor, pos: Tensor, query_pos: Tensor, query_sine_embed: Tensor) -> Tensor:
        nq, bs, c = tgt.shape
        hw, h = memory.shape[0], self.nhead
        q = (self.sa_qcontent_proj(tgt) + self.sa_qpos_proj(query_pos)).view(nq, bs, h, c // h)
        k = (self.sa_kcontent_proj(tgt) + self.sa_kpos_proj(query_pos)).view(nq, bs, h, c // h)
        v = self.sa_v_proj(tgt).view(nq, bs, h, c // h)
        tgt = self.norm1(tgt + self.sa_out_proj(self.attend(q, k, v)))
        q = self.ca_qcontent_proj(tgt).view(nq, bs, h, c // h)
        q = torch.cat([q, self.ca_qpos_sine_proj(query_sine_embed).view(nq, bs, h, c // h)], dim=3)
        k = self.ca_kcontent_proj(memory).view(hw, bs, h, c // h)
        k = torch.cat([k, self.ca_kpos_proj(pos).view(hw, bs, h, c // h)], dim=3)
        v = self.ca_v_proj(memory).view(hw, bs, h, c // h)
        tgt = self.norm2(tgt + self.ca_out_proj(self.attend(q, k, v)))
        return self.norm3(tgt + self.linear2(F.relu(self.linear1(tgt))))


class ConditionalDETR(nn.Module):
    def __init__(self, d_model: int = 32, nhead: int = 4, num_queries: int = 5, num_classes: int = 6) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 18, 7, 4, 3), nn.BatchNorm2d(18), nn.ReLU(), nn.Conv2d(18, 26, 3, 2, 1), nn.ReLU())
        self.input_proj = nn.Conv2d(26, d_model, kernel_size=1)
        self.query_embed = nn.Embedding(num_queries, d_model)
        self.ref_point_head = nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(), nn.Linear(d_model, 2))
        self.layers = nn.ModuleList([ConditionalDecoderLayer(d_model, nhead, 48) for _ in range(2)])
        self.class_embed, self.bbox_embed = nn.Linear(d_model, num_classes), nn.Linear(d_model, 4)

    def sine(self, xy: Tensor) -> Tensor:
        w = 100.0 ** -(torch.arange(8) / 8)
        return torch.cat([f(xy[..., i : i + 1] * 6.28 * w) for i in (0, 1) for f in (torch.sin, torch.cos)], dim=-1)

    def forward(self, samples: Tensor) -> dict[str, Tensor]:
        src = self.input_proj(self.backbone(samples))
        b, _, h, w = src.shape
        grid = torch.cartesian_prod(torch.arange(h) / h, torch.arange(w) / w)
        pos = self.sine(grid)[:, None].expand(-1, b, -1)
        memory = src.flatten(2).permute(2, 0, 1)
        query_pos = self.query_embed.weight[:, None].expand(-1, b, -1)
        reference = self.ref_point_head(query_pos).sigmoid()
        tgt = torch.zeros_like(query_pos)
        for layer in self.layers:
            tgt = layer(tgt, memory, pos, query_pos, self.sine(reference))
        out = tgt.transpose(0, 1)
        return {"pred_logits": self.class_embed(out), "pred_boxes": self.bbox_embed(out).sigmoid()}


# LightGlue: query, key and value alternate within a head; between the pictures one projection is both query and key.
class SelfGlue(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.Wqkv, self.out_proj = nn.Linear(embed_dim, 3 * embed_dim), nn.Linear(embed_dim, embed_dim)
        self.ffn = nn.Sequential(
            nn.Linear(2 * embed_dim, 2 * embed_dim), nn.LayerNorm(2 * embed_dim), nn.GELU(), nn.Linear(2 * embed_dim, embed_dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.Wqkv(x).unflatten(-1, (self.num_heads, -1, 3)).transpose(1, 2)
        q, k, v = qkv[..., 0], qkv[..., 1], qkv[..., 2]
        message = self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(start_dim=-2))
        return x + self.ffn(torch.cat([x, message], -1))


class CrossGlue(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.heads, self.scale = num_heads, (embed_dim // num_heads) ** -0.5
        self.to_qk, self.to_v, self.to_out = (nn.Linear(embed_dim, embed_dim) for _ in range(3))
        self.ffn = nn.Sequential(
            nn.Linear(2 * embed_dim, 2 * embed_dim), nn.LayerNorm(2 * embed_dim), nn.GELU(), nn.Linear(2 * embed_dim, embed_dim)
        )

    def forward(self, x0: Tensor, x1: Tensor) -> tuple[Tensor, Tensor]:
        qk0, qk1, v0, v1 = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (self.to_qk(x0), self.to_qk(x1), self.to_v(x0), self.to_v(x1))
        )
        sim = torch.einsum("bhid,bhjd->bhij", qk0 * self.scale**0.5, qk1 * self.scale**0.5)
        m0 = torch.einsum("bhij,bhjd->bhid", F.softmax(sim, dim=-1), v1)
        m1 = torch.einsum("bhji,bhjd->bhid", F.softmax(sim.transpose(-2, -1), dim=-1).transpose(-2, -1), v0)
        m0, m1 = (self.to_out(t.transpose(1, 2).flatten(start_dim=-2)) for t in (m0, m1))
        return x0 + self.ffn(torch.cat([x0, m0], -1)), x1 + self.ffn(torch.cat([x1, m1], -1))


class LightGlue(nn.Module):
    def __init__(self, input_dim: int = 21, dim: int = 28, n_layers: int = 2) -> None:
        super().__init__()
        self.input_proj, self.posenc = nn.Linear(input_dim, dim), nn.Linear(2, dim, bias=False)
        self.self_attn = nn.ModuleList([SelfGlue(dim, 4) for _ in range(n_layers)])
        self.cross_attn = nn.ModuleList([CrossGlue(dim, 4) for _ in range(n_layers)])
        self.matchability, self.final_proj = nn.Linear(dim, 1), nn.Linear(dim, dim)

    def forward(self, data: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        d0, d1 = (self.input_proj(data[f"descriptors{i}"]) + self.posenc(data[f"keypoints{i}"]).cos() for i in (0, 1))
        for own, other in zip(self.self_attn, self.cross_attn, strict=True):
            d0, d1 = other(own(d0), own(d1))
        sim = torch.einsum("bmd,bnd->bmn", self.final_proj(d0) / 5, self.final_proj(d1))
        return sim.log_softmax(2) + sim.log_softmax(1), self.matchability(d0)


# U2-Net: UNets within a UNet, an output at each depth.
class REBNCONV(nn.Module):
    def __init__(self, in_ch: int, out_ch: int, dirate: int = 1) -> None:
        super().__init__()
        self.conv_s1 = nn.Conv2d(in_ch, out_ch, 3, padding=dirate, dilation=dirate)
        self.bn_s1, self.relu_s1 = nn.BatchNorm2d(out_ch), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu_s1(self.bn_s1(self.conv_s1(x)))


class RSU3(nn.Module):
    def __init__(self, in_ch: int, mid_ch: int, out_ch: int) -> None:
        super().__init__()
        self.rebnconvin, self.rebnconv1 = REBNCONV(in_ch, out_ch), REBNCONV(out_ch, mid_ch)
        self.rebnconv2, self.rebnconv3 = REBNCONV(mid_ch, mid_ch), REBNCONV(mid_ch, mid_ch, 2)
        self.rebnconv2d, self.rebnconv1d = REBNCONV(mid_ch * 2, mid_ch), REBNCONV(mid_ch * 2, out_ch)

    def forward(self, x: Tensor) -> Tensor:
        hxin = self.rebnconvin(x)
        hx1 = self.rebnconv1(hxin)
        hx2 = self.rebnconv2(F.max_pool2d(hx1, 2))
        hx3 = self.rebnconv3(hx2)
        hx2d = self.rebnconv2d(torch.cat((hx3, hx2), 1))
        return self.rebnconv1d(torch.cat((F.interpolate(hx2d, size=hx1.shape[2:]), hx1), 1)) + hxin


class U2NET(nn.Module):
    def __init__(self, in_ch: int = 3, out_ch: int = 1) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3 = RSU3(in_ch, 8, 14), RSU3(14, 8, 22), RSU3(22, 10, 22)
        self.stage2d, self.stage1d = RSU3(44, 8, 14), RSU3(28, 6, 14)
        self.side1, self.side2, self.side3 = (nn.Conv2d(c, out_ch, 3, padding=1) for c in (14, 14, 22))
        self.outconv = nn.Conv2d(3 * out_ch, out_ch, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        hx1 = self.stage1(x)
        hx2 = self.stage2(F.max_pool2d(hx1, 2))
        hx3 = self.stage3(F.max_pool2d(hx2, 2))
        hx2d = self.stage2d(torch.cat((F.interpolate(hx3, size=hx2.shape[2:]), hx2), 1))
        hx1d = self.stage1d(torch.cat((F.interpolate(hx2d, size=hx1.shape[2:]), hx1), 1))
        sides = [F.interpolate(s(h), size=x.shape[2:]) for s, h in ((self.side1, hx1d), (self.side2, hx2d), (self.side3, hx3))]
        return tuple(torch.sigmoid(s) for s in (self.outconv(torch.cat(sides, 1)), *sides))


# TransUNet: convolutions, then a transformer over their smallest map, then convolutions that look back.
class TransAttention(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, hidden // heads
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden) for _ in range(4))

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        q = self.transpose_for_scores(self.query(hidden_states))
        k = self.transpose_for_scores(self.key(hidden_states))
        v = self.transpose_for_scores(self.value(hidden_states))
        probs = F.softmax(torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.attention_head_size), -1)
        context = torch.matmul(probs, v).permute(0, 2, 1, 3).contiguous()
        return self.out(context.view(*context.size()[:-2], -1)), probs


class TransBlock(nn.Module):
    def __init__(self, hidden: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(hidden, eps=1e-6), nn.LayerNorm(hidden, eps=1e-6)
        self.attn = TransAttention(hidden, heads)
        self.fc1, self.fc2 = nn.Linear(hidden, mlp_dim), nn.Linear(mlp_dim, hidden)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, weights = self.attn(self.attention_norm(x))
        x = x + y
        return x + self.fc2(F.gelu(self.fc1(self.ffn_norm(x)))), weights


class TransUNet(nn.Module):
    def __init__(self, hidden: int = 30, heads: int = 5, classes: int = 4) -> None:
        super().__init__()
        self.root = nn.Sequential(nn.Conv2d(3, 10, 3, padding=1, bias=False), nn.GroupNorm(2, 10), nn.ReLU())
        self.down1 = nn.Sequential(nn.Conv2d(10, 20, 3, 2, 1, bias=False), nn.GroupNorm(4, 20), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(20, 28, 3, 2, 1, bias=False), nn.GroupNorm(4, 28), nn.ReLU())
        self.patch_embeddings = nn.Conv2d(28, hidden, 1)
        self.position_embeddings = nn.Parameter(torch.zeros(1, 16, hidden))
        self.layer = nn.ModuleList([TransBlock(hidden, heads, 52) for _ in range(2)])
        self.encoder_norm = nn.LayerNorm(hidden)
        self.conv_more = nn.Sequential(nn.Conv2d(hidden, 24, 3, padding=1), nn.ReLU())
        self.up1, self.up2 = nn.Conv2d(24 + 20, 16, 3, padding=1), nn.Conv2d(16 + 10, 8, 3, padding=1)
        self.segmentation_head = nn.Conv2d(8, classes, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        f0 = self.root(x)
        f1 = self.down1(f0)
        h = self.patch_embeddings(self.down2(f1))
        n = h.shape[-2:]
        h, maps = h.flatten(2).transpose(-1, -2) + self.position_embeddings, []
        for block in self.layer:
            h, weights = block(h)
            maps.append(weights)
        h = self.conv_more(self.encoder_norm(h).permute(0, 2, 1).unflatten(2, n))
        h = F.relu(self.up1(torch.cat((F.interpolate(h, scale_factor=2, mode="bilinear"), f1), 1)))
        h = F.relu(self.up2(torch.cat((F.interpolate(h, scale_factor=2, mode="bilinear"), f0), 1)))
        return self.segmentation_head(h), maps


# Attention UNet: the gate of a skip is one map for all channels.
class AttentionGate(nn.Module):
    def __init__(self, F_g: int, F_l: int, F_int: int) -> None:
        super().__init__()
        self.W_g = nn.Sequential(nn.Conv2d(F_g, F_int, 1), nn.BatchNorm2d(F_int))
        self.W_x = nn.Sequential(nn.Conv2d(F_l, F_int, 1), nn.BatchNorm2d(F_int))
        self.psi = nn.Sequential(nn.Conv2d(F_int, 1, 1), nn.BatchNorm2d(1), nn.Sigmoid())

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        return x * self.psi(F.relu(self.W_g(g) + self.W_x(x)))


def twice(ch_in: int, ch_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a in (ch_in, ch_out):
        layers += [nn.Conv2d(a, ch_out, 3, 1, 1), nn.BatchNorm2d(ch_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class AttU_Net(nn.Module):
    def __init__(self, img_ch: int = 1, output_ch: int = 2) -> None:
        super().__init__()
        self.Conv1, self.Conv2, self.Conv3 = twice(img_ch, 9), twice(9, 17), twice(17, 31)
        self.Up3, self.Att3, self.Up_conv3 = nn.ConvTranspose2d(31, 17, 2, 2), AttentionGate(17, 17, 7), twice(34, 17)
        self.Up2, self.Att2, self.Up_conv2 = nn.ConvTranspose2d(17, 9, 2, 2), AttentionGate(9, 9, 5), twice(18, 9)
        self.Conv_1x1 = nn.Conv2d(9, output_ch, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.Conv1(x)
        x2 = self.Conv2(F.max_pool2d(x1, 2))
        x3 = self.Conv3(F.max_pool2d(x2, 2))
        d3 = self.Up3(x3)
        d3 = self.Up_conv3(torch.cat((self.Att3(d3, x2), d3), dim=1))
        d2 = self.Up2(d3)
        return self.Conv_1x1(self.Up_conv2(torch.cat((self.Att2(d2, x1), d2), dim=1)))


# Non-local means in a residual network: theta, phi and g, keys and values of a smaller map.
class NonLocal(nn.Module):
    def __init__(self, in_channels: int, inter_channels: int) -> None:
        super().__init__()
        self.inter_channels = inter_channels
        self.g, self.theta, self.phi = (nn.Conv2d(in_channels, inter_channels, 1) for _ in range(3))
        self.pool = nn.MaxPool2d(2)
        self.W = nn.Sequential(nn.Conv2d(inter_channels, in_channels, 1), nn.BatchNorm2d(in_channels))
        nn.init.zeros_(self.W[1].weight)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(0)
        g_x = self.pool(self.g(x)).view(n, self.inter_channels, -1).permute(0, 2, 1)
        theta_x = self.theta(x).view(n, self.inter_channels, -1).permute(0, 2, 1)
        phi_x = self.pool(self.phi(x)).view(n, self.inter_channels, -1)
        y = torch.matmul(F.softmax(torch.matmul(theta_x, phi_x), dim=-1), g_x)
        return self.W(y.permute(0, 2, 1).contiguous().view(n, self.inter_channels, *x.size()[2:])) + x


class PlainResidual(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b)
        self.c2, self.b2 = nn.Conv2d(b, b, 3, 1, 1, bias=False), nn.BatchNorm2d(b)
        self.short = nn.Conv2d(a, b, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x))))) + self.short(x))


class NonLocalResNet(nn.Module):
    def __init__(self, num_classes: int = 8) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12)
        self.layer1 = nn.Sequential(PlainResidual(12, 16, 1), PlainResidual(16, 16, 1))
        self.layer2 = nn.Sequential(PlainResidual(16, 26, 2), NonLocal(26, 13), PlainResidual(26, 26, 1))
        self.fc = nn.Linear(26, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x)))))
        return self.fc(x.mean((-2, -1)))


# Flamingo: latents read the picture, words read the latents through gates that start closed.
class Resampler(nn.Module):
    def __init__(self, dim: int, dim_head: int, heads: int, latents: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.norm_media, self.norm_latents = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim, heads * dim_head * 2, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(len(x), -1, -1)
        y = self.norm_latents(latents)
        q = self.to_q(y)
        k, v = self.to_kv(torch.cat((self.norm_media(x), y), dim=-2)).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        sim = torch.einsum("...id,...jd->...ij", q * self.scale, k)
        attn = (sim - sim.amax(dim=-1, keepdim=True).detach()).softmax(dim=-1)
        return latents + self.to_out(torch.einsum("...ij,...jd->...id", attn, v).transpose(1, 2).flatten(2))


class GatedCross(nn.Module):
    def __init__(self, dim: int, dim_visual: int, dim_head: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.norm = nn.LayerNorm(dim)
        self.to_q = nn.Linear(dim, heads * dim_head, bias=False)
        self.to_kv = nn.Linear(dim_visual, heads * dim_head * 2, bias=False)
        self.to_out = nn.Linear(heads * dim_head, dim, bias=False)
        self.attn_gate, self.ff_gate = nn.Parameter(torch.tensor([0.0])), nn.Parameter(torch.tensor([0.0]))
        self.ff = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 3 * dim, bias=False), nn.GELU(), nn.Linear(3 * dim, dim, bias=False))

    def forward(self, x: Tensor, media: Tensor) -> Tensor:
        q = self.to_q(self.norm(x))
        k, v = self.to_kv(media).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        attn = torch.einsum("...id,...jd->...ij", q * self.scale, k).softmax(dim=-1)
        x = (
            torch.einsum("...ij,...jd->...id", attn, v).transpose(1, 2).flatten(2).matmul(self.to_out.weight.t()) * self.attn_gate.tanh()
            + x
        )
        return self.ff(x) * self.ff_gate.tanh() + x


class Flamingo(nn.Module):
    def __init__(self, num_tokens: int = 74, dim: int = 26, dim_visual: int = 20) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.perceiver_resampler = Resampler(dim_visual, 6, 4, 3)
        self.layers = nn.ModuleList(
            [nn.ModuleList([GatedCross(dim, dim_visual, 7, 2), nn.GRU(dim, dim, batch_first=True)]) for _ in range(2)]
        )
        self.to_logits = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_tokens, bias=False))
        self.to_logits[-1].weight = self.token_emb.weight

    def forward(self, text: Tensor, image_embeds: Tensor) -> Tensor:
        x, media = self.token_emb(text), self.perceiver_resampler(image_embeds)
        for cross, words in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            x = cross(x, media)
            x = x + words(x)[0]
        return self.to_logits(x)


# A convolutional LSTM that predicts the next picture.
class ConvLSTMCell(nn.Module):
    def __init__(self, input_dim: int, hidden_dim: int, k: int) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.conv = nn.Conv2d(input_dim + hidden_dim, 4 * hidden_dim, k, padding=k // 2)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, o, g = torch.split(self.conv(torch.cat([x, h], dim=1)), self.hidden_dim, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class NextFrame(nn.Module):
    def __init__(self, channels: int = 1, hidden: tuple[int, ...] = (10, 14)) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell_list = nn.ModuleList([ConvLSTMCell(a, b, 3) for a, b in zip((channels, *hidden), hidden, strict=False)])
        self.conv = nn.Conv2d(hidden[-1], channels, 3, padding=1)

    def forward(self, video: Tensor) -> tuple[Tensor, Any]:
        b, t, _, h, w = video.shape
        states = [(video.new_zeros(b, d, h, w), video.new_zeros(b, d, h, w)) for d in self.hidden]
        for i in range(t):
            x = video[:, i]
            for j, cell in enumerate(self.cell_list):
                states[j] = cell(x, states[j])
                x = states[j][0]
        return torch.sigmoid(self.conv(states[-1][0])), states


def _glue() -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (
        {
            "descriptors0": torch.randn(1, 5, 21),
            "descriptors1": torch.randn(1, 6, 21),
            "keypoints0": torch.rand(1, 5, 2),
            "keypoints1": torch.rand(1, 6, 2),
        },
    ), {}


_HEAD = {"conv", "classifier", "lm_head"}
STYLES: list[Style] = [
    Style(
        "conditional detr",
        ConditionalDETR,
        lambda: ((torch.randn(1, 3, 32, 32),), {}),
        {"transformer", "hybrid"},
        {
            "backbone.0.weight": {"first_conv"},
            "backbone.3.weight": {"conv"},
            "input_proj.weight": {"conv", "linear"},
            "query_embed.weight": {"special_token", "token_embedding", "position_embedding", "query"},
            "layers.*.?a_q*_proj.weight": {"query"},
            "layers.*.?a_k*_proj.weight": {"key"},
            "layers.*.?a_v_proj.weight": {"value"},
            "layers.*.?a_out_proj.weight": {"attn_out"},
            "layers.*.linear1.weight": {"mlp_up"},
            "layers.*.linear2.weight": {"mlp_down"},
            "class_embed.weight": {"classifier", "lm_head"},
            "bbox_embed.weight": {"classifier", "lm_head", "linear"},
        },
        {"layers.*.?a_q*_proj.weight": "q:4x8", "layers.*.?a_k*_proj.weight": "k:4x8"},
    ),
    Style(
        "lightglue",
        LightGlue,
        _glue,
        {"transformer", "gnn"},
        {
            "input_proj.weight": {"linear", "patch_embedding"},
            "posenc.weight": {"linear", "position_embedding"},
            "self_attn.*.Wqkv.weight": {"qkv"},
            "self_attn.*.out_proj.weight": {"attn_out"},
            "cross_attn.*.to_qk.weight": {"qkv", "query", "key"},  # a line makes a query and a key at once
            "cross_attn.*.to_v.weight": {"value"},
            "cross_attn.*.to_out.weight": {"attn_out"},
            "*.ffn.0.weight": {"mlp_up"},
            "*.ffn.3.weight": {"mlp_down"},
            "matchability.weight": {"classifier", "lm_head", "linear"},
            "final_proj.weight": {"classifier", "lm_head", "linear"},
        },
        {"self_attn.*.Wqkv.weight": "4*[q,k,v]x7"},
    ),
    Style(
        "u2-net",
        U2NET,
        lambda: ((torch.randn(1, 3, 32, 32),), {}),
        {"cnn"},
        {
            "stage1.rebnconvin.conv_s1.weight": {"first_conv"},
            "stage1.rebnconv[!i]*.conv_s1.weight": {"conv", "first_conv"},
            "stage[23]*.conv_s1.weight": {"conv"},
            "side?.weight": _HEAD,
            "outconv.weight": _HEAD,
        },
    ),
    Style(
        "transunet",
        TransUNet,
        lambda: ((torch.randn(1, 3, 16, 16),), {}),
        {"hybrid", "transformer"},
        {
            "root.0.weight": {"first_conv"},
            "down?.0.weight": {"conv"},
            "patch_embeddings.weight": {"patch_embedding", "conv"},
            "position_embeddings": {"position_embedding"},
            "*.attn.query.weight": {"query"},
            "*.attn.key.weight": {"key"},
            "*.attn.value.weight": {"value"},
            "*.attn.out.weight": {"attn_out"},
            "layer.*.fc1.weight": {"mlp_up"},
            "layer.*.fc2.weight": {"mlp_down"},
            "conv_more.0.weight": {"conv"},
            "up?.weight": {"conv"},
            "segmentation_head.weight": _HEAD,
        },
        {"*.attn.query.weight": "q:5x6", "*.attn.key.weight": "k:5x6"},
    ),
    Style(
        "attention unet with gates",
        AttU_Net,
        lambda: ((torch.randn(1, 1, 16, 16),), {}),
        {"cnn"},
        {
            "Conv1.0.weight": {"first_conv"},
            "Conv[23].?.weight": {"conv", "norm"},
            "Att?.W_?.0.weight": {"conv"},
            "Att?.psi.0.weight": {"conv"},
            "Up?.weight": {"conv"},
            "Conv_1x1.weight": _HEAD,
        },
    ),
    Style(
        "non-local means",
        NonLocalResNet,
        lambda: ((torch.randn(1, 3, 8, 8),), {}),
        {"cnn", "hybrid"},
        {
            "conv1.weight": {"first_conv"},
            "layer?.*.c?.weight": {"conv"},
            "layer2.1.theta.weight": {"query"},
            "layer2.1.phi.weight": {"key"},
            "layer2.1.g.weight": {"value"},
            "layer2.1.W.0.weight": {"attn_out"},
            "fc.weight": {"classifier"},
        },
        {"layer2.1.theta.weight": "q:1x13", "layer2.1.phi.weight": "k:1x13"},
    ),
    Style(
        "flamingo over a recurrent network",
        Flamingo,
        lambda: ((torch.randint(74, (1, 6)), torch.randn(1, 5, 20)), {}),
        {"hybrid", "transformer"},
        {
            "token_emb.weight": {"token_embedding", "lm_head"},
            "perceiver_resampler.latents": {"special_token", "token_embedding", "query", "position_embedding", "other"},
            "*.to_q.weight": {"query"},
            "*.to_kv.weight": {"qkv"},
            "*.to_out.weight": {"attn_out"},
            "layers.*.0.ff.1.weight": {"mlp_up"},
            "layers.*.0.ff.3.weight": {"mlp_down"},
            "layers.*.1.weight_ih_l0": {"rnn_ih"},
            "layers.*.1.weight_hh_l0": {"rnn_hh"},
        },
        {
            "perceiver_resampler.to_q.weight": "q:4x6",
            "perceiver_resampler.to_kv.weight": "k:4x6|v:4x6",
            "layers.*.to_q.weight": "q:2x7",
            "layers.*.to_kv.weight": "k:2x7|v:2x7",
        },
    ),
    Style(
        "convolutional lstm",
        NextFrame,
        lambda: ((torch.rand(1, 3, 1, 8, 8),), {}),
        {"cnn", "rnn", "hybrid"},
        {
            "cell_list.0.conv.weight": {"conv", "first_conv"},
            "cell_list.1.conv.weight": {"conv"},
            "conv.weight": _HEAD,
        },
    ),
]
