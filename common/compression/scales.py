"""The scales of sums and products, adjusted so that every runtime computes the same integers.

Runtimes add with float32, with 21 bits (XNNPACK) or with 31 bits (TensorFlow Lite for Microcontrollers). They
differ only where a result lies nearly halfway between two integers: for one value in 10,000, which a deep
network amplifies. With scale of a / scale of the sum = p / q, and the same q for b, the sum is
(a * p + b * r) / q. If q is odd it is at least 1 / (2 q) away from each half, and all runtimes round alike.
"""

import operator

import torch
from torch import fx, nn

SUMMAND_MIN = 2**-10  # lowest scale that XNNPACK adds, as a fraction of the scale of the sum; qnnpack: 2^-14
DENOMINATOR = 1023  # odd; 1 / 2046 is four times the error of a sum with 21 bits
MAX_CHANGE = 0.01  # of a scale; the change is 0.1 % where summands are half of the sum
SUMS = (operator.add, operator.iadd, torch.add)
PRODUCTS = (operator.mul, operator.imul, torch.mul)


@torch.no_grad()
def adjust(prepared: fx.GraphModule) -> fx.GraphModule:
    """Adjusts the scales of all sums and products of two values, in the order in which they are computed.

    Args:
        prepared: A model with fake quantization, its observers disabled; changed in place.

    Returns:
        The model.
    """
    layers = dict(prepared.named_modules(remove_duplicate=False))
    fixed = set()  # what a sum or product before has
    for node in prepared.graph.nodes:
        if node.target not in (*SUMS, *PRODUCTS):
            continue
        output = next(iter(node.users))
        while not hasattr(layers.get(output.target), "multiply_scale"):
            output = next(iter(output.users))
        inputs = [each for each in (*node.args, *node.kwargs.values()) if isinstance(each, fx.Node)]
        if node.target in SUMS:
            _raise_lowest(inputs, layers, layers[output.target].scale)
        modules = [layers.get(each.target) for each in inputs]
        if len(modules) == 2 and all(hasattr(each, "scale") for each in modules):
            modules.sort(key=lambda each: _is_free(each, fixed))
            if node.target in SUMS:
                _adjust_sum(
                    *modules, output=layers[output.target], second_is_free=_is_free(modules[1], fixed)
                )
            else:
                _adjust_product(*modules, output=layers[output.target])
            fixed |= {id(each) for each in (*modules, layers[output.target])}
    return prepared


def _raise_lowest(summands: list[fx.Node], layers: dict[str, nn.Module], scale: torch.Tensor) -> None:
    """Raises the scale of a summand to the lowest that all engines add.

    Nothing is lost: with a lower scale, the largest value of 8 bits is less than half a step of the sum.
    """
    for summand in summands:
        observer = layers.get(summand.target)  # that of a sigmoid has a fixed scale
        if len(summand.users) == 1 and hasattr(observer, "raise_scale"):  # else others need its precision
            observer.raise_scale(scale * SUMMAND_MIN)


def _is_free(layer: nn.Module, fixed: set[int]) -> bool:
    """Whether no sum or product before depends on the scale of a value, and it can be changed."""
    return id(layer) not in fixed and hasattr(layer, "multiply_scale")


def _adjust_sum(first: nn.Module, second: nn.Module, output: nn.Module, second_is_free: bool) -> None:
    numerator = max(1, round(float(first.scale / output.scale) * DENOMINATOR))
    _change(output, float(first.scale) * DENOMINATOR / numerator)
    if second_is_free:
        numerator = max(1, round(float(second.scale / output.scale) * DENOMINATOR))
        _change(second, float(output.scale) * numerator / DENOMINATOR)


def _adjust_product(first: nn.Module, second: nn.Module, output: nn.Module) -> None:
    scale = float(first.scale) * float(second.scale)
    ratio = scale / float(output.scale)
    numerator = max(1, round(ratio * DENOMINATOR))
    denominator = 2 * round((numerator / ratio - 1) / 2) + 1  # the nearest odd number
    _change(output, scale * denominator / numerator)


def _change(layer: nn.Module, scale: float) -> None:
    factor = scale / float(layer.scale)
    if abs(factor - 1) <= MAX_CHANGE:
        layer.multiply_scale(factor)
