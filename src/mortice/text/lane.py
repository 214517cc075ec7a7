"""One worker process and the queue before it."""

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import msgspec

import mortice
from mortice.specs.errors import EngineError, Overloaded, RequestError, Unavailable
from mortice.text.calls import FRAME, Done, Failed, Ready, Reply

START_S = 60.0  # to load a tokenizer, however large


class Lane:
    """Calls go to the process one at a time, so a call that ends it takes no other with it.

    A call over its time is an error of that call, and the process is replaced. A call during which the
    process ended is tried once more, in case the process was ended from outside; if it ends again the call is
    at fault.
    """

    def __init__(self, name: str, model: str, *, limit_s: float, memory_bytes: int, max_waiting: int) -> None:
        self.name = name
        self.limit_s = limit_s
        self.num_starts = 0
        self.num_waiting = 0
        self._max_waiting = max_waiting
        self._command = [
            sys.executable,
            "-P",
            "-m",
            "mortice.text.worker",
            model,
            name,
            str(limit_s),
            str(memory_bytes),
        ]
        self._turn = asyncio.Lock()
        self._stopped = False
        self._process: asyncio.subprocess.Process | None = None
        self._decoder = msgspec.msgpack.Decoder(Reply)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> Ready:
        """Start the process. Raises RequestError if it cannot load the model."""
        source = str(Path(mortice.__file__).parent.parent)
        paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
        self.num_starts += 1
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "TOKENIZERS_PARALLELISM": "false",
                "RAYON_NUM_THREADS": "1",
            },
        )
        try:
            async with asyncio.timeout(START_S):
                reply = await self._receive(self._process)
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
            await self._kill()
            raise EngineError(f"the {self.name} worker does not start") from error
        except asyncio.CancelledError:
            await self._kill()
            raise
        if isinstance(reply, Ready):
            return reply
        await self._kill()
        raise _error(reply)

    async def call(self, body: bytes) -> Done:
        """Send one encoded call and wait for its answer, after the calls that came before it."""
        if self.num_waiting >= self._max_waiting:
            raise Overloaded(f"{self.num_waiting} requests wait for the {self.name} worker")
        self.num_waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self.num_waiting -= 1
        # A caller that goes away must not leave its answer in the pipe for the next one: the exchange runs to
        # its end.
        exchange = asyncio.create_task(self._exchange(body))
        exchange.add_done_callback(self._pass_on)
        return await asyncio.shield(exchange)

    async def stop(self) -> None:
        """End the process for good; the call under way fails."""
        self._stopped = True
        await self._kill()
        async with self._turn:
            await self._kill()

    def _pass_on(self, exchange: "asyncio.Task[Done]") -> None:
        self._turn.release()
        if not exchange.cancelled():
            exchange.exception()  # marks it as seen: the caller may be gone

    async def _exchange(self, body: bytes) -> Done:
        for last in (False, True):
            if self._stopped:
                raise Unavailable("the server is stopping")
            if self._process is None:
                await self.start()
            assert self._process is not None
            try:
                async with asyncio.timeout(self.limit_s):
                    reply = await self._ask(self._process, body)
            except TimeoutError as error:
                await self._kill()
                raise RequestError(
                    f"the {self.name} takes longer than {self.limit_s:g} s to process: make it simpler",
                    code=f"{self.name}_timeout",
                ) from error
            except (asyncio.IncompleteReadError, ConnectionError) as error:
                await self._kill()
                if last:
                    raise RequestError(
                        f"the {self.name} is too complex: it takes more memory than one request may use",
                        code=f"{self.name}_too_complex",
                    ) from error
            except asyncio.CancelledError:
                await self._kill()
                raise
            else:
                if isinstance(reply, Done):
                    return reply
                raise _error(reply)
        raise AssertionError("the second try returns or raises")

    async def _ask(self, process: asyncio.subprocess.Process, body: bytes) -> Reply:
        assert process.stdin is not None
        process.stdin.write(FRAME.pack(len(body)) + body)
        await process.stdin.drain()
        return await self._receive(process)

    async def _receive(self, process: asyncio.subprocess.Process) -> Reply:
        assert process.stdout is not None
        (size,) = FRAME.unpack(await process.stdout.readexactly(FRAME.size))
        reply: Reply = self._decoder.decode(await process.stdout.readexactly(size))
        return reply

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _error(reply: Reply) -> Exception:
    if isinstance(reply, Failed):
        return RequestError(reply.message, param=reply.param, code=reply.code)
    return EngineError(f"the text worker answers out of turn: {type(reply).__name__}")
