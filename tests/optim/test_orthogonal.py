"""Steps by orthogonalised updates: against the papers' algorithms in float64, torch's Muon and pytorch-optimizer's NorMuon."""

import copy
import io
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_adam_mini import AdamMini, AdamMiniWarning, BlockLayout, MatrixLayout, to_adamw_state_dict

LR, DECAY = 1e-2, 0.1
SHAPES = [(8, 6), (6, 8), (16, 16), (6, 8), (5, 40)]


def params_of(shapes, dtype=torch.float32):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def gradients(shapes, step, dtype=torch.float32):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def ours(params, layouts, **options):
    named = [(f"p{i}", p) for i, p in enumerate(params)]
    return AdamMini(named, layouts={f"p{i}": one for i, one in enumerate(layouts)}, **{"lr": LR, "weight_decay": DECAY, **options})


def train(params, optimizer, steps, first=0):
    for step in range(first, first + steps):
        for p, grad in zip(params, gradients([p.shape for p in params], step, params[0].dtype), strict=True):
            p.grad = grad.to(p.dtype)
        optimizer.step()


def close(some, others, within):
    for a, b in zip(some, others, strict=True):
        torch.testing.assert_close(a.detach(), b.detach(), rtol=0, atol=within)


# ---- the algorithms, in float64, matrix by matrix


def newton_schulz(x, iterations=5):
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T, iterations).T
    x = x / max(np.linalg.norm(x), 1e-7)
    for _ in range(iterations):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def by_hand(weight, grads, beta2=None, momentum=0.95, decay=DECAY, coupled=0.0):
    """Moonlight's Algorithm 1, or NorMuon's, of one matrix."""
    weight, m, v = weight.copy(), np.zeros_like(weight), np.zeros((len(weight), 1))
    for grad in grads:
        grad = grad + coupled * weight
        m = momentum * m + (1 - momentum) * grad
        update = newton_schulz(momentum * m + (1 - momentum) * grad)
        if beta2 is None:
            update = update * 0.2 * math.sqrt(max(weight.shape))
        else:
            v = beta2 * v + (1 - beta2) * (update**2).mean(1, keepdims=True)
            update = update / (np.sqrt(v) + 1e-10)
            update = update * 0.2 * math.sqrt(weight.size) / np.linalg.norm(update)
        weight = weight * (1 - LR * decay) - LR * update
    return weight


@pytest.mark.parametrize("beta2", [None, 0.95], ids=["muon", "normuon"])
@pytest.mark.parametrize("kind", ["decoupled", "coupled", "maximize", "tensor"])
def test_equals_the_algorithm_in_float64(beta2, kind):
    params = params_of(SHAPES, torch.float64)
    starts = [p.detach().numpy().copy() for p in params]
    options = {
        "coupled": {"decoupled_weight_decay": False},
        "maximize": {"maximize": True},
        "tensor": {"lr": torch.tensor(LR, dtype=torch.float64)},
    }
    train(params, ours(params, [MatrixLayout(shape, beta2=beta2) for shape in SHAPES], **options.get(kind, {})), 20)
    for i, (p, start) in enumerate(zip(params, starts, strict=True)):
        grads = [gradients(SHAPES, step, torch.float64)[i].numpy() * (-1 if kind == "maximize" else 1) for step in range(20)]
        decay = {"decay": 0.0, "coupled": DECAY} if kind == "coupled" else {}
        np.testing.assert_allclose(p.detach().numpy(), by_hand(start, grads, beta2, **decay), rtol=0, atol=1e-9)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch before 2.9 has no Muon")
