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


def sample_one(logits: Tensor, state: SamplerState) -> int:
    """The next token of one sequence. `logits` [V] float32 is changed in place."""
    edit(logits, state)
    return draw_batch(logits.unsqueeze(0), [state])[0]


def draw_batch(logits: Tensor, states: Sequence[SamplerState]) -> list[int]:
    """One token a row of edited logits [R, V]."""
    if all(state.params.temperature == 0 for state in states):
        return logits.argmax(-1).tolist()
    where = [(state.index, len(state.token_ids)) for state in states]
    return draw(logits, [state.params for state in states], where)


def draw(logits: Tensor, params: Sequence[SamplingParams], where: Sequence[tuple[int, int]]) -> list[int]:
    """The chain from temperature on, for rows of edited logits [R, V]; `where` has (index of the sequence, position of the
    token) of each. A row's arithmetic does not depend on the others."""
    tokens = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    greedy = [i for i, p in enumerate(params) if p.temperature == 0]
    whole = [i for i, p in enumerate(params) if p.temperature and not _narrows(p)]
    narrowed = [i for i, p in enumerate(params) if p.temperature and _narrows(p)]
    if greedy:
        tokens[greedy] = logits[greedy].argmax(-1)
    for rows in (whole, narrowed):
        if not rows:
            continue
        chosen = [params[i] for i in rows]
        u = _column([uniform(params[i].seed, *where[i]) for i in rows], logits, torch.float64)
        picked = logits if len(rows) == len(params) else logits[rows]
        probs = torch.softmax(picked / _column([p.temperature for p in chosen], logits), -1)
        tokens[rows] = _invert(probs, u) if rows is whole else _draw_narrowed(probs, u, chosen)
    return tokens.tolist()


def _narrows(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1 or params.min_p > 0


def _column(values: Sequence[float], like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device).unsqueeze(1)


def _invert(weights: Tensor, u: Tensor) -> Tensor:
    """Where each row of `weights` [R, N], of any sum, is cut by its `u` [R, 1] in [0, 1). A weight of zero never is."""
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]
    target = torch.minimum(total * u, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def _draw_narrowed(probs: Tensor, u: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Tokens [R] of those that pass top_k, top_p and min_p. Most rows are decided by their best TOP_SLICE tokens; the others
    are sorted whole."""
    vocab = probs.shape[-1]
    best, ids = probs.topk(min(TOP_SLICE, vocab))
    top_p, min_p = _column([p.top_p for p in params], probs), _column([p.min_p for p in params], probs)
    in_slice = (best.sum(-1, keepdim=True) >= top_p) & (top_p < 1)
    in_slice |= (best[:, -1:] < min_p * best[:, :1]) & (min_p > 0)
    in_slice |= _column([0 < p.top_k <= TOP_SLICE for p in params], probs).bool()
    sorted_whole = [] if best.shape[-1] == vocab else (~in_slice.squeeze(1)).nonzero().flatten().tolist()
    cut = _invert(_weights(best, params), u)
    tokens = ids.gather(1, cut.unsqueeze(1)).squeeze(1)
    if sorted_whole:
        best, ids = probs[sorted_whole].sort(descending=True)
        cut = _invert(_weights(best, [params[i] for i in sorted_whole]), u[sorted_whole])
        tokens[sorted_whole] = ids.gather(1, cut.unsqueeze(1)).squeeze(1)
    return tokens


def _weights(best: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """Probabilities [R, N], best first, with zeros for those that top_k, top_p or min_p cut off."""
    size = best.shape[-1]
    top_k = torch.tensor([p.top_k or size for p in params], device=best.device).unsqueeze(1)
    top_p, min_p = _column([p.top_p for p in params], best), _column([p.min_p for p in params], best)
    kept = torch.where(torch.arange(size, device=best.device) < top_k, best, 0.0)
    # top_p speaks of the mass among the top_k, or of the whole mass where there is no top_k
    limits_k = torch.tensor([p.top_k > 0 for p in params], device=best.device).unsqueeze(1)
    mass = torch.where(limits_k, kept / kept.sum(-1, keepdim=True), kept)
    # The smallest set whose mass reaches top_p: all tokens before which it is not yet reached.
    inside = (mass.cumsum(-1) - mass < top_p) | (top_p >= 1)
    inside &= best >= min_p * best[:, :1]
    inside[:, 0] = True
    return torch.where(inside, kept, 0.0)


def edit(logits: Tensor, state: SamplerState) -> None:
    """The part of the chain that changes logits [V] in place, in the order of SamplingParams. A grammar at fault raises."""
    if state.is_plain:
        return
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
