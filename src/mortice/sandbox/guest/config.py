"""What a guest's agent is told at its start, and the folders a guest may write to; the same for every back end."""

import json

from mortice.sandbox.contract import MIB, SandboxSpec
from mortice.sandbox.egress_tls import GUEST_BUNDLE, GUEST_VARIABLES

MAPPED_BEYOND = (
    256 * MIB
)  # of address space above the limit for one process: libraries map more than they touch
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "MALLOC_ARENA_MAX": "2"}
"""Of the agent; every further arena of glibc would map 64 MiB a thread."""
WRITABLE = (
    ("/work", "0755", 1000),
    ("/home/user", "0755", 1000),
    ("/tmp", "1777", 0),
    ("/dev/shm", "1777", 0),
    ("/run", "0755", 0),
)
"""(path, mode, owner inside); all in memory, each with a size of its own."""


def agent_config(spec: SandboxSpec, **more: object) -> str:
    """The agent's configuration as JSON."""
    limits = spec.limits
    config = {
        "processes": limits.num_processes + 1,  # the interpreter is one of the user's
        "process_bytes": limits.memory_bytes + MAPPED_BEYOND,
        "cpus": str(max(1, round(limits.cpus))),
        "egress": spec.egress.mode != "none",
        "env": spec.env | _for_secrets(spec),
        **more,
    }
    return json.dumps(config, separators=(",", ":"))


def _for_secrets(spec: SandboxSpec) -> dict[str, str]:
    """Programs find a placeholder where they look for a key, and trust the proxy that puts the key in."""
    if not spec.egress.secrets:
        return {}
    trust = dict.fromkeys(GUEST_VARIABLES, GUEST_BUNDLE)
    return trust | {secret.name: secret.placeholder for secret in spec.egress.secrets}