def test_equals_torchs_muon_over_50_steps():
    mine, theirs = params_of(SHAPES), params_of(SHAPES)
    train(mine, ours(mine, [MatrixLayout(shape, precision="bfloat16") for shape in SHAPES]), 50)
    muon = torch.optim.Muon(theirs, lr=LR, weight_decay=DECAY, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    train(theirs, muon, 50)
    # Theirs is bfloat16 in the iteration, in which one last bit of one element is 4e-3 of its update of 2e-3.
    close(mine, theirs, 2e-4)


def test_equals_the_normuon_of_another_library_over_50_steps():
    theirs_of = pytest.importorskip("pytorch_optimizer").NorMuon
    mine, theirs = params_of(SHAPES), params_of(SHAPES)
    train(mine, ours(mine, [MatrixLayout(shape, beta2=0.95, precision="bfloat16") for shape in SHAPES]), 50)
    groups = [{"params": theirs, "use_muon": True}]
    train(theirs, theirs_of(groups, lr=LR, weight_decay=DECAY, update_scale="match_rms"), 50)
    close(mine, theirs, 2e-4)


def test_where_nothing_is_a_matrix_it_is_adam_mini():
    layouts = [BlockLayout.factored(shape) for shape in SHAPES]
    mixed, alone = params_of([*SHAPES, (7, 9)]), params_of([*SHAPES, (7, 9)])[:-1]
    train(mixed, ours(mixed, [*layouts, MatrixLayout((7, 9))]), 5)
    train(alone, ours(alone, layouts), 5)
    assert all(torch.equal(a, b) for a, b in zip(mixed, alone, strict=False))


# ---- which matrices


CUTS = {
    "roles": (MatrixLayout((12, 5), cut="q:4|k:4|v:4"), lambda w: [w[:4], w[4:8], w[8:]]),
    "roles in turns": (MatrixLayout((12, 5), cut="2*(q:2|k:2|v:2)"), lambda w: [w[[0, 1, 6, 7]], w[[2, 3, 8, 9]], w[[4, 5, 10, 11]]]),
    "heads": (MatrixLayout((8, 5), cut="q:2x2|k:2x2"), lambda w: [w[:2], w[2:4], w[4:6], w[6:]]),
    "columns are outputs": (MatrixLayout((5, 12), rows=1, cut="q:4|k:8"), lambda w: [w.T[:4], w.T[4:]]),
    "convolution": (MatrixLayout((8, 4, 3, 3)), lambda w: [w.reshape(8, 36)]),
    "transposed convolution": (MatrixLayout((4, 8, 3), rows=1), lambda w: [w.swapaxes(0, 1).reshape(8, 12)]),
    "experts": (MatrixLayout((3, 6, 4), rows=2, stacked=(0,)), lambda w: [one.T for one in w]),
    "experts, fused": (
        MatrixLayout((2, 8, 3), rows=1, stacked=(0,), cut="g:4|u:4"),
        lambda w: [p for one in w for p in (one[:4], one[4:])],
    ),
}


@pytest.mark.parametrize("beta2", [None, 0.9], ids=["muon", "normuon"])
@pytest.mark.parametrize("name", CUTS)
def test_each_matrix_is_stepped_by_itself(name, beta2):
    layout, cut = CUTS[name]
    layout = BlockLayout.from_plain([*layout.to_plain()[:5], {**layout.to_plain()[5], "beta2": beta2}])
    (p,) = params = params_of([layout.shape], torch.float64)
    starts = cut(p.detach().numpy().copy())
    train(params, ours(params, [layout]), 4)
    grads = [cut(gradients([layout.shape], step, torch.float64)[0].numpy()) for step in range(4)]
    for i, got in enumerate(cut(p.detach().numpy())):
        np.testing.assert_allclose(got, by_hand(starts[i], [grad[i] for grad in grads], beta2), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"shape": (4,)}, "rows and columns"),
        ({"shape": (4, 3), "stacked": (1,)}, "rows and columns"),
        ({"shape": (4, 3), "rows": 2}, "out of range"),
        ({"shape": (4, 3), "cut": "q:2|k:3"}, "5 lines"),
        ({"shape": (4, 3), "momentum": 1.0}, "momentum=1.0"),
        ({"shape": (4, 3), "beta2": -0.1}, "beta2=-0.1"),
        ({"shape": (4, 3), "iterations": 0}, "one iteration"),
        ({"shape": (4, 3), "precision": "float16"}, "'float16'"),
        ({"shape": (4, 3), "iterations": 2.5}, "iterations is a whole number, not 2.5"),
        ({"shape": (4, 3), "iterations": True}, "iterations is a whole number, not True"),
        ({"shape": (4, 3), "momentum": "0.9"}, "momentum is a number, not '0.9'"),
        ({"shape": (4, 3), "beta2": "x"}, "beta2 is a number or None, not 'x'"),
        ({"shape": (4, 3), "stacked": 0}, "stacked is a tuple of whole numbers, not 0"),
        ({"shape": (4, 3), "rows": "0"}, "rows is a whole number, not '0'"),
        ({"shape": (4, 3), "cut": 3}, "cut is a line order"),
    ],
)
def test_wrong_matrices_are_refused(arguments, named):
    with pytest.raises(ValueError, match=named):
        MatrixLayout(**arguments)


