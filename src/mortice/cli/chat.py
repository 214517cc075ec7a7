"""`mortice chat`: talk to a model in the terminal, or pipe prompts in, one a line."""

import asyncio
import os
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Annotated

import typer

from mortice.bench.chat import HELP, Conversation, speed
from mortice.bench.endpoint import Endpoint
from mortice.bench.loop import new_loop
from mortice.specs.errors import RequestError

readline: ModuleType | None
try:
    readline = import_module("readline")
except ImportError:  # no readline on Windows: lines are then read without history
    readline = None

_HISTORY_LINES = 1000


def chat(
    base_url: Annotated[str, typer.Option(help="Up to /v1.")] = "http://127.0.0.1:8123/v1",
    model: Annotated[str | None, typer.Option(help="Default: the first the server lists.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.", min=1)] = 1024,
    temperature: Annotated[float, typer.Option(help="0: greedy.", min=0.0)] = 0.7,
    api_key_env: Annotated[
        str, typer.Option(help="Environment variable with the API key.")
    ] = "OPENAI_API_KEY",
    timeout: Annotated[float, typer.Option(help="Seconds until an answer has failed.", min=0.001)] = 600.0,
) -> None:
    """Talk to a model. Answers go to stdout as they come, TTFT and tokens/s of each to stderr.

    With stdin piped, each line is a prompt of the same conversation, and a failed answer makes the exit code
    1.
    """
    endpoint = Endpoint(
        base_url, model or "", api="chat", api_key=os.environ.get(api_key_env), timeout_s=timeout
    )
    talk = Conversation(endpoint, system=system, max_tokens=max_tokens, temperature=temperature)
    at_terminal = sys.stdin.isatty()
    num_failed = 0
    with asyncio.Runner(loop_factory=new_loop) as runner:
        name = runner.run(talk.begin())
        if at_terminal:
            _aside(f"{name} at {endpoint.base_url}. {HELP}")
        for line in _lines(at_terminal):
            if line.startswith("/"):
                if not _obey(line, talk):
                    break
            elif not _answer(line, talk, runner):
                num_failed += 1
        endpoint.close()
    if num_failed and not at_terminal:
        raise typer.Exit(1)


def _answer(line: str, talk: Conversation, runner: asyncio.Runner) -> bool:
    """Ask and print; False if the answer failed. Ctrl-C stops the answer, not the conversation."""
    try:
        timeline = runner.run(talk.ask(line, _say))
    except KeyboardInterrupt:
        _say("\n")
        _aside("stopped; this turn is forgotten")
        return True
    if timeline.chunk_s:
        _say("\n")
    if not timeline.ok:
        _aside(f"error: {timeline.failure}: {timeline.detail}")
        return False
    _aside(speed(timeline))
    return True


def _obey(line: str, talk: Conversation) -> bool:
    """Carry out a command; False if it ends the conversation."""
    verb, _, rest = line.partition(" ")
    match verb:
        case "/quit" | "/exit":
            return False
        case "/reset":
            talk.reset()
            _aside("a new conversation")
        case "/save":
            _save(rest.strip(), talk)
        case "/help":
            _aside(HELP)
        case _:
            _aside(f"no command {verb}. {HELP}")
    return True


def _save(path: str, talk: Conversation) -> None:
    if not path:
        _aside("/save needs a file name")
        return
    try:
        talk.save(path)
    except RequestError as error:  # a mistyped path must not cost the conversation
        _aside(f"error: {error}")
    else:
        _aside(f"{len(talk.messages)} messages in {path}")


def _lines(at_terminal: bool) -> Iterator[str]:
    """Lines to act on, without empty ones; from a terminal with history and editing."""
    if not at_terminal:
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    _load_history()
    try:
        while True:
            try:
                line = input("> ").strip()
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                print(file=sys.stderr)
                continue
            if line:
                yield line
    finally:
        _keep_history()


def _history_file() -> Path:
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "mortice" / "chat_history"


def _load_history() -> None:
    if readline is not None and _history_file().exists():
        readline.read_history_file(_history_file())


def _keep_history() -> None:
    if readline is None:
        return
    try:
        _history_file().parent.mkdir(parents=True, exist_ok=True)
        readline.set_history_length(_HISTORY_LINES)
        readline.write_history_file(_history_file())
    except OSError as error:
        _aside(f"the history was not kept: {error}")


def _say(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _aside(text: str) -> None:
    """A line that is not part of any answer: on stderr, dim where that is a terminal."""
    print(f"\033[2m{text}\033[0m" if sys.stderr.isatty() else text, file=sys.stderr)
