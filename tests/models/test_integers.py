"""Integers of files of earlier versions, which have no graph."""

import pytest
import torch

from common.integer import from_fx
from common.models import checkpoint, integers
from common.system.errors import UserError
from tests.conftest import REPOSITORY
from tests.integer.networks import NoQuantizedKernels, differences

OLD = REPOSITORY / "weights" / "quantized_pruned_16th_mobilenet_v2_0.8068.pt"


@pytest.fixture
def content():
    return checkpoint.load(OLD)


def test_an_old_file_is_read_without_quantized_kernels_and_gives_the_integers_of_torchs_model(content):
    assert "graph" not in content["int8"]
    with NoQuantizedKernels():
        graph = integers.read(content)
    assert differences(from_fx.read(checkpoint.rebuild(content), content["image_size"]), graph) == []


def test_a_file_that_has_one_scale_for_all_channels_is_read(content):
    content["state_dict"]["features.18.0.weight"]["scale"] = torch.tensor(0.01)
    layers = {each.output.name: each for each in integers.read(content).operators}
    assert set(layers["features_18_0"].weight_scales.tolist()) == {torch.tensor(0.01).item()}


@pytest.mark.parametrize("key", ["features.18.0.weight", "features.18.0.scale", "features_3_scale_0"])
def test_an_old_file_that_lacks_something_is_refused_in_one_line(content, key):
    del content["state_dict"][key]
    with pytest.raises(UserError, match=r"^the int8 weights do not fit mobilenet_v2: ") as caught:
        integers.read(content)
    assert "\n" not in str(caught.value)
