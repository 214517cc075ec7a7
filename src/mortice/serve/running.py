"""Runs what a route asked of the cluster: all at once for a whole answer, or piece by piece for a stream."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, Protocol, cast

from mortice.serve.edge import Edge
from mortice.serve.errors import HttpError, error_body
from mortice.serve.json_text import as_json
from mortice.serve.link import SSE, ClientGone, Link
from mortice.serve.options import ServeOptions
from mortice.serve.tally import Tally
from mortice.serve.voice import Piece, Voice, VoiceSettings
from mortice.specs.errors import EngineError, MorticeError, RequestError, Unavailable
from mortice.specs.request import Delta, Request

DONE = b"data: [DONE]\n\n"


class SlowReader(MorticeError):
    """The client does not take what it asked for."""

    status = 408
    kind = "timeout_error"


class Run:
    """The requests of one call (one a prompt); sequence i of request r is choice `r * n + i`."""

    def __init__(
        self,
        edge: Edge,
        requests: Sequence[Request],
        settings: VoiceSettings,
        operation: str,
        shows_abort: bool = False,
    ) -> None:
        """`shows_abort`: a sequence that the engine aborts ends with that finish reason instead of an
        error.
        """
        self.edge = edge
        self._shows_abort = shows_abort
        self.requests = requests
        self.tallies = [Tally(edge, request, operation) for request in requests]
        self._voices = [
            [Voice(number * request.n + i, settings) for i in range(request.n)]
            for number, request in enumerate(requests)
        ]
        self._ended = False

    async def pieces(self, number: int) -> AsyncGenerator[Piece, None]:
        """Pieces of one of the requests, until each of its sequences has finished."""
        voices, tally = self._voices[number], self.tallies[number]
        left = len(voices)
        # The interface says iterator; closing it is what cancels the request.
        deltas = cast("AsyncGenerator[Delta, None]", self.edge.cluster.generate(self.requests[number]))
        async with aclosing(deltas):
            async for delta in deltas:
                voice = voices[delta.index]
                if voice.done:  # its text ended at a stop string, and this was on its way already
                    continue
                tally.sees(delta)
                if delta.finish_reason == "error":
                    message = delta.error or "the worker failed while it served the request"
                    raise RequestError(message) if delta.is_request_at_fault else EngineError(message)
                if delta.finish_reason == "abort" and not self._shows_abort:
                    raise Unavailable("the request was aborted by the server", code="aborted")
                piece = voice.hear(delta)
                tally.hears(piece)
                is_over = piece.finish_reason is not None
                left -= is_over
                if (
                    is_over and delta.finish_reason is None and left
                ):  # a stop string, of which no worker knows
                    self.edge.cluster.end_sequence(delta.request_id, delta.index)
                yield piece
                if left == 0:
                    return
        raise EngineError("the request ended before all of its sequences did")

    def ends(self, error: BaseException | None) -> None:
        """Write the tallies down; only the first call counts."""
        if not self._ended:
            self._ended = True
            word = _word(error)
            for tally in self.tallies:
                tally.ends(word)


async def collect(run: Run) -> list[Piece]:
    """Whole choices, by index. One failure ends all."""
    choices: dict[int, Piece] = {}

    async def one(number: int) -> None:
        async with aclosing(run.pieces(number)) as pieces:
            async for piece in pieces:
                whole = choices.setdefault(piece.index, piece)
                if whole is not piece:
                    whole.merge(piece)

    timeout_s = run.edge.options.admission.request_timeout_s
    try:
        async with asyncio.timeout(timeout_s):
            if len(run.requests) == 1:
                await one(0)
            else:
                await _all(one, len(run.requests))
    except TimeoutError as error:
        late = too_late(timeout_s)
        run.ends(late)
        raise late from error
    except BaseException as error:
        run.ends(error)
        raise
    run.ends(None)
    return [choices[index] for index in sorted(choices)]


async def _all(one: Callable[[int], Coroutine[Any, Any, None]], count: int) -> None:
    """Run `one(0..count-1)` together; the first error cancels the rest and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(one(number))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


class EventWriter(Protocol):
    """Turns pieces into the events of one route. Whatever it returns is sent as it is."""

    def pieces(self, pieces: list[Piece]) -> bytes: ...

    async def end(self) -> bytes:
        """What follows the last piece, [DONE] included."""

    async def failed(self, error: BaseException) -> bytes:
        """Events for an error after the first byte."""


