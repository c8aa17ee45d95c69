"""An Adam or AdamW that becomes an AdamMini in place: the same object, state averaged, and all or nothing."""

from __future__ import annotations

import copy
import functools
import gc
import io
import pickle
import types
import warnings
import weakref

import lightning as L
import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW
from torch.optim import lr_scheduler as ls

from lightning_adam_mini import AdamMini, AdamMiniWarning, BlockLayout, convert_optimizer_, partition_model, to_adamw_state_dict
from lightning_adam_mini.optim import state_bytes

KINDS = [Adam, AdamW]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def train(optimizer, model, steps=3, seed=0):
    for step in range(steps):
        generator = torch.Generator().manual_seed(seed + step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def convert(optimizer, model, partition="tensor", **options):
    return convert_optimizer_(optimizer, partition_model(model, partition), model.named_parameters(), **options)


def made(model, kind, **options):
    """The AdamMini that the converted optimizer has to equal."""
    return AdamMini(
        model.named_parameters(), layouts=partition_model(model, "tensor"), decoupled_weight_decay=kind is AdamW, **{"lr": 1e-2, **options}
    )


def assert_same(a, b):
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("kind", KINDS)
class TestBothKinds:
    def test_it_steps_as_one_that_was_made_so(self, kind):
        a, b = net(), net()
        optimizer = kind(a.parameters(), 1e-2, weight_decay=0.1)
        assert convert(optimizer, a) is optimizer
        reference = made(b, kind, weight_decay=0.1)
        train(optimizer, a), train(reference, b)
        assert_same(a, b)
        assert isinstance(optimizer, kind)
        assert isinstance(optimizer, AdamMini)

    def test_a_state_that_is_there_is_averaged(self, kind):
        a, b = net(), net()
        plain, other = kind(a.parameters(), 1e-2), kind(b.parameters(), 1e-2)
        train(plain, a), train(other, b)
        held = {p: plain.state[p]["exp_avg"] for p in a.parameters()}
        reference = made(b, kind, weight_decay=plain.defaults["weight_decay"])
        with pytest.warns(AdamMiniWarning, match="averaged"):
            reference.load_state_dict(other.state_dict())
        convert(plain, a)
        assert all(plain.state[p]["exp_avg"] is first for p, first in held.items())
        train(plain, a, seed=9), train(reference, b, seed=9)
        assert_same(a, b)

    @pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
    def test_copies_step_alike(self, kind, clone):
        a = net()
        optimizer = convert(kind(a.parameters(), 1e-2), a)
        ls.StepLR(optimizer, 1)
        train(optimizer, a)
        twin, b = clone((optimizer, a))
        assert type(twin) is type(optimizer)
        assert twin.layouts == optimizer.layouts
        train(optimizer, a, seed=5), train(twin, b, seed=5)
        assert_same(a, b)

    def test_it_is_saved_whole_and_as_a_state(self, kind):
        a = net()
        optimizer = convert(kind(a.parameters(), 1e-2), a)
        train(optimizer, a)
        file = io.BytesIO()
        torch.save((optimizer, optimizer.state_dict()), file)
        file.seek(0)
        whole, state = torch.load(file, weights_only=False)
        assert type(whole) is type(optimizer)
        b = net()
        b.load_state_dict(a.state_dict())
        other = convert(kind(b.parameters(), 1e-2), b)
        other.load_state_dict(state)
        train(optimizer, a, seed=5), train(other, b, seed=5)
        assert_same(a, b)

    def test_to_torchs_own_and_back(self, kind):
        model = net()
        optimizer = convert(kind(model.parameters(), 1e-2), model)
        train(optimizer, model)
        plain = kind(model.parameters(), 1e-2)
        plain.load_state_dict(to_adamw_state_dict(optimizer.state_dict()))
        train(plain, model)
        assert plain.param_groups[0]["amsgrad"] is False
        loaded = convert(kind(model.parameters(), 1e-2), model)
        with pytest.warns(AdamMiniWarning, match="averaged"):
            loaded.load_state_dict(plain.state_dict())
        convert(plain, model)
        assert all(torch.equal(loaded.state[p]["exp_avg_sq"], plain.state[p]["exp_avg_sq"]) for p in model.parameters())

    def test_methods_bound_before_the_conversion_serve_after_it(self, kind):
        a, b = net(), net()
        first = list(a[0].parameters())
        optimizer = kind(first, 1e-2)
        step, add, load, state = optimizer.step, optimizer.add_param_group, optimizer.load_state_dict, optimizer.state_dict
        convert(optimizer, a)
        add({"params": list(a[2].parameters())})
        reference = AdamMini(
            [{"params": list(b[i].named_parameters(str(i)))} for i in (0, 2)],
            lr=1e-2,
            weight_decay=optimizer.defaults["weight_decay"],
            layouts=partition_model(b, "tensor"),
            decoupled_weight_decay=kind is AdamW,
        )
        for i in range(3):
            for model in (a, b):
                generator = torch.Generator().manual_seed(i)
                for p in model.parameters():
                    p.grad = torch.randn(p.shape, generator=generator)
            step(), reference.step()
            load(copy.deepcopy(state()))
        assert_same(a, b)
        assert {v.numel() for v in optimizer.second_moments().values()} == {1}

    def test_torchs_own_load_brings_an_adamw_state_into_blocks(self, kind):
        a, b = net(), net()
        plain = kind(b.parameters(), 1e-2)
        train(plain, b)
        optimizer = kind(a.parameters(), 1e-2)
        load = optimizer.load_state_dict
        convert(optimizer, a)
        load(plain.state_dict())
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(optimizer.state[p]["exp_avg_sq"].flatten()[0], plain.state[q]["exp_avg_sq"].mean())

    def test_schedulers_count_its_steps(self, kind):
        model = net()
        optimizer = kind(model.parameters(), 1e-2)
        schedulers = [ls.OneCycleLR(optimizer, 1e-2, total_steps=10), ls.CyclicLR(optimizer, 1e-3, 1e-2, cycle_momentum=True)]
        late = weakref.ref(optimizer)
        convert(optimizer, model)
        schedulers.append(ls.StepLR(optimizer, 5))
        assert "step" not in vars(optimizer)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for _ in range(3):
                train(optimizer, model, 1)
                for scheduler in schedulers:
                    scheduler.step()
        assert optimizer.param_groups[0]["betas"][0] != 0.9
        del optimizer, scheduler, schedulers
        gc.collect()
        assert late() is None

    def test_a_wrong_order_is_told_as_ever(self, kind):
        model = net()
        optimizer = kind(model.parameters(), 1e-2)
        scheduler = ls.StepLR(optimizer, 1)
        convert(optimizer, model)
        with pytest.warns(UserWarning, match="before `optimizer.step"):
            scheduler.step()

    def test_a_kept_step_runs_closures_and_hooks_once(self, kind):
        model = net()
        optimizer = kind(model.parameters(), 1e-2)
        step, calls = optimizer.step, []
        optimizer.register_step_pre_hook(lambda *a: calls.append("pre"))
        optimizer.register_step_post_hook(lambda *a: calls.append("post"))
        convert(optimizer, model)

        def closure():
            optimizer.zero_grad()
            loss = model(torch.ones(2, 6)).sum()
            loss.backward()
            return loss

        assert step(closure) > step(closure)
        assert calls == ["pre", "post"] * 2
        assert optimizer.state[model[0].weight]["exp_avg_sq"].numel() == 1
        assert optimizer.state[model[0].weight]["step"] == 2

    def test_fused_says_nothing_of_scaling_any_more(self, kind):
        a, b = net(), net()
        fused, plain = kind(a.parameters(), 1e-2, fused=True), kind(b.parameters(), 1e-2)
        convert(fused, a), convert(plain, b)
        assert not hasattr(fused, "_step_supports_amp_scaling")
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        scaler.scale(a(torch.ones(2, 6)).sum()).backward()
        scaler.step(fused)
        scaler.update()
        b(torch.ones(2, 6)).sum().backward()
        plain.step()
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q)

    def test_its_class_makes_what_it_made_before(self, kind):
        model = net()
        optimizer = convert(kind(model.parameters(), 1e-2), model)
        defaults = {k: v for k, v in optimizer.defaults.items() if k != "decoupled_weight_decay"}
        assert type(type(optimizer)(model.parameters(), **defaults)) is kind

    def test_dashboards_see_the_old_name_and_repr_tells_the_truth(self, kind):
        model = net()
        optimizer = convert(kind(model.parameters(), 1e-2), model)
        assert type(optimizer).__name__ == kind.__name__
        text = repr(optimizer)
        assert text.startswith(f"AdamMini, made as {kind.__name__} (")
        assert "second moments: 4 for 83 parameters" in text
        assert "layouts" not in text

    def test_memory_is_free_at_once(self, kind):
        model = nn.Linear(300, 300)
        optimizer = kind(model.parameters())
        train(optimizer, model, 1)
        before = state_bytes(optimizer)
        convert(optimizer, model)
        assert state_bytes(optimizer) < 0.51 * before

    def test_names_of_ones_own_in_groups_hide_no_layout(self, kind):
        model = net()
        optimizer = kind([("mine." + name, p) for name, p in model.named_parameters()], 1e-2)
        convert(optimizer, model)
        assert {layout.num_blocks for layout in optimizer.layouts.values()} == {1}
        assert optimizer.param_groups[0]["param_names"][0] == "mine.0.weight"

    def test_names_in_groups_are_enough(self, kind):
        model = net()
        optimizer = convert_optimizer_(kind(model.named_parameters()), partition_model(model, "tensor"))
        assert optimizer.layouts == partition_model(model, "tensor")

    def test_it_can_be_converted_again(self, kind):
        model = net()
        optimizer = convert(kind(model.parameters(), 1e-2), model, "adam")
        train(optimizer, model)
        mean = optimizer.state[model[0].weight]["exp_avg_sq"].mean()
        convert(optimizer, model)
        torch.testing.assert_close(optimizer.state[model[0].weight]["exp_avg_sq"].reshape(()), mean)
        convert(optimizer, model, "adam")
        assert optimizer.state[model[0].weight]["exp_avg_sq"].shape == (8, 6)
        convert(optimizer, model, momentum_dtype=torch.bfloat16)
        assert optimizer.state[model[0].weight]["exp_avg"].dtype == torch.bfloat16
        convert(optimizer, model)
        train(optimizer, model)


