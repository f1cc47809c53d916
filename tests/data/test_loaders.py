import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from common.data import datasets
from common.data.images import read_image
from common.data.loaders import CroppedImages, eval_loader, make_loaders
from common.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Normalize,
    eval_transform,
    random_crop,
    resize_shorter_side,
)
from common.system import distributed
from common.system.errors import UserError

VIEW = {"image_size": 32, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def test_pictures_of_every_mode_become_three_channels(tmp_path):
    for mode in ("L", "RGBA", "CMYK", "P", "1"):
        Image.new(mode, (50, 40)).save(tmp_path / f"{mode}.{'png' if mode != 'CMYK' else 'jpg'}")
    samples = [(path, 0) for path in sorted(tmp_path.iterdir())]
    ((images, _),) = eval_loader(samples, VIEW)
    assert images.shape == (5, 3, 32, 32)


@pytest.mark.parametrize(("damage", "workers"), [(b"", 0), (b"no picture", 0), (None, 0), (None, 1)])
def test_an_unreadable_picture_is_named(pictures, workers, damage):
    path = pictures / "train" / "dog" / "dog3.jpg"
    path.write_bytes(path.read_bytes()[:400] if damage is None else damage)
    loaders = make_loaders(
        datasets.load_splits("folder", str(pictures), 0.0), VIEW, batch_size=4, workers=workers, seed=0
    )
    with pytest.raises(UserError, match=r"cannot read the picture .*dog3\.jpg"):
        list(loaders.train)


def test_batches_are_normalised_shuffled_by_the_seed_and_whole(pictures):
    splits = datasets.load_splits("folder", str(pictures), 0.25)

    def labels(seed):
        loaders = make_loaders(splits, VIEW, batch_size=4, workers=0, seed=seed)
        return [batch.tolist() for _, batch in loaders.train]

    assert labels(0) == labels(0) != labels(1)
    loaders = make_loaders(splits, VIEW, batch_size=5, workers=0, seed=0)
    images, _ = next(iter(loaders.test))
    assert images.shape == (5, 3, 32, 32) and images.dtype == torch.float32 and images.min() < -1
    assert [len(batch) for _, batch in loaders.test] == [5, 5, 2]


def test_a_last_training_batch_of_one_picture_is_left_out(pictures):
    splits = datasets.load_splits("folder", str(pictures), 0.0)
    for batch_size, sizes in ((23, [23]), (22, [22, 2]), (40, [24])):
        loaders = make_loaders(splits, VIEW, batch_size=batch_size, workers=0, seed=0)
        assert [len(batch) for _, batch in loaders.train] == sizes


def test_what_is_scored_is_the_middle_and_exactly_what_predict_sees(pictures, tmp_path):
    samples = datasets.load_splits("folder", str(pictures), 0.0).test
    wanted = torch.cat([eval_transform(read_image(path), VIEW) for path, _ in samples])
    for cache in (None, tmp_path / "cache"):
        images = torch.cat([each for each, _ in eval_loader(samples, VIEW, 5, cache=cache)])
        assert torch.equal(images, wanted)
    picture = Image.new("RGB", (64, 64))
    picture.paste((255, 255, 255), (24, 24, 40, 40))
    image = eval_transform(picture, VIEW)[0]
    assert image[:, 14:18, 14:18].min() > 2 and image[:, 0].max() < -1.7


def test_pictures_are_normalised_as_torchvision_does_it():
    images = torch.randint(0, 256, (3, 3, 5, 7), dtype=torch.uint8)
    mean, std = [0.1, 0.5, 0.7], [0.2, 0.3, 0.9]
    wanted = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])(images)
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        answer = Normalize(mean, std)(given)
        assert torch.allclose(answer, wanted, atol=1e-6)
        assert answer.dtype == torch.float32 and answer.is_contiguous(memory_format=torch.channels_last)


def test_the_cache_changes_no_picture(pictures, tmp_path):
    splits = datasets.load_splits("folder", str(pictures), 0.25)

    def epochs(cache):
        loaders = make_loaders(splits, VIEW, 4, 0, cache=cache, workers=0)
        return [images for epoch in range(2) for images, _ in loaders.train.at(epoch)]

    plain, first, second = epochs(None), epochs(tmp_path / "cache"), epochs(tmp_path / "cache")
    for one, other, again in zip(plain, first, second, strict=True):
        assert torch.equal(one, other) and torch.equal(one, again)
    assert not torch.equal(plain[0], plain[5])  # the next epoch shows other crops


