"""A guest kernel of its own in QEMU: under hardware virtualisation a wall, under software emulation a way to test it.

The guest is Debian's cloud kernel, an initramfs that mounts the shared root file system read-only and folders in memory, and
the agent as its first process on a virtio-serial port. There is no network card and no disk that can be written: what a
machine is, is in its memory.

A machine that booted has its memory in a file that only it and we can reach (a memfd). Its snapshot is a copy of that file
and a small stream of its devices' state; every machine restored from it maps the one file, and owns what it writes to.
What such a clone has written lies nowhere as a file, so a clone's own snapshot is one stream of everything, and a machine
restored from that has a memfd again.
"""

import asyncio
import contextlib
import errno
import math
import mmap
import os
import subprocess
import tempfile
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

from mortice.sandbox import cgroups
from mortice.sandbox.backends.hosted import HostedMachine
from mortice.sandbox.backends.qmp import Qmp, connect
from mortice.sandbox.contract import MIB, Probe, SandboxError, SandboxSpec, Strength
from mortice.sandbox.guest.config import WRITABLE, agent_config
from mortice.sandbox.guest.source import agent_code
from mortice.sandbox.images import Vm, find_image, find_vm
from mortice.sandbox.kvm import probe_kvm
from mortice.sandbox.machine import Machine
from mortice.sandbox.probes import ask_guest

GUEST_KERNEL = 96 * MIB  # what the guest's kernel and agent need beside the limit
QEMU_BESIDE = 256 * MIB  # of QEMU itself: devices, the emulator's translated code
START_TIMEOUT_S = 20.0
SAVE_TIMEOUT_S = 120.0
STATE, MEMORY = "state", "ram"  # a snapshot's files; of a stream of everything there is only the first
FORMAT = "memory apart"  # of snapshots; those of before are refused as of another back end
MEMFD = "mortice-ram"
ZEROS = bytes(64 << 10)
UID = 64_999  # nobody's on the host
QUIET_BOOT = "quiet reboot=t panic=-1 random.trust_cpu=on no_timer_check i8042.noaux i8042.nokbd i8042.nopnp"


