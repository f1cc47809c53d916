"""Several processes, started by torchrun, that train one model together; in a single process nothing happens.

Each process does what a single one would do, on its part of each batch. The main process, of rank 0, prints
and writes.
"""

import contextlib
import os
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from common.system.errors import UserError

TIMEOUT = timedelta(days=1)  # the others wait while one downloads or decodes; torchrun ends those that hang
# in torch's message when another process has ended
CONNECTION_ERRORS = ("gloo", "NCCL", "Connection", "Broken pipe")


class _Group:
    """The processes' common key-value store, in which the first that fails notes it; None for one process."""

    store: distributed.Store | None = None


def start() -> None:
    """Joins the process group; all processes but the main one print nothing from here on.

    Raises:
        UserError: The environment variables of torchrun are missing or incomplete.
    """
    try:
        _Group.store, rank, size = next(distributed.rendezvous("env://", timeout=TIMEOUT))
    except ValueError as error:
        raise UserError(f"several processes are started by torchrun: {error}") from None
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    shared = distributed.PrefixStore("training", _Group.store)
    distributed.init_process_group(backend, store=shared, rank=rank, world_size=size, timeout=TIMEOUT)
    if rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends


def stop() -> None:
    """Leaves the process group, once all processes have done their work."""
    if distributed.is_initialized():
        all_reduce(torch.zeros(1))
        distributed.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def local_rank() -> int:
    """The number of this process on its machine, from 0: that of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", 0))


def local_world_size() -> int:
    """How many processes there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if distributed.is_initialized() else 1


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """A context that the main process runs first, then one process of each other machine, then the rest.

    So what one creates is found by all that share its disk, and created once on each other disk.
    """
    turn = 0 if is_main_process() else 2 if local_rank() else 1
    for _ in range(turn):
        all_reduce(torch.zeros(1))  # a sum is known when all have come
    yield
    for _ in range(turn, 2):
        all_reduce(torch.zeros(1))


def broadcast(value):
    """Sends a value of the main process to all processes.

    Args:
        value: Anything that can be pickled; only that of the main process counts.

    Returns:
        The value of the main process.
    """
    if world_size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def all_gather(value) -> list:
    """Collects a value from every process.

    Args:
        value: Anything that can be pickled.

    Returns:
        The values of all processes, in the order of their ranks.
    """
    values = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(values, value)
    return values


def all_reduce(values: Tensor) -> Tensor:
    """Sums a tensor over the processes.

    Args:
        values: Of the same shape and dtype in each process.

    Returns:
        A new tensor with the sum, the same in all processes.
    """
    values = values.clone()
    if world_size() > 1:
        distributed.all_reduce(values)
    return values


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """Averages the gradients of a model over the processes.

    Args:
        model: All processes get the weights of the main one.
        device: Where the model is.

    Returns:
        The wrapped model; with a single process the model itself.
    """
    if world_size() == 1:
        return model
    # the layout of a 1 x 1 kernel's gradient has two names
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def broadcast_buffers(model: nn.Module) -> None:
    """Gives every process the main one's batch-norm statistics and observed ranges.

    Args:
        model: Changed in place.
    """
    if world_size() > 1:
        given = broadcast([buffer.cpu() for buffer in model.buffers()])
        for buffer, value in zip(model.buffers(), given, strict=True):
            buffer.copy_(value)


def is_first_to_fail() -> bool:
    """Whether this process failed first and so reports the error; also where no other is left to ask."""
    if _Group.store is None:
        return True
    mine = f"{rank()}"
    try:
        first = _Group.store.compare_set("failed", "", mine).decode() == mine
    except RuntimeError:
        return True
    if first:
        time.sleep(2)  # the store ends with the main process: before that, the others must find this entry
    return first


def is_connection_error(error: Exception) -> bool:
    """Whether an error says that another process has ended.

    Args:
        error: What was raised.

    Returns:
        True for what torch raises when it loses the connection.
    """
    lost = any(text in str(error) for text in CONNECTION_ERRORS)
    return world_size() > 1 and isinstance(error, RuntimeError) and lost
