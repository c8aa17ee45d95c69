"""Figures 7 and 29: ratios of an embedding and an output layer over the size of the vocabulary, and how rare its tokens are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from experiments.figures import add_legend, new_figure, styles
from experiments.result import progress
from experiments.slim_adam.models import arguments, length
from experiments.slim_adam.room import Asked, Run, Task
from experiments.tables import Table
from lightning_adam_mini.analysis import average_snr
from recipes.files import write_atomically
from recipes.language.text import PythonText, TextFolder, split_documents
from recipes.language.token_data import Split, Tokens
from recipes.language.tokenizer import ByteTokenizer, PairTokenizer, Tokenizer, train_pairs

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LRS, STEPS, SEEDS = (1e-3,), 200, 1
SIZES, TOY = (256, 1024, 4096, 16384), (256, 280)
LARGEST = 65536  # of real data
EACH = 3  # of Python's modules one in so many: the text is to be encoded once for each vocabulary
WIDTH, CONTEXT, BATCH = 64, 32, 16
LAYERS = {"token_embedding": "embedding", "lm_head": "head"}
OVER = {"fan_out": "tokens", "fan_in": "embedding dimension"}


def make(asked: Asked) -> None:
    """Draw the figure.

    Args:
        asked: Learning rates, seeds, steps; a root of text files in place of Python's source, whose vocabularies go up to 65,536.
    """
    counts = {size: np.sort(np.bincount(tokens, minlength=size))[::-1] for size, tokens in vocabularies(asked).items()}
    recipes = {size: recipe(asked, size) for size in counts}
    tasks = {
        (size, lr, seed): Task(f"vocabulary{size}", args, lr, seed, every=asked.every)
        for size, args in recipes.items()
        for seed in asked.seeds
        for lr in asked.lrs
    }
    runs = asked.train(tasks)
    rows = [
        {"vocabulary": size, "lr": lr, "seed": seed, "layer": LAYERS[layer], "over": over, "ratio": average_snr(each.values())}
        for (size, lr, seed), run in runs.items()
        for layer, by in run.ratios.items()
        for over, each in by.items()
    ]
    about = (
        f"An embedding and an output layer of width {WIDTH} with nothing between, trained for {asked.steps} steps of {BATCH} windows of"
        f" {CONTEXT} tokens on {'a third of the standard library' if asked.root is None else asked.root.name}, byte pairs."
    )
    facts = {"frequency": {str(size): share(ranked) for size, ranked in counts.items()}}
    tables = [ratios_table(runs, asked), tail_table(counts)]
    figures = {"vocabulary": draw(runs, counts, asked)}
    asked.publish("vocabulary", "Ratios over the vocabulary", about, rows, tables, figures, **facts)


def vocabularies(asked: Asked) -> dict[int, Tokens]:
    """Return the training text in the tokens of each vocabulary; what has been encoded before is not encoded again.

    A text too small for so many pairs has no such vocabulary.

    Args:
        asked: What was asked for.
    """
    documents: dict[Split, list[str]] | None = None
    found: dict[int, Tokens] = {}
    for size in TOY if asked.small else SIZES if asked.root is None else (*SIZES, LARGEST):
        folder = tokens_folder(asked, size)
        if not (folder / "train.bin").is_file():
            if documents is None:
                whole = PythonText().documents()[::EACH] if asked.root is None else TextFolder(str(asked.root)).documents()
                documents = split_documents(whole[:60] if asked.small else whole)
            progress(f"byte pairs: {size:,} tokens")
            tokenizer = tokenizer_of(documents["train"], size, folder)
            for split in ("val", "train"):
                write_atomically(folder / f"{split}.bin", tokenizer.encode(documents[split]).astype(np.uint32).tobytes())
        tokens = np.fromfile(folder / "train.bin", dtype=np.uint32)
        if size == 256 or PairTokenizer(folder / "pairs.json").vocab_size == size:
            found[size] = tokens
    return found


def tokenizer_of(documents: Sequence[str], size: int, folder: Path) -> Tokenizer:
    """Return bytes, or byte pairs trained on a text.

    Args:
        documents: The text.
        size: Of the vocabulary; 256 for bytes.
        folder: Where the pairs are written.
    """
    if size == 256:
        return ByteTokenizer()
    train_pairs(documents, size, folder / "pairs.json")
    return PairTokenizer(folder / "pairs.json")


def tokens_folder(asked: Asked, size: int) -> Path:
    """Return the folder of the text in a vocabulary's tokens.

    Args:
        asked: What was asked for.
        size: Of the vocabulary.
    """
    return asked.out / "tokens" / str(size)


def recipe(asked: Asked, size: int) -> tuple[str, ...]:
    """Return the recipe of a run: betas, weight decay, warm-up's share and the cosine's end are the paper's.

    Args:
        asked: What was asked for.
        size: Of the vocabulary.
    """
    model = {
        "vocab_size": size,
        "context": CONTEXT,
        "width": WIDTH,
        "betas": [0.9, 0.999],
        "weight_decay": 1e-4,
        "warmup": 0.1,
        "cosine_end": 0.1,
    }
    named = {"model": "experiments.slim_adam.two_layer.TwoLayerModel", **{f"model.{name}": value for name, value in model.items()}}
    files = {"root": tokens_folder(asked, size), "vocab_size": size, "dtype": "uint32"}
    windows = {"context": CONTEXT, "batch_size": BATCH, "epoch_windows": 20_000, "eval_windows": 32}
    data = {"data": "TokenFiles", **{f"data.{name}": value for name, value in {**files, **windows}.items()}}
    return arguments({**length(asked.steps), "trainer.gradient_clip_val": 1.0, **named, **data})


def share(ranked: NDArray[np.int64]) -> dict[str, float]:
    """Return how unequal tokens are: the share of the text that the most frequent tenth of them is, and of those seen less than 100 times.

    Args:
        ranked: How often each token occurs, the most frequent first.
    """
    top = ranked[: max(1, len(ranked) // 10)].sum() / ranked.sum()
    return {"top_tenth": float(top), "rare": float((ranked < 100).mean()), "median_over_mean": float(np.median(ranked) / ranked.mean())}


def ratio(runs: Mapping[tuple[int, float, int], Run], asked: Asked, size: int, lr: float, layer: str, over: str) -> float:
    """Return an averaged ratio, averaged over seeds.

    Args:
        runs: All runs.
        asked: What was asked for.
        size: Of the vocabulary.
        lr: Learning rate.
        layer: Its layer type.
        over: What is averaged.
    """
    return average_snr(average_snr(runs[size, lr, seed].ratios[layer][over].values()) for seed in asked.seeds)


def ratios_table(runs: Mapping[tuple[int, float, int], Run], asked: Asked) -> Table:
    """Return the ratios by layer and what is averaged, a column for each vocabulary.

    Args:
        runs: All runs.
        asked: What was asked for.
    """
    sizes = list(dict.fromkeys(size for size, _, _ in runs))
    lines = [
        [LAYERS[layer], told, f"{lr:g}", *(f"{ratio(runs, asked, size, lr, layer, over):.3g}" for size in sizes)]
        for layer in LAYERS
        for over, told in {**OVER, "crossed": "rows x columns"}.items()
        for lr in asked.lrs
    ]
    return Table(["layer", "averaged over", "lr", *(f"{size:,} tokens" for size in sizes)], lines, "Averaged ratios")


def tail_table(counts: Mapping[int, NDArray[np.int64]]) -> Table:
    """Return how unequal the tokens of each vocabulary are.

    Args:
        counts: How often each token occurs, by vocabulary.
    """
    lines = [
        [f"{size:,}", f"{found['top_tenth']:.1%}", f"{found['rare']:.1%}", f"{found['median_over_mean']:.2g}"]
        for size, found in ((size, share(ranked)) for size, ranked in counts.items())
    ]
    head = ["vocabulary", "of the text is its most frequent tenth", "of tokens occur less than 100 times", "median / mean of their counts"]
    return Table(head, lines, "How rare tokens are")


def draw(runs: Mapping[tuple[int, float, int], Run], counts: Mapping[int, NDArray[np.int64]], asked: Asked) -> Figure:
    """Draw the ratios over vocabularies, and how often tokens occur by rank.

    Args:
        runs: All runs.
        counts: How often each token occurs, by vocabulary.
        asked: What was asked for.
    """
    figure, axes = new_figure(3, width=4.2, height=3.4)
    for panel, (layer, told) in zip(axes, LAYERS.items(), strict=False):
        names = [(over, lr) for over in OVER for lr in asked.lrs]
        labels = [f"over {OVER[over]}" + f", lr {lr:g}" * (len(asked.lrs) > 1) for over, lr in names]
        for (over, lr), label, style in zip(names, labels, styles(labels).values(), strict=True):
            panel.plot(list(counts), [ratio(runs, asked, size, lr, layer, over) for size in counts], marker="o", label=label, **style)
        panel.axhline(1.0, color="black", linewidth=0.8, linestyle=":")
        panel.set_title(told)
        panel.set_xlabel("vocabulary")
        panel.set_ylabel("averaged SNR")
    for (size, ranked), style in zip(counts.items(), styles([str(size) for size in counts]).values(), strict=True):
        seen = ranked[ranked > 0]
        axes[2].plot(np.arange(1, len(seen) + 1) / size, seen / ranked.sum(), label=f"{size:,} tokens", **style)
    axes[2].set_title("token frequency")
    axes[2].set_xlabel("rank / vocabulary")
    axes[2].set_ylabel("share of the text")
    for panel in axes:
        panel.set_xscale("log")
        panel.set_yscale("log")
        add_legend(panel)
    for panel in axes[:2]:
        panel.set_xticks(list(counts), [f"{size:,}" for size in counts])
        panel.minorticks_off()
        panel.yaxis.set_major_formatter("{x:g}")
    return figure
