import copy

import pytest
import torch
from torch import nn

from common.compression.reparameterization import fuse_branches
from common.models import architectures
from common.system.errors import UserError
from tests.compression.networks import network_options, pruned_by

CLASSES = 5
ARCHITECTURES = ("timm/repvgg_a0", "timm/mobileone_s0", "timm/repghostnet_050")


def trained(arch):
    """A network whose batch norms have statistics and weights, in eval mode."""
    pytest.importorskip("timm")
    torch.manual_seed(0)
    model = architectures.build(arch, CLASSES)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    for _ in range(3):
        model(torch.randn(8, 3, 64, 64))
    return model.eval()


@torch.no_grad()
def assert_same_logits(model, fused):
    images = torch.randn(4, 3, 64, 64)
    expected = model(images)
    assert torch.allclose(fused(images), expected, rtol=0.0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_fused_network_computes_the_same_logits_with_fewer_layers(arch):
    model = trained(arch)
    before = copy.deepcopy(model.state_dict())
    fused = fuse_branches(model)
    convolutions, fewer = (
        sum(isinstance(module, nn.Conv2d) for module in each.modules()) for each in (model, fused)
    )
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert fewer < convolutions or norms < sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert_same_logits(model, fused)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_pruned_network_is_fused_and_rebuilt_from_its_shapes(arch):
    model = trained(arch)
    fused = fuse_branches(pruned_by(model, 0.25, network_options(model, CLASSES, image_size=64)).eval())
    rebuilt = architectures.rebuild(arch, CLASSES, architectures.shapes(fused))
    rebuilt.load_state_dict(fused.state_dict())
    assert_same_logits(fused, rebuilt.eval())


def test_a_network_without_branches_stays_itself():
    model = architectures.build("squeezenet1_1", CLASSES)
    assert fuse_branches(model) is model


def test_a_block_that_cannot_be_fused_is_refused():
    pytest.importorskip("timm")

    class Block(nn.Module):
        def reparameterize(self):
            raise RuntimeError("unequal branches")

    with pytest.raises(UserError, match="branches of Sequential cannot be fused: unequal branches"):
        fuse_branches(nn.Sequential(Block()))
