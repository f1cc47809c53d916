import copy
import operator

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from common.compression import observers, quantization
from common.compression.recorder import Recorder
from common.models import architectures
from common.system.errors import UserError
from tests.compression.networks import (
    CLASSES,
    CPU,
    EMBEDDED,
    SERVER,
    SIDE,
    each_target,
    float_fake_quant_int8,
    prepared_for,
    quantized,
    random_network,
)


@each_target
@pytest.mark.parametrize(
    ("arch", "least"), [("resnet18", 0.9), ("mobilenet_v2", 0.3), ("squeezenet1_1", 0.8)]
)
def test_int8_predicts_what_the_float_model_does(arch, least, target):
    # mobilenet_v2 has ReLU6, whose elements the qnnpack engine reorders: then the similarity is near 0
    model, _, int8_model = float_fake_quant_int8(arch, target)
    images = torch.randn(32, 3, SIDE, SIDE)
    with torch.inference_mode():
        actual, expected = int8_model(images), model.eval()(images)
    # only of what differs between the images: random weights give similar logits for all of them
    actual, expected = ((logits - logits.mean(0)).flatten() for logits in (actual, expected))
    assert F.cosine_similarity(actual, expected, dim=0) > least


@each_target
def test_fake_quantization_computes_what_int8_does(target):
    # images brighter than those of the calibration too: beyond the observed range both continue, or both stop
    converted = quantization.convert(float_fake_quant_int8("squeezenet1_1", target)[1])
    for factor in (1, 1.7):
        images = factor * torch.randn(8, 3, SIDE, SIDE)
        with torch.inference_mode():
            expected, actual = converted.fake_quant(images), converted(images)
        assert (actual - expected).norm() < 0.04 * expected.norm()


@each_target
def test_weights_and_biases_are_those_of_fake_quantization(target):
    converted = quantization.convert(float_fake_quant_int8("resnet18", target)[1])
    layer, int8_layer = converted.fake_quant.get_submodule("conv1"), converted.int8.get_submodule("conv1")
    scale = layer.bn.weight / torch.sqrt(layer.bn.running_var + layer.bn.eps)
    weight = layer.weight_fake_quant(layer.weight * scale.view(-1, 1, 1, 1))
    assert torch.equal(int8_layer.weight().dequantize(), weight)
    integers = int8_layer.weight().int_repr()
    # never -128: two products with it overflow on ARM without dot product
    assert integers.int().abs().max() == target.weight_range[1]
    # Jacob et al., equation 11: multiples of input scale times weight scale
    steps = int8_layer.bias() / (layer.weight_fake_quant.scale * converted.int8.conv1_input_scale_0)
    assert steps.abs().max() > 10 and torch.allclose(steps, steps.round(), rtol=1e-6, atol=0.01)


def test_an_int8_prediction_does_not_depend_on_the_other_images_of_the_batch():
    _, _, int8_model = float_fake_quant_int8("mobilenet_v2", EMBEDDED)
    images = torch.randn(6, 3, SIDE, SIDE)
    together = int8_model(images)
    assert torch.equal(torch.cat([int8_model(image[None]) for image in images]), together)


def test_evaluating_int8_does_not_change_the_observers():
    prepared = prepared_for(SERVER, random_network("squeezenet1_1"))  # not converted yet
    before = copy.deepcopy(prepared.state_dict())
    quantization.convert(prepared)(100 * torch.randn(2, 3, SIDE, SIDE))
    after = prepared.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_calibration_takes_as_many_batches_as_it_is_told():
    _, prepared, _ = float_fake_quant_int8("squeezenet1_1", EMBEDDED)
    batches = iter([(torch.randn(2, 3, SIDE, SIDE), None)] * 5)
    quantization.calibrate(prepared, batches, CPU, 3)
    assert len(list(batches)) == 2


def test_batch_norm_is_frozen_from_the_start_and_observers_late_in_training():
    _, prepared, _ = float_fake_quant_int8("resnet18", SERVER)
    images = torch.randn(4, 3, SIDE, SIDE)

    def statistics():
        return {
            key: value.clone()
            for key, value in prepared.state_dict().items()
            if key.endswith(("min_val", "max_val", "running_mean", "running_var")) and "weight" not in key
        }

    def changed(epoch):
        before = statistics()
        quantization.freeze(prepared.train(), epoch, epochs=3)
        prepared(images)
        return {
            key.rpartition(".")[2]
            for key, value in statistics().items()
            if not torch.equal(value, before[key])
        }

    assert changed(0) == {"min_val", "max_val"}
    assert "max_val" in changed(1)
    assert changed(2) == set()


