"""Prompts of one worker: those that wait for memory, those computed chunk by chunk, and those between two stages."""

import math
from collections import deque

from mortice.sched.prefill_order import PrefillOrder
from mortice.sim.books import Books
from mortice.sim.request import SimRequest

Chunk = tuple[SimRequest, int]  # a prompt, and how many of its tokens a step computes


class PromptQueue:
    __slots__ = ("_picked", "boundary", "order", "piped", "running", "waiting")

    def __init__(self, order: PrefillOrder | None) -> None:
        self.order = order
        self.boundary = 0.0  # of the length-aware order
        self.waiting: deque[SimRequest] = deque()  # without memory
        self.running: list[SimRequest] = []  # with memory
        self.piped: list[SimRequest] = []  # between two pipeline stages
        self._picked = 0  # prompts of the order's batch

    def add(self, request: SimRequest, now_s: float, first: bool = False) -> None:
        """Compute its prompt, and what it had given; `first`: before all that wait."""
        request.stage = "prefill"
        request.since_s = now_s
        request.tokens = request.prompt_len + request.given
        if first:
            self.waiting.appendleft(request)
        else:
            self.waiting.append(request)

    def choose(self, budget: int, num_decoding: int, slots: int, books: Books, now_s: float) -> list[Chunk]:
        """Prompt chunks of the next step: those with memory first, then new ones while memory, slots and budget last. There
        are `slots` for decoding sequences and prompts together."""
        chunks: list[Chunk] = []
        running, waiting = self.running, self.waiting
        for request in running:
            if budget <= 0:
                return chunks
            count = request.tokens if request.tokens < budget else budget
            chunks.append((request, count))
            budget -= count
        if self.order is not None and waiting and not running:
            self._bring_forward(self.order, now_s)
            waiting = self.waiting
        while waiting and budget > 0:
            request = waiting[0]
            num = num_decoding + len(running)
            if num >= slots and num:
                break
            known = request.prompt_len + request.given
            if not books.admit(request, known, num * books.block_size):
                break
            waiting.popleft()
            running.append(request)
            request.tokens = known - (request.hit if request.hit < known else known - 1)
            if math.isnan(request.prefill_at_s):
                request.prefill_at_s = now_s
            count = request.tokens if request.tokens < budget else budget
            chunks.append((request, count))
            budget -= count
            if self.order is not None and len(chunks) >= self._picked:
                break
        return chunks

    def remove(self, request: SimRequest) -> bool:
        """Forget it; whether it had memory. A step that computes it goes on, for nothing."""
        if request in self.waiting:
            self.waiting.remove(request)
            return False
        (self.piped if request in self.piped else self.running).remove(request)
        return True

    def _bring_forward(self, order: PrefillOrder, now_s: float) -> None:
        """The order's next batch to the head of the queue."""
        chosen = order.pick(self.waiting, now_s, self.boundary)
        self._picked = len(chosen)
        if chosen != list(range(len(chosen))):
            picked = [self.waiting[i] for i in chosen]
            rest = set(chosen)
            self.waiting = deque([*picked, *(r for i, r in enumerate(self.waiting) if i not in rest)])
