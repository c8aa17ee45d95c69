"""Sophia: beside the algorithm written out, beside the original, and as AdamMini where it steps nothing."""

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_adam_mini import AdamMini, AdamMiniCallback, partition_model, to_adamw_state_dict
from lightning_adam_mini.combine import GaLore, Sophia, combine_
from lightning_adam_mini.optim import state_bytes
from tests.callbacks.models import TokenModel, fit
from tests.callbacks.test_combining import resumes
from tests.combine.train import Net, gradients, make, train


class Quadratic(nn.Module):
    """Half of p² times a Hessian that is diagonal, of which Hutchinson's estimate with signs is the Hessian itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix, self.vector = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(7))
        self.curvature = {name: torch.rand_like(p) * 10 for name, p in self.named_parameters()}

    def loss(self):
        return sum((self.curvature[name] * p.square()).sum() / 2 for name, p in self.named_parameters())


@pytest.mark.parametrize("momentum_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("granularity", ["parameter", "line", "factored"])
def test_it_is_the_paper_s_algorithm(granularity, momentum_dtype):
    model = Quadratic().double()
    model.curvature = {name: d.double() for name, d in model.curvature.items()}
    layouts = partition_model(model, "adam", overrides={"matrix": granularity})
    optimizer = AdamMini(
        model.named_parameters(), lr=0.05, betas=(0.8, 0.9), weight_decay=0.1, layouts=layouts, momentum_dtype=momentum_dtype
    )
    combine_(optimizer, Sophia(every=2, gamma=0.3))
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    m = {name: torch.zeros_like(w) for name, w in weights.items()}
    h = {name: [torch.zeros(one.block_shape).double() for one in layouts[name].margins] for name in weights}
    for t in range(5):
        optimizer.zero_grad()
        assert optimizer.estimate_is_due == (t % 2 == 0)
        if optimizer.estimate_is_due:
            optimizer.update_hessian(model.loss())
        model.loss().backward()
        optimizer.step()
        for name, w in weights.items():
            d = model.curvature[name]
            if t % 2 == 0:
                h[name] = [0.9 * old + 0.1 * new for old, new in zip(h[name], layouts[name].averages(d), strict=True)]
            g = d * w
            m[name] = 0.8 * m[name] + 0.2 * g
            denom = 0.3 * layouts[name].combine(h[name])
            update = (m[name] / denom).clamp(-1, 1)
            w.mul_(1 - 0.05 * 0.1).sub_(0.05 * update)
            close = {"rtol": 1e-9, "atol": 1e-9} if momentum_dtype is None else {"rtol": 2e-2, "atol": 2e-2}
            torch.testing.assert_close(model.get_parameter(name).detach(), w, **close)


def test_beside_the_original():
    original = pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed").SophiaH
    ours, theirs = Quadratic(), Quadratic()
    layouts = partition_model(ours, "adam")
    optimizer = AdamMini(ours.named_parameters(), lr=0.02, betas=(0.965, 0.99), weight_decay=0.0, layouts=layouts)
    combine_(optimizer, Sophia(every=3, gamma=0.5, eps=1e-15))
    # It clips m / h at p, and we m / (gamma h) at 1.
    settings = {"lr": 0.02 / 0.5, "betas": (0.965, 0.99), "p": 0.5, "update_period": 3, "hessian_distribution": "rademacher"}
    other = original(theirs.parameters(), **settings)
    for step in range(10):
        optimizer.zero_grad()
        other.zero_grad()
        if optimizer.estimate_is_due:
            optimizer.update_hessian(ours.loss())
        ours.loss().backward()
        theirs.loss().backward(create_graph=step % 3 == 0)
        optimizer.step()
        other.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gauss_newton_and_bartlett_s_estimate_is_the_mean_square_of_gradients_times_the_batch():
    model = Net()
    optimizer = combine_(make(model, "adam_mini", betas=(0.9, 0.0)), Sophia(estimate="gauss_newton_bartlett", every=1, gamma=0.05))
    wanted = {
        name: grad * 6**0.5 for name, grad in zip(optimizer.layouts, torch.autograd.grad(model.loss(), model.parameters()), strict=True)
    }
    optimizer.update_hessian(model.loss(), examples=6)
    names = optimizer.parameter_names()
    for p, state in optimizer.state.items():
        (mean,) = optimizer.layouts[names[p]].mean_squares(wanted[names[p]])
        torch.testing.assert_close(state["exp_avg_sq"], mean)


def test_hutchinson_s_estimate_is_right_on_average():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    inputs = torch.linspace(-1, 1, 15).double().view(5, 3)

    def loss():
        return model(inputs).square().sum()

    p, found = model[0].weight, []
    for seed in range(100):
        optimizer = combine_(make(model, "adam", betas=(0.9, 0.0)), Sophia(seed=seed))
        optimizer.update_hessian(loss())
        found.append(optimizer.state[p]["exp_avg_sq"])
    grad = torch.autograd.grad(loss(), p, create_graph=True)[0].flatten()
    exact = torch.stack([torch.autograd.grad(g, p, retain_graph=True)[0].flatten()[i] for i, g in enumerate(grad)]).view(p.shape)
    found = torch.stack(found)
    error = (found.mean(0) - exact).abs() / (found.std(0) / 10)
    assert error.max() < 4  # standard errors
    assert found.std(0).max() > 0


def test_where_it_steps_nothing_it_is_adam_mini_to_the_bit():
    ours, plain = Net(), Net()
    optimizer = train(ours, combine_(make(ours, "auto"), Sophia(only=())))
    reference = train(plain, make(plain, "auto"))
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert state_bytes(optimizer) == state_bytes(reference)


@pytest.mark.parametrize("partition", ["auto", "adam_mini"])
def test_a_run_resumes_exactly_and_lowers_the_loss(tmp_path, partition):
    trainer = resumes(tmp_path, lambda: AdamMiniCallback(partition, combine={"sophia": {"every": 3}}), max_epochs=2)
    adam_mini = AdamMiniCallback(partition)
    fit(TokenModel(), adam_mini, max_epochs=1)
    assert state_bytes(trainer.optimizers[0]) == adam_mini.optimizer_state_bytes[0]
    rates = trainer.optimizers[0].block_learning_rates()
    assert all(bool((rate > 0).all()) for rate in rates.values())


class Sampled(TokenModel):
    """A model that draws labels from its own output."""

    def sampled_loss(self, batch, batch_idx):
        logits = self(batch[0])
        labels = torch.distributions.Categorical(logits=logits).sample()
        return nn.functional.cross_entropy(logits, labels), len(labels)


def test_a_run_whose_labels_are_drawn_resumes_exactly(tmp_path):
    part = {"sophia": {"estimate": "gauss_newton_bartlett", "every": 3}}
    resumes(tmp_path, lambda: AdamMiniCallback(combine=part), Sampled, max_epochs=2)


def test_labels_are_drawn_by_the_module():
    losses = []
    for kind in (TokenModel, Sampled):
        model = kind(lambda m: torch.optim.AdamW(m.parameters(), lr=3e-3, betas=(0.965, 0.99)))
        part = {"sophia": {"estimate": "gauss_newton_bartlett" if kind is Sampled else "hutchinson", "gamma": 0.05, "every": 2}}
        trainer = fit(model, AdamMiniCallback(combine=part), max_epochs=8)
        losses.append(float(trainer.callback_metrics["loss"]))
    assert max(losses) < 1.06  # of three classes, 1.1 at first


class Drawing(Sampled):
    drawn: list[list[float]]

    def sampled_loss(self, batch, batch_idx):
        self.drawn.append(torch.rand(4).tolist())
        return super().sampled_loss(batch, batch_idx)


def test_labels_are_drawn_anew_for_each_estimate_and_leave_the_run_s_random_numbers_alone():
    part = {"sophia": {"estimate": "gauss_newton_bartlett", "every": 2}}
    drawn = []
    for seed in (3, 4):
        after = []
        for callback in (AdamMiniCallback(combine=part), AdamMiniCallback()):
            model = Drawing(lambda m: torch.optim.AdamW(m.parameters(), lr=3e-3, betas=(0.965, 0.99)))
            model.drawn = []
            torch.manual_seed(seed)
            fit(model, callback, max_epochs=2)
            after.append(torch.get_rng_state())
            drawn += [model.drawn] * bool(model.drawn)
        assert torch.equal(*after)
    assert drawn[0] == drawn[1]  # they follow from Sophia's seed and the step
    assert len({tuple(numbers) for numbers in drawn[0]}) == len(drawn[0]) > 2


@pytest.mark.parametrize("part", ["sophia", "schedule_free", GaLore(rank=4, only=["block.linear1.weight"])])
def test_nothing_else_goes_on_from_a_combination(part):
    model = Net()
    optimizer = combine_(make(model, "auto"), part)
    gradients(model, 0)
    if optimizer.estimate_is_due:
        optimizer.update_hessian(model.loss())
    optimizer.step()
    written = optimizer.state_dict()
    plain = make(Net(), "auto")
    before = plain.state_dict()
    with pytest.raises(ValueError, match=rf"combined with '{optimizer.part.name}', and nothing else goes on from it"):
        plain.load_state_dict(written)
    assert plain.state_dict() == before
    with pytest.raises(ValueError, match=rf"combined with '{optimizer.part.name}'"):
        to_adamw_state_dict(written)


def test_what_is_refused():
    for settings, message in (
        ({"estimate": "exact"}, "Sophia has no estimate='exact'. Give one of hutchinson"),
        ({"every": 0}, "Sophia has no every=0"),
        ({"gamma": 0.0}, "Sophia has no gamma=0.0. Give a number above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Sophia(**settings)
    model = Net()
    optimizer = combine_(make(model, "auto"), "sophia")
    gradients(model, 0)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=r"estimate of the Hessian is due .* Call optimizer.update_hessian\(loss\) before"):
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    with pytest.raises(ValueError, match="Sophia differentiates a loss of one element with its graph"):
        optimizer.update_hessian(model.loss().detach())
    tokens = torch.zeros(2, 5, dtype=torch.long)
    with pytest.raises(RuntimeError, match=r"differentiates the loss twice.*sdpa_kernel\(SDPBackend.MATH\)"):
        optimizer.update_hessian(model(tokens).sum())
    with pytest.raises(ValueError, match="update_hessian is Sophia's"):
        combine_(make(Net(), "auto"), "schedule_free").update_hessian(model.loss())
    with pytest.raises(ValueError, match="needs how many examples"):
        combine_(make(model, "auto"), Sophia(estimate="gauss_newton_bartlett")).update_hessian(model.loss())
    with pytest.raises(MisconfigurationException, match=r"define TokenModel.sampled_loss\(batch, batch_idx\)"):
        fit(TokenModel(), AdamMiniCallback(combine={"sophia": {"estimate": "gauss_newton_bartlett"}}))

    class Manual(TokenModel):
        automatic_optimization = False

    with pytest.raises(MisconfigurationException, match="training_step steps its optimizers itself"):
        fit(Manual(), AdamMiniCallback(combine="sophia"))
