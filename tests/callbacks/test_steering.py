"""Whatever steers the configured optimizer steers the training: with ``partition="adam"`` every situation equals plain AdamW to the bit."""

from __future__ import annotations

import copy
import functools
import gc
import types
import weakref

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import AdamW
from torch.optim import lr_scheduler as ls
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lightning_adam_mini import AdamMini, AdamMiniCallback, AdamMiniWarning
from tests.callbacks.models import TokenModel, assert_differ, assert_equal, fit, weights


class Steered(TokenModel):
    """Makes an AdamW, and writes down the rates that its first group has before each batch."""

    def __init__(self):
        super().__init__()
        self.rates, self.calls = [], []

    def make(self):
        return AdamW(self.parameters(), lr=1e-2)

    def configure_optimizers(self):
        self.opt = self.make()
        self.prepare()
        return self.opt

    def prepare(self):
        """Keep something that steers ``self.opt``."""

    def steer(self):
        """Steer."""

    def on_train_batch_start(self, batch, batch_idx):
        self.steer()
        self.rates.append(float(self.trainer.optimizers[0].param_groups[0]["lr"]))


# ---- schedulers that are kept and stepped by hand


class KeptScheduler(Steered):
    def prepare(self):
        self.schedule = ls.LambdaLR(self.opt, lambda step: (step + 1) / 20)


class ByStep(KeptScheduler):
    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.schedule.step()


class ByEpoch(KeptScheduler):
    def on_train_epoch_end(self):
        self.schedule.step()


