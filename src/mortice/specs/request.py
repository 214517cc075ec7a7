"""What goes into a worker and what comes out of it, in token ids."""

from typing import Literal

import msgspec

from mortice.specs.sampling import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One prompt and the `n` sequences asked of it."""

    id: str
    prompt_token_ids: list[int]
    sampling: SamplingParams
    n: int = 1
    priority: int = 0  # larger goes first
    cache_salt: str = ""  # requests share cached blocks only with requests of the same salt
    adapter: str | None = None  # name of a loaded LoRA adapter
    arrival_s: float = 0.0  # seconds since the epoch, at the edge
    traceparent: str | None = None  # W3C trace context


class TokenLogprob(msgspec.Struct, array_like=True, frozen=True):
    """Natural-log probabilities of one position, before the sampling chain."""

    token_id: int
    logprob: float
    rank: int  # 1 for the most probable token
    top: list[tuple[int, float]]  # the k most probable, best first


class Delta(msgspec.Struct, array_like=True, omit_defaults=True):
    """The tokens one step added to one sequence of one request."""

    request_id: str
    index: int  # which of the request's n sequences
    token_ids: list[int]
    weight_version: int = 0  # of the weights that made these tokens
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the stop token that ended it, if one did; it stands in token_ids too
    num_cached_tokens: int = 0  # prompt tokens whose KV was not computed for this request; on the first delta
    logprobs: list[TokenLogprob] | None = None  # one an entry of token_ids, if asked for
    prompt_logprobs: list[TokenLogprob | None] | None = None  # on the first delta, if asked for
    error: str | None = None  # with finish_reason "error": one line for the user
    is_request_at_fault: bool = False  # with an error: the request is wrong (400), the server is not (500)
