"""What a worker process is told when it starts, and what a launcher and the nursery say to each other about it."""

from collections.abc import Callable

import msgspec

from mortice.specs.deployment import Deployment


class WorkerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Passed as JSON on the worker's standard input: it holds a token, which must not stand in a process list."""

    worker_id: str  # unique to the life of the process
    endpoint: str  # ZeroMQ address of the cluster
    token: str  # shared by the workers of a cluster; opens their block servers
    model_path: str
    deployment: Deployment
    threads: int
    shm_prefix: str  # of the names of this cluster's shared memory
    join_token: str = ""  # of the connection to the cluster, where that crosses hosts
    draft_model_path: str | None = None
    log_level: str = "INFO"


MAX_ORDER = 128 << 10  # bytes of an `Order`: one packet of a local socket


class Order(msgspec.Struct, frozen=True):
    """Fork a worker."""

    config: WorkerConfig
    environment: dict[str, str]
    folder: str  # working directory


class Began(msgspec.Struct, tag="began", frozen=True):
    worker_id: str
    pid: int


class Ended(msgspec.Struct, tag="ended", frozen=True):
    worker_id: str
    code: int  # negative for a signal


FromNursery = Began | Ended
decode_order = msgspec.json.Decoder(Order).decode
decode_from_nursery: Callable[[bytes], FromNursery] = msgspec.json.Decoder(FromNursery).decode
