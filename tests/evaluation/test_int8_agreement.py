from types import SimpleNamespace

import pytest
import torch

from common.compression import quantization
from common.evaluation import int8_agreement, metrics
from common.evaluation.metrics import Score
from common.system.errors import UserError
from tests.compression.networks import CPU, EMBEDDED, SIDE, prepared_for, random_network

pytestmark = pytest.mark.usefixtures("shallow_networks")


def test_an_int8_model_with_other_predictions_is_not_saved():
    converted = quantization.convert(prepared_for(EMBEDDED, random_network("squeezenet1_1")))
    batches = [(torch.randn(16, 3, SIDE, SIDE), torch.zeros(16, dtype=torch.long))]

    def evaluate():
        models = {"int8": converted.int8, "fake_quant": converted.fake_quant}
        return {name: metrics.evaluate(model, batches, CPU) for name, model in models.items()}

    int8_agreement.check(converted, evaluate(), batches)
    assert int8_agreement.first_difference(converted, batches[0][0]) is None
    layer = converted.int8.get_submodule("features.5.squeeze")
    layer.set_weight_bias(layer.weight(), layer.bias() + 1000)  # as an incorrect engine might compute
    with pytest.raises(
        UserError, match=r"int8 and fake quantization.*16 images.*differs: features_5_squeeze"
    ):
        int8_agreement.check(converted, evaluate(), batches)


def score(*incorrect):
    """200 images, of which 50 have another label than is predicted, with `incorrect` changed predictions."""
    predictions = torch.zeros(200, dtype=torch.long)
    predictions[list(incorrect)] = 1
    return Score(torch.arange(200) // 150, predictions, 190, 100.0)


def test_a_disagreement_of_more_than_one_percent_is_a_warning():
    scores = {"int8": score(), "fp32": score(0, 1, 2), "fake_quant": score(5, 6)}
    text = int8_agreement.summary("val", scores, {"int8_fraction": 1.0})
    assert "fp32: top-1 73.50%" in text and "agrees on 98.50%" in text and "agrees on 99.00%" in text
    assert "val, int8: top-1 75.00%" in text and "warning" not in text and "float32" not in text
    assert "75.2% of the weights are int8" in int8_agreement.summary("val", scores, {"int8_fraction": 0.7518})
    scores["fake_quant"] = score(5, 6, 7)
    text = int8_agreement.summary("val", scores, {"int8_fraction": 1.0})
    assert "warning: int8 and fake quantization disagree on more than 1 % of the val images" in text


def test_the_metrics_are_the_accuracy_and_the_agreement_with_int8():
    scores = {"int8": score(), "fp32": score(0, 1, 2), "fake_quant": score(5, 6), "x86": score(7)}
    converted = SimpleNamespace(int8="torch's", network="the integers")
    state = {"weight": {"int8": torch.zeros(3, 5), "scale": torch.ones(3)}, "float": torch.zeros(1, 5)}
    expected = {
        "int8_fraction": 0.75,
        "integers": True,
        "fp32": {"top1": 0.735, "agreement": 0.985},
        "fake_quant": {"top1": 0.74, "agreement": 0.99},
        "x86": {"top1": 0.745, "agreement": 0.995},
    }
    assert int8_agreement.as_metrics(converted, scores, state) == expected
    converted.network = converted.int8  # where a part of the network computes in float32
    engine = {"integers": False, "engine": torch.backends.quantized.engine}
    assert int8_agreement.as_metrics(converted, scores, state) == expected | engine
