"""The search for the most accurate model within a budget.

From the source, and from each student that it teaches, candidates are pruned by several recipes for a few
epochs. Only the most promising are trained for all: a round of successive halving (Jamieson, Talwalkar,
AISTATS 2016).
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from common.budget.target import Budget
from common.evaluation import results, tables
from common.models import checkpoint, lineage
from common.system import units
from common.system.errors import UserError

RECIPES = (("lamp", "global"), ("taylor", "isomorphic"))  # importance and scope
TRIAL = 8  # a trial has this part of the epochs


@dataclass
class Candidate:
    """A checkpoint in the search.

    Attributes:
        recipe: How it was created, for the report.
        path: Its file.
        top1: On validation, from 0 to 1.
        ci95: Wilson's interval of `top1`.
        cost: In the unit of the budget; None for one that is not finished.
        note: For the report.
    """

    recipe: str
    path: Path
    top1: float
    ci95: tuple[float, float]
    cost: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Stages:
    """The stages as functions: each creates a checkpoint, evaluated on validation, and returns its path.

    Attributes:
        distill: (architecture) -> path.
        prune: (path, target, precision, importance, scope, epochs) -> path.
        quantize: (path) -> path.
    """

    distill: Callable[[str], Path]
    prune: Callable[[Path, str, str, str, str, int], Path]
    quantize: Callable[[Path], Path]


@dataclass(frozen=True)
class Plan:
    """How a candidate meets the budget: pruned from `start` by `recipe`, or without one as it is."""

    candidate: Candidate
    precision: str
    start: Candidate
    recipe: tuple[str, str] | None = None


class Search:
    """The candidates from a source to a budget.

    `tried` has every checkpoint that was created, `refused` why others could not be created.
    """

    def __init__(
        self,
        source: Candidate,
        kind: str,
        text: str,
        *,
        stages: Stages,
        budget: Callable[[Path, str, str], Budget],
        cost: Callable[[Path], float],
        students: list[str],
        epochs: int,
        limits: Path,
    ):
        """Reads the budget.

        Args:
            source: The checkpoint to compress.
            kind: "macs", "size", "latency" or "ram".
            text: The amount that the user asks for.
            stages: What creates checkpoints.
            budget: (path, text, precision) -> the budget of that checkpoint.
            cost: (path) -> what a finished checkpoint costs.
            students: Architectures to distill into.
            epochs: Of pruning.
            limits: A JSON file that keeps the limits that were measured: a second search has the same one.

        Raises:
            UserError: The source meets the budget already.
        """
        self.source, self.kind, self.stages, self.budget, self.cost = source, kind, stages, budget, cost
        self.students, self.epochs = students, epochs
        self.limit = _remembered(budget(source.path, text, "fp32"), source.path, text, limits)
        self.target = units.format_exact(kind, self.limit)
        self.tried: list[Candidate] = []
        self.refused: list[str] = []
        if (now := cost(source.path)) <= self.limit:
            raise UserError(f"nothing to do: {source.path} has {self.describe(now)} already")

    def run(self) -> Candidate:
        """Creates the candidates.

        Returns:
            Of those that meet the budget the one with the highest top-1 on validation, on a tie the smallest.

        Raises:
            UserError: None meets the budget.
        """
        for start in (self.source, *self._students()):
            for plan in self._promising(start):
                with self._noting(start, plan.precision):
                    self._finish(plan)
        meeting = [each for each in self.tried if each.cost is not None and each.cost <= self.limit]
        if not meeting:
            costs = [f"{each.recipe}: {self.describe(each.cost)}" for each in self.tried if each.cost]
            reasons = "; ".join([*self.refused, *costs])
            raise UserError(f"nothing meets {self.describe(self.limit)}: {reasons}")
        winner = max(meeting, key=lambda each: (each.top1, -each.path.stat().st_size))
        winner.note = "the winner"
        return winner

    def _students(self) -> Iterator[Candidate]:
        for arch in self.students:
            try:
                student = self._tried(f"distill into {arch}", self.stages.distill(arch))
            except UserError as error:
                self.refused.append(f"distill into {arch}: {error}")
                continue
            yield student

    def _tried(self, recipe: str, path: Path) -> Candidate:
        metrics = checkpoint.load(path)["metrics"]
        self.tried.append(Candidate(recipe.removeprefix(", "), path, metrics["top1"], metrics["ci95"]))
        return self.tried[-1]

    @contextlib.contextmanager
    def _noting(self, start: Candidate, precision: str) -> Iterator[None]:
        """Adds to `refused` why nothing more can be created from `start`."""
        try:
            yield
        except UserError as error:
            self.refused.append(f"{start.recipe} in {precision}: {error}".strip())

    def _promising(self, start: Candidate) -> list[Plan]:
        """The best recipe in each precision; one whose interval is below that of the best is dropped."""
        best = []
        for precision in ("fp32",) if self.kind == "macs" else ("fp32", "int8"):  # MACs are the same in int8
            plans = []
            with self._noting(start, precision):
                budget = self.budget(start.path, self.target, precision)
                if budget.start <= self.limit:
                    plans.append(Plan(start, precision, start))
                for recipe in () if plans else RECIPES:
                    trial = self._prune(start, precision, recipe, self.epochs // TRIAL)
                    trial.note = f"a trial of {self.epochs // TRIAL} epochs"
                    plans.append(Plan(trial, precision, start, recipe))
            if plans:
                best.append(max(plans, key=lambda plan: plan.candidate.top1))
        floor = max((plan.candidate.ci95[0] for plan in best), default=0.0)
        return [plan for plan in best if plan.candidate.ci95[1] >= floor]

    def _prune(self, start: Candidate, precision: str, recipe: tuple[str, str], epochs: int) -> Candidate:
        name = f"{start.recipe}, prune for {precision} by {', '.join(recipe)}"
        return self._tried(name, self.stages.prune(start.path, self.target, precision, *recipe, epochs))

    def _finish(self, plan: Plan) -> None:
        """Pruning with all epochs, then int8."""
        ready = plan.candidate
        if plan.recipe is not None:
            plan.candidate.note += ", continued"
            ready = self._prune(plan.start, plan.precision, plan.recipe, self.epochs)
        if plan.precision == "int8":
            ready = self._tried(f"{ready.recipe}, quantize", self.stages.quantize(ready.path))
        ready.cost = self.cost(ready.path)

    def describe(self, cost: float) -> str:
        """Writes a cost for a reader.

        Args:
            cost: In the unit of the budget.

        Returns:
            The cost with its unit.
        """
        return units.describe(self.kind, cost)

    def report(self, winner: Candidate) -> str:
        """Describes the search.

        Args:
            winner: The result of `run`.

        Returns:
            A Markdown table of all that was tried, and why the winner was selected.
        """
        rows = [("recipe", "file", "top-1 on validation", "95 %", "cost", "")]
        for each in self.tried:
            interval = tables.interval(each.ci95)
            cost = "-" if each.cost is None else self.describe(each.cost)
            rows.append((each.recipe, each.path.name, f"{each.top1:.2%}", interval, cost, each.note))
        rows += [(text, "-", "-", "-", "-", "not possible") for text in self.refused]
        others = [
            each.top1 for each in self.tried if each is not winner and each.cost and each.cost <= self.limit
        ]
        ahead = f", {100 * (winner.top1 - max(others)):.2f} points ahead of the next" if others else ""
        reason = (
            f"{1 + len(others)} of them were finished and meet the budget, {self.describe(self.limit)}. "
            f"The winner has the highest top-1 on validation, {winner.top1:.2%}{ahead}."
        )
        return f"{tables.markdown(rows, left=2)}\n\n{reason}"


def _remembered(budget: Budget, path: Path, text: str, limits: Path) -> float:
    """The limit of the first search for this budget: a measurement is a little different each time."""
    if budget.exact or not units.parse(budget.kind, text)[1]:
        return budget.limit
    try:
        known = json.loads(limits.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    key = f"{lineage.sha256(path)} {budget.kind} {float(text)} {budget.conditions}"
    if not isinstance(known.get(key), float):
        known[key] = budget.limit
        limits.parent.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(known, indent=2), limits)
    return known[key]
