"""The charts of an audit, as SVG."""

import io
from collections.abc import Callable

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from common.audit.calibration import Bin

COLORS = ("tab:blue", "tab:orange")  # parent, child


def draw_reliability(models: dict[str, list[Bin]]) -> str:
    """Reliability diagrams beside each other: accuracy against confidence.

    Args:
        models: The bins of each, by name.

    Returns:
        SVG.
    """

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, len(models), sharey=True)
        for axes, color, (name, bins) in zip(panels, COLORS, models.items(), strict=True):
            axes.plot([0, 1], [0, 1], "--", color="grey", lw=1, label="as often correct as claimed")
            points = [(each.confidence, each.accuracy) for each in bins]
            axes.plot(*zip(*points, strict=True), "o-", color=color, label=name)
            axes.set(xlabel="confidence, mean of a bin", xlim=(0, 1.03), ylim=(0, 1.03))
            axes.xaxis.set_major_formatter(PercentFormatter(1))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.grid(alpha=0.3)
            axes.legend(loc="upper left", fontsize=8)
        panels[0].set_ylabel("accuracy")

    return _svg(draw, (8, 4))


def draw_corruptions(clean: dict[str, float], corrupted: dict[str, dict[str, list[float]]]) -> str:
    """Top-1 against the strength of each corruption; strength 0 is the image as it is.

    Args:
        clean: Top-1 of each model, from 0 to 1.
        corrupted: For each kind, top-1 of each model at the strengths 1, 2, 3.

    Returns:
        SVG.
    """

    def draw(figure: Figure) -> None:
        columns = 4
        rows = -(-len(corrupted) // columns)
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes in panels[len(corrupted) :]:
            axes.set_axis_off()
        for axes, (kind, models) in zip(panels, corrupted.items(), strict=False):
            for color, marker, (name, values) in zip(COLORS, "os", models.items(), strict=True):
                axes.plot([clean[name], *values], marker + "-", color=color, label=name)
            axes.set(title=kind, xticks=range(4), ylim=(0, 1))
            axes.yaxis.set_major_formatter(PercentFormatter(1))
            axes.grid(alpha=0.3)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        for axes in panels[(rows - 1) * columns : len(corrupted)]:
            axes.set_xlabel("strength")
        for axes in panels[::columns]:
            axes.set_ylabel("top-1")

    return _svg(draw, (10, 5.6))


def _svg(draw: Callable[[Figure], None], size: tuple[float, float]) -> str:
    buffer = io.StringIO()
    # dollars in a name start no formula
    with rc_context({"text.parse_math": False, "svg.hashsalt": "audit"}):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
