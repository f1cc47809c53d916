import shutil
from collections import Counter
from pathlib import Path
from urllib.error import URLError

import pytest
from PIL import Image
from torchvision.datasets import OxfordIIITPet

from common.data import datasets
from common.models import lineage
from common.system.errors import UserError
from tests.conftest import write_images


def samples(*sizes):
    return [
        (Path(f"{label}_{index}.jpg"), label) for label, size in enumerate(sizes) for index in range(size)
    ]


def test_the_split_is_stratified_by_largest_remainder():
    # quotas 2.0, 1.4, 0.6, 0.2 of 21 images, of which round(4.2) = 4 are taken: 2, 1, 1 and 0
    rest, part = datasets.split_stratified(samples(10, 7, 3, 1), 0.2)
    assert Counter(label for _, label in part) == {0: 2, 1: 1, 2: 1}
    assert sorted(rest + part) == sorted(samples(10, 7, 3, 1)) and not set(rest) & set(part)
    assert datasets.split_stratified(samples(10, 7, 3, 1), 0.2) == (rest, part)


def test_the_full_pet37_gives_2944_and_736():
    rest, part = datasets.split_stratified(samples(*[100] * 30, *[96] * 5, 100, 100), 0.2)
    assert (len(rest), len(part)) == (2944, 736)


def test_the_only_image_of_a_class_stays_in_training():
    rest, part = datasets.split_stratified(samples(1, 1, 50), 0.9)
    assert {label for _, label in rest} == {0, 1, 2} and {label for _, label in part} == {2}
    assert datasets.split_stratified(samples(5, 5), 0.0) == (samples(5, 5), [])


def test_a_part_of_train_becomes_the_validation_split(image_folder):
    splits = datasets.load_splits("folder", str(image_folder), 0.25)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (18, 6, 12)
    assert splits.classes == ["cat", "dog", "fox"]
    assert str(splits) == "18 training, 6 validation and 12 test images of 3 classes"
    assert not {path for path, _ in splits.train} & {path for path, _ in splits.val}


def test_without_test_val_is_the_test_split(image_folder):
    (image_folder / "test").rename(image_folder / "val")
    splits = datasets.load_splits("folder", str(image_folder), 0.25)
    assert len(splits.val) == 6 and {path.parts[-3] for path, _ in splits.test} == {"val"}


def test_beside_test_val_is_the_validation_split(image_folder, tmp_path):
    write_images(tmp_path / "more", train=1, test=2, side=41)
    (tmp_path / "more" / "test").rename(image_folder / "val")
    splits = datasets.load_splits("folder", str(image_folder), 0.25)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (24, 6, 12)


def test_the_fingerprint_depends_on_the_split_and_not_on_the_folder(image_folder, tmp_path):
    first = datasets.load_splits("folder", str(image_folder), 0.25).fingerprint
    image_folder.rename(tmp_path / "moved")
    assert datasets.load_splits("folder", str(tmp_path / "moved"), 0.25).fingerprint == first
    assert datasets.load_splits("folder", str(tmp_path / "moved"), 0.5).fingerprint != first


def test_the_fingerprint_depends_on_the_content_of_each_image(image_folder, tmp_path):
    before = datasets.load_splits("folder", str(image_folder), 0.25)
    for split in ("train", "val", "test"):
        path = getattr(before, split)[0][0]
        data = path.read_bytes()
        Image.new("RGB", (40, 40), "white").save(path)
        after = datasets.load_splits("folder", str(image_folder), 0.25)
        assert (after.train, after.val, after.test) == (before.train, before.val, before.test)
        assert after.fingerprint != before.fingerprint and after.old_fingerprint == before.old_fingerprint
        changed = [name for name in ("train", "val", "test")
                   if after.fingerprint_of(name) != before.fingerprint_of(name)]  # fmt: skip
        assert changed == [split]
        path.write_bytes(data)
    assert datasets.load_splits("folder", str(image_folder), 0.25).fingerprint == before.fingerprint


def test_the_training_fingerprint_does_not_depend_on_the_test_images(image_folder, capsys):
    before = datasets.load_splits("folder", str(image_folder), 0.25)
    checkpoint = {"name": "teacher", "classes": before.classes}
    for split, same in (("test", True), ("val", False), ("train", False)):
        path = getattr(before, split)[0][0]
        data = path.read_bytes()
        Image.new("RGB", (40, 40), "white").save(path)
        after = datasets.load_splits("folder", str(image_folder), 0.25)
        assert (after.training_fingerprint == before.training_fingerprint) == same
        lineage.check_fits(checkpoint | {"lineage": [{"split": before.training_fingerprint}]}, after)
        assert capsys.readouterr().out.count("was trained on other images or another split") == (not same)
        path.write_bytes(data)


def test_a_copy_in_another_folder_has_the_same_fingerprint(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "copy")
    first, second = (
        datasets.load_splits("folder", str(folder), 0.25, index_dir=tmp_path / "index")
        for folder in (image_folder, tmp_path / "copy")
    )
    assert first.fingerprint == second.fingerprint and first.train != second.train
    assert first.fingerprint_of("test") == second.fingerprint_of("test")


def test_checkpoints_with_the_fingerprint_of_earlier_versions_still_fit(image_folder, capsys):
    splits = datasets.load_splits("folder", str(image_folder), 0.25)
    known = splits.training_fingerprint, splits.fingerprint, splits.old_fingerprint
    assert len(set(known)) == 3
    for split, notes in (*((each, 0) for each in known), ("0123", 1)):
        checkpoint = {"name": "teacher", "classes": splits.classes, "lineage": [{"split": split}]}
        lineage.check_fits(checkpoint, splits)
        assert capsys.readouterr().out.count("was trained on other images or another split") == notes


