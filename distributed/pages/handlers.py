"""The application of the pages: one handler for each path."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPServerRequest
from tornado.iostream import IOStream, StreamClosedError
from tornado.routing import Matcher, PathMatches, Rule
from tornado.web import Application, RequestHandler

from distributed.base import config
from distributed.base.logs import get_logger
from distributed.comm.auth import Penalties
from distributed.core.answers import result_of
from distributed.core.figures import figures
from distributed.core.server import Server
from distributed.core.status import Status
from distributed.pages.access import Access, Refusal
from distributed.pages.metrics import MetricsHandler
from distributed.pages.settings import Settings
from distributed.pages.updates import Updates, to_json
from distributed.telemetry.loop_delay import measuring

__all__ = ["Context", "Document", "live_page", "make_application"]

logger = get_logger(__name__)

_HEADERS = {
    "Cache-Control": "no-store",
    "Connection": "close",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # With "no-referrer", a browser would send the form with the origin "null".
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class Document(NamedTuple):
    """An HTML page, and the policy that lets a browser run its script and no other."""

    content: bytes
    policy: str
    #: A digest of the content.
    version: str


def _hashes(tag: str, text: str) -> str:
    """Return the sources of a policy that allow the elements *tag* of a page."""
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (hashlib.sha256(content.encode()).digest() for content in contents)
    return " ".join(f"'sha256-{base64.b64encode(each).decode()}'" for each in digests) or "'none'"


def _load(name: str) -> Document:
    content = Path(__file__).with_name(name).read_bytes()
    text = content.decode()
    policy = (
        f"default-src 'none'; script-src {_hashes('script', text)}; "
        f"style-src {_hashes('style', text)}; img-src data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return Document(content, policy, hashlib.sha256(content).hexdigest()[:16])


@cache
def live_page() -> Document:
    """Return the live page."""
    return _load("live.html")


@cache
def _sign_in_page() -> Document:
    return _load("sign_in.html")


@cache
def _wrong_token_page() -> Document:
    page = _sign_in_page()
    return page._replace(content=page.content.replace(b'role="alert" hidden', b'role="alert"'))


class Context:
    """What the handlers of one port share.

    Parameters
    ----------
    server
        The server that the pages are about.
    access
        Which requests are answered.
    settings
        The limits.
    updates
        The browsers that watch.
    heard
        Called with the stream of each request that has arrived.
    cookie_name
        The name of the cookie of a browser that has sent the token.
    encrypted
        Whether the port uses TLS.
    """

    def __init__(
        self,
        server: Server,
        access: Access,
        settings: Settings,
        updates: Updates,
        heard: Callable[[IOStream], object],
        *,
        cookie_name: str,
        encrypted: bool,
    ) -> None:
        self.server = server
        self.access = access
        self.settings = settings
        self.updates = updates
        self.cookie_name = cookie_name
        self.encrypted = encrypted
        self.heard = heard
        self.penalties = Penalties()
        # What runs until the pages close: nothing before the first request for figures.
        self._lasting = ExitStack()
        self._measures = False
        self.allow_health = config.get_bool("distributed.comm.auth.allow-health")

    def figures(self) -> dict[str, Any]:
        """Return a snapshot; from the first one on, measure the delay of the event loop.

        A client that asks for the figures asks again: a measurement for each request alone would
        miss the time between them.
        """
        if not self._measures:
            self._measures = True
            self._lasting.enter_context(measuring())
        return figures(self.server)

    def close(self) -> None:
        """End what the requests have started."""
        self._lasting.close()


class Page(RequestHandler):
    """The base of all handlers: checks the request, and bounds the time of the answer."""

    #: Whether a request without the token is answered if the configuration allows it for "health".
    is_probe = False
    context: Context

    def initialize(self, context: Context) -> None:
        self.context = context

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    def compute_etag(self) -> None:
        """Return no digest: a client gets each answer once."""

    @property
    def _method(self) -> str:
        return self.request.method or ""

    @property
    def _stream(self) -> IOStream:
        assert isinstance(self.request.connection, HTTP1Connection)
        return self.request.connection.stream

    async def prepare(self) -> None:
        """Refuse the request, or let the handler answer it."""
        self.context.heard(self._stream)
        refusal = self._check()
        if refusal is None:
            return
        if refusal.wrong_token:
            await self._delay()
        await self.refuse(refusal)

    def _check(self) -> Refusal | None:
        access = self.context.access
        if self.is_probe and self.context.allow_health:
            return access.check_origin(self._method, self.request.headers)
        cookie = self.get_cookie(self.context.cookie_name)
        return access.check(self._method, self.request.headers, cookie)

    async def _delay(self) -> None:
        """Make a client that guesses tokens wait for its answer."""
        host = str(self.request.remote_ip)
        logger.warning("Refused a request for %s from %s: wrong token", self.request.path, host)
        self.context.penalties.failed(host)
        await asyncio.sleep(self.context.penalties.delay(host))

    async def refuse(self, refusal: Refusal) -> None:
        """Answer with the reason of a refusal."""
        if refusal.status == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        await self.answer(refusal.reason + "\n", status=refusal.status)

    async def answer(
        self, content: str | bytes, kind: str = "text/plain; charset=utf-8", status: int = 200
    ) -> None:
        """Send the whole answer.  A client that does not read it in time is disconnected."""
        self.set_status(status)
        self.set_header("Content-Type", kind)
        stream = self._stream
        try:
            async with asyncio.timeout(self.context.settings.timeout):
                await self.finish(content)
        except (StreamClosedError, TimeoutError):
            # The client has left, or does not read.
            pass
        finally:
            stream.close()

    async def answer_json(self, value: Any, status: int = 200) -> None:
        """Send a value as JSON."""
        await self.answer(to_json(value) + b"\n", "application/json", status)

    async def answer_page(self, page: Document, status: int = 200) -> None:
        """Send an HTML page."""
        self.set_header("Content-Security-Policy", page.policy)
        await self.answer(page.content, "text/html; charset=utf-8", status)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer with the name of the error, without HTML, and close the connection."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        stream = self._stream
        sent = self.finish(f"{status_code}: {self._reason}\n")
        # A shared port does not close it: it stays open for requests of the application.
        sent.add_done_callback(lambda sent: stream.close())

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log an error of a handler, without the query of the request, which may have the token."""
        if value is not None and not hasattr(value, "status_code"):
            logger.error("Failed to answer a request for %s", self.request.path, exc_info=value)


