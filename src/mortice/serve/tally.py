"""Counts one request as it runs: usage, latencies, the timeline, and what of it goes to metrics, trace and
log.
"""

import time

import msgspec

from mortice.obs.timeline import Timeline
from mortice.obs.trace import Ended
from mortice.serve.edge import Edge
from mortice.serve.voice import Piece
from mortice.specs.request import Delta, Request


class PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: int


class CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Tally:
    """Of one request to the cluster. `sees` each delta, `hears` each piece, `ends` once."""

    def __init__(self, edge: Edge, request: Request, operation: str) -> None:
        self.request = request
        self.num_cached = 0
        self.num_completion = 0
        self.num_reasoning = 0
        self.finish_reasons: dict[int, str] = {}
        self.timeline = Timeline(request.id, request.arrival_s)
        self._edge = edge
        self._operation = operation
        self._last: dict[int, float] = {}  # index -> time of its newest token
        self._begun = False
        edge.timelines[request.id] = self.timeline

    def sees(self, delta: Delta) -> None:
        now = time.time()
        metrics = self._edge.metrics
        if not self._begun:
            self._begun = True
            self.timeline.first_token_s = now
            self.num_cached = delta.num_cached_tokens
            metrics.observe("time_to_first_token_seconds", now - self.request.arrival_s)
        count = len(delta.token_ids)
        last = self._last.get(delta.index)
        self._last[delta.index] = now
        if last is not None and count:
            for _ in range(count):
                metrics.observe("inter_token_latency_seconds", (now - last) / count)

    def hears(self, piece: Piece) -> None:
        self.num_completion += len(piece.token_ids)
        self.num_reasoning += piece.num_reasoning_tokens
        if piece.finish_reason is not None:
            self.finish_reasons[piece.index] = piece.finish_reason

    def ends(self, error: str | None = None) -> None:
        """`error`: a short word for what went wrong (`client_closed`, `slow_reader`, ...), None if
        nothing.
        """
        edge, request, timeline = self._edge, self.request, self.timeline
        del edge.timelines[request.id]
        timeline.end_s = max(time.time(), timeline.arrival_s)
        metrics = edge.metrics
        num_prompt = len(request.prompt_token_ids)
        if self._begun:
            metrics.add("prompt_tokens_total", num_prompt)
            metrics.add("prompt_tokens_cached_total", self.num_cached)
            metrics.add("prompt_tokens_by_source_total", self.num_cached, "local_cache_hit")
            metrics.add("prompt_tokens_by_source_total", num_prompt - self.num_cached, "local_compute")
            metrics.add("generation_tokens_total", self.num_completion)
        for reason in self.finish_reasons.values():
            metrics.add("request_success_total", 1, reason)
        for _ in range(request.n - len(self.finish_reasons)):
            metrics.add("request_success_total", 1, "abort" if error == "client_closed" else "error")
        if error is None:
            self._observe(num_prompt)
        edge.tracer.record(
            Ended(
                operation=self._operation,
                model=request.adapter or edge.cluster.model.name,
                timeline=timeline,
                prompt_tokens=num_prompt,
                completion_tokens=self.num_completion,
                finish_reasons=list(self.finish_reasons.values()),
                max_tokens=request.sampling.max_tokens,
                temperature=request.sampling.temperature,
                error=error,
                traceparent=request.traceparent,
            )
        )
        edge.log.info(
            "request ended",
            request_id=request.id,
            operation=self._operation,
            prompt_tokens=num_prompt,
            cached_tokens=self.num_cached,
            completion_tokens=self.num_completion,
            finish=",".join(self.finish_reasons.values()),
            error=error,
            ttft_ms=_ms(timeline.first_token_s - timeline.arrival_s) if timeline.first_token_s else None,
            e2e_ms=_ms(timeline.end_s - timeline.arrival_s),
        )

    def _observe(self, num_prompt: int) -> None:
        metrics, timeline, sampling = self._edge.metrics, self.timeline, self.request.sampling
        stages = timeline.stages()
        metrics.observe("e2e_request_latency_seconds", timeline.end_s - timeline.arrival_s)
        metrics.observe("request_queue_time_seconds", stages["edge"] + stages["queue"])
        metrics.observe("request_prefill_time_seconds", stages["prefill"])
        metrics.observe("request_transfer_time_seconds", stages["transfer"])
        metrics.observe("request_decode_time_seconds", stages["decode"])
        metrics.observe(
            "request_inference_time_seconds", stages["prefill"] + stages["transfer"] + stages["decode"]
        )
        metrics.observe("request_prompt_tokens", num_prompt)
        metrics.observe("request_generation_tokens", self.num_completion)
        metrics.observe("request_params_n", self.request.n)
        metrics.observe("request_params_max_tokens", sampling.max_tokens)
        per_sequence = self.num_completion / self.request.n
        if per_sequence > 1 and self._last:
            newest = max(self._last.values())
            metrics.observe(
                "request_time_per_output_token_seconds",
                (newest - timeline.first_token_s) / (per_sequence - 1),
            )


def usage_of(tallies: list[Tally]) -> Usage:
    prompt = sum(len(t.request.prompt_token_ids) for t in tallies)
    completion = sum(t.num_completion for t in tallies)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptDetails(sum(t.num_cached for t in tallies)),
        completion_tokens_details=CompletionDetails(sum(t.num_reasoning for t in tallies)),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
