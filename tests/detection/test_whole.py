"""What running a whole network shows: how parameters are used, what conditions what, and what kind of network it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_adam_mini import inspect_model
from lightning_adam_mini.detection import Architecture, Role
from lightning_adam_mini.detection.evidence import Evidence, probe_attention


class Bare(nn.Module):
    """Parameters whose names say nothing, each used in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(shape)) for shape in ((19, 12), (1, 40, 12), (1, 1, 12)))
        self.d, self.e, self.f = nn.Parameter(torch.ones(12)), nn.Parameter(torch.randn(12, 30)), nn.Parameter(torch.randn(6, 30))
        self.table, self.lookup = nn.Embedding(41, 12), nn.Embedding(7, 12)

    def forward(self, ids: Tensor, kinds: Tensor) -> Tensor:
        x = self.a[ids] + self.lookup(kinds)
        x = torch.cat([self.c.expand(len(x), -1, -1), x], 1)
        x = x + self.b[:, : x.shape[1]] + self.table(torch.arange(x.shape[1]))
        return torch.nn.functional.linear((x * self.d) @ self.e, self.f)


def test_how_a_parameter_is_used_is_shown_whatever_it_is_called() -> None:
    module = Bare()
    ids = torch.arange(10).view(2, 5)
    whole = probe_attention(module, ids, ids % 7).whole
    assert {name: set(kinds) for name, kinds in whole.uses} == {
        "a": {"table"},
        "b": {"added"},
        "c": {"joined"},
        "d": {"scaled"},
        "e": {"map"},
        "f": {"map"},
        "table.weight": {"place", "added"},
        "lookup.weight": {"table"},
    }
    assert dict(whole.axes) == {"e": 1, "f": 0}
    assert (whole.read, whole.unread) == (("e",), ("f",))
    report = inspect_model(module)
    roles = {p.name: p.role for p in report.parameters}
    assert roles == {
        "a": Role.TOKEN_EMBEDDING,
        "b": Role.POSITION_EMBEDDING,
        "c": Role.SPECIAL_TOKEN,
        "d": Role.SCALE,
        "e": Role.LINEAR,
        "f": Role.CLASSIFIER,
        "table.weight": Role.POSITION_EMBEDDING,
        "lookup.weight": Role.TOKEN_EMBEDDING,
    }
    # Whether a smaller table is one of types is not shown.
    assert [p.name for p in report.guesses] == ["lookup.weight"]


def test_evidence_goes_through_a_checkpoint_and_back() -> None:
    ids = torch.arange(10).view(2, 5)
    evidence = probe_attention(Bare(), ids, ids % 7)
    assert evidence.whole.uses
    assert Evidence.from_plain(evidence.to_plain()) == evidence


class Told(nn.Module):
    """Features that a vector of each sample scales and shifts, and a gate that they make of themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.gamma, self.beta = nn.Linear(8, 22), nn.Linear(22, 22), nn.Linear(22, 14), nn.Linear(22, 14)
        self.enter, self.squeeze, self.leave = nn.Linear(5, 14), nn.Linear(14, 14), nn.Linear(14, 3)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.arange(1, 5)
        c = self.two(self.one(torch.cat([angles.sin(), angles.cos()], -1)).relu())
        x = self.enter(x) * (1 + self.gamma(c)[:, None]) + self.beta(c)[:, None]
        return self.leave(x * self.squeeze(x.mean(1))[:, None].sigmoid())


def test_what_scales_features_of_another_input_is_a_modulation_and_what_reads_only_the_time_embeds_it() -> None:
    module = Told()
    whole = probe_attention(module, torch.randn(2, 6, 5), torch.rand(2)).whole
    assert set(whole.told) == {"one.weight", "two.weight", "gamma.weight", "beta.weight"}
    uses = {name: set(kinds) - {"map"} for name, kinds in whole.uses}
    assert {name: kinds for name, kinds in uses.items() if kinds} == {"gamma.weight": {"scales"}, "beta.weight": {"shifts"}}
    roles = {p.name: p.role for p in inspect_model(module).parameters if p.name.endswith("weight")}
    assert {name for name, role in roles.items() if role is Role.MODULATION} == {"gamma.weight", "beta.weight"}
    assert {name for name, role in roles.items() if role is Role.TIME_EMBEDDING} == {"one.weight", "two.weight"}
    assert roles["squeeze.weight"] is not Role.MODULATION


class Sum(nn.Module):
    """Adds up at the ends of edges, which its arguments do not name, what it made at their starts."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.pass_on, self.leave = nn.Linear(9, 13), nn.Linear(13, 13), nn.Linear(13, 2)

    def forward(self, h: Tensor, pairs: Tensor) -> Tensor:
        h = self.enter(h)
        for _ in range(2):
            h = h + torch.zeros_like(h).index_add(0, pairs[:, 1], self.pass_on(h)[pairs[:, 0]])
        return self.leave(h)


