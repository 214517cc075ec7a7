"""The words for each way a run can end badly: what happened, and what to do about it."""

from mortice.sandbox.contract import Failure, Limits, Reason


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
