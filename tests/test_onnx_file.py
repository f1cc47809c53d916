import copy

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from common import batches, checkpoint, models, onnx_file, quantization
from common.errors import UserError
from tests.test_quantization import CLASSES, SIDE, awake, quantized


def content(arch, model, int8_model=None, backend=None):
    state = checkpoint.float_state(model) if int8_model is None else quantization.int8_state(int8_model)
    int8 = {"backend": backend, "float_shapes": models.shapes(model)} if backend else None
    return {
        **checkpoint.untrained(arch, [*"abcd", "Ägyptische Mau"], SIDE),
        "stage": "quantized" if backend else "teacher",
        "state_dict": state,
        "int8": int8,
        "metrics": {"top1": 0.5, "ci95": [0.4, 0.6], "n": 10, "params": 1, "macs": 1},
    }


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1"])
def test_an_int8_model_answers_the_same_in_onnx_runtime(arch, backend, tmp_path):
    model = awake(arch)
    _, int8_model = quantized(model, backend)
    whole = content(arch, model, int8_model, backend)
    path = tmp_path / "model.onnx"
    with onnx_file.written(whole, int8_model, path) as onnx_model:
        images = torch.randn(5, 3, SIDE, SIDE)
        wanted, given = int8_model(images), onnx_model(images)
        alone = torch.cat([onnx_model(image[None]) for image in images])  # the batch is free
    # of a network with random weights, a value that is rounded the other way grows from layer to layer
    assert (given - wanted).norm() < 0.25 * wanted.norm()
    assert torch.equal(alone, given)
    assert path.stat().st_size < 1.15 * checkpoint.save(whole, tmp_path).stat().st_size
    weights = [tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) in (2, 4)]
    assert len(weights) > 20 and {tensor.data_type for tensor in weights} == {TensorProto.INT8}


def test_int8_arithmetic_is_the_same_to_the_last_bit(tmp_path):
    # without sums long enough to be rounded otherwise by another kernel: one layer of each kind
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(8 * 15 * 15, CLASSES),
    )  # fmt: skip
    _, int8_model = quantized(model, "qnnpack")
    with onnx_file.written(
        content("resnet18", model, int8_model, "qnnpack"), int8_model, tmp_path / "m.onnx"
    ) as m:
        images = torch.randn(64, 3, SIDE, SIDE)
        wanted, given = int8_model(images), m(images)
    step = torch.unique(wanted).diff().min()
    assert (given == wanted).double().mean() > 0.99 and (given - wanted).abs().max() < 1.5 * step


@pytest.mark.parametrize("backend", ["fbgemm", "qnnpack"])
def test_a_bias_that_int32_cannot_hold_at_its_weights_scale_is_kept(backend, tmp_path):
    # a channel whose batch norm is next to nothing: its weights' scale times the input's is about 1e-9
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(8, CLASSES),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[0] *= 1e-9
        model[0].bias[0] = 60
    _, int8_model = quantized(model, backend)
    checkpoint = content("resnet18", model, int8_model, backend)
    with onnx_file.written(checkpoint, int8_model, tmp_path / "m.onnx") as onnx_model:
        images = torch.randn(4, 3, SIDE, SIDE)
        given, wanted = onnx_model(images), int8_model(images)
    assert wanted.abs().max() > 5 and (given - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_a_float_model_is_written_as_float(tmp_path):
    model = awake("mobilenet_v2").eval()
    path = tmp_path / "model.onnx"
    with onnx_file.written(content("mobilenet_v2", model), model, path) as onnx_model:
        images = torch.randn(3, 3, SIDE, SIDE)
        assert torch.allclose(onnx_model(images), model(images), rtol=1e-3, atol=1e-4)
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load(path).graph.node}


def test_the_file_says_how_a_picture_is_prepared(tmp_path):
    model = awake("squeezenet1_1").eval()
    path = tmp_path / "model.onnx"
    with onnx_file.written(content("squeezenet1_1", model), model, path):
        pass
    said = onnx_file.OnnxModel(path).metadata
    assert said["classes"] == '["a", "b", "c", "d", "Ägyptische Mau"]'
    assert said["mean"] == str(batches.IMAGENET_MEAN) and said["std"] == str(batches.IMAGENET_STD)
    assert (said["image_size"], said["resize"], said["backend"]) == ("64", "73", "")


def test_a_failed_check_leaves_nothing(tmp_path):
    model = awake("squeezenet1_1").eval()
    with (
        pytest.raises(UserError, match="differs"),
        onnx_file.written(content("squeezenet1_1", model), model, tmp_path / "model.onnx"),
    ):
        raise UserError("it differs")
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_refused_in_one_line(tmp_path):
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="not an ONNX file that ONNX Runtime can run"):
        onnx_file.OnnxModel(tmp_path / "noise.onnx")
    with pytest.raises(UserError, match="not an ONNX file that ONNX Runtime can run"):
        onnx_file.OnnxModel(tmp_path / "missing.onnx")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", value[:1], value[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "b.onnx",
    )
    with pytest.raises(UserError, match=r"not written by export\.py"):
        onnx_file.OnnxModel(tmp_path / "b.onnx")


def test_exporting_leaves_the_model_alone(tmp_path):
    _, int8_model = quantized(awake("squeezenet1_1"), "fbgemm")
    images = torch.randn(2, 3, SIDE, SIDE)
    before = copy.deepcopy(int8_model)(images)
    with onnx_file.written(content("squeezenet1_1", awake("squeezenet1_1"), int8_model, "fbgemm"), int8_model,
                           tmp_path / "m.onnx"):  # fmt: skip
        pass
    assert torch.equal(int8_model(images), before)
