"""What the machine offers a training run: its cores, its memory, and the precision that is fast on it."""

import contextlib
import ctypes
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

CGROUP = Path("/sys/fs/cgroup")
ONEDNN_BLOCK = 16  # input channels that oneDNN computes at once, at most
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def set_up(device: torch.device) -> None:
    """Lets torch use the cores that this process may use, and keeps freed memory for the next step.

    A thread count that the user has set (OMP_NUM_THREADS) is respected. On CUDA, float32 layers compute in
    TF32.

    Args:
        device: Where the training runs.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores())
    if sys.platform == "linux":
        _keep_freed_memory()
    if device.type == "cuda":
        if device.index is not None:
            torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")


def summary(device: torch.device, precision: torch.dtype) -> str:
    """Describes what a training run computes with.

    Args:
        device: Where it runs.
        precision: That of its layers.

    Returns:
        Such as "cpu, 2 threads, bfloat16".
    """
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if device.type == "cpu" else ""
    return f"{device}{threads}, {str(precision).removeprefix('torch.')}"


def cores() -> int:
    """How many cores this process may use.

    Returns:
        Those of its CPU affinity, or fewer where its container has a quota.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _quota(CGROUP))))


def _quota(root: Path) -> float:
    """The CPU time per time that the control group below `root` may take, infinite without a limit."""
    for quota_file, period_file in (
        ("cpu.max", "cpu.max"),
        ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"),
    ):
        try:
            quota = (root / quota_file).read_text().split()[0]
            period = (root / period_file).read_text().split()[-1]
        except OSError:
            continue
        return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    return math.inf


def _keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks.

    By default it returns them, and the system clears each page again for the next step.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # other libraries have none
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """A context in which float32 layers compute in float32 on CUDA too, not in TF32."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = tf32


def copy_to(values: Tensor, device: torch.device) -> Tensor:
    """Copies a tensor to a device, asynchronously only to an accelerator.

    A non-blocking copy to the CPU returns before the values have arrived: whatever reads them next without
    waiting for the accelerator reads memory that is not filled yet.

    Args:
        values: On any device.
        device: Where they are needed.

    Returns:
        The tensor on `device`.
    """
    return values.to(device, non_blocking=device.type != "cpu")


def pick_precision(choice: str, device: torch.device, model: nn.Module) -> torch.dtype:
    """Chooses the precision in which the layers of a model compute.

    Args:
        choice: "bf16", "fp32", or "auto": bfloat16 where the device has instructions for it, but not on a CPU
            for a network with depthwise convolutions, which are slower in it (docs/PERFORMANCE.md).
        device: Where the model runs.
        model: The model.

    Returns:
        torch.bfloat16 (under autocast) or torch.float32.
    """
    if choice != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[choice]
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        fast = capabilities.get("amx_bf16") or capabilities.get("avx512_bf16")
        fast = fast and not any(map(_is_depthwise, model.modules()))
    return torch.bfloat16 if fast else torch.float32


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels


def memory_format(model: nn.Module, device: torch.device) -> torch.memory_format:
    """Chooses the memory format of images and weights.

    On a CPU, oneDNN 3.12 (of torch 2.14.1) corrupts memory in the gradients of some layers in channels_last.

    Args:
        model: A float model.
        device: Where it runs.

    Returns:
        torch.channels_last, which is faster, or torch.contiguous_format for networks with such a layer, or
        with weights of five dimensions, which have no such format.
    """
    if _has_volumes(model):
        return torch.contiguous_format
    if device.type == "cpu" and any(map(_has_wrong_gradient, model.modules())):
        return torch.contiguous_format
    return torch.channels_last


def set_memory_format(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Gives the weights of a model a memory format; where some have five dimensions, all stay as they are.

    Args:
        model: Float or int8; changed in place.
        memory_format: The format.
    """
    if not _has_volumes(model):
        model.to(memory_format=memory_format)


def _has_volumes(model: nn.Module) -> bool:
    return any(parameter.ndim > 4 for parameter in model.parameters())


def _has_wrong_gradient(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1) != module.stride
        and module.in_channels < ONEDNN_BLOCK
    )


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """A context in which layers compute in `precision`; the weights stay in float32.

    Args:
        device: Where the model runs.
        precision: torch.bfloat16, or torch.float32 for a context without effect.

    Returns:
        The context manager.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == torch.bfloat16)
