"""Open the HTTP port of a server's pages, or share the port of a ``ws://`` listener."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from distributed.base.arguments import check_flag
from distributed.base.logs import get_logger
from distributed.comm import unparse_host_port
from distributed.comm.addressing import is_unspecified, parse_host_port
from distributed.comm.arguments import SecuritySettings, with_security
from distributed.comm.auth import choose_token
from distributed.comm.ws import WSListener
from distributed.core.server import Server
from distributed.pages.access import Access, is_loopback
from distributed.pages.handlers import Context, Paths, live_page, make_application
from distributed.pages.ports import OwnPort, SharedPort
from distributed.pages.settings import Settings
from distributed.pages.updates import Source, Updates

__all__ = ["OpenPages", "Pages"]

logger = get_logger(__name__)

#: The port of pages without another one; that of dask's dashboard.
_DEFAULT_PORT = 8787
_DEFAULT_HOST = "127.0.0.1"


class OpenPages:
    """The pages of one server, while they are open.

    Attributes
    ----------
    url
        Where a browser on this host finds the live page.
    port
        The port.
    updates
        The browsers that watch.
    """

    def __init__(self, url: str, port: OwnPort | SharedPort, updates: Updates) -> None:
        self.url = url
        self.port = port.addresses[0][1]
        self.updates = updates
        self._port = port

    @property
    def connections(self) -> int:
        """The number of HTTP connections."""
        return self._port.connections

    def __repr__(self) -> str:
        return f"<OpenPages {self.url}>"


class Pages:
    """Pages about a server: a service for ``distributed.core.run`` and ``serve``.

    At ``/`` a browser sees the server at work.  ``/health`` and ``/ready`` are probes, ``/json``
    has the figures, and ``/metrics`` has them for Prometheus.

    Parameters
    ----------
    address
        A port, or ``"host:port"``; without a host, only this host reaches the port.  Port 0 is any
        free port.  ``"http://host:port"`` means no TLS, and ``"https://host:port"`` requires it.
        If the server listens at that port with ``ws://`` or ``wss://``, the port is shared.
        By default the port of the server's first such listener, or else port 8787.
    token
        The secret that clients must know; by default that of *security*, of the server, or of the
        configuration.
    security
        A `Security` object whose certificates the port uses; by default that of the server.
    ssl_context
        A TLS context for the port, such as one that does not ask browsers for certificates.
    public
        Whether other hosts get the pages without a token or a certificate; by default the value of
        ``distributed.pages.public``.
    allowed_hosts
        Further names by which browsers reach this port.  They matter without a token and TLS only:
        see :mod:`distributed.pages.access`.
    path
        The path of the live page, with a slash at the end.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.  Also when the pages open: if the port would be open to other
        hosts without protection.
    OSError
        When the pages open, if the address cannot be bound.

    Examples
    --------
    >>> import asyncio
    >>> from distributed.core import Server
    >>> from tornado.httpclient import AsyncHTTPClient
    >>> async def main():
    ...     async with Server({}) as server, Pages(0)(server) as pages:
    ...         answer = await AsyncHTTPClient().fetch(pages.url + "health")
    ...         return answer.body
    >>> asyncio.run(main())
    b'{"status":"alive"}\\n'
    """

    def __init__(
        self,
        address: int | str | tuple[str, int] | None = None,
        *,
        token: str | bytes | None = None,
        security: SecuritySettings | None = None,
        ssl_context: ssl.SSLContext | None = None,
        public: bool | None = None,
        allowed_hosts: Collection[str] = (),
        path: str = "/",
    ) -> None:
        self._scheme, self._host, self._port = _parse(address)
        if isinstance(allowed_hosts, str):
            raise TypeError(f"allowed_hosts must be a collection of names, not {allowed_hosts!r}")
        if not isinstance(path, str) or not path.startswith("/") or not path.endswith("/"):
            raise ValueError(f"path={path!r} must begin and end with a slash")
        if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
            raise TypeError(f"ssl_context must be an ssl.SSLContext, not {ssl_context!r}")
        arguments = with_security({"security": security, "token": token}, "listen")
        self._ssl_context = ssl_context or arguments.get("ssl_context")
        self._token = None if arguments.get("token") is None else choose_token(arguments["token"])
        self._public = check_flag("public", public)
        self._allowed_hosts = tuple(allowed_hosts)
        self._path = path

    def __repr__(self) -> str:
        where = "" if self._port is None else unparse_host_port(self._host, self._port)
        return f"<Pages {where}{self._path}>"

    def __call__(self, server: Server) -> AbstractAsyncContextManager[OpenPages]:
        """Return the context manager that opens the pages of *server* and closes them."""
        return self._open(server)

    @asynccontextmanager
    async def _open(self, server: Server) -> AsyncIterator[OpenPages]:
        settings = Settings.configured()
        token, ssl_context = self._credentials(server)
        port = self._open_port(server, settings, ssl_context)
        updates = Updates(
            Source(server, live_page().version),
            settings.interval,
            settings.max_watchers,
            settings.timeout,
        )
        context: Context | None = None
        try:
            first = port.addresses[0]
            url = _url(port, *first) + self._path
            is_public = settings.public if self._public is None else self._public
            _check_exposure(url, port, token, is_public)
            context = Context(
                server,
                Access(
                    token,
                    encrypted=port.encrypted,
                    allowed_hosts=self._allowed_hosts,
                ),
                settings,
                updates,
                port.heard,
                # Cookies do not depend on the port, and a host may have several servers.
                cookie_name=f"distributed-pages-{first[1]}",
                encrypted=port.encrypted,
            )
            port.start(make_application(context, self._path), Paths(self._path))
            logger.info("Pages of %s at %s", server.id, url)
            yield OpenPages(url, port, updates)
        finally:
            port.stop()
            await updates.close()
            await port.close()
            if context is not None:
                context.close()

    def _credentials(self, server: Server) -> tuple[str | bytes | None, ssl.SSLContext | None]:
        """Return the token and the TLS context for the pages of *server*, each of them or None."""
        sources: list[dict[str, Any]] = [{"token": self._token, "ssl_context": self._ssl_context}]
        if server._server_security is not None:
            sources.append(with_security({"security": server._server_security}, "listen"))
        # Listeners may have been given others than the server.
        sources += [
            {name: getattr(listener, name, None) for name in ("token", "ssl_context")}
            for listener in server.listeners
        ]

        def first(name: str) -> Any:
            return next((each[name] for each in sources if each.get(name) is not None), None)

        return choose_token(first("token")), first("ssl_context")

    def _open_port(
        self, server: Server, settings: Settings, ssl_context: ssl.SSLContext | None
    ) -> OwnPort | SharedPort:
        """Return the port of a websocket listener, or a new one."""
        for listener in server.listeners:
            if not isinstance(listener, WSListener) or listener.server is None:
                continue
            shared = SharedPort(listener)
            if self._port not in (None, shared.addresses[0][1]):
                continue
            if self._scheme == ("http" if shared.encrypted else "https"):
                raise ValueError(
                    f"cannot serve pages by {self._scheme}:// at the port of "
                    f"{listener.contact_address}"
                )
            return shared
        if self._scheme == "http":
            ssl_context = None
        elif self._scheme == "https" and ssl_context is None:
            raise ValueError(
                "pages at https:// need certificates: give security= or ssl_context= to Pages(), "
                "or security= to the server"
            )
        port = _DEFAULT_PORT if self._port is None else self._port
        return OwnPort(self._host, port, settings, ssl_context)


def _parse(address: int | str | tuple[str, int] | None) -> tuple[str | None, str, int | None]:
    """Return the scheme, the host and the port of an address; None for those it does not have."""
    scheme = None
    if address is None:
        return None, _DEFAULT_HOST, None
    if isinstance(address, str) and "://" in address:
        scheme, _, address = address.partition("://")
        if scheme not in ("http", "https"):
            raise ValueError(
                f"pages are served by http:// or https://, and not by {scheme}:// ({address!r})"
            )
        address = address.removesuffix("/")
    if isinstance(address, str) and address.isascii() and address.isdigit():
        address = int(address)
    if isinstance(address, int) and not isinstance(address, bool):
        address = ("", address)
    if isinstance(address, bool) or not isinstance(address, str | tuple):
        raise TypeError(f"pages are served at a port or at 'host:port', not at {address!r}")
    host, port = parse_host_port(address, _DEFAULT_PORT)
    return scheme, host or _DEFAULT_HOST, port


def _url(port: OwnPort | SharedPort, host: str, number: int) -> str:
    """Return the URL for this host of an address."""
    if is_unspecified(host):
        host = "::1" if ":" in host else _DEFAULT_HOST
    return f"{'https' if port.encrypted else 'http'}://{unparse_host_port(host, number)}"


def _check_exposure(
    url: str, port: OwnPort | SharedPort, token: str | bytes | None, is_public: bool
) -> None:
    """Raise ValueError if other hosts would get the pages without any protection."""
    exposed = [host for host, _ in port.addresses if not is_loopback(host)]
    if not exposed:
        return
    context = port.ssl_context
    if token is None and (context is None or context.verify_mode != ssl.CERT_REQUIRED):
        if not is_public:
            raise ValueError(
                f"cannot serve pages at {_url(port, *port.addresses[0])}: every host that reaches "
                f"{exposed[0]} would see the operations, errors and peers of the server. Require a "
                "token (token= of Pages(), or 'distributed.comm.auth.token') or certificates, "
                "listen at 127.0.0.1, or allow it with public=True ('distributed.pages.public')"
            )
        logger.warning(
            "The pages at %s are open to every host that reaches %s: public=True", url, exposed[0]
        )
    elif not port.encrypted:
        logger.warning(
            "The pages at %s are not encrypted: the network to other hosts can read them, and the "
            "token. Use TLS, or listen at 127.0.0.1 behind a proxy that does",
            url,
        )