class Mailbox:
    """Between the cluster, which must not wait, and a client, who may: what was not taken yet, merged by
    sequence.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._pending: dict[int, Piece] = {}
        self._num_tokens = 0
        self._waiting: asyncio.Future[None] | None = None
        self._closed = False
        self._error: BaseException | None = None

    def put(self, piece: Piece) -> None:
        """Raises SlowReader once more than `max_tokens` lie here."""
        earlier = self._pending.get(piece.index)
        if earlier is None:
            self._pending[piece.index] = piece
        else:
            earlier.merge(piece)
        self._num_tokens += len(piece.token_ids)
        if self._num_tokens > self._max_tokens:
            raise SlowReader(f"the client is {self._num_tokens} tokens behind")
        self.wake()

    def close(self, error: BaseException | None) -> None:
        self._closed, self._error = True, self._error or error
        self.wake()

    def wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def take(self) -> list[Piece] | None:
        """All there is; waits if there is nothing, [] if only woken. None at the end; raises the error it
        came to.
        """
        if not self._pending and not self._closed:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting
            self._waiting = None
        if self._pending:
            pieces, self._pending, self._num_tokens = list(self._pending.values()), {}, 0
            return pieces
        if self._error is not None:
            raise self._error
        return None if self._closed else []


async def stream(link: Link, run: Run, writer: EventWriter) -> None:
    """Send a run as server-sent events.

    Nothing is sent before the first piece, so that errors until then have a status of their own; unless that
    takes longer than `keepalive_s`, when the stream opens with a comment. A client that is
    `max_pending_tokens` behind or takes nothing for `stall_s` loses its request.
    """
    options = run.edge.options
    mailbox = Mailbox(options.max_pending_tokens)
    pumps = [asyncio.ensure_future(_pump(run, number, mailbox)) for number in range(len(run.requests))]
    left = len(pumps)

    def one_ended(pump: asyncio.Future[None]) -> None:
        nonlocal left
        left -= 1
        if pump.cancelled():
            return
        error = pump.exception()
        if isinstance(error, SlowReader):
            pulse.give_up(error)
        if error is not None or left == 0:
            mailbox.close(error)

    pulse = _Pulse(link, mailbox, options)
    for pump in pumps:
        pump.add_done_callback(one_ended)
    error: BaseException | None = None
    try:
        await _send(link, mailbox, writer)
    except asyncio.CancelledError as cancelled:
        error = pulse.gave_up or cancelled
        if error is cancelled:
            raise
        run.edge.metrics.add("slow_readers_aborted_total")
        raise error from None
    except BaseException as failure:
        error = failure
        raise
    finally:
        pulse.stop()
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)  # their errors came through the mailbox
        run.ends(error)


async def _pump(run: Run, number: int, mailbox: Mailbox) -> None:
    async with aclosing(run.pieces(number)) as pieces:
        async for piece in pieces:
            mailbox.put(piece)


async def _send(link: Link, mailbox: Mailbox, writer: EventWriter) -> None:
    try:
        while (pieces := await mailbox.take()) is not None:
            data = writer.pieces(pieces) if pieces else b": keep-alive\n\n"
            if data:
                if not link.status:
                    await link.start(200, SSE)
                await link.body(data, more=True)
        if not link.status:
            await link.start(200, SSE)
        await link.body(await writer.end(), more=False)
    except Exception as error:  # whatever it was, a client that has the first byte is told in the stream
        if link.status and not link.complete:
            await link.body(await writer.failed(error), more=False)
        raise


class _Pulse:
    """Two timers a stream: one wakes a silent one for its comment and ends one whose client takes nothing,
    the other is the time limit of the request."""

    def __init__(self, link: Link, mailbox: Mailbox, options: ServeOptions) -> None:
        self.gave_up: SlowReader | None = None
        self._link = link
        self._mailbox = mailbox
        self._keepalive_s = options.keepalive_s
        self._stall_s = options.stall_s
        self._sender = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        link.last_sent = time.monotonic()
        self._timer = self._loop.call_later(min(self._keepalive_s, self._stall_s), self._beat)
        timeout_s = options.admission.request_timeout_s
        self._deadline = self._loop.call_later(timeout_s, lambda: mailbox.close(too_late(timeout_s)))

    def give_up(self, error: SlowReader) -> None:
        """End the sender, which may be waiting for the client for ever."""
        if self.gave_up is None and self._sender is not None:
            self.gave_up = error
            self._sender.cancel()

    def _beat(self) -> None:
        now = time.monotonic()
        since = self._link.sending_since
        if since and now - since >= self._stall_s:
            self.give_up(SlowReader(f"the client took nothing for {self._stall_s:g} s"))
            return
        if since:
            wait = since + self._stall_s - now
        else:
            wait = self._link.last_sent + self._keepalive_s - now
            if wait <= 0:
                self._mailbox.wake()
                wait = self._keepalive_s
        self._timer = self._loop.call_later(max(min(wait, self._stall_s), 0.001), self._beat)

    def stop(self) -> None:
        self._timer.cancel()
        self._deadline.cancel()


def too_late(timeout_s: float) -> HttpError:
    return HttpError(
        504, "timeout_error", f"the request took longer than {timeout_s:g} s", code="request_timeout"
    )


def sse_error(error: BaseException) -> bytes:
    """An error as the last data of a stream."""
    return b"data: " + as_json(error_body(error)) + b"\n\n" + DONE


def _word(error: BaseException | None) -> str | None:
    """What a log says of how a run ended."""
    if error is None:
        return None
    if isinstance(error, ClientGone | asyncio.CancelledError):
        return "client_closed"
    if isinstance(error, SlowReader):
        return "slow_reader"
    if isinstance(error, MorticeError):
        return error.code or error.kind
    return "internal_error"