class ByHand(KeptScheduler):
    """Manual optimization, of the optimizer that is kept."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.opt.zero_grad()
        self.manual_backward(loss)
        self.opt.step()
        self.schedule.step()


class ByWrapper(ByHand):
    """Manual optimization, through Lightning's wrapper."""

    def training_step(self, batch, batch_idx):
        loss = TokenModel.training_step(self, batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.schedule.step()


class Nested(Steered):
    def prepare(self):
        warm_up, decay = ls.LinearLR(self.opt, 0.1, total_iters=5), ls.ExponentialLR(self.opt, 0.9)
        self.schedule = ls.SequentialLR(self.opt, [warm_up, decay], milestones=[5])

    def on_train_batch_end(self, *args):
        self.schedule.step()


class Cycle(Nested):
    def prepare(self):
        self.schedule = ls.OneCycleLR(self.opt, 2e-2, total_steps=40)


# ---- rates by hand


class RateByHand(Steered):
    def steer(self):
        for group in self.opt.param_groups:
            group["lr"] = 1e-2 / (self.global_step + 1)


class RateAsTensor(Steered):
    """A tensor that is changed in place."""

    def make(self):
        return AdamW(self.parameters(), lr=torch.tensor(1e-2))

    def prepare(self):
        self.rate = self.opt.param_groups[0]["lr"]

    def steer(self):
        self.rate.mul_(0.9)
        self.calls.append(float(self.rate))


class DecayByHand(Steered):
    def steer(self):
        self.opt.param_groups[0].update(weight_decay=0.01 * self.global_step, betas=(0.5 + 0.02 * self.global_step, 0.99), eps=1e-6)
        self.calls.append(dict(self.opt.param_groups[0])["betas"])


# ---- schedulers of one's own, that hold the optimizer in other ways


def moves(group, step):
    group["lr"] = 1e-2 * 0.9**step


class ListOfGroups(Steered):
    def prepare(self):
        self.held = self.opt.param_groups

    def steer(self):
        for group in self.held:
            moves(group, self.global_step)


class OneGroup(Steered):
    def prepare(self):
        self.held = self.opt.param_groups[0]

    def steer(self):
        moves(self.held, self.global_step)


class Slotted:
    __slots__ = ("target",)

    def __init__(self, optimizer):
        self.target = optimizer


class Slots(Steered):
    def prepare(self):
        self.held = Slotted(self.opt)

    def steer(self):
        moves(self.held.target.param_groups[0], self.global_step)


class WeakReference(Steered):
    def prepare(self):
        self.held = weakref.ref(self.opt)

    def steer(self):
        moves(self.held().param_groups[0], self.global_step)


# ---- methods and parts of the optimizer that are kept


class KeptAddParamGroup(Steered):
    def make(self):
        return AdamW(self.head.parameters(), lr=1e-2)

    def steer(self):
        if self.global_step == 5:
            self.opt.add_param_group({"params": list(self.encoder.parameters()), "lr": 3e-3})
        moves(self.opt.param_groups[0], self.global_step)


class KeptBoundMethods(KeptAddParamGroup):
    """Functions of torch's, bound before it became an AdamMini."""

    def prepare(self):
        self.add, self.load, self.state = self.opt.add_param_group, self.opt.load_state_dict, self.opt.state_dict

    def steer(self):
        if self.global_step == 5:
            self.add({"params": list(self.encoder.parameters()), "lr": 3e-3})
        if self.global_step == 10:
            self.load(self.state())
        moves(self.opt.param_groups[0], self.global_step)


class KeptStep(ByHand):
    def prepare(self):
        super().prepare()
        self.step = self.opt.step

    def training_step(self, batch, batch_idx):
        loss = TokenModel.training_step(self, batch, batch_idx)
        self.opt.zero_grad()
        self.manual_backward(loss)
        self.step()
        self.schedule.step()


class PatchedStep(Steered):
    """A patch that goes on to call what it patched."""

    def prepare(self):
        inner = self.opt.step

        @functools.wraps(inner)
        def step(*args, **kwargs):
            self.calls.append("step")
            moves(self.opt.param_groups[0], len(self.calls))
            return inner(*args, **kwargs)

        self.opt.step = step


class PatchedByName(PatchedStep):
    """A patch that looks the step up in the class."""

    def prepare(self):
        def step(optimizer, closure=None):
            self.calls.append("step")
            moves(optimizer.param_groups[0], len(self.calls))
            return AdamW.step(optimizer, closure)

        self.opt.step = types.MethodType(step, self.opt)


class Filtered(Steered):
    """Parameters leave their group, come back in another order."""

    def steer(self):
        params = self.opt.param_groups[0]["params"]
        if self.global_step == 3:
            self.aside = params[::2]
            self.opt.param_groups[0]["params"] = params[1::2]
        if self.global_step == 7:
            params.extend(reversed(self.aside))
        moves(self.opt.param_groups[0], self.global_step)


class Hooks(Steered):
    """A hook of each kind that torch has on one optimizer, and two on all."""

    def prepare(self):
        note = self.calls.append
        self.opt.register_step_pre_hook(lambda *a: note("pre"))
        self.removed = self.opt.register_step_post_hook(lambda *a: note("post"))
        self.opt.register_state_dict_pre_hook(lambda o: note("state pre"))
        self.opt.register_state_dict_post_hook(lambda o, state: note(("state post", len(state["state"]), set(state["state"][0]))))
        self.opt.register_load_state_dict_pre_hook(lambda o, state: note(("load pre", set(state["state"][0]))))
        self.opt.register_load_state_dict_post_hook(lambda o: note(("load post", set(o.state[self.head.weight]))))

    def steer(self):
        if self.global_step == 5:
            self.removed.remove()
        if self.global_step in (4, 9):
            self.opt.load_state_dict(self.opt.state_dict())
        moves(self.opt.param_groups[0], self.global_step)

    def on_fit_start(self):
        mine = self.opt
        self.everywhere = [
            register_optimizer_step_pre_hook(lambda o, *a: o is mine and self.calls.append("pre of all")),
            register_optimizer_step_post_hook(lambda o, *a: o is mine and self.calls.append("post of all")),
        ]

    def on_fit_end(self):
        for handle in self.everywhere:
            handle.remove()


class ChangingHooks(Steered):
    """Hooks that change what passes through them."""

    def prepare(self):
        def double(optimizer, state):
            state["param_groups"][0]["lr"] = state["param_groups"][0]["lr"] * 2

        def replaced(optimizer, state):
            return {**state, "param_groups": [{**group, "weight_decay": 0.5} for group in state["param_groups"]]}

        self.opt.register_state_dict_post_hook(double)
        self.opt.register_load_state_dict_pre_hook(replaced)

    def steer(self):
        if self.global_step in (3, 6):
            self.opt.load_state_dict(self.opt.state_dict())
        self.rates.append(self.opt.param_groups[0]["weight_decay"])


class Identity(Steered):
    """Clips only what is the kept optimizer, and an AdamW."""

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        optimizer = getattr(optimizer, "optimizer", optimizer)
        if optimizer is self.opt and isinstance(optimizer, AdamW) and type(self.opt).__name__ == "AdamW":
            self.calls.append("clipped")
            self.clip_gradients(optimizer, 1e-4, "value")

    def steer(self):
        moves(self.opt.param_groups[0], self.global_step)


SITUATIONS = (
    ByStep, ByEpoch, ByHand, ByWrapper, Nested, Cycle, RateByHand, RateAsTensor, DecayByHand, ListOfGroups, OneGroup, Slots, WeakReference,
    KeptAddParamGroup, KeptBoundMethods, KeptStep, PatchedStep, PatchedByName, Filtered, Hooks, ChangingHooks, Identity,
)  # fmt: skip


def assert_same(plain, converted):
    assert plain.rates == converted.rates
    assert plain.calls == converted.calls
    assert_equal(weights(plain), weights(converted))
    assert type(converted.opt).__name__ == "AdamW"
    assert isinstance(converted.opt, AdamW)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda s: s.__name__)
