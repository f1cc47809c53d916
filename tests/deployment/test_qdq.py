import torch
from torch import nn
from torch.nn import functional as F

from common.deployment import onnx_model, qdq
from tests.compression.networks import CLASSES, EMBEDDED, SIDE, quantized
from tests.deployment.contents import content_of


class EveryLayer(nn.Module):
    """Each layer and operation that has an int8 form, used as in densenet, convnext and efficientnet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8)
        self.norm_relu = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
        self.swish, self.silu = nn.Hardswish(), nn.SiLU()
        self.layer_norm = nn.LayerNorm(16)
        self.linear_relu = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.classifier = nn.Linear(16, CLASSES)
        for norm in (self.norm, self.norm_relu[0], self.layer_norm):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -0.5, 1)

    def forward(self, images):
        values = self.norm_relu(self.norm(F.max_pool2d(self.stem(images), 2)))
        values = F.relu(values + self.conv(values)) + values
        values = torch.cat([self.swish(values), self.silu(values) * values], 1).permute(0, 2, 3, 1)
        values = F.layer_norm(self.layer_norm(values), (16,)).mean((1, 2))
        return self.classifier(self.linear_relu(values))


def test_every_quantized_layer_and_operation_computes_the_same_in_onnx_runtime(tmp_path):
    model = EveryLayer()
    torch.optim.swa_utils.update_bn([torch.randn(64, 3, SIDE, SIDE)], model)
    _, int8_model = quantized(model, EMBEDDED)
    # except quantized.cat: this version of torch gives quantized values to torch.cat
    assert set(qdq.LAYERS) <= {type(module) for module in int8_model.modules()}
    assert set(qdq.FUNCTIONS) - {node.target for node in int8_model.graph.nodes} == {torch.ops.quantized.cat}
    content = content_of("densenet121", model, int8_model, EMBEDDED)
    with onnx_model.export(content, int8_model, tmp_path / "m.onnx") as exported:
        images = torch.randn(64, 3, SIDE, SIDE)
        expected, actual = int8_model(images), exported(images)
    # a value that lies halfway between two integers can be rounded differently
    assert (actual - expected).norm() < 0.03 * expected.norm()
    assert (actual == expected).double().mean() > 0.8
