"""Fetches what the `microvm` back end runs: QEMU with its own libraries, a guest kernel, an initramfs and a disk.

All from Debian's archive, whose signatures apt checks; what was installed is noted with its SHA-256, and a machine is only
ever restored under the QEMU, kernel and disk that saved it.
"""

import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path

from mortice.sandbox.apt import Apt, run
from mortice.sandbox.contract import SandboxError
from mortice.sandbox.images import Image, find_image, vm_folder

KERNEL_PACKAGE = "linux-image-cloud-amd64"  # names the present kernel's package
VM_VERSION = "1"
FIRMWARE = ("bios-256k.bin", "linuxboot_dma.bin", "kvmvapic.bin")
LIBRARIES = Path("usr/lib/x86_64-linux-gnu")

INIT = """#!/bin/sh
# First process of a guest: one disk to read, folders in memory, then the agent on its serial port.
b() { /bin/busybox "$@"; }
b mount -t proc proc /proc
b mount -t devtmpfs dev /dev
b insmod /lib/virtio_blk.ko
b mount -t ext4 -o ro,nodev,nosuid /dev/vda /root
for word in $(b cat /proc/cmdline); do
  case $word in mortice=*) places=${word#mortice=} ;; esac
done
b umount /proc
b mount -t proc -o nosuid,nodev,noexec,hidepid=2 proc /root/proc
b mount -t tmpfs -o nosuid,noexec,size=64k,mode=0755 dev /root/dev
for name in null:3 zero:5 full:7 random:8 urandom:9; do
  b mknod -m 666 /root/dev/${name%:*} c 1 ${name#*:}
done
b ln -s /proc/self/fd /root/dev/fd
b mkdir /root/dev/shm
IFS=,
for place in $places; do
  IFS=:
  set -- $place
  b mount -t tmpfs -o nosuid,nodev,size=$2,nr_inodes=65536,mode=$3,uid=$4,gid=$4 tmpfs /root$1
done
IFS=' '
b ifconfig lo 127.0.0.1 up
exec 0<>$(b ls /dev/vport*p* | b head -n 1) 1>&0 2>/root/dev/null
export PATH=/usr/bin:/bin MALLOC_ARENA_MAX=2
exec /bin/busybox switch_root /root /usr/bin/python3 -I -S -c "$(/bin/busybox cat /boot.py)"
"""

BOOT_OVER_PORT = """
import posix, sys
def take(left):
    parts = []
    while left:
        part = posix.read(0, left)
        if not part:
            import time
            time.sleep(0.02)
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
sys.argv = ["agent", take(int.from_bytes(take(4), "little")).decode()]
import marshal
for name, code in marshal.loads(take(int.from_bytes(take(4), "little"))):
    module = sys.modules[name] = type(sys)(name)
    if not name.endswith(".gateway") or '"egress":true' in sys.argv[1]:
        exec(code, module.__dict__)
del code, take
module.main()
"""


def provision_vm(apt: Apt, say: Callable[[str], None]) -> None:
    """Make what is missing. Raises SandboxError where the base image is not there yet."""
    image = find_image("base")
    if image is None:
        raise SandboxError("the guest's root file system has to be made first")
    folder = vm_folder()
    wanted = (
        f"{VM_VERSION}:{hashlib.sha256((INIT + BOOT_OVER_PORT).encode()).hexdigest()[:16]}:{image.digest}"
    )
    note = folder / "vm.json"
    if note.exists() and json.loads(note.read_text())["made_from"] == wanted:
        return
    part = folder.with_name(f".vm.{os.getpid()}")
    part.mkdir()
    try:
        say("QEMU, a kernel and a disk for machines with a kernel of their own (80 MB)")
        _qemu(part, apt)
        _guest(part, apt)
        _disk(part, image)
        digest = _digest(p for p in sorted(part.rglob("*")) if p.is_file())
        (part / "vm.json").write_text(json.dumps({"made_from": wanted, "digest": digest}))
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _qemu(part: Path, apt: Apt) -> None:
    """The program, the libraries it names, its loader and three pieces of firmware; nothing is installed."""
    root = part / "unpacked"
    for package in apt.download_closure("qemu-system-x86"):
        run(["dpkg-deb", "-x", str(package), str(root)])
    program = root / "usr/bin/qemu-system-x86_64"
    loader = root / LIBRARIES / "ld-linux-x86-64.so.2"
    target = part / "qemu"
    target.mkdir()
    listed = subprocess.run(
        [str(loader), "--list", "--library-path", str(root / LIBRARIES), str(program)],
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    if "not found" in listed:
        raise SandboxError(f"QEMU lacks libraries: {listed}")
    for path in {Path(found) for found in re.findall(r"=> (/\S+)", listed)} | {loader, program}:
        shutil.copy(path, target / path.name)
    for name in FIRMWARE:
        shutil.copy(next(root.glob(f"usr/share/*/{name}")).resolve(), target / name)
    shutil.rmtree(root)


def _guest(part: Path, apt: Apt) -> None:
    """The newest cloud kernel and an initramfs with busybox, one module and our init."""
    wanted = apt.dependencies(KERNEL_PACKAGE)
    packages = [name for name in wanted if name.startswith("linux-image-")]
    root = part / "unpacked"
    for package in apt.download("busybox-static", packages[0]):
        run(["dpkg-deb", "-x", str(package), str(root)])
    shutil.copy(next(root.glob("boot/vmlinuz-*")), part / "kernel")
    module = next(root.glob("usr/lib/modules/*/kernel/drivers/block/virtio_blk.ko.xz"))
    entries = [
        *((name, 0o40755, b"") for name in ("bin", "dev", "lib", "proc", "root")),
        ("bin/busybox", 0o100755, (root / "usr/bin/busybox").read_bytes()),
        ("bin/sh", 0o120777, b"busybox"),
        ("lib/virtio_blk.ko", 0o100644, lzma.decompress(module.read_bytes())),
        ("boot.py", 0o100644, BOOT_OVER_PORT.encode()),
        ("init", 0o100755, INIT.encode()),
    ]
    (part / "initrd").write_bytes(cpio(entries))
    shutil.rmtree(root)


def _disk(part: Path, image: Image) -> None:
    """The shared root file system as an ext4 image that no machine can write to."""
    maker = shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if maker is None:
        raise SandboxError("mke2fs is needed (package e2fsprogs)")
    used = sum(p.lstat().st_size + 4096 for p in image.root.rglob("*"))
    size = used * 5 // 4 // 1024 + 16384
    run(
        [
            maker,
            "-q",
            "-t",
            "ext4",
            "-O",
            "^has_journal",
            "-m",
            "0",
            "-d",
            str(image.root),
            str(part / "disk"),
            f"{size}k",
        ]
    )


def cpio(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """An archive in the `newc` format that a kernel unpacks: (name, mode, content) each."""
    out = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        path = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        out += bytes(-len(out) % 4)
        out += data + bytes(-len(data) % 4)
    return bytes(out)


def _digest(paths: Iterable[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
