"""The loop: take in what came, run a step, send what it made."""

import logging
import os
import select
import time
from collections import deque

import zmq

from mortice.engine.admin import Admin
from mortice.engine.core import Engine
from mortice.specs.errors import MorticeError
from mortice.specs.messages import (
    Call,
    FromWorker,
    Hello,
    KVEvents,
    Reply,
    ToWorker,
    WorkerStats,
    decode_to_worker,
    encode,
)

log = logging.getLogger(__name__)

IDLE_S = 0.5  # between words of an idle worker
STATS_S = 0.1  # between words of a busy one


class Waker:
    """Lets other threads end the loop's sleep."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(self) -> None:
        os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        if select.select([self.fd], [], [], 0)[0]:
            os.eventfd_read(self.fd)


class Loop:
    """One worker's loop over one ZeroMQ socket."""

    def __init__(
        self, engine: Engine, admin: Admin, socket: zmq.Socket, waker: Waker, hello: Hello, heartbeat_s: float
    ) -> None:
        self.engine, self.admin = engine, admin
        self._socket, self._waker, self._hello = socket, waker, hello
        self._heartbeat_s = heartbeat_s
        self._poller = zmq.Poller()
        self._poller.register(socket, zmq.POLLIN)
        self._poller.register(waker.fd, zmq.POLLIN)
        self._said_stats_s = 0.0
        self._heartbeat_due_s = 0.0
        self._num_kv_events = 0
        self._stopping = False

    def run(self) -> None:
        """Until a `shutdown` call."""
        self._send([self._hello])
        while not self._stopping:
            busy = self.admin.state == "running" and self.engine.has_work
            for message in self._receive(0 if busy else IDLE_S):
                self._send(self._handle(message))
            self._send(self.engine.collect())
            if self.admin.state == "running":
                ran, made = self.engine.step()
                self._send(made)
                if not ran and self.engine.has_work:
                    self._poller.poll(5)  # work that waits: for room, a transfer, a grammar
            else:
                self.engine.idle.forget()
            self._tell_state()

    def _handle(self, message: ToWorker) -> list[FromWorker]:
        return [self._call(message)] if isinstance(message, Call) else self.engine.hear(message)

    def _call(self, call: Call) -> Reply:
        if call.verb == "shutdown":
            self._stopping = True
            return Reply(id=call.id)
        try:
            return Reply(id=call.id, result=self.admin.call(call.verb, call.args))
        except MorticeError as error:
            return Reply(id=call.id, error=error.message, status=error.status)
        except Exception as error:  # a verb must never end the worker
            log.exception("verb %s failed", call.verb)
            return Reply(id=call.id, error=f"{type(error).__name__}: {error}")

    def _receive(self, wait_s: float) -> deque[ToWorker]:
        messages: deque[ToWorker] = deque()
        self._poller.poll(int(wait_s * 1000))
        self._waker.clear()
        while True:
            try:
                messages.append(decode_to_worker(self._socket.recv(zmq.NOBLOCK)))
            except zmq.Again:
                return messages

    def _send(self, messages: list[FromWorker]) -> None:
        for message in messages:
            self._socket.send(encode(message))

    def _tell_state(self) -> None:
        now = time.monotonic()
        if now >= self._heartbeat_due_s:
            self._heartbeat_due_s = now + self._heartbeat_s
            self._send(self.engine.heartbeats())
        if now - self._said_stats_s >= STATS_S:
            self._said_stats_s = now
            self._send([self._stats()])
            stored, removed = self.engine.pool.drain_events()
            if stored or removed:
                self._num_kv_events += 1
                self._send(
                    [
                        KVEvents(
                            worker_id=self._hello.worker_id,
                            sequence=self._num_kv_events,
                            stored=stored,
                            removed=removed,
                        )
                    ]
                )

    def _stats(self) -> WorkerStats:
        engine, scheduler = self.engine, self.engine.scheduler
        moved = engine.handoff.counters
        counters: dict[str, float] = {
            **engine.counters,
            "num_preemptions": scheduler.num_preemptions,
            "prefix_cache_queries": scheduler.num_prefix_queried,
            "prefix_cache_hits": scheduler.num_prefix_hit,
            "kv_received_bytes": moved.bytes_received,
            "kv_receive_seconds": moved.receive_s,
            "kv_received": moved.num_received,
            "kv_read_in_place": moved.num_in_place,
            "kv_receive_failures": moved.num_failed,
            "leases_expired": moved.num_expired,
            "kv_transfer_checksum_failures": moved.num_corrupt,
            "external_prefix_cache_queries": scheduler.num_external_queried,
            "external_prefix_cache_hits": scheduler.num_external_hit,
            "steps": engine.ledger.num_steps,
            "estimated_flops_per_gpu": engine.ledger.flops,
            "estimated_read_bytes_per_gpu": engine.ledger.read_bytes,
            "estimated_write_bytes_per_gpu": engine.ledger.write_bytes,
            "step_gpu_idle_seconds": engine.idle.total_s(),
        }
        counters |= engine.ledger.sums
        counters |= {f"step_host_seconds:{stage}": spent for stage, spent in engine.ledger.total_s.items()}
        return WorkerStats(
            worker_id=self._hello.worker_id,
            state=self.admin.state,
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting) + sum(len(a.sequences) for a in scheduler.arriving),
            num_waiting_tokens=scheduler.num_waiting_tokens,
            num_pulling=sum(len(a.sequences) for a in scheduler.fetching.values()),
            num_leased_blocks=len(engine.handoff.leases.held_blocks()),
            num_free_blocks=engine.pool.num_free,
            num_blocks=engine.pool.num_blocks,
            weight_version=engine.weight_version,
            counters=counters,
            adapters=sorted(engine.adapters),
        )
