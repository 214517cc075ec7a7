"""The agent as text: its modules packed into one argument for the guest's Python."""

import functools
import hashlib
import json
from importlib import resources

MODULES = ("jobs", "interpreter", "gateway", "agent")

_BOOT = """
import json, sys, types
for name, source in json.loads({sources!r}):
    module = types.ModuleType(name)
    sys.modules[name] = module
    exec(compile(source, name, "exec"), module.__dict__)
module.main()
"""


@functools.cache
def agent_source() -> str:
    """For `python3 -I -S -c`, followed by the agent's configuration as JSON."""
    package = resources.files("mortice.sandbox.guest")
    sources = [(f"mortice.sandbox.guest.{m}", (package / f"{m}.py").read_text()) for m in MODULES]
    return _BOOT.format(sources=json.dumps(sources))


@functools.cache
def agent_digest() -> str:
    return hashlib.sha256(agent_source().encode()).hexdigest()
