import subprocess
import sys

import pytest
import torch
from torch import nn

from common.compression import int8_state, quantization
from common.models import architectures, checkpoint, lineage
from common.system.errors import UserError
from tests.compression.networks import (
    CLASSES,
    EMBEDDED,
    SERVER,
    SIDE,
    each_target,
    float_fake_quant_int8,
    network_options,
    pruned_by,
    quantized,
    random_network,
)
from tests.conftest import REPOSITORY


def halved(model: nn.Module) -> nn.Module:
    """`model` with half of its channels pruned."""
    return pruned_by(model, 0.5, network_options(model, CLASSES, SIDE), scope="global")


@each_target
@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "squeezenet1_1"])
def test_int8_is_bit_identical_after_saving_and_loading(arch, target, tmp_path):
    model, _, int8_model = float_fake_quant_int8(arch, target)
    torch.save(int8_state.extract(int8_model), tmp_path / "state.pt")
    loaded = quantization.skeleton(
        architectures.rebuild(arch, CLASSES, architectures.shapes(model)), target, SIDE
    )
    int8_state.load(loaded, torch.load(tmp_path / "state.pt", weights_only=True))
    images = torch.randn(4, 3, SIDE, SIDE)
    assert torch.equal(loaded(images), int8_model(images))


def test_a_layer_without_a_bias_is_saved_and_loaded():
    # as inside the blocks of densenet, where no batch norm that could be folded follows the convolution
    def build():
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
        )

    _, int8_model = quantized(build(), SERVER)
    loaded = quantization.skeleton(build(), SERVER, SIDE)
    int8_state.load(loaded, int8_state.extract(int8_model))
    images = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(loaded(images), int8_model(images))


def test_the_saved_state_is_plain_tensors_and_numbers():
    _, _, int8_model = float_fake_quant_int8("resnet18", SERVER)
    state = int8_state.extract(int8_model)
    weight, bias = state["fc._packed_params._packed_params"]
    assert weight["int8"].dtype == torch.int8 and weight["int8"].shape == (CLASSES, 512)
    assert weight["scale"].shape == (CLASSES,)  # one scale for each output channel
    assert bias.shape == (CLASSES,)

    def leaves(value):
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                yield from leaves(part)
        else:
            yield value

    for leaf in leaves(state):
        assert type(leaf) in (int, float) or (leaf.ndim and not leaf.is_quantized)
    assert type(state["conv1.scale"]) is float and type(state["conv1.zero_point"]) is int


def test_a_state_of_an_earlier_version_is_loaded():
    # weights with one scale and with several, zero points, and tensors of one value
    model, _, int8_model = float_fake_quant_int8("resnet18", EMBEDDED)
    state = int8_state.extract(int8_model)

    def earlier(value):
        if isinstance(value, list):
            return [earlier(part) for part in value]
        if isinstance(value, dict):
            one = value["int8"].ndim == 4
            scale = torch.tensor(0.125, dtype=torch.float64) if one else value["scale"].double()
            return {"int8": value["int8"], "scale": scale, "zero_point": torch.zeros_like(scale).long()}
        return torch.as_tensor(value) if isinstance(value, int | float) else value

    loaded = quantization.skeleton(
        architectures.rebuild("resnet18", CLASSES, architectures.shapes(model)), EMBEDDED, SIDE
    )
    int8_state.load(loaded, {key: earlier(value) for key, value in state.items()})
    integers = state["conv1.weight"]["int8"]
    assert torch.equal(loaded.conv1.weight().dequantize(), integers * 0.125)
    weight, bias = loaded.state_dict()["fc._packed_params._packed_params"]
    expected = int8_model.state_dict()["fc._packed_params._packed_params"]
    assert torch.equal(weight.dequantize(), expected[0].dequantize()) and torch.equal(bias, expected[1])
    assert loaded.conv1.scale == int8_model.conv1.scale
    assert loaded.conv1.zero_point == int8_model.conv1.zero_point


def test_weights_of_another_architecture_are_refused_in_one_line():
    state = int8_state.extract(float_fake_quant_int8("resnet18", SERVER)[2])
    other = quantization.skeleton(architectures.build("squeezenet1_1", CLASSES), SERVER, SIDE)
    with pytest.raises(UserError, match="the int8 weights do not fit their architecture: ") as error:
        int8_state.load(other, state)
    assert "\n" not in str(error.value)


@each_target
@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "squeezenet1_1"])  # with two Linear, with none
def test_the_int8_state_of_a_pruned_model_is_estimated_except_for_its_values(arch, target):
    def outline(value):
        if isinstance(value, dict):
            return {key: outline(part) for key, part in value.items()}
        if isinstance(value, list):
            return [outline(part) for part in value]
        return (value.dtype, value.shape) if torch.is_tensor(value) else type(value)

    model = architectures.build(arch, CLASSES)
    pruned = halved(model)
    expected = outline(int8_state.extract(quantized(pruned, target)[1]))
    full = int8_state.extract(quantization.skeleton(model, target, SIDE))
    assert outline(full) != expected
    assert outline(int8_state.resize(full, architectures.shapes(pruned))) == expected


def test_a_batch_norm_that_is_not_fused_is_resized_too():
    def network(width):
        layers = (nn.Conv2d(3, width, 1), nn.ReLU(), nn.BatchNorm2d(width), nn.Conv2d(width, 8, 1))
        return nn.Sequential(*layers)

    def shapes(state):
        return {key: value.shape for key, value in state.items() if torch.is_tensor(value)}

    wide, narrow = (
        int8_state.extract(quantization.skeleton(network(width), EMBEDDED, SIDE)) for width in (32, 16)
    )
    resized = int8_state.resize(wide, architectures.shapes(network(16)))
    assert shapes(resized) == shapes(narrow) != shapes(wide)
    assert shapes(narrow)["2.running_mean"] == (16,)


def test_a_pruned_int8_checkpoint_gives_the_same_logits_in_a_new_process(tmp_path):
    model = halved(random_network("mobilenet_v2"))
    _, int8_model = quantized(model, EMBEDDED)
    content = {
        **lineage.new_checkpoint("mobilenet_v2", list("abcde"), SIDE),
        "stage": "quantized",
        "state_dict": int8_state.extract(int8_model),
        "int8": {"backend": EMBEDDED.backend, "float_shapes": architectures.shapes(model)},
        "metrics": {"top1": 0.5, "ci95": [0.4, 0.6], "n": 10, "params": 1, "macs": 1},
    }
    path = checkpoint.save(content, tmp_path)
    images = torch.randn(3, 3, SIDE, SIDE)
    torch.save((images, int8_model(images)), tmp_path / "expected.pt")
    program = (
        "import sys, torch; from common.models import checkpoint; from tests import shallow\n"
        "from torchvision.models._api import BUILTIN_MODELS; BUILTIN_MODELS.update(shallow.NETWORKS)\n"
        "images, expected = torch.load(sys.argv[2], weights_only=True)\n"
        "model = checkpoint.rebuild(checkpoint.load(sys.argv[1]), sys.argv[3])\n"
        "assert torch.equal(model(images), expected)"
    )
    command = [sys.executable, "-c", program, path, tmp_path / "expected.pt"]
    command.append(torch.backends.quantized.engine)
    subprocess.run(command, check=True, cwd=REPOSITORY)
