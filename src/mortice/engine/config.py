"""What a worker process is told when it starts."""

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
