"""What each rank of the tests of ZeRO runs; ``test_zero.py`` starts the ranks."""

from __future__ import annotations

import csv
import os
import signal
import warnings
from argparse import Namespace
from contextlib import contextmanager
from functools import partial

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.nn.functional import cross_entropy

from experiments.strategies.model import BLOCKS, Network
from lightning_adam_mini import AdamMini, AdamMiniCallback, AdamMiniWarning, bind_zero_, convert_optimizer_, partition_model
from lightning_adam_mini.optim import adamw_bytes, state_bytes
from lightning_adam_mini.optim.shards.zero import shards_of_zero_init
from recipes.strategies import CPUDeepSpeedStrategy
from tests import launch

STAGES = (1, 2, 3)


def start():
    """The process group that all checks share."""
    warnings.simplefilter("ignore")
    deepspeed.utils.logging.logger.setLevel("ERROR")
    deepspeed.init_distributed("gloo", verbose=False)


def whole(module):
    out = {}
    for name, p in module.named_parameters():
        if hasattr(p, "ds_id"):
            with deepspeed.zero.GatheredParameters([p]):
                out[name] = p.detach().clone().float()
        else:
            out[name] = p.detach().clone().float()
    return out


def difference(a, b):
    assert a.keys() == b.keys()
    apart = {name: float((a[name] - b[name]).abs().max() / b[name].abs().max()) for name in b}
    return max(apart.values())


