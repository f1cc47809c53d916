"""A plot of the networks that a search has finished: accuracy against each limit."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

from common.evaluation.figures import printable, save


@dataclass(frozen=True)
class Limit:
    """What is limited: a panel of the plot.

    Attributes:
        name: Of the line at the limit, such as "flash limit".
        unit: Of what is limited.
        amount: The limit.
        costs: Of each network.
    """

    name: str
    unit: str
    amount: float
    costs: list[float]


def draw(networks: list[tuple[str, float, tuple[float, float]]], limits: list[Limit], path: Path) -> None:
    """Draws a panel for each limit; the networks are numbered as in the legend.

    Args:
        networks: (name, top-1 on validation, its interval) of each.
        limits: Their costs are those of the networks, in the same order.
        path: The file; its suffix gives the format.

    Raises:
        UserError: The file cannot be written.
    """
    figure = Figure(figsize=(1.5 + 4.5 * len(limits), 4.2), layout="constrained")
    panels = figure.subplots(1, len(limits), sharey=True, squeeze=False)[0]
    for axes, limit in zip(panels, limits, strict=True):
        for number, ((_, top1, (low, high)), cost) in enumerate(
            zip(networks, limit.costs, strict=True), start=1
        ):
            axes.errorbar(cost, top1, [[top1 - low], [high - top1]], color="grey", alpha=0.5, zorder=1)
            axes.scatter(cost, top1, s=170, color="tab:blue", edgecolors="white", zorder=3)
            axes.annotate(
                str(number),
                (cost, top1),
                ha="center",
                va="center_baseline",
                color="white",
                fontsize=8,
                zorder=4,
            )
        axes.axvline(limit.amount, color="tab:red", ls="--", label=f"{limit.name}: {limit.amount:,.5g}")
        axes.set_xlim(0, 1.15 * max(limit.amount, *limit.costs))
        axes.set_xlabel(limit.unit)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels[0].set_ylabel("top-1 on validation, 95 % interval")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1))
    names = [f"{number}  {printable(name)}" for number, (name, *_) in enumerate(networks, start=1)]
    figure.supxlabel("\n".join(names), fontsize=8)
    save(figure, path)
