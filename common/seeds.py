"""Random numbers as a function of where a run is: what is drawn does not depend on what was drawn before.

So an interrupted run needs no generator's state to go on, and pictures are cropped alike whichever process
crops them.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def mixed(*numbers: int) -> int:
    """One seed of 64 bits for several whole numbers of at least 0, each of which changes all of it."""
    # their count as well, since NumPy takes zeros at the end for nothing
    return int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def drawing(*numbers: int) -> Iterator[None]:
    """In the block torch draws on the CPU what `numbers` say; after it, it goes on as before."""
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(mixed(*numbers))
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
