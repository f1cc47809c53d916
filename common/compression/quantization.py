"""Quantization-aware training in FX graph mode: prepare, calibrate, freeze, convert.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018. Other modules that import torch.ao: `fake_quantization`, `observers`, `weight_bits`,
`rounding`, `mixed_precision`, `int8_plain`, `integer.from_fx` and `deployment.qdq`.
"""

import contextlib
import copy
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import disable_observer
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

from common.compression import scales
from common.compression import weight_bits as narrow
from common.compression.fake_quantization import (
    clip,
    clipped_layers,
    qconfig_mapping,
    use_exact_sums,
    use_fast_layers,
)
from common.compression.recorder import Recorder, grids
from common.compression.replacements import replace_layers
from common.compression.target_devices import TargetDevice
from common.integer.fx_grids import ZERO_POINT
from common.system.errors import UserError, first_line
from common.system.terminal import progress_bar

FREEZE_AT = 2 / 3  # fraction of the epochs after which the observers are frozen
BIAS_MAX = 2**30  # of int32; the rest is for the sum of products
KNOWN_WARNINGS = (  # torch is pinned, and each call would print them again
    "torch.ao.quantization is deprecated",
    "Please use quant_min and quant_max",
    "torch.quantize_per_tensor, torch.quantize_per_channel and other",
)


def prepare(
    model: nn.Module,
    target: TargetDevice,
    image_size: int,
    check: Callable[[fx.GraphModule], None] | None = None,
    weight_bits: int = 8,
) -> nn.Module:
    """Inserts fake quantization into a copy of a model, ready for training.

    A copy of the result is converted and run at once, with the engine that is set in torch, so that a network
    that cannot be quantized fails here and not after hours of training.

    Args:
        model: The float model; not changed.
        target: The device to quantize for.
        image_size: Side of the images, in pixels.
        check: Gets the int8 model of that trial, and raises UserError for one that cannot be deployed.
        weight_bits: Of all layers of that trial, 8 or 4.

    Returns:
        The traced copy on the CPU, its batch norms fused with the convolutions.

    Raises:
        UserError: The model cannot be traced, converted or run, or `check` refuses it.
    """
    name = type(model).__name__
    try:
        prepared = trace(copy.deepcopy(model).cpu(), target, image_size)
    # what the tracer cannot follow: control flow, unsupported calls, assertions of the network's own
    except (TypeError, RuntimeError, AttributeError, AssertionError, ValueError, LookupError) as error:
        raise UserError(f"{name} cannot be traced for quantization: {first_line(error)}") from None
    try:
        trial = copy.deepcopy(prepared)
        for layer in narrow.layers_of(trial).values() if weight_bits == 4 else ():
            narrow.use_4_bits(layer)
        images = torch.rand(4, 3, image_size, image_size)
        calibrate(trial, [(images, None)], torch.device("cpu"), 1)
        int8_model = convert(trial).int8  # its tensors are exported: not in inference mode
        with torch.inference_mode():
            runs = (Recorder(int8_model).run(some)[:1] for some in (images, images, images[:1]))
            in_batch, again, alone = runs
        state = int8_model.state_dict()  # some engines have layers that they run and cannot store
    except (TypeError, RuntimeError, AttributeError, AssertionError, ValueError, LookupError) as error:
        raise UserError(f"{name} cannot run in int8 with {target.backend}: {first_line(error)}") from None
    close = torch.allclose(in_batch, alone, rtol=0.05, atol=0.05 * float(in_batch.abs().max()))
    if not (close and torch.equal(in_batch, again)):
        cause = "depends on the others in the batch" if torch.equal(in_batch, again) else "is random"
        raise UserError(f"{name} cannot be quantized: once traced, its prediction for an image {cause}")
    if any(isinstance(value, torch.ScriptObject) for value in state.values()):
        raise UserError(f"{name} cannot be quantized: it calls functions such as linear in place of layers")
    if any(isinstance(value, torch.qscheme) for value in state.values()):  # of a layer that stayed in float
        raise UserError(f"{name} cannot be quantized: it gives a function its input by name, as in input=x")
    if target.symmetric:
        _check_symmetric(int8_model, name, image_size)
    if check:
        check(int8_model)
    return prepared


def _check_symmetric(int8_model: fx.GraphModule, name: str, image_size: int) -> None:
    """Raises UserError for layers whose results have a fixed zero point, such as those of a sigmoid."""
    zero_points = {node: zero_point for node, (_, zero_point) in grids(int8_model, image_size).items()}
    layers = dict(int8_model.named_modules())
    others = {
        type(layers[node.target]).__name__ if node.op == "call_module" else node.name
        for node in int8_model.graph.nodes
        if zero_points.get(node.name, ZERO_POINT) != ZERO_POINT
    }
    if others:
        raise UserError(
            f"{name} has no symmetric form: the zero point of {', '.join(sorted(others))} is not 0"
        )


