"""What is said to machines and how they are put together, against far sides that this test plays."""

import array
import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mortice.sandbox import Egress, Limits, SandboxError, SandboxSpec, cgroups
from mortice.sandbox.backends.microvm import copy_sparse, drop_zeros, qemu_command
from mortice.sandbox.backends.qmp import Qmp
from mortice.sandbox.backends.sentry import IMAGE_FILES, LOOPBACK, Sentry
from mortice.sandbox.images import Vm
from mortice.sandbox.provision_vm import cpio
from mortice.sandbox.workspace import changes, read_listing

Answer = Callable[[dict[str, object], list[int]], list[bytes]]


class FarSide:
    """A unix socket that answers each request with the pieces that `answer` gives, and keeps what it was asked."""

    def __init__(self, path: Path, answer: Answer, *, greeting: bytes = b"", lines: bool = False) -> None:
        self.asked: list[dict[str, object]] = []
        self._answer, self._greeting, self._lines = answer, greeting, lines
        self._listener = socket.socket(socket.AF_UNIX)
        folder = os.open(path.parent, os.O_PATH)
        self._listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        self._listener.listen(8)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                sock.sendall(self._greeting)
                while True:
                    data, ancillary, _, _ = sock.recvmsg(65536, 4096)
                    if not data:
                        break
                    fds = array.array("i")
                    for _, _, raw in ancillary:
                        fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
                    for line in data.splitlines() if self._lines else [data]:
                        request = json.loads(line)
                        self.asked.append(request)
                        for piece in self._answer(request, list(fds)):
                            sock.sendall(piece)
                    for fd in fds:
                        os.close(fd)

    def close(self) -> None:
        self._listener.close()


GOOD = b'{"success":true,"err":"","result":null}'


async def test_a_checkpoint_hands_its_three_files_over_in_order(tmp_path: Path) -> None:
    def answer(request: dict[str, object], fds: list[int]) -> list[bytes]:
        for name, fd in zip(IMAGE_FILES, fds, strict=True):
            os.write(fd, name.encode())
        return [GOOD[:7], GOOD[7:]]  # an answer may come in pieces

    far = FarSide(tmp_path / "runsc-b1.sock", answer)
    await Sentry("b1", tmp_path).checkpoint(tmp_path / "image")
    far.close()
    assert [(tmp_path / "image" / name).read_text() for name in IMAGE_FILES] == list(IMAGE_FILES)
    options = {"metadata": {"compression": "none"}, "have_pages_file": True, "Resume": True}
    assert far.asked == [{"method": "containerManager.Checkpoint", "arg": options}]


async def test_a_restore_brings_loopback_up_first_over_any_length_of_path(tmp_path: Path) -> None:
    root = tmp_path / ("long-" * 20) / ("path-" * 20)
    root.mkdir(parents=True)
    image = tmp_path / "image"
    image.mkdir()
    for name in IMAGE_FILES:
        (image / name).write_text(name)
    read: list[bytes] = []

    def answer(request: dict[str, object], fds: list[int]) -> list[bytes]:
        read.extend(os.read(fd, 100) for fd in fds)
        return [GOOD]

    far = FarSide(root / "runsc-b1.sock", answer)
    await Sentry("b1", root).restore(image)
    far.close()
    assert [a["method"] for a in far.asked] == ["Network.CreateLinksAndRoutes", "containerManager.Restore"]
    assert far.asked[0]["arg"] == {"LoopbackLinks": [LOOPBACK]}
    assert [r.decode() for r in read] == list(IMAGE_FILES)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (b'{"success":false,"err":"no such container","result":null}', "Pause failed: no such container"),
        (b"", "it hung up"),
        (b"x" * (2 << 20), "its answer has no end"),
    ],
    ids=["refusal", "silence", "flood"],
)
async def test_what_a_kernel_says_against_a_call_is_told(tmp_path: Path, said: bytes, words: str) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "runsc-b1.sock"))
    listener.listen(1)

    def once() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.recv(65536)
            try:
                sock.sendall(said)
            except OSError:
                return  # it has heard enough

    thread = threading.Thread(target=once)
    thread.start()
    with pytest.raises(SandboxError, match=words):
        await Sentry("b1", tmp_path).pause()
    thread.join()
    listener.close()
    (tmp_path / "runsc-b1.sock").unlink()
    with pytest.raises(SandboxError, match=r"has no control socket runsc-b1\.sock"):
        await Sentry("b1", tmp_path).resume()


async def test_qemu_s_events_are_skipped_its_errors_told_and_files_passed(tmp_path: Path) -> None:
    def answer(request: dict[str, object], fds: list[int]) -> list[bytes]:
        match request["execute"]:
            case "add-fd":
                os.write(fds[0], b"through")
                return [b'{"event": "STOP"}\n{"return": {"fdset-id": 3, "fd": 9}}\n']
            case "query-migrate":
                status = "completed" if len(far.asked) > 5 else "active"
                return [json.dumps({"return": {"status": status}}).encode() + b"\n"]
            case "stop":
                return [b'{"error": {"class": "GenericError", "desc": "not now"}}\n']
        return [b'{"return": {}}\n']

    far = FarSide(tmp_path / "qmp", answer, greeting=b'{"QMP": {}}\r\n', lines=True)
    async with Qmp(tmp_path / "qmp") as qmp:
        assert await qmp.give_file(tmp_path / "memory", os.O_CREAT | os.O_WRONLY) == "file:/dev/fdset/3"
        assert (tmp_path / "memory").read_bytes() == b"through"
        with pytest.raises(SandboxError, match="QEMU's stop failed: not now"):
            await qmp.call("stop")
        found = await asyncio.wait_for(qmp.until("query-migrate", ("completed",), timeout_s=10), 20)
        assert found == {"status": "completed"}
    far.close()
    assert far.asked[0] == {"execute": "qmp_capabilities", "arguments": {}}


