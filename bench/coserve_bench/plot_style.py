"""The look of every plot: readable on light and dark pages, and by colour-blind people."""

from pathlib import Path
from statistics import median

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#7a828e"
"""Grey with a contrast of about 4 against white and against GitHub's black."""
SPLITS = {1: "#8c959f", 2: "#3b82f6", 4: "#2f9e5b", 8: "#d97706", 16: "#c2557f"}
"""A colour for each number of members."""
WAYS = ("#8c959f", "#b58900", "#3b82f6", "#2f9e5b", "#c2557f")
"""A colour for each way to run members, the concurrent one as S=2."""

mpl.rcParams.update(
    {
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": INK,
        "grid.alpha": 0.25,
        "legend.frameon": False,
        "savefig.dpi": 144,
        "savefig.transparent": True,
    }
)


def save(figure: Figure, file: Path) -> Path:
    """Write a PNG with a transparent background, replacing the file once it is complete."""
    partial = file.with_name(f".{file.name}.partial")
    figure.savefig(partial, format="png")
    plt.close(figure)
    return partial.rename(file)


def label_points(axes: Axes, labels: dict[tuple[float, float], str]) -> None:
    """Name points: the lower half of them from below, so that no name lies on a line between two points."""
    middle = median(y for _, y in labels)
    for point, label in labels.items():
        shift = (0, -14) if point[1] < middle else (0, 7)
        axes.annotate(label, point, shift, textcoords="offset points", fontsize=8, ha="center")