@pytest.mark.parametrize("layout", [layout for layout, _ in CUTS.values()], ids=CUTS.keys())
def test_plain_data_and_back(layout):
    plain = layout.to_plain()
    torch.save(plain, file := io.BytesIO())
    file.seek(0)
    assert BlockLayout.from_plain(torch.load(file, weights_only=True)) == layout
    values = torch.randn(layout.shape)
    assert torch.equal(layout.join(layout.split(values)), values)
    assert sum(math.prod(one) for one in layout.matrices) == values.numel()


# ---- dtypes and codecs


@pytest.mark.parametrize("beta2", [None, 0.95], ids=["muon", "normuon"])
@pytest.mark.parametrize(("momentum_dtype", "within"), [(torch.bfloat16, 0.05), ("8bit", 0.1)])
def test_narrow_momentum_goes_nearly_the_same_way(momentum_dtype, within, beta2):
    shapes = [(64, 80), (80, 64)]
    wide, narrow = params_of(shapes), params_of(shapes)
    start = [p.detach().clone() for p in wide]
    train(wide, ours(wide, [MatrixLayout(shape, beta2=beta2) for shape in shapes]), 10)
    optimizer = ours(narrow, [MatrixLayout(shape, beta2=beta2) for shape in shapes], momentum_dtype=momentum_dtype)
    train(narrow, optimizer, 10)
    for a, b, before in zip(wide, narrow, start, strict=True):
        assert (a - b).norm() < within * (a - before).norm()
    held = sum(t.numel() * t.element_size() for state in optimizer.state.values() for name, t in state.items() if name != "step")
    rows = 0 if beta2 is None else 4 * (64 + 80)
    assert held - rows <= (2.0 if momentum_dtype is torch.bfloat16 else 1.07) * 2 * 64 * 80


@pytest.mark.parametrize("momentum_dtype", [torch.bfloat16, "8bit"], ids=str)
def test_narrow_momenta_of_one_shape_that_are_kept_at_once_are_those_of_each_alone(momentum_dtype):
    def momenta(count):
        shapes = [(64, 80)] * count
        params = params_of(shapes)
        optimizer = ours(params, [MatrixLayout(shape) for shape in shapes], momentum_dtype=momentum_dtype)
        train(params, optimizer, 3)
        return [{name: value for name, value in optimizer.state[p].items() if name.startswith("exp_avg")} for p in params]

    (alone,) = momenta(1)  # the gradients do not depend on the weights, and the first is the same however many there are
    together = momenta(5)[0]
    assert alone.keys() == together.keys()
    assert all(torch.equal(alone[name], together[name]) for name in alone)


def test_bfloat16_weights_are_rounded_at_random_and_right_on_average():
    p = nn.Parameter(torch.ones(256, 256, dtype=torch.bfloat16))
    optimizer = AdamMini([("p", p)], lr=1e-4, weight_decay=0.0, layouts={"p": MatrixLayout((256, 256))}, stochastic_rounding=True)
    twin = nn.Parameter(torch.ones(256, 256))
    other = AdamMini([("p", twin)], lr=1e-4, weight_decay=0.0, layouts={"p": MatrixLayout((256, 256), precision="float32")})
    for step in range(30):
        (grad,) = gradients([(256, 256)], step % 3)
        p.grad, twin.grad = grad.bfloat16(), grad.bfloat16().float()
        optimizer.step(), other.step()
    moved = (twin - 1).detach()
    assert abs(((p.float() - 1) * moved).sum() / (moved * moved).sum() - 1) < 0.1  # without, no weight of 1 could move by 1e-4


# ---- states


