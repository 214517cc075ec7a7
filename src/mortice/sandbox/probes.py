"""Does a back end work here? A probe starts a guest and makes it answer; the finding is kept until the next boot."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any, Protocol

import msgspec

from mortice.sandbox.channel import Channel
from mortice.sandbox.contract import Limits, Probe, SandboxError, SandboxSpec, Strength
from mortice.sandbox.home import Home, images_folder, new_id, write_whole
from mortice.sandbox.machine import Backend, Machine, alive

PROBE_TIMEOUT_S = 60.0
EMULATED_TIMEOUT_S = 300.0
ALIVE_EVERY_S = 0.05


class Probed(Protocol):
    """What can be asked whether it works."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    async def probe(self) -> Probe: ...


async def ask_guest(backend: Backend, place: Path, *, round_trip: bool) -> Probe:
    """Start a guest, have it compute, and with `round_trip` save it, end it, restore it and find its variable."""
    spec = SandboxSpec(limits=Limits(memory_bytes=256 << 20))
    details: dict[str, str] = {}
    machines: list[Machine] = []
    try:
        async with asyncio.timeout(
            EMULATED_TIMEOUT_S if backend.strength is Strength.EMULATED else PROBE_TIMEOUT_S
        ):
            began = time.monotonic()
            first = place / "a"
            first.mkdir(parents=True)
            machine = await backend.start(new_id("b"), first, spec, None)
            machines.append(machine)
            await _answers(machine, "probe = 6 * 7\nprobe")
            details["start_ms"] = f"{(time.monotonic() - began) * 1e3:.0f}"
            if round_trip:
                await machine.checkpoint(place / "image")
                await machine.remove()
                began = time.monotonic()
                second = place / "b"
                second.mkdir()
                machine = await backend.restore(new_id("b"), second, spec, _known(place / "image"), None)
                machines.append(machine)
                await _answers(machine, "probe")
                details["restore_ms"] = f"{(time.monotonic() - began) * 1e3:.0f}"
        return Probe(
            backend=backend.name,
            works=True,
            strength=backend.strength,
            version=backend.version,
            details=details,
        )
    except (SandboxError, OSError, TimeoutError) as error:
        why = f"the probe's guest failed: {str(error) or type(error).__name__}"
        return Probe(
            backend=backend.name, works=False, strength=backend.strength, version=backend.version, why_not=why
        )
    finally:
        for machine in machines:
            await machine.remove()


async def _known(path: Path) -> Path:
    return path


async def _answers(machine: Machine, code: str) -> None:
    """Raises SandboxError at once when the machine ends instead."""
    asked = asyncio.ensure_future(_ask(machine, code))
    ended = asyncio.ensure_future(_ended(machine))
    try:
        await asyncio.wait((asked, ended), return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise SandboxError(machine.cause_of_death()[1])
        await asked
    finally:
        asked.cancel()
        ended.cancel()


async def _ended(machine: Machine) -> None:
    while alive(machine.pid):
        await asyncio.sleep(ALIVE_EVERY_S)


async def _ask(machine: Machine, code: str) -> None:
    channel = Channel(*machine.open_channel())
    try:
        await channel.hello(EMULATED_TIMEOUT_S)  # the probe's own time is bounded around this
        answer = await channel.ask({"op": "cell", "id": new_id("p"), "code": code, "timeout": 60.0})
        if answer.get("value") != "42":
            raise SandboxError(f"the guest computed {answer.get('value')!r} ({answer.get('error')})")
    finally:
        channel.close()


async def cached_probe(backend: Probed, home: Home) -> Probe:
    """The last finding for this boot, kernel, back end version and user; or a new one."""
    path = images_folder() / "probes.json"
    key = f"{backend.name}:{backend.version}:{_boot()}:{os.geteuid()}"
    known = _read(path)
    if key in known:
        return msgspec.convert(known[key], Probe)
    found = await backend.probe()
    if found.works:  # a refusal is asked anew: what was missing may have come
        known = {k: v for k, v in _read(path).items() if _boot() in k}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, known | {key: msgspec.to_builtins(found)})
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return {}


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
