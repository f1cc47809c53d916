"""The content of an image is read once, and again only when the file changes."""

import os
import shutil
import zipfile

import numpy as np
import pytest

from common.data import content, datasets
from common.system.errors import UserError


@pytest.fixture
def paths(tmp_path):
    """Three small files."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(bytes([number]) * 50)
    return sorted(folder.iterdir())


@pytest.fixture
def reads(monkeypatch):
    """reads(): the names of the files that were read since the last call, sorted."""
    names, digest = [], content.digest

    def noting(path):
        names.append(path.name)
        return digest(path)

    def take():
        result = sorted(names)
        names.clear()
        return result

    monkeypatch.setattr(content, "digest", noting)
    return take


def test_unchanged_files_are_read_once(paths, tmp_path, reads):
    index = tmp_path / "deep" / "index.digests"
    first = content.digests(paths, index)
    assert reads() == ["0.jpg", "1.jpg", "2.jpg"]
    assert first == {path: content.digest(path) for path in paths} and len(set(first.values())) == 3
    reads()
    assert content.digests(paths, index) == first and reads() == []
    assert content.digests(paths[::-1], index) == first and reads() == []
    assert content.digests(paths, None) == first and len(reads()) == 3  # without an index


def test_a_data_set_is_read_once(image_folder, tmp_path, reads):
    first = datasets.load_splits("folder", str(image_folder), 0.25, index_dir=tmp_path / "index")
    assert len(reads()) == 36
    again = datasets.load_splits("folder", str(image_folder), 0.5, index_dir=tmp_path / "index")
    assert reads() == [] and again.digests == first.digests and len(again.digests) == 36


def _grow(path):
    before = path.stat()
    path.write_bytes(b"longer" * 50)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _touch(path):
    os.utime(path, ns=(1, 1))


def _replace_unnoticed(path):
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("change", [_grow, _touch, _replace_unnoticed])
def test_only_a_changed_file_is_read_again(paths, tmp_path, reads, change):
    index = tmp_path / "index.digests"
    first = content.digests(paths, index)
    reads()
    change(paths[1])
    second = content.digests(paths, index)
    assert reads() == ["1.jpg"]
    assert (second[paths[1]] == first[paths[1]]) == (change is _touch)
    assert [second[path] for path in paths[::2]] == [first[path] for path in paths[::2]]
    assert content.digests(paths, index) == second and reads() == []


def test_only_a_new_file_is_read(paths, tmp_path, reads):
    index = tmp_path / "index.digests"
    content.digests(paths[:2], index)
    reads()
    content.digests(paths, index)
    assert reads() == ["2.jpg"]


def _flip(position):
    def damage(index):
        stored = bytearray(index.read_bytes())
        stored[position] ^= 1
        index.write_bytes(stored)

    return damage


def _cut(size):
    return lambda index: index.write_bytes(index.read_bytes()[:size])


def _zip(index):
    with zipfile.ZipFile(index, "w") as file:
        file.writestr("entries.npy", "x")


DAMAGE = {
    "empty": _cut(0),
    "a few bytes": _cut(10),
    "cut": _cut(-1),
    "the first byte": _flip(0),
    "a digest": _flip(content.ENTRY.itemsize - 1),
    "the last byte": _flip(-1),
    "text": lambda index: index.write_text("no index" * 99),
    "an array": lambda index: np.save(index.open("wb"), np.zeros(3)),
    "a zip file": _zip,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_ignored_and_replaced(paths, tmp_path, reads, damage):
    index = tmp_path / "index.digests"
    first = content.digests(paths, index)
    stored = index.read_bytes()
    DAMAGE[damage](index)
    assert index.read_bytes() != stored
    reads()
    assert content.digests(paths, index) == first and len(reads()) == 3
    assert index.read_bytes() == stored


def test_an_index_of_another_layout_is_ignored(paths, tmp_path, reads, monkeypatch):
    index = tmp_path / "index.digests"
    first = content.digests(paths, index)
    reads()
    renamed = np.dtype([(name.replace("ctime", "other"), *rest) for name, *rest in content.ENTRY.descr])
    with monkeypatch.context() as patch:
        patch.setattr(content, "ENTRY", renamed)
        assert len(content._read(index)) == 0
    assert content.digests(paths, index) == first and reads() == []


def test_of_a_large_file_the_start_the_middle_the_end_and_the_size_count(tmp_path):
    path, size = tmp_path / "large.jpg", 100_000
    path.write_bytes(bytes(size))
    first = content.digest(path)
    different = []
    for position in (0, 4095, size // 2, size - 4096, size - 1):
        path.write_bytes(bytes(position) + b"x" + bytes(size - position - 1))
        different.append(content.digest(path))
    path.write_bytes(bytes(size + 1))
    different.append(content.digest(path))
    assert len({first, *different}) == 7
    path.write_bytes(bytes(size // 4) + b"x" * 99 + bytes(size - size // 4 - 99))
    assert content.digest(path) == first  # what is between the samples is not read


def test_of_a_small_file_every_byte_counts(tmp_path):
    path, digests = tmp_path / "small.jpg", set()
    for position in range(0, 3 * 4096, 1024):
        path.write_bytes(bytes(position) + b"x" + bytes(3 * 4096 - position - 1))
        digests.add(content.digest(path))
    assert len(digests) == 12


def test_reading_many_images_is_announced(paths, tmp_path, capsys, monkeypatch):
    content.digests(paths, None)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(content, "MANY", 3)
    index = tmp_path / "index.digests"
    content.digests(paths, None)
    content.digests(paths, index)
    content.digests(paths, index)
    note = "note: reading 3 images to tell whether they change"
    assert capsys.readouterr().out.splitlines() == [
        f"{note}; --cache DIR would keep their digests",
        f"{note}, once: {index} keeps their digests",
    ]


def test_what_cannot_be_read_or_written_is_named(paths, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to --cache .*file"):
        content.digests(paths, tmp_path / "file" / "index.digests")
    (tmp_path / "folder.digests").mkdir()
    with pytest.raises(UserError, match=r"cannot write .*folder\.digests"):
        content.digests(paths, tmp_path / "folder.digests")
    paths[1].unlink()
    with pytest.raises(UserError, match=r"cannot read the image .*1\.jpg: No such file"):
        content.digests(paths, None)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match=r"cannot read 3 images: .*0\.jpg: No such .*1\.jpg.*2\.jpg"):
        content.digests(paths, None)
    with pytest.raises(UserError, match=r"cannot read 3 images"):
        content._read_files(paths)  # they vanished after they were listed
