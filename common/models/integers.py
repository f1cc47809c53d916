"""The integers of an int8 checkpoint."""

from common.integer import from_fx, plain
from common.integer.graph import Graph
from common.models.checkpoint import rebuild
from common.system.errors import UserError


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
        model = rebuild(checkpoint)
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