def test_a_machine_has_one_disk_to_read_one_port_and_no_network(tmp_path: Path) -> None:
    vm = Vm(program=["qemu"], kernel=tmp_path / "k", initrd=tmp_path / "i", disk=tmp_path / "d", digest="x")
    spec = SandboxSpec(limits=Limits(memory_bytes=256 << 20, cpus=2), egress=Egress(mode="public"))
    real, emulated = (qemu_command(vm, spec, "memory-backend-file,id=ram", emulated=e) for e in (False, True))
    devices = [real[n + 1] for n, word in enumerate(real) if word == "-device"]
    assert [d.split(",")[0] for d in devices] == ["virtio-blk-pci", "virtio-serial-pci", "virtserialport"]
    assert "readonly=on" in real[real.index("-drive") + 1]
    assert not [word for word in real if word in ("-netdev", "-nic", "-net", "-usb", "-vnc")]
    assert real[real.index("-object") + 1] == "memory-backend-file,id=ram"
    assert "memory-backend=ram" in real[real.index("-M") + 1]
    assert (real[real.index("-m") + 1], real[real.index("-smp") + 1]) == ("352M", "2")
    assert real[real.index("-accel") + 1] == "kvm"
    assert emulated[emulated.index("-accel") + 1].startswith("tcg")
    assert "mitigations=off" not in real[real.index("-append") + 1]


def test_memory_is_copied_with_its_holes(tmp_path: Path) -> None:
    fd = os.memfd_create("memory")
    with os.fdopen(fd, "r+b", buffering=0) as memory:
        memory.truncate(64 << 20)
        for at in (0, 5 << 20, 40 << 20):
            memory.seek(at)
            memory.write(b"page" * 1024)
        copy_sparse(Path(f"/proc/self/fd/{fd}"), tmp_path / "copy")
        memory.seek(0)
        assert (tmp_path / "copy").read_bytes() == memory.read()
        memory.seek(0)
        memory.write(bytes(8 << 20) + b"kept")
        drop_zeros(Path(f"/proc/self/fd/{fd}"))
        assert os.fstat(fd).st_blocks * 512 <= 256 << 10, "two ranges of 64 KiB hold something"
        assert os.pread(fd, 4, 8 << 20) == b"kept"
        assert os.pread(fd, 4, 40 << 20) == b"page"
    assert (tmp_path / "copy").stat().st_blocks * 512 < 1 << 20


def test_an_initramfs_is_in_the_kernel_s_format() -> None:
    archive = cpio(
        [("bin", 0o40755, b""), ("bin/sh", 0o120777, b"busybox"), ("init", 0o100755, b"#!/bin/sh\n")]
    )
    at, found = 0, []
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        start = at + 110 + name_size
        start += -start % 4
        at = start + size
        at += -at % 4
        if name == "TRAILER!!!":
            break
        found.append((name, mode, archive[start : start + size]))
    assert found == [
        ("bin", 0o40755, b""),
        ("bin/sh", 0o120777, b"busybox"),
        ("init", 0o100755, b"#!/bin/sh\n"),
    ]
    assert at == len(archive)


def test_changes_of_a_workspace_are_told_apart() -> None:
    before = {"/w/a": (1, 10, 1), "/w/b": (2, 10, 2), "/w/c": (3, 10, 3), "/w/same": (9, 9, 9)}
    after = {"/w/new": (1, 12, 7), "/w/moved": (2, 10, 2), "/w/c": (4, 11, 3), "/w/same": (9, 9, 9)}
    found = changes(before, after)
    assert {k: found[k] for k in ("created", "changed", "deleted", "renamed")} == {
        "created": ["/w/new"], "changed": ["/w/c"], "deleted": ["/w/a"], "renamed": [("/w/b", "/w/moved")],
    }  # fmt: skip
    many = changes({}, {f"/w/{n:04}": (0, 0, n) for n in range(1000)})
    assert (len(many["created"]), many["num_created"]) == (256, 1000)
    assert changes(before, None) == {"listed": False, "num_files": None}
    assert read_listing(None) is None
    for lie in ("x", [["/a", 1, 2]], [["/a", "1", 2, 3]], {"a": 1}):
        with pytest.raises(SandboxError, match="cannot be read"):
            read_listing(lie)


def test_joins_are_kept_quick_only_while_it_is_wanted() -> None:
    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name == "quick-joins"]

    if cgroups._own_group() is None:
        pytest.skip("no control groups that this process could be in")
    before = Path("/proc/self/cgroup").read_text()
    with cgroups.quick_joins, cgroups.quick_joins:
        assert threads() == ["quick-joins"], "one serves all"
    for thread in threading.enumerate():
        if thread.name == "quick-joins":
            thread.join(10)
    assert threads() == []
    assert Path("/proc/self/cgroup").read_text() == before, "it moved to where it already was"
