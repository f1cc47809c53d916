"""Several processes, started by torchrun, that train one model together; in a single one nothing happens.

Every process does what a single one would do, on its share of each batch. The first one, of rank 0, prints
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

from common.errors import UserError

PATIENCE = timedelta(days=1)  # the others wait while one downloads or decodes; torchrun ends those that hang
LOST = ("gloo", "NCCL", "Connection", "Broken pipe")  # in what torch says when another process is gone


class _Group:
    """The processes' common memory, through which the first that fails tells the others; None for one."""

    store: distributed.Store | None = None


def start() -> None:
    """Meets the other processes; all but the first are silent from here on.

    Raises UserError where the environment does not say how many they are and where they meet.
    """
    try:
        _Group.store, rank, size = next(distributed.rendezvous("env://", timeout=PATIENCE))
    except ValueError as error:
        raise UserError(f"several processes are started by torchrun: {error}") from None
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    shared = distributed.PrefixStore("training", _Group.store)
    distributed.init_process_group(backend, store=shared, rank=rank, world_size=size, timeout=PATIENCE)
    if rank:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends


def stop() -> None:
    """Takes leave of the other processes, when all have done their work."""
    if distributed.is_initialized():
        total(torch.zeros(1))
        distributed.destroy_process_group()


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return rank() == 0


def local_rank() -> int:
    """This process's number on its machine, from 0: that of its accelerator."""
    return int(os.environ.get("LOCAL_RANK", 0))


@contextlib.contextmanager
def one_first() -> Iterator[None]:
    """The block runs in one process of each machine, then in its others, which find what the first made."""
    # a sum is known when all have come; a broadcast, when the first process has
    if local_rank():
        total(torch.zeros(1))
    yield
    if not local_rank():
        total(torch.zeros(1))


def from_first(value):
    """The first process's `value`, in all of them."""
    if size() == 1:
        return value
    values = [value]
    distributed.broadcast_object_list(values, device=torch.device("cpu"))
    return values[0]


def gathered(value) -> list:
    """The `value` of every process, in the order of their ranks, in all of them."""
    values = [value] * size()
    if size() > 1:
        distributed.all_gather_object(values, value)
    return values


def total(values: Tensor) -> Tensor:
    """The sum of `values` over the processes, in all of them."""
    values = values.clone()
    if size() > 1:
        distributed.all_reduce(values)
    return values


def in_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with gradients that are averaged over the processes, and the first one's weights in all."""
    if size() == 1:
        return model
    # the layout of a 1 x 1 kernel's gradient has two names
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def share_buffers(model: nn.Module) -> None:
    """Gives every process the first one's batch-norm statistics and ranges, seen on its share of pictures."""
    if size() > 1:
        given = from_first([buffer.cpu() for buffer in model.buffers()])
        for buffer, value in zip(model.buffers(), given, strict=True):
            buffer.copy_(value)


def fails_first() -> bool:
    """Whether this process is the first to fail, and is to say why; also where nobody is left to ask."""
    if _Group.store is None:
        return True
    mine = f"{rank()}"
    try:
        first = _Group.store.compare_set("failed", "", mine).decode() == mine
    except RuntimeError:
        return True
    if first:
        time.sleep(2)  # the store ends with the first process: before that, the others are to find this there
    return first


def has_lost_another(error: Exception) -> bool:
    """Whether `error` is what torch raises when another process has ended."""
    return size() > 1 and isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)
