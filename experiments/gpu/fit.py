"""Fits by Lightning in every precision: the loss falls, and a run that is resumed goes on to the bit."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from experiments.gpu.case import Bench, Case, SkipCaseError
from experiments.gpu.models import Sequences
from lightning_adam_mini import AdamMini, AdamMiniCallback


def sequences(bench: Bench) -> Sequences:
    """Return what is fitted; some of its matrices are large enough for momentum in 8 bits.

    Args:
        bench: Where.
    """
    return Sequences(32, 8) if bench.toy else Sequences(128, 64)


def cases(bench: Bench) -> list[Case]:
    """Return a case for each precision, and each way to keep momentum.

    Args:
        bench: Where.
    """
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        precision: (precision, {}) for precision in ("32-true", "bf16-mixed", "bf16-true", "16-mixed")
    }
    kinds |= {
        "16-mixed, clipped": ("16-mixed", {"clip": 0.5}),
        "32-true, 8-bit momentum": ("32-true", {"momentum_dtype": "8bit"}),
        "bf16-mixed, bfloat16 momentum": ("bf16-mixed", {"momentum_dtype": "bfloat16"}),
        "bf16-true, 8-bit momentum, rounded at random": ("bf16-true", {"momentum_dtype": "8bit", "stochastic_rounding": True}),
        "32-true, adam_mini": ("32-true", {"partition": "adam_mini"}),
    }
    if bench.toy:
        few = ("32-true", "bf16-mixed", "16-mixed", "bf16-true, 8-bit momentum, rounded at random")
        kinds = {name: kinds[name] for name in few}
    return [Case(name, partial(resumed, bench, precision, **options)) for name, (precision, options) in kinds.items()]


def fit(
    bench: Bench,
    module: pl.LightningModule,
    epochs: int,
    precision: Any = "32-true",
    ckpt_path: str | None = None,
    clip: float | None = None,
    **options: Any,
) -> pl.Trainer:
    """Fit, quietly.

    Args:
        bench: Where.
        module: What.
        epochs: Up to which epoch.
        precision: Lightning's.
        ckpt_path: Checkpoint to resume from.
        clip: The norm that gradients are clipped to.
        options: Of the callback.
    """
    trainer = pl.Trainer(
        accelerator="cpu" if bench.toy else "gpu",
        devices=1,
        precision=precision,
        max_epochs=epochs,
        gradient_clip_val=clip,
        callbacks=[AdamMiniCallback(**options)],
        deterministic=True,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, ckpt_path=ckpt_path)
    return trainer


def resumed(bench: Bench, precision: str, **options: Any) -> dict[str, object]:
    """Fit four epochs at once, and again as two and two.

    Args:
        bench: Where.
        precision: Lightning's.
        options: As of :func:`fit`.
    """
    if bench.toy and precision == "16-mixed":
        raise SkipCaseError("Lightning scales gradients on GPUs only")
    if not bench.toy:  # whose backward passes add up in any order
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.backends.cuda.enable_cudnn_sdp(False)
    runs = []
    path = str(bench.folder / "fit.ckpt")
    for epochs, ckpt_path in ((4, None), (4, None), (2, None), (4, path)):
        module = sequences(bench)
        trainer = fit(bench, module, epochs, precision, ckpt_path, **options)
        if epochs == 2:
            trainer.save_checkpoint(path)
        runs.append((_all(trainer), module.losses, trainer))
    optimizer = runs[0][2].optimizers[0]
    assert isinstance(optimizer, AdamMini), f"it was trained by {type(optimizer).__name__}"
    losses = runs[0][1]
    first, last = sum(losses[:5]) / 5, sum(losses[-5:]) / 5
    assert last < 0.8 * first, f"the loss does not fall: {first} to {last}"
    repeats, resumes = (_equal(runs[0][0], runs[i][0]) for i in (1, 3))
    assert resumes or not repeats, "what is resumed ends elsewhere, though what is repeated does not"
    scaler = getattr(runs[0][2].precision_plugin, "scaler", None)
    return {
        "first_loss": first,
        "last_loss": last,
        "repeats": repeats,
        "resumes": resumes,
        "steps_taken": int(max(float(state["step"]) for state in optimizer.state.values())),
        "batches": len(losses),
        "scale": None if scaler is None else scaler.get_scale(),
        "by": ", ".join(type(optimizer._stepper._backends[i]).__name__ for i in optimizer._stepper._took),
    }


def _all(trainer: pl.Trainer) -> list[Tensor]:
    """Weights and state."""
    state = trainer.optimizers[0].state
    return [
        t.detach().cpu().clone()
        for p in trainer.lightning_module.parameters()
        for t in (p, *(state[p][key] for key in sorted(state[p])))  # loaded ones come in another order
    ]


def _equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
