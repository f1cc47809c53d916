import pytest
import torch

from common.audit import calibration


def two_classes(confidence):
    """Probabilities of two classes, the first of which is predicted with these confidences."""
    first = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([first, 1 - first], 1)


def test_the_error_is_the_mean_distance_over_bins_with_the_same_number_of_images():
    # 30 images, two in each of 15 bins: confidence 0.9 and one of two correct, so 0.4 in each
    labels = torch.tensor([0, 1] * 15)
    assert calibration.expected_calibration_error(two_classes([0.9] * 30), labels) == pytest.approx(0.4)
    # one image in each bin: 0.4 for the wrong one of confidence 0.6 is not balanced by those of other bins
    labels = torch.tensor([1] + [0] * 14)
    confidence = [0.6] + [0.8] * 14
    expected = (0.6 + 14 * 0.2) / 15
    assert calibration.expected_calibration_error(two_classes(confidence), labels) == pytest.approx(expected)


def test_a_calibrated_model_has_no_error():
    confidence = [0.75] * 60
    labels = torch.tensor([0, 0, 0, 1] * 15)
    assert calibration.expected_calibration_error(two_classes(confidence), labels) == pytest.approx(0)


def test_the_bins_of_the_reliability_diagram_rise():
    confidence = torch.linspace(0.55, 0.99, 31).tolist()
    bins = calibration.reliability(two_classes(confidence), torch.zeros(31, dtype=torch.long))
    assert len(bins) == 15 and sum(each.n for each in bins) == 31 and {each.n for each in bins} == {2, 3}
    assert [each.confidence for each in bins] == sorted(each.confidence for each in bins)
    assert {each.accuracy for each in bins} == {1.0}
    assert len(calibration.reliability(two_classes([0.9, 0.8]), torch.zeros(2, dtype=torch.long))) == 2


def test_the_interval_contains_the_error_of_a_model_that_is_wrong_by_a_constant():
    labels = (torch.arange(600) % 2).long()
    low, high = calibration.bootstrap_interval(two_classes([0.9] * 600), labels)
    assert low < 0.4 < high < 0.5 and low > 0.3
    assert calibration.bootstrap_interval(two_classes([0.9] * 600), labels) == (low, high)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_applied_is_found_again(temperature):
    # three of four images of each kind have the label that the calibrated logits claim
    calibrated = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log().expand(400, 2)
    labels = torch.tensor([0, 0, 0, 1] * 100)
    assert calibration.fit_temperature(calibrated * temperature, labels) == pytest.approx(
        temperature, rel=1e-4
    )
