"""What reaches the terminal: progress, and text of others without control characters."""

import contextlib
import re
import sys
from collections.abc import Iterable, Iterator
from typing import TextIO

from tqdm import tqdm

from common.system import distributed

# control characters but tab and line feed, and those that change the direction of text
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def progress_bar(items: Iterable | None = None, **options) -> tqdm:
    """A progress bar in the main process, where stderr is a terminal; elsewhere nothing is drawn.

    Args:
        items: What is iterated over; None for a bar that is updated by hand.
        **options: Those of `tqdm`.

    Returns:
        The `tqdm` object; it is removed from the terminal when it is done.
    """
    hidden = None if distributed.is_main_process() else True  # None: tqdm looks for a terminal
    return tqdm(items, dynamic_ncols=True, leave=False, disable=hidden, **options)


def escape(text: str) -> str:
    r"""Makes control characters visible: names of classes and files come from anywhere.

    Args:
        text: Any text.

    Returns:
        The text with \uXXXX in place of control characters, as in JSON.
    """
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


class EscapedStream:
    """A text stream that writes control characters visibly."""

    def __init__(self, stream: TextIO):
        """Wraps a stream.

        Args:
            stream: Where the text goes.
        """
        self.stream = stream

    def write(self, text: str) -> int:
        """Writes a text.

        Args:
            text: Any text.

        Returns:
            Its length.
        """
        self.stream.write(escape(text))
        return len(text)

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


@contextlib.contextmanager
def escaped_output() -> Iterator[None]:
    """A context in which `print` writes control characters visibly."""
    with contextlib.redirect_stdout(EscapedStream(sys.stdout)):
        yield