def test_a_network_that_cannot_be_traced_is_refused():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3)

        def forward(self, images):
            return self.layer(images) if images.sum() > 0 else self.layer(-images)

    with pytest.raises(UserError, match="Branches cannot be traced for quantization"):
        quantization.prepare(Branches(), SERVER, SIDE)


def test_a_network_that_trains_even_in_eval_mode_is_refused():
    class NormAndReLU(nn.BatchNorm2d):  # traced through: the tracer records training=True
        def forward(self, images):
            return F.relu(F.batch_norm(images, self.running_mean, self.running_var, training=self.training))

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), NormAndReLU(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    with pytest.raises(UserError, match="its prediction for an image depends on the others"):
        quantization.prepare(model.train(), SERVER, SIDE)


def test_int8_drops_no_layers_at_random():
    model = random_network("efficientnet_b0")
    assert any(isinstance(module, StochasticDepth) for module in model.modules())
    _, int8_model = quantized(model, SERVER)
    image = torch.randn(1, 3, SIDE, SIDE)
    assert len({tuple(int8_model(image).flatten().tolist()) for _ in range(8)}) == 1


class Calling(nn.Module):
    """A network that calls `function` with itself and the features of its first layer."""

    def __init__(self, function):
        super().__init__()
        self.first, self.drop, self.drop_rate = nn.Conv2d(3, 8, 3), nn.Dropout(0.5), 0.5
        self.classifier, self.function = nn.Linear(8, 5), function
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, images):
        return self.classifier(self.function(self, self.first(images)).mean((2, 3)))


def test_dropout_that_is_called_as_a_function_is_left_out_like_that_of_layers():
    def function(model, x):  # as timm and attention do
        x = F.dropout(x, model.drop_rate, model.training) if model.drop_rate > 0 else x
        return F.dropout(x, model.drop.p if model.training else 0.0)

    _, int8_model = quantized(Calling(function), SERVER)
    images = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(int8_model(images), int8_model(images))


def test_a_network_with_random_predictions_is_refused():
    with pytest.raises(UserError, match="its prediction for an image is random"):
        quantization.prepare(Calling(lambda _, x: x * torch.rand_like(x)), SERVER, SIDE)


def test_a_layer_that_is_called_as_a_function_in_int8_is_refused():
    def function(model, x):
        return F.linear(x.mean((2, 3)), model.weight)[:, :, None, None]

    with pytest.raises(UserError, match="Calling cannot be quantized: it calls functions such as linear"):
        quantization.prepare(Calling(function), SERVER, SIDE)


def test_an_input_that_is_given_by_name_is_refused():
    with pytest.raises(UserError, match="Calling cannot be quantized: it gives a function its input by name"):
        quantization.prepare(Calling(lambda _, x: torch.cat(tensors=[x, x], dim=2)), EMBEDDED, SIDE)


def test_a_summand_with_a_fixed_scale_is_added():
    _, int8_model = quantized(Calling(lambda _, x: x + x.sigmoid()), EMBEDDED)
    assert int8_model(torch.randn(2, 3, SIDE, SIDE)).isfinite().all()


def test_the_given_model_is_not_changed():
    model = random_network("mobilenet_v2")
    before = copy.deepcopy(model)
    quantization.prepare(model, EMBEDDED, SIDE)
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert architectures.shapes(model) == architectures.shapes(before)


def test_a_recorder_keeps_the_value_of_every_node():
    model = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.ReLU()))
    recorder = Recorder(model)
    recorder.run(torch.tensor([[-1.0, 2.0]]))
    assert [value.tolist() for value in recorder.values.values()] == [[[-1, 2]]] * 2 + [[[0, 2]]] * 2


def test_every_layer_has_the_scale_in_int8_that_it_was_trained_with():
    # squeezenet1_1 has a dropout between two layers: a scale of its own would be one that int8 ignores
    prepared = prepared_for(EMBEDDED, random_network("squeezenet1_1"))
    prepared.train()(torch.randn(16, 3, SIDE, SIDE))
    converted = quantization.convert(prepared)
    recorder, compared = Recorder(converted.int8), 0
    recorder.run(torch.randn(2, 3, SIDE, SIDE))
    for node in converted.fake_quant.graph.nodes:
        if node.op == "call_module" and "activation_post_process" in node.target and node.args[0].name != "x":
            value = recorder.values[node.args[0].name]
            scale = converted.fake_quant.get_submodule(node.target).scale
            assert value.q_scale() == pytest.approx(scale.item(), rel=1e-6), node.args[0].name
            compared += 1
    assert compared > 10


