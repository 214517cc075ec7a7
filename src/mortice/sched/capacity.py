"""How much load a division of workers carries within the SLO, from queueing theory on length distributions.

Prefill is an M/G/n queue (waits from the second moment of the prompts, not from their mean), decode a batch by Little's
law with room for its own fluctuation; decode workers that bend take what prefill cannot, and undivided ones are the case
without prefill. DOPD's ratio (`dopd_ratio`) is the limit of the first at full utilisation, where its queue diverges.
"""

import math
from collections.abc import Callable
from statistics import NormalDist

import msgspec

from mortice.cost.queueing import erlang_c, mgn_wait, mgn_wait_quantile
from mortice.sched.observation import Demand
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes

SPREAD = 1.3  # standard deviations of the decode batch that must still fit (one side, about 90 %)
NO_LIMIT_S = 3600.0
DECILES = [NormalDist().inv_cdf((i + 0.5) / 10) for i in range(10)]  # middles of equal shares of a normal law


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """Largest request rate within the SLO of pools of identical workers under one mix of lengths."""

    prefill: WorkerTimes
    decode: WorkerTimes
    slo: SLO
    token_budget: int = 2048  # of a step of an undivided worker

    @property
    def ttft_s(self) -> float:
        return (self.slo.ttft_ms or NO_LIMIT_S * 1e3) / 1e3

    @property
    def tpot_s(self) -> float:
        return (self.slo.tpot_ms or NO_LIMIT_S * 1e3) / 1e3

    def prefill_moments(self, d: Demand) -> tuple[float, float]:
        """E[S], E[S^2] of a prompt's prefill. The square is that of a + bL with the lengths' own moments; cL^2 at the mean
        square."""
        t = self.prefill
        mean = t.prefill_base_s + t.prefill_token_s * d.uncached_mean + t.prefill_square_s * d.uncached_square
        linear = t.prefill_token_s + t.prefill_square_s * d.uncached_mean
        variance = max(0.0, d.uncached_square - d.uncached_mean**2) * linear * linear
        return mean, mean * mean + variance

    def prefill_rate(self, workers: float, d: Demand) -> float:
        """Largest rate at which the target share of prompts meets the TTFT at `workers` prefill workers."""
        if workers < 1:
            return 0.0
        mean, square = self.prefill_moments(d)
        mean, square = mean / self.prefill.pp, square / self.prefill.pp**2
        limit = self.ttft_s - mean * self.prefill.pp
        if limit <= 0:
            # One prompt of the mean length is late by itself: more workers shorten no prefill. Carry the load.
            return 0.85 * workers / mean
        n = max(1, int(workers))
        return _largest(
            lambda rate: mgn_wait_quantile(n, rate, mean, square, self.slo.target) <= limit, n / mean
        )

    def decode_batch(self, workers: float, d: Demand) -> float:
        """Mean batch of a decode worker at its largest load: TPOT holds and KV fits, fluctuation included."""
        context = d.prompt_mean + d.output_mean / 2
        top = self.decode.best_batch(context, self.tpot_s)
        if top < 1:
            top = max(
                1, int(self.decode.kv_tokens / max(context, 1.0))
            )  # no batch meets the SLO: carry the load
        n = max(1.0, workers)
        # b + SPREAD sqrt(b / n) = top
        half = SPREAD / math.sqrt(n) / 2
        return max(0.5, (math.sqrt(top + half * half) - half) ** 2)

    def decode_rate(self, workers: float, d: Demand) -> float:
        """Largest rate of `workers` decode workers."""
        if workers < 1:
            return 0.0
        context = d.prompt_mean + d.output_mean / 2
        batch = self.decode_batch(workers, d)
        tokens = max(1.0, d.output_mean - 1)
        return workers * batch / (tokens * self.decode.decode_s(batch, batch * context))

    def divided_rate(self, prefill: float, decode: float, d: Demand) -> float:
        """Largest rate of a division whose decode workers take no prompts."""
        return min(self.prefill_rate(prefill, d), self.decode_rate(decode, d))

    def mixed_rate(self, workers: float, d: Demand) -> float:
        """Largest rate of undivided workers with chunked prefill."""
        return self.bent_rate(0, workers, d)

    def bent_rate(self, prefill: float, decode: float, d: Demand) -> float:
        """Largest rate of a division whose decode workers take, in chunks, the prompts that the prefill workers would serve
        late. Without prefill workers: of undivided ones."""
        n = int(decode)
        if n < 1:
            return 0.0
        taken = self.prefill_rate(prefill, d)
        top = taken + n / max(1e-9, self.prefill_moments(d)[0])
        return _largest(lambda rate: self._decode_holds(n, rate, max(0.0, rate - taken), d), top)

    def _reachable_tpot_s(self, context: float) -> float:
        """The TPOT limit, or none where no batch meets it: then the load is carried."""
        return self.tpot_s if self.decode.best_batch(context, self.tpot_s) >= 1 else NO_LIMIT_S

    def _decode_holds(self, n: int, rate: float, prompts: float, d: Demand) -> bool:
        """`n` workers decode `rate` requests a second and compute `prompts` prompts a second beside them."""
        t = self.decode
        own = (
            self.prefill.prefill_token_s * d.uncached_mean + self.prefill.prefill_square_s * d.uncached_square
        )
        tokens, context = max(1.0, d.output_mean - 1), d.prompt_mean + d.output_mean / 2
        free = 1.0 - prompts / n * own
        # step = (base + b * each) / free and b = rate / n * tokens * step, fluctuation added to b
        each = t.decode_sequence_s + t.decode_context_s * context
        tpot_s = self._reachable_tpot_s(context)
        if free <= 0 or free <= rate / n * tokens * each:
            return False
        step = t.decode_base_s / (free - rate / n * tokens * each)
        batch = rate / n * tokens * step
        full = batch + SPREAD * math.sqrt(batch / n)
        # An answer meets more, or fewer, prompts than the mean: their work in its time is compound Poisson.
        uneven = max(1.0, d.uncached_square / max(1.0, d.uncached_mean) ** 2)  # E[L^2] / E[L]^2
        square = own * own * uneven
        left = (
            free - (t.decode_base_s + full * each) / tpot_s
        )  # share of an answer's time that may pass unused
        if (
            left < 0
            or self._missed(left, step, batch, context, prompts / n * square, uneven, d) > 1 - self.slo.target
        ):
            return False
        if prompts <= 0:
            return True
        room = max(1.0, self.token_budget - batch)
        chunks = max(1.0, d.uncached_mean / room)
        service = own + chunks * (t.decode_base_s + batch * each)
        wait = mgn_wait_quantile(n, prompts, own, square, self.slo.target)
        return wait / max(1e-9, free) + service <= self.ttft_s or service > self.ttft_s

    def _missed(
        self,
        left: float,
        step: float,
        batch: float,
        context: float,
        variance: float,
        uneven: float,
        d: Demand,
    ) -> float:
        """Share of answers that take too long, over their lengths (log-normal by two moments): the work of prompts in its T
        seconds exceeds the `left` T that it bears (normal, of `variance` a second), or it waits as long for KV memory (a
        queue of as many servers as contexts fit)."""
        tpot_s = min(self.tpot_s, 1.0)
        sigma = math.sqrt(math.log(d.output_uneven))
        middle = math.log(max(1.0, d.output_mean - 1) * tpot_s) - sigma * sigma / 2
        slots = self.decode.kv_tokens / context
        if batch >= slots:
            return 1.0
        waits = wait = 0.0
        if batch + 4 * math.sqrt(batch * uneven) > slots:
            lasts = max(1.0, d.output_mean - 1) * step
            servers, load = max(1, int(slots / uneven)), batch / uneven
            waits = erlang_c(servers, load)
            wait = mgn_wait(servers, load / lasts, lasts, lasts * lasts * d.output_uneven)
        share = 0.0
        for z in DECILES:
            lasts = math.exp(middle + sigma * z)
            keeps = 1 - 0.5 * math.erfc(left * math.sqrt(lasts / variance / 2)) if variance > 0 else 1.0
            if waits > 0:
                keeps *= 1 - waits * math.exp(-left * lasts * waits / wait)
            share += (1 - keeps) / len(DECILES)
        return share

    def bent_rates(self, workers: int, d: Demand) -> dict[int, float]:
        """Prefill workers of `workers` -> `bent_rate`: all divisions of a small fleet, of a large one a grid and what lies
        beside its best. 0: undivided."""
        stride = max(1, workers // 8)
        rates = {p: self.bent_rate(p, workers - p, d) for p in range(0, workers, stride)}
        while stride > 1:
            stride //= 2
            best = max(rates, key=lambda p: (rates[p], -p))
            for p in (best - stride, best + stride):
                if 0 <= p < workers and p not in rates:
                    rates[p] = self.bent_rate(p, workers - p, d)
        return rates

    def best_division(self, workers: int, d: Demand) -> tuple[int, float]:
        """(prefill workers of `workers`, rate) that carries the most; 0 workers or 1: (0, 0)."""
        if workers < 2:
            return 0, 0.0
        low, high = 1, workers - 1  # prefill_rate grows with the count, decode_rate falls: they cross once
        while low < high:
            middle = (low + high) // 2
            if self.prefill_rate(middle, d) < self.decode_rate(workers - middle, d):
                low = middle + 1
            else:
                high = middle
        found = [(p, self.divided_rate(p, workers - p, d)) for p in {max(1, low - 1), low}]
        return max(found, key=lambda each: (each[1], -each[0]))


def dopd_ratio(prefill: WorkerTimes, decode: WorkerTimes, slo: SLO, d: Demand) -> tuple[float, int]:
    """(n_P / n_D, cc_d) of DOPD (arXiv 2511.20982; the algebra follows its released code and independent summaries):
    cc_d T_p(ISL) / (OSL T_d(cc_d, L)), L = ISL + OSL / 2. An output of nothing balances nothing: ratio 0."""
    context = d.prompt_mean + d.output_mean / 2
    concurrency = max(1, decode.best_batch(context, (slo.tpot_ms or NO_LIMIT_S * 1e3) / 1e3))
    step = decode.decode_s(concurrency, concurrency * context)
    if d.output_mean <= 0:
        return 0.0, concurrency
    return concurrency * prefill.prefill_s(d.prompt_mean) / (d.output_mean * step), concurrency


def dopd_block_concurrency(prompt: float, output: float, num_blocks: int, block_size: int) -> int:
    """cc_d as the released code counts it: whole blocks of the mean context."""
    return num_blocks // math.ceil((prompt + output / 2) / block_size)


def _largest(holds: Callable[[float], bool], top: float) -> float:
    """Largest rate up to `top` at which it holds, to 1 %."""
    low, high = 0.0, top
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
        if high - low < 0.01 * high:
            break
    return low
