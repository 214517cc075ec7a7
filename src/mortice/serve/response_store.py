"""Where responses are kept between calls: one SQLite file, written by one thread so that the event loop
never waits.
"""

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from mortice.specs.errors import RequestError

Json = dict[str, Any]

_SCHEMA = """
create table if not exists responses (
    id text primary key,
    created real not null,
    status text not null,
    body blob not null,   -- the response object, JSON
    items blob not null   -- all input items that led to it, those of earlier responses included, JSON
)
"""


class ResponseStore:
    """Responses by id. Methods are coroutines; `close` waits for what was begun."""

    def __init__(self, path: str) -> None:
        """`path`: a file, or ":memory:". Raises RequestError for a file that cannot be opened.

        Responses that were running when an earlier process ended are marked as failed.
        """
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="responses")
        try:
            self._db = self._thread.submit(_open, path).result()
        except sqlite3.Error as error:
            self._thread.shutdown()
            raise RequestError(f"cannot open the response store {path}: {error}", param="store") from error

    async def put(self, response: Json, items: list[Json]) -> None:
        """Write or replace a response."""
        body = msgspec.json.encode(response)
        row = (response["id"], time.time(), response["status"], body, msgspec.json.encode(items))
        await self._do("insert or replace into responses values (?, ?, ?, ?, ?)", row)

    async def get(self, response_id: str) -> tuple[Json, list[Json]] | None:
        """The response and its input items."""
        rows = await self._do("select body, items from responses where id = ?", (response_id,))
        return (msgspec.json.decode(rows[0][0]), msgspec.json.decode(rows[0][1])) if rows else None

    async def delete(self, response_id: str) -> bool:
        """True if it was there."""
        rows = await self._do("delete from responses where id = ? returning id", (response_id,))
        return bool(rows)

    def close(self) -> None:
        self._thread.submit(self._db.close).result()
        self._thread.shutdown()

    async def _do(self, statement: str, values: tuple[Any, ...]) -> list[Any]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, _execute, self._db, statement, values)


def _execute(db: sqlite3.Connection, statement: str, values: tuple[Any, ...]) -> list[Any]:
    with db:
        return db.execute(statement, values).fetchall()


def _open(path: str) -> sqlite3.Connection:
    db = sqlite3.connect(path)
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")
    db.execute(_SCHEMA)
    lost = {"code": "server_error", "message": "the server ended while it worked on this"}
    running = "select id, body from responses where status in ('queued', 'in_progress')"
    for response_id, body in db.execute(running).fetchall():
        response = {**msgspec.json.decode(body), "status": "failed", "error": lost}
        row = ("failed", msgspec.json.encode(response), response_id)
        db.execute("update responses set status = ?, body = ? where id = ?", row)
    db.commit()
    return db
