"""Rows that compare files: accuracy beside their parents', size, latency."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from common import checkpoint
from common.latency import Latency
from common.metrics import Score, mcnemar


@dataclass(frozen=True)
class Row:
    """What is known of one file: its `content` (a checkpoint's or an ONNX file's, see `Classifier`), what it
    scored and what its parent scored on the same pictures, and how long it takes with `threads` threads.
    """

    path: Path
    content: dict
    engine: str
    score: Score
    latency: Latency
    threads: int
    parent: Path | None = None
    parent_score: Score | None = None

    @property
    def delta_top1(self) -> float | None:
        """Top-1 minus that of the parent."""
        return None if self.parent_score is None else self.score.top1 - self.parent_score.top1

    @property
    def mcnemar_p(self) -> float | None:
        """The p-value of that difference, see `metrics.mcnemar`."""
        return None if self.parent_score is None else mcnemar(self.score.correct, self.parent_score.correct)

    @property
    def bytes(self) -> int:
        return self.path.stat().st_size

    @property
    def compression(self) -> float | None:
        """How many times smaller than the first ancestor's file; None where that is not known."""
        ancestors = [row.get("parent_bytes") for row in self.content["lineage"] if row["parent"]]
        if not ancestors:
            return None if self.path.suffix == ".onnx" else 1.0
        return ancestors[0] and ancestors[0] / self.bytes

    def as_dict(self) -> dict:
        """JSON-like; accuracies from 0 to 1, milliseconds for one picture, None for what is not known."""
        return {
            "name": self.content["name"],
            "path": str(self.path),
            "stage": self.content["stage"],
            "arch": self.content["arch"],
            "image_size": self.content["image_size"],
            "n": self.score.n,
            "top1": self.score.top1,
            "top5": self.score.top5,
            "ci95": list(self.score.ci95),
            "parent": self.parent and self.parent.name,
            "delta_top1": self.delta_top1,
            "mcnemar_p": self.mcnemar_p,
            "params": self.content["metrics"]["params"],
            "macs": self.content["metrics"]["macs"],
            "bytes": self.bytes,
            "latency_ms": {
                "p50": self.latency.p50,
                "p95": self.latency.p95,
                "batch": self.latency.batch,
                "threads": self.threads,
                "engine": self.engine,
            },
        }


def find_parent(path: Path, content: dict, others: Iterable[Path]) -> Path | None:
    """The file that `path` was made from, known by its SHA-256: one of `others`, a file beside `path`, or one
    that compress.py has tried.
    """
    made = content["lineage"][-1] if content["lineage"] else {"parent": None}
    folders = (path.parent, path.parent / checkpoint.CANDIDATES)
    places = [*others, *(folder / made["parent"] for folder in folders)] if made["parent"] else []
    return next((p for p in places if p.is_file() and checkpoint.sha256(p) == made["parent_sha256"]), None)


def pareto_front(points: list[tuple[float, float]]) -> list[int]:
    """The indices of the (cost, accuracy) points to which no other is preferable, by rising cost.

    One is preferable that costs no more and is no less accurate, and in one of the two is better.
    """
    front = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        cost, accuracy = points[index]
        best_cost, best = points[front[-1]] if front else (None, -1.0)
        if accuracy > best or (cost, accuracy) == (best_cost, best):
            front.append(index)
    return front
