"""One sequence on its way to the client: token ids in, text, reasoning and tool calls out."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mortice.specs.request import Delta, TokenLogprob
from mortice.text.call_grammar import END_THINK, THINK, Reasoning
from mortice.text.reasoning import ReasoningSplitter
from mortice.text.service import TextService
from mortice.text.stream import TextStream
from mortice.text.tools import TOOL_MARKS, CallArguments, CallStart, Content, ToolCallParser, ToolFormat


@dataclass(slots=True)
class Piece:
    """What is new of one sequence. Pieces of a sequence may be merged; nothing is lost but where they met."""

    index: int
    content: str = ""
    reasoning: str = ""
    calls: list[CallStart | CallArguments] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    num_reasoning_tokens: int = 0
    num_hidden: int = 0  # trailing token_ids that are not part of the text: the stop token
    logprobs: list[TokenLogprob] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)  # one weight version a token id
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None  # the stop string or the id of the stop token that ended it

    def merge(self, later: "Piece") -> None:
        self.content += later.content
        self.reasoning += later.reasoning
        self.calls += later.calls
        self.token_ids += later.token_ids
        self.num_reasoning_tokens += later.num_reasoning_tokens
        self.num_hidden = later.num_hidden
        self.logprobs += later.logprobs
        self.versions += later.versions
        self.prompt_logprobs = self.prompt_logprobs or later.prompt_logprobs
        self.finish_reason = later.finish_reason
        self.stop_reason = later.stop_reason

    def says_something(self) -> bool:
        return bool(self.content or self.reasoning or self.calls or self.finish_reason)


@dataclass(frozen=True, slots=True)
class VoiceSettings:
    """How the sequences of a request become text; the same for all of them."""

    text: TextService
    stop: Sequence[str] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    reasoning: Reasoning = "none"
    tool_format: ToolFormat | None = None  # None: no tool may be called, so nothing is taken for a call

    def stream(self) -> TextStream:
        marks = TOOL_MARKS[self.tool_format] if self.tool_format else ()
        thoughts = () if self.reasoning == "none" else (THINK, END_THINK)
        return self.text.stream(
            stop=self.stop,
            include_stop_str_in_output=self.include_stop,
            skip_special_tokens=self.skip_special_tokens,
            keep=(*marks, *thoughts),
        )


class Voice:
    """Hears the deltas of one sequence until it has finished."""

    def __init__(self, index: int, settings: VoiceSettings) -> None:
        self.index = index
        self.done = False
        self._include_stop = settings.include_stop
        self._stream = settings.stream()
        self._splitter = None if settings.reasoning == "none" else ReasoningSplitter(settings.reasoning)
        self._parser = None if settings.tool_format is None else ToolCallParser(settings.tool_format)
        self._num_unsorted = 0  # tokens of which it is not known yet whether they are reasoning

    def hear(self, delta: Delta) -> Piece:
        """What the delta adds. A stop string ends the sequence here, and later tokens are not counted."""
        token_ids = delta.token_ids
        piece = Piece(self.index)
        hide = delta.stop_token_id is not None and not self._include_stop
        stream = self._stream
        before = stream.num_tokens_used
        text = stream.push(token_ids[:-1] if hide else token_ids)
        finish: str | None = delta.finish_reason
        if stream.stopped is None and finish is not None:
            text += stream.finish()
        used = stream.num_tokens_used - before
        if stream.stopped is not None:
            finish = "stop"
            piece.stop_reason = stream.stopped
        elif hide:
            used += 1
            piece.num_hidden = 1
        if finish is not None:
            self.done = True
            if piece.stop_reason is None:
                piece.stop_reason = delta.stop_token_id
        piece.token_ids = token_ids if used == len(token_ids) else token_ids[:used]
        piece.versions = [delta.weight_version] * used
        if delta.logprobs is not None:
            piece.logprobs = delta.logprobs[:used]
        piece.prompt_logprobs = delta.prompt_logprobs
        self._sort(piece, text, used)
        if finish == "stop" and self._parser is not None and self._parser.num_calls:
            finish = "tool_calls"
        piece.finish_reason = finish
        return piece

    def _sort(self, piece: Piece, text: str, used: int) -> None:
        """Put the text where it belongs: reasoning, content or tool calls."""
        if self._splitter is not None:
            text = self._think(piece, self._splitter, text, used)
        if self._parser is not None:
            events = self._parser.feed(text)
            if self.done:
                events += self._parser.finish()
            text = "".join(event.text for event in events if isinstance(event, Content))
            piece.calls = [event for event in events if not isinstance(event, Content)]
        piece.content = text

    def _think(self, piece: Piece, splitter: ReasoningSplitter, text: str, used: int) -> str:
        split = splitter.feed(text)
        reasoning, content = split.reasoning, split.content
        if self.done:
            rest = splitter.finish()
            reasoning, content = reasoning + rest.reasoning, content + rest.content
        self._num_unsorted += used
        if reasoning:
            piece.num_reasoning_tokens = self._num_unsorted
        if reasoning or content:
            self._num_unsorted = 0
        piece.reasoning = reasoning
        return content
