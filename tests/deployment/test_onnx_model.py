import copy
import random
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from common.data.transforms import IMAGENET_MEAN, IMAGENET_STD, resized_side
from common.deployment import metadata, onnx_model, onnx_session, predictor
from common.models import checkpoint
from common.system.errors import UserError
from tests.compression.networks import (
    CLASSES,
    EMBEDDED,
    SERVER,
    SIDE,
    each_target,
    quantized,
    random_network,
)
from tests.deployment.contents import content_of

pytestmark = pytest.mark.usefixtures("shallow_networks")


@each_target
@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1"])
def test_an_int8_model_has_the_same_logits_in_onnx_runtime(arch, target, tmp_path):
    model = random_network(arch)
    _, int8_model = quantized(model, target)
    content = content_of(arch, model, int8_model, target)
    path = tmp_path / "model.onnx"
    with onnx_model.export(content, int8_model, path) as exported:
        images = torch.randn(5, 3, SIDE, SIDE)
        expected, actual = int8_model(images), exported(images)
        alone = torch.cat([exported(image[None]) for image in images])  # batches may have any size
    # with random weights a value that is rounded to the other neighbor changes more in each layer
    assert (actual - expected).norm() < 0.25 * expected.norm()
    assert torch.equal(alone, actual)
    assert path.stat().st_size < 1.15 * checkpoint.save(content, tmp_path).stat().st_size
    weights = [tensor for tensor in onnx.load(path).graph.initializer if len(tensor.dims) in (2, 4)]
    assert len(weights) >= 8 and {tensor.data_type for tensor in weights} == {TensorProto.INT8}


def test_int8_arithmetic_is_the_same_to_the_last_bit(tmp_path):
    # one layer of each kind: no sums that are so long that another kernel rounds them differently
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2), torch.nn.ReLU(), torch.nn.MaxPool2d(2), torch.nn.Flatten(),
        torch.nn.Linear(8 * 15 * 15, CLASSES),
    )  # fmt: skip
    _, int8_model = quantized(model, EMBEDDED)
    content = content_of("resnet18", model, int8_model, EMBEDDED)
    with onnx_model.export(content, int8_model, tmp_path / "m.onnx") as exported:
        images = torch.randn(64, 3, SIDE, SIDE)
        expected, actual = int8_model(images), exported(images)
    step = torch.unique(expected).diff().min()
    assert (actual == expected).double().mean() > 0.99 and (actual - expected).abs().max() < 1.5 * step


def test_no_sum_overflows_on_any_cpu(tmp_path):
    # 255 * 127 + 255 * 127 does not fit into 16 bits; layers of the same width have equal zero points
    convolutions = [torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3), torch.nn.Conv2d(8, 8, 3)]
    model = torch.nn.Sequential(
        *convolutions, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, CLASSES)
    )
    with torch.no_grad():
        for layer in convolutions:
            layer.weight.abs_()
    _, int8_model = quantized(model, EMBEDDED)
    content = content_of("resnet18", model, int8_model, EMBEDDED)
    with onnx_model.export(content, int8_model, tmp_path / "m.onnx") as exported:
        images = 3 + torch.randn(16, 3, SIDE, SIDE)
        actual, expected = exported(images), int8_model(images)
    assert (actual - expected).abs().max() < 0.01 * expected.abs().max()
    nodes = [node for node in onnx.load(tmp_path / "m.onnx").graph.node if node.op_type == "DequantizeLinear"]
    zero_points = [node.input[2] for node in nodes if node.input[0].endswith("weight")]
    assert len(zero_points) == len(set(zero_points)) == 4
    # a file of an earlier version, where equal zero points are shared
    proto = onnx.load(tmp_path / "m.onnx")
    nodes = [node for node in proto.graph.node if node.op_type == "DequantizeLinear"]
    for node in nodes:
        if node.input[0] in ("_1_weight", "_2_weight"):
            node.input[2] = zero_points[0]
    assert sum(node.input[2:] == [zero_points[0]] for node in nodes) == 3
    onnx.save(proto, tmp_path / "old.onnx")
    assert torch.equal(onnx_model.OnnxModel(tmp_path / "old.onnx")(images), actual)


