"""The optimizers that a recipe can train with, by name: torch's AdamW, which Adam-mini stands for, and its rivals from other libraries.

Each gets the recipe's learning rate, its schedule and its weight decay. Where a rival's own paper gives betas another meaning or another
value, the rival keeps its own, as its entry says. AdaLayer and AdaLayer+LN+TL are partitions of `AdamMiniCallback`.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.util import find_spec
from statistics import median_low
from typing import Any, TypeAlias

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from typing_extensions import override

from lightning_adam_mini import inspect_model
from lightning_adam_mini.detection import Role, parameter_names

Groups: TypeAlias = Sequence[dict[str, Any]]

SOPHIA_CLIP = 0.01  # gamma of Sophia-H's paper
# its paper's; the rank there is a quarter to a half of the matrices' usual width, here a quarter
GALORE = {"update_proj_gap": 200, "scale": 0.25, "projection_type": "std"}
NOT_HIDDEN = frozenset(  # tables, outputs, and what is no linear map
    {
        *(Role.TOKEN_EMBEDDING, Role.POSITION_EMBEDDING, Role.TYPE_EMBEDDING, Role.TIME_EMBEDDING, Role.SPECIAL_TOKEN),
        *(Role.LM_HEAD, Role.CLASSIFIER, Role.NORM, Role.BIAS, Role.SCALE),
    }
)


@dataclass(frozen=True)
class Settings:
    """What a recipe says of its optimizer.

    Args:
        lr: Peak learning rate.
        betas: Decay of the first and the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled weight decay.
        model: What is trained, for a rival that must know what each matrix is for.
    """

    lr: float
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    model: nn.Module | None = None


@dataclass(frozen=True)
class Rival:
    """An optimizer.

    Args:
        build: Makes it for parameter groups.
        module: What must be installed.
        since: The first torch that has it, where the oldest that we support does not.
    """

    build: Callable[[Groups, Settings], Optimizer]
    module: str = "torch"
    since: str = ""


class Paired(Optimizer):
    """Two optimizers that train one model as one: the same parameter groups and state, so that whatever steers this one steers both.

    Args:
        hidden: What steps the first groups.
        rest: What steps the others.
    """

    def __init__(self, hidden: Optimizer, rest: Optimizer) -> None:
        self.hidden, self.rest = hidden, rest
        super().__init__([*hidden.param_groups, *rest.param_groups], {})

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = len(self.hidden.param_groups)
        for part, groups in ((self.hidden, self.param_groups[:first]), (self.rest, self.param_groups[first:])):
            part.param_groups, part.state = groups, self.state  # each time, for a checkpoint that is loaded brings new ones
            part.step()
        return loss


def _adamw(groups: Groups, s: Settings) -> Optimizer:
    return AdamW(groups, lr=s.lr, betas=s.betas, eps=s.eps, weight_decay=s.weight_decay)


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


def _sophia(groups: Groups, s: Settings) -> Optimizer:
    from pytorch_optimizer import SophiaH

    # It clips m / h at p, where the paper clips m / (gamma h) at 1: the same, but for the factor gamma in the learning rate.
    groups = [{**group, "weight_decay": group.get("weight_decay", s.weight_decay) * SOPHIA_CLIP} for group in groups]
    return SophiaH(groups, lr=s.lr / SOPHIA_CLIP, betas=(0.965, 0.99), p=SOPHIA_CLIP)


def hidden_matrices(model: nn.Module) -> set[Tensor]:
    """Return the matrices of a model that are no embedding and no output layer; convolutions are no matrices.

    Args:
        model: The model.

    Example:
        >>> model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 8))
        >>> [name for name, parameter in model.named_parameters() if parameter in hidden_matrices(model)]
        ['1.weight']
    """
    report = inspect_model(model).by_name
    return {p for p, name in parameter_names(model).items() if p.ndim == 2 and report[name].role not in NOT_HIDDEN}


def _paired(name: str, groups: Groups, s: Settings, build: Callable[[Groups], Optimizer]) -> Optimizer:
    """An optimizer for hidden matrices, and AdamW for the rest: embeddings, convolutions, the output layer and vectors."""
    if s.model is None:
        raise MisconfigurationException(f"The optimizer {name} must know the model, to find its hidden matrices; give Settings(model=...).")
    found = hidden_matrices(s.model)
    hidden, rest = _groups_of(groups, found, True), _groups_of(groups, found, False)
    if not hidden:
        raise MisconfigurationException(
            f"The optimizer {name} has nothing to do, because none of what is trained is a hidden matrix: embeddings, convolutions, "
            "output layers and vectors are left to AdamW; take the optimizer adamw."
        )
    return Paired(build(hidden), _adamw(rest, s)) if rest else build(hidden)


def _groups_of(groups: Groups, found: Collection[Tensor], inside: bool) -> list[dict[str, Any]]:
    parts = [{**group, "params": [p for p in group["params"] if (p in found) == inside]} for group in groups]
    return [part for part in parts if part["params"]]


def _muon(groups: Groups, s: Settings) -> Optimizer:
    # Its updates have the size of AdamW's, so that AdamW's rate and weight decay are right for both (Moonlight's paper).
    options: dict[str, Any] = {"lr": s.lr, "weight_decay": s.weight_decay, "adjust_lr_fn": "match_rms_adamw"}
    return _paired("muon_adamw", groups, s, lambda hidden: torch.optim.Muon(hidden, **options))


def _normuon(groups: Groups, s: Settings) -> Optimizer:
    from pytorch_optimizer import NorMuon  # its paper's size, .2 as Muon's; with Muon's Nesterov momentum

    options: dict[str, Any] = {"lr": s.lr, "weight_decay": s.weight_decay, "update_scale": "match_rms"}
    return _paired("normuon_adamw", groups, s, lambda hidden: NorMuon([{**group, "use_muon": True} for group in hidden], **options))


RIVALS: dict[str, Rival] = {
    "adamw": Rival(_adamw),
    "adafactor": Rival(_adafactor, "timm"),
    "adafactor_zhai": Rival(_adafactor_zhai, "timm"),
    "sm3": Rival(_sm3, "pytorch_optimizer"),
    "came": Rival(_came, "pytorch_optimizer"),
    "lamb": Rival(_lamb, "timm"),
    "lion": Rival(_lion, "timm"),
    "novograd": Rival(_novograd, "timm"),
    "adamw_8bit": Rival(_adamw_8bit, "torchao"),
    "galore": Rival(_galore, "pytorch_optimizer"),
    "sophia": Rival(_sophia, "pytorch_optimizer"),
    "muon_adamw": Rival(_muon, since="2.9"),
    "normuon_adamw": Rival(_normuon, "pytorch_optimizer"),
}


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
    rival = RIVALS[name]
    if find_spec(rival.module) is None:
        raise MisconfigurationException(
            f"The optimizer {name} needs {rival.module}, which is not installed: pip install 'lightning-adam-mini[rivals]'"
        )
    if rival.since and torch.__version__ < rival.since:  # torch compares its version as a version
        raise MisconfigurationException(
            f"The optimizer {name} needs torch {rival.since} or later, but this is {torch.__version__}: pip install 'torch>={rival.since}'"
        )
    return rival


def wants_graph(optimizer: Optimizer) -> bool:
    """Return whether the next step of an optimizer differentiates the gradients, so that the backward pass must keep their graph.

    Args:
        optimizer: The optimizer.
    """
    period = getattr(optimizer, "update_period", None)
    return period is not None and optimizer.param_groups[0].get("step", 0) % period == 0