def test_it_steers_as_without_the_callback_also_when_resumed(situation, tmp_path):
    plain, converted = situation(), situation()
    straight = fit(plain)
    trainer = fit(converted, AdamMiniCallback("adam"))
    assert trainer.optimizers[0] is converted.opt
    assert isinstance(converted.opt, AdamMini)
    assert_same(plain, converted)
    assert len(set(map(str, plain.rates))) > 1 or plain.calls, "something was steered"
    straight.save_checkpoint(tmp_path / "plain.ckpt")
    trainer.save_checkpoint(tmp_path / "converted.ckpt")
    if situation in (KeptAddParamGroup, KeptBoundMethods, Filtered):
        return  # torch cannot load a state into other groups or another order, with or without the callback
    plain, converted = situation(), situation()
    fit(plain, max_epochs=3, ckpt_path=tmp_path / "plain.ckpt")
    fit(converted, AdamMiniCallback("adam"), max_epochs=3, ckpt_path=tmp_path / "converted.ckpt")
    assert_same(plain, converted)


@pytest.mark.parametrize("situation", [ByHand, DecayByHand, KeptAddParamGroup, PatchedStep, Filtered, Hooks], ids=lambda s: s.__name__)
def test_it_steers_blocks_too(situation):
    plain, blocks = situation(), situation()
    before = weights(plain)
    fit(plain)
    fit(blocks, AdamMiniCallback("tensor"))
    assert plain.rates == blocks.rates
    assert plain.calls == blocks.calls
    assert_differ(before, weights(blocks))
    assert_differ(weights(plain), weights(blocks))
    assert {layout.num_blocks for layout in blocks.opt.layouts.values()} == {1}


# ---- a second fit


class MadeOnce(Steered):
    """Optimizer and scheduler are made once and returned again and again, as LightningCLI does."""

    def __init__(self):
        super().__init__()
        self.opt = self.make()
        self.schedule = ls.StepLR(self.opt, 1, 0.5)

    def configure_optimizers(self):
        return [self.opt], [self.schedule]


