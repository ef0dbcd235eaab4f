"""The live page in a browser."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json

import pytest

from distributed.core import Server, connect, rpc, send_recv
from distributed.pages import Pages
from distributed.pages.tests.chromium import open_tab, run_browser
from distributed.utils_test import gen_test

TOKEN = "correct-horse-battery-staple"
HOSTILE = "<img src=x onerror=\"document.title='owned'\">"

#: Snapshots at a rate at which tests need not wait long.
often = functools.partial(gen_test, timeout=100, config={"distributed.pages.interval": "50ms"})


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Return the port at which a browser takes commands."""
    with run_browser(tmp_path_factory.mktemp("browser")) as port:
        yield port


class Calculator(Server):
    """An example of a server."""


async def add(x: int, y: int = 1) -> int:
    """Return the sum."""
    return x + y


def fail(text: str = HOSTILE) -> None:
    """Raise an error."""
    raise ValueError(text)


@contextlib.asynccontextmanager
async def watched(browser, handlers=None, **kwargs):
    """Run a server, and show its page once it has figures; yield the server and the tab."""
    async with Calculator(handlers or {"add": add, "fail": fail}) as server:
        await server.listen("tcp://127.0.0.1:0")
        async with Pages(0, **kwargs)(server) as pages, open_tab(browser) as tab:
            await tab.open(pages.url)
            await tab.until("document.querySelector('#state.live') !== null")
            await tab.until("document.getElementById('pid').textContent.startsWith('pid')")
            yield server, tab
            assert tab.messages == []


def text_of(selector):
    return f"((document.querySelector({json.dumps(selector)}) || {{}}).innerText || '')"


def row_of(operation):
    """Return an expression for the cells of an operation, as a list of texts."""
    return (
        "(([...document.querySelectorAll('#operations-table tr.row')].find(row => "
        f"row.querySelector('.open .clip').textContent === {json.dumps(operation)}) || "
        "{cells: []}).cells"
    )


def cell(operation, index):
    return f"({row_of(operation)}[{index}] || {{}}).textContent)"


TOTAL, ERRORS = 8, 6


@often()
async def test_the_page_shows_the_server(browser):
    async with watched(browser) as (server, tab):
        assert await tab.evaluate(text_of("#name")) == "Calculator"
        assert server.address in await tab.evaluate(text_of("#addresses"))
        assert await tab.evaluate(text_of("#status")) == "running"
        assert await tab.evaluate("document.title") == f"Calculator {server.address}"
        await tab.until(f"/^\\d+ s$/.test({text_of('#uptime')})")
        # The memory of this process, in which other tests have run.
        await tab.until(f"/\\d [MG]iB/.test({text_of('#tile-memory .value')})")


@often()
async def test_the_page_shows_a_call_that_is_made(browser):
    async with watched(browser) as (server, tab), rpc(server.address) as remote:
        assert await remote.add(x=1, y=2) == 3
        await tab.until(f"{cell('add', TOTAL)} === '1'")
        assert await tab.evaluate(f"{cell('add', ERRORS)}") == "0"
        for _ in range(4):
            await remote.add(x=1)
        await tab.until(f"{cell('add', TOTAL)} === '5'")
        # The chart of the calls has a line.
        await tab.until("document.querySelector('#tile-rate path.a').getAttribute('d') !== ''")


@often()
async def test_the_page_shows_peers_and_what_they_wait_for(browser):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait():
        begun.set()
        await go_on.wait()

    async with watched(browser, {"wait": wait}) as (server, tab):
        async with rpc(server.address) as remote:
            calling = asyncio.create_task(remote.wait())
            await begun.wait()
            await tab.until(
                f"/tcp:\\/\\/127.0.0.1:\\d+\\s+tcp\\s+wait/.test({text_of('#peers-table')})"
            )
            assert await tab.evaluate(text_of("#peers-count")) == "1"
            await tab.until(f"{text_of('#tile-active .value')} === '1'")
            go_on.set()
            await calling
            await tab.until(f"!/wait/.test({text_of('#peers-table tbody')})")
        await tab.until(f"{text_of('#peers-empty')} === 'None.'")


