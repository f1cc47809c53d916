import sys

import pytest

from common.system import distributed
from common.system.terminal import progress_bar


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
