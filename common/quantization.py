"""Quantization-aware training in FX graph mode: prepare, calibrate, freeze, convert, int8 weights as tensors.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018. Only this module and `fake_quantization` touch torch.ao.
"""

import contextlib
import copy
import itertools
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, fx, nn
from torch.ao.nn.intrinsic.qat import freeze_bn_stats
from torch.ao.quantization import disable_observer
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx
from torchvision.ops import StochasticDepth

from common.errors import UserError
from common.fake_quantization import qconfig_mapping, use_fast_layers

BACKENDS = {"server": "fbgemm", "embedded": "qnnpack"}  # what --target-device names
FREEZE_AT = 2 / 3  # share of the epochs after which observers and batch norm stand still
KNOWN_WARNINGS = (  # torch is pinned, and each call would print them again
    "torch.ao.quantization is deprecated",
    "Please use quant_min and quant_max",
    "torch.quantize_per_tensor, torch.quantize_per_channel and other",
)


def prepare(model: nn.Module, backend: str, image_size: int) -> nn.Module:
    """A copy of `model`, traced, its batch norms fused and fake quantization put in, ready to train.

    A copy of that is converted and run at once, with torch's engine as it is set, so that a network that
    cannot be quantized fails here and not after hours of training. Raises UserError.
    """
    name = type(model).__name__
    try:
        prepared = trace(copy.deepcopy(model).cpu(), backend, image_size)
    # whatever the tracer stumbles over: control flow, unsupported calls, assertions of the network's own
    except (TypeError, RuntimeError, AttributeError, AssertionError, ValueError) as error:
        raise UserError(f"{name} cannot be traced for quantization: {_first_line(error)}") from None
    try:
        trial = copy.deepcopy(prepared)
        pictures = torch.rand(4, 3, image_size, image_size)
        calibrate(trial, [(pictures, None)], torch.device("cpu"), 1)
        with torch.inference_mode():
            int8_model = convert(trial).int8
            together, alone = int8_model(pictures)[:1], int8_model(pictures[:1])
    except (TypeError, RuntimeError, AttributeError, AssertionError, ValueError) as error:
        raise UserError(f"{name} cannot run in int8 with {backend}: {_first_line(error)}") from None
    if not torch.allclose(together, alone, rtol=0.05, atol=0.05 * float(together.abs().max())):
        raise UserError(
            f"{name} cannot be quantized: traced, it answers differently when other pictures are beside one"
        )
    return prepared


