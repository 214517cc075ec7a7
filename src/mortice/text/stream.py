"""Token ids in, text out, one piece at a time: what a client may see of a sequence still being written."""

import codecs
from collections.abc import Iterable, Sequence

from mortice.specs.errors import RequestError
from mortice.text.vocabulary import Vocabulary

MAX_STOP = 4  # stop strings a request
MAX_STOP_BYTES = 1024  # UTF-8 bytes of one stop string


def check_stop(stop: str | Sequence[str] | None) -> list[str]:
    """The stop strings of a request as a list. Raises RequestError (param "stop") for what cannot be
    honoured."""
    strings = [] if stop is None else [stop] if isinstance(stop, str) else list(stop)
    if len(strings) > MAX_STOP:
        raise RequestError(f"at most {MAX_STOP} stop strings, not {len(strings)}", param="stop")
    for text in strings:
        if not isinstance(text, str) or not text:
            raise RequestError("stop strings must be non-empty strings", param="stop")
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise RequestError(
                "a stop string holds a lone surrogate, which is no character", param="stop"
            ) from error
        if size > MAX_STOP_BYTES:
            raise RequestError(f"a stop string has {size} bytes, more than {MAX_STOP_BYTES}", param="stop")
    return list(dict.fromkeys(strings))


class TextStream:
    """The text of one sequence as its tokens come.

    Held back: bytes that do not yet make a character, and text that may turn out to be the beginning of a
    stop string. The sequence stops at the stop string that is complete first (of those that end together, the
    longest), however the tokens were cut into pushes.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        stop: Sequence[str] = (),
        include_stop_str_in_output: bool = False,
        skip_special_tokens: bool = True,
        keep_ids: Iterable[int] = (),
        at_start: bool = False,
    ) -> None:
        """`keep_ids`: special tokens shown even where special tokens are skipped (marks of tool calls).

        `at_start`: no text stands before the first token, so the space that encoding puts there is taken off;
        a stream that continues a prompt keeps it.
        """
        self.stopped: str | None = None  # the stop string that ended the text
        self.num_tokens_used = 0  # tokens pushed, up to and including the one that completed the stop string
        self._vocabulary = vocabulary
        self._table = vocabulary.token_bytes
        self._skip = vocabulary.special_ids.difference(keep_ids) if skip_special_tokens else frozenset()
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._matchers = [_Matcher(text) for text in check_stop(stop)]
        self._include_stop = include_stop_str_in_output
        self._held = ""
        self._strip = at_start and vocabulary.lead_space

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is certain now and was not before. After a stop string nothing more comes."""
        out = ""
        for token_id in token_ids:
            if self.stopped is not None:
                break
            self.num_tokens_used += 1
            if token_id not in self._skip and 0 <= token_id < len(self._table):
                out += self._pass(self._decode(self._table[token_id]))
        return out

    def finish(self) -> str:
        """The rest: what was held back and can no longer become a stop string. Call once, when the tokens
        end."""
        out = "" if self.stopped is not None else self._pass(self._decode(b"", True))
        out, self._held = out + self._held, ""
        return out

    def token_text(self, token_id: int) -> tuple[str, bytes]:
        """One token as text and bytes, for log-probabilities."""
        return self._vocabulary.token_text(token_id)

    def _pass(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            text = text.removeprefix(" ")
        if not self._matchers:
            return text
        for index, char in enumerate(text):
            complete = ""
            for matcher in self._matchers:
                if matcher.step(char) and len(matcher.text) > len(complete):
                    complete = matcher.text
            if complete:
                self.stopped = complete
                text = self._held + text[: index + 1]
                self._held = ""
                return text if self._include_stop else text[: len(text) - len(complete)]
        text = self._held + text
        certain = len(text) - max(matcher.matched for matcher in self._matchers)
        self._held = text[certain:]
        return text[:certain]


class _Matcher:
    """Knuth, Morris and Pratt's search for one string, fed a character at a time."""

    __slots__ = ("fallback", "matched", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0  # longest beginning of `text` that the characters so far end with
        self.fallback = [0] * (len(text) + 1)  # for each matched length, the next shorter one that may go on
        length = 0
        for index in range(1, len(text)):
            while length and text[index] != text[length]:
                length = self.fallback[length]
            length += text[index] == text[length]
            self.fallback[index + 1] = length

    def step(self, char: str) -> bool:
        """Take one character; True if `text` is now complete, which ends the search."""
        matched, text = self.matched, self.text
        while matched and text[matched] != char:
            matched = self.fallback[matched]
        if text[matched] == char:
            matched += 1
        self.matched = matched
        return matched == len(text)
