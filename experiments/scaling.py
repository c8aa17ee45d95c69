"""How the step time grows with parameters and with tensors."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from lightning.fabric.utilities.exceptions import MisconfigurationException

from experiments.figures import new_figure, styles
from experiments.options import counts, make_parser, prepare
from experiments.result import conditions, new_result, publish
from experiments.rivals import remarks, select
from experiments.statistics import spread
from experiments.step import TOY_COPY, measure
from experiments.tables import QUARTILES, Table, milliseconds, named
from experiments.timing import COPY, Times
from experiments.workloads import rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Series = dict[int, dict[str, Times]]


def growth(series: Series, name: str) -> float | None:
    """Return the seconds that one more costs, from the smallest to the largest.

    Args:
        series: Times by size and rival.
        name: The rival; none is returned where it failed.
    """
    low, high = min(series), max(series)
    if low == high or name not in series[low] or name not in series[high]:
        return None
    return (median(series[high][name].wall) - median(series[low][name].wall)) / (high - low)


def draw(axes: Axes, series: Series, names: Sequence[str], label: str, title: str) -> None:
    """Draw a line for each rival.

    Args:
        axes: The chart.
        series: Times by size and rival.
        names: The rivals.
        label: What grows.
        title: The chart's title.
    """
    for name, style in styles(names).items():
        points = [(size, spread(times[name].wall)) for size, times in series.items() if name in times]
        axes.errorbar(
            [size for size, _ in points],
            [time.centre * 1e3 for _, time in points],
            yerr=[[(time.centre - time.low) * 1e3 for _, time in points], [(time.high - time.centre) * 1e3 for _, time in points]],
            **style,
            marker="o",
            label=name,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("ms a step (median, quartiles)")
    axes.set_title(title)


def main(argv: Sequence[str]) -> int:
    """Run the experiment.

    Args:
        argv: What follows ``scaling``.
    """
    parser = make_parser("scaling", "Time steps of more parameters, and of more tensors.", rounds=15, seconds=20, models=False)
    parser.add_argument("--parameters", type=counts, default="65536,524288,4194304,33554432", help="in 64 tensors (default: %(default)s)")
    parser.add_argument("--tensors", type=counts, default="4,32,256,2048", help="of 4,194,304 parameters in all (default: %(default)s)")
    parser.add_argument("--fixed-tensors", type=int, default=64, help="tensors that --parameters are in (default: %(default)s)")
    parser.add_argument("--fixed-parameters", type=int, default=2**22, help="parameters that --tensors share (default: %(default)s)")
    options = parser.parse_args(argv)
    device = prepare(options)
    rivals = select(options.only)
    if options.small:
        options.parameters, options.tensors, options.fixed_tensors, options.fixed_parameters = [64, 128], [2, 4], 2, 64
    cases = {
        "parameters": {size: (size, options.fixed_tensors) for size in options.parameters},
        "tensors": {size: (options.fixed_parameters, size) for size in options.tensors},
    }
    check(cases)
    all_series: dict[str, Series] = {}
    said: dict[str, None] = {}
    table: list[dict[str, object]] = []
    tables = []
    for what, sizes in cases.items():
        series: Series = {}
        for size, (parameters, tensors) in sizes.items():
            copied = TOY_COPY if options.small else None
            entrants, times, _ = measure(rows(parameters, tensors), rivals, options.rounds, options.seconds, device, copied)
            said |= dict.fromkeys(remarks(entrants))
            del times[COPY]
            series[size] = times
            for name, own in times.items():
                row = {"parameters": parameters, "tensors": tensors, "optimizer": name, "rounds": len(own.wall)}
                table.append({**row, **named("wall", spread(own.wall), QUARTILES), "cpu_seconds": median(own.cpu)})
        all_series[what] = series
        unit, scale = ("ns a parameter", 1e9) if what == "parameters" else ("µs a tensor", 1e6)
        lines = []
        for rival in rivals:
            more = growth(series, rival.title)
            cells = [milliseconds(times[rival.title].wall) if rival.title in times else "-" for times in series.values()]
            lines.append([rival.title, *cells, "-" if more is None else f"{more * scale:.2f}"])
        fixed = f"{options.fixed_tensors:,} tensors" if what == "parameters" else f"{options.fixed_parameters:,} parameters"
        tables.append(Table(["optimizer", *(f"{size:,} {what}" for size in series), unit], lines, f"By {what}, {fixed}"))
    figure, charts = new_figure(2, width=6.0, height=5.0)
    names = [rival.title for rival in rivals]
    draw(charts[0], all_series["parameters"], names, "parameters", f"{options.fixed_tensors:,} tensors")
    draw(charts[1], all_series["tensors"], names, "tensors", f"{options.fixed_parameters:,} parameters")
    figure.legend(*charts[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    text = (
        f"{conditions(device)} Matrices of one size with random gradients, a block a row; ms a step, medians with quartiles "
        "over rounds in which the optimizers take turns. The last column is what one more costs, from the smallest to the largest size. "
        + " ".join(said)
    )
    publish(new_result("scaling", "Scaling", argv, device, text=text, tables=tables, rows=table), options.out, {"scaling": figure})
    return 0


def check(cases: dict[str, dict[int, tuple[int, int]]]) -> None:
    """Refuse sizes that do not divide.

    Args:
        cases: Parameters and tensors of each case.

    Raises:
        MisconfigurationException: Names the first case whose parameters are no whole power of two a tensor.
    """
    for parameters, tensors in (case for sizes in cases.values() for case in sizes.values()):
        each, rest = divmod(parameters, tensors)
        if rest or each & (each - 1) or not each:
            raise MisconfigurationException(
                f"{parameters:,} parameters in {tensors:,} tensors: each tensor must have the same power of two of parameters; choose both"
                " numbers as powers of two"
            )
