"""The ways to a budget: the stages' own scripts, run one after the other on the same checkpoint.

What takes pruning is pruned in several ways for a few epochs, and only the most promising are trained
for all: a round of successive halving (Jamieson, Talwalkar, AISTATS 2016).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import train_pruning
import train_quantization
import train_student
from common import amounts, budgets, checkpoint, cli, latency, options, quantization, report
from common.errors import UserError

RECIPES = (("lamp", "global"), ("taylor", "isomorphic"))  # importance and scope
TRIAL = 8  # a recipe is tried for this part of the epochs


@dataclass
class Candidate:
    """A checkpoint on the way to the budget: how it was made, its file, its top-1 on validation with Wilson's
    interval (from 0 to 1), and what it costs in the budget's terms, if it is there.
    """

    way: str
    path: Path
    top1: float
    ci95: tuple[float, float]
    cost: float | None = None
    remark: str = ""


class Compression:
    """The stages with the options of `args`, on the way from `source` to the budget.

    Every checkpoint goes into the folder candidates, scored on validation, and is not made a second time.
    `tried` has all of them, `refused` why others could not be made.
    """

    def __init__(self, args, source: Candidate):
        self.args, self.source = args, source
        self.teacher = checkpoint.find(args.teacher, args.output_dir) if args.teacher else source.path
        self.kind = next(kind for kind in options.TARGETS if getattr(args, f"target_{kind}"))
        self.limit = self._budget(source, getattr(args, f"target_{self.kind}"), "fp32").limit
        self.target = amounts.exact(self.kind, self.limit)
        self.tried: list[Candidate] = []
        self.refused: list[str] = []

    def run(self) -> Candidate:
        """The candidate with the highest top-1 on validation of those that meet the budget, on a tie the
        smallest. Raises UserError where none does.
        """
        for start in (self.source, *self._students()):
            for way in self._promising(start):
                with self._noting(start, way[1]):
                    self._finish(*way)
        meeting = [each for each in self.tried if each.cost is not None and each.cost <= self.limit]
        if not meeting:
            reasons = [
                *self.refused,
                *(f"{each.way}: {self.shown(each.cost)}" for each in self.tried if each.cost),
            ]
            raise UserError(f"nothing meets {self.shown(self.limit)}: {'; '.join(reasons)}")
        winner = max(meeting, key=lambda each: (each.top1, -each.path.stat().st_size))
        winner.remark = "the winner"
        return winner

    def _students(self) -> Iterator[Candidate]:
        """A student of each architecture asked for."""
        args = self.args
        for arch in args.student:
            yield self._stage(
                train_student, f"distil into {arch}", "--teacher", self.teacher, "--student", arch,
                "--pretrained", args.pretrained, "--epochs", args.epochs, "--lr", args.lr,
            )  # fmt: skip

    @contextlib.contextmanager
    def _noting(self, start: Candidate, precision: str) -> Iterator[None]:
        """Notes in `refused` why a way from `start` goes no further."""
        try:
            yield
        except UserError as error:
            self.refused.append(f"{start.way} in {precision}: {error}".strip())

    def _promising(self, start: Candidate) -> list[tuple]:
        """(what was tried, precision, arguments of the pruning) of the best way in each precision; one that
        validation can tell from the best, by their intervals, is left out.
        """
        best = []
        for precision in ("fp32",) if self.kind == "macs" else ("fp32", "int8"):  # MACs are as many in int8
            ways = []
            with self._noting(start, precision):
                budget = self._budget(start, self.target, precision)
                if budget.cost(checkpoint.rebuild(self._content(start))) <= self.limit:
                    ways.append((start, precision, None))
                for importance, scope in () if ways else RECIPES:
                    words = self._pruning(start, precision, importance, scope)
                    way = f"{start.way}, prune for {precision} by {importance}, {scope}"
                    epochs = self.args.epochs // TRIAL
                    trial = self._stage(train_pruning, way, *words, "--epochs", epochs)
                    trial.remark = f"a trial of {epochs} epochs"
                    ways.append((trial, precision, words))
            if ways:
                best.append(max(ways, key=lambda way: way[0].top1))
        floor = max((way[0].ci95[0] for way in best), default=0.0)
        return [way for way in best if way[0].ci95[1] >= floor]

    def _pruning(self, start: Candidate, precision: str, importance: str, scope: str) -> list:
        args = self.args
        return [
            "--weights", start.path, "--teacher", self.teacher, f"--target-{self.kind}", self.target,
            "--target-precision", precision, "--target-device", args.target_device,
            "--threads", args.threads, "--importance", importance, "--scope", scope, "--lr", args.lr,
        ]  # fmt: skip

    def _finish(self, trial: Candidate, precision: str, words: list | None) -> None:
        """Takes a way to its end: all epochs of the pruning, then int8."""
        ready, args = trial, self.args
        if words is not None:
            trial.remark += ", went on"
            ready = self._stage(train_pruning, trial.way, *words, "--epochs", args.epochs)
        if precision == "int8":
            ready = self._stage(
                train_quantization, f"{ready.way}, quantize", "--weights", ready.path, "--teacher",
                self.teacher, "--epochs", args.quantization_epochs, "--target-device", args.target_device,
            )  # fmt: skip
        ready.cost = self.cost(ready)

    def _stage(self, script, way: str, *words) -> Candidate:
        """What one of the scripts makes, or made before."""
        folder = Path(self.args.output_dir) / checkpoint.CANDIDATES
        words = [*map(str, words), *self.args.shared]
        words += ["--output-dir", str(folder), "--score", "val", "--resume"]
        print(f"\n$ {cli.joined(['python', Path(script.__file__).name, *words])}", flush=True)
        path = script.main(script.parse_args(words))
        figures = checkpoint.load(path)["metrics"]
        self.tried.append(Candidate(way.removeprefix(", "), path, figures["top1"], figures["ci95"]))
        return self.tried[-1]

    def _content(self, candidate: Candidate) -> dict:
        content = checkpoint.load(candidate.path)
        return content | {"image_size": self.args.image_size or content["image_size"]}

    def _budget(self, start: Candidate, text: str, precision: str) -> budgets.Budget:
        content = self._content(start)
        row = checkpoint.lineage_row(
            content,
            start.path,
            "pruned",
            options=vars(self.args) | {"model_name": None},
            machine="",
            split="",
        )
        return budgets.read(
            self.kind, text, checkpoint.rebuild(content), content, row,
            precision=precision, backend=quantization.BACKENDS[self.args.target_device],
            threads=self.args.threads, parent_bytes=start.path.stat().st_size,
        )  # fmt: skip

    def cost(self, candidate: Candidate) -> float:
        """What the candidate itself costs, not what was foreseen."""
        content = self._content(candidate)
        if self.kind == "latency":
            model = checkpoint.rebuild(content)
            return latency.measure(model, content["image_size"], batch=1, threads=self.args.threads).p50
        return candidate.path.stat().st_size if self.kind == "size" else content["metrics"]["macs"]

    def shown(self, cost: float) -> str:
        """`cost` with its unit."""
        return amounts.SHOWN[self.kind](cost)

    def report(self, winner: Candidate) -> str:
        """A Markdown table of all that was tried, and why `winner` won."""
        rows = [("way", "file", "top-1 on validation", "95 %", "cost", "")]
        for each in self.tried:
            interval = report.interval(each.ci95)
            cost = "-" if each.cost is None else self.shown(each.cost)
            rows.append((each.way, each.path.name, f"{each.top1:.2%}", interval, cost, each.remark))
        rows += [(text, "-", "-", "-", "-", "not possible") for text in self.refused]
        others = [
            each.top1 for each in self.tried if each is not winner and each.cost and each.cost <= self.limit
        ]
        ahead = f", {100 * (winner.top1 - max(others)):.2f} points ahead of the next" if others else ""
        why = (
            f"{1 + len(others)} of them went on to the end and meet the budget, {self.shown(self.limit)}. "
            f"The winner has the highest top-1 on validation, {winner.top1:.2%}{ahead}."
        )
        return f"{report.markdown(rows, left=2)}\n\n{why}"
