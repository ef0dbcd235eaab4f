"""The command line: ``distributed-core``, or ``python -m distributed.cli``.

:func:`main` runs it.  This module does not need click, so that it can say that click is missing.
:mod:`distributed.cli.program` lists the commands, each of which is a module of this package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from distributed.cli.exit_codes import INTERRUPTED, USAGE

__all__ = ["main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; see :mod:`distributed.cli.exit_codes`.

    Parameters
    ----------
    args
        The arguments; by default those of this process.
    """
    try:
        from distributed.cli.program import run

        return run(args)
    except ModuleNotFoundError as exc:
        if exc.name != "click":
            raise
        sys.stderr.write(
            "distributed-core: error: the command line needs click, which is not installed: "
            "pip install 'distributed-core[cli]'\n"
        )
        return USAGE
    except KeyboardInterrupt:
        # While modules were imported; `run` handles all later ones.
        return INTERRUPTED
