"""How long a model takes for a picture on this machine's CPU, and what runs it."""

import contextlib
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

WARMUP_RUNS, WARMUP_SECONDS = 5, 0.3
MEASURED_RUNS, MEASURED_SECONDS = 50, 1.0  # at least as many, and for at least as long
BUSY = 0.1  # share of one core's time that others may take
INSTRUCTION_SETS = {  # the widest that matters for int8 comes first; x86, then ARM
    "amx_int8": "AMX-INT8",
    "avx512_vnni": "AVX512-VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx2": "AVX2",
    "i8mm": "NEON i8mm",
    "dot": "NEON dot-product",
    "neon": "NEON",
}


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one picture: the median and the 95th percentile over the runs, at one batch size."""

    p50: float
    p95: float
    batch: int


def measure(
    model: nn.Module, image_size: int, *, batch: int, threads: int, memory_format=torch.channels_last
) -> Latency:
    """Times `model` on `batch` random pictures at once, with `threads` threads, after warm-up."""
    images = torch.rand(batch, 3, image_size, image_size).contiguous(memory_format=memory_format)
    model.eval().to(memory_format=memory_format)
    with _pinned(threads), torch.inference_mode():
        _times(model, images, WARMUP_RUNS, WARMUP_SECONDS)
        milliseconds = np.array(_times(model, images, MEASURED_RUNS, MEASURED_SECONDS)) * 1000 / batch
    p50, p95 = np.percentile(milliseconds, (50, 95))
    return Latency(float(p50), float(p95), batch)


def _times(model: nn.Module, images: torch.Tensor, runs: int, seconds: float) -> list[float]:
    times, total = [], 0.0
    while len(times) < runs or total < seconds:
        start = time.perf_counter()
        model(images)
        times.append(time.perf_counter() - start)
        total += times[-1]
    return times


@contextlib.contextmanager
def _pinned(threads: int):
    """Lets torch use `threads` threads and, where the system can do that, this one only as many cores."""
    before = torch.get_num_threads()
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    torch.set_num_threads(threads)
    if cores:
        os.sched_setaffinity(0, sorted(cores)[:threads])
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if cores:
            os.sched_setaffinity(0, cores)


def others_load(seconds: float = 1.0) -> float | None:
    """How many cores others keep busy, over `seconds` in which this program sleeps; None where unknown."""
    before = _busy_seconds()
    start = time.perf_counter()
    time.sleep(seconds)
    after = _busy_seconds()
    return None if before is None else (after - before) / (time.perf_counter() - start)


def _busy_seconds() -> float | None:
    """The time that all cores together have worked since the start; None where there is no /proc/stat."""
    try:
        fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def instruction_set() -> str:
    """The instructions of this CPU that matter most for int8, such as "AVX512-VNNI"."""
    capabilities = torch.cpu.get_capabilities()
    known = [name for key, name in INSTRUCTION_SETS.items() if capabilities.get(key)]
    return known[0] if known else str(capabilities.get("architecture", "unknown"))


def cpu() -> str:
    """The name of this CPU and `instruction_set`."""
    return f"{torch.cpu.get_capabilities().get('cpu_name', platform.machine())}, {instruction_set()}"


def conditions(threads: int, batch: int, loads: list[float | None]) -> str:
    """What stands below a table of latencies: the CPU, its instructions, the threads, what else was running.

    `batch`: pictures given at once; `loads`: what `others_load` said before each measurement.
    """
    known = [load for load in loads if load is not None]
    if not known:
        quiet = "whether other programs were running is not known here"
    elif max(known) <= BUSY:
        quiet = "nothing else was running"
    else:
        quiet = f"WARNING: other programs kept up to {max(known):.1f} cores busy, so these times are too long"
    return (
        f"Milliseconds per picture at batch {batch} on {cpu()}, {threads} pinned "
        f"thread(s), random pictures, after warm-up; {quiet}."
    )
