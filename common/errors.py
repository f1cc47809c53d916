"""The one exception that means "the user can mend this", raised by every module and caught by `cli.run`."""


class UserError(Exception):
    """A mistake in what the user gave; the message is one line that says what is wrong and what to do."""
