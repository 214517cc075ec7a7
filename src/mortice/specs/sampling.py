"""How the next token is chosen from the logits."""

import math
from collections.abc import Mapping

import msgspec

from mortice.specs.errors import RequestError

MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 256


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that shapes the choice of tokens. Token ids only: text never reaches the engine.

    The chain, in order: allowed tokens, bad words and grammar mask -> logit_bias -> repetition penalty (prompt and
    output), frequency and presence penalties (output) -> temperature -> top_k -> top_p -> min_p -> draw.
    Temperature 0 takes the largest logit, the lowest id among equals. A draw uses one uniform number that depends on
    (seed, index of the sequence, position of the token) alone, so neither batch mates, nor preemption, nor a
    move to another worker changes it.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: off
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0  # the edge draws one where the user gives none, so that a recovered request goes on alike
    logit_bias: dict[int, float] = {}
    allowed_token_ids: tuple[int, ...] = ()  # empty: all
    bad_words: tuple[tuple[int, ...], ...] = ()  # token sequences that must not appear in the output
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # None: none; k: the chosen token's and the k best, before the chain ("raw")
    prompt_logprobs: int | None = None
    grammar: str | None = None  # an llguidance grammar (JSON-encoded) that the output must match

    def check(self, vocab_size: int) -> None:
        """Raise RequestError naming the first field whose value cannot be honoured."""
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not (math.isfinite(value) and low <= value <= high):
                raise RequestError(f"{name} must be between {low:g} and {high:g}, not {value}", param=name)
        if self.top_p <= 0:
            raise RequestError(f"top_p must be above 0, not {self.top_p}", param="top_p")
        if self.repetition_penalty <= 0:
            raise RequestError("repetition_penalty must be above 0", param="repetition_penalty")
        if self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})", param="min_tokens"
            )
        for name in ("logprobs", "prompt_logprobs"):
            count = getattr(self, name)
            if count is not None and not 0 <= count <= MAX_LOGPROBS:
                raise RequestError(f"{name} must be between 0 and {MAX_LOGPROBS}, not {count}", param=name)
        _check_bias(self.logit_bias, vocab_size)
        _check_ids("allowed_token_ids", self.allowed_token_ids, vocab_size, vocab_size)
        _check_ids("stop_token_ids", self.stop_token_ids, vocab_size, 1024)
        if len(self.bad_words) > MAX_BAD_WORDS:
            raise RequestError(
                f"at most {MAX_BAD_WORDS} bad_words, not {len(self.bad_words)}", param="bad_words"
            )
        for word in self.bad_words:
            _check_ids("bad_words", word, vocab_size, 64)


_RANGES = (
    ("max_tokens", 1, 1 << 24),
    ("min_tokens", 0, 1 << 24),
    ("temperature", 0.0, 2.0),
    ("top_p", 0.0, 1.0),
    ("top_k", 0, 1 << 24),
    ("min_p", 0.0, 1.0),
    ("repetition_penalty", 0.0, 10.0),
    ("presence_penalty", -2.0, 2.0),
    ("frequency_penalty", -2.0, 2.0),
    ("seed", -(1 << 63), (1 << 63) - 1),
)


def _check_bias(bias: Mapping[int, float], vocab_size: int) -> None:
    if len(bias) > MAX_LOGIT_BIAS:
        raise RequestError(
            f"at most {MAX_LOGIT_BIAS} entries in logit_bias, not {len(bias)}", param="logit_bias"
        )
    _check_ids("logit_bias", tuple(bias), vocab_size, MAX_LOGIT_BIAS)
    for value in bias.values():
        if not -100 <= value <= 100:
            raise RequestError(
                f"logit_bias values must be between -100 and 100, not {value}", param="logit_bias"
            )


def _check_ids(name: str, ids: tuple[int, ...], vocab_size: int, limit: int) -> None:
    if len(ids) > limit:
        raise RequestError(f"at most {limit} ids in {name}, not {len(ids)}", param=name)
    for token_id in ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError(f"{name} has token id {token_id}, outside 0 to {vocab_size - 1}", param=name)
