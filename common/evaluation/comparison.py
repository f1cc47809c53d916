"""Rows of a comparison: the accuracy of each file and of its parent, its size, its RAM, its latency."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from common.evaluation.latency import Latency
from common.evaluation.metrics import Score, mcnemar
from common.models import checkpoint, lineage


@dataclass(frozen=True)
class Row:
    """One file in a comparison.

    Attributes:
        path: The file.
        content: That of a checkpoint, or what the metadata of an ONNX file say: see `predictor.Classifier`.
        engine: What runs it.
        score: Its score.
        latencies: By runtime, "torch" first; those that were measured.
        threads: The threads with which they were measured.
        parent: The file that it was created from; None where it is not known.
        parent_score: The score of that file on the same images.
        ram_bytes: The peak of the activations of one image (see `memory`); None where it is not known.
    """

    path: Path
    content: dict
    engine: str
    score: Score
    latencies: dict[str, Latency]
    threads: int
    parent: Path | None = None
    parent_score: Score | None = None
    ram_bytes: int | None = None

    @property
    def delta_top1(self) -> float | None:
        """Top-1 minus that of the parent; None where it is not known."""
        return None if self.parent_score is None else self.score.top1 - self.parent_score.top1

    @property
    def mcnemar_p(self) -> float | None:
        """The p-value of that difference (`metrics.mcnemar`); None where it is not known."""
        return None if self.parent_score is None else mcnemar(self.score.correct, self.parent_score.correct)

    @property
    def file_bytes(self) -> int:
        """The size of the file."""
        return self.path.stat().st_size

    @property
    def compression(self) -> float | None:
        """How many times smaller than the file of the first ancestor; None where that is not known."""
        ancestors = [row.get("parent_bytes") for row in self.content["lineage"] if row["parent"]]
        if not ancestors:
            return 1.0 if self.path.suffix.lower() == ".pt" else None
        return ancestors[0] and ancestors[0] / self.file_bytes

    def as_dict(self) -> dict:
        """JSON values: accuracies from 0 to 1, milliseconds for one image, None for what is not known."""
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
            "bytes": self.file_bytes,
            "ram_bytes": self.ram_bytes,
            "engine": self.engine,
            "threads": self.threads,
            "latency_ms": {runtime: asdict(latency) for runtime, latency in self.latencies.items()},
        }


def find_parent(path: Path, content: dict, others: Iterable[Path]) -> Path | None:
    """Finds the file that another was created from, by its SHA-256.

    Args:
        path: The file.
        content: Its content.
        others: Where to look, besides the folder of `path` and the candidates of compress.py there.

    Returns:
        The parent, or if it is missing the nearest ancestor that is not; None where there is none.
    """
    folders, others = (path.parent, path.parent / checkpoint.CANDIDATES), list(others)
    for row in reversed(content["lineage"]):
        if row["parent"]:
            files = [*others, *(folder / row["parent"] for folder in folders)]
            for file in files:
                if file.is_file() and lineage.sha256(file) == row["parent_sha256"]:
                    return file
    return None


def pareto_front(points: list[tuple[float, float]]) -> list[int]:
    """Finds the Pareto-optimal points: no other costs no more, is no less accurate, and is better in one.

    Args:
        points: (cost, accuracy) of each.

    Returns:
        Their indices, by rising cost.
    """
    front = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        cost, accuracy = points[index]
        best_cost, best = points[front[-1]] if front else (None, -1.0)
        if accuracy > best or (cost, accuracy) == (best_cost, best):
            front.append(index)
    return front
