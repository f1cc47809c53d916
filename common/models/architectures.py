"""Classification models of torchvision and timm: build one, load weights, rebuild a pruned one."""

import torch
import torchvision
from torch import nn

from common.compression.reparameterization import fuse_branches
from common.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from common.models import pretrained as weights
from common.models import timm_models
from common.system import distributed, seeding
from common.system.errors import UserError, did_you_mean

Shapes = dict[str, list[int]]  # of every parameter and buffer of a model, by name


def check(arch: str) -> None:
    """Checks the name of an architecture.

    Args:
        arch: A name of torchvision, or timm/NAME.

    Raises:
        UserError: There is no such classification model, or timm is not installed; the nearest name is
            suggested.
    """
    if arch.startswith(timm_models.PREFIX):
        return timm_models.check(arch)
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known:
        hint = did_you_mean(arch, known + timm_models.suggestions())
        raise UserError(f"torchvision has no classification model {arch!r}{hint}")


def input_config(arch: str) -> dict:
    """The images that a new model sees.

    Args:
        arch: Its name.

    Returns:
        Of a model of timm what it was trained on, of others ImageNet's: `image_size` (pixels), `mean` and
        `std` (of each channel, for pixels from 0 to 1), and `crop_pct` (see `transforms.resized_side`).
    """
    if arch.startswith(timm_models.PREFIX):
        return timm_models.input_config(arch)
    return {"image_size": 224, "mean": IMAGENET_MEAN, "std": IMAGENET_STD, "crop_pct": None}


def build(arch: str, num_classes: int, pretrained: str = "none") -> nn.Module:
    """Builds a model.

    Args:
        arch: Its name, of torchvision or timm/NAME.
        num_classes: Number of outputs. The classifier keeps its initial weights where its width differs from
            that of the pretrained weights.
        pretrained: "none", "imagenet" (the default weights of torchvision or timm, downloaded once), or the
            path of their state dict or of a float checkpoint.

    Returns:
        The model, float32, on the CPU, in training mode.

    Raises:
        UserError: There is no such architecture, or the weights are missing or do not fit.
    """
    check(arch)
    model, state, source = _new(arch, num_classes), {}, str(pretrained)
    if pretrained == "imagenet":
        state, source = _imagenet_state(arch), "the file of default weights"
    elif pretrained != "none":
        state = weights.read(pretrained)
    ours = isinstance(state, dict) and "int8" in state  # one of our checkpoints, whose layers are torch's
    state = weights.find_state(state, source)
    if pretrained != "none" and not ours:
        _load_backbone(model, arch, state, num_classes, source=source)
    if arch.startswith(timm_models.PREFIX):
        timm_models.to_torch_layers(model)
    if ours:
        _load_backbone(model, arch, state, num_classes, source=source)
    return model


def _new(arch: str, num_classes: int) -> nn.Module:
    if arch.startswith(timm_models.PREFIX):
        return timm_models.build(arch, num_classes)
    # two have auxiliary heads, which help to train from scratch and are of no use in fine-tuning
    inception = {"aux_logits": False, "init_weights": True, "transform_input": True}
    options = inception if arch in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(arch, weights=None, num_classes=num_classes, **options)


def classifier(model: nn.Module, num_classes: int) -> str:
    """Finds the layer that yields the logits: the one that timm names, else the last one that can.

    Args:
        model: A classification model.
        num_classes: The number of its outputs.

    Returns:
        The name of the layer, a Linear or Conv2d with `num_classes` outputs.

    Raises:
        UserError: There is no such layer.
    """
    found = {
        module: name
        for name, module in model.named_modules()
        if (isinstance(module, nn.Linear) and module.out_features == num_classes)
        or (isinstance(module, nn.Conv2d) and module.out_channels == num_classes)
    }
    if not found:
        raise UserError(f"{type(model).__name__} has no Linear or Conv2d layer with {num_classes} outputs")
    named = model.get_classifier() if hasattr(model, "get_classifier") else None
    return found.get(named) or list(found.values())[-1]


