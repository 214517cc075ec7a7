"""Many durable agents at once in one process: steps a second, and that no step is lost or doubled.

Each agent does `--turns` calls of a tool that counts how often it was called with each argument, in a database of its
own; the counts afterwards say what was lost and what was done twice. With `--kill`, the process is ended by SIGKILL on
the way and all runs are resumed by another.
"""

import argparse
import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mortice.agent.budget import Budget
from mortice.agent.home import home
from mortice.agent.model import ScriptedCall, ScriptedTurn, ScriptSpec
from mortice.agent.service import Agents
from mortice.agent.spec import AgentSpec
from mortice.agent.tool import tool


@tool(effect="read", idempotency="natural")
def count(run: str, step: int) -> str:
    """Count one call."""
    with sqlite3.connect(os.environ["COUNTS"], timeout=60) as db:
        db.execute("insert into calls values (?, ?)", (run, step))
    return f"{run} {step}"


def agent(number: int, turns: int) -> AgentSpec:
    called = [
        ScriptedTurn(call=ScriptedCall(tool="count", arguments={"run": f"r{number}", "step": step}))
        for step in range(turns)
    ]
    script = ScriptSpec(turns=(*called, ScriptedTurn(say="done")))
    return AgentSpec(
        task="count",
        model=script,
        tools=(f"{Path(__file__).resolve()}:count",),
        budget=Budget(turns=turns + 2),
    )


async def work(folder: Path, db: str | None, agents: int, turns: int, resume: bool) -> float:
    """Seconds from the first start to the last result."""
    async with Agents(home(folder, db)) as service:
        started = time.monotonic()
        if resume:
            for number in range(agents):
                found = await service.durable.find(f"r{number}")
                if found is None:
                    await service.start(agent(number, turns), f"r{number}")
                else:
                    await service.resume(f"r{number}")
        else:
            await asyncio.gather(*(service.start(agent(n, turns), f"r{n}") for n in range(agents)))
        results = await asyncio.gather(*(service.result(f"r{n}") for n in range(agents)))
        if any(r.state != "done" or r.spent.calls != turns for r in results):
            raise SystemExit("a run did not end as it should")
        return time.monotonic() - started


def counts(path: Path) -> tuple[int, int]:
    """Calls that never happened are found by the caller; here: distinct calls, and calls beyond the first."""
    with sqlite3.connect(path) as db:
        total = db.execute("select count(*) from calls").fetchone()[0]
        distinct = db.execute("select count(*) from (select distinct run, step from calls)").fetchone()[0]
    return distinct, total - distinct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=500)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--db", default=None, help="postgresql://...; default: a SQLite file")
    parser.add_argument("--kill", type=float, default=None, help="seconds until SIGKILL")
    parser.add_argument("--worker", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = Path(options.worker or tempfile.mkdtemp(prefix="agent-runs-"))
    os.environ["COUNTS"] = str(folder / "counts.db")
    if options.worker:
        asyncio.run(work(folder, options.db, options.agents, options.turns, resume=False))
        return
    with sqlite3.connect(folder / "counts.db") as db:
        db.execute("pragma journal_mode=wal")
        db.execute("create table calls (run text, step integer)")
    if options.kill is not None:
        command = [sys.executable, __file__, "--worker", str(folder), "--agents", str(options.agents)]
        command += ["--turns", str(options.turns)] + (["--db", options.db] if options.db else [])
        process = subprocess.Popen(command)
        time.sleep(options.kill)
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = counts(folder / "counts.db")[0]
    seconds = asyncio.run(work(folder, options.db, options.agents, options.turns, options.kill is not None))
    distinct, again = counts(folder / "counts.db")
    steps = options.agents * (2 * options.turns + 1)
    report = {
        "agents": options.agents,
        "turns": options.turns,
        "store": (options.db or "sqlite").split(":")[0],
        "calls_before_kill": before if options.kill is not None else None,
        "seconds": round(seconds, 2),
        "steps": steps,
        "ms_a_step": round(1e3 * seconds / steps, 2),
        "lost": options.agents * options.turns - distinct,
        "done_again": again,
    }
    print(json.dumps(report))
    if report["lost"] or (again and options.kill is None):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
