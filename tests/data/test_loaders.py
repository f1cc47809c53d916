import pickle
import shutil

import pytest
import torch
from PIL import Image

from common.data import datasets
from common.data.cache import AUTO
from common.data.images import read_image
from common.data.loaders import CroppedImages, eval_loader, make_loaders
from common.data.transforms import IMAGENET_MEAN, IMAGENET_STD, eval_transform, random_crop
from common.system import distributed, hardware
from common.system.errors import UserError

VIEW = {"image_size": 32, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def test_images_of_every_mode_become_three_channels(tmp_path):
    for mode in ("L", "RGBA", "CMYK", "P", "1"):
        Image.new(mode, (50, 40)).save(tmp_path / f"{mode}.{'png' if mode != 'CMYK' else 'jpg'}")
    samples = [(path, 0) for path in sorted(tmp_path.iterdir())]
    ((images, _),) = eval_loader(samples, VIEW)
    assert images.shape == (5, 3, 32, 32)


@pytest.mark.parametrize("damage", [b"", b"not an image", None])
@pytest.mark.parametrize("cache", [None, "cache"])
def test_the_unreadable_images_of_all_splits_are_named_in_one_message(image_folder, tmp_path, cache, damage):
    splits, folder = datasets.load_splits("folder", str(image_folder), 0.25), cache and tmp_path / cache
    damaged = [samples[index][0] for samples in (splits.train, splits.val, splits.test) for index in (0, -1)]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:400] if damage is None else damage)
    with pytest.raises(UserError) as error:
        make_loaders(splits, VIEW, batch_size=4, seed=0, cache=folder, workers=0)
    message = str(error.value)
    assert message.startswith("cannot read 6 images: ") and "\n" not in message
    assert all(message.count(f"{path}: ") == 1 for path in damaged)
    assert cache is None or list(folder.iterdir()) == []
    with pytest.raises(UserError, match="cannot read 2 images: "):
        eval_loader(splits.test, VIEW, cache=folder, workers=0)


def test_where_an_automatic_cache_does_not_fit_unreadable_images_are_found_too(
    image_folder, tmp_path, monkeypatch
):
    monkeypatch.setattr("common.data.cache.DEFAULT_DIR", str(tmp_path / "cache"))
    usage = shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    splits = datasets.load_splits("folder", str(image_folder), 0.25)
    splits.test[3][0].write_bytes(b"no image")
    with pytest.raises(UserError, match=f"cannot read the image {splits.test[3][0]}: "):
        make_loaders(splits, VIEW, batch_size=4, seed=0, cache=AUTO, workers=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_becomes_unreadable_later_is_named(image_folder, workers):
    splits = datasets.load_splits("folder", str(image_folder), 0.0)
    loaders = make_loaders(splits, VIEW, batch_size=4, workers=workers, seed=0)
    path = splits.train[3][0]
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match=f"cannot read the image {path}: "):
        list(loaders.train)


def test_batches_are_normalized_shuffled_by_the_seed_and_complete(image_folder):
    splits = datasets.load_splits("folder", str(image_folder), 0.25)

    def labels(seed):
        loaders = make_loaders(splits, VIEW, batch_size=4, workers=0, seed=seed)
        return [batch.tolist() for _, batch in loaders.train]

    assert labels(0) == labels(0) != labels(1)
    loaders = make_loaders(splits, VIEW, batch_size=5, workers=0, seed=0)
    images, _ = next(iter(loaders.test))
    assert images.shape == (5, 3, 32, 32) and images.dtype == torch.float32 and images.min() < -1
    assert [len(batch) for _, batch in loaders.test] == [5, 5, 2]


def test_a_last_training_batch_of_one_image_is_dropped(image_folder):
    splits = datasets.load_splits("folder", str(image_folder), 0.0)
    for batch_size, sizes in ((23, [23]), (22, [22, 2]), (40, [24])):
        loaders = make_loaders(splits, VIEW, batch_size=batch_size, workers=0, seed=0)
        assert [len(batch) for _, batch in loaders.train] == sizes


