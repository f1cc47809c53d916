"""Scores and rows of a comparison, for the tests of tables, files and plots."""

from pathlib import Path

import torch

from common.evaluation.comparison import Row
from common.evaluation.latency import Latency
from common.evaluation.metrics import Score


def score_of(*correct: bool) -> Score:
    """The score of a model with these correct and incorrect predictions; the label is always class 0."""
    labels = torch.zeros(len(correct), dtype=torch.long)
    return Score(labels, 1 - torch.tensor(correct).long(), len(correct), 1.0)


def row_of(path: Path, lineage=(), score: Score | None = None, **options) -> Row:
    """The row of a file with this lineage and, by default, one of two predictions correct."""
    content = {"name": "kd_x", "stage": "kd", "arch": "x", "image_size": 32, "lineage": list(lineage)}
    content["metrics"] = {"params": 2_000_000, "macs": 3_000_000}
    latencies = {"torch": Latency(4.0, 5.0, 1), "ONNX Runtime": Latency(2.0, 3.0, 1)}
    return Row(path, content, "fp32 torch", score or score_of(True, False), latencies, 1, **options)