def test_the_step_may_be_compiled_afterwards_not_before():
    a, b = net(), net()
    optimizer, reference = AdamW(a.parameters(), 1e-2), convert(AdamW(b.parameters(), 1e-2), b)
    torch._dynamo.reset()
    before = torch.compile(optimizer.step, backend="eager")
    train(types.SimpleNamespace(step=before), a, 1), train(reference, b, 0)
    convert(optimizer, a)
    with pytest.raises(Exception, match="compiled when the optimizer was no AdamMini"):
        train(types.SimpleNamespace(step=before), a, 1)
    b.load_state_dict(a.state_dict())
    reference.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # torch keeps what it loads
    after = torch.compile(optimizer.step, backend="eager")
    train(types.SimpleNamespace(step=after), a, 3), train(reference, b, 3)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q)


# ---- what cannot become one


def snapshot(optimizer):
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    state = [{k: v.clone() for k, v in entry.items()} for entry in optimizer.state.values()]
    return type(optimizer), set(vars(optimizer)), dict(optimizer.defaults), groups, state


def assert_as_it_was(optimizer, before):
    now = snapshot(optimizer)
    assert now[:4] == before[:4]
    for a, b in zip(now[4], before[4], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize(
    ("layouts", "options", "message"),
    [
        ({"0.weight": BlockLayout.whole((9, 9))}, {}, r"'0.weight' is for a tensor of shape \(9, 9\)"),
        ({"2.weight": BlockLayout.whole((3, 8)), "0.bias": BlockLayout.whole((7,))}, {}, "'0.bias'"),
        ({"x": BlockLayout.whole((1,))}, {}, "None of the 1 layouts"),
        ({}, {"momentum_dtype": "4bit"}, "momentum_dtype"),
    ],
)
def test_a_failed_conversion_changes_nothing(layouts, options, message, stepped):
    a, b = net(), net()
    optimizer, plain = AdamW(a.parameters(), 1e-2), AdamW(b.parameters(), 1e-2)
    scheduler, other = ls.StepLR(optimizer, 1), ls.StepLR(plain, 1)
    if stepped:
        train(optimizer, a), train(plain, b)
    before = snapshot(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AdamMiniWarning)
        with pytest.raises(ValueError, match=message):
            convert_optimizer_(optimizer, layouts, a.named_parameters(), **options)
    assert_as_it_was(optimizer, before)
    train(optimizer, a), train(plain, b)
    scheduler.step(), other.step()
    train(optimizer, a), train(plain, b)
    assert_same(a, b)


def wrapped_by_fabric(model):
    return L.Fabric(accelerator="cpu", devices=1).setup(model, AdamW(model.parameters()))[1]


REFUSED = {
    "another optimizer": (lambda m: torch.optim.SGD(m.parameters(), 0.1), "SGD cannot become an AdamMini.*force=True"),
    "a subclass": (lambda m: type("Mine", (AdamW,), {})(m.parameters()), "Mine cannot become"),
    "amsgrad": (lambda m: AdamW(m.parameters(), amsgrad=True), "amsgrad=True cannot become.*Set amsgrad=False"),
    "a wrapper": (wrapped_by_fabric, "only wraps an optimizer.*before it is wrapped"),
    "no optimizer": (lambda m: object(), "not a torch.optim.Optimizer"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_by_name(what):
    make, message = REFUSED[what]
    model = net()
    with pytest.raises(ValueError, match=message):
        convert(make(model), model)


def test_a_complex_parameter_is_refused_by_name():
    p = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = AdamW([p])
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match="'phase'.*complex.*view_as_real"):
        convert_optimizer_(optimizer, {}, [("phase", p)])
    assert_as_it_was(optimizer, before)


def test_refused_while_a_cuda_graph_is_captured(monkeypatch):
    model = net()
    optimizer = AdamW(model.parameters())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(ValueError, match="AdamW cannot become .* while a CUDA graph is captured.*before the capture"):
        convert(optimizer, model)
    assert type(optimizer) is AdamW


class Counter:
    """A patch that is an object."""

    def __init__(self, optimizer):
        self.parts, self.calls = [{"inner": optimizer.step}], 0

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.parts[0]["inner"](*args, **kwargs)


def by_default_argument(optimizer):
    def step(closure=None, inner=optimizer.step):
        return inner(closure)

    return step


def by_super(optimizer):
    def step(closure=None):
        return super(type(optimizer), optimizer).step(closure) if False else type(optimizer).step(optimizer, closure)

    return step


REACHING = {
    "partial": lambda o: functools.partial(o.step),
    "object": Counter,
    "default": by_default_argument,
    "class": by_super,
    "under a scheduler": lambda o: (ls.StepLR(o, 1), by_default_argument(o))[1],
}


@pytest.mark.parametrize("how", REACHING)
def test_a_patch_that_reaches_the_step_stays_and_takes_ours(how):
    a, b = net(), net()
    optimizer = AdamW(a.parameters(), 1e-2)
    patch = optimizer.step = REACHING[how](optimizer)
    convert(optimizer, a)
    assert optimizer.step is patch
    reference = made(b, AdamW)
    train(optimizer, a), train(reference, b)
    assert_same(a, b)


def nothing(closure=None):
    return None


HIDING = {
    "nothing": lambda o: nothing,
    "another class's": lambda o: types.MethodType(torch.optim.SGD.step, o),
    "another optimizer's": lambda o: AdamW([nn.Parameter(torch.ones(2))]).zero_grad,
    "bound": lambda o: types.MethodType(lambda self, closure=None: None, o),
    "compiled": lambda o: torch.compile(o.step, backend="eager"),
}


@pytest.mark.parametrize("how", HIDING)
def test_a_patch_that_hides_the_step_is_refused(how):
    model = net()
    optimizer = AdamW(model.parameters(), 1e-2)
    patch = optimizer.step = HIDING[how](optimizer)
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"AdamW cannot become an AdamMini because .* step .*(register_step_pre_hook|afterwards)"):
        convert(optimizer, model)
    assert_as_it_was(optimizer, before)
    assert optimizer.step is patch


def test_a_class_whose_step_was_replaced_is_refused(monkeypatch):
    monkeypatch.setattr(AdamW, "step", lambda self, closure=None: None)
    model = net()
    with pytest.raises(ValueError, match=r"AdamW.step itself was replaced by <lambda> .*register_optimizer_step_pre_hook"):
        convert(AdamW(model.parameters()), model)


FORCED = {
    "SGD": lambda p: torch.optim.SGD(p, 1e-2, momentum=0.9),
    "NAdam": torch.optim.NAdam,
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "Mine": lambda p: type("Mine", (AdamW,), {})(p),
}


@pytest.mark.parametrize("name", FORCED)
def test_forced_strangers_become_whole_ones(name):
    model = net()
    optimizer = FORCED[name](model.parameters())
    train(optimizer, model)
    lr = optimizer.param_groups[0]["lr"]
    convert(optimizer, model, force=True)
    train(optimizer, model)
    assert optimizer.param_groups[0]["lr"] == lr
    optimizer.load_state_dict(optimizer.state_dict())
    pickle.loads(pickle.dumps(optimizer)) if name != "Mine" else None
    copy.deepcopy(optimizer)
    assert set(optimizer.state[model[0].weight]) == {"step", "exp_avg", "exp_avg_sq"}
    assert optimizer.param_groups[0]["decoupled_weight_decay"] == (name == "Mine")
    assert f"made as {name}" in repr(optimizer)