@contextmanager
def told(text):
    """Some rank warns so: those that hold something of it."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", AdamMiniWarning)
        yield
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, [str(one.message) for one in caught])
    assert any(text in message for messages in every for message in messages), every


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in b)


# ---- through Lightning --------------------------------------------------------------------------------------------------


class Scheduled(Network):
    """Two groups, one of which does not decay, a rate that falls at each step, layers made where ZeRO 3 shards them; keeps its losses."""

    def __init__(self):
        super().__init__()
        self.losses = []
        self.made = False

    def configure_model(self):
        if not self.made:  # anew, so that the layers are made within zero.Init; with the same random numbers
            self.made = True
            fresh = Network()
            for name, layer in fresh.named_children():
                setattr(self, name, layer)

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.detach().clone())
        return loss

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def fit(strategy, model=None, ckpt_path=None, callback=None, others=(), **options):
    model = model or Scheduled()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=strategy,
        callbacks=[callback or AdamMiniCallback(overrides=BLOCKS), *others],
        **{"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options},
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, ckpt_path=ckpt_path)
    return trainer


def zero(stage, **options):
    return CPUDeepSpeedStrategy(stage=stage, **options)


def ddp():
    return DDPStrategy(process_group_backend="gloo")


def check_lightning(stage, folder):
    """As DDP, in losses, weights, what it has learned and what it logs; half of its state a rank; and what it resumes is what it was."""
    here = fit(zero(stage), logger=CSVLogger(folder, f"zero{stage}"), log_every_n_steps=5)
    there = fit(ddp(), logger=CSVLogger(folder, f"ddp{stage}"), log_every_n_steps=5)
    assert type(here.optimizers[0].optimizer).__name__ == "AdamW"
    assert isinstance(here.optimizers[0].optimizer, (AdamMini, torch.optim.AdamW))
    losses = [torch.stack(one.lightning_module.losses) for one in (here, there)]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=1e-6)
    assert difference(whole(here.lightning_module), whole(there.lightning_module)) < 2e-6
    ours, theirs = here.optimizers[0].optimizer, there.optimizers[0]
    assert difference(ours.second_moments(), theirs.second_moments()) < 1e-5
    assert difference(ours.block_learning_rates(), theirs.block_learning_rates()) < 1e-5
    assert ours.layouts == theirs.layouts
    bytes_here, bytes_there = state_bytes(here.optimizers[0]), state_bytes(theirs)
    assert here.callbacks[0].optimizer_state_bytes == (bytes_here, adamw_bytes(here.optimizers[0]))
    assert bytes_here < 0.8 * bytes_there
    if here.is_global_zero:
        logged = []
        for name in (f"zero{stage}", f"ddp{stage}"):
            (file,) = folder.glob(f"{name}/**/metrics.csv")
            with file.open() as lines:
                logged.append([{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)])
        assert len(logged[0]) == len(logged[1]) == 2
        for a, b in zip(*logged, strict=True):
            assert a == pytest.approx(b, rel=1e-4)

    path = str(folder / f"stage{stage}")
    here.save_checkpoint(path)
    straight = fit(zero(stage), max_epochs=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*other blocks")
        resumed = fit(zero(stage), max_epochs=2, ckpt_path=path)
    assert equal(whole(resumed.lightning_module), whole(straight.lightning_module))
    dist.barrier()
    if here.is_global_zero:
        convert_zero_checkpoint_to_fp32_state_dict(path, str(folder / f"fp32-{stage}"), tag="checkpoint")
        saved = torch.load(folder / f"fp32-{stage}" / "pytorch_model.bin")
        assert {name.removeprefix("_forward_module.") for name in saved} == set(straight.lightning_module.state_dict())
    dist.barrier()


def check_other_blocks(stage, folder):
    """A checkpoint of other blocks is told of, and refused where that is wanted."""
    path = str(folder / f"tensors{stage}")
    fit(zero(stage), callback=AdamMiniCallback(overrides={**BLOCKS, "down.weight": "tensor"})).save_checkpoint(path)
    with told("other blocks for 1 parameter ('down.weight'); their second moments were spread"):
        fit(zero(stage), max_epochs=2, ckpt_path=path)
    with pytest.raises(ValueError, match="'down.weight' has other blocks .* converting is forbidden"):
        fit(zero(stage), max_epochs=2, ckpt_path=path, callback=AdamMiniCallback(overrides=BLOCKS, convert_checkpoints=False))


def check_clipping_and_momentum(stage, folder):
    clip = {"gradient_clip_val": 0.05}
    assert difference(whole(fit(zero(stage), **clip).lightning_module), whole(fit(ddp(), **clip).lightning_module)) < 5e-6
    if stage == 2:
        return
    for momentum in ("bfloat16", "8bit"):  # the tensors are small: 8 bits are tested by hand below
        callback = partial(AdamMiniCallback, overrides=BLOCKS, momentum_dtype=momentum)
        here, there = fit(zero(stage), callback=callback()), fit(ddp(), callback=callback())
        assert difference(whole(here.lightning_module), whole(there.lightning_module)) < (5e-2 if momentum == "bfloat16" else 5e-6)


def check_offload_and_accumulation(stage, folder):
    options = {"accumulate_grad_batches": 2, "max_epochs": 2}
    path = str(folder / f"offload{stage}")
    offloaded = partial(zero, stage, offload_optimizer=True)
    straight = fit(offloaded(), **options)
    fit(offloaded(), **{**options, "max_epochs": 1}).save_checkpoint(path)
    assert equal(whole(fit(offloaded(), ckpt_path=path, **options).lightning_module), whole(straight.lightning_module))
    # Lightning divides the loss by the number of batches, and DeepSpeed does so again: as DDP with half the loss.
    there = fit(ddp(), model=HalfLoss(), **options)
    assert difference(whole(straight.lightning_module), whole(there.lightning_module)) < 5e-6


class HalfLoss(Scheduled):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) / 2


def check_bfloat16(stage, folder):
    path = str(folder / f"mixed{stage}")
    straight = fit(zero(stage), precision="bf16-mixed", max_epochs=2)
    assert {v.dtype for v in straight.optimizers[0].optimizer.second_moments().values()} == {torch.float32}
    fit(zero(stage), precision="bf16-mixed").save_checkpoint(path)
    resumed = fit(zero(stage), precision="bf16-mixed", max_epochs=2, ckpt_path=path)
    assert equal(whole(resumed.lightning_module), whole(straight.lightning_module))
    narrow = fit(zero(stage), precision="bf16-true")
    assert {p.dtype for p in narrow.lightning_module.parameters()} == {torch.bfloat16}
    assert {v.dtype for v in narrow.optimizers[0].optimizer.second_moments().values()} == {torch.float32}


def check_refusals(stage, folder):
    error = pl.utilities.exceptions.MisconfigurationException
    with pytest.raises(error, match="cannot orthogonalise the updates of .* because ZeRO cuts matrices"):
        fit(zero(stage), callback=AdamMiniCallback("muon"))
    with pytest.raises(error, match="stochastic_rounding=True"):
        fit(zero(stage), precision="bf16-true", callback=AdamMiniCallback(overrides=BLOCKS, stochastic_rounding=True))
    with pytest.raises(error, match="probe=True cannot run the module once more where ZeRO shards it"):
        fit(zero(stage), callback=AdamMiniCallback(probe=True))


# ---- by hand ------------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    """The same layers, wide enough for momentum in 8 bits, returning their loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.up, self.down = nn.Embedding(37, 64), nn.Linear(64, 90), nn.Linear(90, 7)
        self.norm = nn.LayerNorm(64)

    def forward(self, tokens, labels):
        return cross_entropy(self.down(torch.tanh(self.up(self.norm(self.embed(tokens)))).mean(1)), labels)


