"""The batch-norm statistics of a network whose layers have changed."""

import torch
from torch import nn

from common.data.loaders import DeviceLoader
from common.system import distributed
from common.system.terminal import progress_bar


def recalibrate(model: nn.Module, loader: DeviceLoader, device: torch.device) -> None:
    """Computes the mean and the variance of each batch norm anew, on one epoch of images.

    Args:
        model: Moved to `device`, and changed in place.
        loader: Training batches.
        device: Where it computes.
    """
    batches = progress_bar(loader, desc="batch norm", unit="batch")
    torch.optim.swa_utils.update_bn(batches, model.to(device), device)
    distributed.broadcast_buffers(model)