@often()
async def test_errors_are_listed_with_their_operation_and_caller(browser):
    async with watched(browser) as (server, tab):
        assert await tab.evaluate(text_of("#errors-empty")) == "None so far."
        async with rpc(server.address) as remote:
            with pytest.raises(ValueError, match="no way"):
                await remote.fail(text="no way")
            await tab.until("document.querySelectorAll('#errors details').length === 1")
            await tab.evaluate("document.querySelector('#errors summary').click()")
            shown = await tab.evaluate(text_of("#errors details"))
            assert "fail" in shown
            assert "ValueError: no way" in shown
            assert "tcp://127.0.0.1:" in shown
            assert await tab.evaluate(cell("fail", ERRORS)) == "1"
            # It stays open while the page is updated.
            with pytest.raises(ValueError, match="again"):
                await remote.fail(text="again")
            await tab.until("document.querySelectorAll('#errors details').length === 2")
            assert await tab.evaluate("document.querySelectorAll('#errors details')[1].open")


@often()
async def test_hostile_names_and_errors_are_text(browser):
    handlers = {HOSTILE: add, "__proto__": add, "fail": fail}
    async with watched(browser, handlers) as (server, tab):
        comm = await connect(server.address)
        async with rpc(server.address) as remote:
            for op in (HOSTILE, "__proto__"):
                assert await send_recv(comm, op=op, x=1) == 2
            await comm.close()
            with pytest.raises(ValueError, match="img"):
                await remote.fail()
            await tab.until(f"{cell(HOSTILE, TOTAL)} === '1'")
            await tab.until(f"{cell('__proto__', TOTAL)} === '1'")
            await tab.until(f"/onerror/.test({text_of('#errors')})")
        await tab.evaluate("document.querySelectorAll('.open').forEach(each => each.click())")
        assert await tab.evaluate("document.querySelectorAll('img, main script').length") == 0
        assert await tab.evaluate("document.title") == f"Calculator {server.address}"


@often()
async def test_the_browser_itself_refuses_other_scripts(browser):
    async with watched(browser) as (_, tab):
        # An error of the policy is also one of the console.
        script = "document.createElement('script'), {textContent: 'document.title = 1'}"
        result = await tab.do(
            "Runtime.evaluate", expression=f"document.body.append(Object.assign({script}))"
        )
        assert "exceptionDetails" in result
        result = await tab.do("Runtime.evaluate", expression="document.body.innerHTML = '<b>x</b>'")
        assert "exceptionDetails" in result
        assert await tab.evaluate("document.title") != "1"
        tab.messages.clear()


@often()
async def test_the_page_survives_a_restart_of_the_server(browser):
    async with open_tab(browser) as tab:
        port, ids = 0, []
        for _ in range(2):
            async with Calculator({"add": add}) as server:
                await server.listen("tcp://127.0.0.1:0")
                async with Pages(port)(server) as pages, rpc(server.address) as remote:
                    if not port:
                        await tab.open(pages.url)
                        port = pages.port
                    await tab.until(f"{text_of('#state')} === 'live'")
                    await tab.until(f"{text_of('#addresses')} === {server.address!r}")
                    await remote.add(x=1)
                    await tab.until(f"{cell('add', TOTAL)} === '1'")
                    ids.append(server.id)
            await tab.until("document.querySelector('#state.off') !== null")
            assert "trying again" in await tab.evaluate(text_of("#state"))
        assert len({*ids}) == 2
        # A line in the charts marks the restart.
        assert await tab.evaluate("document.querySelector('path.break').getAttribute('d')")


@often()
async def test_the_page_asks_for_the_token_and_keeps_it_over_a_restart(browser):
    async with open_tab(browser) as tab:
        port = 0
        for _ in range(2):
            async with Calculator({}) as server, Pages(port, token=TOKEN)(server) as pages:
                if not port:
                    port = pages.port
                    await tab.open(pages.url)
                    await tab.until("document.querySelector('#token') !== null")
                    await tab.evaluate(f"document.querySelector('#token').value = {TOKEN!r}")
                    await tab.evaluate("document.querySelector('button').click()")
                await tab.until(f"{text_of('#state')} === 'live'")
                assert await tab.evaluate("document.cookie") == ""
                assert await tab.evaluate("location.search") == ""
            await tab.until("document.querySelector('#state.off') !== null")
        # Another token: the session has ended.
        async with Calculator({}) as server, Pages(port, token=TOKEN[::-1])(server):
            await tab.until("document.querySelector('#token') !== null")


