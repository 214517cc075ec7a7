"""How many attention instances one FFN instance should serve when requests differ in length.

A/F-ratio, arXiv 2601.21351: r attention instances with B slots each share one FFN instance. Times are of one layer
or of one step, but all coefficients of the same one. The paper counts an FFN instance like an attention instance;
`ffn_packages` says how many of those it is worth where it is larger.
"""

import math
import random
from collections.abc import Sequence
from functools import cache

import msgspec

from mortice.specs.errors import RequestError


class BundleTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Linear times: attention by tokens of context, link and FFN by requests of the whole bundle."""

    attention_s_per_token: float
    attention_s: float
    ffn_s_per_request: float
    ffn_s: float
    link_s_per_request: float = 0.0
    link_s: float = 0.0

    def attention_at(self, context_tokens: float) -> float:
        return self.attention_s_per_token * context_tokens + self.attention_s

    def step_at(self, ratio: float, slots: int, attention_s: float) -> float:
        """tau = max(t_A, t_C, t_F)."""
        requests = ratio * slots
        link = self.link_s_per_request * requests + self.link_s
        return max(attention_s, link, self.ffn_s_per_request * requests + self.ffn_s)


def mean_load(prompt_lens: Sequence[int], output_lens: Sequence[int]) -> float:
    """theta: tokens of context a slot holds on average, E[D P + D (D - 1) / 2] / E[D].

    Longer answers stay longer, so this is not the mean of the lengths: read it from the trace.
    """
    if not prompt_lens or len(prompt_lens) != len(output_lens):
        raise RequestError("a trace needs as many prompts as answers, at least one", param="trace")
    held = sum(d * p + d * (d - 1) / 2 for p, d in zip(prompt_lens, output_lens, strict=True))
    return held / sum(output_lens)


def load_variance(prompt_lens: Sequence[int], output_lens: Sequence[int]) -> float:
    """Variance of the context of one slot seen at a random step, weighted as `mean_load` is."""
    theta = mean_load(prompt_lens, output_lens)
    second = 0.0
    for p, d in zip(prompt_lens, output_lens, strict=True):
        # sum over i = 0 .. d-1 of (p + i)^2
        second += d * p * p + p * d * (d - 1) + (d - 1) * d * (2 * d - 1) / 6
    return second / sum(output_lens) - theta * theta


def barrier_load(ratio: int, slots: int, mean: float, variance: float) -> float:
    """Expected largest load of r workers whose load is normal with mean B theta and variance B Var."""
    return slots * mean + math.sqrt(slots * variance) * expected_max_of_normals(ratio)


def optimal_ratio(times: BundleTimes, slots: int, context_tokens: float, ffn_packages: int = 1) -> float:
    """r* = max((t_A - beta_F) / (alpha_F B), (t_C - beta_F) / (alpha_F B), sqrt(n beta_F / (alpha_F B))).

    The third branch maximises r / ((r + n)(alpha r B + beta)), n the FFN's packages (1 in the paper), where the FFN side
    is the slowest at any r. t_C of the bundle grows with r as well; where its slope is below the FFN's it never binds,
    so it enters with r = 1.
    """
    slope = times.ffn_s_per_request * slots
    if slope <= 0:
        raise RequestError("ffn_s_per_request and slots must be above 0", param="ffn_s_per_request")
    link = times.link_s_per_request * slots + times.link_s
    return max(
        (times.attention_at(context_tokens) - times.ffn_s) / slope,
        (link - times.ffn_s) / slope,
        math.sqrt(ffn_packages * max(0.0, times.ffn_s) / slope),
    )


def throughput(
    times: BundleTimes,
    ratio: int,
    slots: int,
    mean: float,
    variance: float = 0.0,
    ffn_packages: int = 1,
) -> float:
    """Requests a second and instance, r B / ((r + n) tau), with the barrier over the r workers."""
    attention = times.attention_at(barrier_load(ratio, slots, mean, variance))
    return ratio * slots / ((ratio + ffn_packages) * times.step_at(ratio, slots, attention))


def best_whole_ratio(
    times: BundleTimes,
    slots: int,
    mean: float,
    variance: float = 0.0,
    *,
    candidates: Sequence[int] = range(1, 257),
    ffn_packages: int = 1,
) -> int:
    """The whole r among the candidates of largest throughput an instance."""
    return max(candidates, key=lambda r: throughput(times, r, slots, mean, variance, ffn_packages))


def simulate(
    times: BundleTimes,
    ratio: int,
    slots: int,
    lengths: Sequence[tuple[int, int]],
    *,
    num_steps: int,
    seed: int,
    warmup: int = 0,
    ffn_packages: int = 1,
) -> float:
    """Requests a second and instance of a bundle whose slots draw (prompt, answer) from `lengths`, refilled at once.

    Step by step: each worker's attention time hangs on the context it holds, all wait for the slowest.
    """
    draw = random.Random(seed)
    context: list[list[int]] = []
    left: list[list[int]] = []
    weights = [d for _, d in lengths]
    for _ in range(ratio):
        # A slot met at a random moment holds a request with chance in proportion to its length, at a random age.
        met = draw.choices(lengths, weights=weights, k=slots)
        ages = [draw.randrange(d) for _, d in met]
        context.append([p + age for (p, _), age in zip(met, ages, strict=True)])
        left.append([d - age for (_, d), age in zip(met, ages, strict=True)])
    elapsed = 0.0
    for step in range(warmup + num_steps):
        attention = times.attention_at(max(map(sum, context)))
        if step >= warmup:
            elapsed += times.step_at(ratio, slots, attention)
        for worker, remaining in zip(context, left, strict=True):
            for i in range(slots):
                worker[i] += 1
                remaining[i] -= 1
                if remaining[i] == 0:
                    worker[i], remaining[i] = draw.choice(lengths)
    return ratio * slots * num_steps / elapsed / (ratio + ffn_packages)


@cache
def expected_max_of_normals(count: int) -> float:
    """E[max of n standard normals] = integral of x n phi(x) Phi(x)^(n-1), by the trapezoid rule to 1e-6."""
    if count < 1:
        raise RequestError(f"ratio must be at least 1, not {count}", param="ratio")
    total, step = 0.0, 0.01
    for i in range(-800, 801):
        x = i * step
        density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        below = 0.5 * (1 + math.erf(x / math.sqrt(2)))
        total += x * count * density * below ** (count - 1) * step
    return total
