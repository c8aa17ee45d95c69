"""Small recipes: every test works in an empty folder, with a ResNet18 of a few channels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
NARROW = ["--model.model_args", "{channels: [4, 8, 8, 8], zero_init_last: false}"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def image_tree(tmp_path):
    """ImageNet's layout, with two classes of three JPEG files each."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            folder = tmp_path / "imagenet" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = generator.integers(0, 256, size=(40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{number}.JPEG")
    return tmp_path / "imagenet"


@pytest.fixture
def tiny_recipe(image_tree):
    """Command lines that make each YAML in configs/ small; a YAML without one fails its test."""
    imagenet = ["--data.root", str(image_tree), "--data.num_workers", "0", "--data.image_size", "32", "--data.resize", "36"]
    return {
        "resnet18_digits": [*NARROW, *QUIET],
        "resnet18_imagenet": [*NARROW, *QUIET, *imagenet, "--model.num_classes", "2", "--data.batch_size", "3"],
    }