def trace(float_model: nn.Module, backend: str, image_size: int) -> nn.Module:
    """Prepares `float_model`, changing it in place, for quantization-aware training with `backend`."""
    for module in list(float_model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                # a ReLU is fused into the convolution before it, a ReLU6 is not; and the qnnpack engine of
                # torch 2.14 returns the elements of a quantized ReLU6 in the wrong order
                setattr(module, name, nn.ReLU(inplace=child.inplace))
            elif isinstance(child, nn.Dropout | StochasticDepth):
                # the tracer would write down that stochastic depth is training: the int8 model would drop
                # layers at random; and it would give dropout scales of its own, which the int8 model does not
                # apply
                setattr(module, name, nn.Identity())
    picture = torch.zeros(1, 3, image_size, image_size)
    with _silenced():
        prepared = prepare_qat_fx(float_model.train(), qconfig_mapping(backend), picture)
    use_fast_layers(prepared)
    return prepared


@torch.no_grad()
def calibrate(prepared: nn.Module, batches: Iterable, device: torch.device, count: int) -> None:
    """Shows the observers the first `count` of `batches` of (images, labels), the weights as they are."""
    prepared.eval()
    for images, _ in itertools.islice(batches, count):
        prepared(images.to(device))


def freeze_late(prepared: nn.Module, epoch: int, epochs: int) -> None:
    """Before `epoch` of `epochs` (from 0): stops observers and batch-norm statistics in the last third.

    So that the rest of training sees the very scales that the int8 model will have.
    """
    if epoch >= int(FREEZE_AT * epochs):
        prepared.apply(disable_observer).apply(freeze_bn_stats)


class Converted(nn.Module):
    """An int8 model, which is what runs and counts, and the fake-quant model that it was made from."""

    def __init__(self, fake_quant: nn.Module):
        super().__init__()
        self.fake_quant = fake_quant
        with _silenced():
            self.int8 = convert_fx(copy.deepcopy(fake_quant))

    def forward(self, images: Tensor) -> Tensor:
        return self.int8(images)


def convert(prepared: nn.Module) -> Converted:
    """The int8 model of a copy of `prepared` as it is now: on the CPU, in eval mode, observers at rest."""
    return Converted(_round_biases(copy.deepcopy(prepared).cpu().eval().apply(disable_observer)))


@torch.no_grad()
def _round_biases(prepared: fx.GraphModule) -> fx.GraphModule:
    """Rounds each layer's bias to a multiple of input scale times weight scale, as int32 arithmetic does.

    Source: Jacob et al., CVPR 2018, equation 11. With batch norm, it is the folded bias that is rounded.
    """
    for node in prepared.graph.nodes:
        layer = prepared.get_submodule(node.target) if node.op == "call_module" else None
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if not hasattr(layer, "weight_fake_quant") or source.op != "call_module":
            continue
        step = layer.weight_fake_quant.scale * prepared.get_submodule(source.target).scale
        norm = getattr(layer, "bn", None)
        if norm is not None:
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            mean = norm.running_mean if layer.bias is None else norm.running_mean - layer.bias
            folded = norm.bias - mean * scale
            norm.bias += (folded / step).round() * step - folded
        elif layer.bias is not None:
            layer.bias.copy_((layer.bias / step).round() * step)
    return prepared


def skeleton(float_model: nn.Module, backend: str, image_size: int) -> nn.Module:
    """An int8 model of the right structure for `load_int8_state`, whatever its weights and scales."""
    with _silenced("must run observer before calling calculate_qparams"):
        return convert_fx(trace(float_model, backend, image_size).eval())


def int8_state(model: nn.Module) -> dict:
    """The int8 model's state dict in plain tensors, which any version of torch can read.

    A quantized weight becomes {"int8": Tensor int8, "scale": float64 [] or [channels], "zero_point": int64,
    same shape}; the packed weight and bias of a Linear a list of the two.
    """
    state = model.state_dict().items()
    return {key: _to_plain(value) for key, value in state if not isinstance(value, torch.dtype)}


def resized_int8_state(state: dict, shapes: dict[str, list[int]]) -> dict:
    """What `int8_state` would give, but for the values, if the float model's tensors had `shapes`."""

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


def load_int8_state(model: nn.Module, state: dict) -> None:
    """Loads what `int8_state` gave into a `skeleton`. Raises UserError where names or kinds do not fit."""
    own = model.state_dict()  # its _metadata tells the modules which layout they read
    expected = {key for key, value in own.items() if not isinstance(value, torch.dtype)}
    try:
        with _silenced():
            own.update({key: _from_plain(state[key]) for key in expected | set(state)})
            model.load_state_dict(own)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the int8 weights do not fit their architecture: {_first_line(error)}") from None


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
        "scale": torch.as_tensor(scale, dtype=torch.float64),
        "zero_point": torch.as_tensor(zero_point, dtype=torch.int64),
    }


def _from_plain(value):
    if isinstance(value, list):
        return tuple(_from_plain(part) for part in value)
    if not isinstance(value, dict):
        return value
    integers, scale, zero_point = value["int8"], value["scale"], value["zero_point"]
    if scale.ndim == 0:
        real = (integers - zero_point) * scale
        return torch.quantize_per_tensor(real.float(), scale.item(), int(zero_point), torch.qint8)
    column = (-1, *[1] * (integers.ndim - 1))
    real = (integers - zero_point.view(column)) * scale.view(column)
    return torch.quantize_per_channel(real.float(), scale, zero_point, 0, torch.qint8)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _silenced(*more: str) -> Iterator[None]:
    """Silences `KNOWN_WARNINGS` and those that begin with one of `more`."""
    with warnings.catch_warnings():
        for message in (*KNOWN_WARNINGS, *more):
            warnings.filterwarnings("ignore", message)
        yield
