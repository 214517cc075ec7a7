"""Seconds of one worker's step as a few numbers: what planner, policies and simulator price a batch with.

    prefill   base + token * n + square * sum((prefix + n)^2 - prefix^2)
    decode    base + sequence * B + context * sum(contexts)
    mixed     the larger base once (the weights are read once), then both variable parts

The form is DistServe's (arXiv 2401.09670, appendix A, with the batch term of its code), in one branch, so that time
never falls as load grows. cost/worker_times.py fits it.
"""

import math

import msgspec

from mortice.specs.errors import RequestError


class WorkerTimes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One instance (one copy of the weights) of `gpus` accelerators. Seconds, tokens, bytes."""

    prefill_base_s: float
    prefill_token_s: float
    prefill_square_s: float = 0.0
    decode_base_s: float
    decode_sequence_s: float
    decode_context_s: float
    kv_tokens: int  # tokens of KV that the instance holds
    kv_token_bytes: float = 0.0  # of one token, all layers and ranks
    gpus: int = 1
    pp: int = 1  # pipeline stages: a new prefill batch may start after 1/pp of the time of the one before
    source: str = "given"

    def check(self) -> None:
        """Raise RequestError naming the first field that makes no sense."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                raise RequestError(f"{name} must be finite and not negative, not {value:g}", param=name)
        if (
            self.prefill_token_s + self.prefill_base_s <= 0
            or self.decode_base_s + self.decode_sequence_s <= 0
        ):
            raise RequestError("a step must take time: give a base or a time a token", param="prefill_base_s")
        for name in ("kv_tokens", "gpus", "pp"):
            if getattr(self, name) < 1:
                raise RequestError(f"{name} must be at least 1, not {getattr(self, name)}", param=name)

    def prefill_s(self, tokens: float, prefix: float = 0.0) -> float:
        """One prompt of `tokens` new tokens after `prefix` cached ones, alone."""
        square = tokens * (tokens + 2.0 * prefix)
        return self.prefill_base_s + self.prefill_token_s * tokens + self.prefill_square_s * square

    def decode_s(self, batch: float, context: float) -> float:
        """A step of `batch` sequences whose contexts sum to `context` tokens."""
        return self.decode_base_s + self.decode_sequence_s * batch + self.decode_context_s * context

    def mixed_s(self, tokens: float, square: float, batch: float, context: float) -> float:
        """A step that computes prompt chunks (`tokens`, and `square` as above) beside a decode batch."""
        base = max(self.prefill_base_s if tokens else 0.0, self.decode_base_s if batch else 0.0)
        return (
            base
            + self.prefill_token_s * tokens
            + self.prefill_square_s * square
            + self.decode_sequence_s * batch
            + self.decode_context_s * context
        )

    def best_batch(self, context: float, limit_s: float) -> int:
        """Largest decode batch of sequences of `context` tokens within `limit_s` a step and within memory; 0 if none."""
        each = self.decode_sequence_s + self.decode_context_s * context
        by_time = (limit_s - self.decode_base_s) / each if each > 0 else math.inf
        return max(0, int(min(by_time, self.kv_tokens / max(context, 1.0))))
