"""The process that workers are forked from: what happens when it, a worker or a launcher ends."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mortice.cluster import nurseries
from mortice.cluster.launcher import LocalLauncher
from mortice.engine.config import WorkerConfig
from mortice.specs.deployment import Deployment
from mortice.specs.errors import RequestError
from mortice.transport.segment import sweep

PREFIX = f"mortice-test-{os.getpid()}"


@pytest.fixture(autouse=True)
def memory_is_swept() -> Iterator[None]:
    yield
    sweep(PREFIX, ())


def config(name: str, model: str = "fake:") -> WorkerConfig:
    """A worker whose cluster is nowhere: it comes up, says hello to nobody, and waits."""
    return WorkerConfig(
        worker_id=name,
        endpoint="ipc:///tmp/mortice-nowhere",
        token="",
        model_path=model,
        deployment=Deployment(model=model, prefill=0),
        threads=1,
        shm_prefix=PREFIX,
    )


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until_gone(pid: int) -> None:
    while is_alive(pid):
        await asyncio.sleep(0.01)


async def test_a_worker_is_named_and_its_end_is_told() -> None:
    launcher = LocalLauncher()
    body = await launcher.start(config("worker-7.1"))
    assert body.returncode is None
    while Path(f"/proc/{body.pid}/comm").read_text() != "worker-7.1\n":
        await asyncio.sleep(0.01)
    body.kill()
    assert await body.wait() == -signal.SIGKILL
    assert body.returncode == -signal.SIGKILL
    body.kill()  # nothing happens to whoever has that number now
    await launcher.close()


async def test_workers_end_with_their_launcher_and_not_with_another() -> None:
    one, other = LocalLauncher(), LocalLauncher()
    mine, theirs = await one.start(config("worker-0.1")), await other.start(config("worker-1.1"))
    await one.close()
    await until_gone(mine.pid)
    assert is_alive(theirs.pid)
    await other.close()
    await until_gone(theirs.pid)


async def test_a_killed_nursery_takes_its_workers_along_and_the_next_start_makes_another() -> None:
    launcher = LocalLauncher()
    body = await launcher.start(config("worker-0.1"))
    assert nurseries._nursery is not None
    before = nurseries._nursery[0].pid
    os.kill(before, signal.SIGKILL)
    assert await body.wait() == -signal.SIGKILL
    await until_gone(body.pid)
    again = await launcher.start(config("worker-0.2"))
    assert is_alive(again.pid)
    assert nurseries._nursery[0].pid != before
    await launcher.close()


async def test_a_worker_sees_the_environment_and_folder_of_its_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MORTICE_TEST_WORD", "x")
    launcher = LocalLauncher()
    body = await launcher.start(config("worker-0.1"))
    while os.readlink(f"/proc/{body.pid}/cwd") != str(tmp_path):
        await asyncio.sleep(0.01)
    assert os.readlink(f"/proc/{body.pid}/fd/0") == "/dev/null"
    await launcher.close()


async def test_an_order_that_does_not_fit_in_a_packet_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        monkeypatch.setenv(f"MORTICE_TEST_{number}", "x" * (24 << 10))
    with pytest.raises(RequestError, match="too long"):
        await LocalLauncher().start(config("worker-0.1"))
