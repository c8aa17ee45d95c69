"""diffusers' UNet and noise schedule, and the way from noise to an image."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

if TYPE_CHECKING:  # diffusers takes seconds to import, so that --help does without
    from diffusers import DDPMScheduler, UNet2DModel

BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"]


def create_unet(
    image_shape: tuple[int, int, int],
    channels: tuple[int, ...],
    layers_per_block: int,
    attention_levels: Collection[int],
    attention_head_dim: int,
    norm_groups: int,
    dropout: float,
) -> "UNet2DModel":
    """Create a UNet.

    Args:
        image_shape: Channels and sides of an image.
        channels: Channels of each level, from the finest.
        layers_per_block: Residual layers a level on the way down.
        attention_levels: The levels with self-attention.
        attention_head_dim: Channels of an attention head.
        norm_groups: Groups of the group norms.
        dropout: Dropout of the residual layers.
    """
    levels = len(channels)
    shrink = 2 ** (levels - 1)
    if not channels or image_shape[1] % shrink:
        raise MisconfigurationException(
            f"{levels} levels of channels {list(channels)} do not fit image_size {image_shape[1]}, because each level but the last halves "
            f"the side; make it a multiple of {shrink} or give fewer channels."
        )
    for number in channels:
        if number % norm_groups:
            raise MisconfigurationException(f"norm_groups {norm_groups} does not divide {number} of channels {list(channels)}.")
    odd = [level for level in attention_levels if not 0 <= level < levels]
    if odd:
        raise MisconfigurationException(f"attention_levels names {odd}, but the levels of channels {list(channels)} are 0 to {levels - 1}.")
    for level in {*attention_levels, levels - 1}:
        if channels[level] % attention_head_dim:
            raise MisconfigurationException(
                f"attention_head_dim {attention_head_dim} does not divide the {channels[level]} channels of level {level}, "
                "which has attention (the last level has, because the middle of the UNet has)."
            )
    from diffusers import UNet2DModel

    return UNet2DModel(
        sample_size=image_shape[1],
        in_channels=image_shape[0],
        out_channels=image_shape[0],
        block_out_channels=channels,
        layers_per_block=layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if level in attention_levels else "DownBlock2D" for level in range(levels)),
        up_block_types=tuple("AttnUpBlock2D" if level in attention_levels else "UpBlock2D" for level in reversed(range(levels))),
        attention_head_dim=attention_head_dim,
        norm_num_groups=norm_groups,
        dropout=dropout,
    )


def create_scheduler(timesteps: int, beta_schedule: BetaSchedule) -> "DDPMScheduler":
    """Create the noise schedule.

    Args:
        timesteps: Steps from an image to noise.
        beta_schedule: How the noise grows.
    """
    from diffusers import DDPMScheduler

    # without "trailing", few-step sampling would not start from pure noise, on which it is called
    return DDPMScheduler(num_train_timesteps=timesteps, beta_schedule=beta_schedule, timestep_spacing="trailing")


@torch.no_grad()
def denoise(
    predict: Callable[[Tensor, Tensor], Tensor], scheduler: "DDPMScheduler", noise: Tensor, steps: int, generator: torch.Generator
) -> Tensor:
    """Turn noise into images with pixels in [-1, 1], in DDPM's steps or in fewer that are as far apart as it takes.

    DDPM's steps add noise; DDIM's, which add none, leave more of it in the images of a model that is trained for a minute.

    Args:
        predict: Returns the noise in a batch of images, given the timestep of each.
        scheduler: The noise schedule that it was trained with.
        noise: A batch of noise.
        steps: Number of steps.
        generator: Draws the noise that the steps add.
    """
    from diffusers import DDPMScheduler

    sampler: Any = DDPMScheduler.from_config(scheduler.config)  # a copy, because it holds the steps
    sampler.set_timesteps(steps)
    images = noise
    for timestep in sampler.timesteps:
        predicted = predict(images, timestep.to(images.device).expand(len(images))).to(images)
        images = sampler.step(predicted, timestep, images, generator=generator).prev_sample
    return images.clamp(-1.0, 1.0)
