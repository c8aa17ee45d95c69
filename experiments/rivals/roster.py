"""The one roster of rivals: optimizers of torch and of other libraries, each a line of `RIVALS` and a function that makes it.

In `compare` each gets the recipe's learning rate, its schedule and its weight decay. Where a rival's own paper gives betas another meaning
or another value, the rival keeps its own, as its entry says. AdaLayer and AdaLayer+LN+TL are partitions of `AdamMiniCallback`.
"""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import partial
from statistics import median_low
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import AdamW, Optimizer

from experiments.rivals.ours import ours
from experiments.rivals.paired import orthogonalised, paired
from experiments.rivals.rival import Rival, blockwise, per_element
from lightning_adam_mini import inspect_model
from recipes.optim import Builder, Groups, Settings, adamw

SOPHIA_CLIP = 0.01  # gamma of Sophia-H's paper
# its paper's; the rank there is a quarter to a half of the matrices' usual width, here a quarter
GALORE = {"update_proj_gap": 200, "scale": 0.25, "projection_type": "std"}


def adamw_by(**options: Any) -> Builder:
    """Return what makes torch's AdamW in one of its own ways to step.

    Args:
        options: Of the way.
    """
    return lambda groups, s: AdamW(groups, lr=s.lr, betas=s.betas, eps=s.eps, weight_decay=s.weight_decay, **options)


def _adafactor(groups: Groups, s: Settings) -> Optimizer:
    from timm.optim import Adafactor  # Shazeer and Stern's, with momentum as in Adam-mini's paper

    return Adafactor(groups, lr=s.lr, betas=s.betas, weight_decay=s.weight_decay)


def _adafactor_zhai(groups: Groups, s: Settings) -> Optimizer:
    from timm.optim import AdafactorBigVision  # Zhai et al. 2022: momentum in bfloat16, beta2 up to .999, no clipping of updates

    return AdafactorBigVision(groups, lr=s.lr, momentum=s.betas[0], weight_decay=s.weight_decay)


def _sm3(groups: Groups, s: Settings) -> Optimizer:
    from pytorch_optimizer import SM3  # knows no weight decay, as in its paper

    return SM3(groups, lr=s.lr, momentum=s.betas[0])


def _came(groups: Groups, s: Settings) -> Optimizer:
    from pytorch_optimizer import CAME

    return CAME(groups, lr=s.lr, betas=(s.betas[0], 0.999, 0.9999), weight_decay=s.weight_decay)


def _lamb(groups: Groups, s: Settings) -> Optimizer:
    from timm.optim import Lamb

    return Lamb(groups, lr=s.lr, betas=s.betas, weight_decay=s.weight_decay, max_grad_norm=None)  # the trainer clips, or not


def _lion(groups: Groups, s: Settings) -> Optimizer:
    from timm.optim import Lion

    return Lion(groups, lr=s.lr, betas=(0.9, 0.99), weight_decay=s.weight_decay)


def _novograd(groups: Groups, s: Settings) -> Optimizer:
    from timm.optim import NvNovoGrad

    decay: Any = s.weight_decay  # annotated as an integer there
    return NvNovoGrad(groups, lr=s.lr, betas=(0.95, 0.98), weight_decay=decay, decoupled_decay=True)


def _adamw_8bit(groups: Groups, s: Settings) -> Optimizer:
    from torchao.optim import AdamW8bit

    return AdamW8bit(groups, lr=s.lr, betas=s.betas, eps=s.eps, weight_decay=s.weight_decay)


