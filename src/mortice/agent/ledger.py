"""The effect ledger: what a run did to the outside world, written before and after. A crash, a restored machine or a
branch of a run never makes an effect happen twice unnoticed.

An intent is durable before the act, its result after. Found again on the way back:
- with a result: the result is given, nothing is done (replay);
- without one: nobody knows. A tool that is idempotent by nature or by key is called again under the same key; any other
  needs a human.
A branch (`fork`) sees what the run it came from did after the point where it left: the same call is replayed, another
one to the same tool needs a human; or all is done anew under new keys where the user asked for that.
"""

import fcntl
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from mortice.agent.durable_dbos import sqlite_engine
from mortice.agent.policy import canonical, digest_of

_meta = sa.MetaData()
_effects = sa.Table(
    "mortice_effects",
    _meta,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("run", sa.String(255), nullable=False, index=True),
    sa.Column("turn", sa.Integer, nullable=False),
    sa.Column("call", sa.Integer, nullable=False),
    sa.Column("tool", sa.String(255), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("arguments", sa.Text, nullable=False),
    sa.Column("result", sa.Text),  # null: intent only
    sa.Column("replay_of", sa.String(64)),
    sa.Column("at_s", sa.Float, nullable=False),
)
_branches = sa.Table(
    "mortice_branches",
    _meta,
    sa.Column("run", sa.String(255), primary_key=True),
    sa.Column("parent", sa.String(255), nullable=False),
    sa.Column("turn", sa.Integer, nullable=False),
    sa.Column("mode", sa.String(8), nullable=False),
)
_tokens = sa.Table(
    "mortice_spent_tokens",
    _meta,
    sa.Column("digest", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(64), nullable=False),
)

Mode = Literal["replay", "anew"]


class Effect(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    run: str
    turn: int
    call: int
    tool: str
    digest: str
    arguments: dict[str, Any]
    result: Any  # None: intent only
    replay_of: str | None
    at_s: float


class Begun(msgspec.Struct, frozen=True, kw_only=True):
    """What to do about a call. `go`: act, then `finish`. `replay`: give `result`. `ask`: a human decides. `refuse`: no."""

    action: Literal["go", "replay", "ask", "refuse"]
    key: str
    result: Any = None
    reason: str = ""


class Ledger:
    """SQLite file or the PostgreSQL of the runs. Safe for several processes."""

    def __init__(self, url: str) -> None:
        if url.startswith("sqlite"):
            Path(sa.make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
            self._engine = sqlite_engine(url)
        else:
            self._engine = sa.create_engine(url, pool_size=4)
        with _opened_alone(url), self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(sa.text("select pg_advisory_xact_lock(6106)"))
            _meta.create_all(connection)

    def close(self) -> None:
        self._engine.dispose()

    def branch(self, run: str, parent: str, turn: int, mode: Mode) -> None:
        """`run` leaves `parent` before `turn`."""
        with self._engine.begin() as connection:
            connection.execute(_branches.insert().values(run=run, parent=parent, turn=turn, mode=mode))

    def begin(
        self,
        run: str,
        turn: int,
        call: int,
        tool: str,
        arguments: dict[str, Any],
        *,
        idempotent: bool,
        approved: bool,
        one_time: Sequence[str] = (),
    ) -> Begun:
        """Write the intent down, unless it or its like is there. `approved`: a human said yes to this very call."""
        key = key_of(run, turn, call)
        digest = digest_of(tool, arguments)
        with self._alone(run) as connection:
            own = connection.execute(sa.select(_effects).where(_effects.c.key == key)).one_or_none()
            if own is not None:
                return _found(own._mapping, digest, idempotent=idempotent, approved=approved)
            earlier, mode = self._of_other_branch(connection, run)
            same = next((e for e in earlier if e.digest == digest and e.result is not None), None)
            if mode == "replay" and same is not None:
                connection.execute(_row(key, run, turn, call, tool, digest, arguments, same.result, same.key))
                return Begun(action="replay", key=key, result=same.result)
            alike = next((e for e in earlier if e.tool == tool), None)
            if mode == "replay" and alike is not None and not approved:
                return Begun(
                    action="ask", key=key, reason=f"an earlier branch of this run called {_said(alike)}"
                )
            tokens = [_token_digest(tool, name, arguments[name]) for name in one_time if name in arguments]
            for token in tokens:
                if connection.execute(sa.select(_tokens).where(_tokens.c.digest == token)).first():
                    return Begun(action="refuse", key=key, reason=f"{tool}: a one-time value was used before")
            for token in tokens:
                connection.execute(_tokens.insert().values(digest=token, key=key))
            connection.execute(_row(key, run, turn, call, tool, digest, arguments, None, None))
        return Begun(action="go", key=key)

    @contextmanager
    def _alone(self, run: str) -> Iterator[sa.Connection]:
        """A transaction in which nobody else begins an effect of the run between the look and the write. SQLite's driver
        would open one only at the write.
        """
        with self._engine.begin() as connection:
            if connection.dialect.name == "sqlite":
                connection.execute(sa.text("BEGIN IMMEDIATE"))
            else:
                number = int(key_of(run, 0, 0)[:15], 16)
                connection.execute(sa.text("select pg_advisory_xact_lock(:key)"), {"key": number})
            yield connection

    def finish(self, key: str, result: Any) -> None:
        text = canonical(result).decode()
        with self._engine.begin() as connection:
            connection.execute(sa.update(_effects).where(_effects.c.key == key).values(result=text))

    def effects(self, run: str) -> list[Effect]:
        with self._engine.begin() as connection:
            rows = connection.execute(
                sa.select(_effects).where(_effects.c.run == run).order_by(_effects.c.turn, _effects.c.call)
            )
            return [_effect(row._mapping) for row in rows]

    def facts(self, run: str, *, at_turn: int) -> list[Effect]:
        """What the run this one branched from did after it was left, if it was left before this turn."""
        with self._engine.begin() as connection:
            row = connection.execute(sa.select(_branches.c.turn).where(_branches.c.run == run)).one_or_none()
            if row is None or row.turn != at_turn:
                return []
            return self._of_other_branch(connection, run)[0]

    def _of_other_branch(self, connection: sa.Connection, run: str) -> tuple[list[Effect], Mode]:
        """Effects after the points where this run and those before it left, but for what has been replayed since."""
        found: list[Effect] = []
        mode: Mode | None = None
        used = self._replayed(connection, run)
        this = run
        while True:
            row = connection.execute(sa.select(_branches).where(_branches.c.run == this)).one_or_none()
            if row is None:
                return [effect for effect in found if effect.key not in used], mode or "replay"
            mode = mode or row.mode
            later = sa.select(_effects).where(
                _effects.c.run == row.parent, _effects.c.turn >= row.turn, _effects.c.replay_of.is_(None)
            )
            rows = connection.execute(later.order_by(_effects.c.turn, _effects.c.call))
            found += [_effect(r._mapping) for r in rows]
            used |= self._replayed(connection, row.parent, before=row.turn)
            this = row.parent

    def _replayed(self, connection: sa.Connection, run: str, *, before: int | None = None) -> set[str]:
        keys = sa.select(_effects.c.replay_of).where(_effects.c.run == run, _effects.c.replay_of.is_not(None))
        if before is not None:
            keys = keys.where(_effects.c.turn < before)
        return set(connection.execute(keys).scalars())

    def branches(self, prefix: str) -> list[str]:
        """Runs whose name begins so and that left another one."""
        with self._engine.begin() as connection:
            found = connection.execute(
                sa.select(_branches.c.run).where(_branches.c.run.startswith(prefix, autoescape=True))
            )
            return list(found.scalars())


class RunEffects:
    """One run's effects for `mortice.sandbox.Epochs`. An effect's turn is the number of the epoch that will commit it.

    Going back to an epoch is a branch of the ledger: the same call gives its old result, another one to the same tool needs
    a human.
    """

    def __init__(self, ledger: Ledger, run: str) -> None:
        self._ledger = ledger
        self._run = run

    @property
    def run(self) -> str:
        """To `begin` under: the run, or its branch since it last went back."""
        number = self._num_rewinds()
        return f"{self._run}@{number}" if number else self._run

    @property
    def num_entries(self) -> int:
        return len(self._ledger.effects(self.run))

    def rewind(self, epoch: int) -> None:
        self._ledger.branch(f"{self._run}@{self._num_rewinds() + 1}", self.run, epoch + 1, "replay")

    def _num_rewinds(self) -> int:
        numbers = (name.rpartition("@")[2] for name in self._ledger.branches(f"{self._run}@"))
        return max((int(number) for number in numbers if number.isdigit()), default=0)


@contextmanager
def _opened_alone(url: str) -> Iterator[None]:
    """Two processes that turn one fresh SQLite file to WAL at once find it locked, whatever the busy timeout."""
    path = sa.make_url(url).database if url.startswith("sqlite") else None
    if not path:
        yield
        return
    with open(f"{path}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def key_of(run: str, turn: int, call: int) -> str:
    """The idempotency key of a logical step: the host makes it, never the model."""
    return hashlib.sha256(f"{run}\0{turn}\0{call}".encode()).hexdigest()


def _found(own: Any, digest: str, *, idempotent: bool, approved: bool) -> Begun:
    if own["digest"] != digest:
        return Begun(
            action="refuse", key=own["key"], reason="this step did another call before; it is not repeated"
        )
    if own["result"] is not None:
        return Begun(action="replay", key=own["key"], result=msgspec.json.decode(own["result"]))
    if idempotent or approved:
        return Begun(action="go", key=own["key"])
    reason = "this call was begun before a crash, and nobody knows whether it took effect"
    return Begun(action="ask", key=own["key"], reason=reason)


def _row(
    key: str,
    run: str,
    turn: int,
    call: int,
    tool: str,
    digest: str,
    arguments: dict[str, Any],
    result: Any,
    replay_of: str | None,
) -> sa.Insert:
    return _effects.insert().values(
        key=key,
        run=run,
        turn=turn,
        call=call,
        tool=tool,
        digest=digest,
        arguments=canonical(arguments).decode(),
        result=None if result is None else canonical(result).decode(),
        replay_of=replay_of,
        at_s=time.time(),
    )


def _effect(row: Any) -> Effect:
    values = dict(row)
    values["arguments"] = msgspec.json.decode(values["arguments"])
    values["result"] = None if values["result"] is None else msgspec.json.decode(values["result"])
    return Effect(**values)


def _said(effect: Effect) -> str:
    arguments = canonical(effect.arguments).decode()
    return f"{effect.tool} with {arguments[:500]}"


def _token_digest(tool: str, name: str, value: Any) -> str:
    return hashlib.sha256(canonical([tool, name, value])).hexdigest()
