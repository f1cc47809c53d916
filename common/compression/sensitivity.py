"""What each group of layers contributes to the accuracy of a network."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from common.compression import pruning
from common.system.terminal import progress_bar

FRACTIONS = (0.125, 0.25, 0.5, 0.75, 0.875)  # of a layer's channels that are removed


def measure(
    model: nn.Module,
    groups: list[pruning.Group],
    score: Callable[[nn.Module], float],
    *,
    classifier: str,
    image_size: int,
) -> Tensor:
    """Measures what each group contributes: one is pruned at a time, without training.

    Args:
        model: Not changed.
        groups: The result of `pruning.rank` for this model.
        score: What is measured of a pruned model, such as its accuracy.
        classifier: Name of the layer that yields the logits.
        image_size: Side of the images, in pixels.

    Returns:
        The scores with a fraction of `FRACTIONS` of the channels removed: float32 [groups, fractions], nan
        where rounding removes none.
    """
    table = torch.full((len(groups), len(FRACTIONS)), math.nan)
    for row, group in enumerate(progress_bar(groups, desc="sensitivity", unit="group")):
        channels = len(group.scores)
        for column, fraction in enumerate(FRACTIONS):
            kept = pruning.rounded(channels * (1 - fraction), group.multiple)
            if kept < channels:
                widths = dict.fromkeys(group.layers, kept)
                pruned = pruning.prune(model, groups, widths, classifier=classifier, image_size=image_size)
                table[row, column] = score(pruned)
    return table
