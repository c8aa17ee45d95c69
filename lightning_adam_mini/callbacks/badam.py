"""BAdam: one block of the model trains at a time, and only it has optimizer state (Luo et al., arXiv 2404.02827)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer
from typing_extensions import override

from lightning_adam_mini.callbacks.distribution import inform, is_lightnings, misconfiguration
from lightning_adam_mini.combine.blocks import find_blocks
from lightning_adam_mini.combine.combined import Combined
from lightning_adam_mini.detection import parameter_names
from lightning_adam_mini.optim import AdamMini, state_bytes
from lightning_adam_mini.table import count

Order = Literal["ascending", "descending", "random"]


class BAdam(Callback):
    """Trains a model block by block: for some steps one block alone has gradients and optimizer state, which is freed with the next.

    Goes with torch's Adam and AdamW, and, beside an :class:`~lightning_adam_mini.AdamMiniCallback`, with AdamMini: the state is that of the
    largest block. Which block trains follows from the step alone, so that a resumed run goes on exactly. A block's moments begin anew
    each time, as in the paper; backward computes no gradients of the others.

    Args:
        every: Steps until the next block; the paper's K is 50 to 100.
        order: ``ascending``, ``descending``, or ``random``: all blocks in a new order in each round.
        blocks: For each block a list of globs over parameter names, the first of which that matches counts; parameters that match none
            never train. [default: the model's numbered layers, and what stands before, between and after them]
        seed: Seed of the orders.

    Raises:
        MisconfigurationException: If an argument is not valid; if the model has no two blocks, or several optimizers; under
            FSDP and DeepSpeed, which shard blocks, and under DDP without ``find_unused_parameters``; with orthogonalised updates, or a
            combination.

    Example:
        >>> import lightning as L
        >>> from lightning_adam_mini import AdamMiniCallback
        >>> trainer = L.Trainer(callbacks=[AdamMiniCallback(), BAdam(every=50)], logger=False, enable_checkpointing=False)
    """

    def __init__(self, every: int = 100, order: Order = "random", blocks: Sequence[Sequence[str]] | None = None, seed: int = 0) -> None:
        super().__init__()
        if not isinstance(every, int) or isinstance(every, bool) or every < 1:
            raise misconfiguration(f"BAdam has no every={every!r}. Give a whole number of steps from 1.")
        if order not in get_args(Order):
            raise misconfiguration(f"BAdam has no order={order!r}. Give one of {', '.join(get_args(Order))}.")
        if not isinstance(seed, int) or isinstance(seed, bool):
            raise misconfiguration(f"BAdam has no seed={seed!r}. Give a whole number.")
        if blocks is not None and not (_is_list(blocks) and blocks and all(_is_globs(globs) for globs in blocks)):
            raise misconfiguration(f"BAdam has no blocks={blocks!r}. Give a list of globs for each block: [['embed.*'], ['layers.*']].")
        twice = [globs for i, globs in enumerate(blocks or ()) if globs in list(blocks or ())[:i]]
        if twice:
            raise misconfiguration(f"BAdam has the block {list(twice[0])} twice. Give each once.")
        self.every = every
        self.order = order
        self.blocks = blocks
        self.seed = seed
        self.active: str | None = None
        """Name of the block that trains."""
        self.most_state_bytes = 0
        """The most bytes that the optimizers' state has held in the last fit, as far as it has come: those of the largest block."""
        self._found: dict[str, list[torch.nn.Parameter]] = {}
        self._trained: list[torch.nn.Parameter] = []

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        strategy: Any = trainer.strategy
        if stage != "fit":
            return
        if is_lightnings(strategy, "FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"):
            raise misconfiguration(
                f"BAdam does not go with {type(strategy).__name__}, which shards blocks. Train under DDP, or on one device."
            )
        if is_lightnings(strategy, "DDPStrategy") and not strategy._ddp_kwargs.get("find_unused_parameters"):
            raise misconfiguration(
                "BAdam freezes blocks, on whose gradients DDP would wait. Train with Trainer(strategy='ddp_find_unused_parameters_true')."
            )

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if len(trainer.optimizers) > 1:
            raise misconfiguration(
                f"BAdam freezes all blocks but one, and each of the {len(trainer.optimizers)} optimizers of {type(pl_module).__name__}"
                " needs one that trains. Leave BAdam out, or train with one optimizer."
            )
        for optimizer in trainer.optimizers:
            self._check(optimizer)
        held = {p for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]}
        named: dict[str, torch.nn.Parameter] = {name: p for p, name in parameter_names(pl_module).items() if p in held and p.requires_grad}  # type: ignore[misc]
        found = find_blocks(list(named)) if self.blocks is None else self._asked(named)
        if not found or (self.blocks is None and len(found) < 2):
            raise misconfiguration(
                f"BAdam found no two blocks in {type(pl_module).__name__}, with {count(len(named), 'trained parameter')} in"
                f" {', '.join(found) or 'none'}. Give blocks=[['embed.*'], ['encoder.*'], ...]."
            )
        self._found = {block: [named[name] for name in names] for block, names in found.items()}
        self._trained = list(named.values())
        self.active, self.most_state_bytes = None, 0
        sizes = {block: sum(p.numel() for p in params) for block, params in self._found.items()}
        largest = max(sizes, key=lambda block: sizes[block])
        inform(
            trainer,
            f"BAdam: {count(len(found), 'block')} to train for {count(self.every, 'step')} each, {self.order};"
            f" the largest, {largest}, has {sizes[largest]:,} of {count(sum(p.numel() for p in self._trained), 'parameter')}",
        )

    def _check(self, optimizer: Optimizer) -> None:
        if isinstance(optimizer, Combined):
            raise misconfiguration(
                f"BAdam frees the states of blocks, without which {type(optimizer.part).__name__} cannot go on. Leave one of them out."
            )
        matrices = [name for name, layout in optimizer.layouts.items() if layout.is_orthogonal] if isinstance(optimizer, AdamMini) else []
        if matrices:
            raise misconfiguration(
                f"BAdam does not go with orthogonalised updates (Muon, NorMuon), which parameter {matrices[0]!r} has. Choose the partition"
                " 'auto'."
            )

    def _asked(self, named: Collection[str]) -> dict[str, list[str]]:
        """The blocks that the user has given."""
        assert self.blocks is not None
        found: dict[str, list[str]] = {", ".join(globs): [] for globs in self.blocks}
        for name in named:
            block = next((globs for globs in self.blocks if any(fnmatchcase(name, glob) for glob in globs)), None)
            if block is not None:
                found[", ".join(block)].append(name)
        for block, names in found.items():
            if not names:
                raise misconfiguration(
                    f"BAdam's block of {block!r} matches no trained parameter, such as {next(iter(named), 'none')!r}, that no block"
                    " before it does. Correct its globs, or leave it out."
                )
        return found

    def block_at(self, step: int, count: int) -> int:
        """Number of the block that trains in a step.

        Args:
            step: Steps taken before.
            count: Number of blocks.

        Example:
            >>> [BAdam(every=2, order="descending").block_at(step, 3) for step in range(8)]
            [2, 2, 1, 1, 0, 0, 2, 2]
        """
        turn, place = divmod(step // self.every, count)
        if self.order == "random":
            return int(torch.randperm(count, generator=torch.Generator().manual_seed(self.seed + turn))[place])
        return place if self.order == "ascending" else count - 1 - place

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        names = list(self._found)
        name = names[self.block_at(trainer.global_step, len(names))]
        if name == self.active:
            return
        self._count(trainer)
        self.active = name
        active = set(self._found[name])
        for p in self._trained:
            p.requires_grad_(p in active)
            if p not in active:
                p.grad = None
                for optimizer in trainer.optimizers:
                    state: Any = optimizer.state
                    state.pop(p, None)

    def _count(self, trainer: pl.Trainer) -> None:
        self.most_state_bytes = max(self.most_state_bytes, sum(map(state_bytes, trainer.optimizers)))

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._count(trainer)
        self._end()

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        """Let all train that did before; the state is the last block's."""
        for p in self._trained:
            p.requires_grad_(True)
        self._found, self._trained, self.active = {}, [], None

    def __getstate__(self) -> Mapping[str, Any]:
        return {**vars(self), "_found": {}, "_trained": [], "active": None}


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_globs(value: Any) -> bool:
    return _is_list(value) and len(value) > 0 and all(isinstance(glob, str) for glob in value)