@pytest.mark.parametrize("second", ["without", "same", "another"])
@pytest.mark.parametrize("partition", ["adam", "tensor"])
def test_a_second_fit_goes_on(second, partition, tmp_path):
    callback = AdamMiniCallback(partition)
    callbacks = {"without": [], "same": [callback], "another": [AdamMiniCallback(partition)]}[second]
    plain, converted, reference = MadeOnce(), MadeOnce(), MadeOnce()
    fit(plain), fit(plain)
    fit(converted, callback)
    trainer = fit(converted, *callbacks)
    fit(reference, other := AdamMiniCallback(partition)), fit(reference, other)
    assert plain.rates == converted.rates
    assert_equal(weights(plain if partition == "adam" else reference), weights(converted))
    assert isinstance(converted.opt, AdamMini)
    assert not converted.opt._optimizer_step_pre_hooks, "nothing of ours stays on it"
    trainer.save_checkpoint(tmp_path / "twice.ckpt")
    resumed, straight = MadeOnce(), converted
    fit(resumed, AdamMiniCallback(partition), max_epochs=3, ckpt_path=tmp_path / "twice.ckpt")
    fit(straight, AdamMiniCallback(partition), max_epochs=3, ckpt_path=tmp_path / "twice.ckpt")
    assert_equal(weights(straight), weights(resumed))


def test_a_second_fit_may_have_other_blocks_that_nest():
    model = MadeOnce()
    for partition, blocks in (("adam", 33), ("tensor", 1), ("adam", 33)):
        fit(model, AdamMiniCallback(partition, overrides={"head.weight": "line"} if partition == "adam" else None))
        expected = 3 if partition == "adam" else 1
        assert model.opt.state[model.head.weight]["exp_avg_sq"].numel() == expected, blocks
    before = weights(model)
    with pytest.raises(ValueError, match=r"'head.weight' has blocks \(mean over dim 1\) that are neither finer nor coarser than the new"):
        fit(model, AdamMiniCallback("adam", overrides={"head.weight": {"dims": [0]}}))
    assert_equal(before, weights(model))
    assert model.opt.layouts["head.weight"].num_blocks == 3


# ---- bad input: refused by name before anything changed


def hides(optimizer):
    def my_step(closure=None):
        loss = closure() if closure else None
        for group in optimizer.param_groups:
            for p in group["params"]:
                optimizer.state[p]["step"] = 1
                p.data.sub_(p.grad, alpha=group["lr"])
        return loss

    optimizer.step = my_step


def hides_as_method(optimizer):
    optimizer.step = types.MethodType(torch.optim.SGD.step, optimizer)


def compiles(optimizer):
    optimizer.step = torch.compile(optimizer.step, backend="eager")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (hides, r"AdamW cannot become .* replaced by my_step \(.*test_steering.py:\d+\), which would hide .* register_step_pre_hook"),
        (hides_as_method, "AdamW cannot become .* replaced by .* which would hide"),
        (compiles, "AdamW cannot become .* compiled already.* afterwards"),
    ],
)
def test_a_step_that_would_hide_ours_is_refused(change, message):
    class Changed(Steered):
        def prepare(self):
            change(self.opt)

    model = Changed()
    before = weights(model)
    with pytest.raises(MisconfigurationException, match=message):
        fit(model, AdamMiniCallback())
    assert type(model.opt) is AdamW
    assert "layouts" not in model.opt.param_groups[0]
    assert_equal(before, weights(model))


