"""AdamMini: Adam with one second moment per block."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor
from torch._guards import TracingContext
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_adam_mini._warnings import warn
from lightning_adam_mini.layout import BlockLayout
from lightning_adam_mini.layout_spec import LayoutSpec
from lightning_adam_mini.matrix_layout import MatrixLayout
from lightning_adam_mini.optim.codecs import MomentumDtype, MomentumName, read_momentum_dtype
from lightning_adam_mini.optim.conversion import MEANS, as_numbers, check_state_dict, convert_state_dict, moments_of
from lightning_adam_mini.optim.group_layouts import GroupLayouts, named_in, some, with_list
from lightning_adam_mini.optim.options import check_options, check_parameters
from lightning_adam_mini.optim.regroup import check_nested, how_to_regroup
from lightning_adam_mini.optim.rows import check_rows, move_rows
from lightning_adam_mini.optim.shards.dtensor import local
from lightning_adam_mini.optim.shards.flat import FlatShard
from lightning_adam_mini.optim.shards.sharded import Shards
from lightning_adam_mini.optim.shards.whole import highest_steps
from lightning_adam_mini.optim.shards.zero import is_flattened_by_zero
from lightning_adam_mini.optim.state import (
    SECOND,
    STEP,
    Kind,
    Moments,
    StateFormat,
    in_blocks,
    moments_in,
    put_in_blocks,
    slots_of,
    with_restarted_moment,
)
from lightning_adam_mini.optim.stepper import Stepper
from lightning_adam_mini.optim.work import Member, Work, turns
from lightning_adam_mini.table import count


class MatrixUpdates(NamedTuple):
    """How large the last update of a parameter's matrices was.

    Attributes:
        rms: Root mean square of the update of each matrix, weight decay left out: float32 of shape (matrices,).
        ratio: The same over the root mean square of the matrix: the share of it that a step changes.
        rows: NorMuon's learning rate of each row before the matrix is resized, ``lr / sqrt(v)``, of the layout's ``block_shape``; None of
            Muon.
    """

    rms: Tensor
    ratio: Tensor
    rows: Tensor | None


class AdamMini(Optimizer):
    """Adam with one second moment per block of parameters: Adam-mini, AdaLayer, SlimAdam or, without layouts, AdamW itself.

    One step, for a block b of a parameter p with gradient g (t counts the steps):

        p   = p - lr * weight_decay * p
        m   = beta1 * m + (1 - beta1) * g
        v_b = beta2 * v_b + (1 - beta2) * mean(g² over b)
        p   = p - lr * m / (1 - beta1^t) / (sqrt(v_b / (1 - beta2^t)) + eps)

    Source: Zhang et al., "Adam-mini: Use Fewer Learning Rates To Gain More" (arXiv 2406.16793), Algorithm 1, with eps outside the root as
    in its released code and in torch. The optimizer knows nothing of models: :func:`lightning_adam_mini.partition_model` makes the layouts.

    Args:
        params: Parameters, ``(name, parameter)`` pairs or groups of either, as for every torch optimizer. Groups may have their own
            values of the options below, and extra keys, which are kept.
        lr: Learning rate; a number, or a tensor with one element.
        betas: Decay of the first and second moments: numbers, or tensors with one element, which are read at each step.
        eps: Added to the square root of the second moment.
        weight_decay: Weight decay.
        decoupled_weight_decay: Whether weight decay shrinks the parameters (AdamW) or is added to the gradients (Adam).
        maximize: Whether to maximize the objective.
        foreach: Whether to batch the work over tensors; None does so on devices on which torch batches by default, as on GPUs.
        fused: Whether all parameters are stepped by one compiled loop, which a C++ compiler makes once per machine, or on a GPU by a few
            Triton kernels, which first have to agree with the readable arithmetic on a few small tensors there. None does so wherever that
            can be, unless ``foreach`` is given or no layout shares anything: then the optimizer equals torch's AdamW to the bit.
        capturable: Whether the steps taken are counted on the parameters' devices, so that a CUDA graph can hold :meth:`step`. Where the
            Triton kernels step, they are in any case.
        momentum_dtype: Dtype of the first moments, or its name; None for the parameters'. ``torch.bfloat16`` halves the state of float32
            parameters. ``"8bit"`` quarters it: a byte per element and a float32 scale for each 256 elements of a row; tensors of fewer than
            4,096 elements keep theirs.
        stochastic_rounding: Whether new bfloat16 weights are rounded at random, right on average, instead of to the nearest, which loses
            small updates. The random bits follow from the step, the parameter and the element's place in it, however it is sharded: runs
            repeat and resume exactly. Other dtypes are as ever.
        layouts: Blocks by parameter name, or how they are written: ``"tensor"``, ``{"dims": [1]}`` (see
            :func:`~lightning_adam_mini.layout_spec.read_layout`). A parameter without a layout keeps one second moment per element, with a
            warning if others have one. Names may be of parameters that are not given yet: :meth:`add_param_group` finds them.
        named_parameters: ``(name, parameter)`` pairs that give names to parameters passed without, now or to :meth:`add_param_group`.
        convert_state: Whether :meth:`load_state_dict` may convert second moments written with other blocks, AdamW's included.
        flat_shards: What :func:`~lightning_adam_mini.find_flat_shards` returned, for a model that FSDP1 has flattened. Of DTensors (FSDP2,
            tensor parallelism) nothing needs to be told.

    Raises:
        ValueError: If an option is out of range, a layout does not fit its parameter or cannot follow its sharding, or layouts are given
            but none is for a parameter.

    State per parameter: ``step`` (float32, on the CPU), ``exp_avg`` (the parameter's shape, ``momentum_dtype``) and ``exp_avg_sq`` (the
    layout's ``block_shape``; float32, or float64 for float64 parameters). Of a factored layout there is ``exp_avg_sq_col`` too, of its
    second margin's ``block_shape``, and updates are cut off at Adam's own largest, max(1, (1 - beta1) / sqrt(1 - beta2)) learning rates. In
    8 bits ``exp_avg`` holds int8 codes, and there is
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
        momentum_dtype: MomentumDtype | MomentumName | None = None,
        stochastic_rounding: bool = False,
        layouts: Mapping[str, LayoutSpec] | None = None,
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
        check_parameters(params)
        given: Any = params if isinstance(params, Tensor) else [with_list(item) if isinstance(item, dict) else item for item in params]
        self._set_up(layouts, (*named_parameters, *named_in(given)), momentum_dtype, stochastic_rounding, convert_state, flat_shards)
        super().__init__(given, defaults)
        self._blocks.check_some_match(self._blocks.known)
        if layouts is None and not self._shared:
            warn(
                "AdamMini was made without layouts, so that each element keeps its own second moment: it is plain"
                f" {'AdamW' if decoupled_weight_decay else 'Adam'}, at its memory. Pass layouts=partition_model(model) with"
                " model.named_parameters() to share them, or layouts={} if that is what you want."
            )

    def _set_up(
        self,
        layouts: Mapping[str, LayoutSpec] | None,
        named_parameters: Iterable[tuple[str, Tensor]],
        momentum_dtype: MomentumDtype | MomentumName | None,
        stochastic_rounding: bool,
        convert_state: bool,
        flat_shards: Mapping[Tensor, FlatShard] | None,
    ) -> None:
        """Set all that is not in the groups; an optimizer that was made as another's class is set up by this alone."""
        self._momentum_dtype: MomentumDtype | None = read_momentum_dtype(momentum_dtype)
        self._shards = Shards(flat_shards)
        self._blocks = GroupLayouts({} if layouts is None else layouts, named_parameters, self._shards.shape_of)
        self._convert_state = convert_state
        self._stochastic_rounding = stochastic_rounding
        self._made_as: str | None = getattr(self, "_made_as", None)
        self._begin()

    def _begin(self) -> None:
        self._format = StateFormat(self._momentum_dtype, self._shards)
        self._stepper = Stepper(self._format, self._stochastic_rounding, self._blocks.name_of)
        self._shared = self._repeats = False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Args:
            param_group: ``params`` and the group's own options. A key ``layouts``, one for each parameter, overrides the layouts that
                the optimizer was made with.

        Raises:
            ValueError: If an option is out of range or a layout does not fit its parameter. Nothing is added then.
        """
        group = with_list(param_group)
        if isinstance(group["params"], list):
            group["params"] = self._like_present_groups(group["params"])
        explicit = group.pop("layouts", None)
        self._check_options({**self.defaults, **group})
        super().add_param_group(group)
        try:
            self._blocks.learn_names(zip(group.get("param_names", ()), group["params"], strict=False))
            self._follow(explicit)
        except Exception:
            self.param_groups.pop()
            raise

    def _check_options(self, options: Mapping[str, Any]) -> None:
        check_options(options)
        if options["capturable"] and (isinstance(self._momentum_dtype, str) or self._stochastic_rounding):
            raise ValueError(
                "AdamMini(capturable=True) takes neither momentum_dtype='8bit' nor stochastic_rounding=True because their steps read"
                " numbers off the device. Leave one of them out."
            )

    def _follow(self, explicit: Iterable | None = None) -> None:
        """Find the blocks of what the groups hold now, if that has changed: users filter, extend, reorder and replace ``params``.

        Args:
            explicit: The layouts of the last group.

        Raises:
            ValueError: If a parameter has no blocks that fit, or ZeRO has put them into flat tensors. Nothing has changed then.
        """
        if not self._blocks.is_current(self.param_groups):
            if any(map(is_flattened_by_zero, self._blocks.by_parameter)):
                raise ValueError(
                    "AdamMini's groups hold flat tensors in the place of parameters, where DeepSpeed's ZeRO has put them. Call"
                    " lightning_adam_mini.bind_zero_(engine) right after deepspeed.initialize, before a step or a checkpoint."
                )
            self._settle(self._blocks.find(self.param_groups, self.state, self._shards.shape_of, explicit))

    def _settle(self, layouts: list[list[BlockLayout]]) -> None:
        """Take these as the blocks of the groups.

        Raises:
            ValueError: If a parameter is sharded in a way that its blocks cannot follow. Nothing has changed then.
        """
        names = self._blocks.names(self.param_groups)
        ours = [
            (names[p], p, layout)
            for group, some_layouts in zip(self.param_groups, layouts, strict=True)
            for p, layout in zip(group["params"], some_layouts, strict=True)
        ]
        self._shards.update(ours)
        for group in self.param_groups:
            for key, default in self.defaults.items():  # a group from before the conversion may be put back
                group.setdefault(key, default)
        self._blocks.settle(self.param_groups, layouts, self.state)
        self._shared = any(not layout.is_per_parameter for _, _, layout in ours)
        self._repeats = len({id(p) for _, p, _ in ours}) < len(ours)
        self._stepper.forget()

    def _like_present_groups(self, params: list) -> list:
        """Name parameters where the present groups' have names: torch wants all groups named or none."""
        if not self.param_groups or "param_names" not in self.param_groups[0] or any(isinstance(p, tuple) for p in params):
            return params
        names = [self._blocks.name(p) for p in params]
        return params if None in names else list(zip(names, params, strict=True))

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
        self._take_step()
        return loss

    def _take_step(self) -> None:
        compiling = torch.compiler.is_compiling()
        if not compiling or _COMPILES_ATTRIBUTES:
            self._opt_called = True  # torch's schedulers wrap the steps of other optimizers to know of a first one
        if compiling:
            work = self._work()
            self._stepper.check(work)
            self._step_work(work)
            return
        self._follow()
        if self._stepper.step_again(self.param_groups, self.state):
            return
        work = self._work()
        self._stepper.check(work)
        for turn in turns(work) if self._repeats else (work,):
            self._step_work(turn)
        if not (self._repeats or self._shards.parts):
            self._stepper.prepare(self.param_groups, self.state, work)

    def _work(self) -> list[tuple[dict[str, Any], list[Member]]]:
        """What is to be stepped: the parameters that have gradients."""
        work, number = [], 0
        states, none = self.state, {}
        for group, layouts in zip(self.param_groups, self._blocks.layouts, strict=True):
            members = []
            for p, layout in zip(group["params"], layouts, strict=True):
                grad = p.grad
                if grad is not None:
                    members.append(Member(p, p, grad, layout, layout, states.get(p, none), number))
                number += 1
            if any(isinstance(beta, Tensor) for beta in group["betas"]):  # read at each step, because they may change in place
                group = {**group, "betas": tuple(map(float, group["betas"]))}
            work.append((group, members))
        return work

    def _init_group(self, group: dict[str, Any], *lists: Any, **named_lists: Any) -> bool:
        """Take the step where torch's own steps collect tensors for theirs: this one was kept or patched before it became an AdamMini.

        ``torch.optim.Adam.step`` and its kin call this once per group and then step what was put into ``lists``, which is nothing here.
        That is no public contract of torch. Without it Adam's arithmetic would meet second moments of other shapes, which it refuses.
        """
        if TracingContext.try_get() is not None:  # torch.compile would run this once, now, and never again
            raise RuntimeError(
                f"This step was compiled when the optimizer was no AdamMini yet, so it would train nothing. Call torch.compile on the step"
                f" of this {type(self).__name__} again, after it was converted."
            )
        if group is self.param_groups[0]:
            self._take_step()
        return False

    def _step_work(self, work: Work) -> None:
        if self._shards.parts:
            self._step_parts(work)  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self._stepper.step(work, self.state, self._shared)

    @torch.compiler.disable  # which mixes parameters up that are keys of dicts
    def _step_parts(self, work: Work) -> None:
        self._stepper.step(self._shards.localize(work), self.state, self._shared)

    # ---- what it has learned ------------------------------------------------------------------------------------------

    def parameter_names(self) -> dict[Tensor, str]:
        """Name of each parameter: the user's, or its place (``param_groups.0.params.3``) where none was given.

        Names are without what wrappers added (``_orig_mod.``, ``module.``) where the layouts' are.
        """
        return self._blocks.names(self.param_groups)

    @property
    def layouts(self) -> dict[str, BlockLayout]:
        """Blocks of each parameter, by name."""
        return {name: layout for name, _, layout in self._present()}

    def _present(self) -> list[tuple[str, Tensor, BlockLayout]]:
        """Name, parameter and blocks of each parameter, in the order of the groups."""
        self._follow()
        names = self.parameter_names()
        return [
            (names[p], p, layout)
            for group, layouts in zip(self.param_groups, self._blocks.layouts, strict=True)
            for p, layout in zip(group["params"], layouts, strict=True)
        ]

    @torch.no_grad()
    def set_layouts(self, layouts: Mapping[str, LayoutSpec]) -> None:
        """Change the blocks of parameters, and go on: second moments are averaged into coarser blocks and spread over finer ones.

        Of a parameter that goes over to orthogonalised updates only the first moment is kept; of one that comes back from them too, from
        which the second begins anew. Where parameters are sharded every rank has to call it.

        Args:
            layouts: Blocks by parameter name; other parameters keep theirs. Names may be of parameters that are added later.

        Raises:
            ValueError: If none is for a parameter of this optimizer, one does not fit its parameter, or has blocks that are neither finer
                nor coarser than those of a second moment that exists. Names the parameter; nothing has changed then.
        """
        layouts = self._blocks.read(layouts, self._shards.shape_of)
        self._blocks.check_some_match(layouts)
        changed = {p: (name, layout) for name, p, layout in self._present() if name in layouts and layouts[name] != layout}
        names = [name for name, _ in changed.values()]
        found = self._blocks.find_for(list(changed), names, [layouts[name] for name in names], self._shards.shape_of)
        new = dict(zip(changed, found, strict=True))
        groups = {p: group for group in self.param_groups for p in group["params"]}
        shared = self._steps_of_flattened()
        regrouped: dict[Tensor, dict[str, Tensor]] = {}
        portable: dict[Tensor, dict[str, Any]] = {}
        sharded: list[tuple[str, Tensor]] = []
        for p, (name, old) in changed.items():
            state = self.state.get(p) or {}
            if not state and p not in shared:
                continue
            check_nested(name, old, new[p])
            if p in self._shards.parts:
                self._check_no_matrices(name, old, new[p])
                sharded.append((name, p))
                portable.update({p: state} if state else {})
                continue
            if how_to_regroup(old, new[p]) == "restarted":
                state, old = with_restarted_moment(state, old, groups[p]), BlockLayout.per_parameter(old.shape)
            regrouped[p] = in_blocks(p, state, old, new[p])
        if sharded:  # whose blocks lie on several ranks: as if saved with the old ones and loaded with the new
            self._format.to_portable(portable, {p: layout for _, p, layout in self._present()})
        self._settle(
            [
                [new.get(p, layout) for p, layout in zip(group["params"], present, strict=True)]
                for group, present in zip(self.param_groups, self._blocks.layouts, strict=True)
            ]
        )
        self._blocks.known.update(layouts)
        for p, moments in regrouped.items():
            put_in_blocks(self.state[p], moments)
        saved = [Moments(changed[p][1], moments_in(portable[p]) if p in portable else None) for _, p in sharded]
        present = [(name, p, new[p]) for name, p in sharded]
        self._format.adopt(self.state, present, saved, [groups[p]["capturable"] for _, p in sharded])

    @staticmethod
    def _check_no_matrices(name: str, old: BlockLayout, new: BlockLayout) -> None:
        """Refuse to change between Adam's updates and orthogonalised ones of a sharded parameter that has been stepped.

        Raises:
            ValueError: If they are to change. Names the parameter.
        """
        if old.is_orthogonal or new.is_orthogonal:
            raise ValueError(
                f"Parameter {name!r} is sharded, so it cannot go over to other updates once it has been stepped: from {old} to {new}. Keep"
                " the partition that it was trained with, change it before the first step, or make a new optimizer."
            )

    @torch.no_grad()
    def replace_parameter(self, old: Tensor, new: Tensor, rows: Tensor | None = None) -> None:
        """Put a parameter in the place of one that has other rows, and take its state along: rows are pruned, added or reordered.

        For models that grow and shrink while they train, such as Gaussian splatting. First and second moments of a row go with it;
        those of a new row begin at zero; the second moment of a block that spans rows stays as it is.

        Args:
            old: A parameter of this optimizer.
            new: What takes its place, of the same shape but for the first dimension.
            rows: int64 of shape (rows of ``new``,): the row of ``old`` that each row was, or -1 for a new one. [default: the rows of
                ``old`` in their order, and new ones after them]

        Raises:
            ValueError: If ``old`` is not a parameter of this optimizer or is sharded, shapes or rows do not fit, or its blocks are groups
                of rows (heads). Nothing has changed then.

        Example:
            >>> points = torch.nn.Parameter(torch.randn(5, 3))
            >>> points.grad = torch.ones(5, 3)
            >>> optimizer = AdamMini([("points", points)], layouts={"points": BlockLayout.each_line((5, 3))})
            >>> optimizer.step()
            >>> keep = torch.tensor([0, 2, 4])
            >>> pruned = torch.nn.Parameter(points.detach()[keep])
            >>> optimizer.replace_parameter(points, pruned, rows=keep)
            >>> optimizer.second_moments()["points"].shape
            torch.Size([3, 1])
        """
        found = next(((name, layout) for name, p, layout in self._present() if p is old), None)
        if found is None:
            raise ValueError(f"The parameter to replace, of shape {tuple(old.shape)}, is none of this optimizer's.")
        name, layout = found
        if old in self._shards.parts:
            raise ValueError(f"Parameter {name!r} is sharded, so its rows cannot be replaced. Make a new optimizer.")
        if new is not old and any(p is new for group in self.param_groups for p in group["params"]):
            raise ValueError(f"What is to take the place of parameter {name!r} is a parameter of this optimizer already. Give it another.")
        rows = check_rows(name, old, new, layout, rows)
        state = self.state.get(old)
        moved = move_rows(state, new, layout, rows, self._format) if state else None
        self.state.pop(old, None)
        if moved:
            self.state[new] = moved
        self._blocks.rename(old, new, name, layout.with_shape(new.shape))
        for group in self.param_groups:
            group["params"][:] = [new if p is old else p for p in group["params"]]
        self._follow()

    @torch.no_grad()
    def second_moments(self) -> dict[str, Tensor]:
        """Second moments by parameter name: the running means of g², without bias correction.

        Returns:
            For each parameter that has been stepped, a new float32 tensor that broadcasts to the parameter. Of factored blocks it has one
            value per element.
        """
        return {name: layout.combine([one.clone() for one in blocks]) for name, _, _, layout, blocks in self._adams()}

    @torch.no_grad()
    def block_learning_rates(self) -> dict[str, Tensor]:
        """Effective learning rates ``lr / (sqrt(v / (1 - beta2^t)) + eps)`` by parameter name.

        Returns:
            For each parameter that has been stepped, a float32 tensor that broadcasts to the parameter; of factored blocks with one value
            per element. Nothing waits for the device.
        """
        return {name: rate(layout.combine(blocks)) for name, layout, blocks, rate in self._rates()}

    @torch.no_grad()
    def margin_learning_rates(self) -> dict[str, tuple[Tensor, ...]]:
        """What the effective learning rates would be if each of the means that are kept were the second moment: of rows, and of columns.

        Returns:
            For each parameter that has been stepped, for each margin of its blocks (one, or two of factored blocks) a float32 tensor that
            broadcasts to the parameter: no larger than what is kept. Nothing waits for the device.
        """
        return {
            name: tuple(rate(margin.spread(one)) for margin, one in zip(layout.margins, blocks, strict=True))
            for name, layout, blocks, rate in self._rates()
        }

    def _rates(self) -> Iterator[tuple[str, BlockLayout, Sequence[Tensor], Callable[[Tensor], Tensor]]]:
        """Name, blocks, their means, and what makes effective learning rates of second moments, of each parameter that has been stepped."""
        stepped = list(self._adams())
        # One read of all steps on the CPU: one a parameter would take longer than the rest.
        counts = [state[STEP.name].reshape(()) for _, _, state, _, _ in stepped]
        here = [count for count in counts if count.device.type == "cpu"]
        numbers = iter(torch.stack(here).tolist() if here else [])
        steps = [next(numbers) if count.device.type == "cpu" else count.double() for count in counts]
        for (name, group, _, layout, blocks), step in zip(stepped, steps, strict=True):
            lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
            correction = 1 - float(group["betas"][1]) ** step

            def rate(v: Tensor, lr: Any = lr, correction: Any = correction, eps: float = group["eps"]) -> Tensor:
                return lr / v.div(correction).sqrt_().add_(eps)

            yield name, layout, blocks, rate

    @torch.no_grad()
    def matrix_updates(self) -> dict[str, MatrixUpdates]:
        """How large the last updates of orthogonalised matrices were, by parameter name. Nothing waits for the device.

        Of sharded parameters whose matrices lie on one rank each, those of this rank; they are left out where it has none.
        """
        updates: dict[str, MatrixUpdates] = {}
        sizes = self._stepper.orthogonal.sizes
        present = [(name, p, layout, sizes[p]) for name, p, layout in self._present() if p in sizes and isinstance(layout, MatrixLayout)]
        whole = self._shards.sizes_of_matrices({p: size for _, p, _, size in present}) if self._shards.parts else {}
        for name, p, layout, size in present:
            lr = self._stepper.orthogonal.rates[p]
            if p in whole:
                size, of_weights = whole[p]
            else:
                here = local(p)
                of_weights = torch.cat([one.float().square().mean(dim=(1, 2)) for one in layout.with_shape(here.shape).split(here)]).sqrt_()
            rms = size * lr
            rows = None if layout.beta2 is None else lr / self.state[p][SECOND.name].sqrt()
            updates[name] = MatrixUpdates(rms, (rms / of_weights).masked_fill_(rms == 0, 0.0), rows)
        return updates

    def share_work(self, group: ProcessGroup | None) -> None:
        """Let each rank of a group orthogonalise its share of the matrices, and give all to all by one all-gather a step.

        Only for ranks that hold the same parameters and have the same gradients when they step, as under DDP: else they would take parts
        of each other's updates. Where gradients may differ, as with local SGD, leave it out. Parameters that are sharded are shared in any
        case, and what is not orthogonalised each rank steps alone.

        Args:
            group: The ranks, each of which has to call this and then every step; None if each is to do all.

        Example:
            >>> optimizer = AdamMini([("w", torch.nn.Parameter(torch.ones(4, 6)))], layouts={"w": MatrixLayout((4, 6))})
            >>> if torch.distributed.is_initialized():
            ...     optimizer.share_work(torch.distributed.group.WORLD)
        """
        alone = group is None or torch.distributed.get_world_size(group) == 1
        self._stepper.orthogonal.group = None if alone else group

    def _adams(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], BlockLayout, Sequence[Tensor]]]:
        """:meth:`_stepped`, without what steps by orthogonalised updates: the second moments there are of gradients."""
        return (one for one in self._stepped() if not one[3].is_orthogonal)

    def _stepped(self) -> Iterator[tuple[str, dict[str, Any], dict[str, Any], BlockLayout, Sequence[Tensor]]]:
        """Name, group, state, blocks and their means of each parameter that has been stepped: of all its blocks, on every rank."""
        present = self._present()
        layouts = {p: layout for _, p, layout in present}
        kept = {p: self._means_of(p, layouts[p]) for p in self._shards.parts if self.state.get(p)}
        gathered = self._shards.gather(kept) if self._shards.parts else {}
        steps = self._steps_of_flattened()
        groups = (group for group in self.param_groups for _ in group["params"])
        for group, (name, p, layout) in zip(groups, present, strict=True):
            state = self.state.get(p) or ({STEP.name: steps[p]} if p in steps else {})
            if state:
                yield name, group, state, layout, gathered[p] if p in gathered else self._means_of(p, layout)

    def _steps_of_flattened(self) -> dict[Tensor, Tensor]:
        """Steps taken of the parameters that FSDP1 has flattened, of which this rank may hold nothing. Every rank has to call it."""
        return highest_steps({p: self.state[p][STEP.name] for p in self._shards.parts if self.state.get(p)}, self._shards.flat)

    def _means_of(self, p: Tensor, layout: BlockLayout) -> list[Tensor]:
        return [self.state[p][slot.name] for slot in slots_of(Kind.BLOCK, layout)]

    # ---- state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state as torch's optimizers give it, of tensors and plain values, for any strategy and number of ranks.

        Of a DTensor the moments are DTensors. Of a parameter that FSDP1 has flattened, second moments have one value per element, because
        FSDP's ``optim_state_dict`` takes nothing else.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        names = {id(p): name for name, p, _ in self._present()}
        gone = [self._blocks.name(p) or f"of shape {tuple(p.shape)}" for p in self.state if isinstance(p, Tensor) and id(p) not in names]
        if gone:
            raise ValueError(
                f"AdamMini has moments of {some(gone)} that is in no group any more, so it cannot say whose they are. Put it back into a"
                " group, or drop its moments: optimizer.state.pop(parameter)."
            )
        with _without_hooks(self):
            state_dict = super().state_dict()
        # By these keys, which what was made as Adam has too, a saved group is known as Adam's.
        groups = [{k: v for k, v in group.items() if k not in ("amsgrad", "differentiable")} for group in state_dict["param_groups"]]
        state_dict = {**state_dict, "param_groups": groups}
        if self._shards.parts or self._shards.flattened_whole:
            numbers = {p: number for number, p in enumerate(p for group in self.param_groups for p in group["params"])}
            places = {p: number for p, number in numbers.items() if number in state_dict["state"]}
            portable = {p: state_dict["state"][place] for p, place in places.items()}
            means = self._means_in_groups()
            self._format.to_portable(portable, {p: layout for _, p, layout in self._present()})
            state_dict = {**state_dict, "state": {place: portable[p] for p, place in places.items()}}
            if means:
                groups = [{**group, MEANS: some} for group, some in zip(state_dict["param_groups"], means, strict=True)]
                state_dict = {**state_dict, "param_groups": groups}
        for hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        return state_dict

    def _means_in_groups(self) -> list[list[Any]] | None:
        """For each group the means of factored second moments of what FSDP1 has flattened; None if there are none."""
        flat = {*self._shards.flat, *self._shards.flattened_whole}
        wanted = {p for _, p, layout in self._present() if p in flat and layout.is_factored}
        if not wanted:
            return None
        known = {name: (layout, blocks) for name, _, _, layout, blocks in self._stepped()}  # every rank takes part
        names = {p: name for name, p, _ in self._present()}
        return [
            [as_numbers(known[names[p]][1]) if p in wanted and names[p] in known else None for p in group["params"]]
            for group in self.param_groups
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state written by this optimizer, with these or other layouts, or by torch's Adam or AdamW.

        Second moments written with finer blocks (AdamW's are the finest) are averaged, which is what training with the present
        blocks would have given. Those written with coarser blocks are spread. Either is told in a warning. First moments come in any
        ``momentum_dtype`` and are kept in the present one. Options that the state lacks are the optimizer's defaults.

        Args:
            state_dict: What ``state_dict()`` returned.

        Raises:
            ValueError: If the state is not for these parameters, was written with blocks that are neither finer nor coarser, uses amsgrad,
                or needs a conversion that ``convert_state=False`` forbids. Names the parameter; nothing has changed then.
        """
        check_state_dict(state_dict)
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        present = self._present()
        problem, loaded = None, None
        try:
            loaded = convert_state_dict(state_dict, present, self._convert_state)
        except ValueError as error:
            problem = str(error)
        problem = self._shards.agree(problem)
        if problem is not None or loaded is None:
            raise ValueError(problem)
        with _without_hooks(self):  # which would see a state without moments
            super().load_state_dict(loaded.state_dict)
        self._adopt(present, loaded.moments)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)
        converted = loaded.converted
        if converted:
            warn(
                f"The loaded state was written with other blocks for {some(list(converted))}; their second moments were"
                f" {' and '.join(dict.fromkeys(_CONVERTED[how] for how in sorted(converted.values())))}."
            )

    def _adopt(self, present: list[tuple[str, Tensor, BlockLayout]], loaded: list[Moments]) -> None:
        """Put loaded moments into the state, for torch casts floating-point state to the parameter's dtype, and moments keep theirs."""
        self._format.adopt(self.state, present, loaded, [group["capturable"] for group in self.param_groups for _ in group["params"]])

    def __repr__(self) -> str:
        lines = ["AdamMini (" if self._made_as is None else f"AdamMini, made as {self._made_as} ("]
        for i, (group, layouts) in enumerate(zip(self.param_groups, self._blocks.layouts, strict=False)):
            kept = f"{sum(layout.num_blocks for layout in layouts):,} for {count(sum(p.numel() for p in group['params']), 'parameter')}"
            options = {**group, "second moments": kept}
            lines += [f"Parameter Group {i}", *(f"    {k}: {v}" for k, v in sorted(options.items()) if k not in ("params", "layouts"))]
        return "\n".join([*lines, ")"])

    def __getstate__(self) -> dict[str, Any]:
        self._follow()
        kept = ("_blocks", "_convert_state", "_made_as", "_momentum_dtype", "_stochastic_rounding")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in kept}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a copy; or what torch's ``load_state_dict`` has loaded, which comes here too."""
        own = [{key: group[key] for key in _OWN if key in group} for group in vars(self).get("param_groups", ())]
        saved = [(group.get("layouts"), len(group["params"])) for group in state["param_groups"]]
        super().__setstate__(state)
        for group in self.param_groups:
            for key, default in self.defaults.items():  # older versions of torch write fewer
                group.setdefault(key, default)
        if "_blocks" in state:
            self._shards = Shards()
            self._begin()
            self._settle(self._blocks.layouts)
            return
        for group, kept in zip(self.param_groups, own, strict=True):
            group.update(kept)
        # Torch's own load_state_dict, kept from before this became an AdamMini, brings the moments of other blocks.
        foreign = moments_of(self.state, saved, self._present())
        if foreign is not None:
            self._adopt(self._present(), foreign)


# Torch 2.6 cannot compile a step that sets an attribute of its optimizer. There a scheduler may warn of a wrong order, once.
_COMPILES_ATTRIBUTES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 14)
_CONVERTED = {
    "averaged": "averaged to the present ones",
    "spread": "spread to the present ones",
    "left out": "left out, because updates are orthogonalised now",
    "restarted": "begun anew from the first ones, because updates were orthogonalised before",
}
_OWN = ("layouts", "fused", "capturable")
"""What a group keeps when a state is loaded."""


@contextmanager
def _without_hooks(optimizer: Optimizer) -> Iterator[None]:
    """Within it torch calls none of the hooks of an optimizer's state dicts."""
    names = [f"_optimizer_{what}state_dict_{when}_hooks" for what in ("", "load_") for when in ("pre", "post")]
    hooks = {name: vars(optimizer)[name] for name in names}
    try:
        vars(optimizer).update({name: OrderedDict() for name in names})
        yield
    finally:
        vars(optimizer).update(hooks)


# Torch's schedulers need not wrap this step: it tells them itself that it was called.
AdamMini.step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]
