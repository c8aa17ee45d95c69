"""Sound: WaveNet, HiFi-GAN, FastSpeech 2, a flow between text and sound as VITS has it, MusicGen's codebooks."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from tests.detection.styles.style import Style


# WaveNet: dilated causal convolutions with gates; every layer adds to what is read at the end.
class WaveNet(nn.Module):
    def __init__(self, classes: int = 32, residual: int = 20, skip: int = 28, layers: int = 4) -> None:
        super().__init__()
        self.start_conv = nn.Conv1d(classes, residual, 1)
        self.filter_convs = nn.ModuleList([nn.Conv1d(residual, residual, 2, dilation=2**i) for i in range(layers)])
        self.gate_convs = nn.ModuleList([nn.Conv1d(residual, residual, 2, dilation=2**i) for i in range(layers)])
        self.residual_convs = nn.ModuleList([nn.Conv1d(residual, residual, 1) for _ in range(layers)])
        self.skip_convs = nn.ModuleList([nn.Conv1d(residual, skip, 1) for _ in range(layers)])
        self.end_conv_1, self.end_conv_2 = nn.Conv1d(skip, skip, 1), nn.Conv1d(skip, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.start_conv(x), torch.zeros(())
        for i, (f, g, r, s) in enumerate(zip(self.filter_convs, self.gate_convs, self.residual_convs, self.skip_convs, strict=True)):
            padded = F.pad(x, (2**i, 0))
            y = torch.tanh(f(padded)) * torch.sigmoid(g(padded))
            total = total + s(y)
            x = x + r(y)
        return self.end_conv_2(F.relu(self.end_conv_1(F.relu(total))))


# HiFi-GAN: transposed convolutions and residual blocks, with weights kept as a length and a direction.
class ResBlock(nn.Module):
    def __init__(self, c: int, kernel: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList([weight_norm(nn.Conv1d(c, c, kernel, padding=d * (kernel - 1) // 2, dilation=d)) for d in (1, 3)])
        self.convs2 = nn.ModuleList([weight_norm(nn.Conv1d(c, c, kernel, padding=(kernel - 1) // 2)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for c1, c2 in zip(self.convs1, self.convs2, strict=True):
            x = x + c2(F.leaky_relu(c1(F.leaky_relu(x, 0.1)), 0.1))
        return x


class Generator(nn.Module):
    def __init__(self, mels: int = 18, c: int = 32) -> None:
        super().__init__()
        self.conv_pre = weight_norm(nn.Conv1d(mels, c, 7, padding=3))
        self.ups = nn.ModuleList([weight_norm(nn.ConvTranspose1d(c >> i, c >> (i + 1), 4, 2, 1)) for i in range(2)])
        self.resblocks = nn.ModuleList([ResBlock(c >> (i + 1), k) for i in range(2) for k in (3, 5)])
        self.conv_post = weight_norm(nn.Conv1d(c >> 2, 1, 7, padding=3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_pre(x)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            x = (self.resblocks[2 * i](x) + self.resblocks[2 * i + 1](x)) / 2
        return torch.tanh(self.conv_post(F.leaky_relu(x)))


# FastSpeech 2: blocks whose feed-forward is convolutions, and predictors of length and pitch between them.
class MultiHeadAttention(nn.Module):
    def __init__(self, n_head: int, d_model: int, d_k: int) -> None:
        super().__init__()
        self.n_head, self.d_k = n_head, d_k
        self.w_qs, self.w_ks, self.w_vs = (nn.Linear(d_model, n_head * d_k) for _ in range(3))
        self.fc, self.layer_norm = nn.Linear(n_head * d_k, d_model), nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            w(x).view(b, n, self.n_head, self.d_k).permute(2, 0, 1, 3).contiguous().view(-1, n, self.d_k)
            for w in (self.w_qs, self.w_ks, self.w_vs)
        )
        output = torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(self.d_k), dim=2), v)
        output = output.view(self.n_head, b, n, self.d_k).permute(1, 2, 0, 3).contiguous().view(b, n, -1)
        return self.layer_norm(x + self.fc(output))


class PositionwiseConv(nn.Module):
    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.w_1, self.w_2 = nn.Conv1d(d, hidden, 9, padding=4), nn.Conv1d(hidden, d, 1)
        self.layer_norm = nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_norm(self.w_2(F.relu(self.w_1(x.mT))).mT + x)


class VariancePredictor(nn.Module):
    def __init__(self, d: int, width: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv1d(d, width, 3, padding=1), nn.LayerNorm(width)
        self.linear_layer = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_layer(self.norm1(F.relu(self.conv1(x.mT).mT))).squeeze(-1)


class FastSpeech2(nn.Module):
    pitch_bins: Tensor

    def __init__(self, phones: int = 43, d: int = 32, mels: int = 18, bins: int = 12) -> None:
        super().__init__()
        self.src_word_emb = nn.Embedding(phones, d, padding_idx=0)
        self.encoder = nn.ModuleList([nn.Sequential(MultiHeadAttention(2, d, 16), PositionwiseConv(d, 72)) for _ in range(2)])
        self.duration_predictor, self.pitch_predictor = VariancePredictor(d, 24), VariancePredictor(d, 24)
        self.pitch_embedding = nn.Embedding(bins, d)
        self.register_buffer("pitch_bins", torch.linspace(-2, 2, bins - 1))
        self.decoder = nn.ModuleList([nn.Sequential(MultiHeadAttention(2, d, 16), PositionwiseConv(d, 72)) for _ in range(2)])
        self.mel_linear = nn.Linear(d, mels)
        self.postnet = nn.Sequential(nn.Conv1d(mels, 40, 5, padding=2), nn.BatchNorm1d(40), nn.Tanh(), nn.Conv1d(40, mels, 5, padding=2))

    def forward(self, texts: Tensor, durations: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x = self.src_word_emb(texts)
        for layer in self.encoder:
            x = layer(x)
        duration, pitch = self.duration_predictor(x), self.pitch_predictor(x)
        x = x + self.pitch_embedding(torch.bucketize(pitch.detach(), self.pitch_bins))
        x = x.repeat_interleave(durations, dim=1)
        for layer in self.decoder:
            x = layer(x)
        mel = self.mel_linear(x)
        return mel, mel + self.postnet(mel.mT).mT, duration, pitch


# A flow as VITS has it: a WaveNet shifts one half of the channels by the other, and the speaker conditions each layer.
class WN(nn.Module):
    def __init__(self, hidden: int, layers: int, gin: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.cond_layer = nn.Conv1d(gin, 2 * hidden * layers, 1)
        self.in_layers = nn.ModuleList([weight_norm(nn.Conv1d(hidden, 2 * hidden, 5, padding=2)) for _ in range(layers)])
        self.res_skip_layers = nn.ModuleList([weight_norm(nn.Conv1d(hidden, 2 * hidden, 1)) for _ in range(layers)])

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        output = torch.zeros_like(x)
        for cond, inner, outer in zip(self.cond_layer(g).split(2 * self.hidden, 1), self.in_layers, self.res_skip_layers, strict=True):
            a, b = (inner(x) + cond).chunk(2, 1)
            residual, skip = outer(torch.tanh(a) * torch.sigmoid(b)).chunk(2, 1)
            x, output = x + residual, output + skip
        return output


class ResidualCouplingLayer(nn.Module):
    def __init__(self, channels: int, hidden: int, gin: int) -> None:
        super().__init__()
        self.pre, self.enc, self.post = nn.Conv1d(channels // 2, hidden, 1), WN(hidden, 2, gin), nn.Conv1d(hidden, channels // 2, 1)
        self.post.weight.data.zero_()

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.cat((a, b + self.post(self.enc(self.pre(a), g))), 1).flip(1)


class SpeakerFlow(nn.Module):
    def __init__(self, speakers: int = 9, spec: int = 33, inter: int = 16, gin: int = 12) -> None:
        super().__init__()
        self.emb_g = nn.Embedding(speakers, gin)
        self.pre, self.enc_q, self.proj = nn.Conv1d(spec, 24, 1), WN(24, 2, gin), nn.Conv1d(24, 2 * inter, 1)
        self.flow = nn.ModuleList([ResidualCouplingLayer(inter, 20, gin) for _ in range(3)])

    def forward(self, y: Tensor, sid: Tensor) -> tuple[Tensor, Tensor]:
        g = self.emb_g(sid).unsqueeze(-1)
        m, logs = self.proj(self.enc_q(self.pre(y), g)).chunk(2, 1)
        z = m + torch.randn_like(m) * logs.exp()
        for layer in self.flow:
            z = layer(z, g)
        return z, logs


# MusicGen: four streams of codes, embedded by a table each and added; an output for each stream; text across.
class CrossLayer(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.randn(3 * d, d) * d**-0.5)
        self.out_proj = nn.Linear(d, d, bias=False)
        self.cross_q, self.cross_kv, self.cross_out = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.linear1, self.linear2 = nn.Linear(d, 96, bias=False), nn.Linear(96, d, bias=False)
        self.norm1, self.norm_cross, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        projected = F.linear(self.norm1(x), self.in_proj_weight).unflatten(-1, (3, self.heads, -1))
        q, k, v = (t.transpose(1, 2) for t in projected.unbind(2))
        x = x + self.out_proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        q = self.cross_q(self.norm_cross(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (t.transpose(1, 2) for t in self.cross_kv(text).unflatten(-1, (2, self.heads, -1)).unbind(2))
        x = x + self.cross_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


class CodebookLM(nn.Module):
    def __init__(self, n_q: int = 4, card: int = 50, d: int = 32, text: int = 14) -> None:
        super().__init__()
        self.emb = nn.ModuleList([nn.Embedding(card + 1, d) for _ in range(n_q)])
        self.condition_proj = nn.Linear(text, d)
        self.layers = nn.ModuleList([CrossLayer(d, 4) for _ in range(2)])
        self.out_norm = nn.LayerNorm(d)
        self.linears = nn.ModuleList([nn.Linear(d, card, bias=False) for _ in range(n_q)])

    def forward(self, codes: Tensor, text: Tensor) -> Tensor:
        x, text = torch.stack([emb(codes[:, i]) for i, emb in enumerate(self.emb)]).sum(0), self.condition_proj(text)
        for layer in self.layers:
            x = layer(x, text)
        x = self.out_norm(x)
        return torch.stack([linear(x) for linear in self.linears], dim=1)


_CONV = {"conv"}
_FIRST = {"conv", "first_conv", "patch_embedding"}
_LAST = {"conv", "classifier", "lm_head"}
_POINT = {"conv", "linear", "mlp_up", "mlp_down"}

STYLES: list[Style] = [
    Style(
        "wavenet",
        WaveNet,
        lambda: ((torch.randn(1, 32, 20),), {}),
        {"cnn"},
        {
            "start_conv.weight": _FIRST | {"linear"},
            "filter_convs.*.weight": _CONV,
            "gate_convs.*.weight": _CONV,
            "residual_convs.*.weight": _POINT,
            "skip_convs.*.weight": _POINT,
            "end_conv_1.weight": _POINT,
            "end_conv_2.weight": _LAST,
        },
    ),
    Style(
        "hifi-gan",
        Generator,
        lambda: ((torch.randn(1, 18, 6),), {}),
        {"cnn"},
        {
            "conv_pre.*.original1": _FIRST,
            "ups.*.original1": _CONV,
            "resblocks.*.original1": _CONV,
            "conv_post.*.original1": _LAST,
        },
    ),
    Style(
        "fastspeech 2",
        FastSpeech2,
        lambda: ((torch.randint(1, 43, (1, 5)), torch.tensor([1, 2, 1, 3, 1])), {}),
        {"transformer", "hybrid"},
        {
            "src_word_emb.weight": {"token_embedding"},
            "*.w_qs.weight": {"query"},
            "*.w_ks.weight": {"key"},
            "*.w_vs.weight": {"value"},
            "*.fc.weight": {"attn_out"},
            "*.w_1.weight": {"mlp_up", "conv"},
            "*.w_2.weight": {"mlp_down", "conv"},
            "pitch_embedding.weight": {"token_embedding", "type_embedding"},
            "*_predictor.conv1.weight": _CONV,
            "*_predictor.linear_layer.weight": {"classifier", "lm_head", "linear"},
            "mel_linear.weight": {"classifier", "lm_head", "linear"},
            "postnet.0.weight": _CONV,
            "postnet.3.weight": _LAST,
        },
        {"*.w_qs.weight": "q:2x16", "*.w_ks.weight": "k:2x16"},
    ),
    Style(
        "vits: posterior encoder and flow",
        SpeakerFlow,
        lambda: ((torch.randn(1, 33, 8), torch.tensor([3])), {}),
        {"cnn"},
        {
            "emb_g.weight": {"token_embedding", "type_embedding"},
            "pre.weight": _FIRST | {"linear"},
            "*.cond_layer.weight": _POINT | {"modulation"},
            "*.in_layers.*.original1": _CONV,
            "*.res_skip_layers.*.original1": _POINT,
            "proj.weight": _LAST | {"linear"},
            "flow.*.pre.weight": _POINT,
            "flow.*.post.weight": _POINT | _LAST,
        },
    ),
    Style(
        "musicgen",
        CodebookLM,
        lambda: ((torch.randint(51, (1, 4, 6)), torch.randn(1, 3, 14)), {}),
        {"transformer"},
        {
            "emb.*.weight": {"token_embedding"},
            "condition_proj.weight": {"linear", "mlp_up"},
            "*.in_proj_weight": {"qkv"},
            "*.out_proj.weight": {"attn_out"},
            "*.cross_q.weight": {"query"},
            "*.cross_kv.weight": {"qkv"},
            "*.cross_out.weight": {"attn_out"},
            "*.linear1.weight": {"mlp_up"},
            "*.linear2.weight": {"mlp_down"},
            "linears.*.weight": {"lm_head", "classifier"},
        },
        {"*.in_proj_weight": "q:4x8|k:4x8|v:4x8", "*.cross_q.weight": "q:4x8", "*.cross_kv.weight": "k:4x8|v:4x8"},
    ),
]
