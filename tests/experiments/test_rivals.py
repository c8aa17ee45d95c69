import math
from dataclasses import replace

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import LambdaLR
from torchvision.models import resnet18

from experiments.__main__ import main as experiments
from experiments.rivals import RIVALS, Rival, find_rival
from experiments.rivals.paired import hidden_matrices
from experiments.rivals.roster import SOPHIA_CLIP
from lightning_adam_mini.optim import state_bytes
from recipes.__main__ import main
from recipes.language import GPTModel, TextFolder
from recipes.optim import Settings, wants_graph
from tests.recipes.conftest import CONFIGS, QUIET

FEW = {  # bytes of state a parameter; the factored ones add a row and a column a matrix, the 8-bit ones keep small tensors wide
    "adamw": (8.0, 8.1),
    "adafactor": (4.0, 4.6),
    "adafactor_zhai": (2.0, 2.6),
    "sm3": (4.0, 4.6),
    "came": (4.0, 5.2),
    "lamb": (8.0, 8.1),
    "lion": (4.0, 4.1),
    "novograd": (4.0, 4.1),
    "adamw_8bit": (2.0, 5.0),
    "galore": (2.0, 4.0),
    "schedule_free": (8.0, 8.1),
    "sophia": (12.0, 12.1),  # a buffer of the last estimate beside the two averages
    "muon_adamw": (5.0, 6.1),  # 4 for hidden matrices, 8 for the rest
    "normuon_adamw": (5.0, 6.1),
}
HIDDEN = [f"net.blocks.0.{name}_proj.weight" for name in ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.up", "mlp.down")]


NAMES = list(FEW)


def path(name: str) -> str:
    """How a recipe names a rival."""
    return f"experiments.rivals.{name}"


def need(name: str) -> Rival:
    """Return a rival, or skip the test where it is not installed."""
    try:
        return find_rival(name)
    except MisconfigurationException as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", NAMES)
def test_every_rival_trains_a_gpt_and_holds_its_bytes(name, texts):
    need(name)
    pl.seed_everything(0)
    rate = {"lion": 3e-4, "lamb": 1e-2, "sm3": 3e-2, "novograd": 3e-2}.get(name, 3e-3)
    model = GPTModel(context=16, layers=1, heads=2, width=64, optimizer=path(name), lr=rate, betas=(0.9, 0.95), weight_decay=0.1)
    data = TextFolder(str(texts), context=16, batch_size=8, epoch_windows=8 * 15, eval_windows=16)
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0
    )
    with torch.compiler.set_stance("force_eager"):  # torchao compiles for every shape
        trainer.fit(model, datamodule=data)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    low, high = FEW[name]
    assert low <= sum(map(state_bytes, trainer.optimizers)) / parameters <= high
    assert float(trainer.callback_metrics["val/loss"]) < 0.99 * math.log(256)


