"""Synthetic prompts of an honest length, whatever the server's tokenizer.

Prompts are random four-letter words behind one fixed first word. Common short words are one token each in
most BPE vocabularies, and equally long ones cost a byte-level tokenizer the same, so tokens are a line in
words: tokens = overhead + tokens_per_word * words. The server itself gives the line (by the usage of probe
requests, or by /tokenize), and a further probe checks it. Where words do not lie on a line, token-id prompts
are exact.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Literal

import msgspec

from mortice.bench.endpoint import Prompt
from mortice.specs.errors import RequestError

PromptSource = Literal["auto", "words", "token-ids"]

_FIRST = "Here"
_WORD_LIST = """
time year work life part case week hand home room area book word side kind head hour game line city
name team idea body back face door land road form food song wind fire tree bird fish boat ship hill
lake rain snow star moon gold iron rock sand wood wall roof cool warm cold slow fast deep wide long
tall high dark blue grey pink soft hard good well best last next past late soon once over down away
here near then when what that this them they your some many more most much less each both such same
very just only even ever also from with into upon make take give find tell keep hold move turn walk
read play help show want need like know feel mean come went said made took gave kept held left sent
paid sold lost west east milk rice salt meat corn seed leaf root farm town park bank shop post note
page list card code data file test unit
"""
WORDS = tuple(_WORD_LIST.split())
# Token ids that nearly every vocabulary has and that are ordinary tokens in it: special ones sit at either
# end.
ID_RANGE = (1000, 16000)
_PROBE_WORDS = (24, 88, 56)  # two give the line, the third checks it
_TOLERANCE = 0.02


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How many words (or ids) make a prompt of n tokens on this server."""

    source: Literal["words", "token-ids"]
    counted_by: Literal[
        "usage", "tokenize", "nothing"
    ]  # nothing: the server counts for nobody, a word is a token
    tokens_per_word: float = 1.0
    overhead: float = 0.0  # tokens around the words: the first word, start token, chat template
    checked_error: float | None = None  # relative error of the line at the third probe

    def num_words(self, num_tokens: int) -> int:
        """Random words for a prompt of `num_tokens`; at least one, so very short prompts may come out
        longer."""
        return max(1, round((num_tokens - self.overhead) / self.tokens_per_word))


CountTokens = Callable[[Prompt], Awaitable[int | None]]


async def calibrate(source: PromptSource, *, usage: CountTokens, tokenize: CountTokens) -> Calibration:
    """Ask the server for the line from words to tokens.

    `usage` (a probe request) and `tokenize` count a prompt's tokens, or answer None where the server cannot.
    "auto" takes words, and ids only where words miss their length by more than 2 % and the server takes ids.
    Raises RequestError if ids are asked for and the server does not take them.
    """
    if source == "token-ids":
        by_ids = await _ids(usage)
        if by_ids is None:
            raise RequestError(
                "this server takes no token-id prompts, or reports no usage", param="--prompts"
            )
        return by_ids
    counted_by: Literal["usage", "tokenize"] = "usage"
    counts = await _probe(usage)
    if counts is None:
        counted_by = "tokenize"
        counts = await _probe(tokenize)
    if counts is None:
        return Calibration(source="words", counted_by="nothing")
    (words_a, words_b, words_c), (a, b, c) = _PROBE_WORDS, counts
    slope = max((b - a) / (words_b - words_a), 1e-3)
    overhead = a - slope * words_a
    error = (overhead + slope * words_c - c) / c
    if abs(error) > _TOLERANCE and source == "auto" and (by_ids := await _ids(usage)):
        return by_ids
    return Calibration(
        source="words", counted_by=counted_by, tokens_per_word=slope, overhead=overhead, checked_error=error
    )


async def _ids(usage: CountTokens) -> Calibration | None:
    num_ids = _PROBE_WORDS[0]
    count = await usage(random.Random("calibration").choices(range(*ID_RANGE), k=num_ids))
    if count is None:
        return None
    return Calibration(source="token-ids", counted_by="usage", overhead=count - num_ids)


async def _probe(count: CountTokens) -> list[int] | None:
    rng = random.Random("calibration")
    counts = []
    for num_words in _PROBE_WORDS:
        found = await count(_join(rng.choices(WORDS, k=num_words)))
        if found is None:
            return None
        counts.append(found)
    return counts


class PromptMaker:
    """Makes prompts: equal arguments give equal prompts, other ones distinct prompts."""

    def __init__(self, calibration: Calibration, seed: int) -> None:
        self._calibration = calibration
        self._seed = seed
        self._block = lru_cache(maxsize=4096)(self._make_block)

    def make(self, label: str, prompt_len: int, blocks: Sequence[int] = (), block_tokens: int = 0) -> Prompt:
        """A prompt of `prompt_len` tokens.

        With `blocks`, it is their contents (`block_tokens` each) laid end to end and cut to length: prompts
        whose first block ids are equal begin alike. Without, its content is private to `label`.
        """
        by_ids = self._calibration.source == "token-ids"
        count = self._calibration.num_words(prompt_len)
        pieces: list = []
        for block in blocks:
            pieces += self._block(block, block_tokens)
            if len(pieces) >= count:
                break
        del pieces[count:]
        pieces += self._draw(label, count - len(pieces))  # where the blocks do not fill it
        return pieces if by_ids else _join(pieces)

    def _make_block(self, block: int, block_tokens: int) -> list:
        per_word = self._calibration.tokens_per_word
        return self._draw(f"block {block}", max(1, round(block_tokens / per_word)))

    def _draw(self, label: str, count: int) -> list:
        if count <= 0:
            return []
        rng = random.Random(f"{self._seed} {label}")
        if self._calibration.source == "token-ids":
            return rng.choices(range(*ID_RANGE), k=count)
        return rng.choices(WORDS, k=count)


def _join(words: Sequence[str]) -> str:
    return " ".join((_FIRST, *words))
