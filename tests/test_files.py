import pytest

from common.errors import UserError
from common.files import load_tensors, written_whole


def test_a_file_takes_its_place_only_when_it_is_whole(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("old")
    with pytest.raises(KeyError), written_whole(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    with path.open() as reader:
        with written_whole(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert reader.read() == "old"  # a reader of the old file keeps it: it was replaced, not written over
    assert [each.name for each in tmp_path.iterdir()] == ["log.csv"]


def test_a_folder_that_is_not_there_is_one_message(tmp_path):
    with pytest.raises(UserError, match="cannot write"), written_whole(tmp_path / "nowhere" / "x.pt"):
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
