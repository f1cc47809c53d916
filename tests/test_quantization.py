import copy
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.ao.quantization import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    disable_fake_quant,
    disable_observer,
)
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from common import checkpoint, engines, fake_quantization, models, quantization
from common.errors import UserError

CPU = torch.device("cpu")
CLASSES, SIDE = 5, 64


def awake(arch: str) -> nn.Module:
    """A network whose batch-norm statistics fit its random weights: its logits depend on the picture."""
    model = models.build(arch, CLASSES).train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(16, 3, SIDE, SIDE))
    return model


def prepared_for(backend: str, model: nn.Module) -> nn.Module:
    engines.use(backend)
    prepared = quantization.prepare(model, backend, SIDE)
    quantization.calibrate(prepared, [(torch.randn(16, 3, SIDE, SIDE), None)], CPU, 1)
    return prepared


def quantized(model: nn.Module, backend: str) -> tuple[nn.Module, nn.Module]:
    prepared = prepared_for(backend, model)
    return prepared, quantization.convert(prepared).int8


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_int8_answers_as_the_float_model_does(arch, backend):
    # mobilenet_v2 has ReLU6, which the qnnpack engine scrambles: then the similarity is near 0
    model = awake(arch)
    _, int8_model = quantized(model, backend)
    images = torch.randn(16, 3, SIDE, SIDE)
    with torch.inference_mode():
        similarity = F.cosine_similarity(int8_model(images), model.eval()(images))
    assert similarity.min() > 0.9


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_int8_is_bit_identical_after_saving_and_loading(arch, backend, tmp_path):
    model = awake(arch)
    _, int8_model = quantized(model, backend)
    torch.save(quantization.int8_state(int8_model), tmp_path / "state.pt")
    loaded = quantization.skeleton(models.rebuild(arch, CLASSES, models.shapes(model)), backend, SIDE)
    quantization.load_int8_state(loaded, torch.load(tmp_path / "state.pt", weights_only=True))
    images = torch.randn(4, 3, SIDE, SIDE)
    assert torch.equal(loaded(images), int8_model(images))


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_fake_quantization_computes_what_int8_does(backend):
    # brighter pictures than were calibrated with: beyond the range that was seen both go on, or stop, alike
    converted = quantization.convert(prepared_for(backend, awake("squeezenet1_1")))
    for factor in (1, 1.7):
        images = factor * torch.randn(8, 3, SIDE, SIDE)
        with torch.inference_mode():
            wanted, given = converted.fake_quant(images), converted(images)
        assert (given - wanted).norm() < 0.04 * wanted.norm()


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_weights_and_biases_are_those_of_fake_quantization(backend):
    converted = quantization.convert(prepared_for(backend, awake("resnet18")))
    layer, int8_layer = converted.fake_quant.get_submodule("conv1"), converted.int8.get_submodule("conv1")
    scale = layer.bn.weight / torch.sqrt(layer.bn.running_var + layer.bn.eps)
    weight = layer.weight_fake_quant(layer.weight * scale.view(-1, 1, 1, 1))
    assert torch.equal(int8_layer.weight().dequantize(), weight)
    integers = int8_layer.weight().int_repr()
    assert integers.int().abs().max() == 127  # -128 twice wraps round on ARM without dot product
    # Jacob et al., equation 11: whole multiples of input scale times weight scale
    steps = int8_layer.bias() / (layer.weight_fake_quant.scale * converted.int8.conv1_input_scale_0)
    assert steps.abs().max() > 10 and torch.allclose(steps, steps.round(), rtol=1e-6, atol=0.01)


def test_seven_bits_are_used_of_fbgemm_s_activations():
    observer = fake_quantization.SevenBitObserver(quant_min=0, quant_max=255, dtype=torch.quint8)
    observer(torch.tensor([-1.0, 3.0]))
    scale, zero_point = observer.calculate_qparams()
    assert scale.item() == pytest.approx(4 / 127) and zero_point.item() == round(127 / 4)


def test_a_layer_without_a_bias_is_saved_and_loaded():
    # as inside densenet's blocks, where no batch norm that could be folded follows the convolution
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
        )

    _, int8_model = quantized(build(), "fbgemm")
    loaded = quantization.skeleton(build(), "fbgemm", SIDE)
    quantization.load_int8_state(loaded, quantization.int8_state(int8_model))
    images = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(loaded(images), int8_model(images))


