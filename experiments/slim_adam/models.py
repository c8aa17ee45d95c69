"""The small recipes that SlimAdam's figures train, as command lines of ``python -m recipes fit``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException

CIFAR = {"cifar10": ("cifar-10-batches-py", 10), "cifar100": ("cifar-100-python", 100)}
"""Of CIFAR's data sets: the folder, and the number of classes."""


def arguments(values: Mapping[str, object]) -> tuple[str, ...]:
    """Return options as a command line has them.

    Args:
        values: By name, without the dashes.

    Example:
        >>> arguments({"model": "GPTModel", "model.layers": 2})
        ('--model=GPTModel', '--model.layers=2')
    """
    return tuple(f"--{name}={value}" for name, value in values.items())


def length(steps: int) -> dict[str, object]:
    """Return the options of a run's length.

    Args:
        steps: Its steps.
    """
    return {"trainer.max_epochs": -1, "trainer.max_steps": steps}


def text_data(root: Path | None, part: str = "source", context: int = 32, batch: int = 8, **more: object) -> dict[str, object]:
    """Return the options of text: that which comes with Python, or all ``*.txt`` of a folder and those within it.

    Args:
        root: The folder; none for Python's.
        part: Of Python's text: ``source`` or ``topics``.
        context: Tokens of a window.
        batch: Windows a step.
        more: Further arguments of the data module.
    """
    source = {"data": "PythonText", "data.part": part} if root is None else {"data": "TextFolder", "data.root": root}
    windows = {"data.context": context, "data.batch_size": batch, "data.epoch_windows": 20_000, "data.eval_windows": 128}
    return {**source, **windows, **{f"data.{name}": value for name, value in more.items()}}


def gpt(steps: int, layers: int, width: int, root: Path | None = None, part: str = "source", context: int = 32) -> tuple[str, ...]:
    """Return the recipe of a small GPT on bytes: rotary positions, no biases, a tied head, as in ``configs/gpt_stdlib.yaml``.

    Args:
        steps: Steps of the run.
        layers: Number of blocks.
        width: Size of a token's vector; a head has 16.
        root: A folder of text files; none for Python's own text.
        part: Of Python's text: ``source`` or ``topics``.
        context: Tokens of a window.
    """
    sizes = {"context": context, "layers": layers, "heads": width // 16, "width": width, "positions": "rotary"}
    optimizer = {"betas": [0.9, 0.95], "weight_decay": 0.1, "warmup": 0.1, "cosine_end": 0.1}
    model = {"model": "GPTModel", **{f"model.{name}": value for name, value in {**sizes, **optimizer}.items()}}
    return arguments({**length(steps), "trainer.gradient_clip_val": 1.0, **model, **text_data(root, part, context)})


def image_data(root: Path | None) -> tuple[dict[str, object], int, int, int]:
    """Return the options of images, and their number of classes, channels and pixels along a side.

    Args:
        root: Folder of CIFAR-10 or CIFAR-100 as torchvision has them, or of ``{train,test}/<class>/*`` files (32 pixels); none for digits.

    Raises:
        MisconfigurationException: If neither is there.
    """
    if root is None:
        return {"data": "DigitsData", "data.batch_size": 64}, 10, 1, 8
    for name, (folder, classes) in CIFAR.items():
        if (root / folder).is_dir():
            return {"data": "CIFARData", "data.root": root, "data.name": name, "data.num_workers": 0}, classes, 3, 32
    if not (root / "train").is_dir():
        looked = " or ".join(folder for folder, _ in CIFAR.values())
        raise MisconfigurationException(f"--root {root} holds no images: looked for {looked}, or train/<class>/* beside test/<class>/*.")
    images = {"root": root, "batch_size": 64, "image_size": 32, "resize": 32, "padding": 4, "val_folds": 10, "num_workers": 0}
    classes = sum(folder.is_dir() for folder in (root / "train").iterdir())
    return {"data": "ImageFolderData", **{f"data.{name}": value for name, value in images.items()}}, classes, 3, 32


def resnet(steps: int, root: Path | None = None) -> tuple[str, ...]:
    """Return the recipe of a ResNet18, an eighth as wide.

    Args:
        steps: Steps of the run.
        root: As in `image_data`.
    """
    given = {"model.name": "resnet18", "model.small_images": "true"}
    return _classifier(steps, root, given, {"channels": [8, 16, 32, 64], "zero_init_last": False})


def vit(steps: int, root: Path | None = None) -> tuple[str, ...]:
    """Return the recipe of a vision transformer of 3 layers and width 96, on 16 patches (of digits) or 64 (of 32 pixels).

    Args:
        steps: Steps of the run.
        root: As in `image_data`.
    """
    side = image_data(root)[3]
    sizes = {"img_size": side, "patch_size": 2 if side == 8 else 4, "embed_dim": 96, "depth": 3, "num_heads": 3}
    plain = {"data.augment": "false"} if root is None else {}  # which teaches a transformer this small little in few steps
    return _classifier(steps, root, {"model.name": "vit_tiny_patch16_224", **plain}, sizes)


def _classifier(steps: int, root: Path | None, given: Mapping[str, object], model_args: Mapping[str, object]) -> tuple[str, ...]:
    data, classes, channels, _ = image_data(root)
    model = {"model": "ImageClassifier", **given, "model.num_classes": classes, "model.in_channels": channels}
    text = ", ".join(f"{name}: {str(value).lower()}" for name, value in model_args.items())
    optimizer = {"model.model_args": f"{{{text}}}", "model.weight_decay": 0.01, "model.warmup": 0.1}
    return arguments({**length(steps), **data, **model, **optimizer})
