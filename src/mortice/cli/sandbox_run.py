"""`mortice sandbox run` and `shell`"""

import asyncio
import json
import secrets
import sys
from typing import Annotated, get_args

import msgspec
import typer

from mortice.sandbox import (
    BackendName,
    Egress,
    Limits,
    RunResult,
    Sandbox,
    Sandboxes,
    SandboxNotFound,
    SandboxSpec,
    Secret,
)
from mortice.specs.errors import RequestError

MIB = 1 << 20
Backend = Annotated[
    str,
    typer.Option(
        help="microvm, microsandbox, gvisor, process, wasm, or auto: the strongest that works here."
    ),
]
Name = Annotated[str | None, typer.Option(help="Use the sandbox of this name; it is made if there is none.")]
Keep = Annotated[bool, typer.Option("--keep", help="Leave the sandbox running afterwards (needs --name).")]
Memory = Annotated[int, typer.Option("--memory-mib", min=64, help="Memory limit, files inside included.")]
Timeout = Annotated[float, typer.Option("--timeout-s", min=0.1, help="Wall time of the command.")]
Allow = Annotated[
    list[str] | None,
    typer.Option("--allow", help="host:port that may be reached through the egress proxy; repeatable."),
]

Secrets = Annotated[
    list[str] | None,
    typer.Option(
        "--secret",
        help="NAME@host:port: the value of $NAME goes as bearer token into requests to that host, and not into the "
        "sandbox; repeatable.",
    ),
]


def run(
    command: Annotated[list[str], typer.Argument(help="The command and its arguments, after --.")],
    backend: Backend = "auto",
    name: Name = None,
    keep: Keep = False,
    memory_mib: Memory = 512,
    timeout_s: Timeout = 60.0,
    allow: Allow = None,
    secret: Secrets = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="Give the command what this command reads.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a command in a sandbox. Exits with 0 if it did, with 1 if it did not, with 2 for a wrong request."""
    spec = _spec(backend, memory_mib, allow, secret)
    if keep and name is None:
        raise RequestError("--keep needs --name, or nobody could find the sandbox again", param="keep")
    result = asyncio.run(
        _run(spec, name, keep, command, timeout_s, sys.stdin.buffer.read() if stdin else None, not as_json)
    )
    if as_json:
        print(json.dumps(msgspec.to_builtins(result), indent=2))
    elif result.failure is not None:
        print(f"mortice: {result.failure.message}; {result.failure.remedy}", file=sys.stderr)
    if not result.ok:
        raise typer.Exit(1)


async def _run(
    spec: SandboxSpec,
    name: str | None,
    keep: bool,
    command: list[str],
    timeout_s: float,
    stdin: bytes | None,
    live: bool,
) -> RunResult:
    def show(stream: str, data: bytes) -> None:
        target = sys.stdout if stream == "stdout" else sys.stderr
        target.buffer.write(data)
        target.flush()

    async with Sandboxes() as boxes:
        box = await _box(boxes, spec, name, keep=keep)
        cell_id = f"cli-{secrets.token_hex(8)}"
        return await box.exec(
            command, cell_id=cell_id, stdin=stdin, timeout_s=timeout_s, on_output=show if live else None
        )


async def _box(boxes: Sandboxes, spec: SandboxSpec, name: str | None, *, keep: bool) -> Sandbox:
    if name is not None:
        try:
            return await boxes.attach(name)
        except SandboxNotFound:
            pass
    return await boxes.create(spec, name=name, keep=keep)


def shell(
    name: Name = None,
    backend: Backend = "auto",
    keep: Keep = False,
    memory_mib: Memory = 512,
    allow: Allow = None,
    secret: Secrets = None,
    python: Annotated[
        bool, typer.Option("--python", help="Cells of the Python interpreter instead of sh.")
    ] = False,
) -> None:
    """A line at a time into a sandbox: each line runs in /work, or as a cell whose variables live on."""
    asyncio.run(_shell(_spec(backend, memory_mib, allow, secret), name, keep, python))


async def _shell(spec: SandboxSpec, name: str | None, keep: bool, python: bool) -> None:
    async with Sandboxes() as boxes:
        box = await _box(boxes, spec, name, keep=keep)
        print(
            f"{box.info.name}: {box.info.backend}, strength {box.info.strength}; end with Ctrl-D",
            file=sys.stderr,
        )
        while True:
            print(">>> " if python else "$ ", end="", file=sys.stderr, flush=True)
            line = await asyncio.to_thread(sys.stdin.readline)
            if not line:
                return
            if not line.strip():
                continue
            cell_id = f"shell-{secrets.token_hex(8)}"
            if python:
                result = await box.run_cell(line, cell_id=cell_id)
            else:
                result = await box.exec(["sh", "-c", line], cell_id=cell_id)
            print(result.stdout, end="")
            print(result.stderr + (result.error.traceback if result.error else ""), end="", file=sys.stderr)
            if result.value is not None:
                print(result.value)
            if result.failure is not None:
                print(f"{result.failure.message}; {result.failure.remedy}", file=sys.stderr)


def _spec(backend: str, memory_mib: int, allow: list[str] | None, secrets: list[str] | None) -> SandboxSpec:
    names = ("auto", *get_args(BackendName))
    if backend not in names:
        raise RequestError(f"{backend!r} is none of {', '.join(names)}", param="backend")
    bound = [_secret(text) for text in secrets or ()]
    targets = tuple(dict.fromkeys([*(allow or ()), *(target for secret in bound for target in secret.hosts)]))
    egress = Egress(mode="allowlist", allow=targets, secrets=tuple(bound)) if targets else Egress()
    return SandboxSpec(backend=backend, limits=Limits(memory_bytes=memory_mib * MIB), egress=egress)  # type: ignore[arg-type]


def _secret(text: str) -> Secret:
    name, at, target = text.partition("@")
    if not at:
        raise RequestError(f"{text!r} is not NAME@host:port", param="secret")
    return Secret(name=name, hosts=(target,))
