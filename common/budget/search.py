"""The search for the most accurate model within a budget, by successive halving.

All candidates get a trial that costs little; only the most promising are trained for all epochs (Jamieson,
Talwalkar, AISTATS 2016). Only candidates that were trained for as long are compared, as far as possible: the
interval of an accuracy tells what validation can distinguish, not what training will still add.

1. The source is pruned by each recipe, in each precision and at each image size, and reconstructed without
   training. Of each precision and size the better recipe is kept. A precision that is worse than the other at
   the same size is dropped.
2. With several image sizes, what is left is trained for a short time before the sizes are compared: a network
   has to get used to a size that it was not trained at.
3. Of several students each is distilled for a short time. One that is worse than the best of them is dropped
   (not one that is worse than the source: that is trained already).
4. The best candidates of the source are finished. Then the students are distilled for all epochs. One that is
   not worse than what is finished is compressed in the same way as the source.

"Worse" is one whose interval on validation lies below that of the other.

A weak teacher passes its errors on: a student that is as good as its teacher is distilled again, with more
weight on the labels, and the better one is kept. Pruning and quantization are taught by the network that they
start from, where that is more accurate than the teacher.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from common.budget import candidates
from common.budget.candidates import Candidate, Plan, Stages
from common.budget.target import Budget
from common.system import units
from common.system.errors import UserError

RECIPES = (("reconstruction", "global"), ("lamp", "global"))  # importance and scope
BOTH = "fp32", "int8"
# MACs are the same in int8
PRECISIONS = {"macs": BOTH[:1], "size": BOTH, "latency": BOTH, "ram": BOTH, "instructions": BOTH[1:]}
TRIAL = 8  # a trial with training has this part of the epochs
FINISHED = 2  # candidates of each network are finished, at most
SMALL_ALPHA = 0.3  # the weight in KD of a teacher that is no better than its student


class Search:
    """The candidates from a source to a budget.

    `tried` has every checkpoint that was created, `refused` why others could not be created.
    """

    def __init__(
        self,
        source: Candidate,
        teacher: Candidate,
        kind: str,
        text: str,
        *,
        alpha: float | None,
        stages: Stages,
        budget: Callable[[Path, str, str, int], Budget],
        cost: Callable[[Path], float],
        students: list[str],
        sizes: list[int],
        epochs: int,
        precisions: tuple = (),
    ):
        """Reads the budget.

        Args:
            source: The checkpoint to compress, with the image size that it was trained at.
            teacher: The teacher of every stage; it may be the source.
            kind: "macs", "size", "latency", "instructions" or "ram".
            text: The amount that the user asks for; a fraction is one of the source at the first image size.
            alpha: The weight of the teacher, from 0 to 1; None for the default of the loss.
            stages: What creates checkpoints.
            budget: (path, text, precision, image size) -> the budget of that checkpoint.
            cost: (path) -> what a finished checkpoint costs, at its own image size.
            students: Architectures to distill into, at the first image size.
            sizes: The image sizes to try, in pixels.
            epochs: Of distillation and of pruning.
            precisions: Those to try; default: all.

        Raises:
            UserError: The source meets the budget already.
        """
        self.source, self.teacher, self.alpha = source, teacher, alpha
        self.kind, self.stages, self.budget, self.cost = kind, stages, budget, cost
        self.students, self.sizes, self.epochs = students, sizes, epochs
        self.precisions = precisions or PRECISIONS[kind]
        self.short = max(1, epochs // TRIAL)
        precision = PRECISIONS[kind][0]
        first = budget(source.path, text, precision, sizes[0])
        self.limit = first.limit
        self.target = units.format_exact(kind, self.limit)
        self.tried: list[Candidate] = []
        self.refused: list[str] = []
        self._costs = {(source.path, precision, sizes[0]): first.start}
        now = cost(source.path) if kind == "size" else first.start
        if now <= self.limit and not precisions:
            raise UserError(f"nothing to do: {source.path} has {units.describe(kind, now)} already")

    def run(self) -> Candidate:
        """Creates the candidates.

        Returns:
            Of those that meet the budget the one with the highest top-1 on validation, on a tie the smallest.

        Raises:
            UserError: None meets the budget.
        """
        start = time.perf_counter()
        plans = self._plans(self.source)
        students = self._promising_students()
        self._finish(plans)
        for arch in students:
            if student := self._distill(arch):
                self._finish(self._plans(student))
        print(f"\nsearched for {time.perf_counter() - start:.0f} s")
        if not (meeting := self._meeting()):
            describe = functools.partial(units.describe, self.kind)
            costs = [f"{each.recipe}: {describe(each.cost)}" for each in self.tried if each.cost]
            raise UserError(f"nothing meets {describe(self.limit)}: {'; '.join([*self.refused, *costs])}")
        winner = max(meeting, key=lambda each: (each.top1, -each.path.stat().st_size))
        winner.note = "the winner"
        return winner

    def _meeting(self) -> list[Candidate]:
        """The candidates that are finished and meet the budget."""
        return [each for each in self.tried if each.cost is not None and each.cost <= self.limit]

    def _tried(self, recipe: str, path: Path) -> Candidate:
        self.tried.append(candidates.read(recipe.removeprefix(", "), path))
        return self.tried[-1]

    def _promising_students(self) -> list[str]:
        """What to distill into: of several students, those that are not worse after a short time."""
        if len(self.students) == 1 or self.short >= self.epochs:
            return self.students
        tried = ((arch, self._student(arch, self.short, self.alpha)) for arch in self.students)
        trials = {arch: student for arch, student in tried if student}
        floor, trial = _floor(trials.values()), f"a trial of {_epochs(self.short)}"
        for student in trials.values():
            student.note = f"dropped after {trial}" if student.ci95[1] < floor else f"{trial}, continued"
        return [arch for arch, student in trials.items() if student.ci95[1] >= floor]

    def _distill(self, arch: str) -> Candidate | None:
        """The student; None for one that is not possible, or worse than the best that is finished."""
        if (student := self._student(arch, self.epochs, self.alpha)) is None:
            return None
        if student.top1 >= self.teacher.top1 and (self.alpha is None or self.alpha > SMALL_ALPHA):
            student.note = f"as good as its teacher ({self.teacher.top1:.2%}): tried again"
            both = student, self._student(arch, self.epochs, SMALL_ALPHA, f", kd, alpha {SMALL_ALPHA}")
            student = max(filter(None, both), key=lambda each: each.top1)
        if student.ci95[1] >= _floor(self._meeting()):
            return student
        student.note = f"dropped after {_epochs(self.epochs)}"
        return None

    def _student(self, arch: str, epochs: int, alpha: float | None, title: str = "") -> Candidate | None:
        recipe, size = f"distill into {arch}{title}", self.sizes[0]
        with self._noting(recipe):
            return self._tried(recipe, self.stages.distill(arch, size, epochs, self.teacher.path, alpha))
        return None

    @contextlib.contextmanager
    def _noting(self, recipe: str) -> Iterator[None]:
        """Adds to `refused` why a recipe cannot be followed."""
        try:
            yield
        except UserError as error:
            self.refused.append(f"{recipe}: {error}")

    def _at(self, size: int) -> str:
        return f" at {size} pixels" if len(self.sizes) > 1 else ""

    def _plans(self, start: Candidate) -> list[Plan]:
        """How `start` can meet the budget, after trials."""
        plans = []
        for size in self.sizes:
            best = []
            for precision in self.precisions:
                if trials := self._trials(start, precision, size):
                    best.append(max(trials, key=lambda plan: plan.trial.top1))
            plans += _promising(best)
        if len(self.sizes) > 1 and self.short < self.epochs:
            plans = [self._trained(plan) for plan in plans]
        return plans

    def _trials(self, start: Candidate, precision: str, size: int) -> list[Plan]:
        """A plan for each recipe, pruned without training; one alone if nothing has to be pruned."""
        plans = []
        with self._noting(f"{start.recipe} in {precision}{self._at(size)}".strip()):
            fits = self._cost_of(start, precision, size) <= self.limit
            # the source in float32 is no candidate: it meets the budget only at an image size after the first
            as_it_is = size == start.image_size and (precision == "int8" or start is not self.source)
            if fits and as_it_is:
                return [Plan("", start, precision, size, None, start)]
            for recipe in RECIPES[: 1 if fits else None]:
                how = (
                    f"fine-tune for {precision}" if fits else f"prune for {precision} by {', '.join(recipe)}"
                )
                plan = Plan(f"{start.recipe}, {how}{self._at(size)}", start, precision, size, recipe, start)
                plan = replace(plan, trial=self._prune(plan, 0))
                plan.trial.note = "a trial without training"
                plans.append(plan)
        return plans

    def _cost_of(self, start: Candidate, precision: str, size: int) -> float:
        """What a network costs before it is pruned."""
        key = start.path, precision, size
        if key not in self._costs:
            self._costs[key] = self.budget(start.path, self.target, precision, size).start
        return self._costs[key]

    def _trained(self, plan: Plan) -> Plan:
        """A plan whose trial had some epochs; the old one for a network that needs none."""
        if plan.recipe is None:
            return plan
        plan.trial.note += ", continued"
        trial = self._prune(plan, self.short)
        trial.note = f"a trial of {_epochs(self.short)}"
        return replace(plan, trial=trial)

    def _teacher_of(self, student: Candidate) -> Candidate:
        """The teacher, or what is trained itself where it is more accurate."""
        return max(self.teacher, student, key=lambda each: each.top1)

    def _prune(self, plan: Plan, epochs: int) -> Candidate:
        settings = self.target, plan.precision, *plan.recipe, plan.image_size, epochs
        teacher = self._teacher_of(plan.start)
        return self._tried(plan.name, self.stages.prune(plan.start.path, *settings, teacher.path))

    def _finish(self, plans: list[Plan]) -> None:
        """The most promising plans of a network: pruning with all epochs, then int8."""
        for plan in _promising(plans)[:FINISHED]:
            with self._noting(f"{plan.start.recipe} in {plan.precision}{self._at(plan.image_size)}".strip()):
                ready = plan.trial
                if plan.recipe is not None and self.epochs:
                    plan.trial.note += ", continued"
                    ready = self._prune(plan, self.epochs)
                if plan.precision == "int8":
                    path = self.stages.quantize(ready.path, self._teacher_of(ready).path)
                    ready = self._tried(f"{ready.recipe}, quantize", path)
                ready.cost = self.cost(ready.path)

    def report(self, winner: Candidate, images: int) -> str:
        """Describes the search.

        Args:
            winner: The result of `run`.
            images: How many an epoch trains on.

        Returns:
            See `candidates.report`.
        """
        text = candidates.report(self.kind, self.limit, self.tried, self.refused, winner, images)
        return (
            f"{text} Of each network at most {FINISHED} candidates were finished: the best in the trials, "
            "and one that validation cannot distinguish from it."
        )


def _promising(plans: list[Plan]) -> list[Plan]:
    """The plans that validation cannot distinguish from the best, the best first."""
    floor = _floor(plan.trial for plan in plans)
    left = [plan for plan in plans if plan.trial.ci95[1] >= floor]
    return sorted(left, key=lambda plan: plan.trial.top1, reverse=True)


def _floor(others: Iterable[Candidate]) -> float:
    """The lower end of the interval of the best candidate; 0 without one."""
    return max((each.ci95[0] for each in others), default=0.0)


def _epochs(count: int) -> str:
    return f"{count} epoch{'s' * (count != 1)}"
