"""GaLore: beside the algorithm written out, beside the original, and as AdamMini where it projects nothing."""

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, AdamMiniCallback, partition_model
from lightning_adam_mini.combine import GaLore, combine_
from lightning_adam_mini.optim import state_bytes
from tests.callbacks.models import TokenModel, fit
from tests.callbacks.test_combining import resumes
from tests.combine.train import Net, gradients, make, train


class Matrices(nn.Module):
    """A tall, a wide and a square matrix, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tall, self.wide, self.square = (nn.Parameter(torch.randn(*s)) for s in ((12, 6), (6, 12), (8, 8)))
        self.vector = nn.Parameter(torch.randn(6))


GLOBS = ("tall", "wide", "square")


@pytest.mark.parametrize("granularity", ["parameter", "line", "factored"])
def test_it_is_the_paper_s_algorithm(granularity):
    model = Matrices().double()
    layouts = partition_model(
        model, "adam", overrides={"*": granularity} if granularity != "factored" else dict.fromkeys(GLOBS, "factored")
    )
    optimizer = AdamMini(model.named_parameters(), lr=0.05, betas=(0.8, 0.9), weight_decay=0.1, layouts=layouts)
    combine_(optimizer, GaLore(rank=3, every=2, scale=0.5, only=GLOBS))
    weights = {name: getattr(model, name).detach().clone() for name in GLOBS}
    moments, projections = {}, {}
    for t in range(1, 6):
        grads = gradients(model, t)
        optimizer.step()
        for name, w in weights.items():
            g, layout = grads[name], optimizer.layouts[name]
            if t in (1, 3, 5):
                u, _, v = torch.linalg.svd(g, full_matrices=False)
                projections[name] = v[:3] if w.shape[0] >= w.shape[1] else u[:, :3]
            q = projections[name]
            r = g @ q.T if w.shape[0] >= w.shape[1] else q.T @ g
            m, v = moments.get(name, (torch.zeros_like(r), [torch.zeros(one.block_shape).double() for one in layout.margins]))
            m = 0.8 * m + 0.2 * r
            v = [0.9 * old + 0.1 * new for old, new in zip(v, layout.mean_squares(r), strict=True)]
            moments[name] = m, v
            update = m / (1 - 0.8**t) / ((layout.combine(v) / (1 - 0.9**t)).sqrt() + 1e-8)
            if layout.is_factored:
                update = update.clamp(-1, 1)
            w.mul_(1 - 0.05 * 0.1).sub_(0.05 * 0.5 * (update @ q if w.shape[0] >= w.shape[1] else q @ update))
            torch.testing.assert_close(getattr(model, name).detach(), w)


@pytest.mark.parametrize(("package", "name"), [("pytorch_optimizer", "GaLore"), ("galore_torch", "GaLoreAdamW")])
def test_beside_the_originals(package, name):
    original = getattr(pytest.importorskip(package, reason=f"{package} is not installed"), name)
    ours, theirs = Matrices(), Matrices()
    settings = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-12}
    optimizer = AdamMini(ours.named_parameters(), weight_decay=0.0, layouts=partition_model(ours, "adam"), **settings)
    # pytorch-optimizer makes its second projection a step before the authors' code does.
    every = 100 if package == "pytorch_optimizer" else 4
    combine_(optimizer, GaLore(rank=3, every=every, scale=0.5, only=GLOBS))
    projected = {"rank": 3, "update_proj_gap": every, "scale": 0.5, "proj_type": "std", "projection_type": "std"}
    groups = [{"params": [theirs.tall, theirs.wide, theirs.square], **projected}, {"params": [theirs.vector]}]
    other = original(groups, weight_decay=0.0, **settings)
    for step in range(10):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        other.step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum_dtype", [None, "8bit"])
def test_where_nothing_is_projected_it_is_adam_mini_to_the_bit(momentum_dtype):
    ours, plain = Net(), Net()
    optimizer = train(ours, combine_(make(ours, "auto", momentum_dtype=momentum_dtype), GaLore(rank=4, only=())))
    reference = train(plain, make(plain, "auto", momentum_dtype=momentum_dtype))
    for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b)
    assert state_bytes(optimizer) == state_bytes(reference)


def test_a_projection_that_leaves_the_gradient_as_it_is_changes_rounding_alone():
    """With unit vectors for singular ones, in a space where no gradient has another component."""
    ours, plain = Matrices().double(), Matrices().double()
    optimizer = combine_(make(ours, "adam", weight_decay=0.1), GaLore(rank=7, scale=1.0, only=["square"]))
    reference = make(plain, "adam", weight_decay=0.1)
    for step in range(4):
        for model in (ours, plain):
            gradients(model, step)
            model.square.grad[:, 7:] = 0
        if step == 0:
            optimizer.inner().place(ours.square, optimizer.param_groups[0])
            optimizer.state[ours.square]["projection"] = torch.eye(8, dtype=torch.float64)[:7]
        optimizer.step()
        reference.step()
    torch.testing.assert_close(ours.square, plain.square, rtol=1e-12, atol=1e-12)


def test_a_state_goes_on_to_the_bit_and_is_counted(tmp_path):
    trainer = resumes(tmp_path, lambda: AdamMiniCallback(combine={"galore": {"rank": 4, "every": 5}}), max_epochs=2)
    optimizer = trainer.optimizers[0]
    names = optimizer.parameter_names()
    projected = {names[p]: state for p, state in optimizer.state.items() if "projection" in state}
    assert set(projected) == {
        f"encoder.{name}" for name in ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    }
    kept = projected["encoder.linear2.weight"]  # 16 x 32, from the left
    assert {name: tuple(value.shape) for name, value in kept.items()} == {
        "step": (),
        "exp_avg": (4, 32),
        "exp_avg_sq": (4, 1),
        "exp_avg_sq_col": (1, 32),
        "projection": (16, 4),
    }
    bytes_of = sum(value.numel() * 4 for state in optimizer.state.values() for value in state.values())
    assert state_bytes(optimizer) == bytes_of


def test_effective_learning_rates_are_of_what_is_stepped(tmp_path):
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path)
    callback = AdamMiniCallback("adam_mini", combine={"galore": {"rank": 4}}, monitoring={"heatmap": True})
    trainer = fit(TokenModel(), callback, logger=logger, log_every_n_steps=2, max_epochs=1, limit_val_batches=1)
    rates = trainer.optimizers[0].block_learning_rates()
    assert rates["encoder.linear2.weight"].shape == (4, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"GaLore has no rank=0. Give a whole number from 1"),
        ({"rank": 4, "every": 0}, r"GaLore has no every=0"),
        ({"rank": 4, "scale": -1}, r"GaLore has no scale=-1"),
        ({"rank": 4, "only": "tall"}, r"GaLore has no only='tall'. Give a list of globs"),
        ({"rank": 13, "only": ["tall"]}, r"GaLore\(rank=13\) is above both sides of 'tall', of shape \(12, 6\)"),
        ({"rank": 6, "only": ["tall"]}, r"GaLore\(rank=6\) has nothing to project: it is no lower than that of \(12, 6\)"),
        ({"rank": 2, "only": ["vector"]}, r"GaLore projects matrices, but parameter 'vector' has shape \(6,\)"),
        ({"rank": 2, "only": ["flat"]}, r"'flat' matches no parameter, such as 'tall'"),
        ({"rank": 2}, r"GaLore has to know which matrices are embeddings. Pass the model to combine_"),
    ],
)
def test_what_is_refused(settings, message):
    model = Matrices()
    with pytest.raises(ValueError, match=message):
        combine_(make(model, "adam_mini"), {"galore": settings})
    with pytest.raises(ValueError, match=r"GaLore needs rank"):
        combine_(make(model, "adam_mini"), "galore")


def test_a_gradient_of_nan_ends_in_nan_as_with_adamw():
    model = Matrices()
    optimizer = train(model, combine_(make(model, "adam_mini"), GaLore(rank=4, every=1, only=["tall"])))
    gradients(model, 0)
    for p in (model.tall, model.wide):
        p.grad.fill_(torch.nan)
    for _ in range(2):
        optimizer.step()
    assert model.tall.isnan().all()
    assert model.wide.isnan().all()
    assert model.square.isfinite().all()


def test_a_network_without_hidden_matrices_has_nothing_to_project():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"there are none but embeddings and output layers \(convolutions are not projected\)"):
        combine_(make(model), "galore:rank=1", model)


def test_another_rank_is_refused():
    optimizer = train(*((m := Matrices()), combine_(make(m, "adam_mini"), GaLore(rank=4, only=["tall"]))))
    other = combine_(make(Matrices(), "adam_mini"), GaLore(rank=3, only=["tall"]))
    with pytest.raises(ValueError, match=r"parameter 'tall' has as exp_avg torch.float32 of shape \(12, 4\), but GaLore\(rank=3"):
        other.load_state_dict(optimizer.state_dict())
    with pytest.raises(ValueError, match="written without a combination"):
        other.load_state_dict(make(Matrices(), "adam_mini").state_dict())
