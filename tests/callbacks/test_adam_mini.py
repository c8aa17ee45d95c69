"""The callback: whatever configure_optimizers returns becomes an AdamMini, in place, and every setting survives.

``partition="adam"`` makes AdamMini the same as AdamW to the bit, so a run with the callback must equal one without it.
"""

from __future__ import annotations

import copy
import warnings

import lightning.pytorch as pl
import pytest
import timm.optim
import timm.scheduler
import torch
import torchmetrics
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import lr_scheduler as ls

from lightning_adam_mini import AdamMini, AdamMiniCallback, AdamMiniWarning, partition_model
from tests.callbacks.models import ConvModel, TokenModel, assert_differ, assert_equal, fit, weights


def adamw(model, **kwargs):
    return torch.optim.AdamW(model.parameters(), **{"lr": 1e-2, **kwargs})


def two_groups(model):
    names = dict(model.named_parameters())
    biases = [p for n, p in names.items() if n.endswith("bias")]
    others = [p for n, p in names.items() if not n.endswith("bias")]
    return torch.optim.AdamW(
        [{"params": others, "name": "weights"}, {"params": biases, "weight_decay": 0.0, "lr": 3e-3, "my_key": 7}], lr=1e-2
    )


def single(model):
    return adamw(model)


def as_list(model):
    return [adamw(model)]


def as_dict(model):
    return {"optimizer": adamw(model)}


def dict_with_scheduler(model):
    optimizer = adamw(model)
    return {"optimizer": optimizer, "lr_scheduler": ls.StepLR(optimizer, 1, gamma=0.5)}


def dict_with_config(model):
    optimizer = adamw(model)
    config = {"scheduler": ls.StepLR(optimizer, 2, gamma=0.5), "interval": "step", "frequency": 2, "name": "my_lr"}
    return {"optimizer": optimizer, "lr_scheduler": config}


def lists(model):
    optimizer = adamw(model)
    return [optimizer], [{"scheduler": ls.ExponentialLR(optimizer, 0.9), "interval": "step"}]


def lists_with_bare_scheduler(model):
    optimizer = adamw(model)
    return [optimizer], [ls.ExponentialLR(optimizer, 0.5)]


def list_of_dicts(model):
    optimizer = adamw(model)
    return [{"optimizer": optimizer, "lr_scheduler": ls.ExponentialLR(optimizer, 0.5)}]


def adam_coupled(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.7, 0.9), eps=1e-5)


def named(model):
    return torch.optim.AdamW(model.named_parameters(), lr=1e-2, maximize=True)


def foreach(model):
    return adamw(model, foreach=True)


FORMS = [
    single, as_list, as_dict, dict_with_scheduler, dict_with_config, lists, lists_with_bare_scheduler, list_of_dicts,
    adam_coupled, two_groups, named, foreach,
]  # fmt: skip


@pytest.mark.parametrize("configure", FORMS, ids=lambda f: f.__name__)
def test_every_form_trains_as_without_the_callback(configure):
    plain, swapped = TokenModel(configure), TokenModel(configure)
    reference = fit(plain)
    trainer = fit(swapped, AdamMiniCallback("adam"))
    assert_equal(weights(plain), weights(swapped))
    for ours, theirs in zip(trainer.optimizers, reference.optimizers, strict=True):
        assert isinstance(ours, AdamMini)
        assert isinstance(ours, type(theirs))
        for a, b in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert {k: v for k, v in b.items() if k not in ("params", "layouts")}.items() <= a.items()
    for a, b in zip(trainer.lr_scheduler_configs, reference.lr_scheduler_configs, strict=True):
        assert a.scheduler.optimizer in trainer.optimizers
        assert (a.interval, a.frequency, a.name, a.monitor) == (b.interval, b.frequency, b.name, b.monitor)


def plateau(o):
    return ls.ReduceLROnPlateau(o, patience=0, threshold=1.0)


