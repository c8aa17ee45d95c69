"""Schedule-free averaging: beside the algorithm written out, beside the original, and as AdamMini where it averages nothing."""

import copy
import pickle

import pytest
import torch
from torch import nn

from lightning_adam_mini import AdamMini, BlockLayout, partition_model
from lightning_adam_mini.combine import ScheduleFree, combine_
from lightning_adam_mini.optim import state_bytes
from tests.combine.train import Net, gradients, make, train


@pytest.mark.parametrize("partition", ["adam", "adam_mini", "auto"])
@pytest.mark.parametrize("options", [{}, {"decoupled_weight_decay": False, "maximize": True}])
def test_it_is_the_paper_s_algorithm(partition, options):
    model = Net().double()
    optimizer = make(model, partition, lr=0.03, weight_decay=0.1, betas=(0.8, 0.95), **options)
    layouts = optimizer.layouts
    combine_(optimizer, ScheduleFree(r=0.5, power=2.0))
    sign, coupled = (-1 if options else 1), bool(options)
    y = {name: p.detach().clone() for name, p in model.named_parameters()}
    x, z = dict(y), dict(y)
    v = {name: [torch.zeros(m.block_shape, dtype=torch.float64) for m in layout.margins] for name, layout in layouts.items()}
    total = 0.0
    for t in range(1, 6):
        grads = gradients(model, t)
        optimizer.step()
        weight = t**0.5 * 0.03**2
        total += weight
        for name, layout in layouts.items():
            g = sign * grads[name] + 0.1 * y[name] * coupled
            v[name] = [0.95 * old + 0.05 * new for old, new in zip(v[name], layout.mean_squares(g), strict=True)]
            update = g / ((layout.combine(v[name]) / (1 - 0.95**t)).sqrt() + 1e-8)
            if layout.is_factored:
                update = update.clamp(-((1 / 0.05) ** 0.5), (1 / 0.05) ** 0.5)
            z[name] = z[name] - 0.03 * (update + 0.1 * y[name] * (not coupled))
            x[name] = torch.lerp(x[name], z[name], weight / total)
            y[name] = 0.2 * z[name] + 0.8 * x[name]
            torch.testing.assert_close(model.get_parameter(name), y[name], rtol=1e-9, atol=1e-9)
    optimizer.eval()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, x[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("package", "name"), [("pytorch_optimizer", "ScheduleFreeAdamW"), ("schedulefree", "AdamWScheduleFree")])
def test_beside_the_originals(package, name):
    original = getattr(pytest.importorskip(package, reason=f"{package} is not installed"), name)
    ours, theirs = Net(), Net()
    optimizer = combine_(make(ours, "adam", lr=0.02, weight_decay=0.1), ScheduleFree())
    other = original(theirs.parameters(), lr=0.02, weight_decay=0.1)
    other.train()
    for step in range(20):
        gradients(ours, step)
        gradients(theirs, step)
        optimizer.step()
        other.step()
    for mode in ("train", "eval", "train"):
        getattr(optimizer, mode)()
        getattr(other, mode)()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("partition", ["adam", "auto"])
@pytest.mark.parametrize("fused", [None, False])
def test_without_averaging_it_is_adam_mini_to_the_bit(partition, fused):
    ours, plain = Net(), Net()
    # The weight of a step is so much larger than those of all before that the average is the last.
    optimizer = combine_(make(ours, partition, weight_decay=0.1, fused=fused), ScheduleFree(r=250.0))
    reference = make(plain, partition, weight_decay=0.1, fused=fused, betas=(0.0, 0.999))
    for step in range(4):
        gradients(ours, step)
        gradients(plain, step)
        optimizer.step()
        reference.step()
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a, b)


def test_it_keeps_what_adam_mini_keeps():
    ours, plain = Net(), Net()
    optimizer = train(ours, combine_(make(ours, "auto"), "schedule_free"))
    reference = train(plain, make(plain, "auto"))
    assert state_bytes(optimizer) == state_bytes(reference)


