"""Figure 8: Adam (leave-x-out): some tensors get one rate each, found on a grid, and the rest is Adam's."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from experiments.figures import new_figure
from experiments.hessian.output import write
from lightning_adam_mini.table import align
from recipes.language.gpt import GPT

VOCABULARY, CONTEXT, BATCH, LR, BETAS = 16, 24, 8, 3e-3, (0.9, 0.95)
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
"""The grid: a tensor's rate over Adam's root mean square one in it."""


def language(seed: int, length: int = 4096) -> Tensor:
    """Return tokens of a random language, in which each token depends on the two before it.

    Args:
        seed: Of the language.
        length: Number of tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    chances = torch.softmax(2.5 * torch.randn(VOCABULARY, VOCABULARY, VOCABULARY, generator=generator), dim=-1).cumsum(-1)
    draws, tokens = torch.rand(length, generator=generator).tolist(), [0, 0]
    ends = chances.tolist()
    for draw in draws:
        row = ends[tokens[-2]][tokens[-1]]
        tokens.append(next((i for i, end in enumerate(row) if draw < end), VOCABULARY - 1))
    return torch.tensor(tokens[2:])


class Training:
    """Runs of one small GPT, all from the same weights and on the same batches.

    Args:
        seed: Of weights, language and batches.
        steps: Steps of a run.
        layers: Layers of the GPT.
    """

    def __init__(self, seed: int, steps: int, layers: int) -> None:
        tokens = language(seed)
        starts = torch.randint(len(tokens) - CONTEXT - 1, (steps, BATCH), generator=torch.Generator().manual_seed(seed))
        self._batches = [torch.stack([tokens[i : i + CONTEXT + 1] for i in batch]) for batch in starts.tolist()]
        self._seed, self._layers = seed, layers
        self.loss, self.rates = self.run({})

    def run(self, left_out: Mapping[str, float]) -> tuple[float, dict[str, float]]:
        """Return the mean loss of the last fifth of a run, and Adam's root mean square rate in each tensor, averaged over its steps.

        Args:
            left_out: Rate of each tensor that is left out of Adam, over the scheduled learning rate.
        """
        torch.manual_seed(self._seed)
        model = GPT(VOCABULARY, CONTEXT, layers=self._layers, heads=4, width=32, tied=False)
        names, parameters = zip(*model.named_parameters(), strict=True)
        means, squares = ([torch.zeros_like(p) for p in parameters] for _ in range(2))
        losses, rates, steps = [], dict.fromkeys(names, 0.0), len(self._batches)
        for step, batch in enumerate(self._batches, start=1):
            loss = cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
            losses.append(loss.item())
            gradients = torch.autograd.grad(loss, parameters)
            lr = LR * min(1.0, step / 10) * max(0.1, 1 - step / steps)
            with torch.no_grad():
                for name, p, g, m, v in zip(names, parameters, gradients, means, squares, strict=True):
                    m.lerp_(g, 1 - BETAS[0])
                    v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
                    moving = m / (1 - BETAS[0] ** step)
                    if name in left_out:
                        p.sub_(moving, alpha=lr * left_out[name])
                    else:
                        root = (v / (1 - BETAS[1] ** step)).sqrt() + 1e-8
                        p.sub_(lr * moving / root)
                        rates[name] += 1 / float(root.square().mean().sqrt()) / steps
        return sum(losses[-(steps // 5) :]) / (steps // 5), rates

    def best(self, names: tuple[str, ...], factors: tuple[float, ...] = FACTORS) -> tuple[float, tuple[float, ...]]:
        """Return the lowest loss with some tensors left out, each at a rate of the grid, and the factors that gave it.

        Args:
            names: The tensors.
            factors: The grid of one tensor.
        """
        grid = itertools.product(factors, repeat=len(names))
        found = {g: self.run({name: f * self.rates[name] for name, f in zip(names, g, strict=True)})[0] for g in grid}
        chosen = min(found, key=lambda g: found[g] if found[g] == found[g] else float("inf"))
        return found[chosen], chosen


def make(out: Path, seed: int = 0, quick: bool = False) -> str:
    """Draw the figure, and return a table.

    Args:
        out: Folder of the files.
        seed: Of everything.
        quick: Whether to make short runs of few tensors.
    """
    training = Training(seed, steps=20 if quick else 150, layers=1 if quick else 2)
    names = list(training.rates)[: 2 if quick else None]
    numbers: list[dict[str, Any]] = []

    def add(chosen: tuple[str, ...], factors: tuple[float, ...]) -> None:
        loss, best = training.best(chosen, factors)
        numbers.append({"left_out": chosen, "loss": loss, "gain": training.loss - loss, "factors": best})

    for name in names:
        add((name,), FACTORS)
    draws = random.Random(seed)
    for count, times in ((2, 1 if quick else 3), (3, 0 if quick else 2)):
        for _ in range(times):
            add(tuple(draws.sample(names, count)), FACTORS[1:4])
    figure, charts = new_figure(width=7.5, height=0.28 * len(numbers) + 1.2)
    chart = charts[0]
    labels = [" + ".join(_short(name) for name in row["left_out"]) for row in numbers]
    gains = [row["gain"] for row in numbers]
    chart.barh(range(len(gains)), gains, color=["#d55e00" if gain > 0 else "#6e7f8d" for gain in gains])
    chart.set_yticks(range(len(gains)), labels, fontsize=7)
    chart.invert_yaxis()
    chart.axvline(0, color="black", linewidth=0.8)
    chart.set_xlabel(f"gain over Adam's loss of {training.loss:.3f}, in nats (right: one rate is better)")
    better = sum(row["gain"] > 0 for row in numbers)
    chart.set_title(f"Adam leaving tensors out, each at one rate of a grid: better in {better} of {len(numbers)}", fontsize=9)
    write(out, "fig8", {"adam": training.loss, "rows": numbers}, figure)
    rows = [["left out", "loss", "gain", "rate over Adam's"]]
    rows += [
        [label, f"{r['loss']:.4f}", f"{r['gain']:+.4f}", " ".join(f"{f:g}" for f in r["factors"])]
        for label, r in zip(labels, numbers, strict=True)
    ]
    return "\n".join([f"Adam: {training.loss:.4f}", *align(rows, "<>>>")])


def _short(name: str) -> str:
    return name.removeprefix("blocks.").removesuffix(".weight")