def test_the_saved_state_is_plain_tensors():
    _, int8_model = quantized(models.build("resnet18", CLASSES), "fbgemm")
    state = quantization.int8_state(int8_model)
    weight, bias = state["fc._packed_params._packed_params"]
    assert weight["int8"].dtype == torch.int8 and weight["int8"].shape == (CLASSES, 512)
    assert weight["scale"].shape == (CLASSES,)  # fbgemm: one scale for each output channel
    assert bias.shape == (CLASSES,)

    def leaves(value):
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from leaves(part)
        else:
            yield value

    assert all(torch.is_tensor(leaf) and not leaf.is_quantized for leaf in leaves(state))


def test_an_int8_answer_does_not_depend_on_the_other_pictures_of_the_batch():
    _, int8_model = quantized(awake("mobilenet_v2"), "qnnpack")
    images = torch.randn(6, 3, SIDE, SIDE)
    together = int8_model(images)
    assert torch.equal(torch.cat([int8_model(image[None]) for image in images]), together)


def test_evaluating_int8_leaves_the_observers_alone():
    prepared, _ = quantized(models.build("squeezenet1_1", CLASSES), "fbgemm")
    before = copy.deepcopy(prepared.state_dict())
    quantization.convert(prepared)(100 * torch.randn(2, 3, SIDE, SIDE))
    after = prepared.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_calibration_takes_as_many_batches_as_it_is_told():
    prepared = quantization.prepare(models.build("squeezenet1_1", CLASSES), "qnnpack", SIDE)
    batches = iter([(torch.randn(2, 3, SIDE, SIDE), None)] * 5)
    quantization.calibrate(prepared, batches, CPU, 3)
    assert len(list(batches)) == 2


def test_late_in_training_observers_and_batch_norm_stand_still():
    prepared = quantization.prepare(models.build("resnet18", CLASSES), "fbgemm", SIDE)
    images = torch.randn(4, 3, SIDE, SIDE)

    def statistics():
        return {
            key: value.clone()
            for key, value in prepared.state_dict().items()
            if key.endswith(("min_val", "max_val", "running_mean", "running_var")) and "weight" not in key
        }

    def moved(epoch):
        before = statistics()
        quantization.freeze_late(prepared.train(), epoch, epochs=3)
        prepared(images)
        return {
            key.rpartition(".")[2]
            for key, value in statistics().items()
            if not torch.equal(value, before[key])
        }

    assert moved(0) == {"min_val", "max_val", "running_mean", "running_var"}
    assert {"running_mean", "max_val"} <= moved(1)
    assert moved(2) == set()


def test_what_cannot_be_traced_is_refused():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 8, 3)

        def forward(self, images):
            return self.layer(images) if images.sum() > 0 else self.layer(-images)

    with pytest.raises(UserError, match="Branches cannot be traced for quantization"):
        quantization.prepare(Branches(), "fbgemm", SIDE)


