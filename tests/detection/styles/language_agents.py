"""Agents and physics: PPO, SAC, AlphaZero, Dreamer; neural ODE, DeepONet, Fourier operators, hypernetworks, KAN, SIREN."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.detection.styles.style import Style


def layer_init(layer: nn.Linear, std: float = 2**0.5) -> nn.Linear:
    nn.init.orthogonal_(layer.weight, std)
    nn.init.constant_(layer.bias, 0.0)
    return layer


# PPO in one file: two networks side by side, each with an output.
class PPOAgent(nn.Module):
    def __init__(self, obs: int = 11, actions: int = 3) -> None:
        super().__init__()
        self.critic = nn.Sequential(
            layer_init(nn.Linear(obs, 64)), nn.Tanh(), layer_init(nn.Linear(64, 64)), nn.Tanh(), layer_init(nn.Linear(64, 1), 1.0)
        )
        self.actor_mean = nn.Sequential(
            layer_init(nn.Linear(obs, 64)), nn.Tanh(), layer_init(nn.Linear(64, 64)), nn.Tanh(), layer_init(nn.Linear(64, actions), 0.01)
        )
        self.actor_logstd = nn.Parameter(torch.zeros(1, actions))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.actor_mean(x), self.actor_logstd.exp(), self.critic(x)


# SAC: an actor with two outputs over one trunk, two critics, and their slow copies.
class Actor(nn.Module):
    def __init__(self, obs: int, actions: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(obs, 48), nn.Linear(48, 48)
        self.fc_mean, self.fc_logstd = nn.Linear(48, actions), nn.Linear(48, actions)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.fc2(F.relu(self.fc1(x))))
        return self.fc_mean(x), torch.tanh(self.fc_logstd(x))


class SoftQNetwork(nn.Module):
    def __init__(self, obs: int, actions: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(obs + actions, 40), nn.Linear(40, 40), nn.Linear(40, 1)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(torch.cat((x, a), 1))))))


class SAC(nn.Module):
    def __init__(self, obs: int = 9, actions: int = 4) -> None:
        super().__init__()
        self.actor, self.qf1, self.qf2 = Actor(obs, actions), SoftQNetwork(obs, actions), SoftQNetwork(obs, actions)
        self.qf1_target, self.qf2_target = (
            SoftQNetwork(obs, actions).requires_grad_(False),
            SoftQNetwork(obs, actions).requires_grad_(False),
        )
        self.log_alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        mean, logstd = self.actor(x)
        action = torch.tanh(mean + logstd.exp() * torch.randn_like(mean))
        return self.log_alpha.exp() * logstd.sum(1) - torch.min(self.qf1(x, action), self.qf2(x, action))[:, 0]


# AlphaZero: residual blocks of convolutions, a policy and a value.
class Residual(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.conv2, self.bn2 = (
            nn.Conv2d(c, c, 3, 1, 1),
            nn.BatchNorm2d(c),
            nn.Conv2d(c, c, 3, 1, 1),
            nn.BatchNorm2d(c),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class AlphaZero(nn.Module):
    def __init__(self, c: int = 20, board: int = 5) -> None:
        super().__init__()
        self.start_block = nn.Sequential(nn.Conv2d(3, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU())
        self.back_bone = nn.ModuleList([Residual(c) for _ in range(3)])
        self.policy_head = nn.Sequential(
            nn.Conv2d(c, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * board**2, board**2 + 1)
        )
        self.value_head = nn.Sequential(nn.Conv2d(c, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * board**2, 1), nn.Tanh())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.start_block(x)
        for block in self.back_bone:
            x = block(x)
        return self.policy_head(x), self.value_head(x)


# Dreamer: pictures to features, a recurrent state with samples in it, pictures and rewards back from it.
class Dreamer(nn.Module):
    def __init__(self, actions: int = 3, deter: int = 32, stoch: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 12, 4, 2), nn.ELU(), nn.Conv2d(12, 20, 4, 2), nn.ELU(), nn.Flatten())
        self.fc_embed_state_action = nn.Linear(stoch + actions, deter)
        self.rnn = nn.GRUCell(deter, deter)
        self.prior = nn.Sequential(nn.Linear(deter, 28), nn.ELU(), nn.Linear(28, 2 * stoch))
        self.posterior = nn.Sequential(nn.Linear(deter + 20, 28), nn.ELU(), nn.Linear(28, 2 * stoch))
        self.reward = nn.Sequential(nn.Linear(deter + stoch, 36), nn.ELU(), nn.Linear(36, 1))
        self.decoder_fc = nn.Linear(deter + stoch, 24)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(24, 12, 5, 2), nn.ELU(), nn.ConvTranspose2d(12, 3, 4, 2))

    def forward(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n = actions.shape[:2]
        embedded = self.encoder(obs.flatten(0, 1)).unflatten(0, (b, n))
        h, s, features, divergence = obs.new_zeros(b, 32), obs.new_zeros(b, 10), [], obs.new_zeros(())
        for t in range(n):
            h = self.rnn(F.elu(self.fc_embed_state_action(torch.cat((s, actions[:, t]), -1))), h)
            mean, std = self.posterior(torch.cat((h, embedded[:, t]), -1)).chunk(2, -1)
            divergence = divergence + (self.prior(h).chunk(2, -1)[0] - mean).square().mean()
            s = mean + F.softplus(std) * torch.randn_like(std)
            features.append(torch.cat((h, s), -1))
        x = torch.stack(features, 1)
        return self.decoder(self.decoder_fc(x).flatten(0, 1)[..., None, None]), self.reward(x), divergence


# A neural ODE: one small network of the state and the time, stepped by Runge and Kutta's rule.
class ODEFunc(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim + 1, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, dim))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.net(torch.cat((y, t.expand(len(y), 1)), 1))


class LatentODE(nn.Module):
    def __init__(self, obs: int = 3, latent: int = 8) -> None:
        super().__init__()
        self.recognition = nn.GRU(obs, 20, batch_first=True)
        self.to_latent, self.func = nn.Linear(20, latent), ODEFunc(latent, 36)
        self.decoder = nn.Linear(latent, obs)

    def forward(self, x: Tensor) -> Tensor:
        y, out, dt = self.to_latent(self.recognition(x)[1][-1]), [], torch.tensor(0.1)
        for i in range(x.shape[1]):
            half = self.func(i * dt, y)
            y = y + dt * self.func((i + 0.5) * dt, y + 0.5 * dt * half)
            out.append(self.decoder(y))
        return torch.stack(out, 1)


# DeepONet: what the input function gives, times what the place gives.
def _mlp(*widths: int, act: Callable[[], nn.Module] = nn.GELU) -> nn.Sequential:
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), act())]
    return nn.Sequential(*layers[:-1])


class DeepONet(nn.Module):
    def __init__(self, sensors: int = 21, dims: int = 2, p: int = 18) -> None:
        super().__init__()
        self.branch, self.trunk = _mlp(sensors, 40, 40, p), _mlp(dims, 40, 40, p, act=nn.Tanh)
        self.b = nn.Parameter(torch.zeros(1))

    def forward(self, u: Tensor, y: Tensor) -> Tensor:
        return torch.einsum("bp,bnp->bn", self.branch(u), self.trunk(y)) + self.b


# Fourier neural operator: complex weights for each mode, beside a 1x1 convolution.
class SpectralConv2d(nn.Module):
    def __init__(self, c: int, modes: int) -> None:
        super().__init__()
        self.modes = modes
        self.weights1 = nn.Parameter(torch.rand(c, c, modes, modes, dtype=torch.cfloat) / c**2)
        self.weights2 = nn.Parameter(torch.rand(c, c, modes, modes, dtype=torch.cfloat) / c**2)

    def forward(self, x: Tensor) -> Tensor:
        m, x_ft = self.modes, torch.fft.rfft2(x)
        out = torch.zeros_like(x_ft)
        out[:, :, :m, :m] = torch.einsum("bixy,ioxy->boxy", x_ft[:, :, :m, :m], self.weights1)
        out[:, :, -m:, :m] = torch.einsum("bixy,ioxy->boxy", x_ft[:, :, -m:, :m], self.weights2)
        return torch.fft.irfft2(out, s=x.shape[-2:])


class FNO2d(nn.Module):
    def __init__(self, modes: int = 3, width: int = 16) -> None:
        super().__init__()
        self.fc0 = nn.Linear(3, width)
        self.convs = nn.ModuleList([SpectralConv2d(width, modes) for _ in range(3)])
        self.ws = nn.ModuleList([nn.Conv2d(width, width, 1) for _ in range(3)])
        self.fc1, self.fc2 = nn.Linear(width, 44), nn.Linear(44, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc0(x).permute(0, 3, 1, 2)
        for conv, w in zip(self.convs, self.ws, strict=True):
            x = F.gelu(conv(x) + w(x))
        return self.fc2(F.gelu(self.fc1(x.permute(0, 2, 3, 1))))


# A network whose weights another network makes, from an embedding of each layer.
class HyperNetwork(nn.Module):
    def __init__(self, z_dim: int = 10, c: int = 12) -> None:
        super().__init__()
        self.c = c
        self.w1, self.b1 = nn.Parameter(torch.randn(z_dim, c * z_dim) * 0.1), nn.Parameter(torch.zeros(c * z_dim))
        self.w2, self.b2 = nn.Parameter(torch.randn(z_dim, c * 9) * 0.1), nn.Parameter(torch.zeros(c * 9))

    def forward(self, z: Tensor) -> Tensor:
        h = (z @ self.w1 + self.b1).view(self.c, -1)
        return (h @ self.w2 + self.b2).view(self.c, self.c, 3, 3)


class PrimaryNetwork(nn.Module):
    def __init__(self, layers: int = 3, z_dim: int = 10, classes: int = 7) -> None:
        super().__init__()
        self.conv1, self.hope = nn.Conv2d(3, 12, 3, padding=1), HyperNetwork(z_dim)
        self.zs = nn.ParameterList([nn.Parameter(torch.randn(z_dim)) for _ in range(layers)])
        self.final = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        for z in self.zs:
            x = x + F.relu(F.conv2d(x, self.hope(z), padding=1))
        return self.final(x.mean((2, 3)))


# KAN: a spline for each pair of an input and an output, beside an ordinary weight.
class KANLinear(nn.Module):
    grid: Tensor

    def __init__(self, n_in: int, n_out: int, places: int = 6) -> None:
        super().__init__()
        self.register_buffer("grid", torch.linspace(-1, 1, places))
        self.base_weight = nn.Parameter(torch.randn(n_out, n_in) * n_in**-0.5)
        self.spline_weight = nn.Parameter(torch.randn(n_out, n_in, places) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        basis = torch.exp(-(((x[..., None] - self.grid) * 2.5) ** 2))
        return F.linear(F.silu(x), self.base_weight) + F.linear(basis.flatten(-2), self.spline_weight.flatten(1))


class KAN(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (7, 24, 20, 5)) -> None:
        super().__init__()
        self.layers = nn.ModuleList([KANLinear(a, b) for a, b in pairwise(widths)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


# SIREN: sines between the layers.
class SineLayer(nn.Module):
    def __init__(self, n_in: int, n_out: int, omega_0: float = 30.0) -> None:
        super().__init__()
        self.omega_0, self.linear = omega_0, nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega_0 * self.linear(x))


def siren() -> nn.Sequential:
    return nn.Sequential(SineLayer(2, 40), SineLayer(40, 40), SineLayer(40, 40), nn.Linear(40, 3))


_LINEAR = {"linear", "mlp_up", "mlp_down"}
_OUT = {"classifier", "lm_head"}
_CONV = {"conv"}
_FIRST = {"conv", "first_conv"}

STYLES: list[Style] = [
    Style(
        "ppo",
        PPOAgent,
        lambda: ((torch.randn(2, 11),), {}),
        {"mlp"},
        {"critic.[02].weight": _LINEAR, "actor_mean.[02].weight": _LINEAR, "critic.4.weight": _OUT, "actor_mean.4.weight": _OUT},
    ),
    Style(
        "sac",
        SAC,
        lambda: ((torch.randn(2, 9),), {}),
        {"mlp"},
        {
            "actor.fc[12].weight": _LINEAR,
            "actor.fc_*.weight": _OUT | {"linear"},  # the critics read the action
            "qf[12].fc[12].weight": _LINEAR,
            "qf[12].fc3.weight": _OUT,
        },
    ),
    Style(
        "alphazero",
        AlphaZero,
        lambda: ((torch.randn(2, 3, 5, 5),), {}),
        {"cnn"},
        {
            "start_block.0.weight": _FIRST,
            "back_bone.*.conv?.weight": _CONV,
            "policy_head.0.weight": _CONV,
            "policy_head.4.weight": _OUT,
            "value_head.0.weight": _CONV,
            "value_head.3.weight": _OUT,
        },
    ),
    Style(
        "dreamer",
        Dreamer,
        lambda: ((torch.randn(1, 2, 3, 12, 12), torch.randn(1, 2, 3)), {}),
        {"rnn", "hybrid", "cnn"},
        {
            "encoder.0.weight": _FIRST,
            "encoder.2.weight": _CONV,
            "fc_embed_state_action.weight": _LINEAR,
            "rnn.weight_ih": {"rnn_ih"},
            "rnn.weight_hh": {"rnn_hh"},
            "prior.?.weight": _LINEAR | _OUT,
            "posterior.?.weight": _LINEAR,
            "reward.0.weight": _LINEAR,
            "reward.2.weight": _OUT,
            "decoder_fc.weight": _LINEAR,
            "decoder.0.weight": _CONV,
            "decoder.2.weight": _CONV | _OUT,
        },
    ),
    Style(
        "latent ode",
        LatentODE,
        lambda: ((torch.randn(2, 4, 3),), {}),
        {"rnn", "hybrid"},
        {
            "recognition.weight_ih_l0": {"rnn_ih"},
            "recognition.weight_hh_l0": {"rnn_hh"},
            "to_latent.weight": _LINEAR,
            "func.net.?.weight": _LINEAR,
            "decoder.weight": _OUT,
        },
    ),
    Style(
        "deeponet",
        DeepONet,
        lambda: ((torch.randn(2, 21), torch.randn(2, 6, 2)), {}),
        {"mlp"},
        {"branch.[02].weight": _LINEAR, "trunk.[02].weight": _LINEAR, "branch.4.weight": _LINEAR | _OUT, "trunk.4.weight": _LINEAR | _OUT},
    ),
    Style(
        "fourier neural operator",
        FNO2d,
        lambda: ((torch.randn(1, 8, 8, 3),), {}),
        {"cnn", "hybrid", "unknown"},
        {
            "fc0.weight": _LINEAR | {"patch_embedding"},
            "convs.*.weights?": _CONV | {"linear", "other"},
            "ws.*.weight": _CONV | _LINEAR,
            "fc1.weight": _LINEAR,
            "fc2.weight": _OUT,
        },
    ),
    Style(
        "hypernetwork",
        PrimaryNetwork,
        lambda: ((torch.randn(1, 3, 8, 8),), {}),
        {"cnn"},
        {
            "conv1.weight": _FIRST,
            "hope.w1": {"linear", "mlp_up"},
            "hope.w2": {"linear", "mlp_up", "mlp_down"},
            "final.weight": _OUT,
        },
    ),
    Style(
        "kan",
        KAN,
        lambda: ((torch.randn(3, 7),), {}),
        {"mlp"},
        {"layers.[01].base_weight": _LINEAR, "layers.*.spline_weight": {"linear", "other"}, "layers.2.base_weight": _LINEAR | _OUT},
    ),
    Style("siren", siren, lambda: ((torch.randn(5, 2),), {}), {"mlp"}, {"[012].linear.weight": _LINEAR, "3.weight": _OUT}),
]
