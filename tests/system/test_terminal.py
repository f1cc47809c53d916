import io
import sys

import pytest

from common.system import distributed
from common.system.terminal import EscapedStream, escape, escaped_output, progress_bar


@pytest.fixture
def stderr_of(monkeypatch, capsys):
    """stderr_of(rank, is_terminal): what two steps with a progress bar write to stderr in that process."""

    def draw(rank, is_terminal):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal, raising=False)
        capsys.readouterr()
        assert list(progress_bar([3, 4], desc="decoding", mininterval=0)) == [3, 4]
        with progress_bar(total=2, desc="epoch 1/1", mininterval=0) as bar:
            bar.update()
            bar.set_postfix(loss="0.5")
        captured = capsys.readouterr()
        assert captured.out == ""
        return captured.err

    return draw


def test_the_main_process_draws_a_bar_on_a_terminal(stderr_of):
    drawn = stderr_of(0, True)
    assert "decoding" in drawn and "epoch 1/1" in drawn and "loss=0.5" in drawn


@pytest.mark.parametrize(("rank", "is_terminal"), [(0, False), (1, True), (1, False)])
def test_without_a_terminal_and_in_other_processes_nothing_is_written(stderr_of, rank, is_terminal):
    assert stderr_of(rank, is_terminal) == ""


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("\x1b[31mred", r"\u001b[31mred"),
        ("a\x00b\x07c\rd\x7fe\x9bf", r"a\u0000b\u0007c\u000dd\u007fe\u009bf"),
        ("cat\u202egpj.exe\u2066", r"cat\u202egpj.exe\u2066"),
    ],
)
def test_control_characters_are_visible(text, visible):
    assert escape(text) == visible


def test_text_in_any_script_stays_with_its_tabs_and_line_breaks():
    text = "Ägyptische Mau\t猫 кот قط\n🐈 \\u001b"
    assert escape(text) == text


def test_a_stream_escapes_what_is_written_and_passes_on_the_rest():
    stream = io.StringIO()
    escaped = EscapedStream(stream)
    assert escaped.write("a\x1bb") == 3  # as long as the text that was given
    assert stream.getvalue() == escaped.getvalue() == r"a\u001bb"
    escaped.flush()
    assert not escaped.isatty() and not escaped.closed


def test_print_is_escaped_only_in_its_context(capsys):
    with escaped_output():
        print("a\x1b", "b\n\x07", sep="|")
    print("\x1b")
    assert capsys.readouterr().out == "a\\u001b|b\n\\u0007\n\x1b\n"
