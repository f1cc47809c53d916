"""How long a model takes for one image on the CPU of this machine."""

import contextlib
import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from common.system import hardware

WARMUP_RUNS, WARMUP_SECONDS = 5, 0.3
MEASURED_RUNS, MEASURED_SECONDS = 50, 1.0  # at least as many, and for at least as long
BUSY = 0.1  # fraction of one core's time that other programs may take
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
    """Milliseconds for one image over several runs.

    Attributes:
        p50: The median.
        p95: The 95th percentile.
        batch: Images in a run.
    """

    p50: float
    p95: float
    batch: int


def measure(
    model: nn.Module, image_size: int, *, batch: int, threads: int, memory_format=torch.channels_last
) -> Latency:
    """Times a model on random images, after warm-up.

    Args:
        model: Float or int8, on the CPU; put into eval mode.
        image_size: Side of the images, in pixels.
        batch: Images in a run.
        threads: Threads of torch; the process is pinned to as many cores.
        memory_format: That of model and images.

    Returns:
        Milliseconds for one image.
    """
    images = _images(batch, image_size, memory_format)
    hardware.set_memory_format(model.eval(), memory_format)
    with _pinned(threads), torch.inference_mode():
        _times(model, images, WARMUP_RUNS, WARMUP_SECONDS)
        milliseconds = np.array(_times(model, images, MEASURED_RUNS, MEASURED_SECONDS)) * 1000 / batch
    p50, p95 = np.percentile(milliseconds, (50, 95))
    return Latency(float(p50), float(p95), batch)


def _images(batch: int, image_size: int, memory_format) -> torch.Tensor:
    return torch.rand(batch, 3, image_size, image_size).contiguous(memory_format=memory_format)


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
    """Lets torch use `threads` threads and, where the system supports it, pins this one to as many cores."""
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
    """Measures how busy other programs keep the machine, while this one sleeps.

    Args:
        seconds: How long.

    Returns:
        Busy cores; None where that is not known.
    """
    before = _busy_seconds()
    start = time.perf_counter()
    time.sleep(seconds)
    after = _busy_seconds()
    return None if before is None else (after - before) / (time.perf_counter() - start)


def _busy_seconds() -> float | None:
    """The busy time of all cores together since the system started; None without a /proc/stat."""
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
    """Describes how latencies were measured, for the note below a table.

    Args:
        threads: Threads of each measurement.
        batch: Images in a run.
        loads: The result of `others_load` before each measurement.

    Returns:
        The CPU, its instructions, the threads, and whether other programs were running.
    """
    known = [load for load in loads if load is not None]
    if not known:
        quiet = "whether other programs were running is not known here"
    elif max(known) <= BUSY:
        quiet = "nothing else was running"
    else:
        quiet = f"WARNING: other programs kept up to {max(known):.1f} cores busy, so these times are too long"
    return (
        f"Latency: median milliseconds per image at batch {batch} on {cpu()}, {threads} pinned "
        f"thread(s), random images, after warm-up; {quiet}."
    )
