import copy
import functools
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from common.compression import int8_engines, pruning, quantization
from common.models import architectures, checkpoint, lineage
from common.system.errors import UserError

CPU = torch.device("cpu")
CLASSES, SIDE = 5, 64


def awake(arch: str) -> nn.Module:
    """A network whose batch-norm statistics fit its random weights: its logits depend on the picture."""
    return copy.deepcopy(_awake(arch))


@functools.cache
def _awake(arch: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = architectures.build(arch, CLASSES)
        torch.optim.swa_utils.update_bn([torch.randn(16, 3, SIDE, SIDE) for _ in range(2)], model)
    return model


def prepared_for(backend: str, model: nn.Module) -> nn.Module:
    int8_engines.use(backend)
    prepared = quantization.prepare(model, backend, SIDE)
    quantization.calibrate(prepared, [(torch.randn(16, 3, SIDE, SIDE), None)], CPU, 1)
    return prepared


def quantized(model: nn.Module, backend: str) -> tuple[nn.Module, nn.Module]:
    prepared = prepared_for(backend, model)
    return prepared, quantization.convert(prepared).int8


def stages(arch: str, backend: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    """`awake(arch)`, its prepared and its int8 form, `backend`'s engine being set."""
    int8_engines.use(backend)
    return copy.deepcopy(_stages(arch, backend))


@functools.cache
def _stages(arch: str, backend: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = awake(arch)
        return model, *quantized(model, backend)


def halved(model: nn.Module) -> nn.Module:
    """`model` with half of its channels pruned."""
    limits = {"protect": architectures.classifier(model, CLASSES)[1], "image_size": SIDE}
    groups = pruning.rank(model, "lamp", "global", **limits)
    return pruning.prune(model, groups, pruning.widths_for_fraction(groups, 0.5), **limits)


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize(
    ("arch", "least"), [("resnet18", 0.9), ("mobilenet_v2", 0.3), ("squeezenet1_1", 0.8)]
)
def test_int8_answers_as_the_float_model_does(arch, least, backend):
    # mobilenet_v2 has ReLU6, which the qnnpack engine scrambles: then the similarity is near 0
    model, _, int8_model = stages(arch, backend)
    images = torch.randn(32, 3, SIDE, SIDE)
    with torch.inference_mode():
        given, wanted = int8_model(images), model.eval()(images)
    # of what differs from picture to picture alone: random weights answer all pictures much alike
    given, wanted = ((logits - logits.mean(0)).flatten() for logits in (given, wanted))
    assert F.cosine_similarity(given, wanted, dim=0) > least


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_int8_is_bit_identical_after_saving_and_loading(arch, backend, tmp_path):
    model, _, int8_model = stages(arch, backend)
    torch.save(quantization.int8_state(int8_model), tmp_path / "state.pt")
    loaded = quantization.skeleton(
        architectures.rebuild(arch, CLASSES, architectures.shapes(model)), backend, SIDE
    )
    quantization.load_int8_state(loaded, torch.load(tmp_path / "state.pt", weights_only=True))
    images = torch.randn(4, 3, SIDE, SIDE)
    assert torch.equal(loaded(images), int8_model(images))


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_fake_quantization_computes_what_int8_does(backend):
    # brighter pictures than were calibrated with: beyond the range that was seen both go on, or stop, alike
    converted = quantization.convert(stages("squeezenet1_1", backend)[1])
    for factor in (1, 1.7):
        images = factor * torch.randn(8, 3, SIDE, SIDE)
        with torch.inference_mode():
            wanted, given = converted.fake_quant(images), converted(images)
        assert (given - wanted).norm() < 0.04 * wanted.norm()


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_weights_and_biases_are_those_of_fake_quantization(backend):
    converted = quantization.convert(stages("resnet18", backend)[1])
    layer, int8_layer = converted.fake_quant.get_submodule("conv1"), converted.int8.get_submodule("conv1")
    scale = layer.bn.weight / torch.sqrt(layer.bn.running_var + layer.bn.eps)
    weight = layer.weight_fake_quant(layer.weight * scale.view(-1, 1, 1, 1))
    assert torch.equal(int8_layer.weight().dequantize(), weight)
    integers = int8_layer.weight().int_repr()
    assert integers.int().abs().max() == 127  # -128 twice wraps round on ARM without dot product
    # Jacob et al., equation 11: whole multiples of input scale times weight scale
    steps = int8_layer.bias() / (layer.weight_fake_quant.scale * converted.int8.conv1_input_scale_0)
    assert steps.abs().max() > 10 and torch.allclose(steps, steps.round(), rtol=1e-6, atol=0.01)


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
    _, _, int8_model = stages("resnet18", "fbgemm")
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


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "squeezenet1_1"])  # with two Linear, with none
def test_the_int8_state_of_a_pruned_model_is_foreseen_but_for_its_values(arch, backend):
    def outline(value):
        if isinstance(value, dict):
            return {key: outline(part) for key, part in value.items()}
        if isinstance(value, list):
            return [outline(part) for part in value]
        return (type(value), value.dtype, value.shape) if torch.is_tensor(value) else value

    model = architectures.build(arch, CLASSES)
    pruned = halved(model)
    wanted = outline(quantization.int8_state(quantized(pruned, backend)[1]))
    whole = quantization.int8_state(quantization.skeleton(model, backend, SIDE))
    assert outline(whole) != wanted
    assert outline(quantization.resized_int8_state(whole, architectures.shapes(pruned))) == wanted


def test_a_batch_norm_that_is_not_fused_is_resized_as_well():
    def network(width):
        layers = (nn.Conv2d(3, width, 1), nn.ReLU(), nn.BatchNorm2d(width), nn.Conv2d(width, 8, 1))
        return nn.Sequential(*layers)

    def shapes(state):
        return {key: value.shape for key, value in state.items() if torch.is_tensor(value)}

    wide, narrow = (
        quantization.int8_state(quantization.skeleton(network(width), "qnnpack", SIDE)) for width in (32, 16)
    )
    resized = quantization.resized_int8_state(wide, architectures.shapes(network(16)))
    assert shapes(resized) == shapes(narrow) != shapes(wide)
    assert shapes(narrow)["2.running_mean"] == (16,)


def test_an_int8_answer_does_not_depend_on_the_other_pictures_of_the_batch():
    _, _, int8_model = stages("mobilenet_v2", "qnnpack")
    images = torch.randn(6, 3, SIDE, SIDE)
    together = int8_model(images)
    assert torch.equal(torch.cat([int8_model(image[None]) for image in images]), together)


def test_evaluating_int8_leaves_the_observers_alone():
    prepared = prepared_for("fbgemm", awake("squeezenet1_1"))  # not converted yet
    before = copy.deepcopy(prepared.state_dict())
    quantization.convert(prepared)(100 * torch.randn(2, 3, SIDE, SIDE))
    after = prepared.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_calibration_takes_as_many_batches_as_it_is_told():
    _, prepared, _ = stages("squeezenet1_1", "qnnpack")
    batches = iter([(torch.randn(2, 3, SIDE, SIDE), None)] * 5)
    quantization.calibrate(prepared, batches, CPU, 3)
    assert len(list(batches)) == 2


def test_late_in_training_observers_and_batch_norm_stand_still():
    _, prepared, _ = stages("resnet18", "fbgemm")
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
    model = architectures.build("mobilenet_v2", CLASSES)
    before = copy.deepcopy(model)
    quantization.prepare(model, "qnnpack", SIDE)
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert architectures.shapes(model) == architectures.shapes(before)


def test_a_pruned_int8_checkpoint_runs_the_same_in_a_fresh_process(tmp_path):
    model = halved(awake("mobilenet_v2"))
    _, int8_model = quantized(model, "qnnpack")
    content = {
        **lineage.new_checkpoint("mobilenet_v2", list("abcde"), SIDE),
        "stage": "quantized",
        "state_dict": quantization.int8_state(int8_model),
        "int8": {"backend": "qnnpack", "float_shapes": architectures.shapes(model)},
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
