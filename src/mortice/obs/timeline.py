"""When a request passed which point, and what that makes of its time."""

from dataclasses import dataclass

STAGES = ("edge", "queue", "prefill", "transfer", "decode")


@dataclass(slots=True)
class Timeline:
    """Points in seconds since the epoch; 0.0 for one that was not passed. Written by the edge.

    arrival -> queued -> prefill -> handoff -> decode -> end: a stage ends where the next begins, so
    whatever points are missing, the five stages add up to end - arrival.
    """

    request_id: str
    arrival_s: float
    queued_s: float = 0.0  # the cluster has it
    prefill_s: float = 0.0  # it was sent to a worker, where it may still wait
    handoff_s: float = 0.0  # the prompt is computed; its KV may be fetched
    decode_s: float = 0.0  # the KV is where it decodes
    first_token_s: float = 0.0  # seen at the edge; the end of prefill where the cluster told of none
    end_s: float = 0.0

    def mark(self, kind: str, t_s: float) -> None:
        """Note the first happening of each kind that is a point of ours; others pass."""
        field = _POINTS.get(kind)
        if field is not None and getattr(self, field) == 0.0:
            setattr(self, field, t_s)

    def stages(self) -> dict[str, float]:
        """Seconds of each of STAGES, none negative; their sum is the end-to-end latency."""
        end = max(self.end_s, self.arrival_s)
        handoff = self.handoff_s or self.first_token_s or end
        bounds = [self.arrival_s, self.queued_s, self.prefill_s, handoff, self.decode_s or handoff, end]
        for i in range(len(bounds) - 2, 0, -1):  # a point that was not passed gives its stage no time
            bounds[i] = min(bounds[i] or bounds[i + 1], bounds[i + 1])
        for i in range(1, len(bounds)):
            bounds[i] = max(bounds[i], bounds[i - 1])
        return {name: b - a for name, a, b in zip(STAGES, bounds, bounds[1:], strict=False)}


# The cluster tells of `prefill` when it is over, and of its beginning by `route`.
_POINTS = {"queued": "queued_s", "route": "prefill_s", "prefill": "handoff_s", "decode": "decode_s"}
