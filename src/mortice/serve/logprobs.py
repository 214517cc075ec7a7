"""Log-probabilities in the two shapes of OpenAI's API: one for chats and responses, one for completions."""

from typing import Any

import msgspec

from mortice.specs.request import TokenLogprob
from mortice.text.vocabulary import Vocabulary


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ChatLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def chat_logprobs(vocabulary: Vocabulary, entries: list[TokenLogprob]) -> list[ChatLogprob]:
    found = []
    for entry in entries:
        text, raw = vocabulary.token_text(entry.token_id)
        top = [_top(vocabulary, token_id, value) for token_id, value in entry.top]
        found.append(ChatLogprob(text, _finite(entry.logprob), list(raw), top))
    return found


def _top(vocabulary: Vocabulary, token_id: int, value: float) -> TopLogprob:
    text, raw = vocabulary.token_text(token_id)
    return TopLogprob(text, _finite(value), list(raw))


def completion_logprobs(
    vocabulary: Vocabulary, entries: list[TokenLogprob | None], token_ids: list[int], offset: int
) -> CompletionLogprobs:
    """`offset`: where the first token's text begins, in characters. An entry is None for a prompt's first
    token.
    """
    tokens, logprobs, tops, offsets = [], [], [], []
    for token_id, entry in zip(token_ids, entries, strict=True):
        text = vocabulary.token_text(token_id)[0]
        tokens.append(text)
        offsets.append(offset)
        offset += len(text)
        logprobs.append(None if entry is None else _finite(entry.logprob))
        top = None
        if entry is not None and entry.top:
            top = {vocabulary.token_text(i)[0]: _finite(value) for i, value in reversed(entry.top)}
            top[text] = _finite(entry.logprob)
        tops.append(top)
    return CompletionLogprobs(tokens, logprobs, tops, offsets)


def prompt_logprobs(
    vocabulary: Vocabulary, entries: list[TokenLogprob | None] | None
) -> list[dict[str, Any] | None] | None:
    """The extension `prompt_logprobs`: for each prompt token, by token id, its and the best ones'
    logprobs.
    """
    if entries is None:
        return None
    return [None if entry is None else _by_id(vocabulary, entry) for entry in entries]


def _by_id(vocabulary: Vocabulary, entry: TokenLogprob) -> dict[str, Any]:
    found = {
        str(token_id): {
            "logprob": _finite(value),
            "rank": rank,
            "decoded_token": vocabulary.token_text(token_id)[0],
        }
        for rank, (token_id, value) in enumerate(entry.top, 1)
    }
    found[str(entry.token_id)] = {
        "logprob": _finite(entry.logprob),
        "rank": entry.rank,
        "decoded_token": vocabulary.token_text(entry.token_id)[0],
    }
    return found


def _finite(value: float) -> float:
    """JSON knows no infinity: a token that was impossible gets the value OpenAI's API uses for it."""
    return value if value > -9999.0 else -9999.0
