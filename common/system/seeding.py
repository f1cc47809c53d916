"""Random numbers as a function of the seed, the epoch and the step.

What is drawn does not depend on what was drawn before. So an interrupted run resumes without the state of a
generator, and an image gets the same crop in whichever process it is cropped.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch (all devices).

    Args:
        seed: From 0 to 2**32 - 1.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def derive_seed(*numbers: int) -> int:
    """Combines several numbers into one seed.

    Args:
        *numbers: Integers of at least 0, such as seed, epoch and step.

    Returns:
        A seed of 64 bits; it changes when any of the numbers does.
    """
    # their count as well, since NumPy ignores zeros at the end
    return int(np.random.SeedSequence((len(numbers), *numbers)).generate_state(1, np.uint64)[0])


@contextlib.contextmanager
def fork_rng(*numbers: int) -> Iterator[None]:
    """A context in which torch's CPU generator is seeded with `derive_seed(*numbers)`.

    Its previous state is restored at the end.

    Args:
        *numbers: Integers of at least 0.
    """
    before = torch.default_generator.get_state()
    torch.default_generator.manual_seed(derive_seed(*numbers))
    try:
        yield
    finally:
        torch.default_generator.set_state(before)
