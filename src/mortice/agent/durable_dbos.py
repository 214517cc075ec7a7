"""Durable runs on DBOS: SQLite by default, PostgreSQL by URL. One of these a process, as DBOS wants it.

Three things differ from DBOS as it comes. Values are JSON, never pickle: a database file must not be code. A start does
not recover whatever it finds: several commands share one database, so a run is taken over only by name and only when
the process that ran it is dead (owners.py). SQLite runs in WAL mode with full sync: one fsync a step, not three.
"""

import asyncio
import json
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, cast

import sqlalchemy as sa
from dbos import DBOS, DBOSClient, DBOSConfig, Serializer, SetWorkflowID, WorkflowHandleAsync, WorkflowStatus
from dbos import error as dbos_error

from mortice.agent.durable import (
    Bodies,
    Cancelled,
    Json,
    RunFailed,
    RunRecord,
    State,
    StepFailed,
    StepRecord,
    Suspended,
)
from mortice.agent.owners import AdvisoryOwners, FileOwners, Owners
from mortice.specs.errors import NotFound, RequestError, WrongState

APPLICATION = "mortice"
VERSION = "mortice-agent-1"  # of the bodies: raise it when a change makes old journals unreadable
_STATES: dict[str, State] = {
    "PENDING": "running",
    "ENQUEUED": "running",
    "DELAYED": "running",
    "SUCCESS": "done",
    "ERROR": "failed",
    "CANCELLED": "cancelled",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
}
_POLL_S = 0.05
_ASIDE = "put_aside"  # attribute of a run: why


class JsonSerializer(Serializer):
    """JSON and nothing else; exceptions by name and message."""

    def serialize(self, data: Any) -> str:
        if isinstance(data, StepFailed):
            return json.dumps({"__error__": data.kind, "message": data.message})
        if isinstance(data, BaseException):
            return json.dumps({"__error__": type(data).__name__, "message": str(data)})
        return json.dumps(data, allow_nan=False)

    def deserialize(cls, serialized_data: str) -> Any:
        value = json.loads(serialized_data)
        if isinstance(value, dict) and "__error__" in value:
            return StepFailed(str(value["__error__"]), str(value.get("message", "")))
        return value

    def name(self) -> str:
        return "mortice_json"


class _Current:
    """Whose bodies the one workflow function below calls."""

    bodies: ClassVar[Bodies] = {}


@DBOS.workflow(name="mortice.run", max_recovery_attempts=None)
async def _run(kind: str, payload: Json) -> Json:
    body = _Current.bodies.get(kind)
    if body is None:
        raise RuntimeError(f"no body for runs of kind {kind!r}")
    return await body(payload)


