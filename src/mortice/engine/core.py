"""The engine: messages in, one step at a time, messages out. No sockets, no threads of its own, no wall clock hidden in it.

A step is: propose drafts, plan, start transfers, run the model, sample, account. The same engine prefills for others
(`prefill_only` requests end in a lease), decodes what others prefilled (requests with a `handoff`), and does both.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace

import torch
from torch import Tensor

from mortice.engine.decoding import Decoding
from mortice.engine.guided import GrammarCompiler, GrammarError, GrammarMask
from mortice.engine.handoff import Handoff
from mortice.engine.idle import DeviceIdle
from mortice.engine.ledger import Ledger, work_of
from mortice.engine.runner import LogitRows, Runner
from mortice.engine.sampler import SamplerState, draw_batch, edit, sample_one, token_logprobs
from mortice.engine.speculate import Drafter, DraftLength
from mortice.kv.hashing import chain_root
from mortice.kv.pool import BlockPool
from mortice.sched.batching import BatchScheduler
from mortice.sched.sequence import Arrival, Sequence, StepPlan
from mortice.specs.messages import (
    Abort,
    Call,
    Deltas,
    EndSequence,
    FromWorker,
    LeaseRelease,
    LeaseRenew,
    PeerGone,
    Prefilled,
    Pushed,
    PushTarget,
    Submit,
    ToWorker,
)
from mortice.specs.request import Delta, TokenLogprob

log = logging.getLogger(__name__)


class Engine:
    """One worker's mind. Everything here runs on one thread."""

    def __init__(
        self,
        *,
        runner: Runner,
        scheduler: BatchScheduler,
        pool: BlockPool,
        handoff: Handoff,
        ledger: Ledger,
        grammars: GrammarCompiler,
        drafter: Drafter | None,
        max_draft: int,
        eos_token_ids: list[int],
        max_context: int,
        model_identity: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.runner = runner
        self.scheduler = scheduler
        self.pool = pool
        self.handoff = handoff
        self.ledger = ledger
        self.idle = DeviceIdle(runner.device)
        self.clock = clock
        self.weight_version = 0
        self.adapters: set[str] = set()
        self.counters = dict.fromkeys(
            ("prompt_tokens", "generation_tokens", "spec_proposed", "spec_accepted"), 0
        )
        self._grammars = grammars
        self._drafter = drafter
        self._max_draft = max_draft
        self._eos = frozenset(eos_token_ids)
        self.max_context = max_context
        self._model_identity = model_identity
        self._decoding: dict[Sequence, Decoding] = {}
        self._compiling: list[tuple[list[Sequence], Arrival | None, list[Future[GrammarMask]]]] = []

    # -- messages -----------------------------------------------------------------------------------------------

    def hear(self, message: ToWorker) -> list[FromWorker]:
        """Any word of the cluster but a `Call`, which is the loop's; answers with words that are ready at once."""
        match message:
            case Submit():
                return self.submit(message)
            case Abort():
                return self.abort(message)
            case EndSequence():
                return self.end_sequence(message)
            case LeaseRenew(lease_ids):
                self.handoff.leases.renew(lease_ids, self.clock())
            case LeaseRelease(lease_ids):
                self.handoff.release(lease_ids)
            case PushTarget():
                return self.push(message)
            case Pushed():
                return self.pushed(message)
            case PeerGone(pool_id):
                return self.peer_gone(pool_id)
            case Call():
                raise AssertionError("a call is for the loop")
        return []

    def submit(self, message: Submit) -> list[FromWorker]:
        """Take a request in. A request that can never run here is answered with an error delta at once."""
        request = message.request
        refusal = self._refusal(message)
        if refusal is not None:
            return [
                Deltas([_failed(request.id, i, refusal, is_request_at_fault=True) for i in range(request.n)])
            ]
        sequences = self._sequences_of(message)
        arrival = None
        if message.handoff is not None:
            lent = self.handoff.offer(message.handoff)
            arrival = Arrival(sequences, message.handoff.num_tokens, message.handoff.lease_id, lent=lent)
        for sequence in sequences:
            self._decoding[sequence] = self._new_decoding(sequence)
        grammar = request.sampling.grammar
        if grammar is not None:
            futures = [self._grammars.compile(grammar, s.token_ids[s.prompt_len :]) for s in sequences]
            self._compiling.append((sequences, arrival, futures))
        else:
            self._schedule(sequences, arrival)
        return []

    def abort(self, message: Abort) -> list[FromWorker]:
        over: list[str] = []
        for request_id in message.request_ids:
            over += self._drop_request(request_id)
            self.handoff.cancel(request_id)
        return [LeaseRelease(over)] if over else []

    def end_sequence(self, message: EndSequence) -> list[FromWorker]:
        """One of a request's sequences is wanted no more. A leader that has not forked yet speaks for all of them."""
        ended = [
            s
            for s in self._decoding
            if s.request.id == message.request_id and s.index == message.index and not s.num_forks
        ]
        over: list[str] = []
        for sequence in ended:
            self._forget(sequence)
            arrival = self.scheduler.end(sequence)
            for entry in self._compiling:
                if sequence in entry[0]:
                    where = entry[0].index(sequence)
                    del entry[0][where], entry[2][where]
                    arrival = entry[1] if not entry[0] else None
            if arrival is not None:
                self.handoff.withdraw(arrival.lease_id)
                over.append(arrival.lease_id)
        self._compiling = [entry for entry in self._compiling if entry[0]]
        return [LeaseRelease(over)] if over else []

    def push(self, message: PushTarget) -> list[FromWorker]:
        refusal = self.handoff.push(message)
        return [refusal] if refusal else []

    def pushed(self, message: Pushed) -> list[FromWorker]:
        arrival = self.scheduler.fetching.get(message.lease_id)
        if arrival is None:
            return []
        result = self.handoff.pushed(message, arrival.blocks[arrival.num_skip :])
        self.handoff.count(result)
        return self._fetch_ended(message.lease_id, result.error)

    def peer_gone(self, pool_id: str) -> list[FromWorker]:
        out: list[FromWorker] = []
        for lease_id in self.handoff.peer_gone(pool_id):
            if lease_id in self.scheduler.fetching:  # one that still waits for room learns it when it asks
                out += self._fetch_ended(lease_id, "the owner died")
        return out

    def heartbeats(self) -> list[FromWorker]:
        """Renewals for every lease this worker still means to read; expires those nobody renewed here."""
        self.handoff.expire(self.clock())
        offered = self.handoff.offered()
        return [LeaseRenew(offered)] if offered else []

    # -- the step -----------------------------------------------------------------------------------------------

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_work or bool(self._compiling)

    def collect(self) -> list[FromWorker]:
        """Take in what other threads finished: transfers and compiled grammars."""
        out: list[FromWorker] = []
        reads, pushed = self.handoff.results()
        out += pushed
        for result in reads:
            self.handoff.count(result)
            out += self._fetch_ended(result.lease_id, result.error)
        out += self._collect_grammars()
        return out + self._give_back()

    def step(self) -> tuple[bool, list[FromWorker]]:
        """Run one step if something can run; answers whether it did, and what it made."""
        stage = self.ledger.stage
        with stage("schedule"):
            self._propose_drafts()
            plan = self.scheduler.plan(self.clock())
            out: list[FromWorker] = []
            for arrival in plan.fetches:
                order = self.handoff.fetch(arrival)
                if order is not None:
                    out.append(order)
        if not plan.chunks:
            self.idle.forget()
            return False, out
        rows: list[LogitRows] = []
        work = work_of(plan)
        try:
            with stage("prepare"):
                self.runner.copy_blocks(plan.copies)
                step, rows = self.runner.prepare(plan)
            with stage("forward"), self.idle:
                logits = self.runner.forward(step)
            plan, rows = self._without_the_robbed(plan, rows)
            with stage("sample"), torch.inference_mode():
                out += self._advance(plan, rows, logits)
        except Exception as error:
            # Whatever broke this step, the requests in it are lost and the others are not.
            log.exception("step failed")
            out += self._fail_plan(plan, f"the engine failed: {type(error).__name__}: {error}")
        self.ledger.end_step(
            num_seqs=len(plan.chunks),
            num_tokens=plan.num_tokens,
            context_tokens=sum(chunk.start + chunk.count for chunk in plan.chunks),
            num_outputs=len(rows),
            work=work,
        )
        if not self.has_work:
            self.idle.forget()
        return True, out + self._give_back()

    def _without_the_robbed(self, plan: StepPlan, rows: list[LogitRows]) -> tuple[StepPlan, list[LogitRows]]:
        """A step may have read lent blocks after their lease had run out: those sequences are computed anew."""
        robbed = {
            chunk.sequence
            for chunk in plan.chunks
            if chunk.sequence.lease_id and not self.handoff.is_intact(chunk.sequence.lease_id)
        }
        if not robbed:
            return plan, rows
        for sequence in robbed:
            log.info("KV under lease %s was given away: computing it here", sequence.lease_id)
            self.scheduler.preempt(sequence)
        chunks = [chunk for chunk in plan.chunks if chunk.sequence not in robbed]
        return replace(plan, chunks=chunks), [row for row in rows if row.chunk.sequence not in robbed]

    def _give_back(self) -> list[FromWorker]:
        """The lent blocks under which no sequence reads any more."""
        returned, self.scheduler.returned = self.scheduler.returned, []
        return [self._end_offer(lease_id) for lease_id in returned]

    def _advance(self, plan: StepPlan, rows: list[LogitRows], logits: Tensor) -> list[FromWorker]:
        """Sample where the plan reached the newest token; move every sequence on; say what became of them."""
        for chunk in plan.chunks:
            start, prompt_len = chunk.start, chunk.sequence.prompt_len
            self.counters["prompt_tokens"] += max(0, min(start + chunk.count, prompt_len) - start)
            if not chunk.samples:
                self.scheduler.computed(chunk.sequence, start + chunk.count)
        deltas: list[Delta] = []
        prefilled: list[FromWorker] = []
        together: list[tuple[Decoding, int]] = []  # one row each, no fork, no draft: sampled as a batch
        for row in rows:
            decoding = self._decoding[row.chunk.sequence]
            if decoding.sequence.request.sampling.prompt_logprobs is not None:
                self._note_prompt_logprobs(decoding, row, logits)
            if not row.chunk.samples:
                continue
            last = row.first + row.count - 1
            if decoding.sequence.num_forks or decoding.sequence.prefill_only:
                deltas_here = self._first_tokens(decoding, logits[last])
                if decoding.sequence.prefill_only:
                    prefilled.append(self._end_prefill(decoding.sequence, deltas_here))
                else:
                    deltas += deltas_here
            elif row.chunk.num_drafts:
                first = last - row.chunk.num_drafts
                deltas.append(self._verify(decoding, logits[first : last + 1], row.chunk.num_drafts))
            else:
                together.append((decoding, last))
        deltas += self._sample_together(together, logits)
        return [*prefilled, Deltas(deltas)] if deltas else prefilled

    def _sample_together(self, together: list[tuple[Decoding, int]], logits: Tensor) -> list[Delta]:
        if not together:
            return []
        picked = [row for _, row in together]
        logits = logits if picked == list(range(len(logits))) else logits[picked]
        raw = logits.clone() if any(d.sampler.params.logprobs is not None for d, _ in together) else logits
        deltas: list[Delta] = []
        sound: list[int] = []
        for i, (decoding, _) in enumerate(together):
            try:
                edit(logits[i], decoding.sampler)
                sound.append(i)
            except GrammarError as error:  # ends its own sequence only
                deltas.append(self._end_with_error(decoding, error))
        rows = logits if len(sound) == len(together) else logits[sound]
        tokens = draw_batch(rows, [together[i][0].sampler for i in sound])
        return deltas + [
            self._take(together[i][0], [token], raw[i : i + 1])
            for i, token in zip(sound, tokens, strict=True)
        ]

    def _sample_alone(self, decoding: Decoding, logits: Tensor) -> Delta:
        """One row by itself: a grammar at fault ends its own sequence only."""
        try:
            token = sample_one(logits.clone(), decoding.sampler)
        except GrammarError as error:
            return self._end_with_error(decoding, error)
        return self._take(decoding, [token], logits.unsqueeze(0))

    def _first_tokens(self, leader: Decoding, logits: Tensor) -> list[Delta]:
        """The prompt is done: fork the siblings and sample each one's first token from the same logits."""
        sequence = leader.sequence
        self.scheduler.computed(sequence, len(sequence.token_ids))
        family = [leader]
        for sibling in self.scheduler.fork(sequence):
            decoding = self._new_decoding(sibling)
            decoding.prompt_logprobs = leader.prompt_logprobs
            if leader.grammar is not None:
                decoding.sampler.grammar = leader.grammar.copy()
            self._decoding[sibling] = decoding
            family.append(decoding)
        return [self._sample_alone(decoding, logits) for decoding in family]

    def _verify(self, decoding: Decoding, logits: Tensor, num_drafts: int) -> Delta:
        """Draw at each drafted position in turn; go on for as long as the draft says what was drawn."""
        drafts = decoding.sequence.drafts[:num_drafts]
        raw = logits.clone()
        tokens: list[int] = []
        known = len(decoding.sequence.token_ids)
        try:
            for i in range(num_drafts + 1):
                token = sample_one(logits[i], decoding.sampler)
                tokens.append(token)
                decoding.accept(token)
                if decoding.finish_reason or (i < num_drafts and token != drafts[i]):
                    break
        except GrammarError as error:
            return self._end_with_error(decoding, error)
        self.counters["spec_proposed"] += num_drafts
        self.counters["spec_accepted"] += len(tokens) - 1
        if decoding.draft_length is not None:
            decoding.draft_length.observe(num_drafts, len(tokens) - 1)
        assert len(decoding.sequence.token_ids) == known + len(tokens)
        return self._report(decoding, tokens, raw[: len(tokens)])

    def _take(self, decoding: Decoding, tokens: list[int], raw: Tensor) -> Delta:
        try:
            for token in tokens:
                decoding.accept(token)
        except GrammarError as error:
            return self._end_with_error(decoding, error)
        return self._report(decoding, tokens, raw)

    def _report(self, decoding: Decoding, tokens: list[int], raw: Tensor) -> Delta:
        """Accepted tokens become a delta; an ended sequence gives its blocks back (a prefilled one keeps them yet)."""
        sequence, params = decoding.sequence, decoding.sampler.params
        self.counters["generation_tokens"] += len(tokens)
        logprobs: list[TokenLogprob] | None = None
        if params.logprobs is not None:
            logprobs = token_logprobs(raw, tokens, params.logprobs)
        delta = Delta(
            sequence.request.id,
            sequence.index,
            tokens,
            weight_version=self.weight_version,
            finish_reason=decoding.finish_reason,
            stop_token_id=decoding.stop_token_id,
            logprobs=logprobs,
        )
        if not decoding.is_announced:
            decoding.is_announced = True
            delta.num_cached_tokens = sequence.num_cached
            if params.prompt_logprobs is not None:
                delta.prompt_logprobs = decoding.prompt_logprobs
        self.scheduler.computed(sequence, len(sequence.token_ids) - 1)
        if decoding.finish_reason is not None and not sequence.prefill_only:
            self.scheduler.finish(sequence)
            self._forget(sequence)
        return delta

    def _end_prefill(self, leader: Sequence, first: list[Delta]) -> Prefilled:
        """First tokens are out; the prompt's blocks go under a lease if any sequence lives on."""
        family = [s for s in self.scheduler.running if s.request.id == leader.request.id]
        going_on = {d.index for d in first if d.finish_reason is None}
        descriptor = None
        for sequence in family:
            if descriptor is None and sequence.index in going_on:
                blocks = self.scheduler.detach(sequence)
                descriptor = self.handoff.grant(leader.request.id, blocks, leader.prompt_len, self.clock())
            else:
                self.scheduler.finish(sequence)
            self._forget(sequence)
        return Prefilled(request_id=leader.request.id, first=first, descriptor=descriptor)

    # -- inside -------------------------------------------------------------------------------------------------

    def _refusal(self, message: Submit) -> str | None:
        request = message.request
        if request.adapter is not None and request.adapter not in self.adapters:
            return f"adapter {request.adapter!r} is not loaded"
        known = len(request.prompt_token_ids) + max((len(r) for r in message.resumed if r), default=0)
        capacity = self.pool.num_blocks * self.scheduler.block_size
        if known + 1 > min(capacity, self.max_context + 1):
            return f"{known} tokens do not fit this worker, which holds {min(capacity, self.max_context)}"
        return None

    def _sequences_of(self, message: Submit) -> list[Sequence]:
        request = message.request
        chain = self._chain_of(request.adapter, request.cache_salt)
        if not message.resumed:
            return [
                Sequence(
                    request,
                    0,
                    list(request.prompt_token_ids),
                    chain,
                    num_forks=request.n - 1,
                    prefill_only=message.prefill_only,
                )
            ]
        return [
            Sequence(request, index, [*request.prompt_token_ids, *tokens], chain)
            for index, tokens in enumerate(message.resumed)
            if tokens is not None
        ]

    def _chain_of(self, adapter: str | None, salt: str) -> bytes:
        return chain_root(
            model=self._model_identity, weight_version=self.weight_version, adapter=adapter, salt=salt
        )

    def _new_decoding(self, sequence: Sequence) -> Decoding:
        sampler = SamplerState(
            sequence.request.sampling,
            sequence.index,
            sequence.token_ids,
            sequence.prompt_len,
            tuple(self._eos),
        )
        return Decoding(
            sequence,
            sampler,
            self._eos,
            self.max_context,
            draft_length=DraftLength(self._max_draft) if self._drafter else None,
            is_announced=sequence.num_output > 0,
        )

    def _schedule(self, sequences: list[Sequence], arrival: Arrival | None) -> None:
        if arrival is not None:
            self.scheduler.add_arrival(arrival)
        else:
            for sequence in sequences:
                self.scheduler.add(sequence)

    def _collect_grammars(self) -> list[FromWorker]:
        out: list[FromWorker] = []
        waiting = []
        for sequences, arrival, futures in self._compiling:
            if not all(future.done() for future in futures):
                waiting.append((sequences, arrival, futures))
                continue
            try:
                for sequence, future in zip(sequences, futures, strict=True):
                    self._decoding[sequence].sampler.grammar = future.result()
                self._schedule(sequences, arrival)
            except GrammarError as error:
                request = sequences[0].request
                over = self._drop_request(request.id)
                fault = error.is_request_at_fault
                failed = [
                    _failed(request.id, i, str(error), is_request_at_fault=fault) for i in range(request.n)
                ]
                out.append(Deltas(failed))
                if over:
                    out.append(LeaseRelease(over))
        self._compiling = waiting
        return out

    def _propose_drafts(self) -> None:
        """Drafts for sequences that decode, as long as acceptance pays for their rows."""
        if self._drafter is None:
            return
        sequences, limits = [], []
        for sequence in self.scheduler.running:
            if sequence.is_prefill or sequence.prefill_only or sequence.num_forks:
                continue
            length = self._decoding[sequence].draft_length
            left = sequence.request.sampling.max_tokens - sequence.num_output - 1
            room = self.max_context - len(sequence.token_ids) - 1
            sequences.append(sequence)
            limits.append(max(0, min(length.limit() if length else 0, left, room)))
        if any(limits):
            for sequence, drafts in zip(sequences, self._drafter.propose(sequences, limits), strict=True):
                sequence.drafts = drafts

    def _note_prompt_logprobs(self, decoding: Decoding, row: LogitRows, logits: Tensor) -> None:
        """Logits at position p speak of token p + 1."""
        sequence, start = decoding.sequence, row.chunk.start
        num_top = sequence.request.sampling.prompt_logprobs or 0
        last = min(start + row.count, sequence.prompt_len - 1)
        if not decoding.prompt_logprobs:
            decoding.prompt_logprobs.append(None)
        del decoding.prompt_logprobs[start + 1 :]  # a preempted prompt is computed again from here
        following = sequence.token_ids[start + 1 : last + 1]
        if following:
            part = logits[row.first : row.first + len(following)]
            decoding.prompt_logprobs += token_logprobs(part, following, num_top)

    def _fetch_ended(self, lease_id: str, error: str | None) -> list[FromWorker]:
        if error is None:
            fetched = self.scheduler.fetching.get(lease_id)
            if fetched is not None:
                self.handoff.landed(fetched.blocks[fetched.num_skip :])
            arrival = self.scheduler.arrived(lease_id)
        else:
            log.warning("KV of lease %s could not be fetched (%s): computing it here", lease_id, error)
            arrival = self.scheduler.not_arrived(lease_id)
        return [self._end_offer(lease_id)] if arrival is not None else []

    def _end_offer(self, lease_id: str) -> LeaseRelease:
        self.handoff.withdraw(lease_id)
        return LeaseRelease([lease_id])

    def _drop_request(self, request_id: str) -> list[str]:
        """Forget a request; answers the leases nobody here will read. One under a running fetch ends with the fetch."""
        gone = self.scheduler.remove(request_id)
        gone += [a for s, a, _ in self._compiling if a is not None and s[0].request.id == request_id]
        self._compiling = [entry for entry in self._compiling if entry[0][0].request.id != request_id]
        for arrival in gone:
            self.handoff.withdraw(arrival.lease_id)
        for sequence in [s for s in self._decoding if s.request.id == request_id]:
            self._forget(sequence)
        return [arrival.lease_id for arrival in gone]

    def _forget(self, sequence: Sequence) -> None:
        del self._decoding[sequence]
        if self._drafter is not None:
            self._drafter.forget(sequence)

    def _end_with_error(self, decoding: Decoding, error: GrammarError) -> Delta:
        sequence = decoding.sequence
        decoding.finish_reason = "error"
        if not sequence.prefill_only:
            self.scheduler.finish(sequence)
            self._forget(sequence)
        return _failed(
            sequence.request.id, sequence.index, str(error), is_request_at_fault=error.is_request_at_fault
        )

    def _fail_plan(self, plan: StepPlan, why: str) -> list[FromWorker]:
        deltas = []
        for request_id in {chunk.sequence.request.id for chunk in plan.chunks}:
            alive = [s for s in self._decoding if s.request.id == request_id]
            indices = {i for s in alive for i in range(s.index, s.index + 1 + s.num_forks)}
            self._drop_request(request_id)
            deltas += [_failed(request_id, i, why) for i in sorted(indices)]
        return [Deltas(deltas)]

    def renew_chains(self) -> None:
        """The weights changed: sequences computed anew from here on belong to the new version's cache."""
        for sequence in self.scheduler.waiting:
            sequence.chain = self._chain_of(sequence.request.adapter, sequence.request.cache_salt)
            sequence.names = []

    def check_integrity(self) -> None:
        """Assert that every block is free, held by a sequence, or under a lease."""
        self.pool.check_integrity([*self.scheduler.held_blocks(), *self.handoff.leases.held_blocks()])


def _failed(request_id: str, index: int, why: str, *, is_request_at_fault: bool = False) -> Delta:
    return Delta(
        request_id,
        index,
        [],
        finish_reason="error",
        error=why,
        is_request_at_fault=is_request_at_fault,
    )
