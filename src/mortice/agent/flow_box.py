"""The sandbox of a workflow: each use of it is a step that ends with a snapshot, and states what came before it.

The manifest in a step's result (an epoch) covers the steps since the one before, and names the last snapshot and the audit
record that says the same. Whoever resumes the workflow proves that they still match.
"""

from collections.abc import Awaitable, Callable

import msgspec

from mortice.agent.durable import Json
from mortice.agent.epochs import Epoch
from mortice.agent.history import File
from mortice.agent.ledger import key_of
from mortice.agent.machine import SandboxTools
from mortice.agent.spec_machine import Machine
from mortice.agent.tool import CallContext

MakeTools = Callable[[str, Machine, Callable[[], str | None]], Awaitable[SandboxTools]]
"""The tools of the sandbox of that name, which comes back from the last snapshot where it is gone."""


class Ran(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one use. `ok` is false for a failed command or cell; the text says why."""

    text: str
    ok: bool
    changed: tuple[str, ...] = ()  # files under /work
    files: tuple[File, ...] = ()  # brought out
    strength: str | None = None


class FlowBox:
    """Made by `Flow.sandbox`. A crash in the middle of a use is a use that is sent again under its id, and runs once."""

    def __init__(
        self,
        run_id: str,
        name: str,
        machine: Machine,
        *,
        make: MakeTools,
        step: Callable[[str, Callable[[], Awaitable[Json]]], Awaitable[Json]],
        seal: Callable[[str | None], Awaitable[Epoch]],
    ) -> None:
        self._run_id = run_id
        self._name = name
        self._machine = machine
        self._make = make
        self._step = step
        self._seal = seal
        self._tools: SandboxTools | None = None
        self._last: str | None = None
        self._num_uses = 0

    async def run_python(self, code: str) -> Ran:
        """A cell; variables live from one to the next, across crashes too."""
        return await self._use("run_python", code=code)

    async def run_command(self, command: str) -> Ran:
        """A shell command in /work."""
        return await self._use("run_command", command=command)

    async def write_file(self, path: str, text: str) -> Ran:
        """Paths are under /work. StepFailed if it cannot be written."""
        return await self._use("write_file", path=path, text=text)

    async def read_file(self, path: str) -> str:
        """A text file. StepFailed if it cannot be read."""
        return (await self._use("read_file", path=path)).text

    async def keep_file(self, path: str) -> File:
        """Bring a file out, into the artifacts of the runs. StepFailed if it cannot be read."""
        return (await self._use("keep_file", path=path)).files[0]

    async def _use(self, tool: str, **arguments: str) -> Ran:
        self._num_uses += 1
        number = self._num_uses

        async def act() -> Json:
            sealed = await self._seal(self._last)
            tools = await self._opened()
            run = next(t.run for t in tools.tools() if t.name == tool)
            key = key_of(f"{self._run_id}/{self._name}", 0, number)
            context = CallContext(
                run_id=self._run_id, turn=0, index=number, key=key, timeout_s=self._machine.timeout_s + 30.0
            )
            output = await run(arguments, context)
            ran = Ran(
                text=output.text, ok=not output.is_error, changed=output.changed, files=output.files,
                strength=output.strength,
            )  # fmt: skip
            return {
                "ran": msgspec.to_builtins(ran), "epoch": output.epoch, "sealed": msgspec.to_builtins(sealed),
            }  # fmt: skip

        output = await self._step(f"{self._name} {number}: {tool}", act)
        self._last = output["epoch"] or self._last
        return msgspec.convert(output["ran"], Ran)

    async def _opened(self) -> SandboxTools:
        if self._tools is None:
            self._tools = await self._make(self._name, self._machine, lambda: self._last)
        return self._tools

    async def destroy(self) -> None:
        """End the machine, whether this process or one before it began it."""
        if self._num_uses:
            await (await self._opened()).destroy()
