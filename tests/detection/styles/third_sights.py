"""Pictures and films: words read, people found again, organs, clips, questions, depth, faces, and pictures painted from maps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Words in pictures: convolutions, two recurrences, a decoder that looks at one place after the other.
class BidirectionalLSTM(nn.Module):
    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(input_size, hidden_size, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(hidden_size * 2, output_size)

    def forward(self, input: Tensor) -> Tensor:
        recurrent, _ = self.rnn(input)
        return self.linear(recurrent)


class AttentionCell(nn.Module):
    def __init__(self, input_size: int, hidden_size: int, num_embeddings: int) -> None:
        super().__init__()
        self.i2h = nn.Linear(input_size, hidden_size, bias=False)
        self.h2h = nn.Linear(hidden_size, hidden_size)
        self.score = nn.Linear(hidden_size, 1, bias=False)
        self.rnn = nn.LSTMCell(input_size + num_embeddings, hidden_size)

    def forward(self, prev_hidden: tuple[Tensor, Tensor], batch_H: Tensor, char_onehots: Tensor) -> tuple[Tensor, Tensor]:
        batch_H_proj = self.i2h(batch_H)
        prev_hidden_proj = self.h2h(prev_hidden[0]).unsqueeze(1)
        e = self.score(torch.tanh(batch_H_proj + prev_hidden_proj))
        alpha = F.softmax(e, dim=1)
        context = torch.bmm(alpha.permute(0, 2, 1), batch_H).squeeze(1)
        return self.rnn(torch.cat([context, char_onehots], 1), prev_hidden)


class WordReader(nn.Module):
    def __init__(self, num_class: int = 15, hidden: int = 22) -> None:
        super().__init__()
        self.num_class, self.hidden_size = num_class, hidden
        self.ConvNet = nn.Sequential(
            nn.Conv2d(1, 8, 3, 1, 1),
            nn.ReLU(True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(8, 14, 3, 1, 1, bias=False),
            nn.BatchNorm2d(14),
            nn.ReLU(True),
            nn.MaxPool2d((2, 1), (2, 1)),
            nn.Conv2d(14, 20, 2, 1, 0),
            nn.ReLU(True),
        )
        self.AdaptiveAvgPool = nn.AdaptiveAvgPool2d((None, 1))
        self.SequenceModeling = nn.Sequential(BidirectionalLSTM(20, hidden, hidden), BidirectionalLSTM(hidden, hidden, hidden))
        self.attention_cell = AttentionCell(hidden, hidden, num_class)
        self.generator = nn.Linear(hidden, num_class)

    def forward(self, input: Tensor, text: Tensor) -> Tensor:
        visual = self.ConvNet(input)
        visual = self.AdaptiveAvgPool(visual.permute(0, 3, 1, 2)).squeeze(3)
        contextual = self.SequenceModeling(visual)
        b, steps = text.shape
        out = torch.zeros(b, steps, self.hidden_size)
        hidden = (torch.zeros(b, self.hidden_size), torch.zeros(b, self.hidden_size))
        for i in range(steps):
            char = torch.zeros(b, self.num_class).scatter_(1, text[:, i].unsqueeze(1), 1)
            hidden = self.attention_cell(hidden, contextual, char)
            out[:, i, :] = hidden[0]
        return self.generator(out)


# People found again: overlapping patches, an embedding for the camera, a global branch and a shuffled one.
class ReidAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        return self.proj((attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, C))


class ReidBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), ReidAttention(dim, num_heads), nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, dim * 2), nn.Linear(dim * 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PersonNet(nn.Module):
    def __init__(self, dim: int = 35, cameras: int = 3, people: int = 9) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, kernel_size=4, stride=3)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 5 * 3 + 1, dim) * 0.02)
        self.sie_embed, self.sie_xishu = nn.Parameter(torch.randn(cameras, 1, dim) * 0.02), 3.0
        self.blocks = nn.ModuleList([ReidBlock(dim, 5) for _ in range(2)])
        self.b1 = nn.Sequential(ReidBlock(dim, 5), nn.LayerNorm(dim))
        self.b2 = nn.Sequential(ReidBlock(dim, 5), nn.LayerNorm(dim))
        self.bottleneck = nn.BatchNorm1d(dim)
        self.bottleneck.bias.requires_grad_(False)
        self.bottleneck_1, self.bottleneck_2 = nn.BatchNorm1d(dim), nn.BatchNorm1d(dim)
        self.classifier = nn.Linear(dim, people, bias=False)
        self.classifier_1, self.classifier_2 = nn.Linear(dim, people, bias=False), nn.Linear(dim, people, bias=False)

    def forward(self, x: Tensor, cam_label: Tensor) -> list[Tensor]:
        B = x.shape[0]
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(B, -1, -1), x), dim=1)
        x = x + self.pos_embed + self.sie_xishu * self.sie_embed[cam_label]
        for blk in self.blocks:
            x = blk(x)
        global_feat = self.b1(x)[:, 0]
        token, patches = x[:, 0:1], x[:, 1:]
        # shuffled, so that each part sees patches of everywhere
        patches = torch.cat([patches[:, 4:], patches[:, :4]], dim=1)
        patches = torch.cat([patches, patches[:, -2:-1]], dim=1)
        patches = patches.view(B, 2, -1, patches.size(-1)).transpose(1, 2).contiguous().view(B, -1, patches.size(-1))
        half = patches.size(1) // 2
        local_1 = self.b2(torch.cat((token, patches[:, :half]), dim=1))[:, 0]
        local_2 = self.b2(torch.cat((token, patches[:, half:]), dim=1))[:, 0]
        return [
            self.classifier(self.bottleneck(global_feat)),
            self.classifier_1(self.bottleneck_1(local_1)),
            self.classifier_2(self.bottleneck_2(local_2)),
        ]


# Organs in a volume: a transformer over cubes, and deconvolutions from several of its depths.
class SingleDeconv3DBlock(nn.Module):
    def __init__(self, in_planes: int, out_planes: int) -> None:
        super().__init__()
        self.block = nn.ConvTranspose3d(in_planes, out_planes, kernel_size=2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class Conv3DBlock(nn.Module):
    def __init__(self, in_planes: int, out_planes: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv3d(in_planes, out_planes, kernel_size, padding=kernel_size // 2), nn.BatchNorm3d(out_planes), nn.ReLU(True)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class VolumeSelfAttention(nn.Module):
    def __init__(self, num_heads: int, embed_dim: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = num_heads, embed_dim // num_heads
        self.query, self.key, self.value = (nn.Linear(embed_dim, embed_dim) for _ in range(3))
        self.out = nn.Linear(embed_dim, embed_dim)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.num_attention_heads, self.attention_head_size).permute(0, 2, 1, 3)

    def forward(self, hidden_states: Tensor) -> Tensor:
        query_layer = self.transpose_for_scores(self.query(hidden_states))
        key_layer = self.transpose_for_scores(self.key(hidden_states))
        value_layer = self.transpose_for_scores(self.value(hidden_states))
        scores = torch.matmul(query_layer, key_layer.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        context = torch.matmul(torch.softmax(scores, dim=-1), value_layer).permute(0, 2, 1, 3).contiguous()
        return self.out(context.view(*context.size()[:-2], -1))


class PositionwiseFeedForward(nn.Module):
    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.relu(self.w_1(x)))


class VolumeBlock(nn.Module):
    def __init__(self, embed_dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention_norm, self.mlp_norm = nn.LayerNorm(embed_dim, eps=1e-6), nn.LayerNorm(embed_dim, eps=1e-6)
        self.mlp, self.attn = PositionwiseFeedForward(embed_dim, 64), VolumeSelfAttention(num_heads, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.attention_norm(x)) + x
        return self.mlp(self.mlp_norm(x)) + x


class VolumeNet(nn.Module):
    def __init__(self, embed_dim: int = 30, heads: int = 5, output_dim: int = 3) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.patch_embeddings = nn.Conv3d(1, embed_dim, kernel_size=4, stride=4)
        self.position_embeddings = nn.Parameter(torch.randn(1, 8, embed_dim) * 0.02)
        self.layer = nn.ModuleList([VolumeBlock(embed_dim, heads) for _ in range(2)])
        self.decoder0 = nn.Sequential(Conv3DBlock(1, 8), Conv3DBlock(8, 10))
        self.decoder3 = nn.Sequential(SingleDeconv3DBlock(embed_dim, 16), Conv3DBlock(16, 16))
        self.decoder6_upsampler = SingleDeconv3DBlock(embed_dim, 16)
        self.decoder3_upsampler = nn.Sequential(Conv3DBlock(32, 14), SingleDeconv3DBlock(14, 10))
        self.decoder0_header = nn.Sequential(Conv3DBlock(20, 12), nn.Conv3d(12, output_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        z0 = x
        h = self.patch_embeddings(x).flatten(2).transpose(-1, -2) + self.position_embeddings
        extract = []
        for block in self.layer:
            h = block(h)
            extract.append(h.transpose(-1, -2).view(-1, self.embed_dim, 2, 2, 2))
        z3, z6 = extract
        y = self.decoder6_upsampler(z6)
        y = self.decoder3_upsampler(torch.cat([self.decoder3(z3), y], dim=1))
        return self.decoder0_header(torch.cat([self.decoder0(z0), y], dim=1))


# Clips: queries, keys and values are pooled by depthwise convolutions that all heads share.
class PoolingAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, stride_q: tuple[int, int, int], stride_kv: tuple[int, int, int]) -> None:
        super().__init__()
        self.num_heads, head_dim = num_heads, dim // num_heads
        self.scale = head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.pool_q = nn.Conv3d(head_dim, head_dim, 3, stride=stride_q, padding=1, groups=head_dim, bias=False)
        self.pool_k = nn.Conv3d(head_dim, head_dim, 3, stride=stride_kv, padding=1, groups=head_dim, bias=False)
        self.pool_v = nn.Conv3d(head_dim, head_dim, 3, stride=stride_kv, padding=1, groups=head_dim, bias=False)
        self.norm_q, self.norm_k, self.norm_v = nn.LayerNorm(head_dim), nn.LayerNorm(head_dim), nn.LayerNorm(head_dim)

    @staticmethod
    def pool(tensor: Tensor, pool: nn.Module, thw: list[int], norm: nn.Module) -> tuple[Tensor, list[int]]:
        cls_tok, tensor = tensor[:, :, :1, :], tensor[:, :, 1:, :]
        B, N, _L, C = tensor.shape
        tensor = pool(tensor.reshape(B * N, *thw, C).permute(0, 4, 1, 2, 3).contiguous())
        thw = list(tensor.shape[2:])
        tensor = tensor.reshape(B, N, C, -1).transpose(2, 3)
        return norm(torch.cat((cls_tok, tensor), dim=2)), thw

    def forward(self, x: Tensor, thw: list[int]) -> tuple[Tensor, list[int]]:
        B, N, C = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, q_shape = self.pool(qkv[0], self.pool_q, thw, self.norm_q)
        k, _ = self.pool(qkv[1], self.pool_k, thw, self.norm_k)
        v, _ = self.pool(qkv[2], self.pool_v, thw, self.norm_v)
        attn = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1)
        x = attn @ v + q
        return self.proj(x.transpose(1, 2).reshape(B, -1, C)), q_shape


class MultiscaleBlock(nn.Module):
    def __init__(self, dim: int, dim_out: int, heads: int, stride_q: tuple[int, int, int], stride_kv: tuple[int, int, int]) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = PoolingAttention(dim, heads, stride_q, stride_kv)
        self.mlp = nn.Sequential(nn.Linear(dim, dim * 3), nn.GELU(), nn.Linear(dim * 3, dim_out))
        if dim != dim_out:
            self.proj = nn.Linear(dim, dim_out)
        self.pool_skip = nn.MaxPool3d(tuple(s + 1 if s > 1 else s for s in stride_q), stride_q, tuple(s // 2 for s in stride_q))
        self.widens = dim != dim_out

    def forward(self, x: Tensor, thw: list[int]) -> tuple[Tensor, list[int]]:
        x_block, thw_new = self.attn(self.norm1(x), thw)
        B, _N, C = x.shape
        skip = self.pool_skip(x[:, 1:].transpose(1, 2).reshape(B, C, *thw)).flatten(2).transpose(1, 2)
        x = torch.cat((x[:, :1], skip), dim=1) + x_block
        x_norm = self.norm2(x)
        x_mlp = self.mlp(x_norm)
        if self.widens:
            x = self.proj(x_norm)
        return x + x_mlp, thw_new


class ClipNet(nn.Module):
    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.patch_embed = nn.Conv3d(3, 18, (3, 7, 7), (2, 4, 4), (1, 3, 3))
        self.cls_token = nn.Parameter(torch.randn(1, 1, 18) * 0.02)
        self.pos_embed_spatial = nn.Parameter(torch.randn(1, 16, 18) * 0.02)
        self.pos_embed_temporal = nn.Parameter(torch.randn(1, 2, 18) * 0.02)
        self.pos_embed_class = nn.Parameter(torch.randn(1, 1, 18) * 0.02)
        self.blocks = nn.ModuleList([MultiscaleBlock(18, 36, 3, (1, 1, 1), (1, 2, 2)), MultiscaleBlock(36, 36, 6, (1, 2, 2), (1, 1, 1))])
        self.norm, self.head = nn.LayerNorm(36), nn.Linear(36, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        thw = list(x.shape[2:])
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)), dim=1)
        pos = self.pos_embed_spatial.repeat(1, thw[0], 1) + torch.repeat_interleave(self.pos_embed_temporal, thw[1] * thw[2], dim=1)
        x = x + torch.cat([self.pos_embed_class, pos], 1)
        for blk in self.blocks:
            x, thw = blk(x, thw)
        return self.head(self.norm(x)[:, 0])


# Questions about a picture: words attend to words, regions to regions and to words; both are flattened by attention.
class FC(nn.Module):
    def __init__(self, in_size: int, out_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_size, out_size)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))


class FCNet(nn.Module):
    def __init__(self, in_size: int, mid_size: int, out_size: int) -> None:
        super().__init__()
        self.fc, self.linear = FC(in_size, mid_size), nn.Linear(mid_size, out_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.fc(x))


class MHAtt(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_size, self.hidden = heads, hidden // heads, hidden
        self.linear_v, self.linear_k, self.linear_q = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.linear_merge = nn.Linear(hidden, hidden)

    def forward(self, v: Tensor, k: Tensor, q: Tensor, mask: Tensor) -> Tensor:
        n = q.size(0)
        v = self.linear_v(v).view(n, -1, self.heads, self.head_size).transpose(1, 2)
        k = self.linear_k(k).view(n, -1, self.heads, self.head_size).transpose(1, 2)
        q = self.linear_q(q).view(n, -1, self.heads, self.head_size).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(q.size(-1))
        att_map = F.softmax(scores.masked_fill(mask, -1e9), dim=-1)
        return self.linear_merge(torch.matmul(att_map, v).transpose(1, 2).contiguous().view(n, -1, self.hidden))


class SA(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.mhatt, self.ffn = MHAtt(hidden, heads), FCNet(hidden, hidden * 2, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)

    def forward(self, x: Tensor, x_mask: Tensor) -> Tensor:
        x = self.norm1(x + self.mhatt(x, x, x, x_mask))
        return self.norm2(x + self.ffn(x))


class SGA(nn.Module):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.mhatt1, self.mhatt2, self.ffn = MHAtt(hidden, heads), MHAtt(hidden, heads), FCNet(hidden, hidden * 2, hidden)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(hidden), nn.LayerNorm(hidden), nn.LayerNorm(hidden)

    def forward(self, x: Tensor, y: Tensor, x_mask: Tensor, y_mask: Tensor) -> Tensor:
        x = self.norm1(x + self.mhatt1(x, x, x, x_mask))
        x = self.norm2(x + self.mhatt2(y, y, x, y_mask))
        return self.norm3(x + self.ffn(x))


class AttFlat(nn.Module):
    def __init__(self, hidden: int, mid: int, glimpses: int, out: int) -> None:
        super().__init__()
        self.glimpses, self.mlp, self.linear_merge = glimpses, FCNet(hidden, mid, glimpses), nn.Linear(hidden * glimpses, out)

    def forward(self, x: Tensor, x_mask: Tensor) -> Tensor:
        att = self.mlp(x).masked_fill(x_mask.squeeze(1).squeeze(1).unsqueeze(2), -1e9)
        att = F.softmax(att, dim=1)
        return self.linear_merge(torch.cat([torch.sum(att[:, :, i : i + 1] * x, dim=1) for i in range(self.glimpses)], dim=1))


class QuestionNet(nn.Module):
    def __init__(self, tokens: int = 26, answers: int = 13, hidden: int = 28) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, 17)
        self.lstm = nn.LSTM(17, hidden, num_layers=1, batch_first=True)
        self.img_feat_linear = nn.Linear(21, hidden)
        self.enc_list = nn.ModuleList([SA(hidden, 4) for _ in range(2)])
        self.dec_list = nn.ModuleList([SGA(hidden, 4) for _ in range(2)])
        self.attflat_img, self.attflat_lang = AttFlat(hidden, 16, 2, 40), AttFlat(hidden, 16, 2, 40)
        self.proj_norm, self.proj = nn.LayerNorm(40), nn.Linear(40, answers)

    def forward(self, img_feat: Tensor, ques_ix: Tensor) -> Tensor:
        lang_mask = (ques_ix == 0).unsqueeze(1).unsqueeze(2)
        img_mask = (torch.sum(torch.abs(img_feat), dim=-1) == 0).unsqueeze(1).unsqueeze(2)
        x, _ = self.lstm(self.embedding(ques_ix))
        y = self.img_feat_linear(img_feat)
        for enc in self.enc_list:
            x = enc(x, lang_mask)
        for dec in self.dec_list:
            y = dec(y, x, img_mask, lang_mask)
        feat = self.proj_norm(self.attflat_lang(x, lang_mask) + self.attflat_img(y, img_mask))
        return torch.sigmoid(self.proj(feat))


# Depth: tokens of two layers are put back into maps, with what the class token knows, and fused by convolutions.
class DepthBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.ln1, self.ln2 = heads, nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.in_proj, self.out_proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.ff = nn.Sequential(nn.Linear(dim, 80), nn.GELU(), nn.Linear(80, dim))

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = (t.view(b, n, self.heads, -1).transpose(1, 2) for t in self.in_proj(self.ln1(x)).chunk(3, dim=-1))
        x = x + self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d))
        return x + self.ff(self.ln2(x))


class ProjectReadout(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * dim, dim), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        readout = x[:, 0].unsqueeze(1).expand_as(x[:, 1:])
        return self.project(torch.cat((x[:, 1:], readout), -1))


class ResidualConvUnit(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(features, features, 3, 1, 1), nn.Conv2d(features, features, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu(self.conv1(F.relu(x)))) + x


class FeatureFusionBlock(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.resConfUnit1, self.resConfUnit2 = ResidualConvUnit(features), ResidualConvUnit(features)
        self.out_conv = nn.Conv2d(features, features, 1)

    def forward(self, *xs: Tensor) -> Tensor:
        output = xs[0]
        if len(xs) == 2:
            output = output + self.resConfUnit1(xs[1])
        output = self.resConfUnit2(output)
        return self.out_conv(F.interpolate(output, scale_factor=2, mode="bilinear", align_corners=True))


class DepthNet(nn.Module):
    def __init__(self, dim: int = 40, heads: int = 5, features: int = 14) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, 4, 4)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, dim) * 0.02), nn.Parameter(torch.randn(1, 17, dim) * 0.02)
        self.blocks = nn.ModuleList([DepthBlock(dim, heads) for _ in range(3)])
        self.readout = nn.ModuleList([ProjectReadout(dim), ProjectReadout(dim)])
        self.act_postprocess1 = nn.Sequential(nn.Conv2d(dim, 12, 1), nn.ConvTranspose2d(12, 12, 2, 2))
        self.act_postprocess2 = nn.Sequential(nn.Conv2d(dim, 20, 1))
        self.layer1_rn, self.layer2_rn = nn.Conv2d(12, features, 3, 1, 1, bias=False), nn.Conv2d(20, features, 3, 1, 1, bias=False)
        self.refinenet1, self.refinenet2 = FeatureFusionBlock(features), FeatureFusionBlock(features)
        self.output_conv = nn.Sequential(
            nn.Conv2d(features, features // 2, 3, 1, 1), nn.Conv2d(features // 2, 10, 3, 1, 1), nn.ReLU(True), nn.Conv2d(10, 1, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        h, w = x.shape[-2:]
        x = torch.cat([self.cls.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1) + self.pos
        taken = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i > 0:
                taken.append(self.readout[i - 1](x).transpose(1, 2).unflatten(2, (h, w)))
        layer_1, layer_2 = self.layer1_rn(self.act_postprocess1(taken[0])), self.layer2_rn(self.act_postprocess2(taken[1]))
        path_1 = self.refinenet1(self.refinenet2(layer_2), layer_1)
        return F.relu(self.output_conv(path_1)).squeeze(1)


# Scenes: one attention over places by 1x1 convolutions, one over channels without any weight.
class PAM(nn.Module):
    def __init__(self, in_dim: int) -> None:
        super().__init__()
        self.query_conv, self.key_conv = nn.Conv2d(in_dim, in_dim // 4, 1), nn.Conv2d(in_dim, in_dim // 4, 1)
        self.value_conv, self.gamma = nn.Conv2d(in_dim, in_dim, 1), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        b, C, height, width = x.size()
        proj_query = self.query_conv(x).view(b, -1, width * height).permute(0, 2, 1)
        proj_key = self.key_conv(x).view(b, -1, width * height)
        attention = torch.softmax(torch.bmm(proj_query, proj_key), dim=-1)
        proj_value = self.value_conv(x).view(b, -1, width * height)
        out = torch.bmm(proj_value, attention.permute(0, 2, 1)).view(b, C, height, width)
        return self.gamma * out + x


class CAM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        b, C, height, width = x.size()
        query, key = x.view(b, C, -1), x.view(b, C, -1).permute(0, 2, 1)
        energy = torch.bmm(query, key)
        attention = torch.softmax(torch.max(energy, -1, keepdim=True)[0].expand_as(energy) - energy, dim=-1)
        return self.gamma * torch.bmm(attention, x.view(b, C, -1)).view(b, C, height, width) + x


def conv_bn_relu(i: int, o: int, dilation: int = 1, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, dilation, dilation, bias=False), nn.BatchNorm2d(o), nn.ReLU())


class SceneNet(nn.Module):
    def __init__(self, nclass: int = 6, c: int = 20) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, 12, stride=2)
        self.layer3, self.layer4 = conv_bn_relu(12, 26, 2), conv_bn_relu(26, 32, 4)
        self.conv5a, self.conv5c, self.sa, self.sc = conv_bn_relu(32, c), conv_bn_relu(32, c), PAM(c), CAM()
        self.conv51, self.conv52 = conv_bn_relu(c, c), conv_bn_relu(c, c)
        self.conv6 = nn.Sequential(nn.Dropout2d(0.0), nn.Conv2d(c, nclass, 1))
        self.conv7 = nn.Sequential(nn.Dropout2d(0.0), nn.Conv2d(c, nclass, 1))
        self.conv8 = nn.Sequential(nn.Dropout2d(0.0), nn.Conv2d(c, nclass, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        size = x.shape[2:]
        x = self.layer4(self.layer3(self.stem(x)))
        sa_conv, sc_conv = self.conv51(self.sa(self.conv5a(x))), self.conv52(self.sc(self.conv5c(x)))
        outputs = (self.conv8(sa_conv + sc_conv), self.conv6(sa_conv), self.conv7(sc_conv))
        return tuple(F.interpolate(o, size, mode="bilinear", align_corners=True) for o in outputs)


# Films at two speeds: few frames with many channels, many frames with few, the fast one tells the slow one.
class Bottleneck3D(nn.Module):
    def __init__(self, inplanes: int, planes: int, stride: int = 1, head_conv: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inplanes, planes, (head_conv, 1, 1), padding=(head_conv // 2, 0, 0), bias=False)
        self.conv2 = nn.Conv3d(planes, planes, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.conv3 = nn.Conv3d(planes, planes * 2, 1, bias=False)
        self.bn1, self.bn2, self.bn3 = nn.BatchNorm3d(planes), nn.BatchNorm3d(planes), nn.BatchNorm3d(planes * 2)
        self.downsample = nn.Sequential(nn.Conv3d(inplanes, planes * 2, 1, (1, stride, stride), bias=False), nn.BatchNorm3d(planes * 2))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class TwoSpeeds(nn.Module):
    def __init__(self, class_num: int = 7) -> None:
        super().__init__()
        self.fast_conv1 = nn.Conv3d(3, 4, (5, 5, 5), (1, 2, 2), (2, 2, 2), bias=False)
        self.slow_conv1 = nn.Conv3d(3, 16, (1, 5, 5), (1, 2, 2), (0, 2, 2), bias=False)
        self.fast_bn1, self.slow_bn1 = nn.BatchNorm3d(4), nn.BatchNorm3d(16)
        self.lateral_p1 = nn.Conv3d(4, 8, (5, 1, 1), (4, 1, 1), (2, 0, 0), bias=False)
        self.fast_res2, self.slow_res2 = Bottleneck3D(4, 5, 1, 3), Bottleneck3D(24, 18)
        self.lateral_res2 = nn.Conv3d(10, 20, (5, 1, 1), (4, 1, 1), (2, 0, 0), bias=False)
        self.fast_res3, self.slow_res3 = Bottleneck3D(10, 6, 2, 3), Bottleneck3D(56, 22, 2, 3)
        self.fc = nn.Linear(12 + 44, class_num, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        fast = F.relu(self.fast_bn1(self.fast_conv1(input)))
        lateral = [self.lateral_p1(fast)]
        fast = self.fast_res2(fast)
        lateral.append(self.lateral_res2(fast))
        fast = self.fast_res3(fast)
        slow = F.relu(self.slow_bn1(self.slow_conv1(input[:, :, ::4])))
        slow = self.slow_res2(torch.cat([slow, lateral[0]], dim=1))
        slow = self.slow_res3(torch.cat([slow, lateral[1]], dim=1))
        x = torch.cat([F.adaptive_avg_pool3d(slow, 1).flatten(1), F.adaptive_avg_pool3d(fast, 1).flatten(1)], dim=1)
        return self.fc(x)


# Faces: squeezed residuals, an embedding, and directions of the people with a margin between.
class SEModule(nn.Module):
    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = (
            nn.Conv2d(channels, channels // reduction, 1, bias=False),
            nn.Conv2d(channels // reduction, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(self.avg_pool(x)))))


class BottleneckIR(nn.Module):
    def __init__(self, in_channel: int, depth: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer = nn.Sequential(nn.Conv2d(in_channel, depth, 1, stride, bias=False), nn.BatchNorm2d(depth))
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channel),
            nn.Conv2d(in_channel, depth, 3, 1, 1, bias=False),
            nn.PReLU(depth),
            nn.Conv2d(depth, depth, 3, stride, 1, bias=False),
            nn.BatchNorm2d(depth),
            SEModule(depth, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class FaceNet(nn.Module):
    def __init__(self, embedding: int = 24, people: int = 11, s: float = 30.0, m: float = 0.5) -> None:
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, 12, 3, 1, 1, bias=False), nn.BatchNorm2d(12), nn.PReLU(12))
        self.body = nn.Sequential(BottleneckIR(12, 16, 2), BottleneckIR(16, 20, 2))
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(20), nn.Dropout(0.0), nn.Flatten(), nn.Linear(20 * 3 * 3, embedding), nn.BatchNorm1d(embedding)
        )
        self.kernel = nn.Parameter(torch.randn(embedding, people) * 0.1)
        self.s, self.m = s, m

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = F.normalize(self.output_layer(self.body(self.input_layer(x))))
        cos_theta = torch.mm(x, F.normalize(self.kernel, dim=0)).clamp(-1 + 1e-6, 1 - 1e-6)
        sin_theta = torch.sqrt(1.0 - cos_theta**2)
        phi = cos_theta * math.cos(self.m) - sin_theta * math.sin(self.m)
        one_hot = F.one_hot(label, cos_theta.shape[1])
        return (one_hot * phi + (1 - one_hot) * cos_theta) * self.s


# Pictures painted from a map of labels: the norms are scaled and shifted at each place.
class SpatialNorm(nn.Module):
    def __init__(self, norm_nc: int, label_nc: int) -> None:
        super().__init__()
        self.param_free_norm = nn.InstanceNorm2d(norm_nc, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(label_nc, 15, 3, padding=1), nn.ReLU())
        self.mlp_gamma, self.mlp_beta = nn.Conv2d(15, norm_nc, 3, padding=1), nn.Conv2d(15, norm_nc, 3, padding=1)

    def forward(self, x: Tensor, segmap: Tensor) -> Tensor:
        normalized = self.param_free_norm(x)
        actv = self.mlp_shared(F.interpolate(segmap, size=x.size()[2:], mode="nearest"))
        return normalized * (1 + self.mlp_gamma(actv)) + self.mlp_beta(actv)


class SpatialBlock(nn.Module):
    def __init__(self, fin: int, fout: int, label_nc: int) -> None:
        super().__init__()
        self.conv_0, self.conv_1 = nn.Conv2d(fin, fout, 3, padding=1), nn.Conv2d(fout, fout, 3, padding=1)
        self.conv_s = nn.Conv2d(fin, fout, 1, bias=False)
        self.norm_0, self.norm_1 = SpatialNorm(fin, label_nc), SpatialNorm(fout, label_nc)
        self.norm_s = SpatialNorm(fin, label_nc)

    def forward(self, x: Tensor, seg: Tensor) -> Tensor:
        x_s = self.conv_s(self.norm_s(x, seg))
        dx = self.conv_0(F.leaky_relu(self.norm_0(x, seg), 2e-1))
        return x_s + self.conv_1(F.leaky_relu(self.norm_1(dx, seg), 2e-1))


class Painter(nn.Module):
    def __init__(self, nf: int = 24, label_nc: int = 5, z_dim: int = 14) -> None:
        super().__init__()
        self.nf, self.fc = nf, nn.Linear(z_dim, nf * 4 * 4)
        self.head_0, self.up_0 = SpatialBlock(nf, nf - 4, label_nc), SpatialBlock(nf - 4, nf - 8, label_nc)
        self.conv_img = nn.Conv2d(nf - 8, 3, 3, padding=1)

    def forward(self, z: Tensor, seg: Tensor) -> Tensor:
        x = self.fc(z).view(-1, self.nf, 4, 4)
        x = F.interpolate(self.head_0(x, seg), scale_factor=2)
        x = self.up_0(x, seg)
        return torch.tanh(self.conv_img(F.leaky_relu(x, 2e-1)))


_PLAIN = {"linear", "mlp_up", "mlp_down"}
_OUT = {"conv", "classifier"}
_HEAD = {"classifier", "lm_head"}

STYLES: list[Style] = [
    Style(
        "words in pictures, one place after the other",
        WordReader,
        lambda: ((torch.randn(2, 1, 16, 24), torch.randint(0, 15, (2, 4))), {}),
        {"hybrid", "rnn", "cnn"},
        {
            "ConvNet.0.weight": {"first_conv"},
            "ConvNet.[37].weight": {"conv"},
            "*.rnn.weight_ih*": {"rnn_ih"},
            "*.rnn.weight_hh*": {"rnn_hh"},
            "SequenceModeling.*.linear.weight": _PLAIN,
            "attention_cell.i2h.weight": {"key", "linear", "attn_other"},
            "attention_cell.h2h.weight": {"query", "linear", "attn_other"},
            "attention_cell.score.weight": {"attn_other", "linear", "other"},
            "generator.weight": _HEAD,
        },
    ),
    Style(
        "people found again",
        PersonNet,
        lambda: ((torch.randn(2, 3, 16, 10), torch.tensor([0, 2])), {}),
        {"transformer"},
        {
            "patch_embed.weight": {"patch_embedding"},
            "cls_token": {"special_token"},
            "pos_embed": {"position_embedding"},
            "sie_embed": {"type_embedding", "token_embedding", "position_embedding"},
            "*.attn.qkv.weight": {"qkv"},
            "*.attn.proj.weight": {"attn_out"},
            "*.fc1.weight": {"mlp_up"},
            "*.fc2.weight": {"mlp_down"},
            "classifier*.weight": _HEAD,
        },
        {"*.attn.qkv.weight": "q:5x7|k:5x7|v:5x7"},
    ),
    Style(
        "organs in a volume",
        VolumeNet,
        lambda: ((torch.randn(1, 1, 8, 8, 8),), {}),
        {"transformer", "hybrid"},
        {
            "patch_embeddings.weight": {"patch_embedding"},
            "position_embeddings": {"position_embedding"},
            "layer.*.attn.query.weight": {"query"},
            "layer.*.attn.key.weight": {"key"},
            "layer.*.attn.value.weight": {"value"},
            "layer.*.attn.out.weight": {"attn_out"},
            "layer.*.mlp.w_1.weight": {"mlp_up"},
            "layer.*.mlp.w_2.weight": {"mlp_down"},
            "decoder0.0.block.0.weight": {"first_conv", "conv"},
            "decoder0.1.block.0.weight": {"conv"},
            "decoder3.0.block.weight": {"conv"},
            "decoder3.1.block.0.weight": {"conv"},
            "decoder6_upsampler.block.weight": {"conv"},
            "decoder3_upsampler.0.block.0.weight": {"conv"},
            "decoder3_upsampler.1.block.weight": {"conv"},
            "decoder0_header.0.block.0.weight": {"conv"},
            "decoder0_header.1.weight": _OUT,
        },
        {"layer.*.attn.query.weight": "q:5x6", "layer.*.attn.key.weight": "k:5x6"},
    ),
    Style(
        "clips with pooled keys",
        ClipNet,
        lambda: ((torch.randn(1, 3, 4, 16, 16),), {}),
        {"transformer"},
        {
            "patch_embed.weight": {"patch_embedding"},
            "cls_token": {"special_token"},
            "pos_embed_[st]*": {"position_embedding"},
            "pos_embed_class": {"position_embedding", "special_token"},
            "blocks.*.attn.qkv.weight": {"qkv"},
            "blocks.*.attn.proj.weight": {"attn_out"},
            "blocks.*.attn.pool_?.weight": {"conv_dw"},
            "blocks.*.mlp.0.weight": {"mlp_up"},
            "blocks.*.mlp.2.weight": {"mlp_down"},
            "blocks.0.proj.weight": {"linear"},
            "head.weight": _HEAD,
        },
        {"blocks.0.attn.qkv.weight": "q:3x6|k:3x6|v:3x6", "blocks.1.attn.qkv.weight": "q:6x6|k:6x6|v:6x6"},
    ),
    Style(
        "questions about a picture",
        QuestionNet,
        lambda: ((torch.randn(2, 5, 21), torch.randint(1, 26, (2, 6))), {}),
        {"transformer", "hybrid"},
        {
            "embedding.weight": {"token_embedding"},
            "lstm.weight_ih*": {"rnn_ih"},
            "lstm.weight_hh*": {"rnn_hh"},
            "img_feat_linear.weight": {"linear", "patch_embedding"},
            "*.linear_q.weight": {"query"},
            "*.linear_k.weight": {"key"},
            "*.linear_v.weight": {"value"},
            "*_list.*.linear_merge.weight": {"attn_out"},
            "*.ffn.fc.linear.weight": {"mlp_up"},
            "*.ffn.linear.weight": {"mlp_down"},
            "attflat_*.mlp.fc.linear.weight": {"linear", "mlp_up", "attn_other"},
            "attflat_*.mlp.linear.weight": {"linear", "mlp_down", "attn_other"},
            "attflat_*.linear_merge.weight": {"linear", "attn_out", "mlp_up", "mlp_down"},
            "proj.weight": _HEAD,
        },
        {"*.linear_q.weight": "q:4x7", "*.linear_k.weight": "k:4x7"},
    ),
    Style(
        "depth from tokens",
        DepthNet,
        lambda: ((torch.randn(1, 3, 16, 16),), {}),
        {"transformer", "hybrid"},
        {
            "proj.weight": {"patch_embedding"},
            "cls": {"special_token"},
            "pos": {"position_embedding"},
            "blocks.*.in_proj.weight": {"qkv"},
            "blocks.*.out_proj.weight": {"attn_out"},
            "blocks.*.ff.0.weight": {"mlp_up"},
            "blocks.*.ff.2.weight": {"mlp_down"},
            "readout.*.project.0.weight": _PLAIN,
            "act_postprocess1.0.weight": {"conv", "linear"},
            "act_postprocess1.1.weight": {"conv"},
            "act_postprocess2.0.weight": {"conv", "linear"},
            "layer?_rn.weight": {"conv"},
            "refinenet1.resConfUnit1.conv?.weight": {"conv"},
            "refinenet2.resConfUnit1.conv?.weight": {"conv", "other"},  # never used: there is nothing to fuse
            "refinenet?.resConfUnit2.conv?.weight": {"conv"},
            "refinenet?.out_conv.weight": {"conv"},
            "output_conv.[01].weight": {"conv"},
            "output_conv.3.weight": _OUT,
        },
        {"blocks.*.in_proj.weight": "q:5x8|k:5x8|v:5x8"},
    ),
    Style(
        "scenes by places and channels",
        SceneNet,
        lambda: ((torch.randn(2, 3, 12, 12),), {}),
        {"cnn", "hybrid"},
        {
            "stem.0.weight": {"first_conv"},
            "layer?.0.weight": {"conv"},
            "conv5?.0.weight": {"conv"},
            "sa.query_conv.weight": {"query"},
            "sa.key_conv.weight": {"key"},
            "sa.value_conv.weight": {"value"},
            "conv[678].1.weight": _OUT,
        },
        {"sa.query_conv.weight": "q:1x5", "sa.key_conv.weight": "k:1x5"},
    ),
    Style(
        "films at two speeds",
        TwoSpeeds,
        lambda: ((torch.randn(2, 3, 8, 16, 16),), {}),
        {"cnn"},
        {
            "*_conv1.weight": {"first_conv", "conv"},
            "lateral_*.weight": {"conv"},
            "*_res?.conv?.weight": {"conv"},
            "*_res?.downsample.0.weight": {"conv"},
            "fc.weight": _HEAD,
        },
    ),
    Style(
        "faces with a margin",
        FaceNet,
        lambda: ((torch.randn(2, 3, 12, 12), torch.tensor([1, 8])), {}),
        {"cnn"},
        {
            "input_layer.0.weight": {"first_conv"},
            "body.*.shortcut_layer.0.weight": {"conv"},
            "body.*.res_layer.[13].weight": {"conv"},
            "body.*.res_layer.5.fc1.weight": {"conv", "linear", "attn_other", "mlp_up", "mlp_down"},
            "body.*.res_layer.5.fc2.weight": {"conv", "linear", "attn_other", "mlp_up", "mlp_down"},
            "output_layer.3.weight": _PLAIN,
            "kernel": {"classifier", "lm_head"},
        },
    ),
    Style(
        "painted from a map of labels",
        Painter,
        lambda: ((torch.randn(2, 14), torch.rand(2, 5, 8, 8)), {}),
        {"cnn"},
        {
            "fc.weight": _PLAIN,
            "*.conv_[01s].weight": {"conv"},
            "*.mlp_shared.0.weight": {"conv", "first_conv", "modulation"},
            "*.mlp_gamma.weight": {"modulation", "conv"},
            "*.mlp_beta.weight": {"modulation", "conv"},
            "conv_img.weight": _OUT,
        },
    ),
]