NET_BLOCKS = {
    "embed.weight": "line",
    "up.weight": "factored",
    "up.bias": "tensor",
    "down.weight": {"dims": [0]},
    "norm.weight": "parameter",
}
OPTIONS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
STEPS = 6


def batches(begin, end):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    for step in range(begin, end):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, 37, (8, 6), generator=generator)
        yield tokens[rank::ranks], (tokens.sum(1) % 7)[rank::ranks], tokens, tokens.sum(1) % 7


def groups_of(model):
    named = list(model.named_parameters())
    decays = [len(getattr(p, "ds_shape", p.shape)) > 1 for _, p in named]
    return [
        {"params": [one for one, yes in zip(named, decays, strict=True) if yes]},
        {"params": [one for one, yes in zip(named, decays, strict=True) if not yes], "weight_decay": 0.0},
    ]


def net_layouts():
    return partition_model(Net(), "tensor", overrides=NET_BLOCKS)


def engine_for(stage, optimizer=None, model=None, bind=True, config=None, **zero_options):
    model = Net() if model is None else model
    options = {"zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0, **zero_options}, **(config or {})}
    options = {
        "train_micro_batch_size_per_gpu": 8 // dist.get_world_size(),
        "zero_allow_untested_optimizer": True,
        "gradient_clipping": 0.0,
        **options,
    }
    options.setdefault("zero_force_ds_cpu_optimizer", False)
    optimizer = optimizer(model) if optimizer else AdamMini(groups_of(model), layouts=net_layouts(), **OPTIONS)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=options, dist_init_required=False)
    if bind:
        bind_zero_(engine)
    return engine


def train(engine, begin=0, end=STEPS):
    for tokens, labels, *_ in batches(begin, end):
        engine.backward(engine(tokens, labels))
        engine.step()
    return whole(engine.module)


def on_one(begin=0, end=STEPS, **options):
    """The weights of one process, which sees the batches whole."""
    model = Net()
    optimizer = AdamMini(groups_of(model), layouts=net_layouts(), **OPTIONS, **options)
    for *_, tokens, labels in batches(begin, end):
        optimizer.zero_grad()
        model(tokens, labels).backward()
        optimizer.step()
    return whole(model)


VARIANTS = {
    "plain": {},
    "offload": {"offload_optimizer": {"device": "cpu"}},
    "round robin": {"round_robin_gradients": True},
    "no contiguous gradients": {"contiguous_gradients": False, "overlap_comm": True},
    "sub-groups": {"sub_group_size": 3000},
}


