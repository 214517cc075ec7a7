"""Structured log: an event, and fields that say about it. JSON for machines, one short line for people.

Nothing that a user wrote and nothing secret may stand in a log, so fields that would carry them are masked
by name, and long or many-lined values are cut.
"""

import json
import logging
import sys
import time
from typing import Any, Literal, TextIO

_KEYS = ("api_key", "api_keys", "authorization", "token", "admin_token", "password", "secret", "cookie")
_WORDS = ("prompt", "text", "content", "messages", "input", "instructions", "output", "completion", "body")
SECRET = frozenset((*_KEYS, *_WORDS))
MAX_VALUE_CHARS = 300
_FIELDS = "mortice_fields"
_ROOT = "mortice"


class Log:
    """Logger of one room. `log.info("request ended", request_id=id, status=200)`."""

    def __init__(self, room: str) -> None:
        self._logger = logging.getLogger(f"{_ROOT}.{room}")

    def debug(self, event: str, **fields: Any) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, *, exc: BaseException | None = None, **fields: Any) -> None:
        """With `exc`, its traceback goes along; use it only for faults of our own."""
        self._write(logging.ERROR, event, fields, exc)

    def _write(
        self, level: int, event: str, fields: dict[str, Any], exc: BaseException | None = None
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={_FIELDS: fields}, exc_info=exc)


def setup_log(
    form: Literal["human", "json"] = "human", level: str = "INFO", stream: TextIO | None = None
) -> logging.Handler:
    """Send the log of all rooms to `stream` (stderr if None). Replaces what an earlier call set up."""
    root = logging.getLogger(_ROOT)
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter() if form == "json" else _HumanFormatter())
    root.addHandler(handler)
    root.setLevel(level)
    root.propagate = False
    return handler


def safe(name: str, value: Any) -> Any:
    """The value as it may stand in a log under this name."""
    if name.lower() in SECRET:
        return "[masked]"
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    text = "".join(c if c.isprintable() else " " for c in text)
    return text if len(text) <= MAX_VALUE_CHARS else text[:MAX_VALUE_CHARS] + "…"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: safe(name, value) for name, value in getattr(record, _FIELDS, {}).items()}


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "room": record.name.removeprefix(_ROOT + "."),
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _HumanFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = f"{clock} {record.levelname.lower():7} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
