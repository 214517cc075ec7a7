"""A decision log, one JSON line an event with the answer it got, and its replay: the same events must get the same answers.

First line: the `Setup`. A log that was cut short ends in a broken line, which is said, not skipped.
"""

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import msgspec

from mortice.sched.answers import Answer
from mortice.sched.events import Event
from mortice.sched.plane import ControlPlane
from mortice.sched.setup import Setup
from mortice.specs.errors import RequestError

MAX_LINE_BYTES = 16 << 20


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    event: Event
    answer: Answer | None = None


class Journal:
    """Writes a log; give `write` to the ControlPlane as its journal."""

    def __init__(self, path: str | Path, setup: Setup) -> None:
        self._encoder = msgspec.json.Encoder()
        self._file: IO[bytes] = Path(path).open("wb")  # noqa: SIM115 - closed by close()
        self._file.write(self._encoder.encode(setup) + b"\n")

    def write(self, event: Event, answer: Answer | None) -> None:
        self._file.write(self._encoder.encode(Entry(event, answer)) + b"\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Difference(msgspec.Struct, frozen=True):
    """A line whose answer came out differently."""

    line: int
    event: Event
    recorded: Answer | None
    replayed: Answer | None


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    num_events: int
    num_answers: int
    differences: list[Difference]  # the first hundred
    num_differences: int


def replay(path: str | Path) -> Replay:
    """Run the log's events through a fresh control plane. Raises RequestError naming the line that cannot be read."""
    encode = msgspec.json.encode
    lines = _lines(Path(path))
    try:
        plane = ControlPlane(msgspec.json.decode(next(lines)[1], type=Setup))
    except StopIteration:
        raise RequestError(f"{path} is empty", param="log") from None
    except msgspec.MsgspecError as error:
        raise RequestError(
            f"{path}, line 1: not the set-up of a decision log: {error}", param="log"
        ) from error
    decoder = msgspec.json.Decoder(Entry)
    events = answers = wrong = 0
    found: list[Difference] = []
    for number, line in lines:
        try:
            entry = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise RequestError(f"{path}, line {number}: {error}", param="log") from error
        events += 1
        answer = plane.hear(entry.event)
        if answer is None and entry.answer is None:
            continue
        answers += 1
        if encode(answer) != encode(entry.answer):
            wrong += 1
            if len(found) < 100:
                found.append(Difference(number, entry.event, entry.answer, answer))
    return Replay(num_events=events, num_answers=answers, differences=found, num_differences=wrong)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES):
                number += 1
                if not line.endswith(b"\n"):
                    raise RequestError(f"{path}, line {number}: the line is cut short", param="log")
                yield number, line
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}", param="log") from error