def test_the_trial_finds_what_the_flags_of_the_cpu_say():
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        flags = set()
    if "avx2" not in flags:
        pytest.skip("not a CPU that is known to have these kernels")
    without = not {"avx512_vnni", "avx_vnni", "amx_int8"} & flags
    assert onnx_session.sums_overflow.__wrapped__() == without


def test_the_trial_finds_sums_that_end_at_16_bits(monkeypatch):
    # pairs of 255 * 127 become 32,767: 8 of them at the scale of the trial, where 200 is correct
    saturated = round(8 * 32767 / (16 * 255 * 127) * 200)

    def run(_session, _outputs, inputs):
        return [np.full_like(inputs["x"], saturated)]

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", run)
    assert saturated == 101 and onnx_session.sums_overflow.__wrapped__()


@pytest.mark.parametrize("overflow", [True, False])
def test_exact_sums_are_asked_for_only_where_they_are_not_exact(small, monkeypatch, overflow):
    monkeypatch.setattr(onnx_session, "sums_overflow", lambda: overflow)
    settings = onnx_model.OnnxModel(small).session.get_session_options()
    if overflow:
        assert settings.get_session_config_entry("session.x64quantprecision") == "1"
    else:
        with pytest.raises(RuntimeError, match="does not have configuration"):
            settings.get_session_config_entry("session.x64quantprecision")


def test_the_file_asks_for_no_newer_version_than_it_needs(small):
    proto = onnx.load(small)
    assert (proto.opset_import[0].version, proto.ir_version) == (14, 7)  # Reshape


