"""Folders of images as users have them: hidden files, links, unusual names, empty classes."""

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from common.data import datasets
from common.data.duplicates import Sample
from common.data.images import find_images, read_image
from common.system.errors import UserError


def load(root: Path, val_fraction: float = 0.0) -> datasets.Splits:
    return datasets.load_splits("folder", str(root), val_fraction)


def names(samples: list[Sample]) -> list[str]:
    """The images as class/name."""
    return [f"{path.parent.name}/{path.name}" for path, _ in samples]


def test_a_folder_is_read_as_by_torchvision(folder):
    deeper = folder / "train" / "cat" / "deeper" / "still"
    deeper.mkdir(parents=True)
    for name in ("b.png", "A.png", "a.png", "ä.png"):
        (deeper / name).write_text(name)
    reader = ImageFolder(folder / "train")
    splits = load(folder)
    assert [(str(path), label) for path, label in splits.train] == reader.samples
    assert splits.classes == reader.classes and len(reader) == 8


def test_hidden_files_and_files_of_other_kinds_are_ignored(folder):
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
    assert names([(path, 0) for path in find_images(folder / "train" / "cat")[0]]) == names(before.train)[:2]


def test_photos_that_cannot_be_read_are_counted_in_one_note(folder, capsys):
    (folder / "train" / "cat" / "cat1.png").rename(folder / "train" / "cat" / "cat1.HEIC")
    for path in ("train/dog/deeper/a.heic", "test/dog/b.CR2", "test/dog/notes.txt", "test/cat/.c.heic"):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).touch()
    first = str(folder / "train" / "cat" / "cat1.HEIC")
    note = f"note: 3 photos are left out, the first is {first!r}: 2 .heic (pillow-heif reads them), 1 .cr2"
    assert len(load(folder).train) == 3
    out = capsys.readouterr().out
    assert out.startswith(note) and out.count("\n") == 1
    datasets.load_test_split("folder", str(folder))  # as evaluate.py does
    assert "note: 1 photo is left out" in capsys.readouterr().out


def test_a_class_of_photos_that_cannot_be_read_is_refused_with_the_reason(folder):
    for path in (folder / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".HEIC"))
    with pytest.raises(UserError, match=r"there is none in dog/; 2 photos are left out, .* 2 \.heic"):
        load(folder)


def test_a_hidden_file_or_folder_is_read_if_the_user_names_it(folder):
    hidden = folder.rename(folder.with_name(".hidden"))
    assert len(load(hidden).train) == 4
    assert find_images(hidden / ".image.png") == ([hidden / ".image.png"], [])


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
def test_a_broken_link_is_named(folder, target):
    link = folder / "train" / "dog" / "dog9.png"
    link.symlink_to(target)  # dog9.png is the link itself
    with pytest.raises(UserError, match=f"cannot read the image {link}: (No such file|Too many levels)"):
        load(folder)
    with pytest.raises(UserError, match=f"cannot read the image {link}: (No such file|Too many levels)"):
        read_image(link)


def test_links_in_a_circle_are_followed_once(folder):
    cat = folder / "train" / "cat"
    for name, target in (("up", ".."), ("itself", "."), ("loop", "loop"), ("dog", "../dog")):
        (cat / name).symlink_to(target)
    (folder / "train" / "dog" / "cat").symlink_to("../cat")
    samples = load(folder).train
    # of cat: its own images, and those of dog once, since it has a link to them
    assert Counter((path.name, label) for path, label in samples if label == 0) == {
        (name, 0): 1 for name in ("cat0.png", "cat1.png", "dog0.png", "dog1.png")
    }


UNUSUAL_NAMES = [
    ("ネコ", "猫 é ü.jpg"),
    (os.fsdecode(b"caf\xe9"), os.fsdecode(b"\xff\xfe.jpg")),  # Latin-1, which is not valid UTF-8
    ("a class", 'it\'s "quoted".jpg'),
    ("new\nline", "new\nline.jpg"),
    ("x" * 255, "y" * 251 + ".jpg"),
]


@pytest.mark.parametrize(("class_name", "file_name"), UNUSUAL_NAMES)
def test_names_may_be_whatever_the_file_system_allows(folder, capsys, class_name, file_name):
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
    assert captured.out.startswith("note: 1 image is in more") and captured.out.count("\n") == 1


def test_a_thousand_classes_of_one_image(tmp_path):
    for split in ("train", "test"):
        for number in range(1000):
            (tmp_path / split / f"{number:03}").mkdir(parents=True)
            (tmp_path / split / f"{number:03}" / "one.PNG").write_text(f"{split} {number}")
    splits = load(tmp_path)
    assert splits.classes == [f"{number:03}" for number in range(1000)] and splits.val == []
    assert [label for _, label in splits.train] == [label for _, label in splits.test] == list(range(1000))
    with pytest.raises(UserError, match="the val split is empty; --val-fraction 0 trains without one"):
        load(tmp_path, 0.2)


def test_a_class_of_one_image_beside_a_large_class_keeps_it(folder):
    (folder / "train" / "cat" / "cat1.png").unlink()
    for index in range(2, 9):
        (folder / "train" / "dog" / f"dog{index}.JPG").write_text(str(index))
    splits = load(folder, 0.3)  # 3 of 10: the quotas are 0.3 and 2.7
    assert Counter(label for _, label in splits.train) == {0: 1, 1: 6}
    assert Counter(label for _, label in splits.val) == {1: 3}


def test_a_class_without_images_is_named(folder):
    for path in (folder / "train" / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
    with pytest.raises(UserError, match=r"train/ with a folder of images for each class: .* in dog/$"):
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
