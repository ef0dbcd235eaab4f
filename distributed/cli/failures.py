"""The error that ends a command: one line for a person, and the exit code."""

from __future__ import annotations

from distributed.base.text import shown
from distributed.cli.exit_codes import FAILED

__all__ = ["CommandError", "OutputClosed", "one_line"]

#: Maximum number of characters of an error.
_MAX_LENGTH = 1000


class CommandError(Exception):
    """Ends a command with an error.

    Parameters
    ----------
    text
        What was tried, with which server, and what went wrong.
    exit_code
        See :mod:`distributed.cli.exit_codes`.
    details
        More lines for the terminal, such as the remote traceback.
    """

    def __init__(self, text: str, exit_code: int = FAILED, details: str = "") -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.details = details


class OutputClosed(Exception):
    """The standard output of a command cannot be written.  The cause is the error, an `OSError`."""


def one_line(text: object) -> str:
    """Return a text, possibly from a peer, as one printable line.

    Examples
    --------
    >>> one_line("no such file:\\n   x")
    'no such file: x'
    """
    return shown(" ".join(str(text).split()), _MAX_LENGTH)
