"""Where a request goes: which worker prefills it, which decodes it, and when the cut is not worth making.

Prefill goes to the worker that would finish it first (work queued before it, own uncached tokens included), decode to the
least loaded one (DistServe, OSDI'24, section 4.3; with cached prefixes as Mooncake's Conductor, FAST'25, algorithm 1). A
prompt is prefilled where it decodes if its uncached part is short, if no prefill worker can take it, or, on workers
tagged convertible, if the prefill pool would miss the TTFT target and the decode worker would not (TokenScale's
convertible decoders, arXiv 2512.03416). Where prefixes may be fetched, the lightest prefill worker is also weighed with the
longest cached prefix sent to it (Mooncake's global cache, the same algorithm).
"""

import math
from collections.abc import Sequence

from mortice.sched.answers import Route
from mortice.sched.fleet import Fleet, Worker
from mortice.sched.prefix_fetch import PrefixFetch
from mortice.sched.prefix_map import PrefixMap
from mortice.specs.slo import SLO
from mortice.specs.worker_times import WorkerTimes

__all__ = ["Route", "Router"]

CANDIDATES = 4  # holders of a prefix that are weighed against the lightest worker


class Router:
    """`times`: what a prompt costs; None: counted in tokens. `slo` and `times` together allow convertible decode."""

    def __init__(
        self,
        *,
        local_prefill_tokens: int,
        prefixes: PrefixMap,
        times: WorkerTimes | None = None,
        slo: SLO | None = None,
        decode_times: WorkerTimes | None = None,
        fetch: PrefixFetch | None = None,
    ) -> None:
        self.fetch = fetch
        self.local_prefill_tokens = local_prefill_tokens
        self.prefixes = prefixes
        self.times = times
        self.decode_times = decode_times or times
        self.slo = slo
        # Answers, set by the plane: mean tokens, and E[O^2] / E[O]^2, above 1.
        self.expected_output, self.output_uneven = 100.0, 2.0
        self._ttft_s = slo.ttft_ms / 1e3 if slo and slo.ttft_ms else None
        self._tpot_s = slo.tpot_ms / 1e3 if slo and slo.tpot_ms else None

    def new_fleet(self, router: int = 0) -> Fleet:
        """Books whose weights are in this router's unit of cost."""
        times = self.decode_times
        if times is None or times.decode_context_s <= 0:
            return Fleet(router=router)
        sequence = times.decode_sequence_s / times.decode_context_s
        return Fleet(
            sequence_tokens=max(1.0, sequence), work_tokens=0.05 / times.decode_context_s, router=router
        )

    def place(self, prompt_len: int, names: Sequence[bytes], fleet: Fleet, *, now_s: float) -> Route | None:
        """Choose; the caller books the choice (ControlPlane does). None if no worker can decode."""
        decode = self.place_decode(names, fleet)
        if decode is None:
            return None
        cached = self.prefixes.cached_tokens(decode.worker_id, names) if names else 0
        own = self.work(prompt_len - cached, cached)
        here = decode.prefill_work + own
        prefill, work, cost = self._best_prefill(prompt_len, names, fleet)
        source, num_fetched = "", 0
        if self.fetch is not None and prefill is not None and names:
            sent = self._with_a_prefix_sent(self.fetch, prompt_len, names, fleet, now_s, cost)
            if sent is not None:
                prefill, source, num_fetched, work, cost = sent
        if prefill is None:
            alone = "no prefill worker can take it" if decode.role == "decode" else "colocated"
            return Route(None, decode.worker_id, alone, here, work=own)
        if prompt_len - cached <= self.local_prefill_tokens:
            why = f"{prompt_len - cached} uncached tokens: not worth a hand-over"
            return Route(None, decode.worker_id, why, here, prefill.worker_id, cost, own)
        if decode.role == "mixed":
            if here <= cost:
                return Route(
                    None, decode.worker_id, "colocated is sooner", here, prefill.worker_id, cost, own
                )
        elif decode.convertible and self._rescues(decode, prompt_len, own, here, cost, now_s):
            why = "convertible: the prefill pool would be late"
            return Route(None, decode.worker_id, why, here, prefill.worker_id, cost, own)
        return Route(
            prefill.worker_id,
            decode.worker_id,
            "a prefix is sent" if source else "first to finish",
            cost,
            decode.worker_id,
            here,
            work,
            source,
            num_fetched,
        )

    def place_decode(self, names: Sequence[bytes], fleet: Fleet) -> Worker | None:
        """The lightest worker that decodes; of equal ones, that which holds most of the prompt."""
        pools = fleet.pools
        best = pools["decode"].lightest()
        mixed = pools["mixed"].lightest()
        if best is None or (mixed is not None and mixed.heap_key < best.heap_key):
            best = mixed
        if best is None or not names:
            return best
        most = self.prefixes.cached_tokens(best.worker_id, names)
        for worker_id in self.prefixes.holders(names, CANDIDATES):
            worker = fleet.workers.get(worker_id)
            if worker is None or worker.role == "prefill" or not worker.accepts:
                continue
            if worker.heap_key <= best.heap_key:
                cached = self.prefixes.cached_tokens(worker_id, names)
                if cached > most:
                    best, most = worker, cached
        return best

    def _best_prefill(
        self, prompt_len: int, names: Sequence[bytes], fleet: Fleet
    ) -> tuple[Worker | None, float, float]:
        """(worker, the prompt's own work there, work until its first token)."""
        best = fleet.pools["prefill"].lightest()
        if best is not None and not self._fits(best, prompt_len):
            fitting = [w for w in fleet.pools["prefill"].members.values() if self._fits(w, prompt_len)]
            best = min(fitting, key=lambda w: (w.heap_key, w.order), default=None)
        if best is None:
            return None, 0.0, 0.0
        cached = self.prefixes.cached_tokens(best.worker_id, names) if names else 0
        work = self.work(prompt_len - cached, cached)
        cost = best.prefill_work + work
        if names:
            for worker_id in self.prefixes.holders(names, CANDIDATES):
                worker = fleet.workers.get(worker_id)
                if worker is None or worker.role != "prefill" or not worker.accepts or worker is best:
                    continue
                hit = self.prefixes.cached_tokens(worker_id, names)
                mine = self.work(prompt_len - hit, hit)
                if worker.prefill_work + mine < cost and self._fits(worker, prompt_len):
                    best, work, cost = worker, mine, worker.prefill_work + mine
        return best, work, cost

    def _with_a_prefix_sent(
        self,
        fetch: PrefixFetch,
        prompt_len: int,
        names: Sequence[bytes],
        fleet: Fleet,
        now_s: float,
        cost: float,
    ) -> tuple[Worker, str, int, float, float] | None:
        """(worker, who sends it how many tokens, its own work, work until its first token), if that is below `cost`."""
        worker = fleet.pools["prefill"].lightest()
        if worker is None or not self._fits(worker, prompt_len):
            return None
        own = self.prefixes.cached_tokens(worker.worker_id, names)
        for holder_id in self.prefixes.holders(names, 1):
            holder = fleet.workers.get(holder_id)
            hit = self.prefixes.cached_tokens(holder_id, names)
            if holder is None or hit <= own:
                continue
            work = self.work(prompt_len - hit, hit)
            sent_s = max(0.0, holder.sends_until_s - now_s) + fetch.lasts_s(hit - own)
            if sent_s + worker.prefill_work + work < cost:
                return worker, holder_id, hit - own, work, sent_s + worker.prefill_work + work
        return None

    def send(self, holder: Worker, num_tokens: int, now_s: float) -> None:
        """A worker was told to send so many tokens of a prefix: its port has that much more to do."""
        if self.fetch is not None:
            holder.sends_until_s = max(now_s, holder.sends_until_s) + self.fetch.lasts_s(num_tokens)

    def _rescues(
        self, decode: Worker, prompt_len: int, own: float, here: float, cost: float, now_s: float
    ) -> bool:
        """Prefill on the decode worker meets the TTFT target that the prefill pool would miss, there is memory for it, and
        it costs less than it saves: of the answers beside it fewer than one becomes too slow."""
        times = self.decode_times
        if times is None or self._ttft_s is None or cost <= 0.9 * self._ttft_s or here >= cost:
            return False
        if decode.context_tokens + prompt_len > decode.num_blocks * self.prefixes.block_size:
            return False
        if self._tpot_s is None or decode.num_decoding == 0:
            return True
        step = times.decode_s(decode.num_decoding + 1, decode.context_tokens) * decode.slowdown
        slack = 1.0 - step / self._tpot_s
        if slack <= 0:
            return False
        debt = max(0.0, decode.debt - slack * (now_s - decode.debt_at_s))
        joining = own / (
            self.expected_output * step
        )  # while it is computed, for each that decodes (Little's law)
        return decode.num_decoding * self._too_short((debt + own) / (slack * self._tpot_s), joining) < 1

    def _too_short(self, tokens: float, joining: float) -> float:
        """Answers of fewer than so many tokens, for each that decodes: of those under way, longer than the mean as one finds
        them, and of `joining` new ones. Lengths are log-normal."""
        square = math.log(self.output_uneven)
        above = math.log(tokens / self.expected_output) + square / 2
        spread = math.sqrt(2 * square)
        return (math.erfc((square - above) / spread) + joining * math.erfc(-above / spread)) / 2

    def owe(self, worker: Worker, work: float, now_s: float) -> None:
        """Prefill work was given to a worker that decodes: its batch has that much to make up for."""
        times = self.decode_times
        if times is not None and self._tpot_s is not None:
            step = times.decode_s(worker.num_decoding + 1, worker.context_tokens) * worker.slowdown
            leak = max(0.0, 1.0 - step / self._tpot_s) * (now_s - worker.debt_at_s)
            worker.debt = max(0.0, worker.debt - leak) + work
            worker.debt_at_s = now_s

    def work(self, tokens: int, prefix: int = 0) -> float:
        """Cost of a prompt's prefill, alone: seconds where times are known, else tokens."""
        return float(tokens) if self.times is None else self.times.prefill_s(max(1, tokens), prefix)

    def _fits(self, worker: Worker, prompt_len: int) -> bool:
        return prompt_len + 1 <= worker.num_blocks * self.prefixes.block_size
