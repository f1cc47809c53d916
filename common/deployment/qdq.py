"""The ONNX form of an int8 model: float operations between QuantizeLinear and DequantizeLinear, int8 weights.

Source: Jacob et al., CVPR 2018, equations 3 to 7, for the meaning of the pairs; the operators are those of
ONNX opset 13. A runtime fuses each operation with the pairs around it into its int8 kernel.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.ao.nn import intrinsic
from torch.ao.nn import quantized as nnq
from torch.nn import functional as F

from common.compression.recorder import grids
from common.integer.fx_grids import ZERO_POINT
from common.system.errors import UserError


def to_qdq(int8_model: fx.GraphModule, image_size: int) -> nn.Module:
    """Builds the model that `torch.onnx.export` writes with QuantizeLinear and DequantizeLinear.

    Every value that is quantized in the int8 model passes such a pair with the same scale and zero point: for
    uint8, or for int8 where all zero points become 0 by that. The result can be exported, but not run.

    Args:
        int8_model: A converted model; not changed.
        image_size: Side of the images, in pixels.

    Returns:
        A model of float images [N, 3, S, S] and logits [N, C].

    Raises:
        UserError: A layer has no form in ONNX.
    """
    named, qdq_model = grids(int8_model, image_size), copy.deepcopy(int8_model)
    symmetric = all(zero_point == ZERO_POINT for _, zero_point in named.values())
    called = set()
    for node in list(qdq_model.graph.nodes):
        if node.op == "call_module":
            module = int8_model.get_submodule(node.target)
            if type(module) in LAYERS:
                input_scale = named[node.all_input_nodes[0].name][0]
                if node.target in called:  # its inputs may have another scale, and so its bias
                    node.target = f"{node.target}_{node.name}"
                called.add(node.target)
                qdq_model.set_submodule(node.target, LAYERS[type(module)](module, input_scale))
            elif type(module).__module__.startswith("torch.ao."):
                raise UserError(
                    f"{node.target}, a quantized {type(module).__name__}, cannot be written as ONNX"
                )
        elif node.target in FUNCTIONS:
            node.target = FUNCTIONS[node.target]
        elif str(node.target).startswith("quantized."):
            raise UserError(f"the operation {node.target} cannot be written as ONNX")
        elif node.target is torch.quantize_per_tensor or node.target == "dequantize":
            node.op, node.target, node.args, node.kwargs = "call_function", _identity, node.args[:1], {}
        if node.name in named:
            name = f"{node.name}_qdq"
            qdq_model.add_module(name, QuantizeDequantize(*named[node.name], symmetric))
            with qdq_model.graph.inserting_after(node):
                pair = qdq_model.graph.call_module(name, (node,))
            node.replace_all_uses_with(pair, delete_user_cb=lambda user, pair=pair: user is not pair)
            named[pair.name] = named[node.name]
    qdq_model.graph.eliminate_dead_code()
    qdq_model.delete_all_unused_submodules()
    qdq_model.recompile()
    return qdq_model


class QuantizeDequantize(nn.Module):
    """A QuantizeLinear and a DequantizeLinear with the same scale and zero point, for uint8 or int8."""

    def __init__(self, scale: float, zero_point: int, symmetric: bool):
        """Stores the arguments.

        Args:
            scale: Of the values.
            zero_point: From 0 to 255.
            symmetric: Whether the values are int8, 128 less than those of uint8.
        """
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        zero_point = torch.tensor(zero_point - ZERO_POINT * symmetric)
        self.register_buffer("zero_point", zero_point.to(torch.int8 if symmetric else torch.uint8))

    def forward(self, values: Tensor) -> Tensor:
        """Adds the pair to the graph that is exported.

        Args:
            values: float32 [...].

        Returns:
            float32 [...].
        """
        inputs, dtype = (values, self.scale, self.zero_point), self.zero_point.dtype
        quantized = torch.onnx.ops.symbolic("QuantizeLinear", inputs, dtype=dtype, shape=values.shape)
        return _dequantize(quantized, self.scale, self.zero_point)


class _Weighted(nn.Module):
    """A convolution or Linear with an int8 weight and an int32 bias, each behind a DequantizeLinear."""

    def __init__(self, layer: nn.Module, input_scale: float, operation: Callable):
        super().__init__()
        weight, bias = layer.weight(), layer.bias()
        if weight.qscheme() == torch.per_tensor_affine:
            scale = torch.tensor(weight.q_scale())
            zero_point = torch.tensor(weight.q_zero_point())
        else:
            scale, zero_point = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
        scale = scale.double()
        if bias is not None:
            bias = (bias.detach().double() / (scale * input_scale)).round().to(torch.int32)
        self.operation = operation
        self.register_buffer("weight", weight.int_repr())
        self.register_buffer("scale", scale.float())
        self.register_buffer("zero_point", zero_point.to(torch.int8))
        self.register_buffer("bias_scale", (scale * input_scale).float())
        self.register_buffer("bias", bias)

    def forward(self, values: Tensor) -> Tensor:
        weight = _dequantize(self.weight, self.scale, self.zero_point)
        bias = None if self.bias is None else _dequantize(self.bias, self.bias_scale, None)
        return self.operation(values, weight, bias)


def _dequantize(integers: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    inputs = (integers, scale) if zero_point is None else (integers, scale, zero_point)
    attributes = {"axis": 0} if scale.ndim else {}
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", inputs, attributes, dtype=torch.float32, shape=integers.shape
    )


def _conv(convolve: Callable) -> Callable:
    def build(layer: nn.Module, input_scale: float) -> nn.Module:
        def operation(values, weight, bias):
            padding = layer.padding
            if layer.padding_mode != "zeros":  # F.pad begins with the last dimension
                sides = [side for side in reversed(padding) for _ in range(2)]
                values, padding = F.pad(values, sides, layer.padding_mode), 0
            return convolve(values, weight, bias, layer.stride, padding, layer.dilation, layer.groups)

        return _Weighted(layer, input_scale, operation)

    return build


def _linear(layer: nnq.Linear, input_scale: float) -> nn.Module:
    return _Weighted(layer, input_scale, F.linear)


def _batch_norm(build: type[nn.Module]) -> Callable:
    def converted(layer: nn.Module, _input_scale: float) -> nn.Module:
        norm = build(layer.num_features, layer.eps)
        norm.load_state_dict(layer.state_dict(), strict=False)
        return norm.eval()

    return converted


def _layer_norm(layer: nnq.LayerNorm, _input_scale: float) -> nn.Module:
    norm = nn.LayerNorm(layer.normalized_shape, layer.eps)
    norm.weight, norm.bias = layer.weight, layer.bias
    return norm


def _identity(value):
    return value


def _then_relu(build: Callable) -> Callable:
    return lambda layer, input_scale: nn.Sequential(build(layer, input_scale), nn.ReLU())


def _without_grid(function: Callable) -> Callable:
    return lambda *args, output_scale, output_zero_point, **options: function(*args, **options)


# Two layers that FX quantization creates have no form: instance norms, which torch 2.14.1 gets wrong
# for some shapes, and transposed convolutions, which classifiers do not have.
LAYERS = {
    nnq.Conv1d: _conv(F.conv1d),
    nnq.Conv2d: _conv(F.conv2d),
    nnq.Conv3d: _conv(F.conv3d),
    nnq.Linear: _linear,
    intrinsic.quantized.ConvReLU1d: _then_relu(_conv(F.conv1d)),
    intrinsic.quantized.ConvReLU2d: _then_relu(_conv(F.conv2d)),
    intrinsic.quantized.ConvReLU3d: _then_relu(_conv(F.conv3d)),
    intrinsic.quantized.LinearReLU: _then_relu(_linear),
    nnq.BatchNorm2d: _batch_norm(nn.BatchNorm2d),
    nnq.BatchNorm3d: _batch_norm(nn.BatchNorm3d),
    intrinsic.quantized.BNReLU2d: _then_relu(_batch_norm(nn.BatchNorm2d)),
    intrinsic.quantized.BNReLU3d: _then_relu(_batch_norm(nn.BatchNorm3d)),
    nnq.LayerNorm: _layer_norm,
    nnq.Hardswish: lambda _layer, _input_scale: nn.Hardswish(),
    nnq.LeakyReLU: lambda layer, _input_scale: nn.LeakyReLU(layer.negative_slope),
    nnq.Softmax: lambda layer, _input_scale: nn.Softmax(layer.dim),
}
FUNCTIONS = {  # each also gets the scale and zero point of its result, which the pair after it has
    torch.ops.quantized.add: lambda a, b, *_grid: a + b,
    torch.ops.quantized.add_relu: lambda a, b, *_grid: torch.relu(a + b),
    torch.ops.quantized.mul: lambda a, b, *_grid: a * b,
    torch.ops.quantized.mul_relu: lambda a, b, *_grid: torch.relu(a * b),
    torch.ops.quantized.matmul: lambda a, b, *_grid: torch.matmul(a, b),
    torch.ops.quantized.cat: lambda values, dim, *_grid: torch.cat(values, dim),
    torch.ops.quantized.layer_norm: _without_grid(F.layer_norm),
    torch.ops.quantized.hardswish: _without_grid(F.hardswish),
    torch.ops.quantized.leaky_relu: _without_grid(F.leaky_relu),
    torch.ops.quantized.elu: _without_grid(F.elu),
    torch.ops.quantized.dropout: lambda values, *_arguments, **_options: values,
}
