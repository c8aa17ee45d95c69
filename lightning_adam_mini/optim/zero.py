"""AdamMini under DeepSpeed's ZeRO: what it steps are ranges of parameters, in flat tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.layout_spec import LayoutSpec
from lightning_adam_mini.optim.adam_mini import AdamMini
from lightning_adam_mini.optim.conversion import MEANS, TORCH_ONLY
from lightning_adam_mini.optim.shards.zero import Flat, check_flats, find_flats, why_not
from lightning_adam_mini.optim.state import FIRST, SECOND, STEP

BLOCKS = "blocks"
"""Where in a state dict the blocks stand that its second moments were written with: for each flat tensor, the group of its parameters."""
_OPTIONS = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay", "maximize", "foreach", "fused", "capturable")


class Piece:
    """One flat tensor, and the AdamMini that steps the ranges of parameters in it.

    Args:
        flat: The flat tensor.
        group: The options of its parameter group.
        optimizer: Whose parameters it holds.
    """

    def __init__(self, flat: Flat, group: dict[str, Any], optimizer: AdamMini) -> None:
        layouts = optimizer._blocks.by_parameter
        self.flat = flat
        self.group = group
        self.steps = 0
        views = [nn.Parameter(view) for view in self._views(flat.tensor.detach())]
        names = [optimizer._blocks.name_of(fragment.param) for fragment in flat.fragments]
        self.optimizer: AdamMini = AdamMini(
            list(zip(names, views, strict=True)),
            **{name: group[name] for name in _OPTIONS},
            momentum_dtype=optimizer._momentum_dtype,
            layouts={name: layouts[fragment.param] for name, fragment in zip(names, flat.fragments, strict=True)},
            convert_state=optimizer._convert_state,
            flat_shards={view: fragment.shard for view, fragment in zip(views, flat.fragments, strict=True)},
        )
        self._params = views

    def _views(self, flat: Tensor) -> list[Tensor]:
        """What lies in a tensor like the flat one of each parameter."""
        return [flat[fragment.offset : fragment.offset + fragment.numel] for fragment in self.flat.fragments]

    def follow(self) -> AdamMini:
        """The optimizer, with the options of the group as they are now."""
        self.optimizer.param_groups[0].update({name: self.group[name] for name in _OPTIONS})
        return self.optimizer

    def step(self) -> None:
        """Step, where there is a gradient. Every rank has to call it."""
        flat = self.flat.tensor
        if flat.grad is None:
            return
        if self._params and self._params[0].untyped_storage().data_ptr() != flat.untyped_storage().data_ptr():  # it was moved
            for p, view in zip(self._params, self._views(flat.detach()), strict=True):
                p.data = view
        for p, grad in zip(self._params, self._views(flat.grad.detach()), strict=True):
            p.grad = grad
        try:
            self.follow().step()
        finally:
            for p in self._params:
                p.grad = None  # ZeRO frees it
        self.steps += 1

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state of the flat tensor as Adam's would be, and the group that says with which blocks. Every rank has to call it."""
        saved = self.follow().state_dict()
        state: dict[str, Tensor] = {}
        if self.steps:
            state[STEP.name] = torch.tensor(float(self.steps))
            for name in (FIRST.name, SECOND.name):
                dense = torch.zeros_like(self.flat.tensor, requires_grad=False)
                for i, view in enumerate(self._views(dense)):
                    if i in saved["state"]:
                        view.copy_(saved["state"][i][name].reshape(-1))
                state[name] = dense
        return state, saved["param_groups"][0]

    def load_state_dict(self, state: Mapping[str, Any], group: Mapping[str, Any] | None) -> None:
        """Load what :meth:`state_dict` gave, or the state of an Adam. Every rank has to call it.

        Args:
            state: The state of the flat tensor.
            group: The group of its parameters; None if it was written with a second moment per element.

        Raises:
            ValueError: As :meth:`AdamMini.load_state_dict` does.
        """
        own = self.follow().param_groups[0]
        if group is None:
            group = {name: value for name, value in own.items() if name not in ("layouts", MEANS)}
        elif group.get("param_names") != own.get("param_names"):
            raise ValueError(
                "The loaded state was written by ZeRO with other parameters in a flat tensor than are there now. Load it into the same"
                " model, with the same groups of parameters."
            )
        states: dict[int, dict[str, Any]] = {}
        moments = {name: self._views(value) if isinstance(value, Tensor) and value.ndim else value for name, value in state.items()}
        for i, fragment in enumerate(self.flat.fragments if state else ()):
            if fragment.numel:
                states[i] = {name: value[i] if isinstance(value, list) else value for name, value in moments.items()}
        self.optimizer.load_state_dict({"state": states, "param_groups": [{**group, "params": [*range(len(self._params))]}]})
        self.steps: int = int(state[STEP.name]) if state else 0