class DbosDurable:
    """`async with DbosDurable(url, folder) as durable`: `bodies` may be set until the first run starts. A process that is
    going to take runs over says so: else its queue is found only a second after it was made.
    """

    _lock = threading.Lock()

    def __init__(self, url: str, folder: Path, *, takes_over: bool = False) -> None:
        self.url = checked_url(url)
        self._folder = folder
        self._takes_over = takes_over
        self._suspended: dict[str, str] = {}  # why, by run
        self._client: DBOSClient | None = None
        self._owners: Owners | None = None
        self._queue = ""

    @property
    def bodies(self) -> Bodies:
        return _Current.bodies

    @bodies.setter
    def bodies(self, bodies: Bodies) -> None:
        _Current.bodies = bodies

    async def __aenter__(self) -> "DbosDurable":
        if not self._lock.acquire(blocking=False):
            raise RuntimeError("a process holds one durable store at a time")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._owners = await asyncio.to_thread(owners_of, self.url, self._folder)
            self._queue = f"of-{self._owners.me}"
            DBOS(config=self._config(self._owners.me))
            DBOS.listen_queues([self._queue])
            with self._owners.takeover():  # two first launches on a fresh database race on its migration
                if self._takes_over:
                    self._register_early()
                DBOS.launch()
        except BaseException as error:
            self._close()
            if isinstance(error, sa.exc.SQLAlchemyError):
                raise RequestError(
                    f"the database cannot be used: {_first_line(error)}", param="db"
                ) from error
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._took_over:
            await DBOS.delete_queue_async(self._queue)
        await asyncio.to_thread(self._close)
        # DBOS put its own pool in the loop's place and has just shut it down.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor())

    _took_over = False

    def _register_early(self) -> None:
        try:
            reader = DbosReader(self.url)
        except NotFound:  # then there is nothing to take over either
            return
        with closing(reader):
            reader.register_queue(self._queue)
        self._took_over = True

    async def _register(self) -> None:
        if not self._took_over:
            await DBOS.register_queue_async(
                self._queue, polling_interval_sec=_POLL_S, on_conflict="never_update"
            )
            self._took_over = True

    def _close(self) -> None:
        if self._client is not None:
            self._client.destroy()
            self._client = None
        DBOS.destroy()
        logging.getLogger("dbos").handlers.clear()  # one would stay behind, on the stderr of this moment
        if self._owners is not None:
            self._owners.close()
            self._owners = None
        self._lock.release()

    def _config(self, owner: str) -> DBOSConfig:
        config: DBOSConfig = {
            "name": APPLICATION,
            "system_database_url": self.url,
            "application_version": VERSION,
            "executor_id": owner,
            "serializer": JsonSerializer(),
            "log_level": "CRITICAL",  # what matters reaches the user as an error
            "max_executor_threads": 32,
            "notification_listener_polling_interval_sec": _POLL_S,
        }
        if self.url.startswith("sqlite"):
            config["system_database_engine"] = sqlite_engine(self.url)
        return config

    # Inside a body.

    @property
    def run_id(self) -> str:
        run_id = DBOS.workflow_id
        if run_id is None:
            raise LookupError("not inside a run")
        return run_id

    async def step(self, name: str, act: Callable[[], Awaitable[Json]]) -> Json:
        failed: StepFailed

        async def boxed() -> Json:
            try:
                return [await act()]  # DBOS tells no result from the result None
            except Suspended as error:
                raise await self._put_aside(run_id, error.reason) from error

        run_id = self.run_id
        try:
            return (await DBOS.run_step_async({"name": name}, boxed))[0]
        except dbos_error.DBOSWorkflowCancelledError as error:
            raise self._cancelled(run_id) from error
        except StepFailed:
            raise
        except dbos_error.DBOSException:
            raise
        except Exception as error:  # the first time; a replay raises what the serializer made of it
            failed = StepFailed(type(error).__name__, str(error))
            raise failed from error

    async def sleep(self, seconds: float) -> None:
        await DBOS.sleep_async(seconds)

    async def recv(self, topic: str, timeout_s: float) -> Json:
        try:
            return await DBOS.recv_async(topic, timeout_s)
        except dbos_error.DBOSWorkflowCancelledError as error:
            raise Cancelled(self.run_id) from error

    async def spawn(self, kind: str, run_id: str, payload: Json) -> None:
        with SetWorkflowID(run_id):
            await DBOS.start_workflow_async(_run, kind, payload)

    async def join(self, run_id: str) -> Json:
        await self._ended(run_id)
        try:
            return await DBOS.get_result_async(run_id)
        except StepFailed as error:
            raise RunFailed(str(error)) from error
        except dbos_error.DBOSAwaitedWorkflowCancelledError as error:
            raise RunFailed("it was cancelled") from error

    async def _ended(self, run_id: str) -> None:
        """Wait until a child has ended. Asked from outside of this run, whose journal would keep for ever that the child was
        put aside."""
        outside = self._outside()
        while True:
            found = await outside.list_workflows_async(
                workflow_ids=[run_id], load_input=False, load_output=False
            )
            if not found:  # a branch has its children's results, and not their runs
                return
            record = run_record(found[0])
            if record.state == "suspended":
                reason = f"the run {run_id} that it waits for is put aside: {record.error}"
                await self._put_aside(self.run_id, reason)
                raise Suspended(reason)
            if record.state != "running":
                return
            await asyncio.sleep(_POLL_S)

    async def _put_aside(self, run_id: str, reason: str) -> BaseException:
        """Gives what ends the step under way without writing it down."""
        self._suspended[run_id] = reason
        outside = self._outside()
        await outside.update_workflow_attributes_async(run_id, {_ASIDE: reason[:2000]}, merge=True)
        await outside.cancel_workflow_async(run_id)
        return dbos_error.DBOSWorkflowCancelledError(reason)

    def _outside(self) -> DBOSClient:
        """The store as another process sees it: nothing that is asked or done there is a step of the run that asks."""
        if self._client is None:
            self._client = client_of(self.url)
        return self._client

    # Outside.

    async def start(self, kind: str, run_id: str, payload: Json) -> None:
        if await self.find(run_id) is not None:
            raise RequestError(f"there is a run {run_id!r} already; take another id or resume it", param="id")
        with SetWorkflowID(run_id):
            await DBOS.start_workflow_async(_run, kind, payload)

    async def resume(self, run_id: str) -> None:
        owners = self._owners
        assert owners is not None
        lock = owners.takeover()
        await asyncio.to_thread(lock.__enter__)
        try:
            status = await DBOS.get_workflow_status_async(run_id)
            if status is None:
                raise NotFound(f"there is no run {run_id!r}", param="id")
            await self._take(status)
        finally:
            lock.__exit__(None, None, None)

    async def _take(self, status: WorkflowStatus) -> None:
        """Under the take-over lock, which is held until the queue has written this process down as the owner."""
        owners = self._owners
        assert owners is not None
        if status.status in ("SUCCESS", "ERROR"):
            return
        if (
            status.app_version != VERSION
        ):  # else it would wait for ever in a queue that nobody of its version reads
            raise WrongState(
                f"run {status.workflow_id!r} was begun by another version of its steps ({status.app_version}; here "
                f"{VERSION}): let that version end it, or branch off one of its turns",
                param="id",
            )
        owner = status.executor_id
        if status.status == "PENDING" and owner is not None and owners.alive(owner):
            if owner == owners.me:
                return
            raise WrongState(f"run {status.workflow_id!r} is at work in process {owner.split('-')[0]}")
        await self._register()
        for child in await DBOS.list_workflows_async(
            parent_workflow_id=status.workflow_id, load_input=False, load_output=False
        ):
            await self._take(child)
        if self._suspended.pop(status.workflow_id, None) or run_record(status).state == "suspended":
            await DBOS.update_workflow_attributes_async(status.workflow_id, {_ASIDE: None}, merge=True)
        await DBOS.resume_workflow_async(status.workflow_id, queue_name=self._queue)
        while True:
            now = await DBOS.get_workflow_status_async(status.workflow_id)
            if now is None or now.status != "ENQUEUED":
                return
            await asyncio.sleep(_POLL_S)

    async def fork(self, run_id: str, new_id: str, first_step: int) -> None:
        if await self.find(new_id) is not None:
            raise RequestError(f"there is a run {new_id!r} already", param="id")
        await self._register()
        with SetWorkflowID(new_id):
            await DBOS.fork_workflow_async(
                run_id, first_step, application_version=VERSION, queue_name=self._queue
            )

    async def result(self, run_id: str) -> Json:
        handle: WorkflowHandleAsync[Json] = await DBOS.retrieve_workflow_async(run_id)
        try:
            return await handle.get_result(polling_interval_sec=_POLL_S)
        except StepFailed as error:
            raise RunFailed(str(error)) from error
        except (dbos_error.DBOSAwaitedWorkflowCancelledError, dbos_error.DBOSWorkflowCancelledError) as error:
            raise self._cancelled(run_id) from error

    def _cancelled(self, run_id: str) -> Cancelled:
        reason = self._suspended.get(run_id)
        return Cancelled(run_id) if reason is None else Suspended(reason)

    async def send(self, run_id: str, topic: str, message: Json) -> None:
        await DBOS.send_async(run_id, message, topic)

    async def cancel(self, run_id: str) -> None:
        self._suspended.pop(run_id, None)
        await DBOS.update_workflow_attributes_async(run_id, {_ASIDE: None}, merge=True)
        await DBOS.cancel_workflow_async(run_id)

    async def runs(self, *, kind: str | None = None, limit: int = 100) -> list[RunRecord]:
        found = await DBOS.list_workflows_async(name="mortice.run", limit=limit, sort_desc=True)
        return [r for r in map(run_record, found) if kind in (None, r.kind)]

    async def find(self, run_id: str) -> RunRecord | None:
        status = await DBOS.get_workflow_status_async(run_id)
        return None if status is None else run_record(status)

    async def children(self, run_id: str) -> list[RunRecord]:
        return list(map(run_record, await DBOS.list_workflows_async(parent_workflow_id=run_id)))

    async def steps(self, run_id: str) -> list[StepRecord]:
        return [step_record(step) for step in await DBOS.list_workflow_steps_async(run_id)]


