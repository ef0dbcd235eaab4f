"""Log lines as JSON, one object per line, for programs that collect logs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from distributed.base.text import shown

__all__ = ["JsonFormatter"]

#: Attributes of a record that lines of this package have where they are known (``extra=``).
_FIELDS = ("peer", "op")


class JsonFormatter(logging.Formatter):
    """A formatter whose lines are JSON objects.

    The keys are ``time`` (RFC 3339, UTC, with microseconds), ``level``, ``logger``, ``message``,
    ``pid``, ``thread`` (its name); where they are known ``peer`` (an address) and ``op``; and
    ``exception`` (the text of the traceback) and ``stack`` for lines that have them.

    All characters outside of ASCII are escaped, so a value from a peer can neither begin another
    line nor control a terminal, whatever the encoding of the stream.

    Examples
    --------
    >>> record = logging.makeLogRecord({"name": "distributed.core", "msg": "two\\nlines"})
    >>> json.loads(JsonFormatter().format(record))["message"]
    'two\\nlines'
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds")
        line: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
            "pid": record.process,
            "thread": record.threadName,
        }
        for field in _FIELDS:
            value = record.__dict__.get(field)
            if value is not None:
                line[field] = shown(value)
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=shown)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception as exc:  # noqa: BLE001  (the line matters more than its mistake)
        return f"{record.msg} (the arguments do not fit this message: {type(exc).__name__})"