class FlatAdamMini(AdamMini):
    """An AdamMini whose parameters ZeRO has put into flat tensors, which its groups hold now.

    Whatever steps, loads or saves it is ZeRO's. What it has learned it tells by the names of the parameters, on every rank.
    """

    _pieces: dict[Tensor, Piece]

    def pieces(self) -> list[AdamMini]:
        """The optimizers of the flat tensors, with the options that the groups have now."""
        return [piece.follow() for piece in self._pieces.values()]

    def _follow(self, explicit: Any = None) -> None:
        """The groups hold what ZeRO puts there."""

    def _take_step(self) -> None:
        self._opt_called = True
        for group in self.param_groups:
            for flat in group["params"]:
                piece = self._piece(flat)
                piece.group = group
                self._take_foreign(flat, piece)
                piece.step()

    def _piece(self, flat: Tensor) -> Piece:
        if flat not in self._pieces:
            raise RuntimeError(
                f"AdamMini does not know what lies in a flat tensor of shape {tuple(flat.shape)}, because ZeRO has made it after"
                " bind_zero_(engine). Make a new optimizer and a new engine."
            )
        return self._pieces[flat]

    def _take_foreign(self, flat: Tensor, piece: Piece) -> None:
        """Take moments that DeepSpeed has put into the state itself, as it does with universal checkpoints."""
        foreign = self.state.pop(flat, None)
        if foreign:
            piece.load_state_dict(foreign, None)

    def _all(self) -> Iterator[Piece]:
        for flat, piece in self._pieces.items():
            self._take_foreign(flat, piece)
            yield piece

    def _present(self) -> list[tuple[str, Tensor, BlockLayout]]:
        return list(chain.from_iterable(piece._present() for piece in self.pieces()))

    def _stepped(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], BlockLayout, Sequence[Tensor]]]:
        return chain.from_iterable(piece.follow()._stepped() for piece in self._all())

    def parameter_names(self) -> dict[Tensor, str]:
        """Name of each parameter of the model."""
        return {
            fragment.param: self._blocks.name_of(fragment.param) for piece in self._pieces.values() for fragment in piece.flat.fragments
        }

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """The state of ZeRO's flat tensors as Adam's would be, for DeepSpeed's checkpoints, with the blocks beside it."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        flats = [flat for group in self.param_groups for flat in group["params"]]
        state, blocks, groups, number = {}, [], [], 0
        for i, flat in enumerate(flats):
            piece = self._piece(flat)
            self._take_foreign(flat, piece)
            of_flat, described = piece.state_dict()
            blocks.append(described)
            if of_flat:
                state[i] = of_flat
        for group in self.param_groups:
            groups.append({**group, "params": [*range(number, number + len(group["params"]))]})
            number += len(group["params"])
        state_dict = {"state": state, "param_groups": groups, BLOCKS: blocks}
        for hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        return state_dict

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state that ZeRO has saved of this optimizer, with these or other blocks, or of torch's Adam or AdamW.

        Args:
            state_dict: What ``state_dict()`` returned, of as many ranks.

        Raises:
            ValueError: As :meth:`AdamMini.load_state_dict` does.
        """
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        flats = [flat for group in self.param_groups for flat in group["params"]]
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        blocks = state_dict.get(BLOCKS) or [None] * len(numbers)
        if not len(flats) == len(numbers) == len(blocks) or len(self.param_groups) != len(state_dict["param_groups"]):
            raise ValueError(
                f"The loaded state is of {len(numbers)} flat tensors in {len(state_dict['param_groups'])} groups, but ZeRO has put"
                f" {len(flats)} in {len(self.param_groups)} here. Load it with the groups of parameters and the sub_group_size that it was"
                " written with."
            )
        for flat, number, group in zip(flats, numbers, blocks, strict=True):
            self.state.pop(flat, None)
            self._piece(flat).load_state_dict(state_dict["state"].get(number, {}), group)
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name not in ("params", *TORCH_ONLY)})
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused, as all that changes which parameters there are, or their blocks."""
        self._refuse("add parameters")

    def set_layouts(self, layouts: Mapping[str, LayoutSpec]) -> None:
        """Refused."""
        self._refuse("change blocks")

    def replace_parameter(self, old: Tensor, new: Tensor, rows: Tensor | None = None) -> None:
        """Refused."""
        self._refuse("replace a parameter")

    def share_work(self, group: Any) -> None:
        """Refused."""
        self._refuse("share work")

    def __getstate__(self) -> dict[str, Any]:
        self._refuse("be copied or pickled")

    def _refuse(self, what: str) -> NoReturn:
        raise ValueError(
            f"AdamMini cannot {what} any more, because ZeRO has put its parameters into flat tensors. Do so before deepspeed.initialize."
        )


@torch.no_grad()
def bind_zero_(engine: Any) -> AdamMini:
    """Let the AdamMini that ``deepspeed.initialize`` was given step what ZeRO has made of its parameters, in place.

    Every rank has to call it, after ``deepspeed.initialize`` and before a checkpoint is loaded or a step is taken.
    ``AdamMiniCallback`` does so itself. Stages 1, 2 and 3, with and without offload to the CPU.

    Args:
        engine: What ``deepspeed.initialize`` returned first.

    Returns:
        The optimizer, the same object.

    Raises:
        ValueError: If the engine has no AdamMini or does not shard its state, was configured in a way that AdamMini cannot follow, keeps
            its map from parameters to flat tensors in another way than deepspeed 0.19.8, or has parameters whose updates are orthogonalised
            or bfloat16 weights that are rounded at random. Nothing has changed then.

    Example:
        .. code-block:: python

            optimizer = AdamMini(model.named_parameters(), lr=1e-3, layouts=partition_model(model))
            engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
            bind_zero_(engine)
    """
    zero = engine.optimizer
    optimizer = getattr(zero, "optimizer", None)
    if not isinstance(optimizer, AdamMini):
        own = f"it steps {type(zero).__name__} itself"
        what = own if optimizer is None else f"{type(zero).__name__} steps {type(optimizer).__name__}"
        raise ValueError(
            f"bind_zero_ wants an engine whose ZeRO steps an AdamMini, but {what}. Pass an AdamMini to deepspeed.initialize, or an"
            " optimizer that convert_optimizer_ has turned into one, and set zero_optimization.stage to 1, 2 or 3."
        )
    if isinstance(optimizer, FlatAdamMini):
        raise ValueError("bind_zero_ was called twice for this optimizer. Call it once, right after deepspeed.initialize.")
    problem = why_not(engine._config._param_dict)
    if problem is None and getattr(zero, "has_moe_layers", False):
        problem = "experts of DeepSpeed's MoE are in groups of ranks of their own. Use experts that are ordinary modules."
    if problem is None and optimizer._stochastic_rounding:
        problem = "the weights that it steps are float32, so that stochastic_rounding=True rounds nothing. Leave it out."
    if problem is not None:
        raise ValueError(f"AdamMini cannot follow DeepSpeed here, because {problem}")
    blocks = optimizer._blocks
    flats = find_flats(zero, _device_of_collectives())
    unknown = sum(fragment.param not in blocks.by_parameter for flat in flats for fragment in flat.fragments)
    if unknown:
        raise ValueError(f"ZeRO steps {unknown} parameters that AdamMini was not given. Pass them to it before deepspeed.initialize.")
    check_flats(flats, blocks.name_of)
    pieces = {flat.tensor: Piece(flat, optimizer.param_groups[flat.group], optimizer) for flat in flats}
    for p in blocks.by_parameter:
        optimizer.state.pop(p, None)  # ZeRO has none of it
    for group in optimizer.param_groups:
        group.pop("layouts", None)  # one per parameter, of which there are none in the groups now
    optimizer.__class__ = _flat(type(optimizer))
    assert isinstance(optimizer, FlatAdamMini)
    optimizer._pieces = pieces
    return optimizer


def _device_of_collectives() -> torch.device:
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    assert accelerator is not None  # an engine lives on it
    return torch.device(accelerator.current_device_name())


@lru_cache
def _flat(kind: type[AdamMini]) -> type[AdamMini]:
    """A class that is both: as ``fully_shard`` makes them of modules."""
    return type(kind.__name__, (FlatAdamMini, kind), {"__module__": kind.__module__})
