"""What kind of network it is, by what a network does: nothing here is called what it is."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lightning_adam_mini import inspect_model
from lightning_adam_mini.detection import Architecture as A
from lightning_adam_mini.detection import Role
from lightning_adam_mini.detection.architecture import Signs, decide


class Mix(nn.Module):
    """Attention whose layers are called nothing."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.a(x) @ self.b(x).mT).softmax(-1) @ self.c(x)


class Step(nn.Module):
    """Two convolutions, between which a vector is added."""

    def __init__(self, inputs: int, outputs: int, vector: int):
        super().__init__()
        self.one, self.two = nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shift = nn.Linear(vector, outputs)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        return self.two(self.one(x) + self.shift(vector)[..., None, None])


class Hourglass(nn.Module):
    """Down and up with features joined, or only added, on the way up."""

    def __init__(self, joins: bool):
        super().__init__()
        self.joins, factor = joins, 2 if joins else 1
        self.make, self.enter = nn.Linear(1, 24), nn.Conv2d(3, 8, 3, padding=1)
        self.steps = nn.ModuleList([Step(8, 8, 24), Step(8, 16, 24), Step(16 * factor, 8 if joins else 16, 24), Step(8 * factor, 8, 24)])
        self.narrow = nn.Identity() if joins else nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        vector = self.make(level)
        first = self.steps[0](self.enter(x), vector)
        second = self.steps[1](first, vector)
        join = (lambda a, b: torch.cat([a, b], 1)) if self.joins else torch.add
        return self.steps[3](join(self.narrow(self.steps[2](join(second, second), vector)), first), vector)


def kind(model: nn.Module) -> tuple[A, bool]:
    report = inspect_model(model)
    return report.architecture, report.guess


def test_a_unet_joins_what_it_kept_and_reads_one_vector_everywhere():
    for joins in (True, False):
        assert Hourglass(joins)(torch.zeros(1, 3, 4, 4), torch.zeros(1, 1)).shape == (1, 8, 4, 4)
    assert kind(Hourglass(True)) == (A.DIFFUSION_UNET, False)
    assert kind(Hourglass(False)) == (A.CNN, False)
    report = inspect_model(nn.ModuleDict({"net": Hourglass(True), "text": nn.TransformerEncoderLayer(16, 2, 32)}))
    assert report.by_name["net.make.weight"].role is Role.TIME_EMBEDDING
    assert report.architecture_of(report.by_name["net.enter.weight"]) is A.DIFFUSION_UNET
    assert inspect_model(Hourglass(True)).parts == ()


class Actor(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x)).softmax(-1)


class Additive(nn.Module):
    """Attention of a recurrent network: a number per place, by which states are averaged."""

    def __init__(self):
        super().__init__()
        self.rnn, self.one, self.two, self.score = nn.GRU(8, 16), nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.rnn(x)
        return self.score(torch.tanh(self.one(states) + self.two(last))).softmax(0).mT @ states


def test_softmax_of_products_of_its_layers_may_be_attention():
    model = nn.Sequential(nn.Linear(8, 16), Mix(), nn.Linear(16, 3))
    signs = Signs(attention="Mix weighs by softmax what its layers make", strong=True)
    assert decide(signs, [(Role.LINEAR, 9)])[::2] == (A.TRANSFORMER, True)
    assert inspect_model(model).architecture is A.TRANSFORMER
    assert kind(nn.Sequential(*(layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 3), nn.ReLU())))) == (A.CNN, False)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (Actor(), A.MLP),
        (nn.Sequential(*(nn.Linear(16, 16) for _ in range(12)), nn.Softmax(-1)), A.MLP),
        (Additive(), A.RNN),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 5), nn.Softmax(-1)), A.CNN),
    ],
)
def test_softmax_alone_is_no_alarm(model: nn.Module, expected: A):
    assert kind(model) == (expected, False)


def test_a_role_that_is_corrected_decides_anew_on_the_whole_and_on_its_part():
    report = inspect_model(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)))
    query = replace(report.parameters[0], role=Role.QUERY, owner=Role.QUERY)
    assert (report.architecture, report.corrected([query]).architecture) == (A.MLP, A.TRANSFORMER)
    assert report.corrected([query]).corrected(report.parameters) == report
    convolutions = nn.Sequential(*(nn.Conv2d(8, 8, 3) for _ in range(4)))
    attentive = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32), 2, enable_nested_tensor=False)
    both = inspect_model(nn.ModuleDict({"a": convolutions, "b": attentive}))
    first = both.by_name["a.0.weight"]
    changed = both.corrected([replace(first, role=Role.KEY, owner=Role.KEY)])
    assert (both.architecture_of(first), changed.architecture_of(first)) == (A.CNN, A.HYBRID)
    assert not changed.guess_of(first)


def test_the_table_says_that_the_architecture_is_a_guess():
    report = replace(inspect_model(nn.Linear(2, 2)), guess=True)
    assert str(report).startswith("mlp ?: ")


class ByHand(nn.Module):
    """A graph convolution with an adjacency matrix."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return adj @ (x @ self.W)


class Renamed(nn.Module):
    """The same, which calls the matrix something else."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(torch.randn(8, 5))

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        return near @ (x @ self.W)


class Graph(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList([layer])

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        return self.layers[0](x, adj)


@pytest.mark.parametrize("layer", [ByHand(), Renamed()])
def test_a_layer_that_is_handed_a_graph_holds_its_weights(layer: nn.Module):
    report = inspect_model(Graph(layer))
    assert [(report.architecture, p.role, p.axis, p.guess) for p in report.parameters] == [(A.GNN, Role.GRAPH_CONV, 1, False)]


class Fourier(nn.Module):
    """Places mixed by a Fourier transform."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft2(x).real


@pytest.mark.parametrize(("mix", "expected"), [(Fourier(), (A.UNKNOWN, False)), (nn.Identity(), (A.TRANSFORMER, True))])
def test_fourier_transforms_in_the_place_of_attention_make_no_transformer(mix: nn.Module, expected: tuple[A, bool]):
    block = nn.Sequential(mix, nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    assert kind(nn.ModuleDict({"tokens": nn.Embedding(57, 16), "block": block, "head": nn.Linear(16, 57)})) == expected