TORCH_SCHEDULERS = {  # one of each kind: of the rate alone, of momentum too, of several schedulers, of weight averaging
    "LambdaLR": lambda o: ls.LambdaLR(o, lambda t: 0.9**t),
    "CyclicLR": lambda o: ls.CyclicLR(o, 1e-4, 1e-2, step_size_up=3, cycle_momentum=True, base_momentum=0.7, max_momentum=0.95),
    "OneCycleLR": lambda o: ls.OneCycleLR(o, 1e-2, total_steps=20, cycle_momentum=True),
    "SequentialLR": lambda o: ls.SequentialLR(o, [ls.LinearLR(o, 0.1, total_iters=4), ls.CosineAnnealingLR(o, 10)], milestones=[4]),
    "ChainedScheduler": lambda o: ls.ChainedScheduler([ls.LinearLR(o, 0.5, total_iters=4), ls.ExponentialLR(o, 0.9)], optimizer=o),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, swa_lr=1e-3, anneal_epochs=5),
}


class Rates(pl.Callback):
    """Writes down what every group's lr and betas were in each step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append([(float(g["lr"]), *g["betas"]) for o in trainer.optimizers for g in o.param_groups])


@pytest.mark.parametrize("name", TORCH_SCHEDULERS)
def test_torchs_schedulers_drive_the_optimizer(name, recwarn):
    def configure(model):
        optimizer = two_groups(model)
        return [optimizer], [{"scheduler": TORCH_SCHEDULERS[name](optimizer), "interval": "step"}]

    plain, swapped, a, b = TokenModel(configure), TokenModel(configure), Rates(), Rates()
    fit(plain, a)
    fit(swapped, AdamMiniCallback("adam"), b)
    assert a.seen == b.seen
    assert len({tuple(map(tuple, rates)) for rates in a.seen}) > 1, "the scheduler did move something"
    assert_equal(weights(plain), weights(swapped))
    assert not [w for w in recwarn if "lr_scheduler.step()" in str(w.message) or "overridden after learning rate" in str(w.message)]


@pytest.mark.parametrize("reduce_inside_dict", [False, True])
def test_reduce_on_plateau(reduce_inside_dict):
    def configure(model):
        optimizer = adamw(model)
        if reduce_inside_dict:
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau(optimizer), "monitor": "loss"}}
        return {"optimizer": optimizer, "lr_scheduler": plateau(optimizer), "monitor": "loss"}

    plain, swapped, a, b = TokenModel(configure), TokenModel(configure), Rates(), Rates()
    fit(plain, a, max_epochs=4)
    fit(swapped, AdamMiniCallback("adam"), b, max_epochs=4)
    assert a.seen == b.seen
    assert a.seen[0] != a.seen[-1]


class TimmModel(TokenModel):
    def lr_scheduler_step(self, scheduler, metric):
        scheduler.step(self.current_epoch + 1, 1.0)  # a metric that never gets better


@pytest.mark.parametrize(
    "make",
    [
        lambda o: timm.scheduler.CosineLRScheduler(o, t_initial=5, warmup_t=2, warmup_lr_init=1e-4),
        lambda o: timm.scheduler.PlateauLRScheduler(o, patience_t=0),
    ],
    ids=["cosine", "plateau"],
)
def test_timm_schedulers(make):
    def configure(model):
        optimizer = adamw(model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), "monitor": "loss"}}

    plain, swapped, a, b = TimmModel(configure), TimmModel(configure), Rates(), Rates()
    fit(plain, a, max_epochs=4)
    fit(swapped, AdamMiniCallback("adam"), b, max_epochs=4)
    assert a.seen == b.seen
    assert a.seen[0] != a.seen[-1]


class TwoOptimizers(TokenModel):
    """Manual optimization of two parts in turn, as in a GAN."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        a = torch.optim.AdamW([*self.embed.parameters(), *self.encoder.parameters()], lr=1e-2)
        b = torch.optim.Adam(self.head.parameters(), lr=1e-3)
        return [a, b], [ls.ExponentialLR(a, 0.9)]

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        self.lr_schedulers().step()


