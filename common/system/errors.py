"""The exception for errors that the user can fix, and texts for its messages."""

import contextlib
import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can fix: `launch.run` prints its message as one line and exits with code 2.

    The message says what is wrong and what to do.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Suggests the known word that is nearest to a mistyped one.

    Args:
        word: What the user typed.
        known: The words that are valid.

    Returns:
        " - did you mean X?", or "" where nothing is similar.
    """
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" - did you mean {nearest[0]}?" if nearest else ""


def first_line(error: Exception) -> str:
    """Shortens the message of an error.

    Args:
        error: What was raised.

    Returns:
        The first line of its message, or the name of its type.
    """
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def in_one_line(what: str):
    """A context in which an error of any kind becomes a `UserError` of one line.

    For libraries whose errors have no common class that is public: what damaged bytes raise is of any kind.

    Args:
        what: Comes before the reason.

    Yields:
        None.

    Raises:
        UserError: For each `Exception`; what is none, such as Ctrl-C, passes.
    """
    try:
        yield
    except Exception as error:
        raise UserError(f"{what}: {' '.join(str(error).split())}") from None
