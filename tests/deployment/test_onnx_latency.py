import onnxruntime
import pytest
import torch
from torch import nn

from common.deployment import onnx_latency
from common.evaluation import latency
from common.evaluation.latency import Latency
from common.models import lineage
from common.system.errors import UserError
from tests.compression.networks import chain

pytestmark = pytest.mark.usefixtures("shallow_networks")

CONTENT = lineage.new_checkpoint("chain", ["a", "b", "c", "d"], 8) | {
    "stage": "pruned",
    "metrics": {"params": 0, "macs": 0},
}


def test_the_onnx_file_is_timed_in_onnx_runtime_and_written_once(tmp_path, monkeypatch):
    measured, built, file = [], [], tmp_path / "model.onnx"

    def measure(model, image_size, *, batch, threads, memory_format):
        assert isinstance(model.session, onnxruntime.InferenceSession)
        assert memory_format == torch.contiguous_format  # others would be copied in each run
        session_threads = model.session.get_session_options().intra_op_num_threads
        measured.append((model.path, image_size, batch, threads, session_threads))
        return Latency(2.5, 3.0, batch)

    def build():
        built.append(chain(8, 8)[0])
        return built[-1]

    monkeypatch.setattr(latency, "measure", measure)
    for batch in (1, 4):
        opened = onnx_latency.load(CONTENT, build, file, threads=2)
        timed = onnx_latency.measure(opened, 8, batch=batch, threads=2)
        assert timed == Latency(2.5, 3.0, batch)
    assert measured == [(file, 8, 1, 2, 2), (file, 8, 4, 2, 2)]
    assert len(built) == 1 and [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_real_measurement_takes_some_time(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "WARMUP_SECONDS", 0)
    monkeypatch.setattr(latency, "MEASURED_SECONDS", 0)
    opened = onnx_latency.load(CONTENT, lambda: chain(8, 8)[0], tmp_path / "m.onnx", threads=1)
    timed = onnx_latency.measure(opened, 8, batch=1, threads=1)
    assert 0 < timed.p50 <= timed.p95


def test_a_network_without_a_form_in_onnx_is_an_error(tmp_path):
    class Odd(nn.Module):
        def forward(self, images):
            return torch.linalg.eig(images).eigenvalues.real

    with pytest.raises(UserError, match="chain cannot be written as ONNX"):
        onnx_latency.load(CONTENT, Odd, tmp_path / "model.onnx", threads=1)
    assert list(tmp_path.iterdir()) == []


def test_openvino_computes_in_float32(tmp_path):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model = chain(8, 8)[0].eval()
    opened = onnx_latency.load(CONTENT, lambda: model, tmp_path / "m.onnx", threads=1, runtime="openvino")
    for count in (1, 3):
        images = torch.randn(count, 3, 8, 8).to(memory_format=torch.channels_last)
        assert torch.allclose(opened(images), model(images), rtol=1e-4, atol=1e-5)
    precisions = [str(each.get_property("INFERENCE_PRECISION_HINT")) for each in opened.compiled.values()]
    assert precisions == ["<Type: 'float32'>"] * 2
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"OpenVINO cannot run m\.onnx"):
        onnx_latency.load(CONTENT, lambda: model, tmp_path / "m.onnx", threads=1, runtime="openvino")
