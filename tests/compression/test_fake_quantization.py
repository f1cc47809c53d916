import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    disable_fake_quant,
    disable_observer,
)

from common.compression import fake_quantization, int8_engines, observers, quantization
from common.compression.recorder import Recorder
from common.compression.target_devices import TARGET_DEVICES
from common.integer import from_fx, reference
from common.integer.operators import AveragePool
from tests.compression.networks import (
    CLASSES,
    CPU,
    EMBEDDED,
    SERVER,
    SIDE,
    each_target,
    prepared_for,
    random_network,
)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
def test_the_fused_layers_have_the_outputs_and_gradients_of_those_of_torch(arch):
    fast = quantization.trace(random_network(arch), EMBEDDED, SIDE).train()
    slow = copy.deepcopy(fast)
    for module in slow.modules():
        module.__dict__.pop("forward", None)  # back to that of torch
    pairs = [
        (one, other)
        for one, other in zip(fast.modules(), slow.modules(), strict=True)
        if "forward" in vars(one)
    ]
    assert len(pairs) >= 12 and {type(one).__name__ for one, _ in pairs} == {"ConvBn2d", "ConvBnReLU2d"}
    for one, other in pairs:
        images = torch.randn(4, one.in_channels, 8, 8).requires_grad_()
        outputs = one(images), other(images)
        assert torch.allclose(*outputs, atol=1e-4)
        assert torch.allclose(one.bn.running_var, other.bn.running_var, rtol=1e-4, atol=1e-6)
        direction = torch.randn_like(outputs[0])
        gradients = [
            torch.autograd.grad(
                (output * direction).sum(), [images, layer.weight, layer.bn.weight, layer.bn.bias]
            )
            for output, layer in zip(outputs, (one, other), strict=True)
        ]
        for actual, expected in zip(*gradients, strict=True):
            # a few values lie halfway between two integers, and their last bit decides
            assert (actual - expected).norm() < 0.02 * expected.norm() + 1e-4


