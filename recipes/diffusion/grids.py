"""Grids of generated images: in TensorBoard while training, or in a file."""

import math
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torchvision.utils import make_grid
from typing_extensions import override

from recipes.diffusion.model import NoisePredictor

LEAST_SIDE = 32  # smaller images are enlarged, so that a person can read them


class SampleGrids(Callback):
    """Log a grid of images that the model generates, with the weights that validate (the averaged ones under `EMAWeightAveraging`).

    It goes to TensorBoard; other loggers get nothing. The noise is the same each time, and the random state of the training is not touched.

    Args:
        every_n_epochs: A grid is logged in the validation after so many epochs.
        count: Images in a grid.
        steps: Steps from noise to image.
        seed: Seed of the noise.
    """

    def __init__(self, every_n_epochs: int = 5, count: int = 16, steps: int = 100, seed: int = 0) -> None:
        if min(every_n_epochs, count, steps) < 1:
            raise MisconfigurationException(
                f"SampleGrids needs every_n_epochs, count and steps of at least 1, not {every_n_epochs}, {count} and {steps}."
            )
        self.every_n_epochs, self.count, self.steps, self.seed = every_n_epochs, count, steps, seed

    @override
    def setup(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Check that the model generates images."""
        if not isinstance(pl_module, NoisePredictor):
            raise MisconfigurationException(f"SampleGrids logs what a NoisePredictor generates, not {type(pl_module).__name__}; remove it.")

    @override
    def on_validation_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Log a grid at the first batch: between the hooks in which weight averaging swaps its weights in and out."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if not fitting or batch_idx > 0 or (trainer.current_epoch + 1) % self.every_n_epochs or not trainer.is_global_zero:
            return
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not boards or not isinstance(pl_module, NoisePredictor):
            return
        grid = image_grid(pl_module.sample(self.count, min(self.steps, pl_module.timesteps), self.seed))
        for board in boards:
            board.experiment.add_image("samples", grid, trainer.global_step)


def image_grid(images: Tensor) -> Tensor:
    """Return images side by side in one, about a square, with pixels in [0, 1]; small ones are enlarged.

    Args:
        images: A batch of images with pixels in [-1, 1].
    """
    scale = math.ceil(LEAST_SIDE / images.shape[-1])
    images = images.float().cpu().repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    return make_grid((images + 1.0) / 2.0, nrow=math.ceil(math.sqrt(len(images))), padding=2, pad_value=0.5)
