"""How far from the first optimizer's weights the others' are, step by step (Adam-mini's Figure 15)."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from torch.nn.utils import parameters_to_vector
from typing_extensions import override

from experiments.compare.plan import Plan, Run, runs_at
from experiments.figures import add_legend, new_figure, styles
from experiments.statistics import deviation, mean_text
from experiments.tables import Table
from recipes.files import write_atomically

if TYPE_CHECKING:  # a second to import
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Trajectory:
    """The way of one optimizer's weights beside the first one's, from the same initial weights over the same batches.

    Args:
        run: The run.
        steps: The training steps at which the weights were kept, from 0.
        distances: Euclidean distance between the two at each.
        relative: The distance over the way that the first one's weights are from the initial ones; 0 at step 0.
    """

    run: Run
    steps: tuple[int, ...]
    distances: tuple[float, ...]
    relative: tuple[float, ...]


class WeightRecorder(Callback):
    """Keep all trained weights at evenly spaced steps, the initial ones among them.

    Args:
        points: How often.
    """

    def __init__(self, points: int) -> None:
        self.points = points
        self.steps: list[int] = []
        self.weights: list[NDArray[np.float32]] = []

    @override
    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Keep the initial weights."""
        self._keep(trainer, pl_module)

    @override
    def on_train_batch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the weights where the next point is reached."""
        total = trainer.estimated_stepping_batches
        if trainer.global_step > self.steps[-1] and trainer.global_step >= len(self.steps) * total / self.points:
            self._keep(trainer, pl_module)

    def _keep(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        self.steps.append(trainer.global_step)
        trained = [parameter.detach().float().cpu() for parameter in pl_module.parameters() if parameter.requires_grad]
        self.weights.append(parameters_to_vector(trained).numpy())


def weights_file(plan: Plan, run: Run, points: int) -> Path:
    """Return the file of a run's weights.

    Args:
        plan: The comparison.
        run: The run.
        points: How often they were kept.
    """
    return plan.out / "weights" / f"{run.name}_{points}.npz"


def write_weights(recorder: WeightRecorder, file: Path) -> None:
    """Write the weights that were kept.

    Args:
        recorder: What kept them.
        file: Where.
    """
    buffer = io.BytesIO()
    np.savez(buffer, steps=np.array(recorder.steps), weights=np.stack(recorder.weights))
    write_atomically(file, buffer.getvalue())


def measure_trajectories(plan: Plan, chosen: Sequence[Run], points: int) -> list[Trajectory]:
    """Return the trajectories of every optimizer but the first, seed by seed.

    Args:
        plan: The comparison.
        chosen: A run of each optimizer at its setting, the weights of which have been written for every seed.
        points: How often.
    """
    found: list[Trajectory] = []
    for seed in plan.seeds:
        baseline, *others = runs_at(chosen, [seed])
        first = load_weights(weights_file(plan, baseline, points))
        way = np.linalg.norm(first["weights"] - first["weights"][0], axis=1)
        for run in others:
            theirs = load_weights(weights_file(plan, run, points))
            distances = np.linalg.norm(theirs["weights"] - first["weights"], axis=1)
            relative = np.divide(distances, way, out=np.zeros_like(distances), where=way > 0.0)
            found.append(Trajectory(run, tuple(first["steps"].tolist()), tuple(distances.tolist()), tuple(relative.tolist())))
    return found


def load_weights(file: Path) -> Mapping[str, NDArray[Any]]:
    """Return the steps and weights of a run.

    Args:
        file: The file.
    """
    with np.load(file) as stored:
        return {"steps": stored["steps"], "weights": stored["weights"].astype(np.float64)}


def trajectory_rows(trajectories: Sequence[Trajectory]) -> list[dict[str, object]]:
    """Return the trajectories as rows, one a step.

    Args:
        trajectories: The trajectories.
    """
    return [
        {
            "optimizer": one.run.optimizer,
            "setting": one.run.setting.text(),
            "seed": one.run.seed,
            "step": step,
            "distance": f"{distance:.6f}",
            "relative": f"{relative:.6f}",
        }
        for one in trajectories
        for step, distance, relative in zip(one.steps, one.distances, one.relative, strict=True)
    ]


def trajectory_table(trajectories: Sequence[Trajectory], baseline: str) -> Table:
    """Return the relative distances at a tenth of the steps, half of them and the end, the nearest first.

    Args:
        trajectories: The trajectories.
        baseline: Name of the first optimizer.
    """
    each = by_optimizer(trajectories)
    steps = trajectories[0].steps
    places = sorted({max(1, round(share * (len(steps) - 1))) for share in (0.1, 0.5, 1.0)})
    seeds = len(next(iter(each.values())))
    text = f"Distance to {baseline}'s weights over the way that these have gone, mean ± standard deviation over seeds ({seeds}):"
    lines = []
    for name, found in sorted(each.items(), key=lambda item: fmean(one.relative[-1] for one in item[1])):
        columns = [[one.relative[place] for one in found] for place in places]
        cells = [mean_text(fmean(column), deviation(column), ".2f") for column in columns]
        lines.append([name, found[0].run.setting.text(), *cells])
    return Table(["optimizer", "lr", *(f"step {steps[place]}" for place in places)], lines, text=text)


def by_optimizer(trajectories: Sequence[Trajectory]) -> dict[str, list[Trajectory]]:
    """Return the trajectories of each optimizer.

    Args:
        trajectories: The trajectories.
    """
    each: dict[str, list[Trajectory]] = {}
    for one in trajectories:
        each.setdefault(one.run.optimizer, []).append(one)
    return each


def draw_trajectories(trajectories: Sequence[Trajectory], baseline: str) -> "Figure":
    """Draw the relative distances over the steps: the mean over seeds, in a band from the least to the most.

    Args:
        trajectories: The trajectories.
        baseline: Name of the first optimizer.
    """
    figure, (axes,) = new_figure()
    each = by_optimizer(trajectories)
    for name, style in styles([baseline, *each]).items():
        if name == baseline:  # whose colour no other has
            continue
        found = each[name]
        run, steps = found[0].run, found[0].steps[1:]
        relative = np.array([one.relative[1:] for one in found])
        axes.fill_between(steps, relative.min(axis=0), relative.max(axis=0), color=style["color"], alpha=0.12, linewidth=0.0)
        label = f"{run.optimizer}, lr {run.setting.text()}"
        axes.plot(steps, relative.mean(axis=0), **style, marker="o", label=label)
    if any((np.asarray(line.get_ydata()) > 0).any() for line in axes.lines):
        axes.set_yscale("log")  # a rival may go ten times as far
    axes.set_xlabel("training step")
    axes.set_ylabel(f"distance to {baseline}'s weights / their way")
    add_legend(axes)
    return figure
