"""The registry of transports by address scheme.

A *backend* represents one transport: it makes the connectors and listeners of a scheme, and
interprets the part of an address that follows ``scheme://``.  `backends` maps schemes to backends.
`get_backend` looks one up: among registered ones, those of this package, and those that other
installed packages provide through the entry-point group ``distributed.comm.backends``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Iterator, MutableMapping
from typing import Any, Final

from distributed.base.text import shown_repr

__all__ = ["ENTRY_POINT_GROUP", "Backend", "Backends", "backends", "get_backend"]

#: Where other packages register schemes: the entry point is named as the scheme and refers to a
#: callable without arguments that returns a backend, such as a class. The backend needs only the
#: methods of `Backend` that are called for its addresses; it need not derive from `Backend`.
ENTRY_POINT_GROUP: Final = "distributed.comm.backends"

# Names rather than imports, for two reasons: transports import this module, and a transport that is
# never used is not imported (websockets need Tornado's HTTP modules).
_BUILT_IN: Final = {
    "fd": "distributed.comm.inherited:FdBackend",
    "inproc": "distributed.comm.inproc:InProcBackend",
    "tcp": "distributed.comm.tcp:TCPBackend",
    "tls": "distributed.comm.tcp:TLSBackend",
    "unix": "distributed.comm.unix:UnixBackend",
    "ws": "distributed.comm.ws:WSBackend",
    "wss": "distributed.comm.ws:WSSBackend",
}


class Backend(ABC):
    """One transport: the factory of its connectors and listeners, and the parser of its addresses.

    A *loc* is an address without its scheme: ``"127.0.0.1:8786"`` of ``"tcp://127.0.0.1:8786"``.
    A process has one backend per scheme; it holds no state of connections.
    """

    @abstractmethod
    def get_connector(self) -> Any:
        """Return a :class:`~distributed.comm.core.Connector` of this transport."""

    @abstractmethod
    def get_listener(
        self, loc: str, handle_comm: Any, deserialize: bool, **connection_args: Any
    ) -> Any:
        """Return a :class:`~distributed.comm.core.Listener` that is not started yet.

        Parameters
        ----------
        loc
            The address to listen at.
        handle_comm
            Called with each new comm after its handshake.
        deserialize
            See :class:`~distributed.comm.core.Comm`.
        connection_args
            Further arguments of the transport, such as an ``ssl_context``.
        """

    @abstractmethod
    def get_address_host(self, loc: str) -> str:
        """Return the host in *loc*; two addresses with the same host are on one machine.

        Raises
        ------
        ValueError
            If *loc* is invalid.
        """

    def get_address_host_port(self, loc: str) -> tuple[str, int]:
        """Return the host and the port in *loc*.

        Raises
        ------
        NotImplementedError
            If addresses of this transport have none.
        ValueError
            If *loc* is invalid.
        """
        raise NotImplementedError(f"{type(self).__name__}: its addresses have no host and port")

    @abstractmethod
    def resolve_address(self, loc: str) -> str:
        """Return *loc* with names resolved; may block while it asks a resolver.

        Raises
        ------
        OSError
            If a name does not resolve.
        ValueError
            If *loc* is invalid.
        """

    @abstractmethod
    def get_local_address_for(self, loc: str) -> str:
        """Return a loc of this host, without a port, that the host of *loc* can connect to.

        Raises
        ------
        OSError
            If a name does not resolve.
        ValueError
            If *loc* is invalid.
        """


class Backends(MutableMapping[str, Backend]):
    """A dict of backends by scheme that imports a built-in one at its first lookup.

    Length, iteration and ``in`` include built-in schemes that were not looked up yet.
    """

    # Invariant: no scheme is in both dicts.
    def __init__(self, built_in: dict[str, str]):
        # The backends that exist.
        self._made: dict[str, Backend] = {}
        # The "module:class" of built-in schemes that were not looked up, replaced or deleted yet.
        self._unmade = dict(built_in)

    def __getitem__(self, scheme: str) -> Backend:
        try:
            return self._made[scheme]
        except KeyError:
            module, _, name = self._unmade[scheme].partition(":")
        backend: Backend = getattr(importlib.import_module(module), name)()
        # If two threads get here at the same time, both use the backend of the first.
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


#: The backends of this process by scheme; assign a value to register a backend.
backends: MutableMapping[str, Backend] = Backends(_BUILT_IN)


def get_backend(scheme: str) -> Backend:
    """Return the backend for an address scheme.

    An unknown scheme is looked up among the entry points; its backend is stored in `backends`.

    Parameters
    ----------
    scheme
        The part of an address before ``://``.

    Raises
    ------
    ValueError
        If the scheme is unknown; the message lists those that are known.
    ImportError
        If an entry point for it cannot be loaded; the message names the entry point.

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
                f"unknown address scheme {shown_repr(scheme)} (known schemes: {sorted(backends)})"
            )
        backends[scheme] = backend
    return backend


def _backend_from_entry_point(scheme: str) -> Backend | None:
    # If two packages provide the scheme, the first on `sys.path` counts, as with modules.
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
        metadata = entry_point.dist.metadata if entry_point.dist is not None else None
        # From Python 3.12 on, a warning is issued for a name that is missing.
        name = metadata["Name"] if metadata is not None and "Name" in metadata else None
    except (OSError, KeyError, ValueError):
        # The package has no METADATA file, or one that is not text.
        name = None
    return f" of the package {name!r}" if name else ""
