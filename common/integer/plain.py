"""A graph as plain values and tensors: what a checkpoint stores, readable without torch's quantized modules.

A row for each operator. Weights that the checkpoint has already are not stored twice: the row names them.
"""

from dataclasses import fields

import numpy as np
import torch

from common.integer import nibbles
from common.integer import operators as ops
from common.integer.graph import Graph, Operator, Tensor
from common.system.errors import UserError, first_line

KINDS = {
    kind.__name__: kind
    for kind in (
        *(ops.Convolution, ops.Linear, ops.Add, ops.Multiply, ops.Constant, ops.Concatenate),
        *(ops.AveragePool, ops.MaxPool, ops.Pad, ops.Table, ops.Requantize, ops.Select, ops.Reshape),
    )
}
ARRAYS = ("weight", "weight_scales", "bias")


def to_plain(graph: Graph, state: dict) -> dict:
    """Describes a graph.

    Args:
        graph: The graph.
        state: The weights that are stored beside it: see `int8_state.extract`.

    Returns:
        {"input": tensor, "operators": rows}, of numbers, text, lists and tensors.
    """
    layers = layers_of(state)
    rows = [_row(operator, layers) for operator in graph.operators]
    return {"input": _tensor_row(graph.input), "operators": rows}


def from_plain(content: dict, state: dict) -> Graph:
    """Builds the graph that `to_plain` described.

    Args:
        content: The description.
        state: The weights beside it.

    Returns:
        The graph.

    Raises:
        UserError: The description is not valid.
    """
    try:
        layers = layers_of(state)
        known = [Tensor(**_without_lists(content["input"]))]
        operators = []
        for row in content["operators"]:
            operators.append(_operator(dict(row), {tensor.name: tensor for tensor in known}, layers))
            known.append(operators[-1].output)
        return Graph(known[0], tuple(operators))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise UserError(f"the graph of integers is not valid: {first_line(error)}") from None


def layers_of(state: dict) -> dict[str, tuple]:
    """The weights of a state dict.

    Args:
        state: See `to_plain`.

    Returns:
        (int8 weight, float32 scales [O], float32 bias [O]) by the name of the layer.
    """
    found = {}
    for key, value in state.items():
        if isinstance(value, list) and len(value) == 2:  # weight and bias of a Linear
            (weight, bias), name = value, key.partition("._packed_params")[0]
        elif key.endswith(".weight") and isinstance(value, dict):
            name, weight = key.removesuffix(".weight"), value
            bias = state.get(f"{name}.bias")
        else:
            continue
        integers = integers_of(weight)
        scales = weight["scale"].float().expand(len(integers))
        found[name] = integers, scales, torch.zeros(len(scales)) if bias is None else bias
    return found


def integers_of(weight: dict) -> torch.Tensor:
    """The integers of a weight as a checkpoint stores it.

    Args:
        weight: {"int8": int8} or, of 4 bits, {"int4": uint8 [half of the values], "shape": list}.

    Returns:
        int8, in the shape of the weight.

    Raises:
        ValueError: The bytes do not fit the shape.
    """
    if "int8" in weight:
        return weight["int8"]
    return torch.from_numpy(nibbles.unpack(weight["int4"].numpy(), tuple(weight["shape"])))


def _row(operator: Operator, layers: dict[str, tuple]) -> dict:
    row = {
        "kind": type(operator).__name__,
        "inputs": [tensor.name for tensor in operator.inputs],
        "output": _tensor_row(operator.output),
    }
    for each in fields(operator):
        value = getattr(operator, each.name)
        # files of earlier versions have no bits
        is_known = each.name in ("inputs", "output") or (each.name == "weight_bits" and value == 8)
        if each.name not in row and not is_known:
            row[each.name] = torch.from_numpy(value) if isinstance(value, np.ndarray) else _lists(value)
    if "weight" in row:
        for name, layer in layers.items():
            # by content: names of nodes are in small letters, and a layer may be called several times
            same_size = layer[0].numel() == operator.weight.size and len(layer[1]) == len(operator.bias)
            if same_size and _equal(operator, _integers(layer, operator)):
                row = {key: value for key, value in row.items() if key not in ARRAYS} | {"layer": name}
    return row


def _operator(row: dict, known: dict[str, Tensor], layers: dict[str, tuple]) -> Operator:
    kind = KINDS[row.pop("kind")]
    inputs = tuple(known[name] for name in row.pop("inputs"))
    output = Tensor(**_without_lists(row.pop("output")))
    if "layer" in row:
        weight, scales, bias = layers[row.pop("layer")]
        weight = weight.reshape(weight.shape[0], -1, 1, weight.shape[2]) if weight.ndim == 3 else weight
        row |= {"weight": weight, "weight_scales": scales, "bias": round_bias(bias, scales, inputs[0].scale)}
    row = {
        key: value.contiguous().numpy() if isinstance(value, torch.Tensor) else _tuples(value)
        for key, value in row.items()
    }
    return kind(inputs, output, **row)


def round_bias(bias: torch.Tensor, scales: torch.Tensor, input_scale: float) -> torch.Tensor:
    """The integers of a bias. Source: Jacob et al., CVPR 2018, equation 11.

    Args:
        bias: float [O].
        scales: Of the weight, float32 [O].
        input_scale: Of the input.

    Returns:
        int32 [O], in steps of input scale * weight scale.
    """
    return (bias.detach().double() / (scales.double() * input_scale)).round().to(torch.int32)


def _integers(layer: tuple, operator: ops.Convolution | ops.Linear) -> tuple:
    weight, scales, bias = layer
    return weight, scales, round_bias(bias, scales, operator.inputs[0].scale)


def _equal(operator: ops.Convolution | ops.Linear, integers: tuple) -> bool:
    own = (getattr(operator, name) for name in ARRAYS)
    pairs = zip(own, integers, strict=True)
    return all(np.array_equal(mine.ravel(), other.numpy().ravel()) for mine, other in pairs)


def _tensor_row(tensor: Tensor) -> dict:
    return {each.name: _lists(getattr(tensor, each.name)) for each in fields(tensor)}


def _without_lists(row: dict) -> dict:
    return {key: _tuples(value) for key, value in row.items()}


def _lists(value):
    return [_lists(each) for each in value] if isinstance(value, tuple) else value


def _tuples(value):
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