def test_several_optimizers_under_manual_optimization():
    plain, swapped = TwoOptimizers(), TwoOptimizers()
    fit(plain)
    trainer = fit(swapped, AdamMiniCallback("adam"))
    assert_equal(weights(plain), weights(swapped))
    assert [o.param_groups[0]["decoupled_weight_decay"] for o in trainer.optimizers] == [True, False]


# ---- what the default partition does


def test_default_partition_is_what_partition_model_says_and_changes_training():
    plain, swapped = TokenModel(), TokenModel()
    fit(plain)
    callback = AdamMiniCallback()
    trainer = fit(swapped, callback)
    assert trainer.optimizers[0].layouts == partition_model(swapped)
    assert trainer.optimizers[0].layouts["encoder.self_attn.in_proj_weight"].num_blocks == 48 + 16
    assert_differ(weights(plain), weights(swapped))


def test_options_and_overrides_reach_the_partition():
    model = TokenModel()
    trainer = fit(model, AdamMiniCallback("adam_mini_v1", overrides={"head.*": "tensor"}, options={"embedding": "none"}))
    layouts = trainer.optimizers[0].layouts
    assert layouts["embed.weight"].num_blocks == 1
    assert layouts["head.weight"].num_blocks == 1


class HandWritten(TokenModel):
    """Attention whose names and shapes say nothing."""

    def __init__(self, example=None):
        super().__init__()
        self.encoder = torch.nn.Linear(16, 48)
        self.example_input_array = example

    def forward(self, tokens):
        parts = self.encoder(self.embed(tokens)).view(len(tokens), -1, 2, 24).transpose(1, 2)
        a, b, c = parts.split(8, -1)
        return self.head(((b @ c.mT).softmax(-1) @ a).transpose(1, 2).flatten(2).mean(1))


def test_probe_finds_heads_that_only_running_shows():
    model = HandWritten(torch.randint(0, 11, (2, 5)))
    trainer = fit(model, AdamMiniCallback("adam_mini", probe=True))
    assert trainer.optimizers[0].layouts["encoder.weight"].lines == "2*(v:8x1|q:1x8|k:1x8)"


class Collecting(HandWritten):
    """Draws random numbers, collects losses and logs, as training steps do."""

    def __init__(self):
        super().__init__()
        self.mean, self.losses = torchmetrics.MeanMetric(), []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx) + torch.nn.functional.dropout(self.head.weight).sum()
        self.mean.update(loss)
        self.losses.append(loss.item())
        self.log_dict({"mean": self.mean, "last": loss})
        return loss


def test_probe_of_the_first_batch_finds_heads():
    trainer = fit(HandWritten(), AdamMiniCallback("adam_mini", probe=True))
    layouts = trainer.optimizers[0].layouts
    assert layouts["encoder.weight"].lines == "2*(v:8x1|q:1x8|k:1x8)"
    assert layouts["encoder.bias"].is_per_parameter
    assert trainer.optimizers[0].second_moments()["encoder.weight"].shape == (48, 1)


def test_probe_of_the_first_batch_changes_nothing_else():
    plain = Collecting()  # seeds
    first = fit(plain)
    probed = Collecting()
    second = fit(probed, AdamMiniCallback("adam", probe=True))
    assert_equal(weights(plain), weights(probed))
    assert plain.losses == probed.losses
    assert first.callback_metrics == second.callback_metrics
    assert "log" not in vars(probed)