class MicroVM:
    """The back end. `emulated` runs guests without KVM, slowly; their strength is `emulated`, and no wall is claimed."""

    name = "microvm"
    can_snapshot = True

    def __init__(self, *, emulated: bool = False) -> None:
        self.emulated = emulated
        self.strength = Strength.EMULATED if emulated else Strength.MICROVM
        vm = find_vm()
        self.version = f"{vm.digest[:16] if vm else 'missing'} {FORMAT}{' emulated' if emulated else ''}"

    async def probe(self) -> Probe:
        """Hardware first (two tiny guests on /dev/kvm), then a whole guest that is saved and restored."""
        finding = None if self.emulated else await asyncio.to_thread(probe_kvm)
        if finding is not None and not finding.hardware:
            return self._refuse(
                f"kvm probe: {finding.why_not}",
                "a machine with hardware virtualisation; gvisor works without",
            )
        if os.geteuid() != 0:
            return self._refuse("needs root, for control groups and namespaces", "run as root")
        if find_vm() is None or find_image("base") is None:
            return self._refuse(
                "QEMU, a guest kernel or its disk are not installed", "mortice sandbox setup --vm"
            )
        with tempfile.TemporaryDirectory(prefix="mortice-probe-") as place:
            return await ask_guest(self, Path(place), round_trip=True)

    def _refuse(self, why: str, remedy: str) -> Probe:
        return Probe(backend=self.name, works=False, strength=self.strength, why_not=why, remedy=remedy)

    async def start(
        self, box_id: str, place: Path, spec: SandboxSpec, trace: dict[str, Any] | None
    ) -> Machine:
        image = find_image(spec.image)
        if image is None:
            raise SandboxError(
                f"there is no image {spec.image!r}; `mortice sandbox setup` makes the base image"
            )
        machine = await self._launch(box_id, place, spec, None, [])
        machine.first_words(agent_config(spec, own_kernel=True).encode(), agent_code(image))
        return machine

    async def restore(
        self,
        box_id: str,
        place: Path,
        spec: SandboxSpec,
        image: Awaitable[Path],
        trace: dict[str, Any] | None,
    ) -> Machine:
        """From a template's memory or from a stream, whichever the snapshot is."""
        folder = await image
        is_template = (folder / MEMORY).exists()
        memory = folder / MEMORY if is_template else None
        machine = await self._launch(box_id, place, spec, memory, ["-S", "-incoming", "defer"])
        try:
            async with Qmp(place / "qmp") as qmp:
                await qmp.call("migrate-set-capabilities", capabilities=[_memory_apart(is_template)])
                await qmp.call("migrate-incoming", uri=await qmp.give_file(folder / STATE, os.O_RDONLY))
                await qmp.until("query-status", ("paused", "prelaunch"), timeout_s=SAVE_TIMEOUT_S)
                if (own := machine.own_memory()) is not None:
                    await asyncio.to_thread(drop_zeros, own)
                await qmp.call("cont")
        except BaseException:
            await machine.remove()
            raise
        return machine

    def attach(self, box_id: str, place: Path, pid: int) -> Machine:
        return QemuMachine(box_id, place, pid)

    async def _launch(
        self, box_id: str, place: Path, spec: SandboxSpec, template: Path | None, more: list[str]
    ) -> "QemuMachine":
        vm = find_vm()
        if vm is None:
            raise SandboxError(
                "QEMU, a guest kernel or its disk are not installed: mortice sandbox setup --vm"
            )
        limits = spec.limits
        groups = cgroups.create(
            box_id,
            limits.memory_bytes + GUEST_KERNEL + QEMU_BESIDE,
            64 + 4 * math.ceil(limits.cpus),
            limits.cpus,
        )
        (place / "empty").mkdir()
        command = [
            *cgroups.joining(groups),
            "setpriv",
            "--no-new-privs",
            "unshare",
            "--net",
            "--ipc",
            "--uts",
        ]
        with (place / "qemu.err").open("wb") as errors, _memory_for(spec, template) as (memory, fds):
            process = subprocess.Popen(
                [*command, *qemu_command(vm, spec, memory, emulated=self.emulated), *more],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, cwd=place,
                start_new_session=True, pass_fds=fds,
            )  # fmt: skip
        machine = QemuMachine(box_id, place, process.pid, process)
        try:
            await self._listening(place, process)
            return machine
        except BaseException:
            await machine.remove()
            raise

    async def _listening(self, place: Path, process: "subprocess.Popen[bytes]") -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                while process.poll() is None:
                    with contextlib.suppress(OSError, SandboxError):
                        async with Qmp(place / "qmp"):
                            return
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise SandboxError(f"QEMU did not start within {START_TIMEOUT_S:.0f} s") from None
        said = (place / "qemu.err").read_text(errors="replace").strip()[-1000:]
        raise SandboxError(f"QEMU ended with {process.returncode}: {said or 'it said nothing'}")


@contextlib.contextmanager
def _memory_for(spec: SandboxSpec, template: Path | None) -> Iterator[tuple[str, list[int]]]:
    """QEMU's description of a machine's memory, and the descriptors it has to inherit for that."""
    backing = f"memory-backend-file,id=ram,size={ram_mib(spec)}M"
    if template is not None:
        yield f"{backing},mem-path={escaped(template)},share=off,readonly=on,rom=off", []
        return
    fd = os.memfd_create(MEMFD, os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, ram_mib(spec) * MIB)
        yield f"{backing},mem-path=/proc/self/fd/{fd},share=on", [fd]
    finally:
        os.close(fd)


def ram_mib(spec: SandboxSpec) -> int:
    """Of the whole guest."""
    return (spec.limits.memory_bytes + GUEST_KERNEL) // MIB


def escaped(path: Path) -> str:
    """As a value among QEMU's options, where a comma is written twice."""
    return str(path).replace(",", ",,")


def _memory_apart(apart: bool) -> dict[str, Any]:
    """QEMU's capability to leave a shared memory file out of a stream; both ends must agree on it."""
    return {"capability": "x-ignore-shared", "state": apart}