def test_crops_follow_from_seed_epoch_and_picture_alone(pictures):
    splits = datasets.load_splits("folder", str(pictures), 0.0)

    def shown(epoch, first=0, workers=0, seed=3, draws=0):
        loaders = make_loaders(splits, VIEW, 5, seed, workers=workers)
        torch.rand(draws)  # what was drawn before is of no account
        before = torch.get_rng_state()
        batch = list(loaders.train.at(epoch, first))
        assert workers or torch.equal(torch.get_rng_state(), before)
        return batch

    whole = shown(2)
    assert [len(labels) for _, labels in whole] == [5, 5, 5, 5, 4]
    for other in (shown(2, draws=7), shown(2, workers=2)):
        for (images, labels), (same_images, same_labels) in zip(whole, other, strict=True):
            assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
    later = shown(2, first=3)
    assert len(later) == 2 and all(
        torch.equal(one[0], two[0]) for one, two in zip(whole[3:], later, strict=True)
    )
    for other in (shown(1), shown(2, seed=4)):
        assert not torch.equal(whole[0][0], other[0][0])


@pytest.mark.parametrize(("batch_size", "steps"), [(7, 3), (10, 2), (9, 3), (24, 1)])
def test_several_processes_share_the_very_batches_of_one(pictures, monkeypatch, batch_size, steps):
    splits = datasets.load_splits("folder", str(pictures), 0.0)

    def order(rank, size, seed=3):
        monkeypatch.setattr(distributed, "world_size", lambda: size)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        loaders = make_loaders(splits, VIEW, batch_size, seed)
        counts = [loaders.train.count(step) for step in range(len(loaders.train))]
        loaders.train.loader.batch_sampler.epoch = 5
        return list(loaders.train.loader.batch_sampler), list(loaders.test.loader.batch_sampler), counts

    (train, test, counts), parts = order(0, 1), [order(rank, 3) for rank in range(3)]
    # 24 pictures in batches of 7 leave 3, and of 10 leave 4: too few for three processes, which drop them
    assert {len(part[0]) for part in parts} == {steps}
    for step, shares in enumerate(zip(*(part[0] for part in parts), strict=True)):
        assert sorted(key for share in shares for key in share) == sorted(train[step])
        assert sum(map(len, shares)) == counts[step] and max(map(len, shares)) - min(map(len, shares)) <= 1
    # what is scored is scored once: no picture is left out, none is taken twice
    scored = sorted(key for part in parts for batch in part[1] for key in batch)
    assert scored == sorted(key for batch in test for key in batch) and len(scored) == 12


def test_a_batch_that_is_too_small_for_the_processes_is_refused(pictures, monkeypatch):
    splits = datasets.load_splits("folder", str(pictures), 0.0)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(
        UserError, match="batches of 6 training pictures are too small: batch norm needs 8, two for"
    ):
        make_loaders(splits, VIEW, batch_size=6, seed=0)


def test_training_sees_another_part_of_each_picture_of_a_batch_and_half_of_them_mirrored():
    # a picture that is darker to the left and to the top: the crop's place and direction can be read off it
    ramp = torch.arange(60, dtype=torch.uint8)
    picture = torch.stack([ramp.expand(40, 60), ramp[:40, None].expand(40, 60), torch.zeros(40, 60)]).byte()
    crops = CroppedImages([picture.permute(1, 2, 0)] * 200, [0] * 200, random_crop(32), seed=0)
    images, labels = crops.__getitems__([(0, index) for index in range(200)])
    assert images.dtype == torch.uint8 and images.shape == (200, 3, 32, 32) and labels.shape == (200,)
    assert images.is_contiguous(memory_format=torch.channels_last)
    left, right = images[:, 0, :, 0].float().mean(1), images[:, 0, :, -1].float().mean(1)
    assert 70 < int((left > right).sum()) < 130
    # a crop of at least 35 % of the area is at least 20 wide at the largest ratio of its sides
    assert float((right - left).abs().min()) > 17
    assert len({float(value) for value in images[:, 1, 0, 0]}) > 10


@pytest.mark.parametrize(
    ("size", "kept"), [((600, 90), (426, 64)), ((40, 30), (40, 30)), ((64, 64), (64, 64))]
)
def test_training_pictures_are_kept_whole_and_larger_than_the_crop(size, kept):
    assert resize_shorter_side(Image.new("RGB", size), 32).size == kept
