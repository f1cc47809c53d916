"""The weights of an int8 model as plain tensors and numbers: what a checkpoint stores."""

import torch
from torch import nn

from common.compression import quantization
from common.integer import nibbles, plain
from common.system.errors import UserError, first_line


def extract(model: nn.Module) -> dict:
    """The state dict of an int8 model in plain tensors and numbers, which any version of torch can read.

    Args:
        model: The int8 model.

    Returns:
        Values by name. A quantized weight becomes {"int8": int8, "scale": float32 [channels]}; its zero point
        is 0. One of 4 bits becomes {"int4": uint8, "shape": list, "scale": ...}: see `nibbles.pack`. The
        packed weight and bias of a Linear become a list, a tensor without dimensions a number.
    """
    state = model.state_dict().items()
    return {key: _to_plain(value) for key, value in state if not isinstance(value, torch.dtype)}


def fractions(state: dict) -> dict[str, float]:
    """How much of a model is quantized: some networks call functions in place of layers, which stay in float.

    Args:
        state: The result of `extract`.

    Returns:
        "int8_fraction": the fraction of the weights that are integers, from 0 to 1; biases and scales do not
        count. Where some have 4 bits, "int4_fraction" too: the fraction of those.
    """
    counts = {"int8": 0, "int4": 0, "float": 0}
    for value in state.values():
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                counts["int4" if "int4" in part else "int8"] += plain.integers_of(part).numel()
            elif torch.is_tensor(part) and part.ndim > 1:
                counts["float"] += part.numel()
    total = max(1, sum(counts.values()))
    found = {"int8_fraction": (counts["int8"] + counts["int4"]) / total}
    return found | ({"int4_fraction": counts["int4"] / total} if counts["int4"] else {})


def resize(state: dict, shapes: dict[str, list[int]]) -> dict:
    """What `extract` would return for a model with other widths, with zeros as weights.

    Args:
        state: The result of `extract`.
        shapes: The shape of each tensor in the state dict of the float model with the other widths.

    Returns:
        A state of the same size in bytes as that of the model with the other widths.
    """

    def resized(value, shape: list[int]):
        if isinstance(value, list):  # weight and bias of a Linear
            return [resized(part, shape) for part in value]
        if isinstance(value, dict):
            return {"int8": torch.zeros(shape, dtype=torch.int8), "scale": resized(value["scale"], shape)}
        return value.new_zeros(shape[:1]) if torch.is_tensor(value) and value.ndim else value

    modules = {key: key.partition("._packed_params")[0].removesuffix(".weight") for key in state}
    vectors = (".bias", ".running_mean", ".running_var")  # the last two of batch norms that are not fused
    modules |= {key: key.rpartition(".")[0] for key in state if key.endswith(vectors)}
    weights = {key: f"{module}.weight" for key, module in modules.items()}
    return {
        key: resized(value, shapes[weights[key]]) if weights[key] in shapes else value
        for key, value in state.items()
    }


def load(model: nn.Module, state: dict) -> None:
    """Loads weights into an int8 model.

    Args:
        model: The result of `quantization.skeleton`; changed in place.
        state: The result of `extract`.

    Raises:
        UserError: Names or types do not fit.
    """
    own = model.state_dict()  # its _metadata tells the modules which layout they read
    expected = {key for key, value in own.items() if not isinstance(value, torch.dtype)}
    try:
        with quantization.silenced():
            own.update({key: _from_plain(state[key], own[key]) for key in expected | set(state)})
            model.load_state_dict(own)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = first_line(error)
        raise UserError(f"the int8 weights do not fit their architecture: {reason}") from None


def _to_plain(value):
    if isinstance(value, tuple):
        return [_to_plain(part) for part in value]
    if value is None:  # the bias of a convolution without one
        return None
    if value.is_quantized:
        scale = {"scale": value.q_per_channel_scales().float()}  # as observed
        integers = value.int_repr()
        if not nibbles.fit(integers.numpy()):
            return {"int8": integers} | scale
        packed = torch.from_numpy(nibbles.pack(integers.numpy()))
        return {"int4": packed, "shape": list(integers.shape)} | scale
    return value.detach() if value.ndim else value.item()


def _from_plain(value, own):
    """The inverse of `_to_plain`; `own` is the value that the model has."""
    if isinstance(value, list):
        return tuple(map(_from_plain, value, own))
    if isinstance(value, int | float):
        return torch.full_like(own, value)
    if not isinstance(value, dict):
        return value
    # earlier files have zero points, and one scale for all channels where the target device was embedded
    integers, scale = plain.integers_of(value).double(), value["scale"].double()
    if scale.ndim == 0:
        return torch.quantize_per_tensor((integers * scale).float(), scale.item(), 0, torch.qint8)
    real = integers * scale.view(-1, *[1] * (integers.ndim - 1))
    zero_points = torch.zeros(len(scale), dtype=torch.int64)
    return torch.quantize_per_channel(real.float(), scale, zero_points, 0, torch.qint8)