def _imagenet_state(arch: str) -> dict[str, torch.Tensor]:
    if arch.startswith(timm_models.PREFIX):
        with distributed.main_process_first():
            return timm_models.hub_state(arch)
    default = torchvision.models.get_model_weights(arch).DEFAULT
    try:
        with distributed.main_process_first():
            return torchvision.models.get_model(arch, weights=default).state_dict()
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"cannot download the ImageNet weights {default.url} ({error}): "
            "download that file and give --pretrained its path, or train from scratch with --pretrained none"
        ) from None


def _load_backbone(model: nn.Module, arch: str, state, num_classes: int, *, source: str) -> None:
    """Loads `state` into `model`; only layers of logits may differ, and auxiliary heads are ignored."""
    own = model.state_dict()
    if isinstance(state, dict):
        state = weights.without_prefix(state, list(own), source)
    if not weights.is_state(state):
        raise UserError(f"{source} is neither a state dict nor a float checkpoint")
    fitting = {key: value for key, value in state.items() if key in own and value.shape == own[key].shape}
    unknown = [key for key in state if key not in own and not key.startswith(("aux", "AuxLogits."))]
    # files of old torch versions lack num_batches_tracked
    missing = [key for key in own if key not in fitting and "num_batches" not in key]
    if missing:  # a network may have several layers of logits: those that other classes change
        with seeding.fork_rng(0):
            other = _new(arch, num_classes + 1).state_dict()
        missing = [key for key in missing if key not in other or own[key].shape == other[key].shape]
    if unknown or missing:
        raise UserError(f"{source} does not fit {arch}: {(missing + unknown)[0]} differs")
    own.update(fitting)  # and not the file's own dict: mnasnet reads own's _metadata
    model.load_state_dict(own)


def shapes(model: nn.Module) -> Shapes:
    """The shapes that `rebuild` needs.

    Args:
        model: A float model.

    Returns:
        The shape of every entry of its state dict.
    """
    return {key: list(value.shape) for key, value in model.state_dict().items()}


def rebuild(arch: str, num_classes: int, widths: Shapes) -> nn.Module:
    """Builds a model in which every layer has a given shape; its weights are still to be loaded.

    Args:
        arch: Its name.
        num_classes: Number of outputs.
        widths: The shape of every entry of its state dict.

    Returns:
        The model, float32, on the CPU, in training mode.

    Raises:
        UserError: `widths` are not those of this architecture.
    """
    model = build(arch, num_classes)
    head = classifier(model, num_classes)
    if widths.get(f"{head}.weight", [num_classes])[0] != num_classes:
        raise UserError(f"the weights of {arch} have not {num_classes} outputs")
    if set(widths) != set(model.state_dict()):
        model = fuse_branches(model)
    if set(widths) != set(model.state_dict()):
        differing = sorted(set(widths) ^ set(model.state_dict()))[0]
        raise UserError(f"the weights are not those of {arch}: {differing} differs")
    for name, module in model.named_modules():
        _resize(
            module, {key.rpartition(".")[2]: widths[key] for key in widths if key.rpartition(".")[0] == name}
        )
    return model


def _resize(module: nn.Module, widths: Shapes) -> None:
    """Gives the module's own parameters and buffers new shapes, and updates the attributes that follow."""
    tensors = {**dict(module.named_parameters(recurse=False)), **dict(module.named_buffers(recurse=False))}
    for key, shape in widths.items():
        old = tensors[key]
        if list(old.shape) != shape:
            # ones and not empty memory: convert_fx computes with what it finds
            new = torch.ones(shape, dtype=old.dtype)
            setattr(module, key, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    if isinstance(module, nn.Conv2d):
        if module.groups == module.in_channels > 1:  # depthwise: as many outputs for each input as before
            module.groups = module.weight.shape[0] // (module.out_channels // module.in_channels)
        module.out_channels = module.weight.shape[0]
        module.in_channels = module.weight.shape[1] * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.BatchNorm2d):
        module.num_features = module.running_mean.shape[0]
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
