"""Networks that go step by step: LSTM language model, additive attention, Tacotron, Mamba, RWKV."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


# A tied LSTM language model, as in the oldest of PyTorch's examples.
class RNNModel(nn.Module):
    def __init__(self, ntoken: int = 63, ninp: int = 24, nlayers: int = 2) -> None:
        super().__init__()
        self.ntoken = ntoken
        self.drop = nn.Dropout(0.0)
        self.encoder = nn.Embedding(ntoken, ninp)
        self.rnn = nn.LSTM(ninp, ninp, nlayers)
        self.decoder = nn.Linear(ninp, ntoken)
        self.decoder.weight = self.encoder.weight

    def forward(self, input: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        output, hidden = self.rnn(self.drop(self.encoder(input)), hidden)
        return F.log_softmax(self.decoder(output).view(-1, self.ntoken), dim=1), hidden


# Translation with additive attention: one score from a tanh, no heads.
class BahdanauAttention(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.Wa, self.Ua = nn.Linear(hidden_size, hidden_size), nn.Linear(hidden_size, hidden_size)
        self.Va = nn.Linear(hidden_size, 1)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        scores = self.Va(torch.tanh(self.Wa(query) + self.Ua(keys))).squeeze(2).unsqueeze(1)
        return torch.bmm(F.softmax(scores, dim=-1), keys)


class EncoderRNN(nn.Module):
    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(input_size, hidden_size)
        self.gru = nn.GRU(hidden_size, hidden_size, batch_first=True)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        return self.gru(self.embedding(input))


class AttnDecoderRNN(nn.Module):
    def __init__(self, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(output_size, hidden_size)
        self.attention = BahdanauAttention(hidden_size)
        self.gru = nn.GRU(2 * hidden_size, hidden_size, batch_first=True)
        self.out = nn.Linear(hidden_size, output_size)

    def forward(self, encoder_outputs: Tensor, hidden: Tensor, target: Tensor) -> Tensor:
        outputs = []
        for i in range(target.shape[1]):
            context = self.attention(hidden.permute(1, 0, 2), encoder_outputs)
            output, hidden = self.gru(torch.cat((self.embedding(target[:, i : i + 1]), context), dim=2), hidden)
            outputs.append(self.out(output))
        return F.log_softmax(torch.cat(outputs, dim=1), dim=-1)


class Seq2Seq(nn.Module):
    def __init__(self, src_words: int = 47, tgt_words: int = 53, hidden_size: int = 24) -> None:
        super().__init__()
        self.encoder, self.decoder = EncoderRNN(src_words, hidden_size), AttnDecoderRNN(hidden_size, tgt_words)

    def forward(self, src: Tensor, trg: Tensor) -> Tensor:
        outputs, hidden = self.encoder(src)
        return self.decoder(outputs, hidden, trg)


# Tacotron 2: linears wrapped in a class of their own, attention that knows where it has been.
class LinearNorm(nn.Module):
    def __init__(self, in_dim: int, out_dim: int, bias: bool = True) -> None:
        super().__init__()
        self.linear_layer = nn.Linear(in_dim, out_dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_layer(x)


class ConvNorm(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, signal: Tensor) -> Tensor:
        return self.conv(signal)


class LocationAttention(nn.Module):
    def __init__(self, rnn_dim: int, embedding_dim: int, attention_dim: int) -> None:
        super().__init__()
        self.query_layer = LinearNorm(rnn_dim, attention_dim, bias=False)
        self.memory_layer = LinearNorm(embedding_dim, attention_dim, bias=False)
        self.v = LinearNorm(attention_dim, 1, bias=False)
        self.location_conv = ConvNorm(2, 6, 5)
        self.location_dense = LinearNorm(6, attention_dim, bias=False)

    def forward(self, hidden: Tensor, memory: Tensor, weights_cat: Tensor) -> tuple[Tensor, Tensor]:
        where = self.location_dense(self.location_conv(weights_cat).transpose(1, 2))
        energies = self.v(torch.tanh(self.query_layer(hidden.unsqueeze(1)) + where + self.memory_layer(memory))).squeeze(-1)
        weights = F.softmax(energies, dim=1)
        return torch.bmm(weights.unsqueeze(1), memory).squeeze(1), weights


class Prenet(nn.Module):
    def __init__(self, in_dim: int, sizes: list[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([LinearNorm(i, o, bias=False) for i, o in zip([in_dim, *sizes], sizes, strict=False)])

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.layers:
            x = F.dropout(F.relu(linear(x)), p=0.5, training=True)
        return x


class Tacotron(nn.Module):
    def __init__(self, n_symbols: int = 41, dim: int = 32, n_mel: int = 20) -> None:
        super().__init__()
        self.n_mel, self.dim = n_mel, dim
        self.embedding = nn.Embedding(n_symbols, dim)
        self.convolutions = nn.ModuleList([nn.Sequential(ConvNorm(dim, dim, 5), nn.BatchNorm1d(dim)) for _ in range(3)])
        self.lstm = nn.LSTM(dim, dim // 2, batch_first=True, bidirectional=True)
        self.prenet = Prenet(n_mel, [16, 16])
        self.attention_rnn = nn.LSTMCell(16 + dim, dim)
        self.attention_layer = LocationAttention(dim, dim, 12)
        self.decoder_rnn = nn.LSTMCell(2 * dim, dim)
        self.linear_projection = LinearNorm(2 * dim, n_mel)
        self.gate_layer = LinearNorm(2 * dim, 1)

    def forward(self, text: Tensor, mels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(text).transpose(1, 2)
        for conv in self.convolutions:
            x = F.relu(conv(x))
        memory, _ = self.lstm(x.transpose(1, 2))
        a = d = ca = cd = context = memory.new_zeros(len(text), self.dim)
        weights = total = memory.new_zeros(memory.shape[:2])
        frames, gates = [], []
        for mel in self.prenet(mels).unbind(1):
            a, ca = self.attention_rnn(torch.cat((mel, context), -1), (a, ca))
            context, weights = self.attention_layer(a, memory, torch.stack((weights, total), 1))
            total = total + weights
            d, cd = self.decoder_rnn(torch.cat((a, context), -1), (d, cd))
            both = torch.cat((d, context), -1)
            frames.append(self.linear_projection(both))
            gates.append(self.gate_layer(both))
        return torch.stack(frames, 1), torch.cat(gates, 1)


# Mamba with a loop for the scan.
class MambaBlock(nn.Module):
    def __init__(self, d_model: int, d_state: int = 4, expand: int = 2, dt_rank: int = 3) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.dt_rank = expand * d_model, d_state, dt_rank
        self.in_proj = nn.Linear(d_model, self.d_inner * 2, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, 4, groups=self.d_inner, padding=3)
        self.x_proj = nn.Linear(self.d_inner, dt_rank + d_state * 2, bias=False)
        self.dt_proj = nn.Linear(dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1, d_state + 1).repeat(self.d_inner, 1).float()))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x, res = self.in_proj(x).split([self.d_inner, self.d_inner], dim=-1)
        x = F.silu(self.conv1d(x.mT)[..., : x.shape[1]].mT)
        delta, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta, A = F.softplus(self.dt_proj(delta)), -torch.exp(self.A_log)
        state, ys = x.new_zeros(len(x), self.d_inner, self.d_state), []
        for i in range(x.shape[1]):
            state = torch.exp(delta[:, i, :, None] * A) * state + (delta[:, i] * x[:, i]).unsqueeze(-1) * B[:, i, None]
            ys.append((state * C[:, i, None]).sum(-1))
        return self.out_proj((torch.stack(ys, 1) + x * self.D) * F.silu(res))


# RWKV: a mix over time with names that attention has, a mix over channels with the same names.
class TimeMix(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.time_decay, self.time_first = nn.Parameter(torch.rand(n_embd)), nn.Parameter(torch.rand(n_embd))
        self.time_mix_k, self.time_mix_v, self.time_mix_r = (nn.Parameter(torch.rand(1, 1, n_embd)) for _ in range(3))
        self.key, self.value, self.receptance, self.output = (nn.Linear(n_embd, n_embd, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        xx = F.pad(x, (0, 0, 1, -1))
        k, v, r = (
            f(x * m + xx * (1 - m))
            for f, m in ((self.key, self.time_mix_k), (self.value, self.time_mix_v), (self.receptance, self.time_mix_r))
        )
        num, den, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for kt, vt in zip(k.unbind(1), v.unbind(1), strict=True):
            now = torch.exp(self.time_first + kt)
            ys.append((num + now * vt) / (den + now))
            num, den = (torch.exp(-torch.exp(self.time_decay)) * a + torch.exp(kt) * b for a, b in ((num, vt), (den, 1)))
        return self.output(torch.sigmoid(r) * torch.stack(ys, 1))


class ChannelMix(nn.Module):
    def __init__(self, n_embd: int) -> None:
        super().__init__()
        self.time_mix_k, self.time_mix_r = (nn.Parameter(torch.rand(1, 1, n_embd)) for _ in range(2))
        self.key = nn.Linear(n_embd, 4 * n_embd, bias=False)
        self.receptance = nn.Linear(n_embd, n_embd, bias=False)
        self.value = nn.Linear(4 * n_embd, n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        xx = F.pad(x, (0, 0, 1, -1))
        k = torch.square(torch.relu(self.key(x * self.time_mix_k + xx * (1 - self.time_mix_k))))
        return torch.sigmoid(self.receptance(x * self.time_mix_r + xx * (1 - self.time_mix_r))) * self.value(k)


class ResidualLM(nn.Module):
    def __init__(self, *parts: type[nn.Module], d_model: int = 24, vocab_size: int = 61) -> None:
        super().__init__()
        self.emb = nn.Embedding(vocab_size, d_model)
        self.blocks = nn.ModuleList([part(d_model) for _ in range(2) for part in parts])
        self.norms = nn.ModuleList([nn.LayerNorm(d_model) for _ in self.blocks])
        self.ln_out = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, vocab_size, bias=False)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.emb(idx)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(self.ln_out(x))


_RNN = {"*weight_ih*": {"rnn_ih"}, "*weight_hh*": {"rnn_hh"}}
_ENDS = {"emb.weight": {"token_embedding"}, "head.weight": {"lm_head"}}
_ANY = {"linear", "attn_other"}
STYLES: list[Style] = [
    Style(
        "tied lstm language model",
        RNNModel,
        lambda: ((torch.randint(63, (5, 2)), (torch.zeros(2, 2, 24), torch.zeros(2, 2, 24))), {}),
        {"rnn"},
        {"encoder.weight": {"token_embedding", "lm_head"}, **_RNN},
    ),
    Style(
        "translation with additive attention",
        Seq2Seq,
        lambda: ((torch.randint(47, (1, 5)), torch.randint(53, (1, 4))), {}),
        {"rnn", "hybrid"},
        {
            "*.embedding.weight": {"token_embedding"},
            "*.Wa.weight": {"query", *_ANY},
            "*.Ua.weight": {"key", *_ANY},
            "decoder.out.weight": {"lm_head"},
            **_RNN,
        },
    ),
    Style(
        "tacotron 2",
        Tacotron,
        lambda: ((torch.randint(41, (2, 6)), torch.randn(2, 3, 20)), {}),
        {"rnn", "hybrid"},
        {
            "embedding.weight": {"token_embedding"},
            "convolutions.*.conv.weight": {"conv", "first_conv"},
            "*.query_layer.linear_layer.weight": {"query", *_ANY},
            "*.memory_layer.linear_layer.weight": {"key", *_ANY},
            "prenet.*.weight": {"linear", "mlp_up"},
            "linear_projection.linear_layer.weight": {"lm_head", "classifier", "linear"},
            **_RNN,
        },
    ),
    Style(
        "mamba",
        lambda: ResidualLM(MambaBlock),
        lambda: ((torch.randint(61, (1, 5)),), {}),
        {"rnn", "hybrid", "unknown"},
        {
            **_ENDS,
            "*.in_proj.weight": {"linear", "mlp_gate_up", "mlp_up"},
            "*.conv1d.weight": {"conv_dw"},
            "*.x_proj.weight": {"linear"},
            "*.dt_proj.weight": {"linear", "time_embedding"},
            "*.out_proj.weight": {"linear", "mlp_down"},
        },
    ),
    Style(
        "rwkv",
        lambda: ResidualLM(TimeMix, ChannelMix),
        lambda: ((torch.randint(61, (1, 5)),), {}),
        {"rnn", "hybrid", "unknown", "transformer"},
        {
            **_ENDS,
            "blocks.[02].key.weight": {"key", *_ANY},
            "blocks.[02].value.weight": {"value", *_ANY},
            "blocks.?.receptance.weight": {"query", "mlp_gate", *_ANY},
            "blocks.[02].output.weight": {"attn_out", *_ANY},
            "blocks.[13].key.weight": {"mlp_up"},
            "blocks.[13].value.weight": {"mlp_down"},
        },
    ),
]
