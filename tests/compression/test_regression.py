import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.compression import regression
from common.compression.regression import Sums

LAYERS = {
    "dense": nn.Conv2d(6, 4, 3, stride=2, padding=1),
    "dilated": nn.Conv2d(6, 4, (3, 1), dilation=(2, 1), padding=(2, 0)),
    "grouped": nn.Conv2d(6, 4, 3, groups=2),
    "depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "reflected": nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"),
    "pointwise": nn.Conv2d(6, 4, 1, stride=(1, 2)),
}
each_layer = pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)


@each_layer
def test_patches_times_weights_are_the_outputs(layer):
    inputs = torch.randn(3, 6, 9, 7)
    outputs = layer(inputs)
    chosen = regression.positions(layer, outputs, 0)
    patches = regression.patches(layer, inputs, chosen)
    weights = layer.weight.flatten(1).unflatten(0, (layer.groups, -1))  # [groups, channels, K]
    expected = patches @ weights.mT + layer.bias.unflatten(0, (layer.groups, 1, -1))
    assert torch.allclose(regression.rows(layer, outputs, chosen), expected, atol=1e-5)


def test_rows_of_a_linear_layer_are_those_of_every_token():
    layer, inputs = nn.Linear(5, 3), torch.randn(2, 7, 5)
    outputs = layer(inputs)
    chosen = regression.positions(layer, outputs, 0)
    patches, rows = regression.patches(layer, inputs, chosen), regression.rows(layer, outputs, chosen)
    assert patches.shape == (1, 14, 5) and rows.shape == (1, 14, 3)
    assert torch.allclose(patches @ layer.weight.T + layer.bias, rows, atol=1e-6)


def test_only_some_channels_are_used():
    layer, outputs = nn.Conv2d(2, 4, 1, groups=2), torch.arange(4.0).reshape(1, 4, 1, 1)
    chosen, channels = torch.tensor([0]), torch.tensor([3, 1])
    assert regression.rows(layer, outputs, chosen, channels).tolist() == [[[3.0]], [[1.0]]]


def test_positions_are_drawn_without_repetition_and_by_the_seed(monkeypatch):
    layer, outputs = nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 5, 5)
    assert sorted(regression.positions(layer, outputs, 1).tolist()) == list(range(25))
    monkeypatch.setattr(regression, "POSITIONS", 10)
    first, again, other = (regression.positions(layer, outputs, *seed) for seed in ((1, 2), (1, 2), (2, 1)))
    assert len(set(first.tolist())) == 10 and torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("intercept", [True, False])
def test_the_ridge_regression_is_that_of_numpy(intercept):
    x, d = torch.randn(2, 40, 5) + 1, torch.randn(2, 40, 3)
    sums = Sums()
    for rows in (slice(0, 15), slice(15, 40)):
        sums += Sums.of(x[:, rows], d[:, rows], d[:, rows])
    change = sums.ridge(intercept=intercept, strength=0.1)
    for group in range(2):
        features, wanted = x[group].double().numpy(), d[group].double().numpy()
        mean_x, mean_d = features.mean(0) * intercept, wanted.mean(0) * intercept
        centered = features - mean_x
        penalty = 0.1 * (centered**2).sum(0).mean()
        # the penalty as further rows: sqrt(penalty) * D = 0
        stacked = np.concatenate([centered, np.sqrt(penalty) * np.eye(5)])
        expected = np.linalg.lstsq(stacked, np.concatenate([wanted - mean_d, np.zeros((5, 3))]), rcond=None)[
            0
        ]
        assert np.allclose(change[group, :-1], expected, atol=1e-5)
        assert np.allclose(change[group, -1], mean_d - mean_x @ expected, atol=1e-5)


def test_errors_are_those_of_the_rows():
    x, d, y = torch.randn(1, 30, 4), torch.randn(1, 30, 2), torch.randn(1, 30, 2)
    sums = Sums.of(x, d, y)
    change = torch.randn(1, 5, 2, dtype=torch.float64)
    left = d.double() - F.pad(x.double(), (0, 1), value=1.0) @ change
    assert float(sums.squared_error(change)) == pytest.approx(float((left**2).sum()), rel=1e-4)
    relative = float((left**2).sum() / y.square().sum())
    assert sums.relative_error(change) == pytest.approx(relative, rel=1e-4)


def test_inputs_that_are_always_zero_change_nothing_but_the_intercept():
    x, d = torch.zeros(1, 20, 3), torch.full((1, 20, 2), 5.0)
    assert Sums.of(x, d, d).ridge(intercept=True).tolist() == [[[0.0] * 2] * 3 + [[5.0] * 2]]
