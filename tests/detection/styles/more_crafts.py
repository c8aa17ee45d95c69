"""Without much attention: edges in lists, crossed features, noisy weights, sound apart, captions, equations, outlines; and windows."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Edges in a list; scores of sources and targets are added, with a softmax over the edges of a node by hand.
class EdgeListLayer(nn.Module):
    def __init__(self, num_in: int, num_out: int, num_of_heads: int, concat: bool = True) -> None:
        super().__init__()
        self.num_of_heads, self.num_out, self.concat = num_of_heads, num_out, concat
        self.linear_proj = nn.Linear(num_in, num_of_heads * num_out, bias=False)
        self.scoring_fn_target = nn.Parameter(torch.randn(1, num_of_heads, num_out))
        self.scoring_fn_source = nn.Parameter(torch.randn(1, num_of_heads, num_out))
        self.skip_proj = nn.Linear(num_in, num_of_heads * num_out, bias=False)
        self.bias = nn.Parameter(torch.zeros(num_of_heads * num_out if concat else num_out))

    def forward(self, data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, edge_index = data
        n = x.shape[0]
        proj = self.linear_proj(x).view(-1, self.num_of_heads, self.num_out)
        s = (proj * self.scoring_fn_source).sum(dim=-1).index_select(0, edge_index[0])
        t = (proj * self.scoring_fn_target).sum(dim=-1).index_select(0, edge_index[1])
        e = F.leaky_relu(s + t, 0.2)
        e = (e - e.max()).exp()
        total = torch.zeros(n, self.num_of_heads).index_add(0, edge_index[1], e)
        a = e / (total.index_select(0, edge_index[1]) + 1e-16)
        out = torch.zeros_like(proj).index_add(0, edge_index[1], proj.index_select(0, edge_index[0]) * a.unsqueeze(-1))
        out = out + self.skip_proj(x).view(-1, self.num_of_heads, self.num_out)
        out = out.view(-1, self.num_of_heads * self.num_out) if self.concat else out.mean(dim=1)
        return out + self.bias, edge_index


class EdgeListGAT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gat_net = nn.Sequential(EdgeListLayer(13, 8, 3), EdgeListLayer(24, 5, 2, concat=False))

    def forward(self, data: tuple[Tensor, Tensor]) -> Tensor:
        return self.gat_net(data)[0]


# Features crossed with the first ones layer by layer, beside a deep network.
class CrossNet(nn.Module):
    def __init__(self, d: int, layers: int) -> None:
        super().__init__()
        self.kernels = nn.ParameterList([nn.Parameter(torch.randn(d, d) * 0.05) for _ in range(layers)])
        self.bias = nn.ParameterList([nn.Parameter(torch.zeros(d)) for _ in range(layers)])

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for w, b in zip(self.kernels, self.bias, strict=True):
            x = x0 * (x @ w.T + b) + x
        return x


class Crossed(nn.Module):
    def __init__(self, fields: tuple[int, ...] = (31, 12, 45), emb: int = 7, dense: int = 4) -> None:
        super().__init__()
        self.embedding_dict = nn.ModuleDict({f"C{i}": nn.Embedding(n, emb) for i, n in enumerate(fields)})
        d = len(fields) * emb + dense
        self.crossnet, widths = CrossNet(d, 2), [d, 40, 22]
        self.dnn = nn.ModuleDict({"linears": nn.ModuleList([nn.Linear(a, b) for a, b in itertools.pairwise(widths)])})
        self.dnn_linear = nn.Linear(d + 22, 1, bias=False)

    def forward(self, sparse: Tensor, dense: Tensor) -> Tensor:
        x = torch.cat([self.embedding_dict[f"C{i}"](sparse[:, i]) for i in range(sparse.shape[1])] + [dense], dim=-1)
        h = x
        for linear in self.dnn["linears"]:  # pyright: ignore[reportGeneralTypeIssues]
            h = F.relu(linear(h))
        return torch.sigmoid(self.dnn_linear(torch.cat((self.crossnet(x), h), dim=-1)))


# Games: weights with noise of their own, value and advantage apart, a distribution for each action.
class NoisyLinear(nn.Module):
    weight_epsilon: Tensor
    bias_epsilon: Tensor

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in)
        self.weight_mu = nn.Parameter(torch.empty(n_out, n_in).uniform_(-bound, bound))
        self.weight_sigma = nn.Parameter(torch.full((n_out, n_in), 0.4 * bound))
        self.bias_mu, self.bias_sigma = nn.Parameter(torch.zeros(n_out)), nn.Parameter(torch.full((n_out,), 0.4 * bound))
        self.register_buffer("weight_epsilon", torch.randn(n_out, n_in))
        self.register_buffer("bias_epsilon", torch.randn(n_out))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return F.linear(x, self.weight_mu + self.weight_sigma * self.weight_epsilon, self.bias_mu + self.bias_sigma * self.bias_epsilon)
        return F.linear(x, self.weight_mu, self.bias_mu)


class NoisyGame(nn.Module):
    def __init__(self, actions: int = 6, atoms: int = 11) -> None:
        super().__init__()
        self.atoms, self.actions = atoms, actions
        self.convs = nn.Sequential(nn.Conv2d(4, 12, 5, stride=3), nn.ReLU(), nn.Conv2d(12, 20, 3, stride=2), nn.ReLU())
        self.fc_h_v, self.fc_h_a = NoisyLinear(180, 34), NoisyLinear(180, 34)
        self.fc_z_v, self.fc_z_a = NoisyLinear(34, atoms), NoisyLinear(34, actions * atoms)

    def forward(self, x: Tensor, log: bool = False) -> Tensor:
        x = self.convs(x).view(len(x), -1)
        v = self.fc_z_v(F.relu(self.fc_h_v(x))).view(-1, 1, self.atoms)
        a = self.fc_z_a(F.relu(self.fc_h_a(x))).view(-1, self.actions, self.atoms)
        q = v + a - a.mean(1, keepdim=True)
        return F.log_softmax(q, dim=2) if log else F.softmax(q, dim=2)


# Sound taken apart: convolutions with gates down and up, a recurrence between.
class SoundApart(nn.Module):
    def __init__(self, sources: int = 3, channels: int = 10, depth: int = 2) -> None:
        super().__init__()
        self.encoder, self.decoder, cin, self.sources = nn.ModuleList(), nn.ModuleList(), 2, sources
        for i in range(depth):
            self.encoder.append(
                nn.Sequential(nn.Conv1d(cin, channels, 8, 4, 2), nn.ReLU(), nn.Conv1d(channels, 2 * channels, 1), nn.GLU(dim=1))
            )
            out = cin if i else sources * 2
            decode: list[nn.Module] = [
                nn.Conv1d(channels, 2 * channels, 3, padding=1),
                nn.GLU(dim=1),
                nn.ConvTranspose1d(channels, out, 8, 4, 2),
            ]
            self.decoder.insert(0, nn.Sequential(*(decode if i == 0 else [*decode, nn.ReLU()])))
            cin, channels = channels, channels * 2
        self.lstm = nn.LSTM(bidirectional=True, num_layers=2, hidden_size=cin, input_size=cin)
        self.linear = nn.Linear(2 * cin, cin)

    def forward(self, mix: Tensor) -> Tensor:
        x, saved = mix, []
        for encode in self.encoder:
            x = encode(x)
            saved.append(x)
        x = self.linear(self.lstm(x.permute(2, 0, 1))[0]).permute(1, 2, 0)
        for decode in self.decoder:
            x = decode(x + saved.pop())
        return x.view(x.size(0), self.sources, 2, x.size(-1))


# Captions: a recurrence looks at the picture anew before each word.
class Looking(nn.Module):
    def __init__(self, encoder_dim: int, decoder_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.encoder_att, self.decoder_att = nn.Linear(encoder_dim, attention_dim), nn.Linear(decoder_dim, attention_dim)
        self.full_att = nn.Linear(attention_dim, 1)

    def forward(self, encoder_out: Tensor, decoder_hidden: Tensor) -> tuple[Tensor, Tensor]:
        att = self.full_att(F.relu(self.encoder_att(encoder_out) + self.decoder_att(decoder_hidden).unsqueeze(1))).squeeze(2)
        alpha = F.softmax(att, dim=1)
        return (encoder_out * alpha.unsqueeze(2)).sum(dim=1), alpha


class Captions(nn.Module):
    def __init__(self, vocab: int = 49, embed: int = 18, dec: int = 26, enc: int = 22) -> None:
        super().__init__()
        self.resnet = nn.Sequential(nn.Conv2d(3, 14, 3, 2, 1), nn.BatchNorm2d(14), nn.ReLU(), nn.Conv2d(14, enc, 3, 2, 1), nn.ReLU())
        self.attention, self.embedding = Looking(enc, dec, 16), nn.Embedding(vocab, embed)
        self.decode_step = nn.LSTMCell(embed + enc, dec, bias=True)
        self.init_h, self.init_c, self.f_beta = nn.Linear(enc, dec), nn.Linear(enc, dec), nn.Linear(dec, enc)
        self.fc = nn.Linear(dec, vocab)

    def forward(self, images: Tensor, captions: Tensor) -> Tensor:
        e = self.resnet(images).permute(0, 2, 3, 1).flatten(1, 2)
        words, h, c = self.embedding(captions), self.init_h(e.mean(1)), self.init_c(e.mean(1))
        out = []
        for t in range(captions.shape[1]):
            seen, _ = self.attention(e, h)
            h, c = self.decode_step(torch.cat([words[:, t], torch.sigmoid(self.f_beta(h)) * seen], dim=1), (h, c))
            out.append(self.fc(h))
        return torch.stack(out, 1)


# An equation between convolutions, whose time is a channel more; pictures are told apart by it.
class TimeChannelConv(nn.Module):
    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self._layer = nn.Conv2d(dim_in + 1, dim_out, 3, padding=1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        return self._layer(torch.cat([torch.ones_like(x[:, :1]) * t, x], 1))


class Derivative(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.GroupNorm(4, dim) for _ in range(3))
        self.conv1, self.conv2, self.nfe = TimeChannelConv(dim, dim), TimeChannelConv(dim, dim), 0

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        self.nfe += 1
        out = self.conv1(t, F.relu(self.norm1(x)))
        return self.norm3(self.conv2(t, F.relu(self.norm2(out))))


class Equation(nn.Module):
    def __init__(self, dim: int = 20, classes: int = 10) -> None:
        super().__init__()
        self.downsampling = nn.Sequential(nn.Conv2d(1, dim, 3, 1), nn.GroupNorm(4, dim), nn.ReLU(), nn.Conv2d(dim, dim, 4, 2, 1))
        self.odefunc = Derivative(dim)
        self.fc = nn.Sequential(nn.GroupNorm(4, dim), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(dim, classes))

    def forward(self, x: Tensor) -> Tensor:
        x, steps = self.downsampling(x), 3
        for t in torch.linspace(0, 1, steps + 1)[:-1]:
            half = x + self.odefunc(t, x) / (2 * steps)
            x = x + self.odefunc(t + 0.5 / steps, half) / steps
        return self.fc(x)


# Outlines to pictures: a U built from the inside out, and a judge of patches.
class InsideOut(nn.Module):
    def __init__(self, outer: int, inner: int, input_nc: int | None = None, submodule: nn.Module | None = None) -> None:
        super().__init__()
        self.outermost = input_nc is not None
        down = nn.Conv2d(input_nc or outer, inner, 4, 2, 1, bias=False)
        up = nn.ConvTranspose2d(inner if submodule is None else inner * 2, outer, 4, 2, 1)
        middle = [] if submodule is None else [submodule]
        if self.outermost:
            model = [down, *middle, nn.ReLU(), up, nn.Tanh()]
        else:
            model = [nn.LeakyReLU(0.2), down, nn.BatchNorm2d(inner), *middle, nn.ReLU(), up, nn.BatchNorm2d(outer)]
        self.model = nn.Sequential(*model)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.outermost else torch.cat([x, self.model(x)], 1)


class Outlines(nn.Module):
    def __init__(self, ngf: int = 10) -> None:
        super().__init__()
        self.netG = InsideOut(3, ngf, 1, InsideOut(ngf, 2 * ngf, None, InsideOut(2 * ngf, 3 * ngf)))
        self.netD = nn.Sequential(
            nn.Conv2d(4, 12, 4, 2, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(12, 24, 4, 2, 1, bias=False),
            nn.BatchNorm2d(24),
            nn.LeakyReLU(0.2),
            nn.Conv2d(24, 1, 3, 1, 1),
        )

    def forward(self, real_A: Tensor) -> tuple[Tensor, Tensor]:
        fake_B = self.netG(real_A)
        return fake_B, self.netD(torch.cat((real_A, fake_B), 1))


# Each window looks at itself and the window before it.
class NearAttention(nn.Module):
    def __init__(self, dim: int, heads: int, dim_head: int, window: int) -> None:
        super().__init__()
        self.heads, self.window, inner = heads, window, heads * dim_head
        self.norm = nn.LayerNorm(dim)
        self.to_q, self.to_kv, self.to_out = nn.Linear(dim, inner, bias=False), nn.Linear(dim, 2 * inner, bias=False), nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        x = self.norm(x)
        w = n // self.window
        q, k, v = (self.to_q(x), *self.to_kv(x).chunk(2, dim=-1))
        q, k, v = (t.view(b, w, self.window, self.heads, -1).permute(0, 3, 1, 2, 4) for t in (q, k, v))
        k, v = (torch.cat((F.pad(t, (0, 0, 0, 0, 1, -1)), t), dim=3) for t in (k, v))
        sim = torch.einsum("b h w i e, b h w j e -> b h w i j", q, k) * q.shape[-1] ** -0.5
        i, j = torch.arange(self.window)[:, None] + self.window, torch.arange(2 * self.window)[None]
        sim = sim.masked_fill(j > i, -torch.finfo(sim.dtype).max)
        out = torch.einsum("b h w i j, b h w j e -> b h w i e", sim.softmax(dim=-1), v)
        return self.to_out(out.permute(0, 2, 3, 1, 4).reshape(b, n, -1))


class NearLM(nn.Module):
    def __init__(self, num_tokens: int = 69, dim: int = 34) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(num_tokens, dim)
        self.layers = nn.ModuleList([])
        for _ in range(2):
            ff = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 56), nn.GELU(), nn.Dropout(0.0), nn.Linear(56, dim))
            self.layers.append(nn.ModuleList([NearAttention(dim, 3, 10, 4), ff]))
        self.norm, self.to_logits = nn.LayerNorm(dim), nn.Linear(dim, num_tokens, bias=False)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        n = x.shape[1]
        x = self.token_emb(F.pad(x, (0, -n % 4)))
        for attn, ff in self.layers:  # pyright: ignore
            x = attn(x) + x
            x = ff(x) + x
        logits = self.to_logits(self.norm(x))[:, :n]
        return logits if labels is None else F.cross_entropy(logits.transpose(1, 2), labels)


_OUT = {"conv", "classifier", "lm_head"}
_HEAD = {"classifier", "lm_head"}
_LINEAR = {"linear", "mlp_up", "mlp_down"}


def _call(*args: Any) -> Any:
    return lambda: (args, {})


STYLES: list[Style] = [
    Style(
        "edges in a list",
        EdgeListGAT,
        _call((torch.randn(4, 13), torch.tensor([[0, 1, 2, 3, 1], [1, 0, 3, 2, 1]]))),
        {"gnn"},
        {"gat_net.0.linear_proj.weight": {"gnn_weight"}, "gat_net.1.linear_proj.weight": {"gnn_weight", "classifier"}},
    ),
    Style(
        "crossed features",
        Crossed,
        _call(torch.tensor([[3, 4, 5], [30, 11, 44]]), torch.randn(2, 4)),
        {"mlp"},
        {
            "embedding_dict.*.weight": {"token_embedding"},
            "crossnet.kernels.*": {"linear", "other", "mlp_up", "mlp_down"},
            "dnn.linears.*.weight": _LINEAR,
            "dnn_linear.weight": _HEAD,
        },
    ),
    Style(
        "noisy weights",
        NoisyGame,
        _call(torch.randn(2, 4, 24, 24)),
        {"cnn"},
        {
            "convs.0.weight": {"first_conv"},
            "convs.2.weight": {"conv"},
            "fc_h_?.weight_mu": _LINEAR,
            "fc_z_a.weight_mu": _HEAD,
        },
    ),
    Style(
        "sound taken apart",
        SoundApart,
        _call(torch.randn(1, 2, 64)),
        {"hybrid", "rnn", "cnn"},
        {
            "encoder.0.0.weight": {"first_conv"},
            "encoder.1.0.weight": {"conv"},
            "encoder.*.2.weight": {"conv"},
            "decoder.*.0.weight": {"conv"},
            "lstm.weight_ih_*": {"rnn_ih"},
            "lstm.weight_hh_*": {"rnn_hh"},
            "linear.weight": {"linear"},
            "decoder.1.2.weight": _OUT,
        },
    ),
    Style(
        "captions",
        Captions,
        _call(torch.randn(1, 3, 16, 16), torch.randint(49, (1, 4))),
        {"rnn", "hybrid"},
        {
            "resnet.0.weight": {"first_conv"},
            "resnet.3.weight": {"conv"},
            "embedding.weight": {"token_embedding"},
            "attention.encoder_att.weight": {"key", "attn_other", "linear"},
            "attention.decoder_att.weight": {"query", "attn_other", "linear"},
            "decode_step.weight_ih": {"rnn_ih"},
            "decode_step.weight_hh": {"rnn_hh"},
            "init_?.weight": {"linear"},
            "fc.weight": {"lm_head", "classifier"},
        },
    ),
    Style(
        "an equation between convolutions",
        Equation,
        _call(torch.randn(2, 1, 12, 12)),
        {"cnn"},
        {
            "downsampling.0.weight": {"first_conv"},
            "downsampling.3.weight": {"conv"},
            "odefunc.conv?._layer.weight": {"conv"},
            "fc.4.weight": {"classifier"},
        },
    ),
    Style(
        "outlines to pictures",
        Outlines,
        _call(torch.randn(2, 1, 16, 16)),
        {"cnn"},
        {
            "netG.model.0.weight": {"first_conv"},
            "netG.model.1.model.1.weight": {"conv"},
            "netG.model.3.weight": _OUT,
            "netD.0.weight": {"first_conv", "conv"},
            "netD.2.weight": {"conv"},
            "netD.5.weight": _OUT,
        },
    ),
    Style(
        "each window and the one before",
        NearLM,
        _call(torch.randint(69, (1, 11))),
        {"transformer"},
        {
            "token_emb.weight": {"token_embedding"},
            "*.to_q.weight": {"query"},
            "*.to_kv.weight": {"qkv"},
            "*.to_out.weight": {"attn_out"},
            "layers.*.1.1.weight": {"mlp_up"},
            "layers.*.1.4.weight": {"mlp_down"},
            "to_logits.weight": {"lm_head"},
        },
        {"*.to_q.weight": "q:3x10", "*.to_kv.weight": "k:3x10|v:3x10"},
    ),
]
