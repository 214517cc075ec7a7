"""Draws: a row's token is its own affair, and follows the chain as it is written down."""

import itertools
import random

import numpy as np
import pytest
import torch

from mortice.engine.sampler import TOP_SLICE, draw, uniform
from mortice.specs.sampling import SamplingParams

SEED = 20261128
CHAINS = [
    SamplingParams(temperature=t, top_k=k, top_p=p, min_p=m, seed=7)
    for t, k, p, m in itertools.product(
        (0.0, 0.3, 1.0, 2.0), (0, 1, 5, TOP_SLICE + 40), (1.0, 0.95, 0.4), (0.0, 0.1)
    )
]


def rows(count: int, vocab: int, spread: float) -> torch.Tensor:
    return torch.randn(count, vocab, generator=torch.Generator().manual_seed(SEED)) * spread


def by_the_book(logits: np.ndarray, params: SamplingParams, index: int, position: int) -> int:
    """The chain in float64, one step after the other over the whole vocabulary."""
    if params.temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / params.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    order = np.argsort(-probs, kind="stable")
    best = probs[order]
    if params.top_k:
        best[params.top_k :] = 0
    mass = best / best.sum()
    if params.top_p < 1:
        best[np.cumsum(mass) - mass >= params.top_p] = 0
    best[best < params.min_p * best[0]] = 0
    if not (params.top_k or params.top_p < 1 or params.min_p):  # nothing cut off: the order of ids counts
        order, best = np.arange(len(probs)), probs
    cumulative = np.cumsum(best)
    return int(
        order[np.searchsorted(cumulative, cumulative[-1] * uniform(params.seed, index, position), "right")]
    )


@pytest.mark.parametrize("spread", [0.05, 1.0, 6.0])
@pytest.mark.parametrize("vocab", [50, 3000])
def test_draws_follow_the_chain(vocab: int, spread: float) -> None:
    logits = rows(len(CHAINS), vocab, spread)
    where = [(i % 3, 10 + i) for i in range(len(CHAINS))]
    drawn = draw(logits, CHAINS, where)
    for row, params, (index, position), token in zip(logits.numpy(), CHAINS, where, drawn, strict=True):
        assert token == by_the_book(row, params, index, position), params


@pytest.mark.parametrize("spread", [0.05, 2.0])
def test_a_row_is_drawn_alike_in_any_company(spread: float) -> None:
    print(f"seed {SEED}")
    lot = random.Random(SEED)
    logits = rows(len(CHAINS), 5000, spread)
    where = [(0, i) for i in range(len(CHAINS))]
    alone = [draw(logits[i : i + 1], [CHAINS[i]], [where[i]])[0] for i in range(len(CHAINS))]
    for size in (2, 7, len(CHAINS)):
        picked = lot.sample(range(len(CHAINS)), size)
        together = draw(logits[picked], [CHAINS[i] for i in picked], [where[i] for i in picked])
        assert together == [alone[i] for i in picked]


def test_what_is_impossible_is_never_drawn() -> None:
    logits = torch.full((400, 30), -torch.inf)
    logits[:, 11] = logits[:, 17] = 0.0
    for chain in (SamplingParams(temperature=1.0), SamplingParams(temperature=1.0, top_p=0.999)):
        drawn = draw(logits, [chain] * 400, [(0, i) for i in range(400)])
        assert set(drawn) == {11, 17}
        assert 140 < drawn.count(11) < 260
