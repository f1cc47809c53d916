"""The exception for what the user can mend, caught by `cli.run`, and the hint for a mistyped name."""

import difflib


class UserError(Exception):
    """A mistake in what the user gave; the message is one line that says what is wrong and what to do."""


def did_you_mean(word: str, known) -> str:
    """` - did you mean X?` for the nearest of `known`, or nothing."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" - did you mean {nearest[0]}?" if nearest else ""
