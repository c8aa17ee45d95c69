"""Denoising diffusion: a UNet that predicts the noise in an image (DDPM, Ho et al. 2020)."""

from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from typing_extensions import override

from recipes.diffusion.unet import BetaSchedule, create_scheduler, create_unet, denoise
from recipes.recipe import Headline, Recipe


class NoisePredictor(Recipe):
    """Learn to generate images: predict the noise that was mixed into them, trained by AdamW with warm-up and cosine.

    Validation and test mix the same noise at the same timesteps into the same images each time, whatever the seed and the optimizer.

    Args:
        image_size: Side of the images.
        in_channels: Channels of an image: 1 for grey, 3 for colour.
        channels: Channels of each level of the UNet, from the finest; each level has half the side of the one before.
        layers_per_block: Residual layers a level on the way down; one more on the way up.
        attention_levels: The levels, counted from 0, with self-attention; the middle of the UNet has it always.
        attention_head_dim: Channels of an attention head.
        norm_groups: Groups of the group norms.
        dropout: Dropout of the residual layers.
        timesteps: Steps from an image to noise.
        beta_schedule: How the noise grows: ``linear`` (DDPM), ``squaredcos_cap_v2`` (cosine), ``scaled_linear`` or ``sigmoid``.
        eval_draws: How often validation and test measure each image, each time with other noise.
        optimizer_args: Arguments of `recipes.optim.configure`: lr, betas, weight_decay, ...
    """

    headline: ClassVar[Headline] = Headline(metric="loss", title="loss", mode="min")
    learns_from: ClassVar[str] = "images without labels"

    def __init__(
        self,
        image_size: int = 8,
        in_channels: int = 1,
        channels: tuple[int, ...] = (16, 32),
        layers_per_block: int = 1,
        attention_levels: tuple[int, ...] = (),
        attention_head_dim: int = 8,
        norm_groups: int = 8,
        dropout: float = 0.0,
        timesteps: int = 1000,
        beta_schedule: BetaSchedule = "linear",
        eval_draws: int = 1,
        **optimizer_args: Any,
    ) -> None:
        super().__init__(**optimizer_args)
        self.save_hyperparameters()
        if eval_draws < 1 or timesteps < 1:
            raise MisconfigurationException(f"eval_draws and timesteps must be at least 1, not {eval_draws} and {timesteps}.")
        self.image_shape = (in_channels, image_size, image_size)
        self.timesteps, self.eval_draws = timesteps, eval_draws
        net = create_unet(self.image_shape, tuple(channels), layers_per_block, attention_levels, attention_head_dim, norm_groups, dropout)
        self.net: nn.Module = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.scheduler = create_scheduler(timesteps, beta_schedule)

    @override
    def setup(self, stage: str) -> None:
        """Check that the data are what the model generates."""
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        for name, ours, of in (("image_size", self.image_shape[1], "image_size"), ("in_channels", self.image_shape[0], "channels")):
            found = getattr(data, of, ours)
            if ours != found:
                raise MisconfigurationException(f"The model has {name} {ours} but the data have {found}; set --model.{name} {found}.")

    @override
    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return the noise that the model sees in a batch of images.

        Args:
            noisy: The images.
            timesteps: How far each is on its way to noise.
        """
        return self.net(noisy.contiguous(memory_format=torch.channels_last), timesteps).sample

    @override
    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        timesteps = torch.randint(self.timesteps, (len(batch),), device=batch.device)
        with self.differentiable():
            loss = self._loss(batch, timesteps, torch.randn_like(batch))
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch))
        return loss

    @override
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Measure a batch of the validation set."""
        self._measure(batch, batch_idx, "val")

    @override
    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Measure a batch of the test set."""
        self._measure(batch, batch_idx, "test")

    @override
    def predict_step(self, batch: Tensor, batch_idx: int) -> None:
        """Refuse: there is nothing to predict of an image."""
        raise MisconfigurationException("A diffusion model predicts nothing of an image; generate some with `python -m recipes sample`.")

    def sample(self, count: int, steps: int = 100, seed: int = 0, batch_size: int = 256) -> Tensor:
        """Return images made from noise, with pixels in [-1, 1]; the global random state is not touched.

        Args:
            count: How many.
            steps: Steps from noise to image, at most as many as the model was trained with.
            seed: Seed of all noise.
            batch_size: Images made at once.
        """
        if not 1 <= steps <= self.timesteps:
            raise MisconfigurationException(f"The model has {self.timesteps} timesteps, so it cannot sample in {steps} steps.")
        training = self.net.training
        self.net.eval()
        try:
            generator = torch.Generator().manual_seed(seed)
            noise = torch.randn(count, *self.image_shape, generator=generator).to(self.device)
            return torch.cat([denoise(self, self.scheduler, part, steps, generator) for part in noise.split(batch_size)])
        finally:
            self.net.train(training)

    def _loss(self, images: Tensor, timesteps: Tensor, noise: Tensor) -> Tensor:
        noisy = self.scheduler.add_noise(images, noise, timesteps)  # pyright: ignore[reportArgumentType]
        return mse_loss(self(noisy, timesteps), noise)

    def _measure(self, images: Tensor, batch_idx: int, split: str) -> None:
        images = images.repeat(self.eval_draws, 1, 1, 1)
        timesteps, noise = fixed_draw(images.shape, self.timesteps, seed=batch_idx)
        loss = self._loss(images, timesteps.to(images.device), noise.to(images))
        self.log(f"{split}/loss", loss, prog_bar=True, batch_size=len(images))


def fixed_draw(shape: torch.Size, timesteps: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return timesteps, spread evenly and shuffled, and noise that depend on nothing but the arguments.

    Args:
        shape: Shape of the batch.
        timesteps: Number of timesteps.
        seed: Tells the batches of an epoch apart.

    Example:
        >>> sorted(fixed_draw(torch.Size([4, 1, 8, 8]), timesteps=1000, seed=0)[0].tolist())
        [125, 375, 625, 875]
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(shape[0], generator=generator)
    return ((order + 0.5) * timesteps / shape[0]).long(), torch.randn(shape, generator=generator)
