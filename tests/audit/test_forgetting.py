import pytest
import torch

from common.audit import forgetting
from common.evaluation.metrics import Score

# ten images of two classes; the parent is wrong on image 9, the child on images 0, 1, 2 and 5
LABELS = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
PARENT = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 0])
CHILD = torch.tensor([1, 1, 1, 0, 0, 0, 1, 1, 1, 1])


def score(predictions):
    return Score(LABELS, predictions, 10, 0.0)


def test_flips_are_the_images_for_which_one_model_is_correct():
    flips = forgetting.flips(score(PARENT), score(CHILD))
    assert flips.forgotten.tolist() == [0, 1, 2, 5] and flips.learned.tolist() == [9]
    assert flips.changed.tolist() == [0, 1, 2, 5, 9]
    # of five coins at most one head, twice: 2 * (1 + 5) / 32
    assert flips.p == pytest.approx(0.375)


def test_two_wrong_predictions_that_differ_are_a_change_but_no_flip():
    first, second = (Score(torch.tensor([2]), torch.tensor([each]), 1, 0.0) for each in (0, 1))
    flips = forgetting.flips(first, second)
    assert not len(flips.forgotten) and not len(flips.learned) and flips.changed.tolist() == [0]


def test_the_worst_images_lose_most_of_the_probability_of_their_label():
    parent = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    child = torch.tensor([[0.4, 0.6], [0.4, 0.6], [0.9, 0.1]])
    labels, forgotten = torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2])
    assert forgetting.worst(forgotten, parent, child, labels, 9) == [2, 0, 1]  # 0.7, 0.5, 0.2
    assert forgetting.worst(forgotten, parent, child, labels, 1) == [2]


def test_the_accuracy_of_each_class_is_compared():
    lost, equal = forgetting.class_changes(score(PARENT), score(CHILD), 3)  # the third class has no images
    assert (lost.label, lost.n, lost.parent, lost.child) == (0, 5, 1.0, 0.4)
    assert lost.difference == pytest.approx(-0.6)
    assert lost.p == pytest.approx(0.25) and lost.p_holm == pytest.approx(0.5)  # 2 / 2^3, of two tests
    assert (equal.label, equal.parent, equal.child, equal.p, equal.p_holm) == (1, 0.8, 0.8, 1.0, 1.0)


def test_holm_corrects_p_values():
    # by hand: 0.01 * 4, 0.02 * 3, then 0.03 * 2 = 0.06 and 0.04 * 1, which may not be below the one before
    assert forgetting.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert forgetting.holm([0.5, 0.9]) == [1.0, 1.0] and forgetting.holm([]) == []


def test_the_interval_of_a_paired_difference():
    before, after = (torch.tensor(each, dtype=torch.bool) for each in ([1] * 5, [0, 0, 0, 1, 1]))
    # won 1/7, lost 4/7: -3/7 and 1.96 times the root of (5/7 - 9/49) / 7
    half = 1.959964 * ((5 / 7 - 9 / 49) / 7) ** 0.5
    assert forgetting.paired_interval(before, after) == pytest.approx((-3 / 7 - half, -3 / 7 + half))
