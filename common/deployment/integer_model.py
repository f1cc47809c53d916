"""An int8 network that computes exactly its integers, as fast as this machine can."""

import onnx
import torch
from torch import Tensor, nn

from common.compression import int8_state, quantization
from common.compression.quantization import Converted
from common.compression.target_devices import TargetDevice
from common.deployment import layers, onnx_writer
from common.deployment.onnx_session import open_session
from common.deployment.onnx_writer import INPUT, OUTPUT
from common.integer import from_fx, plain, reference
from common.integer.graph import Graph
from common.models import architectures
from common.system.errors import UserError

CHECKED = 8  # images for which ONNX Runtime is compared with the reference


class IntegerModel(nn.Module):
    """Computes a graph with ONNX Runtime, or with the reference where ONNX Runtime gives other integers.

    The first images that it gets decide. Where they differ, a line says from which layer on.

    Attributes:
        graph: The network.
        engine: "ONNX Runtime" or "the reference".
    """

    def __init__(self, graph: Graph, threads: int = 0):
        """Opens a session.

        Args:
            graph: The network.
            threads: Of ONNX Runtime; 0 for all cores.
        """
        super().__init__()
        self.graph, self.engine, self.threads = graph, "ONNX Runtime", threads
        self._reference = ReferenceModel(graph)
        self._proto: onnx.ModelProto | None = onnx_writer.build(graph)
        self._session = open_session(self._proto, threads)

    def forward(self, images: Tensor) -> Tensor:
        """Runs the network.

        Args:
            images: float32 [N, 3, S, S], normalized.

        Returns:
            Logits, float32 [N, C].
        """
        if self._proto is not None and len(images):
            self._check(images[:CHECKED])
        return self._reference(images) if self._session is None else self._run(images)

    def _run(self, images: Tensor) -> Tensor:
        (logits,) = self._session.run([OUTPUT], {INPUT: images.contiguous().numpy()})
        return torch.from_numpy(logits)

    def _check(self, images: Tensor) -> None:
        """Decides what computes the network."""
        proto, self._proto = self._proto, None
        if torch.equal(self._run(images), self._reference(images)):
            return
        expected = layers.of_graph(self.graph, images)
        actual = layers.of_onnx(proto, images, self.threads)
        first = next((each for each in layers.differences(expected, actual) if each.count), None)
        print(f"note: ONNX Runtime differs from the integers of the network, which are used ({first})")
        self._session, self.engine = None, "the reference"


class ReferenceModel(nn.Module):
    """Computes a graph with the reference."""

    def __init__(self, graph: Graph, rounding: str = "once"):
        """Stores the graph.

        Args:
            graph: The network.
            rounding: Of `reference.ROUNDINGS`.
        """
        super().__init__()
        self.graph, self.rounding = graph, rounding

    def forward(self, images: Tensor) -> Tensor:
        """Runs the network.

        Args:
            images: float32 [N, 3, S, S], normalized.

        Returns:
            Logits, float32 [N, C].
        """
        integers = reference.run(self.graph, reference.quantize(images, self.graph.input), self.rounding)
        return reference.dequantize(integers, self.graph.output)


def convert(prepared: nn.Module, image_size: int) -> Converted:
    """Converts a model with fake quantization: what is evaluated are the integers that ship.

    Args:
        prepared: See `quantization.convert`.
        image_size: Side of the images, in pixels.

    Returns:
        The int8 model and its fake-quant model. Where a part computes in float32, torch runs it.
    """
    converted = quantization.convert(prepared)
    try:
        converted.network = IntegerModel(from_fx.read(converted.int8, image_size))
    except UserError:
        converted.network = converted.int8
    return converted


def to_content(converted: Converted, model: nn.Module, target: TargetDevice) -> dict:
    """What a checkpoint stores of an int8 model: its integers, and how to rebuild it.

    Args:
        converted: The result of `convert`.
        model: The float model that it was created from.
        target: The device that it was quantized for.

    Returns:
        The entries "state_dict" and "int8".
    """
    state = int8_state.extract(converted.int8)
    int8 = {"backend": target.backend, "float_shapes": architectures.shapes(model)}
    if isinstance(converted.network, IntegerModel):
        int8["graph"] = plain.to_plain(converted.network.graph, state)
    return {"state_dict": state, "int8": int8}
