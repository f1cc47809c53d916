"""The plain recipe, the baseline of `benchmarks/speed.py`: code that is not optimized for speed.

float32, NCHW, Pillow decodes and resizes every image in every epoch in the training's own process, torch's
default fake quantization, Adam.
"""

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from common.compression.distillation import distillation_loss
from common.data.images import read_image


class DecodedImages(Dataset):
    def __init__(self, samples, transform):
        self.samples, self.transform = samples, transform

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        return self.transform(read_image(path)), label


def loader(splits, view: dict, batch_size: int, *, training: bool) -> DataLoader:
    side = view["image_size"]
    if training:
        geometry = [transforms.RandomResizedCrop(side, scale=(0.35, 1.0)), transforms.RandomHorizontalFlip()]
    else:
        geometry = [transforms.Resize(round(side * 8 / 7)), transforms.CenterCrop(side)]
    transform = transforms.Compose(
        [*geometry, transforms.ToTensor(), transforms.Normalize(view["mean"], view["std"])]
    )
    return DataLoader(
        DecodedImages(splits.train if training else splits.test, transform), batch_size, shuffle=training
    )


def epoch(stage: str, model, teacher, image_size: int, device):
    """A function that runs one epoch of `stage` on batches."""
    if stage == "quantization":
        from torch.ao.quantization import get_default_qat_qconfig_mapping
        from torch.ao.quantization.quantize_fx import prepare_qat_fx

        example = torch.zeros(1, 3, image_size, image_size)
        model = prepare_qat_fx(model.train(), get_default_qat_qconfig_mapping("qnnpack"), example)
    model.to(device)
    if teacher is not None:
        teacher.to(device).eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)

    def train(batches):
        model.train()
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            logits = model(images)
            if teacher is None:
                loss = F.cross_entropy(logits, labels)
            else:
                with torch.no_grad():
                    teacher_logits = teacher(images)
                loss = distillation_loss(logits, teacher_logits, labels, 3.0, 0.9)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()

    def validate(batches):
        model.eval()
        with torch.no_grad():
            for images, labels in batches:
                F.cross_entropy(model(images.to(device)), labels.to(device)).item()

    return validate if stage == "validation" else train
