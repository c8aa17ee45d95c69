"""Feed-forward layers, whatever they are made of; chains of layers, which are none; mixing of places."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_adam_mini import inspect_model, partition_model
from lightning_adam_mini.detection import Architecture, Role

UP, DOWN = Role.MLP_UP, Role.MLP_DOWN


class Bare(nn.Module):
    """Two bare matrices."""

    def __init__(self, one: tuple[int, int], two: tuple[int, int]):
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(one)), nn.Parameter(torch.randn(two))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.one).relu() @ self.two


class Functional(Bare):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.one).relu(), self.two)


@pytest.mark.parametrize(("kind", "one", "axis"), [(Bare, (8, 24), 1), (Functional, (24, 8), 0)])
def test_bare_matrices_wider_and_back_are_a_feed_forward(kind: type[Bare], one: tuple[int, int], axis: int):
    module = kind(one, (one[1], one[0]))
    assert module(torch.zeros(2, 8)).shape == (2, 8)
    report = inspect_model(module).parameters
    assert [(p.role, p.axis, p.guess) for p in report] == [(UP, axis, False), (DOWN, axis, False)]


@pytest.mark.parametrize(("one", "two"), [((24, 8), (8, 24)), ((8, 8), (8, 8)), ((8, 24), (24, 9))])
def test_bare_matrices_of_other_shapes_are_guesses_until_running_shows_what_they_are(one: tuple[int, int], two: tuple[int, int]):
    assert [(p.role, p.guess) for p in inspect_model(Bare(one, two), probe=False).parameters] == [(Role.LINEAR, True)] * 2
    for kind, sizes, axis in ((Bare, (one, two), 1), (Functional, (one[::-1], two[::-1]), 0)):
        first, last = inspect_model(kind(*sizes)).parameters
        assert (first.role, first.axis, first.guess) == (Role.LINEAR, axis, False)
        assert (last.role, last.axis, last.guess) == (Role.CLASSIFIER if two[1] == 9 else Role.LINEAR, axis, False)


def pointwise(*before: nn.Module) -> nn.Module:
    block = nn.ModuleDict({"attn": nn.MultiheadAttention(16, 2), "one": nn.Conv1d(16, 64, 1), "two": nn.Conv1d(64, 16, 1)})
    return nn.ModuleList([*before, block])


def test_convolutions_of_one_place_are_the_feed_forward_of_a_transformer_and_of_no_other_network():
    report = inspect_model(pointwise())
    assert report.architecture is Architecture.TRANSFORMER
    assert [report.by_name[f"0.{name}.weight"].role for name in ("one", "two")] == [UP, DOWN]
    layout = partition_model(report, "adam_mini")["0.one.weight"]
    assert layout.num_blocks == 64
    hybrid = inspect_model(pointwise(*(nn.Conv1d(16, 16, 3) for _ in range(3))))
    assert hybrid.architecture is Architecture.HYBRID
    assert [hybrid.by_name[f"3.{name}.weight"].role for name in ("one", "two")] == [Role.CONV] * 2
    alone = inspect_model(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 32, 1), nn.Conv2d(32, 8, 1)))
    assert [p.role for p in alone.parameters if "weight" in p.name] == [Role.FIRST_CONV, Role.CONV, Role.CONV]


def test_a_list_of_equal_layers_is_no_feed_forward():
    class DeepMLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.hidden = nn.Linear(16, 16), nn.ModuleList([nn.Linear(16, 16) for _ in range(4)])
            self.wide, self.narrow = (nn.ModuleList([nn.Linear(*shape) for _ in range(3)]) for shape in ((16, 32), (32, 16)))
            self.leave = nn.Linear(16, 16)

    report = inspect_model(DeepMLP()).by_name
    inner = {p.role for name, p in report.items() if name.endswith("weight") and name != "leave.weight"}
    assert (inner, report["leave.weight"].role) == ({Role.LINEAR}, Role.CLASSIFIER)


class Two(nn.Module):
    """Two feed-forwards."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.one, self.two = (nn.Sequential(nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n)) for n in (9, 16))


