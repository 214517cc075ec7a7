"""A request on its way through the simulated cluster. Only its worker and the final report read `output_len`."""

import math
from typing import Any


class Move:
    """One transfer of a request's KV: the owner's end and the reader's, each with its bytes."""

    __slots__ = ("is_received", "is_sent", "request")

    def __init__(self, request: "SimRequest") -> None:
        self.request = request
        self.is_sent = self.is_received = False


class SimRequest:
    __slots__ = (
        "accepted_s",
        "arrival_s",
        "at",
        "attempts",
        "booked",
        "end_s",
        "fetched",
        "finish_step",
        "first_s",
        "given",
        "hit",
        "id",
        "index",
        "is_lent",
        "kv_at",
        "leased",
        "leaves_s",
        "move",
        "moved_s",
        "names",
        "output_len",
        "prefill_at_s",
        "prompt_len",
        "since_s",
        "stage",
        "tokens",
        "told",
        "why",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        arrival_s: float,
        prompt_len: int,
        output_len: int,
        names: list[bytes],
        leaves_s: float = math.inf,
    ) -> None:
        self.index = index
        self.id = f"r{index}"
        self.arrival_s = arrival_s
        self.prompt_len = prompt_len
        self.output_len = output_len
        self.names = names
        self.given = 0  # tokens that went out
        self.leaves_s = leaves_s  # when its client hangs up, whatever it has by then
        # new | held | fetching | prefill | bridge | moving | decode | finished | rejected | cancelled
        self.stage = "new"
        self.at: Any = None  # the worker where it is computed or waits to be
        self.kv_at: Any = None  # the worker where its prompt's KV waits to be fetched, or is read in place
        self.is_lent = False  # that KV is read where it lies; set by its owner
        self.told = False  # the control plane knows that its prompt is computed
        self.move: Move | None = None  # its KV is on its way
        self.fetched = 0  # tokens of its prompt that are there when what is sent to its worker has arrived
        self.tokens = 0  # prompt tokens still to be computed
        self.booked = 0  # tokens of memory that its admission took where it is
        self.leased = 0  # the same where its prompt's KV waits to be fetched
        self.hit = 0  # prompt tokens found in a cache
        self.since_s = arrival_s  # in its present queue
        self.finish_step = 0  # of its worker's decode steps
        self.attempts = 0
        self.first_s = math.nan
        self.end_s = math.nan
        self.prefill_at_s = math.nan  # first chunk
        self.moved_s = math.nan  # KV arrived where it decodes
        self.accepted_s = math.nan
        self.why = ""

    @property
    def known(self) -> int:
        """Tokens whose KV a worker needs before the next token."""
        return self.prompt_len + self.given

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """None where it is undefined: one token, or none."""
        if self.given < 2:
            return None
        return (self.end_s - self.first_s) / (self.given - 1)
