import pytest
import torch

from common.compression import quantization
from common.evaluation import int8_agreement, metrics
from common.evaluation.metrics import Score
from common.system.errors import UserError
from tests.test_quantization import CPU, SIDE, awake, prepared_for


def test_an_int8_model_that_answers_otherwise_is_not_saved():
    converted = quantization.convert(prepared_for("qnnpack", awake("squeezenet1_1")))
    pictures = [(torch.randn(16, 3, SIDE, SIDE), torch.zeros(16, dtype=torch.long))]
    fake_quant = metrics.evaluate(converted.fake_quant, pictures, CPU)
    int8_agreement.check(
        converted, metrics.evaluate(converted.int8, pictures, CPU), fake_quant, pictures, "qnnpack"
    )
    assert int8_agreement.first_difference(converted, pictures[0][0]) is None
    layer = converted.int8.get_submodule("features.6.squeeze")
    layer.set_weight_bias(layer.weight(), layer.bias() + 1000)  # as a faulty engine might compute
    faulty = metrics.evaluate(converted.int8, pictures, CPU)
    with pytest.raises(UserError, match=r"run by qnnpack.*16 pictures.*differs: features_6_squeeze"):
        int8_agreement.check(converted, faulty, fake_quant, pictures, "qnnpack")


def test_a_recorder_keeps_the_value_of_every_node():
    model = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU()))
    recorder = quantization.Recorder(model)
    recorder.run(torch.tensor([[-1.0, 2.0]]))
    assert [value.tolist() for value in recorder.values.values()] == [[[-1, 2]]] * 2 + [[[0, 2]]] * 2


def test_every_layer_has_the_scale_in_int8_that_it_was_trained_with():
    # squeezenet1_1 has a dropout between two layers: a scale of its own would be one that int8 ignores
    prepared = prepared_for("qnnpack", awake("squeezenet1_1"))
    prepared.train()(torch.randn(16, 3, SIDE, SIDE))
    converted = quantization.convert(prepared)
    recorder, compared = quantization.Recorder(converted.int8), 0
    recorder.run(torch.randn(2, 3, SIDE, SIDE))
    for node in converted.fake_quant.graph.nodes:
        if node.op == "call_module" and "activation_post_process" in node.target and node.args[0].name != "x":
            value = recorder.values[node.args[0].name]
            scale = converted.fake_quant.get_submodule(node.target).scale
            assert value.q_scale() == pytest.approx(scale.item(), rel=1e-6), node.args[0].name
            compared += 1
    assert compared > 30


def test_more_than_one_percent_of_disagreement_is_a_warning():
    def score(*wrong):
        answers = torch.zeros(200, dtype=torch.long)
        answers[list(wrong)] = 1
        return Score(torch.arange(200) // 150, answers, 190, 100.0)

    said = int8_agreement.summary("val", score(), "x86", {"fp32": score(0, 1, 2), "fake_quant": score(5, 6)})
    assert "fp32: top-1 73.50%" in said and "agrees on 98.50%" in said and "agrees on 99.00%" in said
    assert "int8 with x86: top-1 75.00%" in said and "warning" not in said
    assert "warning" in int8_agreement.summary("val", score(), "x86", {"fake_quant": score(5, 6, 7)})
