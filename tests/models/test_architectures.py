import pytest
import torch

from common.models import architectures
from common.system.errors import UserError


def test_for_an_unknown_architecture_the_nearest_name_is_suggested():
    for check in (architectures.check, lambda name: architectures.build(name, 3)):
        with pytest.raises(UserError, match="did you mean resnet18"):
            check("resnet_18")
    architectures.check("resnet18")


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "squeezenet1_1", "vgg11", "googlenet"])
def test_the_classifier_is_the_layer_that_yields_the_logits(arch):
    model = architectures.build(arch, 7).eval()
    name = architectures.classifier(model, 7)
    layer = model.get_submodule(name)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.copy_(torch.arange(7.0) + 1)
        assert torch.allclose(model(torch.randn(1, 3, 64, 64)), torch.arange(7.0)[None] + 1), name


def test_the_classifier_is_the_last_layer_of_its_width():
    # the first convolution of a ResNet-18 has 64 outputs too
    assert architectures.classifier(architectures.build("resnet18", 64), 64) == "fc"
    assert architectures.classifier(architectures.build("squeezenet1_1", 256), 256) == "classifier.1"


def test_a_model_without_a_layer_of_this_width_has_no_classifier():
    with pytest.raises(UserError, match="ResNet has no Linear or Conv2d layer with 5 outputs"):
        architectures.classifier(architectures.build("resnet18", 3), 5)


def test_pretrained_weights_are_loaded_whatever_the_width_of_their_classifier(tmp_path):
    source = architectures.build("squeezenet1_1", 1000)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = architectures.build("squeezenet1_1", 4, str(tmp_path / "weights.pth"))
    own, given = model.state_dict(), source.state_dict()
    assert own["classifier.1.weight"].shape[0] == 4
    assert all(torch.equal(own[key], given[key]) for key in own if not key.startswith("classifier"))


def test_a_classifier_of_the_same_width_is_loaded_too(tmp_path):
    source = architectures.build("squeezenet1_1", 4)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = architectures.build("squeezenet1_1", 4, str(tmp_path / "weights.pth"))
    assert torch.equal(model.classifier[1].weight, source.classifier[1].weight)


def test_the_backbone_of_a_checkpoint_is_loaded(tmp_path):
    source = architectures.build("squeezenet1_1", 4)
    torch.save({"state_dict": source.state_dict(), "int8": None}, tmp_path / "teacher.pt")
    model = architectures.build("squeezenet1_1", 3, str(tmp_path / "teacher.pt"))
    assert torch.equal(model.features[0].weight, source.features[0].weight)
    torch.save({"state_dict": {"features.0.weight": {"int8": 0}}, "int8": {}}, tmp_path / "int8.pt")
    with pytest.raises(UserError, match="neither a state dict nor a float checkpoint"):
        architectures.build("squeezenet1_1", 3, str(tmp_path / "int8.pt"))


@pytest.mark.parametrize("other", ["resnet34", "resnet50", "mobilenet_v2"])
def test_weights_of_another_architecture_are_refused(tmp_path, other):
    torch.save(architectures.build(other, 1000).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match="does not fit resnet18"):
        architectures.build("resnet18", 4, str(tmp_path / "weights.pth"))


def test_weights_without_one_layer_are_refused(tmp_path):
    state = architectures.build("resnet18", 4).state_dict()
    del state["layer3.0.conv1.weight"]
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"does not fit resnet18: layer3\.0\.conv1\.weight"):
        architectures.build("resnet18", 4, str(tmp_path / "weights.pth"))


def test_if_imagenet_weights_cannot_be_downloaded_the_file_and_the_alternative_are_named(
    monkeypatch, tmp_path
):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"resnet18-f37072fd\.pth.*--pretrained none"):
        architectures.build("resnet18", 4, "imagenet")


def test_rebuild_refuses_names_of_another_architecture():
    with pytest.raises(UserError, match="not those of resnet18"):
        architectures.rebuild("resnet18", 3, architectures.shapes(architectures.build("squeezenet1_1", 3)))
