"""The weights of an int8 model as plain tensors: what a checkpoint stores."""

import torch
from torch import nn

from common.compression import quantization
from common.system.errors import UserError


def extract(model: nn.Module) -> dict:
    """The state dict of an int8 model in plain tensors, which any version of torch can read.

    Args:
        model: The int8 model.

    Returns:
        Values by name. A quantized weight becomes {"int8": int8, "scale": float32 [] or [channels],
        "zero_point": int8 of the same shape}; the packed weight and bias of a Linear become a list.
    """
    state = model.state_dict().items()
    return {key: _to_plain(value) for key, value in state if not isinstance(value, torch.dtype)}


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
            scales = {key: resized(value[key], shape) for key in ("scale", "zero_point")}
            return {"int8": value["int8"].new_zeros(shape), **scales}
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
            own.update({key: _from_plain(state[key]) for key in expected | set(state)})
            model.load_state_dict(own)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = quantization.first_line(error)
        raise UserError(f"the int8 weights do not fit their architecture: {reason}") from None


def _to_plain(value):
    if isinstance(value, tuple):
        return [_to_plain(part) for part in value]
    if value is None:  # the bias of a convolution without one
        return None
    if not value.is_quantized:
        return value.detach()
    if value.qscheme() == torch.per_tensor_affine:
        scale, zero_point = value.q_scale(), value.q_zero_point()
    else:
        scale, zero_point = value.q_per_channel_scales(), value.q_per_channel_zero_points()
    return {
        "int8": value.int_repr(),
        "scale": torch.as_tensor(scale, dtype=torch.float32),  # as it was observed
        "zero_point": torch.as_tensor(zero_point, dtype=torch.int8),
    }


def _from_plain(value):
    if isinstance(value, list):
        return tuple(_from_plain(part) for part in value)
    if not isinstance(value, dict):
        return value
    # files of earlier versions have float64 and int64, and one scale for all channels
    integers, scale, zero_point = value["int8"].double(), value["scale"].double(), value["zero_point"].long()
    if scale.ndim == 0:
        real = (integers - zero_point) * scale
        return torch.quantize_per_tensor(real.float(), scale.item(), int(zero_point), torch.qint8)
    column = (-1, *[1] * (integers.ndim - 1))
    real = (integers - zero_point.view(column)) * scale.view(column)
    return torch.quantize_per_channel(real.float(), scale, zero_point, 0, torch.qint8)
