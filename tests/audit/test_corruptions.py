import pytest
import torch

from common.audit import corruptions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    ramp = torch.arange(48, dtype=torch.uint8).mul(5)
    return torch.stack([ramp.expand(3, 48, 48), ramp[:, None].expand(3, 48, 48)])


@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_each_strength_moves_an_image_further_and_the_same_seed_gives_the_same_image(images, kind):
    distances = []
    for strength in corruptions.STRENGTHS:
        corrupted = corruptions.corrupt(images, kind, strength, generator())
        assert corrupted.shape == images.shape and corrupted.dtype == torch.uint8
        assert torch.equal(corrupted, corruptions.corrupt(images, kind, strength, generator()))
        distances.append(float((corrupted.float() - images.float()).abs().mean()))
    assert 0 < distances[0] < distances[1] < distances[2]


def test_brightness_multiplies_and_contrast_moves_towards_the_mean():
    gray = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    assert set(corruptions.corrupt(gray, "dark", 1, generator()).flatten().tolist()) == {50}
    assert set(corruptions.corrupt(gray, "bright", 3, generator()).flatten().tolist()) == {255}
    half = torch.cat([gray, gray + 100], 3)
    low = corruptions.corrupt(half, "low contrast", 1, generator())
    # 150 + 0.5 * (100 - 150), or one less: torchvision rounds down
    assert set(low.flatten().tolist()) in ({125, 175}, {124, 174})


def test_pixelation_averages_squares():
    image = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    image[..., 0, 0] = 200
    pixelated = corruptions.corrupt(image, "pixelation", 1, generator())
    assert len(pixelated[0, 0].unique()) <= 4 and int(pixelated[0, 0, :2, :2].unique().numel()) == 1


def test_noise_has_the_standard_deviation_of_its_strength():
    gray = torch.full((4, 3, 64, 64), 128, dtype=torch.uint8)
    noise = corruptions.corrupt(gray, "noise", 1, generator()).float() - 128
    assert float(noise.std()) == pytest.approx(0.05 * 255, rel=0.02) and abs(float(noise.mean())) < 0.2
    assert not torch.equal(noise, corruptions.corrupt(gray, "noise", 1, generator(1)).float() - 128)
