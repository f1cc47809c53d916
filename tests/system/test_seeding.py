import random

import numpy as np
import torch

from common.system import seeding


def test_a_seed_repeats_the_numbers():
    def drawn(seed):
        seeding.seed_everything(seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    assert drawn(5) == drawn(5)
    assert all(one != other for one, other in zip(drawn(5), drawn(6), strict=True))


def test_every_number_changes_the_mixed_seed_and_their_order_does():
    mixed = [
        seeding.derive_seed(*numbers) for numbers in ((1, 2), (2, 1), (1, 3), (1, 2, 0), (2**32, 2), (12,))
    ]
    assert len(set(mixed)) == len(mixed) and all(0 <= seed < 2**64 for seed in mixed)
    assert seeding.derive_seed(1, 2) == mixed[0]


def test_what_is_drawn_in_the_block_follows_from_the_numbers_and_leaves_no_trace():
    torch.manual_seed(0)
    wanted = torch.rand(2)
    torch.manual_seed(0)
    with seeding.fork_rng(3, 4):
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), wanted)
    with seeding.fork_rng(3, 4):
        assert torch.equal(torch.rand(2), first) and not torch.equal(first, wanted)
