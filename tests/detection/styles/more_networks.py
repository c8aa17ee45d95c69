"""Plain networks with habits: layers in a dictionary, masks on weights, a pointer, memory with gates, a policy over pictures."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# A masked autoregressive flow: linears whose weights are masked, order turned around between the steps.
class MaskedLinear(nn.Linear):
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.mask * self.weight, self.bias)


class MADE(nn.Module):
    def __init__(self, n: int, hidden: int) -> None:
        super().__init__()
        d0, d1 = torch.arange(n), torch.arange(hidden) % (n - 1)
        self.net = nn.Sequential(
            MaskedLinear((d1[:, None] >= d0).float()),
            nn.ReLU(),
            MaskedLinear((d1[:, None] >= d1).float()),
            nn.ReLU(),
            MaskedLinear((d0.repeat(2)[:, None] > d1).float()),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, alpha = self.net(x).chunk(2, dim=-1)
        return (x - mu) * torch.exp(-alpha), -alpha.sum(-1)


class MAF(nn.Module):
    def __init__(self, n: int = 7, hidden: int = 31, steps: int = 3) -> None:
        super().__init__()
        self.flows = nn.ModuleList([MADE(n, hidden) for _ in range(steps)])

    def forward(self, x: Tensor) -> Tensor:
        log_det = torch.zeros(len(x))
        for flow in self.flows:
            x, change = flow(x)
            x, log_det = x.flip(-1), log_det + change
        return log_det - 0.5 * (x**2 + math.log(2 * math.pi)).sum(-1)


# A pointer network: what is said is a place in the input.
class PointerNet(nn.Module):
    def __init__(self, inputs: int = 2, hidden: int = 22) -> None:
        super().__init__()
        self.embedding = nn.Linear(inputs, 15)
        self.encoder, self.decoder = nn.LSTM(15, hidden, batch_first=True), nn.LSTMCell(15, hidden)
        self.W1, self.W2, self.vt = nn.Linear(hidden, 17, bias=False), nn.Linear(hidden, 17, bias=False), nn.Linear(17, 1, bias=False)
        self.start = nn.Parameter(torch.zeros(15))

    def forward(self, x: Tensor) -> Tensor:
        e = self.embedding(x)
        memory, (h, c) = self.encoder(e)
        h, c, said, out = h[0], c[0], self.start.expand(len(x), -1), []
        for _ in range(x.shape[1]):
            h, c = self.decoder(said, (h, c))
            scores = self.vt(torch.tanh(self.W1(memory) + self.W2(h).unsqueeze(1))).squeeze(-1)
            p = F.softmax(scores, dim=-1)
            said = torch.einsum("bn,bnd->bd", p, e)
            out.append(p.log())
        return torch.stack(out, 1)


# A convolutional VAE with linears in between.
class ConvVAE(nn.Module):
    def __init__(self, z_dim: int = 9) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(1, 12, 4, 2, 1), relu1=nn.ReLU(), conv2=nn.Conv2d(12, 18, 4, 2, 1), relu2=nn.ReLU(), flatten=nn.Flatten()
            )
        )
        self.fc_mu, self.fc_var, self.fc_dec = nn.Linear(288, z_dim), nn.Linear(288, z_dim), nn.Linear(z_dim, 288)
        self.decoder = nn.Sequential(
            nn.Unflatten(1, (18, 4, 4)), nn.ConvTranspose2d(18, 12, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(12, 1, 4, 2, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mu, log_var = self.fc_mu(h), self.fc_var(h)
        z = mu + torch.randn_like(mu) * (0.5 * log_var).exp()
        return self.decoder(self.fc_dec(z)), mu, log_var


# A policy over pictures: residual convolutions, a recurrence, the last action and reward.
class ImpalaBlock(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(a, b, 3, padding=1)
        self.res = nn.ModuleList(
            [nn.Sequential(nn.ReLU(), nn.Conv2d(b, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, b, 3, padding=1)) for _ in range(2)]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.conv(x), 3, 2, 1)
        for r in self.res:
            x = x + r(x)
        return x


class Impala(nn.Module):
    def __init__(self, actions: int = 6) -> None:
        super().__init__()
        self.actions = actions
        self.feat_convs = nn.Sequential(ImpalaBlock(3, 10), ImpalaBlock(10, 14))
        self.fc, self.core = nn.Linear(14 * 16, 38), nn.LSTM(38 + actions + 1, 24)
        self.policy, self.baseline = nn.Linear(24, actions), nn.Linear(24, 1)

    def forward(
        self, inputs: dict[str, Tensor], core_state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
        x = inputs["frame"]
        T, B = x.shape[:2]
        x = F.relu(self.fc(F.relu(self.feat_convs(x.flatten(0, 1).float() / 255)).flatten(1)))
        last = F.one_hot(inputs["last_action"].flatten(), self.actions).float()
        x, core_state = self.core(torch.cat([x, inputs["reward"].view(-1, 1), last], -1).view(T, B, -1), core_state)
        return {"logits": self.policy(x), "baseline": self.baseline(x).squeeze(-1)}, core_state  # pyright: ignore[reportReturnType]


# A gated transformer for agents: memory of the layers before, gated units in place of residuals.
class GRUGate(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.Wr, self.Ur, self.Wz, self.Uz, self.Wg, self.Ug = (nn.Linear(d, d, bias=False) for _ in range(6))
        self.bg = nn.Parameter(torch.full((d,), 2.0))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        r = torch.sigmoid(self.Wr(y) + self.Ur(x))
        z = torch.sigmoid(self.Wz(y) + self.Uz(x) - self.bg)
        return (1 - z) * x + z * torch.tanh(self.Wg(y) + self.Ug(r * x))


class MemoryAttention(nn.Module):
    def __init__(self, d: int, heads: int, d_inner: int) -> None:
        super().__init__()
        self.heads, self.d_inner = heads, d_inner
        self.linear_kv = nn.Linear(d, d_inner * heads * 2, bias=False)
        self.linear_q = nn.Linear(d, d_inner * heads, bias=False)
        self.lout = nn.Linear(d_inner * heads, d, bias=False)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        cur, bs, _ = x.shape
        k, v = torch.chunk(self.linear_kv(torch.cat([memory, x], dim=0)), 2, dim=-1)
        full = len(k)
        q = self.linear_q(x).view(cur, bs, self.heads, self.d_inner)
        k, v = k.view(full, bs, self.heads, self.d_inner), v.view(full, bs, self.heads, self.d_inner)
        attn = torch.einsum("ibhd,jbhd->ijbh", q, k) / self.d_inner**0.5
        mask = torch.triu(torch.ones(cur, full, dtype=torch.bool), diagonal=1 + full - cur)
        attn = torch.softmax(attn.masked_fill(mask[..., None, None], -float("inf")), dim=1)
        return self.lout(torch.einsum("ijbh,jbhd->ibhd", attn, v).contiguous().view(cur, bs, -1))


class GatedAgent(nn.Module):
    def __init__(self, obs: int = 19, d: int = 24, actions: int = 5) -> None:
        super().__init__()
        self.obs = nn.Linear(obs, d)
        self.u = nn.ModuleDict()
        for i in range(2):
            self.u[f"mha_{i}"], self.u[f"gate1_{i}"], self.u[f"gate2_{i}"] = MemoryAttention(d, 3, 10), GRUGate(d), GRUGate(d)
            self.u[f"ff_{i}"] = nn.Sequential(nn.Linear(d, 42), nn.ReLU(), nn.Linear(42, d))
            self.u[f"ln1_{i}"], self.u[f"ln2_{i}"] = nn.LayerNorm(d), nn.LayerNorm(d)
        self.pi, self.v = nn.Linear(d, actions), nn.Linear(d, 1)

    def forward(self, x: Tensor, memory: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        h, kept = self.obs(x), []
        for i in range(2):
            kept.append(h.detach())
            y = self.u[f"mha_{i}"](self.u[f"ln1_{i}"](h), self.u[f"ln1_{i}"](memory[i]))
            h = self.u[f"gate1_{i}"](h, F.relu(y))
            h = self.u[f"gate2_{i}"](h, F.relu(self.u[f"ff_{i}"](self.u[f"ln2_{i}"](h))))
        return self.pi(h), self.v(h), kept


# A Siamese network over pictures, and layers by lambdas.
class Apply(nn.Module):
    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Sequential(
            nn.Conv2d(1, 16, 5),
            Apply(torch.relu),
            Apply(lambda x: F.max_pool2d(x, 2)),
            nn.Conv2d(16, 28, 3),
            Apply(torch.relu),
            Apply(lambda x: x.view(x.size(0), -1)),
            nn.Linear(28 * 16, 50),
            Apply(torch.sigmoid),
        )
        self.out = nn.Linear(50, 1)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        return self.out(torch.abs(self.twin(x1) - self.twin(x2)))


# A conditional GAN of linears: the label joins the noise, and a critic reads both.
class LabelledGAN(nn.Module):
    def __init__(self, latent: int = 16, classes: int = 10, pixels: int = 49) -> None:
        super().__init__()
        self.label_emb = nn.Embedding(classes, 6)

        def block(a: int, b: int, normalize: bool = True) -> list[nn.Module]:
            return [nn.Linear(a, b), *([nn.BatchNorm1d(b, 0.8)] if normalize else []), nn.LeakyReLU(0.2, inplace=True)]

        self.G = nn.Sequential(*block(latent + 6, 26, False), *block(26, 40), nn.Linear(40, pixels), nn.Tanh())
        self.D = nn.Sequential(*block(pixels + 6, 44, False), nn.Dropout(0.0), *block(44, 30, False), nn.Linear(30, 1))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        e = self.label_emb(labels)
        return self.D(torch.cat((self.G(torch.cat((e, z), -1)), e), -1))


# An encoder with attention over the states of a recurrence, many hops from two matrices.
class ManyHops(nn.Module):
    def __init__(self, vocab: int = 59, emb: int = 20, hidden: int = 17, d_a: int = 23, r: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab, emb)
        self.bilstm = nn.LSTM(emb, hidden, bidirectional=True)
        self.W_s1, self.W_s2 = nn.Linear(2 * hidden, d_a), nn.Linear(d_a, r)
        self.fc_layer, self.label = nn.Linear(r * 2 * hidden, 33), nn.Linear(33, classes)

    def forward(self, input_sentences: Tensor, lengths: Tensor) -> Tensor:
        x = self.word_embeddings(input_sentences).permute(1, 0, 2)
        h = self.bilstm(x)[0].permute(1, 0, 2)
        scores = self.W_s2(torch.tanh(self.W_s1(h)))
        scores = scores.masked_fill(torch.arange(h.shape[1])[None, :, None] >= lengths[:, None, None], -1e9)
        a = F.softmax(scores.permute(0, 2, 1), dim=2)
        return self.label(F.relu(self.fc_layer(torch.bmm(a, h).flatten(1))))


_HIDDEN, _LAST = {"linear", "mlp_up", "mlp_down"}, {"classifier", "lm_head"}
STYLES: list[Style] = [
    Style(
        "masked autoregressive flow",
        MAF,
        lambda: ((torch.randn(3, 7),), {}),
        {"mlp"},
        {"flows.*.net.[02].weight": _HIDDEN, "flows.*.net.4.weight": _HIDDEN | _LAST},
    ),
    Style(
        "pointer network",
        PointerNet,
        lambda: ((torch.rand(2, 5, 2),), {}),
        {"rnn", "hybrid"},
        {
            "embedding.weight": {"linear", "patch_embedding", "token_embedding"},
            "encoder.weight_ih_l0": {"rnn_ih"},
            "encoder.weight_hh_l0": {"rnn_hh"},
            "decoder.weight_ih": {"rnn_ih"},
            "decoder.weight_hh": {"rnn_hh"},
            "W1.weight": {"key", "linear", "attn_other"},
            "W2.weight": {"query", "linear", "attn_other"},
            "vt.weight": {"linear", "attn_other", "classifier", "lm_head"},
        },
    ),
    Style(
        "convolutional vae",
        ConvVAE,
        lambda: ((torch.rand(2, 1, 16, 16),), {}),
        {"cnn"},
        {
            "encoder.conv1.weight": {"first_conv"},
            "encoder.conv2.weight": {"conv"},
            "fc_*.weight": {"linear", "mlp_up", "mlp_down"},
            "decoder.1.weight": {"conv"},
            "decoder.3.weight": {"conv", "classifier", "lm_head"},
        },
    ),
    Style(
        "impala",
        Impala,
        lambda: (({"frame": torch.zeros(2, 1, 3, 16, 16), "last_action": torch.zeros(2, 1).long(), "reward": torch.zeros(2, 1)},), {}),
        {"cnn", "rnn", "hybrid"},
        {
            "feat_convs.0.conv.weight": {"first_conv"},
            "feat_convs.1.conv.weight": {"conv"},
            "feat_convs.*.res.?.?.weight": {"conv"},
            "fc.weight": {"linear", "mlp_up"},
            "core.weight_ih_l0": {"rnn_ih"},
            "core.weight_hh_l0": {"rnn_hh"},
            "policy.weight": _LAST,
            "baseline.weight": _LAST | {"linear"},
        },
    ),
    Style(
        "gated transformer for agents",
        GatedAgent,
        lambda: ((torch.randn(4, 2, 19), [torch.randn(3, 2, 24)] * 2), {}),
        {"transformer"},
        {
            "obs.weight": {"linear", "patch_embedding"},
            "u.mha_?.linear_kv.weight": {"qkv"},
            "u.mha_?.linear_q.weight": {"query"},
            "u.mha_?.lout.weight": {"attn_out"},
            "u.ff_?.0.weight": {"mlp_up"},
            "u.ff_?.2.weight": {"mlp_down"},
            "u.gate?_?.[WU]?.weight": {"linear", "mlp_gate", "rnn_ih", "rnn_hh", "attn_other"},
            "pi.weight": _LAST,
            "v.weight": _LAST | {"linear"},
        },
        {"u.mha_?.linear_kv.weight": "k:3x10|v:3x10", "u.mha_?.linear_q.weight": "q:3x10"},
    ),
    Style(
        "siamese",
        Siamese,
        lambda: ((torch.randn(2, 1, 16, 16), torch.randn(2, 1, 16, 16)), {}),
        {"cnn"},
        {
            "twin.0.weight": {"first_conv"},
            "twin.3.weight": {"conv"},
            "twin.6.weight": {"linear", "mlp_up"},
            "out.weight": _LAST,
        },
    ),
    Style(
        "labelled gan of linears",
        LabelledGAN,
        lambda: ((torch.randn(2, 16), torch.tensor([1, 2])), {}),
        {"mlp"},
        {
            "label_emb.weight": {"token_embedding", "type_embedding"},
            "G.[02].weight": _HIDDEN,
            "G.5.weight": _HIDDEN | _LAST,
            "D.[03].weight": _HIDDEN,
            "D.5.weight": _LAST,
        },
    ),
    Style(
        "many hops over a recurrence",
        ManyHops,
        lambda: ((torch.randint(59, (2, 6)), torch.tensor([6, 4])), {}),
        {"rnn", "hybrid"},
        {
            "word_embeddings.weight": {"token_embedding"},
            "bilstm.weight_ih_*": {"rnn_ih"},
            "bilstm.weight_hh_*": {"rnn_hh"},
            "W_s?.weight": {"linear", "attn_other", "mlp_up", "mlp_down"},
            "fc_layer.weight": {"linear", "mlp_up"},
            "label.weight": _LAST,
        },
    ),
]
