"""A label for each pixel or box: DeepLab, feature pyramids with box heads, DETR, V-Net; capsules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# DeepLab v3+: dilated branches side by side, and the features of an early stage again.
def conv_bn(c_in: int, c_out: int, k: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    pad = dilation * (k // 2)
    return nn.Sequential(nn.Conv2d(c_in, c_out, k, stride, pad, dilation, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


class ASPP(nn.Module):
    def __init__(self, c_in: int, c_out: int, rates: tuple[int, ...] = (2, 3)) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv_bn(c_in, c_out, 1), *(conv_bn(c_in, c_out, 3, 1, rate) for rate in rates)])
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c_in, c_out, 1), nn.ReLU())
        self.project = conv_bn(c_out * (len(rates) + 2), c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear")
        return self.project(torch.cat([*(conv(x) for conv in self.convs), pooled], dim=1))


class DeepLab(nn.Module):
    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.stem, self.layer1, self.layer2 = conv_bn(3, 12, 3, 2), conv_bn(12, 20), conv_bn(20, 36, 3, 2)
        self.aspp, self.project = ASPP(36, 28), conv_bn(20, 10, 1)
        self.classifier = nn.Sequential(conv_bn(38, 24), nn.Conv2d(24, classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        low = self.layer1(self.stem(x))
        high = F.interpolate(self.aspp(self.layer2(low)), size=low.shape[-2:], mode="bilinear")
        return F.interpolate(self.classifier(torch.cat((self.project(low), high), 1)), size=x.shape[-2:], mode="bilinear")


# A pyramid of features with heads for classes, boxes and masks, in the manner of Mask R-CNN and RetinaNet.
class PyramidDetector(nn.Module):
    def __init__(self, c: int = 20, classes: int = 5, anchors: int = 2) -> None:
        super().__init__()
        self.body = nn.ModuleList([conv_bn(3, 12, 3, 2), conv_bn(12, 24, 3, 2), conv_bn(24, 32, 3, 2)])
        self.inner_blocks = nn.ModuleList([nn.Conv2d(w, c, 1) for w in (12, 24, 32)])
        self.layer_blocks = nn.ModuleList([nn.Conv2d(c, c, 3, padding=1) for _ in range(3)])
        self.rpn_conv, self.cls_logits, self.bbox_pred = nn.Conv2d(c, c, 3, 1, 1), nn.Conv2d(c, anchors, 1), nn.Conv2d(c, 4 * anchors, 1)
        self.fc6, self.fc7 = nn.Linear(c * 4, 48), nn.Linear(48, 48)
        self.cls_score, self.box_delta = nn.Linear(48, classes), nn.Linear(48, classes * 4)
        self.mask_fcn = nn.Sequential(nn.Conv2d(c, 16, 3, 1, 1), nn.ReLU(), nn.ConvTranspose2d(16, 16, 2, 2), nn.ReLU())
        self.mask_logits = nn.Conv2d(16, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = []
        for stage in self.body:
            x = stage(x)
            features.append(x)
        last, pyramid = self.inner_blocks[-1](features[-1]), []
        for i in (2, 1, 0):
            if i < 2:
                last = self.inner_blocks[i](features[i]) + F.interpolate(last, size=features[i].shape[-2:])
            pyramid.append(self.layer_blocks[i](last))
        shared = [F.relu(self.rpn_conv(p)) for p in pyramid]
        box = F.relu(self.fc7(F.relu(self.fc6(F.adaptive_avg_pool2d(pyramid[0], 2).flatten(1)))))
        return {
            "objectness": torch.cat([self.cls_logits(s).flatten(1) for s in shared], 1),
            "rpn_box": torch.cat([self.bbox_pred(s).flatten(1) for s in shared], 1),
            "scores": self.cls_score(box),
            "boxes": self.box_delta(box),
            "masks": self.mask_logits(self.mask_fcn(pyramid[0])),
        }


# DETR by hand: convolutions, then an encoder and a decoder whose queries are learned.
class Attention(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.h = heads
        self.fc_q, self.fc_k, self.fc_v, self.fc_o = (nn.Linear(d, d) for _ in range(4))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bs, nq, nk = q.shape[0], q.shape[1], k.shape[1]
        q = self.fc_q(q).view(bs, nq, self.h, -1).permute(0, 2, 1, 3)
        k = self.fc_k(k).view(bs, nk, self.h, -1).permute(0, 2, 3, 1)
        v = self.fc_v(v).view(bs, nk, self.h, -1).permute(0, 2, 1, 3)
        att = torch.softmax(torch.matmul(q, k) / q.shape[-1] ** 0.5, -1)
        return self.fc_o(torch.matmul(att, v).permute(0, 2, 1, 3).contiguous().view(bs, nq, -1))


class DetrLayer(nn.Module):
    def __init__(self, d: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.self_attn, self.cross_attn = Attention(d, heads), Attention(d, heads) if cross else None
        self.linear1, self.linear2 = nn.Linear(d, 72), nn.Linear(72, d)
        self.norms = nn.ModuleList([nn.LayerNorm(d) for _ in range(3)])

    def forward(self, x: Tensor, pos: Tensor, memory: Tensor | None = None, memory_pos: Tensor | None = None) -> Tensor:
        x = self.norms[0](x + self.self_attn(x + pos, x + pos, x))
        if self.cross_attn is not None and memory is not None and memory_pos is not None:
            x = self.norms[1](x + self.cross_attn(x + pos, memory + memory_pos, memory))
        return self.norms[2](x + self.linear2(F.relu(self.linear1(x))))


class DETR(nn.Module):
    def __init__(self, d: int = 32, heads: int = 4, classes: int = 7, queries: int = 5) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv_bn(3, 16, 3, 2), conv_bn(16, 24, 3, 2))
        self.input_proj = nn.Conv2d(24, d, 1)
        self.row_embed, self.col_embed = nn.Parameter(torch.rand(10, d // 2)), nn.Parameter(torch.rand(10, d // 2))
        self.query_embed = nn.Embedding(queries, d)
        self.encoder = nn.ModuleList([DetrLayer(d, heads, cross=False) for _ in range(2)])
        self.decoder = nn.ModuleList([DetrLayer(d, heads, cross=True) for _ in range(2)])
        self.class_embed = nn.Linear(d, classes + 1)
        self.bbox_embed = nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, 4))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.input_proj(self.backbone(image))
        h, w = x.shape[-2:]
        pos = torch.cat((self.col_embed[:w][None].expand(h, w, -1), self.row_embed[:h, None].expand(h, w, -1)), -1).flatten(0, 1)
        memory, queries = x.flatten(2).mT, self.query_embed.weight
        for layer in self.encoder:
            memory = layer(memory, pos)
        y = torch.zeros_like(queries).expand(len(image), -1, -1)
        for layer in self.decoder:
            y = layer(y, queries, memory, pos)
        return self.class_embed(y), self.bbox_embed(y).sigmoid()


# V-Net: volumes, features of the way down joined on the way up, no time.
class VNet(nn.Module):
    def __init__(self, c: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([self._double(1, c), self._double(c, 2 * c), self._double(2 * c, 4 * c)])
        self.upconvs = nn.ModuleList([nn.ConvTranspose3d(4 * c, 2 * c, 2, 2), nn.ConvTranspose3d(2 * c, c, 2, 2)])
        self.decoders = nn.ModuleList([self._double(4 * c, 2 * c), self._double(2 * c, c)])
        self.conv_out = nn.Conv3d(c, classes, 1)

    @staticmethod
    def _double(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv3d(a, b, 3, padding=1), nn.InstanceNorm3d(b), nn.PReLU(), nn.Conv3d(b, b, 3, padding=1), nn.PReLU())

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for i, encoder in enumerate(self.encoders):
            x = encoder(F.max_pool3d(x, 2) if i else x)
            skips.append(x)
        skips.pop()
        for up, decoder in zip(self.upconvs, self.decoders, strict=True):
            x = decoder(torch.cat((skips.pop(), up(x)), 1))
        return self.conv_out(x)


# Capsules: a weight for each pair of capsules, and routing by agreement, which is a softmax but no attention.
class CapsNet(nn.Module):
    def __init__(self, classes: int = 5, capsules: int = 36, d_in: int = 4, d_out: int = 6) -> None:
        super().__init__()
        self.conv1, self.primary_capsules = nn.Conv2d(1, 12, 5), nn.Conv2d(12, 4 * d_in, 5, stride=2)
        self.W = nn.Parameter(0.1 * torch.randn(1, capsules, classes, d_out, d_in))
        self.d_in = d_in
        self.decoder = nn.Sequential(nn.Linear(classes * d_out, 40), nn.ReLU(), nn.Linear(40, 196), nn.Sigmoid())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        u = self.primary_capsules(F.relu(self.conv1(x))).view(len(x), self.d_in, -1).mT
        u_hat = (self.W @ u[:, :, None, :, None]).squeeze(-1)
        b = u_hat.new_zeros(u_hat.shape[:3])
        v = u_hat.sum(1)
        for _ in range(3):
            s = (F.softmax(b, dim=2)[..., None] * u_hat).sum(1)
            norm = s.norm(dim=-1, keepdim=True)
            v = norm / (1 + norm**2) * s
            b = b + (u_hat * v[:, None]).sum(-1)
        return v.norm(dim=-1), self.decoder(v.flatten(1))


_CONV = {"conv"}
_POINT = {"conv", "linear", "mlp_up", "mlp_down"}
_FIRST = {"conv", "first_conv"}
_LINEAR = {"linear", "mlp_up", "mlp_down"}
_OUT = {"classifier", "lm_head"}

STYLES: list[Style] = [
    Style(
        "deeplab",
        DeepLab,
        lambda: ((torch.randn(2, 3, 16, 16),), {}),
        {"cnn"},
        {
            "stem.0.weight": _FIRST,
            "layer?.0.weight": _CONV,
            "aspp.*.[01].weight": _POINT | {"norm"},
            "classifier.0.0.weight": _CONV,
            "classifier.1.weight": _OUT | {"conv"},
        },
    ),
    Style(
        "mask r-cnn's heads",
        PyramidDetector,
        lambda: ((torch.randn(2, 3, 32, 32),), {}),
        {"cnn"},
        {
            "body.0.0.weight": _FIRST,
            "inner_blocks.*.weight": _POINT,
            "layer_blocks.*.weight": _CONV,
            "rpn_conv.weight": _CONV,
            "fc[67].weight": _LINEAR,
            "cls_logits.weight": _OUT | {"conv"},
            "bbox_pred.weight": _OUT | {"conv"},
            "cls_score.weight": _OUT,
            "box_delta.weight": _OUT,
            "mask_fcn.*.weight": _CONV,
            "mask_logits.weight": _OUT | {"conv"},
        },
    ),
    Style(
        "detr by hand",
        DETR,
        lambda: ((torch.randn(1, 3, 16, 16),), {}),
        {"transformer", "hybrid"},
        {
            "backbone.0.0.weight": _FIRST,
            "input_proj.weight": _POINT | {"patch_embedding"},
            "???_embed": {"position_embedding"},
            "query_embed.weight": {"position_embedding", "special_token", "token_embedding", "type_embedding"},
            "*.fc_q.weight": {"query"},
            "*.fc_k.weight": {"key"},
            "*.fc_v.weight": {"value"},
            "*.fc_o.weight": {"attn_out"},
            "*.linear1.weight": {"mlp_up"},
            "*.linear2.weight": {"mlp_down"},
            "class_embed.weight": _OUT,
            "bbox_embed.0.weight": _LINEAR,
            "bbox_embed.2.weight": _OUT | {"mlp_down"},
        },
        {"*.fc_q.weight": "q:4x8", "*.fc_k.weight": "k:4x8"},
    ),
    Style(
        "v-net",
        VNet,
        lambda: ((torch.randn(1, 1, 8, 8, 8),), {}),
        {"cnn"},
        {
            "encoders.0.0.weight": _FIRST,
            "encoders.[12].[03].weight": _CONV,
            "upconvs.*.weight": _CONV,
            "decoders.*.[03].weight": _CONV,
            "conv_out.weight": _OUT | {"conv"},
        },
    ),
    Style(
        "capsules",
        CapsNet,
        lambda: ((torch.randn(2, 1, 14, 14),), {}),
        {"cnn", "hybrid"},
        {
            "conv1.weight": _FIRST,
            "primary_capsules.weight": _CONV,
            "W": {"linear", "other"},
            "decoder.0.weight": _LINEAR,
            "decoder.2.weight": _OUT | {"mlp_down"},
        },
    ),
]
