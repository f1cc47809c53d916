"""No image is in two splits, whatever its name."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from common.data import datasets, duplicates
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


def test_only_files_with_the_size_of_one_in_another_split_are_read(tmp_path, monkeypatch):
    train, test = {"copy": 5, "other_copy": 5, "as_long": 7}, {"as_long_too": 7, "alone": 11}
    for name, size in (train | test).items():
        (tmp_path / name).write_bytes(name.encode()[:1] * size)
    read = []
    monkeypatch.setattr(duplicates, "_digest", lambda path: read.append(path.name) or path.name)
    splits = [[(tmp_path / name, 0) for name in split] for split in (train, test)]
    assert duplicates.remove_duplicates(splits) == splits
    assert read == ["as_long", "as_long_too"]


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
