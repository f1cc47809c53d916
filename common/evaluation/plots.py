"""Plots: training curves, accuracy against cost, sensitivity, confusion matrices, labeled images."""

import math
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, PercentFormatter
from torch import Tensor

from common.compression.pruning import Group
from common.compression.sensitivity import FRACTIONS
from common.evaluation.comparison import Row, pareto_front
from common.evaluation.figures import printable, save
from common.models.schema import STAGES

COLORS = ("tab:blue", "tab:green", "tab:orange", "tab:red", "tab:purple", "tab:brown")
STAGE_COLORS = dict(zip(STAGES, COLORS, strict=False))
COSTS: dict[str, Callable[[Row], float | None]] = {
    "file, MB": lambda row: row.file_bytes / 1e6,
    "MACs, millions": lambda row: row.content["metrics"]["macs"] and row.content["metrics"]["macs"] / 1e6,
    "RAM of the activations, layer by layer, KiB": lambda row: row.ram_bytes and row.ram_bytes / 1024,
    "latency in ONNX Runtime, ms": lambda row: (
        row.latencies["ONNX Runtime"].p50 if "ONNX Runtime" in row.latencies else None
    ),
}
LEGIBLE = 200  # classes: with more, a confusion matrix has neither names nor counts


def draw_curves(history: list[dict], path: Path) -> None:
    """Plots loss and top-1 of each epoch, on training and validation images.

    Args:
        history: A row for each epoch, see `loop.fit`.
        path: The file; its suffix gives the format.

    Raises:
        UserError: The file cannot be written.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    epochs = range(1, len(history) + 1)
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "top1"), strict=True):
        for part, label in (("train", "training"), ("val", "validation")):
            values = [row.get(f"{part}_{quantity}") for row in history]
            if None not in values:
                axes.plot(epochs, values, marker="o", markersize=3, label=label)
        axes.set(xlabel="epoch", title="top-1" if quantity == "top1" else "loss")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[1].yaxis.set_major_formatter(PercentFormatter(1))
    figure.suptitle(printable(path.stem))
    save(figure, path)


def draw_tradeoffs(rows: list[Row], path: Path, note: str) -> None:
    """Plots top-1 against file size, MACs, RAM and latency.

    Arrows go from each parent to its child, and a line shows the Pareto front.

    The points are numbered as in the legend; bars are 95 % intervals.

    Args:
        rows: The files.
        path: The file; its suffix gives the format.
        note: Text below the plots.

    Raises:
        UserError: The file cannot be written.
    """
    figure = Figure(figsize=(12, 8.6 + 0.2 * math.ceil(len(rows) / 3)), layout="constrained")
    for axes, (label, cost) in zip(figure.subplots(2, 2, sharey=True).flat, COSTS.items(), strict=True):
        points = {index: (cost(row), row.score.top1) for index, row in enumerate(rows) if cost(row)}
        axes.set_xlabel(label)
        if not points:
            axes.text(0.5, 0.5, "not known", ha="center", transform=axes.transAxes)
            continue
        _draw_arrows(axes, rows, points)
        for index, (x, y) in points.items():
            low, high = rows[index].score.ci95
            axes.errorbar(x, y, [[y - low], [high - y]], color="grey", alpha=0.35, zorder=1)
            color = STAGE_COLORS.get(rows[index].content["stage"], "grey")
            axes.scatter(x, y, s=170, color=color, edgecolors="white", zorder=3)
            axes.annotate(
                str(index + 1), (x, y), ha="center", va="center_baseline", color="white", fontsize=8, zorder=4
            )
        corners = [list(points.values())[index] for index in pareto_front(list(points.values()))]
        x, y = zip(*corners, strict=True)
        axes.plot(x, y, "--", color="black", lw=1, zorder=2, label="Pareto front")
        axes.scatter(x, y, s=300, facecolors="none", edgecolors="black", zorder=2)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
    figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1))
    for axes in figure.axes[::2]:
        axes.set_ylabel("top-1")
    figure.axes[0].legend(loc="lower right")
    names = [
        figure.axes[0].scatter(
            [],
            [],
            color=STAGE_COLORS.get(row.content["stage"], "grey"),
            label=f"{index + 1}  {printable(row.path.name.removesuffix('.pt'))} ({row.engine.split()[0]})",
        )
        for index, row in enumerate(rows)
    ]
    figure.legend(
        handles=names,
        loc="outside lower center",
        ncols=3,
        fontsize=8,
        title=textwrap.fill(note, 170),
        title_fontsize=8,
    )
    save(figure, path)


def _draw_arrows(axes, rows: list[Row], points: dict[int, tuple[float, float]]) -> None:
    indices = {row.path.resolve(): index for index, row in enumerate(rows)}
    for child, row in enumerate(rows):
        parent = indices.get(row.parent.resolve()) if row.parent else None
        if parent in points and child in points:
            axes.annotate(
                "",
                points[child],
                points[parent],
                arrowprops={"arrowstyle": "->", "color": "grey", "shrinkA": 9, "shrinkB": 9},
            )


def draw_sensitivity(groups: list[Group], table: Tensor, path: str) -> None:
    """Draws the sensitivity of each group as a table of colors.

    Args:
        groups: The groups of a network.
        table: The top-1 of `sensitivity.measure`, float32 [groups, fractions].
        path: The file; its suffix gives the format.

    Raises:
        UserError: The file cannot be written.
    """
    figure = Figure(figsize=(8, 1.6 + 0.24 * len(groups)), layout="constrained")
    axes = figure.subplots()
    values = np.ma.masked_invalid(table.numpy())
    image = axes.imshow(values, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(table.numpy()):
        if not math.isnan(value):
            axes.text(
                j,
                i,
                f"{value:.0%}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if value < 0.6 else "black",
            )
    axes.set_xticks(range(len(FRACTIONS)), [f"{fraction:.1%}" for fraction in FRACTIONS])
    names = [f"{group.layers[0]}  ({len(group.scores)})" for group in groups]
    axes.set_yticks(range(len(groups)), names, fontsize=8)
    axes.set(
        xlabel="fraction of the layer's channels removed",
        title="top-1 on validation, only this layer pruned, before fine-tuning",
    )
    bar = figure.colorbar(image, shrink=0.6, label="top-1")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    save(figure, Path(path))


def draw_confusion(confusion: np.ndarray, classes: list[str], path: Path) -> None:
    """Draws a confusion matrix, shaded by row.

    Args:
        confusion: How many images of class i were predicted as class j, int [C, C].
        classes: The C names.
        path: The file; its suffix gives the format.

    Raises:
        UserError: The file cannot be written.
    """
    side = 3 + 0.24 * min(len(classes), LEGIBLE)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    fractions = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    image = axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    size = 8 if len(classes) <= 40 else 5
    if len(classes) <= LEGIBLE:
        for i, j in zip(*np.nonzero(confusion), strict=True):
            color = "white" if fractions[i, j] > 0.5 else "black"
            axes.text(j, i, confusion[i, j], ha="center", va="center", fontsize=size - 1, color=color)
        names = [printable(name) for name in classes]
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel="prediction", ylabel="label", title=printable(path.stem.removesuffix("_confusion")))
    bar = figure.colorbar(image, shrink=0.6, label="fraction of the label's images")
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1))
    save(figure, path)


def draw_predictions(images: list[tuple], path: Path) -> None:
    """Draws a grid of images, each with its file's name above and its predictions below.

    Args:
        images: (image, title, lines) of each.
        path: The file; its suffix gives the format.

    Raises:
        UserError: The file cannot be written.
    """
    columns = min(4, len(images))
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(3.2 * columns, 3.9 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.set_axis_off()
    for axes, (image, title, lines) in zip(grid, images, strict=False):
        axes.imshow(image)
        axes.set_title(printable(title), fontsize=8)
        axes.text(
            0.5,
            -0.03,
            printable("\n".join(lines)),
            transform=axes.transAxes,
            ha="center",
            va="top",
            fontsize=9,
        )
    save(figure, path)