class Neighbours(Sum):
    """Gathers a fixed number of neighbours, twice."""

    def forward(self, h: Tensor, pairs: Tensor) -> Tensor:
        h = self.enter(h)
        for _ in range(2):
            h = h + self.pass_on(h[pairs]).mean(1)
        return self.leave(h)


class Dense(Sum):
    """Multiplies by a matrix of who is beside whom."""

    def forward(self, h: Tensor, pairs: Tensor) -> Tensor:
        return self.leave(pairs @ self.pass_on(pairs @ self.enter(h)).relu())


@pytest.mark.parametrize(
    ("build", "pairs"),
    [(Sum, torch.tensor([[0, 1], [1, 2]])), (Neighbours, torch.tensor([[1, 2], [0, 2], [0, 1]])), (Dense, torch.rand(3, 3))],
)
def test_features_that_go_along_a_graph_make_it_a_graph_network(build: type[nn.Module], pairs: Tensor) -> None:
    module = build()
    report = inspect_model(module, (torch.randn(3, 9), pairs))
    assert report.architecture is Architecture.GNN
    assert "indices" in report.reason or "square matrix" in report.reason
    assert inspect_model(module).architecture is Architecture.GNN  # on made-up inputs


class Last(Sum):
    """Reads the last place of each sample, as of padded words."""

    def forward(self, h: Tensor, lengths: Tensor) -> Tensor:
        return self.leave(self.pass_on(self.enter(h))[torch.arange(len(h)), lengths])


class Chosen(Sum):
    """Adds up what experts make of the places that a router chose."""

    def forward(self, h: Tensor, weights: Tensor) -> Tensor:
        h = self.enter(h)
        best = self.pass_on(h).sum(-1).topk(2).indices
        return self.leave(torch.zeros_like(h).index_add(0, best, h[best]) * weights)


@pytest.mark.parametrize(
    ("build", "example"),
    [(Last, (torch.randn(3, 4, 9), torch.tensor([1, 2, 3]))), (Chosen, (torch.randn(3, 9), torch.rand(3, 1)))],
)
def test_lookups_alone_make_no_graph_network(build: type[nn.Module], example: tuple[Tensor, ...]) -> None:
    module = build()
    module(*example)
    assert inspect_model(module, example).architecture is Architecture.MLP


class Levels(nn.Module):
    """Convolutions on two levels, and a vector of noise for each."""

    def __init__(self, is_joined: bool) -> None:
        super().__init__()
        self.is_joined, self.embed = is_joined, nn.Conv2d(8, 18, 1)
        self.enter, self.deep, self.after = (nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 10), (10, 14), (14 + 10 * is_joined, 10)))
        self.leave = nn.Conv2d(10, 3, 3, padding=1)
        self.told = nn.ModuleList(nn.Conv2d(18, o, 1) for o in (10, 14))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        angles = sigma[:, None] * torch.arange(1, 5)
        c = self.embed(torch.cat([angles.sin(), angles.cos()], -1)[..., None, None])
        h = self.enter(x) + self.told[0](c)
        deep = nn.functional.interpolate(self.deep(nn.functional.max_pool2d(h, 2)) + self.told[1](c), scale_factor=2.0)
        return self.leave(self.after(torch.cat([deep, h], 1) if self.is_joined else deep))


def test_a_unet_is_known_by_the_levels_that_it_joins() -> None:
    report = inspect_model(Levels(True))
    assert report.architecture is Architecture.DIFFUSION_UNET
    assert {p.role for p in report.parameters if p.name in ("embed.weight", "told.0.weight")} == {Role.TIME_EMBEDDING}
    assert inspect_model(Levels(False)).architecture is Architecture.CNN


class Mix(nn.Module):
    """Attention without a softmax, under names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.d(nn.functional.silu(self.a(x) @ self.b(x).mT) @ self.c(x))


def test_products_of_products_are_a_sign_of_attention_and_one_product_is_none() -> None:
    class Pair(Mix):
        def forward(self, x: Tensor) -> Tensor:
            return self.c(x) + self.d(self.a(x) @ (self.b(x).mT @ x))[..., :1]

    class Towers(Mix):
        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)) @ self.d(self.c(x)).mT

    report = inspect_model(nn.Sequential(Mix(), Mix()))
    assert (report.architecture, report.guess) == (Architecture.TRANSFORMER, True)
    assert "multiplies products" in report.reason
    assert inspect_model(Pair()).guess  # linear attention
    towers = inspect_model(Towers())
    assert (towers.architecture, towers.guess) == (Architecture.MLP, False)
