"""From logits to tokens: the chain of specs/sampling.py, one uniform number a token, log-probabilities.

A draw inverts the cumulative distribution at a number that depends on (seed, index, position) alone. So the token is the
same in any batch, after preemption, on another worker, and as a verified draft: a draft token is right exactly if it
equals what would have been drawn, and speculation changes no text.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mortice.specs.request import TokenLogprob
from mortice.specs.sampling import SamplingParams

_MASK64 = (1 << 64) - 1
TOP_SLICE = 256  # candidates looked at before a whole sort


class TokenMask(Protocol):
    """A grammar at its present position."""

    def apply(self, logits: Tensor) -> None:
        """Set the logits [V] of tokens that may not follow to -inf, in place."""


@dataclass(slots=True)
class SamplerState:
    """What the chain needs of one sequence. `token_ids` (prompt and output) is the engine's list, which it extends."""

    params: SamplingParams
    index: int
    token_ids: list[int]
    prompt_len: int
    eos_token_ids: Sequence[int]
    grammar: TokenMask | None = None
    _prompt_ids: Tensor | None = field(default=None, repr=False)

    @property
    def is_plain(self) -> bool:
        """No step of the chain before temperature changes a logit."""
        p = self.params
        return not (
            self.grammar
            or p.logit_bias
            or p.allowed_token_ids
            or p.bad_words
            or p.min_tokens
            or p.presence_penalty
            or p.frequency_penalty
            or p.repetition_penalty != 1.0
        )

    def prompt_ids(self, device: torch.device) -> Tensor:
        if self._prompt_ids is None:
            ids = sorted(set(self.token_ids[: self.prompt_len]))
            self._prompt_ids = torch.tensor(ids, dtype=torch.int64, device=device)
        return self._prompt_ids


def uniform(seed: int, index: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits, a pure function of its arguments (splitmix64 over the three)."""
    z = 0
    for word in (seed, index, position):
        z = (z + (word & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
        z ^= z >> 31
    return (z >> 11) / (1 << 53)


def sample_batch(logits: Tensor, states: Sequence[SamplerState]) -> list[int]:
    """One token a row. `logits` [R, V] float32, changed in place where the chain edits them."""
    greedy_rows = [i for i, s in enumerate(states) if s.params.temperature == 0 and s.is_plain]
    if len(greedy_rows) == len(states):
        return logits.argmax(-1).tolist()
    tokens = [0] * len(states)
    if greedy_rows:
        for i, token in zip(greedy_rows, logits[greedy_rows].argmax(-1).tolist(), strict=True):
            tokens[i] = token
    greedy = set(greedy_rows)
    for i, state in enumerate(states):
        if i not in greedy:
            tokens[i] = sample_one(logits[i], state)
    return tokens


def sample_one(logits: Tensor, state: SamplerState) -> int:
    """The next token of one sequence. `logits` [V] float32 is changed in place."""
    if not state.is_plain:
        _edit(logits, state)
    return draw(logits, state.params, state.index, len(state.token_ids))


def draw(logits: Tensor, params: SamplingParams, index: int, position: int) -> int:
    """The chain from temperature on: the token at `position` of sequence `index` under edited logits [V]."""
    if params.temperature == 0:
        return int(logits.argmax())
    u = uniform(params.seed, index, position)
    probs = torch.softmax(logits / params.temperature, -1)
    if params.top_k == 0 and params.top_p >= 1 and params.min_p == 0:
        return _invert(probs, u)
    probs, ids = _filter(probs, params)
    return int(ids[_invert(probs, u)])


def _invert(probs: Tensor, u: float) -> int:
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    target = cumulative[-1] * u
    # right=True: a token of probability zero is never drawn, not even at u = 0
    return min(int(torch.searchsorted(cumulative, target, right=True)), probs.shape[-1] - 1)


def _filter(probs: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Probabilities and ids that pass top_k, top_p and min_p, most probable first."""
    vocab = probs.shape[-1]
    size = params.top_k or TOP_SLICE
    best, ids = probs.topk(min(size, vocab))
    if not params.top_k and size < vocab:
        enough_p = params.top_p < 1 and float(best.sum()) >= params.top_p
        enough_min = params.min_p > 0 and float(best[-1]) < params.min_p * float(best[0])
        if not (enough_p or enough_min):
            best, ids = probs.sort(descending=True)
    keep = torch.ones_like(best, dtype=torch.bool)
    if params.top_p < 1:
        mass = best / best.sum() if params.top_k else best
        # Keep the smallest set whose mass reaches top_p: all tokens before which it is not yet reached.
        keep &= mass.cumsum(-1) - mass < params.top_p
    if params.min_p > 0:
        keep &= best >= params.min_p * best[0]
    keep[0] = True
    return best[keep], ids[keep]


def _edit(logits: Tensor, state: SamplerState) -> None:
    """The part of the chain that changes logits in place, in the order of SamplingParams."""
    params = state.params
    output = state.token_ids[state.prompt_len :]
    banned = _banned(state, output)
    device = logits.device
    if params.allowed_token_ids:
        allowed = torch.tensor(params.allowed_token_ids, device=device)
        kept = logits[allowed].clone()
        logits.fill_(-torch.inf)
        logits[allowed] = kept
    if banned:
        logits[banned] = -torch.inf
    if state.grammar is not None:
        state.grammar.apply(logits)
    if params.logit_bias:
        logits[list(params.logit_bias)] += torch.tensor(list(params.logit_bias.values()), device=device)
    if params.repetition_penalty != 1.0:
        seen = torch.cat(
            [state.prompt_ids(device), torch.tensor(output, dtype=torch.int64, device=device)]
        ).unique()
        values = logits[seen]
        logits[seen] = torch.where(
            values > 0, values / params.repetition_penalty, values * params.repetition_penalty
        )
    if (params.frequency_penalty or params.presence_penalty) and output:
        ids, counts = torch.tensor(output, dtype=torch.int64, device=device).unique(return_counts=True)
        logits[ids] -= params.frequency_penalty * counts + params.presence_penalty


def _banned(state: SamplerState, output: Sequence[int]) -> list[int]:
    params = state.params
    banned: list[int] = []
    if len(output) < params.min_tokens:
        banned += [*params.stop_token_ids, *state.eos_token_ids]
    for word in params.bad_words:
        prefix = list(word[:-1])
        if not prefix or list(output[-len(prefix) :]) == prefix:
            banned.append(word[-1])
    return banned


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """Natural-log probabilities of `token_ids` under raw logits [R, V], with rank and the `num_top` best of each row."""
    chosen = torch.tensor(token_ids, dtype=torch.int64, device=logits.device).unsqueeze(1)
    norm = logits.logsumexp(-1, keepdim=True)
    value = logits.gather(1, chosen)
    ranks = ((logits > value).sum(-1) + 1).tolist()
    logprobs = (value - norm).squeeze(1).tolist()
    tops: list[list[tuple[int, float]]] = [[] for _ in token_ids]
    if num_top:
        best, ids = logits.topk(num_top, -1)
        tops = [
            list(zip(i, v, strict=True)) for i, v in zip(ids.tolist(), (best - norm).tolist(), strict=True)
        ]
    return [TokenLogprob(t, p, r, top) for t, p, r, top in zip(token_ids, logprobs, ranks, tops, strict=True)]
