import multiprocessing
import os
import pickle
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.data import cache
from common.data.cache import Decoder, open_images
from common.data.transforms import center_crop, resize_shorter_side
from common.system.errors import UserError


@pytest.fixture
def paths(tmp_path):
    """Three images of different sizes, the last one with the longest shorter side."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate(((20, 30), (31, 17), (96, 80))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def decoder(paths):
    return Decoder(paths, resize_shorter_side, 32)


def opened(decoder, folder, workers):
    (images,) = open_images([decoder], folder, workers)
    return images


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_contains_what_was_decoded(paths, tmp_path, workers):
    images = opened(decoder(paths), tmp_path / "deep" / "cache", workers)
    assert len(images) == 3
    assert [tuple(images[index].shape) for index in range(3)] == [(20, 30, 3), (31, 17, 3), (76, 64, 3)]
    for index in range(3):
        assert torch.equal(images[index], decoder(paths)[index])
    assert [path.suffix for path in (tmp_path / "deep" / "cache").iterdir()] == [".pixels"]


def test_images_are_decoded_once(paths, tmp_path, monkeypatch):
    opened(decoder(paths), tmp_path, 0)
    monkeypatch.setattr(cache, "read_image", None)
    again = opened(decoder(paths), tmp_path, 0)
    assert torch.equal(again[1], torch.from_numpy(np.array(Image.open(paths[1]))))


def test_a_changed_image_is_decoded_again_even_if_size_and_time_are_the_same(paths, tmp_path):
    Image.fromarray(255 - np.array(Image.open(paths[0]))).save(tmp_path / "other.png", compress_level=0)
    Image.fromarray(np.array(Image.open(paths[0]))).save(paths[0], compress_level=0)
    stale = opened(decoder(paths), tmp_path, 0)[0]
    content = (tmp_path / "other.png").read_bytes()
    before = paths[0].stat()
    assert len(content) == before.st_size
    paths[0].write_bytes(content)
    os.utime(paths[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert torch.equal(opened(decoder(paths), tmp_path, 0)[0], 255 - stale)


def test_other_sizes_splits_and_crops_have_other_files(paths, tmp_path):
    decoders = (
        decoder(paths), decoder(paths[:2]), Decoder(paths, resize_shorter_side, 16),
        Decoder(paths, center_crop, 32, 36), Decoder(paths, center_crop, 32, 37),
    )  # fmt: skip
    caches = [opened(each, tmp_path, 0) for each in decoders]
    shapes = [[tuple(cache[index].shape) for index in range(len(cache))] for cache in caches]
    assert len(list(tmp_path.glob("*.pixels"))) == 5
    assert [len(each) for each in shapes] == [3, 2, 3, 3, 3] and set(shapes[3]) == {(32, 32, 3)}


@pytest.mark.parametrize("damage", [b"", b"x" * 10, None])
def test_a_truncated_file_is_built_again(paths, tmp_path, damage):
    path = opened(decoder(paths), tmp_path, 0).path
    content = path.read_bytes()
    path.write_bytes(content[:-100] if damage is None else damage)
    assert opened(decoder(paths), tmp_path, 0).path.read_bytes() == content


def test_a_worker_process_gets_the_path_and_not_the_pixels(paths, tmp_path):
    images = opened(decoder(paths), tmp_path, 0)
    pickled = pickle.dumps(images)
    assert len(pickled) < 500 and torch.equal(pickle.loads(pickled)[2], images[2])


def _build(paths, folder, barrier):
    barrier.wait()
    opened(decoder(paths), folder, 0)


def test_processes_that_build_it_at_the_same_time_leave_one_complete_file(paths, tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    folder = tmp_path / "cache"
    processes = [context.Process(target=_build, args=(paths, folder, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(list(folder.iterdir())) == 1
    assert torch.equal(opened(decoder(paths), folder, 0)[2], decoder(paths)[2])


def test_an_image_that_cannot_be_read_leaves_no_file(paths, tmp_path):
    paths[1].write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"cannot read the image .*1\.png"):
        opened(decoder(paths), tmp_path / "cache", 0)
    assert not list((tmp_path / "cache").iterdir())
    paths[1].unlink()
    with pytest.raises(UserError, match=r"cannot read the image .*1\.png: No such file"):
        opened(decoder(paths), tmp_path / "cache", 0)


def test_an_unwritable_folder_and_a_full_disk_are_errors_with_advice(paths, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to --cache .*file"):
        opened(decoder(paths), tmp_path / "file", 0)
    set_free_space(monkeypatch, 1000)
    folder = tmp_path / "cache"
    with pytest.raises(UserError, match=f"3 images need about .* GB in {folder}, and .*--cache off"):
        opened(decoder(paths), folder, 0)


def set_free_space(monkeypatch, free):
    usage = namedtuple("usage", "total used free")(10**12, 10**12 - free, free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


NEEDED = 20 * 30 * 3 + 31 * 17 * 3 + 76 * 64 * 3  # bytes of the three decoded images


@pytest.mark.parametrize(("free", "cached"), [(2 * NEEDED, True), (2 * NEEDED - 1, False)])
def test_an_automatic_cache_takes_at_most_half_of_the_free_disk(
    paths, tmp_path, monkeypatch, capsys, free, cached
):
    monkeypatch.setattr(cache, "DEFAULT_DIR", str(tmp_path / "cache"))
    set_free_space(monkeypatch, free)
    images, original = decoder(paths), decoder(paths)
    result = opened(images, cache.AUTO, 0)
    assert (result is images) != cached and len(list((tmp_path / "cache").glob("*.pixels"))) == cached
    assert all(torch.equal(result[index], original[index]) for index in range(3))
    size = f"3 images need about 0.00 GB in {tmp_path / 'cache'}"
    note = f"note: no cache: {size}, over 50% of the 0.00 GB that are free; they are decoded in every epoch"
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.startswith(f"cache: {size}\n" if cached else f"{note}; --cache DIR")


def test_an_automatic_cache_that_exists_is_used_whatever_is_free(paths, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "DEFAULT_DIR", str(tmp_path / "cache"))
    path = opened(decoder(paths), cache.AUTO, 0).path
    assert path.parent == tmp_path / "cache"
    capsys.readouterr()
    set_free_space(monkeypatch, 0)
    assert opened(decoder(paths), cache.AUTO, 0).path == path and capsys.readouterr().out == ""


def test_a_folder_that_the_user_names_may_be_filled(paths, tmp_path, monkeypatch, capsys):
    set_free_space(monkeypatch, NEEDED)
    folder = tmp_path / "cache"
    assert opened(decoder(paths), folder, 0).path.parent == folder
    assert capsys.readouterr().out == f"cache: 3 images need about 0.00 GB in {folder}\n"


class Large(Decoder):
    """100 000 images of 256 x 320 pixels, except that every second one of those sampled is half as wide."""

    def __init__(self):
        super().__init__([], resize_shorter_side, 256)
        self.read = []

    def __len__(self):
        return 100_000

    def __getitem__(self, index):
        self.read.append(index)
        return torch.zeros(1, dtype=torch.uint8).expand(256, 320 if len(self.read) % 2 else 160, 3)


def test_the_size_is_estimated_from_a_sample_of_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "DEFAULT_DIR", str(tmp_path))
    set_free_space(monkeypatch, 30 * 10**9)
    images = Large()
    assert opened(images, cache.AUTO, 0) is images
    assert len(images.read) == len(set(images.read)) == 64  # all over the data set
    assert min(images.read) < 2000 and max(images.read) > 98000
    # 100 000 images of 256 x 240 pixels on average
    size = f"100,000 images need about 18.43 GB in {tmp_path}"
    assert capsys.readouterr().out.startswith(
        f"note: no cache: {size}, over 50% of the 30.00 GB that are free"
    )


def test_the_option_names_a_folder():
    assert cache.folder_of(None) is None
    assert cache.folder_of(cache.AUTO) == Path(cache.DEFAULT_DIR)
    assert cache.folder_of("elsewhere") == Path("elsewhere")
