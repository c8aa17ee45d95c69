import pytest
import torch
from torch import nn

from lightning_adam_mini import BlockLayout
from lightning_adam_mini.analysis.hessian import exact_hessian, extreme_eigenvalues, hutchinson_traces, lanczos


@pytest.fixture
def problem():
    torch.manual_seed(0)
    module, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(16, 4)
    return module, lambda m: m(x).square().sum(1).sin().mean()


def test_hutchinson_is_within_its_error(problem):
    module, loss = problem
    layouts = {"0.weight": BlockLayout((6, 4), dims=(1,)), "2.weight": BlockLayout.grouped((2, 6), "q:2x1"), "0.bias": BlockLayout((6,))}
    found = hutchinson_traces(module, loss, layouts, probes=400, dtype=torch.float64, chunk=50)
    off = []
    for name, layout in layouts.items():
        diagonal = exact_hessian(module, loss, [name], dtype=torch.float64).diagonal().view(layout.shape)
        assert found[name].value.shape == layout.block_shape
        off.append(((found[name].value - layout.average(diagonal)) / found[name].error).flatten())
    off = torch.cat(off)
    assert off.abs().max() < 4
    assert 0.5 < off.square().mean() < 2  # the error is told as it is, neither too small nor too large


def test_hutchinson_of_a_diagonal_hessian_is_exact():
    module = nn.Linear(3, 2, bias=False)
    found = hutchinson_traces(module, lambda m: (m.weight**3).sum(), {"weight": BlockLayout((2, 3))}, probes=2)["weight"]
    torch.testing.assert_close(found.value, 6 * module.weight.detach().double())
    assert found.error.abs().max() < 1e-6


def test_lanczos_is_within_its_error(problem):
    module, loss = problem
    exact = torch.linalg.eigvalsh(exact_hessian(module, loss, dtype=torch.float64))
    for steps in (3, 8, 20):
        found = extreme_eigenvalues(module, loss, steps=steps, dtype=torch.float64)
        assert len(found.values) == steps
        distances = (found.values[:, None] - exact).abs().amin(1)
        assert bool((distances <= found.errors + 1e-12).all())
        assert found.weights.sum() == pytest.approx(1)
    torch.testing.assert_close(found.values[[0, -1]], exact[[0, -1]], rtol=1e-4, atol=1e-9)


def test_lanczos_stops_where_there_is_no_more():
    matrix = torch.diag(torch.tensor([1.0] * 5 + [4.0] * 5, dtype=torch.float64))
    found = lanczos(lambda v: matrix @ v, size=10, steps=10)
    torch.testing.assert_close(found.values, torch.tensor([1.0, 4.0], dtype=torch.float64))
    assert found.errors.max() < 1e-9
    assert lanczos(torch.zeros_like, size=4, steps=4).values.tolist() == [0.0]


def test_bad_input(problem):
    module, loss = problem
    with pytest.raises(ValueError, match="1 probes have no standard error"):
        hutchinson_traces(module, loss, {"0.bias": BlockLayout((6,))}, probes=1)
    with pytest.raises(ValueError, match="'0.weight' has to be of one mean, for shape"):
        hutchinson_traces(module, loss, {"0.weight": BlockLayout.factored((6, 4))})
    with pytest.raises(ValueError, match="at least 1"):
        lanczos(lambda v: v, size=0, steps=1)