class DbosReader:
    """Looks at the store, sends and cancels, without being an executor: for `ls`, `show`, `approve`."""

    def __init__(self, url: str) -> None:
        self.url = checked_url(url)
        if self.url.startswith("sqlite") and not Path(sa.make_url(self.url).database or "").exists():
            raise NotFound("nothing has been run here yet", param="db")
        try:
            self._client = client_of(self.url)
            self._client.list_workflows(limit=1)
        except sa.exc.SQLAlchemyError as error:
            if isinstance(error, sa.exc.ProgrammingError) or "no such table" in str(error):
                raise NotFound("nothing has been run here yet", param="db") from error
            raise RequestError(f"the database cannot be used: {_first_line(error)}", param="db") from error

    def close(self) -> None:
        self._client.destroy()

    def register_queue(self, name: str) -> None:
        self._client.register_queue(name, polling_interval_sec=_POLL_S, application_name=APPLICATION)

    def runs(self, *, kind: str | None = None, limit: int | None = 100) -> list[RunRecord]:
        found = self._client.list_workflows(name="mortice.run", limit=limit, sort_desc=True)
        return [r for r in map(run_record, found) if kind in (None, r.kind)]

    def find(self, run_id: str) -> RunRecord:
        found = self._client.list_workflows(workflow_ids=[run_id])
        if not found:
            raise NotFound(f"there is no run {run_id!r}", param="id")
        return run_record(found[0])

    def steps(self, run_id: str) -> list[StepRecord]:
        return [step_record(step) for step in self._client.list_workflow_steps(run_id)]

    def send(self, run_id: str, topic: str, message: Json) -> None:
        self._client.send(run_id, message, topic)

    def cancel(self, run_id: str) -> None:
        self._client.update_workflow_attributes(run_id, {_ASIDE: None}, merge=True)
        self._client.cancel_workflow(run_id)


