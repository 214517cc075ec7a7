"""What a cluster and the agent of another host say to each other, over the socket that its workers use too.

agent:   JoinHost, then HostAlive every second         cluster: Welcome or Refusal, then an echo of every HostAlive
cluster: LaunchWorker, KillWorker                      agent:   WorkerEnded, LeaveHost
cluster: Rejoin, to an agent that it has given up: its workers are fenced, it ends them and joins anew
"""

import msgspec

from mortice.engine.config import WorkerConfig

PREFIX = "host-"  # of an agent's identity; workers' begin otherwise


class JoinHost(msgspec.Struct, tag="join_host", frozen=True, kw_only=True):
    """A host offers to run so many workers, in this role at first."""

    host: str  # its name, for people
    num_workers: int
    max_workers: int  # that may run there, if the cluster wants more than it was brought
    role: str  # prefill | decode | mixed
    version: str  # of the package: both sides must agree


class HostAlive(msgspec.Struct, tag="host_alive", frozen=True):
    """Heartbeat, echoed."""


class WorkerEnded(msgspec.Struct, tag="worker_ended", frozen=True):
    worker_id: str
    code: int


class LeaveHost(msgspec.Struct, tag="leave_host", frozen=True):
    """This host is going; its workers end."""


class Welcome(msgspec.Struct, tag="welcome", frozen=True):
    silence_s: float  # who hears nothing of the other for so long gives it up


class Refusal(msgspec.Struct, tag="refusal", frozen=True):
    reason: str


class LaunchWorker(msgspec.Struct, tag="launch_worker", frozen=True):
    """Start this worker; the agent puts its own addresses, paths and threads in."""

    config: WorkerConfig


class KillWorker(msgspec.Struct, tag="kill_worker", frozen=True):
    worker_id: str


class Rejoin(msgspec.Struct, tag="rejoin", frozen=True):
    """You were given up: end your workers and join anew."""


FromHost = JoinHost | HostAlive | WorkerEnded | LeaveHost
ToHost = Welcome | Refusal | HostAlive | LaunchWorker | KillWorker | Rejoin

_encoder = msgspec.msgpack.Encoder()
_from_host: msgspec.msgpack.Decoder[FromHost] = msgspec.msgpack.Decoder(FromHost)
_to_host: msgspec.msgpack.Decoder[ToHost] = msgspec.msgpack.Decoder(ToHost)


def encode(word: FromHost | ToHost) -> bytes:
    return _encoder.encode(word)


def decode_from_host(data: bytes) -> FromHost:
    return _from_host.decode(data)


def decode_to_host(data: bytes) -> ToHost:
    return _to_host.decode(data)
