"""AdamMini and a part around its step: one object, which has the user's groups, and one state per parameter."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.optim import Optimizer

from lightning_adam_mini.combine.part import Part, Place, check_layout, read_part
from lightning_adam_mini.combine.sophia import Sophia
from lightning_adam_mini.detection import ModelReport, inspect_model
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.layout_spec import LayoutSpec
from lightning_adam_mini.optim.adam_mini import AdamMini
from lightning_adam_mini.optim.conversion import COMBINED, TORCH_ONLY, check_state_dict
from lightning_adam_mini.optim.convert import AdamMiniAdam, AdamMiniAdamW
from lightning_adam_mini.optim.state import FIRST, STEP
from lightning_adam_mini.optim.zero import FlatAdamMini
from lightning_adam_mini.table import count

_OPTIONS = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "maximize", "foreach", "fused", "capturable")


class Combined(AdamMini):
    """An AdamMini with a :class:`Part` around its step; :func:`combine_` makes one of an AdamMini, in place.

    An AdamMini inside steps what stands in the place of the parameters, with the layouts, codecs and compiled loops that it always has.
    Its states are this one's: the same dicts.
    """

    _part: Part
    _report: ModelReport | None
    _known: frozenset[str]
    _chosen: frozenset[str]
    _inner: _Inner | None

    @property
    def part(self) -> Part:
        """What is combined."""
        return self._part

    @property
    def layouts(self) -> dict[str, BlockLayout]:
        """Blocks of what is stepped in the place of each parameter, by name."""
        return {name: self._stands_in(name, layout) for name, _, layout in self._present()}

    def train(self) -> None:
        """Have the parameters hold the weights at which gradients are taken; most parts know no others."""
        self._part.train(self)

    def eval(self) -> None:
        """Have the parameters hold the weights that are evaluated and saved; most parts know no others."""
        self._part.eval(self)

    def _stands_in(self, name: str, layout: BlockLayout) -> BlockLayout:
        return self._part.stands_in(layout) if name in self._chosen else layout

    # ---- Sophia's estimates -------------------------------------------------------------------------------------------

    @property
    def estimate_is_due(self) -> bool:
        """Whether the next step wants :meth:`update_hessian` to be called before it."""
        return isinstance(self._part, Sophia) and any(map(self._part.is_due, self.param_groups))

    @torch.no_grad()
    def update_hessian(self, loss: Tensor, examples: int | None = None, ranks: ProcessGroup | None = None) -> None:
        """Give Sophia an estimate of the Hessian.

        Args:
            loss: Of one element, with its graph: the training loss for Hutchinson's estimate, which differentiates it twice (under
                ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` where there is attention); for Gauss, Newton and Bartlett's the loss on
                labels that are drawn from the model's output.
            examples: How many examples the latter is the mean of.
            ranks: Under DDP the ranks, each of which has to call this; their estimates are averaged.

        Raises:
            ValueError: If the optimizer is not combined with Sophia, or the loss has no graph.
        """
        if not isinstance(self._part, Sophia):
            raise ValueError(f"update_hessian is Sophia's, but this AdamMini is combined with {type(self._part).__name__}.")
        inner = self.inner()
        groups = [(p, group) for group in self.param_groups for p in group["params"] if p in inner.standing and p.requires_grad]
        if groups:
            self._part.update([inner.place(p, group) for p, group in groups], loss, examples, ranks)
        for group in self.param_groups:
            self._part.mark(group)

    # ---- the step -----------------------------------------------------------------------------------------------------

    def _take_step(self) -> None:
        self._opt_called = True
        inner = self.inner()
        for group in self.param_groups:
            self._part.begin_group(group)
        places = [
            inner.place(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None and p in inner.standing
        ]
        self._part.step(places, inner.step)

    def inner(self) -> _Inner:
        """What steps the stand-ins, with the options and states of this optimizer as they are now."""
        self._follow()
        if self._inner is None:
            self._inner = _Inner(self)
        self._inner.follow()
        return self._inner

    def _settle(self, layouts: list[list[BlockLayout]]) -> None:
        super()._settle(layouts)
        self._inner = None  # made again of what the groups hold now
        if not self._known.issuperset(self._blocks.names(self.param_groups).values()):
            self._choose()

    def _choose(self) -> None:
        """Let the part say which of the parameters that the groups hold now it is for; check that it can step them."""
        shapes = {name: tuple(p.shape) for name, p, _ in self._present()}
        self._chosen = frozenset(self._part.choose(shapes, self._report))
        self._known = frozenset(shapes)
        self._check_layouts()

    def _stepped(self) -> Iterator[Any]:
        return self.inner().optimizer._stepped()

    def _rates(self) -> Iterator[Any]:
        groups = {
            name: group for group in self.param_groups for name in (self._blocks.names(self.param_groups)[p] for p in group["params"])
        }
        for name, layout, blocks, rate in super()._rates():
            own = self._part.rate(groups[name]) if name in self._chosen else None
            yield name, layout, blocks, own or rate

    # ---- state --------------------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that this combination has written, with the same blocks. It is taken as it is, to the bit.

        Args:
            state_dict: What ``state_dict()`` returned.

        Raises:
            ValueError: If another combination, other blocks or another kind of optimizer wrote it. Nothing has changed then.
        """
        check_state_dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        present, groups = self._present(), state_dict["param_groups"]
        what = type(self._part).__name__
        for group in groups:
            if group.get(COMBINED) != self._part.name:
                wrote = f"combined with {group[COMBINED]!r}" if group.get(COMBINED) else "without a combination"
                raise ValueError(
                    f"The loaded state was written {wrote}, but this AdamMini is combined with {what}. Load the model's weights alone, and"
                    " begin the optimizer anew."
                )
        places = [(i, plain) for group in groups for i, plain in zip(group["params"], group["layouts"], strict=True)]
        if len(places) != len(present):
            raise ValueError(f"The loaded state is of {count(len(places), 'parameter')}, but the optimizer has {len(present)}.")
        for (i, plain), (name, p, layout) in zip(places, present, strict=True):
            if plain != layout.to_plain():
                raise ValueError(
                    f"The loaded state of parameter {name!r} was written with other blocks ({BlockLayout.from_plain(plain)}) than the"
                    f" present ones ({layout}), and {what} converts none. Keep the partition that it was written with."
                )
            self._check_entry(name, p, layout, state_dict["state"].get(i))
        state = {p: state_dict["state"][i] for (i, _), (_, p, _) in zip(places, present, strict=True) if state_dict["state"].get(i)}
        kept = [{k: v for k, v in group.items() if k not in TORCH_ONLY} for group in groups]
        Optimizer.load_state_dict(self, {"state": {}, "param_groups": kept})
        self._inner = None
        for p, entry in state.items():  # torch would cast it to the parameter's dtype
            self.state[p] = {
                name: value.to("cpu" if name == STEP.name else p.device, copy=True) if isinstance(value, Tensor) else value
                for name, value in entry.items()
            }
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _check_entry(self, name: str, p: Tensor, layout: BlockLayout, entry: Mapping[str, Any] | None) -> None:
        if not entry or name not in self._chosen:
            return
        for key, field in self._part.fields(layout, p.dtype, self._momentum_dtype).items():
            has = entry.get(key)
            if not isinstance(has, Tensor) or has.shape != field.shape or has.dtype != field.dtype:
                found = f"{has.dtype} of shape {tuple(has.shape)}" if isinstance(has, Tensor) else f"{has!r}"
                raise ValueError(
                    f"The loaded state of parameter {name!r} has as {key} {found}, but {self._part} keeps {field.dtype} of shape"
                    f" {field.shape}. Load it with the settings that it was written with."
                )

    def set_layouts(self, layouts: Mapping[str, LayoutSpec]) -> None:
        """As of :class:`AdamMini`, but only before the first step.

        Raises:
            ValueError: If a step was taken, or a layout does not fit.
        """
        if any(self.state.values()):
            self._refuse("change blocks after a step")
        super().set_layouts(layouts)
        self._check_layouts()

    def replace_parameter(self, old: Tensor, new: Tensor, rows: Tensor | None = None) -> None:
        """Refused."""
        self._refuse("replace a parameter")

    def share_work(self, group: Any) -> None:
        """Nothing is orthogonalised here."""

    def _refuse(self, what: str) -> None:
        raise ValueError(f"AdamMini cannot {what} because it is combined with {type(self._part).__name__}. Make a new optimizer.")

    def _check_layouts(self) -> None:
        what = type(self._part).__name__
        if self._shards.parts or self._shards.flattened_whole:
            name = next(name for name, p, _ in self._present() if p in self._shards.parts or p in self._shards.flattened_whole)
            raise ValueError(
                f"{what} does not follow sharding: parameter {name!r} is sharded (FSDP, tensor parallelism). Train under DDP, or without"
                f" {what}."
            )
        for name, _, layout in self._present():
            check_layout(self._part, name, layout)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_part", "_report", "_known", "_chosen")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}


class CombinedAdam(Combined, AdamMiniAdam):
    """What was made as torch's Adam."""


class CombinedAdamW(Combined, AdamMiniAdamW):
    """What was made as torch's AdamW."""


CombinedAdam.__name__, CombinedAdamW.__name__ = "Adam", "AdamW"
_BOTH: dict[type, type[Combined]] = {AdamMini: Combined, AdamMiniAdam: CombinedAdam, AdamMiniAdamW: CombinedAdamW}


class _Inner:
    """The AdamMini that steps stand-ins, and which those are.

    Args:
        outer: Whose parameters they stand for.
    """

    def __init__(self, outer: Combined) -> None:
        self.outer = outer
        self.standing: dict[Tensor, tuple[nn.Parameter, BlockLayout]] = {}
        self._groups: list[tuple[dict[str, Any], bool]] = []
        names = outer.parameter_names()
        layouts: dict[str, BlockLayout] = {}
        groups: list[dict[str, Any]] = []
        for group, some in zip(outer.param_groups, outer._blocks.layouts, strict=True):
            found: dict[bool, list[tuple[str, Tensor]]] = {True: [], False: []}
            for p, layout in zip(group["params"], some, strict=True):
                name, chosen = names[p], names[p] in outer._chosen
                layouts[name] = outer._stands_in(name, layout)
                if chosen:
                    # Of an empty shape that costs no memory until the part gives it its own.
                    self.standing[p] = (
                        nn.Parameter(torch.zeros((), dtype=p.dtype, device=p.device).expand(layouts[name].shape)),
                        layouts[name],
                    )
                found[chosen].append((name, self.standing[p][0] if chosen else p))
            for chosen, named in found.items():
                if named:
                    self._groups.append((group, chosen))
                    groups.append({**self._options(group, chosen), "params": named})
        rest: dict[str, Any] = {"momentum_dtype": outer._momentum_dtype, "stochastic_rounding": outer._stochastic_rounding}
        self.optimizer: AdamMini = AdamMini(groups, layouts=layouts, **rest)
        for p in (p for group in outer.param_groups for p in group["params"]):
            if outer.state.get(p):
                self._take_over(p)

    def _options(self, group: Mapping[str, Any], chosen: bool) -> dict[str, Any]:
        own = self.outer._part.options(group) if chosen else {}
        return {**{name: group[name] for name in _OPTIONS}, **own}

    def follow(self) -> None:
        """Take over options that were changed since."""
        for (group, chosen), mine in zip(self._groups, self.optimizer.param_groups, strict=True):
            mine.update(self._options(group, chosen))

    def step(self) -> None:
        """Step what has a gradient; states that come to be are the outer's too."""
        for group, chosen in self._groups:
            for p in group["params"]:
                if not chosen and p not in self.standing and p.grad is not None:
                    self.optimizer.state[p] = self.outer.state[p]
        self.optimizer.step()

    def _take_over(self, p: Tensor) -> None:
        stand_in = self.standing[p][0] if p in self.standing else p
        state = self.optimizer.state[stand_in] = self.outer.state[p]
        if p in self.standing:
            stand_in.data = self.outer._part.stand_in(p, self.standing[p][1], state)

    def place(self, p: Tensor, group: dict[str, Any]) -> Place:
        """A parameter with what stands for it; its state begins here."""
        stand_in, layout = self.standing[p]
        state = self.outer.state[p]
        if not state:
            like = p if p.shape == layout.shape else p.new_zeros(()).expand(layout.shape)
            state.update(self.optimizer._format.make(like, layout, False))
            if not self.outer._part.momentum:
                del state[FIRST.name]
            self.outer._part.begin(p, state)
        if self.optimizer.state.get(stand_in) is not state:
            self._take_over(p)
        return Place(p, group, layout, stand_in, state)


@torch.no_grad()
def combine_(optimizer: AdamMini, part: Part | str | Mapping[str, Any], model: nn.Module | ModelReport | None = None) -> Combined:
    """Combine an AdamMini with another method, in place: it stays the same object, with the same groups.

    Args:
        optimizer: An AdamMini, or what :func:`~lightning_adam_mini.convert_optimizer_` has turned into one; not stepped yet.
        part: What to combine it with: a :class:`ScheduleFree`, a :class:`GaLore` or a :class:`Sophia`; or its name, or
            ``{"galore": {"rank": 128}}``.
        model: The model, or its report, for what has to know which matrices are embeddings (GaLore).

    Returns:
        The same object, which is a :class:`Combined` now.

    Raises:
        ValueError: If it cannot be: it is no AdamMini, was stepped, is sharded, orthogonalises updates, or an option of it does not go
            with combinations. It is as it was then.

    Example:
        >>> from lightning_adam_mini import AdamMini, partition_model
        >>> model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4))
        >>> optimizer = AdamMini(model.named_parameters(), lr=1e-2, layouts=partition_model(model))
        >>> combine_(optimizer, "schedule_free") is optimizer
        True
        >>> model(torch.ones(2, 6)).sum().backward()
        >>> optimizer.step()
        >>> optimizer.eval()  # the parameters are averages now
    """
    found = read_part(part)
    if found is None:
        raise ValueError("combine_ was given no part. Give ScheduleFree(), GaLore(rank=...) or Sophia().")
    what = type(found).__name__
    kind = type(optimizer)
    if isinstance(optimizer, FlatAdamMini):
        raise ValueError(f"{what} does not follow DeepSpeed's ZeRO, which puts parameters into flat tensors. Train under DDP.")
    if isinstance(optimizer, Combined):
        raise ValueError(f"The optimizer is combined with {type(optimizer.part).__name__} already. Make a new one.")
    if kind not in _BOTH:
        raise ValueError(f"{what} is combined with an AdamMini, but this is {kind.__name__}. Call convert_optimizer_ on it before.")
    problems = {
        "stochastic_rounding=True": (optimizer._stochastic_rounding, "it writes weights itself"),
        "capturable=True": (any(group["capturable"] for group in optimizer.param_groups), "it counts steps in Python"),
        "momentum_dtype": (optimizer._momentum_dtype is not None and not found.momentum, "it keeps no momentum"),
    }
    for option, (there, why) in problems.items():
        if there:
            raise ValueError(f"{what} does not go with {option}, because {why}. Leave it out.")
    if any(optimizer.state.values()):
        raise ValueError(f"The optimizer has been stepped, so it cannot be combined with {what} any more. Combine a new one.")
    optimizer._follow()
    report = inspect_model(model) if isinstance(model, nn.Module) else model
    try:
        optimizer.__class__ = _BOTH[kind]
        assert isinstance(optimizer, Combined)
        optimizer._part, optimizer._report, optimizer._inner = found, report, None
        optimizer._known = optimizer._chosen = frozenset()
        optimizer._choose()
    except ValueError:
        optimizer.__class__ = kind  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
        raise
    for group in optimizer.param_groups:
        group[COMBINED] = found.name
    optimizer.defaults[COMBINED] = found.name  # of groups that are added
    return optimizer


def combined_in(optimizers: Collection[Any]) -> list[Combined]:
    """The combined ones among some optimizers."""
    return [optimizer for optimizer in optimizers if isinstance(optimizer, Combined)]
