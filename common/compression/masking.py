"""The check of pruning: the pruned network computes what the original does without the removed weights.

A channel that is removed in one layer, and another one in the layer that reads it, change the logits without
an error, and fine-tuning hides it. So the logits of both networks are compared before any weight changes.
"""

import copy

import torch
from torch import Tensor, nn

from common.compression import pruning
from common.compression.pruning import Group, Widths
from common.system import hardware
from common.system.errors import UserError

# of the largest logit; rounding in float32 gives up to 2e-6 in the networks of docs/ARCHITECTURES.md, and a
# wrong channel 1e-2 and more
TOLERANCE = 1e-3
NEARLY_ZERO = 1e-4  # a tensor of such values, as at the end of a new block, would hide what is before it


def verify(
    pruned: nn.Module,
    original: nn.Module,
    groups: list[Group],
    widths: Widths,
    *,
    classifier: str,
    image_size: int,
) -> dict[str, Tensor]:
    """Checks that a pruned network is the original one without the removed weights, on one image.

    Prints a note where a layer has not the width that was planned.

    Args:
        pruned: The result of `pruning.prune`; its weights are still those of the original.
        original: The network before it was pruned.
        groups: The result of `pruning.rank` for it.
        widths: As for `pruning.prune`.
        classifier: Name of the layer that yields the logits.
        image_size: Side of the image, in pixels.

    Returns:
        Of each Conv2d and Linear layer, the indices of the output channels that are left, int64 [channels].

    Raises:
        UserError: The logits differ by more than `TOLERANCE`.
    """
    kept = kept_weights(original, groups, widths, classifier=classifier, image_size=image_size)
    found = difference(pruned, original, kept, image_size)
    if not found <= TOLERANCE:
        raise UserError(
            f"torch-pruning cannot follow the channels of {type(original).__name__}: the logits differ by "
            f"{found:.1%} from those of the original network with the removed channels set to zero"
        )
    for name in (group.layers[0] for group in groups):
        width = len(kept[f"{name}.weight"])
        if widths.get(name, width) != width:
            print(f"note: the width of {name} is {width}, and not {widths[name]} as planned")
    layers = {name: each for name, each in original.named_modules() if isinstance(each, pruning.LAYERS)}
    return {
        name: kept[f"{name}.weight"].flatten(1)[:, 0] // layer.weight[0].numel()
        for name, layer in layers.items()
    }


def kept_weights(
    model: nn.Module, groups: list[Group], widths: Widths, *, classifier: str, image_size: int
) -> dict[str, Tensor]:
    """Finds out which weights `pruning.prune` keeps.

    Args:
        model: Not changed.
        groups: The result of `pruning.rank` for this model.
        widths: As for `pruning.prune`.
        classifier: Name of the layer that yields the logits.
        image_size: Side of the images, in pixels.

    Returns:
        Of each parameter of the pruned network, the places of its values in the flattened one of `model`:
        int64, on the CPU, in the shape of the pruned parameter.
    """
    numbered = copy.deepcopy(model).cpu().double()  # float32 counts up to 2^24 only
    for parameter in numbered.parameters():
        parameter.data = torch.arange(parameter.numel()).double().reshape(parameter.shape)
    numbered = pruning.prune(numbered, groups, widths, classifier=classifier, image_size=image_size)
    return {name: parameter.detach().long() for name, parameter in numbered.named_parameters()}


@torch.no_grad()
def difference(pruned: nn.Module, original: nn.Module, kept: dict[str, Tensor], image_size: int) -> float:
    """Compares a pruned network with the original one, in which the removed weights are zero.

    The image is random. Tensors of zeros have random values in both networks here.

    Args:
        pruned: Not changed.
        original: The network before it was pruned; not changed.
        kept: The result of `kept_weights`.
        image_size: Side of the image, in pixels.

    Returns:
        The largest difference of the logits over the largest logit; infinite where a weight of the pruned
        network is not that of the original.
    """
    pruned, masked = copy.deepcopy(pruned).eval(), copy.deepcopy(original).eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(1, 3, image_size, image_size, generator=generator)
    parameters = dict(pruned.named_parameters())
    for name, parameter in masked.named_parameters():
        places = kept[name].to(parameter.device)
        if not torch.equal(parameter.flatten()[places], parameters[name]):
            return float("inf")
        if parameter.abs().max() < NEARLY_ZERO:
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
            parameters[name].copy_(parameter.flatten()[places])
        removed = torch.ones(parameter.numel(), dtype=torch.bool, device=parameter.device)
        removed[places.flatten()] = False
        parameter.masked_fill_(removed.view_as(parameter), 0.0)
    _normalize_kept(masked, pruned, kept)
    with hardware.full_float32():
        expected, actual = (network(image.to(places.device, parameter.dtype)) for network in (masked, pruned))
    largest = expected.abs().max().clamp(min=torch.finfo(expected.dtype).tiny)  # no division by 0
    return float((actual - expected).abs().max() / largest)


def _normalize_kept(masked: nn.Module, pruned: nn.Module, kept: dict[str, Tensor]) -> None:
    """Lets layers with a mean over the channels, such as LayerNorm, take it over those that are kept."""
    for name, module in list(masked.named_modules()):
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.LayerNorm | nn.GroupNorm) or hasattr(module, "channel_dim"):
            # timm's GlobalResponseNorm has the attribute; of the 2d forms of LayerNorm channels are axis 1
            first = isinstance(module, nn.GroupNorm) or "2d" in type(module).__name__
            axis = getattr(module, "channel_dim", 1 if first else -1)
            if weight is not None and len(places := kept[f"{name}.weight"].flatten()) < len(weight):
                channels = _OfChannels(pruned.get_submodule(name), places.to(weight.device), axis)
                masked.set_submodule(name, channels)


class _OfChannels(nn.Module):
    """A layer that reads some channels only; the others are zero."""

    def __init__(self, layer: nn.Module, channels: Tensor, axis: int):
        super().__init__()
        self.layer, self.channels, self.axis = layer, channels, axis

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x.index_select(self.axis, self.channels))
        return torch.zeros_like(x).index_copy(self.axis, self.channels, y)