class StopAfterFirstEpoch(pl.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(raises=RuntimeError, strict=True, reason="Lightning loads with a callable map_location"))
        if name == "adamw_8bit"
        else name
        for name in NAMES
    ],
)
def test_every_rival_resumes(name, texts, tmp_path):
    """An interrupted run ends with the weights of an unbroken one, to the bit."""
    need(name)

    def run(*callbacks: pl.Callback, resume: str | None = None) -> pl.Trainer:
        pl.seed_everything(0)
        model = GPTModel(context=16, layers=1, heads=2, width=64, optimizer=path(name), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
        data = TextFolder(str(texts), context=16, batch_size=8, epoch_windows=8 * 6, eval_windows=16)
        trainer = pl.Trainer(
            max_epochs=2,
            callbacks=list(callbacks),
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        with torch.compiler.set_stance("force_eager"):  # torchao compiles for every shape
            trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=False)
        return trainer

    whole = run()
    broken = run(StopAfterFirstEpoch())
    assert broken.global_step == 6
    broken.save_checkpoint(tmp_path / "half.ckpt")
    resumed = run(resume=str(tmp_path / "half.ckpt"))
    assert resumed.global_step == 12
    torch.testing.assert_close(resumed.lightning_module.state_dict(), whole.lightning_module.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("config", ["vit_digits", "ddpm_digits"])
def test_sophia_differentiates_library_models_twice(config, tmp_path):
    """Whose attention is fused, and has no second derivative."""
    pytest.importorskip("pytorch_optimizer")
    if config == "ddpm_digits":
        pytest.importorskip("diffusers")
    args = [
        "--model.optimizer",
        "experiments.rivals.sophia",
        "--trainer.callbacks",
        "null",
        "--trainer.max_steps",
        "2",
        "--trainer.limit_val_batches",
        "1",
    ]
    assert main(["fit", "--config", str(CONFIGS / f"{config}.yaml"), *QUIET, *args]) == 0


def test_sophia_is_that_of_the_paper():
    pytest.importorskip("pytorch_optimizer")
    curvature = torch.tensor([0.5, 4.0, 50.0], dtype=torch.float64)
    x = torch.nn.Parameter(torch.tensor([3.0, -2.0, 0.01], dtype=torch.float64))
    lr, decay = 0.01, 0.1
    optimizer = RIVALS["sophia"].build([{"params": [x]}], Settings(lr, weight_decay=decay))
    m, h, expected = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), x.detach().clone()
    for step in range(12):
        optimizer.zero_grad()
        fresh = wants_graph(optimizer)
        assert fresh == (step % 10 == 0)
        loss = 0.5 * (curvature * x.square()).sum()
        (gradient,) = torch.autograd.grad(loss, [x], create_graph=fresh)
        x.grad = gradient
        optimizer.step()
        m = 0.965 * m + 0.035 * gradient.detach()
        if fresh:
            h = 0.99 * h + 0.01 * optimizer.state[x]["hessian"]
            assert (optimizer.state[x]["hessian"] / curvature > 0).all()  # z H z of a diagonal H is H z squared
        expected = expected * (1.0 - lr * decay) - lr * (m / (SOPHIA_CLIP * h).clamp_min(1e-300)).clamp(-1.0, 1.0)
        torch.testing.assert_close(x.detach(), expected)


def orthogonal(matrix):
    """Muon's five Newton-Schulz steps in float64, where torch takes them in bfloat16."""
    x = (matrix.T if matrix.shape[0] > matrix.shape[1] else matrix) / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
@pytest.mark.parametrize("name", ["muon_adamw", "normuon_adamw"])
def test_hidden_matrices_take_the_steps_of_the_papers(name, shape):
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(*shape[::-1], bias=False), nn.ReLU(), nn.Linear(shape[0], 2))
    weight, lr, decay = model[0].weight, 0.01, 0.1
    optimizer = need(name).build([{"params": list(model.parameters())}], Settings(lr, weight_decay=decay, model=model))
    m, v = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[0], 1, dtype=torch.float64)
    for _ in range(4):
        gradient = torch.randn(shape, generator=generator) * torch.linspace(0.1, 3.0, shape[0])[:, None]  # rows of unlike size
        weight.grad, before = gradient.clone(), weight.detach().double()
        optimizer.step()
        m = 0.95 * m + 0.05 * gradient.double()
        update = orthogonal(0.05 * gradient.double() + 0.95 * m)
        if name == "muon_adamw":
            update *= 0.2 * max(shape) ** 0.5
        else:
            v = 0.95 * v + 0.05 * update.square().mean(dim=1, keepdim=True)
            update /= v.sqrt()
            update *= 0.2 / update.square().mean().sqrt()
        taken = (before * (1.0 - lr * decay) - weight.detach().double()) / lr
        assert (taken - update).norm() / update.norm() < 0.03  # bfloat16's; the two rivals are .1 to .3 apart