@pytest.mark.parametrize("form", ["own", "AdamW's"])
@pytest.mark.parametrize("beta2", [None, 0.95], ids=["muon", "normuon"])
@pytest.mark.parametrize("momentum_dtype", [None, torch.bfloat16, "8bit"], ids=str)
def test_resumes_to_the_bit(form, beta2, momentum_dtype):
    shapes = [(64, 80), (12, 5), (9,)]
    layouts = [MatrixLayout(shapes[0], beta2=beta2), MatrixLayout(shapes[1], cut="q:4|k:8", beta2=beta2), BlockLayout((9,))]
    params = params_of(shapes)
    optimizer = ours(params, layouts, momentum_dtype=momentum_dtype)
    train(params, optimizer, 3)
    state = optimizer.state_dict() if form == "own" else to_adamw_state_dict(optimizer.state_dict())
    torch.save(state, file := io.BytesIO())
    file.seek(0)
    copies = [nn.Parameter(p.detach().clone()) for p in params]
    again = ours(copies, layouts, momentum_dtype=momentum_dtype)
    again.load_state_dict(torch.load(file, weights_only=True))
    train(params, optimizer, 3, first=3), train(copies, again, 3, first=3)
    assert all(torch.equal(a, b) for a, b in zip(params, copies, strict=True))


@pytest.mark.parametrize("beta2", [None, 0.95], ids=["muon", "normuon"])
def test_from_adamw_and_back(beta2):
    params, layouts = params_of(SHAPES), [MatrixLayout(shape, beta2=beta2) for shape in SHAPES]
    adamw = torch.optim.AdamW(params, lr=LR)
    train(params, adamw, 4)
    optimizer = ours(params, layouts)
    with pytest.warns(AdamMiniWarning, match="'p0'.*left out"):
        optimizer.load_state_dict(adamw.state_dict())
    for p in params:
        assert torch.equal(optimizer.state[p]["exp_avg"], adamw.state[p]["exp_avg"])
        assert optimizer.state[p]["step"] == 4
    train(params, optimizer, 40)
    back = torch.optim.AdamW(params, lr=LR, weight_decay=0.0)
    back.load_state_dict(to_adamw_state_dict(optimizer.state_dict()))
    ours_again = ours([nn.Parameter(p.detach().clone()) for p in params], [BlockLayout.factored(shape) for shape in SHAPES])
    with pytest.warns(AdamMiniWarning, match="'p0'.*begun anew"):
        ours_again.load_state_dict(optimizer.state_dict())
    before = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p in params:
            p.grad = back.state[p]["exp_avg"].clone()
    back.step()
    for p, old in zip(params, before, strict=True):  # neither nothing, nor a leap
        assert 0.05 * LR < (p - old).square().mean().sqrt() < 1.0 * LR


def test_layouts_change_while_training():
    params = params_of([(8, 6)])
    optimizer = ours(params, [BlockLayout.factored((8, 6))])
    train(params, optimizer, 3)
    momentum = optimizer.state[params[0]]["exp_avg"].clone()
    optimizer.set_layouts({"p0": MatrixLayout((8, 6), beta2=0.95)})
    assert torch.equal(optimizer.state[params[0]]["exp_avg"], momentum)
    assert {*optimizer.state[params[0]]} == {"step", "exp_avg", "exp_avg_sq"}
    train(params, optimizer, 3, first=3)
    optimizer.set_layouts({"p0": MatrixLayout((8, 6))})
    assert {*optimizer.state[params[0]]} == {"step", "exp_avg"}
    train(params, optimizer, 3, first=6)
    optimizer.set_layouts({"p0": BlockLayout.factored((8, 6))})
    train(params, optimizer, 3, first=9)
    assert bool(torch.isfinite(params[0]).all())


def test_copies_and_pickles_go_on_alike():
    params = params_of(SHAPES[:2])
    optimizer = ours(params, [MatrixLayout(shape) for shape in SHAPES[:2]])
    train(params, optimizer, 2)
    twin = copy.deepcopy(optimizer)
    theirs = twin.param_groups[0]["params"]
    train(params, optimizer, 2, first=2), train(theirs, twin, 2, first=2)
    assert all(torch.equal(a, b) for a, b in zip(params, theirs, strict=True))


