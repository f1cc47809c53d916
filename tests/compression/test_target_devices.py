"""The table of target devices: what a row claims is what quantization does, and all that is offered."""

import argparse

import pytest
import torch
from torch import nn
from torch.ao.quantization import FakeQuantize, get_default_qat_qconfig_mapping

from common.cli import targets
from common.compression import int8_engines, int8_state, quantization, target_devices
from common.compression.target_devices import ENGINES, TARGET_DEVICES
from common.models import architectures, checkpoint, lineage
from common.system.errors import UserError
from tests.compression.networks import CPU, EMBEDDED, SERVER, each_target

SIDE = 16


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


@pytest.fixture
def prepared(target):
    """A small network with fake quantization for `target`, calibrated."""
    int8_engines.use(target)
    model = quantization.prepare(small_network(), target, SIDE)
    quantization.calibrate(model, [(torch.randn(8, 3, SIDE, SIDE), None)], CPU, 1)
    return model


def weight_modules(prepared):
    return [module.weight_fake_quant for module in prepared.modules() if hasattr(module, "weight_fake_quant")]


def activation_modules(prepared):
    weights = weight_modules(prepared)
    return [
        module
        for module in prepared.modules()
        if isinstance(module, FakeQuantize) and not any(module is weight for weight in weights)
    ]


@each_target
def test_the_backend_is_known_to_torch(target):
    get_default_qat_qconfig_mapping(target.backend)
    with pytest.raises(AssertionError):
        get_default_qat_qconfig_mapping("tpu")


@each_target
def test_weights_have_the_range_of_the_row_and_a_scale_for_each_channel(target, prepared):
    weights = weight_modules(prepared)
    assert len(weights) == 3
    for module in weights:
        assert (module.quant_min, module.quant_max) == target.weight_range
    assert [module.scale.numel() for module in weights] == [8, 8, 5]


@each_target
def test_int8_weights_stay_in_the_range_of_the_row(target, prepared):
    state = int8_state.extract(quantization.convert(prepared).int8)
    weights = [value["int8"].int() for key, value in state.items() if key.endswith(".weight")]
    weights += [value[0]["int8"].int() for key, value in state.items() if key.endswith("_packed_params")]
    assert len(weights) == 3
    low, high = target.weight_range
    assert all(low <= weight.min() and weight.max() <= high for weight in weights)
    assert max(weight.abs().max() for weight in weights) == high  # and use all of it


@each_target
def test_the_observed_range_of_activations_uses_8_bits(target, prepared):
    activations = activation_modules(prepared)
    assert len(activations) >= 4
    for module in activations:
        assert (module.quant_min, module.quant_max) == (0, 255)
        observer = module.activation_post_process
        observed = max(observer.max_val, torch.tensor(0.0)) - min(observer.min_val, torch.tensor(0.0))
        assert (observed / module.scale).item() == pytest.approx(255, rel=1e-3)


def test_a_backend_finds_its_first_row_and_all_its_rows_have_the_same_weights():
    assert target_devices.by_backend("fbgemm") is SERVER and target_devices.by_backend("qnnpack") is EMBEDDED
    for target in TARGET_DEVICES.values():
        assert target_devices.by_backend(target.backend).weight_range == target.weight_range


def test_an_unknown_backend_is_refused_and_the_known_ones_are_named():
    with pytest.raises(UserError, match="unknown quantization backend 'tpu'") as error:
        target_devices.by_backend("tpu")
    assert all(target.backend in str(error.value) for target in TARGET_DEVICES.values())


def option(add, dest):
    parser = argparse.ArgumentParser()
    add(parser)
    return next(action for action in parser._actions if action.dest == dest)


def test_two_products_of_the_server_target_fit_into_16_bits():
    assert 2 * 255 * max(map(abs, SERVER.weight_range)) < 2**15 <= 2 * 255 * (SERVER.weight_range[1] + 2)


def test_the_options_offer_exactly_the_rows_and_the_engines():
    device = option(targets.add_device_option, "target_device")
    assert list(device.choices) == list(TARGET_DEVICES) and device.default in TARGET_DEVICES
    for name, target in TARGET_DEVICES.items():
        assert f"{name}: {target.device}, {target.backend}" in device.help
    engine = option(targets.add_engine_option, "engine")
    assert {name for name in torch.backends.quantized.supported_engines if name != "none"} <= set(ENGINES)
    assert tuple(engine.choices) == ENGINES and engine.default is None


@pytest.mark.parametrize("script", ["train_pruning", "train_quantization", "compress"])
def test_the_scripts_offer_the_rows(run, script):
    result = run(script, "--help")
    assert result.code == 0 and f"--target-device {{{','.join(TARGET_DEVICES)}}}" in result.out
    result = run(script, "--target-device", "toaster")
    assert result.code == 2 and "invalid choice: 'toaster'" in result.err


def test_a_checkpoint_with_an_unknown_backend_is_refused_in_one_line(run, tmp_path):
    model = architectures.build("squeezenet1_1", 2)
    content = lineage.new_checkpoint("squeezenet1_1", ["cat", "dog"], 32) | {
        "stage": "quantized",
        "name": "quantized_squeezenet1_1",
        "state_dict": int8_state.extract(quantization.skeleton(model, EMBEDDED, 32)),
        "int8": {"backend": "tpu", "float_shapes": {}},
        "metrics": {"top1": 0.5, "ci95": [0.4, 0.6], "n": 10, "params": 1, "macs": 1},
    }
    path = checkpoint.save(content, tmp_path)
    with pytest.raises(UserError, match="unknown quantization backend 'tpu'"):
        checkpoint.load(path)
    result = run("predict", path, tmp_path / "image.jpg")
    assert result.code == 2 and result.err.count("\n") == 1 and result.out == ""
    assert "unknown quantization backend 'tpu'; this version knows fbgemm, qnnpack\n" in result.err
