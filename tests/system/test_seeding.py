import random

import numpy as np
import torch

from common.system import seeding


def test_a_seed_repeats_the_random_numbers():
    def numbers(seed):
        seeding.seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert numbers(5) == numbers(5)
    assert all(one != other for one, other in zip(numbers(5), numbers(6), strict=True))


def test_a_derived_seed_depends_on_every_number_and_on_their_order():
    derived = [
        seeding.derive_seed(*numbers) for numbers in ((1, 2), (2, 1), (1, 3), (1, 2, 0), (2**32, 2), (12,))
    ]
    assert len(set(derived)) == len(derived) and all(0 <= seed < 2**64 for seed in derived)
    assert seeding.derive_seed(1, 2) == derived[0]


def test_fork_rng_repeats_its_numbers_and_restores_the_state():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with seeding.fork_rng(3, 4):
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), expected)
    with seeding.fork_rng(3, 4):
        assert torch.equal(torch.rand(2), first) and not torch.equal(first, expected)
