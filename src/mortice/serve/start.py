"""A whole server from a deployment: workers, text service, HTTP, in that order up and in reverse order down."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from mortice.cluster.launcher import Launcher, LocalLauncher
from mortice.cluster.live import LiveCluster
from mortice.cluster.ray_launcher import RayLauncher
from mortice.serve.app import build_app
from mortice.serve.options import ServeOptions
from mortice.serve.run import bind, run_server
from mortice.specs.deployment import Deployment
from mortice.specs.errors import RequestError
from mortice.text.service import TextService

log = logging.getLogger(__name__)

Ready = Callable[[str], Awaitable[None]]


async def serve_deployment(
    deployment: Deployment,
    options: ServeOptions,
    *,
    model_path: Path,
    draft_model_path: Path | None,
    host: str,
    port: int,
    decision_log: Path | None = None,
    workers_listen: str | None = None,
    join_token: str = "",
    on_ready: Ready | None = None,
) -> None:
    """Serve until a signal ends it. `on_ready` runs beside the server once it answers, with its base URL.

    Raises RequestError for what the user can mend: the port, the model, the deployment.
    """
    began = time.monotonic()
    try:
        sock = bind(host, port)  # first, so that a port in use is found before a model is loaded
    except OSError as error:
        raise RequestError(str(error).split("] ")[-1], param="port") from error
    cluster = LiveCluster(
        deployment,
        model_path=str(model_path),
        draft_model_path=str(draft_model_path) if draft_model_path else None,
        threads=deployment.threads or threads_per_worker(deployment),
        launcher=_launcher(deployment, workers_listen),
        decision_log=decision_log,
        workers_listen=workers_listen,
        join_token=join_token,
    )
    text = TextService(str(model_path))
    beside: set[asyncio.Task] = set()

    def started(bound_host: str, bound_port: int) -> None:
        url = f"http://{bound_host if bound_host != '0.0.0.0' else '127.0.0.1'}:{bound_port}"
        log.info("ready in %.1f s: %s", time.monotonic() - began, url)
        if on_ready is not None:
            beside.add(asyncio.ensure_future(on_ready(url)))

    try:
        if not await _unless_told_to_stop(asyncio.gather(cluster.start(), text.start())):
            return
        await run_server(build_app(cluster, text, options), sock=sock, on_started=started)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        sock.close()
        await text.stop()
        await cluster.stop(0)


def _launcher(deployment: Deployment, workers_listen: str | None) -> Launcher:
    if deployment.launcher == "local":
        return LocalLauncher()
    return RayLauncher(
        deployment.ray_address,
        room=deployment.most_workers,
        threads=deployment.threads or threads_per_worker(deployment),
        listen=None if workers_listen else "127.0.0.1",
    )


async def _unless_told_to_stop(starting: asyncio.Future[Any]) -> bool:
    """Wait for the start; False if a signal ended it. Unhandled, SIGTERM would leave the workers' memory behind."""
    loop = asyncio.get_running_loop()
    told = False

    def stop() -> None:
        nonlocal told
        told = True
        starting.cancel()

    handled = (signal.SIGTERM, signal.SIGINT)
    for number in handled:
        loop.add_signal_handler(number, stop)
    try:
        await starting
    except asyncio.CancelledError:
        if not told:
            raise
        log.info("told to stop before the start was done")
    finally:
        for number in handled:
            loop.remove_signal_handler(number)
    return not told


def threads_per_worker(deployment: Deployment) -> int:
    """The cores this process may use, shared out among the workers."""
    return max(1, len(os.sched_getaffinity(0)) // deployment.most_workers)
