"""What a sandbox of an agent or of an MCP server is to be like."""

import msgspec

from mortice.sandbox import Secret


class Machine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Of an agent: where `run_python`, `run_command`, `read_file` and `write_file` work. Of an MCP server: where it runs."""

    backend: str = "auto"
    memory_mib: int = 512
    timeout_s: float = 60.0
    files: dict[str, str] = {}  # path in the sandbox: file or folder here, copied in when the machine is made
    allow: tuple[str, ...] = ()  # hosts that may be reached; none by default
    secrets: tuple[Secret, ...] = ()  # put into requests to some of them, outside of the sandbox
