"""The words of the room: what a sandbox is asked, what it answers, and how it fails.

A failure of guest code is data (`RunResult.failure`), written for the model that caused it. A failure of the machine
or a wrong use of the contract is an exception.
"""

from collections.abc import Callable
from enum import StrEnum
from typing import Literal, Protocol

import msgspec

from mortice.specs.errors import MorticeError, NotFound, RequestError, WrongState

MIB = 1 << 20
WAIT_S = 60.0
"""How long a snapshot, fork or pause waits for a running cell to end."""

BackendName = Literal["microvm", "microsandbox", "gvisor", "process", "wasm"]
OnOutput = Callable[[Literal["stdout", "stderr"], bytes], None]
"""Called on the event loop with every piece of output as it arrives, before any cap."""


class Strength(StrEnum):
    """The wall an attacker must cross, strongest first. It is part of every result and every audit record."""

    MICROVM = "microvm"  # a guest kernel under hardware virtualisation
    GVISOR = "gvisor"  # a kernel in user space; the host kernel sees some seventy system calls
    WASM = "wasm"  # a bytecode engine: computation only, no system calls at all
    PROCESS = "process"  # namespaces, seccomp and Landlock on the host's own kernel: as strong as a container
    EMULATED = "emulated"  # a guest kernel under software emulation: for tests, no wall is claimed


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on one sandbox. Each has its own `Reason`, so that whoever hits it can read which."""

    memory_bytes: int = 512 * MIB
    """Of everything inside together, files in /work and /tmp too, since they live in memory."""
    cpus: float = 1.0
    num_processes: int = 64
    """Processes and threads of guest code at once."""
    disk_bytes: int = 256 * MIB
    """Of each of the writable folders /work, /tmp and /home/user."""
    output_bytes: int = 64 * MIB
    """Of one cell or command; beyond it the command is ended. What is kept of it is `output_cap`."""
    timeout_s: float = 60.0
    """Wall time of one cell or command that names none."""


class Secret(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A credential that never enters the guest: the proxy on the host puts it into requests on their way out.

    `name` is an environment variable. On the host it holds the value; inside it holds `placeholder`, so that programs that
    want a key find one. The value goes to `hosts` alone (`host:port`, on the allow list, spoken to over TLS), as `header`
    in `format`, into requests of `methods` below one of `paths` (empty: any); other requests to those hosts are refused.
    """

    name: str
    hosts: tuple[str, ...]
    header: str = "authorization"
    format: str = "Bearer {}"
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    @property
    def placeholder(self) -> str:
        return f"held-outside-{self.name}"


class Egress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What may leave the sandbox. There is no route and no name server inside: one proxy is the only way out.

    `allow` holds `host:port` (or `*.domain:port`) for mode `allowlist`. Mode `public` allows every public address.
    Private, loopback, link-local, metadata and multicast addresses are refused in both.
    """

    mode: Literal["none", "allowlist", "public"] = "none"
    allow: tuple[str, ...] = ()
    secrets: tuple[Secret, ...] = ()
    max_bytes: int = 256 * MIB
    max_connections: int = 16
    max_requests_per_minute: int = 600


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to create. `backend="auto"` takes the strongest one whose probe ran a guest here; `process` and `wasm`
    are never chosen by `auto`."""

    backend: BackendName | Literal["auto"] = "auto"
    image: str = "base"
    limits: Limits = Limits()
    egress: Egress = Egress()
    env: dict[str, str] = {}
    audit: Literal["strict", "lossy"] = "strict"
    """strict: the guest waits when its events cannot be recorded. lossy: gaps are counted and recorded."""


Reason = Literal[
    "oom",
    "processes",
    "disk",
    "output",
    "timeout",
    "signal",
    "interpreter_exit",
    "not_found",
    "lost",
    "policy",
]


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a run ended otherwise than by its own exit, and what to do about it; fit to show to a model."""

    reason: Reason
    message: str
    remedy: str


class CellError(msgspec.Struct, frozen=True, kw_only=True):
    """The exception a cell raised."""

    type: str
    message: str
    traceback: str


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a cell or a command.

    `ok` means: exit code 0, no exception, no failure. `stdout` and `stderr` hold at most `output_cap` bytes each, head and
    tail, with a line between them that counts what was left out. `value` is the repr of a cell's last expression.
    `replayed`: this id had run before; nothing ran now, the stored result came back.
    """

    cell_id: str
    ok: bool
    exit_code: int | None
    stdout: str
    stderr: str
    stdout_bytes: int
    stderr_bytes: int
    wall_s: float
    cpu_s: float
    backend: str
    strength: Strength
    value: str | None = None
    error: CellError | None = None
    failure: Failure | None = None
    replayed: bool = False


class BoxInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One sandbox as the books have it. `generation` grows with every restore, fork or change of owner."""

    id: str
    name: str
    backend: str
    strength: Strength
    state: Literal["creating", "ready", "paused", "lost", "destroyed"]
    generation: int
    created_at: float
    parent_snapshot: str | None = None
    last_snapshot: str | None = None
    keep: bool = False


class ForkOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """One of n forks: a sandbox or the reason there is none. The others are not taken down by it."""

    box: "Sandbox | None"
    error: str | None = None


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """What a back end's probe found. `works` is true only if a guest ran and answered."""

    backend: str
    works: bool
    strength: Strength
    why_not: str | None = None
    remedy: str | None = None
    version: str | None = None
    details: dict[str, str] = {}


class Sandbox(Protocol):
    """A running machine for code nobody trusts. Every call is recorded before it acts.

    One owner at a time: a second process that attaches takes the lease only once the first is gone. All methods raise
    `SandboxLost` when the machine died (its `reason` says why) and `LeaseLost` when another owner took it.
    """

    @property
    def info(self) -> BoxInfo: ...

    async def run_cell(
        self,
        code: str,
        *,
        cell_id: str,
        timeout_s: float | None = None,
        output_cap: int = MIB,
        on_output: OnOutput | None = None,
    ) -> RunResult:
        """Run Python in the persistent interpreter; variables live on between cells.

        A `cell_id` runs at most once in the life of this guest's memory: the same id again returns the stored result,
        or waits for the run that is under way.
        """
        ...

    async def exec(
        self,
        argv: list[str],
        *,
        cell_id: str,
        cwd: str = "/work",
        env: dict[str, str] | None = None,
        stdin: bytes | None = None,
        timeout_s: float | None = None,
        output_cap: int = MIB,
        on_output: OnOutput | None = None,
    ) -> RunResult:
        """Run a command. `cell_id` as in `run_cell`."""
        ...

    async def send_stdin(self, cell_id: str, data: bytes, *, close: bool = False) -> None:
        """Give a running command more input (start it with `stdin=b""` to keep its input open)."""
        ...

    async def signal(
        self, cell_id: str, signal: Literal["INT", "TERM", "KILL", "HUP", "USR1", "USR2"]
    ) -> None:
        """Signal the process group of a running command, or the interpreter while it runs that cell."""
        ...

    async def read(self, path: str, *, max_bytes: int = 16 * MIB) -> bytes:
        """A file's bytes, read inside the guest as its user. Raises `GuestFileError`."""
        ...

    async def write(self, path: str, data: bytes) -> None:
        """Write a file inside the guest as its user, whole or not at all. Raises `GuestFileError`."""
        ...

    async def snapshot(self, *, epoch: int | None = None, wait_s: float = WAIT_S) -> str:
        """Memory, processes and files, published whole under the id returned, or not at all; the sandbox runs on.

        A machine is saved between cells (commands may run on): this waits for a running cell, holds the next ones until
        the machine is saved, and raises SandboxBusy when the cell runs longer than `wait_s`.
        """
        ...

    async def fork(
        self, n: int, *, names: list[str] | None = None, wait_s: float = WAIT_S
    ) -> list[ForkOutcome]:
        """n clones with live memory and files but randomness, clock and identity of their own. Waits as `snapshot`."""
        ...

    async def pause(self, *, wait_s: float = WAIT_S) -> None:
        """Stop every process inside; time in it stands still for deadlines. Waits as `snapshot`."""
        ...

    async def resume(self) -> None: ...

    async def destroy(self) -> None:
        """End everything inside and take away what it held on the host. Snapshots stay."""
        ...

    async def close(self) -> None:
        """Give up ownership and leave the machine running (it must have been created with `keep=True`)."""
        ...


class SandboxError(MorticeError):
    """Base of what goes wrong with a machine itself."""

    kind = "sandbox_error"


class BackendUnavailable(RequestError):
    """The strength asked for cannot be had here. The message names the probe and the remedy; nothing weaker is taken."""


class SandboxNotFound(NotFound):
    """No sandbox or snapshot of that name."""


class SandboxBusy(WrongState):
    """The sandbox is in a state, or in another owner's hands, that does not allow this."""


class LeaseLost(WrongState):
    """Another supervisor owns this sandbox now; this one may not run, publish or record anything in it."""


class NotSupported(RequestError):
    """This back end cannot do that; the message says which one can."""


class SnapshotRefused(SandboxError):
    """The snapshot is damaged, incomplete or from another version; nothing of it was started."""


class GuestFileError(RequestError):
    """A file in the guest cannot be read or written; `code` is the errno's name."""


class SandboxLost(SandboxError):
    """The machine is gone. `reason` says why; `last_snapshot` is what it can be restored from."""

    def __init__(self, message: str, *, reason: Reason, last_snapshot: str | None = None) -> None:
        super().__init__(message, code=reason)
        self.reason = reason
        self.last_snapshot = last_snapshot
