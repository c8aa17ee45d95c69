"""Audio: Conformer, Whisper, Emformer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# Conformer: attention with relative places as Transformer-XL has it, between two halves of a feed-forward.
class RelativeMultiHeadAttention(nn.Module):
    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.d_model, self.num_heads, self.d_head = d_model, num_heads, d_model // num_heads
        self.query_proj, self.key_proj, self.value_proj = (nn.Linear(d_model, d_model) for _ in range(3))
        self.pos_proj = nn.Linear(d_model, d_model, bias=False)
        self.u_bias = nn.Parameter(torch.randn(num_heads, self.d_head) * 0.1)
        self.v_bias = nn.Parameter(torch.randn(num_heads, self.d_head) * 0.1)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, pos_embedding: Tensor) -> Tensor:
        b = value.size(0)
        query = self.query_proj(query).view(b, -1, self.num_heads, self.d_head)
        key = self.key_proj(key).view(b, -1, self.num_heads, self.d_head).permute(0, 2, 1, 3)
        value = self.value_proj(value).view(b, -1, self.num_heads, self.d_head).permute(0, 2, 1, 3)
        pos = self.pos_proj(pos_embedding).view(b, -1, self.num_heads, self.d_head)
        content_score = torch.matmul((query + self.u_bias).transpose(1, 2), key.transpose(2, 3))
        pos_score = torch.matmul((query + self.v_bias).transpose(1, 2), pos.permute(0, 2, 3, 1))
        attn = F.softmax((content_score + self._relative_shift(pos_score)) / math.sqrt(self.d_model), -1)
        return self.out_proj(torch.matmul(attn, value).transpose(1, 2).contiguous().view(b, -1, self.d_model))

    def _relative_shift(self, pos_score: Tensor) -> Tensor:
        b, h, t1, t2 = pos_score.size()
        padded = F.pad(pos_score, (1, 0)).view(b, h, t2 + 1, t1)
        return padded[:, :, 1:].reshape(b, h, t1, t2)


class FeedForwardModule(nn.Module):
    def __init__(self, encoder_dim: int, expansion_factor: int = 4) -> None:
        super().__init__()
        inner = encoder_dim * expansion_factor
        self.sequential = nn.Sequential(
            nn.LayerNorm(encoder_dim), nn.Linear(encoder_dim, inner), nn.SiLU(), nn.Dropout(0.0), nn.Linear(inner, encoder_dim)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return self.sequential(inputs)


class ConformerConvModule(nn.Module):
    def __init__(self, in_channels: int, kernel_size: int = 7) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(in_channels)
        self.pointwise_conv1 = nn.Conv1d(in_channels, in_channels * 2, 1)
        self.depthwise_conv = nn.Conv1d(in_channels, in_channels, kernel_size, padding=kernel_size // 2, groups=in_channels, bias=False)
        self.batch_norm = nn.BatchNorm1d(in_channels)
        self.pointwise_conv2 = nn.Conv1d(in_channels, in_channels, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.glu(self.pointwise_conv1(self.norm(inputs).transpose(1, 2)), dim=1)
        return self.pointwise_conv2(F.silu(self.batch_norm(self.depthwise_conv(x)))).transpose(1, 2)


class ConformerBlock(nn.Module):
    def __init__(self, encoder_dim: int, num_attention_heads: int) -> None:
        super().__init__()
        self.ff1, self.ff2 = FeedForwardModule(encoder_dim), FeedForwardModule(encoder_dim)
        self.layer_norm = nn.LayerNorm(encoder_dim)
        self.mhsa = RelativeMultiHeadAttention(encoder_dim, num_attention_heads)
        self.conv = ConformerConvModule(encoder_dim)
        self.final_norm = nn.LayerNorm(encoder_dim)

    def forward(self, x: Tensor, pos: Tensor) -> Tensor:
        x = x + 0.5 * self.ff1(x)
        y = self.layer_norm(x)
        x = x + self.mhsa(y, y, y, pos)
        x = x + self.conv(x)
        return self.final_norm(x + 0.5 * self.ff2(x))


class Conformer(nn.Module):
    def __init__(self, num_classes: int = 29, input_dim: int = 40, encoder_dim: int = 32, num_layers: int = 2) -> None:
        super().__init__()
        self.subsample = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU())
        self.input_projection = nn.Linear(8 * (((input_dim - 1) // 2 - 1) // 2), encoder_dim)
        self.layers = nn.ModuleList([ConformerBlock(encoder_dim, 4) for _ in range(num_layers)])
        self.fc = nn.Linear(encoder_dim, num_classes, bias=False)

    def forward(self, inputs: Tensor, input_lengths: Tensor) -> tuple[Tensor, Tensor]:
        x = self.subsample(inputs.unsqueeze(1))
        x = self.input_projection(x.transpose(1, 2).flatten(2))
        angle = torch.outer(torch.arange(x.shape[1]).float(), torch.exp(torch.arange(0, x.shape[2], 2) * (-4.0 / x.shape[2])))
        pos = torch.cat([angle.sin(), angle.cos()], -1).expand(x.shape[0], -1, -1)
        for layer in self.layers:
            x = layer(x, pos)
        return F.log_softmax(self.fc(x), dim=-1), input_lengths // 4


# Whisper: query, key, value, out; a key without bias; text tokens multiplied with their own embedding at the end.
class WhisperAttention(nn.Module):
    def __init__(self, n_state: int, n_head: int) -> None:
        super().__init__()
        self.n_head = n_head
        self.query = nn.Linear(n_state, n_state)
        self.key = nn.Linear(n_state, n_state, bias=False)
        self.value = nn.Linear(n_state, n_state)
        self.out = nn.Linear(n_state, n_state)

    def forward(self, x: Tensor, xa: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.query(x), self.key(x if xa is None else xa), self.value(x if xa is None else xa)
        scale = (q.shape[-1] // self.n_head) ** -0.25
        q = q.view(*q.shape[:2], self.n_head, -1).permute(0, 2, 1, 3) * scale
        k = k.view(*k.shape[:2], self.n_head, -1).permute(0, 2, 3, 1) * scale
        v = v.view(*v.shape[:2], self.n_head, -1).permute(0, 2, 1, 3)
        qk = q @ k
        if mask is not None:
            qk = qk + mask[: x.shape[1], : x.shape[1]]
        return self.out((F.softmax(qk.float(), dim=-1).to(q.dtype) @ v).permute(0, 2, 1, 3).flatten(start_dim=2))


class ResidualAttentionBlock(nn.Module):
    def __init__(self, n_state: int, n_head: int, cross_attention: bool = False) -> None:
        super().__init__()
        self.attn, self.attn_ln = WhisperAttention(n_state, n_head), nn.LayerNorm(n_state)
        self.cross_attn = WhisperAttention(n_state, n_head) if cross_attention else None
        self.cross_attn_ln = nn.LayerNorm(n_state) if cross_attention else None
        self.mlp = nn.Sequential(nn.Linear(n_state, n_state * 4), nn.GELU(), nn.Linear(n_state * 4, n_state))
        self.mlp_ln = nn.LayerNorm(n_state)

    def forward(self, x: Tensor, xa: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.attn_ln(x), mask=mask)
        if self.cross_attn is not None and self.cross_attn_ln is not None:
            x = x + self.cross_attn(self.cross_attn_ln(x), xa)
        return x + self.mlp(self.mlp_ln(x))


class AudioEncoder(nn.Module):
    positional_embedding: Tensor

    def __init__(self, n_mels: int, n_state: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, n_state, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(n_state, n_state, kernel_size=3, stride=2, padding=1)
        self.register_buffer("positional_embedding", torch.randn(6, n_state))
        self.blocks = nn.ModuleList([ResidualAttentionBlock(n_state, 4)])
        self.ln_post = nn.LayerNorm(n_state)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(x)))).permute(0, 2, 1) + self.positional_embedding
        for block in self.blocks:
            x = block(x)
        return self.ln_post(x)


class TextDecoder(nn.Module):
    mask: Tensor

    def __init__(self, n_vocab: int, n_ctx: int, n_state: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(n_vocab, n_state)
        self.positional_embedding = nn.Parameter(torch.randn(n_ctx, n_state) * 0.02)
        self.blocks = nn.ModuleList([ResidualAttentionBlock(n_state, 4, cross_attention=True)])
        self.ln = nn.LayerNorm(n_state)
        self.register_buffer("mask", torch.full((n_ctx, n_ctx), -torch.inf).triu_(1), persistent=False)

    def forward(self, x: Tensor, xa: Tensor) -> Tensor:
        x = self.token_embedding(x) + self.positional_embedding[: x.shape[-1]]
        for block in self.blocks:
            x = block(x, xa, mask=self.mask)
        return (self.ln(x) @ torch.transpose(self.token_embedding.weight, 0, 1)).float()


class Whisper(nn.Module):
    def __init__(self, n_mels: int = 20, n_vocab: int = 83, n_state: int = 32) -> None:
        super().__init__()
        self.encoder, self.decoder = AudioEncoder(n_mels, n_state), TextDecoder(n_vocab, 8, n_state)

    def forward(self, mel: Tensor, tokens: Tensor) -> Tensor:
        return self.decoder(tokens, self.encoder(mel))


# Emformer: key and value from one matrix, time first, batch and heads in one axis.
class EmformerAttention(nn.Module):
    def __init__(self, input_dim: int, num_heads: int) -> None:
        super().__init__()
        self.input_dim, self.num_heads = input_dim, num_heads
        self.scaling = (input_dim // num_heads) ** -0.5
        self.emb_to_key_value = nn.Linear(input_dim, 2 * input_dim)
        self.emb_to_query = nn.Linear(input_dim, input_dim)
        self.out_proj = nn.Linear(input_dim, input_dim)

    def forward(self, utterance: Tensor, right_context: Tensor, mems: Tensor) -> Tensor:
        B = utterance.shape[1]
        query = self.emb_to_query(torch.cat([right_context, utterance]))
        key, value = self.emb_to_key_value(torch.cat([mems, right_context, utterance])).chunk(chunks=2, dim=2)
        q, k, v = (
            t.contiguous().view(-1, B * self.num_heads, self.input_dim // self.num_heads).transpose(0, 1) for t in (query, key, value)
        )
        weights = torch.bmm(q * self.scaling, k.transpose(1, 2)).softmax(dim=-1)
        attention = torch.bmm(weights, v).transpose(0, 1).contiguous().view(-1, B, self.input_dim)
        return self.out_proj(attention)


class EmformerLayer(nn.Module):
    def __init__(self, input_dim: int, num_heads: int, ffn_dim: int) -> None:
        super().__init__()
        self.attention = EmformerAttention(input_dim, num_heads)
        self.pos_ff = nn.Sequential(nn.LayerNorm(input_dim), nn.Linear(input_dim, ffn_dim), nn.ReLU(), nn.Linear(ffn_dim, input_dim))
        self.layer_norm_input = nn.LayerNorm(input_dim)

    def forward(self, utterance: Tensor, right_context: Tensor, mems: Tensor) -> tuple[Tensor, Tensor]:
        n = right_context.size(0)
        y = self.layer_norm_input(torch.cat([right_context, utterance]))
        x = torch.cat([right_context, utterance]) + self.attention(y[n:], y[:n], mems)
        x = x + self.pos_ff(x)
        return x[n:], x[:n]


class Emformer(nn.Module):
    def __init__(self, input_dim: int = 40, num_heads: int = 5, symbols: int = 31) -> None:
        super().__init__()
        self.emformer_layers = nn.ModuleList([EmformerLayer(input_dim, num_heads, 96) for _ in range(2)])
        self.output_linear = nn.Linear(input_dim, symbols)

    def forward(self, input: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        input = input.permute(1, 0, 2)
        utterance, right = input[:-2], input[-2:]
        for layer in self.emformer_layers:
            utterance, right = layer(utterance, right, utterance.mean(0, keepdim=True))
        return self.output_linear(utterance).permute(1, 0, 2), lengths


def _qkv(glob: str) -> dict[str, set[str]]:
    return {glob.format(role): {role} for role in ("query", "key", "value")}


STYLES: list[Style] = [
    Style(
        "conformer",
        Conformer,
        lambda: ((torch.randn(2, 35, 40), torch.tensor([35, 30])), {}),
        {"transformer", "hybrid"},
        {
            **_qkv("*.{}_proj.weight"),
            "*.mhsa.pos_proj.weight": {"key", "attn_other", "linear"},
            "*.mhsa.out_proj.weight": {"attn_out"},
            "*.ff?.sequential.1.weight": {"mlp_up"},
            "*.ff?.sequential.4.weight": {"mlp_down"},
            "*.depthwise_conv.weight": {"conv_dw"},
            "fc.weight": {"lm_head", "classifier"},
        },
        {"*.query_proj.weight": "q:4x8", "*.key_proj.weight": "k:4x8"},
    ),
    Style(
        "whisper",
        Whisper,
        lambda: ((torch.randn(1, 20, 12), torch.randint(83, (1, 5))), {}),
        {"transformer"},
        {
            **_qkv("*attn.{}.weight"),
            "*attn.out.weight": {"attn_out"},
            "*.mlp.0.weight": {"mlp_up"},
            "*.mlp.2.weight": {"mlp_down"},
            "decoder.token_embedding.weight": {"token_embedding", "lm_head"},
            "decoder.positional_embedding": {"position_embedding"},
        },
        {"*attn.query.weight": "q:4x8", "*attn.key.weight": "k:4x8"},
    ),
    Style(
        "emformer",
        Emformer,
        lambda: ((torch.randn(1, 8, 40), torch.tensor([8])), {}),
        {"transformer"},
        {
            "*.emb_to_query.weight": {"query"},
            "*.emb_to_key_value.weight": {"qkv"},
            "*.out_proj.weight": {"attn_out"},
            "*.pos_ff.1.weight": {"mlp_up"},
            "*.pos_ff.3.weight": {"mlp_down"},
            "output_linear.weight": {"lm_head", "classifier"},
        },
        {"*.emb_to_query.weight": "q:5x8", "*.emb_to_key_value.weight": "k:5x8|v:5x8"},
    ),
]