class Mixed(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.norm(self.one(x.mT).mT))


class Plain(Two):
    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.norm(F.pad(self.one(x), (0, 7))))


@pytest.mark.parametrize(("kind", "first", "network"), [(Mixed, {Role.TOKEN_MIX}, "mlp_mixer"), (Plain, {UP, DOWN}, "")])
def test_a_feed_forward_of_the_transposed_mixes_places(kind: type[Two], first: set[Role], network: str):
    report = inspect_model(nn.Sequential(nn.Linear(3, 16), kind(), kind()))
    roles = [{p.role for p in report.parameters if f"1.{name}" in p.name and "weight" in p.name} for name in ("one", "two")]
    assert roles == [first, {UP, DOWN}]
    assert (str(report.architecture) == "mlp_mixer") == (network == "mlp_mixer")


def test_lists_side_by_side_are_feed_forwards_in_a_network_with_attention():
    class Flat(nn.Module):
        def __init__(self, attends: bool):
            super().__init__()
            lists = {"up": (16, 40), "gate": (16, 40), "down": (40, 16), "alike": (16, 16)}
            for name, shape in lists.items():
                setattr(self, name, nn.ModuleList([nn.Linear(*shape) for _ in range(3)]))
            self.attention = nn.ModuleList([nn.MultiheadAttention(16, 2) for _ in range(3)]) if attends else None

    roles = {p.name: p.role for p in inspect_model(Flat(True)).parameters}
    assert [roles[f"{name}.2.weight"] for name in ("up", "gate", "down", "alike")] == [UP, Role.MLP_GATE, DOWN, Role.LINEAR]
    assert {p.role for p in inspect_model(Flat(False)).parameters if p.name.startswith(("up", "gate", "down"))} <= {Role.LINEAR, Role.BIAS}


@pytest.mark.parametrize(("make", "role"), [(lambda: nn.Conv1d(9, 9, 1), Role.TOKEN_MIX), (lambda: nn.Linear(9, 9), Role.TOKEN_MIX)])
def test_a_square_layer_beside_a_norm_of_another_width_mixes_places(make, role):
    class Gate(nn.Module):
        def __init__(self, layer: nn.Module, width: int):
            super().__init__()
            self.norm, self.mix = nn.LayerNorm(width), layer

    class Block(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.up, self.gate, self.down = nn.Linear(12, 2 * width), Gate(make(), width), nn.Linear(width, 12)

    report = inspect_model(nn.Sequential(*(Block(20) for _ in range(3)), nn.Linear(12, 4)))
    assert report.by_name["1.gate.mix.weight"].role is role
    assert report.architecture is Architecture.MLP_MIXER
    joined = inspect_model(nn.Sequential(*(Gate(nn.Linear(40, 40), 20) for _ in range(3))))  # of two features joined
    assert joined.by_name["1.mix.weight"].role is not role


def test_two_ways_out_and_one_back_in_are_no_gate():
    class VAE(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.mean, self.spread, self.back = nn.Linear(50, 40), nn.Linear(40, 7), nn.Linear(40, 7), nn.Linear(7, 40)

    assert {p.role for p in inspect_model(VAE()).parameters if p.name.startswith(("mean", "spread", "back"))} == {Role.LINEAR, Role.BIAS}


def test_what_chooses_among_stacked_experts_is_a_router():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate, self.other = nn.Linear(16, 5), nn.Linear(16, 16)
            self.w1, self.w2 = nn.Parameter(torch.randn(5, 16, 40)), nn.Parameter(torch.randn(5, 40, 16))

    report = inspect_model(nn.Sequential(Experts(), Experts())).by_name
    assert [report[f"1.{name}"].role for name in ("gate.weight", "w1", "w2")] == [Role.ROUTER, UP, DOWN]
    assert [report[f"1.{name}"].axis for name in ("w1", "w2")] == [2, 2]
