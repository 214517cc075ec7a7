"""Splits what a model thinks from what it says: <think>thought</think> answer, while it is being written."""

from dataclasses import dataclass

from mortice.text.call_grammar import END_THINK, THINK, Reasoning
from mortice.text.call_reader import overlap


@dataclass(frozen=True, slots=True)
class Split:
    """The new text of both parts; either may be empty."""

    reasoning: str = ""
    content: str = ""


def reasoning_of(template: str | None, prompt_end: str) -> Reasoning:
    """Whether the answer may begin with a thought. `prompt_end`: the last characters of the prompt's text."""
    end = prompt_end.rstrip()
    if end.endswith(THINK):
        return "open"
    if end.endswith(END_THINK) or not template or THINK not in template:
        return "none"
    return "maybe"


class ReasoningSplitter:
    """Feed it the text of one answer piece by piece, then `finish`. Blanks around the marks belong to the
    marks."""

    def __init__(self, reasoning: Reasoning = "maybe") -> None:
        self._buffer = ""
        self._place = {"none": "content", "open": "reasoning", "maybe": "start"}[reasoning]
        self._strip = reasoning == "open"  # blanks before the next character are dropped

    def feed(self, text: str) -> Split:
        """What is certain after this piece."""
        self._buffer += text
        if self._place == "start":
            self._start()
        reasoning = self._reason() if self._place == "reasoning" else ""
        content = self._take(len(self._buffer)) if self._place == "content" else ""
        return Split(reasoning, content)

    def finish(self) -> Split:
        """The rest, when the text is over. A thought that was cut off stays a thought."""
        rest, self._buffer = self._buffer, ""
        return Split(reasoning=rest) if self._place == "reasoning" else Split(content=rest)

    def _start(self) -> None:
        text = self._buffer.lstrip()
        if text.startswith(THINK):
            self._buffer = text[len(THINK) :]
            self._place, self._strip = "reasoning", True
        elif not THINK.startswith(text):
            self._place = "content"

    def _reason(self) -> str:
        at = self._buffer.find(END_THINK)
        if at >= 0:
            thought = self._take(at).rstrip()
            self._buffer = self._buffer[len(END_THINK) :]
            self._place, self._strip = "content", True
            return thought
        # What may be blanks before the mark, or the mark's beginning, waits.
        certain = self._buffer[: len(self._buffer) - overlap(self._buffer, END_THINK)]
        return self._take(len(certain.rstrip()))

    def _take(self, size: int) -> str:
        taken, self._buffer = self._buffer[:size], self._buffer[size:]
        if self._strip:
            taken = taken.lstrip()
            self._strip = not taken
        return taken
