"""What fake quantization observes: the range of the values, which gives the scales."""

import math

import torch
from torch import Tensor
from torch.ao.quantization import MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver

SCALE_OF_ZEROS = 2**-7  # near those of other tensors: kernels bound the ratio of scales, and int32 the biases


class _ScaleOfZeros:
    """Gives values that are all zero a scale of usual size: torch's, the smallest number, fits no kernel."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        scale, zero_point = super().calculate_qparams()
        zeros = (self.min_val == 0) & (self.max_val == 0)
        return torch.where(zeros, SCALE_OF_ZEROS, scale), zero_point


class WeightObserver(_ScaleOfZeros, MovingAveragePerChannelMinMaxObserver):
    """torch's observer of a weight with a scale for each output channel."""


class RangeObserver(_ScaleOfZeros, MovingAverageMinMaxObserver):
    """torch's moving average of the minimum and the maximum, without a copy of channels_last tensors.

    Attributes:
        limit: The maximum is at most this.
    """

    limit = math.inf

    def forward(self, x: Tensor) -> Tensor:
        """Updates the moving averages.

        Args:
            x: float [...].

        Returns:
            `x` itself.
        """
        super().forward(x.permute(0, 2, 3, 1) if x.ndim == 4 else x)
        self.max_val.clamp_(max=self.limit)
        return x


class SymmetricRangeObserver(RangeObserver):
    """One with the zero point 128 and the scale of int8: the largest absolute value is 127 steps away."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """torch's centre of 0 to 255 is 127.

        Returns:
            (scale, zero point).
        """
        scale, zero_point = super().calculate_qparams()
        return scale * (127.5 / 127), torch.full_like(zero_point, 128)
