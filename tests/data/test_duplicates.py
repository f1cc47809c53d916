"""No image is in two splits, whatever its name."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.data import content, datasets, duplicates
from common.system.errors import UserError
from tests.data.test_folder import load, names


def copy(folder: Path, source: str, *targets: str) -> None:
    for target in targets:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / source, folder / target)


def test_an_image_of_test_is_removed_from_training(folder, capsys):
    copy(folder, "test/cat/cat0.png", "train/dog/other_name.png")
    assert names(load(folder).train) == ["cat/cat0.png", "cat/cat1.png", "dog/dog0.png", "dog/dog1.png"]
    assert capsys.readouterr().out == (
        "note: 1 image is in more than one split and removed from training or validation, the first: "
        f"'{folder}/train/dog/other_name.png' is the same as '{folder}/test/cat/cat0.png'\n"
    )


def test_an_image_stays_in_the_last_split_that_contains_it(folder, capsys):
    copy(folder, "test/cat/cat0.png", "val/cat/of_test.png", "train/cat/of_test.png")
    copy(folder, "train/dog/dog0.png", "val/dog/of_train.png")
    Image.new("RGB", (8, 8), "white").save(folder / "val" / "cat" / "own.png")
    splits = load(folder, 0.5)
    assert names(splits.train) == ["cat/cat0.png", "cat/cat1.png", "dog/dog1.png"]
    assert names(splits.val) == ["cat/own.png", "dog/of_train.png"]
    assert names(splits.test) == ["cat/cat0.png", "dog/dog0.png"]
    assert "note: 3 images are in more than one split" in capsys.readouterr().out


def test_a_link_to_an_image_of_test_is_the_same_image(folder):
    (folder / "train" / "cat" / "link.png").symlink_to(folder / "test" / "cat" / "cat0.png")
    assert "cat/link.png" not in names(load(folder).train)


def test_copies_within_a_split_and_files_of_equal_size_are_kept_without_a_note(folder, capsys):
    copy(folder, "train/cat/cat0.png", "train/cat/twice.png")
    content = bytearray((folder / "test" / "cat" / "cat0.png").read_bytes())
    content[-1] ^= 1
    (folder / "train" / "cat" / "same_size.png").write_bytes(content)
    assert len(load(folder).train) == 6 and capsys.readouterr().out == ""


def test_only_files_with_the_digest_of_one_in_another_split_are_read(tmp_path, monkeypatch):
    digests = {"copy": b"c", "other_copy": b"c", "similar": b"s", "similar_too": b"s", "alone": b"a"}
    for name, digest in digests.items():
        (tmp_path / name).write_bytes(digest)
    read = []
    monkeypatch.setattr(duplicates, "_sha256", lambda path: read.append(path.name) or path.name)
    splits = [
        [(tmp_path / name, 0) for name in split]
        for split in (("copy", "other_copy", "similar"), ("similar_too", "alone"))
    ]
    digests = {tmp_path / name: digest for name, digest in digests.items()}
    assert duplicates.remove_duplicates(splits, digests) == splits
    assert read == ["similar", "similar_too"]


def test_large_images_that_differ_in_one_byte_only_are_no_duplicates(folder, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    large = folder / "train" / "cat" / "large.png"
    Image.fromarray(pixels).save(large, compress_level=0)
    data = bytearray(large.read_bytes())
    data[len(data) // 4] ^= 1
    other = folder / "test" / "cat" / "large.png"
    other.write_bytes(data)
    assert content.digest(large) == content.digest(other)  # of samples, which do not contain this byte
    assert len(load(folder).train) == 5 and capsys.readouterr().out == ""


def test_a_split_that_loses_all_its_images_is_reported_as_empty(folder):
    for name in ("cat", "dog"):
        shutil.rmtree(folder / "train" / name)
        copy(folder, f"test/{name}/{name}0.png", f"train/{name}/copy.png")
    with pytest.raises(UserError, match="the train split is empty"):
        load(folder)


@pytest.mark.parametrize("dataset", ["pet37", "synthetic"])
def test_pet37_and_synthetic_images_are_checked_too(small_synthetic, dataset, capsys):
    before = datasets.load_splits(dataset, str(small_synthetic), 0.25)
    copied = before.train[5][0]
    shutil.copy(before.test[0][0], copied)
    after = datasets.load_splits(dataset, str(small_synthetic), 0.25)
    assert after.train == [sample for sample in before.train if sample[0] != copied]
    assert (after.val, after.test) == (before.val, before.test)
    assert capsys.readouterr().out.startswith("note: 1 image is in more than one split and removed from")
