"""Run a program that calls ``asyncio.get_event_loop()`` without an event loop.

Usage: ``python with_event_loop.py PROGRAM [ARGUMENT ...]``

Before Python 3.14, ``asyncio.get_event_loop()`` of the main thread created an event loop if there
was none. From 3.14 on it raises RuntimeError. This script creates the loop first, and closes it
after the program. New programs call ``asyncio.run(main())`` instead.
"""

from __future__ import annotations

import asyncio
import runpy
import sys


def main() -> None:
    with asyncio.Runner() as runner:
        asyncio.set_event_loop(runner.get_loop())
        del sys.argv[0]
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
