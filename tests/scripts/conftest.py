"""An int8 network that was not trained, for the tests of its exported files."""

import pytest
import torch

from common.compression import int8_engines, quantization
from common.compression.target_devices import TARGET_DEVICES
from common.deployment import integer_model
from common.models import architectures, checkpoint, lineage
from tests.conftest import write_images

SIDE = 57  # the last pooling of squeezenet has a window of 3 x 3: the mean has no ties
METRICS = {"top1": 0.5, "ci95": [0.4, 0.6], "n": 100, "params": 724_000, "macs": 1}


@pytest.fixture(scope="session")
def created(tmp_path_factory):
    """A folder with images, an untrained squeezenet and its int8 form."""
    folder = tmp_path_factory.mktemp("created")
    write_images(folder / "images")
    (folder / "w").mkdir()
    torch.manual_seed(0)
    model = architectures.build("squeezenet1_1", 3)
    new = lineage.new_checkpoint("squeezenet1_1", ["cat", "dog", "fox"], SIDE) | {"metrics": METRICS}
    teacher = {"stage": "teacher", "name": "teacher_squeezenet1_1"}
    checkpoint.save(new | teacher | {"state_dict": checkpoint.float_state(model)}, folder / "w")
    target = TARGET_DEVICES["embedded"]
    int8_engines.use(target)
    prepared = quantization.prepare(model, target, SIDE)
    quantization.calibrate(prepared, [(torch.randn(8, 3, SIDE, SIDE), None)], torch.device("cpu"), 1)
    content = integer_model.to_content(integer_model.convert(prepared, SIDE), model, target)
    quantized = {"stage": "quantized", "name": "quantized_squeezenet1_1"}
    checkpoint.save(new | quantized | content, folder / "w")
    return folder
