import os
import time
import zipfile

import pytest
import torch

from common.system import files
from common.system.errors import UserError
from common.system.files import atomic_write, load_tensors, remove_stale_files


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    with path.open() as reader:
        with atomic_write(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert reader.read() == "old"  # who has the old file open can read it to its end
    assert [each.name for each in tmp_path.iterdir()] == ["log.csv"]


def test_writing_into_a_missing_folder_is_one_message(tmp_path):
    with pytest.raises(UserError, match="cannot write"), atomic_write(tmp_path / "nowhere" / "x.pt"):
        pass


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x02}q\x00.", b"plain text\n" * 9])
def test_files_of_other_programs_are_refused(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError):
        load_tensors(tmp_path / "x.pt")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_tensors(tmp_path / "x.pt")
    with pytest.raises(UserError, match="cannot read"):
        load_tensors(tmp_path)


def test_a_file_that_another_run_writes_at_the_same_time_is_not_replaced(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(FileExistsError), atomic_write(path, replace=False) as temporary:
        temporary.write_text("of this run")
        path.write_text("of the other run")
    assert path.read_text() == "of the other run" and list(tmp_path.iterdir()) == [path]
    with atomic_write(tmp_path / "y.pt", replace=False) as temporary:
        temporary.write_text("of this run")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.pt", "y.pt"]


def test_a_file_is_flushed_before_it_is_renamed_and_its_folder_after(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: done.append(os.path.isdir(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("replaced") or replace(*paths))
    with atomic_write(tmp_path / "x.pt") as temporary:
        temporary.write_text("new")
    assert done == [False, "replaced", True]


def test_files_of_killed_processes_are_removed_a_day_later(tmp_path):
    old, new, other = (tmp_path / name for name in (".unfinished-a.pt", ".unfinished-b.pt", ".c.pt"))
    for path in (old, new, other):
        path.touch()
    for path, hours in ((old, 25), (new, 23), (other, 99)):
        os.utime(path, (time.time() - hours * 3600,) * 2)
    remove_stale_files(tmp_path)
    assert sorted(tmp_path.iterdir()) == [other, new]


def test_the_checksum_depends_on_every_value_and_not_on_strides():
    one = {"a": torch.arange(6.0).view(2, 3), "b": [1, "x", None, True], "c": {"d": 0.5}}
    assert files.checksum(one) == files.checksum(one | {"a": one["a"].t().contiguous().t()})
    assert files.checksum(one) == files.checksum(
        one | {"a": torch.arange(12.0).view(2, 6)[:, :3] * 0 + one["a"]}
    )
    for change in (
        {"a": one["a"].view(3, 2)}, {"a": one["a"].double()}, {"a": -one["a"]}, {"b": (1, "x", None, True)},
        {"b": [1, "x", None, 1]}, {"b": ["1", "x", None, True]}, {"c": {"d": 0.25}}, {"c": {"e": 0.5}},
        {"z": 0},
    ):  # fmt: skip
        assert files.checksum(one) != files.checksum(one | change)


def test_the_size_of_a_file_is_known_without_writing_it(tmp_path):
    content = {"a": torch.arange(1000.0), "b": "x"}
    files.save_checked(content, tmp_path / "x.pt")
    assert files.file_bytes(content) == (tmp_path / "x.pt").stat().st_size


def test_a_file_has_one_storage_for_each_dtype_and_the_same_tensors(tmp_path):
    content = {
        "weights": {"a": torch.rand(2, 3).t(), "b": [torch.arange(3), torch.tensor(2.5)]},
        "none": (torch.zeros(0, 4), None, "text"),
    }
    files.save_checked(content, tmp_path / "x.pt")
    loaded = files.load_checked(tmp_path / "x.pt", since=9)
    assert torch.equal(loaded["weights"]["a"], content["weights"]["a"])
    assert torch.equal(loaded["weights"]["b"][0], torch.arange(3)) and loaded["weights"]["b"][1] == 2.5
    assert loaded["none"][0].shape == (0, 4) and loaded["none"][1:] == (None, "text")
    # of a tensor pickle writes the entire storage
    for tensor in (loaded["weights"]["a"], loaded["weights"]["b"][0]):
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        storages = [name for name in archive.namelist() if "/data/" in name]
    assert len(storages) == 2  # float32 and int64
    assert files.file_bytes(content) == (tmp_path / "x.pt").stat().st_size


def test_tensors_that_overlap_are_refused(tmp_path):
    # each a different part of one storage, together far more than it
    memory = torch.zeros(1000)
    content = {"format": 2, "tensors": [memory[start:] for start in range(500)]}
    torch.save(content | {files.CHECKSUM: files.checksum(content)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt is damaged"):
        files.load_checked(tmp_path / "x.pt", since=2)