def check_variants(stage, folder):
    one = on_one()
    for name, options in VARIANTS.items():
        if (name == "sub-groups") == (stage == 3) or name in ("plain", "offload"):
            assert difference(train(engine_for(stage, **options)), one) < 2e-6, name
    if stage == 3:
        with deepspeed.zero.Init(config_dict_or_path={"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 3}}):
            model = Net()

        def converted(model):
            groups = [{**group, "params": [p for _, p in group["params"]]} for group in groups_of(model)]
            named = model.named_parameters()
            return convert_optimizer_(torch.optim.AdamW(groups, **OPTIONS), net_layouts(), named, flat_shards=shards_of_zero_init(model))

        assert difference(train(engine_for(3, converted, model)), one) < 2e-6


def check_8_bits(stage, folder):
    """Codes as of one process where a rank's range begins and ends at whole runs; anywhere else runs begin anew, and it resumes exactly."""

    def narrow(model):
        return AdamMini(groups_of(model), layouts=net_layouts(), momentum_dtype="8bit", **OPTIONS)

    engine = engine_for(stage, narrow)
    weights = train(engine)
    kinds = {v.dtype for piece in engine.optimizer.optimizer.pieces() for s in piece.state.values() for n, v in s.items() if n == "exp_avg"}
    assert torch.int8 in kinds
    assert difference(weights, on_one(momentum_dtype="8bit")) < 2e-2
    engine.save_checkpoint(str(folder / f"narrow{stage}"), tag="checkpoint")
    again = engine_for(stage, narrow)
    again.load_checkpoint(str(folder / f"narrow{stage}"), tag="checkpoint")
    assert equal(train(again, STEPS, 2 * STEPS), train(engine, STEPS, 2 * STEPS))


def plain_adamw(model):
    return torch.optim.AdamW([{**group, "params": [p for _, p in group["params"]]} for group in groups_of(model)], **OPTIONS)


def check_adamw_to_and_fro(stage, folder):
    there, back = str(folder / f"adamw{stage}"), str(folder / f"back{stage}")
    engine = engine_for(stage, plain_adamw, bind=False)
    train(engine)
    engine.save_checkpoint(there, tag="checkpoint")
    ours = engine_for(stage)
    with told("their second moments were averaged"):
        ours.load_checkpoint(there, tag="checkpoint")
    # As one process that loads what AdamW had after the same steps.
    model, once = Net(), {}
    optimizer = plain_adamw(model)
    for *_, tokens, labels in batches(0, STEPS):
        optimizer.zero_grad()
        model(tokens, labels).backward()
        optimizer.step()
    convert_optimizer_(optimizer, net_layouts(), model.named_parameters())
    expected = optimizer.second_moments()
    found = ours.optimizer.optimizer.second_moments()
    assert difference(found, expected) < 1e-5
    train(ours, STEPS, STEPS + 2)
    ours.save_checkpoint(back, tag="checkpoint")
    again = engine_for(stage, plain_adamw, bind=False)
    again.load_checkpoint(back, tag="checkpoint")
    once = train(again, STEPS + 2, STEPS + 4)
    assert all(torch.isfinite(w).all() for w in once.values())
    states = [s for s in again.optimizer.optimizer.state.values() if s]
    assert {float(s["step"]) for s in states} == {STEPS + 4.0}


def check_errors(stage, folder):
    engine = engine_for(stage, bind=False)
    for tokens, labels, *_ in batches(0, 1):
        engine.backward(engine(tokens, labels))
        with pytest.raises(ValueError, match=r"ZeRO has put them. Call lightning_adam_mini.bind_zero_\(engine\)"):
            engine.step()
    engine = engine_for(stage, bind=False)
    z = engine.optimizer
    if stage == 3:
        p = z.fp16_groups[0][0]
        i, offset, size = z.grad_position[z.get_param_id(p)]
        z.grad_position[z.get_param_id(p)] = [i, offset + 1, size]
    else:
        z.round_robin_bit16_offsets[0][0] += 1
    kind = type(z.optimizer)
    with pytest.raises(ValueError, match="cannot tell which parameters ZeRO of deepspeed .* are found by private attributes"):
        bind_zero_(engine)
    assert type(z.optimizer) is kind
    name = "fp32_partitioned_groups_flat" if stage == 3 else "round_robin_bit16_groups"
    kept = getattr(z, name)
    delattr(z, name)
    with pytest.raises(ValueError, match="cannot tell"):
        bind_zero_(engine)
    setattr(z, name, kept)
    engine = engine_for(stage)
    optimizer = engine.optimizer.optimizer
    with pytest.raises(ValueError, match="called twice"):
        bind_zero_(engine)
    with pytest.raises(ValueError, match="cannot add parameters any more"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ValueError, match="wants an engine whose ZeRO steps an AdamMini"):
        bind_zero_(engine_for(stage, plain_adamw, bind=False))
    engine = engine_for(stage, bind=False)
    engine._config._param_dict = {"zero_optimization": {"stage": stage, "elastic_checkpoint": True}}
    with pytest.raises(ValueError, match="because elastic checkpoints"):
        bind_zero_(engine)


def one_group(model):
    return AdamMini(model.named_parameters(), layouts=net_layouts(), **OPTIONS)


def save_universal(stage, folder):
    """A universal checkpoint after some steps, and the weights after some more."""
    start()
    # Of stage 3, DeepSpeed gives the options of the first group to all when it loads one.
    engine = engine_for(stage, one_group if stage == 3 else None)
    train(engine)
    engine.save_checkpoint(str(folder / "own"), tag="checkpoint")
    if dist.get_rank() == 0:
        names = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True, "inject_missing_state": True}
        ds_to_universal.main(Namespace(input_folder=str(folder / "own" / "checkpoint"), output_folder=str(folder / "universal"), **names))
    dist.barrier()
    weights = train(engine, STEPS, 2 * STEPS)
    if dist.get_rank() == 0:
        torch.save(weights, folder / "straight.pt")
    dist.barrier()


def load_universal(stage, folder):
    """How far from these weights it ends on other ranks."""
    start()
    plain = difference(train(engine_for(stage)), on_one())
    engine = engine_for(stage, one_group if stage == 3 else None, config={"checkpoint": {"load_universal": True}})
    engine.load_checkpoint(str(folder), tag="universal")
    found = difference(train(engine, STEPS, 2 * STEPS), torch.load(folder / "straight.pt"))
    return found, plain


def killed(stage, folder):
    """A rank kills itself in the middle of the second epoch."""
    start()
    keep = ModelCheckpoint(folder, "last", enable_version_counter=False, every_n_epochs=1, save_top_k=-1, save_on_train_epoch_end=True)

    class Killed(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if trainer.global_step == 13 and trainer.global_rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    fit(zero(stage), others=[keep, Killed()], max_epochs=2, enable_checkpointing=True)


def resumed(stage, folder):
    """The weights after the run that was killed goes on, and those of one that was not."""
    start()
    weights = whole(fit(zero(stage), max_epochs=2, ckpt_path=str(folder / "last.ckpt")).lightning_module)
    return weights, whole(fit(zero(stage), max_epochs=2).lightning_module)


CHECKS = (
    check_lightning,
    check_other_blocks,
    check_clipping_and_momentum,
    check_offload_and_accumulation,
    check_bfloat16,
    check_refusals,
    check_variants,
    check_8_bits,
    check_adamw_to_and_fro,
    check_errors,
)


def run_checks(stage, folder):
    """What went wrong, by name of the check."""
    start()
    return launch.run_checks(CHECKS, stage, folder)
