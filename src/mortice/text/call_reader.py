"""Reads one tool call, and marks, from a text that may still grow."""

import json
import re

_WORD = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_PART_OF_WORD = re.compile(r'"(?:[^"\\\n]|\\.)*\\?')


def overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return size
    return 0


class Failed(Exception):
    """The text is no call in the order the reader knows."""


class CallReader:
    """{"name": "f", "arguments": {...}}, also with "parameters" in place of "arguments"."""

    def __init__(self) -> None:
        self.started = False  # the name is out
        self._arguments = _ObjectEnd()
        self._tail = False

    def read(self, text: str) -> tuple[str | None, str, bool, str]:
        """(name if it is known since this call, more of the arguments, call is complete, text not taken).

        Raises Failed if the text cannot become a call; nothing was taken then.
        """
        name = None
        if not self.started:
            head = _head(text)
            if head is None:
                return None, "", False, text
            name, taken = head
            self.started = True
            text = text[taken:]
        delta = ""
        if not self._tail:
            size = self._arguments.scan(text)
            delta, text = text[:size], text[size:]
            self._tail = self._arguments.ended
        if not self._tail:
            return name, delta, False, text
        rest = text.lstrip()
        if not rest:
            return name, delta, False, text
        return name, delta, True, rest.removeprefix("}")


class NamedReader:
    """f[ARGS]{...} and f{...}, Mistral's later form; an id between the two is passed over."""

    def __init__(self) -> None:
        self.started = False
        self._arguments = _ObjectEnd()

    def read(self, text: str) -> tuple[str | None, str, bool, str]:
        """As `CallReader.read`."""
        name = None
        if not self.started:
            head, brace, _ = text.partition("{")
            if not brace:
                if len(head) > 256:
                    raise Failed
                return None, "", False, text
            words = re.split(r"\[(?:ARGS|CALL_ID)\]", head)
            if not re.fullmatch(r"\s*[A-Za-z0-9_.-]{1,64}\s*", words[0]):
                raise Failed
            name = words[0].strip()
            self.started = True
            text = text[len(head) :]
        size = self._arguments.scan(text)
        return name, text[:size], self._arguments.ended, text[size:]


class _ObjectEnd:
    """Finds the end of a JSON object, piece by piece."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def scan(self, text: str) -> int:
        """How many characters of `text` belong to the object."""
        for index, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.ended = True
                    return index + 1
        return len(text)


def _head(text: str) -> tuple[str, int] | None:
    """The name, and the length up to the arguments' brace; None while the text is too short to tell."""
    at, name = 0, ""
    for part in ("{", '"name"', ":", "string", ",", "key", ":", "object"):
        while at < len(text) and text[at] in " \t\r\n":
            at += 1
        rest = text[at:]
        if part == "object":
            if rest and rest[0] != "{":
                raise Failed
            return (name, at) if rest else None
        if part in ("string", "key"):
            word = _WORD.match(text, at)
            if word is None:
                if rest and not _PART_OF_WORD.fullmatch(rest):
                    raise Failed
                return None
            if part == "key" and word[0] not in ('"arguments"', '"parameters"'):
                raise Failed
            if part == "string":
                name = _unquoted(word[0])
            at = word.end()
            continue
        if not rest.startswith(part):
            if part.startswith(rest):
                return None
            raise Failed
        at += len(part)
    return None


def _unquoted(word: str) -> str:
    try:
        return str(json.loads(word))
    except ValueError as error:
        raise Failed from error
