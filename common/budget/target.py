"""A budget: a limit on parameters, MACs, bytes of the file or of RAM, milliseconds or instructions."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from common.evaluation.memory import LiveTensor
from common.system import units
from common.system.errors import UserError


@dataclass(frozen=True)
class Budget:
    """A limit on what a model costs.

    Attributes:
        kind: "parameters", "macs", "size" (bytes), "latency" (milliseconds), "instructions" or "ram" (bytes).
        limit: The highest cost.
        start: The cost before pruning.
        cost: What a float model costs, or with `precision` "int8" what it will cost once it is quantized.
        precision: "fp32" or "int8".
        conditions: How the cost is measured.
        peak: Of "ram" the cost of a model, and the tensors that are kept while it is reached,
            their values in bytes.
        hint: What else lowers the cost, for a limit that cannot be reached.
        cost_of_widths: What the model costs with other widths, by the name of the layer, where that is known
            without pruning it.
    """

    kind: str
    limit: float
    start: float
    cost: Callable[[nn.Module], float]
    precision: str = "fp32"
    conditions: str = ""
    peak: Callable[[nn.Module], tuple[float, tuple[LiveTensor, ...]]] | None = None
    hint: str = ""
    cost_of_widths: Callable[[dict[str, int]], float] | None = None

    @property
    def strict(self) -> bool:
        """Whether the limit may not be exceeded at all."""
        return self.kind != "parameters"

    def unreachable(self, least: float, start: float) -> UserError:
        """The error for a network that cannot be pruned to the limit.

        Args:
            least: The lowest cost that it can be pruned to.
            start: Its cost before.

        Returns:
            The error, to be raised.
        """
        lowest, now = (units.FORMATS[self.kind].format(cost) for cost in (least, start))
        return UserError(
            f"this network cannot be pruned to {self.describe(self.limit)}: {lowest} is the least, "
            f"{least / start:.1%} of {now}{self.hint}"
        )

    def describe(self, cost: float) -> str:
        """Writes a cost for a reader.

        Args:
            cost: In the unit of the budget.

        Returns:
            See `units.describe`.
        """
        return units.describe(self.kind, cost, self.precision, self.conditions)

    def achieved(self, model: nn.Module) -> dict:
        """The cost of a pruned model, as a checkpoint stores it.

        Args:
            model: The float model.

        Returns:
            of, precision, limit, achieved, conditions.
        """
        return {
            "of": self.kind,
            "precision": self.precision,
            "limit": self.limit,
            "achieved": self.cost(model),
            "conditions": self.conditions,
        }

    def at_step(self, step: int, steps: int) -> "Budget":
        """The budget of one of several pruning steps: each step removes the same fraction of what is there.

        Args:
            step: From 1.
            steps: How many there are.

        Returns:
            The budget with another limit.
        """
        return replace(self, limit=self.start * (self.limit / self.start) ** (step / steps))
