"""What the host's control groups say of a box: memory used, and whether the limit killed it. Versions 1 and 2."""

import asyncio
import contextlib
import os
import signal
import threading
from pathlib import Path

from mortice.sandbox.contract import SandboxError

ROOT = Path("/sys/fs/cgroup")
PARENT = "mortice"
QUICK_EVERY_S = 0.012


def group_path(box_id: str) -> str:
    """The `cgroupsPath` of a box."""
    return f"/{PARENT}/{box_id}"


def memory_bytes(box_id: str) -> int | None:
    """Bytes charged to the box now."""
    for path in (
        ROOT / "memory" / PARENT / box_id / "memory.usage_in_bytes",
        ROOT / PARENT / box_id / "memory.current",
    ):
        if path.exists():
            return int(path.read_text())
    return None


def cpu_seconds(box_id: str) -> float | None:
    """CPU time the box has used so far."""
    path = ROOT / "cpuacct" / PARENT / box_id / "cpuacct.usage"
    if path.exists():
        return int(path.read_text()) / 1e9
    path = ROOT / PARENT / box_id / "cpu.stat"
    if path.exists():
        return int(path.read_text().split()[1]) / 1e6
    return None


def oom_kills(box_id: str) -> int:
    """How often the kernel killed something in the box for its memory limit."""
    for path in (
        ROOT / "memory" / PARENT / box_id / "memory.oom_control",
        ROOT / PARENT / box_id / "memory.events",
    ):
        try:
            for line in path.read_text().splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill":
                    return int(value)
        except OSError:
            continue
    return 0


def touched_limit(box_id: str) -> bool:
    """Whether the box ever met its memory limit."""
    try:
        return int((ROOT / "memory" / PARENT / box_id / "memory.failcnt").read_text()) > 0
    except (OSError, ValueError):
        return oom_kills(box_id) > 0


def groups(box_id: str) -> list[Path]:
    """Every directory of the box's groups, over all controllers."""
    return [p for p in (*ROOT.glob(f"*/{PARENT}/{box_id}"), ROOT / PARENT / box_id) if p.exists()]


async def empty(box_id: str) -> None:
    """End every process that is still in the box's groups and take the groups away."""
    for attempt in range(200):
        left: set[int] = set()
        for group in groups(box_id):
            try:
                left |= {int(pid) for pid in (group / "cgroup.procs").read_text().split()}
            except OSError:
                continue
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for group in groups(box_id):
            with contextlib.suppress(OSError):
                group.rmdir()
        if not groups(box_id):
            return
        await asyncio.sleep(0.001 * min(attempt, 20))
    raise SandboxError(f"processes of {box_id} do not end; look into {ROOT}/*/{PARENT}/{box_id}")


def create(box_id: str, memory_bytes: int, num_processes: int, cpus: float) -> list[Path]:
    """Groups with these limits, for a back end that makes its own. Returns the folders whose `cgroup.procs` to join."""
    quota = int(cpus * 100_000)
    if (ROOT / "cgroup.controllers").exists():
        parent = ROOT / PARENT
        parent.mkdir(exist_ok=True)
        for folder in (ROOT, parent):
            with contextlib.suppress(OSError):
                (folder / "cgroup.subtree_control").write_text("+memory +pids +cpu")
        group = parent / box_id
        group.mkdir()
        (group / "memory.max").write_text(str(memory_bytes))
        (group / "pids.max").write_text(str(num_processes))
        (group / "cpu.max").write_text(f"{quota} 100000")
        return [group]
    made = []
    settings = {
        "memory": {"memory.limit_in_bytes": memory_bytes},
        "pids": {"pids.max": num_processes},
        "cpu": {"cpu.cfs_period_us": 100_000, "cpu.cfs_quota_us": quota},
        "cpuacct": {},
        "freezer": {},
    }
    for controller, values in settings.items():
        if not (ROOT / controller).is_dir():
            raise SandboxError(f"this machine has no control group {controller!r}; the limits could not hold")
        group = ROOT / controller / PARENT / box_id
        group.mkdir(parents=True)
        for name, value in values.items():
            (group / name).write_text(str(value))
        made.append(group)
    return made


def joining(groups: list[Path]) -> list[str]:
    """The beginning of a command line: what follows starts as a member of these groups."""
    join = 'while [ "$1" != -- ]; do echo $$ > "$1/cgroup.procs" || exit 1; shift; done; shift; exec "$@"'
    return ["sh", "-c", join, "sh", *map(str, groups), "--"]


class _QuickJoins:
    """While anyone is within it, joining a control group is quick for everyone.

    The first join after a pause of 30 ms waits for a grace period of the kernel, 10 to 15 ms, and runsc joins and leaves
    with such a pause between. A thread that moves this process to where it already is keeps that wait away; one serves all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_within = 0
        self._nobody = threading.Event()

    def __enter__(self) -> None:
        with self._lock:
            self._num_within += 1
            if self._num_within > 1:
                return
            self._nobody = threading.Event()
            own = _own_group()
        if own is not None:
            arguments = (own, self._nobody)
            threading.Thread(target=_keep_joining, args=arguments, name="quick-joins", daemon=True).start()

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._num_within -= 1
            if self._num_within == 0:
                self._nobody.set()


quick_joins = _QuickJoins()


def _keep_joining(group: Path, done: threading.Event) -> None:
    try:
        fd = os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # then joins take their time
    try:
        while not done.is_set():
            os.write(fd, b"0")
            done.wait(QUICK_EVERY_S)
    except OSError:
        return
    finally:
        os.close(fd)


def _own_group() -> Path | None:
    """This process's own group of the freezer or of version 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "freezer":
            return ROOT / "freezer" / path.lstrip("/")
        if controllers == "" and (ROOT / "cgroup.controllers").exists():
            return ROOT / path.lstrip("/")
    return None


async def freeze(box_id: str, *, frozen: bool) -> None:
    """Stop every process of the box, or let them go on."""
    old, new = ROOT / "freezer" / PARENT / box_id / "freezer.state", ROOT / PARENT / box_id / "cgroup.freeze"
    try:
        if old.exists():
            want = "FROZEN" if frozen else "THAWED"
            for _ in range(200):
                old.write_text(want)
                if old.read_text().strip() == want:
                    return
                await asyncio.sleep(0.01)
            raise SandboxError(f"{box_id} did not come to rest")
        new.write_text("1" if frozen else "0")
    except OSError as error:
        raise SandboxError(f"{box_id} cannot be stopped or let go: {error}") from None
