"""How far an int8 model and the fake-quant model that it was made from give the same answers."""

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from common.errors import UserError
from common.metrics import Score
from common.quantization import Converted

ENOUGH = 0.9  # share of pictures with equal answers below which an int8 model is not saved
GOOD = 0.99  # and below which a warning is printed
DIFFERENT = 0.5  # norm of the difference to that of the values: a layer that computes something else


def check(converted: Converted, int8: Score, fake_quant: Score, batches: Iterable, engine: str) -> None:
    """Raises UserError where int8 answers fewer than `ENOUGH` of the pictures as fake quantization does.

    `int8` and `fake_quant` are the scores of the two models of `converted` on the same pictures. The message
    names the first layer that differs for the first of `batches` of (images, labels).
    """
    agreement = int8.agreement(fake_quant)
    if agreement < ENOUGH:
        images, _ = next(iter(batches))
        layer = first_difference(converted.cpu(), images.cpu()) or "none far off; it adds up"
        raise UserError(
            f"not saved: run by {engine}, the int8 model answers {agreement:.1%} of {int8.n} pictures as "
            f"the fake-quantized one does, less than {ENOUGH:.0%}; first layer that differs: {layer}"
        )


def summary(split: str, int8: Score, engine: str, others: dict[str, Score]) -> str:
    """Lines on how the int8 model and the `others`, "fp32" and "fake_quant", on the pictures of `split`.

    The last one warns where int8 and fake quantization disagree on more than 1 % of them.
    """
    lines = [
        f"{split}, {name}: {score}; the int8 model agrees on {int8.agreement(score):.2%}"
        for name, score in others.items()
    ]
    lines.append(f"{split}, int8 with {engine}: {int8}")
    if int8.agreement(others["fake_quant"]) < GOOD:
        lines.append(f"warning: int8 and fake quantization disagree on more than 1 % of the {split} pictures")
    return "\n".join(lines)


@torch.inference_mode()
def first_difference(converted: Converted, images: Tensor) -> str | None:
    """The first layer at which int8 leaves fake quantization, for `images` [N, 3, S, S]; None: at none.

    The two models have the same layers under the same names; each layer's quantized output is compared.
    """
    fake_quant, int8 = Recorder(converted.fake_quant), Recorder(converted.int8)
    fake_quant.run(images)
    int8.run(images)
    for node in converted.fake_quant.graph.nodes:
        if node.op == "call_module" and "activation_post_process" in node.target:
            layer = node.args[0].name
            if layer in int8.values:
                wanted, given = fake_quant.values[node.name], int8.values[layer].dequantize()
                if (given - wanted).norm() > DIFFERENT * wanted.norm():
                    return layer
    return None


class Recorder(fx.Interpreter):
    """Runs a traced model and keeps every tensor by the name of its node."""

    def __init__(self, model: fx.GraphModule):
        super().__init__(model)
        self.values = {}

    def run_node(self, node):
        value = super().run_node(node)
        if torch.is_tensor(value):
            self.values[node.name] = value
        return value