def client_of(url: str) -> DBOSClient:
    """Of a checked URL."""
    return DBOSClient(
        system_database_url=url,
        system_database_engine=sqlite_engine(url) if url.startswith("sqlite") else None,
        serializer=JsonSerializer(),
        retry_connection_errors=False,
    )


def checked_url(url: str) -> str:
    """Only the two databases that are tested."""
    try:
        made = sa.make_url(url)
    except sa.exc.ArgumentError as error:
        raise RequestError("not a database URL: sqlite:////path or postgresql://...", param="db") from error
    if made.get_backend_name() == "sqlite":
        return url
    if made.get_backend_name() != "postgresql":
        raise RequestError("the database is sqlite:////path or postgresql://...", param="db")
    return made.set(drivername="postgresql+psycopg").render_as_string(hide_password=False)


def owners_of(url: str, folder: Path) -> Owners:
    if url.startswith("sqlite"):
        return FileOwners(folder / "owners")
    return AdvisoryOwners(sa.create_engine(url, pool_size=2))


def sqlite_engine(url: str) -> sa.Engine:
    """Immediate transactions as DBOS wants them, one fsync each."""
    engine = sa.create_engine(url, pool_size=8, max_overflow=8, pool_timeout=60)

    @sa.event.listens_for(engine, "connect")
    def _settings(connection: Any, _: Any) -> None:
        connection.isolation_level = "IMMEDIATE"
        for pragma in ("busy_timeout=30000", "foreign_keys=ON", "journal_mode=WAL", "synchronous=FULL"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def run_record(status: WorkflowStatus) -> RunRecord:
    args = status.input["args"] if status.input else ("", None)
    aside = (status.attributes or {}).get(_ASIDE)
    state = _STATES[status.status]
    error = None if status.error is None else str(status.error)
    return RunRecord(
        id=status.workflow_id,
        kind=str(args[0]),
        state="suspended" if state == "cancelled" and aside else state,
        payload=args[1] if len(args) > 1 else None,
        output=status.output,
        error=str(aside) if state == "cancelled" and aside else error,
        created_s=(status.created_at or 0) / 1e3,
        updated_s=(status.updated_at or 0) / 1e3,
        owner=status.executor_id,
        parent=status.parent_workflow_id,
        forked_from=status.forked_from,
    )


def step_record(step: Any) -> StepRecord:
    output = step["output"]
    boxed = isinstance(output, list) and len(output) == 1
    return StepRecord(
        number=int(step["function_id"]),
        name=str(step["function_name"]),
        output=cast(list, output)[0] if boxed else output,
        error=None if step["error"] is None else str(step["error"]),
        started_s=(step["started_at_epoch_ms"] or 0) / 1e3,
        ended_s=(step["completed_at_epoch_ms"] or 0) / 1e3,
    )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0][:300]