@often()
async def test_the_token_in_the_address_disappears_from_it(browser):
    async with (
        Calculator({}) as server,
        Pages(0, token=TOKEN)(server) as pages,
        open_tab(browser) as tab,
    ):
        await tab.open(f"{pages.url}?token={TOKEN}")
        await tab.until(f"{text_of('#state')} === 'live'")
        assert await tab.evaluate("location.href") == pages.url


@often()
async def test_another_version_of_the_page_is_loaded_after_an_upgrade(browser, monkeypatch):
    from distributed.pages import handlers, service

    async with open_tab(browser) as tab:
        async with Calculator({}) as server, Pages(0)(server) as pages:
            await tab.open(pages.url)
            await tab.until(f"{text_of('#state')} === 'live'")
        page = handlers.live_page()
        content = page.content.replace(b"<title>", b'<meta name="newer"><title>')
        newer = page._replace(content=content, version="2")
        for module in (handlers, service):
            monkeypatch.setattr(module, "live_page", lambda: newer)
        async with Calculator({}) as server, Pages(pages.port)(server):
            await tab.until("document.querySelector('meta[name=newer]') !== null")
            await tab.until(f"{text_of('#state')} === 'live'")


@pytest.mark.parametrize("width", [320, 375, 768, 1280])
@often()
async def test_the_page_does_not_scroll_sideways(browser, width):
    def operation_with_a_name_that_is_much_longer_than_any_phone_is_wide_and_then_some(
        argument: dict[str, list[tuple[int, int, int, int, int]]] | None = None,
    ) -> None:
        """Do nothing, and say so in a line that is also longer than the width of a phone."""
        raise ValueError("x" * 500)

    name = operation_with_a_name_that_is_much_longer_than_any_phone_is_wide_and_then_some.__name__
    handlers = {
        name: operation_with_a_name_that_is_much_longer_than_any_phone_is_wide_and_then_some
    }
    async with watched(browser, handlers) as (server, tab):
        await tab.size(width, 800)
        async with rpc(server.address) as remote:
            with pytest.raises(ValueError, match="xxx"):
                await getattr(remote, name)()
            await tab.until(f"{cell(name, TOTAL)} === '1'")
            await tab.until("document.querySelectorAll('#errors details').length === 1")
            await tab.evaluate("document.querySelector('tbody .open').click()")
            await tab.evaluate("document.querySelector('#errors summary').click()")
            assert await tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
            # No element hangs over the edge, cut off.
            beyond = await tab.evaluate(
                "[...document.querySelectorAll('body *')].filter(each => each.getClientRects()"
                ".length && !each.closest('svg, .clip, .what, .skip, .hidden-text') && "
                "each.getBoundingClientRect().right > innerWidth + 1)"
                ".map(each => each.tagName + '.' + each.className + ' ' + each.textContent)"
            )
            assert beyond == []


@often()
async def test_updates_do_not_move_what_is_on_the_page(browser):
    async with watched(browser) as (server, tab), rpc(server.address) as remote:
        await remote.add(x=1)
        await tab.until(f"{cell('add', TOTAL)} === '1'")
        places = (
            "JSON.stringify([...document.querySelectorAll("
            "'h1, h2, h3, .tile, .now, .plot, .more, th, tr.row td, dt, footer')].map(each => "
            "{ const box = each.getBoundingClientRect(); "
            "return [each.textContent, box.left, box.top, box.right, box.bottom] })"
            ".map(([text, ...place]) => [text.replace(/\\d+/g, '#').slice(0, 9), place]))"
        )
        before = await tab.evaluate(places)
        for _ in range(30):
            await remote.add(x=1)
        await tab.until(f"{cell('add', TOTAL)} === '31'")
        after = await tab.evaluate(places)
        pairs = zip(json.loads(before), json.loads(after), strict=True)
        assert [pair for pair in pairs if pair[0][1] != pair[1][1]] == []


