"""The command line of ``python -m recipes sample``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torchvision.utils import save_image

from recipes.checkpoint import load_recipe
from recipes.diffusion.digits import digit_images
from recipes.diffusion.distance import DigitFeatures, feature_distance
from recipes.diffusion.grids import image_grid
from recipes.diffusion.model import NoisePredictor
from recipes.vision import ImageClassifier

MAKES_DIFFUSION = "configs/ddpm_digits.yaml"
MAKES_CLASSIFIER = "configs/resnet18_digits.yaml"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: What follows ``sample``.
    """
    parser = argparse.ArgumentParser(
        prog="python -m recipes sample",
        description="Generate images with a checkpoint of a diffusion recipe, with its averaged weights where it has them, in a PNG.",
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="the checkpoint, such as runs/ddpm_digits/version_0/checkpoints/last.ckpt")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="the PNG to write (default: %(default)s)")
    parser.add_argument("--count", type=int, default=64, help="how many images (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="steps from noise to image (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise (default: %(default)s)")
    parser.add_argument(
        "--distance",
        type=Path,
        metavar="CLASSIFIER_CKPT",
        help=f"measure the feature distance between generated and real test digits, by a checkpoint of {MAKES_CLASSIFIER}",
    )
    args = parser.parse_args(list(argv))
    if args.count < 1 or args.steps < 1:
        parser.error(f"--count and --steps must be at least 1, not {min(args.count, args.steps)}")
    if args.out.suffix.lower() != ".png":
        parser.error(f"--out {args.out} must end in .png")
    return args


def main(argv: Sequence[str]) -> int:
    """Generate images and write them.

    Args:
        argv: What follows ``sample``.
    """
    args = parse(argv)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model, averaged = load_recipe((NoisePredictor,), args.ckpt, MAKES_DIFFUSION)
        features = None if args.distance is None else digit_features(args.distance, model)
        images = model.to(device).sample(args.count, args.steps, args.seed)
        write_grid(images, args.out)
        weights = "averaged weights" if averaged else "weights"
        sys.stdout.write(f"{args.out}: {args.count} images in {args.steps} steps, seed {args.seed}, {weights} of {args.ckpt}\n")
        if features is not None:
            sys.stdout.write(f"{distance_line(features, model, args.steps, args.seed)}\n")
    except MisconfigurationException as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def digit_features(checkpoint: Path, model: NoisePredictor) -> DigitFeatures:
    """Return the features of a digit classifier, for a model that generates digits.

    Args:
        checkpoint: A checkpoint of the classifier.
        model: The model that generates.
    """
    if model.image_shape != (1, 8, 8):
        shape = "x".join(str(size) for size in model.image_shape)
        raise MisconfigurationException(
            f"--distance compares with the real digits, which are 1x8x8, but the model generates images of {shape}; leave --distance out."
        )
    return DigitFeatures(load_recipe((ImageClassifier,), checkpoint, MAKES_CLASSIFIER)[0])


def distance_line(features: DigitFeatures, model: NoisePredictor, steps: int, seed: int) -> str:
    """Return the feature distance of generated digits, as many as there are test digits, and that of other real ones, in one line.

    Args:
        features: Gives an image's features.
        model: The model that generates.
        steps: Steps from noise to image.
        seed: Seed of the noise.
    """
    digits = digit_images()
    real = digits["test"]
    generated = feature_distance(features, real, model.sample(len(real), steps, seed).cpu())
    others = feature_distance(features, real, digits["val"])
    return f"feature distance of {len(real)} generated digits to the test digits: {generated:.3f} (of the validation digits: {others:.3f})"


def write_grid(images: Tensor, file: Path) -> None:
    """Write images side by side as a PNG.

    Args:
        images: A batch of images with pixels in [-1, 1].
        file: The PNG; its folder is made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_image(image_grid(images), file)
    except OSError as error:
        raise MisconfigurationException(f"{file} cannot be written, because {error}; give another --out.") from error
