"""From a checked body to what the engine takes: the parts that are the same for all routes."""

import random
import time
from typing import Any

import msgspec

from mortice import __version__
from mortice.serve.api import GenerateRequest, ResponsesRequest, Sampling
from mortice.serve.edge import Edge
from mortice.serve.link import Link
from mortice.specs.errors import RequestError
from mortice.specs.request import Request
from mortice.specs.sampling import SamplingParams
from mortice.text.calls import GrammarInput

_random = random.SystemRandom()


def sampling_params(
    edge: Edge,
    body: Sampling | ResponsesRequest | GenerateRequest,
    *,
    max_tokens: int,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    grammar: str | None = None,
    bad_words: tuple[tuple[int, ...], ...] = (),
) -> SamplingParams:
    """The body's sampling fields with their defaults, checked against the model. Draws a seed where none is
    given.
    """
    seed = body.seed if body.seed is not None else _random.getrandbits(63)
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": None if body.top_k == -1 else body.top_k,
        "min_p": body.min_p,
        "ignore_eos": body.ignore_eos,
    }
    if not isinstance(body, ResponsesRequest):
        given |= {
            "repetition_penalty": body.repetition_penalty,
            "presence_penalty": body.presence_penalty,
            "frequency_penalty": body.frequency_penalty,
            "min_tokens": body.min_tokens,
            "logit_bias": None if body.logit_bias is None else _bias(body.logit_bias),
            "allowed_token_ids": _ids(body.allowed_token_ids),
            "stop_token_ids": _ids(body.stop_token_ids),
        }
    params = SamplingParams(
        max_tokens=max_tokens,
        seed=seed,
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        grammar=grammar,
        bad_words=bad_words,
        **{name: value for name, value in given.items() if value is not None},
    )
    params.check(edge.cluster.model.vocab_size)
    return params


def output_room(edge: Edge, prompt: list[int], wanted: int | None, *, place: str, bound: str) -> int:
    """How many tokens may be written: `wanted`, or what the prompt leaves of the context.

    Raises RequestError with code context_length_exceeded: param `place` for a prompt that leaves nothing,
    param `bound` for a bound beyond what is left.
    """
    context = edge.cluster.model.max_context
    left = context - len(prompt)
    if left < 1:
        raise RequestError(
            f"the prompt has {len(prompt)} tokens and leaves no room for an answer in a context of {context}",
            param=place,
            code="context_length_exceeded",
        )
    if wanted is None:
        return left
    if wanted > left:
        raise RequestError(
            f"{bound} is {wanted}, but {len(prompt)} prompt tokens leave {left} of a context of {context}",
            param=bound,
            code="context_length_exceeded",
        )
    return wanted


def engine_request(
    edge: Edge,
    link: Link,
    body: Sampling | ResponsesRequest,
    *,
    request_id: str,
    prompt: list[int],
    sampling: SamplingParams,
    n: int,
    adapter: str | None,
    arrival_s: float,
) -> Request:
    return Request(
        id=request_id,
        prompt_token_ids=prompt,
        sampling=sampling,
        n=n,
        priority=body.priority or 0,
        cache_salt=body.cache_salt or "",
        adapter=adapter,
        arrival_s=arrival_s,
        traceparent=link.header(b"traceparent"),
    )


def check_n(edge: Edge, n: int | None) -> int:
    limit = edge.options.admission.max_n
    if n is not None and n > limit:
        raise RequestError(f"n must be at most {limit}, not {n}", param="n")
    return n or 1


def check_prompt_ids(edge: Edge, ids: list[int], place: str) -> list[int]:
    """Token ids of a user as a prompt. Raises RequestError for an empty prompt or an id outside the
    vocabulary.
    """
    if not ids:
        raise RequestError("the prompt is empty", param=place)
    size = edge.cluster.model.vocab_size
    if min(ids) < 0 or max(ids) >= size:
        wrong = next(i for i in ids if not 0 <= i < size)
        raise RequestError(f"token id {wrong} is outside 0 to {size - 1}", param=place)
    return ids


async def compile_grammar(edge: Edge, wanted: GrammarInput) -> str | None:
    """The grammar of what is wanted, checked in the text worker under a time limit; None if the output is
    free.
    """
    if msgspec.structs.replace(wanted, reasoning="none", parallel_tool_calls=True) == _FREE:
        return None
    return await edge.text.compile_grammar(wanted)


_FREE = GrammarInput()


async def bad_words(edge: Edge, words: list[str] | None) -> tuple[tuple[int, ...], ...]:
    """Token sequences that spell the words, at the start of a text and within it."""
    if not words:
        return ()
    spellings = [spelling for word in words for spelling in (word, " " + word)]
    encoded = await edge.text.encode_many(spellings, add_special_tokens=False)
    if not all(encoded):
        raise RequestError("a bad word has no tokens", param="bad_words")
    return tuple(dict.fromkeys(tuple(ids) for ids in encoded))


def fingerprint(edge: Edge) -> str:
    """What changes when the same seed may give another text: the software and the weights."""
    return f"mortice-{__version__}-w{edge.cluster.model.weight_version}"


def now_s() -> float:
    return time.time()


def _bias(bias: dict[str, float]) -> dict[int, float]:
    found = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 10):
            raise RequestError(f"logit_bias keys are token ids, not {key[:40]!r}", param="logit_bias")
        found[int(key)] = value
    return found


def _ids(ids: list[int] | None) -> tuple[int, ...] | None:
    return None if ids is None else tuple(ids)