def _galore(groups: Groups, s: Settings) -> Optimizer:
    from pytorch_optimizer import GaLore

    sides = [min(parameter.shape) for group in groups for parameter in group["params"] if parameter.ndim == 2]
    rank = max(1, median_low(sides) // 4) if sides else 1
    projected = {"rank": rank, **GALORE}  # it leaves what is no matrix as it is
    return GaLore([{**projected, **group} for group in groups], lr=s.lr, betas=s.betas, eps=s.eps, weight_decay=s.weight_decay)


def _schedule_free(groups: Groups, s: Settings) -> Optimizer:
    from pytorch_optimizer import ScheduleFreeAdamW  # `compare` switches its weights

    return ScheduleFreeAdamW(groups, lr=s.lr, betas=s.betas, eps=s.eps, weight_decay=s.weight_decay)


def _sophia(groups: Groups, s: Settings) -> Optimizer:
    from pytorch_optimizer import SophiaH

    # It clips m / h at p, where the paper clips m / (gamma h) at 1: the same, but for the factor gamma in the learning rate.
    groups = [{**group, "weight_decay": group.get("weight_decay", s.weight_decay) * SOPHIA_CLIP} for group in groups]
    return SophiaH(groups, lr=s.lr / SOPHIA_CLIP, betas=(0.965, 0.99), p=SOPHIA_CLIP)


def _muon(groups: Groups, s: Settings) -> Optimizer:
    # Its updates have the size of AdamW's, so that AdamW's rate and weight decay are right for both (Moonlight's paper).
    options: dict[str, Any] = {"lr": s.lr, "weight_decay": s.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return paired("muon_adamw", groups, s, lambda hidden: torch.optim.Muon(hidden, **options))


def _normuon(groups: Groups, s: Settings) -> Optimizer:
    from pytorch_optimizer import NorMuon  # its paper's size, .2 as Muon's; with Muon's Nesterov momentum

    options: dict[str, Any] = {"lr": s.lr, "weight_decay": s.weight_decay, "update_scale": "match_rms"}
    return paired("normuon_adamw", groups, s, lambda hidden: NorMuon([{**group, "use_muon": True} for group in hidden], **options))


def _adafactor_torch(groups: Groups, s: Settings) -> Optimizer:
    return torch.optim.Adafactor(groups, lr=s.lr, weight_decay=s.weight_decay)


def _adamw_8bit_bitsandbytes(groups: Groups, s: Settings) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

    return AdamW8bit(groups, lr=s.lr, betas=s.betas, eps=s.eps, weight_decay=s.weight_decay)


def _attention(s: Settings) -> tuple[nn.Module, int, int]:
    """The model, its width and its heads, for those who ask for them; as large as a usual one's where it has no attention."""
    if s.model is None:
        raise MisconfigurationException(
            "The optimizer asks for the width and heads of its model, so it must know that; give Settings(model=...)."
        )
    for report in inspect_model(s.model).parameters:
        if report.lines is not None and len(report.shape) == 2 and (found := re.match(r"(?:q|query):(\d+)x", report.lines)):
            return s.model, report.shape[1 - report.axis], int(found[1])
    return s.model, 2048, 32


def _adam_mini_pypi(groups: Groups, s: Settings, renamed: bool = False) -> Optimizer:
    from adam_mini import Adam_mini

    model, width, heads = _attention(s)
    named = list(model.named_parameters())
    if renamed:
        named = [(name if p.ndim == 2 or "bias" in name else f"tensor{i}", p) for i, (name, p) in enumerate(named)]
    options: dict[str, Any] = {"betas": s.betas, "eps": s.eps, "weight_decay": s.weight_decay, "dim": width, "n_heads": heads}
    return cast(Optimizer, Adam_mini(named, lr=s.lr, verbose=False, **options))


def _adam_mini_pytorch_optimizer(groups: Groups, s: Settings) -> Optimizer:
    from pytorch_optimizer import AdamMini as Theirs  # which takes the model only

    model, width, heads = _attention(s)
    return Theirs(model, lr=s.lr, betas=s.betas, weight_decay=s.weight_decay, num_embeds=width, num_heads=heads)


RENAMED = partial(_adam_mini_pypi, renamed=True), "with renamed parameters, because with their own names it raises"
_ALL = (
    Rival("adamw", "AdamW", adamw, per_element(28)),
    Rival("adamw_fused", "AdamW fused", adamw_by(fused=True), per_element(28), timed=True, decay=1e-2),
    Rival("adamw_foreach", "AdamW foreach", adamw_by(foreach=True), per_element(28), timed=True, decay=1e-2),
    Rival("adamw_loop", "AdamW for-loop", adamw_by(foreach=False), per_element(28), timed=True, decay=1e-2),
    Rival("adafactor_torch", "Adafactor", _adafactor_torch, per_element(16), timed=True),
    Rival("adafactor", "Adafactor (timm)", _adafactor, per_element(24), "timm"),
    Rival("adafactor_zhai", "Adafactor, Zhai (timm)", _adafactor_zhai, per_element(20), "timm"),
    Rival("adam_mini_pypi", "adam-mini (PyPI)", _adam_mini_pypi, blockwise(partition="adam_mini"), "adam_mini", "", RENAMED, True),
    Rival(
        "adam_mini_pytorch_optimizer",
        "AdamMini (pytorch-optimizer)",
        _adam_mini_pytorch_optimizer,
        blockwise(partition="adam_mini"),
        "pytorch_optimizer",
        timed=True,
        decay=0.1,
    ),
    Rival("adamw_8bit", "AdamW8bit (torchao)", _adamw_8bit, per_element(16), "torchao", timed=True),
    Rival("adamw_8bit_bitsandbytes", "AdamW8bit (bitsandbytes)", _adamw_8bit_bitsandbytes, per_element(16), "bitsandbytes", decay=1e-2),
    Rival("lion", "Lion (timm)", _lion, per_element(20), "timm", timed=True),
    Rival("muon_adamw", "Muon and AdamW (torch)", _muon, orthogonalised, since="2.9", timed=True),
    Rival("normuon_adamw", "NorMuon (pytorch-optimizer)", _normuon, orthogonalised, "pytorch_optimizer", timed=True),
    Rival("sm3", "SM3 (pytorch-optimizer)", _sm3, per_element(20), "pytorch_optimizer"),
    Rival("came", "CAME (pytorch-optimizer)", _came, per_element(24), "pytorch_optimizer"),
    Rival("lamb", "LAMB (timm)", _lamb, per_element(36), "timm"),
    Rival("novograd", "NovoGrad (timm)", _novograd, per_element(24), "timm"),
    Rival("galore", "GaLore (pytorch-optimizer)", _galore, per_element(12), "pytorch_optimizer"),
    Rival("schedule_free", "Schedule-free AdamW (pytorch-optimizer)", _schedule_free, per_element(28), "pytorch_optimizer"),
    Rival("sophia", "Sophia-H (pytorch-optimizer)", _sophia, per_element(24), "pytorch_optimizer"),
)
RIVALS: dict[str, Rival] = {rival.name: rival for rival in _ALL}
"""By name. A new rival is a line here, and what makes it above."""
OURS: dict[str, Rival] = {
    rival.name: rival
    for rival in (
        *map(ours, ("auto", "adam_mini", "muon", "normuon", "normuon:8bit")),
        ours("auto", "fused=False", fused=False),
        *map(ours, ("auto:bfloat16", "auto:8bit")),
    )
}
"""This package's optimizer in the ways that are timed. `compare` takes any partition, by the callback."""


def find_rival(name: str) -> Rival:
    """Return a rival.

    Args:
        name: Its name.

    Raises:
        MisconfigurationException: If there is none of this name, or its library is not installed or too old.

    Example:
        >>> find_rival("lion").module
        'timm'
    """
    if name not in RIVALS:
        near = get_close_matches(name, RIVALS, n=1)
        raise MisconfigurationException(
            f"There is no optimizer {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}; the names are {', '.join(RIVALS)}."
        )
    if why := RIVALS[name].why_not():
        subject = "" if why.startswith("torch") else f"{RIVALS[name].module} is "
        raise MisconfigurationException(f"The optimizer {name} cannot be: {subject}{why}")
    return RIVALS[name]
