"""Text work for the edge, done in processes that can be killed.

Two lanes, each a process of its own: `text` for tokenising and templates, `grammar` for compiling grammars
(started with the first one), so that a hostile schema delays other schemas at most. The edge itself keeps the
table of token bytes and decodes with it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mortice.specs.errors import RequestError
from mortice.text.call_grammar import Reasoning
from mortice.text.calls import Call, ChatInput, EncodeCall, GrammarCall, GrammarInput, Ready, RenderCall
from mortice.text.lane import Lane
from mortice.text.reasoning import reasoning_of
from mortice.text.stream import TextStream
from mortice.text.tools import ToolFormat, tool_format_of
from mortice.text.vocabulary import Vocabulary

MAX_TEXT_BYTES = 4 << 20  # of one call: prompts or messages with their tools
MAX_GRAMMAR_BYTES = 256 << 10  # schemas, tools and expressions of one request together
MAX_DEPTH = 64  # levels of objects and lists in what is sent
_CACHE_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An error to be raised again. The error itself is not kept: it holds the whole request by its traceback."""

    message: str
    param: str | None


class TextService:
    """`start` before use; then any number of calls at once. Every call raises RequestError for the request's
    faults."""

    def __init__(
        self,
        model: str | Path,
        *,
        text_limit_s: float = 10.0,
        grammar_limit_s: float = 5.0,
        memory_bytes: int = 1 << 30,
    ) -> None:
        """`memory_bytes`: how far one worker process may grow beyond what its model takes."""
        self._text = Lane(
            "text", str(model), limit_s=text_limit_s, memory_bytes=memory_bytes, max_waiting=1024
        )
        self._grammar = Lane(
            "grammar", str(model), limit_s=grammar_limit_s, memory_bytes=memory_bytes, max_waiting=64
        )
        self._grammars: OrderedDict[bytes, str | _Refusal | None] = OrderedDict()
        self._cached_bytes = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._ready: Ready | None = None
        self.vocabulary = Vocabulary([], frozenset())

    async def start(self) -> None:
        """Start the text worker (well under a second). Raises RequestError (param "model") for a model it
        cannot read."""
        self._ready = ready = await self._text.start()
        self.vocabulary = Vocabulary(ready.token_bytes, frozenset(ready.special_ids), ready.lead_space)

    async def stop(self) -> None:
        """End the workers; calls under way fail. May be called twice."""
        await self._text.stop()
        await self._grammar.stop()

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    @property
    def eos_token_ids(self) -> list[int]:
        return self._model.eos_token_ids

    @property
    def special_texts(self) -> dict[str, int]:
        """Special tokens by their text."""
        return self._model.special_texts

    @property
    def chat_template(self) -> str | None:
        return self._model.chat_template

    @property
    def tool_format(self) -> ToolFormat:
        """The form in which this model writes calls when it is free to (bound by a grammar, it is always
        hermes)."""
        return tool_format_of(self._model.tool_template)

    def reasoning_of(self, prompt_ids: Sequence[int]) -> Reasoning:
        """Whether the answer to this prompt may begin with a thought; for grammars and
        `ReasoningSplitter`."""
        end = self.vocabulary.decode(prompt_ids[-8:], skip_special_tokens=False)
        return reasoning_of(self._model.chat_template, end)

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return (await self.encode_many([text], add_special_tokens))[0]

    async def encode_many(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        body = self._body(EncodeCall(list(texts), add_special_tokens), "prompt", MAX_TEXT_BYTES)
        return (await self._text.call(body)).ids

    async def render_chat(self, chat: ChatInput) -> list[int]:
        """The token ids of the prompt that the model's chat template makes of these messages."""
        for name in ("messages", "tools", "chat_template_kwargs"):
            check_depth(getattr(chat, name), name)
        body = self._body(RenderCall(chat), "messages", MAX_TEXT_BYTES)
        return (await self._text.call(body)).ids[0]

    async def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        return self.vocabulary.decode(ids, skip_special_tokens)

    async def compile_grammar(self, request: GrammarInput) -> str | None:
        """The grammar for `SamplingParams.grammar`, None where the output is free. Answers are kept for equal
        requests.

        Raises RequestError naming the field, with code "grammar_timeout" for one that takes too long to
        compile.
        """
        for name in ("response_format", "tools", "structured_outputs", "guided_json"):
            check_depth(getattr(request, name), name)
        body = self._body(GrammarCall(request), _first_set(request), MAX_GRAMMAR_BYTES)
        if body in self._grammars:
            self._grammars.move_to_end(body)
            return _result(self._grammars[body])
        try:
            grammar = (await self._grammar.call(body)).grammar
        except RequestError as error:
            param = error.param or _first_set(request)
            if error.code is None:  # malformed, which it will always be; a timeout may not come again
                self._remember(body, _Refusal(error.message, param))
            raise RequestError(error.message, param=param, code=error.code) from error
        self._remember(body, grammar)
        return grammar

    def stream(
        self,
        *,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        keep: Iterable[str] = (),
    ) -> TextStream:
        """The text of one sequence. `keep`: special tokens, by their text, that are shown nevertheless."""
        texts = self.special_texts
        return TextStream(
            self.vocabulary,
            stop=stop,
            include_stop_str_in_output=include_stop_str_in_output,
            skip_special_tokens=skip_special_tokens,
            keep_ids=[texts[text] for text in keep if text in texts],
        )

    @property
    def _model(self) -> Ready:
        assert self._ready is not None, "start() comes first"
        return self._ready

    def _body(self, call: Call, param: str, max_bytes: int) -> bytes:
        try:
            body = self._encoder.encode(call)
        except UnicodeEncodeError as error:
            raise RequestError(
                "a text holds a lone surrogate (\\ud800 to \\udfff), which is no character", param=param
            ) from error
        except OverflowError as error:
            raise RequestError("an integer is too large: 64 bits at most", param=param) from error
        if len(body) > max_bytes:
            raise RequestError(f"{len(body)} bytes are more than the limit of {max_bytes}", param=param)
        return body

    def _remember(self, body: bytes, result: str | _Refusal | None) -> None:
        self._grammars[body] = result
        self._cached_bytes += _kept_bytes(body, result)
        while self._cached_bytes > _CACHE_BYTES:
            self._cached_bytes -= _kept_bytes(*self._grammars.popitem(last=False))


def check_depth(value: Any, param: str) -> None:
    """Raise RequestError where objects and lists lie more than MAX_DEPTH deep in each other."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise RequestError(f"{param} is nested more than {MAX_DEPTH} levels deep", param=param)


def _first_set(request: GrammarInput) -> str:
    names = (
        "response_format",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "structured_outputs",
    )
    return next((name for name in names if getattr(request, name) is not None), "tools")


def _result(kept: str | _Refusal | None) -> str | None:
    if isinstance(kept, _Refusal):
        raise RequestError(kept.message, param=kept.param)
    return kept


def _kept_bytes(body: bytes, result: str | _Refusal | None) -> int:
    return len(body) + len(result if isinstance(result, str) else "") + 256
