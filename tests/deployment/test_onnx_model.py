import copy
import random
import re

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from common.compression import quantization
from common.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from common.deployment import onnx_model, predictor
from common.models import architectures, checkpoint, lineage
from common.system.errors import UserError
from tests.test_quantization import CLASSES, SIDE, awake, quantized


def content(arch, model, int8_model=None, backend=None):
    state = checkpoint.float_state(model) if int8_model is None else quantization.int8_state(int8_model)
    int8 = {"backend": backend, "float_shapes": architectures.shapes(model)} if backend else None
    return {
        **lineage.new_checkpoint(arch, [*"abcd", "Ägyptische Mau"], SIDE),
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
    with onnx_model.export(whole, int8_model, path) as onnx_model:
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
    with onnx_model.export(
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
    with onnx_model.export(checkpoint, int8_model, tmp_path / "m.onnx") as onnx_model:
        images = torch.randn(4, 3, SIDE, SIDE)
        given, wanted = onnx_model(images), int8_model(images)
    assert wanted.abs().max() > 5 and (given - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_a_float_model_is_written_as_float(tmp_path):
    model = awake("mobilenet_v2").eval()
    path = tmp_path / "model.onnx"
    with onnx_model.export(content("mobilenet_v2", model), model, path) as onnx_model:
        images = torch.randn(3, 3, SIDE, SIDE)
        assert torch.allclose(onnx_model(images), model(images), rtol=1e-3, atol=1e-4)
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load(path).graph.node}


def test_the_file_says_how_a_picture_is_prepared(tmp_path):
    model = awake("squeezenet1_1").eval()
    path = tmp_path / "model.onnx"
    with onnx_model.export(content("squeezenet1_1", model), model, path):
        pass
    said = onnx_model.OnnxModel(path).metadata
    assert said["classes"] == '["a", "b", "c", "d", "Ägyptische Mau"]'
    assert said["mean"] == str(IMAGENET_MEAN) and said["std"] == str(IMAGENET_STD)
    assert (said["image_size"], said["resize"], said["backend"]) == ("64", "73", "")


def test_a_failed_check_leaves_nothing(tmp_path):
    model = awake("squeezenet1_1").eval()
    with (
        pytest.raises(UserError, match="differs"),
        onnx_model.export(content("squeezenet1_1", model), model, tmp_path / "model.onnx"),
    ):
        raise UserError("it differs")
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_refused_in_one_line(tmp_path):
    (tmp_path / "noise.onnx").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match="not an ONNX file that ONNX Runtime can run"):
        onnx_model.OnnxModel(tmp_path / "noise.onnx")
    with pytest.raises(UserError, match=r"cannot read .*missing\.onnx: No such file or directory"):
        onnx_model.OnnxModel(tmp_path / "missing.onnx")
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", value[:1], value[1:])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10),
        tmp_path / "b.onnx",
    )
    with pytest.raises(UserError, match=r"not written by export\.py"):
        onnx_model.OnnxModel(tmp_path / "b.onnx")


