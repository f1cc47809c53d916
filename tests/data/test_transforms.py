import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms import v2

from common.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalize,
    center_crop,
    eval_transform,
    random_crop,
    renormalized,
    resize_shorter_side,
    resized_side,
)

VIEW = {"image_size": 32, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def test_images_are_normalized_as_by_torchvision():
    images = torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8)
    mean, std = [0.1, 0.5, 0.7], [0.2, 0.3, 0.9]
    expected = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])(images)
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        result = Normalize(mean, std)(given)
        assert torch.allclose(result, expected, atol=1e-6)
        assert result.dtype == torch.float32 and result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("size", "resized"), [((600, 90), (426, 64)), ((40, 30), (40, 30)), ((64, 64), (64, 64))]
)
def test_training_images_are_reduced_to_twice_the_crop_and_never_enlarged(size, resized):
    assert resize_shorter_side(Image.new("RGB", size), 32).size == resized


def test_evaluation_sees_the_normalized_center():
    image = Image.new("RGB", (64, 64))
    image.paste((255, 255, 255), (24, 24, 40, 40))
    (pixels,) = eval_transform(image, VIEW)
    assert pixels.shape == (3, 32, 32)
    assert pixels[:, 14:18, 14:18].min() > 2 and pixels[:, 0].max() < -1.7


@pytest.mark.parametrize(
    ("image_size", "crop_pct", "expected"),
    [
        (224, None, 256),
        (160, None, 183),
        (160, 0.875, 182),
        (224, 0.875, 256),
        (224, 0.9, 248),
        (96, 1.0, 96),
    ],
)
def test_the_shorter_side_is_that_of_the_checkpoint(image_size, crop_pct, expected):
    assert resized_side({"image_size": image_size, "crop_pct": crop_pct}) == expected


def test_a_checkpoint_without_crop_pct_is_evaluated_as_before():
    assert resized_side({"image_size": 160}) == 183


@pytest.mark.parametrize("size", [(600, 90), (90, 600), (10, 10), (256, 256)])
def test_the_center_crop_is_a_square_whatever_the_size_of_the_image(size):
    assert center_crop(Image.new("RGB", size), 224, 256).size == (224, 224)


def test_the_center_crop_is_cut_equally_on_both_sides():
    image = Image.new("RGB", (256 + 100, 256), "white")
    image.paste((0, 0, 0), (0, 0, 66, 256))  # 50 + 16 columns on the left are cut off
    image.paste((0, 0, 0), (256 + 34, 0, 256 + 100, 256))
    assert center_crop(image, 224, 256).getextrema() == ((255, 255),) * 3


def test_random_crops_differ_and_have_the_size_of_the_network():
    crop, image = random_crop(16), torch.arange(3 * 40 * 60).view(3, 40, 60).to(torch.uint8)
    crops = [crop(image) for _ in range(10)]
    assert all(each.shape == (3, 16, 16) and each.dtype == torch.uint8 for each in crops)
    assert not all(torch.equal(each, crops[0]) for each in crops)


def test_a_network_sees_images_of_another_normalization_as_it_was_trained_on():
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    own = {"mean": [0.5, 0.4, 0.3], "std": [0.5, 0.25, 0.1]}
    teacher = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    seeing = renormalized(teacher, own, VIEW)
    expected = teacher(Normalize(own["mean"], own["std"])(images))
    assert torch.allclose(seeing(Normalize(IMAGENET_MEAN, IMAGENET_STD)(images)), expected, atol=1e-5)
    assert renormalized(teacher, VIEW, VIEW) is teacher
