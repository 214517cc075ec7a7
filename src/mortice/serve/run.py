"""Runs the application on uvicorn, and lets it go down gently."""

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from mortice.serve.app import App
from mortice.serve.protocol import bounded_protocol

BACKLOG = 2048
KEEPALIVE_S = 75.0  # an idle connection is kept so long, above what most load balancers expect


async def run_server(
    app: App,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    sock: socket.socket | None = None,
    on_started: Callable[[str, int], None] | None = None,
    signals: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT, drain, and return. Cluster and text service stay the caller's to stop.

    The first signal drains: new requests get 503, those in flight may end for `admission.drain_s`. A second
    one ends at once. `on_started(host, port)` is called when connections are accepted; with port 0 it tells
    which was taken. `sock`: a bound socket to use instead of host and port. Raises OSError where the address
    cannot be had.
    """
    listening = sock or bind(host, port)
    config = uvicorn.Config(
        app,
        http=bounded_protocol(app.edge.options),
        loop="none",  # the loop is the caller's: `uvloop.run(main())` where uvloop is at hand
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        proxy_headers=False,  # the peer's own address says who is local; a header would let anybody claim it
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(KEEPALIVE_S),
        timeout_graceful_shutdown=1,
    )
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # a stranger's bad bytes are no news
    server = _Server(config)
    stopping = asyncio.Event()
    with _on_signals(stopping, server) if signals else contextlib.nullcontext():
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        draining = asyncio.create_task(_drain(app, server, stopping))
        try:
            while not server.started and not serving.done():
                await asyncio.sleep(0.005)
            if on_started is not None and server.started:
                on_started(*listening.getsockname()[:2])
            await asyncio.shield(
                serving
            )  # to be cancelled means to stop, and stopping is done below, in order
        finally:
            draining.cancel()
            server.should_exit = True
            await asyncio.gather(serving, draining, return_exceptions=True)
            listening.close()


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises OSError with the address in its message."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}") from error
    return sock


async def _drain(app: App, server: uvicorn.Server, stopping: asyncio.Event) -> None:
    await stopping.wait()
    edge = app.edge
    edge.log.info("draining", in_flight=edge.num_in_flight)
    ended = await edge.drain(edge.options.admission.drain_s)
    edge.log.info("drained" if ended else "drain limit reached", in_flight=edge.num_in_flight)
    server.should_exit = True


@contextlib.contextmanager
def _on_signals(stopping: asyncio.Event, server: uvicorn.Server) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def handle() -> None:
        if stopping.is_set():
            server.should_exit = server.force_exit = True
        stopping.set()

    handled = (signal.SIGTERM, signal.SIGINT)
    for number in handled:
        loop.add_signal_handler(number, handle)
    try:
        yield
    finally:
        for number in handled:
            loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    """Signals are ours, see `_on_signals`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
