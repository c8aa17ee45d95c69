"""The steps of ZeRO in 16 bits, taken once more in one process from the gradients that its optimizer was given.

DeepSpeed computes and reduces gradients in 16 bits then, so that no run on one device can agree with it. What is the optimizer's own, the
step of the float32 weights, can be compared all the same.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from experiments.strategies.model import Network, blocks
from lightning_adam_mini import convert_optimizer_, partition_model


class Replay(pl.Callback):
    """Keeps the float32 weights before the first step, and the whole gradient of each."""

    def __init__(self) -> None:
        self.start: dict[str, Tensor] = {}
        self.gradients: list[dict[str, Tensor]] = []

    @override
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Keep them, on every rank."""
        from deepspeed.utils import safe_get_full_grad

        self.start = self.start or masters(pl_module)
        found: dict[str, Any] = {name: safe_get_full_grad(p) for name, p in pl_module.named_parameters()}
        self.gradients.append({name: gradient.detach().float().clone() for name, gradient in found.items()})

    def weights(self) -> dict[str, Tensor]:
        """Return the weights after the same steps in this process alone."""
        model = Network()
        optimizer: Any = model.configure_optimizers()
        convert_optimizer_(optimizer, partition_model(model, overrides=blocks(wide=False)), model.named_parameters())
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(self.start[name])
        for gradients in self.gradients:
            for name, p in model.named_parameters():
                p.grad = gradients[name].view_as(p)
            optimizer.step()
        return {name: p.detach() for name, p in model.named_parameters()}


def masters(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return the float32 weights that ZeRO steps, whole.

    Args:
        module: What DeepSpeed trains, of which every rank has to ask.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    found: dict[str, Any] = {name: safe_get_full_fp32_param(p) for name, p in module.named_parameters()}
    return {name: p.detach().clone() for name, p in found.items()}