def test_what_trains_even_in_eval_mode_is_refused():
    class NormAndReLU(nn.BatchNorm2d):  # traced through: the tracer writes down training=True
        def forward(self, images):
            return F.relu(F.batch_norm(images, self.running_mean, self.running_var, training=self.training))

    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), NormAndReLU(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    with pytest.raises(UserError, match="answers differently"):
        quantization.prepare(model.train(), "fbgemm", SIDE)


def test_layers_are_not_dropped_at_random_in_int8():
    model = awake("efficientnet_b0")
    assert any(isinstance(module, StochasticDepth) for module in model.modules())
    _, int8_model = quantized(model, "fbgemm")
    image = torch.randn(1, 3, SIDE, SIDE)
    assert len({tuple(int8_model(image).flatten().tolist()) for _ in range(8)}) == 1


def test_the_given_model_is_left_whole():
    model = models.build("mobilenet_v2", CLASSES)
    before = copy.deepcopy(model)
    quantization.prepare(model, "qnnpack", SIDE)
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert models.shapes(model) == models.shapes(before)


def test_a_pruned_int8_checkpoint_runs_the_same_in_a_fresh_process(tmp_path):
    from common import pruning

    model = awake("mobilenet_v2")
    model = pruning.prune_channels(model, 0.5, protect=models.classifier(model, CLASSES)[1], image_size=SIDE)
    _, int8_model = quantized(model, "qnnpack")
    content = {
        **checkpoint.untrained("mobilenet_v2", list("abcde"), SIDE),
        "stage": "quantized",
        "state_dict": quantization.int8_state(int8_model),
        "int8": {"backend": "qnnpack", "float_shapes": models.shapes(model)},
        "metrics": {"top1": 0.5, "ci95": [0.4, 0.6], "n": 10, "params": 1, "macs": 1},
    }
    path = checkpoint.save(content, tmp_path)
    images = torch.randn(3, 3, SIDE, SIDE)
    torch.save((images, int8_model(images)), tmp_path / "expected.pt")
    program = (
        "import sys, torch; from common import checkpoint\n"
        "images, expected = torch.load(sys.argv[2], weights_only=True)\n"
        "model = checkpoint.rebuild(checkpoint.load(sys.argv[1]))\n"
        "assert torch.backends.quantized.engine == 'qnnpack'\n"
        "assert torch.equal(model(images), expected)"
    )
    subprocess.run([sys.executable, "-c", program, path, tmp_path / "expected.pt"], check=True)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2"])
def test_the_fused_layers_compute_what_torchs_do_and_learn_as_they_do(arch):
    fast = quantization.trace(awake(arch), "qnnpack", SIDE).train()
    slow = copy.deepcopy(fast)
    for module in slow.modules():
        module.__dict__.pop("forward", None)  # torch's own again
    pairs = [
        (one, other)
        for one, other in zip(fast.modules(), slow.modules(), strict=True)
        if "forward" in vars(one)
    ]
    assert len(pairs) >= 20 and {type(one).__name__ for one, _ in pairs} == {"ConvBn2d", "ConvBnReLU2d"}
    for one, other in pairs:
        images = torch.randn(4, one.in_channels, 8, 8).requires_grad_()
        answers = one(images), other(images)
        assert torch.allclose(*answers, atol=1e-4)
        assert torch.allclose(one.bn.running_var, other.bn.running_var, rtol=1e-4, atol=1e-6)
        target = torch.randn_like(answers[0])
        wanted = [images, other.weight, other.bn.weight, other.bn.bias]
        given = torch.autograd.grad(
            (answers[0] * target).sum(), [images, one.weight, one.bn.weight, one.bn.bias]
        )
        for mine, theirs in zip(given, torch.autograd.grad((answers[1] * target).sum(), wanted), strict=True):
            # a few values lie between two integers, and the last bit decides
            assert (mine - theirs).norm() < 0.02 * theirs.norm() + 1e-4


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_activations_are_fake_quantized_as_torch_does_with_its_gradient(backend):
    mine = fake_quantization.qconfig_mapping(backend).global_qconfig.activation()
    observer = MovingAverageMinMaxObserver if backend == "qnnpack" else fake_quantization.SevenBitObserver
    theirs = FakeQuantize(observer=observer, quant_min=0, quant_max=255)
    for scale in (1.0, 4.0):  # the second batch goes beyond the moving average: its ends are cut off
        x = scale * torch.randn(4, 6, 9, 9).contiguous(memory_format=torch.channels_last)
        results = []
        for module in (mine, theirs):
            given = x.clone().requires_grad_()
            answer = module(given)
            answer.square().sum().backward()
            results.append((answer, given.grad))
        assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert mine.scale == theirs.scale and mine.zero_point == theirs.zero_point
    if backend == "qnnpack":
        assert (results[1][1] == 0).any()


def test_an_observer_at_rest_and_fake_quantization_switched_off_stay_so():
    module = fake_quantization.qconfig_mapping("qnnpack").global_qconfig.activation()
    module(torch.linspace(-1, 1, 50))
    scale = module.scale.clone()
    module.apply(disable_observer)
    module(torch.linspace(-9, 9, 50))
    assert module.scale == scale
    module.apply(disable_fake_quant)
    x = torch.rand(50)
    assert torch.equal(module(x), x)
