"""What came of a run, in the contract's words; for each way to end badly what happened, and what to do about it."""

from typing import Any

import msgspec

from mortice.sandbox.contract import CellError, Failure, Limits, Reason, RunResult, SandboxBusy, SandboxError
from mortice.sandbox.machine import Backend


def result_of(
    cell_id: str,
    answer: dict[str, Any],
    backend: Backend,
    limits: Limits,
    timeout_s: float,
    cpu_s: float | None,
) -> RunResult:
    """The agent's answer to a cell or command, checked: a guest that took the agent over must not reach further. `cpu_s`
    is the host's account of it, which stands for the guest's where there is one."""
    if answer.get("forgotten"):
        raise SandboxBusy(f"{cell_id!r} ran before and its result is no longer held", param="cell_id")
    try:
        error = answer.get("error")
        reason = answer.get("reason")
        return RunResult(
            cell_id=cell_id,
            ok=bool(answer["ok"]),
            exit_code=None if answer.get("exit") is None else int(answer["exit"]),
            stdout=str(answer.get("stdout", "")),
            stderr=str(answer.get("stderr", "")),
            stdout_bytes=int(answer.get("stdout_bytes", 0)),
            stderr_bytes=int(answer.get("stderr_bytes", 0)),
            wall_s=float(answer["wall"]),
            cpu_s=float(answer.get("cpu") or 0) if cpu_s is None or answer.get("replayed") else cpu_s,
            backend=backend.name,
            strength=backend.strength,
            value=answer.get("value"),
            error=msgspec.convert(error, CellError) if error else None,
            failure=explain(reason, limits, timeout_s=timeout_s) if reason else None,
            replayed=bool(answer.get("replayed")),
        )
    except (KeyError, TypeError, ValueError, msgspec.ValidationError) as problem:
        raise SandboxError(f"the guest's answer to {cell_id!r} cannot be read: {problem}") from None


def explain(reason: Reason, limits: Limits, *, timeout_s: float) -> Failure:
    """A failure that whoever wrote the code, a model too, can act on."""
    mib = 1 << 20
    message, remedy = {
        "oom": (
            f"out of memory: the sandbox has {limits.memory_bytes // mib} MiB, files in /work and /tmp included",
            "work on less at once (read in chunks, delete what is no longer needed) or ask for a larger memory_bytes",
        ),
        "processes": (
            f"no more processes or threads: {limits.num_processes} may run at once",
            "end some, or start fewer (a smaller pool)",
        ),
        "disk": (
            f"no space left: /work, /tmp and /home/user hold {limits.disk_bytes // mib} MiB each",
            "delete files that are no longer needed, or write less",
        ),
        "output": (
            f"ended because it wrote more than {limits.output_bytes // mib} MiB of output",
            "print less; write large results to a file under /work and read the part that matters",
        ),
        "timeout": (
            f"ended because it ran longer than {timeout_s:g} s",
            "do less in one step, or ask for a longer timeout",
        ),
        "signal": ("the command was ended by a signal", "see stderr; if nothing else sent it, it crashed"),
        "interpreter_exit": (
            "the Python interpreter ended during the cell (crash, os._exit or kill); a fresh one runs, variables are lost",
            "define again what is needed; files are still there",
        ),
        "not_found": ("there is no such command in the sandbox", "check the name; installed are Python and Debian's base"),
        "policy": ("the policy of this sandbox forbids that", "do without it, or ask for it to be allowed"),
        "lost": ("the sandbox is gone", "restore its last snapshot"),
    }[reason]  # fmt: skip
    return Failure(reason=reason, message=message, remedy=remedy)