def test_muon_is_torchs_beside_adamw_to_the_bit():
    """Under a schedule and clipped gradients, with vectors that do not decay, stepped by hand."""
    rival = need("muon_adamw")
    torch.manual_seed(0)
    ours, theirs = (GPTModel(context=16, layers=1, heads=2, width=32, weight_decay=0.1) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizer = rival.build(ours.parameter_groups(), Settings(3e-3, (0.9, 0.95), weight_decay=0.1, model=ours))
    named = dict(theirs.named_parameters())
    vectors = [p for p in named.values() if p.ndim < 2]
    rest = [p for name, p in named.items() if p.ndim == 2 and name not in HIDDEN]
    by_hand = [
        torch.optim.Muon([named[name] for name in HIDDEN], lr=3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([{"params": rest}, {"params": vectors, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1),
    ]
    schedulers = [LambdaLR(one, lambda step: (step + 1) / 4) for one in (optimizer, *by_hand)]
    for step in range(6):
        tokens = torch.randint(256, (4, 17), generator=torch.Generator().manual_seed(step))
        for model in (ours, theirs):
            model.zero_grad()
            cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.5)
        clip_grad_norm_([p for one in by_hand for group in one.param_groups for p in group["params"]], 0.5)
        for one in (optimizer, *by_hand, *schedulers):
            one.step()
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    assert {group["lr"] for group in optimizer.param_groups} == {3e-3 * 7 / 4}
    assert state_bytes(optimizer) == sum(map(state_bytes, by_hand))


def test_hidden_matrices_are_no_embedding_convolution_or_output_layer():
    model = GPTModel(context=16, layers=1, heads=2, width=32)
    hidden = hidden_matrices(model)
    assert sorted(name for name, p in model.named_parameters() if p in hidden) == sorted(HIDDEN)
    model = resnet18()
    assert hidden_matrices(model) == set()
    with pytest.raises(MisconfigurationException, match="normuon_adamw has nothing to do.*convolutions.*take the optimizer adamw"):
        need("normuon_adamw").build([{"params": list(model.parameters())}], Settings(1e-3, model=model))
    with pytest.raises(MisconfigurationException, match="normuon_adamw must know the model"):
        need("normuon_adamw").build([{"params": list(model.parameters())}], Settings(1e-3))


def test_weight_decay_of_each_group_survives():
    for name in ("adafactor", "lamb", "lion", "novograd", "adafactor_zhai"):
        groups = GPTModel(layers=1, width=32, weight_decay=0.1).parameter_groups()
        optimizer = RIVALS[name].build(groups, Settings(1e-3, weight_decay=0.1))
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0], name


def test_a_rival_that_is_not_installed_names_its_package(monkeypatch, capsys):
    monkeypatch.setitem(RIVALS, "came", replace(RIVALS["came"], module="no_such_package"))
    with pytest.raises(MisconfigurationException, match="came cannot be: no_such_package is not installed: pip install no-such-package"):
        find_rival("came")
    config = str(CONFIGS / "gpt_stdlib.yaml")
    with pytest.raises(SystemExit, match="2"):
        experiments(["compare", "--config", config, "--optimizers", "adamw,came"])
    assert "pip install no-such-package" in capsys.readouterr().err


def test_a_torch_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setitem(RIVALS, "muon_adamw", replace(RIVALS["muon_adamw"], since="99.0"))
    with pytest.raises(MisconfigurationException, match=r"muon_adamw cannot be: torch 99\.0 or later .*pip install 'torch>=99\.0'"):
        find_rival("muon_adamw")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "lion",
            "There is no optimizer 'lion'; it is adamw, or where a function stands that makes another, such as",
        ),
        ("experiments.rivals.lio", "There is no optimizer 'experiments.rivals.lio', because there is none of this name among adamw, "),
        ("no_such_package.lion", "There is no optimizer 'no_such_package.lion', because No module named 'no_such_package'"),
    ],
)
def test_an_unknown_optimizer_is_one_clear_error(name, message, capsys):
    args = ["--model.optimizer", name, "--trainer.callbacks", "null", "--trainer.max_steps", "1"]
    assert main(["fit", "--config", str(CONFIGS / "vit_digits.yaml"), *QUIET, *args]) == 1
    assert message in capsys.readouterr().err
