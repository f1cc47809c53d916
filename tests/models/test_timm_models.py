"""Models of timm, which is optional: without it the tests skip, but for those of the messages."""

import importlib
import importlib.util
import json
import warnings

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.ops import StochasticDepth

from common.compression import masking, pruning
from common.data.transforms import eval_transform
from common.evaluation import metrics
from common.models import architectures, checkpoint, lineage, timm_models
from common.system.errors import UserError
from tests.conftest import REPOSITORY

CLASSES = 4
timm = importlib.import_module("timm") if importlib.util.find_spec("timm") else None
needs_timm = pytest.mark.skipif(timm is None, reason="timm is not installed")


def test_without_timm_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"timm/lcnet_050 .* not installed: pip install timm$"):
        architectures.check("timm/lcnet_050")
    with pytest.raises(UserError, match="no classification model 'lcnet_050'"):
        architectures.check("lcnet_050")


def test_timm_is_no_requirement_but_pinned_for_the_tests():
    assert "timm" not in (REPOSITORY / "requirements.txt").read_text()
    assert "\ntimm==" in (REPOSITORY / "tests" / "requirements.txt").read_text()


@needs_timm
def test_names_are_checked_and_the_nearest_is_suggested():
    architectures.check("timm/lcnet_050")
    architectures.check("timm/resnet18.a1_in1k")
    for name, message in (
        ("timm/lcnet_55", "timm has no model 'lcnet_55' - did you mean timm/lcnet_"),
        ("lcnet_050", "did you mean timm/lcnet_050"),
        ("timm/resnet18.a99", "Invalid pretrained tag"),
    ):
        with pytest.raises(UserError, match=message):
            architectures.check(name)


@needs_timm
@pytest.mark.parametrize(
    "name", ["mobilenetv4_conv_small", "efficientnet_lite0", "repvgg_a0", "lcnet_050", "starnet_s1"]
)
def test_layers_of_timm_become_those_of_torch_and_compute_the_same_to_the_bit(name):
    torch.manual_seed(0)
    source = timm.create_model(name, num_classes=CLASSES, drop_path_rate=0.1)
    source(torch.randn(4, 3, 64, 64))  # batch norms get statistics
    images = torch.randn(2, 3, 64, 64)
    expected, tensors = source.eval()(images), list(source.state_dict().values())
    timm_models.to_torch_layers(source)
    assert torch.equal(source(images), expected)
    kept = source.state_dict().values()
    assert all(torch.equal(old, new) for old, new in zip(tensors, kept, strict=True))
    others = (timm.layers.BatchNormAct2d, timm.layers.Linear, timm.layers.DropPath)
    assert not any(isinstance(module, others) for module in source.modules())


@needs_timm
def test_the_rate_of_stochastic_depth_is_kept():
    model = nn.Sequential(timm.layers.DropPath(0.25), timm.layers.DropPath(0.0))
    timm_models.to_torch_layers(model)
    assert isinstance(model[0], StochasticDepth) and model[0].p == 0.25 and model[0].mode == "row"


@needs_timm
@pytest.mark.parametrize("form", ["torch", "training", "safetensors", "checkpoint"])
def test_weights_are_loaded_from_a_file(tmp_path, form):
    source = timm.create_model("lcnet_050", num_classes=1000)
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(source.state_dict(), path)
    elif form == "torch":
        torch.save(source.state_dict(), path)
    elif form == "training":  # as timm's own training script writes it
        torch.save({"state_dict": source.state_dict(), "epoch": 1}, path)
    else:
        timm_models.to_torch_layers(source)
        torch.save({"state_dict": source.state_dict(), "int8": None}, path)
    model = architectures.build("timm/lcnet_050", CLASSES, str(path))
    assert torch.equal(model.blocks[0][0].conv_dw.weight, source.blocks[0][0].conv_dw.weight)
    assert architectures.classifier(model, CLASSES) == "classifier"
    assert model.classifier.out_features == CLASSES


@needs_timm
@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("repvit_m0_9", ("head.head.l", "head.head_dist.l")),
        ("levit_128s", ("head.linear", "head_dist.linear")),
    ],
)
def test_networks_with_two_heads_start_from_weights_for_other_classes(tmp_path, name, heads):
    source = timm.create_model(name)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    before = torch.get_rng_state()
    plain = architectures.build(f"timm/{name}", CLASSES)
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    model = architectures.build(f"timm/{name}", CLASSES, str(tmp_path / "weights.pth"))
    assert torch.equal(torch.get_rng_state(), after)
    given, initial = source.state_dict(), plain.state_dict()
    for key, value in model.state_dict().items():
        expected = initial if key.rpartition(".")[0] in heads else given
        assert torch.equal(value, expected[key]), key
    state = source.state_dict()
    del state[next(iter(state))]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="does not fit"):
        architectures.build(f"timm/{name}", CLASSES, str(tmp_path / "weights.pth"))


