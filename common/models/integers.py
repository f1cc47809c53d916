"""The integers of an int8 checkpoint, also where torch has no quantized kernels."""

from torch import fx

from common.compression import int8_plain, target_devices
from common.integer import from_fx, plain
from common.integer.graph import Graph
from common.models import architectures
from common.system.errors import UserError, first_line


def read(checkpoint: dict) -> Graph | None:
    """The integers of an int8 checkpoint.

    Args:
        checkpoint: The content of one.

    Returns:
        The graph; None for a float model, and for an int8 model of which a part computes in float32.

    Raises:
        UserError: The integers are not valid, or do not fit the checkpoint.
    """
    int8, side = checkpoint["int8"], checkpoint["image_size"]
    if int8 is None:
        return None
    if "graph" not in int8:  # a file of an earlier version, or partly float
        model = _to_read(checkpoint)
        try:
            return from_fx.read(model, side)
        except UserError:
            return None
    graph = plain.from_plain(int8["graph"], checkpoint["state_dict"])
    shapes = graph.input.shape, graph.output.shape
    if shapes != ((3, side, side), (len(checkpoint["classes"]),)):
        raise UserError(
            f"the graph of integers maps {shapes[0]} to {shapes[1]}: not what the checkpoint says"
        )
    return graph


def _to_read(checkpoint: dict) -> fx.GraphModule:
    arch, int8 = checkpoint["arch"], checkpoint["int8"]
    target = target_devices.by_backend(int8["backend"])
    try:
        model = architectures.rebuild(arch, len(checkpoint["classes"]), int8["float_shapes"])
        return int8_plain.build(model, target, checkpoint["image_size"], checkpoint["state_dict"])
    except (RuntimeError, KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise UserError(f"the int8 weights do not fit {arch}: {first_line(error)}") from None
