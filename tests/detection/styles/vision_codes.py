"""Pictures as codes and densities: VQ-VAE, VQGAN, gated PixelCNN, Glow, RealNVP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# VQ-VAE: the codebook is an embedding that is looked up by distance.
class ResidualLayer(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.res_block = nn.Sequential(
            nn.ReLU(), nn.Conv2d(dim, hidden, 3, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(hidden, dim, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res_block(x)


class VectorQuantizer(nn.Module):
    def __init__(self, n_e: int, e_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_e, e_dim)

    def forward(self, z: Tensor) -> Tensor:
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        nearest = torch.cdist(flat, self.embedding.weight).argmin(1)
        z_q = self.embedding(nearest).view(len(z), *z.shape[2:], -1).permute(0, 3, 1, 2)
        return z + (z_q - z).detach()


class VQVAE(nn.Module):
    def __init__(self, h: int = 24, e_dim: int = 10, n_e: int = 31) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, h // 2, 4, 2, 1), nn.ReLU(), nn.Conv2d(h // 2, h, 4, 2, 1), ResidualLayer(h, 12), ResidualLayer(h, 12)
        )
        self.pre_quantization_conv = nn.Conv2d(h, e_dim, 1)
        self.vector_quantization = VectorQuantizer(n_e, e_dim)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(e_dim, h, 3, 1, 1),
            ResidualLayer(h, 12),
            nn.ConvTranspose2d(h, h // 2, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(h // 2, 3, 4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.vector_quantization(self.pre_quantization_conv(self.encoder(x))))


# VQGAN: convolutions with one attention of 1x1 convolutions at the bottom, and no time.
class ResnetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(4, c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(4, c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, c)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h_ = self.norm(x)
        b, c, h, w = x.shape
        q = self.q(h_).reshape(b, c, h * w).permute(0, 2, 1)
        w_ = F.softmax(torch.bmm(q, self.k(h_).reshape(b, c, h * w)) * c**-0.5, dim=2)
        return x + self.proj_out(torch.bmm(self.v(h_).reshape(b, c, h * w), w_.permute(0, 2, 1)).reshape(b, c, h, w))


class VQGAN(nn.Module):
    def __init__(self, ch: int = 16, z: int = 8, n_embed: int = 29) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, ch, 3, padding=1)
        self.down = nn.ModuleList([ResnetBlock(ch, ch), nn.Conv2d(ch, ch, 3, 2, 1), ResnetBlock(ch, 2 * ch)])
        self.attn_1 = AttnBlock(2 * ch)
        self.to_z = nn.Conv2d(2 * ch, z, 1)
        self.quantize = VectorQuantizer(n_embed, z)
        self.from_z = nn.Conv2d(z, 2 * ch, 3, padding=1)
        self.attn_2 = AttnBlock(2 * ch)
        self.up = nn.ModuleList([ResnetBlock(2 * ch, ch), nn.Upsample(scale_factor=2), ResnetBlock(ch, ch)])
        self.conv_out = nn.Conv2d(ch, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for layer in self.down:
            h = layer(h)
        h = self.attn_2(self.from_z(self.quantize(self.to_z(self.attn_1(h)))))
        for layer in self.up:
            h = layer(h)
        return self.conv_out(h)


# Gated PixelCNN: convolutions whose weights a mask cuts, and a class that adds to each.
class MaskedConv2d(nn.Conv2d):
    mask: Tensor

    def __init__(self, kind: str, *args: int) -> None:
        super().__init__(*args, padding=args[2] // 2)
        mask = torch.ones_like(self.weight)
        k = args[2]
        mask[:, :, k // 2, k // 2 + (kind == "B") :] = 0
        mask[:, :, k // 2 + 1 :] = 0
        self.register_buffer("mask", mask)

    def forward(self, input: Tensor) -> Tensor:
        return F.conv2d(input, self.weight * self.mask, self.bias, padding=self.padding)


class GatedResidual(nn.Module):
    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.conv = MaskedConv2d("B", dim, 2 * dim, 3)
        self.class_cond_embedding = nn.Embedding(classes, 2 * dim)
        self.out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        a, b = (self.conv(x) + self.class_cond_embedding(label)[:, :, None, None]).chunk(2, 1)
        return x + self.out(torch.tanh(a) * torch.sigmoid(b))


class PixelCNN(nn.Module):
    def __init__(self, codes: int = 32, dim: int = 20, classes: int = 6) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, dim)
        self.first = MaskedConv2d("A", dim, dim, 7)
        self.layers = nn.ModuleList([GatedResidual(dim, classes) for _ in range(3)])
        self.output_conv = nn.Sequential(nn.Conv2d(dim, 44, 1), nn.ReLU(), nn.Conv2d(44, codes, 1))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        x = self.first(self.embedding(x).permute(0, 3, 1, 2))
        for layer in self.layers:
            x = layer(x, label)
        return self.output_conv(x)


# Glow: an invertible matrix over the channels, then half of them scaled and shifted by what the other half says.
class InvConv2d(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linalg.qr(torch.randn(channels, channels))[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return F.conv2d(x, self.weight[:, :, None, None]), torch.slogdet(self.weight)[1] * x[0, 0].numel()


class ZeroConv2d(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3)
        self.conv.weight.data.zero_()
        self.scale = nn.Parameter(torch.zeros(1, c_out, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, [1, 1, 1, 1], value=1)) * torch.exp(self.scale * 3)


class FlowStep(nn.Module):
    def __init__(self, c: int, hidden: int) -> None:
        super().__init__()
        self.loc, self.log_scale = nn.Parameter(torch.zeros(1, c, 1, 1)), nn.Parameter(torch.zeros(1, c, 1, 1))
        self.invconv = InvConv2d(c)
        self.net = nn.Sequential(
            nn.Conv2d(c // 2, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, hidden, 1), nn.ReLU(), ZeroConv2d(hidden, c)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, logdet = self.invconv((x + self.loc) * self.log_scale.exp())
        a, b = x.chunk(2, 1)
        log_s, t = self.net(a).chunk(2, 1)
        return torch.cat((a, (b + t) * torch.sigmoid(log_s + 2)), 1), logdet + F.logsigmoid(log_s + 2).sum()


class Glow(nn.Module):
    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([FlowStep(12 * 2**i, 28) for _ in range(steps)]) for i in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        logdet = x.new_zeros(())
        for block in self.blocks:
            x = F.pixel_unshuffle(x, 2)
            for flow in block:  # pyright: ignore
                x, d = flow(x)
                logdet = logdet + d
            x = x.chunk(2, 1)[0]
        return logdet - x.square().sum()


# RealNVP on points: two small networks a step, kept in lists of their own.
class RealNVP(nn.Module):
    mask: Tensor

    def __init__(self, dim: int = 6, hidden: int = 40, flows: int = 4) -> None:
        super().__init__()
        self.register_buffer("mask", (torch.arange(dim) % 2).expand(flows, dim) ^ (torch.arange(flows)[:, None] % 2))
        self.s = nn.ModuleList([self._net(dim, hidden, True) for _ in range(flows)])
        self.t = nn.ModuleList([self._net(dim, hidden, False) for _ in range(flows)])

    @staticmethod
    def _net(dim: int, hidden: int, bounded: bool) -> nn.Sequential:
        layers = [nn.Linear(dim, hidden), nn.LeakyReLU(), nn.Linear(hidden, hidden), nn.LeakyReLU(), nn.Linear(hidden, dim)]
        return nn.Sequential(*layers, *([nn.Tanh()] if bounded else []))

    def forward(self, x: Tensor) -> Tensor:
        logdet = x.new_zeros(len(x))
        for mask, s_net, t_net in zip(self.mask, self.s, self.t, strict=True):
            kept = x * mask
            s, t = s_net(kept) * (1 - mask), t_net(kept) * (1 - mask)
            x, logdet = kept + (1 - mask) * (x * s.exp() + t), logdet + s.sum(1)
        return logdet - 0.5 * x.square().sum(1)


_CONV = {"conv"}
_FIRST = {"conv", "first_conv", "patch_embedding"}
_LAST = {"conv", "classifier", "lm_head"}
_CODES = {"token_embedding", "other"}

STYLES: list[Style] = [
    Style(
        "vq-vae",
        VQVAE,
        lambda: ((torch.randn(1, 3, 16, 16),), {}),
        {"cnn"},
        {
            "encoder.0.weight": _FIRST,
            "encoder.[234].*weight": _CONV,
            "pre_quantization_conv.weight": _CONV,
            "vector_quantization.embedding.weight": _CODES,
            "decoder.[012]*.weight": _CONV,
            "decoder.4.weight": _LAST,
        },
    ),
    Style(
        "vqgan",
        VQGAN,
        lambda: ((torch.randn(1, 3, 8, 8),), {}),
        {"cnn", "hybrid"},
        {
            "conv_in.weight": _FIRST,
            "down.*conv?.weight": _CONV,
            "attn_?.q.weight": {"query"},
            "attn_?.k.weight": {"key"},
            "attn_?.v.weight": {"value"},
            "attn_?.proj_out.weight": {"attn_out"},
            "quantize.embedding.weight": _CODES,
            "up.*conv?.weight": _CONV,
            "conv_out.weight": _LAST,
        },
        {"attn_?.q.weight": "q:1x32", "attn_?.k.weight": "k:1x32"},
    ),
    Style(
        "gated pixelcnn",
        PixelCNN,
        lambda: ((torch.randint(32, (1, 6, 6)), torch.tensor([2])), {}),
        {"cnn"},
        {
            "embedding.weight": {"token_embedding"},
            "first.weight": {"conv", "first_conv"},
            "layers.*.conv.weight": _CONV,
            "layers.*.class_cond_embedding.weight": {"type_embedding", "token_embedding", "modulation"},
            "layers.*.out.weight": _CONV | {"linear"},
            "output_conv.0.weight": _CONV | {"linear", "mlp_up"},
            "output_conv.2.weight": _LAST,
        },
    ),
    Style(
        "glow",
        Glow,
        lambda: ((torch.randn(1, 3, 8, 8),), {}),
        {"cnn"},
        {
            "blocks.*.invconv.weight": {"conv", "linear"},
            "blocks.*.net.0.weight": {"conv", "first_conv"},
            "blocks.*.net.2.weight": _CONV | {"linear"},
            "blocks.*.net.4.conv.weight": _LAST,
        },
    ),
    Style(
        "realnvp",
        RealNVP,
        lambda: ((torch.randn(5, 6),), {}),
        {"mlp"},
        {"[st].*.[02].weight": {"linear", "mlp_up", "mlp_down"}, "[st].*.4.weight": {"linear", "mlp_down", "classifier", "lm_head"}},
    ),
]
