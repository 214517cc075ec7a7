"""What the host's control groups say of a box: memory used, and whether the limit killed it. Versions 1 and 2."""

from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
PARENT = "mortice"


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


def remove(box_id: str) -> None:
    """Take away what an ended box left; a group that still holds processes stays."""
    for path in (*ROOT.glob(f"*/{PARENT}/{box_id}"), ROOT / PARENT / box_id):
        try:
            path.rmdir()
        except OSError:
            continue
