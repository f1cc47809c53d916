"""Classification models of timm, which is optional: one with layers of torch.nn, and its weights.

An architecture of timm is written timm/NAME, with NAME as in `timm.list_models()`.
"""

import importlib.metadata
import importlib.util

import torch
from torch import nn
from torchvision.ops import StochasticDepth

from common.system.errors import UserError, did_you_mean, first_line

PREFIX = "timm/"


def check(arch: str) -> None:
    """Checks the name of an architecture.

    Args:
        arch: The name, with the prefix.

    Raises:
        UserError: timm is not installed, or has no such model or weights; the nearest name is suggested.
    """
    if importlib.util.find_spec("timm") is None:
        raise UserError(f"{arch} is a model of timm, which is not installed: pip install timm")
    import timm  # optional

    name = arch.removeprefix(PREFIX)
    if not timm.is_model(name):
        raise UserError(f"timm has no model {name!r}{did_you_mean(arch, suggestions())}")
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UserError(f"timm has no model {name!r}: {error}") from None


def suggestions() -> list[str]:
    """The names of all architectures, with the prefix; none where timm is not installed."""
    if importlib.util.find_spec("timm") is None:
        return []
    import timm  # optional

    return [PREFIX + name for name in timm.list_models()]


def version(arch: str) -> dict[str, str]:
    """The version of timm that an architecture is built with.

    Args:
        arch: Any architecture.

    Returns:
        {"timm": its version}; nothing for an architecture of torchvision.
    """
    return {"timm": importlib.metadata.version("timm")} if arch.startswith(PREFIX) else {}


def build(arch: str, num_classes: int) -> nn.Module:
    """Builds a model with its initial weights.

    Args:
        arch: Its name, with the prefix.
        num_classes: Number of outputs.

    Returns:
        The model, float32, on the CPU, in training mode.
    """
    import timm  # optional

    return timm.create_model(arch.removeprefix(PREFIX), num_classes=num_classes)


def hub_state(arch: str) -> dict[str, torch.Tensor]:
    """Downloads the default weights of a model.

    Args:
        arch: Its name, with the prefix.

    Returns:
        The state dict, of the model before `to_torch_layers`.

    Raises:
        UserError: timm has no weights for it, or they cannot be downloaded.
    """
    import timm  # optional

    name = arch.removeprefix(PREFIX)
    config = timm.get_pretrained_cfg(name)
    place = f"https://huggingface.co/{config.hf_hub_id}" if config.hf_hub_id else config.url
    if not place:
        raise UserError(f"timm has no weights for {arch}: train from scratch with --pretrained none")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    # of the hub's own kinds: no network, no file
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"cannot download the weights of {arch} from {place} ({first_line(error)}): download the file "
            "and give --pretrained its path, or train from scratch with --pretrained none"
        ) from None


def input_config(arch: str) -> dict:
    """What a model was trained on.

    Args:
        arch: Its name, with the prefix.

    Returns:
        Its `image_size` (pixels), `mean` and `std` (of each channel, for pixels from 0 to 1), and `crop_pct`
        (the crop's fraction of the shorter side in evaluation).
    """
    import timm  # optional

    config = timm.get_pretrained_cfg(arch.removeprefix(PREFIX))
    return {
        "image_size": config.input_size[-1],
        "mean": list(config.mean),
        "std": list(config.std),
        "crop_pct": min(float(config.crop_pct), 1.0),  # of three it is above 1: timm adds a border there
    }


def to_torch_layers(model: nn.Module) -> None:
    """Replaces layers of timm by those of torch.nn that compute the same: pruning and quantization know them.

    A BatchNormAct2d becomes a BatchNorm2d and the activation after it: traced by FX, it would keep the
    statistics of the batch in int8. A Linear becomes one of torch.nn, a DropPath a StochasticDepth.

    Args:
        model: Changed in place; its tensors are the same, and its outputs stay equal to the bit.
    """
    from timm import layers  # optional

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, layers.BatchNormAct2d):
                norm = nn.BatchNorm2d(child.num_features, child.eps, child.momentum, child.affine)
                _share(norm, child)
                after = [each for each in (child.drop, child.act) if not isinstance(each, nn.Identity)]
                setattr(module, name, nn.Sequential(norm, *after) if after else norm)
            elif type(child) is layers.Linear:
                linear = nn.Linear(child.in_features, child.out_features, child.bias is not None)
                _share(linear, child)
                setattr(module, name, linear)
            elif isinstance(child, layers.DropPath):
                setattr(module, name, StochasticDepth(child.drop_prob or 0.0, "row"))
    model.train(model.training)  # the new layers too


def _share(new: nn.Module, old: nn.Module) -> None:
    for key in (*new._parameters, *new._buffers):
        setattr(new, key, getattr(old, key))
