import os
import time

import pytest

from common.system.errors import UserError
from common.system.files import atomic_write, load_tensors, remove_stale_files


def test_a_file_takes_its_place_only_when_it_is_whole(tmp_path):
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
        assert reader.read() == "old"  # a reader of the old file keeps it: it was replaced, not written over
    assert [each.name for each in tmp_path.iterdir()] == ["log.csv"]


def test_a_folder_that_is_not_there_is_one_message(tmp_path):
    with pytest.raises(UserError, match="cannot write"), atomic_write(tmp_path / "nowhere" / "x.pt"):
        pass


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x80\x02}q\x00.", b"plain text\n" * 9])
def test_foreign_files_are_refused(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(UserError):
        load_tensors(tmp_path / "x.pt")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_tensors(tmp_path / "x.pt")
    with pytest.raises(UserError, match="cannot read"):
        load_tensors(tmp_path)


def test_a_file_that_another_run_writes_in_this_moment_is_not_replaced(tmp_path):
    path = tmp_path / "x.pt"
    with pytest.raises(FileExistsError), atomic_write(path, replace=False) as temporary:
        temporary.write_text("mine")
        path.write_text("the other's")
    assert path.read_text() == "the other's" and list(tmp_path.iterdir()) == [path]
    with atomic_write(tmp_path / "y.pt", replace=False) as temporary:
        temporary.write_text("mine")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.pt", "y.pt"]


def test_a_file_is_on_the_disk_before_it_takes_its_place_and_its_place_is_after(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda handle: done.append(os.path.isdir(f"/proc/self/fd/{handle}")) or fsync(handle)
    )
    monkeypatch.setattr(os, "replace", lambda *paths: done.append("replaced") or replace(*paths))
    with atomic_write(tmp_path / "x.pt") as temporary:
        temporary.write_text("new")
    assert done == [False, "replaced", True]


def test_what_killed_processes_left_is_removed_a_day_later(tmp_path):
    old, fresh, other = (tmp_path / name for name in (".unfinished-a.pt", ".unfinished-b.pt", ".c.pt"))
    for path in (old, fresh, other):
        path.touch()
    for path, hours in ((old, 25), (fresh, 23), (other, 99)):
        os.utime(path, (time.time() - hours * 3600,) * 2)
    remove_stale_files(tmp_path)
    assert sorted(tmp_path.iterdir()) == [other, fresh]
