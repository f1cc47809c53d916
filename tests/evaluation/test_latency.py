import os

import pytest
import torch
from torch import nn

from common.evaluation import latency


class Counting(nn.Module):
    """Counts its runs, and notes what they were given."""

    def __init__(self):
        super().__init__()
        self.runs, self.batches, self.threads, self.cores = 0, set(), set(), set()

    def forward(self, images):
        self.runs += 1
        self.batches.add(tuple(images.shape))
        self.threads.add(torch.get_num_threads())
        if hasattr(os, "sched_getaffinity"):
            self.cores.add(len(os.sched_getaffinity(0)))
        return images.sum()


def test_latency_is_for_one_image_after_warm_up_with_the_given_threads(monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(latency.time, "perf_counter", lambda: 0.008 * next(clock))  # each run takes 8 ms
    model, threads = Counting(), torch.get_num_threads()
    measured = latency.measure(model, 32, batch=4, threads=1)
    assert abs(measured.p50 - 2) < 1e-6 and abs(measured.p95 - 2) < 1e-6 and measured.batch == 4
    assert model.batches == {(4, 3, 32, 32)} and model.threads == {1} and model.cores <= {1}
    assert model.runs >= latency.WARMUP_RUNS + latency.MEASURED_RUNS
    assert torch.get_num_threads() == threads


def test_p95_is_above_the_median_where_runs_differ(monkeypatch):
    monkeypatch.setattr(latency, "_times", lambda *_: [0.001] * 90 + [0.005] * 10)
    measured = latency.measure(Counting(), 8, batch=1, threads=1)
    assert (round(measured.p50, 6), round(measured.p95, 6)) == (1.0, 5.0)


def test_the_affinity_is_restored(monkeypatch):
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity")
    monkeypatch.setattr(latency, "_times", lambda *_: [0.001])
    before = os.sched_getaffinity(0)
    latency.measure(Counting(), 8, batch=1, threads=1)
    assert os.sched_getaffinity(0) == before


def test_the_load_of_other_programs_is_counted_in_cores(monkeypatch):
    busy = iter([100.0, 103.0])
    monkeypatch.setattr(latency, "_busy_seconds", lambda: next(busy))
    clock = iter([0.0, 2.0])
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(latency.time, "sleep", lambda _: None)
    assert latency.others_load() == 1.5


def test_the_conditions_warn_of_a_busy_machine():
    assert "nothing else was running" in latency.conditions(1, 1, [0.0, 0.05])
    assert "WARNING: other programs kept up to 1.2 cores busy" in latency.conditions(1, 1, [0.0, 1.2])
    assert "not known here" in latency.conditions(1, 1, [None])
    text = latency.conditions(2, 8, [0.0])
    assert latency.instruction_set() in text and "2 pinned" in text and "at batch 8" in text