class Live(Page):
    """The live page."""

    async def prepare(self) -> None:
        """Sign a browser in that has the token in the query."""
        access = self.context.access
        if access.needs_token and self.request.query_arguments.get("token"):
            self.context.heard(self._stream)
            token = self.request.query_arguments["token"][-1]
            await sign_in(self, token)
            return
        await super().prepare()

    async def get(self) -> None:
        await self.answer_page(live_page())

    head = get

    async def refuse(self, refusal: Refusal) -> None:
        if refusal.status == 401 and "text/html" in self.request.headers.get("Accept", ""):
            await self.answer_page(_sign_in_page(), 401)
        else:
            await super().refuse(refusal)


class SignIn(Page):
    """Takes the token from the form, and gives a cookie for it."""

    def _check(self) -> Refusal | None:
        return self.context.access.check_origin(self._method, self.request.headers)

    async def post(self) -> None:
        await sign_in(self, self.request.body_arguments.get("token", [b""])[-1].strip())


async def sign_in(page: Page, token: bytes) -> None:
    """Give a browser the cookie if its token is right, and show it the live page."""
    context = page.context
    refusal = context.access.check_origin(page._method, page.request.headers)
    if refusal is not None:
        await page.refuse(refusal)
        return
    if not context.access.knows_token(token):
        await page._delay()
        await page.answer_page(_wrong_token_page(), 401)
        return
    assert context.access.cookie is not None
    page.set_cookie(
        context.cookie_name,
        context.access.cookie,
        path="/",
        httponly=True,
        secure=context.encrypted,
        samesite="Strict",
    )
    # Relative, so that it is right behind a proxy too; the query with the token is gone.
    page.set_header("Location", "./")
    await page.answer("", status=303)