def test_the_fingerprint_of_earlier_versions_has_not_changed():
    cat, dog = Path("train/cat"), Path("train/dog")
    train, val = [(cat / "é1.jpg", 0), (dog / "a.jpg", 1)], [(dog / "b.jpg", 1)]
    test, classes = [(Path("test/cat/c.jpg"), 0)], ["cat", "dog"]
    digests = {path: b"x" for path, _ in train + val + test}
    # what the version before had as the fingerprint of these
    assert datasets.Splits(train, val, test, classes, digests).old_fingerprint == "431ea0df882be414"


@pytest.mark.parametrize("name", ["test", "val"])
def test_a_folder_without_training_images_can_be_evaluated(image_folder, name):
    (image_folder / "test").rename(image_folder / name)
    full = datasets.load_splits("folder", str(image_folder), 0.25)
    alone = datasets.load_test_split("folder", str(image_folder))
    assert (alone.test, alone.classes) == (full.test, full.classes) and alone.train == alone.val == []
    shutil.rmtree(image_folder / "train")
    assert datasets.load_test_split("folder", str(image_folder)) == alone
    with pytest.raises(UserError, match="needs train/ with a folder"):
        datasets.load_splits("folder", str(image_folder), 0.25)


def test_beside_val_the_test_images_are_evaluated(image_folder, tmp_path):
    write_images(tmp_path / "more", train=1, test=2, side=41)
    (tmp_path / "more" / "test").rename(image_folder / "val")
    alone = datasets.load_test_split("folder", str(image_folder))
    assert (
        alone.test == datasets.load_splits("folder", str(image_folder), 0.25).test and len(alone.test) == 12
    )


@pytest.mark.parametrize("dataset", ["pet37", "synthetic"])
def test_pet37_without_training_images_can_be_evaluated(small_synthetic, dataset):
    full = datasets.load_splits(dataset, str(small_synthetic), 0.25)
    alone = datasets.load_test_split(dataset, str(small_synthetic))
    assert (alone.test, alone.classes) == (full.test, full.classes) and alone.train == alone.val == []
    for path, _ in full.train + full.val:
        path.unlink()
    assert datasets.load_test_split(dataset, str(small_synthetic)) == alone
    full.test[3][0].unlink()
    with pytest.raises(UserError, match="1 of 74 test images are missing, the first is"):
        datasets.load_test_split(dataset, str(small_synthetic))


@pytest.mark.parametrize(
    ("breaks", "message"),
    [
        (lambda root: (root / "test").rename(root / "x"), r"needs train/ and test/ \(or val/\)"),
        (lambda root: (root / "train").rename(root / "x"), "needs train/ with a folder"),
        (
            lambda root: (root / "test" / "fox").rename(root / "test" / "owl"),
            "train/ and test/ must have the same classes: 'fox' is only in train/; 'owl' is only in test/",
        ),
        (lambda root: [path.unlink() for path in (root / "train" / "cat").iterdir()], "cat"),
    ],
)
def test_a_folder_with_another_structure_is_refused(image_folder, breaks, message):
    breaks(image_folder)
    with pytest.raises(UserError, match=message):
        datasets.load_splits("folder", str(image_folder), 0.25)


def test_a_class_that_one_of_three_folders_lacks_is_named(image_folder, tmp_path):
    write_images(tmp_path / "more", classes=("cat", "dog"), train=1, side=41)
    (tmp_path / "more" / "train").rename(image_folder / "val")
    with pytest.raises(UserError, match=r"train/ and val/ must .*: 'fox' is only in train/$"):
        datasets.load_splits("folder", str(image_folder), 0.25)


def test_an_empty_validation_split_is_an_error_with_advice(image_folder):
    with pytest.raises(UserError, match="the val split is empty; --val-fraction 0"):
        datasets.load_splits("folder", str(image_folder), 0.01)
    assert datasets.load_splits("folder", str(image_folder), 0.0).val == []


@pytest.mark.parametrize("data_dir", [None, ""])
def test_dataset_folder_needs_data_dir(data_dir):
    with pytest.raises(UserError, match="--dataset folder needs --data-dir"):
        datasets.load_splits("folder", data_dir, 0.2)


@pytest.mark.parametrize("dataset", ["folder", "pet37", "synthetic"])
@pytest.mark.parametrize("name", ["x" * 300, "file", "file/x"])
def test_an_impossible_folder_is_one_line(tmp_path, dataset, name):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=name):
        datasets.load_splits(dataset, str(tmp_path / name), 0.2)


def test_a_failed_download_names_the_file_the_folder_and_the_alternative(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", offline)
    with pytest.raises(UserError) as error:
        datasets.load_splits("pet37", str(tmp_path), 0.2)
    message = str(error.value)
    assert "images.tar.gz" in message and str(tmp_path / "oxford-iiit-pet") in message
    assert "--dataset synthetic" in message and "\n" not in message


def test_missing_images_are_counted(tmp_path, small_synthetic):
    (small_synthetic / "oxford-iiit-pet" / "images").rename(tmp_path / "images")
    (small_synthetic / "oxford-iiit-pet" / "images").mkdir()
    with pytest.raises(UserError, match="148 of 148 trainval images are missing"):
        datasets.load_splits("pet37", str(small_synthetic), 0.2)


def test_synthetic_images_can_be_read_by_torchvision(small_synthetic):
    splits = datasets.load_splits("synthetic", str(small_synthetic), 0.25)
    reader = OxfordIIITPet(small_synthetic, split="test", download=False)
    assert splits.classes == reader.classes and len(splits.classes) == 37
    assert [label for _, label in splits.test] == [reader[index][1] for index in range(len(reader))]
