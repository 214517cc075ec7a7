"""How a run is watched and its result printed; how a user is asked."""

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import typer

from mortice.agent.act import Ask
from mortice.agent.artifacts import Artifacts
from mortice.agent.history import Answer, Compaction, Event, File, Notice, Observation, Task
from mortice.agent.loop import Result

if TYPE_CHECKING:  # they cost a second that runs without servers need not pay
    from mortice.agent.mcp.consent import Choice, Form
    from mortice.agent.service import Agents

_WIDTH = 160
Approve = Literal["ask", "wait", "stop", "deny"]


class Watch:
    """Prints events as they come, on stderr, and puts questions to the user at the terminal."""

    def __init__(self, approve: Approve) -> None:
        self.agents: Agents | None = None
        self.stopped = asyncio.Event()
        self.asked: list[dict[str, Any]] = []
        self._approve = approve
        self._terminal = sys.stdin.isatty() and sys.stderr.isatty()
        self._tasks: set[asyncio.Task[None]] = set()

    def say(self, text: str) -> None:
        print(f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)

    def begin(self, run_id: str) -> None:
        self.say(f"run {run_id}")

    def __call__(self, run_id: str, event: Event | Ask) -> None:
        match event:
            case Answer():
                calls = ", ".join(call.tool for call in event.calls)
                self.say(f"{event.turn:>3}  {line(event.text)}{f'  -> {calls}' if calls else ''}")
            case Observation():
                mark = "!" if event.is_error else "="
                self.say(f"     {mark} {event.tool}: {line(event.text)}")
            case Notice():
                self.say(f"     * {line(event.text)}")
            case Compaction():
                self.say("     * history compacted")
            case Ask():
                self._consent(run_id, event)
            case Task():
                pass

    def _consent(self, run_id: str, ask: Ask) -> None:
        self.say(f"     ? {ask.tool} {line(msgspec.json.encode(ask.arguments).decode())}: {ask.reason}")
        if self._approve == "stop":
            self.asked.append(msgspec.to_builtins(ask))
            self.stopped.set()
        elif self._approve == "deny":
            self._later(self._answer(run_id, ask, False))
        elif self._terminal and self._approve == "ask":
            self._later(self._ask(run_id, ask))
        else:
            self.say(f"       answer with: mortice agent approve {run_id}   (or --deny)")

    async def _ask(self, run_id: str, ask: Ask) -> None:
        said = await asyncio.to_thread(input, "       allow this call? [y/N] ")
        await self._answer(run_id, ask, said.strip().lower() in ("y", "yes"))

    async def _answer(self, run_id: str, ask: Ask, approve: bool) -> None:
        """The question is written down before it is waited for, so its topic can be looked up."""
        assert self.agents is not None
        while True:
            for step in reversed(await self.agents.durable.steps(run_id)):
                if step.name.startswith("ask ") and step.output.get("digest") == ask.digest:
                    topic = f"approve {step.name.removeprefix('ask ')}"
                    message = {"approve": approve, "digest": ask.digest, "by": "terminal"}
                    self.agents.log.note(run_id, "consent", tool=ask.tool, **message)
                    return await self.agents.durable.send(run_id, topic, message)
            await asyncio.sleep(0.05)

    def _later(self, job: Any) -> None:
        task = asyncio.get_running_loop().create_task(job)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # What MCP servers ask.

    async def form(self, form: "Form") -> "tuple[Choice, dict[str, Any]]":
        if not self._terminal:
            return "cancel", {}
        self.say(f"     ? the server {form.server} asks: {form.message}")
        content: dict[str, Any] = {}
        for name, field in form.fields.items():
            said = await asyncio.to_thread(
                input, f"       {field.get('title') or name} ({_kind(field)}; empty: none) "
            )
            if said.strip():
                content[name] = _typed(said.strip(), field)
            elif name in form.required and "default" not in field:
                return "decline", {}
        return "accept", content

    async def url(self, server: str, message: str, url: str) -> "Choice":
        if not self._terminal:
            return "cancel"
        self.say(f"     ? the server {server} asks you to open {url}: {message}")
        said = await asyncio.to_thread(input, "       done? [y/N] ")
        return "accept" if said.strip().lower() in ("y", "yes") else "decline"

    async def sample(self, server: str, messages: list[dict[str, Any]]) -> bool:
        if not self._terminal:
            return False
        self.say(f"     ? the server {server} wants to ask the model: {line(messages[-1]['content'])}")
        said = await asyncio.to_thread(input, "       allow? [y/N] ")
        return said.strip().lower() in ("y", "yes")


def print_result(run_id: str, result: Result, *, as_json: bool, resumed: bool) -> None:
    if as_json:
        document = {"id": run_id, "resumed": resumed, **msgspec.to_builtins(result)}
        typer.echo(msgspec.json.encode(document).decode())
        return
    typer.echo(result.output)
    spent = result.spent
    note = f"{result.state}: {result.reason}\n" if result.reason else ""
    text = f"{note}{spent.turns} turns, {spent.calls} calls, {spent.tokens} tokens, {spent.seconds:.1f} s at work"
    print(text, file=sys.stderr)


def write_files(artifacts: Artifacts, files: tuple[File, ...], folder: Path) -> None:
    """Names are made safe and unique."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        name = Path(file.name).name.lstrip(".") or "file"
        path, number = folder / name, 1
        while path.exists() and path.read_bytes() != artifacts.get(file.uri):
            path, number = folder / f"{number}-{name}", number + 1
        path.write_bytes(artifacts.get(file.uri))


def line(text: str) -> str:
    """One line, without control characters that a terminal would obey."""
    flat = " ".join(
        "".join(c if c.isprintable() or c in " \n\t" else "?" for c in text[: _WIDTH * 4]).split()
    )
    return flat if len(flat) <= _WIDTH else flat[: _WIDTH - 3] + "..."


def _kind(field: dict[str, Any]) -> str:
    return "|".join(map(str, field["enum"])) if "enum" in field else str(field.get("type", "text"))


def _typed(said: str, field: dict[str, Any]) -> Any:
    match field.get("type"):
        case "integer":
            return int(said)
        case "number":
            return float(said)
        case "boolean":
            return said.lower() in ("y", "yes", "true", "1")
    return said
