from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import nn

from common.deployment import predictor
from common.models import architectures, checkpoint, lineage
from common.system.errors import UserError
from tests.conftest import REPOSITORY


class Fixed(nn.Module):
    """Returns the same logits for every image."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images):
        assert images.shape == (1, 3, 32, 32)
        return self.logits.expand(len(images), -1)


def classifier(*logits):
    content = lineage.new_checkpoint("resnet18", ["cat", "dog", "fox"], 32)
    model, form = Fixed(*logits), torch.channels_last
    return predictor.Classifier(Path("m.pt"), model, "torch", "fp32 torch", form, content)


def test_the_most_probable_classes_come_first():
    image = Image.new("RGB", (50, 40))
    predictions = predictor.top_k(classifier(0.0, 2.0, 1.0), image, 2)
    assert [name for name, _ in predictions] == ["dog", "fox"]
    probabilities = torch.tensor([0.0, 2.0, 1.0]).softmax(0).tolist()
    assert [p for _, p in predictions] == pytest.approx([probabilities[1], probabilities[2]])


def test_of_equal_probabilities_the_first_class_comes_first_and_k_may_exceed_the_classes():
    predictions = predictor.top_k(classifier(0.0, 1.0, 1.0), Image.new("RGB", (50, 40)), 9)
    assert [name for name, _ in predictions] == ["dog", "fox", "cat"]
    assert sum(p for _, p in predictions) == pytest.approx(1)


def test_classes_with_equal_probabilities_are_in_the_order_of_their_logits():
    predictions = predictor.top_k(classifier(-300.0, -200.0, 0.0), Image.new("RGB", (50, 40)), 3)
    assert predictions == [("fox", 1.0), ("dog", 0.0), ("cat", 0.0)]


def test_an_onnx_file_is_found_by_its_path_and_a_checkpoint_by_its_name(tmp_path):
    assert predictor.find("nowhere/m.onnx", str(tmp_path)) == Path("nowhere/m.onnx")
    (tmp_path / "teacher_x_0.5000.pt").touch()
    assert predictor.find("x", str(tmp_path)) == tmp_path / "teacher_x_0.5000.pt"
    with pytest.raises(UserError, match="no checkpoint 'y'"):
        predictor.find("y", str(tmp_path))


@pytest.mark.parametrize(("name", "runtime"), [("M.ONNX", "ONNX Runtime"), ("M.TFLITE", "LiteRT")])
def test_the_suffix_of_an_exported_file_may_be_in_capitals(tmp_path, monkeypatch, name, runtime):
    def opened(path, threads):
        return SimpleNamespace(content={"backend": ""})

    monkeypatch.setitem(predictor.EXPORTED, f".{name.split('.')[1].lower()}", (runtime, opened))
    assert predictor.find(f"nowhere/{name}", str(tmp_path)) == Path("nowhere", name)
    assert predictor.load(Path("nowhere", name), None, 1).runtime == runtime


def test_a_float_checkpoint_is_opened_in_eval_mode_without_its_weights_in_the_content(tmp_path):
    model = architectures.build("squeezenet1_1", 2)
    content = lineage.new_checkpoint("squeezenet1_1", ["cat", "dog"], 32) | {
        "stage": "teacher",
        "state_dict": checkpoint.float_state(model),
        "metrics": {"top1": 0.5, "ci95": [0.4, 0.6], "n": 10, "params": 1, "macs": 1},
    }
    opened = predictor.load(checkpoint.save(content, tmp_path), None, 1)
    assert not opened.model.training and opened.engine == "fp32 torch"
    assert opened.memory_format == torch.channels_last and "state_dict" not in opened.content


def test_the_engine_of_an_int8_checkpoint_is_named():
    path = checkpoint.find("quantized_mobilenet_v2", REPOSITORY / "weights")
    opened = predictor.load(path, "qnnpack", 1)
    assert opened.engine == "int8 qnnpack" == f"int8 {torch.backends.quantized.engine}"
