"""What the figures of a comparison share: their size, their lines, and how they are written."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.files import write_atomically

if TYPE_CHECKING:  # a second to import
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = ("-", "--", "-.", ":")  # the lines of a print without colours
COLOURS = (
    "#000000",
    "#D55E00",
    "#0072B2",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe and Ito's, which the colour-blind tell apart


def new_figure(panels: int = 1) -> "tuple[Figure, list[Axes]]":
    """Return a figure and its panels, side by side.

    Args:
        panels: How many.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyplot would look for a display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4 * panels, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, panels, number + 1) for number in range(panels)]
    for one in axes:
        one.grid(alpha=0.25, linewidth=0.5)
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def line_style(number: int) -> dict[str, Any]:
    """Return the colour and the line of an optimizer.

    Args:
        number: Its place in the comparison.
    """
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": STYLES[number % len(STYLES)]}


def write_figure(figure: "Figure", axes: "list[Axes]", file: Path, legend: str = "best") -> None:
    """Give a figure its legend, and write it as a PNG.

    Args:
        figure: The figure.
        axes: Its panels, the last of which gets the legend.
        file: The PNG.
        legend: Where the legend goes; beside the panel where it is long.
    """
    count = len(axes[-1].get_legend_handles_labels()[0])
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "fontsize": 7} if count > 8 else {"loc": legend}
    axes[-1].legend(frameon=False, **place)
    save_figure(figure, file)


def save_figure(figure: "Figure", file: Path) -> None:
    """Write a figure as a PNG, whole or not at all.

    Args:
        figure: The figure.
        file: The PNG.
    """
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_atomically(file, image.getvalue())
