"""Headless Chromium, driven over its DevTools protocol (https://chromedevtools.github.io).

The protocol is JSON over a websocket; Tornado's client speaks it, so no other library is needed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.websocket import WebSocketClientConnection, websocket_connect

#: Options for a browser that draws nothing, asks nothing and reports nothing.
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
    # The server of a test listens on a loopback address.
    "--no-proxy-server",
)
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

#: Seconds for the browser to start, and for a condition of a page to hold.
PATIENCE = 60.0


def find() -> str | None:
    """Return the path of the program, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def run_browser(directory: Path) -> Iterator[int]:
    """Run a browser with a new profile in *directory*; yield the port of its protocol."""
    program = find()
    if program is None:
        pytest.skip(f"needs a browser: one of {', '.join(NAMES)}")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={directory / 'profile'}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        file = directory / "profile" / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE
        while not (file.exists() and file.read_text().count("\n")):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"{program} did not start:\n{(directory / 'log').read_text()[-3000:]}")
            time.sleep(0.05)
        yield int(file.read_text().splitlines()[0])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Navigated(Exception):
    """The page was replaced by another one before a command had its answer."""


class Tab:
    """A page of a browser.

    Attributes
    ----------
    messages
        What the page logged to its console, and its errors.
    """

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.messages: list[str] = []
        self._connection = connection
        self._number = 0
        # The number of each command without an answer → its answer.
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while (text := await self._connection.read_message()) is not None:
            message = json.loads(text)
            if "id" in message:
                answer = self._answers.pop(message["id"])
                # The wait for it may have been cancelled, or timed out.
                if not answer.done():
                    answer.set_result(message)
            elif message["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.messages.append(json.dumps(message["params"])[:2000])

    async def do(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result."""
        self._number += 1
        answer = self._answers[self._number] = asyncio.get_running_loop().create_future()
        command = {"id": self._number, "method": method, "params": parameters}
        await self._connection.write_message(json.dumps(command))
        message = await asyncio.wait_for(answer, PATIENCE)
        if "error" in message:
            # -32000: the page, or its context for scripts, has gone.
            is_gone = message["error"]["code"] == -32000
            raise (Navigated if is_gone else AssertionError)(f"{method}: {message['error']}")
        return message["result"]

    async def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = await self.do("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until a JavaScript expression is true; return its value."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not (value := await self._evaluate_now(expression)):
                    await asyncio.sleep(0.02)
        except TimeoutError:
            text = await self.evaluate("document.body ? document.body.innerText : ''")
            pytest.fail(f"never true: {expression}\nThe page:\n{text}\n{self.messages}")
        return value

    async def _evaluate_now(self, expression: str) -> Any:
        """Return the value of an expression; None if there is no page at this moment."""
        try:
            return await self.evaluate(expression)
        except Navigated:
            return None

    async def open(self, url: str) -> None:
        """Show the page at *url*."""
        await self.do("Page.navigate", url=url)

    async def size(self, width: int, height: int, scale: float = 1) -> None:
        """Set the size of the window."""
        await self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )

    async def dark(self, is_dark: bool) -> None:
        """Choose the color scheme."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        await self.do("Emulation.setEmulatedMedia", features=[scheme])

    async def press(self, key: str, code: int = 0, text: str = "") -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            await self.do(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=code,
                **typed,
            )

    async def screenshot(self) -> bytes:
        """Return a picture of the whole page, in the format PNG."""
        result = await self.do("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(result["data"])


@contextlib.asynccontextmanager
async def open_tab(port: int) -> AsyncIterator[Tab]:
    """Open a tab without cookies or history, and close it at the end."""
    client = AsyncHTTPClient(force_instance=True)
    answer = await client.fetch(f"http://127.0.0.1:{port}/json/version")
    browser = await websocket_connect(
        json.loads(answer.body)["webSocketDebuggerUrl"], max_message_size=2**28
    )
    root = Tab(browser)
    context = (await root.do("Target.createBrowserContext"))["browserContextId"]
    target = (await root.do("Target.createTarget", url="about:blank", browserContextId=context))[
        "targetId"
    ]
    page = await websocket_connect(
        f"ws://127.0.0.1:{port}/devtools/page/{target}", max_message_size=2**28
    )
    tab = Tab(page)
    try:
        for domain in ("Page", "Runtime", "Log"):
            await tab.do(f"{domain}.enable")
        yield tab
    finally:
        await root.do("Target.disposeBrowserContext", browserContextId=context)
        for each in (tab, root):
            each._connection.close()
            await each._reader
        client.close()
