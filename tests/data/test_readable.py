import pytest
from PIL import Image

from common.data import readable
from common.data.images import UnreadableImages


@pytest.fixture
def paths(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(25):
        Image.new("RGB", (9, 9)).save(folder / f"{number:02}.png")
    return sorted(folder.iterdir())


@pytest.fixture
def reads(monkeypatch):
    """The files that are decoded."""
    seen, read = [], readable.read_image

    def read_image(path):
        seen.append(path)
        return read(path)

    monkeypatch.setattr(readable, "read_image", read_image)
    monkeypatch.setattr(readable, "_checked", set())
    return seen


def test_every_file_is_decoded_once_in_a_process(paths, reads):
    for _ in range(2):
        readable.check(paths, b"1", None)
    assert sorted(reads) == paths
    readable.check(paths, b"2", None)  # a file has changed
    assert len(reads) == 50
    readable.check(paths[1:], b"2", None)
    assert len(reads) == 74


def test_a_later_run_finds_the_note_and_reads_changed_files_again(paths, reads, tmp_path, monkeypatch):
    readable.check(paths, b"1", tmp_path)
    monkeypatch.setattr(readable, "_checked", set())
    readable.check(paths, b"1", tmp_path)
    assert len(reads) == 25
    readable.check(paths, b"2", tmp_path)
    assert len(reads) == 50
    assert len(list(tmp_path.glob("*.readable"))) == 1


def test_files_that_cannot_be_read_are_named_up_to_a_limit_and_not_noted(paths, reads, tmp_path):
    for path in paths[:22]:
        path.write_bytes(path.read_bytes()[:40])
    for _ in range(2):
        with pytest.raises(UnreadableImages) as error:
            readable.check(paths, b"1", tmp_path)
        message = str(error.value)
        assert message.startswith(f"cannot read 22 images: {paths[0]}: ")
        assert (
            f"{paths[19]}: " in message and f"{paths[20]}" not in message and message.endswith("; and 2 more")
        )
        assert len(error.value.reasons) == 22
    assert list(tmp_path.glob("*.readable")) == []