def test_a_stranger_with_a_step_of_its_own_is_refused_even_if_forced():
    class Stranger(Steered):
        def make(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def prepare(self):
            inner = self.opt.step
            self.opt.step = lambda *args, **kwargs: inner(*args, **kwargs)

    model = Stranger()
    with pytest.raises(MisconfigurationException, match="SGD cannot become .* the step of this object was replaced by <lambda>"):
        fit(model, AdamMiniCallback(force=True))
    assert type(model.opt) is torch.optim.SGD


def test_a_step_compiled_before_and_kept_elsewhere_raises_when_it_is_called():
    class Compiled(ByHand):
        def prepare(self):
            super().prepare()
            self.opt_step = torch.compile(self.opt.step, backend="eager")

        def training_step(self, batch, batch_idx):
            self.manual_backward(TokenModel.training_step(self, batch, batch_idx))
            self.opt_step()

    model = Compiled()
    before = weights(model)
    with pytest.raises(Exception, match="compiled when the optimizer was no AdamMini yet"):
        fit(model, AdamMiniCallback())
    assert_equal(before, weights(model))


class FitsWithin(pl.Callback):
    """Begins a fit of the same optimizer in the middle of one."""

    def __init__(self, within):
        self.within = within

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 3:
            other = Steered()
            other.__dict__["configure_optimizers"] = lambda: pl_module.opt
            other.head, other.embed, other.encoder = pl_module.head, pl_module.embed, pl_module.encoder
            fit(other, self.within)


def test_an_optimizer_in_two_fits_at_once_is_refused():
    model = Steered()
    with pytest.raises(MisconfigurationException, match="AdamW is in the fit of another AdamMiniCallback"):
        fit(model, AdamMiniCallback("adam"), FitsWithin(AdamMiniCallback("tensor")))
    assert all(layout.is_per_parameter for layout in model.opt.layouts.values())
    fit(model, AdamMiniCallback("tensor"))  # the first fit has ended


def test_all_optimizers_are_as_they_were_if_one_fails():
    made = []

    class Two(Steered):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            first = AdamW([*self.embed.parameters(), *self.encoder.parameters()], lr=1e-2)
            made[:] = [first, ls.StepLR(first, 1), AdamW(self.head.parameters(), capturable=True)]
            return made[0], made[2]

    with pytest.raises(ValueError, match=r"capturable=True\) takes neither momentum_dtype='8bit'"):
        fit(Two(), AdamMiniCallback(momentum_dtype="8bit"))
    first, schedule, second = made
    assert type(first) is type(second) is AdamW
    assert "layouts" not in first.param_groups[0]
    assert schedule.optimizer is first
    assert "step" in vars(first), "the scheduler's wrapper is there again"


# ---- whoever else calls, wraps or copies configure_optimizers


class CallsItItself(Steered):
    """Configures its optimizer before Lightning does, as to build something around it."""

    def setup(self, stage):
        self.early = self.configure_optimizers()


class CopiesItself(Steered):
    """Keeps a copy of itself as a teacher."""

    def setup(self, stage):
        vars(self)["teacher"] = copy.deepcopy(self)


class Wraps(pl.Callback):
    """Wraps configure_optimizers, and puts back what it found."""

    def setup(self, trainer, pl_module, stage):
        self.found = pl_module.configure_optimizers
        pl_module.configure_optimizers = lambda: self.found()

    def teardown(self, trainer, pl_module, stage):
        pl_module.configure_optimizers = self.found


class ConfiguresAnew(pl.Callback):
    """Has Lightning make new optimizers in the middle, as for a new task."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            trainer.strategy.setup_optimizers(trainer)


@pytest.mark.parametrize(("kind", "callbacks"), [(CallsItItself, []), (CopiesItself, []), (Steered, [Wraps]), (Steered, [ConfiguresAnew])])
def test_what_lightning_trains_with_is_converted_whoever_configures(kind, callbacks):
    plain, converted, blocks = kind(), kind(), kind()
    fit(plain, *(callback() for callback in callbacks))
    fit(converted, AdamMiniCallback("adam"), *(callback() for callback in callbacks))
    trainer = fit(blocks, AdamMiniCallback("tensor"), *(callback() for callback in callbacks))
    assert_equal(weights(plain), weights(converted))
    assert {layout.num_blocks for layout in trainer.optimizers[0].layouts.values()} == {1}
    assert type(fit(blocks).optimizers[0]) is AdamW, "a fit without the callback is one"
    assert isinstance(fit(blocks, AdamMiniCallback()).optimizers[0], AdamMini), "and one with it"


def test_a_copy_made_during_a_fit_is_a_module_of_its_own():
    model = CopiesItself()
    fit(model, AdamMiniCallback())
    before = weights(model.teacher)
    trainer = fit(model.teacher)
    assert type(trainer.optimizers[0]) is AdamW
    assert_differ(before, weights(model.teacher))


def test_an_optimizer_that_does_not_come_from_configure_optimizers_is_told():
    class Sneaks(pl.Callback):
        def setup(self, trainer, pl_module, stage):
            own = type(trainer.strategy).setup_optimizers

            def setup_optimizers(trainer):
                own(trainer.strategy, trainer)
                trainer.strategy.optimizers = [AdamW(pl_module.parameters())]

            trainer.strategy.setup_optimizers = setup_optimizers

    with pytest.raises(MisconfigurationException, match="did not see the AdamW that Lightning trains with"):
        fit(Steered(), AdamMiniCallback(), Sneaks())


def test_a_callback_in_a_fit_takes_no_other():
    class Inner(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            fit(Steered(), next(c for c in trainer.callbacks if isinstance(c, AdamMiniCallback)))

    with pytest.raises(MisconfigurationException, match="in a fit already"):
        fit(Steered(), AdamMiniCallback(), Inner())


def test_parameters_can_be_swapped_as_torch_does():
    """Which it refuses where anything refers to them weakly."""
    model = Steered()
    fit(model, AdamMiniCallback())
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.to(torch.float64).to(torch.float32)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_a_part_in_torchscript_trains_beside_the_rest():
    def scripted():
        model = TokenModel()
        model.head = torch.jit.trace(model.head, torch.ones(1, 16))
        return model

    plain, converted = scripted(), scripted()
    fit(plain)
    fit(converted, AdamMiniCallback("adam"))
    assert_equal(weights(plain), weights(converted))


@pytest.mark.parametrize(
    ("configure", "precision", "message"),
    [
        (lambda m: AdamW(m.parameters(), fused=True), "32-true", "fused=True is dropped"),
        (lambda m: AdamW(m.parameters()), "bf16-true", "torch.bfloat16 weights are kept in float32"),
    ],
)
def test_where_adam_is_not_the_same_to_the_bit_it_says_so_before_training(configure, precision, message):
    with pytest.warns(AdamMiniWarning, match=message):
        fit(TokenModel(configure), AdamMiniCallback("adam"), precision=precision, max_steps=1)


def test_a_layer_added_between_two_fits_gets_blocks_too():
    model, callback = MadeOnce(), AdamMiniCallback("tensor")
    fit(model, callback)
    model.extra = torch.nn.Linear(3, 3)
    with pytest.warns(AdamMiniWarning, match="No layout for 2 parameters"):
        model.opt.add_param_group({"params": list(model.extra.parameters())})
    fit(model, callback)
    assert model.opt.layouts["extra.weight"].num_blocks == 1


def test_numbers_may_be_numpys_and_the_state_may_hold_other_things():
    def configure(model):
        optimizer = AdamW(model.parameters(), lr=np.float32(1e-2), weight_decay=np.float64(0.1))
        optimizer.state["note"] = "mine"
        optimizer.state["numbers"] = {"a": 1}
        return optimizer

    plain, converted = TokenModel(configure), TokenModel(configure)
    fit(plain)
    trainer = fit(converted, AdamMiniCallback("adam"))
    assert_equal(weights(plain), weights(converted))
    assert trainer.optimizers[0].state["note"] == "mine"


def test_nothing_of_the_callback_outlives_it():
    model = Steered()
    fit(model, AdamMiniCallback())
    optimizer = weakref.ref(model.opt)
    del model
    gc.collect()
    assert optimizer() is None