@each_target
def test_activations_are_fake_quantized_as_by_torch_with_the_same_gradient(target):
    own = fake_quantization.qconfig_mapping(target).global_qconfig.activation()
    torchs = FakeQuantize(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
    for scale in (1.0, 4.0):  # the second batch exceeds the moving average: its ends are clipped
        x = scale * torch.randn(4, 6, 9, 9).contiguous(memory_format=torch.channels_last)
        results = []
        for module in (own, torchs):
            values = x.clone().requires_grad_()
            output = module(values)
            output.square().sum().backward()
            results.append((output, values.grad))
        assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert own.scale == torchs.scale and own.zero_point == torchs.zero_point
    assert (results[1][1] == 0).any()


def test_a_disabled_observer_and_disabled_fake_quantization_have_no_effect():
    module = fake_quantization.qconfig_mapping(EMBEDDED).global_qconfig.activation()
    module(torch.linspace(-1, 1, 50))
    scale = module.scale.clone()
    module.apply(disable_observer)
    module(torch.linspace(-9, 9, 50))
    assert module.scale == scale
    module.apply(disable_fake_quant)
    x = torch.rand(50)
    assert torch.equal(module(x), x)


def own_and_torchs(target):
    """The modules for activations and for weights, each beside torch's with the same settings."""
    config = fake_quantization.qconfig_mapping(target).global_qconfig
    low, high = target.weight_range
    weight = FakeQuantize(
        observer=MovingAveragePerChannelMinMaxObserver, quant_min=low, quant_max=high, dtype=torch.qint8,
        qscheme=torch.per_channel_symmetric, ch_axis=0, eps=2**-12,
    )  # fmt: skip
    activation = FakeQuantize(observer=MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
    return [(config.activation(), activation), (config.weight(), weight)]


def result_of(module, x):
    """Output and gradient of fake quantization, and what it has observed."""
    values = x.clone().requires_grad_()
    output = module(values)
    output.square().sum().backward()
    return output, values.grad, module.scale, module.zero_point


@each_target
@pytest.mark.parametrize("observes", [True, False])
@pytest.mark.parametrize("quantizes", [True, False])
def test_the_switches_do_what_those_of_torch_do(target, observes, quantizes):
    for own, torchs in own_and_torchs(target):
        x = torch.randn(6, 4, 3, 3)
        for module in (own, torchs):
            module(x)
            module.enable_observer(observes)
            module.enable_fake_quant(quantizes)
        for factor in (2.0, 0.5):
            pairs = zip(result_of(own, factor * x), result_of(torchs, factor * x), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
        assert own.scale.numel() == (6 if own.is_per_channel else 1)


@each_target
def test_no_switch_is_read_from_the_device(target):
    # on the meta device a tensor has no value that could be read
    for own, torchs in own_and_torchs(target):
        for module in (own, torchs):
            module.observer_enabled = torch.ones(1, dtype=torch.uint8, device="meta")
            module.fake_quant_enabled = torch.ones(1, dtype=torch.uint8, device="meta")
        x = torch.randn(6, 4, 3, 3)
        assert not torch.equal(own(x), x)
        with pytest.raises(RuntimeError, match="meta"):
            torchs(x)


@each_target
def test_a_copy_keeps_the_switches_and_has_its_own(target):
    for own, _ in own_and_torchs(target):
        own(torch.randn(6, 4, 3, 3))
        own.apply(disable_observer).apply(disable_fake_quant)
        scale, x = own.scale.clone(), 9 * torch.randn(6, 4, 3, 3)
        duplicate = copy.deepcopy(own)
        assert torch.equal(duplicate(x), x) and torch.equal(duplicate.scale, scale)
        duplicate.enable_observer()
        duplicate.enable_fake_quant()
        assert not torch.equal(duplicate(x), x) and not torch.equal(duplicate.scale, scale)
        assert torch.equal(own(x), x) and torch.equal(own.scale, scale)


@each_target
def test_values_that_are_all_zero_have_a_scale_of_usual_size(target):
    for own, _ in own_and_torchs(target):
        assert torch.equal(own(torch.zeros(6, 4, 3, 3)), torch.zeros(6, 4, 3, 3))
        assert ((own.scale >= 2**-7) & (own.scale < 0.02)).all() and (own.zero_point >= 0).all()


def test_only_the_channels_of_zeros_have_another_scale_than_that_of_torch():
    x = torch.randn(6, 4, 3, 3)
    x[[1, 4]] = 0
    own, torchs = own_and_torchs(SERVER)[1]
    own(x), torchs(x)
    zeros = torch.tensor([False, True, False, False, True, False])
    assert (own.scale[zeros] == observers.SCALE_OF_ZEROS).all()
    assert torch.equal(own.scale[~zeros], torchs.scale[~zeros])
    assert torch.equal(own.zero_point, torchs.zero_point)


def test_the_switches_are_loaded_with_the_state():
    config = fake_quantization.qconfig_mapping(SERVER).global_qconfig
    module, other = config.activation(), config.activation()
    module(torch.randn(4, 4))
    module.apply(disable_observer).apply(disable_fake_quant)
    other.load_state_dict(module.state_dict())
    assert (other.observes, other.quantizes) == (False, False)


class Clipping(nn.Module):
    """ReLU6 after a batch norm, after a convolution, after a sum, and used twice; most values are above 6."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.third, self.clip, self.again = nn.Conv2d(8, 8, 1), nn.ReLU6(), nn.ReLU6()
        self.classifier = nn.Linear(8, CLASSES)
        with torch.no_grad():
            self.norm.weight.fill_(10.0)
            for layer in (self.second, self.third):
                layer.weight.mul_(20.0)

    def forward(self, images):
        x = self.clip(self.norm(self.first(images)))
        y = self.again(self.second(x))
        return self.classifier(self.again(self.third(y) + x).mean((2, 3)))


@pytest.mark.parametrize("target", TARGET_DEVICES.values(), ids=TARGET_DEVICES)
def test_values_above_6_are_clipped_in_int8_where_the_network_has_a_relu6(target):
    torch.manual_seed(0)
    model, images = Clipping(), 20 * torch.randn(32, 3, SIDE, SIDE)
    model(images)
    names = fake_quantization.clipped_layers(model.eval())
    assert names == {"first", "clip", "second", "again"}  # not the third: a sum is between
    int8_engines.use(target, int8_engines.reference_engine(target))
    prepared = quantization.prepare(model, target, SIDE)
    quantization.calibrate(prepared, [(images, None)], CPU, 1)
    largest = [
        float(module.activation_post_process.max_val)
        for module in prepared.modules()
        if isinstance(getattr(module, "activation_post_process", None), observers.RangeObserver)
    ]
    # after the first, the second and the sum; not of the images, nor after the third
    assert sum(5.9 < value <= 6.0 for value in largest) == 3 and sum(value > 30 for value in largest) == 2
    with torch.no_grad():
        expected = model(images)
        actual = quantization.convert(prepared).int8(images)
    assert (actual - expected).norm() < 0.03 * expected.norm()


def test_networks_without_relu6_are_not_clipped():
    assert fake_quantization.clipped_layers(random_network("resnet18")) == set()


@pytest.mark.parametrize("arch", ["mobilenet_v2", "squeezenet1_1"])
def test_fake_quantization_computes_the_integers_of_every_layer(arch):
    converted = quantization.convert(prepared_for(EMBEDDED, random_network(arch)))
    graph, images = from_fx.read(converted.int8, SIDE), torch.randn(8, 3, SIDE, SIDE)
    fake_quant = Recorder(converted.fake_quant)
    with torch.inference_mode():
        fake_quant.run(images)
    observed = "activation_post_process"
    nodes = [node for node in converted.fake_quant.graph.nodes if observed in str(node.target)]
    layers = {node.args[0].name: node.name for node in nodes}
    compared = 0
    for operator, integers in reference.steps(graph, reference.quantize(images, graph.input)):
        if isinstance(operator, AveragePool):  # of 2 x 2 values: halves are rounded in another way
            break
        if (name := operator.output.name) in layers:
            expected = reference.dequantize(integers, operator.output)
            assert (fake_quant.values[layers[name]] - expected).abs().max() < 0.01 * operator.output.scale
            compared += 1
    assert compared > 10


def test_a_linear_layer_over_the_last_of_four_dimensions_adds_exactly():
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.linear, self.last = (
                nn.Conv2d(3, 8, 8, 8),
                nn.Linear(8, 12),
                nn.Linear(12, CLASSES),
            )

        def forward(self, images):
            return self.last(self.linear(self.stem(images).permute(0, 2, 3, 1)).mean((1, 2)))

    converted = quantization.convert(prepared_for(EMBEDDED, Network()))
    images = torch.randn(8, 3, SIDE, SIDE)
    with torch.inference_mode():
        expected, actual = converted.int8(images), converted.fake_quant(images)
    assert (actual - expected).norm() < 0.05 * expected.norm()
