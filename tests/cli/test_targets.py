import pytest

import compress
import train_pruning
import train_quantization
from common.cli import targets
from common.compression.target_devices import TARGET_DEVICES
from common.system.errors import UserError


@pytest.mark.parametrize("kind", targets.TARGETS)
def test_the_budget_is_the_target_option_that_was_given(kind):
    args = train_pruning.parse_args(["--weights", "x", f"--target-{kind}", "0.5"])
    assert targets.budget(args) == (kind, "0.5")


@pytest.mark.parametrize(
    ("text", "runtime", "expected"),
    [
        ("5ms", "onnxruntime", ("latency", "5ms")),
        ("300M", "instructions:cortex-m7", ("instructions", "300M")),
        ("0.5", "instructions:cortex-m55", ("instructions", "0.5")),
    ],
)
def test_the_kind_of_a_latency_follows_from_its_runtime(text, runtime, expected):
    words = ["--weights", "x", "--target-latency", text, "--latency-in", runtime]
    assert targets.budget(train_pruning.parse_args(words)) == expected
    assert targets.option(expected[0]) == "target_latency" and targets.option("macs") == "target_macs"


def test_a_latency_in_the_unit_of_another_runtime_is_an_error():
    args = train_pruning.parse_args(["--weights", "x", "--target-latency", "300M"])
    with pytest.raises(UserError, match="--target-latency in onnxruntime: '300M' is not a number"):
        targets.budget(args)


def test_without_a_target_option_there_is_no_budget():
    assert targets.budget(train_pruning.parse_args(["--weights", "x", "--pruning-ratio", "0.5"])) is None


def test_a_latency_is_that_in_onnx_runtime_unless_instructions_are_asked_for(capsys):
    for script, options in ((train_pruning, []), (compress, ["--target-ram", "512KB"])):
        assert script.parse_args(["--weights", "x", *options]).latency_in == "onnxruntime"
        args = script.parse_args(["--weights", "x", *options, "--latency-in", "instructions:cortex-m4"])
        assert args.latency_in == "instructions:cortex-m4"
        with pytest.raises(SystemExit):
            script.parse_args(["--weights", "x", *options, "--latency-in", "tflite"])
    assert "invalid choice: 'tflite'" in capsys.readouterr().err


def test_widths_are_multiples_of_8_or_16(capsys):
    for script, options in ((train_pruning, []), (compress, ["--target-ram", "512KB"])):
        assert script.parse_args(["--weights", "x", *options]).width_multiple is None
        args = script.parse_args(["--weights", "x", *options, "--width-multiple", "16"])
        assert args.width_multiple == 16
        with pytest.raises(SystemExit):
            script.parse_args(["--weights", "x", *options, "--width-multiple", "12"])
    assert "invalid choice: 12" in capsys.readouterr().err


def test_two_target_options_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        train_pruning.parse_args(["--weights", "x", "--target-macs", "0.5", "--target-size", "2MB"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_every_target_device_can_be_chosen_and_is_described(capsys):
    for name in TARGET_DEVICES:
        args = train_quantization.parse_args(["--weights", "x", "--target-device", name])
        assert args.target_device == name
    with pytest.raises(SystemExit):
        train_quantization.parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(f"{name}: {row.device}, {row.backend}" in text for name, row in TARGET_DEVICES.items())
