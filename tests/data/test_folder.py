"""Folders of pictures as people have them: hidden files, links, odd names; and no picture in two splits."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from common.data import datasets, duplicates
from common.data.images import find_images, read_image
from common.system.errors import UserError


def load(root: Path, val_fraction: float = 0.0) -> datasets.Splits:
    return datasets.load_splits("folder", str(root), val_fraction)


def names(samples: list[datasets.Sample]) -> list[str]:
    """The pictures as class/name."""
    return [f"{path.parent.name}/{path.name}" for path, _ in samples]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two pictures of each of two classes in train/, one in test/; no two files are the same."""
    for split, count in (("train", 2), ("test", 1)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                colour = (99 * label, 99 * index, len(split))
                Image.new("RGB", (8, 8), colour).save(tmp_path / split / name / f"{name}{index}.png")
    return tmp_path


def test_a_folder_is_read_as_torchvision_reads_it(folder):
    deeper = folder / "train" / "cat" / "deeper" / "still"
    deeper.mkdir(parents=True)
    for name in ("b.png", "A.png", "a.png", "ä.png"):
        (deeper / name).write_text(name)
    reader = ImageFolder(folder / "train")
    splits = load(folder)
    assert [(str(path), label) for path, label in splits.train] == reader.samples
    assert splits.classes == reader.classes and len(reader) == 8


def test_hidden_and_stray_files_and_folders_are_no_pictures_and_no_classes(folder):
    before = load(folder)
    for name in (
        "train/.DS_Store",
        "train/stray.png",
        "train/cat/._cat0.png",
        "train/cat/.hidden.png",
        "train/cat/notes.txt",
        "train/cat/.thumbnails/t.png",
        "train/.ipynb_checkpoints/c.png",
        "test/.git/g.png",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    assert load(folder) == before and before.classes == ["cat", "dog"]
    assert names(before.train) == ["cat/cat0.png", "cat/cat1.png", "dog/dog0.png", "dog/dog1.png"]
    assert names([(path, 0) for path in find_images(folder / "train" / "cat")]) == names(before.train)[:2]


def test_what_the_user_names_is_read_though_it_is_hidden(folder):
    hidden = folder.rename(folder.with_name(".hidden"))
    assert len(load(hidden).train) == 4
    assert find_images(hidden / ".picture.png") == [hidden / ".picture.png"]


def test_links_to_files_and_folders_are_followed(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (folder / "train" / "cat").rename(elsewhere)
    (folder / "train" / "cat").symlink_to(elsewhere)
    Image.new("RGB", (8, 8), "white").save(tmp_path / "white.png")
    (folder / "train" / "dog" / "linked.png").symlink_to(tmp_path / "white.png")
    assert names(load(folder).train) == [
        *("cat/cat0.png", "cat/cat1.png", "dog/dog0.png", "dog/dog1.png", "dog/linked.png")
    ]


@pytest.mark.parametrize("target", ["nowhere.png", "dog9.png"])
def test_a_link_that_leads_nowhere_is_named(folder, target):
    link = folder / "train" / "dog" / "dog9.png"
    link.symlink_to(target)  # dog9.png is itself
    with pytest.raises(UserError, match=f"cannot read the picture {link}: (No such file|Too many levels)"):
        load(folder)
    with pytest.raises(UserError, match=f"cannot read the picture {link}: (No such file|Too many levels)"):
        read_image(link)


def test_links_that_lead_round_end(folder):
    cat = folder / "train" / "cat"
    for name, target in (("up", ".."), ("itself", "."), ("loop", "loop"), ("dog", "../dog")):
        (cat / name).symlink_to(target)
    (folder / "train" / "dog" / "cat").symlink_to("../cat")
    samples = load(folder).train
    # of cat: its own, and those of dog once, since it has a link to them
    assert Counter((path.name, label) for path, label in samples if label == 0) == {
        (name, 0): 1 for name in ("cat0.png", "cat1.png", "dog0.png", "dog1.png")
    }


ODD_NAMES = [
    ("ネコ", "猫 é ü.jpg"),
    (os.fsdecode(b"caf\xe9"), os.fsdecode(b"\xff\xfe.jpg")),  # Latin-1, which is no UTF-8
    ("a class", 'it\'s "quoted".jpg'),
    ("new\nline", "new\nline.jpg"),
    ("x" * 255, "y" * 251 + ".jpg"),
]


@pytest.mark.parametrize(("class_name", "file_name"), ODD_NAMES)
def test_names_may_hold_whatever_the_system_allows(folder, capsys, class_name, file_name):
    try:
        for split in ("train", "test"):
            (folder / split / class_name).mkdir()
            Image.new("RGB", (8, 8), "red" if split == "train" else "blue").save(
                folder / split / class_name / file_name
            )
    except OSError:
        pytest.skip("this file system has no such names")
    splits = load(folder)
    label = splits.classes.index(class_name)
    (path,) = [path for path, its in splits.train if its == label]
    assert path.name == file_name and read_image(path).size == (8, 8)
    shutil.copy(path, folder / "test" / "cat" / file_name)
    assert load(folder).fingerprint != splits.fingerprint
    captured = capsys.readouterr()
    assert captured.out.startswith("note: 1 picture is in more") and captured.out.count("\n") == 1


def test_a_thousand_classes_of_one_picture(tmp_path):
    for split in ("train", "test"):
        for number in range(1000):
            (tmp_path / split / f"{number:03}").mkdir(parents=True)
            (tmp_path / split / f"{number:03}" / "one.PNG").write_text(f"{split} {number}")
    splits = load(tmp_path)
    assert splits.classes == [f"{number:03}" for number in range(1000)] and splits.val == []
    assert [label for _, label in splits.train] == [label for _, label in splits.test] == list(range(1000))
    with pytest.raises(UserError, match="the val split is empty; --val-fraction 0 does without"):
        load(tmp_path, 0.2)


def test_a_class_of_one_picture_beside_a_large_one_keeps_it(folder):
    (folder / "train" / "cat" / "cat1.png").unlink()
    for index in range(2, 9):
        (folder / "train" / "dog" / f"dog{index}.JPG").write_text(str(index))
    splits = load(folder, 0.3)  # 3 of 10: the quotas are 0.3 and 2.7
    assert Counter(label for _, label in splits.train) == {0: 1, 1: 6}
    assert Counter(label for _, label in splits.val) == {1: 3}


def test_a_class_without_pictures_is_named(folder):
    for path in (folder / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(UserError, match=r"train/ with a folder of pictures for each class: .* in dog/$"):
        load(folder)
    shutil.rmtree(folder / "train" / "dog")
    shutil.rmtree(folder / "test" / "dog")
    with pytest.raises(UserError, match="a classifier needs at least two classes, this has 1"):
        load(folder)


def test_a_folder_that_cannot_be_read_is_named(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    cat = folder / "train" / "cat"
    with pytest.raises(UserError, match=f"cannot read the folder {cat}: Permission denied"):
        find_images(cat)


def copy(folder: Path, source: str, *targets: str) -> None:
    for target in targets:
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / source, folder / target)


def test_a_picture_of_test_is_left_out_of_training(folder, capsys):
    copy(folder, "test/cat/cat0.png", "train/dog/other_name.png")
    assert names(load(folder).train) == ["cat/cat0.png", "cat/cat1.png", "dog/dog0.png", "dog/dog1.png"]
    assert capsys.readouterr().out == (
        "note: 1 picture is in more than one split and left out of training or validation, the first: "
        f"'{folder}/train/dog/other_name.png' is the same as '{folder}/test/cat/cat0.png'\n"
    )


def test_a_picture_is_kept_by_the_last_split_that_has_it(folder, capsys):
    copy(folder, "test/cat/cat0.png", "val/cat/of_test.png", "train/cat/of_test.png")
    copy(folder, "train/dog/dog0.png", "val/dog/of_train.png")
    Image.new("RGB", (8, 8), "white").save(folder / "val" / "cat" / "own.png")
    splits = load(folder, 0.5)
    assert names(splits.train) == ["cat/cat0.png", "cat/cat1.png", "dog/dog1.png"]
    assert names(splits.val) == ["cat/own.png", "dog/of_train.png"]
    assert names(splits.test) == ["cat/cat0.png", "dog/dog0.png"]
    assert "note: 3 pictures are in more than one split" in capsys.readouterr().out


def test_a_link_to_a_picture_of_test_is_the_same_picture(folder):
    (folder / "train" / "cat" / "link.png").symlink_to(folder / "test" / "cat" / "cat0.png")
    assert "cat/link.png" not in names(load(folder).train)


def test_what_only_looks_alike_is_kept_and_nothing_is_said(folder, capsys):
    copy(folder, "train/cat/cat0.png", "train/cat/twice.png")  # twice in one split
    content = bytearray((folder / "test" / "cat" / "cat0.png").read_bytes())
    content[-1] ^= 1
    (folder / "train" / "cat" / "same_size.png").write_bytes(content)
    assert len(load(folder).train) == 6 and capsys.readouterr().out == ""


def test_only_files_that_may_be_the_same_are_read(tmp_path, monkeypatch):
    train, test = {"twin": 5, "other_twin": 5, "as_long": 7}, {"as_long_too": 7, "alone": 11}
    for name, size in (train | test).items():
        (tmp_path / name).write_bytes(name.encode()[:1] * size)
    read = []
    monkeypatch.setattr(duplicates, "_digest", lambda path: read.append(path.name) or path.name)
    splits = [[(tmp_path / name, 0) for name in split] for split in (train, test)]
    assert duplicates.remove_duplicates(splits) == splits
    assert read == ["as_long", "as_long_too"]


def test_a_split_that_loses_all_its_pictures_is_empty(folder):
    for name in ("cat", "dog"):
        shutil.rmtree(folder / "train" / name)
        copy(folder, f"test/{name}/{name}0.png", f"train/{name}/copy.png")
    with pytest.raises(UserError, match="the train split is empty"):
        load(folder)


@pytest.mark.parametrize("dataset", ["pet37", "synthetic"])
def test_the_listed_data_sets_are_checked_too(small_synthetic, dataset, capsys):
    before = datasets.load_splits(dataset, str(small_synthetic), 0.25)
    copied = before.train[5][0]
    shutil.copy(before.test[0][0], copied)
    after = datasets.load_splits(dataset, str(small_synthetic), 0.25)
    assert after.train == [sample for sample in before.train if sample[0] != copied]
    assert (after.val, after.test) == (before.val, before.test)
    assert capsys.readouterr().out.startswith("note: 1 picture is in more than one split and left out of")
