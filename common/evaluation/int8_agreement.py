"""How well an int8 model agrees with the fake-quant model that it was converted from."""

from collections.abc import Iterable

import torch
from torch import Tensor

from common.compression import int8_state
from common.compression.quantization import Converted
from common.compression.recorder import Recorder
from common.evaluation.metrics import Score
from common.system.errors import UserError

MIN_AGREEMENT = 0.9  # fraction of the images with equal predictions below which an int8 model is not saved
WARN_BELOW = 0.99  # and below which a warning is printed
DIFFERENT = 0.5  # norm of the difference over that of the values: the layer computes something else


def check(converted: Converted, scores: dict[str, Score], batches: Iterable) -> None:
    """Refuses an int8 model that does not compute what its fake-quant model does.

    Args:
        converted: Both models.
        scores: "int8" and "fake_quant", on the same images.
        batches: (images, labels); the first is used to find the layer that differs.

    Raises:
        UserError: Fewer than `MIN_AGREEMENT` of the predictions are equal. The message names the first layer
            that differs.
    """
    int8 = scores["int8"]
    agreement = int8.agreement(scores["fake_quant"])
    if agreement < MIN_AGREEMENT:
        images, _ = next(iter(batches))
        layer = first_difference(converted.cpu(), images.cpu()) or "none by itself, small differences add up"
        raise UserError(
            f"not saved: int8 and fake quantization agree on {agreement:.1%} of {int8.n} "
            f"images, less than {MIN_AGREEMENT:.0%}; first layer that differs: {layer}"
        )


def summary(split: str, scores: dict[str, Score], metrics: dict) -> str:
    """Describes the scores of an int8 model and of those that it was created from.

    Args:
        split: "test" or "val".
        scores: "int8", "fp32" and "fake_quant", and perhaps an engine of torch, on the same images.
        metrics: The result of `as_metrics`.

    Returns:
        A line for each, and one where weights are not int8; the last one warns where int8 and fake
        quantization disagree on more than 1 % of the images.
    """
    int8 = scores["int8"]
    lines = [
        f"{split}, {name}: {score}; int8 agrees on {int8.agreement(score):.2%}"
        for name, score in scores.items()
        if name != "int8"
    ]
    lines.append(f"{split}, int8: {int8}")
    if metrics["int8_fraction"] < 1.0:
        lines.append(f"{metrics['int8_fraction']:.1%} of the weights are int8, the others stay in float32")
    if "int4_fraction" in metrics:
        lines.append(f"{metrics['int4_fraction']:.1%} of the weights have 4 bits")
    if int8.agreement(scores["fake_quant"]) < WARN_BELOW:
        lines.append(f"warning: int8 and fake quantization disagree on more than 1 % of the {split} images")
    return "\n".join(lines)


def as_metrics(converted: Converted, scores: dict[str, Score], state: dict) -> dict:
    """The metrics of an int8 model beside its accuracy, as a checkpoint stores them.

    Args:
        converted: The model.
        scores: See `summary`.
        state: The result of `int8_state.extract`.

    Returns:
        The `int8_state.fractions`; integers: whether the accuracy is that of the integers, and not that of an
        engine of torch, which is named if not; and for each other score top1 and the agreement with int8,
        from 0 to 1.
    """
    metrics = int8_state.fractions(state) | {"integers": converted.network is not converted.int8}
    if not metrics["integers"]:
        metrics["engine"] = torch.backends.quantized.engine
    return metrics | {
        name: {"top1": score.top1, "agreement": score.agreement(scores["int8"])}
        for name, score in scores.items()
        if name != "int8"
    }


@torch.inference_mode()
def first_difference(converted: Converted, images: Tensor) -> str | None:
    """Finds the layer where int8 differs from fake quantization.

    The two models have the same layers under the same names; the quantized output of each layer is compared.

    Args:
        converted: Both models, on the CPU.
        images: float32 [N, 3, S, S].

    Returns:
        The name of the first layer that differs; None where none does.
    """
    fake_quant, int8 = Recorder(converted.fake_quant), Recorder(converted.int8)
    fake_quant.run(images)
    int8.run(images)
    for node in converted.fake_quant.graph.nodes:
        if node.op == "call_module" and "activation_post_process" in node.target:
            layer = node.args[0].name
            if layer in int8.values:
                expected, actual = fake_quant.values[node.name], int8.values[layer].dequantize()
                if (actual - expected).norm() > DIFFERENT * expected.norm():
                    return layer
    return None
