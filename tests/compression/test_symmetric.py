import numpy as np
import onnx
import pytest
import torch

from common.compression import quantization
from common.compression.observers import SymmetricRangeObserver
from common.compression.recorder import grids
from common.deployment import onnx_model
from common.system.errors import UserError
from tests.compression.networks import SIDE, SYMMETRIC, prepared_for, random_network
from tests.deployment.contents import content_of


def test_the_largest_absolute_value_is_127_steps_from_the_zero_point():
    observer = SymmetricRangeObserver(
        dtype=torch.quint8, qscheme=torch.per_tensor_symmetric, quant_min=0, quant_max=255
    )
    observer(torch.tensor([-1.0, 0.0, 2.54]))
    scale, zero_point = observer.calculate_qparams()
    assert scale.item() == pytest.approx(0.02) and zero_point.item() == 128


def test_a_network_in_onnx_has_int8_activations_and_zero_points_of_0(tmp_path):
    model = random_network("squeezenet1_1")
    converted = quantization.convert(prepared_for(SYMMETRIC, model))
    assert {zero_point for _, zero_point in grids(converted.int8, SIDE).values()} == {128}
    images = torch.randn(16, 3, SIDE, SIDE)
    content = content_of("squeezenet1_1", model, converted.int8, SYMMETRIC)
    with onnx_model.export(content, converted.int8, tmp_path / "m.onnx") as exported, torch.inference_mode():
        expected, fake_quant, actual = (m(images) for m in (converted, converted.fake_quant, exported))
    assert (fake_quant - expected).norm() < 0.04 * expected.norm()
    assert (actual - expected).norm() < 0.03 * expected.norm()

    graph = onnx.load(tmp_path / "m.onnx").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zero_points = [constants[node.input[2]] for node in pairs if len(node.input) > 2]
    assert len(zero_points) > 40 and all(value.dtype == np.int8 and not value.any() for value in zero_points)


def test_a_network_whose_layers_have_zero_points_of_their_own_is_refused():
    with pytest.raises(
        UserError, match="MobileNetV3 has no symmetric form: the zero point of Hardsigmoid is not 0"
    ):
        quantization.prepare(random_network("mobilenet_v3_small"), SYMMETRIC, SIDE)