def test_evaluation_uses_exactly_the_images_that_predict_sees(image_folder, tmp_path):
    samples = datasets.load_splits("folder", str(image_folder), 0.0).test
    expected = torch.cat([eval_transform(read_image(path), VIEW) for path, _ in samples])
    for cache in (None, tmp_path / "cache"):
        images = torch.cat([each for each, _ in eval_loader(samples, VIEW, 5, cache=cache)])
        assert torch.equal(images, expected)


def test_the_cache_does_not_change_the_images(image_folder, tmp_path):
    splits = datasets.load_splits("folder", str(image_folder), 0.25)

    def epochs(cache):
        loaders = make_loaders(splits, VIEW, 4, 0, cache=cache, workers=0)
        return [images for epoch in range(2) for images, _ in loaders.train.at(epoch)]

    plain, first, second = epochs(None), epochs(tmp_path / "cache"), epochs(tmp_path / "cache")
    for one, other, again in zip(plain, first, second, strict=True):
        assert torch.equal(one, other) and torch.equal(one, again)
    assert not torch.equal(plain[0], plain[5])  # the next epoch shows other crops


def test_crops_depend_only_on_the_seed_the_epoch_and_the_image(image_folder):
    splits = datasets.load_splits("folder", str(image_folder), 0.0)

    def batches(epoch, first=0, workers=0, seed=3, draws=0):
        loaders = make_loaders(splits, VIEW, 5, seed, workers=workers)
        torch.rand(draws)  # earlier random numbers have no influence
        before = torch.get_rng_state()
        result = list(loaders.train.at(epoch, first))
        assert workers or torch.equal(torch.get_rng_state(), before)
        return result

    full = batches(2)
    assert [len(labels) for _, labels in full] == [5, 5, 5, 5, 4]
    for other in (batches(2, draws=7), batches(2, workers=2)):
        for (images, labels), (same_images, same_labels) in zip(full, other, strict=True):
            assert torch.equal(images, same_images) and torch.equal(labels, same_labels)
    later = batches(2, first=3)
    assert len(later) == 2 and all(
        torch.equal(one[0], two[0]) for one, two in zip(full[3:], later, strict=True)
    )
    for other in (batches(1), batches(2, seed=4)):
        assert not torch.equal(full[0][0], other[0][0])


@pytest.mark.parametrize(("batch_size", "steps"), [(7, 3), (10, 2), (9, 3), (24, 1)])
def test_several_processes_divide_the_batches_of_one(image_folder, monkeypatch, batch_size, steps):
    splits = datasets.load_splits("folder", str(image_folder), 0.0)

    def order(rank, size, seed=3):
        monkeypatch.setattr(distributed, "world_size", lambda: size)
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        loaders = make_loaders(splits, VIEW, batch_size, seed)
        counts = [loaders.train.count(step) for step in range(len(loaders.train))]
        loaders.train.loader.batch_sampler.epoch = 5
        return list(loaders.train.loader.batch_sampler), list(loaders.test.loader.batch_sampler), counts

    (train, test, counts), parts = order(0, 1), [order(rank, 3) for rank in range(3)]
    # 24 images in batches of 7 leave 3, and of 10 leave 4: too few for three processes, which drop them
    assert {len(part[0]) for part in parts} == {steps}
    for step, batches in enumerate(zip(*(part[0] for part in parts), strict=True)):
        assert sorted(key for batch in batches for key in batch) == sorted(train[step])
        sizes = [len(batch) for batch in batches]
        assert sum(sizes) == counts[step] and max(sizes) - min(sizes) <= 1
    # every test image is evaluated exactly once
    evaluated = sorted(key for part in parts for batch in part[1] for key in batch)
    assert evaluated == sorted(key for batch in test for key in batch) and len(evaluated) == 12


