"""Finds tool calls in text that is still being written.

Three forms of calls, each with as many calls as the model cares to write:

    hermes   text <tool_call>{"name": "f", "arguments": {...}}</tool_call> ...
    llama3   {"name": "f", "parameters": {...}}; ...          perhaps after <|python_tag|>, and nothing else
    mistral  text [TOOL_CALLS][{"name": "f", "arguments": {...}}, ...]   or   [TOOL_CALLS]f[ARGS]{...} ...

Arguments are given out as they come. What looked like a call and turns out not to be one is shown as content.
"""

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from mortice.text.call_reader import CallReader, Failed, NamedReader, overlap

ToolFormat = Literal["hermes", "llama3", "mistral"]
TOOL_MARKS: dict[
    str, tuple[str, ...]
] = {  # special tokens that a parser must see: TextService.stream(keep=...)
    "hermes": ("<tool_call>", "</tool_call>"),
    "llama3": ("<|python_tag|>",),
    "mistral": ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
}
_CLOSE = "</tool_call>"


@dataclass(frozen=True, slots=True)
class Content:
    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    index: int  # of the call in this answer, from 0
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    index: int
    delta: str  # JSON text; all deltas of an index make the arguments


Event = Content | CallStart | CallArguments


def tool_format_of(template: str | None) -> ToolFormat:
    """The form that a chat template teaches; hermes where it says nothing of calls."""
    if template and "[TOOL_CALLS]" in template:
        return "mistral"
    if template and "<tool_call>" not in template and ("<|python_tag|>" in template or "ipython" in template):
        return "llama3"
    return "hermes"


class ToolCallParser:
    """Feed it the text of one answer piece by piece, then `finish`."""

    def __init__(self, form: ToolFormat = "hermes") -> None:
        self.num_calls = 0
        self._form = form
        self._mark = TOOL_MARKS[form][0]
        self._buffer = ""
        self._raw = ""  # of the call under way: shown as content if it is none
        self._reader: CallReader | NamedReader | None = None
        self._state: Callable[[], bool] = self._first_brace if form == "llama3" else self._outside
        self._events: list[Event] = []
        self._ended = False

    def feed(self, text: str) -> list[Event]:
        """What is certain after this piece."""
        self._buffer += text
        while self._state():
            pass
        events, self._events = self._events, []
        return events

    def finish(self) -> list[Event]:
        """The rest, when the text is over. Arguments of a call that was cut off stay as they are."""
        self._ended = True
        events = self.feed("")
        if self._state == self._failed or (self._reader is not None and not self._reader.started):
            self._whole(self._raw, "")
        elif self._buffer.strip() or not self.num_calls:
            self._content(self._buffer)
        self._buffer = ""
        return [*events, *self._events]

    # Each state takes what it can from the buffer; True means that the next state should look at the rest.

    def _outside(self) -> bool:
        """Running text. Blanks before a mark belong to the mark."""
        at = self._buffer.find(self._mark)
        if at >= 0:
            before = self._buffer[:at].rstrip()
            if before:
                self._content(before)
            self._raw = self._buffer[len(before) : at] + self._mark
            self._buffer = self._buffer[at + len(self._mark) :]
            self._open()
            return True
        shown = self._buffer[: len(self._buffer) - overlap(self._buffer, self._mark)].rstrip()
        if shown:
            self._content(shown)
            self._buffer = self._buffer[len(shown) :]
        return False

    def _first_brace(self) -> bool:
        """Llama writes calls and nothing else: the first character tells."""
        text = self._buffer.lstrip()
        if not text or (text != self._mark and self._mark.startswith(text)):
            return False
        marked = text.startswith(self._mark)
        rest = text.removeprefix(self._mark).lstrip(" \n;" if self.num_calls else None)
        if not rest:
            return False
        if not rest.startswith("{"):
            self._state = self._plain
            return True
        self._raw = self._mark if marked else ""
        self._buffer = rest
        self._open()
        return True

    def _plain(self) -> bool:
        if self._buffer and (self._buffer.strip() or not self.num_calls):
            self._content(self._buffer)
        self._buffer = ""
        return False

    def _open(self) -> None:
        self._reader = CallReader()
        self._state = self._list if self._form == "mistral" else self._call

    def _list(self) -> bool:
        """What follows [TOOL_CALLS]: a list of calls, or a name and its arguments."""
        text = self._buffer.lstrip()
        if not text:
            return False
        if text.startswith("["):
            self._raw += self._buffer[: len(self._buffer) - len(text) + 1]
            self._buffer = text[1:]
        else:
            self._reader = NamedReader()
        self._state = self._call
        return True

    def _call(self) -> bool:
        assert self._reader is not None
        before = self._buffer
        try:
            name, delta, done, self._buffer = self._reader.read(before)
        except Failed:
            self._state = self._failed
            return True
        self._raw += before[: len(before) - len(self._buffer)]
        if name is not None:
            self._events.append(CallStart(self.num_calls, f"call_{uuid.uuid4().hex[:24]}", name))
            self.num_calls += 1
        if delta:
            self._events.append(CallArguments(self.num_calls - 1, delta))
        if not done:
            return False
        self._reader = None
        self._state = {"hermes": self._close, "llama3": self._first_brace, "mistral": self._next}[self._form]
        return True

    def _close(self) -> bool:
        """After a Hermes call: up to the closing mark there should be blanks only."""
        at = self._buffer.find(_CLOSE)
        if at < 0:
            text = self._buffer.strip()
            if not text or _CLOSE.startswith(text):
                if self._ended:
                    self._buffer = ""
                return False
            self._state = self._outside  # the model forgot to close
            return True
        if self._buffer[:at].strip():
            self._content(self._buffer[:at])
        self._buffer = self._buffer[at + len(_CLOSE) :]
        self._state = self._outside
        return True

    def _next(self) -> bool:
        """After a Mistral call: another one, the end of the list, or text."""
        text = self._buffer.lstrip(" \n,")
        if not text:
            if self._ended:
                self._buffer = ""
            return False
        self._buffer = text
        if text.startswith("{"):
            self._raw = ""
            self._reader, self._state = CallReader(), self._call
        else:
            self._buffer = text.removeprefix("]")
            self._state = self._outside
        return True

    def _failed(self) -> bool:
        """Not the usual order of keys, or no call at all: a Hermes call is read whole, the others have no end
        mark."""
        self._reader = None
        if self._form != "hermes":
            self._content(self._raw)
            self._raw = ""
            self._state = self._plain
            return True
        at = self._buffer.find(_CLOSE)
        if at < 0:
            return False
        self._raw += self._buffer[:at]
        self._buffer = self._buffer[at + len(_CLOSE) :]
        self._whole(self._raw, _CLOSE)
        self._state = self._outside
        return True

    def _whole(self, raw: str, close: str) -> None:
        """A call read in one piece, or content."""
        call = _parse_call((raw if close else raw + self._buffer).strip().removeprefix(self._mark))
        if call is None:
            self._content(raw + (close or self._buffer))
            return
        name, arguments = call
        self._events.append(CallStart(self.num_calls, f"call_{uuid.uuid4().hex[:24]}", name))
        self._events.append(CallArguments(self.num_calls, arguments))
        self.num_calls += 1

    def _content(self, text: str) -> None:
        if text:
            self._events.append(Content(text))


def _parse_call(text: str) -> tuple[str, str] | None:
    try:
        call: Any = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return (call["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None
