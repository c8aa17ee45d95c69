"""AdamMini: Adam with one second moment a block."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_adam_mini._warnings import AdamMiniWarning
from lightning_adam_mini.layout import BlockLayout, second_moment_dtype
from lightning_adam_mini.optim.conversion import Moments, convert_state_dict, how_to_regroup, regroup
from lightning_adam_mini.optim.group_layouts import check_gradient, check_some_is_ours, find_layouts, from_plain, some
from lightning_adam_mini.optim.options import check_options
from lightning_adam_mini.optim.quantized import MomentumDtype, convert_momentum, momentum_dtype_for, zero_momentum
from lightning_adam_mini.optim.shards.flat import FlatShard
from lightning_adam_mini.optim.shards.sharded import Shards
from lightning_adam_mini.optim.stepper import Member, Stepper


class AdamMini(Optimizer):
    r"""Adam with one second moment a block of parameters: Adam-mini, AdaLayer, SlimAdam or, without layouts, AdamW itself.

    For a block :math:`b` with gradient :math:`g_b`:

    .. math::
        p \leftarrow p - \gamma \lambda p, \quad
        m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad
        v_b \leftarrow \beta_2 v_b + (1 - \beta_2) \operatorname{mean}(g_b^2), \quad
        p \leftarrow p - \gamma \, \frac{m / (1 - \beta_1^t)}{\sqrt{v_b / (1 - \beta_2^t)} + \epsilon}

    Source: Zhang et al., "Adam-mini: Use Fewer Learning Rates To Gain More" (arXiv 2406.16793), Algorithm 1, with eps outside the root as
    in its released code and in torch. The optimizer knows nothing of models: :func:`lightning_adam_mini.partition_model` makes the layouts.

    Args:
        params: Parameters, ``(name, parameter)`` pairs or groups of either, as for every torch optimizer. Groups may have their own
            values of the options below, and extra keys, which are kept.
        lr: Learning rate; a number, or a tensor with one element.
        betas: Decay of the first and second moments.
        eps: Added to the square root of the second moment.
        weight_decay: Weight decay.
        decoupled_weight_decay: Whether weight decay shrinks the parameters (AdamW) or is added to the gradients (Adam).
        maximize: Whether to maximize the objective.
        foreach: Whether to batch the work over tensors; None does so when all parameters are on a GPU.
        fused: Whether all parameters are stepped by one compiled loop, which a C++ compiler makes once a machine, or on a GPU by a few
            Triton kernels, which first have to agree with the readable arithmetic on a few small tensors there. None does so wherever that
            can be, unless ``foreach`` is given or no layout shares anything: then the optimizer equals torch's AdamW to the bit.
        capturable: Whether the steps taken are counted on the parameters' devices, so that a CUDA graph can hold :meth:`step`. Where the
            Triton kernels step, they are in any case.
        momentum_dtype: Dtype of the first moments; None for the parameters'. ``torch.bfloat16`` halves the state of float32 parameters.
            ``"8bit"`` quarters it: a byte an element and a float32 scale for each 256; tensors of fewer than 4,096 elements keep theirs.
        stochastic_rounding: Whether new bfloat16 weights are rounded at random, right on average, instead of to the nearest, which loses
            small updates. The random bits follow from the step and the element: runs repeat and resume exactly. Other dtypes are as ever.
        layouts: Blocks by parameter name. A parameter without a layout keeps one second moment an element, with a warning if others
            have one. Names may be of parameters that are not given yet: :meth:`add_param_group` finds them.
        named_parameters: ``(name, parameter)`` pairs that give names to parameters passed without, now or to :meth:`add_param_group`.
        convert_state: Whether :meth:`load_state_dict` may convert second moments written with other blocks, AdamW's included.
        flat_shards: What :func:`~lightning_adam_mini.find_flat_shards` returned, for a model that FSDP1 has flattened. Of DTensors (FSDP2,
            tensor parallelism) nothing needs to be told.

    Raises:
        ValueError: If an option is out of range, a layout does not fit its parameter or cannot follow its sharding, or layouts are given
            but none is for a parameter.

    State per parameter: ``step`` (float32, on the CPU), ``exp_avg`` (the parameter's shape, ``momentum_dtype``) and ``exp_avg_sq`` (the
    layout's ``block_shape``; float32, or float64 for float64 parameters). In 8 bits ``exp_avg`` holds int8 codes, and there is
    ``exp_avg_scale``. Of a sharded parameter each rank keeps its own part, and every rank has to call :meth:`step`, :meth:`state_dict`,
    :meth:`load_state_dict`, :meth:`second_moments` and :meth:`block_learning_rates`, because ranks may share blocks.

    Example:
        >>> model = torch.nn.Linear(6, 4)
        >>> layouts = {"weight": BlockLayout((4, 6), dims=(1,)), "bias": BlockLayout.whole((4,))}
        >>> optimizer = AdamMini(model.named_parameters(), lr=1e-3, layouts=layouts)
        >>> model(torch.ones(2, 6)).sum().backward()
        >>> optimizer.step()
        >>> {name: tuple(v.shape) for name, v in optimizer.second_moments().items()}
        {'weight': (4, 1), 'bias': (1,)}
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        decoupled_weight_decay: bool = True,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        momentum_dtype: MomentumDtype | None = None,
        stochastic_rounding: bool = False,
        layouts: Mapping[str, BlockLayout] | None = None,
        named_parameters: Iterable[tuple[str, Tensor]] = (),
        convert_state: bool = True,
        flat_shards: Mapping[Tensor, FlatShard] | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
        }
        check_options(defaults)
        if not (momentum_dtype in (None, "8bit") or (isinstance(momentum_dtype, torch.dtype) and momentum_dtype.is_floating_point)):
            raise ValueError(f"Invalid momentum_dtype value: {momentum_dtype!r}, because it must be a floating-point torch.dtype or '8bit'")
        self._layouts = dict(layouts or {})
        self._names = {parameter: name for name, parameter in named_parameters}
        self._convert_state = convert_state
        self._momentum_dtype: MomentumDtype | None = momentum_dtype
        self._stochastic_rounding = stochastic_rounding
        self._shards = Shards(flat_shards)
        self._stepper = self._make_stepper()
        super().__init__(params, defaults)
        check_some_is_ours(self._layouts, self._names.values())

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Args:
            param_group: ``params`` and the group's own options. A key ``layouts``, one for each parameter, overrides the layouts that
                the optimizer was made with.

        Raises:
            ValueError: If an option is out of range or a layout does not fit its parameter. Nothing is added then.
        """
        group = dict(param_group)
        if not isinstance(group["params"], (Tensor, set)):
            group["params"] = self._like_present_groups(list(group["params"]))
        explicit = group.pop("layouts", None)
        check_options({**self.defaults, **group})
        if group.get("capturable", self.defaults["capturable"]) and (self._momentum_dtype == "8bit" or self._stochastic_rounding):
            raise ValueError(
                "AdamMini(capturable=True) takes neither momentum_dtype='8bit' nor stochastic_rounding=True because their steps read"
                " numbers off the device. Leave one of them out."
            )
        super().add_param_group(group)
        try:
            names = dict(zip(group["params"], group.get("param_names", ()), strict=False))
            self._names.update(names)
            fallback = {p: f"param_groups.{len(self.param_groups) - 1}.params.{i}" for i, p in enumerate(group["params"])}
            names = {p: self._names.get(p, fallback[p]) for p in group["params"]}
            group["layouts"] = [layout.to_plain() for layout in find_layouts(names, explicit, self._layouts, self._shards.shape_of)]
            self._layouts_changed()
        except Exception:
            self.param_groups.pop()
            raise

    def _layouts_changed(self) -> None:
        names = self.parameter_names()
        self._shards.update(
            (names[p], p, from_plain(plain))
            for group in self.param_groups
            for p, plain in zip(group["params"], group["layouts"], strict=True)
        )
        if self._shards.parts and (self._momentum_dtype == "8bit" or self._stochastic_rounding):
            raise ValueError(
                f"Parameter {names[next(iter(self._shards.parts))]!r} is sharded, and AdamMini takes neither momentum_dtype='8bit' nor"
                " stochastic_rounding=True there, because what they round would depend on the number of ranks. Use"
                " momentum_dtype=torch.bfloat16, or leave them out."
            )
        # Read once, until they change: what reads layouts is too slow for each step, and opaque to torch.compile.
        self._read = {plain: from_plain(plain) for group in self.param_groups for plain in group["layouts"]}
        self._shared = any(not layout.is_per_parameter for layout in self._read.values())

    def _make_stepper(self) -> Stepper:
        return Stepper(self._momentum_dtype, self._stochastic_rounding, lambda p: self.parameter_names()[p])

    def _like_present_groups(self, params: list) -> list:
        """Name parameters where the present groups' have names: torch wants all groups named or none."""
        if not self.param_groups or "param_names" not in self.param_groups[0] or any(isinstance(p, tuple) for p in params):
            return params
        return [(self._names[p], p) for p in params] if all(p in self._names for p in params) else params

    # ---- the step -----------------------------------------------------------------------------------------------------

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: Reevaluates the model and returns the loss.

        Returns:
            The closure's loss.

        Raises:
            RuntimeError: If a gradient is sparse or complex; names the parameter. No parameter has changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        work = []
        for group in self.param_groups:
            members = []
            for p, plain in zip(group["params"], group["layouts"], strict=True):
                if p.grad is not None:
                    check_gradient(p, self.parameter_names)
                    members.append(Member(p, p, p.grad, self._read[plain], plain))
            work.append((group, members))
        if self._shards.parts:
            self._step_parts(work)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self._stepper.step(work, self._state_of, self._shared, self._places)
        return loss

    @torch.compiler.disable  # which mixes parameters up that are keys of dicts
    def _step_parts(self, work: list[tuple[dict[str, Any], list[Member]]]) -> None:
        self._stepper.step(self._shards.localize(work), self._state_of, self._shared, self._places)

    def _places(self) -> dict[Tensor, int]:
        return {p: place for place, p in enumerate(p for group in self.param_groups for p in group["params"])}

    def _state_of(self, member: Member, step_there: bool = False) -> dict[str, Tensor]:
        """The state of what is stepped of a parameter, with its step on the same device if that is asked for."""
        p = member.param
        state = self.state[p]
        sharded = bool(self._shards.parts) and p in self._shards.parts
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=member.p.device if step_there else "cpu")
            state.update(zero_momentum(p, momentum_dtype_for(p, self._momentum_dtype)))
            if sharded:
                state["exp_avg_sq"] = self._shards.zero_second_moment(p)
            elif member.layout.is_per_parameter:
                state["exp_avg_sq"] = torch.zeros_like(p, dtype=second_moment_dtype(p.dtype), memory_format=torch.preserve_format)
            else:
                shape = self._read[member.plain].block_shape
                state["exp_avg_sq"] = torch.zeros(shape, dtype=second_moment_dtype(p.dtype), device=p.device)
        elif step_there and state["step"].device != member.p.device:
            state["step"] = state["step"].to(member.p.device)
        return self._shards.local_state(p, state) if sharded else state

    # ---- what it has learned ------------------------------------------------------------------------------------------

    def parameter_names(self) -> dict[Tensor, str]:
        """Name of each parameter: the user's, or its place (``param_groups.0.params.3``) where none was given."""
        return {
            p: self._names.get(p, f"param_groups.{i}.params.{j}")
            for i, group in enumerate(self.param_groups)
            for j, p in enumerate(group["params"])
        }

    @property
    def layouts(self) -> dict[str, BlockLayout]:
        """Blocks of each parameter, by name."""
        names = self.parameter_names()
        return {
            names[p]: from_plain(plain) for group in self.param_groups for p, plain in zip(group["params"], group["layouts"], strict=True)
        }

    @torch.no_grad()
    def set_layouts(self, layouts: Mapping[str, BlockLayout]) -> None:
        """Change the blocks of parameters, and go on: second moments are averaged into coarser blocks and spread over finer ones.

        Args:
            layouts: Blocks by parameter name; other parameters keep theirs. Names may be of parameters that are added later.

        Raises:
            ValueError: If none is for a parameter of this optimizer, one does not fit its parameter, or has blocks that are neither finer
                nor coarser than those of a second moment that exists. Names the parameter; nothing has changed then.
        """
        check_some_is_ours(layouts, self._names.values())
        names = self.parameter_names()
        work: list[tuple[dict[str, Any], int, BlockLayout, Tensor | None]] = []
        for group in self.param_groups:
            changed = {p: names[p] for p in group["params"] if names[p] in layouts}
            new = dict(
                zip(
                    changed,
                    find_layouts(changed, [layouts[name] for name in changed.values()], layouts, self._shards.shape_of),
                    strict=True,
                )
            )
            for i, (p, plain) in enumerate(zip(group["params"], group["layouts"], strict=True)):
                if p not in new or new[p] == (old := from_plain(plain)):
                    continue
                second_moment = None
                if self.state.get(p):
                    if p in self._shards.parts:
                        raise ValueError(
                            f"Parameter {names[p]!r} is sharded, so its blocks cannot change once it has a second moment. Change them"
                            " before the first step."
                        )
                    if how_to_regroup(old, new[p]) == "mixed":
                        raise ValueError(
                            f"The second moment of parameter {names[p]!r} has blocks ({old}) that are neither finer nor coarser than the"
                            f" new ones ({new[p]}). Change its blocks before the first step, or to blocks that nest."
                        )
                    second_moment = regroup(self.state[p]["exp_avg_sq"], old, new[p])
                work.append((group, i, new[p], second_moment))
        self._layouts.update(layouts)
        for group, i, layout, second_moment in work:
            group["layouts"][i] = layout.to_plain()
            if second_moment is not None:
                # A copy of its own, so that the memory of larger blocks is free at once.
                self.state[group["params"][i]]["exp_avg_sq"] = second_moment.clone(memory_format=torch.contiguous_format)
        self._layouts_changed()

    @torch.no_grad()
    def second_moments(self) -> dict[str, Tensor]:
        """Second moments by parameter name: the running means of g², without bias correction.

        Returns:
            For each parameter that has been stepped, a new float32 tensor that broadcasts to the parameter.
        """
        return {name: layout.spread(blocks.clone()) for name, _, _, layout, blocks in self._stepped()}

    @torch.no_grad()
    def block_learning_rates(self) -> dict[str, Tensor]:
        """Effective learning rates ``lr / (sqrt(v / (1 - beta2^t)) + eps)`` by parameter name.

        Returns:
            For each parameter that has been stepped, a float32 tensor that broadcasts to the parameter. Nothing waits for the device.
        """
        stepped = list(self._stepped())
        # One read of all steps on the CPU: one a parameter would take longer than the rest.
        here = [state["step"] for _, _, state, _, _ in stepped if state["step"].device.type == "cpu"]
        numbers = iter(torch.stack([step.reshape(()) for step in here]).tolist() if here else [])
        steps = [
            next(numbers) if state["step"].device.type == "cpu" else state["step"].reshape(()).double() for _, _, state, _, _ in stepped
        ]
        rates = {}
        for (name, group, _, layout, blocks), step in zip(stepped, steps, strict=True):
            denom = blocks.div(1 - group["betas"][1] ** step).sqrt_().add_(group["eps"])
            lr = group["lr"]
            rates[name] = layout.spread((lr.reshape(()) if isinstance(lr, Tensor) else lr) / denom)
        return rates

    def _stepped(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], BlockLayout, Tensor]]:
        """Name, group, state, blocks and their second moments of each parameter that has been stepped: of all its blocks, on every rank."""
        names = self.parameter_names()
        kept = {p: self.state[p]["exp_avg_sq"] for p in self._shards.parts if self.state.get(p)}
        gathered = self._shards.gather(kept) if self._shards.parts else {}
        steps = self._shards.share_steps({p: self.state[p]["step"] for p in kept}) if self._shards.flat else {}
        for group in self.param_groups:
            for p, plain in zip(group["params"], group["layouts"], strict=True):
                state = self.state.get(p) or ({"step": steps[p]} if p in steps else {})
                if state:
                    yield names[p], group, state, from_plain(plain), gathered[p] if p in gathered else state["exp_avg_sq"]

    # ---- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state as torch's optimizers give it, of tensors and plain values, for any strategy and number of ranks.

        Of a DTensor the moments are DTensors. Of a parameter that FSDP1 has flattened, second moments have one value an element, because
        FSDP's ``optim_state_dict`` takes nothing else.
        """
        state_dict = super().state_dict()
        if not (self._shards.parts or self._shards.flattened_whole):
            return state_dict
        places = {p: place for p, place in self._places().items() if place in state_dict["state"]}
        portable = {p: state_dict["state"][place] for p, place in places.items()}
        self._shards.to_portable(portable)
        return {**state_dict, "state": {place: portable[p] for p, place in places.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state written by this optimizer, with these or other layouts, or by torch's Adam or AdamW.

        Second moments written with finer blocks (AdamW's are the finest) are averaged, which is what training with the present
        blocks would have given. Those written with coarser blocks are spread. Either is told in a warning. First moments come in any
        ``momentum_dtype`` and are kept in the present one.

        Args:
            state_dict: What ``state_dict()`` returned.

        Raises:
            ValueError: If the state is not for these parameters, was written with blocks that are neither finer nor coarser, uses amsgrad,
                or needs a conversion that ``convert_state=False`` forbids. Names the parameter; nothing has changed then.
        """
        names = self.parameter_names()
        present = [{"layouts": list(g["layouts"]), "fused": g["fused"], "capturable": g["capturable"]} for g in self.param_groups]
        flat = [
            (names[p], p, from_plain(plain))
            for group in self.param_groups
            for p, plain in zip(group["params"], group["layouts"], strict=True)
        ]
        problem, loaded = None, None
        try:
            loaded = convert_state_dict(state_dict, flat, self._convert_state)
        except ValueError as error:
            problem = str(error)
        problem = self._shards.agree(problem)
        if problem is not None or loaded is None:
            raise ValueError(problem)
        super().load_state_dict(loaded.state_dict)
        for group, kept in zip(self.param_groups, present, strict=True):
            group.update(kept)
        self._adopt(flat, loaded.moments)
        converted = loaded.converted
        if converted:
            warnings.warn(
                f"The loaded state was written with other blocks for {some(list(converted))}; their second moments were"
                f" {' and '.join(sorted(set(converted.values())))} to the present ones.",
                AdamMiniWarning,
                stacklevel=2,
            )

    def _adopt(self, present: list[tuple[str, Tensor, BlockLayout]], loaded: list[Moments]) -> None:
        """Put loaded moments into the state, for torch casts floating-point state to the parameter's dtype, and moments keep theirs."""
        there = [group["capturable"] for group in self.param_groups for _ in group["params"]]
        for (_, p, layout), moments, step_there in zip(present, loaded, there, strict=True):
            values = None if moments.momentum is None else moments.second_moment
            if p in self._shards.parts:  # every rank, even one that holds nothing
                values = self._shards.adopt_second_moment(p, values, moments.layout, layout)
            elif values is not None:
                values = regroup(values, moments.layout, layout)
            if moments.momentum is None or values is None:
                continue
            state, device = self.state[p], self._shards.device_of(p)
            state.update(convert_momentum(moments.momentum, device, momentum_dtype_for(p, self._momentum_dtype)))
            if p in self._shards.parts:
                state["exp_avg"] = self._shards.adopt_momentum(p, state["exp_avg"])
            state["step"] = torch.as_tensor(state["step"]).to(device if step_there else "cpu", torch.float32, copy=True)
            state["exp_avg_sq"] = values.to(device=device, dtype=second_moment_dtype(p.dtype), copy=True)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "_layouts": self._layouts,
            "_names": self._names,
            "_convert_state": self._convert_state,
            "_momentum_dtype": self._momentum_dtype,
            "_stochastic_rounding": self._stochastic_rounding,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("capturable", False)
            group.setdefault("fused", None)
        if "_layouts" in state:  # a copy; loading a state dict comes here too
            self._stepper = self._make_stepper()
            self._shards = Shards()
            self._layouts_changed()
