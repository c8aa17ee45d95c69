"""Figure 8: Adam (leave-x-out): some tensors get one rate each, found on a grid, and the rest is Adam's."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from experiments.figures import new_figure
from experiments.hessian.output import Found
from experiments.result import progress
from experiments.tables import Table
from recipes.language.gpt import GPT

VOCABULARY, CONTEXT, BATCH, BETAS = 16, 24, 8, (0.9, 0.95)
RATES = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
"""Adam's learning rates, of which the best is taken."""
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""The grid: a tensor's rate over Adam's root mean square one in it."""
TOGETHER = 32
"""Runs side by side."""


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
    """Runs of one small GPT, all from the same weights and on the same batches, many side by side.

    Args:
        seed: Of weights, language and batches.
        steps: Steps of a run.
        layers: Layers of the GPT.
    """

    def __init__(self, seed: int, steps: int, layers: int) -> None:
        tokens = language(seed)
        starts = torch.randint(len(tokens) - CONTEXT - 1, (steps, BATCH), generator=torch.Generator().manual_seed(seed))
        self.steps = steps
        self.batches = [torch.stack([tokens[i : i + CONTEXT + 1] for i in batch]) for batch in starts.tolist()]
        torch.manual_seed(seed)
        self._model = GPT(VOCABULARY, CONTEXT, layers=layers, heads=4, width=32, tied=False)
        self.found = {lr: self.run([{}], lr) for lr in RATES}
        self.lr = min(RATES, key=lambda lr: self.found[lr][0])
        (self.loss,), self.rates = self.found[self.lr]

    def run(self, left_out: Sequence[Mapping[str, float]], lr: float) -> tuple[list[float], dict[str, float]]:
        """Return the mean loss of the last fifth of each run, and Adam's root mean square rate in each tensor, averaged over steps.

        Args:
            left_out: For each run the rate of each tensor that is left out of Adam, over the scheduled learning rate.
            lr: Adam's learning rate, before its schedule.
        """
        runs, steps, last = len(left_out), len(self.batches), max(1, len(self.batches) // 5)
        weights = {name: p.detach().expand(runs, *p.shape).clone() for name, p in self._model.named_parameters()}
        means, squares = ({name: torch.zeros_like(p) for name, p in weights.items()} for _ in range(2))
        own = {name: torch.tensor([one.get(name, math.nan) for one in left_out]) for name in weights}
        total, rates = torch.zeros(runs), dict.fromkeys(weights, 0.0)
        for step, batch in enumerate(self.batches, start=1):
            gradients, losses = self._gradients(weights, batch)
            total += losses if step > steps - last else 0
            rate = lr * min(1.0, step / 10) * max(0.1, 1 - step / steps)
            for name, p in weights.items():
                g, m, v = gradients[name], means[name], squares[name]
                m.lerp_(g, 1 - BETAS[0])
                v.mul_(BETAS[1]).addcmul_(g, g, value=1 - BETAS[1])
                root = (v / (1 - BETAS[1] ** step)).sqrt() + 1e-8
                rates[name] += 1 / float(root[0].square().mean().sqrt()) / steps
                factor = own[name].view(-1, *[1] * (p.ndim - 1))
                p.sub_(rate / (1 - BETAS[0] ** step) * m * torch.where(factor.isnan(), 1 / root, factor))
        return (total / last).tolist(), rates

    def _gradients(self, weights: dict[str, Tensor], batch: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Gradients and losses of all runs on a batch."""

        def loss(one: dict[str, Tensor]) -> Tensor:
            return cross_entropy(functional_call(self._model, one, (batch[:, :-1],)).flatten(0, 1), batch[:, 1:].flatten())

        with sdpa_kernel(SDPBackend.MATH):  # the fused one runs one after the other
            return vmap(grad_and_value(loss))(weights)

    def best(self, chosen: Sequence[tuple[str, ...]]) -> list[tuple[float, tuple[float, ...]]]:
        """Return for each choice of tensors the lowest loss with them left out, and their factors of the grid that gave it.

        Args:
            chosen: The choices: of one tensor, each factor of the grid is tried, of several 0.5, 1 and 2 of each.
        """
        grids = [list(itertools.product(FACTORS if len(names) == 1 else FACTORS[1:4], repeat=len(names))) for names in chosen]
        runs = [
            {name: f * self.rates[name] for name, f in zip(names, g, strict=True)}
            for names, grid in zip(chosen, grids, strict=True)
            for g in grid
        ]
        losses: list[float] = []
        for start in range(0, len(runs), TOGETHER):
            losses += self.run(runs[start : start + TOGETHER], self.lr)[0]
            progress(f"fig8: {len(losses)} of {len(runs)} runs")
        found, start = [], 0
        for grid in grids:
            here = losses[start : start + len(grid)]
            found.append(min(zip(here, grid, strict=True), key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0]))
            start += len(grid)
        return found


def make(seed: int = 0, quick: bool = False) -> Iterator[Found]:
    """Draw the figure.

    Args:
        seed: Of everything.
        quick: Whether to make short runs of few tensors.
    """
    training = Training(seed, steps=20 if quick else 150, layers=1 if quick else 2)
    names = list(training.rates)[: 2 if quick else None]
    draws = random.Random(seed)
    choices = [(name,) for name in names]
    for count, times in ((2, 1 if quick else 3), (3, 0 if quick else 2)):
        choices += [tuple(draws.sample(names, count)) for _ in range(times)]
    rows: list[dict[str, Any]] = [
        {"left_out": " + ".join(chosen), "loss": loss, "gain": training.loss - loss, "factors": " ".join(f"{factor:g}" for factor in best)}
        for chosen, (loss, best) in zip(choices, training.best(choices), strict=True)
    ]
    figure, charts = new_figure(width=7.5, height=0.28 * len(rows) + 1.2)
    chart = charts[0]
    labels = [" + ".join(map(_short, chosen)) for chosen in choices]
    gains = [row["gain"] for row in rows]
    chart.barh(range(len(gains)), gains, color=["#d55e00" if gain > 0 else "#6e7f8d" for gain in gains])
    chart.set_yticks(range(len(gains)), labels, fontsize=7)
    chart.invert_yaxis()
    chart.axvline(0, color="black", linewidth=0.8)
    chart.set_xlabel(f"gain over Adam's loss of {training.loss:.3f}, in nats (right: one rate is better)")
    better = sum(row["gain"] > 0 for row in rows)
    chart.set_title(f"Adam leaving tensors out, each at one rate of a grid: better in {better} of {len(rows)}", fontsize=9)
    table = Table(
        ["left out", "loss", "gain", "rate over Adam's"],
        [[label, f"{row['loss']:.4f}", f"{row['gain']:+.4f}", row["factors"]] for label, row in zip(labels, rows, strict=True)],
    )
    searched = ", ".join(f"{lr:g}: {loss:.4f}" for lr, ((loss,), _) in training.found.items())
    text = (
        f"Losses are means of the last fifth of {training.steps} steps. Adam's by learning rate: {searched}; the best is taken."
        " A gain is in nats below it."
    )
    yield Found(
        "fig8", "Figure 8: Adam leaving tensors out", text, rows, table, {"fig8": figure}, {"adam": training.loss, "lr": training.lr}
    )


def _short(name: str) -> str:
    return name.removeprefix("blocks.").removesuffix(".weight")