# ---- what users may do, and see


class Operators(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view and func is not torch.ops.aten.promote_types.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("momentum_dtype", [None, torch.bfloat16, "8bit"], ids=str)
@pytest.mark.parametrize("beta2", [None, 0.95], ids=["muon", "normuon"])
def test_launches_grow_with_shapes_and_not_with_tensors(beta2, momentum_dtype):
    def launches(count):
        params = params_of([(64, 80), (80, 64)] * count)
        layouts = [MatrixLayout(tuple(p.shape), beta2=beta2) for p in params]
        optimizer = ours(params, layouts, momentum_dtype=momentum_dtype)
        train(params, optimizer, 1)
        with Operators() as operators:
            optimizer.step()
        return operators.count

    assert launches(2) == launches(20)


def test_a_resized_parameter_is_refused_before_anything_changes():
    params = params_of([(8, 6), (6, 8)])
    optimizer = ours(params, [MatrixLayout((8, 6)), MatrixLayout((6, 8))])
    train(params, optimizer, 1)
    before = [p.detach().clone() for p in params]
    params[1].data = torch.randn(4, 8)
    with pytest.raises(RuntimeError, match="'p1'"):
        train(params, optimizer, 1)
    assert torch.equal(params[0], before[0])


def test_no_gradient_no_step_and_zeros_stay():
    params = params_of([(8, 6), (6, 8)])
    optimizer = ours(params, [MatrixLayout((8, 6)), MatrixLayout((6, 8))], weight_decay=0.0)
    before = [p.detach().clone() for p in params]
    params[0].grad = torch.zeros(8, 6)
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    assert params[1] not in optimizer.state or not optimizer.state[params[1]]


def test_sizes_of_updates():
    params = params_of([(12, 40), (7,)])
    optimizer = ours(params, [MatrixLayout((12, 40), cut="q:4|k:8", beta2=0.95), BlockLayout((7,))], weight_decay=0.0)
    train(params, optimizer, 3)
    before = params[0].detach().clone()
    train(params, optimizer, 1, first=3)
    (update,) = optimizer.matrix_updates().values()
    moved = params[0].detach() - before
    for i, rows in enumerate((slice(0, 4), slice(4, 12))):
        assert update.rms[i].item() == pytest.approx(moved[rows].square().mean().sqrt().item(), rel=1e-3)
        assert update.rms[i].item() == pytest.approx(0.2 * LR, rel=1e-3)
        assert update.ratio[i].item() == pytest.approx((moved[rows].norm() / params[0][rows].norm()).item(), rel=1e-3)
    assert update.rows is not None
    assert tuple(update.rows.shape) == (12, 1)
    optimizer.param_groups[0]["lr"] = 0.0  # as a scheduler may set it before anyone looks
    assert optimizer.matrix_updates()["p0"].rms.tolist() == update.rms.tolist()
    assert [*optimizer.block_learning_rates()] == [*optimizer.second_moments()] == ["p1"]


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_the_second_moment_begins_anew_where_adams_would_be(steps):
    """Of gradients without a common direction, whose second moment is known."""
    params = params_of([(60, 80)])
    optimizer = ours(params, [MatrixLayout((60, 80))])
    train(params, optimizer, steps)
    state = to_adamw_state_dict(optimizer.state_dict())["state"][0]
    corrected = state["exp_avg_sq"].mean() / (1 - 0.999**steps)
    assert corrected.item() == pytest.approx(1.0, rel=0.1)


def test_rows_of_a_cut_matrix_are_not_pruned():
    params = params_of([(12, 5)])
    optimizer = ours(params, [MatrixLayout((12, 5), cut="q:4|k:8")])
    train(params, optimizer, 1)
    rows = torch.tensor([0, 1, 4, 5])
    with pytest.raises(ValueError, match="'p0' are cut into matrices.*set_layouts"):
        optimizer.replace_parameter(params[0], nn.Parameter(params[0].detach()[rows].clone()), rows=rows)
    optimizer.set_layouts({"p0": MatrixLayout((12, 5))})
    optimizer.replace_parameter(params[0], new := nn.Parameter(params[0].detach()[rows].clone()), rows=rows)
    train([new], optimizer, 1)
