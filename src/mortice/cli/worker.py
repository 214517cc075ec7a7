"""`mortice worker`: bring this host's workers to a server that runs on another."""

import asyncio
import contextlib
import ipaddress
import os
import signal
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from mortice.bench.loop import new_loop
from mortice.cluster.host_agent import HostAgent, host_name
from mortice.engine.config import WorkerConfig
from mortice.models import store
from mortice.obs.log import setup_log
from mortice.specs.errors import RequestError
from mortice.transport.curve import read_token


def worker(
    join: Annotated[str, typer.Option(help="HOST:PORT of the server's --workers-listen.")],
    token_file: Annotated[Path, typer.Option(help="The secret that the server was given too.")],
    listen: Annotated[
        str, typer.Option(help="Address of this host at which other workers may fetch KV.")
    ] = "127.0.0.1",
    workers: Annotated[int, typer.Option(help="Workers to bring.")] = 1,
    max_workers: Annotated[
        int | None,
        typer.Option(help="Workers that the server's policy may run here in all; without it those brought."),
    ] = None,
    role: Annotated[str, typer.Option(help="What they wear at first: prefill, decode or mixed.")] = "decode",
    model: Annotated[
        str | None,
        typer.Option(help="The served model on this host, if it lies elsewhere than its name says."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Compute threads a worker.")] = None,
    name: Annotated[str | None, typer.Option(help="What this host is called.")] = None,
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Join a server and run workers for it until Ctrl-C; joins again after it was cut off or the server was restarted."""
    host, _, port = join.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise RequestError(f"join is HOST:PORT, not {join!r}", param="join")
    if role not in ("prefill", "decode", "mixed"):
        raise RequestError(f"role is prefill, decode or mixed, not {role!r}", param="role")
    if workers < 1:
        raise RequestError(f"workers must be at least 1, not {workers}", param="workers")
    most = workers if max_workers is None else max_workers
    if most < workers:
        raise RequestError(f"max_workers must be at least the {workers} brought", param="max_workers")
    if _is_loopback(listen) and not _is_loopback(host):
        raise RequestError(
            "the workers of other hosts must reach this one's KV: name its address with --listen",
            param="listen",
        )
    setup_log(level=log_level.upper())
    cores = len(os.sched_getaffinity(0))

    def adapt(config: WorkerConfig) -> WorkerConfig:
        deployment = config.deployment
        transfer = msgspec.structs.replace(deployment.transfer, listen=listen)
        drafter = deployment.speculation.draft_model if deployment.speculation else None
        return msgspec.structs.replace(
            config,
            model_path=_path_of(model or deployment.model),
            draft_model_path=_path_of(drafter) if drafter else None,
            threads=threads or max(1, cores // most),
            deployment=msgspec.structs.replace(deployment, transfer=transfer),
        )

    agent = HostAgent(
        cluster=join,
        token=read_token(token_file),
        host=name or host_name(),
        num_workers=workers,
        max_workers=most,
        role=role,
        adapt=adapt,
    )

    async def run() -> None:
        running = asyncio.ensure_future(agent.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await running

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(run())


def _path_of(name: str) -> str:
    is_fake = name.startswith("fake:")  # the model of tests, which has no files (models/fake.py)
    return name if is_fake else str(store.pull(name, _say))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _say(line: str) -> None:
    print(line, flush=True)
