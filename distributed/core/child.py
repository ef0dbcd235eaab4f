"""A child process that is started again when it dies, and that does not outlive its parent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Self

from distributed.base.logs import get_logger

__all__ = ["ChildProcess"]

logger = get_logger("distributed.core")

#: Each restart waits this number of seconds longer than the last one, up to the maximum.
_PAUSE: Final = 0.1
_MAXIMUM_PAUSE: Final = 5.0


class ChildProcess:
    """A program in a child process; it is started again whenever it ends.

    The standard input of the process is a pipe, to which nothing is written.  The program calls
    :func:`end_with_parent`, so that it ends when :meth:`close` closes the pipe or when this process
    is killed.  It gets no signals of the keyboard, because it has a session of its own.  When it
    has ended, the processes of its process group, which it has started, are killed (not on
    Windows).

    As an async context manager, it is started and closed.  A server uses it by
    ``Server.enter_async_context``.

    Parameters
    ----------
    command
        The program and its arguments.
    env
        The environment variables; by default those of this process.
    final
        The exit codes after which the program is not started again.

    Examples
    --------
    >>> import sys
    >>> async def main():
    ...     command = [sys.executable, "-c", "raise SystemExit(85)"]
    ...     async with ChildProcess(command, final=[85]) as child:
    ...         print(await child.ended(), child.restarts)
    >>> asyncio.run(main())
    85 0
    """

    def __init__(
        self,
        command: Sequence[str | os.PathLike[str]],
        *,
        env: Mapping[str, str] | None = None,
        final: Iterable[int] = (),
    ) -> None:
        self._command = list(command)
        self._env = env
        self._final = frozenset(final)
        #: The process that was started last; None before :meth:`start`.
        self.process: asyncio.subprocess.Process | None = None
        #: How often the program was started again.
        self.restarts = 0
        # The process whose group was not killed yet.
        self._to_end: asyncio.subprocess.Process | None = None
        # Waits for the end of each process.
        self._keeper: asyncio.Task[None] | None = None
        self._started = self._closed = False
        # Set once the program is not started again.
        self._over = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """The number of the process that was started last; None before :meth:`start`."""
        return None if self.process is None else self.process.pid

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *args: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the program, and from now on start it again when it ends.

        Raises
        ------
        OSError
            If the program cannot be started.  (If it cannot be started again later, this is logged,
            and another attempt follows.)
        RuntimeError
            If this method was called already, or :meth:`close` was.
        """
        if self._started:
            raise RuntimeError("a ChildProcess is started once, and not after it was closed")
        self._started = True
        await self._start_process()
        self._keeper = asyncio.create_task(self._keep(), name="child process")
        if self._closed:
            await self.close(grace=0)
            raise RuntimeError("the ChildProcess was closed while it was started")

    async def ended(self) -> int | None:
        """Wait until the program has ended and is not started again; return its exit code.

        This is so after a code of *final*, and after :meth:`close`.  The exit code is negative
        after a signal, and None if no process was started.
        """
        await self._over.wait()
        return None if self.process is None else self.process.returncode

    async def close(self, grace: float = 5.0) -> None:
        """End the process, and do not start it again.

        Its standard input is closed, so that it ends itself.  After *grace* seconds, or if this
        call is cancelled, it is killed.  The processes that it has started are killed as well.
        """
        self._started = self._closed = True
        try:
            if self._keeper is not None:
                self._keeper.cancel()
                await asyncio.wait([self._keeper])
            if self.process is not None:
                assert self.process.stdin is not None
                self.process.stdin.close()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(grace):
                        await self.process.wait()
        finally:
            self._kill_group()
            self._over.set()
        if self.process is not None:
            await self.process.wait()

    async def _keep(self) -> None:
        while (code := await self._process_ended()) not in self._final:
            pause = min(_PAUSE * self.restarts, _MAXIMUM_PAUSE)
            text = "Process %s ended with exit code %s, and is started again in %.1f s"
            logger.warning(text, self.pid, code, pause)
            await asyncio.sleep(pause)
            self.restarts += 1
            try:
                await self._start_process()
            except OSError as exc:
                logger.error("Cannot start %s again: %s", self._command[0], exc)
        self._over.set()

    async def _start_process(self) -> None:
        self.process = self._to_end = await asyncio.create_subprocess_exec(
            *self._command, stdin=asyncio.subprocess.PIPE, env=self._env, start_new_session=True
        )

    async def _process_ended(self) -> int:
        assert self.process is not None
        code = await self.process.wait()
        self._kill_group()
        return code

    def _kill_group(self) -> None:
        """Kill the last process and those of its group; once, as its number may be used again."""
        process, self._to_end = self._to_end, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        # macOS denies the permission if the group has only processes that have ended.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                process.kill()
            else:
                os.killpg(process.pid, signal.SIGKILL)
