"""The attempts of one call of ``connect``: when they begin, and why they fail.

:func:`keep_trying` repeats attempts until one succeeds.  :class:`Attempts` counts them, remembers
why they failed and which addresses a name has, and writes the log and the final error.
:func:`enter_stage` and :func:`current_attempts` give access to it from the code that connects,
however deep; outside of ``connect`` they do nothing.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import cached_property
from typing import Any, Self, TypeVar

from distributed.base.logs import get_logger
from distributed.base.text import shown
from distributed.comm.exceptions import FatalCommClosedError
from distributed.comm.racing import Race

T = TypeVar("T")

# The module in which users look for these lines.
logger = get_logger("distributed.comm.core")

#: Maximum seconds before the second attempt to connect, and between any two attempts.
_BACKOFF_BASE, _BACKOFF_MAX = 0.01, 5.0
#: Share of the timeout after which a second attempt begins beside the first one, and the factor by
#: which the share grows with each attempt.
_FIRST_ATTEMPT_SHARE, _ATTEMPT_GROWTH = 0.2, 1.5

#: A call of `connect` is logged at INFO once this many seconds have passed without success, or this
#: share of its timeout, if that is less.
_QUIET, _QUIET_SHARE = 1.0, 0.1

#: Seconds for which the addresses of a name are used again by later attempts of the same call.
_ADDRESSES_KEPT = 5.0


class Attempt:
    """One attempt to connect: the current one of the running task, within a ``with`` block.

    Parameters
    ----------
    attempts
        All attempts of the call.

    Attributes
    ----------
    stage
        What the attempt is doing, as a present participle or the like.
    """

    __slots__ = ("_outer", "attempts", "stage")

    def __init__(self, attempts: Attempts) -> None:
        # None when the attempt has ended: the contexts of callbacks may refer to it as long as the
        # connection exists.
        self.attempts: Attempts | None = attempts
        self.stage = "connecting"

    def __enter__(self) -> Self:
        assert self.attempts is not None
        self.attempts.running[self] = None
        self._outer = _current.get()
        _current.set(self)
        return self

    def __exit__(self, *exc_info: object) -> None:
        # `reset` would fail in a coroutine that is closed after its event loop has stopped.
        _current.set(self._outer)
        assert self.attempts is not None
        del self.attempts.running[self]
        self.attempts = self._outer = None


_current: ContextVar[Attempt | None] = ContextVar("distributed.comm.attempt", default=None)

#: A function that is called with the `Attempts` after each failed attempt of the calls of `connect`
#: in this context, for instance to show the failure in a terminal.
on_failure: ContextVar[Callable[[Attempts], object] | None] = ContextVar(
    "distributed.comm.on_failure", default=None
)


def enter_stage(stage: str) -> None:
    """State what the current attempt is doing from now on, for the error if time runs out."""
    attempt = _current.get()
    if attempt is not None:
        attempt.stage = stage


def current_attempts() -> Attempts | None:
    """Return the attempts to which the code that calls this belongs, if any."""
    attempt = _current.get()
    return None if attempt is None else attempt.attempts


class Attempts:
    """The attempts of one call of `connect`.

    Parameters
    ----------
    addr
        The address to connect to.
    seconds
        Time for all attempts together.
    """

    def __init__(self, addr: str, seconds: float) -> None:
        self.addr = addr
        self.seconds = seconds
        self.now = asyncio.get_running_loop().time
        self._start = self.now()
        #: Time of the event loop at which the call gives up.
        self.deadline = self._start + seconds
        #: The attempts that are in progress, as an ordered set.
        self.running: dict[Attempt, None] = {}
        #: The error of the last attempt that failed.
        self.failure: BaseException | None = None
        #: The number of attempts that wait for a lookup, which a further attempt would only share.
        self.lookups = 0
        # Whether the failures were logged.
        self._logged = False

    # Most calls need none of these.

    @cached_property
    def _failures(self) -> dict[Any, tuple[int, str]]:
        """Kind of failure → number of attempts, and the last reason."""
        return {}

    @cached_property
    def _addresses(self) -> dict[tuple[str, int], tuple[list[Any], float]]:
        """Name and port of a host → its addresses, and the time at which they were found."""
        return {}

    @cached_property
    def _reached(self) -> dict[Any, int]:
        """Address that was reached → number of attempts that failed afterwards."""
        return {}

    def failed(self, exc: OSError) -> None:
        """Note why an attempt has failed."""
        self.failure = exc
        logger.debug("Could not connect to %s, trying again: %s", self.addr, exc)
        kind, reason = _kind_and_reason(exc)
        count, _ = self._failures.get(kind, (0, ""))
        self._failures[kind] = count + 1, reason
        watcher = on_failure.get()
        if watcher is not None:
            watcher(self)

    def report(self) -> None:
        """Log once that there is no success so far, unless it is too early to tell."""
        elapsed = self.now() - self._start
        if self._logged or elapsed < min(_QUIET, self.seconds * _QUIET_SHARE):
            return
        self._logged = True
        logger.info(
            "Could not connect to %s so far, retrying for another %.2g s: %s",
            self.addr,
            max(0.0, self.seconds - elapsed),
            self.summary(),
            extra={"peer": self.addr},
        )

    def summary(self) -> str:
        """Return the number of attempts, the last reason of each kind, and what is under way."""
        parts = []
        for count, reason in self._failures.values():
            parts.append(f"{_attempts(count)} failed: {reason}")
        stages: dict[str, int] = {}
        for attempt in self.running:
            stages[attempt.stage] = stages.get(attempt.stage, 0) + 1
        for stage, count in stages.items():
            parts.append(f"{_attempts(count)} had no result yet: {stage}")
        return "; ".join(parts) or "there was no time for an attempt"

    def interrupted(self, exc: asyncio.CancelledError) -> None:
        """Add to *exc* why the attempts before it have failed; see `failures_before`."""
        if self._failures:
            exc.add_note(f"connecting to {shown(self.addr)} did not succeed: {self.summary()}")

    def error(self) -> OSError:
        """Return the error to raise because time has run out."""
        return OSError(
            f"Timed out trying to connect to {shown(self.addr)} after {self.seconds:g} s: "
            f"{self.summary()}"
        )

    # What later attempts know from earlier ones

    def keep_addresses(self, host: str, port: int, found: list[Any]) -> None:
        """Remember the addresses of a name."""
        self._addresses[host, port] = found, self.now()

    def known_addresses(self, host: str, port: int) -> list[Any] | None:
        """Return the addresses of a name, if an earlier attempt has found them just before."""
        found, when = self._addresses.get((host, port), (None, 0.0))
        return found if found is not None and self.now() - when < _ADDRESSES_KEPT else None

    def reached(self, address: Any) -> None:
        """Note that one of several addresses was reached.

        If the attempt has no success all the same, the next one tries the others first.
        """
        self._reached[address] = self._reached.get(address, 0) + 1

    def times_reached(self, address: Any) -> int:
        """Return how many attempts have reached *address*."""
        return self._reached.get(address, 0)


def failures_before(exc: TimeoutError) -> str:
    """Return why connecting had failed before a time limit ended it, as a part of an error.

    The result is empty if the limit did not end a call of `connect`, or no attempt had failed.

    Parameters
    ----------
    exc
        The error of `asyncio.timeout`.
    """
    notes = getattr(exc.__cause__, "__notes__", None)
    return f": {notes[-1]}" if notes and isinstance(exc.__cause__, asyncio.CancelledError) else ""


def _attempts(count: int) -> str:
    return f"{count} attempt{'s' * (count != 1)}"


def _kind_and_reason(exc: OSError) -> tuple[Any, str]:
    """Return what failures of the same kind have in common, and the text of this one."""
    root: BaseException = exc
    while isinstance(root.__cause__, OSError):
        root = root.__cause__
    return (type(root), getattr(root, "errno", None)), str(exc) or repr(exc)


async def keep_trying(
    attempt: Callable[[], Coroutine[Any, Any, T]],
    attempts: Attempts,
    discard: Callable[[T], object],
) -> T:
    """Return the result of the first attempt that succeeds.

    A failed attempt is repeated after a random pause.  A slow one is not cancelled: the next one
    begins beside it, in case that its connection is lost, or its peer does not answer.

    Parameters
    ----------
    attempt
        Makes one attempt.
    attempts
        What it needs to know, and to tell.
    discard
        Called with the result of each further attempt that succeeds.

    Raises
    ------
    OSError
        If time has run out.
    FatalCommClosedError
        If an attempt failed in a way that another one cannot change.
    """
    # The first attempt runs in the task of the caller: another task would slow every connection.
    caller = asyncio.current_task()
    assert caller is not None
    race: Race[T] = Race(discard)
    # Whether the first attempt is in progress, whether it was cancelled because the others have
    # ended, and the number of requests to cancel the caller before that; see `asyncio.Timeout`,
    # which is slower.
    is_first, is_late, cancelling = True, False, 0

    def begin_others() -> None:
        race.enter(_try_again(attempt, attempts, discard, 0.0)).add_done_callback(end_first)

    def end_first(others: asyncio.Task[T]) -> None:
        nonlocal is_late, cancelling
        if is_first:
            is_late, cancelling = True, caller.cancelling()
            caller.cancel()

    limit = attempts.seconds * _FIRST_ATTEMPT_SHARE
    timer = asyncio.get_running_loop().call_later(limit, begin_others)
    try:
        try:
            return await attempt()
        except FatalCommClosedError:
            raise
        except OSError as exc:
            attempts.failed(exc)
        except asyncio.CancelledError:
            if not is_late or caller.cancelling() > cancelling + 1:
                raise
        finally:
            is_first = False
            timer.cancel()
            if is_late:
                caller.uncancel()
        if not race.running:
            pause = random.uniform(0, _BACKOFF_BASE)
            race.enter(_try_again(attempt, attempts, discard, pause))
        others = await race.ended()
        assert others is not None
        return others.result()
    except asyncio.CancelledError as exc:
        attempts.interrupted(exc)
        raise
    finally:
        if race.running:
            await race.close()
        # The traceback of the error refers to the frames that refer to this object.
        attempts.failure = others = None


async def _try_again(
    attempt: Callable[[], Coroutine[Any, Any, T]],
    attempts: Attempts,
    discard: Callable[[T], object],
    pause: float,
) -> T:
    """Return the result of the first further attempt that succeeds; begin after a pause."""
    now, deadline = attempts.now, attempts.deadline
    next_attempt = now() + pause
    pause_limit = _BACKOFF_BASE
    attempt_limit = attempts.seconds * _FIRST_ATTEMPT_SHARE
    task: asyncio.Task[T] | None = None
    error: BaseException | None = None
    try:
        async with Race[T](discard) as race:
            while True:
                while task := await race.ended(min(next_attempt, deadline)):
                    error = task.exception()
                    if not isinstance(error, OSError) or isinstance(error, FatalCommClosedError):
                        return task.result()
                    attempts.failed(error)
                    next_attempt = min(next_attempt, now() + random.uniform(0, pause_limit))
                if now() >= deadline:
                    raise attempts.error() from attempts.failure
                attempts.report()
                if not attempts.lookups:
                    race.enter(attempt())
                pause_limit = min(2 * pause_limit, _BACKOFF_MAX)
                attempt_limit *= _ATTEMPT_GROWTH
                next_attempt = now() + attempt_limit
    finally:
        # The traceback of the error refers to this frame.
        error = task = None