def test_a_batch_that_is_too_small_for_the_processes_is_refused(image_folder, monkeypatch):
    splits = datasets.load_splits("folder", str(image_folder), 0.0)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    with pytest.raises(
        UserError, match="batches of 6 training images are too small: batch norm needs 8, two for"
    ):
        make_loaders(splits, VIEW, batch_size=6, seed=0)


def test_training_crops_each_image_elsewhere_and_flips_half_of_them():
    # an image that is darker to the left and to the top: they show where a crop is and whether it is flipped
    ramp = torch.arange(60, dtype=torch.uint8)
    image = torch.stack([ramp.expand(40, 60), ramp[:40, None].expand(40, 60), torch.zeros(40, 60)]).byte()
    crops = CroppedImages([image.permute(1, 2, 0)] * 200, [0] * 200, random_crop(32), seed=0)
    images, labels = crops.__getitems__([(0, index) for index in range(200)])
    assert images.dtype == torch.uint8 and images.shape == (200, 3, 32, 32) and labels.shape == (200,)
    assert images.is_contiguous(memory_format=torch.channels_last)
    left, right = images[:, 0, :, 0].float().mean(1), images[:, 0, :, -1].float().mean(1)
    assert 70 < int((left > right).sum()) < 130
    # a crop of at least 35 % of the area is at least 20 wide at the largest ratio of its sides
    assert float((right - left).abs().min()) > 17
    assert len({float(value) for value in images[:, 1, 0, 0]}) > 10


def test_a_missing_validation_split_is_an_error_with_advice(image_folder):
    loaders = make_loaders(datasets.load_splits("folder", str(image_folder), 0.0), VIEW, 8, 0, workers=0)
    assert loaders.val is None and loaders.of("test") is loaders.test
    with pytest.raises(UserError, match="this needs validation images: a --val-fraction above 0"):
        loaders.of("val")


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_processes_of_a_machine_share_its_cores(image_folder, monkeypatch):
    splits = datasets.load_splits("folder", str(image_folder), 0.25)

    def workers(cores, processes, **options):
        monkeypatch.setattr(hardware, "cores", lambda: cores)
        monkeypatch.setattr(distributed, "local_world_size", lambda: processes)
        loaders = make_loaders(splits, VIEW, 8, 0, **options)
        return [each.loader.num_workers for each in (loaders.train, loaders.val, loaders.test)]

    assert workers(12, 1) == [8, 4, 4]
    assert workers(12, 2) == [6, 3, 3]
    assert workers(12, 4) == [3, 2, 2]
    assert workers(2, 4) == [1, 1, 1]
    assert workers(12, 4, workers=5) == [5, 5, 5]  # as the user says


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("free", "workers"), [(10**9, 0), (0, 4)])
def test_where_an_automatic_cache_does_not_fit_the_cores_decode(
    image_folder, tmp_path, monkeypatch, free, workers
):
    monkeypatch.setattr("common.data.cache.DEFAULT_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(hardware, "cores", lambda: 4)
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    splits = datasets.load_splits("folder", str(image_folder), 0.0)
    loaders = make_loaders(splits, VIEW, 8, 0, cache=AUTO)
    assert loaders.train.loader.num_workers == workers


@pytest.mark.parametrize("cache", [None, "cache"])
def test_what_processes_of_a_loader_get_can_be_pickled(image_folder, tmp_path, cache):
    """Where processes are spawned, as on Windows and macOS, everything is."""
    splits, folder = datasets.load_splits("folder", str(image_folder), 0.25), cache and tmp_path / cache
    loaders = make_loaders(splits, VIEW, batch_size=4, seed=0, cache=folder, workers=0)
    for loader in (loaders.train.loader, loaders.val.loader, loaders.test.loader):
        dataset, collate = pickle.loads(pickle.dumps((loader.dataset, loader.collate_fn)))
        batch = next(iter(loader.batch_sampler))
        for one, other in zip(dataset.__getitems__(batch), loader.dataset.__getitems__(batch), strict=True):
            assert torch.equal(one, other)
        assert collate(batch) == batch