class Events(Page):
    """The events of the live page, as long as the browser stays."""

    _watching: asyncio.Task[None] | None = None

    async def get(self) -> None:
        if self.context.updates.is_full:
            self.set_header("Retry-After", "10")
            await self.answer(
                "too many browsers watch this server ('distributed.pages.max-watchers')\n",
                status=503,
            )
            return
        self.set_header("Content-Type", "text/event-stream")
        # Proxies must not collect the events.
        self.set_header("X-Accel-Buffering", "no")
        stream = self._stream
        self._watching = self.context.updates.watch(self._send)
        try:
            await asyncio.wait([self._watching])
            error = None if self._watching.cancelled() else self._watching.exception()
            if isinstance(error, TimeoutError):
                logger.info(
                    "Disconnected a browser at %s: it did not read for %s s",
                    self.request.remote_ip,
                    self.context.settings.timeout,
                )
            elif error is not None and not isinstance(error, StreamClosedError):
                logger.error("Failed to watch %s", self.context.server.id, exc_info=error)
        finally:
            self._watching.cancel()
            self._finished = True
            stream.close()

    async def _send(self, events: bytes) -> None:
        self.write(events)
        await self.flush()

    def on_connection_close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()


class Figures(Page):
    """The figures as JSON."""

    async def get(self) -> None:
        await self.answer_json(self.context.figures())

    head = get


class Metrics(Page, MetricsHandler):
    """The figures for Prometheus; see :mod:`distributed.pages.metrics`."""

    def initialize(self, context: Context) -> None:  # type: ignore[override]
        Page.initialize(self, context)
        MetricsHandler.initialize(self, context.figures)

    async def get(self) -> None:
        stream = self._stream
        try:
            async with asyncio.timeout(self.context.settings.timeout):
                await MetricsHandler.get(self)
        except (StreamClosedError, TimeoutError):
            # The client has left, or does not read.
            pass
        finally:
            stream.close()

    head = get


class Health(Page):
    """Tells that the event loop of the server runs."""

    is_probe = True

    async def get(self) -> None:
        await self.answer_json({"status": "alive"})

    head = get


class Ready(Page):
    """Tells whether the server accepts requests."""

    is_probe = True

    async def get(self) -> None:
        server = self.context.server
        health: Any = {"status": server.status.name}
        # While it closes gracefully, a server still answers the operation.
        if server.status in (Status.running, Status.closing_gracefully):
            try:
                async with asyncio.timeout(self.context.settings.timeout):
                    health = await result_of(server.handlers["health"](), "health")
            except Exception:
                logger.exception("Exception while handling op health in %s", server.id)
                health = {"status": "failed"}
        is_ready = isinstance(health, dict) and health.get("status") == "serving"
        await self.answer_json(health, 200 if is_ready else 503)

    head = get


class NotFound(Page):
    """Answers requests for other paths."""

    async def prepare(self) -> None:
        """Answer that there is no such page."""
        self.context.heard(self._stream)
        await self.answer("404: Not Found\n", status=404)


#: Path → handler.
_HANDLERS: dict[str, type[Page]] = {
    "": Live,
    "events": Events,
    "health": Health,
    "json": Figures,
    "metrics": Metrics,
    "ready": Ready,
    "sign-in": SignIn,
}


class Paths(Matcher):
    """Matches the requests for the pages at a port that they share, until they are closed."""

    def __init__(self, prefix: str) -> None:
        self._paths = {prefix + name for name in _HANDLERS}
        #: Whether requests are matched; Tornado cannot remove a route.
        self.is_open = True

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        if not self.is_open or request.path not in self._paths:
            return None
        # A `ws://` listener may have the same path.
        return None if request.headers.get("Upgrade", "").lower() == "websocket" else {}


def _log_request(handler: RequestHandler) -> None:
    request = handler.request
    logger.debug(
        "%s %s for %s: %d", request.method, request.path, request.remote_ip, handler.get_status()
    )


def make_application(context: Context, prefix: str) -> Application:
    """Return the application of the pages, whose paths begin with *prefix*."""
    arguments = {"context": context}
    return Application(
        [
            Rule(PathMatches(re.escape(prefix + name) + "$"), handler, arguments)
            for name, handler in _HANDLERS.items()
        ],
        default_handler_class=NotFound,
        default_handler_args=arguments,
        log_function=_log_request,
    )