@needs_timm
def test_a_network_whose_layers_pass_tuples_is_counted():
    model = architectures.build("timm/pit_ti_distilled_224", CLASSES)
    assert metrics.complexity(model, 224)["macs"] > 400e6 and all(
        each.requires_grad for each in model.parameters()
    )


@needs_timm
@pytest.mark.parametrize("name", ["cs3darknet_s", "edgenext_xx_small", "mixnet_s", "rexnet_100"])
def test_networks_that_split_channels_at_fixed_numbers_are_pruned_in_between(name):
    model = architectures.build(f"timm/{name}", CLASSES).eval()
    network = {"classifier": architectures.classifier(model, CLASSES), "image_size": 64}
    groups = pruning.rank(model, "random", "local", **network)
    widths = pruning.widths_for_fraction(groups, 0.5)
    pruned = pruning.prune(model, groups, widths, **network)
    masking.verify(pruned, model, groups, widths, **network)
    assert metrics.count_parameters(pruned) < 0.9 * metrics.count_parameters(model)


@needs_timm
def test_weights_that_cannot_be_read_or_do_not_fit_are_refused(tmp_path):
    damaged, missing = tmp_path / "damaged.safetensors", tmp_path / "missing.safetensors"
    damaged.write_bytes(b"not a file of weights")
    for path in (damaged, missing):
        with pytest.raises(UserError, match=f"cannot read {path}"):
            architectures.build("timm/lcnet_050", CLASSES, str(path))
    torch.save(timm.create_model("lcnet_075").state_dict(), tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not fit timm/lcnet_050"):
        architectures.build("timm/lcnet_050", CLASSES, str(tmp_path / "other.pth"))


@needs_timm
@pytest.mark.parametrize("error", [OSError("no network\nwhy"), RuntimeError("no network\nwhy")])
def test_weights_that_cannot_be_downloaded_are_one_line(monkeypatch, error):
    def fail(*_args, **options):
        assert options["pretrained"]
        raise error

    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(UserError, match=r"lcnet_050.*\(no network\).*--pretrained its path") as refusal:
        timm_models.hub_state("timm/lcnet_050")
    assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match="timm has no weights for timm/regnetz_005"):
        timm_models.hub_state("timm/regnetz_005")


@needs_timm
def test_a_checkpoint_has_the_images_of_its_network():
    content = lineage.new_checkpoint("timm/test_vit", ["cat", "dog"], None)
    assert (content["image_size"], content["mean"], content["std"]) == (160, [0.5] * 3, [0.5] * 3)
    json.dumps(content)  # plain values
    smaller = lineage.new_checkpoint("timm/test_vit", ["cat", "dog"], 96)
    assert smaller["image_size"] == 96
    assert lineage.new_checkpoint("resnet18", ["cat", "dog"], None)["image_size"] == 224


@needs_timm
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
def test_an_image_is_prepared_as_by_timm(crop_pct):
    image = Image.effect_noise((240, 190), 80).convert("RGB")
    content = {"image_size": 160, "crop_pct": crop_pct, "mean": [0.5] * 3, "std": [0.25] * 3}
    expected = timm.data.create_transform(
        160, crop_pct=crop_pct, mean=(0.5,) * 3, std=(0.25,) * 3, interpolation="bilinear"
    )(image)
    assert torch.allclose(eval_transform(image, content)[0], expected, atol=1e-5)


@needs_timm
def test_the_crop_of_a_network_is_that_of_timm():
    assert lineage.new_checkpoint("timm/test_vit", ["cat", "dog"], None)["crop_pct"] == 0.95
    above = [name for name in timm.list_models() if timm.get_pretrained_cfg(name).crop_pct > 1]
    assert len(above) == 3  # timm adds a border to their images
    assert timm_models.input_config(f"timm/{above[0]}")["crop_pct"] == 1.0


@needs_timm
def test_file_names_have_no_slash_and_are_found_by_the_architecture(tmp_path):
    assert lineage.next_name("pruned", "timm/lcnet_050") == "pruned_timm_lcnet_050"
    assert lineage.next_name("quantized", "pruned_timm_lcnet_050") == "quantized_pruned_timm_lcnet_050"
    file = tmp_path / "teacher_timm_lcnet_050_0.9000.pt"
    file.touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.find("timm/lcnet_050", tmp_path) == file


@needs_timm
def test_the_lineage_names_the_version_of_timm():
    assert timm_models.version("timm/lcnet_050") == {"timm": timm.__version__}
    assert timm_models.version("resnet18") == {}