def test_what_the_first_batch_showed_outlives_the_run(tmp_path):
    straight, resumed = HandWritten(), HandWritten()
    fit(straight, AdamMiniCallback("adam_mini", probe=True), max_epochs=2)
    fit(HandWritten(), AdamMiniCallback("adam_mini", probe=True), max_epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdamMiniWarning)  # nothing is averaged or spread
        trainer = fit(resumed, AdamMiniCallback("adam_mini", probe=True), max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert trainer.optimizers[0].layouts["encoder.weight"].lines == "2*(v:8x1|q:1x8|k:1x8)"
    assert_equal(weights(straight), weights(resumed))


def test_probe_needs_a_step_that_can_run_twice():
    model = HandWritten()
    model.automatic_optimization = False
    with pytest.raises(MisconfigurationException, match="example_input_array"):
        fit(model, AdamMiniCallback(probe=True))
    assert "configure_optimizers" not in vars(model)


def test_second_fit_with_the_same_optimizer_object():
    """LightningCLI's configure_optimizers returns one optimizer on every call."""
    kept = []

    def configure(model):
        if not kept:
            optimizer = adamw(model)
            kept.append({"optimizer": optimizer, "lr_scheduler": ls.ExponentialLR(optimizer, 0.9)})
        return dict(kept[0])

    model, callback = TokenModel(configure), AdamMiniCallback()
    first = fit(model, callback).optimizers[0]
    second = fit(model, callback).optimizers[0]
    assert first is second


def test_configure_optimizers_is_itself_again_after_the_fit_and_after_a_failure():
    model = TokenModel()
    fit(model, AdamMiniCallback())
    assert "configure_optimizers" not in vars(model)

    def own():
        return torch.optim.SGD(model.parameters(), lr=0.1)

    model.configure_optimizers = own
    with pytest.raises(MisconfigurationException):
        fit(model, AdamMiniCallback())
    assert model.configure_optimizers is own


def test_copies_of_module_and_callback_are_clean():
    model, callback = TokenModel(), AdamMiniCallback()
    fit(model, callback)
    twin = copy.deepcopy(callback)
    fit(copy.deepcopy(model), twin)
    assert twin.optimizer_state_bytes[0] > 0


# ---- optimizers that are left, refused or forced


def test_own_adam_mini_is_left_alone():
    made = []

    def configure(model):
        made.append(AdamMini(model.named_parameters(), lr=1e-2, layouts=partition_model(model, "tensor")))
        return made[0]

    trainer = fit(TokenModel(configure), AdamMiniCallback())
    assert trainer.optimizers[0] is made[0]


STRANGERS = {
    "NAdam": lambda p: torch.optim.NAdam(p),
    "RAdam": lambda p: torch.optim.RAdam(p),
    "Adamax": lambda p: torch.optim.Adamax(p),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "LBFGS": lambda p: torch.optim.LBFGS(p),
    "Lion": lambda p: timm.optim.Lion(p, lr=1e-3),
    "MyAdamW": lambda p: type("MyAdamW", (torch.optim.AdamW,), {})(p),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_are_refused_with_the_remedy_and_left_as_they_were(name):
    made = []

    def configure(model):
        optimizer = STRANGERS[name](model.parameters())
        scheduler = ls.StepLR(optimizer, 1)
        made.append((optimizer, scheduler, adamw(model)))
        return [made[0][2], optimizer], [scheduler]

    with pytest.raises(MisconfigurationException, match=rf"{name}.*return an AdamMini.*force=True") as error:
        fit(TokenModel(configure), AdamMiniCallback())
    assert "partition_model" in str(error.value)
    optimizer, scheduler, other = made[0]
    assert scheduler.optimizer is optimizer
    if name != "LBFGS":
        optimizer.step()
    other.step()


def test_force_takes_what_groups_say_and_says_so():
    def configure(model):
        return torch.optim.NAdam(model.parameters(), lr=3e-3, betas=(0.8, 0.9), eps=1e-7, weight_decay=0.01)

    with pytest.warns(AdamMiniWarning, match=r"NAdam becomes AdamMini with lr=0.003, betas=\(0.8, 0.9\), weight_decay=0.01.*may be far"):
        trainer = fit(TokenModel(configure), AdamMiniCallback(force=True))
    group = trainer.optimizers[0].param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (3e-3, (0.8, 0.9), 1e-7, 0.01)
    assert group["decoupled_weight_decay"] is False


def test_forced_sgd_under_one_cycle_cycles_beta1():
    def configure(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        scheduler = ls.OneCycleLR(optimizer, 1e-2, total_steps=20, base_momentum=0.6, max_momentum=0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    rates = Rates()
    with pytest.warns(AdamMiniWarning, match="SGD becomes AdamMini"):
        fit(TokenModel(configure), AdamMiniCallback(force=True), rates)
    assert len({beta1 for [(_, beta1, _)] in rates.seen}) > 5


@pytest.mark.parametrize("flag", ["amsgrad", "differentiable"])
def test_flags_without_meaning_for_blocks_are_refused(flag):
    with pytest.raises(MisconfigurationException, match=f"{flag}=True cannot become an AdamMini because"):
        fit(TokenModel(lambda m: adamw(m, **{flag: True, "foreach": False})), AdamMiniCallback())


def test_fused_adamw_becomes_an_adam_mini_that_chooses_for_itself():
    trainer = fit(TokenModel(lambda m: adamw(m, fused=True)), AdamMiniCallback(), gradient_clip_val=1.0)
    assert trainer.optimizers[0].param_groups[0]["fused"] is None


def test_no_optimizer_is_told():
    with pytest.warns(AdamMiniWarning, match="nothing to convert"):
        fit(TokenModel(lambda m: None), AdamMiniCallback())


class Unfreeze(BaseFinetuning):
    """Trains only from the second epoch on, in a group of its own or in the configured one."""

    def __init__(self, add_group):
        super().__init__()
        self.add_group = add_group

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module, train_bn=False)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1 and self.add_group:
            self.unfreeze_and_add_param_group(pl_module.encoder, optimizer, lr=3e-3)
        elif epoch == 1:
            self.make_trainable(pl_module)


@pytest.mark.parametrize("add_group", [True, False])
def test_a_model_that_is_frozen_when_the_fit_begins_trains_once_it_is_not(add_group):
    def configure(model):
        return torch.optim.AdamW(model.head.parameters() if add_group else model.parameters(), lr=1e-2)

    class Frozen(TokenModel):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss if loss.requires_grad else None

    plain, converted, blocks = Frozen(configure), Frozen(configure), Frozen(configure)
    before = weights(plain)
    fit(plain, Unfreeze(add_group))
    fit(converted, AdamMiniCallback("adam"), Unfreeze(add_group))
    with warnings.catch_warnings():
        warnings.simplefilter("error", AdamMiniWarning)  # what is added later has blocks too
        trainer = fit(blocks, AdamMiniCallback("tensor"), Unfreeze(add_group))
    assert_differ(before, weights(plain))
    assert_equal(weights(plain), weights(converted))
    assert all(layout.num_blocks == 1 for layout in trainer.optimizers[0].layouts.values())


def test_foreign_parameters_are_refused():
    stranger = torch.nn.Parameter(torch.ones(2, 3))
    with pytest.raises(MisconfigurationException, match=r"Group 1 of the configured AdamW holds a parameter of shape \(2, 3\) that is not"):
        fit(TokenModel(lambda m: torch.optim.AdamW([{"params": m.parameters()}, {"params": [stranger]}])), AdamMiniCallback())


def test_callback_twice_is_refused():
    with pytest.raises(MisconfigurationException, match="2 AdamMiniCallbacks"):
        fit(TokenModel(), AdamMiniCallback(), AdamMiniCallback("tensor"))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"overrides": {"heed.*": "tensor"}}, "head"),
        ({"overrides": {"head.weight": "q:2x99"}}, r"head\.weight"),
    ],
)
def test_bad_partition_is_told_before_anything_changed(kwargs, message):
    made = []

    def configure(model):
        made.append(adamw(model))
        return made[0]

    with pytest.raises(ValueError, match=message):
        fit(TokenModel(configure), AdamMiniCallback(**kwargs))
    made[0].step()


class SetsItsOwn(ConvModel):
    def setup(self, stage):
        self.configure_optimizers = lambda: torch.optim.AdamW(self.parameters())


def test_configure_optimizers_replaced_behind_our_back_is_told():
    with pytest.raises(MisconfigurationException, match="replaced after the callback's setup hook"):
        fit(SetsItsOwn(), AdamMiniCallback())