@each_target
def test_a_bias_that_is_too_large_for_int32_at_the_scale_of_its_weights_is_kept(target, tmp_path):
    # a channel with weights near 0: the scale of the weights times that of the input is about 1e-9
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(8, CLASSES),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight[0] *= 1e-9
        model[0].bias[0] = 60
    _, int8_model = quantized(model, target)
    content = content_of("resnet18", model, int8_model, target)
    with onnx_model.export(content, int8_model, tmp_path / "m.onnx") as exported:
        images = torch.randn(4, 3, SIDE, SIDE)
        actual, expected = exported(images), int8_model(images)
    assert expected.abs().max() > 5 and (actual - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_float_model_is_written_as_float(tmp_path):
    model = random_network("mobilenet_v2").eval()
    path = tmp_path / "model.onnx"
    with onnx_model.export(content_of("mobilenet_v2", model), model, path) as exported:
        images = torch.randn(3, 3, SIDE, SIDE)
        assert torch.allclose(exported(images), model(images), rtol=1e-3, atol=1e-4)
    assert "QuantizeLinear" not in {node.op_type for node in onnx.load(path).graph.node}


def test_the_metadata_describe_how_an_image_is_prepared(tmp_path):
    model = random_network("squeezenet1_1").eval()
    path = tmp_path / "model.onnx"
    with onnx_model.export(content_of("squeezenet1_1", model), model, path):
        pass
    texts = onnx_model.OnnxModel(path).metadata
    assert texts["classes"] == '["a", "b", "c", "d", "Ägyptische Mau"]'
    assert texts["mean"] == str(IMAGENET_MEAN) and texts["std"] == str(IMAGENET_STD)
    assert (texts["image_size"], texts["resize"], texts["backend"]) == ("64", "73", "")
    assert texts["crop_pct"] == "null"


def test_the_shorter_side_of_a_network_of_timm_is_in_the_metadata_and_read_again(tmp_path):
    content = {"int8": None, "metrics": {"params": 1, "macs": 1}, "image_size": 160, "crop_pct": 0.875}
    content |= {"name": "a", "stage": "teacher", "arch": "timm/a", "classes": ["a", "b"]}
    texts = metadata.of(content | {"mean": IMAGENET_MEAN, "std": IMAGENET_STD})
    assert texts["resize"] == "182"
    assert resized_side(metadata.parse(texts, "m.onnx")) == 182
    del texts["crop_pct"]  # a file of an earlier version
    assert resized_side(metadata.parse(texts, "m.onnx")) == 183


def test_a_failed_check_leaves_no_file(tmp_path):
    model = random_network("squeezenet1_1").eval()
    with (
        pytest.raises(UserError, match="differs"),
        onnx_model.export(content_of("squeezenet1_1", model), model, tmp_path / "model.onnx"),
    ):
        raise UserError("it differs")
    assert list(tmp_path.iterdir()) == []


def test_files_that_export_did_not_write_are_refused(tmp_path):
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


def test_exporting_does_not_change_the_model(tmp_path):
    model = random_network("squeezenet1_1")
    _, int8_model = quantized(model, SERVER)
    images = torch.randn(2, 3, SIDE, SIDE)
    before = copy.deepcopy(int8_model)(images)
    content = content_of("squeezenet1_1", model, int8_model, SERVER)
    with onnx_model.export(content, int8_model, tmp_path / "m.onnx"):
        pass
    assert torch.equal(int8_model(images), before)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An ONNX file of a few layers, for images of 16 pixels and five classes."""
    path = tmp_path_factory.mktemp("small") / "small.onnx"
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.MaxPool2d(2), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(4, CLASSES),
    ).eval()  # fmt: skip
    with onnx_model.export(content_of("resnet18", model) | {"image_size": 16}, model, path):
        pass
    return path


@pytest.fixture
def refused(small, tmp_path, capfd):
    """refused(change): the reason for which the small file is refused once `change` has changed it."""

    def refuse(change) -> str:
        proto, path = onnx.load(small), tmp_path / "changed.onnx"
        change(proto)
        onnx.save(proto, path)
        with pytest.raises(UserError) as error:
            predictor.load(path, None, 1)
        assert capfd.readouterr() == ("", "")  # ONNX Runtime prints nothing itself
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
        ("classes", '["a", "b"]', "does not return 2 finite logits, one for each class"),
        ("image_size", str(10**9), "in its metadata, image_size cannot be 1000000000"),
        ("image_size", "7", "image_size cannot be 7"),
        ("image_size", "16.0", "image_size cannot be 16.0"),
        ("image_size", "9" * 5000, "was not written by export.py: in its metadata, Exceeds the limit"),
        ("image_size", "32", "takes images of [3, 16, 16], not [3, 32, 32] as in its metadata"),
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
def test_invalid_metadata_are_refused(refused, key, text, message):
    def change(proto):
        texts = {entry.key: entry.value for entry in proto.metadata_props}
        del proto.metadata_props[:], texts[key]
        onnx.helper.set_model_props(proto, texts if text is None else texts | {key: text})

    assert message in refused(change)


def rename_input(proto):
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "pixels"


def rename_output(proto):
    proto.graph.output[0].name = proto.graph.node[-1].output[0] = "outputs"


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
        (spoil_weights, "does not return 5 finite logits"),
        (fail_when_run, "is not an ONNX file that ONNX Runtime can run: .*MaxPool"),
    ],
)
def test_an_invalid_network_is_refused(refused, change, message):
    assert re.match(message, refused(change))


def test_images_that_a_file_does_not_accept_are_one_line(small):
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


def test_a_file_that_is_no_onnx_file_is_one_line(run, tmp_path, small):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "half.onnx").write_bytes(small.read_bytes()[: small.stat().st_size // 2])
    for name in ("folder", "empty", "half", "missing"):
        result = run("predict", tmp_path / f"{name}.onnx", tmp_path / "image.jpg")
        assert result.code == 2 and result.out == "" and result.err.count("\n") == 1, result.err
        assert f"{name}.onnx" in result.err


def test_a_damaged_file_runs_or_is_refused(small, tmp_path, capfd):
    rng, original, path, read = random.Random(0), small.read_bytes(), tmp_path / "damaged.onnx", 0
    for number in range(200):
        content, start = bytearray(original), rng.randrange(len(original))
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


def test_a_class_name_that_is_no_text_is_read_as_it_was_written():
    content = content_of("squeezenet1_1", random_network("squeezenet1_1")) | {
        "classes": ["caf\udce9", "ネコ"]
    }
    texts = metadata.of(content)
    onnx.helper.set_model_props(onnx.ModelProto(), texts)  # where only UTF-8 is allowed
    assert metadata.parse(texts, "m.onnx")["classes"] == ["caf\udce9", "ネコ"]


def test_each_reader_has_its_own_weight_and_zero_points_and_names_are_free():
    def constant(name):
        return onnx.helper.make_tensor(name, onnx.TensorProto.INT8, [1], [0])

    def node(kind, *inputs, output):
        return onnx.helper.make_node(kind, inputs, [output])

    # the exporter wrote equal weights of two scales once, and "zero" for all; one name is taken
    names = ["a", "b", "zero", "zero_own", "scale", "other"]
    graph = onnx.helper.make_graph(
        [
            node("DequantizeLinear", "a", "scale", "zero", output="first"),
            node("Neg", "first", output="1"),
            node("DequantizeLinear", "a", "other", "zero", output="second"),
            node("DequantizeLinear", "b", "scale", "zero", output="twice"),
            node("Add", "second", "twice", output="2"),
            node("Neg", "twice", output="3"),
            node("Neg", "zero_own", output="4"),
        ],
        "graph", [], [], [constant(name) for name in names],
    )  # fmt: skip
    onnx_model._separate_constants(graph)
    producers = {each.output[0]: each for each in graph.node if each.op_type == "DequantizeLinear"}
    read = [name for each in graph.node if each.op_type != "DequantizeLinear" for name in each.input]
    assert read == ["first", "second", "twice", "twice_own", "zero_own"] and len(producers) == 4
    assert [producers[name].input[1] for name in read[:4]] == ["scale", "other", "scale", "scale"]
    owned = [producers[name].input[index] for name in read[:4] for index in (0, 2)]
    created = [each.name for each in graph.initializer]
    assert len(set(owned)) == 8 and {*owned, *names} == set(created) and len(created) == len(set(created))
    assert all(name.startswith(("a", "zero")) for name in owned[:4] + owned[5::2]) and owned[4] == "b"
    order = [name for each in graph.node for name in each.output]
    assert all(
        order.index(name) < order.index(output)
        for name, output in zip(read, "12234", strict=True)
        if name in order
    )


def test_equal_weights_with_different_scales_are_written_for_each_layer(tmp_path):
    def identity():  # in int8 the same integers whatever the scale is, as in branches that were fused
        conv = torch.nn.Conv2d(8, 8, 3, padding=1, groups=8)
        torch.nn.init.dirac_(conv.weight, groups=8)
        conv.weight.data *= torch.rand(8, 1, 1, 1) + 0.5
        return conv, torch.nn.ReLU()

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), *identity(), *identity(),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(8, CLASSES),
    )  # fmt: skip
    _, int8_model = quantized(model, EMBEDDED)
    content = content_of("resnet18", model, int8_model, EMBEDDED)
    with onnx_model.export(content, int8_model, tmp_path / "m.onnx") as exported:
        images = torch.randn(16, 3, SIDE, SIDE)
        assert (exported(images) - int8_model(images)).abs().max() < 0.02 * int8_model(images).abs().max()
    weights = [
        node.input[0]
        for node in onnx.load(tmp_path / "m.onnx").graph.node
        if node.op_type == "DequantizeLinear" and "weight" in node.input[0]
    ]
    assert len(weights) == len(set(weights)) == 4
