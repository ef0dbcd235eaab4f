"""Which transport serves which address scheme.

A *backend* stands for one transport: it makes the connectors and listeners of a scheme, and
understands what follows ``scheme://``.  `backends` maps schemes to backends and `get_backend` looks
one up: among those that were registered, those of this package, and those that other installed
packages provide through the entry-point group ``distributed.comm.backends``.

This module knows no transport but by name, and looks inside no address.  `connect` and `listen`
pass through it once per connection, and every question about an address does.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Iterator, MutableMapping
from typing import Any, Final

__all__ = ["ENTRY_POINT_GROUP", "Backend", "Backends", "backends", "get_backend"]

#: Where other packages register schemes: the entry point is named as the scheme and refers to a
#: callable without arguments that returns a backend, such as a class. The backend needs the methods
#: of `Backend` that its addresses have a use for; it need not be an instance of `Backend`.
ENTRY_POINT_GROUP: Final = "distributed.comm.backends"

# By name rather than by import statement, for two reasons: transports stand above this module
# (they need `Backend`, and `connect`'s module needs `get_backend`), and one that is never used,
# such as the websockets with the HTTP stack under them, is not to be imported.
_BUILT_IN: Final = {
    "inproc": "distributed.comm.inproc:InProcBackend",
    "tcp": "distributed.comm.tcp:TCPBackend",
    "tls": "distributed.comm.tcp:TLSBackend",
    "unix": "distributed.comm.unix:UnixBackend",
    "ws": "distributed.comm.ws:WSBackend",
    "wss": "distributed.comm.ws:WSSBackend",
}


class Backend(ABC):
    """One transport: what makes its connectors and listeners, and understands its addresses.

    A *loc* is an address without its scheme: ``"127.0.0.1:8786"`` of ``"tcp://127.0.0.1:8786"``.
    A backend has no state that belongs to a connection; there is one of it per process.
    """

    @abstractmethod
    def get_connector(self) -> Any:
        """A :class:`~distributed.comm.core.Connector` that opens connections of this transport."""

    @abstractmethod
    def get_listener(
        self, loc: str, handle_comm: Any, deserialize: bool, **connection_args: Any
    ) -> Any:
        """A :class:`~distributed.comm.core.Listener`, not yet started.

        Parameters
        ----------
        loc
            Where to listen.
        handle_comm
            Called with each new comm after its handshake.
        deserialize
            See :class:`~distributed.comm.core.Comm`.
        connection_args
            What the transport needs besides, such as an ``ssl_context``.
        """

    @abstractmethod
    def get_address_host(self, loc: str) -> str:
        """The host in *loc*; two addresses of the same host are on one machine.

        Raises
        ------
        ValueError
            If *loc* cannot be understood.
        """

    def get_address_host_port(self, loc: str) -> tuple[str, int]:
        """The host and the port in *loc*.

        Raises
        ------
        NotImplementedError
            If addresses of this transport have none.
        ValueError
            If *loc* cannot be understood.
        """
        raise NotImplementedError(f"{type(self).__name__}: its addresses have no host and port")

    @abstractmethod
    def resolve_address(self, loc: str) -> str:
        """*loc* with names replaced by what they stand for; may block while it asks a resolver.

        Raises
        ------
        OSError
            If a name does not resolve.
        ValueError
            If *loc* cannot be understood.
        """

    @abstractmethod
    def get_local_address_for(self, loc: str) -> str:
        """A *loc* on this host, without a port, to listen at such that *loc*'s host can reach it.

        Raises
        ------
        OSError
            If a name does not resolve.
        ValueError
            If *loc* cannot be understood.
        """


class Backends(MutableMapping[str, Backend]):
    """The backends by scheme; the built-in ones are imported when they are first asked for.

    Used like a dict: assign to add or replace a scheme, delete to remove one.  Length, iteration
    and ``in`` count built-in schemes, whether or not they were used yet.
    """

    # State. `_made` holds the backends that exist, `_unmade` the built-in schemes that were neither
    # asked for, nor replaced, nor deleted. No scheme is in both.
    _made: dict[str, Backend]
    _unmade: dict[str, str]

    def __init__(self, built_in: dict[str, str]):
        self._made = {}
        self._unmade = dict(built_in)

    def __getitem__(self, scheme: str) -> Backend:
        try:
            return self._made[scheme]
        except KeyError:
            module, _, name = self._unmade[scheme].partition(":")
        backend: Backend = getattr(importlib.import_module(module), name)()
        # Of two threads that come here at the same time the first one's backend stays.
        backend = self._made.setdefault(scheme, backend)
        self._unmade.pop(scheme, None)
        return backend

    def __setitem__(self, scheme: str, backend: Backend) -> None:
        self._made[scheme] = backend
        self._unmade.pop(scheme, None)

    def __delitem__(self, scheme: str) -> None:
        if scheme in self._unmade:
            del self._unmade[scheme]
        else:
            del self._made[scheme]

    def __contains__(self, scheme: object) -> bool:
        return scheme in self._made or scheme in self._unmade

    def __iter__(self) -> Iterator[str]:
        return iter({**self._made, **self._unmade})

    def __len__(self) -> int:
        return len(self._made) + len(self._unmade)

    def __repr__(self) -> str:
        return f"<Backends: {', '.join(sorted(self))}>"


#: The backends of this process by scheme. Assign to it to register one by hand.
backends: MutableMapping[str, Backend] = Backends(_BUILT_IN)


def get_backend(scheme: str) -> Backend:
    """The backend for an address scheme.

    Entry points are looked at only if the scheme is not known yet; the backend that one of them
    provides is kept in `backends`.

    Parameters
    ----------
    scheme
        What stands before ``://`` in an address.

    Raises
    ------
    ValueError
        If nothing provides the scheme, naming those that are known.
    ImportError
        If an entry point for it cannot be loaded, naming the entry point.

    Examples
    --------
    >>> get_backend("tcp").get_address_host("127.0.0.1:8786")
    '127.0.0.1'
    """
    backend = backends.get(scheme)
    if backend is None:
        backend = _backend_from_entry_point(scheme)
        if backend is None:
            raise ValueError(
                f"unknown address scheme {scheme!r} (known schemes: {sorted(backends)})"
            )
        backends[scheme] = backend
    return backend


def _backend_from_entry_point(scheme: str) -> Backend | None:
    # Two packages may provide one scheme: the first on `sys.path` does, as with modules.
    for entry_point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=scheme):
        try:
            backend: Backend = entry_point.load()()
            if not (hasattr(backend, "get_connector") or hasattr(backend, "get_listener")):
                raise TypeError(
                    f"it made {backend!r}, which has neither get_connector() nor get_listener()"
                )
        except Exception as exc:
            raise ImportError(
                f"address scheme {scheme!r} is provided by the entry point "
                f"{entry_point.value!r}{_package_of(entry_point)} (group {ENTRY_POINT_GROUP!r}), "
                f"which failed to load: {type(exc).__name__}: {exc}"
            ) from exc
        return backend
    return None


def _package_of(entry_point: importlib.metadata.EntryPoint) -> str:
    """Return " of the package …", or "" if its metadata does not tell the name."""
    try:
        name = entry_point.dist.name if entry_point.dist is not None else None
    except (OSError, KeyError, ValueError):
        # The package has no METADATA file, or one that is not text.
        name = None
    return f" of the package {name!r}" if name else ""
