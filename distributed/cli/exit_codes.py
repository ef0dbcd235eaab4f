"""The exit codes of the commands.  Those of ``serve`` are in :mod:`distributed.core.running`."""

from __future__ import annotations

from typing import Final

__all__ = ["FAILED", "INTERRUPTED", "OK", "TIMED_OUT", "UNREACHABLE", "USAGE"]

#: The command did what it was asked to.
OK: Final = 0
#: The operation failed at the server, the server is not healthy, or the check found a mistake.
FAILED: Final = 1
#: The arguments or the configuration make no sense, or a library is missing.
USAGE: Final = 2
#: There was no connection, or it was lost: refused, not authenticated, closed by the peer.
UNREACHABLE: Final = 3
#: The connection was made, but the time limit ended before the answer came.
TIMED_OUT: Final = 4
#: Ctrl-C: 128 and the number of SIGINT, as with shells.
INTERRUPTED: Final = 130
