"""Workers on the nodes of a Ray cluster (the `ray` extra): the same processes, each kept by one actor in a placement group.

Ray says where there is room and notices when a node dies; restarts, roles and requests stay this cluster's business, so
actors are not restarted by Ray but started anew by the instance manager, in the same placement group. Workers speak to the
cluster over TCP with its token, for they may be on any node.
"""

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from mortice.engine.config import WorkerConfig
from mortice.specs.errors import RequestError, Unavailable
from mortice.transport.segment import sweep

log = logging.getLogger(__name__)

KILLED = -9
ROOM_S = 60.0  # how long Ray may take to find room for the first worker


class Nest:
    """What runs on a Ray node: keeps one worker process until it ends. The worker dies with it."""

    def run(self, config_json: bytes, listen: str | None) -> int:
        """Exit code of the worker. `listen`: address of its block server; None: the node's own."""
        import ray

        config = msgspec.json.decode(config_json, type=WorkerConfig)
        deployment = config.deployment
        address = listen or str(ray.util.get_node_ip_address())
        transfer = msgspec.structs.replace(deployment.transfer, listen=address)
        prefix = f"{config.shm_prefix}-{os.getpid()}"
        config = msgspec.structs.replace(
            config, shm_prefix=prefix, deployment=msgspec.structs.replace(deployment, transfer=transfer)
        )
        threads = {"OMP_NUM_THREADS": str(config.threads), "MKL_NUM_THREADS": str(config.threads)}
        try:
            return subprocess.run(
                [sys.executable, "-m", "mortice.engine.worker", config.worker_id],
                input=msgspec.json.encode(config),
                env=os.environ | threads | {"TOKENIZERS_PARALLELISM": "false"},
                check=False,
            ).returncode
        finally:
            sweep(prefix, ())


class RayBody:
    pid = 0  # its `Hello` says it

    def __init__(self, actor: Any, ended: asyncio.Future[int], kill: Any) -> None:
        self._actor, self._ended, self._kill = actor, ended, kill

    @property
    def returncode(self) -> int | None:
        return self._ended.result() if self._ended.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        self._kill(self._actor)


class RayLauncher:
    """Implements `Launcher`. `address`: of a running Ray cluster ("auto": the one this node belongs to); None: a small
    one on this host. `room`: workers for which resources are set aside at once. `listen`: address of the workers' block
    servers; None: each node's own."""

    host = "ray"

    def __init__(self, address: str | None, *, room: int, threads: int, listen: str | None = None) -> None:
        try:
            import ray
            from ray.util.placement_group import placement_group
        except ImportError as error:
            raise RequestError("no ray here: install mortice[ray]", param="launcher") from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray: Any = ray
        self._listen = listen
        self._threads = threads
        self.is_alive = True
        self._following: set[asyncio.Task] = set()
        try:
            if address is None:
                # Its own processes listen on this host alone, too.
                ray.init(
                    num_cpus=room * threads,
                    include_dashboard=False,
                    log_to_driver=True,
                    _node_ip_address="127.0.0.1",
                )
            else:
                ray.init(address=address, log_to_driver=True)
        except (ConnectionError, RuntimeError) as error:
            raise RequestError(f"no Ray at {address}: {error}", param="ray_address") from error
        self._group: Any = placement_group([{"CPU": float(threads)}] * room, strategy="SPREAD")
        self._nest: Any = ray.remote(max_restarts=0, max_concurrency=1)(Nest)

    async def start(self, config: WorkerConfig) -> RayBody:
        ray = self._ray
        if not await asyncio.to_thread(self._group.wait, ROOM_S):
            raise Unavailable(
                f"Ray has no room for {self._group.bundle_count} workers of {self._threads} CPUs"
            )
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        actor = self._nest.options(
            num_cpus=self._threads,
            scheduling_strategy=PlacementGroupSchedulingStrategy(placement_group=self._group),
        ).remote()
        model = config.model_path
        config = msgspec.structs.replace(
            config, model_path=str(Path(model).absolute()) if Path(model).exists() else model
        )
        running = actor.run.remote(msgspec.json.encode(config), self._listen)
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        async def follow() -> None:
            try:
                code = int(await running)
            except (ray.exceptions.RayActorError, ray.exceptions.RayTaskError) as error:
                log.warning(
                    "the actor of worker %s is gone: %s", config.worker_id, str(error).splitlines()[0]
                )
                code = KILLED
            if not ended.done():
                ended.set_result(code)
            ray.kill(actor)  # the bundle is free for the next life

        task = asyncio.get_running_loop().create_task(follow())
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        return RayBody(actor, ended, ray.kill)

    async def close(self) -> None:
        self.is_alive = False
        await asyncio.to_thread(self._ray.util.remove_placement_group, self._group)
        await asyncio.to_thread(self._ray.shutdown)
