"""Networks of torchvision with fewer layers, which take a fraction of the time to prune and to quantize.

They have the names, the kinds of layers and the first and last widths of the full ones.
"""

import functools

from torch import nn
from torchvision.models import convnext, mobilenetv2, resnet, squeezenet


def _squeezenet(num_classes):
    model = squeezenet.SqueezeNet("1_1", num_classes)
    model.features = nn.Sequential(
        *model.features[:4], model.features[5], squeezenet.Fire(128, 64, 256, 256)
    )  # fmt: skip
    return model


def _mobilenet(num_classes):
    settings = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]]  # expansion, channels, blocks, stride
    return mobilenetv2.MobileNetV2(num_classes, inverted_residual_setting=settings)


def _convnext(num_classes):
    settings = [convnext.CNBlockConfig(*each) for each in ((96, 192, 1), (192, 768, 1), (768, None, 1))]
    return convnext.ConvNeXt(settings, num_classes=num_classes)


def _resnet(block, **options):
    return lambda num_classes: resnet.ResNet(block, [1, 1, 1, 1], num_classes, **options)


BUILDERS = {
    squeezenet.squeezenet1_1: _squeezenet,
    mobilenetv2.mobilenet_v2: _mobilenet,
    convnext.convnext_tiny: _convnext,
    resnet.resnet18: _resnet(resnet.BasicBlock),
    resnet.resnet50: _resnet(resnet.Bottleneck),
    resnet.resnext50_32x4d: _resnet(resnet.Bottleneck, groups=32, width_per_group=4),
}


def _named(full, build):
    """`build` with the module and the weights of `full`, by which torchvision lists it."""
    return functools.wraps(full)(lambda *, weights=None, num_classes=1000: build(num_classes))


NETWORKS = {full.__name__: _named(full, build) for full, build in BUILDERS.items()}