def test_a_state_goes_on_to_the_bit():
    whole, again = Net(), Net()
    optimizer = train(whole, combine_(make(whole, "auto", weight_decay=0.1), "schedule_free"), 3)
    optimizer.eval()  # as a checkpoint is written
    saved = pickle.loads(pickle.dumps((whole.state_dict(), optimizer.state_dict())))
    optimizer.train()
    train(whole, optimizer, 3, begin=3)
    other = combine_(make(again, "auto", weight_decay=0.1), "schedule_free")
    again.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    with pytest.raises(RuntimeError, match=r"ScheduleFree's averages.*optimizer.train\(\)"):
        other.step()
    other.train()
    train(again, other, 3, begin=3)
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    copied = copy.deepcopy(other)
    assert copied.part == other.part
    assert copied.state_dict()["param_groups"] == other.state_dict()["param_groups"]


def test_half_precision_states_keep_their_dtypes():
    model = Net().bfloat16()
    optimizer = train(model, combine_(make(model, "adam_mini"), "schedule_free"))
    other = combine_(make(Net().bfloat16(), "adam_mini"), "schedule_free")
    other.load_state_dict(optimizer.state_dict())
    kinds = {(name, value.dtype) for state in other.state.values() for name, value in state.items()}
    assert kinds == {("step", torch.float32), ("exp_avg_sq", torch.float32), ("z", torch.bfloat16)}


def test_it_lowers_a_loss_and_the_average_is_better_than_the_last_weights():
    torch.manual_seed(0)
    model, inputs = nn.Linear(8, 1, bias=False), torch.randn(512, 8)
    targets = inputs @ torch.randn(8, 1) + 0.5 * torch.randn(512, 1)
    layouts = {"weight": BlockLayout.whole((1, 8))}
    optimizer = combine_(AdamMini(model.named_parameters(), lr=0.1, layouts=layouts, weight_decay=0.0), "schedule_free")
    for step in range(300):
        some = slice(8 * (step % 64), 8 * (step % 64) + 8)
        optimizer.zero_grad()
        (model(inputs[some]) - targets[some]).square().mean().backward()
        optimizer.step()
    best = torch.linalg.lstsq(inputs, targets).solution
    distance = {}
    for mode in ("train", "eval"):
        getattr(optimizer, mode)()
        distance[mode] = float((model.weight.detach().T - best).norm())
    assert distance["eval"] < 0.2
    states = next(iter(optimizer.state.values()))
    assert distance["eval"] < float((states["z"].T - best).norm())


def test_parameters_may_come_later():
    model = Net()
    layouts = partition_model(model, "adam_mini")
    named = dict(model.named_parameters())
    late = named.pop("head.weight")
    optimizer = combine_(AdamMini(named.items(), layouts=layouts, named_parameters=model.named_parameters()), "schedule_free")
    gradients(model, 0)
    optimizer.step()
    optimizer.add_param_group({"params": [("head.weight", late)]})
    alone = nn.Parameter(late.detach().clone())
    plain = AdamMini([("head.weight", alone)], layouts={"head.weight": layouts["head.weight"]}, betas=(0.0, 0.999))
    for seed in (1, 2):
        gradients(model, seed)
        alone.grad = late.grad.clone()
        optimizer.step()
        if seed == 1:  # its average begins here, so that x, y and z are one
            plain.step()
            torch.testing.assert_close(late, alone)
    weights = late.detach().clone()
    optimizer.eval()
    assert not torch.equal(weights, late)  # which is averaged like those that were there before
    optimizer.train()
    torch.testing.assert_close(weights, late)


def test_what_does_not_go():
    with pytest.raises(ValueError, match=r"ScheduleFree has no r=-2"):
        ScheduleFree(r=-2)
    optimizer = combine_(make(Net(), "auto", betas=(0.0, 0.99)), "schedule_free")
    gradients(optimizer, 0)
    with pytest.raises(ValueError, match=r"ScheduleFree interpolates by betas\[0\]"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"ScheduleFree does not go with momentum_dtype, because it keeps no momentum"):
        combine_(make(Net(), "auto", momentum_dtype="8bit"), "schedule_free")
