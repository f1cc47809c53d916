"""Ridge regression of the weights of a layer, from sums over images and positions (the normal equations)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.system import distributed, seeding

RIDGE = 1e-3  # of the mean diagonal of the Gram matrix
TINY = torch.finfo(torch.float32).tiny  # in place of a mean that is 0
POSITIONS = 64  # of each image and layer: neighbors have nearly the same values
LARGEST = 8192  # weights of an output channel: a matrix of as many rows and columns takes half a gigabyte


def is_possible(module: nn.Module) -> bool:
    """Whether a module is a layer whose weights a regression can find.

    Args:
        module: Any module.

    Returns:
        True for Conv2d and Linear with at most 8,192 weights of an output channel.
    """
    return isinstance(module, nn.Conv2d | nn.Linear) and module.weight[0].numel() <= LARGEST


def positions(layer: nn.Module, outputs: Tensor, *seed: int) -> Tensor:
    """Draws positions of a layer's output.

    Args:
        layer: Conv2d or Linear.
        outputs: Its output for a batch, [N, C, H, W] or [N, ..., C].
        *seed: Integers of at least 0.

    Returns:
        Indices into H * W, int64 [P]; a Linear layer has one.
    """
    count = outputs.shape[2:].numel() if isinstance(layer, nn.Conv2d) else 1
    generator = torch.Generator().manual_seed(seeding.derive_seed(*seed))
    return torch.randperm(count, generator=generator)[:POSITIONS].to(outputs.device)


def rows(layer: nn.Module, outputs: Tensor, chosen: Tensor, channels: Tensor | None = None) -> Tensor:
    """Arranges outputs as rows.

    Args:
        layer: Conv2d or Linear; its groups are those of the result.
        outputs: [N, C, H, W] or [N, ..., C].
        chosen: The result of `positions`.
        channels: The indices of the channels that are used; None for all.

    Returns:
        [groups, rows, channels of a group]; the rows of an image follow each other.
    """
    outputs = outputs.flatten(0, -2).unsqueeze(-1) if isinstance(layer, nn.Linear) else outputs.flatten(2)
    outputs = outputs.index_select(2, chosen)
    outputs = outputs if channels is None else outputs.index_select(1, channels)
    return outputs.unflatten(1, (_groups(layer), -1)).permute(1, 0, 3, 2).flatten(1, 2)


def patches(layer: nn.Module, inputs: Tensor, chosen: Tensor) -> Tensor:
    """Arranges what outputs are computed from as rows.

    Args:
        layer: Conv2d or Linear.
        inputs: [N, C, H, W] or [N, ..., C].
        chosen: Positions of the output, the result of `positions`.

    Returns:
        [groups, rows, weights of an output channel], in the order of `rows`.
    """
    if isinstance(layer, nn.Linear):
        return inputs.flatten(0, -2).unsqueeze(0)
    padding = layer._reversed_padding_repeated_twice
    if any(padding):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        inputs = F.pad(inputs, padding, mode=mode)
    width = (inputs.shape[3] - layer.dilation[1] * (layer.kernel_size[1] - 1) - 1) // layer.stride[1] + 1
    y, x = (
        (start * layer.stride[axis]).unsqueeze(1)
        + torch.arange(layer.kernel_size[axis], device=inputs.device) * layer.dilation[axis]
        for axis, start in enumerate((chosen // width, chosen % width))
    )
    places = y.unsqueeze(2) * inputs.shape[3] + x.unsqueeze(1)  # [P, height, width of the kernel]
    columns = inputs.flatten(2).index_select(2, places.flatten()).unflatten(2, (len(chosen), -1))
    return columns.unflatten(1, (layer.groups, -1)).permute(1, 0, 3, 2, 4).flatten(3).flatten(1, 2)


def _groups(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


@dataclass
class Sums:
    """Sums over rows, float64.

    Attributes:
        gram: Of x x^T, where x is a patch and a 1: [groups, K + 1, K + 1].
        cross: Of x d^T, where d is the difference that is to be computed: [groups, K + 1, channels].
        squares: Of d^2, over all channels.
        target: Of y^2, where y is what the layer should compute, over all channels.
    """

    gram: Tensor | float = 0.0
    cross: Tensor | float = 0.0
    squares: Tensor | float = 0.0
    target: Tensor | float = 0.0

    @classmethod
    def of(cls, x: Tensor, difference: Tensor, target: Tensor) -> "Sums":
        """Computes the sums of some rows.

        Args:
            x: Patches, [groups, rows, K].
            difference: [groups, rows, channels].
            target: [groups, rows, channels].

        Returns:
            The sums.
        """
        # in float64, since the mean is subtracted later
        x, difference, target = x.double(), difference.double(), target.double()
        count = torch.full_like(x[:, :1, :1], x.shape[1])
        total = x.sum(1, keepdim=True)
        gram = torch.cat([torch.cat([x.mT @ x, total], 1), torch.cat([total, count], 2).mT], 2)
        cross = torch.cat([x.mT @ difference, difference.sum(1, keepdim=True)], 1)
        return cls(gram, cross, difference.square().sum(), target.square().sum())

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(*(one + two for one, two in zip(vars(self).values(), vars(other).values(), strict=True)))

    def all_reduce(self) -> "Sums":
        """The sums of all processes together, on the CPU."""
        return Sums(*(distributed.all_reduce(each.cpu()) for each in vars(self).values()))

    def _count(self) -> Tensor:
        return self.gram[:, -1:, -1:].clamp(min=1)

    def mean(self) -> Tensor:
        """The mean of the patches, float64 [groups, K, 1]."""
        return self.gram[:, :-1, -1:] / self._count()

    def covariance(self) -> Tensor:
        """Sums of squares and products of the patches minus their mean, float64 [groups, K, K]."""
        return self.gram[:, :-1, :-1] - self._count() * self.mean() * self.mean().mT

    def squared_error(self, change: Tensor) -> Tensor:
        """The sum of squares of what is left of the difference.

        Args:
            change: [groups, K + 1, channels]: of the weights, and of the intercept.

        Returns:
            float64 [].
        """
        return self.squares - 2 * (change * self.cross).sum() + (change * (self.gram @ change)).sum()

    def relative_error(self, change: Tensor) -> float:
        """`squared_error` over the squares of the target.

        Args:
            change: See `squared_error`.

        Returns:
            0 for an exact fit.
        """
        return max(0.0, float(self.squared_error(change) / self.target))

    def ridge(self, *, intercept: bool, strength: float = RIDGE) -> Tensor:
        """Solves the ridge regression of the difference on the patches; the intercept is not penalized.

        Args:
            intercept: Whether there is one.
            strength: Of the penalty, in units of the mean diagonal of the Gram matrix.

        Returns:
            The change of the weights and of the intercept, float64 [groups, K + 1, channels].
        """
        change = torch.zeros_like(self.cross)
        mean_x, mean_d = self.mean() * intercept, self.cross[:, -1:] / self._count() * intercept
        centered = self.covariance() if intercept else self.gram[:, :-1, :-1].clone()
        diagonal = centered.diagonal(dim1=1, dim2=2)
        diagonal += (strength * diagonal.mean(1, keepdim=True)).clamp(min=TINY)
        change[:, :-1] = torch.linalg.solve(centered, self.cross[:, :-1] - self._count() * mean_x * mean_d)
        change[:, -1:] = mean_d - mean_x.mT @ change[:, :-1]
        return change
