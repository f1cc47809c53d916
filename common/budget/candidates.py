"""What a search creates: checkpoints, how each meets the budget, and the report on them."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.evaluation import tables
from common.models import checkpoint
from common.system import units


@dataclass
class Candidate:
    """A checkpoint in the search.

    Attributes:
        recipe: How it was created, for the report.
        path: Its file.
        image_size: Side of the images that it was evaluated on, in pixels.
        top1: On validation, from 0 to 1.
        ci95: Wilson's interval of `top1`.
        epochs: That its stage trained.
        seconds: That they took.
        cost: In the unit of the budget; None for one that is not finished.
        note: For the report.
    """

    recipe: str
    path: Path
    image_size: int
    top1: float
    ci95: tuple[float, float]
    epochs: int = 0
    seconds: float = 0.0
    cost: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Stages:
    """The stages as functions: each creates a checkpoint, evaluated on validation, and returns its path.

    Attributes:
        distill: (architecture, image size, epochs, teacher, alpha) -> path; with KD where alpha is not that
            of the search.
        prune: (path, target, precision, importance, scope, image size, epochs, teacher) -> path.
        quantize: (path, teacher) -> path.
    """

    distill: Callable[[str, int, int, Path, float], Path]
    prune: Callable[[Path, str, str, str, str, int, int, Path], Path]
    quantize: Callable[[Path, Path], Path]


@dataclass(frozen=True)
class Plan:
    """How a candidate meets the budget.

    Attributes:
        name: For the report: the recipe of what it creates.
        start: What is compressed.
        precision: "fp32" or "int8": what it costs the budget in.
        image_size: In pixels.
        recipe: Importance and scope of pruning; None where `start` meets the budget as it is.
        trial: The candidate that tells how promising the plan is: `start`, or what pruning created.
    """

    name: str
    start: Candidate
    precision: str
    image_size: int
    recipe: tuple[str, str] | None
    trial: Candidate


def read(recipe: str, path: Path) -> Candidate:
    """Reads what a stage has created.

    Args:
        recipe: How it was created.
        path: The checkpoint; the log of its training is beside it, if it was trained.

    Returns:
        The candidate.

    Raises:
        UserError: The checkpoint cannot be read.
    """
    content, log = checkpoint.load(path), path.with_suffix(".csv")
    rows = list(csv.DictReader(log.read_text(encoding="utf-8").splitlines())) if log.exists() else []
    metrics, seconds = content["metrics"], sum(float(row["seconds"]) for row in rows)
    size = content["image_size"]
    return Candidate(recipe, path, size, metrics["top1"], metrics["ci95"], len(rows), seconds)


def report(
    kind: str, limit: float, tried: list[Candidate], refused: list[str], winner: Candidate, images: int
) -> str:
    """Describes a search.

    Args:
        kind: Of the budget: "macs", "size", "latency" or "ram".
        limit: The budget.
        tried: Every checkpoint that was created.
        refused: Why others could not be created.
        winner: One of `tried`.
        images: How many an epoch trains on.

    Returns:
        A Markdown table of all that was tried, why the winner was selected, and what the search trained.
    """
    rows = [("recipe", "file", "top-1 on validation", "95 %", "cost", "")]
    for each in tried:
        cost = "-" if each.cost is None else units.describe(kind, each.cost)
        top1 = f"{each.top1:.2%}"
        rows.append((each.recipe, each.path.name, top1, tables.interval(each.ci95), cost, each.note))
    rows += [(text, "-", "-", "-", "-", "not possible") for text in refused]
    others = [each.top1 for each in tried if each is not winner and each.cost and each.cost <= limit]
    ahead = f", {100 * (winner.top1 - max(others)):.2f} points ahead of the next" if others else ""
    return (
        f"{tables.markdown(rows, left=2)}\n\n"
        f"{1 + len(others)} of them {'were' if others else 'was'} finished and meet{'s' * (not others)} the "
        f"budget, {units.describe(kind, limit)}. "
        f"The winner has the highest top-1 on validation, {winner.top1:.2%}{ahead}.\n\n"
        f"The search trained {sum(each.epochs for each in tried)} epochs of {images} images in all, "
        f"{sum(each.seconds for each in tried):.0f} s."
    )
