"""Reparameterization: the branches of a block become one convolution that computes the same.

Source: Ding et al., "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021, section 3.3. Convolutions
and batch norms are linear: the kernels of parallel ones can be added.
"""

import copy

import torch
from torch import nn

from common.system.errors import UserError

FUSING = ("fuse", "reparameterize", "switch_to_deploy")  # the methods of such blocks


def fuse_branches(model: nn.Module) -> nn.Module:
    """Fuses the branches of each block, such as those of RepVGG, MobileOne and RepGhost.

    The branches are what training needs; pruning sees them too. Quantization and export come after.

    Args:
        model: A float model; not changed.

    Returns:
        A fused copy, whose logits differ only by rounding; the model itself where there are no branches.

    Raises:
        UserError: timm cannot fuse them.
    """
    if not any(hasattr(module, name) for module in model.modules() for name in FUSING):
        return model
    from timm.utils import reparameterize_model  # optional; only its models have such blocks

    fused = copy.deepcopy(model)
    for block in fused.modules():
        if hasattr(block, "reparameterize") and hasattr(block, "groups"):  # as they are after pruning
            layers = [layer for layer in block.modules() if isinstance(layer, nn.Conv2d)]
            spatial = [layer for layer in layers if layer.kernel_size != (1, 1)]
            block.groups = next((layer.groups for layer in spatial + layers), block.groups)
    try:
        with torch.no_grad():
            return reparameterize_model(fused, inplace=True)
    except (RuntimeError, ArithmeticError, AttributeError, TypeError, IndexError, AssertionError) as error:
        raise UserError(f"the branches of {type(model).__name__} cannot be fused: {error}") from None
