"""Log lines as JSON."""

from __future__ import annotations

import json
import logging
import sys
import threading
from datetime import UTC, datetime

import pytest

from distributed.base.json_lines import JsonFormatter
from distributed.tests.environments import ROOT, run_in

HOSTILE = 'x"}\n{"level": "ERROR"}\r\u2028\x1b[2J\x00\ud800é'


def formatted(**fields):
    """Return the line of a record, after a check that it is one line of printable ASCII."""
    record = logging.makeLogRecord({"name": "distributed.core", "levelname": "INFO", **fields})
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.isprintable()
    return json.loads(line)


def test_a_line_has_its_time_level_logger_message_process_and_thread():
    line = formatted(msg="said %s", args=("this",), created=1.5)
    assert line == {
        "time": "1970-01-01T00:00:01.500000Z",
        "level": "INFO",
        "logger": "distributed.core",
        "message": "said this",
        "pid": logging.makeLogRecord({}).process,
        "thread": threading.current_thread().name,
    }
    assert datetime.fromisoformat(line["time"]).tzinfo == UTC


def test_a_line_has_the_peer_and_the_operation_if_they_are_known():
    line = formatted(peer="tcp://127.0.0.1:5", op="add")
    assert (line["peer"], line["op"]) == ("tcp://127.0.0.1:5", "add")
    line = formatted(op=("not", b"text"), peer=None)
    assert line["op"] == "('not', b'text')"
    assert "peer" not in line


@pytest.mark.parametrize("field", ["msg", "peer", "op", "name", "threadName", "stack_info"])
def test_a_hostile_value_cannot_begin_another_line(field):
    line = formatted(**{field: HOSTILE})
    assert line["level"] == "INFO"
    assert any('{"level": "ERROR"}' in str(value) for value in line.values())


def test_a_line_has_the_text_of_the_exception():
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        line = formatted(exc_info=sys.exc_info())
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert "ValueError: x" in line["exception"]


def test_arguments_that_do_not_fit_the_message_are_not_an_error():
    line = formatted(msg="%d and %d", args=("a",))
    assert line["message"] == "%d and %d (the arguments do not fit this message: TypeError)"


REQUESTS = """
    import asyncio, logging, sys, threading
    from distributed import Server, config, connect
    {initialize}

    def fail(x):
        raise ValueError(x)

    async def main():
        async with Server({{"fail": fail}}) as server:
            await server.listen("tcp://127.0.0.1:0")
            comm = await connect(server.address)
            for message in ({{"op": {hostile!r}}}, {{"op": "fail", "x": {hostile!r}}}):
                await comm.write(message)
                await comm.read()
            print(comm.local_address)
            await comm.close()

    asyncio.run(main())
    logging.getLogger("some.program").warning("of another logger")
    logging.getLogger("some.program").info("below the level")
"""


@pytest.mark.parametrize("how", ["caller", "configuration"])
def test_all_lines_of_a_server_are_json_and_name_peer_and_operation(how, tmp_path):
    hostile = 'x"}\n{"level": "ERROR"}'
    initialize, env = "", {"DASK_DISTRIBUTED__ADMIN__LOG_FORMAT": "json"}
    if how == "caller":
        initialize, env = "config.initialize_logging(config.config, json_lines=True)", {}
    code = REQUESTS.format(initialize=initialize, hostile=hostile)
    env |= {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = run_in(sys.executable, code, env=env, options=["-Werror"])
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["INFO", "ERROR", "WARNING"]
    peer = done.stdout.strip()
    assert [line.get("peer") for line in lines] == [peer, peer, None]
    assert [line.get("op") for line in lines] == ['x"}\\n{"level": "ERROR"}', "fail", None]
    assert ["exception" in line for line in lines] == [False, True, False]
    assert lines[2]["message"] == "of another logger"