def test_exporting_leaves_the_model_alone(tmp_path):
    _, int8_model = quantized(awake("squeezenet1_1"), "fbgemm")
    images = torch.randn(2, 3, SIDE, SIDE)
    before = copy.deepcopy(int8_model)(images)
    with onnx_model.export(content("squeezenet1_1", awake("squeezenet1_1"), int8_model, "fbgemm"), int8_model,
                           tmp_path / "m.onnx"):  # fmt: skip
        pass
    assert torch.equal(int8_model(images), before)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An ONNX file of a few layers, which takes pictures of 16 pixels and knows five classes."""
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.MaxPool2d(2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(4, CLASSES),
    ).eval()  # fmt: skip
    with onnx_model.export(content("resnet18", model) | {"image_size": 16}, model, path):
        pass
    return path


@pytest.fixture
def refused(small, tmp_path, capfd):
    """refused(change): the reason for which the file is refused that `change` made of the small one."""

    def refuse(change) -> str:
        proto, path = onnx.load(small), tmp_path / "changed.onnx"
        change(proto)
        onnx.save(proto, path)
        with pytest.raises(UserError) as error:
            predictor.load(path, None, 1)
        assert capfd.readouterr() == ("", "")  # ONNX Runtime adds nothing of its own
        return str(error.value).removeprefix(f"{path} ")

    return refuse


def test_the_small_file_is_read_as_it_was_written(small):
    opened = predictor.load(small, None, 1)
    assert opened.engine == "fp32 ONNX Runtime" and opened.content["metrics"] == {"params": 1, "macs": 1}
    assert (opened.content["name"], opened.content["arch"]) == ("small", "resnet18")
    assert opened.content["classes"] == [*"abcd", "Ägyptische Mau"] and opened.content["image_size"] == 16
    assert opened.model(torch.zeros(2, 3, 16, 16)).shape == (2, CLASSES)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("classes", None, "was not written by export.py: its metadata have no 'classes'"),
        ("stage", None, "was not written by export.py: its metadata have no 'stage'"),
        ("classes", "cat, dog", "was not written by export.py: in its metadata, Expecting value"),
        ("classes", "[" * 100_000, "was not written by export.py: in its metadata, maximum recursion"),
        ("classes", '"abcde"', 'in its metadata, classes cannot be "abcde"'),
        ("classes", "[1, 2, 3, 4, 5]", "in its metadata, classes cannot be [1, 2, 3, 4, 5]"),
        ("classes", '["a", "b"]', "does not answer with 2 finite numbers, one for each class"),
        ("image_size", str(10**9), "in its metadata, image_size cannot be 1000000000"),
        ("image_size", "7", "image_size cannot be 7"),
        ("image_size", "16.0", "image_size cannot be 16.0"),
        ("image_size", "9" * 5000, "was not written by export.py: in its metadata, Exceeds the limit"),
        ("image_size", "32", "takes pictures of [3, 16, 16], not of [3, 32, 32] as it says"),
        ("mean", "[0.5, 0.5]", "mean cannot be [0.5, 0.5]"),
        ("mean", "[NaN, 0.5, 0.5]", "mean cannot be [NaN, 0.5, 0.5]"),
        ("mean", "0.5", "mean cannot be 0.5"),
        ("std", "[0, 1, 1]", "std cannot be [0, 1, 1]"),
        ("std", "[1, 1, Infinity]", "std cannot be [1, 1, Infinity]"),
        ("params", "true", "params cannot be true"),
        ("params", '"many"', 'params cannot be "many"'),
        ("macs", "-1", "macs cannot be -1"),
    ],
)
def test_metadata_of_another_kind_are_refused(refused, key, text, message):
    def change(proto):
        said = {entry.key: entry.value for entry in proto.metadata_props}
        del proto.metadata_props[:], said[key]
        onnx.helper.set_model_props(proto, said if text is None else said | {key: text})

    assert message in refused(change)


def rename_input(proto):
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "pictures"


def rename_output(proto):
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "answers"


def spoil_weights(proto):
    bias = next(tensor for tensor in proto.graph.initializer if list(tensor.dims) == [CLASSES])
    bias.raw_data = b"\xff" * len(bias.raw_data)  # all bits of a float set: not a number


def fail_when_run(proto):
    pool = next(node for node in proto.graph.node if node.op_type == "MaxPool")
    next(entry for entry in pool.attribute if entry.name == "kernel_shape").ints[:] = [99, 99]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_input, "is not an ONNX file that ONNX Runtime can run: Required inputs"),
        (rename_output, "is not an ONNX file that ONNX Runtime can run: .*Invalid output name:logits"),
        (spoil_weights, "does not answer with 5 finite numbers"),
        (fail_when_run, "is not an ONNX file that ONNX Runtime can run: .*MaxPool"),
    ],
)
def test_a_network_of_another_kind_is_refused(refused, change, message):
    assert re.match(message, refused(change))


def test_pictures_that_a_file_cannot_take_are_one_line(small):
    with pytest.raises(
        UserError, match=r"small\.onnx is not an ONNX file that ONNX Runtime can run: .*Got: 8"
    ):
        onnx_model.OnnxModel(small)(torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("name", "damaged"),
    [(b"Relu", b"Rel\xff"), (b"images", b"imag\xff\xff"), (b"batch", b"batc\xff"), (b"stage", b"stag\xff")],
)
def test_a_name_that_is_no_text_is_one_line(small, tmp_path, capfd, name, damaged):
    path = tmp_path / "damaged.onnx"
    path.write_bytes(small.read_bytes().replace(name, damaged))
    with pytest.raises(UserError, match=r"damaged\.onnx is not an ONNX file that .*utf-8"):
        predictor.load(path, None, 1)
    assert capfd.readouterr() == ("", "")


def test_what_is_no_onnx_file_is_one_line(run, tmp_path, small):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "half.onnx").write_bytes(small.read_bytes()[: small.stat().st_size // 2])
    for name in ("folder", "empty", "half", "missing"):
        result = run("predict", tmp_path / f"{name}.onnx", tmp_path / "picture.jpg")
        assert result.code == 2 and result.out == "" and result.err.count("\n") == 1, result.err
        assert f"{name}.onnx" in result.err


def test_a_damaged_file_answers_or_is_refused(small, tmp_path, capfd):
    rng, whole, path, read = random.Random(0), small.read_bytes(), tmp_path / "damaged.onnx", 0
    for number in range(200):
        content, start = bytearray(whole), rng.randrange(len(whole))
        match number % 5:
            case 0:
                content[start] ^= 1 << rng.randrange(8)
            case 1:
                del content[start:]
            case 2:
                content[start:start] = rng.randbytes(rng.randint(1, 20))
            case 3:
                del content[start : start + rng.randint(1, 20)]
            case 4:
                content[start : start + 16] = bytes(len(content[start : start + 16]))
        path.write_bytes(content)
        try:
            opened = predictor.load(path, None, 1)
            side, classes = opened.content["image_size"], len(opened.content["classes"])
            assert opened.model(torch.randn(2, 3, side, side)).shape == (2, classes)
            read += 1
        except UserError as error:
            assert str(error).startswith(str(path))
    assert 20 < read < 180 and capfd.readouterr() == ("", "")


def test_a_class_whose_name_is_no_text_survives():
    whole = content("squeezenet1_1", awake("squeezenet1_1")) | {"classes": ["caf\udce9", "ネコ"]}
    said = onnx_model.metadata(whole)
    onnx.helper.set_model_props(onnx.ModelProto(), said)  # UTF-8 alone may stand there
    assert onnx_model._values(said)["classes"] == ["caf\udce9", "ネコ"]