@each_target
@pytest.mark.parametrize("channels", [slice(None), slice(0, 3)], ids=["all", "some"])
def test_a_channel_whose_batch_norm_has_the_weight_0_is_quantized_and_learns(target, channels):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES),
    )  # fmt: skip
    with torch.no_grad():
        for norm in (model[1], model[4]):
            norm.bias.uniform_(0.2, 1)
        model[1].weight[channels] = 0
    prepared = prepared_for(target, model)
    images = torch.randn(8, 3, SIDE, SIDE)

    def compare():
        converted = quantization.convert(prepared)
        with torch.inference_mode():
            expected, actual = converted.fake_quant(images), converted(images)
        assert expected.isfinite().all() and (actual - expected).norm() < 0.04 * expected.norm()

    compare()
    layer = prepared.train().get_submodule("0")
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.01)
    F.cross_entropy(prepared(images), torch.arange(8) % CLASSES).backward()
    assert all(parameter.grad.isfinite().all() for parameter in prepared.parameters())
    assert (layer.bn.weight.grad[channels] != 0).all()
    optimizer.step()
    assert (layer.bn.weight[channels] != 0).all()
    compare()


class Residual(nn.Module):
    """A block that passes on its input almost unchanged: the weight of its last batch norm is small."""

    def __init__(self, weight):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, CLASSES)
        nn.init.constant_(self.block[1].weight, weight)

    def forward(self, images):
        x = self.stem(images)
        return self.head((x + self.block(x)).relu().mean((2, 3)))


@each_target
def test_a_block_that_starts_with_zeros_is_quantized_and_learns(target):
    prepared = prepared_for(target, Residual(0.0))
    images = torch.randn(8, 3, SIDE, SIDE)
    converted = quantization.convert(prepared)
    with torch.inference_mode():
        expected, actual = converted.fake_quant(images), converted(images)
    assert expected.isfinite().all() and (actual - expected).norm() < 0.04 * expected.norm()
    F.cross_entropy(prepared.train()(images), torch.arange(8) % CLASSES).backward()
    gradient = prepared.get_submodule("block.0").bn.weight.grad
    assert gradient.isfinite().all() and (gradient != 0).all()


@each_target
@pytest.mark.parametrize(("weight", "raised"), [(1e-6, True), (1.0, False)])
def test_the_scale_of_a_summand_is_raised_only_where_an_engine_would_refuse_it(target, weight, raised):
    # XNNPACK adds no summand with a scale below 2^-10 of that of the sum, and qnnpack none below 2^-14
    prepared = prepared_for(target, Residual(weight))
    converted = quantization.convert(prepared)
    (summand,) = [
        node.all_input_nodes[1].target for node in prepared.graph.nodes if node.target is operator.add
    ]
    before, after = (model.get_submodule(summand).scale for model in (prepared, converted.fake_quant))
    assert (after > 1.01 * before) == raised  # by 1 % every scale may change: see scales.adjust
    images = torch.randn(8, 3, SIDE, SIDE)
    with torch.inference_mode():
        expected, actual = converted.fake_quant(images), converted(images)
    assert (actual - expected).norm() < 0.04 * expected.norm()


@each_target
def test_a_scale_is_raised_only_where_the_bias_would_not_fit_into_int32(target):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    with torch.no_grad():
        model[0].weight[0] *= 1e-9
        model[0].weight[1] = 0
        model[0].bias[:2] = 60
    prepared = prepared_for(target, model)
    before = prepared.get_submodule("0").weight_fake_quant.scale
    converted = quantization.convert(prepared)
    after = converted.fake_quant.get_submodule("0").weight_fake_quant.scale
    assert torch.equal(after[1:], before[1:]) and after[1] == observers.SCALE_OF_ZEROS
    weight = converted.int8.get_submodule("0").weight()
    assert after[0] > before[0] and torch.equal(weight.q_per_channel_scales().float(), after)
    assert after[0] == pytest.approx(60 / 2**30 / float(prepared.activation_post_process_0.scale), rel=1e-5)
