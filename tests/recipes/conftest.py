"""Small recipes: every test works in an empty folder, with a ResNet18 of a few channels."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.sparse import csr_matrix
from torchvision.datasets import CIFAR10, CIFAR100, CelebA

from recipes.vision.cifar import DATASETS

REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs"
NARROW = ["--model.model_args", "{channels: [4, 8, 8, 8], zero_init_last: false}"]
SMALL_UNET = ["--model.channels", "[8, 16]", "--model.attention_head_dim", "8", "--model.attention_levels", "[1]", "--model.timesteps", "4"]
TINY_GPT = ["--model.context", "32", "--model.layers", "1", "--model.width", "32"]
TINY_TEXT = ["--data.context", "32", "--data.batch_size", "4", "--data.epoch_windows", "16", "--data.eval_windows", "8"]
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


def write_cifar(root, dataset):
    """Write a data set of twenty images a class in the true layout of torchvision's `dataset`, CIFAR10 or CIFAR100."""
    generator = np.random.default_rng(0)
    fine = dataset.base_folder == "cifar-100-python"
    names = [f"class {number}" for number in range(100 if fine else 10)]
    folder = root / dataset.base_folder
    folder.mkdir(parents=True)
    (folder / dataset.meta["filename"]).write_bytes(pickle.dumps({dataset.meta["key"]: names}))
    files = [file for file, _ in dataset.train_list + dataset.test_list]
    for file in files:
        labels = list(range(len(names))) * (20 if fine and file == "train" else 4)
        pixels = generator.integers(0, 256, size=(len(labels), 3072), dtype=np.uint8)
        (folder / file).write_bytes(pickle.dumps({"data": pixels, "fine_labels" if fine else "labels": labels}))


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """CIFAR-10 and CIFAR-100 on disk, and torchvision's readers without the checksums of the true files."""

    class AnyCIFAR10(CIFAR10):
        train_list = [[file, None] for file, _ in CIFAR10.train_list]
        test_list = [[file, None] for file, _ in CIFAR10.test_list]
        meta = {**CIFAR10.meta, "md5": None}

    class AnyCIFAR100(CIFAR100):
        train_list = [[file, None] for file, _ in CIFAR100.train_list]
        test_list = [[file, None] for file, _ in CIFAR100.test_list]
        meta = {**CIFAR100.meta, "md5": None}

    for name, dataset in (("cifar10", AnyCIFAR10), ("cifar100", AnyCIFAR100)):
        write_cifar(tmp_path / "cifar", dataset)
        monkeypatch.setitem(DATASETS, name, dataset)
    return tmp_path / "cifar"


