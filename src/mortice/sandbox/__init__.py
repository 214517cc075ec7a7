"""Machines for code nobody trusts: back ends, snapshots, egress, audit.

It must not know models, agents or HTTP.
"""

from mortice.sandbox.contract import (
    BackendName,
    BackendUnavailable,
    BoxInfo,
    CellError,
    Egress,
    Failure,
    ForkOutcome,
    GuestFileError,
    LeaseLost,
    Limits,
    NotSupported,
    OnOutput,
    Probe,
    Reason,
    RunResult,
    Sandbox,
    SandboxBusy,
    SandboxError,
    SandboxLost,
    SandboxNotFound,
    SandboxSpec,
    Secret,
    SnapshotRefused,
    Strength,
)
from mortice.sandbox.epoch import Epoch, MachineState
from mortice.sandbox.epochs import Effects, Epochs, Resumed
from mortice.sandbox.home import Home
from mortice.sandbox.pool import WarmPool
from mortice.sandbox.supervisor import Sandboxes

__all__ = [
    "BackendName",
    "BackendUnavailable",
    "BoxInfo",
    "CellError",
    "Effects",
    "Egress",
    "Epoch",
    "Epochs",
    "Failure",
    "ForkOutcome",
    "GuestFileError",
    "Home",
    "LeaseLost",
    "Limits",
    "MachineState",
    "NotSupported",
    "OnOutput",
    "Probe",
    "Reason",
    "Resumed",
    "RunResult",
    "Sandbox",
    "SandboxBusy",
    "SandboxError",
    "SandboxLost",
    "SandboxNotFound",
    "SandboxSpec",
    "Sandboxes",
    "Secret",
    "SnapshotRefused",
    "Strength",
    "WarmPool",
]