@often()
async def test_the_page_is_dark_where_the_reader_wants_that(browser):
    def brightness(color):
        return sum(int(part) for part in color[color.index("(") + 1 : -1].split(",")[:3])

    async with watched(browser) as (_, tab):
        color = "getComputedStyle(document.body).backgroundColor"
        await tab.dark(False)
        assert brightness(await tab.evaluate(color)) > 600
        await tab.dark(True)
        assert brightness(await tab.evaluate(color)) < 150


@often()
async def test_the_page_can_be_used_with_a_keyboard(browser):
    async with watched(browser) as (_, tab):
        focused = "document.activeElement.id || document.activeElement.textContent"
        order = []
        for _ in range(20):
            await tab.press("Tab", 9)
            order.append(await tab.evaluate(focused))
            outline = await tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", order
            if order[-1] == "Operation":
                break
        assert order == [
            *("Skip to the operations", "2 min", "10 min", "1 h", "pause"),
            *("tiles", "filter", "Operation"),
        ]
        # Sort, the other way round.
        first = text_of("tbody tr.row .open .clip")
        assert await tab.evaluate(first) == "add"
        await tab.press("Enter", 13, "\r")
        await tab.until(f"{first} === 'fail'")
        assert (
            await tab.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')")
            == "descending"
        )
        # Open the description of an operation.
        while await tab.evaluate(focused) != "fail":
            await tab.press("Tab", 9)
        await tab.press("Enter", 13, "\r")
        await tab.until("document.activeElement.getAttribute('aria-expanded') === 'true'")
        assert "Raise an error." in await tab.evaluate(text_of(".detail:not([hidden])"))
        assert "fail(text: str" in await tab.evaluate(text_of(".detail:not([hidden])"))
        # Look at earlier values in the charts.
        await tab.evaluate("document.getElementById('tiles').focus()")
        await tab.press("ArrowLeft", 37)
        await tab.until(f"/^at \\d\\d:\\d\\d:\\d\\d$/.test({text_of('#at')})")
        await tab.press("Escape", 27)
        await tab.until(f"{text_of('#at')} === ''")


@gen_test(timeout=100, config={"distributed.pages.max-watchers": 0})
async def test_a_page_that_may_not_watch_tells_why(browser):
    async with Calculator({}) as server, Pages(0)(server) as pages, open_tab(browser) as tab:
        await tab.open(pages.url)
        await tab.until(f"/too many watchers/.test({text_of('#state')})")


@often()
async def test_operations_are_filtered_by_name(browser):
    async with watched(browser) as (_, tab):
        rows = "document.querySelectorAll('#operations-table tr.row').length"
        await tab.until(f"{rows} === 2")
        await tab.evaluate(
            "const box = document.getElementById('filter'); box.value = 'AI'; "
            "box.dispatchEvent(new Event('input'))"
        )
        await tab.until(f"{rows} === 1")
        await tab.evaluate("box.value = 'none'; box.dispatchEvent(new Event('input'))")
        await tab.until("!document.getElementById('operations-empty').hidden")


@often()
async def test_a_page_that_is_paused_stands_still(browser):
    async with watched(browser) as (server, tab), rpc(server.address) as remote:
        await remote.add(x=1)
        await tab.until(f"{cell('add', TOTAL)} === '1'")
        await tab.evaluate("document.getElementById('pause').click()")
        await remote.add(x=1)
        await tab.until("latest.operations.add.count === 2")
        assert await tab.evaluate(cell("add", TOTAL)) == "1"
        assert await tab.evaluate(text_of("#state")) == "paused"
        await tab.evaluate("document.getElementById('pause').click()")
        await tab.until(f"{cell('add', TOTAL)} === '2'")


@often()
async def test_a_page_in_a_tab_that_stays_hidden_stops_watching(browser):
    async with watched(browser) as (_, tab):
        # Headless tabs are always visible.
        hide = (
            "Object.defineProperty(document, 'hidden', {{configurable: true, get: () => {0}}}); "
            "document.dispatchEvent(new Event('visibilitychange'))"
        )
        await tab.evaluate(hide.format("true"))
        await tab.evaluate("hiddenSince = Date.now() - 1000 * (HIDDEN_FOR + 1)")
        await tab.until(f"{text_of('#state')} === 'not watching'")
        await tab.until("source.readyState === EventSource.CLOSED")
        await tab.evaluate(hide.format("false"))
        await tab.until(f"{text_of('#state')} === 'live'")
