"""Runs the stages in processes of their own, which can be killed without a test dying with them.

The processes are forked from a server that has imported torch and has not used it, so they start fast.
"""

import contextlib
import importlib
import json
import math
import multiprocessing
import os
import random
import socket
import sys
from pathlib import Path

from torchvision.models._api import BUILTIN_MODELS

from common.cli import launch
from common.evaluation import int8_agreement
from common.training import loop, resume
from tests import shallow

CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
CONTEXT.set_forkserver_preload([__name__, "torch_pruning", "common.stage"])


def run(script: str, arguments: list, log: Path, environment: dict[str, str]) -> None:
    """Runs `script` with `arguments` and appends its output to `log`: for a process of its own."""
    os.environ.update(environment)
    sys.argv = [f"{script}.py", *map(str, arguments)]
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    BUILTIN_MODELS.update(shallow.NETWORKS)
    # a state after every step, and not a minute apart
    resume.MIN_INTERVAL, resume.MAX_TIME_FRACTION, loop.CHECK_EVERY = 0, math.inf, 1
    int8_agreement.MIN_AGREEMENT = 0.0  # untrained networks have logits so close that int8 swaps some
    _note_steps(log.with_suffix(f".steps{environment.get('RANK', '')}"))
    module = importlib.import_module(script)
    launch.run(module.main, module.parse_args)


def _note_steps(path: Path) -> None:
    """Lets the training write the number of images of each step, [here, in all processes], a line each."""
    step = loop._Training._step

    def noting(self, images, labels, lr, count):
        with path.open("a") as file:
            print(json.dumps([len(labels), count]), file=file)
        return step(self, images, labels, lr, count)

    loop._Training._step = noting


def start(script: str, arguments: list, log: Path, environment: dict[str, str] | None = None):
    """A process that runs `script` with `arguments` and appends its output to `log`."""
    process = CONTEXT.Process(target=run, args=(script, arguments, log, environment or {}))
    process.start()
    return process


def start_two(script: str, arguments: list, log: Path) -> list:
    """Two processes that train together, as torchrun would start them."""
    return [start(script, arguments, log, meeting) for meeting in meetings(2)]


def meetings(size: int) -> list[dict[str, str]]:
    """The environment variables with which `size` processes on this machine find each other."""
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(size),
        "OMP_NUM_THREADS": "1",
    }
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def run_with_kills(
    script: str,
    arguments: list,
    log: Path,
    kills: int = 0,
    longest: float = 0,
    rng: random.Random | None = None,
) -> int:
    """Runs `script` with `--resume` until it ends by itself, and returns how often it was killed.

    It is killed at most `kills` times, each at a random moment from 0 to `longest` seconds after its start.
    """
    killed = 0
    while True:
        process = start(script, [*arguments, "--resume"], log)
        process.join(rng.uniform(0, longest) if killed < kills else None)
        if not process.is_alive():
            assert process.exitcode == 0, log.read_text()
            return killed
        process.kill()
        process.join()
        killed += 1