def trace(float_model: nn.Module, target: TargetDevice, image_size: int) -> nn.Module:
    """Traces a model and inserts fake quantization, without any check.

    Args:
        float_model: On the CPU; changed in place.
        target: The device to quantize for.
        image_size: Side of the images, in pixels.

    Returns:
        The traced model.
    """
    clipped = clipped_layers(float_model)
    replace_layers(float_model)
    example = torch.zeros(1, 3, image_size, image_size)
    with silenced():
        prepared = prepare_qat_fx(float_model.train(), qconfig_mapping(target), example)
    clip(prepared, clipped)
    use_fast_layers(prepared)
    return prepared


@torch.no_grad()
def calibrate(prepared: nn.Module, batches: Iterable, device: torch.device, count: int) -> None:
    """Lets the observers see training images; the weights do not change.

    Args:
        prepared: A model with fake quantization, on `device`; put into eval mode.
        batches: (images, labels).
        device: Where the model is.
        count: How many batches are used.
    """
    prepared.eval()
    some = itertools.islice(batches, count)
    for images, _ in progress_bar(some, total=count, desc="calibration", unit="batch"):
        prepared(images.to(device))


def freeze(prepared: nn.Module, epoch: int, epochs: int) -> None:
    """Freezes the batch-norm statistics, and in the last third of the epochs the observers.

    The statistics are those that the int8 model will have. The last epochs use its exact scales too.

    Args:
        prepared: A model with fake quantization; changed in place.
        epoch: The epoch that begins, from 0.
        epochs: How many there are.
    """
    prepared.eval()
    if epoch >= int(FREEZE_AT * epochs):
        prepared.apply(disable_observer)


class Converted(nn.Module):
    """An int8 model and the fake-quant model that it comes from.

    Attributes:
        fake_quant: The model with fake quantization.
        int8: torch's int8 model.
        network: What runs and is evaluated: `int8`, unless another takes its place.
    """

    def __init__(self, fake_quant: nn.Module):
        """Converts a copy of a model.

        Args:
            fake_quant: A prepared model in eval mode on the CPU, its observers disabled.
        """
        super().__init__()
        self.fake_quant = fake_quant
        with silenced():
            self.int8 = self.network = convert_fx(copy.deepcopy(fake_quant))

    def forward(self, images: Tensor) -> Tensor:
        """Runs the network.

        Args:
            images: float32 [N, 3, S, S].

        Returns:
            Logits, float32 [N, C].
        """
        return self.network(images)


def convert(prepared: nn.Module) -> Converted:
    """Converts a model to int8.

    Args:
        prepared: A model with fake quantization; not changed.

    Returns:
        The int8 model and its fake-quant model, on the CPU, in eval mode, observers disabled.
    """
    copied = copy.deepcopy(prepared).cpu().eval().apply(disable_observer)
    narrow.clip(copied)
    converted = Converted(_round_biases(scales.adjust(copied)))
    use_exact_sums(converted.fake_quant, converted.int8)
    return converted


@torch.no_grad()
def _round_biases(prepared: fx.GraphModule) -> fx.GraphModule:
    """Rounds each layer's bias to a multiple of input scale times weight scale, as int32 arithmetic does.

    Source: Jacob et al., CVPR 2018, equation 11. With batch norm, the folded bias is rounded. Where the
    weights of a channel are nearly 0, their scale is raised first, so that the bias fits into int32.
    """
    for node in prepared.graph.nodes:
        layer = prepared.get_submodule(node.target) if node.op == "call_module" else None
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        if not hasattr(layer, "weight_fake_quant") or source.op != "call_module":
            continue
        weight, input_scale = layer.weight_fake_quant, prepared.get_submodule(source.target).scale
        norm = getattr(layer, "bn", None)
        if norm is not None:
            scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            mean = norm.running_mean if layer.bias is None else norm.running_mean - layer.bias
            bias, parameter = norm.bias - mean * scale, norm.bias
        elif layer.bias is not None:
            bias, parameter = layer.bias, layer.bias
        else:
            continue
        weight.raise_scale(bias.abs() / (input_scale * BIAS_MAX))
        step = weight.scale * input_scale
        parameter += (bias / step).round() * step - bias
    return prepared


def skeleton(float_model: nn.Module, target: TargetDevice, image_size: int) -> nn.Module:
    """Builds an int8 model for `int8_state.load`, with arbitrary weights and scales.

    Args:
        float_model: The architecture and its widths; changed in place.
        target: The device that the weights were quantized for.
        image_size: Side of the images, in pixels.

    Returns:
        The int8 model on the CPU.
    """
    with silenced("must run observer before calling calculate_qparams"):
        return convert_fx(trace(float_model, target, image_size).eval())


@contextlib.contextmanager
def silenced(*more: str) -> Iterator[None]:
    """A context without the `KNOWN_WARNINGS`.

    Args:
        *more: Beginnings of other warnings to silence.
    """
    with warnings.catch_warnings():
        for message in (*KNOWN_WARNINGS, *more):
            warnings.filterwarnings("ignore", message)
        yield
