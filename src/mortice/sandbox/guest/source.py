"""The agent as an argument: its modules compiled once by the guest's own Python, since compiling costs 10 MB and 100 ms."""

import functools
import hashlib
import json
import os
import subprocess
from importlib import resources

from mortice.sandbox.contract import SandboxError
from mortice.sandbox.home import images_folder
from mortice.sandbox.images import Image

MODULES = (
    "wire",
    "jobs",
    "interpreter",
    "gateway",
    "files",
    "system",
    "results",
    "children",
    "cells",
    "agent",
)

BOOT = """
import marshal, posix, sys
left = int.from_bytes(posix.read(0, 4), "little")
parts = []
while left:
    parts.append(posix.read(0, left))
    left -= len(parts[-1])
for name, code in marshal.loads(b"".join(parts)):
    module = sys.modules[name] = type(sys)(name)
    if not name.endswith(".gateway") or '"egress":true' in sys.argv[1]:
        exec(code, module.__dict__)
del parts, code
module.main()
"""
"""For `python3 -I -S -c`, followed by the agent's configuration as JSON; reads what `agent_code` returns from its input.
As an argument the code would cost a megabyte: Python keeps several copies of its command line at four bytes a letter."""

_COMPILER = """
import json, marshal, sys
parts = [(name, compile(source, name, "exec", optimize=2)) for name, source in json.load(sys.stdin)]
data = marshal.dumps(parts)
sys.stdout.buffer.write(len(data).to_bytes(4, "little") + data)
"""


@functools.cache
def agent_code(image: Image) -> bytes:
    """The agent's bytecode for this image's Python, its length first. Made once for an image and version of the agent."""
    path = images_folder() / "agents" / f"{_code_digest()[:16]}-{image.digest[:16]}"
    if not path.exists():
        command = ["chroot", str(image.root), "/usr/bin/python3", "-I", "-S", "-c", _COMPILER]
        done = subprocess.run(command, input=json.dumps(_sources()).encode(), capture_output=True, timeout=60)
        if done.returncode != 0:
            raise SandboxError(
                f"the agent could not be compiled for image {image.name!r}: {done.stderr.decode()[-500:]}"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(done.stdout)
        part.rename(path)
    return path.read_bytes()


@functools.cache
def agent_digest() -> str:
    """SHA-256 of the agent's sources."""
    return hashlib.sha256(json.dumps(_sources()).encode()).hexdigest()


def _code_digest() -> str:
    return hashlib.sha256((agent_digest() + _COMPILER).encode()).hexdigest()


def _sources() -> list[tuple[str, str]]:
    package = resources.files("mortice.sandbox.guest")
    return [(f"mortice.sandbox.guest.{m}", (package / f"{m}.py").read_text()) for m in MODULES]