def write_planetoid(root, name, classes):
    """Write files as Planetoid distributes them, of 1600 nodes in a ring: 140 train, 500 validate, the last 20 of the file test."""
    nodes, features, train, test = 1600, 12, 140, 20
    generator = np.random.default_rng(0)
    x = csr_matrix(generator.integers(0, 2, size=(nodes, features)).astype(np.float32))
    y = np.eye(classes, dtype=np.int32)[np.arange(nodes) % classes]
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    rest = nodes - test
    graph = {node: [(node - 1) % nodes, (node + 1) % nodes] for node in range(nodes)}
    parts = {"x": x[:train], "tx": x[rest:], "allx": x[:rest], "y": y[:train], "ty": y[rest:], "ally": y[:rest], "graph": graph}
    for part, content in parts.items():
        (folder / f"ind.{name.lower()}.{part}").write_bytes(pickle.dumps(content))
    (folder / f"ind.{name.lower()}.test.index").write_text("".join(f"{node}\n" for node in range(rest, nodes)))


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """CelebA's folder, of 12 faces: 8 train, 2 validate, 2 test; and torchvision's reader without the checksums of the true files."""
    folder = tmp_path / "faces" / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    generator = np.random.default_rng(0)
    names = [f"{number:06d}.jpg" for number in range(1, 13)]
    for name in names:
        pixels = generator.integers(0, 256, size=(218, 178, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "img_align_celeba" / name)

    def table(rows, *head):
        lines = [f"{name}  {' '.join(map(str, row))}" for name, row in zip(names, rows, strict=True)]
        return "\n".join([*head, *lines]) + "\n"

    attributes = " ".join(f"Attribute_{number}" for number in range(40))
    lists = {
        "list_eval_partition.txt": table([[0]] * 8 + [[1]] * 2 + [[2]] * 2),
        "identity_CelebA.txt": table([[number] for number in range(12)]),
        "list_attr_celeba.txt": table([[-1, 1] * 20] * 12, "12", attributes),
        "list_bbox_celeba.txt": table([[95, 71, 226, 313]] * 12, "12", "image_id x_1 y_1 width height"),
        "list_landmarks_align_celeba.txt": table([[69, 109, 106, 113, 77, 142, 73, 152, 108, 154]] * 12, "12", "lefteye_x lefteye_y"),
    }
    for name, text in lists.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(CelebA, "file_list", [(link, None, name) for link, _, name in CelebA.file_list])
    return tmp_path / "faces"


@pytest.fixture
def planetoid(tmp_path):
    """Cora's and CiteSeer's folders, with their true numbers of classes."""
    for name, classes in (("Cora", 7), ("CiteSeer", 6)):
        write_planetoid(tmp_path / "planetoid", name, classes)
    return tmp_path / "planetoid"


@pytest.fixture
def arxiv(tmp_path):
    """ogbn-arxiv's folder, of 30 papers that each cite the one before."""
    folder = tmp_path / "graphs" / "ogbn_arxiv"
    tables = {
        "raw/edge": [[node, node - 1] for node in range(1, 30)],
        "raw/node-feat": np.random.default_rng(0).normal(size=(30, 128)).round(4).tolist(),
        "raw/node-label": [[node % 40] for node in range(29)] + [[39]],
        "split/time/train": [[node] for node in range(20)],
        "split/time/valid": [[node] for node in range(20, 25)],
        "split/time/test": [[node] for node in range(25, 30)],
    }
    for name, rows in tables.items():
        file = folder / f"{name}.csv.gz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress("".join(",".join(map(str, row)) + "\n" for row in rows).encode()))
    return tmp_path / "graphs"


@pytest.fixture
def texts(tmp_path):
    """A folder of 21 text files, of sentences from a few words."""
    generator = np.random.default_rng(0)
    words = np.array(["the", "a", "model", "learns", "from", "text", "and", "predicts", "what", "follows", "each", "token"])
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(21):
        lines = [" ".join(generator.choice(words, size=10)) for _ in range(40)]
        (folder / f"{number:02d}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture
def token_files(tmp_path):
    """nanoGPT's folder, of 5000 tokens to train and 3000 to validate."""
    generator = np.random.default_rng(0)
    folder = tmp_path / "openwebtext"
    folder.mkdir()
    for name, count in (("train", 5000), ("val", 3000)):
        generator.integers(0, 300, size=count).astype(np.uint16).tofile(folder / f"{name}.bin")
    return folder


@pytest.fixture
def pretrained(tmp_path):
    """A checkpoint of a small `GPTModel`, as `fit` leaves it."""
    from recipes.__main__ import main

    small = [*TINY_GPT, "--model.width", "64", *TINY_TEXT, *QUIET, "--data.batch_size", "8", "--trainer.max_steps", "2"]
    assert main(["fit", "--config", str(CONFIGS / "gpt_stdlib.yaml"), *small]) == 0
    return tmp_path / "runs" / "gpt_stdlib" / "version_0" / "checkpoints" / "last.ckpt"


@pytest.fixture
def tiny_recipe(image_tree, cifar, celeba, planetoid, arxiv, texts, token_files):
    """Command lines that make each YAML in configs/ small; a YAML without one fails its test."""
    imagenet = ["--data.root", str(image_tree), "--data.num_workers", "0", "--data.image_size", "32", "--data.resize", "36"]
    return {
        "ddpm_celeba64": [*QUIET, *SMALL_UNET, "--data.root", str(celeba), "--data.num_workers", "0", "--data.batch_size", "4"],
        "ddpm_digits": QUIET,
        "gat_arxiv": [*QUIET, "--data.root", str(arxiv), "--model.hidden_channels", "8"],
        "gat_digits": QUIET,
        "gcn_arxiv": [*QUIET, "--data.root", str(arxiv), "--model.hidden_channels", "8"],
        "gcn_citeseer": [*QUIET, "--data.root", str(planetoid), "--model.in_channels", "12"],
        "gcn_cora": [*QUIET, "--data.root", str(planetoid), "--model.in_channels", "12"],
        "gcn_digits": QUIET,
        "gpt2_small_openwebtext": [
            *[*TINY_GPT, *TINY_TEXT, *QUIET, "--data.root", str(token_files), "--data.vocab_size", "300", "--model.vocab_size", "320"],
            *["--model.heads", "2", "--trainer.accumulate_grad_batches", "2", "--trainer.precision", "32-true"],
        ],
        "gpt_stdlib": [*TINY_GPT, *TINY_TEXT, *QUIET],
        "gpt_stdlib_lora": [*TINY_TEXT, *QUIET],
        "llama_stdlib": [
            *[
                *TINY_TEXT,
                *QUIET,
                "--data",
                "TextFolder",
                "--data.root",
                str(texts),
                "--data.vocab_size",
                "300",
                "--data.tokenizer",
                "pairs.json",
            ],
            *["--model.context", "32", "--model.vocab_size", "300"],
        ],
        "resnet18_cifar10": [*NARROW, *QUIET, "--data.root", str(cifar), "--data.num_workers", "0", "--data.batch_size", "8"],
        "resnet18_cifar10_subset": [*NARROW, *QUIET, "--data.root", str(image_tree), "--data.val_folds", "2", "--model.num_classes", "2"],
        "resnet18_digits": [*NARROW, *QUIET],
        "resnet18_imagenet": [*NARROW, *QUIET, *imagenet, "--model.num_classes", "2", "--data.batch_size", "3"],
        "sft_topics": [*TINY_TEXT, *QUIET],
        "vit_cifar10_subset": [*QUIET, "--data.root", str(image_tree), "--data.val_folds", "2", "--model.num_classes", "2"],
        "vit_digits": QUIET,
    }