def qemu_command(vm: Vm, spec: SandboxSpec, memory: str, *, emulated: bool) -> list[str]:
    """QEMU with one disk to read, one serial port to talk over and nothing else; as nobody, without a root, filtered."""
    limits = spec.limits
    num_cpus = max(1, round(limits.cpus))
    sizes = ",".join(
        f"{path}:{limits.disk_bytes if path not in ('/run', '/dev/shm') else 16 * MIB}:{mode}:{owner}"
        for path, mode, owner in WRITABLE
    )
    boot = f"{QUIET_BOOT} mortice={sizes}" + (" mitigations=off tsc=reliable" if emulated else "")
    return [
        *vm.program, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-object", memory, "-M", "pc,memory-backend=ram,usb=off,vmport=off,smbus=off,hpet=off",
        "-accel", "tcg,tb-size=64" if emulated else "kvm",
        "-cpu", "max" if emulated else "host", "-smp", str(num_cpus), "-m", f"{ram_mib(spec)}M",
        "-kernel", str(vm.kernel), "-initrd", str(vm.initrd), "-append", boot,
        "-drive", f"if=none,id=d0,file={vm.disk},format=raw,readonly=on", "-device", "virtio-blk-pci,drive=d0",
        "-device", "virtio-serial-pci,max_ports=2",
        "-chardev", "socket,id=c0,path=agent,server=on,wait=off", "-device", "virtserialport,chardev=c0,name=agent",
        "-chardev", "socket,id=m0,path=qmp,server=on,wait=off", "-mon", "chardev=m0,mode=control",
        "-sandbox", "on,obsolete=deny,spawn=deny,resourcecontrol=deny",
        "-run-with", f"user={UID}:{UID},chroot=empty",
    ]  # fmt: skip


class QemuMachine(HostedMachine):
    """One QEMU process."""

    process_name = "QEMU"

    def __init__(
        self, box_id: str, place: Path, pid: int, process: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        super().__init__(box_id, place, pid)
        self._process = process
        self._first: int | None = None

    def first_words(self, config: bytes, code: bytes) -> None:
        """Lay the agent's configuration and code into the port; the guest reads them once it has booted."""
        sock = connect(self._place / "agent")
        data = len(config).to_bytes(4, "little") + config + code
        try:
            sock.settimeout(START_TIMEOUT_S)
            sock.sendall(data)
            self._first = sock.detach()
        finally:
            sock.close()

    def open_channel(self) -> tuple[int, int]:
        """The connection over which the agent came, or a new one: QEMU serves one at a time."""
        fd, self._first = self._first, None
        if fd is None:
            fd = connect(self._place / "agent").detach()
        return fd, fd

    async def checkpoint(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        memory = self.own_memory()
        async with Qmp(self._place / "qmp") as qmp:
            target = await qmp.give_file(folder / STATE, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            await qmp.call("migrate-set-capabilities", capabilities=[_memory_apart(memory is not None)])
            await qmp.call("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
            await qmp.call("stop")
            try:
                await qmp.call("migrate", uri=target)
                ended = await qmp.until(
                    "query-migrate", ("completed", "failed", "cancelled"), timeout_s=SAVE_TIMEOUT_S
                )
                if memory is not None:
                    await asyncio.to_thread(copy_sparse, memory, folder / MEMORY)
            finally:
                await qmp.call("cont")
            if ended["status"] != "completed":
                raise SandboxError(
                    f"QEMU could not save the machine: {ended.get('error-desc', ended['status'])}"
                )

    def own_memory(self) -> Path | None:
        """The machine's memory as a file, unless it shares a template's."""
        for path in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(path).startswith(f"/memfd:{MEMFD}"):
                    return path
        return None

    async def pause(self) -> None:
        async with Qmp(self._place / "qmp") as qmp:
            await qmp.call("stop")

    async def resume(self) -> None:
        async with Qmp(self._place / "qmp") as qmp:
            await qmp.call("cont")

    async def remove(self) -> None:
        if self._first is not None:
            os.close(self._first)
            self._first = None
        self._kill()
        await cgroups.empty(self._id)
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)


def drop_zeros(memory: Path) -> None:
    """Give back what holds nothing: QEMU looks at each page of a stream's machine, and a file of memory gives it one."""
    with memory.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as mapped:
        for start in range(0, len(mapped), len(ZEROS)):
            if os.pread(file.fileno(), len(ZEROS), start) == ZEROS:
                mapped.madvise(mmap.MADV_REMOVE, start, len(ZEROS))


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file of memory; what was never touched stays a hole."""
    fd = os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with source.open("rb", buffering=0) as file, os.fdopen(fd, "wb", buffering=0) as out:
        size = os.fstat(file.fileno()).st_size
        os.ftruncate(out.fileno(), size)
        end = 0
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:  # only a hole is left
                    return
                raise
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            out.seek(start)
            while start < end:
                start += os.sendfile(out.fileno(), file.fileno(), start, end - start)
