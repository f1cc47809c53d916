"""The static array of a network in C, counted without writing the network."""

from common.deployment.c_constants import padded
from common.deployment.c_layers import Layers
from common.integer.graph import Graph, Operator
from common.integer.planner import Plan
from common.integer.rows import Network


class _Scratch(Layers):
    """Adds operators without their constants, which take most of the time."""

    def _array(self, kind: str, name: str, values) -> str:
        return ""

    def _layer(self, operator: Operator, suffix: str = "") -> str:
        return ""


def largest_scratch(graph: Graph) -> tuple[int, Operator]:
    """Finds the operator that needs the most memory besides its inputs and its output.

    Args:
        graph: The network.

    Returns:
        Bytes, and the operator; of several the first.

    Raises:
        UserError: An operator has no form in C; the message names it.
    """
    numbers = {tensor: index for index, tensor in enumerate(Network(graph).tensors)}
    layers = _Scratch("twice")
    largest, needs_it = 0, graph.operators[0]
    for operator in graph.operators:
        layers.add(operator, numbers)
        if layers.scratch > largest:
            largest, needs_it = layers.scratch, operator
    return largest, needs_it


def array_bytes(graph: Graph, plan: Plan) -> int:
    """Counts the bytes of the static array.

    Args:
        graph: The network.
        plan: Its plan.

    Returns:
        What `c_writer.write` gives as `ram`.

    Raises:
        UserError: An operator has no form in C; the message names it.
    """
    return padded(plan.arena) + largest_scratch(graph)[0]
